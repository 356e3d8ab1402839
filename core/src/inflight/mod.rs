//! The inflight region: a record of what is under way that outlives the daemon.
//!
//! Layout from the vhost-user specification, "Inflight I/O tracking", split virtqueues. All
//! fields are little-endian. The order of the stores is what recovery rests on; since only the
//! death of this process separates writer and reader, program order is enough.

use zerocopy::byteorder::little_endian::{U16, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::memory::{OutOfRegion, RegionId, SharedMemory};
use crate::planted::{Fault, planted};
use crate::virtqueue::ChainToken;

pub mod packed;
mod packed_recover;
pub mod recover;

pub use packed_recover::{PackedResumed, PackedState, resume_packed};
pub use recover::{InflightFault, Resubmission, RingState, resume};

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
const VERSION_AT: u64 = 8;
const DESC_NUM: u64 = 10;
const LAST_BATCH_HEAD: u64 = 12;
const USED_IDX: u64 = 14;
const RECORD_NEXT: u64 = 6;
const RECORD_COUNTER: u64 = 8;
const VERSION: u16 = 1;

/// Queues start at multiples of this many bytes, so that they do not share cache lines.
const ALIGN: u64 = 64;

/// A region begins at a multiple of this many bytes of its mapping, so that each of its fields
/// is stored in one piece.
pub const ALIGN_MIN: u64 = 8;

/// Bytes that one queue of `size` entries takes in a region.
#[must_use]
pub const fn queue_bytes(size: u16) -> u64 {
    (HEADER_BYTES + RECORD_BYTES * size as u64).next_multiple_of(ALIGN)
}

/// Bytes of a region for so many queues of `size` entries.
#[must_use]
pub const fn region_bytes(queues: u16, size: u16) -> u64 {
    queue_bytes(size) * queues as u64
}

/// Bytes behind the areas of all queues that are the device's own. A region that a back end of
/// another kind has made has none.
pub const DEVICE_BYTES: u64 = ALIGN;

/// What a driver has said of its cache to the daemon that writes here, if anything.
///
/// # Errors
/// When the region is gone.
//= spec/inflight.md#INF-13
pub fn recall_writeback(
    mem: &impl SharedMemory,
    region: RegionId,
    at: u64,
) -> Result<Option<bool>, OutOfRegion> {
    Ok(match mem.read::<u8>(region, at)? {
        WRITE_BACK => Some(true),
        WRITE_THROUGH => Some(false),
        _ => None,
    })
}

/// Puts down what a driver has said of its cache: no front end says it again after a kill.
///
/// # Errors
/// When the region is gone.
//= spec/inflight.md#INF-13
pub fn note_writeback(
    mem: &impl SharedMemory,
    region: RegionId,
    at: u64,
    writeback: bool,
) -> Result<(), OutOfRegion> {
    mem.write(region, at, &if writeback { WRITE_BACK } else { WRITE_THROUGH })
}

const WRITE_BACK: u8 = 1;
const WRITE_THROUGH: u8 = 2;

/// One queue's part of the region.
#[derive(Clone, Copy, Debug)]
pub struct Inflight {
    region: RegionId,
    offset: u64,
    counter: u64,
    /// The batch that [`link`](Self::link) is building.
    batch_head: u16,
}

impl Inflight {
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

    /// Leaves the area as one that nobody has used: nothing is under way, and whoever uses it
    /// next takes its used index from its ring.
    ///
    /// # Errors
    /// When the region is gone.
    //= spec/inflight.md#INF-7
    pub fn close(&self, mem: &impl SharedMemory) -> Result<(), OutOfRegion> {
        if planted(Fault::AreaKept) {
            return Ok(());
        }
        mem.store_release_u16(self.region, self.offset + VERSION_AT, 0)
    }

    fn record(&self, token: ChainToken) -> u64 {
        self.offset + HEADER_BYTES + RECORD_BYTES * u64::from(token.0)
    }

    /// Records that a chain was taken: its number first, so that a set mark always has one.
    ///
    /// Chains that are submitted again after a start get numbers from 0 on. None of them is
    /// larger than the one it had, so those that come later still have larger ones.
    ///
    /// # Errors
    /// When the region is gone.
    //= spec/inflight.md#INF-4
    #[inline]
    pub fn mark(&mut self, mem: &impl SharedMemory, token: ChainToken) -> Result<(), OutOfRegion> {
        let record = self.record(token);
        let counter = U64::new(self.counter);
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

    /// Closes the batch; from here on a used index ahead of the settled one means this batch.
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
