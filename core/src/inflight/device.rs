//! The device's own record, behind the areas of all queues.

use super::ALIGN;
use crate::memory::{OutOfRegion, RegionId, SharedMemory};

/// Bytes behind the areas of all queues, as large as packed ones are, that are the device's own.
/// A region that a back end of another kind has made has none.
pub const DEVICE_BYTES: u64 = ALIGN;

const WRITE_BACK: u8 = 1;
const WRITE_THROUGH: u8 = 2;

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
