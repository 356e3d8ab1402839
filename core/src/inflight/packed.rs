//! The area of a packed queue, whose ring forgets what it has made available.
//!
//! Used descriptors overwrite available ones, so the area keeps a copy of each descriptor of a
//! chain. Records form lists: one of those that are free, and one for each chain, which begins
//! with the chain's head record. A list becomes a chain, or free again, by a single store: the
//! heads of the free list are stored together, and so are the places in the ring.

mod recover;

pub use recover::{PackedState, Resumed, resume};

use zerocopy::byteorder::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::{VERSION, VERSION_AT};
use crate::limits::QUEUE_SIZE_MAX;
use crate::memory::{OutOfRegion, RegionId, SharedMemory};
use crate::planted::{Fault, planted};
use crate::virtqueue::ChainToken;
use crate::virtqueue::layout::PackedDescriptor;
use crate::virtqueue::packed::{Position, parts};

/// What says where the lists begin. The second word of an area.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct Lists {
    version: U16,
    desc_num: U16,
    free_head: U16,
    old_free_head: U16,
}

/// Where the ring stands, now and before the last batch. The third word of an area.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct Places {
    used_idx: U16,
    old_used_idx: U16,
    used_wrap: u8,
    old_used_wrap: u8,
    padding: [u8; 2],
}

/// What a record says of its lists.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct Links {
    /// 1 in the head of a chain that is under way.
    inflight: u8,
    padding: u8,
    next: U16,
    /// In a head: the last record of its chain, and how many there are.
    last: U16,
    num: U16,
}

impl Links {
    const EMPTY: Self =
        Self { inflight: 0, padding: 0, next: U16::ZERO, last: U16::ZERO, num: U16::ZERO };
}

/// A descriptor as a record keeps it.
//= spec/inflight.md#INF-9
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct Saved {
    id: U16,
    flags: U16,
    len: U32,
    addr: U64,
}

const LISTS: u64 = 8;
const PLACES: u64 = 16;
const HEADER_BYTES: u64 = 32;
const RECORD_BYTES: u64 = 32;
const RECORD_NEXT: u64 = 2;
const RECORD_COUNTER: u64 = 8;
const RECORD_SAVED: u64 = 16;

/// Bytes of the area of a queue of `size` entries.
pub(super) const fn bytes(size: u16) -> u64 {
    HEADER_BYTES + RECORD_BYTES * size as u64
}

/// One record for each entry of the largest ring.
type PerRecord = [u16; QUEUE_SIZE_MAX as usize];

/// A packed queue's part of the region. The lists are kept here too: what the area says is read
/// once, at the start.
#[derive(Clone, Debug)]
pub struct PackedInflight {
    region: RegionId,
    offset: u64,
    size: u16,
    counter: u64,
    /// Where the free list begins, and where the ring stands.
    free_head: u16,
    used: Position,
    /// Both as the batch under construction leaves them.
    batch_head: u16,
    batch_used: Position,
    next: PerRecord,
    /// The last record of the chain that begins with a record.
    last: PerRecord,
    /// The record with which the chain of a buffer id begins.
    head: PerRecord,
    /// Of the chain that is being taken: the next record, the one filled last, how many.
    at: u16,
    filled: u16,
    count: u16,
}

impl PackedInflight {
    /// An area of which nothing is known.
    const fn new(region: RegionId, offset: u64, size: u16) -> Self {
        let none = [0; QUEUE_SIZE_MAX as usize];
        Self {
            region,
            offset,
            size,
            counter: 0,
            free_head: 0,
            used: Position::START,
            batch_head: 0,
            batch_used: Position::START,
            next: none,
            last: none,
            head: none,
            at: 0,
            filled: 0,
            count: 0,
        }
    }

    /// Takes the lists over, and where the ring stands.
    fn begin(&mut self, next: impl Iterator<Item = u16>, free: u16, used: Position) {
        self.next.iter_mut().zip(next).for_each(|(own, next)| *own = next);
        (self.free_head, self.batch_head, self.at) = (free, free, free);
        (self.used, self.batch_used) = (used, used);
    }

    /// Where it begins.
    pub(super) const fn place(&self) -> (RegionId, u64) {
        (self.region, self.offset)
    }

    const fn record(&self, at: u16) -> u64 {
        self.offset + HEADER_BYTES + RECORD_BYTES * at as u64
    }

    fn chain_head(&self, token: ChainToken) -> u16 {
        self.head[usize::from(parts(token).0)]
    }

    /// Keeps the next descriptor of the chain that is being taken. Nobody believes it before the
    /// chain is [marked](Self::mark).
    ///
    /// # Errors
    /// When the region is gone.
    ///
    /// # Panics
    /// When more descriptors are under way than the ring has.
    #[inline]
    pub fn save(
        &mut self,
        mem: &impl SharedMemory,
        descriptor: &PackedDescriptor,
    ) -> Result<(), OutOfRegion> {
        assert!(self.at < self.size, "a record for each entry");
        let PackedDescriptor { addr, len, id, flags } = *descriptor;
        let saved = Saved { id, flags, len, addr };
        if self.count == 0 || !planted(Fault::RowUnkept) {
            mem.write(self.region, self.record(self.at) + RECORD_SAVED, &saved)?;
        }
        self.filled = self.at;
        self.at = self.next[usize::from(self.at)];
        self.count += 1;
        Ok(())
    }

