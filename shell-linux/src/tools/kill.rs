//! A daemon that is killed again and again while its guest goes on.
//!
//! The guest is `sluice verify`'s: its queues, its memory and its history outlive every daemon.
//! The daemon is this program's own `serve-one`, killed with SIGKILL at random moments, also while
//! it recovers, and started anew. The guest's front end does what QEMU does then: it connects
//! again and hands over memory, the record of requests in flight, and rings.

use core::fmt;
use core::sync::atomic::{AtomicBool, Ordering};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, ensure};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open, pidfd_send_signal};
use serde::Serialize;
use sluice_sim::prng::Prng;

use super::cleanup::{self, Cleanup};
use super::guest::Guest;
use super::link::{LOOK, Link, settle};
use super::shared::Shared;
use super::talk::Talk;
use crate::frontend::Wires;
use crate::size::parse_size;

/// A daemon to kill, instead of a disk to check.
#[derive(clap::Args, Debug)]
#[group(skip)]
pub(super) struct Args {
    /// Serve a disk with a daemon of its own and kill that with SIGKILL so many times under load.
    #[arg(long = "kill", value_name = "N", conflicts_with_all = ["socket_path", "seconds", "requests"])]
    kills: Option<u32>,

    /// With --kill: keep the disk's image here while it runs. A directory on a file system with
    /// direct I/O is another test than one in memory.
    #[arg(long, value_name = "DIR", requires = "kills")]
    dir: Option<PathBuf>,

    /// With --kill: size of the disk.
    #[arg(long, value_name = "SIZE", default_value = "64M", value_parser = parse_size, requires = "kills")]
    image_size: u64,

    /// With --kill: the daemon answers some requests up to so much too late, so that they end out
    /// of order.
    #[arg(long, value_name = "MICROSECONDS", default_value_t = 2000, requires = "kills")]
    late_us: u64,

    /// With --kill: let the daemon live for up to so long after it has recovered.
    #[arg(long, value_name = "MILLISECONDS", default_value_t = 20, requires = "kills")]
    life_ms: u64,

    /// With --kill: the daemon parks its connection with a keeper, so that none is made anew unless
    /// it is killed in the middle of a message. Rings are stopped and started, memory comes and goes,
    /// and descriptors are exchanged all the time.
    #[arg(long, requires = "kills")]
    parked: bool,

    /// More arguments for the daemon, to try the check itself.
    #[arg(
        long,
        hide = true,
        value_name = "ARGUMENT",
        requires = "kills",
        allow_hyphen_values = true
    )]
    daemon: Vec<String>,
}

impl Args {
    /// The daemon to kill, if that is what is asked for.
    pub(super) fn start(&self, queues: u16, seed: u64) -> anyhow::Result<Option<Victim>> {
        self.kills.map(|kills| Victim::start(self, kills, queues, seed)).transpose()
    }
}

/// How many in a thousand daemons are killed before they have recovered.
const EARLY_PER_MILLE: u64 = 125;
/// How late such a daemon is killed.
const EARLY_MAX: Duration = Duration::from_millis(10);
/// How long a daemon may need to serve its guest.
const PATIENCE: Duration = Duration::from_secs(20);

/// What killing it showed.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(super) struct Kills {
    kills: u32,
    /// Of these, kills before the guest was served again.
    early: u32,
    /// Messages over connections that lasted.
    messages: u64,
    /// From a kill, or the last of several on end, to the next request that came back: half of the
    /// time no longer than this, and the longest.
    stall_ms_median: f64,
    stall_ms_max: f64,
}

impl fmt::Display for Kills {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kills, early, messages, stall_ms_median, stall_ms_max } = self;
        write!(
            f,
            "{kills} kills, {early} of them during recovery; {messages} messages; \
             from kill to next answer {stall_ms_median:.1} ms in the middle, {stall_ms_max:.1} ms at most"
        )
    }
}

/// How the guest gets from one daemon to the next: its front end connects anew, or it is parked and
/// talked to by somebody else.
enum Way<'l, 'a> {
    Anew(&'l mut Link<'a>),
    Parked(&'a Guest, &'a [Wires]),
}

