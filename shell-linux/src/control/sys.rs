//! The one call that has no safe face.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

/// Who is at the other end of a Unix socket.
///
/// By hand, because a peer in another PID namespace has the number 0, for which the safe
/// wrappers' types have no room.
pub(super) fn peer(socket: impl AsFd) -> io::Result<libc::ucred> {
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
