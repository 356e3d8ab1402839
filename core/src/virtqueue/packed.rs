//! The packed virtqueue, device side.
//!
//! One ring of descriptors serves both directions: the driver makes them available, the device
//! overwrites them with what is used. A plain struct of numbers like the split one; every method
//! that touches the ring takes the memory as an argument.

use zerocopy::byteorder::little_endian::{U16, U32};
use zerocopy::{Immutable, IntoBytes};

use super::layout::{
    DESC_AVAIL, DESC_BYTES, DESC_USED, DESC_WRITE, EVENT_BYTES, EVENT_DISABLE, EVENT_ENABLE,
    EVENT_FLAGS, EVENT_PLACE, EventSuppression, PACKED_FLAGS, PACKED_LEN, PackedDescriptor,
    desc_table_bytes,
};
use super::{Backlog, ChainToken, IdSet, QueueFault, Rings};
use crate::inflight::{PackedState, Resubmission};
use crate::limits::QUEUE_SIZE_MAX;
use crate::memory::{OutOfRegion, RegionId, SharedMemory};
use crate::planted::{Fault, planted};

/// A place in a packed ring: an index below the ring's size, and how often the ring was passed,
/// as one bit. The same 16 bits that event suppression and ring bases are made of.
//= spec/packed.md#PVQ-1
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Position(u16);

/// The wrap counter in a position.
const WRAP: u16 = 1 << 15;

impl Position {
    /// Where a ring begins.
    pub const START: Self = Self(WRAP);

    /// A position from its parts; `None` when there is no such index in a ring of this size.
    #[must_use]
    pub const fn new(index: u16, wrap: bool, size: u16) -> Option<Self> {
        let bits = if wrap { index | WRAP } else { index };
        if index & WRAP == 0 { Self::from_bits(bits, size) } else { None }
    }

    /// A position from its 16 bits; `None` when there is no such index in a ring of this size.
    #[must_use]
    pub const fn from_bits(bits: u16, size: u16) -> Option<Self> {
        if bits & !WRAP < size { Some(Self(bits)) } else { None }
    }

    /// The index, with the wrap counter in the highest bit.
    #[must_use]
    pub const fn bits(self) -> u16 {
        self.0
    }

    /// The index.
    #[must_use]
    pub const fn index(self) -> u16 {
        self.0 & !WRAP
    }

    /// The wrap counter.
    #[must_use]
    pub const fn wrap(self) -> bool {
        self.0 & WRAP != 0
    }

    /// What `DESC_AVAIL` and `DESC_USED` are in a descriptor that is made available here.
    #[must_use]
    #[inline]
    pub const fn available_flags(self) -> u16 {
        if self.wrap() { DESC_AVAIL } else { DESC_USED }
    }

    /// What they are in a used one.
    #[must_use]
    #[inline]
    pub const fn used_flags(self) -> u16 {
        if self.wrap() { DESC_AVAIL | DESC_USED } else { 0 }
    }

    /// The position `count` entries on in a ring of `size`, at most one lap.
    #[must_use]
    #[inline]
    pub const fn after(self, count: u16, size: u16) -> Self {
        let index = self.index() + count;
        if index < size {
            Self(index | (self.0 & WRAP))
        } else {
            Self((index - size) | (!self.0 & WRAP))
        }
    }

    /// Entries from here on to another position, less than two laps of a ring of `size`.
    #[must_use]
    pub const fn distance(self, to: Self, size: u16) -> u16 {
        let laps = 2 * size;
        let lap = if self.wrap() == to.wrap() { 0 } else { size };
        (to.index() + lap + laps - self.index()) % laps
    }
}

/// Where a ring begins or was stopped: the next available and the next used place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PackedBase {
    /// The next descriptor to take.
    pub avail: Position,
    /// The next descriptor to give back in.
    pub used: Position,
}

impl PackedBase {
    /// Where a ring begins.
    pub const START: Self = Self { avail: Position::START, used: Position::START };

