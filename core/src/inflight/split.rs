//! The area of a split queue: a mark and a number for each head that is under way.

mod recover;

pub use recover::{RingState, resume};

use zerocopy::byteorder::little_endian::{U16, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::{VERSION, VERSION_AT};
use crate::memory::{OutOfRegion, RegionId, SharedMemory};
use crate::planted::{Fault, planted};
use crate::virtqueue::ChainToken;

/// What stands before the records of one queue.
//= spec/inflight.md#INF-3
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct QueueRegion {
    /// No feature is defined.
    pub features: U64,
    /// 1; 0 in a region nobody has used.
    pub version: U16,
    /// Records that follow.
    pub desc_num: U16,
    /// Head of the list of the chains that were given back together last.
    pub last_batch_head: U16,
    /// The used index up to which records are settled.
    pub used_idx: U16,
}

/// One record; its place is the chain's head.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Record {
    /// 1 while the chain is under way.
    pub inflight: u8,
    /// Not used.
    pub padding: [u8; 5],
    /// The next head of a batch.
    pub next: U16,
    /// Counts the chains in the order they were taken.
    pub counter: U64,
}

impl Record {
    /// A record of nothing.
    const EMPTY: Self = Self { inflight: 0, padding: [0; 5], next: U16::ZERO, counter: U64::ZERO };
}

const HEADER_BYTES: u64 = size_of::<QueueRegion>() as u64;
const RECORD_BYTES: u64 = size_of::<Record>() as u64;
const DESC_NUM: u64 = 10;
const LAST_BATCH_HEAD: u64 = 12;
const USED_IDX: u64 = 14;
const RECORD_NEXT: u64 = 6;
const RECORD_COUNTER: u64 = 8;

/// Bytes of the area of a queue of `size` entries.
pub(super) const fn bytes(size: u16) -> u64 {
    HEADER_BYTES + RECORD_BYTES * size as u64
}

/// A split queue's part of the region.
#[derive(Clone, Copy, Debug)]
pub struct SplitInflight {
    region: RegionId,
    offset: u64,
    counter: u64,
    /// The batch that [`link`](Self::link) is building.
    batch_head: u16,
}

impl SplitInflight {
    /// Opens an area whose marks are cleared: settled up to `used_idx`, nothing under way. Its
    /// version is stored last: until then nobody believes the rest.
    //= spec/inflight.md#INF-6
    fn open(&self, mem: &impl SharedMemory, size: u16, used_idx: u16) -> Result<(), OutOfRegion> {
        mem.write(self.region, self.offset, &U64::ZERO)?;
        mem.write(self.region, self.offset + DESC_NUM, &U16::new(size))?;
        mem.write(self.region, self.offset + LAST_BATCH_HEAD, &U16::ZERO)?;
        self.settle(mem, used_idx)?;
        mem.store_release_u16(self.region, self.offset + VERSION_AT, VERSION)
    }

    /// Where it begins.
    pub(super) const fn place(&self) -> (RegionId, u64) {
        (self.region, self.offset)
    }

    fn record(&self, token: ChainToken) -> u64 {
        self.offset + HEADER_BYTES + RECORD_BYTES * u64::from(token.0)
    }

    /// Records that a chain was taken: its number first, so that a set mark always has one.
    ///
    /// # Errors
    /// When the region is gone.
    //= spec/inflight.md#INF-4
    #[inline]
    pub fn mark(&mut self, mem: &impl SharedMemory, token: ChainToken) -> Result<(), OutOfRegion> {
        let record = self.record(token);
        let cut = if planted(Fault::CounterCut) { 0xffff } else { u64::MAX };
        let counter = U64::new(self.counter & cut);
        if planted(Fault::MarkBeforeCounter) {
            mem.write(self.region, record, &1_u8)?;
        }
        mem.write(self.region, record + RECORD_COUNTER, &counter)?;
        mem.write(self.region, record, &1_u8)?;
        self.counter = self.counter.wrapping_add(1);
        Ok(())
    }

    /// Adds a chain to the batch that is about to be given back.
    ///
    /// # Errors
    /// When the region is gone.
    #[inline]
    pub fn link(&mut self, mem: &impl SharedMemory, token: ChainToken) -> Result<(), OutOfRegion> {
        let next = U16::new(self.batch_head);
        mem.write(self.region, self.record(token) + RECORD_NEXT, &next)?;
        self.batch_head = u16::try_from(token.0).unwrap_or(0);
        Ok(())
    }

    /// Closes the batch: from here on a used index ahead of the settled one means this batch.
    ///
    /// # Errors
    /// When the region is gone.
    #[inline]
    pub fn close_batch(&self, mem: &impl SharedMemory) -> Result<(), OutOfRegion> {
        mem.write(self.region, self.offset + LAST_BATCH_HEAD, &U16::new(self.batch_head))
    }

    /// Takes back a mark, after the used index that covers its chain is visible.
    ///
    /// # Errors
    /// When the region is gone.
    #[inline]
    pub fn clear(&self, mem: &impl SharedMemory, token: ChainToken) -> Result<(), OutOfRegion> {
        mem.write(self.region, self.record(token), &0_u8)
    }

    /// Settles the batch: the region agrees with the ring again.
    ///
    /// # Errors
    /// When the region is gone.
    #[inline]
    pub fn settle(&self, mem: &impl SharedMemory, used_idx: u16) -> Result<(), OutOfRegion> {
        mem.store_release_u16(self.region, self.offset + USED_IDX, used_idx)
    }
}

const _: () = assert!(HEADER_BYTES == 16 && RECORD_BYTES == 16);

#[cfg(test)]
mod tests;
