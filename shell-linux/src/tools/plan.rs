//! What a verifying guest does next: every kind of request, in every legal form.

use sluice_core::blk::BlkFeatures;
use sluice_sim::driver::Shape;
use sluice_sim::prng::Prng;

use crate::frontend::Connection;

/// Sectors in the longest request.
pub(super) const SECTORS_MAX: u32 = 128;
/// Bytes left free between segments, at most.
const GAP_MAX: u64 = 64;
/// Segments in the most scattered request.
pub(super) const SEGMENTS_MAX: u16 = 9;

/// The part of a disk that is written, and what the device can do with it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Area {
    pub(super) sectors: u64,
    /// Sectors in a logical block: everything is a multiple of it.
    block: u64,
    segments_max: u16,
    indirect: bool,
    zeroes: bool,
    discards: bool,
    flushes: bool,
    /// Longest discard and write-zeroes that the device takes.
    discard_max: u32,
    zeroes_max: u32,
}

impl Area {
    /// The first `sectors` of a disk, with requests of at most so many segments.
    pub(super) fn new(
        connection: &Connection,
        sectors: u64,
        segments: u16,
        indirect: bool,
    ) -> Self {
        let (features, config) = (connection.features(), connection.config());
        let block = connection.block_sectors();
        let seg_max = u16::try_from(config.seg_max.get()).unwrap_or(u16::MAX);
        let limited = features.contains(BlkFeatures::SEG_MAX) && seg_max > 0;
        let whole = |sectors: u32| sectors / u32::try_from(block).unwrap_or(1);
        Self {
            sectors: sectors / block * block,
            block,
            segments_max: if limited { segments.min(seg_max) } else { segments },
            indirect,
            zeroes: features.contains(BlkFeatures::WRITE_ZEROES)
                && whole(config.max_write_zeroes_sectors.get()) > 0,
            discards: features.contains(BlkFeatures::DISCARD)
                && whole(config.max_discard_sectors.get()) > 0,
            flushes: features.contains(BlkFeatures::FLUSH),
            discard_max: config.max_discard_sectors.get(),
            zeroes_max: config.max_write_zeroes_sectors.get(),
        }
    }

    /// The longest request in sectors, for reading everything.
    pub(super) fn longest(&self) -> u64 {
        (u64::from(SECTORS_MAX) / self.block * self.block).max(self.block)
    }
}

/// What a request does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum What {
    Read,
    Write,
    Zero,
    Discard,
    Flush,
}

/// One request to be.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    pub(super) what: What,
    pub(super) first: u64,
    pub(super) sectors: u32,
    /// Length of each segment, and the gap before it.
    pub(super) segments: Vec<(u32, u32)>,
    pub(super) shape: Shape,
    /// Whether zeroes may be made by giving space back.
    pub(super) unmap: bool,
}

impl Plan {
    pub(super) const NOTHING: Self = Self {
        what: What::Flush,
        first: 0,
        sectors: 0,
        segments: Vec::new(),
        shape: Shape::PLAIN,
        unmap: false,
    };

    /// Draws the next one.
    pub(super) fn draw(&mut self, prng: &mut Prng, area: &Area) {
        self.what = match prng.below(20) {
            0 if area.flushes => What::Flush,
            1 if area.discards => What::Discard,
            2..4 if area.zeroes => What::Zero,
            4..12 => What::Read,
            _ => What::Write,
        };
        self.unmap = prng.chance(500);
        let most = match self.what {
            What::Discard => area.discard_max.min(SECTORS_MAX),
            What::Zero => area.zeroes_max.min(SECTORS_MAX),
            _ => SECTORS_MAX,
        };
        let blocks_max = (u64::from(most) / area.block).max(1);
        let blocks = (1 + prng.skewed(blocks_max - 1)).min(area.sectors / area.block);
        // Half of everything meets in a small place, so that requests overlap in flight.
        let all = area.sectors / area.block;
        let place = if prng.chance(500) { all.min(2 * blocks_max) } else { all };
        self.first = prng.below(place - blocks.min(place) + 1).min(all - blocks) * area.block;
        self.sectors = u32::try_from(blocks * area.block).unwrap_or(SECTORS_MAX);
        self.shape = Shape {
            header_cut: if prng.chance(800) {
                16
            } else {
                u8::try_from(prng.below(16)).unwrap_or(0)
            },
            header_inline: prng.chance(100),
            status_inline: prng.chance(100),
            indirect: area.indirect && prng.chance(500),
        };
        self.cut(prng, area.segments_max);
    }

