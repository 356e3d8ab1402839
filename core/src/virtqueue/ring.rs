//! A ring of either format: what the rest of the core sees of a virtqueue.

use super::{ChainToken, PackedRing, QueueFault, SplitRing};
use crate::either::either;
use crate::inflight::{Inflight, packed, split};
use crate::memory::{OutOfRegion, RegionId, SharedMemory};
use crate::planted::{Fault, planted};

/// Where the three parts of a ring lie, each wholly inside one region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Rings {
    /// Descriptor table, or descriptor ring.
    pub desc: (RegionId, u64),
    /// Available ring, or the driver's event suppression.
    pub avail: (RegionId, u64),
    /// Used ring, or the device's event suppression.
    pub used: (RegionId, u64),
}

impl Rings {
    /// Whether a part of the ring lies in this region.
    #[must_use]
    pub fn lie_in(&self, region: RegionId) -> bool {
        [self.desc.0, self.avail.0, self.used.0].contains(&region)
    }
}

/// The device's side of one running virtqueue. What the methods promise stands at the formats.
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "the formats")]
pub enum Ring {
    Split(SplitRing),
    Packed(PackedRing),
}

impl Ring {
    /// Moves to other mappings of the same ring.
    pub fn relocate(&mut self, rings: Rings) {
        either!(self, ring => ring.relocate(rings));
    }

    /// Where its parts lie.
    #[must_use]
    pub const fn rings(&self) -> &Rings {
        either!(self, ring => ring.rings())
    }

    /// The parts that the device writes, with their lengths.
    pub(crate) fn written(&self) -> [((RegionId, u64), u64); 2] {
        match self {
            Self::Split(ring) => [ring.written(), (ring.rings().used, 0)],
            Self::Packed(ring) => ring.written(),
        }
    }

    /// What a stopped queue reports as its base.
    #[must_use]
    pub const fn base(&self) -> u32 {
        match self {
            Self::Split(ring) => ring.next_avail() as u32,
            Self::Packed(ring) => ring.base().bits(),
        }
    }

    /// The used index as published; of a packed ring with its wrap counter in the highest bit.
    #[must_use]
    pub const fn next_used(&self) -> u16 {
        match self {
            Self::Split(ring) => ring.next_used(),
            Self::Packed(ring) => ring.base().used.bits(),
        }
    }

    /// Goes on with an area of an inflight region: what is in it is taken again before anything
    /// new is.
    ///
    /// # Errors
    /// When the area is impossible, or the ring or the area are not there.
    pub fn resume(
        &mut self,
        mem: &impl SharedMemory,
        region: RegionId,
        offset: u64,
    ) -> Result<Inflight, QueueFault> {
        match self {
            Self::Split(ring) => {
                let (area, again) = split::resume(mem, region, offset, ring.state(mem)?)?;
                ring.resubmit(again);
                Ok(Inflight::Split(area))
            }
            Self::Packed(ring) => {
                let found = packed::resume(mem, region, offset, ring.state())?;
                ring.resubmit(found.used, found.taken, found.again);
                Ok(Inflight::Packed(found.inflight))
            }
        }
    }

    /// Whether the driver waits for nothing, as far as can be told where the queue is to go on.
    ///
    /// # Errors
    /// When the ring is not there.
    pub fn is_idle(&self, mem: &impl SharedMemory) -> Result<bool, QueueFault> {
        match self {
            Self::Split(ring) => {
                let state = ring.state(mem)?;
                Ok(state.avail_idx == state.used_idx)
            }
            Self::Packed(ring) => Ok(!ring.is_held() && ring.available(mem)? == 0),
        }
    }

    /// Whether nothing was given back yet: the ring is to begin, and its last entry was never
    /// written.
    ///
    /// # Errors
    /// When the ring is not there.
    pub fn is_new(&self, mem: &impl SharedMemory) -> Result<bool, QueueFault> {
        Ok(either!(self, ring => ring.is_new(mem))?)
    }

