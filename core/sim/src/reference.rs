//! What a chain of a virtio-blk queue means, a second time.
//!
//! Written from the words of the specification (virtio 1.2, sections 2.7.5 and 5.2.6) and not
//! from the core: it collects all buffers first, looks at the two streams of bytes they form,
//! counts in 128 bits and never minds the cost. Where the specification leaves a choice, the
//! choice is the core's and is marked so.

use sluice_core::blk::BlkFeatures;
use sluice_core::image::ImageConfig;
use sluice_core::limits::{QUEUE_SIZE_MAX, RANGE_SECTORS_MAX, RANGES_MAX, SEGMENTS_MAX};
use sluice_core::memory::{Region, RegionId};

use crate::memory::FlatMemory;
use crate::rig::{Desc, place};

/// A byte of shared memory.
pub type Place = (RegionId, u64);

/// Bytes in one region, from an offset on.
pub type Run = (RegionId, u64, u64);

/// What is to be done for a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Deed {
    /// Fill these bytes from this byte of the image on.
    Read(u64, Vec<Run>),
    /// Store these bytes.
    Write(u64, Vec<Run>),
    /// Make writes durable.
    Flush,
    /// Discard these (offset, length) ranges.
    Discard(Vec<(u64, u64)>),
    /// Zero these (offset, length, may unmap) ranges.
    WriteZeroes(Vec<(u64, u64, bool)>),
    /// Put the serial into the first of these bytes.
    GetId(Vec<Run>),
}

/// How a chain is to be answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// There is no place for a status byte.
    None,
    /// Refused with this status.
    Refused(u8, Place),
    /// Carried out, whose status then goes here.
    Do(Deed, Place),
}

impl Answer {
    /// What the used entry has to say when everything goes well.
    #[must_use]
    pub fn used(&self) -> u64 {
        match self {
            Self::None => 0,
            Self::Refused(..) => 1,
            Self::Do(Deed::Read(_, runs), _) => total(runs) + 1,
            Self::Do(Deed::GetId(runs), _) => total(runs).min(20) + 1,
            Self::Do(..) => 1,
        }
    }
}

/// The device as the guest knows it.
#[derive(Clone, Copy, Debug)]
pub struct Reference<'a> {
    /// All memory.
    pub mem: &'a FlatMemory,
    /// The guest's part of it.
    pub regions: &'a [Region],
    /// Where the descriptor table is.
    pub table: Place,
    /// Its entries.
    pub size: u16,
    /// What was negotiated.
    pub features: BlkFeatures,
    /// The image behind the device.
    pub image: &'a ImageConfig,
}

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;

const IO_ERROR: u8 = 1;
const UNSUPPORTED: u8 = 2;

/// What a list of descriptors amounts to.
#[derive(Default)]
struct Buffers {
    /// (address, length, whether the device writes), none of them empty.
    list: Vec<(u64, u32, bool)>,
    /// Something is wrong with the chain.
    wrong: bool,
    /// The last descriptor was not found: nobody knows where the status byte is.
    endless: bool,
}

