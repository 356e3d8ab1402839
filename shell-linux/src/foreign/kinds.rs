//! What a descriptor is, asked of the kernel alone: a file system could answer when it likes.

use std::os::fd::{AsFd, AsRawFd};
use std::path::PathBuf;

use anyhow::{Context, bail, ensure};
use rustix::fs::{FileType, OFlags, fcntl_get_seals, fcntl_getfl, fcntl_setfl, fstat, fstatfs};
use rustix::io::Errno;
use rustix::net::AddressFamily;
use rustix::net::sockopt::socket_domain;

/// The type of a file system of huge pages.
const HUGETLBFS_MAGIC: i64 = 0x9584_58f6;

/// What a piece of memory is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    /// A region of guest memory: whole pages.
    Guest,
    /// A record of requests or of dirty pages, which may end inside a page unless that is a huge
    /// one.
    Record,
}

/// Refuses what no memory is or is not there from `offset` on for `size` bytes.
///
/// # Errors
/// When a page fault could wait for somebody (`any_file` lets that pass), when the file is too
/// short, or when it is not whole pages of it.
//= spec/outsiders.md#OUT-1
//= spec/outsiders.md#OUT-2
pub(crate) fn check_memory(
    fd: impl AsFd,
    (offset, size): (u64, u64),
    used: Use,
    any_file: bool,
) -> anyhow::Result<()> {
    let end = offset.checked_add(size).context("a memory region wraps")?;
    match fcntl_get_seals(&fd) {
        Ok(_) => {}
        // Only memory knows of seals; to ask anything else may ask a file system.
        Err(Errno::INVAL) if any_file => {}
        Err(_) => bail!(
            "guest memory has to be a memfd or a file of tmpfs or hugetlbfs, and the descriptor \
             is {}; --allow-file-memory lets other files pass",
            link(&fd)?.display()
        ),
    }
    let stat = fstat(&fd).context("memory descriptor")?;
    let kind = FileType::from_raw_mode(stat.st_mode);
    ensure!(kind == FileType::RegularFile, "a memory descriptor is no file but {kind:?}");
    let length = u64::try_from(stat.st_size).unwrap_or(0);
    ensure!(end <= length, "a memory file has {length} bytes, and its region ends at {end}");
    let system = fstatfs(&fd).context("memory descriptor")?;
    let huge = system.f_type == HUGETLBFS_MAGIC;
    let page =
        if huge { u64::try_from(system.f_bsize)? } else { rustix::param::page_size() as u64 };
    let whole = used == Use::Record && !huge || size.is_multiple_of(page);
    ensure!(
        offset.is_multiple_of(page) && whole,
        "a memory region of {size} bytes at {offset} is not whole pages of {page} bytes"
    );
    Ok(())
}

/// Refuses what is no eventfd: a write to anything else could block, or land somewhere.
///
/// # Errors
/// When it is none.
//= spec/vhost-user.md#VHU-7
pub(crate) fn check_eventfd(fd: impl AsFd) -> anyhow::Result<()> {
    let flags = fcntl_getfl(&fd)?;
    let target = link(&fd)?;
    ensure!(
        target.as_os_str() == "anon_inode:[eventfd]" && !flags.contains(OFlags::PATH),
        "the descriptor is no eventfd but {}",
        target.display()
    );
    // A full counter is no reason to wait. Its owner can take that back: see `watcher`.
    fcntl_setfl(&fd, flags | OFlags::NONBLOCK)?;
    Ok(())
}

/// Refuses what is no local socket: sending on another can wait for who is sending on it already,
/// whatever the flags say.
//= spec/outsiders.md#OUT-22
pub(crate) fn check_channel(fd: impl AsFd) -> anyhow::Result<()> {
    let family = socket_domain(fd).context("the channel for the device is no socket")?;
    ensure!(family == AddressFamily::UNIX, "the channel for the device is no local socket");
    Ok(())
}

/// What the kernel calls it.
fn link(fd: impl AsFd) -> anyhow::Result<PathBuf> {
    let link = format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd());
    std::fs::read_link(&link).with_context(|| format!("reading {link}"))
}
