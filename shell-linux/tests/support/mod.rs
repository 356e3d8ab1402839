//! What tests of the control thread share: a daemon around a shard, and a front end that says
//! what it is told to.

pub(crate) mod client;
pub(crate) mod guest;
pub(crate) mod shard;
pub(crate) mod store;

use std::collections::BTreeMap;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use sluice_core::device::DeviceId;
use sluice_linux::control::{self, Options, Served, Socket};
use sluice_linux::mailbox::{Bell, Message, mailbox};
use sluice_linux::parking::Place;

use client::Client;
use shard::Hold;

/// Tests count the descriptors of the process, so there is one at a time.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// Waits until no other test has descriptors open.
pub(crate) fn alone() -> MutexGuard<'static, ()> {
    let alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    eventually(|| !lets_go(), || "what the last test has left is still open".to_owned());
    alone
}

/// Whether threads are at work on what front ends have left.
fn lets_go() -> bool {
    let threads = std::fs::read_dir("/proc/self/task").expect("proc is there").flatten();
    let names =
        threads.filter_map(|thread| std::fs::read_to_string(thread.path().join("comm")).ok());
    names
        .map(|name| name.trim_end().to_owned())
        .any(|name| ["reaper-disk", "apart"].contains(&name.as_str()))
}

/// A control thread and a shard thread with some disks.
pub(crate) struct Daemon {
    pub(crate) hold: Arc<Hold>,
    stop: Bell,
    control: Option<JoinHandle<()>>,
    shard: Option<JoinHandle<()>>,
    directory: tempfile::TempDir,
    disks: u32,
    _alone: MutexGuard<'static, ()>,
}

impl Daemon {
    /// With this many disks that listen.
    pub(crate) fn new(disks: u32) -> Self {
        Self::with(disks, Vec::new(), None, Options::default(), alone())
    }

    /// With a disk that listens and whose front ends are parked here.
    pub(crate) fn parking_at(place: Place, alone: MutexGuard<'static, ()>) -> Self {
        Self::with(1, Vec::new(), Some(place), Options::default(), alone)
    }

    /// With a disk whose front end is connected already and parked here, and one that listens. The
    /// stream is the daemon's side of the socket.
    pub(crate) fn parking(
        place: Place,
        alone: MutexGuard<'static, ()>,
    ) -> (Self, Client, UnixStream) {
        let (ours, theirs) = UnixStream::pair().expect("two sockets");
        let kept = theirs.try_clone().expect("a copy");
        let daemon = Self::with(1, vec![theirs], Some(place), Options::default(), alone);
        (daemon, Client::new(ours), kept)
    }

    /// With limits on what front ends may have.
    pub(crate) fn limited(disks: u32, options: Options) -> Self {
        Self::with(disks, Vec::new(), None, options, alone())
    }

    /// With a patience that a test can wait for.
    pub(crate) fn impatient(disks: u32) -> Self {
        let options = Options { patience: Duration::from_millis(100), ..Options::default() };
        Self::with(disks, Vec::new(), None, options, alone())
    }

    /// With a disk that is connected already: its front end, and the daemon's side of the
    /// socket as whoever handed it down has it.
    pub(crate) fn connected() -> (Self, Client, UnixStream) {
        let alone = alone();
        let (ours, theirs) = UnixStream::pair().expect("two sockets");
        let kept = theirs.try_clone().expect("a copy");
        let daemon = Self::with(0, vec![theirs], None, Options::default(), alone);
        (daemon, Client::new(ours), kept)
    }

    fn with(
        disks: u32,
        connected: Vec<UnixStream>,
        parking: Option<Place>,
        options: Options,
        alone: MutexGuard<'static, ()>,
    ) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let listen = |disk| UnixListener::bind(directory.path().join(format!("{disk}"))).unwrap();
        let listening = (0..disks).map(|disk| Socket::Listen(listen(disk)));
        let mut served: Vec<_> = listening
            .chain(connected.into_iter().map(Socket::Connected))
            .zip(0..)
            .map(|(socket, disk)| Served {
                device: DeviceId(disk),
                shard: 0,
                name: format!("disk{disk}"),
                socket,
                parking: None,
                image: None,
            })
            .collect();
        if let Some(last) = served.last_mut() {
            last.parking = parking;
        }
        let (control_end, shard_end) = mailbox().expect("a mailbox");
        let hold = Arc::new(Hold::default());
        let (stop, held) = (Bell::new().expect("a bell"), Arc::clone(&hold));
        let count = served.len();
        let shard = std::thread::spawn(move || shard::run(&shard_end, count, &held));
        let rings = stop.clone();
        let control = std::thread::spawn(move || {
            control::run(served, std::slice::from_ref(&control_end), &rings, options).unwrap();
            control_end.send(Message::Shutdown);
        });
        let (control, shard) = (Some(control), Some(shard));
        Self { hold, stop, control, shard, directory, disks, _alone: alone }
    }

    pub(crate) fn path(&self, disk: u32) -> PathBuf {
        self.directory.path().join(format!("{disk}"))
    }

    /// A front end that has said nothing.
    pub(crate) fn connect(&self, disk: u32) -> Client {
        Client::new(UnixStream::connect(self.path(disk)).expect("the daemon listens"))
    }

    /// Waits until nothing of a disk's front ends is left: the next one is served.
    pub(crate) fn settle(&self, disk: u32) -> Client {
        let mut client = self.connect(disk);
        assert!(client.is_served());
        client
    }

    /// What is open when nothing of any front end is left, but for one at each disk that has
    /// said nothing of weight.
    pub(crate) fn open(&self) -> (u32, BTreeMap<String, usize>) {
        let _settled: Vec<_> = (0..self.disks).map(|disk| self.settle(disk)).collect();
        (self.hold.mappings(), descriptors())
    }

    /// The same as it was before, as soon as everything that has been given up is closed.
    pub(crate) fn has_open(&self, before: &(u32, BTreeMap<String, usize>)) {
        eventually(|| self.open() == *before, || format!("{:?} is no {before:?}", self.open()));
    }
}

/// Waits for what other threads do some time.
pub(crate) fn eventually(mut so: impl FnMut() -> bool, otherwise: impl Fn() -> String) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !so() {
        assert!(Instant::now() < deadline, "{}", otherwise());
        std::thread::sleep(Duration::from_millis(1));
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.hold.release();
        self.stop.ring();
        // Both have to have lived until now.
        let control = self.control.take().expect("dropped once").join();
        let shard = self.shard.take().expect("dropped once").join();
        if !std::thread::panicking() {
            eventually(|| !lets_go(), || "what front ends have left is still open".to_owned());
            control.expect("the control thread lives");
            shard.expect("the shard lives");
        }
    }
}

/// The open descriptors of this process: what they lead to, and how many do.
pub(crate) fn descriptors() -> BTreeMap<String, usize> {
    let mut kinds = BTreeMap::new();
    for entry in std::fs::read_dir("/proc/self/fd").expect("proc is there").flatten() {
        let Ok(target) = std::fs::read_link(entry.path()) else { continue };
        let target = target.display().to_string();
        // Sockets and pipes differ by a number, and every listing has a directory of its own.
        let kind = target.split(":[").next().unwrap_or_default().to_owned();
        if !kind.ends_with("/fd") {
            *kinds.entry(kind).or_default() += 1;
        }
    }
    kinds
}
