//! The inflight region: a record of what is under way that outlives the daemon.
//!
//! Layout from the vhost-user specification, "Inflight I/O tracking": an area for each queue, of
//! one form for split and of another for packed rings. All fields are little-endian. The order of
//! the stores is what recovery rests on; since only the death of this process separates writer
//! and reader, program order is enough.

mod device;
mod members;
pub mod packed;
pub mod split;

pub use device::{DEVICE_BYTES, note_writeback, recall_writeback};
pub use packed::{PackedInflight, PackedState};
pub use split::{RingState, SplitInflight};

use heapless::Vec;

use crate::either::either;
use crate::limits::QUEUE_SIZE_MAX;
use crate::memory::{OutOfRegion, RegionId, SharedMemory};
use crate::planted::{Fault, planted};
use crate::virtqueue::ChainToken;

/// What an area in use says; 0 stands in one that nobody has used.
const VERSION: u16 = 1;

/// Where in an area of either format it says that.
const VERSION_AT: u64 = 8;

/// Queues start at multiples of this many bytes, so that they do not share cache lines.
const ALIGN: u64 = 64;

/// A region begins at a multiple of this many bytes of its mapping, so that each of its fields
/// is stored in one piece.
pub const ALIGN_MIN: u64 = 8;

/// Bytes that one queue of `size` entries takes in a region.
#[must_use]
pub const fn queue_bytes(size: u16, packed: bool) -> u64 {
    let bytes = if packed { packed::bytes(size) } else { split::bytes(size) };
    bytes.next_multiple_of(ALIGN)
}

/// Bytes of a region for so many queues of `size` entries.
#[must_use]
pub const fn region_bytes(queues: u16, size: u16, packed: bool) -> u64 {
    queue_bytes(size, packed) * queues as u64
}

/// Why a queue cannot go on from its region. Nothing is guessed: the queue is broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum InflightFault {
    /// Another version, unknown features, or as many records as another queue would have.
    Layout,
    /// The ring's used index is further than one queue from the settled one.
    UsedIndex,
    /// The list of a batch, or of a chain, leaves the records or meets itself or another.
    Batch,
    /// More chains are marked than the driver waits for, or records are in no list.
    Count,
    /// The front end wants to go on somewhere else.
    Base,
    /// No region was handed over, but the driver waits for chains that may have been taken.
    Missing,
}

/// Leaves an area as one that nobody has used, whatever is in it.
///
/// # Errors
/// When the region is gone.
//= spec/inflight.md#INF-7
pub(crate) fn vacate(
    mem: &impl SharedMemory,
    region: RegionId,
    offset: u64,
) -> Result<(), OutOfRegion> {
    mem.store_release_u16(region, offset + VERSION_AT, 0)
}

/// Chains to be taken again by their heads or buffer ids, the one that was taken last first: they
/// are taken off the end.
pub type Resubmission = Vec<u16, { QUEUE_SIZE_MAX as usize }>;

/// One queue's part of the region. What the methods promise stands at the formats.
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "the formats")]
#[expect(clippy::large_enum_variant, reason = "a queue has room for either, and there is no box")]
pub enum Inflight {
    Split(SplitInflight),
    Packed(PackedInflight),
}

impl Inflight {
    /// Records that a chain was taken.
    ///
    /// Chains that are submitted again after a start get numbers from 0 on. None of them is
    /// larger than the one it had, so those that come later still have larger ones.
    ///
    /// # Errors
    /// When the region is gone.
    #[inline]
    pub fn mark(&mut self, mem: &impl SharedMemory, token: ChainToken) -> Result<(), OutOfRegion> {
        either!(self, area => area.mark(mem, token))
    }

    /// Adds a chain to the batch that is about to be given back.
    ///
    /// # Errors
    /// When the region is gone.
    #[inline]
    pub fn link(&mut self, mem: &impl SharedMemory, token: ChainToken) -> Result<(), OutOfRegion> {
        if planted(Fault::LinksForgotten) {
            return Ok(());
        }
        either!(self, area => area.link(mem, token))
    }

    /// Closes the batch: from here on its being visible in the ring means that it was given back.
    ///
    /// # Errors
    /// When the region is gone.
    #[inline]
    pub fn close_batch(&self, mem: &impl SharedMemory) -> Result<(), OutOfRegion> {
        either!(self, area => area.close_batch(mem))
    }

    /// Takes back a mark, after the chain's batch is visible.
    ///
    /// # Errors
    /// When the region is gone.
    #[inline]
    pub fn clear(&self, mem: &impl SharedMemory, token: ChainToken) -> Result<(), OutOfRegion> {
        either!(self, area => area.clear(mem, token))
    }

    /// Settles the batch with which a split ring's used index became `used_idx`: the region
    /// agrees with the ring again.
    ///
    /// # Errors
    /// When the region is gone.
    #[inline]
    pub fn settle(&mut self, mem: &impl SharedMemory, used_idx: u16) -> Result<(), OutOfRegion> {
        match self {
            Self::Split(area) => area.settle(mem, used_idx),
            Self::Packed(area) => area.settle(mem),
        }
    }

    /// Leaves the area as one that nobody has used: nothing is under way, and whoever uses it
    /// next goes on where its front end says.
    ///
    /// # Errors
    /// When the region is gone.
    pub fn close(&self, mem: &impl SharedMemory) -> Result<(), OutOfRegion> {
        if planted(Fault::AreaKept) {
            return Ok(());
        }
        let (region, offset) = either!(self, area => area.place());
        vacate(mem, region, offset)
    }

    /// The area of a packed queue.
    #[inline]
    pub(crate) const fn packed(&mut self) -> Option<&mut PackedInflight> {
        match self {
            Self::Packed(area) => Some(area),
            Self::Split(_) => None,
        }
    }
}
