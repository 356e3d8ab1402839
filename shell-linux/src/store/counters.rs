//! What goes wrong on an image: counted always, logged seldom.

use std::path::Path;
use std::time::{Duration, Instant};

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

/// Time between two lines of the log about the same image.
const QUIET: Duration = Duration::from_secs(10);

/// The counters, and when the last line was logged.
#[derive(Debug, Default)]
pub(super) struct Failures {
    pub(super) counters: Counters,
    quiet_until: Option<Instant>,
    unsaid: u64,
}

impl Failures {
    /// Counts a failure and says so, unless that was done a moment ago.
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
        let now = Instant::now();
        let first_sync = kind == OpKind::Sync && self.counters.syncs == 1;
        if self.quiet_until.is_some_and(|until| now < until) && !first_sync {
            self.unsaid += 1;
            return;
        }
        self.quiet_until = Some(now + QUIET);
        let unsaid = core::mem::take(&mut self.unsaid);
        let hint = match errno {
            Errno::NOSPC => "; free space on the file system, the guest sees an I/O error",
            Errno::DQUOT => "; raise the quota, the guest sees an I/O error",
            _ => "",
        };
        tracing::warn!(
            image = %path.display(), offset, unsaid, "{kind:?} failed: {errno}{hint}"
        );
    }
}
