//! Byte locks: what QEMU's programs and commands of our own see of an image that is served.
//!
//! QEMU's file driver says with shared locks on single bytes what a process does with an image
//! (byte 100 + n) and what it does not want others to do (byte 200 + n); each then looks whether
//! anybody has the opposite. sluice does the same, and says two things more on bytes of its own.
//! Among daemons of sluice these locks exclude nobody: at a migration two have an image open,
//! and flock(2) says whose turn it is.

use std::fs::File;

use rustix::fs::fstatfs;

use super::lock::Access;
use crate::sys::{ByteLock, bytes_locked, lock_bytes};

/// Reads, and relies on what it reads.
const READS: u64 = 100;
/// Writes.
const WRITES: u64 = 101;
/// Changes the size.
const RESIZES: u64 = 103;
/// Cannot do with others who read.
const NO_READERS: u64 = 200;
/// Cannot do with others who write.
const NO_WRITERS: u64 = 201;
/// Cannot do with others who change the size.
const NO_RESIZERS: u64 = 203;
/// Ours: a daemon has it open, and follows its size.
const SERVED: u64 = 300;
/// Ours: and it is going to write.
const SERVED_TO_WRITE: u64 = 301;
/// Ours: a command is changing the size. The one lock that is exclusive.
const GROWS: u64 = 302;

/// Permissions that QEMU has bytes for.
const PERMISSIONS: u64 = 5;

/// Says that a daemon serves the image.
//= spec/store.md#STO-23
pub(super) fn serve(file: &File, read_only: bool) {
    if !told_apart(file) {
        return;
    }
    for at in [NO_WRITERS, NO_RESIZERS, SERVED] {
        share(file, at);
    }
    if !read_only {
        share(file, SERVED_TO_WRITE);
    }
}

/// Says that the image is in use now, unless somebody has a byte that speaks against it.
//= spec/store.md#STO-24
pub(super) fn take(file: &File, access: Access) -> Result<(), u64> {
    if !told_apart(file) {
        return Ok(());
    }
    // First said and then looked, as everybody does: of two at once one sees the other.
    share(file, READS);
    if access.writes() {
        share(file, WRITES);
    }
    if !matches!(access, Access::Serve { .. }) {
        share(file, NO_WRITERS);
        share(file, NO_RESIZERS);
    }
    objection(file, access).map_or(Ok(()), Err)
}

/// The byte whose lock speaks against it.
fn objection(file: &File, access: Access) -> Option<u64> {
    let locked = |at: &u64| has(file, *at, 1);
    let first = |bytes: &[u64]| bytes.iter().copied().find(locked);
    match access {
        Access::Serve { read_only: true } => first(&[WRITES, RESIZES, NO_READERS]),
        // Other daemons have said that they want no other writers, and mean those who are none.
        Access::Serve { read_only: false } => first(&[WRITES, RESIZES, NO_READERS])
            .or_else(|| first(&[READS]).filter(|_| locked(&NO_WRITERS))),
        Access::Copy => first(&[WRITES, RESIZES, NO_READERS, SERVED_TO_WRITE]),
        Access::Change => (READS..READS + PERMISSIONS)
            .chain(NO_READERS..NO_READERS + PERMISSIONS)
            .chain([SERVED])
            .find(locked),
    }
}

/// Takes back what [`take`] said.
pub(super) fn give_back(file: &File) {
    let _ = lock_bytes(file, ByteLock::Released, READS, PERMISSIONS);
}

/// Whether a daemon of ours has the image open.
pub(crate) fn is_served(file: &File) -> bool {
    told_apart(file) && has(file, SERVED, 1)
}

/// Whether anybody says anything about the image.
pub(super) fn names(start: u64) -> bool {
    (READS..=GROWS).contains(&start)
}

/// Keeps others from changing the size until the file is closed; `false` when one is at it.
pub(crate) fn size_alone(file: &File) -> bool {
    let busy = |error: std::io::Error| error.kind() == std::io::ErrorKind::WouldBlock;
    !lock_bytes(file, ByteLock::Exclusive, GROWS, 1).is_err_and(busy)
}

fn share(file: &File, at: u64) {
    // A file system without such locks has none of others either.
    let _ = lock_bytes(file, ByteLock::Shared, at, 1);
}

fn has(file: &File, start: u64, len: u64) -> bool {
    bytes_locked(file, start, len).unwrap_or(false)
}

/// Whether the file system tells flock(2) from locks on bytes. Network file systems make one of
/// them out of the other, so that who says something would stand in its own way.
fn told_apart(file: &File) -> bool {
    /// `NFS_SUPER_MAGIC`, `CIFS_SUPER_MAGIC` and `SMB2_SUPER_MAGIC` of linux/magic.h.
    const NETWORK: [u32; 3] = [0x6969, 0xff53_4d42, 0xfe53_4d42];
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "32 bits of magic")]
    let kind = fstatfs(file).map_or(0, |about| about.f_type as u32);
    !NETWORK.contains(&kind)
}
