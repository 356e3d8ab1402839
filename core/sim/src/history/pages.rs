//! All sectors that were ever touched: images are large and histories sparse.

use std::collections::BTreeMap;

use super::sector::Sector;

const PAGE: u64 = 64;
const PAGE_SECTORS: usize = 64;

/// Sectors in pages, so that a request looks up one or two.
#[derive(Debug, Default)]
pub(super) struct Sectors {
    pages: BTreeMap<u64, Box<[Sector; PAGE_SECTORS]>>,
}

impl Sectors {
    /// Visits a range.
    #[inline]
    pub(super) fn each(&mut self, first: u64, count: u64, mut visit: impl FnMut(u64, &mut Sector)) {
        let (mut at, end) = (first, first + count);
        while at < end {
            let page = self
                .pages
                .entry(at / PAGE)
                .or_insert_with(|| Box::new([const { Sector::UNTOUCHED }; PAGE_SECTORS]));
            let stop = end.min((at / PAGE + 1) * PAGE);
            for (sector, at) in page[(at % PAGE) as usize..].iter_mut().zip(at..stop) {
                visit(at, sector);
            }
            at = stop;
        }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Sector> {
        self.pages.values().flat_map(|page| page.iter())
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Sector> {
        self.pages.values_mut().flat_map(|page| page.iter_mut())
    }
}
