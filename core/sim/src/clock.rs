//! Virtual time: what is to happen, in the order in which it will.

use core::cmp::Reverse;
use std::collections::BinaryHeap;

use sluice_core::time::Instant;

/// Events still to come. Those of one moment happen in the order in which they were planned.
#[derive(Debug)]
pub struct Clock<E> {
    now: u64,
    planned: u64,
    heap: BinaryHeap<Reverse<(u64, u64, E)>>,
}

impl<E: Ord> Clock<E> {
    /// A clock that stands at 0, with nothing to come.
    #[must_use]
    pub const fn new() -> Self {
        Self { now: 0, planned: 0, heap: BinaryHeap::new() }
    }

    /// The time.
    #[must_use]
    pub const fn now(&self) -> Instant {
        Instant(self.now)
    }

    /// Plans an event.
    pub fn plan(&mut self, delay: u64, event: E) {
        self.planned += 1;
        self.heap.push(Reverse((self.now + delay, self.planned, event)));
    }

    /// Moves on to the next event.
    pub fn advance(&mut self) -> Option<E> {
        let Reverse((at, _, event)) = self.heap.pop()?;
        self.now = at;
        Some(event)
    }
}

impl<E: Ord> Default for Clock<E> {
    fn default() -> Self {
        Self::new()
    }
}
