//! The area of a packed queue, whose ring forgets what it has made available.
//!
//! Used descriptors overwrite available ones, so the area keeps a copy of each descriptor of a
//! chain. Records form lists: one of those that are free, and one for each chain, which begins
//! with the chain's head record. A list becomes a chain, or free again, by a single store: the
//! heads of the free list are stored together, and so are the places in the ring.

use zerocopy::byteorder::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::VERSION;
use crate::limits::QUEUE_SIZE_MAX;
use crate::memory::{OutOfRegion, RegionId, SharedMemory};

/// What says where the lists begin. The second word of an area.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct Lists {
    pub(super) version: U16,
    pub(super) desc_num: U16,
    pub(super) free_head: U16,
    pub(super) old_free_head: U16,
}

/// Where the ring stands, now and before the last batch. The third word of an area.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct Places {
    pub(super) used_idx: U16,
    pub(super) old_used_idx: U16,
    pub(super) used_wrap: u8,
    pub(super) old_used_wrap: u8,
    padding: [u8; 2],
}

/// What a record says of its lists.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct Links {
    /// 1 in the head of a chain that is under way.
    pub(super) inflight: u8,
    pub(super) padding: u8,
    pub(super) next: U16,
    /// In a head: the last record of its chain, and how many there are.
    pub(super) last: U16,
    pub(super) num: U16,
}

impl Links {
    pub(super) const EMPTY: Self =
        Self { inflight: 0, padding: 0, next: U16::ZERO, last: U16::ZERO, num: U16::ZERO };
}

/// A descriptor as a record keeps it.
//= spec/inflight.md#INF-9
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Saved {
    /// The chain's buffer id, in its last descriptor.
    pub id: U16,
    /// `DESC_*` bits.
    pub flags: U16,
    /// Bytes of the buffer.
    pub len: U32,
    /// Its guest-physical address.
    pub addr: U64,
}

pub(super) const LISTS: u64 = 8;
pub(super) const PLACES: u64 = 16;
const HEADER_BYTES: u64 = 32;
const RECORD_BYTES: u64 = 32;
pub(super) const RECORD_COUNTER: u64 = 8;
pub(super) const RECORD_SAVED: u64 = 16;

/// Bytes that a packed queue of `size` entries takes in a region.
#[must_use]
pub const fn packed_bytes(size: u16) -> u64 {
    (HEADER_BYTES + RECORD_BYTES * size as u64).next_multiple_of(super::ALIGN)
}

/// A place in the ring: an index and the wrap counter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Below the ring's size.
    pub index: u16,
    /// Whether the lap is an odd one, as the first is.
    pub wrap: bool,
}

impl Place {
    /// The place so many entries on, at most one lap.
    #[must_use]
    pub const fn after(self, count: u16, size: u16) -> Self {
        let index = self.index + count;
        if index < size {
            Self { index, wrap: self.wrap }
        } else {
            Self { index: index - size, wrap: !self.wrap }
        }
    }
}

/// One record for each entry of the largest ring.
type PerRecord = [u16; QUEUE_SIZE_MAX as usize];

/// A packed queue's part of the region. The lists are kept here too: what the area says is read
/// once, at the start.
#[derive(Clone, Debug)]
pub struct PackedInflight {
    pub(super) region: RegionId,
    pub(super) offset: u64,
    pub(super) size: u16,
    counter: u64,
    used: Place,
    free_head: u16,
    next: PerRecord,
    /// The last record of the chain that begins with a record.
    last: PerRecord,
    /// The record with which the chain of a buffer id begins.
    head: PerRecord,
    /// The free list as the batch under construction leaves it.
    batch_head: u16,
    /// Of the chain that is being taken: the next record, the one filled last, how many.
    at: u16,
    filled: u16,
    count: u16,
}

impl PackedInflight {
    /// An area of which nothing is known.
    pub(super) const fn new(region: RegionId, offset: u64, size: u16) -> Self {
        let none = [0; QUEUE_SIZE_MAX as usize];
        Self {
            region,
            offset,
            size,
            counter: 0,
            used: Place { index: 0, wrap: true },
            free_head: 0,
            next: none,
            last: none,
            head: none,
            batch_head: 0,
            at: 0,
            filled: 0,
            count: 0,
        }
    }

    /// Takes the lists over, and where the ring stands.
    pub(super) fn begin(&mut self, next: impl Iterator<Item = u16>, free: u16, used: Place) {
        self.next.iter_mut().zip(next).for_each(|(own, next)| *own = next);
        (self.free_head, self.batch_head, self.at) = (free, free, free);
        self.used = used;
    }

    /// Takes a chain over that is under way.
    pub(super) fn take_over(&mut self, id: u16, head: u16, last: u16) {
        self.head[usize::from(id)] = head;
        self.last[usize::from(head)] = last;
    }

    /// Stores what the area begins with, in an order that repeats itself after a kill: until the
    /// places agree, they are compared with the ring again.
    pub(super) fn store(&self, mem: &impl SharedMemory) -> Result<(), OutOfRegion> {
        self.store_lists(mem)?;
        self.store_places(mem, self.used)
    }

    /// The same for an area that nobody has used: the version is believed at once, and comes last.
    pub(super) fn store_fresh(&self, mem: &impl SharedMemory) -> Result<(), OutOfRegion> {
        self.store_places(mem, self.used)?;
        self.store_lists(mem)
    }

    pub(super) const fn record(&self, at: u16) -> u64 {
        self.offset + HEADER_BYTES + RECORD_BYTES * at as u64
    }

