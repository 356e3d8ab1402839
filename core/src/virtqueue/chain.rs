//! Walking a descriptor chain: one pass, each descriptor copied once, everything bounded.

mod packed;

pub use packed::take_packed;

use zerocopy::{FromBytes, IntoBytes};

use super::layout::{DESC_BYTES, DESC_INDIRECT, DESC_NEXT, DESC_WRITE, Descriptor};
use super::{ChainToken, split::SplitRing};
use crate::limits::{QUEUE_SIZE_MAX, SEGMENTS_MAX};
use crate::memory::{MemoryMap, Place, RegionSet, Segment, SharedMemory};

/// What is wrong with a chain. The request fails; the queue goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum ChainFault {
    /// More descriptors than the table has: a loop.
    Loop,
    /// `next` points outside the table.
    BadNext,
    /// An indirect table of a length that is no table, or too long, or outside memory.
    BadIndirect,
    /// An indirect descriptor where none is allowed: inside a table, or with `next` set.
    Nested,
    /// A buffer outside the guest's memory.
    OutOfMemory,
    /// A buffer to read behind one to write.
    Order,
    /// More segments than a request may have, or 4 GiB and more.
    TooLong,
}

/// A chain after the walk. Its segments lie in the array lent to [`walk`], those to read first.
#[derive(Clone, Copy, Debug)]
pub struct Chain {
    /// For giving the chain back.
    pub token: ChainToken,
    /// Segments that the device may read.
    pub readable: u16,
    /// Segments in all; those that the device may write are behind the readable ones.
    pub count: u16,
    /// Bytes in the readable segments.
    pub readable_bytes: u64,
    /// Bytes in the writable segments.
    pub writable_bytes: u64,
    /// The regions they lie in.
    pub regions: RegionSet,
    /// Whether the last segment is writable and ends with the last byte that the device may write,
    /// a request's status. `false` when the walk did not reach the end, or when that byte is
    /// nowhere.
    pub answerable: bool,
    /// The first thing that was wrong.
    pub fault: Option<ChainFault>,
}

impl Chain {
    /// The segment whose last byte is the last that the device may write: a request's status.
    #[inline]
    pub(crate) fn last_writable(&self, segments: &[Segment; SEGMENTS_MAX]) -> Option<Segment> {
        let last = usize::from(self.count).checked_sub(1).filter(|_| self.answerable)?;
        segments.get(last).copied()
    }
}

/// Follows the chain that begins with `first`, the copy of the descriptor at the chain's head,
/// and finds its buffers in memory.
///
/// Nothing a driver writes makes this fail or run on: the number of steps is bounded by the
/// table, faults are noted, and the walk goes on where that is possible so that the place of the
/// status byte is known.
//= spec/virtqueue.md#VQ-6
//= spec/virtqueue.md#VQ-7
//= spec/virtqueue.md#VQ-8
#[inline]
pub fn walk(
    mem: &impl SharedMemory,
    map: &MemoryMap,
    ring: &SplitRing,
    head: u16,
    first: Descriptor,
    segments: &mut [Segment; SEGMENTS_MAX],
) -> Chain {
    let mut walk = Walk::new(map, segments);
    let mut end = walk.follow::<true>(first, ring.size(), |index| ring.descriptor(mem, index).ok());
    if let End::Table(outer) = end {
        end = walk.follow_table(mem, &outer);
    }
    walk.finish(ChainToken(u32::from(head)), end)
}

/// A walk under way: what a [`Chain`] is made of.
struct Walk<'a> {
    map: &'a MemoryMap,
    segments: &'a mut [Segment; SEGMENTS_MAX],
    readable: u16,
    count: u16,
    readable_bytes: u64,
    writable_bytes: u64,
    regions: RegionSet,
    answerable: bool,
    fault: Option<ChainFault>,
}

/// How following a table's links ended.
enum End {
    /// At the end of the chain.
    Whole,
    /// At a descriptor that stands for a table.
    Table(Descriptor),
    /// Before the end.
    Cut(ChainFault),
}

/// An indirect table whose extent makes sense.
struct Table {
    addr: u64,
    count: u16,
    /// Where it begins, if it lies in one piece.
    whole: Option<Segment>,
}

impl<'a> Walk<'a> {
    #[inline(always)]
    const fn new(map: &'a MemoryMap, segments: &'a mut [Segment; SEGMENTS_MAX]) -> Self {
        Self {
            map,
            segments,
            readable: 0,
            count: 0,
            readable_bytes: 0,
            writable_bytes: 0,
            regions: RegionSet::EMPTY,
            answerable: false,
            fault: None,
        }
    }

    /// The chain, when its descriptors have ended like this.
    #[inline(always)]
    fn finish(mut self, token: ChainToken, end: End) -> Chain {
        if let End::Cut(fault) = end {
            self.cut(fault);
        }
        if self.readable_bytes + self.writable_bytes > u64::from(u32::MAX) {
            self.note(ChainFault::TooLong);
        }
        Chain {
            token,
            readable: self.readable,
            count: self.count,
            readable_bytes: self.readable_bytes,
            writable_bytes: self.writable_bytes,
            regions: self.regions,
            answerable: self.answerable,
            fault: self.fault,
        }
    }

