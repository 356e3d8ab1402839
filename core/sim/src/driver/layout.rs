//! Where a driver keeps its rings and what belongs to its requests.

use sluice_core::limits::RANGES_MAX;
use sluice_core::memory::RegionId;
use sluice_core::virtqueue::layout::{
    DESC_BYTES, EVENT_BYTES, avail_ring_bytes, desc_table_bytes, used_ring_bytes,
};
use sluice_core::virtqueue::{PackedBase, Rings};

/// Bytes of a slot: header and status lie in one cache line, as they do in Linux' requests.
pub(super) const SLOT_BYTES: u64 = 64;
/// Where in a slot the status byte lies, behind the header.
pub(super) const SLOT_STATUS: u64 = 16;
/// Bytes for the ranges of one discard or write-zeroes.
pub(super) const RANGES_BYTES: u64 = 16 * RANGES_MAX as u64;

/// Parts that both sides write must not share a cache line with others.
const ALIGN: u64 = 64;

/// The memory of one queue's driver. Everything lies in one region; data may lie anywhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// The region of everything below.
    pub region: RegionId,
    /// Guest-physical address of the region's first byte.
    pub guest: u64,
    /// Offset of the descriptor table or ring.
    pub desc: u64,
    /// Offset of the available ring, or of the driver's event suppression.
    pub avail: u64,
    /// Offset of the used ring, or of the device's event suppression.
    pub used: u64,
    /// Offset of the headers and status bytes, 64 bytes for each descriptor of the ring.
    pub slots: u64,
    /// Offset of the ranges, 256 bytes for each descriptor of the ring.
    pub ranges: u64,
    /// Offset of the indirect tables, one of `table_entries` for each descriptor of the ring.
    pub tables: u64,
    /// Entries in an indirect table; with 0 no request is indirect.
    pub table_entries: u16,
    /// Entries of the ring, a power of two if it is split.
    pub size: u16,
    /// Whether the ring is packed.
    pub packed: bool,
}

impl Layout {
    /// A split ring and everything else one behind the other from `offset` on.
    #[must_use]
    pub const fn new(
        region: RegionId,
        guest: u64,
        offset: u64,
        size: u16,
        table_entries: u16,
    ) -> Self {
        let parts = [avail_ring_bytes(size), used_ring_bytes(size)];
        Self { packed: false, ..Self::around(region, guest, offset, size, table_entries, parts) }
    }

    /// The same with a packed ring.
    #[must_use]
    pub const fn packed(
        region: RegionId,
        guest: u64,
        offset: u64,
        size: u16,
        table_entries: u16,
    ) -> Self {
        let parts = [EVENT_BYTES; 2];
        Self { packed: true, ..Self::around(region, guest, offset, size, table_entries, parts) }
    }

    const fn around(
        region: RegionId,
        guest: u64,
        offset: u64,
        size: u16,
        table_entries: u16,
        [avail_bytes, used_bytes]: [u64; 2],
    ) -> Self {
        let desc = offset.next_multiple_of(ALIGN);
        let avail = (desc + desc_table_bytes(size)).next_multiple_of(ALIGN);
        let used = (avail + avail_bytes).next_multiple_of(ALIGN);
        let slots = (used + used_bytes).next_multiple_of(ALIGN);
        let ranges = slots + SLOT_BYTES * size as u64;
        let tables = ranges + RANGES_BYTES * size as u64;
        let packed = false;
        Self {
            region,
            guest,
            desc,
            avail,
            used,
            slots,
            ranges,
            tables,
            table_entries,
            size,
            packed,
        }
    }

    /// The base at which an empty ring begins.
    #[must_use]
    pub const fn base(&self) -> u32 {
        if self.packed { PackedBase::START.bits() } else { 0 }
    }

    /// Offset of the first byte behind everything.
    #[must_use]
    pub const fn end(&self) -> u64 {
        self.tables + DESC_BYTES * self.table_entries as u64 * self.size as u64
    }

    /// The rings as the core takes them.
    #[must_use]
    pub const fn rings(&self) -> Rings {
        Rings {
            desc: (self.region, self.desc),
            avail: (self.region, self.avail),
            used: (self.region, self.used),
        }
    }

    /// Guest-physical address of an offset.
    pub(super) const fn guest_address(&self, offset: u64) -> u64 {
        self.guest + offset
    }

    pub(super) const fn slot(&self, head: u16) -> u64 {
        self.slots + SLOT_BYTES * head as u64
    }

    pub(super) const fn slot_ranges(&self, head: u16) -> u64 {
        self.ranges + RANGES_BYTES * head as u64
    }

    pub(super) const fn table(&self, head: u16) -> u64 {
        self.tables + DESC_BYTES * self.table_entries as u64 * head as u64
    }
}
