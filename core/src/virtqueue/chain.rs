//! Walking a descriptor chain: one pass, each descriptor copied once, everything bounded.

use zerocopy::{FromZeros, IntoBytes};

use super::layout::{DESC_BYTES, DESC_INDIRECT, DESC_NEXT, DESC_WRITE, Descriptor};
use super::{ChainToken, split::SplitRing};
use crate::limits::{QUEUE_SIZE_MAX, SEGMENTS_MAX};
use crate::memory::{MemoryMap, RegionSet, Segment, SharedMemory};

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
    /// Segments that the device may write, behind the readable ones.
    pub writable: u16,
    /// Bytes in the readable segments.
    pub readable_bytes: u64,
    /// Bytes in the writable segments.
    pub writable_bytes: u64,
    /// The regions they lie in.
    pub regions: RegionSet,
    /// The last byte that the device may write: a request's status. `None` when the walk did not
    /// reach the end, or when that byte is nowhere.
    pub last_writable: Option<Segment>,
    /// The first thing that was wrong.
    pub fault: Option<ChainFault>,
}

/// Where the next descriptor comes from.
enum Table {
    Ring,
    /// A table that lies in one piece.
    Indirect(Segment),
    /// A table that crosses a border between regions.
    Scattered(u64),
}

/// Follows the chain that begins with `first`, the copy of the descriptor at the chain's head.
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
    let mut chain = Chain {
        token: ChainToken(u32::from(head)),
        readable: 0,
        writable: 0,
        readable_bytes: 0,
        writable_bytes: 0,
        regions: RegionSet::EMPTY,
        last_writable: None,
        fault: None,
    };
    let mut descriptor = first;
    let mut table = Table::Ring;
    let mut entries = ring.size();
    let mut steps = 1;
    loop {
        let flags = descriptor.flags.get();
        if flags & DESC_INDIRECT != 0 && matches!(table, Table::Ring) {
            if flags & DESC_NEXT != 0 {
                chain.note(ChainFault::Nested);
            }
            let Some((inner, count)) = open_indirect(map, &descriptor) else {
                return chain.cut(ChainFault::BadIndirect);
            };
            (table, entries, steps) = (inner, count, 1);
            let Some(first) = read_entry(mem, map, ring, &table, 0) else {
                return chain.cut(ChainFault::BadIndirect);
            };
            descriptor = first;
            continue;
        }
        if flags & DESC_INDIRECT != 0 {
            chain.note(ChainFault::Nested);
        } else {
            chain.add(map, &descriptor, segments);
        }
        if flags & DESC_NEXT == 0 {
            break;
        }
        let next = descriptor.next.get();
        if next >= entries {
            return chain.cut(ChainFault::BadNext);
        }
        if steps == entries {
            return chain.cut(ChainFault::Loop);
        }
        steps += 1;
        let Some(entry) = read_entry(mem, map, ring, &table, next) else {
            return chain.cut(ChainFault::OutOfMemory);
        };
        descriptor = entry;
    }
    if chain.readable_bytes + chain.writable_bytes > u64::from(u32::MAX) {
        chain.note(ChainFault::TooLong);
    }
    chain
}

impl Chain {
    fn note(&mut self, fault: ChainFault) {
        self.fault.get_or_insert(fault);
    }

    /// Ends the walk before the end of the chain: where its status byte is cannot be known.
    fn cut(mut self, fault: ChainFault) -> Self {
        self.note(fault);
        self.last_writable = None;
        self
    }

    /// Adds one buffer, in as many segments as regions it lies in. Empty buffers count for
    /// nothing: their address is never looked at.
    #[inline]
    fn add(
        &mut self,
        map: &MemoryMap,
        descriptor: &Descriptor,
        segments: &mut [Segment; SEGMENTS_MAX],
    ) {
        let (mut addr, mut rest) = (descriptor.addr.get(), descriptor.len.get());
        if rest == 0 {
            return;
        }
        let writable = descriptor.flags.get() & DESC_WRITE != 0;
        if writable {
            self.writable_bytes += u64::from(rest);
        } else {
            self.readable_bytes += u64::from(rest);
            if self.writable_bytes > 0 {
                self.note(ChainFault::Order);
            }
        }
        while rest > 0 {
            let Some(place) = map.translate(addr, rest) else {
                self.note(ChainFault::OutOfMemory);
                if writable {
                    self.last_writable = None;
                }
                return;
            };
            let segment = place.segment;
            self.regions = self.regions.union(place.region);
            if let Some(free) = segments.get_mut(usize::from(self.readable + self.writable)) {
                *free = segment;
                if writable {
                    self.writable += 1;
                } else {
                    self.readable += 1;
                }
            } else {
                self.note(ChainFault::TooLong);
            }
            if writable {
                let last = segment.offset + u64::from(segment.len) - 1;
                self.last_writable = Some(Segment::new(segment.region(), last, 1));
            }
            addr = addr.wrapping_add(u64::from(segment.len));
            rest -= segment.len;
        }
    }
}

/// Finds an indirect table and its number of entries.
fn open_indirect(map: &MemoryMap, descriptor: &Descriptor) -> Option<(Table, u16)> {
    let (addr, len) = (descriptor.addr.get(), descriptor.len.get());
    if len == 0 || !u64::from(len).is_multiple_of(DESC_BYTES) {
        return None;
    }
    let count = u16::try_from(u64::from(len) / DESC_BYTES).ok()?;
    if count > QUEUE_SIZE_MAX {
        return None;
    }
    let start = map.translate(addr, len)?.segment;
    let table = if start.len == len { Table::Indirect(start) } else { Table::Scattered(addr) };
    Some((table, count))
}

#[inline]
fn read_entry(
    mem: &impl SharedMemory,
    map: &MemoryMap,
    ring: &SplitRing,
    table: &Table,
    index: u16,
) -> Option<Descriptor> {
    let at = DESC_BYTES * u64::from(index);
    match table {
        Table::Ring => ring.descriptor(mem, index).ok(),
        Table::Indirect(start) => mem.read(start.region(), start.offset + at).ok(),
        Table::Scattered(addr) => {
            let mut descriptor = Descriptor::new_zeroed();
            for (step, byte) in (at..at + DESC_BYTES).zip(descriptor.as_mut_bytes()) {
                let place = map.translate(addr.checked_add(step)?, 1)?.segment;
                *byte = mem.read(place.region(), place.offset).ok()?;
            }
            Some(descriptor)
        }
    }
}
