//! What has no safe form elsewhere.

use std::os::fd::{FromRawFd, OwnedFd, RawFd};

use anyhow::ensure;

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