/// The daemon, and everything it needs to come back.
#[derive(Debug)]
pub(super) struct Victim {
    directory: PathBuf,
    command: Vec<String>,
    daemon: Child,
    kills: u32,
    parked: bool,
    life: Duration,
    prng: Prng,
    found: Kills,
    stalls: Vec<Duration>,
    /// Dropped last.
    _cleanup: Cleanup,
}

impl Victim {
    fn start(args: &Args, kills: u32, queues: u16, seed: u64) -> anyhow::Result<Self> {
        let place = args.dir.clone().unwrap_or_else(std::env::temp_dir);
        let directory = tempfile::Builder::new().prefix(cleanup::PREFIX).tempdir_in(&place);
        let directory = directory.with_context(|| format!("a directory in {}", place.display()))?;
        let cleanup = Cleanup::of(directory.path())?;
        let directory = directory.keep();
        let image = directory.join("disk.raw");
        std::fs::File::create(&image)
            .and_then(|file| file.set_len(args.image_size))
            .with_context(|| format!("making {}", image.display()))?;
        let text = |path: &Path| path.display().to_string();
        let mut command: Vec<_> =
            ["--log", "error", "serve-one", "--queues"].map(str::to_owned).into();
        command.extend([queues.to_string(), "--late-us".to_owned(), args.late_us.to_string()]);
        command.extend(["--blk-file".to_owned(), text(&image)]);
        command.extend(["--socket-path".to_owned(), text(&directory.join(cleanup::SOCKET))]);
        command.extend(["--parent".to_owned(), std::process::id().to_string()]);
        if args.parked {
            command.extend(["--park", "keeper"].map(str::to_owned));
        }
        command.extend(args.daemon.iter().cloned());
        Ok(Self {
            daemon: start(&command)?,
            directory,
            command,
            kills,
            parked: args.parked,
            life: Duration::from_millis(args.life_ms),
            prng: Prng::new(seed).fork(),
            found: Kills::default(),
            stalls: Vec::new(),
            _cleanup: cleanup,
        })
    }

    /// Where the disk is.
    pub(super) fn socket(&self) -> PathBuf {
        self.directory.join(cleanup::SOCKET)
    }

    /// Kills the daemon as often as it is to be, under a guest's load, or until that is over. Over
    /// a connection that lasts the front end goes on talking meanwhile.
    pub(super) fn run(
        &mut self,
        link: &mut Link<'_>,
        shared: &Shared,
        tick: impl FnMut(u32) -> bool,
    ) -> anyhow::Result<()> {
        if !self.parked {
            return self.kill_all(Way::Anew(link), shared, tick);
        }
        let over = AtomicBool::new(false);
        let mut talk = Talk::new(link, self.prng.fork());
        let way = Way::Parked(talk.guest(), talk.wires());
        std::thread::scope(|scope| {
            let talking = scope.spawn(|| talk.run(shared, &over));
            let killed = self.kill_all(way, shared, tick);
            over.store(true, Ordering::Relaxed);
            let said = talking.join().map_err(|_| anyhow!("a thread panicked"))?;
            killed?;
            self.found.messages = said?;
            Ok(())
        })
    }

    fn kill_all(
        &mut self,
        mut way: Way<'_, '_>,
        shared: &Shared,
        mut tick: impl FnMut(u32) -> bool,
    ) -> anyhow::Result<()> {
        while self.found.kills < self.kills && tick(self.found.kills) {
            std::thread::sleep(self.below(self.life));
            let mut killed = Instant::now();
            self.daemon.kill().context("killing the daemon")?;
            let before = self.restart(&way, shared)?;
            while self.found.kills < self.kills && self.prng.chance(EARLY_PER_MILLE) {
                self.kill_early(&way, shared)?;
                killed = Instant::now();
                self.found.early += 1;
                self.restart(&way, shared)?;
            }
            if let Way::Anew(link) = &mut way {
                link.reconnect(shared, || self.check())?;
            }
            while shared.done.load(Ordering::Relaxed) == before && tick(self.found.kills) {
                match &mut way {
                    Way::Anew(link) if link.wait_closed(LOOK) => {
                        link.reconnect(shared, || self.check())?;
                    }
                    Way::Anew(_) => {}
                    Way::Parked(..) => {
                        std::thread::sleep(LOOK);
                        self.check()?;
                    }
                }
                ensure!(killed.elapsed() < PATIENCE, "nothing came back after a restart");
            }
            self.stalls.push(killed.elapsed());
        }
        Ok(())
    }