    /// Keeps the next descriptor of the chain that is being taken. Nobody believes it before the
    /// chain is [marked](Self::mark).
    ///
    /// # Errors
    /// When the region is gone.
    ///
    /// # Panics
    /// When more descriptors are under way than the ring has.
    pub fn save(&mut self, mem: &impl SharedMemory, saved: &Saved) -> Result<(), OutOfRegion> {
        assert!(self.at < self.size, "a record for each entry");
        mem.write(self.region, self.record(self.at) + RECORD_SAVED, saved)?;
        self.filled = self.at;
        self.at = self.next[usize::from(self.at)];
        self.count += 1;
        Ok(())
    }

    /// Forgets what was kept of a chain that turned out to be none.
    pub const fn abandon(&mut self) {
        (self.at, self.count) = (self.free_head, 0);
    }

    /// Records that the chain whose descriptors were kept is under way. The last store is what
    /// takes its records off the free list.
    ///
    /// # Errors
    /// When the region is gone.
    //= spec/inflight.md#INF-10
    pub fn mark(&mut self, mem: &impl SharedMemory, id: u16) -> Result<(), OutOfRegion> {
        let head = self.free_head;
        self.head[usize::from(id)] = head;
        self.last[usize::from(head)] = self.filled;
        let record = self.record(head);
        mem.write(self.region, record + RECORD_COUNTER, &U64::new(self.counter))?;
        let links = Links {
            inflight: 1,
            padding: 0,
            next: U16::new(self.next[usize::from(head)]),
            last: U16::new(self.filled),
            num: U16::new(self.count),
        };
        mem.write(self.region, record, &links)?;
        self.counter = self.counter.wrapping_add(1);
        self.free_head = self.at;
        (self.batch_head, self.count) = (self.at, 0);
        self.store_lists(mem)
    }

    /// Gives a chain that is submitted again its new number, no larger than the one it had.
    ///
    /// # Errors
    /// When the region is gone.
    pub fn renumber(&mut self, mem: &impl SharedMemory, head: u16) -> Result<(), OutOfRegion> {
        let counter = U64::new(self.counter);
        self.counter = self.counter.wrapping_add(1);
        mem.write(self.region, self.record(head) + RECORD_COUNTER, &counter)
    }

    /// The descriptors of a chain that is submitted again, one by one; each is to be asked for
    /// once. What comes is as hostile as a ring.
    ///
    /// # Errors
    /// When the region is gone.
    pub fn saved(&self, mem: &impl SharedMemory, record: u16) -> Result<Saved, OutOfRegion> {
        mem.read(self.region, self.record(record) + RECORD_SAVED)
    }

    /// The record behind one of the same chain.
    #[must_use]
    pub const fn after(&self, record: u16) -> u16 {
        self.next[record as usize]
    }

    /// Adds a chain to the batch that is about to be given back.
    ///
    /// # Errors
    /// When the region is gone.
    pub fn link(&mut self, mem: &impl SharedMemory, id: u16) -> Result<(), OutOfRegion> {
        let head = self.head[usize::from(id)];
        let last = self.last[usize::from(head)];
        self.next[usize::from(last)] = self.batch_head;
        mem.write(self.region, self.record(last) + 2, &U16::new(self.batch_head))?;
        self.batch_head = head;
        Ok(())
    }

    /// Closes the batch, with which the ring will stand at `used`.
    ///
    /// # Errors
    /// When the region is gone.
    //= spec/inflight.md#INF-11
    pub fn close_batch(&self, mem: &impl SharedMemory, used: Place) -> Result<(), OutOfRegion> {
        self.store_lists(mem)?;
        self.store_places(mem, used)
    }

    /// Takes back a mark, after the descriptor that gives its batch back is visible.
    ///
    /// # Errors
    /// When the region is gone.
    pub fn clear(&self, mem: &impl SharedMemory, id: u16) -> Result<(), OutOfRegion> {
        mem.write(self.region, self.record(self.head[usize::from(id)]), &0_u8)
    }

    /// Settles the batch: the region agrees with the ring again.
    ///
    /// # Errors
    /// When the region is gone.
    //= spec/inflight.md#INF-11
    pub fn settle(&mut self, mem: &impl SharedMemory, used: Place) -> Result<(), OutOfRegion> {
        self.free_head = self.batch_head;
        (self.at, self.used) = (self.free_head, used);
        self.store_lists(mem)?;
        self.store_places(mem, used)
    }

    fn store_lists(&self, mem: &impl SharedMemory) -> Result<(), OutOfRegion> {
        let lists = Lists {
            version: U16::new(VERSION),
            desc_num: U16::new(self.size),
            free_head: U16::new(self.batch_head),
            old_free_head: U16::new(self.free_head),
        };
        mem.write(self.region, self.offset + LISTS, &lists)
    }

    fn store_places(&self, mem: &impl SharedMemory, used: Place) -> Result<(), OutOfRegion> {
        let places = Places {
            used_idx: U16::new(used.index),
            old_used_idx: U16::new(self.used.index),
            used_wrap: used.wrap.into(),
            old_used_wrap: self.used.wrap.into(),
            padding: [0; 2],
        };
        mem.write(self.region, self.offset + PLACES, &places)
    }

    /// Leaves the area as one that nobody has used.
    ///
    /// # Errors
    /// When the region is gone.
    pub fn close(&self, mem: &impl SharedMemory) -> Result<(), OutOfRegion> {
        mem.store_release_u16(self.region, self.offset + LISTS, 0)
    }
}