    /// A plain read.
    pub(super) fn read(&mut self, first: u64, sectors: u32) {
        (self.what, self.first, self.sectors) = (What::Read, first, sectors);
        self.shape = Shape::PLAIN;
        self.segments.clear();
        self.segments.push((512 * sectors, 0));
    }

    /// Cuts the data into segments: mostly at odd places and with gaps, sometimes as it is.
    fn cut(&mut self, prng: &mut Prng, segments_max: u16) {
        self.segments.clear();
        let mut rest = 512 * self.sectors;
        let count = if prng.chance(300) { 1 } else { 1 + prng.below(segments_max.into()) };
        for left in (1..count).rev() {
            let room = rest - u32::try_from(left).unwrap_or(0);
            let len = 1 + u32::try_from(prng.skewed(u64::from(room) - 1)).unwrap_or(0);
            self.segments.push((len, gap(prng)));
            rest -= len;
        }
        self.segments.push((rest, gap(prng)));
    }

    /// Whether the request has data.
    pub(super) const fn has_data(&self) -> bool {
        matches!(self.what, What::Read | What::Write)
    }
}

fn gap(prng: &mut Prng) -> u32 {
    if prng.chance(500) { 0 } else { u32::try_from(prng.below(GAP_MAX)).unwrap_or(0) }
}

/// Bytes of memory for a request's data: an inline header before it, gaps, a status behind it.
pub(super) const fn data_bytes() -> u64 {
    let gaps = GAP_MAX * (SEGMENTS_MAX as u64 + 1);
    (16 + 512 * SECTORS_MAX as u64 + gaps + 1).next_multiple_of(4096)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn area(sectors: u64, block: u64) -> Area {
        Area {
            sectors,
            block,
            segments_max: SEGMENTS_MAX,
            indirect: true,
            zeroes: true,
            discards: true,
            flushes: true,
            discard_max: u32::MAX,
            zeroes_max: 64,
        }
    }

    #[test]
    fn plans_stay_inside_the_area_and_on_blocks() {
        let mut prng = Prng::new(7);
        let mut plan = Plan::NOTHING;
        let mut seen = [false; 5];
        for (sectors, block) in [(1, 1), (8, 8), (100, 1), (4096, 8), (1 << 30, 8)] {
            let area = area(sectors, block);
            for _ in 0..2000 {
                plan.draw(&mut prng, &area);
                seen[plan.what as usize] = true;
                assert!(plan.first + u64::from(plan.sectors) <= sectors, "{plan:?}");
                assert!(plan.sectors > 0 && plan.sectors <= SECTORS_MAX);
                assert_eq!(plan.first % block, 0);
                assert_eq!(u64::from(plan.sectors) % block, 0);
                assert!(plan.what != What::Zero || plan.sectors <= 64);
                let total: u32 = plan.segments.iter().map(|s| s.0).sum();
                assert_eq!(total, 512 * plan.sectors);
                assert!(plan.segments.iter().all(|s| s.0 > 0));
                assert!(plan.segments.len() <= usize::from(SEGMENTS_MAX));
                let gaps: u32 = plan.segments.iter().map(|s| s.1).sum();
                assert!(u64::from(16 + total + gaps + 1) <= data_bytes());
            }
        }
        assert_eq!(seen, [true; 5]);
    }
}
