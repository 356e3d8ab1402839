//! What a guest asks for next: requests of all kinds, and some that have to be refused.

use sluice_core::blk::request::RangeWire;
use sluice_core::limits::{RANGE_SECTORS_MAX, RANGES_MAX};
use zerocopy::byteorder::little_endian::{U32, U64};

use crate::bus::decode::Disk;
use crate::driver::Kind;
use crate::prng::Prng;

/// How often a guest wants what, and how much of it.
#[derive(Clone, Copy, Debug)]
pub struct Taste {
    /// Weights of reads, writes, flushes, discards, write-zeroes, identifications, and of
    /// requests that are wrong.
    pub weights: [u64; 7],
    /// Sectors that one request moves at most.
    pub sectors_max: u64,
    /// Segments of one request at most.
    pub segments_max: u64,
    /// Requests of one queue under way at most.
    pub depth_max: u64,
    /// Of 1000 requests, how many lie somewhere in the image instead of in its first sectors.
    pub spread: u64,
}

impl Taste {
    /// Any taste.
    #[must_use]
    pub fn draw(prng: &mut Prng) -> Self {
        let mut weights = [0; 7];
        weights.iter_mut().for_each(|weight| *weight = 1 << prng.below(8));
        // Nobody would notice anything without reads and writes.
        weights[0] += 32;
        weights[1] += 32;
        Self {
            weights,
            sectors_max: 1 << prng.below(6),
            segments_max: 1 + prng.skewed(24),
            depth_max: 1 + prng.skewed(48),
            spread: prng.pick(&[0, 100, 500, 1000]),
        }
    }
}

/// One request before it has memory.
#[derive(Clone, Debug)]
pub struct Wish {
    /// Its type.
    pub kind: Kind,
    /// Its first sector.
    pub sector: u64,
    /// Bytes of data.
    pub bytes: u64,
    /// Its ranges.
    pub ranges: Vec<RangeWire>,
    /// Whether it is one that any disk has to refuse.
    wrong: bool,
}

impl Wish {
    /// The next wish.
    pub fn draw(prng: &mut Prng, taste: &Taste, disk: &Disk) -> Self {
        let mut at = prng.below(taste.weights.iter().sum());
        let choice = taste.weights.iter().position(|&weight| {
            let hit = at < weight;
            at = at.wrapping_sub(weight);
            hit
        });
        let (sector, sectors) = place(prng, taste, disk);
        let bytes = sectors * 512;
        let payload = |kind| Self { kind, sector, bytes, ranges: Vec::new(), wrong: false };
        let ranged = |kind, ranges| Self { kind, sector: 0, bytes: 0, ranges, wrong: false };
        match choice {
            Some(0) => payload(Kind::Read),
            Some(1) => payload(Kind::Write),
            Some(2) => Self { bytes: 0, ..payload(Kind::Flush) },
            Some(3) => ranged(Kind::Discard, ranges(prng, taste, disk, 0)),
            Some(4) => ranged(Kind::WriteZeroes, ranges(prng, taste, disk, 1)),
            Some(5) => Self { bytes: prng.pick(&[1, 8, 19, 20, 21, 64]), ..payload(Kind::GetId) },
            _ => Self { wrong: true, ..wrong(prng, taste, disk, sector, bytes) },
        }
    }
}

impl Wish {
    /// Whether this disk has to carry it out.
    #[must_use]
    pub const fn is_legal(&self, disk: &Disk) -> bool {
        !self.wrong
            && match self.kind {
                Kind::Write => !disk.read_only,
                Kind::Discard => disk.discard,
                Kind::WriteZeroes => disk.write_zeroes,
                Kind::Read | Kind::Flush | Kind::GetId => true,
                Kind::Other { .. } => false,
            }
    }
}

/// Some whole blocks of the image.
fn place(prng: &mut Prng, taste: &Taste, disk: &Disk) -> (u64, u64) {
    let blocks = disk.sectors / disk.block_sectors;
    let most = (taste.sectors_max / disk.block_sectors).clamp(1, blocks);
    let count = 1 + prng.skewed(most - 1);
    let last = blocks - count;
    let start = match prng.below(10) {
        0 => last,
        _ if prng.chance(taste.spread) => prng.between(0, last),
        _ => prng.skewed(last.min(48)),
    };
    (start * disk.block_sectors, count * disk.block_sectors)
}

fn range(sector: u64, sectors: u64, flags: u32) -> RangeWire {
    let sectors = U32::new(u32::try_from(sectors).unwrap_or(u32::MAX));
    RangeWire { sector: U64::new(sector), sectors, flags: U32::new(flags) }
}

/// Legal ranges that do not meet each other.
fn ranges(prng: &mut Prng, taste: &Taste, disk: &Disk, flags: u64) -> Vec<RangeWire> {
    let count = 1 + prng.skewed(RANGES_MAX as u64 - 1);
    let mut found: Vec<(u64, u64)> = Vec::new();
    for _ in 0..count {
        let (start, len) = place(prng, taste, disk);
        if found.iter().all(|&(s, l)| s + l <= start || start + len <= s) {
            found.push((start, len));
        }
    }
    let flag = |prng: &mut Prng| u32::try_from(prng.between(0, flags)).unwrap_or(0);
    found.iter().map(|&(start, len)| range(start, len, flag(prng))).collect()
}

/// A request that is well-formed as a chain and has to be refused.
fn wrong(prng: &mut Prng, taste: &Taste, disk: &Disk, sector: u64, bytes: u64) -> Wish {
    let end = disk.sectors;
    let kind = if prng.chance(500) { Kind::Read } else { Kind::Write };
    let payload = |sector, bytes| Wish { kind, sector, bytes, ranges: Vec::new(), wrong: false };
    let ranged = |kind, ranges| Wish { kind, sector: 0, bytes: 0, ranges, wrong: false };
    let ranged_kind = if prng.chance(500) { Kind::Discard } else { Kind::WriteZeroes };
    match prng.below(12) {
        0 => payload(sector, 0),
        1 => payload(sector, bytes + 1 + prng.below(510)),
        2 => payload(end - prng.below(disk.block_sectors), bytes),
        // One block too many: only the sum tells.
        3 => payload(end - disk.block_sectors, 2 * 512 * disk.block_sectors),
        // Sectors whose byte addresses wrap around to the first ones.
        4 => payload(1 << 55, bytes),
        5 => payload(u64::MAX, bytes),
        6 => {
            let kind = prng.pick(&[2, 3, 5, 7, 14, 16, 1 << 31, u32::MAX]);
            let kind = Kind::Other { kind, writable: prng.chance(500) };
            Wish { kind, ..payload(sector, bytes) }
        }
        // What is wrong with ranges comes last, behind some that would be right.
        choice => {
            let mut found = ranges(prng, taste, disk, 0);
            found.truncate(RANGES_MAX - 1);
            let bad = match choice {
                7 => range(sector, 0, 0),
                8 => range(end - disk.block_sectors, 2 * disk.block_sectors, 0),
                9 => range(u64::MAX - 1, 2, 0),
                10 => range(0, u64::from(RANGE_SECTORS_MAX) + 1, 0),
                _ => range(sector, disk.block_sectors, prng.pick(&[2, 4, 1 << 31])),
            };
            found.push(bad);
            ranged(ranged_kind, found)
        }
    }
}
