//! `sluice serve-one`: one disk, or a few alike, without configuration.
//!
//! Keeps to the conventions that QEMU lays down for vhost-user programs: `--socket-path` or
//! `--fd`, `--print-capabilities`, no daemonising, an end on SIGTERM with exit code 0.

use std::ffi::OsString;
use std::io::ErrorKind;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use clap::{Args as ClapArgs, ValueEnum};
use rustix::fs::{Gid, Mode};
use rustix::process::{Signal, getppid};
use sluice_core::device::DeviceId;
use sluice_core::limits::QUEUES_PER_DEVICE_MAX;

use super::ending::{CLOSING, Ending, Hangup};
use crate::control::{self, Options, Served, Socket};
use crate::image::{Fault, check_size, look_before_serving};
use crate::mailbox::{Bell, Message, mailbox};
use crate::notify::Notify;
use crate::output;
use crate::parking::{self, Parking};
use crate::shard_loop::{self, Disk, Poll, ShardOptions};
use crate::size::parse_size;
use crate::socket::{self, Access, SocketPath};
use crate::store::{OpenOptions, Store};
use crate::tools::front_ends::FrontEnds;

/// What QEMU's tools read to learn what this program can do.
const CAPABILITIES: &str = r#"{"type":"block","features":["read-only","blk-file"]}"#;

/// Bytes of a disk's serial number, at most.
const SERIAL_BYTES: usize = 20;

/// Serve one disk over vhost-user-blk.
#[derive(Clone, Debug, ClapArgs)]
#[command(after_long_help = "\
Examples:
  sluice serve-one --socket-path /run/user/1000/disk.sock --blk-file disk.raw
  sluice serve-one --socket-path /tmp/null.sock --blk-null 1G --poll busy --cpu 1

The guest's memory has to be shared with this program:
  -object memory-backend-memfd,id=mem,size=1G,share=on -machine memory-backend=mem
`sluice qemu-args --socket-path PATH` prints all the options that QEMU needs.

Signals:
  SIGTERM, SIGINT  end it in order
  SIGHUP           is ignored

Exit codes:
  0  ended by a signal, in order
  1  failed
  2  wrong usage
  4  there is no such image
  5  another process listens at the socket

Files:
  PATH                   the socket, removed at the end
  .NAME.XXXXXXXX         the socket, until it listens
  .NAME.keeper           with --park keeper, its socket, beside the other
  FILE, FILE.poisoned    the image, and the mark of a sync that failed

Environment:
  NOTIFY_SOCKET          systemd, which is told of the start and the stop
  FDSTORE, LISTEN_FDS,   systemd's store of descriptors
  LISTEN_PID, LISTEN_FDNAMES
  SLUICE_LOG             as --log")]
pub struct Args {
    /// Listen on this socket; it must not exist, unless a dead daemon left it behind
    #[arg(long, value_name = "PATH", required_unless_present = "fd", conflicts_with = "fd")]
    socket_path: Option<PathBuf>,
    /// Use this inherited descriptor: a listening socket, or one connected to a front end
    #[arg(long, value_name = "N")]
    fd: Option<i32>,
    /// The socket's mode, in octal; who may write may connect [default: 0660]
    #[arg(long, value_name = "MODE", requires = "socket_path", value_parser = parse_mode)]
    socket_mode: Option<u32>,
    /// The socket's group, by name or number, such as QEMU's
    #[arg(long, value_name = "GROUP", requires = "socket_path", value_parser = parse_group)]
    socket_group: Option<u32>,
    #[command(flatten)]
    source: Source,
    /// Serve the file byte for byte, whatever it looks like
    #[arg(long, value_enum, value_name = "FORMAT", requires = "blk_file")]
    format: Option<ServedFormat>,
    /// Refuse to write
    #[arg(long)]
    read_only: bool,
    /// Bytes of a logical block that the guest sees: 512 or 4096; a device has at least its own
    #[arg(long, value_name = "BYTES", default_value_t = 512, requires = "blk_file", value_parser = parse_block)]
    block_size: u32,
    /// Queues that the device offers
    #[arg(long, value_name = "N", default_value_t = QUEUES_PER_DEVICE_MAX, value_parser = clap::value_parser!(u16).range(1..=128))]
    queues: u16,
    /// How to wait for requests
    #[arg(long, value_enum, default_value = "adaptive")]
    poll: PollMode,
    /// With --poll adaptive: microseconds to look for more work before sleeping
    #[arg(long, value_name = "MICROSECONDS", default_value_t = 50)]
    spin_us: u64,
    /// Serial number that the guest sees, up to 20 bytes
    #[arg(long, value_name = "TEXT", default_value = "sluice", value_parser = parse_serial)]
    serial: String,
    /// Run on this CPU alone
    #[arg(long, value_name = "N")]
    cpu: Option<usize>,
    /// Serve N equal disks from one thread, at PATH0, PATH1, ... (null and memory disks only)
    #[arg(long, value_name = "N", requires = "socket_path", conflicts_with = "blk_file", value_parser = clap::value_parser!(u32).range(1..))]
    count: Option<u32>,
    /// Wait at most this long on SIGTERM for requests that are under way
    #[arg(long, value_name = "MILLISECONDS", default_value_t = 5000)]
    shutdown_ms: u64,
    /// Where to leave front ends' descriptors, so that a restart needs no new connection
    #[arg(long, value_enum, default_value = "auto")]
    park: parking::Choice,
    #[command(flatten)]
    front_ends: FrontEnds,
    /// For tests: give some answers up to so much too late, so that requests end out of order
    #[arg(long, value_name = "MICROSECONDS")]
    late_us: Option<u64>,
    /// For tests: do not offer to track what is in flight
    #[arg(long, hide = true)]
    untracked: bool,
    /// Be killed when the process of this number ends, which has started this one
    #[arg(long, hide = true, value_name = "PID")]
    parent: Option<i32>,
    /// Print what this program can do as JSON, and exit, whatever else is said
    #[arg(long)]
    print_capabilities: bool,
}

