//! The split virtqueue, device side.
//!
//! A plain struct of numbers: every method that touches the rings takes the memory as an
//! argument. Indices run freely through all 16 bits and are reduced only to address an entry.

use zerocopy::byteorder::little_endian::{U16, U32};

use super::layout::{
    AVAIL_IDX, AVAIL_NO_INTERRUPT, AVAIL_RING, DESC_BYTES, Descriptor, USED_IDX, USED_NO_NOTIFY,
    USED_RING, UsedElement, avail_event_offset, used_event_offset, used_ring_bytes,
};
use super::{Backlog, ChainToken, IdSet, QueueFault, Rings, passes_event};
use crate::inflight::{Resubmission, RingState};
use crate::limits::QUEUE_SIZE_MAX;
use crate::memory::{OutOfRegion, RegionId, SharedMemory};
use crate::planted::{Fault, planted};

/// Used entries in a line of the cache.
const USED_PER_LINE: usize = 8;

/// The device's side of one running split virtqueue.
#[derive(Clone, Debug)]
pub struct SplitRing {
    rings: Rings,
    size: u16,
    event_idx: bool,
    /// The next available entry to take.
    next_avail: u16,
    /// The driver's index as last seen, already checked against `next_avail`.
    seen_avail: u16,
    /// The next used entry to write. Private: what the used ring says is never read back.
    next_used: u16,
    /// Heads taken and not yet given back.
    in_flight: IdSet,
    pub(super) backlog: Backlog,
}

impl SplitRing {
    /// A ring of `size` entries (a power of two up to `limits::QUEUE_SIZE_MAX`) that goes on at
    /// available index `base` and at the used index that stands in the used ring.
    ///
    /// # Errors
    /// [`QueueFault::RingUnmapped`] when the used ring cannot be read.
    //= spec/virtqueue.md#VQ-2
    pub fn start(
        mem: &impl SharedMemory,
        rings: Rings,
        size: u16,
        base: u16,
        event_idx: bool,
    ) -> Result<Self, QueueFault> {
        assert!(size.is_power_of_two() && size <= QUEUE_SIZE_MAX, "checked at SET_VRING_NUM");
        let next_used = mem.load_acquire_u16(rings.used.0, rings.used.1 + USED_IDX)?;
        Ok(Self {
            rings,
            size,
            event_idx,
            next_avail: base,
            seen_avail: base,
            next_used,
            in_flight: IdSet::EMPTY,
            backlog: Backlog::EMPTY,
        })
    }

    /// What the ring says at its start, the driver's index as it is now.
    ///
    /// # Errors
    /// [`QueueFault::RingUnmapped`] when the available ring cannot be read.
    pub fn state(&self, mem: &impl SharedMemory) -> Result<RingState, QueueFault> {
        let (region, offset) = self.rings.avail;
        let avail_idx = mem.load_acquire_u16(region, offset + AVAIL_IDX)?;
        let (size, used_idx, base) = (self.size, self.next_used, self.next_avail);
        Ok(RingState { size, avail_idx, used_idx, base })
    }

    /// Whether nothing was given back yet.
    ///
    /// # Errors
    /// When the used ring cannot be read.
    pub fn is_new(&self, mem: &impl SharedMemory) -> Result<bool, OutOfRegion> {
        let (region, offset) = self.rings.used;
        let len: U32 = mem.read(region, offset + avail_event_offset(self.size) - 4)?;
        Ok((self.next_avail, self.next_used) == (0, 0) && len == U32::ZERO)
    }

    /// Goes on where an earlier daemon was killed: these heads, which lie below the size, are
    /// taken again before anything new is.
    //= spec/recovery.md#REC-5
    //= spec/recovery.md#REC-6
    pub fn resubmit(&mut self, again: Resubmission) {
        for &head in &again {
            self.in_flight.insert(head);
        }
        #[expect(clippy::cast_possible_truncation, reason = "no more than there are heads")]
        let taken = again.len() as u16;
        let taken = if planted(Fault::TakenForgotten) { 0 } else { taken };
        self.next_avail = self.next_used.wrapping_add(taken);
        self.seen_avail = self.next_avail;
        self.backlog = Backlog::of(again);
    }

    /// Whether chains were taken and not given back, by this daemon or an earlier one.
    #[must_use]
    pub const fn is_held(&self) -> bool {
        self.next_avail != self.next_used
    }