    /// A base as vhost-user messages carry it, the used place in the high half. `None` for one
    /// that a ring of this size cannot be at.
    //= spec/packed.md#PVQ-3
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "the halves of a number")]
    pub const fn from_bits(bits: u32, size: u16) -> Option<Self> {
        let avail = Position::from_bits(bits as u16, size);
        let used = Position::from_bits((bits >> 16) as u16, size);
        match (avail, used) {
            (Some(avail), Some(used)) if used.distance(avail, size) <= size => {
                Some(Self { avail, used })
            }
            _ => None,
        }
    }

    /// The same, the other way.
    #[must_use]
    pub const fn bits(self) -> u32 {
        self.avail.bits() as u32 | (self.used.bits() as u32) << 16
    }
}

/// What a used descriptor is filled with, apart from its flags.
#[derive(IntoBytes, Immutable)]
#[repr(C)]
struct UsedHead {
    len: U32,
    id: U16,
}

/// The same with its flags, for those that nobody looks at yet.
#[derive(IntoBytes, Immutable)]
#[repr(C)]
struct UsedWhole {
    len: U32,
    id: U16,
    flags: U16,
}

/// The device's side of one running packed virtqueue.
#[derive(Clone, Debug)]
pub struct PackedRing {
    rings: Rings,
    size: u16,
    event_idx: bool,
    /// The next descriptor to take.
    next_avail: Position,
    /// The next descriptor to give back in, as published.
    next_used: Position,
    /// Where the batch that was published last began.
    batch: Position,
    /// Where the next used descriptor of the batch under construction goes.
    next_write: Position,
    /// Flags of the batch's first used descriptor: the last that is stored of it.
    first_flags: u16,
    /// Descriptors taken and not yet given back.
    held: u16,
    /// Ids of the chains taken and not yet given back.
    in_flight: IdSet,
    pub(super) backlog: Backlog,
}

impl PackedRing {
    /// A ring of `size` entries, up to `limits::QUEUE_SIZE_MAX`, that goes on at `base`.
    ///
    /// The entries between its two places count as held: whoever knows of their chains takes
    /// them up again.
    #[must_use]
    pub fn start(rings: Rings, size: u16, base: PackedBase, event_idx: bool) -> Self {
        assert!((1..=QUEUE_SIZE_MAX).contains(&size), "checked at SET_VRING_NUM");
        let PackedBase { avail, used } = base;
        Self {
            rings,
            size,
            event_idx,
            next_avail: avail,
            next_used: used,
            batch: used,
            next_write: used,
            first_flags: 0,
            held: used.distance(avail, size),
            in_flight: IdSet::EMPTY,
            backlog: Backlog::EMPTY,
        }
    }

    /// What an inflight area is compared with at the start.
    #[must_use]
    pub const fn state(&self) -> PackedState {
        PackedState { desc: self.rings.desc, size: self.size, base: self.base() }
    }

    /// Whether nothing was given back yet.
    ///
    /// # Errors
    /// When the descriptor ring cannot be read.
    pub fn is_new(&self, mem: &impl SharedMemory) -> Result<bool, OutOfRegion> {
        let (region, offset) = self.rings.desc;
        let last = DESC_BYTES * u64::from(self.size - 1);
        let flags = mem.load_acquire_u16(region, offset + last + PACKED_FLAGS)?;
        Ok(self.base() == PackedBase::START && flags == 0)
    }

    /// Goes on where an earlier daemon was killed: descriptors were given back up to `used`, so
    /// many were taken behind it, and these chains are taken again before anything new is.
    //= spec/recovery.md#REC-6
    //= spec/recovery.md#REC-12
    pub fn resubmit(&mut self, used: Position, taken: u16, again: Resubmission) {
        let taken = if planted(Fault::TakenForgotten) { 0 } else { taken };
        let used = if planted(Fault::FrontEndBelieved) { self.next_used } else { used };
        let base = PackedBase { avail: used.after(taken, self.size), used };
        *self = Self::start(self.rings, self.size, base, self.event_idx);
        for &id in &again {
            self.in_flight.insert(id);
        }
        self.backlog = Backlog::of(again);
    }