/// Where the bytes are.
#[derive(Clone, Debug, ClapArgs)]
#[group(required = true, multiple = false)]
struct Source {
    /// Serve this raw image file or block device
    #[arg(long, value_name = "FILE")]
    blk_file: Option<PathBuf>,
    /// Serve a disk of this size that stores nothing and leaves read buffers as they are
    #[arg(long, value_name = "SIZE", value_parser = parse_disk)]
    blk_null: Option<u64>,
    /// Serve a disk of this size that lives in memory and is lost at the end
    #[arg(long, value_name = "SIZE", value_parser = parse_disk)]
    blk_memory: Option<u64>,
}

/// What is in the file, for one that looks like something else.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum ServedFormat {
    /// The bytes of a disk, and nothing else
    Raw,
}

/// How a shard waits, as the command line says it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum PollMode {
    /// Always look: lowest latency, one core
    Busy,
    /// Look for a while after work, then sleep
    Adaptive,
    /// Sleep when there is nothing to do, unless sleeping costs more than looking
    Event,
}

impl Args {
    /// Serving one image file with defaults, for other commands.
    #[must_use]
    pub fn file(socket_path: PathBuf, blk_file: PathBuf, serial: &str) -> Self {
        Self {
            socket_path: Some(socket_path),
            fd: None,
            socket_mode: None,
            socket_group: None,
            source: Source { blk_file: Some(blk_file), blk_null: None, blk_memory: None },
            format: None,
            read_only: false,
            block_size: 512,
            queues: QUEUES_PER_DEVICE_MAX,
            poll: PollMode::Adaptive,
            spin_us: 50,
            serial: serial.to_owned(),
            cpu: None,
            count: None,
            shutdown_ms: 5000,
            park: parking::Choice::Auto,
            front_ends: FrontEnds::default(),
            late_us: None,
            untracked: false,
            parent: None,
            print_capabilities: false,
        }
    }

    const fn poll(&self) -> Poll {
        match self.poll {
            PollMode::Busy => Poll::Busy,
            PollMode::Adaptive => Poll::Adaptive(Duration::from_micros(self.spin_us)),
            PollMode::Event => Poll::Event,
        }
    }

    fn store(&self) -> anyhow::Result<Store> {
        let Source { blk_file, blk_null, blk_memory } = &self.source;
        if let Some(path) = blk_file {
            let missing = path.metadata().err().filter(|error| error.kind() == ErrorKind::NotFound);
            if let Some(error) = missing {
                bail!(Fault::NotFound(format!("cannot open image {}: {error}", path.display())));
            }
            look_before_serving(path, self.format.is_some(), self.read_only)?;
            return Store::open(
                path,
                OpenOptions {
                    read_only: self.read_only,
                    block_bytes: self.block_size,
                    ..OpenOptions::default()
                },
            );
        }
        ensure!(!self.read_only, Fault::Usage("--read-only goes with --blk-file".to_owned()));
        match (*blk_null, *blk_memory) {
            (Some(bytes), _) => Ok(Store::null(bytes)),
            (_, Some(bytes)) => Store::memory(bytes),
            _ => bail!("say what to serve: --blk-file FILE, --blk-null SIZE or --blk-memory SIZE"),
        }
    }

