//! `sluice bench`: how fast a disk is, from where a guest stands.

use core::sync::atomic::Ordering;
use std::fs;
use std::io::IsTerminal;
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, ensure};
use clap::ValueEnum;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use sluice_core::blk::BlkFeatures;
use sluice_core::memory::Segment;
use sluice_sim::driver::Shape;
use sluice_sim::history::{SECTOR, Stamp};

use super::clock::Clock;
use super::consent;
use super::guest::{Guest, Target, Wish, connect, parse_seconds};
use super::load::{Found, Load, Watch};
use super::report::{Report, bytes};
use crate::frontend::{Queue, REGION, Wires};
use crate::image::Fault;
use crate::mapping::Mappings;
use crate::{cpu, output, size};

/// Measures a disk through its socket, as a guest would use it.
///
/// Works with any vhost-user-blk back end. `write` and `randwrite` overwrite the disk: without
/// `--yes` only one where every sector is zero, or was written by this command or by `sluice verify`.
#[derive(clap::Args, Debug)]
#[command(after_long_help = "\
Examples:
  sluice bench --socket-path /run/user/1000/disk.sock --rw randread --depth 32
  sluice bench --socket-path /run/user/1000/disk.sock --rw write --bs 128k --json

Exit codes:
  0  measured
  1  measured, and the disk failed requests
  2  wrong usage, or a disk that may be written only with --yes
  3  not measured: it could not be carried out
  4  not measured: nobody serves a disk at the socket

Files:
  None but the socket.

Environment:
  SLUICE_LOG  as --log")]
pub struct Args {
    #[command(flatten)]
    target: Target,

    /// What to do.
    #[arg(long, value_enum, default_value_t = Rw::Randread)]
    rw: Rw,

    /// Bytes per request.
    #[arg(long, value_name = "SIZE", default_value = "4k", value_parser = size::parse_size)]
    bs: u64,

    /// Requests that each queue keeps in flight.
    #[arg(long, value_name = "N", default_value_t = 32)]
    depth: u16,

    /// Queues, each with a thread of its own.
    #[arg(long, value_name = "N", default_value_t = 1)]
    queues: u16,

    /// Length of the measurement.
    #[arg(long, value_name = "N", default_value = "5", value_parser = parse_seconds)]
    seconds: Duration,

    /// Load before the measurement.
    #[arg(long, value_name = "N", default_value = "0.2", value_parser = parse_seconds)]
    warm: Duration,

    /// How to notice completions: look all the time, or sleep for the interrupt.
    #[arg(long, value_enum, default_value_t = Wait::Poll)]
    wait: Wait,

    /// Use only the first so many bytes of the disk.
    #[arg(long, value_name = "SIZE", value_parser = size::parse_size)]
    size_limit: Option<u64>,

    /// CPU of the first queue's thread; each further queue takes the next CPU.
    #[arg(long, value_name = "N")]
    cpu: Option<usize>,

    /// Send requests as indirect descriptors.
    #[arg(long)]
    indirect: bool,

    /// Lend no inflight region, as a front end that cannot reconnect; QEMU always does.
    #[arg(long)]
    untracked: bool,

    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

/// What the requests are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Rw {
    Read,
    Write,
    Randread,
    Randwrite,
}

impl Rw {
    const fn writes(self) -> bool {
        matches!(self, Self::Write | Self::Randwrite)
    }

    const fn random(self) -> bool {
        matches!(self, Self::Randread | Self::Randwrite)
    }
}

/// How completions are noticed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Wait {
    Poll,
    Event,
}

/// First sectors in the table; 128 KiB of it stay in the second-level cache.
const SECTORS: u64 = 1 << 14;

/// How long requests may take to come back after the end.
const PATIENCE: Duration = Duration::from_secs(10);

