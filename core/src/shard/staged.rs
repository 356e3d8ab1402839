//! Chains of a split ring on their way in, so many at a time that their lines come together.

use crate::limits::QUEUE_BATCH;
use crate::memory::{MemoryMap, SharedMemory};
use crate::virtqueue::layout::Descriptor;
use crate::virtqueue::{QueueFault, SplitRing};

/// Heads that were taken, each with the first descriptor of its chain.
#[derive(Debug)]
pub(super) struct Staged([(u16, Descriptor); QUEUE_BATCH as usize]);

impl Staged {
    /// Nothing taken.
    pub(super) const EMPTY: Self = Self([(0, Descriptor::EMPTY); QUEUE_BATCH as usize]);

    /// Takes the next `wanted` chains that the ring has, up to `limits::QUEUE_BATCH`. Says how many
    /// it has, and why they are fewer.
    ///
    /// The driver's lines are asked for a stage ahead of their use: heads, then the first
    /// descriptors, then the headers that these point to.
    #[inline]
    pub(super) fn take(
        &mut self,
        mem: &impl SharedMemory,
        map: &MemoryMap,
        ring: &mut SplitRing,
        wanted: u16,
    ) -> (usize, Option<QueueFault>) {
        let (mut taken, mut fault) = (0, None);
        for (head, _) in self.0.iter_mut().take(wanted.into()) {
            match ring.take(mem) {
                Ok(found) => *head = found,
                Err(found) => {
                    fault = Some(found);
                    break;
                }
            }
            ring.prefetch_descriptor(mem, *head);
            taken += 1;
        }
        for (at, (head, first)) in self.0.iter_mut().enumerate().take(taken) {
            match ring.descriptor(mem, *head) {
                Ok(found) => *first = found,
                Err(out) => return (at, Some(out.into())),
            }
            if let Some(place) = map.translate(first.addr.get(), 1) {
                mem.prefetch(place.segment.region(), place.segment.offset);
            }
        }
        (taken, fault)
    }

    /// The `at`-th of the chains that were taken.
    #[inline]
    pub(super) const fn chain(&self, at: usize) -> (u16, Descriptor) {
        self.0[at]
    }
}