    /// Follows the links of one table of so many entries, in which descriptors may stand for
    /// `TABLES` or not.
    #[inline(always)]
    fn follow<const TABLES: bool>(
        &mut self,
        first: Descriptor,
        entries: u16,
        read: impl Fn(u16) -> Option<Descriptor>,
    ) -> End {
        let mut descriptor = first;
        for _ in 0..entries {
            let flags = descriptor.flags.get();
            if flags & DESC_INDIRECT == 0 {
                self.add(descriptor.addr.get(), descriptor.len.get(), flags & DESC_WRITE != 0);
            } else if TABLES {
                return End::Table(descriptor);
            } else {
                self.note(ChainFault::Nested);
            }
            if flags & DESC_NEXT == 0 {
                return End::Whole;
            }
            let next = descriptor.next.get();
            if next >= entries {
                return End::Cut(ChainFault::BadNext);
            }
            let Some(entry) = read(next) else { return End::Cut(ChainFault::OutOfMemory) };
            descriptor = entry;
        }
        End::Cut(ChainFault::Loop)
    }

    /// Follows the links of an indirect table.
    #[inline(never)]
    fn follow_table(&mut self, mem: &impl SharedMemory, outer: &Descriptor) -> End {
        if outer.flags.get() & DESC_NEXT != 0 {
            self.note(ChainFault::Nested);
        }
        let Some(table) = self.find_table(outer.addr.get(), outer.len.get()) else {
            return End::Cut(ChainFault::BadIndirect);
        };
        let map = self.map;
        let read = |index| table.entry::<Descriptor>(mem, map, index);
        let Some(first) = read(0) else { return End::Cut(ChainFault::BadIndirect) };
        self.follow::<false>(first, table.count, read)
    }

    /// An indirect table of `len` bytes at a guest address, unless it is none.
    #[inline]
    fn find_table(&self, addr: u64, len: u32) -> Option<Table> {
        let count = u16::try_from(u64::from(len) / DESC_BYTES).ok()?;
        let sound =
            u64::from(len).is_multiple_of(DESC_BYTES) && (1..=QUEUE_SIZE_MAX).contains(&count);
        let start = self.map.translate(addr, len).filter(|_| sound)?.segment;
        Some(Table { addr, count, whole: (start.len == len).then_some(start) })
    }

    /// Adds one buffer. An empty one counts for nothing: its address is never looked at. So does
    /// one to read behind one to write, but for the fault.
    //= spec/virtqueue.md#VQ-9
    #[inline(always)]
    fn add(&mut self, addr: u64, len: u32, writable: bool) {
        if len == 0 {
            return;
        }
        if writable {
            self.writable_bytes += u64::from(len);
        } else if self.writable_bytes == 0 {
            self.readable_bytes += u64::from(len);
        } else {
            self.note(ChainFault::Order);
            return;
        }
        match self.map.translate(addr, len) {
            Some(place) if place.segment.len == len => self.push(place, writable),
            _ => self.add_pieces(addr, len, writable),
        }
    }

    /// Adds a buffer that lies in several regions, or partly in none.
    #[cold]
    fn add_pieces(&mut self, mut addr: u64, mut rest: u32, writable: bool) {
        while let Some(place) = self.map.translate(addr, rest) {
            self.push(place, writable);
            rest -= place.segment.len;
            if rest == 0 {
                return;
            }
            let Some(next) = addr.checked_add(u64::from(place.segment.len)) else { break };
            addr = next;
        }
        self.note(ChainFault::OutOfMemory);
        if writable {
            // If it is the last one, the status byte is nowhere.
            self.answerable = false;
        }
    }

    #[inline(always)]
    fn push(&mut self, place: Place, writable: bool) {
        self.regions = self.regions.union(place.region);
        match self.segments.get_mut(usize::from(self.count)) {
            Some(free) => {
                *free = place.segment;
                self.count += 1;
            }
            None => {
                // The last one stays the last.
                self.segments[SEGMENTS_MAX - 1] = place.segment;
                self.note(ChainFault::TooLong);
            }
        }
        if writable {
            self.answerable = true;
        } else {
            self.readable = self.count;
        }
    }

    /// Ends the walk before the end of the chain: where its status byte is cannot be known.
    #[cold]
    fn cut(&mut self, fault: ChainFault) {
        self.note(fault);
        self.answerable = false;
    }

    #[cold]
    fn note(&mut self, fault: ChainFault) {
        self.fault.get_or_insert(fault);
    }
}

impl Table {
    /// Copies an entry.
    #[inline(always)]
    fn entry<D: FromBytes + IntoBytes>(
        &self,
        mem: &impl SharedMemory,
        map: &MemoryMap,
        index: u16,
    ) -> Option<D> {
        let at = DESC_BYTES * u64::from(index);
        match self.whole {
            Some(start) => mem.read(start.region(), start.offset + at).ok(),
            None => self.scattered_entry(mem, map, at),
        }
    }

    /// Copies an entry of a table that crosses a border between regions.
    #[cold]
    fn scattered_entry<D: FromBytes + IntoBytes>(
        &self,
        mem: &impl SharedMemory,
        map: &MemoryMap,
        at: u64,
    ) -> Option<D> {
        let mut descriptor = D::new_zeroed();
        for (step, byte) in (at..at + DESC_BYTES).zip(descriptor.as_mut_bytes()) {
            let place = map.translate(self.addr.checked_add(step)?, 1)?.segment;
            *byte = mem.read(place.region(), place.offset).ok()?;
        }
        Some(descriptor)
    }
}
