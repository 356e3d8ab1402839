//! The inflight region of a device, cut into areas.

use crate::inflight;
use crate::limits::{QUEUE_SIZE_MAX, QUEUES_PER_DEVICE_MAX};
use crate::memory::RegionId;

/// The inflight region of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct InflightArea {
    pub(crate) region: RegionId,
    offset: u64,
    /// Behind the offset.
    bytes: u64,
    /// Areas, and the entries of the largest queue that each has room for.
    queues: u16,
    size: u16,
}

impl InflightArea {
    /// Bytes of a region for so many queues: each with room for the largest ring of either format,
    /// whichever is agreed upon, and behind them something of the device's own.
    //= spec/inflight.md#INF-1
    pub(super) const fn bytes(queues: u16) -> u64 {
        inflight::region_bytes(queues, QUEUE_SIZE_MAX, true) + inflight::DEVICE_BYTES
    }

    /// A mapping of `len` bytes with a region behind `offset`, which comes with the numbers that
    /// were asked for when it was made. Front ends start other rings than they asked for, so the
    /// length comes first: what is long enough for the largest rings was made for them. What is
    /// shorter was made as it was asked for, by an earlier version or another back end.
    //= spec/inflight.md#INF-2
    pub(super) fn new(region: RegionId, (offset, len): (u64, u64), queues: u16, size: u16) -> Self {
        let aligned = offset % inflight::ALIGN_MIN == 0;
        let bytes = if aligned { len.saturating_sub(offset) } else { 0 };
        let asked = Self { region, offset, bytes, queues, size };
        if bytes < Self::bytes(queues.min(QUEUES_PER_DEVICE_MAX)) {
            return asked;
        }
        let areas = (bytes - inflight::DEVICE_BYTES) / inflight::queue_bytes(QUEUE_SIZE_MAX, true);
        let queues = u16::try_from(areas).unwrap_or(u16::MAX).min(QUEUES_PER_DEVICE_MAX);
        Self { queues, size: QUEUE_SIZE_MAX, ..asked }
    }

    /// Where the area of a queue begins, if there is one with room for `size` entries. Its format
    /// may have been agreed upon after the region came.
    pub(crate) const fn find(&self, index: u16, size: u16, packed: bool) -> Option<u64> {
        let behind = inflight::region_bytes(index + 1, self.size, packed);
        let fits = index < self.queues && size <= self.size && behind <= self.bytes;
        if fits {
            Some(self.offset + inflight::region_bytes(index, self.size, packed))
        } else {
            None
        }
    }

    /// Where the device's own record is, if there is room for one: behind the areas of all queues,
    /// whatever their format.
    pub(crate) const fn device_at(&self) -> Option<u64> {
        let areas = inflight::region_bytes(self.queues, self.size, true);
        if areas + inflight::DEVICE_BYTES <= self.bytes { Some(self.offset + areas) } else { None }
    }
}
