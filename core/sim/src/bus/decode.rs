//! What a legal chain asks for, read from guest memory independently of the core.

use sluice_core::blk::Status;
use sluice_core::limits::{RANGE_SECTORS_MAX, RANGES_MAX};
use sluice_core::virtqueue::layout::{DESC_INDIRECT, DESC_NEXT, DESC_WRITE};

use super::ram::{Extent, ONCE, READ, Ram, WRITE};

/// What a disk promises to its guest.
#[derive(Clone, Copy, Debug, Default)]
pub struct Disk {
    /// Which image it shows.
    pub image: u32,
    /// Sectors of 512 bytes.
    pub sectors: u64,
    /// Sectors in a logical block.
    pub block_sectors: u64,
    /// Whether writing is refused.
    pub read_only: bool,
    /// Whether discard was negotiated.
    pub discard: bool,
    /// Whether write-zeroes was negotiated.
    pub write_zeroes: bool,
    /// Whether writes may have to be stable when they come back.
    pub syncs: bool,
    /// What `GET_ID` returns.
    pub serial: [u8; 20],
}

/// What a request is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Fill the data.
    Read,
    /// Store the data.
    Write,
    /// Make writes durable.
    Flush,
    /// Give ranges up.
    Discard,
    /// Zero ranges.
    WriteZeroes,
    /// Tell the serial.
    GetId,
}

/// What has to become of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expect {
    /// Given back with used length 0: there is no place for a status.
    Silence,
    /// Refused, without any effect.
    Refusal(Status),
    /// Carried out.
    Done(Kind),
}

/// A chain between the moment it is made available and the one it is given back.
#[derive(Clone, Debug)]
pub struct Live {
    /// What has to become of it.
    pub expect: Expect,
    /// What the device may touch for it.
    pub grants: Vec<(Extent, u8)>,
    /// Its payload, in order.
    pub data: Vec<Extent>,
    /// Bytes of payload.
    pub data_bytes: u64,
    /// First byte of the image, for reads and writes.
    pub offset: u64,
    /// Ranges of the image that it is about.
    pub ranges: Vec<(u64, u64)>,
    /// Those that no operation has been sent for.
    pub uncovered: Vec<(u64, u64)>,
    /// Where the status byte goes.
    pub status: Option<Extent>,
    /// The payload's bytes before: only what is written may change.
    pub before: Vec<u8>,
    /// Whether the device has taken it from the available ring.
    pub fetched: bool,
    /// Whether an operation was ever sent for it.
    pub sent: bool,
    /// Operations that are under way for it.
    pub ops: u32,
    /// Whether one of them failed.
    pub failed: bool,
}

impl Live {
    /// Another device begins with it, or goes on where it was taken.
    pub fn begin_anew(&mut self, fetched: bool) {
        self.uncovered.clone_from(&self.ranges);
        (self.fetched, self.sent, self.failed, self.ops) = (fetched, false, false, 0);
    }
}

struct Buffers {
    readable: Vec<Extent>,
    writable: Vec<Extent>,
    tables: Vec<Extent>,
}

/// Where a chain's descriptors are.
#[derive(Clone, Debug)]
pub enum Source {
    /// Linked, from the head on, in this table.
    Split {
        /// The descriptor table.
        table: Extent,
        /// The first of them.
        head: u16,
    },
    /// These, one behind the other.
    Packed(Vec<Extent>),
}