    /// Whether entries are held that nobody knows of: the front end named two places.
    #[must_use]
    pub const fn holds_unknown(&self) -> bool {
        match self {
            Self::Split(_) => false,
            Self::Packed(ring) => ring.is_held(),
        }
    }

    /// Whether chains wait to be taken again.
    #[must_use]
    pub fn is_resubmitting(&self) -> bool {
        either!(self, ring => ring.backlog.is_some())
    }

    /// Whether chains were taken and not given back.
    #[must_use]
    pub fn is_held(&self) -> bool {
        either!(self, ring => ring.is_held())
    }

    /// Takes nothing new any more; what is to be taken again still is.
    pub const fn close(&mut self) {
        either!(self, ring => ring.backlog.close());
    }

    /// Takes nothing again; `false` when there was nothing.
    pub fn give_up(&mut self) -> bool {
        either!(self, ring => ring.backlog.give_up())
    }

    /// At most how many chains wait; 0 only when none does.
    ///
    /// # Errors
    /// When the driver made more available than the ring holds.
    #[inline]
    pub fn available(&mut self, mem: &impl SharedMemory) -> Result<u16, QueueFault> {
        either!(self, ring => ring.available(mem))
    }

    /// Asks for the lines of a chain that is likely to be taken next.
    #[inline]
    pub fn prefetch(&self, mem: &impl SharedMemory, chain: ChainToken) {
        if let Self::Split(ring) = self {
            ring.prefetch(mem, chain);
        }
    }

    /// Asks for the line that the driver looks at for its chains. If it is looking all the time the
    /// line goes back to it at once: this is for the moment before it is written, not earlier.
    #[inline]
    pub fn prefetch_used(&self, mem: &impl SharedMemory) {
        match self {
            Self::Split(ring) => ring.prefetch_index(mem),
            Self::Packed(ring) => ring.prefetch_used(mem),
        }
    }

    /// Writes one of a batch of used chains, the `ahead`-th, invisible until
    /// [`publish`](Self::publish).
    ///
    /// # Errors
    /// When the ring is no longer mapped.
    #[inline]
    pub fn write_used(
        &mut self,
        mem: &impl SharedMemory,
        ahead: u16,
        token: ChainToken,
        len: u32,
    ) -> Result<(), OutOfRegion> {
        match self {
            Self::Split(ring) => ring.write_used(mem, ahead, token, len),
            Self::Packed(ring) => ring.write_used(mem, token, len),
        }
    }

    /// Makes a batch of `count` used chains visible.
    ///
    /// # Errors
    /// When the ring is no longer mapped.
    #[inline]
    pub fn publish(&mut self, mem: &impl SharedMemory, count: u16) -> Result<(), OutOfRegion> {
        match self {
            Self::Split(ring) => ring.publish(mem, count),
            Self::Packed(ring) => ring.publish(mem),
        }
    }

    /// Lets a chain that was given back come again.
    #[inline]
    pub fn forget(&mut self, token: ChainToken) {
        if !planted(Fault::HeadKept) {
            either!(self, ring => ring.forget(token));
        }
    }

    /// Whether the driver wants to hear of the batch of `count` that was just published.
    ///
    /// # Errors
    /// When the ring is no longer mapped.
    #[inline]
    pub fn wants_notify(&self, mem: &impl SharedMemory, count: u16) -> Result<bool, OutOfRegion> {
        match self {
            Self::Split(ring) => ring.wants_notify(mem, count),
            Self::Packed(ring) => ring.wants_notify(mem),
        }
    }

    /// Asks the driver for a notification at its next chain; `true` when one came meanwhile.
    ///
    /// # Errors
    /// As [`available`](Self::available).
    pub fn arm(&mut self, mem: &impl SharedMemory) -> Result<bool, QueueFault> {
        either!(self, ring => ring.arm(mem))
    }

    /// Tells the driver that notifications are of no use.
    ///
    /// # Errors
    /// When the ring is no longer mapped.
    pub fn disarm(&mut self, mem: &impl SharedMemory) -> Result<(), OutOfRegion> {
        either!(self, ring => ring.disarm(mem))
    }
}