    /// Moves to other mappings of the same ring.
    pub fn relocate(&mut self, rings: Rings) {
        self.rings = rings;
    }

    /// Where its parts lie.
    #[must_use]
    pub const fn rings(&self) -> &Rings {
        &self.rings
    }

    /// Where it stands.
    #[must_use]
    pub const fn base(&self) -> PackedBase {
        PackedBase { avail: self.next_avail, used: self.next_used }
    }

    /// The parts that the device writes, with their lengths.
    pub(crate) fn written(&self) -> [((RegionId, u64), u64); 2] {
        let event = if planted(Fault::SuppressionUnlogged) { 0 } else { EVENT_BYTES };
        [(self.rings.desc, desc_table_bytes(self.size)), (self.rings.used, event)]
    }

    /// Whether entries are held that were not given back.
    #[must_use]
    pub const fn is_held(&self) -> bool {
        self.held > 0
    }

    const fn place(at: Position) -> u64 {
        DESC_BYTES * at.index() as u64
    }

    /// Whether these flags make a descriptor available at `at`.
    #[inline]
    const fn is_available(flags: u16, at: Position) -> bool {
        flags & (DESC_AVAIL | DESC_USED) == at.available_flags()
    }

    /// Looks at the next descriptor and says how many chains may wait: 0 when none does, and
    /// at most as many as there are entries that are not under way.
    ///
    /// # Errors
    /// [`QueueFault::IndexJump`] when there is one although every entry is under way.
    #[inline]
    pub fn available(&self, mem: &impl SharedMemory) -> Result<u16, QueueFault> {
        match self.backlog.all_there_is() {
            Some(chains) => Ok(chains),
            None => self.waiting(mem),
        }
    }

    /// The same without a look at what is to be taken again.
    //= spec/packed.md#PVQ-2
    #[inline]
    pub(super) fn waiting(&self, mem: &impl SharedMemory) -> Result<u16, QueueFault> {
        let (region, offset) = self.rings.desc;
        let at = self.next_avail;
        let flags = mem.load_acquire_u16(region, offset + Self::place(at) + PACKED_FLAGS)?;
        if !Self::is_available(flags, at) {
            return Ok(0);
        }
        match self.size - self.held {
            0 => Err(QueueFault::IndexJump),
            free => Ok(free),
        }
    }

    /// Copies the descriptor `ahead` entries behind the next one, which has to be available too.
    ///
    /// # Errors
    /// [`QueueFault::BadChain`] when it is not, or is more than one lap ahead of what is under
    /// way.
    //= spec/packed.md#PVQ-4
    #[inline]
    pub fn descriptor(
        &self,
        mem: &impl SharedMemory,
        ahead: u16,
    ) -> Result<PackedDescriptor, QueueFault> {
        if ahead >= self.size - self.held {
            return Err(QueueFault::BadChain);
        }
        let at = self.next_avail.after(ahead, self.size);
        let (region, offset) = self.rings.desc;
        let descriptor: PackedDescriptor = mem.read(region, offset + Self::place(at))?;
        if Self::is_available(descriptor.flags.get(), at) {
            Ok(descriptor)
        } else {
            Err(QueueFault::BadChain)
        }
    }

    /// Asks for the line of the next used descriptor.
    #[inline]
    pub fn prefetch_used(&self, mem: &impl SharedMemory) {
        let (region, offset) = self.rings.desc;
        mem.prefetch_write(region, offset + Self::place(self.next_used));
    }

