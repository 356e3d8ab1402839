//! What front ends hand over: descriptors that are kept from children, and are what they
//! should be.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use anyhow::{Context, ensure};
use rustix::fs::{MemfdFlags, OFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
use rustix::io::FdFlags;
use rustix::net::AddressFamily;
use rustix::net::sockopt::socket_domain;

/// Takes a received descriptor over. It arrives inheritable, and a child has no business with a
/// guest's memory.
//= spec/vhost-user.md#VHU-6
pub(super) fn own(file: File) -> rustix::io::Result<OwnedFd> {
    let fd = OwnedFd::from(file);
    rustix::io::fcntl_setfd(&fd, FdFlags::CLOEXEC)?;
    Ok(fd)
}

/// Refuses what is no eventfd: a write to anything else could block, or land somewhere.
//= spec/vhost-user.md#VHU-7
pub(super) fn check_eventfd(fd: impl AsFd) -> anyhow::Result<()> {
    let link = format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd());
    let target = std::fs::read_link(&link).with_context(|| format!("reading {link}"))?;
    ensure!(
        target.as_os_str() == "anon_inode:[eventfd]",
        "the descriptor is no eventfd but {}",
        target.display()
    );
    // A full counter must not hold up the thread that signals it.
    let flags = rustix::fs::fcntl_getfl(&fd)?;
    rustix::fs::fcntl_setfl(&fd, flags | OFlags::NONBLOCK)?;
    Ok(())
}

/// Refuses what is no local socket: sending on another can wait for who is sending on it already,
/// whatever the flags say.
//= spec/outsiders.md#OUT-22
pub(super) fn check_channel(fd: impl AsFd) -> anyhow::Result<()> {
    let family = socket_domain(fd).context("the channel for the device is no socket")?;
    ensure!(family == AddressFamily::UNIX, "the channel for the device is no local socket");
    Ok(())
}

/// Memory of so many zero bytes that nobody can take pages from while it is mapped.
pub(super) fn sealed_region(bytes: u64) -> rustix::io::Result<OwnedFd> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let region = memfd_create("sluice-inflight", flags)?;
    ftruncate(&region, bytes)?;
    fcntl_add_seals(&region, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
    Ok(region)
}
