//! What a disk has left beside a neighbour that floods their shard.
//!
//! `cargo bench --bench floods [-- --seconds N] [--only NAME] [--plain]`
//!
//! Two disks of a kind on one shard, which has CPU 0 for itself. The thread of the load, on CPU 1,
//! plays both guests: it sends one 4 KiB read at a time to the one disk, and between two of them
//! keeps the queues of the other one full. So what it says of a request is the shard's doing alone.
//! Prints a markdown table; a cell that misses its goal has a `!`.

use std::hint::black_box;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use sluice_core::blk::BlkFeatures;
use sluice_core::blk::request::RangeWire;
use sluice_core::device::DeviceId;
use sluice_core::limits::SLICE_BYTES;
use sluice_linux::control::{self, Options, Served, Socket};
use sluice_linux::cpu;
use sluice_linux::frontend::{Connection, GUEST};
use sluice_linux::mailbox::{Bell, Line, Message, mailbox};
use sluice_linux::mapping::Mappings;
use sluice_linux::shard_loop::{self, Disk, Poll, ShardOptions};
use sluice_linux::socket;
use sluice_linux::store::{OpenOptions, Store};
use sluice_linux::tools::guest::{Guest, Wish};
use sluice_sim::driver::{Buffer, Kind, RequestSpec, Shape};

const MIB: u32 = 1 << 20;
const DISK_BYTES: u32 = 64 * MIB;
/// Requests in each queue of a flood, and in its only one.
const DEPTH: u16 = 40;
const DEPTH_ALONE: u16 = 340;
/// How often the flood is looked after, and how many of its requests at once.
const REFILL: Duration = Duration::from_micros(100);
const REFILL_MAX: u32 = 512;
const PATIENCE: Duration = Duration::from_secs(20);

/// What a request of a flood is: its kind and its bytes.
type Request = (Kind, u32);

const FLOODS: [(&str, &[Request]); 8] = [
    ("GET_ID", &[(Kind::GetId, 20)]),
    ("flush", &[(Kind::Flush, 0)]),
    ("1 MiB read", &[(Kind::Read, MIB)]),
    ("1 MiB write", &[(Kind::Write, MIB)]),
    ("64 MiB zeroes", &[(Kind::WriteZeroes, DISK_BYTES)]),
    ("4 KiB read", &[(Kind::Read, 4096)]),
    ("4 KiB write", &[(Kind::Write, 4096)]),
    (
        "mix",
        &[
            (Kind::GetId, 20),
            (Kind::WriteZeroes, DISK_BYTES),
            (Kind::Flush, 0),
            (Kind::Write, MIB),
            (Kind::Read, 4096),
            (Kind::Read, MIB),
        ],
    ),
];

/// What the disks are made of.
#[derive(Clone, Copy, Debug)]
enum Made {
    Null,
    Memory,
    Uring,
    Inline,
}

fn main() -> anyhow::Result<()> {
    let args: Vec<String> = std::env::args().collect();
    let option = |name: &str| args.iter().skip_while(|arg| *arg != name).nth(1);
    // `cargo test --benches` passes no `--bench`: a moment beside each flood shows that it works.
    let measured = args.iter().any(|arg| arg == "--bench");
    let seconds =
        option("--seconds").map_or(Ok(if measured { 0.5 } else { 0.01 }), |s| s.parse())?;
    let length = Duration::from_secs_f64(seconds);
    let made = [
        ("null", Made::Null),
        ("memory", Made::Memory),
        ("file, io_uring", Made::Uring),
        ("file in memory, inline", Made::Inline),
    ];
    let only = option("--only");
    let copies = 2 * copy_slice();
    println!("Two copies of 128 KiB: {:.1} us.\n", us(copies));
    print!("| disks | rings | alone |");
    FLOODS.iter().for_each(|(name, _)| print!(" {name} |"));
    println!(" control | 128 queues : 1 |");
    println!("|{}", " --- |".repeat(FLOODS.len() + 5));
    for (name, made) in made {
        if only.is_some_and(|only| !name.contains(only.as_str())) {
            continue;
        }
        for packed in [false, true] {
            row(name, made, packed, length, copies)?;
        }
        if !measured {
            break;
        }
    }
    Ok(())
}

