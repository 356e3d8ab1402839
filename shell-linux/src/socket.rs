//! Listening sockets in the file system.
//!
//! A name appears when its socket listens, with its mode and group, and what was there is replaced
//! in the same step. No lock is taken on the way: anybody can hold one.

use std::ffi::{OsStr, OsString};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, bail, ensure};
use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, RenameFlags};
use rustix::fs::{chownat, linkat, open, renameat, renameat_with, statat, unlinkat};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind as bind_socket};
use rustix::net::{connect, listen, socket_with};
use rustix::rand::{GetRandomFlags, getrandom};

use crate::image::Fault;

/// Bytes that a socket's path may have.
pub(crate) const PATH_BYTES_MAX: usize = 107;

/// Front ends that may wait to be taken in.
const BACKLOG: i32 = 128;

/// The umask is the whole process's.
static UMASK_LOCK: Mutex<()> = Mutex::new(());

/// Which socket it is: device, number, and when it was made, as numbers are used again.
type Identity = (u64, u64, i64, u64);

/// Who may connect.
#[derive(Clone, Copy, Debug)]
pub struct Access {
    /// The socket's mode; who may write may connect.
    pub mode: Mode,
    /// Its group, if it is not to be this process's.
    pub group: Option<Gid>,
}

impl Default for Access {
    /// Owner and group.
    fn default() -> Self {
        Self { mode: Mode::from_raw_mode(0o660), group: None }
    }
}

/// A socket's name; removed when dropped if it still leads to the same socket.
#[derive(Debug)]
pub struct SocketPath {
    place: Place,
    identity: Identity,
    /// As long as somebody listens nobody else takes the name.
    _listening: OwnedFd,
}

/// Listens at `path`, for owner and group.
///
/// # Errors
/// As [`bind_for`].
pub fn bind(path: &Path) -> anyhow::Result<(UnixListener, SocketPath)> {
    bind_for(path, Access::default())
}

/// Listens at `path`.
///
/// A socket that nobody answers at any more, and that belongs to this user, is replaced.
///
/// # Errors
/// When the path is too long, when something else is there, or when the system says so.
//= spec/vhost-user.md#VHU-12
//= spec/host.md#HOST-3
pub fn bind_for(path: &Path, access: Access) -> anyhow::Result<(UnixListener, SocketPath)> {
    let bytes = path.as_os_str().as_bytes().len();
    ensure!(
        bytes <= PATH_BYTES_MAX,
        Fault::Usage(format!(
            "the socket path {} has {bytes} bytes; at most {PATH_BYTES_MAX} are possible: choose a \
             shorter directory",
            path.display()
        ))
    );
    let bind = || -> anyhow::Result<_> {
        let place = Place::of(path)?;
        // Before anything is made, so that the usual mistakes are said first.
        place.identify_dead()?;
        let staged = Staged::bind(&place, access)?;
        let identity = staged.publish()?;
        let listener = UnixListener::from(staged.socket.try_clone()?);
        let listening = staged.socket.try_clone()?;
        drop(staged);
        Ok((listener, SocketPath { place, identity, _listening: listening }))
    };
    bind().with_context(|| format!("listening at {}", path.display()))
}

impl Drop for SocketPath {
    fn drop(&mut self) {
        if let Ok(Some((_, identity))) = self.place.identify(&self.place.name)
            && identity == self.identity
        {
            let _ = unlinkat(&self.place.directory, &self.place.name, AtFlags::empty());
        }
    }
}

/// A name in a directory that is held open.
#[derive(Debug)]
struct Place {
    path: PathBuf,
    directory: OwnedFd,
    name: OsString,
}

impl Place {
    fn of(path: &Path) -> anyhow::Result<Self> {
        let named = path.file_name().filter(|_| !path.as_os_str().as_bytes().ends_with(b"/"));
        let missing = || Fault::Usage("a socket needs a name of its own in a directory".to_owned());
        let name = named.ok_or_else(missing)?.to_owned();
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = open(parent.unwrap_or(Path::new(".")), flags, Mode::empty());
        Ok(Self { path: path.to_owned(), directory: directory.context("its directory")?, name })
    }

