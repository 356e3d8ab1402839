//! From a chain to a checked request. Header and ranges are copied once and checked as copies.

use zerocopy::byteorder::little_endian::{U32, U64};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout};

use super::{BlkFeatures, Status};
use crate::limits::{RANGE_SECTORS_MAX, RANGES_MAX, SECTOR_BYTES, SEGMENTS_MAX};
use crate::memory::{OutOfRegion, Segment, SharedMemory};
use crate::planted::{Fault, planted};
use crate::virtqueue::Chain;

/// The request header (virtio 1.2, section 5.2.6).
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Header {
    /// One of the `TYPE_*` values.
    pub kind: U32,
    /// Not used.
    pub reserved: U32,
    /// First sector.
    pub sector: U64,
}

/// Header type: read.
pub const TYPE_IN: u32 = 0;
/// Header type: write.
pub const TYPE_OUT: u32 = 1;
/// Header type: flush.
pub const TYPE_FLUSH: u32 = 4;
/// Header type: get the device's serial.
pub const TYPE_GET_ID: u32 = 8;
/// Header type: discard.
pub const TYPE_DISCARD: u32 = 11;
/// Header type: write zeroes.
pub const TYPE_WRITE_ZEROES: u32 = 13;

/// One range of a discard or write-zeroes request, as the driver writes it.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct RangeWire {
    /// First sector.
    pub sector: U64,
    /// Number of sectors.
    pub sectors: U32,
    /// Bit 0: the range may be unmapped (write-zeroes only).
    pub flags: U32,
}

/// Range flag: may be unmapped.
pub const RANGE_UNMAP: u32 = 1;

/// Bytes of the serial that `GET_ID` returns.
pub const ID_BYTES: usize = 20;

const HEADER_BYTES: u32 = 16;
const RANGE_BYTES: u64 = size_of::<RangeWire>() as u64;

/// One checked range, in bytes of the image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// First byte.
    pub offset: u64,
    /// Bytes, not zero.
    pub len: u64,
    /// Whether zeroes may be made by giving space back.
    pub unmap: bool,
}

impl Range {
    /// A range of nothing.
    pub const EMPTY: Self = Self { offset: 0, len: 0, unmap: false };
}

/// A request that may be carried out as it stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlkRequest {
    /// Fill the data segments from `offset`.
    Read {
        /// First byte of the image.
        offset: u64,
    },
    /// Store the data segments at `offset`.
    Write {
        /// First byte of the image.
        offset: u64,
    },
    /// Make completed writes durable.
    Flush,
    /// Give up the contents of the first `count` ranges.
    Discard {
        /// Ranges in the lent array.
        count: u8,
    },
    /// Zero the first `count` ranges.
    WriteZeroes {
        /// Ranges in the lent array.
        count: u8,
    },
    /// Copy the serial into the data segments.
    GetId,
}

/// The data segments of a request inside the chain's segment array.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Data {
    /// Index of the first.
    pub first: u16,
    /// How many.
    pub count: u16,
    /// Bytes in them.
    pub bytes: u64,
}

/// What becomes of a chain.
#[derive(Clone, Copy, Debug)]
pub enum Verdict {
    /// There is no place for a status byte: given back with used length 0.
    Unanswerable,
    /// Answered at once with this status.
    Refuse(Status, Segment),
    /// To be carried out.
    Accept(BlkRequest, Data, Segment),
}

/// What requests to a device have to keep to.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Sectors of the image.
    pub capacity_sectors: u64,
    /// Sectors per logical block; a power of two.
    pub block_sectors: u64,
    /// Whether writing is refused.
    pub read_only: bool,
    /// Whether flushing is refused too, because an earlier sync failed.
    pub poisoned: bool,
    /// What was negotiated.
    pub features: BlkFeatures,
}