impl Reference<'_> {
    /// What is to become of the chain that begins at `head`.
    #[must_use]
    pub fn answer(&self, head: u16) -> Answer {
        let mut buffers = Buffers::default();
        self.collect_direct(head, &mut buffers);
        self.answer_to(&buffers)
    }

    /// The same for the chain that begins at an entry of a packed ring, and that ends.
    #[must_use]
    pub fn answer_row(&self, first: u16) -> Answer {
        let mut buffers = Buffers::default();
        self.collect_row(first, &mut buffers);
        self.answer_to(&buffers)
    }

    fn answer_to(&self, buffers: &Buffers) -> Answer {
        if buffers.endless {
            return Answer::None;
        }
        let (mut readable, mut writable) = (Vec::new(), Vec::new());
        let (mut wrong, mut status_known) = (buffers.wrong, false);
        for &(addr, len, device_writes) in &buffers.list {
            let runs = self.runs(addr, len);
            wrong |= runs.is_none();
            if device_writes {
                status_known = runs.is_some();
                writable.extend(runs.unwrap_or_default());
            } else {
                readable.extend(runs.unwrap_or_default());
            }
        }
        // 2.7.4.2: all that the device reads comes first.
        wrong |= out_of_order(&buffers.list);
        // The core's choice: this many pieces, and lengths that a used entry can say.
        wrong |= readable.len() + writable.len() > SEGMENTS_MAX;
        let bytes = buffers.list.iter().map(|b| u128::from(b.1)).sum::<u128>();
        wrong |= bytes > u128::from(u32::MAX);
        let Some(status) = writable.last().filter(|_| status_known) else { return Answer::None };
        let status = (status.0, status.1 + status.2 - 1);
        if wrong || total(&readable) < 16 {
            return Answer::Refused(IO_ERROR, status);
        }
        match self.request(&readable, &writable) {
            Ok(deed) => Answer::Do(deed, status),
            Err(refusal) => Answer::Refused(refusal, status),
        }
    }

    /// 2.7.5: the descriptors of the ring's own table.
    fn collect_direct(&self, head: u16, into: &mut Buffers) {
        let mut seen = Vec::new();
        let mut at = head;
        loop {
            if at >= self.size || seen.contains(&at) {
                into.endless = true;
                return;
            }
            seen.push(at);
            let place = (self.table.0, self.table.1 + 16 * u64::from(at));
            let (addr, len, flags, next) = decode(&self.mem.dump(place.0, place.1, 16));
            if flags & INDIRECT != 0 {
                // 2.7.5.3.1: not together with NEXT. The core's choice: what NEXT leads to is
                // not looked at.
                into.wrong |= flags & NEXT != 0;
                return self.collect_indirect(addr, len, into);
            }
            into.push(addr, len, flags);
            if flags & NEXT == 0 {
                return;
            }
            at = next;
        }
    }

    /// 2.7.5.3: a table somewhere in memory, not to be nested.
    fn collect_indirect(&self, table: u64, len: u32, into: &mut Buffers) {
        let count = u64::from(len) / 16;
        let wraps = u128::from(table) + u128::from(len) > 1 << 64;
        // The core's choice: no table is longer than the longest ring.
        let bad =
            !len.is_multiple_of(16) || count == 0 || count > u64::from(QUEUE_SIZE_MAX) || wraps;
        let mut seen = Vec::new();
        let mut at = 0;
        loop {
            let entry = if bad || u64::from(at) >= count || seen.contains(&at) {
                None
            } else {
                self.entry(table + 16 * u64::from(at))
            };
            let Some((addr, len, flags, next)) = entry else {
                into.endless = true;
                return;
            };
            seen.push(at);
            if flags & INDIRECT == 0 {
                into.push(addr, len, flags);
            } else {
                into.wrong = true;
            }
            if flags & NEXT == 0 {
                return;
            }
            at = next;
        }
    }

    /// 2.8.6: the descriptors of a packed ring, one behind the other.
    fn collect_row(&self, first: u16, into: &mut Buffers) {
        let mut at = first;
        loop {
            let place = self.table.1 + 16 * u64::from(at);
            let (addr, len, _, flags) = decode(&self.mem.dump(self.table.0, place, 16));
            if flags & INDIRECT != 0 {
                // 2.8.19: not together with NEXT. The core's choice as for split rings.
                into.wrong |= flags & NEXT != 0;
                return self.collect_table(addr, len, into);
            }
            into.push(addr, len, flags);
            if flags & NEXT == 0 {
                return;
            }
            at = (at + 1) % self.size;
        }
    }

    /// 2.8.7: a table of a packed ring is used from its beginning to its end.
    fn collect_table(&self, table: u64, len: u32, into: &mut Buffers) {
        let count = u64::from(len) / 16;
        let bad = !len.is_multiple_of(16) || count == 0 || count > u64::from(QUEUE_SIZE_MAX);
        let entries = (0..count).map(|index| self.entry(table.checked_add(16 * index)?));
        let entries: Option<Vec<_>> = if bad { None } else { entries.collect() };
        let Some(entries) = entries else {
            into.endless = true;
            return;
        };
        for (addr, len, _, flags) in entries {
            if flags & INDIRECT == 0 {
                into.push(addr, len, flags);
            } else {
                into.wrong = true;
            }
        }
    }

    /// A descriptor anywhere in guest memory, whatever borders it crosses.
    fn entry(&self, at: u64) -> Option<Desc> {
        let mut bytes = Vec::new();
        for step in 0..16 {
            let (region, offset) = place(self.regions, at.checked_add(step)?)?;
            bytes.extend(self.mem.dump(region, offset, 1));
        }
        Some(decode(&bytes))
    }

    /// The pieces of a buffer, if all of it is memory: what it has in common with each region.
    fn runs(&self, addr: u64, len: u32) -> Option<Vec<Run>> {
        let (start, end) = (u128::from(addr), u128::from(addr) + u128::from(len));
        let mut common: Vec<_> = self
            .regions
            .iter()
            .map(|region| {
                let base = u128::from(region.guest);
                (start.max(base), end.min(base + u128::from(region.size)), region)
            })
            .filter(|(from, to, _)| from < to)
            .collect();
        common.sort_by_key(|&(from, ..)| from);
        let covered: u128 = common.iter().map(|(from, to, _)| to - from).sum();
        let run = |&(from, to, region): &(u128, u128, &Region)| {
            let offset = u64::try_from(from).expect("an address") - region.guest;
            (region.id, offset, u64::try_from(to - from).expect("at most a buffer"))
        };
        (covered == end - start).then(|| common.iter().map(run).collect())
    }

    /// 5.2.6: a header, then data either way; the status is the very last byte.
    fn request(&self, readable: &[Run], writable: &[Run]) -> Result<Deed, u8> {
        let header = self.bytes(&cut(readable, 0, 16));
        let kind = u32::from_le_bytes(header[..4].try_into().expect("four bytes"));
        let sector = u64::from_le_bytes(header[8..].try_into().expect("eight bytes"));
        let incoming = cut(readable, 16, total(readable));
        let outgoing = cut(writable, 0, total(writable) - 1);
        let has = |feature| self.features.contains(feature);
        match kind {
            0 => {
                self.check(sector, total(&outgoing))?;
                Ok(Deed::Read(sector * 512, outgoing))
            }
            1 if self.image.read_only => Err(IO_ERROR),
            1 => {
                self.check(sector, total(&incoming))?;
                Ok(Deed::Write(sector * 512, incoming))
            }
            4 => Ok(Deed::Flush),
            8 => Ok(Deed::GetId(outgoing)),
            11 if has(BlkFeatures::DISCARD) => {
                let ranges = self.ranges(&incoming, 0)?;
                Ok(Deed::Discard(ranges.iter().map(|&(at, len, _)| (at, len)).collect()))
            }
            13 if has(BlkFeatures::WRITE_ZEROES) => {
                Ok(Deed::WriteZeroes(self.ranges(&incoming, 1)?))
            }
            _ => Err(UNSUPPORTED),
        }
    }

    /// Whole blocks inside the image, and at least one.
    fn check(&self, sector: u64, bytes: u64) -> Result<(), u8> {
        let block = u128::from(self.image.block_bytes);
        let (start, len) = (u128::from(sector) * 512, u128::from(bytes));
        let inside = start + len <= u128::from(self.image.capacity_sectors) * 512;
        let whole = start % block == 0 && len % block == 0;
        if inside && whole && len > 0 { Ok(()) } else { Err(IO_ERROR) }
    }

    fn ranges(&self, data: &[Run], flags_allowed: u32) -> Result<Vec<(u64, u64, bool)>, u8> {
        let count = total(data) / 16;
        let fits = total(data).is_multiple_of(16) && count > 0 && count <= RANGES_MAX as u64;
        if self.image.read_only || !fits {
            return Err(IO_ERROR);
        }
        let mut ranges = Vec::new();
        for wire in self.bytes(data).chunks(16) {
            let (sector, sectors, flags, next) = decode(wire);
            let flags = u32::from(flags) | u32::from(next) << 16;
            if flags & !flags_allowed != 0 {
                return Err(UNSUPPORTED);
            }
            if sectors > RANGE_SECTORS_MAX {
                return Err(IO_ERROR);
            }
            let bytes = u64::from(sectors) * 512;
            self.check(sector, bytes)?;
            ranges.push((sector * 512, bytes, flags & 1 != 0));
        }
        Ok(ranges)
    }

    fn bytes(&self, runs: &[Run]) -> Vec<u8> {
        let dump = |&(region, offset, len): &Run| {
            self.mem.dump(region, offset, usize::try_from(len).expect("small"))
        };
        runs.iter().flat_map(dump).collect()
    }
}

