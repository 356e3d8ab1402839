//! What a packed queue goes on from. There is no index in memory that says where its ring
//! stands: that is in the area alone, and whether the last batch was given back is in the flags
//! of its first descriptor.

use zerocopy::byteorder::little_endian::{U16, U64};

use super::{
    LISTS, Links, Lists, PLACES, PackedInflight, Places, RECORD_COUNTER, RECORD_SAVED, VERSION,
};
use crate::inflight::members::Members;
use crate::inflight::{InflightFault, Resubmission};
use crate::limits::QUEUE_SIZE_MAX;
use crate::memory::{OutOfRegion, RegionId, SharedMemory};
use crate::planted::{Fault, planted};
use crate::virtqueue::layout::{DESC_AVAIL, DESC_BYTES, DESC_USED, PACKED_FLAGS};
use crate::virtqueue::packed::Position;
use crate::virtqueue::{PackedBase, QueueFault};

/// What is known of a packed ring when its queue starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PackedState {
    /// Where its descriptors lie.
    pub desc: (RegionId, u64),
    /// Entries.
    pub size: u16,
    /// Where the front end wants to go on. It counts only for an area that nobody has used: after
    /// a kill no front end knows.
    pub base: PackedBase,
}

/// What a packed queue goes on with.
#[derive(Clone, Debug)]
pub struct Resumed {
    /// Its area.
    pub inflight: PackedInflight,
    /// The place up to which descriptors were given back.
    pub used: Position,
    /// Descriptors that were taken behind it.
    pub taken: u16,
    /// Buffer ids of the chains to be submitted again, the one that was taken last first.
    pub again: Resubmission,
}

/// Goes on with the area at `offset` of `region`.
///
/// # Errors
/// [`QueueFault::Inflight`] when the area is impossible, [`QueueFault::RingUnmapped`] when it or
/// the ring is not there. Nothing has been stored then.
//= spec/recovery.md#REC-12
pub fn resume(
    mem: &impl SharedMemory,
    region: RegionId,
    offset: u64,
    ring: PackedState,
) -> Result<Resumed, QueueFault> {
    let features: U64 = mem.read(region, offset)?;
    let lists: Lists = mem.read(region, offset + LISTS)?;
    let places: Places = mem.read(region, offset + PLACES)?;
    let mut inflight = PackedInflight::new(region, offset, ring.size);
    if lists.version.get() == 0 {
        return initialise(mem, inflight, ring);
    }
    if (lists.version.get(), features.get(), lists.desc_num.get()) != (VERSION, 0, ring.size) {
        return Err(InflightFault::Layout.into());
    }
    let (new, old) = settled(&places, ring.size)?;
    // The driver may have made it available for another lap by now: that leaves one of the bits.
    let used = (flags_at(mem, &ring, old)? ^ old.used_flags()) & DESC_USED == 0;
    let given_back = new != old && used && !planted(Fault::BatchDoubted);
    let (used, free) = match given_back {
        true => (new, lists.free_head.get()),
        false => (old, lists.old_free_head.get()),
    };
    let mut records = [Links::EMPTY; QUEUE_SIZE_MAX as usize];
    let records = &mut records[..usize::from(ring.size)];
    for (links, at) in records.iter_mut().zip(0..) {
        *links = mem.read(region, inflight.record(at))?;
    }
    let mut members = Members::new(ring.size);
    let mut at = free;
    while at != ring.size {
        members.add(at)?;
        at = records[usize::from(at)].next.get();
    }
    let (again, taken) = chains(mem, &mut inflight, records, &mut members)?;
    if taken > 0 && flags_at(mem, &ring, used)? != used.available_flags() {
        return Err(InflightFault::UsedIndex.into());
    }
    if !planted(Fault::UsedLeft) {
        take_back(mem, &ring, used, taken)?;
    }
    let under_way = |at: u16| again.iter().any(|&id| inflight.head[usize::from(id)] == at);
    for (links, at) in records.iter().zip(0..) {
        if links.inflight != 0 && !under_way(at) {
            mem.write(region, inflight.record(at), &0_u8)?;
        }
    }
    inflight.begin(records.iter().map(|links| links.next.get()), free, used);
    inflight.store(mem)?;
    Ok(Resumed { inflight, used, taken, again })
}