/// Runs the command.
///
/// # Errors
/// When the disk cannot be used as asked, or is gone before the end.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let connection = connect(&args.target.socket_path, args.target.packed)?;
    let block_bytes = 512 * connection.block_sectors();
    let usage = |text: String| Fault::Usage(text);
    ensure!(
        args.bs > 0 && args.bs.is_multiple_of(block_bytes),
        usage(format!("--bs has to be a multiple of {block_bytes} bytes"))
    );
    ensure!(args.bs <= 1 << 30, usage("--bs is at most 1G".to_owned()));
    let read_only = connection.features().contains(BlkFeatures::RO);
    ensure!(!(read_only && args.rw.writes()), usage("the disk is read-only".to_owned()));
    let disk_bytes = connection.capacity_sectors() * 512;
    let bytes = disk_bytes.min(args.size_limit.unwrap_or(u64::MAX));
    let blocks = bytes / args.bs;
    ensure!(blocks > 0, usage("the disk is smaller than one request".to_owned()));
    let wish = Wish {
        queues: args.queues,
        depth: args.depth,
        descriptors: if args.indirect { 1 } else { 3 },
        data_bytes: args.bs.next_multiple_of(4096),
        table_entries: if args.indirect { 3 } else { 0 },
        tracked: !args.untracked,
    };
    let mut guest = Guest::start(connection, wish)?;
    ensure!(
        !args.indirect || guest.has_tables(),
        usage("the device knows no indirect descriptors".to_owned())
    );
    if args.rw.writes() && !args.target.yes {
        consent::ask(&mut guest, bytes / 512)?;
    }
    let (found, waited) = measure(args, guest, blocks)?;
    let report = report(args, &found, waited);
    if args.json {
        output::print_json(&report)?;
    } else {
        output::print(report.to_string())?;
    }
    Ok(if found.errors == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Loads all queues. Says what was found, and for how long threads waited for a CPU.
fn measure(args: &Args, mut guest: Guest, blocks: u64) -> anyhow::Result<(Found, u64)> {
    let watch = Watch::default();
    let begin = Instant::now();
    let queues = core::mem::take(&mut guest.queues);
    let wires = queues.iter().map(Queue::share_wires).collect::<anyhow::Result<Vec<_>>>()?;
    let (guest, watch) = (&guest, &watch);
    let progress = progress(args);
    thread::scope(|scope| {
        let one = |queue| load(args, guest, queue, watch, blocks).and_then(|l| one_queue(l, args));
        let threads: Vec<_> =
            queues.into_iter().map(|queue| scope.spawn(move || one(queue))).collect();
        let (mut last, mut last_done) = (Instant::now(), 0);
        while threads.iter().any(|thread| !thread.is_finished()) {
            if guest.connection.wait_closed(Duration::from_millis(50)) {
                watch.abort.store(true, Ordering::Relaxed);
            }
            if watch.abort.load(Ordering::Relaxed) || begin.elapsed() > args.warm + args.seconds {
                // A thread that sleeps for a device that is gone, or that is too slow.
                wires.iter().for_each(Wires::interrupt);
            }
            if last.elapsed() > Duration::from_millis(200) {
                let done = watch.done.load(Ordering::Relaxed);
                tick(&progress, args, done - last_done, last.elapsed());
                (last, last_done) = (Instant::now(), done);
            }
        }
        progress.finish_and_clear();
        let (mut all, mut waited) = (Found::new()?, 0);
        for thread in threads {
            let (found, wait) = thread.join().map_err(|_| anyhow!("a thread panicked"))??;
            all.merge(&found)?;
            waited += wait;
        }
        Ok((all, waited))
    })
}

/// Everything one queue needs.
fn load<'a>(
    args: &Args,
    guest: &Guest,
    queue: Queue,
    watch: &'a Watch,
    blocks: u64,
) -> anyhow::Result<Load<'a>> {
    let mem = guest.memory.map()?;
    let data: Box<[u64]> = (0..args.depth).map(|slot| guest.data(queue.index(), slot)).collect();
    for &offset in &data {
        paint(&mem, offset, args.bs)?;
    }
    // xorshift64: the same sequence in each run, another one for each queue.
    let mut state = 0x9e37_79b9_7f4a_7c15 ^ (u64::from(queue.index()) << 32);
    let first = blocks / u64::from(args.queues) * u64::from(queue.index());
    let sectors = (0..SECTORS).map(|n| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        let block = if args.rw.random() { state % blocks } else { (first + n) % blocks };
        block * (args.bs / 512)
    });
    Ok(Load {
        mem,
        watch,
        write: args.rw.writes(),
        sleep: args.wait == Wait::Event,
        shape: if args.indirect { Shape::INDIRECT } else { Shape::PLAIN },
        bytes: u32::try_from(args.bs).context("--bs")?,
        sectors: sectors.collect(),
        next: 0,
        slots: vec![0; usize::from(queue.driver.layout().size)].into(),
        sent: vec![0; data.len()].into(),
        data,
        queue,
        clock: Clock::new(),
    })
}