    fn disk(&self) -> anyhow::Result<Disk> {
        let mut serial = [0; SERIAL_BYTES];
        serial[..self.serial.len()].copy_from_slice(self.serial.as_bytes());
        let mut store = self.store()?;
        if let Some(late_us) = self.late_us {
            // Another order in each life, and none that anybody relies on.
            let seed = u64::from(std::process::id());
            store = store.delayed(Duration::from_micros(late_us), seed)?;
        }
        Ok(Disk { store, serial, queues: self.queues })
    }

    fn access(&self) -> Access {
        let default = Access::default();
        Access {
            mode: self.socket_mode.map_or(default.mode, Mode::from_raw_mode),
            group: self.socket_group.map(Gid::from_raw),
        }
    }

    fn sockets(&self) -> anyhow::Result<Sockets> {
        if let Some(fd) = self.fd {
            let wrong = |error| Fault::Usage(format!("--fd {fd}: {error:#}"));
            let socket = crate::sys::inherited(fd).map_err(wrong)?;
            let name = format!("fd {fd}");
            let socket = if rustix::net::sockopt::socket_acceptconn(&socket)? {
                Socket::Listen(UnixListener::from(socket))
            } else {
                Socket::Connected(UnixStream::from(socket))
            };
            return Ok(Sockets { named: vec![(name, socket)], paths: Vec::new() });
        }
        let path = self.socket_path.as_deref().context("--socket-path is missing")?;
        let numbered = |n| PathBuf::from(format!("{}{n}", path.display()));
        let paths = match self.count {
            Some(count) => (0..count).map(numbered).collect(),
            None => vec![path.to_owned()],
        };
        let mut bound = Sockets { named: Vec::new(), paths: Vec::new() };
        for path in paths {
            let (listener, path_guard) = socket::bind_for(&path, self.access())?;
            bound.named.push((path.display().to_string(), Socket::Listen(listener)));
            bound.paths.push(path_guard);
        }
        Ok(bound)
    }
}

/// Where front ends come from.
struct Sockets {
    named: Vec<(String, Socket)>,
    /// Removed when dropped.
    paths: Vec<SocketPath>,
}

/// Serves until SIGTERM or SIGINT.
///
/// # Errors
/// When the image cannot be opened or the socket cannot be had.
pub fn run(args: &Args) -> anyhow::Result<()> {
    serve(args, Hangup::Ignored, || ())
}

/// Whether what this program can do is asked for, whatever else is said.
//= spec/tools.md#TOOL-6
#[must_use]
pub fn asks_for_capabilities(arguments: &[OsString]) -> bool {
    arguments.iter().take_while(|a| *a != "--").any(|a| a == "--print-capabilities")
}

/// Says what this program can do.
///
/// # Errors
/// When it cannot be printed.
pub fn print_capabilities() -> anyhow::Result<()> {
    output::print(format!("{CAPABILITIES}\n"))
}