/// Checks a chain as a block request.
///
/// On acceptance the data segments are a part of `segments`, with header and status cut away,
/// and the ranges of a discard or write-zeroes stand in `ranges`. Nothing has been carried out:
/// a request that is refused has had no effect.
//= spec/blk.md#BLK-1
//= spec/blk.md#BLK-2
#[inline]
pub fn parse(
    mem: &impl SharedMemory,
    limits: &Limits,
    chain: &Chain,
    segments: &mut [Segment; SEGMENTS_MAX],
    ranges: &mut [Range; RANGES_MAX],
) -> Verdict {
    let Some(last) = chain.last_writable(segments) else { return Verdict::Unanswerable };
    let status = Segment::new(last.region(), last.offset + u64::from(last.len) - 1, 1);
    let readable = usize::from(chain.readable);
    let (head, tail) = segments.split_at_mut(readable);
    let parsed = if chain.fault.is_some() || chain.readable_bytes < u64::from(HEADER_BYTES) {
        Err(Status::IoErr)
    } else {
        let writable = &mut tail[..usize::from(chain.count - chain.readable)];
        request(mem, limits, chain, head, writable, ranges)
    };
    match parsed {
        Ok((request, data)) => Verdict::Accept(request, data, status),
        Err(refusal) => Verdict::Refuse(refusal, status),
    }
}

#[inline]
fn request(
    mem: &impl SharedMemory,
    limits: &Limits,
    chain: &Chain,
    readable: &mut [Segment],
    writable: &mut [Segment],
    ranges: &mut [Range; RANGES_MAX],
) -> Result<(BlkRequest, Data), Status> {
    let (header, skipped) = take_header(mem, readable)?;
    let incoming = Data {
        first: skipped,
        count: chain.readable - skipped,
        bytes: chain.readable_bytes - u64::from(HEADER_BYTES),
    };
    let mut outgoing = || {
        let kept = drop_status(writable);
        Data { first: chain.readable, count: kept, bytes: chain.writable_bytes - 1 }
    };
    match header.kind.get() {
        TYPE_IN => {
            let data = outgoing();
            let offset = check_data(limits, header.sector.get(), data.bytes)?;
            Ok((BlkRequest::Read { offset }, data))
        }
        TYPE_OUT => {
            let offset = check_data(limits, header.sector.get(), incoming.bytes)?;
            check_writable(limits)?;
            Ok((BlkRequest::Write { offset }, incoming))
        }
        //= spec/blk.md#BLK-8
        //= spec/blk.md#BLK-16
        TYPE_FLUSH if limits.poisoned => Err(Status::IoErr),
        TYPE_FLUSH => Ok((BlkRequest::Flush, Data::default())),
        //= spec/blk.md#BLK-10
        TYPE_GET_ID => Ok((BlkRequest::GetId, outgoing())),
        TYPE_DISCARD if limits.features.contains(BlkFeatures::DISCARD) => {
            let segments = &readable[usize::from(skipped)..];
            let count = take_ranges(mem, limits, segments, incoming.bytes, 0, ranges)?;
            Ok((BlkRequest::Discard { count }, Data::default()))
        }
        TYPE_WRITE_ZEROES if limits.features.contains(BlkFeatures::WRITE_ZEROES) => {
            let segments = &readable[usize::from(skipped)..];
            let count = take_ranges(mem, limits, segments, incoming.bytes, RANGE_UNMAP, ranges)?;
            Ok((BlkRequest::WriteZeroes { count }, Data::default()))
        }
        //= spec/blk.md#BLK-7
        _ => Err(Status::Unsupported),
    }
}

/// Copies the header and moves the start of the data behind it. Says how many segments the
/// header used up.
//= spec/blk.md#BLK-3
#[inline]
fn take_header(mem: &impl SharedMemory, readable: &mut [Segment]) -> Result<(Header, u16), Status> {
    let fault = |OutOfRegion| Status::IoErr;
    let first = readable[0];
    if planted(Fault::HeaderTwice) {
        let _ = mem.read::<u8>(first.region(), first.offset);
    }
    if first.len == HEADER_BYTES {
        return Ok((mem.read(first.region(), first.offset).map_err(fault)?, 1));
    }
    let mut header = Header::new_zeroed();
    gather(mem, readable, 0, header.as_mut_bytes()).map_err(fault)?;
    let (mut rest, mut used_up) = (HEADER_BYTES, 0);
    for segment in readable {
        if segment.len > rest {
            segment.offset += u64::from(rest);
            segment.len -= rest;
            break;
        }
        rest -= segment.len;
        used_up += 1;
        if rest == 0 {
            break;
        }
    }
    Ok((header, used_up))
}

