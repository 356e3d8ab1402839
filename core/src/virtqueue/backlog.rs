//! What is taken again before anything new.

use crate::inflight::Resubmission;

/// The chains that an earlier daemon took and that were not taken again yet.
#[derive(Clone, Debug)]
pub(super) struct Backlog {
    chains: Resubmission,
    /// Whether nothing new is taken.
    closed: bool,
}

impl Backlog {
    pub(super) const EMPTY: Self = Self { chains: Resubmission::new(), closed: false };

    pub(super) const fn of(chains: Resubmission) -> Self {
        Self { chains, closed: false }
    }

    /// How many chains there are if nothing new may be taken now; `None` when the ring is to be
    /// looked at.
    #[inline]
    pub(super) fn all_there_is(&self) -> Option<u16> {
        #[expect(clippy::cast_possible_truncation, reason = "no more than there are names")]
        let left = self.chains.len() as u16;
        (self.closed || left > 0).then_some(left)
    }

    #[inline]
    pub(super) fn is_some(&self) -> bool {
        !self.chains.is_empty()
    }

    #[inline]
    pub(super) fn pop(&mut self) -> Option<u16> {
        self.chains.pop()
    }

    /// Takes nothing new any more; what is to be taken again still is.
    pub(super) const fn close(&mut self) {
        self.closed = true;
    }

    /// Takes nothing again; `false` when there was nothing.
    pub(super) fn give_up(&mut self) -> bool {
        let any = self.is_some();
        self.chains.clear();
        any
    }
}
