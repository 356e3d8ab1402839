//! `sluice verify`: whether a disk gives back what was written to it.

use core::fmt;
use core::sync::atomic::Ordering;
use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, ensure};
use indicatif::ProgressBar;
use rustix::rand::{GetRandomFlags, getrandom};
use serde::Serialize;
use sluice_core::blk::BlkFeatures;
use sluice_core::limits::QUEUE_SIZE_MAX;
use sluice_sim::history::{History, Initial};

use super::checked::Checked;
use super::consent;
use super::guest::{Guest, Wish, connect, parse_seconds};
use super::kill::{self, Kills, Victim};
use super::link::{Link, settle};
use super::plan::{self, Area, SEGMENTS_MAX};
use super::shared::{Shared, Tally};
use crate::frontend::{Queue, Wires};
use crate::image::Fault;
use crate::output;
use crate::size::{parse_size, show_size};

/// Checks a disk by WRITING to it and reading everything back.
///
/// Overlapping reads, writes, flushes, discards and write-zeroes run at once, cut into odd
/// segments and laid out in every legal way. Every sector written says who wrote it and when, and
/// every sector read has to be explained by some order of what was asked. Works with any
/// vhost-user-blk back end.
///
/// What was on the disk is lost. Without `--yes` only a disk is taken where every sector that may be
/// written is zero, or was written by this command or by `sluice bench`.
///
/// With `--kill` the disk is its own, and its daemon is killed under load: nothing may be lost,
/// done twice or be stale all the same.
#[derive(clap::Args, Debug)]
#[command(after_long_help = "\
Examples:
  sluice verify --socket-path /run/user/1000/disk.sock --seconds 60
  sluice verify --kill 20

Exit codes:
  0  PASS
  1  FAIL: the disk is wrong
  2  wrong usage, or a disk that may be written only with --yes
  3  no verdict: the check could not be carried out
  4  no verdict: nobody serves a disk at the socket

Files:
  With --kill, a directory sluice-verify-* in --dir or else in $TMPDIR, removed at the end.

Environment:
  TMPDIR      where that directory is made
  SLUICE_LOG  as --log")]
pub struct Args {
    /// Socket of the disk: any vhost-user-blk back end.
    #[arg(long, value_name = "PATH", required_unless_present = "kills")]
    socket_path: Option<PathBuf>,

    /// Write without asking what is on the disk.
    #[arg(long)]
    yes: bool,

    /// Use packed rings.
    #[arg(long)]
    packed: bool,

    /// When the connection ends, go on with whoever listens next, as a virtual machine does.
    #[arg(long)]
    reconnect: bool,

    #[command(flatten)]
    kill: kill::Args,

    /// How long to go on.
    #[arg(long, value_name = "N", value_parser = parse_seconds, conflicts_with = "requests")]
    seconds: Option<Duration>,

    /// How many requests to send.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    requests: Option<u64>,

    /// Queues, each with a thread of its own.
    #[arg(long, value_name = "N", default_value_t = 2)]
    queues: u16,

    /// Requests that each queue has in flight at most.
    #[arg(long, value_name = "N", default_value_t = 16)]
    depth: u16,

    /// What to do when; a run says which one it used.
    #[arg(long, value_name = "S", value_parser = clap::value_parser!(u64).range(..=output::EXACT_MAX))]
    seed: Option<u64>,

