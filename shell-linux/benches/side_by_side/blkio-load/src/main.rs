//! A thin load generator for any vhost-user-blk socket.
//!
//! All ring and protocol code is the crate blkio's; what is here is the loop around it. The loop
//! must cost less than the target it measures, so it reads the clock once per batch of
//! completions, keeps latencies in a flat array and takes its offsets from a table.
//!
//! Prints one JSON line on stdout. Says `ready` on stderr once every disk is connected.

mod args;
mod histogram;
mod sys;
mod wake;

use args::Args;
use blkio::{Blkio, Blkioq, Completion, MemoryRegion, ReqFlags};
use histogram::Histogram;
use std::error::Error;
use std::mem::MaybeUninit;
use std::time::{Duration, Instant};

/// Power of two, so that the position wraps with a mask; 64 KiB of table stays in the L2 cache.
const OFFSETS: usize = 16_384;

/// A virtio-blk request here is header, data, status: the crate has no indirect descriptors.
const DESCRIPTORS_PER_REQUEST: usize = 3;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

fn main() {
    if let Err(error) = run() {
        eprintln!("blkio-load: {error}");
        std::process::exit(1);
    }
    // Leave without dropping: the crate sends nothing on close, and the kernel tidies up faster.
    std::process::exit(0);
}

fn run() -> Result<()> {
    let args = Args::parse()?;
    if let Some(cpu) = args.cpu {
        sys::pin(cpu)?;
    }
    if let Some(cpu) = args.wake_cpu {
        let iops = wake::round_trips(args.time, cpu)?;
        println!("{}", Report { iops, ..Report::default() }.json());
        return Ok(());
    }
    // A target that loses a request must end the run, and a time-out passed to the crate would
    // read the clock on every spin. The default action of the signal is enough.
    sys::alarm_after(args.warm + args.time + Duration::from_secs(15));

    let data_len = args.bs * args.qd.max(1);
    let memory = sys::shared_memory(data_len, args.huge)?;

    let mut idle = Vec::new();
    for n in 0..args.idle_n {
        let path = format!("{}{n}", args.idle_prefix);
        let mut disk = Disk::connect(&path, &args, &memory).map_err(|e| format!("{path}: {e}"))?;
        disk.prove_alive(&memory)
            .map_err(|e| format!("{path}: {e}"))?;
        idle.push(disk);
    }
    let active = match &args.path {
        Some(path) => {
            Some(Disk::connect(path, &args, &memory).map_err(|e| format!("{path}: {e}"))?)
        }
        None => None,
    };
    eprintln!("ready");

    let report = match active {
        Some(mut disk) if args.qd > 0 => measure(&mut disk, &args, &memory)?,
        _ => {
            std::thread::sleep(args.time);
            Report::default()
        }
    };
    println!("{}", report.json());
    drop(idle);
    Ok(())
}

/// One connected disk with one running queue.
struct Disk {
    queue: Blkioq,
    capacity: u64,
    /// Keeps the connection open; never touched again.
    _device: Blkio,
}

impl Disk {
    fn connect(path: &str, args: &Args, memory: &MemoryRegion) -> Result<Self> {
        let mut device = Self::open(path)?;
        device.set_i32("queue-size", args.queue_size)?;
        device.set_i32("num-queues", i32::from(!args.poll))?;
        device.set_i32("num-poll-queues", i32::from(args.poll))?;
        let mut started = device.start()?;
        device.map_mem_region(memory)?;
        let queue = started.poll_queues.pop().or_else(|| started.queues.pop());
        Ok(Self {
            queue: queue.ok_or("the device gave no queue")?,
            capacity: device.get_u64("capacity")?,
            _device: device,
        })
    }

    /// Tries for two seconds: a daemon that starts has a socket file before it listens.
    fn open(path: &str) -> Result<Blkio> {
        let give_up = Instant::now() + Duration::from_secs(2);
        loop {
            let mut device = Blkio::new("virtio-blk-vhost-user")?;
            device.set_str("path", path)?;
            match device.connect() {
                Ok(()) => return Ok(device),
                Err(error) if Instant::now() > give_up => return Err(error.into()),
                Err(_) => std::thread::sleep(Duration::from_millis(20)),
            }
        }
    }

    /// One read. A daemon may accept a disk it never serves; that disk would be idle for free.
    fn prove_alive(&mut self, memory: &MemoryRegion) -> Result<()> {
        self.queue
            .read(0, memory.addr as *mut u8, 512, 0, ReqFlags::empty());
        let mut done = [MaybeUninit::uninit()];
        let mut patience = Duration::from_secs(5);
        self.queue.do_io(&mut done, 1, Some(&mut patience), None)?;
        // SAFETY: `do_io` returned Ok with a minimum of one, so the one entry is filled.
        match unsafe { done[0].assume_init_ref() }.ret {
            0 => Ok(()),
            ret => Err(format!("the first read failed with {ret}").into()),
        }
    }
}