/// Reads a chain. Only the chains of legal guests are understood.
///
/// # Panics
/// When the chain's structure is not legal.
#[must_use]
pub fn decode(ram: &Ram, guest: u32, source: &Source, disk: &Disk) -> Live {
    let mut found = Buffers { readable: Vec::new(), writable: Vec::new(), tables: Vec::new() };
    match source {
        Source::Split { table, head } => found.follow(ram, guest, *table, *head),
        Source::Packed(row) => found.read_row(ram, guest, row),
    }
    let Buffers { readable, writable, tables } = found;
    let bytes = |extents: &[Extent]| extents.iter().map(|e| e.len as u64).sum::<u64>();
    let status = writable.last().map(|last| last.part(last.len - 1, 1));
    let mut grants: Vec<(Extent, u8)> = tables.iter().map(|&table| (table, ONCE)).collect();
    grants.extend(writable.iter().map(|&extent| (extent, WRITE)));

    let mut live = Live {
        expect: Expect::Silence,
        grants,
        data: Vec::new(),
        data_bytes: 0,
        offset: 0,
        ranges: Vec::new(),
        uncovered: Vec::new(),
        status,
        before: Vec::new(),
        fetched: false,
        sent: false,
        ops: 0,
        failed: false,
    };
    if bytes(&readable) < 16 {
        live.grants.extend(readable.iter().map(|&extent| (extent, ONCE)));
        if status.is_some() {
            live.expect = Expect::Refusal(Status::IoErr);
        }
        return live;
    }
    // One range more than allowed is enough to see that there are too many.
    let header = gather(ram, &first(&readable, 16 * (RANGES_MAX + 2)));
    let kind = u32::from_le_bytes(header[..4].try_into().expect("four bytes"));
    let sector = u64::from_le_bytes(header[8..16].try_into().expect("eight bytes"));
    let payload_once = if kind == 0 || kind == 1 { READ } else { ONCE };
    let body = skip(&readable, 16);
    live.grants.extend(first(&readable, 16).into_iter().map(|extent| (extent, ONCE)));
    live.grants.extend(body.iter().map(|&extent| (extent, payload_once)));
    if status.is_none() {
        return live;
    }
    let landing = first(&writable, usize::try_from(bytes(&writable) - 1).expect("fits"));
    let refusal = |status| Expect::Refusal(status);
    let ranges = &header[16..];
    live.expect = match kind {
        0 | 1 => {
            live.data = if kind == 0 { landing } else { body };
            live.data_bytes = bytes(&live.data);
            if kind == 1 && disk.read_only || !fits(disk, sector, live.data_bytes) {
                refusal(Status::IoErr)
            } else {
                live.offset = sector * 512;
                live.ranges = vec![(live.offset, live.offset + live.data_bytes)];
                Expect::Done(if kind == 0 { Kind::Read } else { Kind::Write })
            }
        }
        4 => {
            // Something is left to do until a sync has been sent.
            live.ranges = vec![(0, 0)];
            Expect::Done(Kind::Flush)
        }
        8 => {
            live.before = gather(ram, &landing);
            live.data_bytes = bytes(&landing);
            live.data = landing;
            Expect::Done(Kind::GetId)
        }
        11 if disk.discard => judge_ranges(disk, ranges, 0, &mut live.ranges)
            .map_or_else(refusal, |()| Expect::Done(Kind::Discard)),
        13 if disk.write_zeroes => judge_ranges(disk, ranges, 1, &mut live.ranges)
            .map_or_else(refusal, |()| Expect::Done(Kind::WriteZeroes)),
        _ => refusal(Status::Unsupported),
    };
    live.uncovered.clone_from(&live.ranges);
    live
}

fn fits(disk: &Disk, sector: u64, bytes: u64) -> bool {
    let end = u128::from(sector) * 512 + u128::from(bytes);
    let block = disk.block_sectors * 512;
    bytes > 0
        && bytes.is_multiple_of(block)
        && sector.is_multiple_of(disk.block_sectors)
        && end <= u128::from(disk.sectors) * 512
}

