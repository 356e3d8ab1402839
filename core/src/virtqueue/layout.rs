//! The split virtqueue in memory (virtio 1.2, section 2.7).
//!
//! Three parts at addresses of the driver's choice. The driver writes descriptors and the
//! available ring, the device writes the used ring. All fields are little-endian.

use zerocopy::byteorder::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// One entry of a descriptor table (section 2.7.5).
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Descriptor {
    /// Guest-physical address of the buffer.
    pub addr: U64,
    /// Bytes in the buffer.
    pub len: U32,
    /// `DESC_*` bits.
    pub flags: U16,
    /// Index of the next descriptor if `DESC_NEXT` is set.
    pub next: U16,
}

impl Descriptor {
    /// A descriptor of nothing.
    pub const EMPTY: Self =
        Self { addr: U64::ZERO, len: U32::ZERO, flags: U16::ZERO, next: U16::ZERO };
}

/// The chain goes on at `next`.
pub const DESC_NEXT: u16 = 1;
/// The device writes this buffer; without it the device reads.
pub const DESC_WRITE: u16 = 2;
/// The buffer is itself a table of descriptors.
pub const DESC_INDIRECT: u16 = 4;

/// One entry of the used ring (section 2.7.8).
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct UsedElement {
    /// Head of the chain that is given back.
    pub id: U32,
    /// Bytes the device has written into it.
    pub len: U32,
}

/// Bytes of a descriptor.
pub const DESC_BYTES: u64 = size_of::<Descriptor>() as u64;

/// Available ring: offset of the driver's index, behind 16 bits of flags.
pub const AVAIL_IDX: u64 = 2;
/// Available ring: offset of the first entry.
pub const AVAIL_RING: u64 = 4;
/// Available ring flag: the driver wants no notifications.
pub const AVAIL_NO_INTERRUPT: u16 = 1;

/// Used ring: offset of the device's index, behind 16 bits of flags.
pub const USED_IDX: u64 = 2;
/// Used ring: offset of the first entry.
pub const USED_RING: u64 = 4;
/// Used ring flag: the device wants no notifications.
pub const USED_NO_NOTIFY: u16 = 1;

/// Bytes of a descriptor table of `size` entries.
#[must_use]
pub const fn desc_table_bytes(size: u16) -> u64 {
    DESC_BYTES * size as u64
}

/// Bytes of an available ring of `size` entries, the trailing `used_event` included.
#[must_use]
pub const fn avail_ring_bytes(size: u16) -> u64 {
    used_event_offset(size) + 2
}

/// Bytes of a used ring of `size` entries, the trailing `avail_event` included.
#[must_use]
pub const fn used_ring_bytes(size: u16) -> u64 {
    avail_event_offset(size) + 2
}

/// Available ring: offset of `used_event`, the used index at which the driver wants to know.
#[must_use]
pub const fn used_event_offset(size: u16) -> u64 {
    AVAIL_RING + 2 * size as u64
}

/// Used ring: offset of `avail_event`, the available index at which the device wants to know.
#[must_use]
pub const fn avail_event_offset(size: u16) -> u64 {
    USED_RING + 8 * size as u64
}

const _: () = assert!(size_of::<Descriptor>() == 16 && size_of::<UsedElement>() == 8);
