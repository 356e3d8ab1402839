//! Which records of an area were found in its lists.

use super::InflightFault;
use crate::limits::QUEUE_SIZE_MAX;

/// Records that were found in lists: each may be in one, once.
#[derive(Clone, Debug)]
pub(super) struct Members {
    seen: [bool; QUEUE_SIZE_MAX as usize],
    size: u16,
}

impl Members {
    pub(super) const fn new(size: u16) -> Self {
        Self { seen: [false; QUEUE_SIZE_MAX as usize], size }
    }

    pub(super) fn add(&mut self, at: u16) -> Result<(), InflightFault> {
        if at >= self.size || core::mem::replace(&mut self.seen[usize::from(at)], true) {
            return Err(InflightFault::Batch);
        }
        Ok(())
    }

    pub(super) const fn has(&self, at: u16) -> bool {
        self.seen[at as usize]
    }

    pub(super) fn is_all(&self) -> bool {
        self.seen[..usize::from(self.size)].iter().all(|&seen| seen)
    }
}
