//! What a packed queue goes on from. There is no index in memory that says where its ring
//! stands: that is in the area alone, and whether the last batch was given back is in the flags
//! of its first descriptor.

use zerocopy::byteorder::little_endian::{U16, U64};

use super::packed::{LISTS, Links, Lists, PLACES, PackedInflight, Place, Places, RECORD_COUNTER};
use super::recover::Members;
use super::{InflightFault, Resubmission, VERSION};
use crate::limits::QUEUE_SIZE_MAX;
use crate::memory::{OutOfRegion, RegionId, SharedMemory};
use crate::virtqueue::QueueFault;

/// What is known of a packed ring when its queue starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PackedState {
    /// Where its descriptors lie.
    pub desc: (RegionId, u64),
    /// Entries.
    pub size: u16,
    /// Where the front end wants to go on: the next available and the next used place. It counts
    /// only for an area that nobody has used: after a kill no front end knows.
    pub base: (Place, Place),
}

/// What a packed queue goes on with.
#[derive(Clone, Debug)]
pub struct PackedResumed {
    /// Its area.
    pub inflight: PackedInflight,
    /// The place up to which descriptors were given back.
    pub used: Place,
    /// Descriptors that were taken behind it.
    pub taken: u16,
    /// Head records of the chains to be submitted again, the one that was taken last first.
    pub again: Resubmission,
}

/// Descriptor flags: made available, given back; where they stand.
const DESC_AVAIL: u16 = 1 << 7;
const DESC_USED: u16 = 1 << 15;
const DESC_FLAGS: u64 = 14;
const DESC_BYTES: u64 = 16;

/// Goes on with the area at `offset` of `region`.
///
/// # Errors
/// [`QueueFault::Inflight`] when the area is impossible, [`QueueFault::RingUnmapped`] when it or
/// the ring is not there. Nothing has been stored then.
//= spec/recovery.md#REC-12
pub fn resume_packed(
    mem: &impl SharedMemory,
    region: RegionId,
    offset: u64,
    ring: PackedState,
) -> Result<PackedResumed, QueueFault> {
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
    let used_flag = flags_at(mem, &ring, old)? & DESC_USED != 0;
    let given_back = new != old && used_flag == old.wrap;
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
    let waits = flags_at(mem, &ring, used)? & (DESC_AVAIL | DESC_USED);
    if taken > 0 && waits != available(used) {
        return Err(InflightFault::UsedIndex.into());
    }
    take_back(mem, &ring, used, taken)?;
    for (links, at) in records.iter().zip(0..) {
        if links.inflight != 0 && !again.contains(&at) {
            mem.write(region, inflight.record(at), &0_u8)?;
        }
    }
    inflight.begin(records.iter().map(|links| links.next.get()), free, used);
    inflight.store(mem)?;
    Ok(PackedResumed { inflight, used, taken, again })
}

/// Makes the entries of all chains under way available again. A batch that was not given back
/// may have left used descriptors behind its first; the driver would come upon them as soon as
/// anything is given back before them.
//= spec/recovery.md#REC-13
fn take_back(
    mem: &impl SharedMemory,
    ring: &PackedState,
    used: Place,
    taken: u16,
) -> Result<(), OutOfRegion> {
    let (region, offset) = ring.desc;
    for ahead in 1..taken {
        let place = used.after(ahead, ring.size);
        let due = available(place);
        if flags_at(mem, ring, place)? & (DESC_AVAIL | DESC_USED) != due {
            let at = offset + DESC_BYTES * u64::from(place.index) + DESC_FLAGS;
            mem.store_release_u16(region, at, due)?;
        }
    }
    Ok(())
}

/// The flags of a descriptor that the driver made available.
const fn available(place: Place) -> u16 {
    if place.wrap { DESC_AVAIL } else { DESC_USED }
}

/// Makes an area empty that nobody has used: all records are free, in their order.
fn initialise(
    mem: &impl SharedMemory,
    mut inflight: PackedInflight,
    ring: PackedState,
) -> Result<PackedResumed, QueueFault> {
    let (avail, used) = ring.base;
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
    Ok(PackedResumed { inflight, used, taken: 0, again: Resubmission::new() })
}

/// The two places of an area, which are at most one lap apart.
fn settled(places: &Places, size: u16) -> Result<(Place, Place), InflightFault> {
    let place = |index: U16, wrap: u8| {
        let place = Place { index: index.get(), wrap: wrap == 1 };
        (place.index < size && wrap <= 1).then_some(place).ok_or(InflightFault::UsedIndex)
    };
    let new = place(places.used_idx, places.used_wrap)?;
    let old = place(places.old_used_idx, places.old_used_wrap)?;
    let reached =
        if new.wrap == old.wrap { new.index >= old.index } else { new.index <= old.index };
    if reached { Ok((new, old)) } else { Err(InflightFault::UsedIndex) }
}

fn flags_at(mem: &impl SharedMemory, ring: &PackedState, place: Place) -> Result<u16, OutOfRegion> {
    let (region, offset) = ring.desc;
    mem.load_acquire_u16(region, offset + DESC_BYTES * u64::from(place.index) + DESC_FLAGS)
}

/// The chains under way, the one that was taken last first, and how many descriptors they have.
/// Together with the free ones that is every record, once.
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
        let id: U16 =
            mem.read(inflight.region, inflight.record(last) + super::packed::RECORD_SAVED)?;
        ids.add(id.get())?;
        inflight.take_over(id.get(), head, last);
        let counter: U64 = mem.read(inflight.region, inflight.record(head) + RECORD_COUNTER)?;
        counters[usize::from(head)] = counter.get();
        taken += links.num.get();
        again.push(head).map_err(|_| InflightFault::Count)?;
    }
    if !members.is_all() {
        return Err(InflightFault::Count.into());
    }
    again.sort_unstable_by_key(|&head| core::cmp::Reverse((counters[usize::from(head)], head)));
    Ok((again, taken))
}
