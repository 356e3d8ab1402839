use super::*;
use crate::memory::flat::Flat;
use crate::virtqueue::layout::{DESC_AVAIL, DESC_BYTES, PACKED_FLAGS};
use crate::virtqueue::packed::token;
use crate::virtqueue::{PackedBase, QueueFault};

const AREA: RegionId = RegionId(0);
const RING: RegionId = RegionId(1);
const SIZE: u16 = 5;

const STATE: PackedState = PackedState { desc: (RING, 0), size: SIZE, base: PackedBase::START };

fn memory() -> Flat {
    Flat::new(&[usize::try_from(bytes(SIZE)).unwrap(), 16 * usize::from(SIZE)])
}

/// Takes a chain of one descriptor under this id.
fn take(mem: &Flat, area: &mut PackedInflight, place: u16, id: u16) {
    let flags = DESC_BYTES * u64::from(place) + PACKED_FLAGS;
    mem.store_release_u16(RING, flags, DESC_AVAIL).unwrap();
    let (addr, len, flags) = (U64::ZERO, U32::ZERO, U16::ZERO);
    area.save(mem, &PackedDescriptor { addr, len, id: U16::new(id), flags }).unwrap();
    area.mark(mem, token(id, 1)).unwrap();
}

fn resumed(mem: &Flat) -> Result<std::vec::Vec<u16>, QueueFault> {
    Ok(resume(mem, AREA, 0, STATE)?.again.iter().rev().copied().collect())
}

/// The same as for split queues, by buffer id.
//= spec/inflight.md#INF-10
//= spec/recovery.md#REC-6
#[test]
fn chains_are_taken_again_in_their_order_however_many_came_before() {
    let ids = [3, 1, 4, 0];
    for width in [8, 15, 16, 24, 31, 32, 48, 53, 63] {
        let mem = memory();
        let mut area = resume(&mem, AREA, 0, STATE).unwrap().inflight;
        area.counter = (1 << width) - 2;
        for (place, id) in (0..).zip(ids) {
            take(&mem, &mut area, place, id);
        }
        assert_eq!(resumed(&mem).unwrap(), ids, "{width} bits");
    }
}

/// Of equal numbers the lower record comes first, whatever its id.
//= spec/recovery.md#REC-6
#[test]
fn equal_numbers_are_taken_again_as_their_records_stand() {
    let mem = memory();
    let mut area = resume(&mem, AREA, 0, STATE).unwrap().inflight;
    for (place, id) in (0..).zip([3, 1, 4]) {
        area.counter = 7;
        take(&mem, &mut area, place, id);
    }
    assert_eq!(resumed(&mem).unwrap(), [3, 1, 4]);
}
