//! The names of the chains in flight.

use crate::limits::QUEUE_SIZE_MAX;

const WORDS: usize = QUEUE_SIZE_MAX as usize / 64;

/// A set of heads or buffer ids, each below `limits::QUEUE_SIZE_MAX`.
#[derive(Clone, Debug)]
pub(super) struct IdSet([u64; WORDS]);

impl IdSet {
    pub(super) const EMPTY: Self = Self([0; WORDS]);

    /// Adds a name; `false` when it is there already, or is none.
    #[inline]
    pub(super) fn insert(&mut self, id: u16) -> bool {
        let Some(word) = self.0.get_mut(usize::from(id / 64)) else { return false };
        let bit = 1 << (id % 64);
        let new = *word & bit == 0;
        *word |= bit;
        new
    }

    /// Takes a name out.
    #[inline]
    pub(super) fn remove(&mut self, id: u16) {
        if let Some(word) = self.0.get_mut(usize::from(id / 64)) {
            *word &= !(1 << (id % 64));
        }
    }
}
