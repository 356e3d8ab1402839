//! Walking a descriptor chain: one pass, each descriptor copied once, everything bounded.

use zerocopy::IntoBytes;
use zerocopy::byteorder::little_endian::U32;

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
    /// Segments in all; those that the device may write are behind the readable ones.
    pub count: u16,
    /// Bytes in the readable segments.
    pub readable_bytes: u64,
    /// Bytes in the writable segments.
    pub writable_bytes: u64,
    /// The regions they lie in.
    pub regions: RegionSet,
    /// The segment whose last byte is the last that the device may write: a request's status.
    /// `None` when the walk did not reach the end, or when that byte is nowhere.
    pub last_writable: Option<Segment>,
    /// The first thing that was wrong.
    pub fault: Option<ChainFault>,
}

/// The descriptors of one chain, copied. Working space of [`walk`].
#[derive(Clone, Debug)]
pub struct Links {
    copies: [Descriptor; SEGMENTS_MAX],
    count: usize,
    /// The first thing that was wrong.
    fault: Option<ChainFault>,
    /// Whether the end of the chain was reached.
    whole: bool,
}

impl Links {
    /// Space for one chain.
    pub const EMPTY: Self =
        Self { copies: [Descriptor::EMPTY; SEGMENTS_MAX], count: 0, fault: None, whole: false };
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
    links: &mut Links,
    segments: &mut [Segment; SEGMENTS_MAX],
) -> Chain {
    links.copy(mem, map, ring, first);
    let mut chain = Chain {
        token: ChainToken(u32::from(head)),
        readable: 0,
        count: 0,
        readable_bytes: 0,
        writable_bytes: 0,
        regions: RegionSet::EMPTY,
        last_writable: None,
        fault: links.fault,
    };
    for descriptor in &links.copies[..links.count] {
        chain.add(map, descriptor, segments);
    }
    if chain.readable_bytes + chain.writable_bytes > u64::from(u32::MAX) {
        chain.note(ChainFault::TooLong);
    }
    if !links.whole {
        // Where the status byte is cannot be known.
        chain.last_writable = None;
    }
    chain
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

impl Links {
    /// Copies the descriptors of a chain, each once, in their order.
    #[inline]
    fn copy(
        &mut self,
        mem: &impl SharedMemory,
        map: &MemoryMap,
        ring: &SplitRing,
        first: Descriptor,
    ) {
        (self.count, self.fault) = (0, None);
        let mut end =
            self.follow::<true>(first, ring.size(), |index| ring.descriptor(mem, index).ok());
        if let End::Table(outer) = end {
            end = self.follow_table(mem, map, &outer);
        }
        self.whole = match end {
            End::Whole => true,
            End::Table(_) => false,
            End::Cut(fault) => {
                self.note(fault);
                false
            }
        };
    }

    /// Follows the links of one table of so many entries, in which descriptors may stand for
    /// `TABLES` or not.
    #[inline]
    fn follow<const TABLES: bool>(
        &mut self,
        first: Descriptor,
        entries: u16,
        read: impl Fn(u16) -> Option<Descriptor>,
    ) -> End {
        let mut descriptor = first;
        for _ in 0..entries {
            let flags = descriptor.flags.get();
            if flags & DESC_INDIRECT != 0 && TABLES {
                return End::Table(descriptor);
            }
            match self.copies.get_mut(self.count) {
                _ if flags & DESC_INDIRECT != 0 => self.note(ChainFault::Nested),
                // Empty buffers count for nothing: their address is never looked at.
                _ if descriptor.len == U32::ZERO => {}
                Some(copy) => {
                    *copy = descriptor;
                    self.count += 1;
                }
                None => self.overflow(descriptor),
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
    fn follow_table(
        &mut self,
        mem: &impl SharedMemory,
        map: &MemoryMap,
        outer: &Descriptor,
    ) -> End {
        if outer.flags.get() & DESC_NEXT != 0 {
            self.note(ChainFault::Nested);
        }
        let (addr, len) = (outer.addr.get(), outer.len.get());
        let count = u16::try_from(u64::from(len) / DESC_BYTES).unwrap_or(u16::MAX);
        let sound =
            u64::from(len).is_multiple_of(DESC_BYTES) && (1..=QUEUE_SIZE_MAX).contains(&count);
        let Some(start) = map.translate(addr, len).filter(|_| sound) else {
            return End::Cut(ChainFault::BadIndirect);
        };
        let start = start.segment;
        if start.len == len {
            let read = |index| {
                let at = start.offset + DESC_BYTES * u64::from(index);
                mem.read(start.region(), at).ok()
            };
            let Some(first) = read(0) else { return End::Cut(ChainFault::BadIndirect) };
            self.follow::<false>(first, count, read)
        } else {
            let read = |index| read_scattered(mem, map, addr, index);
            let Some(first) = read(0) else { return End::Cut(ChainFault::BadIndirect) };
            self.follow::<false>(first, count, read)
        }
    }

    /// The chain is too long to be carried out; its last descriptor is still of interest.
    #[cold]
    fn overflow(&mut self, descriptor: Descriptor) {
        self.note(ChainFault::TooLong);
        self.copies[SEGMENTS_MAX - 1] = descriptor;
    }

    #[cold]
    fn note(&mut self, fault: ChainFault) {
        self.fault.get_or_insert(fault);
    }
}

/// Copies an entry of a table that crosses a border between regions.
fn read_scattered(
    mem: &impl SharedMemory,
    map: &MemoryMap,
    table: u64,
    index: u16,
) -> Option<Descriptor> {
    let mut descriptor = Descriptor::EMPTY;
    let at = DESC_BYTES * u64::from(index);
    for (step, byte) in (at..at + DESC_BYTES).zip(descriptor.as_mut_bytes()) {
        let place = map.translate(table.checked_add(step)?, 1)?.segment;
        *byte = mem.read(place.region(), place.offset).ok()?;
    }
    Some(descriptor)
}

impl Chain {
    #[cold]
    fn note(&mut self, fault: ChainFault) {
        self.fault.get_or_insert(fault);
    }

    /// A buffer is not in memory. If it is the last one, the status byte is nowhere.
    #[cold]
    fn lose(&mut self, writable: bool) {
        self.note(ChainFault::OutOfMemory);
        if writable {
            self.last_writable = None;
        }
    }

    /// Adds one buffer, which is not empty, in as many segments as regions it lies in.
    #[inline]
    fn add(
        &mut self,
        map: &MemoryMap,
        descriptor: &Descriptor,
        segments: &mut [Segment; SEGMENTS_MAX],
    ) {
        let (mut addr, mut rest) = (descriptor.addr.get(), descriptor.len.get());
        let writable = descriptor.flags.get() & DESC_WRITE != 0;
        if writable {
            self.writable_bytes += u64::from(rest);
        } else {
            self.readable_bytes += u64::from(rest);
            if self.writable_bytes > 0 {
                self.note(ChainFault::Order);
            }
        }
        loop {
            let Some(place) = map.translate(addr, rest) else {
                return self.lose(writable);
            };
            let segment = place.segment;
            self.regions = self.regions.union(place.region);
            match segments.get_mut(usize::from(self.count)) {
                Some(free) => {
                    *free = segment;
                    self.count += 1;
                }
                None => self.note(ChainFault::TooLong),
            }
            if writable {
                self.last_writable = Some(segment);
            } else {
                self.readable = self.count;
            }
            if segment.len == rest {
                return;
            }
            let Some(next) = addr.checked_add(u64::from(segment.len)) else {
                return self.lose(writable);
            };
            addr = next;
            rest -= segment.len;
        }
    }
}
