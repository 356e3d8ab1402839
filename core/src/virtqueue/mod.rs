//! Virtqueues: taking chains from the driver and giving them back.

pub mod chain;
pub mod layout;
pub mod packed;
mod ids;
mod backlog;
pub mod ring;
pub mod split;

pub use chain::{Chain, ChainFault};
pub use packed::{PackedBase, PackedRing};
pub use ring::{Ring, Rings};
pub use split::SplitRing;

use backlog::Backlog;
use ids::IdSet;

use crate::dirty::OutOfLog;
use crate::inflight::InflightFault;
use crate::memory::OutOfRegion;
use crate::planted::{Fault, planted};

/// What a ring needs to give a chain back. Opaque: its meaning is the ring format's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct ChainToken(pub(crate) u32);

/// How a driver broke its queue. The queue stops and the front end is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum QueueFault {
    /// More was made available than the queue holds.
    IndexJump,
    /// A chain's name is none: a head or a buffer id that the queue does not have.
    BadHead,
    /// A chain was made available while it was still in flight.
    HeadInFlight,
    /// A packed chain is not available as a whole: where the next one begins is unknown.
    BadChain,
    /// A ring no longer lies in mapped memory.
    RingUnmapped,
    /// A page was to be written that has no bit in the dirty log.
    OutOfLog,
    /// The queue cannot go on from its inflight region.
    Inflight(InflightFault),
}

impl From<InflightFault> for QueueFault {
    fn from(fault: InflightFault) -> Self {
        Self::Inflight(fault)
    }
}

impl From<OutOfLog> for QueueFault {
    fn from(_: OutOfLog) -> Self {
        Self::OutOfLog
    }
}

impl From<OutOfRegion> for QueueFault {
    fn from(_: OutOfRegion) -> Self {
        Self::RingUnmapped
    }
}

/// Whether moving an index from `old` to `new` passes the point `event` at which the other
/// side asked to be told (virtio 1.2, section 2.7.7.1). All three are free-running.
//= spec/virtqueue.md#VQ-14
#[must_use]
#[inline]
pub fn passes_event(event: u16, new: u16, old: u16) -> bool {
    let event = event.wrapping_add(planted(Fault::EventOffByOne).into());
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Walks the index one by one, as the words of the specification do.
    fn passes_by_walking(event: u16, new: u16, old: u16) -> bool {
        let mut at = old;
        while at != new {
            if at == event {
                return true;
            }
            at = at.wrapping_add(1);
        }
        false
    }

    //= spec/virtqueue.md#VQ-14
    #[test]
    fn b66_the_event_formula_agrees_with_the_words_of_the_specification() {
        // Every (event, new, old) in a window around the wrap, and the window's mirror.
        for base in [0_u16, 0x7ff0, 0xfff0] {
            for event in 0..24 {
                for old in 0..24 {
                    for moved in 0..24 {
                        let (event, old) = (base.wrapping_add(event), base.wrapping_add(old));
                        let new = old.wrapping_add(moved);
                        let expected = passes_by_walking(event, new, old);
                        assert_eq!(passes_event(event, new, old), expected, "{event} {new} {old}");
                    }
                }
            }
        }
    }
}