/// Makes the entries of all chains under way available again. A batch that was not given back
/// may have left used descriptors behind its first; the driver would come upon them as soon as
/// anything is given back before them.
//= spec/recovery.md#REC-13
fn take_back(
    mem: &impl SharedMemory,
    ring: &PackedState,
    used: Position,
    taken: u16,
) -> Result<(), OutOfRegion> {
    for ahead in 1..taken {
        let place = used.after(ahead, ring.size);
        if flags_at(mem, ring, place)? != place.available_flags() {
            let (region, at) = flags_place(ring, place);
            mem.store_release_u16(region, at, place.available_flags())?;
        }
    }
    Ok(())
}

/// Makes an area empty that nobody has used: all records are free, in their order.
fn initialise(
    mem: &impl SharedMemory,
    mut inflight: PackedInflight,
    ring: PackedState,
) -> Result<Resumed, QueueFault> {
    let PackedBase { avail, used } = ring.base;
    if avail != used {
        return Err(InflightFault::Base.into());
    }
    for at in 0..ring.size {
        let links = Links { next: U16::new(at + 1), ..Links::EMPTY };
        mem.write(inflight.region, inflight.record(at), &links)?;
    }
    inflight.begin(1..=ring.size, 0, used);
    mem.write(inflight.region, inflight.offset, &U64::ZERO)?;
    inflight.store_fresh(mem)?;
    Ok(Resumed { inflight, used, taken: 0, again: Resubmission::new() })
}

/// The two places of an area, which are at most one lap apart.
fn settled(places: &Places, size: u16) -> Result<(Position, Position), InflightFault> {
    let position = |index: U16, wrap: u8| match wrap {
        0 | 1 => Position::new(index.get(), wrap == 1, size).ok_or(InflightFault::UsedIndex),
        _ => Err(InflightFault::UsedIndex),
    };
    let new = position(places.used_idx, places.used_wrap)?;
    let old = position(places.old_used_idx, places.old_used_wrap)?;
    if old.distance(new, size) <= size { Ok((new, old)) } else { Err(InflightFault::UsedIndex) }
}

const fn flags_place(ring: &PackedState, place: Position) -> (RegionId, u64) {
    let (region, offset) = ring.desc;
    (region, offset + DESC_BYTES * place.index() as u64 + PACKED_FLAGS)
}

/// Of the flags of a descriptor those that say whose it is.
fn flags_at(
    mem: &impl SharedMemory,
    ring: &PackedState,
    place: Position,
) -> Result<u16, OutOfRegion> {
    let (region, at) = flags_place(ring, place);
    Ok(mem.load_acquire_u16(region, at)? & (DESC_AVAIL | DESC_USED))
}

/// The chains under way by buffer id, the one that was taken last first, and how many descriptors
/// they have. Together with the free ones that is every record, once.
fn chains(
    mem: &impl SharedMemory,
    inflight: &mut PackedInflight,
    records: &[Links],
    members: &mut Members,
) -> Result<(Resubmission, u16), QueueFault> {
    let mut counters = [0; QUEUE_SIZE_MAX as usize];
    let mut ids = Members::new(inflight.size);
    let mut again = Resubmission::new();
    let mut taken = 0;
    let free = members.clone();
    for (links, head) in records.iter().zip(0..) {
        if links.inflight != 1 || free.has(head) {
            continue;
        }
        let mut last = head;
        members.add(head)?;
        for _ in 1..links.num.get() {
            last = records[usize::from(last)].next.get();
            members.add(last)?;
        }
        if last != links.last.get() || links.num.get() == 0 {
            return Err(InflightFault::Batch.into());
        }
        let id: U16 = mem.read(inflight.region, inflight.record(last) + RECORD_SAVED)?;
        let id = id.get();
        ids.add(id)?;
        inflight.head[usize::from(id)] = head;
        inflight.last[usize::from(head)] = last;
        let counter: U64 = mem.read(inflight.region, inflight.record(head) + RECORD_COUNTER)?;
        counters[usize::from(id)] = counter.get();
        taken += links.num.get();
        again.push(id).map_err(|_| InflightFault::Count)?;
    }
    if !members.is_all() {
        return Err(InflightFault::Count.into());
    }
    let cut = if planted(Fault::OrderCutPacked) { 0xffff } else { u64::MAX };
    let order = |&id: &u16| {
        let id = usize::from(id);
        core::cmp::Reverse((counters[id] & cut, inflight.head[id]))
    };
    again.sort_unstable_by_key(order);
    Ok((again, taken))
}