    /// Moves to other mappings of the same rings.
    pub fn relocate(&mut self, rings: Rings) {
        self.rings = rings;
    }

    /// Where the rings lie.
    #[must_use]
    pub const fn rings(&self) -> &Rings {
        &self.rings
    }

    /// Entries.
    #[must_use]
    pub const fn size(&self) -> u16 {
        self.size
    }

    /// The next available index to take: what a stopped queue reports as its base.
    #[must_use]
    pub const fn next_avail(&self) -> u16 {
        self.next_avail
    }

    /// The used index as published.
    #[must_use]
    pub const fn next_used(&self) -> u16 {
        self.next_used
    }

    /// Looks at the driver's index and says how many chains wait.
    ///
    /// # Errors
    /// [`QueueFault::IndexJump`] when more wait than the ring holds: the driver moved its index
    /// backwards or by too much, and what lies between cannot be told from garbage.
    //= spec/virtqueue.md#VQ-3
    #[inline]
    pub fn available(&mut self, mem: &impl SharedMemory) -> Result<u16, QueueFault> {
        let waiting = self.seen_avail.wrapping_sub(self.next_avail);
        if waiting != 0 {
            return Ok(waiting);
        }
        if let Some(heads) = self.backlog.all_there_is() {
            return Ok(heads);
        }
        let (region, offset) = self.rings.avail;
        // The entry that the index will name comes with it, not after it.
        let entry = u64::from(self.next_avail & (self.size - 1));
        mem.prefetch(region, offset + AVAIL_RING + 2 * entry);
        self.seen_avail = match planted(Fault::PlainIndex) {
            false => mem.load_acquire_u16(region, offset + AVAIL_IDX)?,
            true => mem.read::<U16>(region, offset + AVAIL_IDX)?.get(),
        };
        let waiting = self.seen_avail.wrapping_sub(self.next_avail);
        if waiting > self.size {
            self.seen_avail = self.next_avail;
            return Err(QueueFault::IndexJump);
        }
        Ok(waiting)
    }

    /// Takes the next of the chains that [`available`](Self::available) counted.
    ///
    /// # Errors
    /// A head outside the table, or one that is already in flight: the queue is broken, because
    /// neither can be given back without inventing a used entry.
    //= spec/virtqueue.md#VQ-4
    //= spec/virtqueue.md#VQ-5
    #[inline]
    pub fn take(&mut self, mem: &impl SharedMemory) -> Result<u16, QueueFault> {
        if self.seen_avail == self.next_avail {
            return Ok(self.backlog.pop().expect("counted before"));
        }
        let (region, offset) = self.rings.avail;
        let entry = u64::from(self.next_avail & (self.size - 1));
        let head: U16 = mem.read(region, offset + AVAIL_RING + 2 * entry)?;
        let head = head.get();
        if head >= self.size {
            return Err(QueueFault::BadHead);
        }
        if !self.in_flight.insert(head) {
            return Err(QueueFault::HeadInFlight);
        }
        self.next_avail = self.next_avail.wrapping_add(1);
        Ok(head)
    }

    /// Copies one entry of the descriptor table.
    ///
    /// # Errors
    /// When the table is no longer mapped. `index` is below the ring's size.
    #[inline]
    pub fn descriptor(
        &self,
        mem: &impl SharedMemory,
        index: u16,
    ) -> Result<Descriptor, OutOfRegion> {
        let (region, offset) = self.rings.desc;
        mem.read(region, offset + DESC_BYTES * u64::from(index))
    }

    /// Asks for the line of a head's descriptor.
    #[inline]
    pub fn prefetch_descriptor(&self, mem: &impl SharedMemory, index: u16) {
        let (region, offset) = self.rings.desc;
        mem.prefetch(region, offset + DESC_BYTES * u64::from(index));
    }

    /// Asks for the lines of a chain's first descriptor and of the next used entry.
    #[inline]
    pub fn prefetch(&self, mem: &impl SharedMemory, chain: ChainToken) {
        let (region, offset) = self.rings.desc;
        mem.prefetch(region, offset + DESC_BYTES * u64::from(chain.0));
        let (region, offset) = self.rings.used;
        let entry = u64::from(self.next_used & (self.size - 1));
        mem.prefetch_write(region, offset + USED_RING + 8 * entry);
    }