impl Buffers {
    /// The core's choice: a buffer of no bytes is none.
    fn push(&mut self, addr: u64, len: u32, flags: u16) {
        if len > 0 {
            self.list.push((addr, len, flags & WRITE != 0));
        }
    }
}

fn out_of_order(list: &[(u64, u32, bool)]) -> bool {
    list.windows(2).any(|pair| pair[0].2 && !pair[1].2)
}

fn decode(bytes: &[u8]) -> Desc {
    (
        u64::from_le_bytes(bytes[..8].try_into().expect("eight bytes")),
        u32::from_le_bytes(bytes[8..12].try_into().expect("four bytes")),
        u16::from_le_bytes(bytes[12..14].try_into().expect("two bytes")),
        u16::from_le_bytes(bytes[14..].try_into().expect("two bytes")),
    )
}

fn total(runs: &[Run]) -> u64 {
    runs.iter().map(|run| run.2).sum()
}

/// The bytes from `from` to `to` of a stream, neighbours joined.
#[must_use]
pub fn cut(runs: &[Run], from: u64, to: u64) -> Vec<Run> {
    let (mut at, mut kept) = (0, Vec::<Run>::new());
    for &(region, offset, len) in runs {
        let (start, end) = (from.max(at), to.min(at + len));
        if start < end {
            let place = offset + (start - at);
            match kept.last_mut() {
                Some(last) if last.0 == region && last.1 + last.2 == place => last.2 += end - start,
                _ => kept.push((region, place, end - start)),
            }
        }
        at += len;
    }
    kept
}