    /// Use only the first so many bytes of the disk; the verdict says how many of all it is about.
    #[arg(long, value_name = "SIZE", default_value = "64M", value_parser = parse_size)]
    size_limit: u64,

    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

/// Without `--seconds` and `--requests`.
const SECONDS: Duration = Duration::from_secs(10);

/// How long nothing may come back before the device is given up.
const PATIENCE: Duration = Duration::from_secs(30);

/// What is printed.
#[derive(Debug, Serialize)]
struct Report {
    verdict: &'static str,
    seed: u64,
    requests: u64,
    #[serde(flatten)]
    tally: Tally,
    /// Of the part that was checked, from the start of the disk.
    size_bytes: u64,
    disk_bytes: u64,
    queues: u16,
    depth: u16,
    packed: bool,
    seconds: f64,
    reconnects: u32,
    #[serde(flatten)]
    kills: Option<Kills>,
    violations: Vec<String>,
}

/// Runs the command. The exit code is 1 if the disk failed.
///
/// # Errors
/// When the disk cannot be used as asked.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let seed = match args.seed {
        Some(seed) => seed,
        None => random()? & output::EXACT_MAX,
    };
    if !args.json {
        output::print(format!("seed {seed}\n"))?;
    }
    let mut victim = args.kill.start(args.queues, seed)?;
    let socket_path = match (&victim, &args.socket_path) {
        (Some(victim), _) => victim.socket(),
        (None, path) => path.clone().context("--socket-path is missing")?,
    };
    let connection = connect(&socket_path, args.packed)?;
    let usage = |text: &str| Fault::Usage(text.to_owned());
    ensure!(!connection.features().contains(BlkFeatures::RO), usage("the disk is read-only"));
    let sectors = connection.capacity_sectors().min(args.size_limit / 512);
    ensure!(sectors >= connection.block_sectors(), usage("the disk is smaller than one block"));
    ensure!(args.depth > 0, usage("a depth of at least 1 is needed"));
    let descriptors = (QUEUE_SIZE_MAX / args.depth).min(SEGMENTS_MAX + 3);
    let deepest = QUEUE_SIZE_MAX / 4;
    ensure!(descriptors >= 4, usage(&format!("a depth of at most {deepest} is possible")));
    let wish = Wish {
        queues: args.queues,
        depth: args.depth,
        descriptors,
        data_bytes: plan::data_bytes(),
        table_entries: SEGMENTS_MAX + 4,
        tracked: true,
    };
    let mut guest = Guest::start(connection, wish)?;
    let area = Area::new(&guest.connection, sectors, descriptors - 3, guest.has_tables());
    if !args.yes && victim.is_none() {
        consent::ask(&mut guest, area.sectors)?;
    }
    let begin = Instant::now();
    // The image's name in the stamps is new in each run: what an earlier one left is foreign.
    let mut history = History::new(random()?, Initial::Any);
    if victim.is_some() || args.reconnect {
        history = history.with_restarts();
    }
    let shared = Shared::new(history, args.requests.unwrap_or(u64::MAX), args.queues);
    let tally = Mutex::default();
    let queues = core::mem::take(&mut guest.queues);
    let wires = queues.iter().map(Queue::share_wires).collect::<anyhow::Result<Vec<_>>>()?;
    let mut link = Link::new(&guest, socket_path, &wires);
    let run =
        Run { args, guest: &guest, wires: &wires, shared: &shared, area, seed, tally: &tally };
    let done = run.verify(queues, &mut link, victim.as_mut());
    let reconnects = link.reconnects;
    let mut violations = shared.into_violations();
    violations.extend(done.err().map(|error| format!("{error:#}")));
    let kills = victim.map(|victim| victim.end(&mut violations));
    let tally = tally.into_inner().unwrap_or_else(PoisonError::into_inner);
    if tally.errors > 0 {
        violations.push(format!("{} requests failed", tally.errors));
    }
    let report = Report {
        verdict: if violations.is_empty() { "PASS" } else { "FAIL" },
        seed,
        requests: tally.requests(),
        tally,
        size_bytes: area.sectors * 512,
        disk_bytes: guest.connection.capacity_sectors() * 512,
        queues: args.queues,
        depth: args.depth,
        packed: args.packed,
        seconds: begin.elapsed().as_secs_f64(),
        reconnects,
        kills,
        violations,
    };
    if args.json {
        output::print_json(&report)?;
    } else {
        output::print(report.to_string())?;
    }
    Ok(if report.violations.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn random() -> anyhow::Result<u64> {
    let mut bytes = [0; 8];
    getrandom(&mut bytes, GetRandomFlags::empty())?;
    Ok(u64::from_ne_bytes(bytes))
}

/// What all of a run needs.
struct Run<'a> {
    args: &'a Args,
    guest: &'a Guest,
    wires: &'a [Wires],
    shared: &'a Shared,
    area: Area,
    seed: u64,
    tally: &'a Mutex<Tally>,
}