/// What one run found.
#[derive(Default)]
struct Report {
    iops: f64,
    mean_us: f64,
    p50_us: f64,
    p99_us: f64,
    p999_us: f64,
    errors: u64,
    wait_share: f64,
}

impl Report {
    fn json(&self) -> String {
        format!(
            "{{\"iops\":{:.0},\"mean_us\":{:.3},\"p50_us\":{:.3},\"p99_us\":{:.3},\
             \"p999_us\":{:.3},\"errors\":{},\"wait_share\":{:.4}}}",
            self.iops,
            self.mean_us,
            self.p50_us,
            self.p99_us,
            self.p999_us,
            self.errors,
            self.wait_share
        )
    }
}

/// The generator: keeps `qd` requests in the ring and remembers when each was handed over.
struct Load<'a> {
    queue: &'a mut Blkioq,
    write: bool,
    bs: usize,
    buffers: usize,
    offsets: Vec<u64>,
    next: usize,
    sent: Vec<u64>,
    errors: u64,
}

impl Load<'_> {
    #[inline(always)]
    fn submit(&mut self, slot: usize, now: u64) {
        let start = self.offsets[self.next & (OFFSETS - 1)];
        self.next += 1;
        self.sent[slot] = now;
        let buffer = (self.buffers + slot * self.bs) as *mut u8;
        if self.write {
            self.queue
                .write(start, buffer, self.bs, slot, ReqFlags::empty());
        } else {
            self.queue
                .read(start, buffer, self.bs, slot, ReqFlags::empty());
        }
    }

    /// Runs until the clock passes `end` and returns when it really stopped.
    fn run(
        &mut self,
        done: &mut [MaybeUninit<Completion>],
        histogram: &mut Histogram,
        end: u64,
    ) -> Result<u64> {
        loop {
            let filled = self.queue.do_io(done, 1, None, None)?;
            let now = sys::ticks();
            for entry in &done[..filled] {
                // SAFETY: `do_io` filled the first `filled` entries.
                let completion = unsafe { entry.assume_init_ref() };
                let slot = completion.user_data;
                histogram.record(now.saturating_sub(self.sent[slot]));
                self.errors += u64::from(completion.ret != 0);
                self.submit(slot, now);
            }
            if now >= end {
                return Ok(now);
            }
        }
    }
}

fn measure(disk: &mut Disk, args: &Args, memory: &MemoryRegion) -> Result<Report> {
    if args.qd * DESCRIPTORS_PER_REQUEST > args.queue_size as usize {
        return Err("--queue-size must hold three descriptors for each request of --qd".into());
    }
    let blocks = disk.capacity / args.bs as u64;
    if blocks == 0 {
        return Err("the disk is smaller than one block".into());
    }
    let ticks_per_second = sys::ticks_per_second();
    let length = |d: Duration| (d.as_secs_f64() * ticks_per_second) as u64;

    let mut load = Load {
        queue: &mut disk.queue,
        write: args.write,
        bs: args.bs,
        buffers: memory.addr,
        offsets: offsets(args, blocks),
        next: 0,
        sent: vec![0; args.qd],
        errors: 0,
    };
    let mut done: Vec<MaybeUninit<Completion>> = Vec::new();
    done.resize_with(args.qd, MaybeUninit::uninit);
    let mut histogram = Histogram::new();

    let first = sys::ticks();
    for slot in 0..args.qd {
        load.submit(slot, first);
    }
    load.run(&mut done, &mut histogram, first + length(args.warm))?;

    histogram.clear();
    load.errors = 0;
    let waited = sys::cpu_wait_ns();
    let begin = sys::ticks();
    let end = load.run(&mut done, &mut histogram, begin + length(args.time))?;
    let seconds = (end - begin) as f64 / ticks_per_second;
    let waited = sys::cpu_wait_ns().saturating_sub(waited) as f64 / 1e9;

    let us = |ticks: f64| ticks * 1e6 / ticks_per_second;
    Ok(Report {
        iops: histogram.count() as f64 / seconds,
        mean_us: us(histogram.mean()),
        p50_us: us(histogram.percentile(0.5)),
        p99_us: us(histogram.percentile(0.99)),
        p999_us: us(histogram.percentile(0.999)),
        errors: load.errors,
        wait_share: waited / seconds,
    })
}

/// The byte offsets of the next requests, made before the clock runs.
fn offsets(args: &Args, blocks: u64) -> Vec<u64> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    (0..OFFSETS as u64)
        .map(|n| {
            // xorshift64: the same sequence each run, so both targets see the same offsets.
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            let block = if args.random {
                state % blocks
            } else {
                n % blocks
            };
            block * args.bs as u64
        })
        .collect()
}