/// The same, calling `ready` once front ends can connect.
///
/// # Errors
/// As [`run`].
pub fn serve(args: &Args, hangup: Hangup, ready: impl FnOnce()) -> anyhow::Result<()> {
    if let Some(pid) = args.parent {
        end_with(pid)?;
    }
    let ending = Ending::watch(Duration::from_millis(args.shutdown_ms), hangup)?;
    if let Some(cpu) = args.cpu {
        usable(cpu)?;
    }
    let notify = Notify::from_environment();
    crate::open_files::raise();
    let disks: Vec<_> =
        (0..args.count.unwrap_or(1)).map(|_| args.disk()).collect::<anyhow::Result<_>>()?;
    let shown: Vec<_> = disks.iter().map(|disk: &Disk| disk.store.to_string()).collect();
    let images = disks.iter().map(|disk| disk.store.watch()).collect::<Result<Vec<_>, _>>()?;
    let Sockets { named, paths: _paths } = args.sockets()?;
    let names: Vec<_> = named.iter().map(|(name, _)| name.clone()).collect();
    let (control_end, shard_end) = mailbox()?;
    let stop = Bell::new()?;
    let shard_options = ShardOptions { poll: args.poll(), cpu: args.cpu };
    let shard = spawn("shard-0", move || shard_loop::run(disks, shard_options, &shard_end))?;
    let mut parking = Parking::open(args.park, args.socket_path.as_deref())?;
    let mut served = Vec::new();
    for ((n, (name, socket)), image) in (0..).zip(named).zip(images) {
        let parking = parking.as_mut().map(|parking| parking.place(n));
        served.push(Served { device: DeviceId(n), shard: 0, name, socket, parking, image });
    }
    if let Some(parking) = &mut parking {
        parking.tidy();
    }
    let stopped = stop.clone();
    let line = control_end.line();
    let options = Options { tracked: !args.untracked, ..args.front_ends.options() };
    let control =
        spawn("control", move || control::run(served, &[control_end], &stopped, options))?;
    //= spec/host.md#HOST-3
    for (disk, image) in names.iter().zip(shown) {
        tracing::info!(disk, image, poll = ?args.poll(), "serving");
    }
    notify.ready();
    ready();
    let patience = ending.wait();
    tracing::info!("stopping");
    notify.stopping();
    // Requests that were taken end and are given back before front ends see an end.
    line.send(Message::Shutdown);
    if ends_before(&shard, patience) {
        stop.ring();
        if !ends_before(&control, patience + CLOSING) {
            tracing::warn!("connections cannot be closed; leaving them");
        }
    } else {
        // Connections end with the process, when no thread can give anything back any more: a
        // front end that sees its end may go on elsewhere at once.
        tracing::warn!("requests are still under way; leaving them");
    }
    if let Some(parking) = parking {
        parking.end();
    }
    Ok(())
}

/// Looks whether a thread may have this CPU, before anything is said to be served by it.
fn usable(cpu: usize) -> anyhow::Result<()> {
    let tried = std::thread::spawn(move || crate::cpu::pin(cpu)).join();
    let tried = tried.unwrap_or_else(|_| bail!("the attempt has failed"));
    Ok(tried.map_err(|error| Fault::Usage(format!("--cpu: {error:#}")))?)
}

/// Lets this process be killed when its parent ends.
fn end_with(parent: i32) -> anyhow::Result<()> {
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
    // It may have ended before.
    let is_there = getppid().is_some_and(|pid| pid.as_raw_pid() == parent);
    ensure!(is_there, "the process {parent}, which has started this one, has ended");
    Ok(())
}

/// Waits for a thread; `false` when it goes on.
fn ends_before(thread: &JoinHandle<()>, patience: Instant) -> bool {
    while !thread.is_finished() {
        if Instant::now() > patience {
            return false;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    true
}

fn parse_serial(text: &str) -> Result<String, String> {
    if text.len() > SERIAL_BYTES {
        return Err(format!("it has {} bytes; there is room for {SERIAL_BYTES}", text.len()));
    }
    Ok(text.to_owned())
}

/// The size of a disk that is to be made.
pub(super) fn parse_disk(text: &str) -> Result<u64, String> {
    let bytes = parse_size(text)?;
    check_size(bytes).map_err(|fault| fault.to_string()).map(|()| bytes)
}

fn parse_block(text: &str) -> Result<u32, String> {
    let bytes = parse_size(text)?;
    let block = [512, 4096].into_iter().find(|block| bytes == u64::from(*block));
    block.ok_or_else(|| "a logical block has 512 or 4096 bytes".to_owned())
}

fn parse_mode(text: &str) -> Result<u32, String> {
    let octal = text.bytes().all(|digit| digit.is_ascii_digit());
    let mode = u32::from_str_radix(text, 8).ok().filter(|mode| octal && *mode <= 0o777);
    mode.ok_or_else(|| format!("`{text}` is no mode from 0 to 0777"))
}

fn parse_group(text: &str) -> Result<u32, String> {
    // The largest number says "no change" to the system.
    let digits = text.bytes().all(|digit| digit.is_ascii_digit());
    let number = text.parse().ok().filter(|number| digits && *number != u32::MAX);
    if let Some(number) = number {
        return Ok(number);
    }
    let group = uzers::get_group_by_name(text);
    group.map(|group| group.gid()).ok_or_else(|| format!("there is no group `{text}`"))
}

/// Starts a thread whose failure is the whole process's: there is no half-dead daemon.
fn spawn(
    name: &str,
    body: impl FnOnce() -> anyhow::Result<()> + Send + 'static,
) -> anyhow::Result<JoinHandle<()>> {
    let guarded = move || {
        if let Err(error) = body() {
            output::complain(error);
            std::process::exit(1);
        }
    };
    let thread = std::thread::Builder::new().name(name.to_owned());
    thread.spawn(guarded).context("starting a thread")
}