    /// Records that a chain was taken: the one whose descriptors were kept, or, when there are
    /// none, one that an earlier daemon had taken and that has its records. The last store is what
    /// takes records off the free list.
    ///
    /// # Errors
    /// When the region is gone.
    //= spec/inflight.md#INF-10
    #[inline]
    pub fn mark(&mut self, mem: &impl SharedMemory, token: ChainToken) -> Result<(), OutOfRegion> {
        let again = self.count == 0;
        let head = if again { self.chain_head(token) } else { self.free_head };
        let record = self.record(head);
        let cut = if planted(Fault::CounterCutPacked) { 0xffff } else { u64::MAX };
        mem.write(self.region, record + RECORD_COUNTER, &U64::new(self.counter & cut))?;
        self.counter = self.counter.wrapping_add(1);
        if again {
            return Ok(());
        }
        let links = Links {
            inflight: 1,
            padding: 0,
            next: U16::new(self.next[usize::from(head)]),
            last: U16::new(self.filled),
            num: U16::new(self.count),
        };
        self.head[usize::from(parts(token).0)] = head;
        self.last[usize::from(head)] = self.filled;
        self.count = 0;
        (self.free_head, self.batch_head) = (self.at, self.at);
        if planted(Fault::ListedFirst) {
            self.store_lists(mem)?;
        }
        mem.write(self.region, record, &links)?;
        self.store_lists(mem)
    }

    /// One descriptor of a chain that is taken again, as hostile as the ring's own; each is to be
    /// asked for once, and its id was checked before.
    ///
    /// # Errors
    /// When the region is gone.
    pub fn saved(
        &self,
        mem: &impl SharedMemory,
        record: u16,
    ) -> Result<PackedDescriptor, OutOfRegion> {
        let Saved { id, flags, len, addr } =
            mem.read(self.region, self.record(record) + RECORD_SAVED)?;
        Ok(PackedDescriptor { addr, len, id, flags })
    }

    /// The records of a chain that is under way, in their order.
    pub fn chain(&self, id: u16) -> impl Iterator<Item = u16> + use<'_> {
        let head = self.head[usize::from(id)];
        let last = self.last[usize::from(head)];
        let next = move |&at: &u16| (at != last).then(|| self.next[usize::from(at)]);
        core::iter::successors(Some(head), next)
    }

    /// Adds a chain to the batch that is about to be given back: its records go before the free
    /// list, and the ring will stand behind its entries.
    ///
    /// # Errors
    /// When the region is gone.
    #[inline]
    pub fn link(&mut self, mem: &impl SharedMemory, token: ChainToken) -> Result<(), OutOfRegion> {
        let head = self.chain_head(token);
        let last = self.last[usize::from(head)];
        self.next[usize::from(last)] = self.batch_head;
        mem.write(self.region, self.record(last) + RECORD_NEXT, &U16::new(self.batch_head))?;
        self.batch_head = head;
        self.batch_used = self.batch_used.after(parts(token).1, self.size);
        Ok(())
    }

    /// Closes the batch: from here on it was given back if the descriptor at the old place is
    /// used.
    ///
    /// # Errors
    /// When the region is gone.
    //= spec/inflight.md#INF-11
    #[inline]
    pub fn close_batch(&self, mem: &impl SharedMemory) -> Result<(), OutOfRegion> {
        self.store(mem)
    }

    /// Takes back a mark, after the descriptor that gives its batch back is visible.
    ///
    /// # Errors
    /// When the region is gone.
    #[inline]
    pub fn clear(&self, mem: &impl SharedMemory, token: ChainToken) -> Result<(), OutOfRegion> {
        mem.write(self.region, self.record(self.chain_head(token)), &0_u8)
    }

    /// Settles the batch: the region agrees with the ring again.
    ///
    /// # Errors
    /// When the region is gone.
    //= spec/inflight.md#INF-11
    #[inline]
    pub fn settle(&mut self, mem: &impl SharedMemory) -> Result<(), OutOfRegion> {
        (self.free_head, self.used) = (self.batch_head, self.batch_used);
        self.at = self.free_head;
        self.store(mem)
    }

    /// Stores what the area begins with, in an order that repeats itself after a kill: until the
    /// places agree, they are compared with the ring again.
    fn store(&self, mem: &impl SharedMemory) -> Result<(), OutOfRegion> {
        self.store_lists(mem)?;
        self.store_places(mem)
    }

    /// The same for an area that nobody has used: the version is believed at once, and comes last.
    fn store_fresh(&self, mem: &impl SharedMemory) -> Result<(), OutOfRegion> {
        self.store_places(mem)?;
        self.store_lists(mem)
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

    fn store_places(&self, mem: &impl SharedMemory) -> Result<(), OutOfRegion> {
        let places = Places {
            used_idx: U16::new(self.batch_used.index()),
            old_used_idx: U16::new(self.used.index()),
            used_wrap: self.batch_used.wrap().into(),
            old_used_wrap: self.used.wrap().into(),
            padding: [0; 2],
        };
        mem.write(self.region, self.offset + PLACES, &places)
    }
}

const _: () = assert!(LISTS == VERSION_AT);
const _: () = assert!(size_of::<Links>() as u64 == RECORD_COUNTER);
const _: () = assert!(RECORD_SAVED + size_of::<Saved>() as u64 == RECORD_BYTES);

#[cfg(test)]
mod tests;
