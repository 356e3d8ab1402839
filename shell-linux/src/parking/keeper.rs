//! `sluice keeper`: a process that does nothing but hold descriptors.
//!
//! For machines without systemd's descriptor store. It is started by a daemon, listens beside the
//! daemon's socket under a hidden name, and holds what it is given until it is told to drop it. It
//! ends when the daemon has ended in order, or has been dead for a while.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::Mode;
use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, accept_with, bind, connect, listen,
    socket_with,
};

use super::fds::{self, FdStore};
use crate::notify::PATIENCE;
use crate::sys::{peer, peer_user};

/// How long it may serve a predecessor that is dying.
const DEATH: Duration = Duration::from_secs(30);

const TAKE: &str = "TAKE";
const END: &str = "END";

/// Hold descriptors for a daemon that may be killed. Not for people: its standard input is the
/// socket that it serves.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// The socket's name, to be removed at the end
    #[arg(long, value_name = "PATH")]
    path: PathBuf,
    /// How long to wait for another daemon
    #[arg(long, value_name = "MILLISECONDS", default_value_t = 60_000)]
    grace_ms: u64,
}

/// Descriptors by name.
type Held = BTreeMap<String, OwnedFd>;

/// A daemon's view of its keeper.
#[derive(Debug)]
pub(crate) struct Keeper {
    /// `None` when a predecessor started it.
    process: Option<Child>,
}

impl Keeper {
    /// Finds the keeper of the disk at `socket`, and what it holds, or starts one.
    ///
    /// Nothing is parked where the keeper's name is another user's: anybody can take a name in a
    /// directory that is open to all, and that must not keep a disk from its guest.
    //= spec/parking.md#PRK-6
    //= spec/host.md#HOST-5
    pub(super) fn find_or_start(socket: &Path) -> anyhow::Result<Option<(Self, FdStore, Held)>> {
        let path = path_beside(socket)?;
        let us = rustix::process::geteuid().as_raw();
        if let Some(uid) = owner(&path).filter(|&uid| uid != us) {
            return Ok(squatted(&path, uid));
        }
        let (process, end) = match dial(&path) {
            Ok(end) => (None, end),
            Err(Errno::NOENT | Errno::CONNREFUSED) => {
                (Some(start(&path)?), dial(&path).context("connecting to a new keeper")?)
            }
            Err(Errno::AGAIN) => bail!("the keeper at {} does not answer; end it", path.display()),
            Err(error) => return Err(error).context("connecting to a keeper"),
        };
        let peer = peer(&end)?;
        if peer.uid != us {
            return Ok(squatted(&path, peer.uid));
        }
        let store = FdStore::keeper(end)?;
        let mut found = BTreeMap::new();
        if process.is_none() {
            store.say(TAKE)?;
            while let (name, Some(fd)) = store.hear().with_context(|| {
                format!("the keeper, process {}, does not answer; end it", peer.pid)
            })? {
                found.insert(name, fd);
            }
        }
        Ok(Some((Self { process }, store, found)))
    }

    /// Ends the keeper of the disk at `socket` from outside, as soon as its daemon is dead.
    pub(crate) fn dismiss(socket: &Path) -> anyhow::Result<()> {
        let end = dial(&path_beside(socket)?)?;
        ensure!(peer(&end)?.uid == rustix::process::geteuid().as_raw(), "it is somebody else's");
        FdStore::keeper(end)?.say(END)
    }

    /// Lets it go.
    pub(super) fn end(self, store: &FdStore) {
        // One that is gone already is all the same.
        let _ = store.say(END);
        if let Some(mut process) = self.process {
            let _ = process.wait();
        }
    }
}

/// The hidden name beside a disk's socket.
fn path_beside(socket: &Path) -> anyhow::Result<PathBuf> {
    let name = socket.file_name().context("the socket's path has no name")?;
    let mut hidden = OsString::from(".");
    hidden.push(name);
    hidden.push(".keeper");
    Ok(socket.with_file_name(hidden))
}

fn seqpacket() -> rustix::io::Result<OwnedFd> {
    socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
}