/// One kind of disk and of rings beside each flood.
fn row(
    name: &str,
    made: Made,
    packed: bool,
    length: Duration,
    copies: Duration,
) -> anyhow::Result<()> {
    let daemon = Daemon::start(made)?;
    let mut one = Neighbour::begin(&daemon, packed)?;
    let alone = one.measure(length, None, 4096)?;
    // A slice takes what it takes elsewhere, where it is not copied by the shard.
    let slices = match made {
        Made::Uring => 2 * one.measure(length, None, 128 << 10)?,
        _ => copies,
    };
    print!("| {name} | {} | {:.1} us |", if packed { "packed" } else { "split" }, us(alone));
    let (mut stopped, mut goal) = (Duration::ZERO, slices + 3 * alone);
    for (kind, requests) in FLOODS {
        let mut flood = Flood::begin(&daemon, 0, packed, requests, 128)?;
        let mean = one.measure(length, Some(&mut flood), 4096)?;
        stopped = stopped.max(one.stop_and_start()?);
        if kind.starts_with('4') {
            goal = alone * 10 / 3;
        }
        let left = alone.as_secs_f64() / mean.as_secs_f64();
        print!(" {:.1} us ({left:.2}x){} |", us(mean), if mean > goal { "!" } else { "" });
        goal = slices + 3 * alone;
    }
    drop(one);
    let shares = shares(&daemon, packed, length)?;
    println!(" {:.2} ms | {shares} |", us(stopped) / 1e3);
    Ok(())
}

/// What a flood of 128 queues gets beside one of a single queue.
fn shares(daemon: &Daemon, packed: bool, length: Duration) -> anyhow::Result<String> {
    let mut found = Vec::new();
    for (name, requests) in [FLOODS[5], FLOODS[3]] {
        let mut many = Flood::begin(daemon, 0, packed, requests, 128)?;
        let mut one = Flood::begin(daemon, 1, packed, requests, 1)?;
        let begin = Instant::now();
        let (mut warm, mut before) = (true, (0, 0));
        while begin.elapsed() < 2 * length {
            many.refill()?;
            one.refill()?;
            if warm && begin.elapsed() > length {
                (warm, before) = (false, (many.done, one.done));
            }
        }
        let (many, one) = (many.done - before.0, one.done - before.1);
        found.push(format!("{:.2} ({name})", many as f64 / one.max(1) as f64));
    }
    Ok(found.join(", "))
}

fn us(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}

/// How long a slice takes to be copied.
fn copy_slice() -> Duration {
    let bytes = usize::try_from(SLICE_BYTES).expect("small");
    let (from, mut to) = (vec![1_u8; 64 * bytes], vec![0_u8; 64 * bytes]);
    let begin = Instant::now();
    let mut count = 0;
    while begin.elapsed() < Duration::from_millis(100) {
        let at = count as usize % 64 * bytes;
        to[at..at + bytes].copy_from_slice(black_box(&from[at..at + bytes]));
        count += 1;
    }
    black_box(&to);
    begin.elapsed() / count
}

/// Two disks on one shard, served by threads of this process.
struct Daemon {
    room: tempfile::TempDir,
    stop: Bell,
    line: Line,
    threads: Vec<thread::JoinHandle<()>>,
}

