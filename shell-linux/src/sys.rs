//! What has no safe form elsewhere.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

use anyhow::ensure;
use landlock::RulesetCreated;
use rustix::process::{Pid, Signal};
use seccompiler::BpfProgram;

/// Takes over a descriptor that the parent process left open for this one.
///
/// # Errors
/// When it is one of the standard three, or not open.
pub fn inherited(fd: RawFd) -> anyhow::Result<OwnedFd> {
    ensure!(fd > 2, "descriptors 0 to 2 are input, output and errors");
    // SAFETY: `fcntl` with `F_GETFD` only asks whether the number is open.
    let open = unsafe { libc::fcntl(fd, libc::F_GETFD) } >= 0;
    ensure!(open, "no such descriptor is open");
    // SAFETY: it is open, and named on the command line for this program to own.
    let owned = unsafe { OwnedFd::from_raw_fd(fd) };
    rustix::io::fcntl_setfd(&owned, rustix::io::FdFlags::CLOEXEC)?;
    Ok(owned)
}

/// The processor's cycle counter, where it has one that programs may read.
#[inline]
#[must_use]
pub fn processor_counter() -> Option<u64> {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: every x86_64 has the instruction, and it only reads.
    return Some(unsafe { core::arch::x86_64::_rdtsc() });
    #[cfg(not(target_arch = "x86_64"))]
    None
}

/// Who is at the other end of a Unix socket.
///
/// By hand, because a peer in another PID namespace has the number 0, for which the safe
/// wrappers' types have no room.
///
/// # Errors
/// When it is no such socket.
pub fn peer(socket: impl AsFd) -> io::Result<libc::ucred> {
    let mut peer = libc::ucred { pid: 0, uid: 0, gid: 0 };
    let mut len = libc::socklen_t::try_from(size_of_val(&peer)).expect("a few bytes");
    // SAFETY: `peer` is as long as `len` says, any bytes are valid for it, and both live until
    // the call returns.
    let done = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERCRED,
            (&raw mut peer).cast(),
            &raw mut len,
        )
    };
    if done == 0 { Ok(peer) } else { Err(io::Error::last_os_error()) }
}

/// Which user is at the other end of a Unix socket.
///
/// # Errors
/// When it is no such socket.
pub fn peer_user(socket: impl AsFd) -> io::Result<u32> {
    peer(socket).map(|peer| peer.uid)
}

/// What a descriptor's open file is to have of a range of a file's bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ByteLock {
    /// A lock that others may have too.
    Shared,
    /// A lock that nobody else has.
    Exclusive,
    /// None.
    Released,
}

/// Locks `len` bytes from `start` on for the open file (`F_OFD_SETLK`), as long as it is open.
///
/// # Errors
/// `EAGAIN` when somebody else's lock is in the way.
pub fn lock_bytes(file: impl AsFd, how: ByteLock, start: u64, len: u64) -> io::Result<()> {
    let kind = match how {
        ByteLock::Shared => libc::F_RDLCK,
        ByteLock::Exclusive => libc::F_WRLCK,
        ByteLock::Released => libc::F_UNLCK,
    };
    byte_lock(file, libc::F_OFD_SETLK, kind, start, len).map(drop)
}

/// Whether another open file has a lock on one of `len` bytes from `start` on.
///
/// # Errors
/// When the file system has no such locks.
pub fn bytes_locked(file: impl AsFd, start: u64, len: u64) -> io::Result<bool> {
    let found = byte_lock(file, libc::F_OFD_GETLK, libc::F_WRLCK, start, len)?;
    Ok(i32::from(found.l_type) != libc::F_UNLCK)
}

fn byte_lock(
    file: impl AsFd,
    command: libc::c_int,
    kind: libc::c_int,
    start: u64,
    len: u64,
) -> io::Result<libc::flock> {
    // SAFETY: all zeroes is a valid `flock`: numbers only.
    let mut lock: libc::flock = unsafe { core::mem::zeroed() };
    lock.l_type = libc::c_short::try_from(kind).expect("one of three small numbers");
    lock.l_whence = libc::c_short::try_from(libc::SEEK_SET).expect("a small number");
    lock.l_start = libc::off_t::try_from(start).map_err(io::Error::other)?;
    lock.l_len = libc::off_t::try_from(len).map_err(io::Error::other)?;
    // SAFETY: the descriptor is open, and `lock` lives until the call returns.
    let done = unsafe { libc::fcntl(file.as_fd().as_raw_fd(), command, &raw mut lock) };
    if done == 0 { Ok(lock) } else { Err(io::Error::last_os_error()) }
}

