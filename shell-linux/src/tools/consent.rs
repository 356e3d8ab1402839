//! Whether a disk may be written over: only if nothing on it is anybody's.

use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use sluice_core::memory::Segment;
use sluice_sim::driver::{Buffer, RequestSpec};
use sluice_sim::history::{Content, SECTOR};

use super::guest::{Guest, SCRATCH_BYTES};
use crate::frontend::{GUEST, REGION};
use crate::image::Fault;
use crate::size::show_size;

/// Reads that are made at most: enough for every byte of 2 GiB, or for a sample of more.
const READS_MAX: u64 = (2 << 30) / SCRATCH_BYTES;
/// Reads of a sample.
const SAMPLES: u64 = 1024;
/// How long one of them may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// Looks at the first `sectors` of the disk: zeroes and the stamps of earlier runs may be written
/// over. Where there are too many to look at all of them, a sample is: it may find somebody's data,
/// and cannot find that there is none.
///
/// # Errors
/// When there is anything else, or may be, or the disk cannot be read.
//= spec/tools.md#TOOL-8
pub(super) fn ask(guest: &mut Guest, sectors: u64) -> anyhow::Result<()> {
    let step = SCRATCH_BYTES / SECTOR as u64;
    let all = sectors.div_ceil(step);
    if all <= READS_MAX {
        return (0..all).try_for_each(|n| look(guest, n * step, step.min(sectors - n * step)));
    }
    for place in samples(all) {
        look(guest, place * step, step.min(sectors - place * step))?;
    }
    bail!(Fault::Usage(format!(
        "{SAMPLES} samples of {} are blank or of earlier runs, which is not to say that the rest \
         is: with --yes it is written over",
        show_size(sectors * SECTOR as u64),
    )))
}

/// Places spread evenly, from the first of so many to the last.
fn samples(all: u64) -> impl Iterator<Item = u64> {
    let last = u128::from(all - 1);
    (0..u128::from(SAMPLES)).map(move |n| {
        u64::try_from(last * n / u128::from(SAMPLES - 1)).expect("no more than the last")
    })
}

/// Looks at so many sectors from one on.
fn look(guest: &mut Guest, sector: u64, sectors: u64) -> anyhow::Result<()> {
    let bytes = u32::try_from(sectors * SECTOR as u64).context("a sample")?;
    let mut sample = vec![0; bytes as usize];
    read(guest, sector, &mut sample)?;
    for (content, at) in sample.as_chunks().0.iter().map(Content::of).zip(sector..) {
        if let Content::Other(_) = content {
            bail!(Fault::Usage(format!(
                "sector {at} holds data; with --yes it is written over, and much else"
            )));
        }
    }
    Ok(())
}

/// Reads from a sector on.
fn read(guest: &mut Guest, sector: u64, into: &mut [u8]) -> anyhow::Result<()> {
    let mem = guest.memory.map()?;
    let offset = guest.scratch();
    let queue = &mut guest.queues[0];
    let len = u32::try_from(into.len()).context("a sample")?;
    let buffers = [Buffer { addr: GUEST + offset, len }];
    ensure!(
        queue.driver.add(&mem, &RequestSpec::read(sector, &buffers)).is_some(),
        "the ring is full"
    );
    queue.submit(&mem);
    let give_up = Instant::now() + PATIENCE;
    let done = loop {
        if let Some(done) = queue.driver.reap(&mem)? {
            break done;
        }
        ensure!(Instant::now() < give_up, "reading sector {sector} takes too long");
        std::thread::yield_now();
    };
    ensure!(done.status == 0, "reading sector {sector} failed with status {}", done.status);
    mem.copy_out(Segment::new(REGION, offset, len), into).ok().context("memory")
}

#[cfg(test)]
mod tests {
    use super::*;

    //= spec/tools.md#TOOL-8
    #[test]
    fn a_sample_spreads_over_the_whole_disk() {
        for all in [READS_MAX + 1, 1 << 40] {
            let places: Vec<_> = samples(all).collect();
            assert_eq!((places[0], *places.last().unwrap()), (0, all - 1));
            let longest = places.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap();
            assert!(longest <= all / (SAMPLES - 1) + 1, "no part is left out");
        }
    }
}
