//! Listening sockets in the file system.

use std::fs::File;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use crate::image::Fault;
use anyhow::{Context, bail, ensure};
use rustix::fs::{AtFlags, CWD, FileType, FlockOperation, Mode, statat};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};

/// Bytes that a socket's path may have.
pub(crate) const PATH_BYTES_MAX: usize = 107;

/// What nobody but owner and group gets: the socket's mode is 0660.
const UMASK: Mode = Mode::XUSR.union(Mode::XGRP).union(Mode::RWXO);

/// The umask is the whole process's.
static UMASK_LOCK: Mutex<()> = Mutex::new(());

/// Which socket it is: device, number, and when it was made, as numbers are used again.
type Identity = (u64, u64, i64, u64);

/// A socket's name; removed when dropped if it still leads to the same socket.
#[derive(Debug)]
pub struct SocketPath {
    path: PathBuf,
    identity: Identity,
}

/// Listens at `path`, with mode 0660.
///
/// A socket that nobody answers at any more, and that belongs to this user, is replaced.
///
/// # Errors
/// When the path is too long, when something else is there, or when the system says so.
//= spec/vhost-user.md#VHU-12
pub fn bind(path: &Path) -> anyhow::Result<(UnixListener, SocketPath)> {
    let bytes = path.as_os_str().as_bytes().len();
    ensure!(
        bytes <= PATH_BYTES_MAX,
        "the socket path {} has {bytes} bytes; at most {PATH_BYTES_MAX} are possible: \
         choose a shorter directory",
        path.display()
    );
    let bind = || -> anyhow::Result<_> {
        let _lock = lock_directory(path)?;
        remove_dead(path)?;
        let listener = bind_private(path)?;
        let (_, identity) = identify(path)?.context("it has gone at once")?;
        Ok((listener, SocketPath { path: path.to_owned(), identity }))
    };
    bind().with_context(|| format!("listening at {}", path.display()))
}

impl Drop for SocketPath {
    fn drop(&mut self) {
        let Ok(_lock) = lock_directory(&self.path) else { return };
        if let Ok(Some((_, identity))) = identify(&self.path)
            && identity == self.identity
        {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// Keeps other daemons from looking at the same names at the same time.
fn lock_directory(path: &Path) -> anyhow::Result<File> {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    let directory = File::open(parent.unwrap_or(Path::new("."))).context("its directory")?;
    rustix::fs::flock(&directory, FlockOperation::LockExclusive).context("its directory")?;
    Ok(directory)
}

/// What is at a path, links not followed, and which it is.
fn identify(path: &Path) -> anyhow::Result<Option<(rustix::fs::Stat, Identity)>> {
    match statat(CWD, path, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => {
            let made = (stat.st_mtime, stat.st_mtime_nsec);
            Ok(Some((stat, (stat.st_dev, stat.st_ino, made.0, made.1))))
        }
        Err(Errno::NOENT) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn remove_dead(path: &Path) -> anyhow::Result<()> {
    let Some((stat, _)) = identify(path)? else { return Ok(()) };
    let kind = FileType::from_raw_mode(stat.st_mode);
    ensure!(kind == FileType::Socket, "a {kind:?} is there, and it is not touched: remove it");
    ensure!(
        stat.st_uid == rustix::process::geteuid().as_raw(),
        "a socket of user {} is there, and it is not touched: remove it",
        stat.st_uid
    );
    // Without blocking: a live socket's backlog may be full.
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let probe = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    match connect(&probe, &SocketAddrUnix::new(path)?) {
        Err(Errno::CONNREFUSED) => std::fs::remove_file(path).context("removing a dead socket"),
        Ok(()) | Err(Errno::AGAIN) => {
            bail!(Fault::Taken("another process is listening there".to_owned()))
        }
        Err(error) => {
            Err(error).context("a socket is there, and it is not clear whether it is in use")
        }
    }
}

fn bind_private(path: &Path) -> std::io::Result<UnixListener> {
    with_umask(UMASK, || UnixListener::bind(path))
}

/// Makes something in the file system without these permissions.
pub(crate) fn with_umask<T>(umask: Mode, make: impl FnOnce() -> T) -> T {
    let _lock = UMASK_LOCK.lock().unwrap_or_else(PoisonError::into_inner);
    let before = rustix::process::umask(umask);
    let made = make();
    rustix::process::umask(before);
    made
}