    /// Ends the daemon in order, or says why that failed; and what was found.
    pub(super) fn end(mut self, violations: &mut Vec<String>) -> Kills {
        if !violations.is_empty() {
            return self.found;
        }
        violations.extend(self.stop().err().map(|error| format!("{error:#}")));
        self.stalls.sort_unstable();
        let ms = |stall: Option<&Duration>| stall.map_or(0.0, |stall| stall.as_secs_f64() * 1e3);
        self.found.stall_ms_median = ms(self.stalls.get(self.stalls.len() / 2));
        self.found.stall_ms_max = ms(self.stalls.last());
        self.found
    }

    fn stop(&mut self) -> anyhow::Result<()> {
        kill_process(Pid::from_child(&self.daemon), Signal::TERM).context("stopping the daemon")?;
        let status = self.daemon.wait().context("waiting for the daemon")?;
        ensure!(status.success(), "the daemon did not end in order: {status}");
        Ok(())
    }

    fn below(&mut self, at_most: Duration) -> Duration {
        let nanos = u64::try_from(at_most.as_nanos()).unwrap_or(u64::MAX);
        Duration::from_nanos(self.prng.below(nanos.max(1)))
    }

    /// Waits for the end of a daemon that was killed, and starts its successor. Says how many
    /// requests had come back when it was dead.
    fn restart(&mut self, way: &Way<'_, '_>, shared: &Shared) -> anyhow::Result<u64> {
        let status = self.daemon.wait().context("waiting for the daemon")?;
        ensure!(status.code().is_none(), "the daemon ended by itself: {status}");
        self.found.kills += 1;
        let done = match way {
            Way::Anew(link) => settle(link.guest(), link.wires(), shared)?,
            Way::Parked(guest, wires) => settle(guest, wires, shared)?,
        };
        self.daemon = start(&self.command)?;
        Ok(done)
    }

    /// Kills it before or while it recovers.
    fn kill_early(&mut self, way: &Way<'_, '_>, shared: &Shared) -> anyhow::Result<()> {
        let delay = self.below(EARLY_MAX);
        let pid = Pid::from_child(&self.daemon);
        let process = pidfd_open(pid, PidfdFlags::empty()).context("the daemon's process")?;
        std::thread::scope(|scope| {
            scope.spawn(move || {
                std::thread::sleep(delay);
                let _ = pidfd_send_signal(&process, Signal::KILL);
            });
            while !self.is_dead()? {
                // It is to fail in the middle, or be served for a moment.
                if let Way::Anew(link) = way {
                    link.visit(shared);
                }
                std::thread::sleep(LOOK);
            }
            Ok(())
        })
    }

    /// Whether it still lives, as it should.
    fn check(&mut self) -> anyhow::Result<()> {
        ensure!(!self.is_dead()?, "the daemon ended by itself");
        Ok(())
    }

    fn is_dead(&mut self) -> anyhow::Result<bool> {
        Ok(self.daemon.try_wait().context("looking at the daemon")?.is_some())
    }
}

impl Drop for Victim {
    fn drop(&mut self) {
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
    }
}

fn start(command: &[String]) -> anyhow::Result<Child> {
    let this = std::env::current_exe().context("finding this program")?;
    let mut daemon = Command::new(this);
    daemon.args(command).stdin(Stdio::null()).stdout(Stdio::null());
    daemon.spawn().context("starting a daemon")
}