/// Connects to a keeper, with bounds for all that it is asked.
fn dial(path: &Path) -> rustix::io::Result<OwnedFd> {
    let end = seqpacket()?;
    // This goes for a connection that nobody takes in, too.
    set_socket_timeout(&end, Timeout::Send, Some(PATIENCE))?;
    set_socket_timeout(&end, Timeout::Recv, Some(DEATH))?;
    connect(&end, &SocketAddrUnix::new(path)?)?;
    Ok(end)
}

/// Whose a name is, if there is anything.
fn owner(path: &Path) -> Option<u32> {
    std::fs::symlink_metadata(path).ok().map(|about| about.uid())
}

fn squatted<T>(path: &Path, uid: u32) -> Option<T> {
    tracing::warn!(
        "nothing is parked: user {uid} has the keeper's name {}; have it removed, or keep sockets \
         in a directory that is this user's alone",
        path.display()
    );
    None
}

/// Binds the name and starts a process behind it. The caller has the disk's own socket, so nobody
/// else does the same.
fn start(path: &Path) -> anyhow::Result<Child> {
    let listener = seqpacket()?;
    let _ = std::fs::remove_file(path);
    let address = SocketAddrUnix::new(path)
        .with_context(|| format!("the path {} is too long", path.display()))?;
    let umask = crate::socket::with_umask(Mode::from_raw_mode(0o177), || bind(&listener, &address));
    umask.with_context(|| format!("binding {}", path.display()))?;
    listen(&listener, 8)?;
    let this = std::env::current_exe().context("finding this program")?;
    let mut keeper = Command::new(this);
    keeper.env_remove("NOTIFY_SOCKET");
    keeper.args(["--log", "warn", "keeper", "--path"]).arg(path);
    keeper.stdin(Stdio::from(listener)).stdout(Stdio::null());
    keeper.spawn().context("starting a keeper")
}

/// Holds descriptors until the end.
///
/// # Errors
/// When its standard input is no listening socket.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    // It has to survive what is done to the daemon's session and group. It may lead one already.
    let _ = rustix::process::setsid();
    crate::open_files::raise();
    let mut held = BTreeMap::new();
    let grace = Timespec::try_from(Duration::from_millis(args.grace_ms))?;
    let stdin = std::io::stdin();
    loop {
        let mut fds = [PollFd::new(&stdin, PollFlags::IN)];
        if rustix::io::retry_on_intr(|| poll(&mut fds, Some(&grace)))? == 0 {
            tracing::warn!("no daemon came back; its front ends have to connect anew");
            break;
        }
        let daemon = accept_with(&stdin, SocketFlags::CLOEXEC).context("accepting a daemon")?;
        if peer_user(&daemon)? == rustix::process::geteuid().as_raw() && serve(&daemon, &mut held)?
        {
            break;
        }
    }
    let _ = std::fs::remove_file(&args.path);
    Ok(ExitCode::SUCCESS)
}

/// Serves one daemon as long as it lives; `true` when it has ended in order. Its successor waits
/// at the listener until it is dead altogether.
fn serve(daemon: &OwnedFd, held: &mut Held) -> anyhow::Result<bool> {
    loop {
        // A daemon that has died in the middle of sending is dead all the same.
        let Ok((message, fd)) = fds::receive(daemon.as_fd()) else { return Ok(false) };
        let (word, name) = message.split_once("\nFDNAME=").unwrap_or((&message, ""));
        match (word, fd) {
            ("", _) => return Ok(false),
            ("FDSTORE=1", Some(fd)) => drop(held.insert(name.to_owned(), fd)),
            ("FDSTOREREMOVE=1", _) => drop(held.remove(name)),
            (TAKE, _) => {
                let all = held
                    .iter()
                    .try_for_each(|(name, fd)| fds::send(daemon.as_fd(), name, &[fd.as_fd()]));
                if all.and_then(|()| fds::send(daemon.as_fd(), END, &[])).is_err() {
                    return Ok(false);
                }
            }
            (END, _) => return Ok(true),
            _ => tracing::warn!(message, "a message that is not understood"),
        }
    }
}
