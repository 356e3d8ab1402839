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
use sluice_linux::frontend::{Connection, GUEST, GuestMemory, Wires};
use sluice_linux::mapping::Mappings;
use sluice_linux::tools::guest::{Guest, Wish};
use sluice_sim::driver::{Buffer, RequestSpec};

/// Requests in flight on a disk, and what each reads.
const DEPTH: u16 = 32;
const BYTES: u32 = 4096;
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

/// A disk that was served, with requests in flight.
struct Disk {
    socket: String,
    guest: Guest,
    mem: Mappings,
    wires: Wires,
    /// The used index when its daemon was killed.
    used: u32,
}

impl Disk {
    fn begin(socket: String) -> anyhow::Result<Self> {
        let connection = patiently(|| Connection::open(Path::new(&socket), BlkFeatures::empty()))?;
        let wish = Wish {
            queues: 1,
            depth: DEPTH,
            descriptors: 3,
            data_bytes: BYTES.into(),
            table_entries: 0,
            tracked: true,
        };
        let mut guest = Guest::start(connection, wish)?;
        let mem = guest.memory.map()?;
        for request in 0..DEPTH {
            let buffer = Buffer { addr: GUEST + guest.data(0, request), len: BYTES };
            let sector = u64::from(request) * 8;
            let tag = guest.queues[0].driver.add(&mem, &RequestSpec::read(sector, &[buffer]));
            tag.context("the ring is full")?;
        }
        guest.queues[0].submit(&mem);
        let wires = guest.queues[0].share_wires()?;
        Ok(Self { socket, guest, mem, wires, used: 0 })
    }

    fn reconnect(&self) -> anyhow::Result<Connection> {
        let again = patiently(|| self.guest.connection.reopen(Path::new(&self.socket)))?;
        self.guest.resume(&again, std::slice::from_ref(&self.wires), &self.mem)?;
        Ok(again)
    }

    fn used(&self) -> anyhow::Result<u32> {
        self.wires.known_base(&self.mem)
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
    let mut served = (0..disks)
        .map(|n| Disk::begin(format!("{}{n}", sockets.display())))
        .collect::<anyhow::Result<Vec<_>>>()?;
    // Long enough for every request to be taken, and for every descriptor to be parked.
    thread::sleep(Duration::from_millis(500));
    drop(daemon);
    for disk in &mut served {
        disk.used = disk.used()?;
        ensure!(disk.used < DEPTH.into(), "nothing was in flight");
    }
    let begin = Instant::now();
    let daemon = Daemon::start(&sockets, disks, park, &[])?;
    let watched: Vec<_> =
        served.iter().map(|disk| (&disk.guest.memory, &disk.wires, disk.used)).collect();
    let found = thread::scope(|scope| {
        let watch = scope.spawn(move || watch(begin, watched));
        let mut connections = Vec::new();
        if park == "never" {
            for disk in &served {
                connections.push(disk.reconnect()?);
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
    queues: Vec<(&GuestMemory, &Wires, u32)>,
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
