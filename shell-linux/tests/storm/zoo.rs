//! Descriptors of every kind that a process can come by.

use std::collections::VecDeque;
use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, epoll, eventfd};
use rustix::fs::{CWD, MemfdFlags, Mode, OFlags, SealFlags, fcntl_add_seals, memfd_create, openat};
use rustix::net::sockopt;
use rustix::pipe::{PipeFlags, pipe_with};
use sluice_sim::prng::Prng;

use crate::fuse::Fuse;

/// Bytes of memory that is as it should be.
const MEMORY: u64 = 1 << 20;

/// How long something may be held up: longer than the storm waits for its neighbour.
pub(crate) const HELD: Duration = Duration::from_secs(90);

/// Where descriptors come from.
pub(crate) struct Zoo {
    directory: tempfile::TempDir,
    fuse: Option<Fuse>,
    /// How many descriptors may hold somebody up at a time. More of them, and all there is to see
    /// is how a device is refused that holds too much.
    held_max: usize,
    /// What keeps a descriptor from being closed, since when.
    held: VecDeque<(Instant, Option<TcpStream>)>,
    /// Memory that is to be taken back.
    vanishing: VecDeque<OwnedFd>,
}

impl Zoo {
    pub(crate) fn new(held_max: usize) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        std::fs::write(directory.path().join("file"), vec![0; 1 << 20]).expect("a file");
        let fuse = Fuse::new();
        if fuse.is_none() {
            println!("no files of a FUSE file system: it cannot be mounted here");
        }
        Self { directory, fuse, held_max, held: VecDeque::new(), vanishing: VecDeque::new() }
    }

    fn file(&self) -> PathBuf {
        self.directory.path().join("file")
    }

    /// A descriptor of any kind.
    pub(crate) fn any(&mut self, prng: &mut Prng, own: &UnixStream) -> OwnedFd {
        match prng.index(24) {
            0 => eventfd(0, EventfdFlags::empty()).expect("an eventfd"),
            1 => full_eventfd(),
            2 => eventfd(7, EventfdFlags::SEMAPHORE).expect("an eventfd"),
            3 => pipe_with(PipeFlags::empty()).expect("a pipe").0,
            4 => pipe_with(PipeFlags::empty()).expect("a pipe").1,
            5 => UnixStream::pair().expect("two sockets").0.into(),
            6 => self
                .lingering()
                .unwrap_or_else(|| TcpListener::bind("127.0.0.1:0").expect("a port").into()),
            7 => sealed(SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL),
            8 => sealed(SealFlags::WRITE),
            9 => memory(1 << 40),
            10 => self.vanishing(),
            11 if self.held_max > 0 => huge(prng.index(2) == 0).unwrap_or_else(|| memory(MEMORY)),
            12 => timer(),
            13 => open(&self.file(), OFlags::PATH),
            14 => open(self.directory.path(), OFlags::RDONLY | OFlags::DIRECTORY),
            15 => epoll::create(epoll::CreateFlags::empty()).expect("an epoll"),
            16 => own.try_clone().expect("a copy").into(),
            17 => open("/dev/zero".as_ref(), OFlags::RDWR),
            18 => open("/dev/null".as_ref(), OFlags::RDWR),
            19 => open(&self.file(), OFlags::RDONLY),
            20 => open(&self.file(), OFlags::RDWR),
            21 => {
                self.on_fuse().unwrap_or_else(|| open("/proc/self/maps".as_ref(), OFlags::RDONLY))
            }
            22 => open("/dev/ptmx".as_ref(), OFlags::RDWR | OFlags::NOCTTY),
            _ => memory(MEMORY),
        }
    }

    /// Memory that a front end could use.
    pub(crate) fn memory() -> OwnedFd {
        memory(MEMORY)
    }

    /// Takes some memory back that was handed over.
    pub(crate) fn take_back(&mut self) {
        if let Some(memory) = self.vanishing.pop_front() {
            let _ = rustix::fs::ftruncate(&memory, 0);
        }
    }

    fn vanishing(&mut self) -> OwnedFd {
        let memory = memory(MEMORY);
        self.vanishing.push_back(memory.try_clone().expect("a copy"));
        memory
    }

    /// Whether one more may hold somebody up.
    fn may_hold(&mut self) -> bool {
        while self.held.front().is_some_and(|(since, _)| since.elapsed() > HELD) {
            self.held.pop_front();
        }
        self.held.len() < self.held_max
    }

    /// A file whose close and whose pages are answered late, by us.
    fn on_fuse(&mut self) -> Option<OwnedFd> {
        if !self.may_hold() {
            return None;
        }
        let file = self.fuse.as_ref()?.open();
        self.held.push_back((Instant::now(), None));
        Some(file)
    }

    /// A socket whose close waits until what it has sent was read, which nobody does.
    fn lingering(&mut self) -> Option<OwnedFd> {
        if !self.may_hold() {
            return None;
        }
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let socket =
            TcpStream::connect(listener.local_addr().expect("an address")).expect("a peer");
        let (peer, _) = listener.accept().expect("a connection");
        socket.set_nonblocking(true).expect("a flag");
        while std::io::Write::write(&mut &socket, &[0; 1 << 16]).is_ok() {}
        socket.set_nonblocking(false).expect("a flag");
        sockopt::set_socket_linger(&socket, Some(Duration::from_secs(3600))).expect("an option");
        self.held.push_back((Instant::now(), Some(peer)));
        Some(socket.into())
    }
}

/// Closes descriptors, and waits for a moment: one that is the last of its kind may hold up
/// whoever closes it.
pub(crate) fn close_aside(fds: Vec<OwnedFd>) {
    let (done, closed) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        drop(fds);
        let _ = done.send(());
    });
    let _ = closed.recv_timeout(Duration::from_millis(100));
}

fn memory(bytes: u64) -> OwnedFd {
    let memory = memfd_create("storm", MemfdFlags::ALLOW_SEALING).expect("memory");
    rustix::fs::ftruncate(&memory, bytes).expect("a length");
    memory
}

fn sealed(seals: SealFlags) -> OwnedFd {
    let memory = memory(MEMORY);
    fcntl_add_seals(&memory, seals).expect("seals");
    memory
}

/// Memory of huge pages, of which there may be none.
fn huge(sealable: bool) -> Option<OwnedFd> {
    let flags = if sealable { MemfdFlags::ALLOW_SEALING } else { MemfdFlags::empty() };
    let memory = memfd_create("storm", flags | MemfdFlags::HUGETLB).ok()?;
    rustix::fs::ftruncate(&memory, 2 << 20).ok()?;
    Some(memory)
}

/// A counter that is full: a write to it waits for a read.
fn full_eventfd() -> OwnedFd {
    let event = eventfd(0, EventfdFlags::empty()).expect("an eventfd");
    rustix::io::write(&event, &(u64::MAX - 1).to_ne_bytes()).expect("a full counter");
    event
}

fn timer() -> OwnedFd {
    use rustix::time::{TimerfdClockId, TimerfdFlags, timerfd_create};
    timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::empty()).expect("a timer")
}

fn open(path: &std::path::Path, flags: OFlags) -> OwnedFd {
    openat(CWD, path, flags, Mode::empty()).expect("it is there")
}