/// Takes the status byte off the end of the writable segments. Says how many are left.
#[inline]
fn drop_status(writable: &mut [Segment]) -> u16 {
    let count = u16::try_from(writable.len()).unwrap_or(u16::MAX);
    match writable.last_mut() {
        Some(last) if last.len > 1 => {
            last.len -= 1;
            count
        }
        _ => count - 1,
    }
}

/// Where the data of a read or write lies in the image.
///
/// All arithmetic is in sectors and on the total, before anything is multiplied.
//= spec/blk.md#BLK-5
#[inline]
fn check_data(limits: &Limits, sector: u64, bytes: u64) -> Result<u64, Status> {
    if bytes == 0 || !bytes.is_multiple_of(SECTOR_BYTES) {
        return Err(Status::IoErr);
    }
    check_sectors(limits, sector, bytes / SECTOR_BYTES)?;
    Ok(sector * SECTOR_BYTES)
}

#[inline]
fn check_sectors(limits: &Limits, sector: u64, count: u64) -> Result<(), Status> {
    let unaligned = (sector | count) & (limits.block_sectors - 1) != 0;
    let rest = limits.capacity_sectors.checked_sub(sector).ok_or(Status::IoErr)?;
    if unaligned || (count > rest && !planted(Fault::SumUnchecked)) {
        Err(Status::IoErr)
    } else {
        Ok(())
    }
}

//= spec/blk.md#BLK-6
#[inline]
fn check_writable(limits: &Limits) -> Result<(), Status> {
    let read_only = limits.read_only && !planted(Fault::ReadOnlyWritten);
    if read_only || limits.poisoned { Err(Status::IoErr) } else { Ok(()) }
}

/// Copies and checks all ranges before any is carried out.
//= spec/blk.md#BLK-9
fn take_ranges(
    mem: &impl SharedMemory,
    limits: &Limits,
    segments: &[Segment],
    bytes: u64,
    allowed_flags: u32,
    ranges: &mut [Range; RANGES_MAX],
) -> Result<u8, Status> {
    check_writable(limits)?;
    let count = bytes / RANGE_BYTES;
    if count == 0 || count > RANGES_MAX as u64 || !bytes.is_multiple_of(RANGE_BYTES) {
        return Err(Status::IoErr);
    }
    let mut at = 0;
    for range in ranges.iter_mut().take(usize::try_from(count).unwrap_or(RANGES_MAX)) {
        let mut wire = RangeWire::new_zeroed();
        gather(mem, segments, at, wire.as_mut_bytes()).map_err(|OutOfRegion| Status::IoErr)?;
        at += RANGE_BYTES;
        let (sector, sectors) = (wire.sector.get(), wire.sectors.get());
        if wire.flags.get() & !allowed_flags != 0 {
            return Err(Status::Unsupported);
        }
        if sectors == 0 || sectors > RANGE_SECTORS_MAX {
            return Err(Status::IoErr);
        }
        if at == RANGE_BYTES || !planted(Fault::RangeUnchecked) {
            check_sectors(limits, sector, sectors.into())?;
        }
        *range = Range {
            offset: sector * SECTOR_BYTES,
            len: u64::from(sectors) * SECTOR_BYTES,
            unmap: wire.flags.get() & RANGE_UNMAP != 0,
        };
    }
    u8::try_from(count).map_err(|_| Status::IoErr)
}

/// Copies bytes that may lie in several segments, each byte once.
fn gather(
    mem: &impl SharedMemory,
    segments: &[Segment],
    skip: u64,
    into: &mut [u8],
) -> Result<(), OutOfRegion> {
    let mut bytes = into.iter_mut();
    let mut skip = skip;
    for segment in segments {
        let len = u64::from(segment.len);
        for at in skip.min(len)..len {
            let Some(byte) = bytes.next() else { return Ok(()) };
            *byte = mem.read(segment.region(), segment.offset + at)?;
        }
        skip = skip.saturating_sub(len);
    }
    if bytes.next().is_some() { Err(OutOfRegion) } else { Ok(()) }
}

const _: () = assert!(size_of::<Header>() == HEADER_BYTES as usize && RANGE_BYTES == 16);