/// Whether this program was started with a signal ignored.
#[must_use]
pub fn ignored(signal: i32) -> bool {
    let mut now = core::mem::MaybeUninit::<libc::sigaction>::uninit();
    // SAFETY: without a new action the call only fills in the present one, for which there is
    // room; all bytes of it are written when it succeeds.
    unsafe {
        libc::sigaction(signal, core::ptr::null(), now.as_mut_ptr()) == 0
            && now.assume_init().sa_sigaction == libc::SIG_IGN
    }
}

/// A thread of this process whose call another thread can end.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Interruptible(Pid);

impl Interruptible {
    /// What programs without a handler ignore.
    const SIGNAL: libc::c_int = libc::SIGURG;

    /// The calling thread.
    pub(crate) fn this_thread() -> io::Result<Self> {
        // SAFETY: all zeroes is a valid `sigaction` without flags and with an empty mask, so calls
        // end with `EINTR`; the handler does nothing.
        let installed = unsafe {
            let mut action: libc::sigaction = core::mem::zeroed();
            let handler: extern "C" fn(libc::c_int) = do_nothing;
            action.sa_sigaction = handler as usize;
            libc::sigaction(Self::SIGNAL, &raw const action, core::ptr::null_mut())
        };
        if installed != 0 {
            return Err(io::Error::last_os_error());
        }
        // Whoever started this program may have kept the signal from it.
        let mut set = core::mem::MaybeUninit::uninit();
        // SAFETY: the first call fills the set in, the others only read or change it.
        let unblocked = unsafe {
            libc::sigemptyset(set.as_mut_ptr());
            libc::sigaddset(set.as_mut_ptr(), Self::SIGNAL);
            libc::pthread_sigmask(libc::SIG_UNBLOCK, set.as_ptr(), core::ptr::null_mut())
        };
        match unblocked {
            0 => Ok(Self(rustix::thread::gettid())),
            error => Err(io::Error::from_raw_os_error(error)),
        }
    }

    /// Ends the call that the thread is in, if it is in one that waits. One that has ended is
    /// not there any more, or another one of this process that notices nothing.
    pub(crate) fn interrupt(self) {
        let (process, thread) = (rustix::process::getpid(), self.0);
        let (process, thread) = (process.as_raw_pid(), thread.as_raw_pid());
        // SAFETY: three numbers; the signal's handler does nothing.
        unsafe { libc::syscall(libc::SYS_tgkill, process, thread, Self::SIGNAL) };
    }
}

extern "C" fn do_nothing(_: libc::c_int) {}

/// Lets what `command` starts end with this thread, keep some descriptors, and be confined.
pub(crate) fn before_exec(
    command: &mut Command,
    rules: RulesetCreated,
    filter: BpfProgram,
    handed: Vec<RawFd>,
) {
    let (parent, mut rules) = (rustix::process::getpid(), Some(rules));
    let confine = move || {
        rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
        if rustix::process::getppid() != Some(parent) {
            return Err(io::ErrorKind::Interrupted.into());
        }
        for &fd in &handed {
            // SAFETY: the caller's file is open under this number while it starts the child.
            let fd = unsafe { BorrowedFd::borrow_raw(fd) };
            rustix::io::fcntl_setfd(fd, rustix::io::FdFlags::empty())?;
        }
        let refused = || io::Error::from(io::ErrorKind::PermissionDenied);
        rules.take().map(RulesetCreated::restrict_self).transpose().map_err(|_| refused())?;
        seccompiler::apply_filter(&filter).map_err(|_| refused())
    };
    // SAFETY: between fork and exec only system calls are made: nothing is allocated or locked,
    // and what the closure names was made before and is its own.
    unsafe {
        command.pre_exec(confine);
    }
}
