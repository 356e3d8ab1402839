//! Descriptors that go over a connection: those that come are kept from children, those that are
//! handed out cannot be shrunk.

use std::fs::File;
use std::os::fd::OwnedFd;

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
use rustix::io::FdFlags;

/// Takes a received descriptor over. It arrives inheritable, and a child has no business with a
/// guest's memory.
//= spec/vhost-user.md#VHU-6
pub(super) fn own(file: File) -> rustix::io::Result<OwnedFd> {
    let fd = OwnedFd::from(file);
    rustix::io::fcntl_setfd(&fd, FdFlags::CLOEXEC)?;
    Ok(fd)
}

/// Memory of so many zero bytes that nobody can take pages from while it is mapped.
pub(super) fn sealed_region(bytes: u64) -> rustix::io::Result<OwnedFd> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let region = memfd_create("sluice-inflight", flags)?;
    ftruncate(&region, bytes)?;
    fcntl_add_seals(&region, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
    Ok(region)
}