    /// Takes the next `count` descriptors, which were copied, as the chain `id`.
    ///
    /// # Errors
    /// An id that there is not, or one that is in flight: the queue is broken, because nothing
    /// can be given back under it.
    //= spec/packed.md#PVQ-5
    #[inline]
    pub fn take(&mut self, id: u16, count: u16) -> Result<ChainToken, QueueFault> {
        if id >= self.size {
            return Err(QueueFault::BadHead);
        }
        if !self.in_flight.insert(id) {
            return Err(QueueFault::HeadInFlight);
        }
        self.next_avail = self.next_avail.after(count, self.size);
        self.held += count;
        Ok(token(id, count))
    }

    /// Fills the next used descriptor, invisible until [`publish`](Self::publish).
    ///
    /// # Errors
    /// When the ring is no longer mapped.
    //= spec/packed.md#PVQ-8
    #[inline]
    pub fn write_used(
        &mut self,
        mem: &impl SharedMemory,
        token: ChainToken,
        len: u32,
    ) -> Result<(), OutOfRegion> {
        let (region, offset) = self.rings.desc;
        let (id, count) = parts(token);
        let at = self.next_write;
        let used = at.used_flags();
        let flags = if len == 0 { used } else { used | DESC_WRITE };
        let into = offset + Self::place(at) + PACKED_LEN;
        let (len, id) = (U32::new(len), U16::new(id));
        let first = at == self.next_used;
        if first {
            self.first_flags = flags;
        }
        if first && !planted(Fault::BatchUncovered) {
            mem.write(region, into, &UsedHead { len, id })?;
        } else {
            mem.write(region, into, &UsedWhole { len, id, flags: U16::new(flags) })?;
        }
        let skipped = if planted(Fault::SkipForgotten) { 1 } else { count };
        self.next_write = at.after(skipped, self.size);
        Ok(())
    }

    /// Makes the used descriptors written since the last time visible, all at once.
    ///
    /// # Errors
    /// When the ring is no longer mapped.
    //= spec/packed.md#PVQ-9
    #[inline]
    pub fn publish(&mut self, mem: &impl SharedMemory) -> Result<(), OutOfRegion> {
        let (region, offset) = self.rings.desc;
        self.batch = self.next_used;
        self.next_used = self.next_write;
        let first = offset + Self::place(self.batch) + PACKED_FLAGS;
        mem.store_release_u16(region, first, self.first_flags)?;
        mem.hand_over(region, first);
        Ok(())
    }

    /// Lets the id and the entries of a chain that was given back come again.
    #[inline]
    pub fn forget(&mut self, token: ChainToken) {
        let (id, count) = parts(token);
        self.in_flight.remove(id);
        self.held -= count;
    }

    /// Whether the driver wants to hear of the batch that was published last. The caller has put
    /// a full fence between publishing it and asking.
    ///
    /// # Errors
    /// When the driver's event suppression is no longer mapped.
    //= spec/packed.md#PVQ-10
    #[inline]
    pub fn wants_notify(&self, mem: &impl SharedMemory) -> Result<bool, OutOfRegion> {
        let (region, offset) = self.rings.avail;
        let wish: EventSuppression = mem.read(region, offset)?;
        Ok(match wish.flags.get() {
            EVENT_DISABLE => false,
            EVENT_PLACE if self.event_idx => {
                let place = Position::from_bits(wish.place.get(), self.size);
                place.is_none_or(|place| passes(self.batch, self.next_used, place, self.size))
            }
            _ => true,
        })
    }

    /// Asks the driver for a notification at its next chain and says whether one came in the
    /// meantime, in which case the driver may not notify.
    ///
    /// # Errors
    /// As [`available`](Self::available).
    //= spec/packed.md#PVQ-11
    pub fn arm(&mut self, mem: &impl SharedMemory) -> Result<bool, QueueFault> {
        let (region, offset) = self.rings.used;
        let mut flags = EVENT_ENABLE;
        if self.event_idx {
            let at = self.next_avail;
            let place = if planted(Fault::WrapForgotten) { at.index() } else { at.bits() };
            mem.write(region, offset, &U16::new(place))?;
            flags = EVENT_PLACE;
        }
        mem.store_release_u16(region, offset + EVENT_FLAGS, flags)?;
        mem.full_fence();
        Ok(!planted(Fault::NoSecondLook) && self.available(mem)? != 0)
    }

