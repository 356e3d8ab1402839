//! How long a daemon that was killed with many disks under load takes until it serves them again.
//!
//! `cargo bench --bench restart [-- --disks N] [--rounds N]`
//!
//! A daemon whose answers come too late is killed with requests in flight on every disk, and
//! another one is started. What is measured, from before its fork on: when the first request that
//! it takes again is given back, and when every disk has had one; once with front ends that
//! reconnect, one after the other, and once with descriptors that were parked.

use std::mem;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, ensure};
use rustix::process::{Pid, Signal, kill_process};
use sluice_core::blk::BlkFeatures;
use sluice_linux::frontend::{
    Connection, GUEST, GuestMemory, InflightRegion, Queue, REGION, Wires,
};
use sluice_linux::mapping::Mappings;
use sluice_sim::driver::{Buffer, Layout, RequestSpec};

/// Entries of a ring, and requests that are in flight in it.
const SIZE: u16 = 128;
const DEPTH: u64 = 32;
/// How long a daemon may take for anything.
const PATIENCE: Duration = Duration::from_secs(20);

fn option(name: &str, default: usize) -> usize {
    let mut args = std::env::args();
    args.find(|arg| arg == name).map_or(default, |_| args.next().unwrap().parse().unwrap())
}

fn main() -> anyhow::Result<()> {
    // `cargo test --benches` passes no `--bench`: one round with few disks shows that it works.
    let measured = std::env::args().any(|arg| arg == "--bench");
    let (disks, rounds) = if measured { (64, 7) } else { (4, 1) };
    let (disks, rounds) = (option("--disks", disks), option("--rounds", rounds));
    for park in ["never", "keeper"] {
        let mut found = (0..rounds)
            .map(|_| round(disks, park))
            .collect::<anyhow::Result<Vec<_>>>()
            .with_context(|| format!("--park {park}"))?;
        found.sort_unstable();
        let (first, last) = found[found.len() / 2];
        let how = if park == "never" { "reconnecting" } else { "parked" };
        println!(
            "{disks} disks, {how}: first request given back after {:.1} ms, \
             every disk served after {:.1} ms (median of {rounds})",
            first.as_secs_f64() * 1e3,
            last.as_secs_f64() * 1e3,
        );
    }
    Ok(())
}

/// A daemon, killed when it goes.
struct Daemon(Child);

impl Daemon {
    fn start(sockets: &Path, disks: usize, park: &str, more: &[&str]) -> anyhow::Result<Self> {
        let mut command = Command::new(env!("CARGO_BIN_EXE_sluice"));
        command.args(["serve-one", "--blk-null", "1G", "--park", park, "--count"]);
        command.arg(disks.to_string()).arg("--socket-path").arg(sockets).args(more);
        // The keeper is a child of its own; nobody reads what either says.
        command.stdout(Stdio::null()).stderr(Stdio::null());
        Ok(Self(command.spawn().context("starting the daemon")?))
    }
}

