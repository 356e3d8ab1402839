//! Whether a disk may be written over: only if nothing on it is anybody's.

use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use sluice_core::memory::Segment;
use sluice_sim::driver::{Buffer, RequestSpec};
use sluice_sim::history::{Content, SECTOR};

use super::guest::Guest;
use crate::frontend::{GUEST, REGION};

/// Places of the disk that are looked at.
const SAMPLES: u64 = 64;
/// How long one of them may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// Bytes read at each of them.
const SAMPLE_BYTES: u64 = 4096;

/// Looks at samples over the first `sectors` of the disk: zeroes and the stamps of earlier runs
/// may be written over.
///
/// # Errors
/// When there is anything else, or the disk cannot be read.
pub(super) fn ask(guest: &mut Guest, sectors: u64) -> anyhow::Result<()> {
    let mem = guest.memory.map()?;
    let offset = guest.data(0, 0);
    let queue = &mut guest.queues[0];
    let step = SAMPLE_BYTES / SECTOR as u64;
    let last = sectors.saturating_sub(step);
    let bytes = (sectors * SECTOR as u64).min(SAMPLE_BYTES);
    let bytes = u32::try_from(bytes).context("sample")?;
    let mut sample = vec![0; bytes as usize];
    for place in 0..SAMPLES {
        // The start of the disk in one piece, where labels are, and the rest in even steps.
        let even = last / SAMPLES * place / step * step;
        let sector =
            if place < SAMPLES / 2 { (place * step).min(last / step * step) } else { even };
        let buffers = [Buffer { addr: GUEST + offset, len: bytes }];
        let sent = queue.driver.add(&mem, &RequestSpec::read(sector, &buffers));
        ensure!(sent.is_some(), "the ring is full");
        queue.submit(&mem);
        let give_up = Instant::now() + PATIENCE;
        let done = loop {
            if let Some(done) = queue.driver.reap(&mem)? {
                break done;
            }
            ensure!(Instant::now() < give_up, "reading sector {sector} takes too long");
            std::thread::sleep(Duration::from_micros(50));
        };
        ensure!(done.status == 0, "reading sector {sector} failed with status {}", done.status);
        mem.copy_out(Segment::new(REGION, offset, bytes), &mut sample).ok().context("memory")?;
        for (content, at) in sample.as_chunks().0.iter().map(Content::of).zip(sector..) {
            if let Content::Other(_) = content {
                bail!("sector {at} holds data; with --yes it is written over, and much else");
            }
        }
    }
    Ok(())
}