    /// Tells the driver that notifications are of no use while the ring is polled.
    ///
    /// # Errors
    /// When the device's event suppression is no longer mapped.
    //= spec/packed.md#PVQ-11
    pub fn disarm(&mut self, mem: &impl SharedMemory) -> Result<(), OutOfRegion> {
        let (region, offset) = self.rings.used;
        mem.write(region, offset + EVENT_FLAGS, &U16::new(EVENT_DISABLE))
    }
}

/// Whether going on from `old` to `new` passes `event`, in a ring of `size`.
//= spec/packed.md#PVQ-12
#[must_use]
#[inline]
pub const fn passes(old: Position, new: Position, event: Position, size: u16) -> bool {
    old.distance(event, size) < old.distance(new, size)
}

/// A chain is its id, and the entries that a used descriptor stands for.
#[inline]
pub(crate) const fn token(id: u16, count: u16) -> ChainToken {
    ChainToken(id as u32 | (count as u32) << 16)
}

/// The buffer id of a packed chain, and how many entries of the ring it has.
#[must_use]
#[inline]
#[expect(clippy::cast_possible_truncation, reason = "the halves of a number")]
pub const fn parts(token: ChainToken) -> (u16, u16) {
    (token.0 as u16, (token.0 >> 16) as u16)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec::Vec;

    /// All places of a ring.
    fn places(size: u16) -> Vec<Position> {
        [Position::START, Position(0)]
            .into_iter()
            .flat_map(|lap| (0..size).map(move |index| lap.after(index, size)))
            .collect()
    }

    //= spec/packed.md#PVQ-1
    //= spec/packed.md#PVQ-12
    #[test]
    fn b66_b68_places_and_events_agree_with_walking_entry_by_entry() {
        for size in [1, 2, 3, 4, 5, 7, 8] {
            let all = places(size);
            for (i, &old) in all.iter().enumerate() {
                let mut new = old;
                let mut walked = Vec::new();
                for step in 0..=size {
                    assert_eq!(old.after(step, size), new, "{old:?} {step} of {size}");
                    assert_eq!(old.distance(new, size), step);
                    for &event in &all {
                        let passed = walked.contains(&event);
                        assert_eq!(passes(old, new, event, size), passed, "{old:?} {new:?}");
                    }
                    walked.push(new);
                    new = all[(i + usize::from(step) + 1) % all.len()];
                }
            }
        }
    }

    //= spec/packed.md#PVQ-3
    #[test]
    fn b22_a_base_has_both_places_inside_the_ring_and_less_than_a_lap_apart() {
        for size in [1, 3, 8, 1024] {
            for (avail, used, good) in [
                (Position::START.bits(), Position::START.bits(), true),
                (0, 0, true),
                (size - 1, size - 1, true),
                (0, WRAP, true),
                (WRAP, 0, true),
                (size, WRAP, false),
                (0, size, false),
                (size | WRAP, size | WRAP, false),
                (0x7fff, 0x7fff, false),
            ] {
                let bits = u32::from(avail) | u32::from(used) << 16;
                let base = PackedBase::from_bits(bits, size);
                assert_eq!(base.map(PackedBase::bits), good.then_some(bits), "{bits:#x} of {size}");
            }
        }
        // One entry more than a lap.
        let ahead = u32::from(1_u16) | u32::from(WRAP) << 16;
        assert_eq!(PackedBase::from_bits(ahead, 8), None);
        // One entry behind.
        let behind = u32::from(WRAP) | u32::from(1 | WRAP) << 16;
        assert_eq!(PackedBase::from_bits(behind, 8), None);
    }
}