    /// Asks for the line of the used index.
    #[inline]
    pub fn prefetch_index(&self, mem: &impl SharedMemory) {
        let (region, offset) = self.rings.used;
        mem.prefetch_write(region, offset + USED_IDX);
    }

    /// Writes the `ahead`-th used entry behind the published index, invisible until
    /// [`publish`](Self::publish).
    ///
    /// # Errors
    /// When the used ring is no longer mapped.
    #[inline]
    pub fn write_used(
        &mut self,
        mem: &impl SharedMemory,
        ahead: u16,
        token: ChainToken,
        len: u32,
    ) -> Result<(), OutOfRegion> {
        let (region, offset) = self.rings.used;
        let entry = u64::from(self.next_used.wrapping_add(ahead) & (self.size - 1));
        let element = UsedElement { id: U32::new(token.0), len: U32::new(len) };
        mem.write(region, offset + USED_RING + 8 * entry, &element)
    }

    /// What the device writes of the ring in memory: where, and how many bytes.
    pub(crate) fn written(&self) -> ((RegionId, u64), u64) {
        let unlogged = if planted(Fault::EventUnlogged) { 2 } else { 0 };
        (self.rings.used, used_ring_bytes(self.size) - unlogged)
    }

    /// Makes `count` used entries visible.
    ///
    /// # Errors
    /// When the used ring is no longer mapped.
    //= spec/virtqueue.md#VQ-11
    #[inline]
    pub fn publish(&mut self, mem: &impl SharedMemory, count: u16) -> Result<(), OutOfRegion> {
        let (region, offset) = self.rings.used;
        let first = self.next_used;
        self.next_used = self.next_used.wrapping_add(count);
        match planted(Fault::PlainPublish) {
            false => mem.store_release_u16(region, offset + USED_IDX, self.next_used)?,
            true => mem.write(region, offset + USED_IDX, &U16::new(self.next_used))?,
        }
        for ahead in (0..count).step_by(USED_PER_LINE) {
            let entry = u64::from(first.wrapping_add(ahead) & (self.size - 1));
            mem.hand_over(region, offset + USED_RING + 8 * entry);
        }
        Ok(())
    }

    /// Lets a head that was given back come again.
    #[inline]
    pub fn forget(&mut self, token: ChainToken) {
        self.in_flight.remove(u16::try_from(token.0).unwrap_or(u16::MAX));
    }

    /// Whether the driver wants to hear of the last `count` used entries. The caller has put a
    /// full fence between publishing them and asking.
    ///
    /// # Errors
    /// When the available ring is no longer mapped.
    //= spec/virtqueue.md#VQ-12
    #[inline]
    pub fn wants_notify(&self, mem: &impl SharedMemory, count: u16) -> Result<bool, OutOfRegion> {
        let (region, offset) = self.rings.avail;
        if self.event_idx {
            let event: U16 = mem.read(region, offset + used_event_offset(self.size))?;
            let old = self.next_used.wrapping_sub(count);
            Ok(passes_event(event.get(), self.next_used, old))
        } else {
            let flags: U16 = mem.read(region, offset)?;
            Ok(flags.get() & AVAIL_NO_INTERRUPT == 0)
        }
    }

    /// Asks the driver for a notification at its next chain and says whether one came in the
    /// meantime, in which case the driver may not notify.
    ///
    /// # Errors
    /// As [`available`](Self::available).
    //= spec/virtqueue.md#VQ-13
    pub fn arm(&mut self, mem: &impl SharedMemory) -> Result<bool, QueueFault> {
        let (region, offset) = self.rings.used;
        if self.event_idx {
            let event = offset + avail_event_offset(self.size);
            mem.write(region, event, &U16::new(self.next_avail))?;
        } else {
            mem.write(region, offset, &U16::ZERO)?;
        }
        if !planted(Fault::NoFenceAtArm) {
            mem.full_fence();
        }
        Ok(!planted(Fault::NoSecondLook) && self.available(mem)? != 0)
    }

    /// Tells the driver that notifications are of no use while the ring is polled. With event
    /// indices nothing has to be said: an event index that is not renewed stays in the past.
    ///
    /// # Errors
    /// When the used ring is no longer mapped.
    pub fn disarm(&mut self, mem: &impl SharedMemory) -> Result<(), OutOfRegion> {
        if self.event_idx {
            return Ok(());
        }
        let (region, offset) = self.rings.used;
        mem.write(region, offset, &U16::new(USED_NO_NOTIFY))
    }
}