impl Daemon {
    /// Ends it in order, and its keeper with it.
    fn end(mut self) -> anyhow::Result<()> {
        kill_process(Pid::from_child(&self.0), Signal::TERM)?;
        self.0.wait()?;
        Ok(())
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A guest with one queue.
struct Guest {
    socket: String,
    connection: Connection,
    memory: GuestMemory,
    mem: Mappings,
    region: InflightRegion,
    queue: Queue,
    /// The used index when its daemon was killed.
    used: u32,
}

impl Guest {
    fn begin(socket: String) -> anyhow::Result<Self> {
        let connection = patiently(|| Connection::open(Path::new(&socket), BlkFeatures::empty()))?;
        let layout = Layout::new(REGION, GUEST, 0, SIZE, 0);
        let data = layout.end().next_multiple_of(4096);
        let memory = GuestMemory::new(data + DEPTH * 4096)?;
        let mem = memory.map()?;
        let region = connection.make_inflight(1, SIZE)?.context("nothing is tracked")?;
        connection.share_inflight(&region)?;
        connection.share(&memory)?;
        let event_idx = connection.features().contains(BlkFeatures::EVENT_IDX);
        let mut queue = Queue::new(&mem, 0, layout, event_idx)?;
        connection.start(&memory, queue.wires(), layout.base())?;
        for at in 0..DEPTH {
            let buffer = Buffer { addr: GUEST + data + at * 4096, len: 4096 };
            let tag = queue.driver.add(&mem, &RequestSpec::read(at * 8, &[buffer]));
            tag.context("the ring is full")?;
        }
        queue.submit(&mem);
        Ok(Self { socket, connection, memory, mem, region, queue, used: 0 })
    }

    fn reconnect(&self) -> anyhow::Result<Connection> {
        let connection = patiently(|| self.connection.reopen(Path::new(&self.socket)))?;
        connection.share_inflight(&self.region)?;
        connection.share(&self.memory)?;
        connection.start(&self.memory, self.queue.wires(), self.used)?;
        Ok(connection)
    }

    fn used(&self) -> anyhow::Result<u32> {
        self.queue.wires().known_base(&self.mem)
    }
}

fn patiently<T>(attempt: impl Fn() -> anyhow::Result<T>) -> anyhow::Result<T> {
    let begin = Instant::now();
    loop {
        match attempt() {
            Err(_) if begin.elapsed() < PATIENCE => thread::sleep(Duration::from_micros(200)),
            result => return result,
        }
    }
}

/// One kill: until the first request was given back, and until each disk had one.
fn round(disks: usize, park: &str) -> anyhow::Result<(Duration, Duration)> {
    let room = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir())?;
    let sockets = room.path().join("disk");
    let hour = Duration::from_secs(3600).as_micros().to_string();
    let daemon = Daemon::start(&sockets, disks, park, &["--late-us", &hour])?;
    let mut guests = (0..disks)
        .map(|n| Guest::begin(format!("{}{n}", sockets.display())))
        .collect::<anyhow::Result<Vec<_>>>()?;
    // Long enough for every request to be taken, and for every descriptor to be parked.
    thread::sleep(Duration::from_millis(500));
    drop(daemon);
    for guest in &mut guests {
        guest.used = guest.used()?;
        ensure!(u64::from(guest.used) < DEPTH, "nothing was in flight");
    }
    let begin = Instant::now();
    let daemon = Daemon::start(&sockets, disks, park, &[])?;
    let watched: Vec<_> = guests
        .iter()
        .map(|guest| Ok((&guest.memory, guest.queue.share_wires()?, guest.used)))
        .collect::<anyhow::Result<_>>()?;
    let found = thread::scope(|scope| {
        let watch = scope.spawn(move || watch(begin, watched));
        let mut connections = Vec::new();
        if park == "never" {
            for guest in &guests {
                connections.push(guest.reconnect()?);
            }
        }
        watch.join().map_err(|_| anyhow!("watching failed"))?
    });
    daemon.end()?;
    found
}

/// When the first of these queues is given something back, and when all have been.
fn watch(
    begin: Instant,
    queues: Vec<(&GuestMemory, Wires, u32)>,
) -> anyhow::Result<(Duration, Duration)> {
    let mut waiting = Vec::new();
    for (memory, wires, used) in queues {
        waiting.push((memory.map()?, wires, used));
    }
    let (mut first, mut last) = (None, Duration::ZERO);
    while !waiting.is_empty() {
        ensure!(begin.elapsed() < PATIENCE, "{} disks are not served", waiting.len());
        for (mem, wires, used) in mem::take(&mut waiting) {
            if wires.known_base(&mem)? == used {
                waiting.push((mem, wires, used));
            } else {
                last = begin.elapsed();
                first.get_or_insert(last);
            }
        }
        thread::sleep(Duration::from_micros(100));
    }
    Ok((first.context("no disks")?, last))
}