/// Stamps a request's data, so that it can be told from somebody's, and faults its pages in.
fn paint(mem: &Mappings, offset: u64, bytes: u64) -> anyhow::Result<()> {
    let mut sector = [0; SECTOR];
    Stamp { image: 0, sector: 0, sequence: 0, writer: 0 }.fill(&mut sector);
    for at in (0..bytes).step_by(SECTOR) {
        mem.copy_in(&sector, Segment::new(REGION, offset + at, 512)).ok().context("memory")?;
    }
    Ok(())
}

/// A thread's life.
fn one_queue(mut load: Load<'_>, args: &Args) -> anyhow::Result<(Found, u64)> {
    if let Some(first) = args.cpu {
        cpu::pin(first + usize::from(load.queue.index()))?;
    }
    let ns = |d: Duration| u64::try_from(d.as_nanos()).context("--seconds");
    if !load.sleep {
        load.queue.driver.disarm(&load.mem)?;
    }
    let start = load.clock.ns();
    load.fill()?;
    load.run(start + ns(args.warm)?)?;
    let waited = cpu_wait_ns();
    let found = load.run(start + ns(args.warm + args.seconds)?)?;
    let waited = cpu_wait_ns().saturating_sub(waited);
    load.drain(start + ns(args.warm + args.seconds + PATIENCE)?)?;
    Ok((found, waited))
}

/// Nanoseconds for which this thread was ready to run and had no CPU; 0 if nobody counts.
fn cpu_wait_ns() -> u64 {
    fs::read_to_string("/proc/thread-self/schedstat")
        .ok()
        .and_then(|text| text.split_whitespace().nth(1)?.parse().ok())
        .unwrap_or(0)
}

fn report(args: &Args, found: &Found, waited_ns: u64) -> Report {
    let seconds = found.ns as f64 / 1e9;
    let count = found.latencies.len();
    let us = |share: f64| found.latencies.value_at_quantile(share) as f64 / 1e3;
    let iops = count as f64 / seconds;
    Report {
        rw: args.rw,
        bs: args.bs,
        depth: args.depth,
        queues: args.queues,
        packed: args.target.packed,
        wait: args.wait,
        seconds,
        iops: iops.round(),
        bytes_per_s: (iops * args.bs as f64).round(),
        mean_us: found.sum_ns as f64 / count.max(1) as f64 / 1e3,
        p50_us: us(0.5),
        p99_us: us(0.99),
        p999_us: us(0.999),
        max_us: us(1.0),
        errors: found.errors,
        wait_share: waited_ns as f64 / 1e9 / seconds / f64::from(args.queues),
    }
}

fn progress(args: &Args) -> ProgressBar {
    if args.json || !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let millis = u64::try_from((args.warm + args.seconds).as_millis()).unwrap_or(u64::MAX);
    let style = ProgressStyle::with_template("{wide_bar} {msg}");
    ProgressBar::new(millis).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

fn tick(progress: &ProgressBar, args: &Args, done: u64, elapsed: Duration) {
    let millis = u64::try_from(elapsed.as_millis()).unwrap_or(0);
    let iops = done as f64 / elapsed.as_secs_f64();
    progress.inc(millis);
    progress.set_message(format!("{iops:.0} IOPS  {}/s", bytes(iops * args.bs as f64)));
}
