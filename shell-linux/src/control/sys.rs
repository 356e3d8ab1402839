//! The one call that has no safe face.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

/// Makes a descriptor that somebody else owns lead to what `by` leads to; what it led to is
/// closed. Its owner does not notice.
pub(super) fn redirect(owned: &impl AsRawFd, by: impl AsFd) -> io::Result<()> {
    // SAFETY: both numbers are open for as long as the borrows last, and the first stays its
    // owner's to close.
    let done = unsafe { libc::dup3(by.as_fd().as_raw_fd(), owned.as_raw_fd(), libc::O_CLOEXEC) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
