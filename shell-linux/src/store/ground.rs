//! What all steps of an image's operations stand on: its file and what the file system can do.

use std::fs::File;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Context;

use super::align::Alignment;
use super::apart::Apart;
use super::file::Way;
use super::vector::Vector;
use crate::mapping::Mapping;

/// Bytes of zeroes that are kept for writing.
const ZEROES: u64 = 64 << 10;

/// The file and its abilities. Shared by the threads of an image.
#[derive(Debug)]
pub(super) struct Ground {
    pub(super) file: File,
    /// What direct I/O asks for; all 1 for the page cache.
    pub(super) alignment: Alignment,
    /// Whether bytes may go through the page cache, where requests that overlap get mixed up.
    pub(super) cached: bool,
    pub(super) punch: Ability,
    pub(super) zero_range: Ability,
    zeroes: Zeroes,
}

impl Ground {
    pub(super) fn new(file: File, way: &Way) -> anyhow::Result<Self> {
        let (alignment, cached) = (way.alignment, way.cached);
        let zeroes = Zeroes::new()?;
        let (punch, zero_range) = (Ability::assumed(), Ability::assumed());
        Ok(Self { file, alignment, cached, punch, zero_range, zeroes })
    }

    /// What keeps requests apart, for engines that have several at once.
    pub(super) fn apart(&self) -> Option<Apart> {
        self.cached.then(Apart::new)
    }

    /// A vector of `len` zero bytes, or as many as make a good write.
    pub(super) fn zeroes(&self, len: u64, into: &mut Vector) {
        into.clear();
        let mut left = len.min(sluice_core::limits::PART_BYTES_MAX);
        while left > 0 {
            let piece = left.min(ZEROES);
            let Ok(iovec) = self.zeroes.block.iovec(0, piece) else { return };
            into.push(iovec);
            left -= piece;
        }
    }

    /// Fills what is left of `vector` with zeroes.
    pub(super) fn clear(&self, vector: &mut Vector) -> rustix::io::Result<()> {
        vector.read_all(&self.zeroes.source, 0)
    }
}

/// Something that a file system may turn out not to do.
#[derive(Debug)]
pub(super) struct Ability(AtomicBool);

impl Ability {
    /// Taken for granted until it fails.
    const fn assumed() -> Self {
        Self(AtomicBool::new(true))
    }

    pub(super) fn is_there(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    pub(super) fn rule_out(&self) {
        self.0.store(false, Ordering::Relaxed);
    }
}

/// Zeroes to write, and zeroes to fill guest memory with.
#[derive(Debug)]
struct Zeroes {
    /// Never written, so all its pages are the one zero page.
    block: Mapping,
    source: File,
}

impl Zeroes {
    fn new() -> anyhow::Result<Self> {
        let source = File::open("/dev/zero").context("/dev/zero")?;
        Ok(Self { block: Mapping::anonymous(ZEROES)?, source })
    }
}
