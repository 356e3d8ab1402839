//! Feature bits and the configuration space of the device.

use bitflags::bitflags;
use zerocopy::byteorder::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout};

use crate::image::ImageConfig;
use crate::limits::{RANGE_SECTORS_MAX, RANGES_MAX_U32, SEGMENTS_DATA_MAX};

bitflags! {
    /// Feature bits of virtio-blk and of the transport under it (virtio 1.2, sections 5.2.3
    /// and 6; bit 30 is vhost-user's own).
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    pub struct BlkFeatures: u64 {
        /// The number of segments in a request is limited.
        const SEG_MAX = 1 << 2;
        /// The device is read-only.
        const RO = 1 << 5;
        /// The logical block size is given.
        const BLK_SIZE = 1 << 6;
        /// Flush is offered.
        const FLUSH = 1 << 9;
        /// Alignment and I/O size hints are given.
        const TOPOLOGY = 1 << 10;
        /// The driver chooses whether completed writes may still be volatile.
        const CONFIG_WCE = 1 << 11;
        /// Several queues.
        const MQ = 1 << 12;
        /// Discard is offered.
        const DISCARD = 1 << 13;
        /// Write-zeroes is offered.
        const WRITE_ZEROES = 1 << 14;
        /// vhost: writes to guest memory are logged. A front end turns it on and off while
        /// queues run; drivers never see it.
        const LOG_ALL = 1 << 26;
        /// Chains may be indirect tables.
        const INDIRECT_DESC = 1 << 28;
        /// Notifications by index.
        const EVENT_IDX = 1 << 29;
        /// vhost-user: protocol features may be negotiated.
        const PROTOCOL_FEATURES = 1 << 30;
        /// A device of virtio 1.0 or later.
        const VERSION_1 = 1 << 32;
        /// Rings are packed.
        const RING_PACKED = 1 << 34;
    }
}

impl BlkFeatures {
    /// What a device on this image offers.
    ///
    /// `SIZE_MAX` is absent on purpose: it would cap segments at a page.
    //= spec/blk.md#BLK-11
    #[must_use]
    pub fn offered(image: &ImageConfig) -> Self {
        let mut offered = Self::SEG_MAX
            | Self::BLK_SIZE
            | Self::FLUSH
            | Self::TOPOLOGY
            | Self::MQ
            | Self::LOG_ALL
            | Self::INDIRECT_DESC
            | Self::EVENT_IDX
            | Self::PROTOCOL_FEATURES
            | Self::VERSION_1
            | Self::RING_PACKED;
        offered.set(Self::RO, image.read_only);
        offered.set(Self::CONFIG_WCE, !image.read_only);
        offered.set(Self::DISCARD, image.discard && !image.read_only);
        offered.set(Self::WRITE_ZEROES, image.write_zeroes && !image.read_only);
        offered
    }
}

/// The configuration space (virtio 1.2, section 5.2.4) up to write-zeroes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct BlkConfig {
    /// Sectors of 512 bytes, whatever the block size.
    pub capacity: U64,
    /// Bytes in a segment; not offered.
    pub size_max: U32,
    /// Data segments in a request.
    pub seg_max: U32,
    /// Cylinders, heads, sectors; not offered.
    pub geometry: U32,
    /// Bytes in a logical block.
    pub blk_size: U32,
    /// Logical blocks per physical block, as a power of two.
    pub physical_block_exp: u8,
    /// Logical blocks before the first aligned one.
    pub alignment_offset: u8,
    /// Smallest I/O without penalty, in logical blocks.
    pub min_io_size: U16,
    /// Best I/O size, in logical blocks; 0 for no preference.
    pub opt_io_size: U32,
    /// 1 while completed writes may be volatile until a flush, 0 while they are stable.
    pub writeback: u8,
    /// Not used.
    pub unused0: u8,
    /// Queues of the device.
    pub num_queues: U16,
    /// Sectors in one range of a discard.
    pub max_discard_sectors: U32,
    /// Ranges in one discard.
    pub max_discard_seg: U32,
    /// Sectors that ranges should be aligned to.
    pub discard_sector_alignment: U32,
    /// Sectors in one range of a write-zeroes.
    pub max_write_zeroes_sectors: U32,
    /// Ranges in one write-zeroes.
    pub max_write_zeroes_seg: U32,
    /// Whether zeroes may give space back.
    pub write_zeroes_may_unmap: u8,
    /// Not used.
    pub unused1: [u8; 3],
}

/// Bytes of [`BlkConfig`].
pub const CONFIG_BYTES: usize = size_of::<BlkConfig>();

/// Where the space begins for front ends that count as the MMIO transport does.
const CONFIG_BASE: u32 = 0x100;

/// Bytes of the physical block that file systems should align to.
const PHYSICAL_BLOCK_BYTES: u32 = 4096;

impl BlkConfig {
    /// The configuration space of a device of so many queues on this image.
    //= spec/blk.md#BLK-12
    #[must_use]
    pub fn new(image: &ImageConfig, queues: u16) -> Self {
        let physical = (PHYSICAL_BLOCK_BYTES / image.block_bytes).max(1);
        let mut config = Self::new_zeroed();
        config.capacity = U64::new(image.capacity_sectors);
        config.seg_max = U32::new(SEGMENTS_DATA_MAX.into());
        config.blk_size = U32::new(image.block_bytes);
        config.physical_block_exp = u8::try_from(physical.trailing_zeros()).unwrap_or(0);
        config.min_io_size = U16::new(u16::try_from(physical).unwrap_or(1));
        config.writeback = 1;
        config.num_queues = U16::new(queues);
        if image.discard {
            config.max_discard_sectors = U32::new(RANGE_SECTORS_MAX);
            config.max_discard_seg = U32::new(RANGES_MAX_U32);
            config.discard_sector_alignment =
                U32::new((PHYSICAL_BLOCK_BYTES.max(image.block_bytes)) / 512);
        }
        if image.write_zeroes {
            config.max_write_zeroes_sectors = U32::new(RANGE_SECTORS_MAX);
            config.max_write_zeroes_seg = U32::new(RANGES_MAX_U32);
            config.write_zeroes_may_unmap = 1;
        }
        config
    }

    /// Copies the part of the space at `offset` into `into`; what lies beyond is zero.
    ///
    /// Front ends ask for more than there is, and some count from 0x100.
    //= spec/blk.md#BLK-18
    pub fn read(&self, offset: u32, into: &mut [u8]) {
        into.fill(0);
        if let Some(rest) = self.as_bytes().get(place(offset)..) {
            let len = rest.len().min(into.len());
            into[..len].copy_from_slice(&rest[..len]);
        }
    }

    /// What `size` bytes at `offset` that begin with `value` say of [`writeback`](Self::writeback),
    /// the only field that is written: the whole of it, and nothing else.
    //= spec/blk.md#BLK-19
    #[must_use]
    pub fn written(offset: u32, size: u32, value: u8) -> Option<bool> {
        let whole = (place(offset), size) == (core::mem::offset_of!(Self, writeback), 1);
        (whole && value <= 1).then_some(value == 1)
    }
}

/// The place of an offset, however the front end counts.
fn place(offset: u32) -> usize {
    offset.checked_sub(CONFIG_BASE).unwrap_or(offset) as usize
}

const _: () = assert!(CONFIG_BYTES == 60);
