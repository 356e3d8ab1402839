//! Virtqueues in memory (virtio 1.2, sections 2.7 and 2.8). All fields are little-endian.
//!
//! Both formats have three parts at addresses of the driver's choice. Of a split ring the driver
//! writes descriptors and the available ring, the device writes the used ring. A packed ring is
//! one table that both sides write, and each side says beside it when it wants to be told.

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

/// One entry of a packed ring, or of an indirect table that belongs to one (section 2.8.13).
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct PackedDescriptor {
    /// Guest-physical address of the buffer.
    pub addr: U64,
    /// Bytes in the buffer; in a used descriptor, bytes the device has written.
    pub len: U32,
    /// What the driver calls the chain.
    pub id: U16,
    /// `DESC_*` bits, of which `DESC_NEXT` has no index here.
    pub flags: U16,
}

impl PackedDescriptor {
    /// A descriptor of nothing.
    pub const EMPTY: Self =
        Self { addr: U64::ZERO, len: U32::ZERO, id: U16::ZERO, flags: U16::ZERO };
}

/// Packed: equal to the wrap counter of its place in a descriptor made available.
pub const DESC_AVAIL: u16 = 1 << 7;
/// Packed: equal to `DESC_AVAIL` and the wrap counter in a used descriptor.
pub const DESC_USED: u16 = 1 << 15;

/// Packed: offset in a descriptor of what a used one is filled with from there on.
pub const PACKED_LEN: u64 = 8;
/// Packed: offset of a descriptor's flags.
pub const PACKED_FLAGS: u64 = 14;

/// Packed: when one side wants to be told by the other (section 2.8.14).
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct EventSuppression {
    /// The place at which, its wrap counter in the highest bit.
    pub place: U16,
    /// One of `EVENT_*`.
    pub flags: U16,
}

/// Event suppression: offset of the flags.
pub const EVENT_FLAGS: u64 = 2;
/// Event suppression: at each chain.
pub const EVENT_ENABLE: u16 = 0;
/// Event suppression: never.
pub const EVENT_DISABLE: u16 = 1;
/// Event suppression: when `place` is passed; only with event indices.
pub const EVENT_PLACE: u16 = 2;
/// Bytes of an event suppression.
pub const EVENT_BYTES: u64 = size_of::<EventSuppression>() as u64;

const _: () = assert!(size_of::<Descriptor>() == 16 && size_of::<UsedElement>() == 8);
const _: () = assert!(size_of::<PackedDescriptor>() == 16 && EVENT_BYTES == 4);
