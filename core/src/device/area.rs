//! The inflight region of a device, cut into areas.

use crate::inflight;
use crate::memory::RegionId;

/// The inflight region of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct InflightArea {
    pub(crate) region: RegionId,
    pub(super) offset: u64,
    /// Behind the offset.
    pub(super) bytes: u64,
    pub(super) queues: u16,
    pub(super) size: u16,
}

impl InflightArea {
    /// Whether there is an area for a queue of `size` entries. Its format may have been agreed
    /// upon after the region came.
    //= spec/inflight.md#INF-2
    pub(crate) const fn fits(&self, index: u16, size: u16, packed: bool) -> bool {
        let needed = inflight::region_bytes(self.queues, self.size, packed);
        index < self.queues && size <= self.size && needed <= self.bytes
    }

    /// Where the device's own record is, if there is room for one: behind the areas of all queues,
    /// whatever their format.
    pub(crate) const fn device_at(&self) -> Option<u64> {
        let areas = inflight::region_bytes(self.queues, self.size, true);
        if areas + inflight::DEVICE_BYTES <= self.bytes { Some(self.offset + areas) } else { None }
    }

    /// Where the area of a queue begins.
    pub(crate) const fn offset_of(&self, index: u16, packed: bool) -> u64 {
        self.offset + inflight::region_bytes(index, self.size, packed)
    }
}
