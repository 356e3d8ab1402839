//! What goes wrong on an image: counted, and logged.

use std::path::Path;

use rustix::io::Errno;
use sluice_core::op::OpKind;

/// Operations of an image that failed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Because there was no space, or no quota.
    pub no_space: u64,
    /// Because the guest's memory was not there.
    pub memory: u64,
    /// Syncs.
    pub syncs: u64,
    /// For any other reason.
    pub other: u64,
}

/// The counters.
#[derive(Debug, Default)]
pub(super) struct Failures {
    pub(super) counters: Counters,
}

impl Failures {
    /// Counts a failure and says so.
    //= spec/store.md#STO-14
    #[cold]
    pub(super) fn note(&mut self, path: &Path, kind: OpKind, offset: u64, errno: i64) {
        let errno = Errno::from_raw_os_error(i32::try_from(errno).unwrap_or(libc::EIO));
        match errno {
            _ if kind == OpKind::Sync => self.counters.syncs += 1,
            Errno::NOSPC | Errno::DQUOT => self.counters.no_space += 1,
            Errno::FAULT => self.counters.memory += 1,
            _ => self.counters.other += 1,
        }
        let hint = match errno {
            Errno::NOSPC => "; free space on the file system, the guest sees an I/O error",
            Errno::DQUOT => "; raise the quota, the guest sees an I/O error",
            _ => "",
        };
        tracing::warn!(image = %path.display(), offset, "{kind:?} failed: {errno}{hint}");
    }
}