fn judge_ranges(
    disk: &Disk,
    ranges: &[u8],
    flags_allowed: u32,
    found: &mut Vec<(u64, u64)>,
) -> Result<(), Status> {
    let well_formed =
        ranges.len().is_multiple_of(16) && (1..=RANGES_MAX).contains(&(ranges.len() / 16));
    if disk.read_only || !well_formed {
        return Err(Status::IoErr);
    }
    for range in ranges.chunks(16) {
        let sector = u64::from_le_bytes(range[..8].try_into().expect("eight bytes"));
        let sectors = u32::from_le_bytes(range[8..12].try_into().expect("four bytes"));
        let flags = u32::from_le_bytes(range[12..].try_into().expect("four bytes"));
        let bad = if flags & !flags_allowed != 0 {
            Some(Status::Unsupported)
        } else if sectors > RANGE_SECTORS_MAX || !fits(disk, sector, u64::from(sectors) * 512) {
            Some(Status::IoErr)
        } else {
            None
        };
        if let Some(status) = bad {
            found.clear();
            return Err(status);
        }
        found.push((sector * 512, (sector + u64::from(sectors)) * 512));
    }
    Ok(())
}

/// Address, length, flags, and the last two bytes of what they are in either format.
fn fields(ram: &Ram, entry: &[Extent]) -> (u64, usize, [u16; 2]) {
    let bytes: [u8; 16] = gather(ram, entry).try_into().expect("a descriptor");
    let address = u64::from_le_bytes(bytes[..8].try_into().expect("eight bytes"));
    let len = u32::from_le_bytes(bytes[8..12].try_into().expect("four bytes")) as usize;
    let word = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
    (address, len, [word(12), word(14)])
}

impl Buffers {
    fn add(&mut self, ram: &Ram, guest: u32, address: u64, len: usize, flags: u16) {
        if len > 0 {
            let buffer = ram.find(guest, address, len).expect("a buffer in memory");
            let writes = flags & DESC_WRITE != 0;
            if writes { &mut self.writable } else { &mut self.readable }.extend(buffer);
        }
    }

    fn follow(&mut self, ram: &Ram, guest: u32, desc: Extent, head: u16) {
        let mut table = vec![desc];
        let mut index = usize::from(head);
        for _ in 0..1 << 16 {
            let entry = first(&skip(&table, 16 * index), 16);
            let (address, len, [flags, next]) = fields(ram, &entry);
            self.tables.extend(entry);
            if flags & DESC_INDIRECT != 0 {
                table = ram.find(guest, address, len).expect("a table in memory");
                index = 0;
                continue;
            }
            self.add(ram, guest, address, len, flags);
            if flags & DESC_NEXT == 0 {
                return;
            }
            index = usize::from(next);
        }
        panic!("a legal guest's chain has an end");
    }

    /// The ring's own descriptors are the ring's to grant.
    fn read_row(&mut self, ram: &Ram, guest: u32, row: &[Extent]) {
        for &entry in row {
            let (address, len, [_, flags]) = fields(ram, &[entry]);
            if flags & DESC_INDIRECT == 0 {
                self.add(ram, guest, address, len, flags);
                continue;
            }
            let table = ram.find(guest, address, len).expect("a table in memory");
            for index in 0..len / 16 {
                let entry = first(&skip(&table, 16 * index), 16);
                let (address, len, [_, flags]) = fields(ram, &entry);
                self.add(ram, guest, address, len, flags);
            }
            self.tables.extend(table);
        }
    }
}

/// Copies what lies in several places.
#[must_use]
pub fn gather(ram: &Ram, extents: &[Extent]) -> Vec<u8> {
    extents.iter().flat_map(|&extent| ram.bytes(extent)).copied().collect()
}

/// All but the first `bytes` bytes.
fn skip(extents: &[Extent], bytes: usize) -> Vec<Extent> {
    let mut left = bytes;
    let rest = extents.iter().map(|extent| {
        let cut = left.min(extent.len);
        left -= cut;
        extent.part(cut, extent.len - cut)
    });
    rest.filter(|extent| extent.len > 0).collect()
}

/// The first `bytes` bytes.
fn first(extents: &[Extent], bytes: usize) -> Vec<Extent> {
    let mut left = bytes;
    let kept = extents.iter().map(|extent| {
        let len = left.min(extent.len);
        left -= len;
        extent.part(0, len)
    });
    kept.filter(|extent| extent.len > 0).collect()
}