    /// What is at a name, links not followed, and which it is.
    fn identify(&self, name: &OsStr) -> anyhow::Result<Option<(rustix::fs::Stat, Identity)>> {
        match statat(&self.directory, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => {
                let identity = (stat.st_dev, stat.st_ino, stat.st_mtime, stat.st_mtime_nsec);
                Ok(Some((stat, identity)))
            }
            Err(Errno::NOENT) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// The socket that may be replaced, if anything is there.
    fn identify_dead(&self) -> anyhow::Result<Option<Identity>> {
        let Some((stat, identity)) = self.identify(&self.name)? else { return Ok(None) };
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
        match connect(&probe, &SocketAddrUnix::new(&self.path)?) {
            Err(Errno::CONNREFUSED) => Ok(Some(identity)),
            Ok(()) | Err(Errno::AGAIN) => {
                bail!(Fault::Taken("another process is listening there".to_owned()))
            }
            Err(error) => {
                Err(error).context("a socket is there, and it is not clear whether it is in use")
            }
        }
    }
}

/// A socket that listens under a name that nobody knows; the name is removed when dropped.
struct Staged<'a> {
    place: &'a Place,
    name: OsString,
    socket: OwnedFd,
}

impl<'a> Staged<'a> {
    fn bind(place: &'a Place, Access { mode, group }: Access) -> anyhow::Result<Self> {
        let flags = SocketFlags::CLOEXEC;
        let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        let mut number = [0; 4];
        getrandom(&mut number, GetRandomFlags::empty())?;
        let number = format!("{:08x}", u32::from_ne_bytes(number));
        let mut name = OsString::from(".");
        name.push(&place.name);
        name.push(format!(".{number}"));
        let mut path = place.path.with_file_name(&name);
        // The longer name may be too long where the short one is not.
        if path.as_os_str().as_bytes().len() > PATH_BYTES_MAX {
            name = format!(".{number}").into();
            path = format!("/proc/self/fd/{}/.{number}", place.directory.as_raw_fd()).into();
        }
        let address = SocketAddrUnix::new(&path)?;
        let umask = Mode::from_raw_mode(0o777) & !mode;
        with_umask(umask, || bind_socket(&socket, &address))?;
        let this = Self { place, name, socket };
        if group.is_some() {
            let flags = AtFlags::SYMLINK_NOFOLLOW;
            chownat(&place.directory, &this.name, None, group, flags)
                .context("giving it to its group, which one has to be a member of")?;
        }
        listen(&this.socket, BACKLOG)?;
        Ok(this)
    }

    /// Gives the socket its name.
    fn publish(&self) -> anyhow::Result<Identity> {
        let (_, identity) =
            self.place.identify(&self.name)?.context("somebody has removed it at once")?;
        loop {
            match self.place.identify_dead()? {
                None if self.take_free_name()? => return Ok(identity),
                Some(dead) if self.replace(dead)? => return Ok(identity),
                // Somebody was faster: what is there now?
                None | Some(_) => {}
            }
        }
    }

    /// `false` when the name is not free any more.
    fn take_free_name(&self) -> anyhow::Result<bool> {
        let Place { directory, name, .. } = self.place;
        match renameat_with(directory, &self.name, directory, name, RenameFlags::NOREPLACE) {
            Ok(()) => Ok(true),
            Err(Errno::EXIST) => Ok(false),
            // The file system does not know the flag. A link never replaces either.
            Err(Errno::INVAL | Errno::NOSYS) => {
                match linkat(directory, &self.name, directory, name, AtFlags::empty()) {
                    Err(Errno::EXIST) => Ok(false),
                    done => Ok(done.map(|()| true)?),
                }
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Takes the name of a dead socket; `false` when it was another one's meanwhile, who keeps it.
    fn replace(&self, dead: Identity) -> anyhow::Result<bool> {
        let Place { directory, name, .. } = self.place;
        let exchange =
            || renameat_with(directory, &self.name, directory, name, RenameFlags::EXCHANGE);
        match exchange() {
            Ok(()) => {}
            Err(Errno::NOENT) => return Ok(false),
            Err(Errno::INVAL | Errno::NOSYS) => {
                return Ok(renameat(directory, &self.name, directory, name).map(|()| true)?);
            }
            Err(error) => return Err(error.into()),
        }
        let replaced = self.place.identify(&self.name)?.is_some_and(|(_, is)| is == dead);
        if !replaced {
            exchange()?;
        }
        Ok(replaced)
    }
}

impl Drop for Staged<'_> {
    /// Removes the name, or what was exchanged for it.
    fn drop(&mut self) {
        let _ = unlinkat(&self.place.directory, &self.name, AtFlags::empty());
    }
}

/// Makes something in the file system without these permissions.
pub(crate) fn with_umask<T>(umask: Mode, make: impl FnOnce() -> T) -> T {
    let _lock = UMASK_LOCK.lock().unwrap_or_else(PoisonError::into_inner);
    let before = rustix::process::umask(umask);
    let made = make();
    rustix::process::umask(before);
    made
}