impl Daemon {
    fn start(made: Made) -> anyhow::Result<Self> {
        let room = match made {
            Made::Uring => tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR"))?,
            _ => tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir())?,
        };
        let disks = (0..2).map(|n| disk(made, room.path(), n)).collect::<anyhow::Result<_>>()?;
        let (control_end, shard_end) = mailbox()?;
        let (stop, line) = (Bell::new()?, control_end.line());
        let served = (0..2)
            .map(|n| {
                let (path, device) = (path(room.path(), n), DeviceId(n));
                let (listener, guard) = socket::bind(&path)?;
                // The directory goes with its sockets.
                std::mem::forget(guard);
                let (name, socket) = (path.display().to_string(), Socket::Listen(listener));
                Ok(Served { device, shard: 0, name, socket, parking: None, image: None })
            })
            .collect::<anyhow::Result<Vec<_>>>()?;
        let options = ShardOptions { poll: Poll::Busy, cpu: Some(0) };
        let shard = thread::spawn(move || {
            shard_loop::run(disks, options, &shard_end).expect("a shard that runs");
        });
        let stopped = stop.clone();
        let control = thread::spawn(move || {
            control::run(served, &[control_end], &stopped, Options::default())
                .expect("a control thread that runs");
        });
        Ok(Self { room, stop, line, threads: vec![shard, control] })
    }

    fn connect(&self, disk: u32, packed: bool) -> anyhow::Result<Connection> {
        let also = if packed { BlkFeatures::RING_PACKED } else { BlkFeatures::empty() };
        let path = path(self.room.path(), disk);
        let begin = Instant::now();
        loop {
            match Connection::open(&path, also) {
                Ok(connection) => return Ok(connection),
                Err(error) if begin.elapsed() > PATIENCE => return Err(error),
                Err(_) => thread::sleep(Duration::from_millis(1)),
            }
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.line.send(Message::Shutdown);
        self.stop.ring();
        self.threads.drain(..).for_each(|thread| thread.join().expect("it ends well"));
    }
}

fn path(room: &Path, disk: u32) -> PathBuf {
    room.join(format!("disk{disk}"))
}

fn disk(made: Made, room: &Path, n: u32) -> anyhow::Result<Disk> {
    let store = match made {
        Made::Null => Store::null(DISK_BYTES.into()),
        Made::Memory => Store::memory(DISK_BYTES.into())?,
        Made::Uring | Made::Inline => {
            let file = room.join(format!("{n}.raw"));
            std::fs::write(&file, vec![1; DISK_BYTES as usize])?;
            Store::open(&file, OpenOptions::default())?
        }
    };
    Ok(Disk { store, serial: [0; 20], queues: 128 })
}

/// A guest that asks for one thing at a time.
struct Neighbour {
    guest: Guest,
    mem: Mappings,
    sector: u64,
}

impl Neighbour {
    fn begin(daemon: &Daemon, packed: bool) -> anyhow::Result<Self> {
        let guest = guest(daemon.connect(1, packed)?, 1, 32)?;
        let mem = guest.memory.map()?;
        // Threads of the daemon were made before, so this holds for the load alone.
        cpu::pin(1)?;
        Ok(Self { guest, mem, sector: 0 })
    }

    /// The mean latency of requests of so many bytes over this time.
    fn measure(
        &mut self,
        length: Duration,
        mut flood: Option<&mut Flood>,
        bytes: u32,
    ) -> anyhow::Result<Duration> {
        let begin = Instant::now();
        let (mut last, mut sum, mut count) = (begin, Duration::ZERO, 0);
        while begin.elapsed() < 2 * length {
            if let Some(flood) = &mut flood
                && last.elapsed() > REFILL
            {
                flood.refill()?;
                last = Instant::now();
            }
            let latency = self.request(bytes)?;
            // The first half warms up.
            if begin.elapsed() > length {
                sum += latency;
                count += 1;
            }
        }
        Ok(sum / count.max(1))
    }