impl Run<'_> {
    /// Runs all queues, then reads everything back over the first.
    fn verify(
        &self,
        queues: Vec<Queue>,
        link: &mut Link<'_>,
        victim: Option<&mut Victim>,
    ) -> anyhow::Result<()> {
        let &Self { args, shared, .. } = self;
        let limit = args.seconds.or(args.requests.is_none().then_some(SECONDS));
        let progress = progress(args);
        let mut last = None;
        thread::scope(|scope| {
            let threads: Vec<_> = queues
                .into_iter()
                .map(|queue| scope.spawn(move || self.queue(queue, |checked| checked.run())))
                .collect();
            let is_over = || threads.iter().all(thread::ScopedJoinHandle::is_finished);
            if let Some(victim) = victim {
                let tick = |kills| {
                    progress.set_message(format!("{kills} kills"));
                    progress.tick();
                    !shared.stop.load(Ordering::Relaxed) && !threads.iter().any(|t| t.is_finished())
                };
                if let Err(error) = victim.run(link, shared, tick) {
                    shared.violated(format!("{error:#}"));
                    shared.abort.store(true, Ordering::Relaxed);
                    self.wires.iter().for_each(Wires::interrupt);
                }
                shared.stop.store(true, Ordering::Relaxed);
            }
            self.watch(&progress, link, limit, is_over);
            for thread in threads.into_iter().rev() {
                let done: anyhow::Result<_> =
                    thread.join().map_err(|_| anyhow!("a thread panicked"))?;
                last = Some(done?);
            }
            anyhow::Ok(())
        })?;
        // A disk that has failed already need not be read to the end.
        let Some(queue) = last.filter(|_| !shared.has_violations()) else { return Ok(()) };
        thread::scope(|scope| {
            let thread = scope.spawn(move || self.queue(queue, |checked| checked.read_back()));
            self.watch(&progress, link, None, || thread.is_finished());
            thread.join().map_err(|_| anyhow!("a thread panicked"))?
        })?;
        Ok(())
    }

    /// Does one thing with one queue.
    fn queue(
        &self,
        queue: Queue,
        work: impl FnOnce(&mut Checked<'_>) -> anyhow::Result<()>,
    ) -> anyhow::Result<Queue> {
        let index = queue.index();
        let data = (0..self.args.depth).map(|request| self.guest.data(index, request));
        let seed = self.seed.wrapping_add(index.into());
        let mem = self.guest.memory.map()?;
        let mut checked = Checked::new(mem, queue, self.shared, self.area, seed, data);
        self.shared.has_seen(index, self.shared.deaths());
        let done = work(&mut checked);
        self.shared.has_seen(index, u64::MAX);
        self.tally.lock().unwrap_or_else(PoisonError::into_inner).add(&checked.tally);
        done.map(|()| checked.queue)
    }

    /// Looks after the threads until they are done: ends them in time, and when nothing moves.
    fn watch(
        &self,
        progress: &ProgressBar,
        link: &mut Link<'_>,
        limit: Option<Duration>,
        is_over: impl Fn() -> bool,
    ) {
        let shared = self.shared;
        let begin = Instant::now();
        let (mut moved, mut last) = (begin, 0);
        while !is_over() {
            let mut gone = link.wait_closed(Duration::from_millis(20));
            if gone && self.args.reconnect && !is_over() {
                let again = settle(self.guest, self.wires, shared)
                    .and_then(|_| link.reconnect(shared, || Ok(())));
                gone = again.is_err();
            }
            let done = shared.done.load(Ordering::Relaxed);
            if done != last {
                (moved, last) = (Instant::now(), done);
            }
            if limit.is_some_and(|limit| begin.elapsed() > limit) {
                shared.stop.store(true, Ordering::Relaxed);
            }
            if gone || moved.elapsed() > PATIENCE {
                shared.abort.store(true, Ordering::Relaxed);
                shared.stop.store(true, Ordering::Relaxed);
                self.wires.iter().for_each(Wires::interrupt);
            }
            progress.set_message(format!("{done} requests"));
            progress.tick();
        }
        progress.finish_and_clear();
    }
}

fn progress(args: &Args) -> ProgressBar {
    if args.json || !std::io::stderr().is_terminal() {
        ProgressBar::hidden()
    } else {
        ProgressBar::new_spinner()
    }
}

//= spec/tools.md#TOOL-9
impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { tally, .. } = self;
        writeln!(
            f,
            "{} requests in {:.1} s over {}: {} writes, {} reads, {} write-zeroes, {} discards, \
             {} flushes; {} interrupts",
            self.requests,
            self.seconds,
            show_size(self.size_bytes),
            tally.writes,
            tally.reads,
            tally.zeroes,
            tally.discards,
            tally.flushes,
            tally.interrupts,
        )?;
        if let Some(kills) = &self.kills {
            writeln!(f, "{kills}; {} reconnects", self.reconnects)?;
        }
        for violation in &self.violations {
            writeln!(f, "  {violation}")?;
        }
        let Self { verdict, seed, size_bytes, disk_bytes, .. } = self;
        if size_bytes == disk_bytes {
            writeln!(f, "{verdict} (seed {seed})")
        } else {
            let (part, all) = (show_size(*size_bytes), show_size(*disk_bytes));
            writeln!(f, "{verdict} for the first {part} of {all} (seed {seed})")
        }
    }
}
