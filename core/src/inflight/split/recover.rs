//! What a split queue goes on from: the conclusions from its area and its ring.
//!
//! The region is memory that the front end shares, as hostile as a ring. It is copied once, the
//! copy is checked, and only then is anything stored: what this daemon would say if it were
//! killed at any of these stores is what it says now.

use super::{HEADER_BYTES, QueueRegion, RECORD_BYTES, Record, SplitInflight, VERSION};
use crate::inflight::members::Members;
use crate::inflight::{InflightFault, Resubmission};
use crate::limits::QUEUE_SIZE_MAX;
use crate::memory::{OutOfRegion, RegionId, SharedMemory};
use crate::planted::{Fault, planted};
use crate::virtqueue::{ChainToken, QueueFault};

/// What the ring says when a queue starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingState {
    /// Entries.
    pub size: u16,
    /// The available index that the driver published.
    pub avail_idx: u16,
    /// The used index that the driver sees.
    pub used_idx: u16,
    /// The base that the front end set.
    pub base: u16,
}

/// Goes on with the area at `offset` of `region`: what is to be submitted again before anything
/// new is taken, and where that begins.
///
/// # Errors
/// [`QueueFault::Inflight`] when the area is impossible, [`QueueFault::RingUnmapped`] when it is
/// not there. Nothing has been stored then.
pub fn resume(
    mem: &impl SharedMemory,
    region: RegionId,
    offset: u64,
    ring: RingState,
) -> Result<(SplitInflight, Resubmission), QueueFault> {
    let header: QueueRegion = mem.read(region, offset)?;
    let mut records = [Record::EMPTY; QUEUE_SIZE_MAX as usize];
    let records = &mut records[..usize::from(ring.size)];
    for (record, at) in records.iter_mut().zip(0..) {
        *record = mem.read(region, offset + HEADER_BYTES + RECORD_BYTES * at)?;
    }
    let inflight = SplitInflight { region, offset, counter: 0, batch_head: 0 };
    //= spec/recovery.md#REC-11
    if header.version.get() == 0 {
        check_window(&ring, 0)?;
        inflight.initialise(mem, &ring, records)?;
        return Ok((inflight, Resubmission::new()));
    }
    let version = (header.version.get(), header.features.get(), header.desc_num.get());
    if version != (VERSION, 0, ring.size) {
        return Err(InflightFault::Layout.into());
    }
    let batch = last_batch(&header, records, ring)?;
    for &head in &batch {
        records[usize::from(head)].inflight = 0;
    }
    let again = in_order(records);
    check_window(&ring, again.len())?;
    inflight.repair(mem, &header, &batch, ring)?;
    Ok((inflight, again))
}

impl SplitInflight {
    /// Makes an area empty that nobody has used, whatever its records hold.
    //= spec/inflight.md#INF-6
    fn initialise(
        &self,
        mem: &impl SharedMemory,
        ring: &RingState,
        records: &[Record],
    ) -> Result<(), OutOfRegion> {
        for (head, record) in (0..).zip(records) {
            if record.inflight != 0 {
                self.clear(mem, ChainToken(head))?;
            }
        }
        let used_idx = if planted(Fault::UsedIndexNotTaken) { 0 } else { ring.used_idx };
        self.open(mem, ring.size, used_idx)
    }

    /// The last batch is settled at last.
    //= spec/recovery.md#REC-7
    fn repair(
        &self,
        mem: &impl SharedMemory,
        header: &QueueRegion,
        batch: &[u16],
        ring: RingState,
    ) -> Result<(), OutOfRegion> {
        if header.used_idx.get() == ring.used_idx {
            return Ok(());
        }
        if planted(Fault::SettledFirst) {
            self.settle(mem, ring.used_idx)?;
        }
        for &head in batch {
            self.clear(mem, ChainToken(head.into()))?;
        }
        self.settle(mem, ring.used_idx)
    }
}

/// The chains that were given back with the last used index, if the region does not know yet
/// whether all of them are.
//= spec/recovery.md#REC-2
fn last_batch(
    header: &QueueRegion,
    records: &[Record],
    ring: RingState,
) -> Result<Resubmission, InflightFault> {
    let count = ring.used_idx.wrapping_sub(header.used_idx.get());
    if count > ring.size {
        return Err(InflightFault::UsedIndex);
    }
    let count = if planted(Fault::OneHeadBatch) { count.min(1) } else { count };
    let count = if planted(Fault::BatchForgotten) { 0 } else { count };
    let mut members = Members::new(ring.size);
    let mut batch = Resubmission::new();
    let mut head = header.last_batch_head.get();
    for _ in 0..count {
        members.add(head)?;
        batch.push(head).map_err(|_| InflightFault::Batch)?;
        head = records[usize::from(head)].next.get();
    }
    Ok(batch)
}

/// The marked heads, the one that was taken last first.
//= spec/recovery.md#REC-3
//= spec/recovery.md#REC-6
fn in_order(records: &[Record]) -> Resubmission {
    let marked = (0..).zip(records).filter(|(_, record)| record.inflight == 1);
    let mut heads: Resubmission = marked.map(|(head, _)| head).collect();
    let cut = if planted(Fault::OrderCut) { 0xffff } else { u64::MAX };
    let taken = |&head: &u16| (records[usize::from(head)].counter.get() & cut, head);
    heads.sort_unstable_by_key(|head| core::cmp::Reverse(taken(head)));
    if planted(Fault::OrderReversed) {
        heads.reverse();
    }
    heads
}

/// What is marked is a part of what the driver waits for, and the front end agrees about where
/// the rest begins: at the used index, if it only knows the ring, or behind what was taken.
//= spec/recovery.md#REC-4
//= spec/recovery.md#REC-5
fn check_window(ring: &RingState, marked: usize) -> Result<(), InflightFault> {
    let waiting = ring.avail_idx.wrapping_sub(ring.used_idx);
    let taken = ring.base.wrapping_sub(ring.used_idx);
    if waiting > ring.size || marked > usize::from(waiting) {
        return Err(InflightFault::Count);
    }
    if taken != 0 && usize::from(taken) != marked {
        return Err(InflightFault::Base);
    }
    Ok(())
}