    fn request(&mut self, bytes: u32) -> anyhow::Result<Duration> {
        let buffer = Buffer { addr: GUEST + self.guest.data(0, 0), len: bytes };
        self.sector = (self.sector + 8 * 1237) % u64::from((DISK_BYTES - MIB) / 512);
        let queue = &mut self.guest.queues[0];
        let spec = RequestSpec::read(self.sector / 8 * 8, std::slice::from_ref(&buffer));
        let begin = Instant::now();
        queue.driver.add(&self.mem, &spec).context("the ring is full")?;
        queue.submit(&self.mem);
        loop {
            if let Some(done) = queue.driver.reap(&self.mem)? {
                ensure!(done.status == 0, "a request failed");
                return Ok(begin.elapsed());
            }
            ensure!(begin.elapsed() < PATIENCE, "a request does not come back");
            std::hint::spin_loop();
        }
    }

    /// How long it takes to stop the queue and to start it again, which is seven messages.
    fn stop_and_start(&self) -> anyhow::Result<Duration> {
        let begin = Instant::now();
        let queue = &self.guest.queues[0];
        let base = self.guest.connection.stop(queue.wires())?;
        self.guest.connection.start(&self.guest.memory, queue.wires(), base)?;
        Ok(begin.elapsed())
    }
}

/// A guest that always has as much to ask for as its rings hold.
struct Flood {
    guest: Guest,
    mem: Mappings,
    requests: &'static [Request],
    next: usize,
    queue: usize,
    done: u64,
}

impl Flood {
    fn begin(
        daemon: &Daemon,
        disk: u32,
        packed: bool,
        requests: &'static [Request],
        queues: u16,
    ) -> anyhow::Result<Self> {
        let depth = if queues == 1 { DEPTH_ALONE } else { DEPTH };
        let guest = guest(daemon.connect(disk, packed)?, queues, depth)?;
        let mem = guest.memory.map()?;
        let mut this = Self { guest, mem, requests, next: 0, queue: 0, done: 0 };
        for queue in 0..usize::from(queues) {
            (0..depth).try_for_each(|_| this.add(queue))?;
            this.guest.queues[queue].submit(&this.mem);
        }
        Ok(this)
    }

    fn add(&mut self, queue: usize) -> anyhow::Result<()> {
        let (kind, bytes) = self.requests[self.next % self.requests.len()];
        self.next += 1;
        let data = Buffer { addr: GUEST + self.guest.data(0, 0), len: bytes };
        let range = RangeWire { sector: 0.into(), sectors: (bytes / 512).into(), flags: 0.into() };
        let (buffers, ranges): (&[_], &[_]) = match kind {
            Kind::WriteZeroes => (&[], &[range]),
            Kind::Flush => (&[], &[]),
            _ => (&[data], &[]),
        };
        let shape = Shape::PLAIN;
        let spec = RequestSpec { kind, sector: 0, buffers, ranges, shape, silent: false };
        self.guest.queues[queue].driver.add(&self.mem, &spec).context("the ring is full")?;
        Ok(())
    }

    /// Takes back what has ended and asks for as much again, in one queue after the other.
    fn refill(&mut self) -> anyhow::Result<()> {
        let mut count = 0;
        for _ in 0..self.guest.queues.len() {
            self.queue = (self.queue + 1) % self.guest.queues.len();
            let before = count;
            while let Some(done) = self.guest.queues[self.queue].driver.reap(&self.mem)? {
                ensure!(done.status == 0, "a request of a flood failed");
                self.add(self.queue)?;
                count += 1;
            }
            if count > before {
                self.guest.queues[self.queue].submit(&self.mem);
            }
            if count > REFILL_MAX {
                break;
            }
        }
        self.done += u64::from(count);
        Ok(())
    }
}

fn guest(connection: Connection, queues: u16, depth: u16) -> anyhow::Result<Guest> {
    // Few requests have data of their own; all together there is room for the largest.
    let wish = Wish {
        queues,
        depth,
        descriptors: 3,
        data_bytes: if depth == 32 { 128 << 10 } else { 4096 },
        table_entries: 0,
        tracked: true,
    };
    Guest::start(connection, wish)
}
