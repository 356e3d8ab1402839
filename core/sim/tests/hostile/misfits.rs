//! Rings and inflight regions that do not agree: front ends ask for one size and start another.

use sluice_core::blk::BlkFeatures;
use sluice_core::device::{ControlEvent, ControlReply};
use sluice_core::inflight::{DEVICE_BYTES, InflightFault, region_bytes};
use sluice_core::limits::QUEUE_SIZE_MAX;
use sluice_core::shard::Input;
use sluice_core::trace::TraceEvent;
use sluice_core::virtqueue::QueueFault;
use sluice_core::virtqueue::layout::{USED_IDX, USED_RING};
use sluice_sim::memory::FlatMemory;
use sluice_sim::rig::{HIGH, RING, Rig, Setup, arena};

use super::{DATA, HEADER, IN, N, STATUS, W};

const BOTH: [bool; 2] = [false, true];

/// The rig's regions with room in the upper one for an inflight region of two queues.
fn memory() -> FlatMemory {
    let mem = FlatMemory::new(&[0x4000, 0x20000, 0x8000]);
    mem.fill(HIGH, 0, &vec![0; 0x20000]);
    mem.fill(RING, 0, &vec![0; 0x8000]);
    mem
}

fn setup(size: u16, packed: bool) -> Setup {
    let setup = Setup { size, ..Setup::default() };
    match packed {
        true => Setup {
            base: 0x8000,
            features: setup.features.union(BlkFeatures::RING_PACKED),
            ..setup
        },
        false => setup,
    }
}

fn region(len: u64, queues: u16, size: u16) -> ControlEvent {
    ControlEvent::SetInflight { region: HIGH, offset: 0, len, queues, size }
}

fn ask(rig: &mut Rig<'_>, queues: u16, size: u16) -> u64 {
    match rig.control(ControlEvent::GetInflight { queues, size }) {
        Some(ControlReply::Value(bytes)) => bytes,
        other => panic!("{other:?}"),
    }
}

/// A device whose first front end has gone.
fn vacated<'a>(
    arena: &'a mut sluice_sim::arena::Arena,
    mem: &'a FlatMemory,
    setup: Setup,
) -> Rig<'a> {
    let mut rig = Rig::new(arena, mem, setup);
    rig.input(Input::FrontEndGone(rig.device));
    while rig.shard.poll_trace().is_some() {}
    rig
}

/// Reads of sectors 0, 1, ... one for each of these heads or buffer ids.
fn offer(rig: &mut Rig<'_>, heads: &[u16]) {
    for (&head, sector) in heads.iter().zip(0_u64..) {
        let [header, data, status] = [HEADER + 16 * sector, DATA + 512 * sector, STATUS + sector];
        rig.header(header, IN, sector);
        if rig.is_packed() {
            rig.offer_row(head, &[(header, 16, 0), (data, 512, W), (status, 1, W)]);
        } else {
            rig.desc(head, (header, 16, N, head + 1));
            rig.desc(head + 1, (data, 512, W | N, head + 2));
            rig.desc(head + 2, (status, 1, W, 0));
            rig.offer(head);
        }
    }
}

/// Sectors that are read now; nothing is given back yet.
fn sectors(rig: &mut Rig<'_>) -> Vec<u64> {
    rig.take_in(rig.mem);
    let ops = rig.ops();
    ops.iter().for_each(|op| rig.reply_ok(op));
    ops.iter().map(|op| op.offset / 512).collect()
}

/// The connection ends, and what the store still does comes to nothing.
fn kill(rig: &mut Rig<'_>) {
    rig.input(Input::FrontEndGone(rig.device));
    rig.give_back(rig.mem);
    rig.input(Input::FrontEndGone(rig.device));
}

fn is_unrecorded(rig: &mut Rig<'_>) -> bool {
    let said = TraceEvent::Unrecorded(rig.queue());
    std::iter::from_fn(|| rig.shard.poll_trace()).filter(|&event| event == said).count() > 0
}

const MISSING: Option<QueueFault> = Some(QueueFault::Inflight(InflightFault::Missing));

/// QEMU 10.0 asks with its property and lets firmware and drivers have the largest rings.
//= spec/inflight.md#INF-1
//= spec/inflight.md#INF-2
#[test]
fn a_ring_larger_than_its_region_was_asked_for_is_tracked() {
    for packed in BOTH {
        for size in [128, 256, QUEUE_SIZE_MAX] {
            let (mut arena, mem) = (arena(64), memory());
            let mut rig = Rig::new(&mut arena, &mem, setup(size, packed));
            let bytes = ask(&mut rig, 1, 128);
            kill(&mut rig);
            while rig.shard.poll_trace().is_some() {}
            let base = setup(size, packed).base;
            rig.go_on(&[region(bytes, 1, 128)], base);
            assert_eq!(rig.broken, None, "{size}");
            offer(&mut rig, &[size - 3, 0]);
            rig.take_in(rig.mem);
            let ops = rig.ops();
            rig.reply_ok(&ops[1]);
            rig.give_back(rig.mem);
            assert_eq!(rig.used(), [(0, 513)]);
            rig.reply_ok(&ops[0]);
            kill(&mut rig);
            assert!(!is_unrecorded(&mut rig));
            // Without a record the successor would begin at the used index: with the wrong one.
            let base = if packed { base } else { 1 };
            rig.go_on(&[region(bytes, 1, 128)], base);
            assert_eq!(sectors(&mut rig), [0], "{size} packed: {packed}");
            rig.give_back(rig.mem);
        }
    }
}

/// Whatever is asked for, the region is for all queues of the device, and for rings of any size.
//= spec/inflight.md#INF-1
#[test]
fn b87_a_region_is_made_whatever_is_asked_for() {
    let (mut arena, mem) = (arena(64), memory());
    let mut rig = Rig::new(&mut arena, &mem, setup(16, false));
    let of = |queues| region_bytes(queues, QUEUE_SIZE_MAX, true) + DEVICE_BYTES;
    for (queues, size) in [(2, 16), (1, 128), (0, 16), (2, 0), (2, 1025), (2, u16::MAX)] {
        assert_eq!(ask(&mut rig, queues, size), of(2), "{queues} of {size}");
    }
    // The front end may count more queues than it starts, but not without bound.
    assert_eq!(ask(&mut rig, 3, 16), of(3));
    assert_eq!(ask(&mut rig, u16::MAX, u16::MAX), of(128));
}

//= spec/inflight.md#INF-2
//= spec/recovery.md#REC-15
#[test]
fn a_queue_without_room_in_the_region_is_served_in_turn() {
    for packed in BOTH {
        let small = region_bytes(1, 8, packed);
        let fitting = region_bytes(1, 16, packed);
        for (len, queues, size, unrecorded) in [
            (small, 1, 8, true),
            (small, 1, 16, true),
            (fitting - 1, 1, 16, true),
            (fitting, 0, 16, true),
            (0, 1, 16, true),
            (fitting, 1, 16, false),
            (u64::MAX, u16::MAX, u16::MAX, false),
        ] {
            let (mut arena, mem) = (arena(64), memory());
            let mut rig = vacated(&mut arena, &mem, setup(16, packed));
            // The driver was there first.
            offer(&mut rig, &[0, 3, 6]);
            rig.go_on(&[region(len, queues, size)], setup(16, packed).base);
            assert_eq!((rig.broken, is_unrecorded(&mut rig)), (None, unrecorded), "{len}");
            let first = sectors(&mut rig);
            assert_eq!(first, if unrecorded { vec![0] } else { vec![0, 1, 2] }, "{len} {queues}");
            if unrecorded {
                kill(&mut rig);
            }
        }
    }
}

/// One chain at a time, to the last, and after a kill from the used index on.
//= spec/recovery.md#REC-15
#[test]
fn the_order_of_the_ring_is_the_record_of_a_queue_without_one() {
    let (mut arena, mem) = (arena(64), memory());
    let mut rig = vacated(&mut arena, &mem, setup(16, false));
    let small = region(region_bytes(1, 8, false), 1, 8);
    offer(&mut rig, &[9, 0, 3, 6]);
    rig.go_on(std::slice::from_ref(&small), 0);
    rig.turn();
    assert_eq!(rig.used(), [(9, 513)]);
    assert_eq!(sectors(&mut rig), [1]);
    kill(&mut rig);
    rig.go_on(std::slice::from_ref(&small), 1);
    for head in [0, 3, 6] {
        rig.turn();
        assert_eq!((rig.used(), rig.broken), (vec![(head, 513)], None));
    }
    // A front end that counts more as taken than was given back knows of what nobody knows.
    kill(&mut rig);
    rig.go_on(std::slice::from_ref(&small), 3);
    assert_eq!(rig.broken, MISSING);
}

/// What an area says that a queue does not fit into is of another life, and nobody comes to
/// believe it later.
//= spec/recovery.md#REC-15
#[test]
fn an_area_that_is_too_small_is_left_as_nobodys() {
    let (mut arena, mem) = (arena(64), memory());
    let mut rig = vacated(&mut arena, &mem, setup(16, false));
    let len = region_bytes(1, 8, false);
    // A queue of 8 had head 0 under way.
    let header = [0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 8, 0, 0, 0, 0, 0];
    rig.mem.fill(HIGH, 0, &header);
    rig.mem.fill(HIGH, 16, &[1]);
    rig.go_on(&[region(len, 1, 8)], 0);
    assert_eq!(rig.broken, None);
    assert_eq!(rig.mem.dump(HIGH, 8, 2), [0, 0], "version 0");
    // The same in a region with room is evidence, and believed or left.
    kill(&mut rig);
    rig.mem.fill(HIGH, 0, &header);
    rig.go_on(&[region(region_bytes(1, 16, false), 1, 16)], 0);
    assert_eq!(rig.broken, Some(QueueFault::Inflight(InflightFault::Layout)));
    assert_eq!(rig.mem.dump(HIGH, 0, 16), header);
}

/// A driver may be quicker than its front end: nothing can be missing from a ring that begins.
//= spec/recovery.md#REC-9
#[test]
fn b19_a_new_ring_without_a_region_is_served() {
    for packed in BOTH {
        let (mut arena, mem) = (arena(64), memory());
        let mut rig = vacated(&mut arena, &mem, setup(16, packed));
        offer(&mut rig, &[0, 3]);
        rig.go_on(&[], setup(16, packed).base);
        assert_eq!((rig.broken, is_unrecorded(&mut rig)), (None, true));
        assert_eq!(sectors(&mut rig), [0, 1]);
        kill(&mut rig);
        // A ring that has come round to where it began is not new.
        if packed {
            rig.mem.fill(RING, 16 * 15 + 14, &[0x80, 0x80]);
        } else {
            rig.mem.fill(RING, rig.used_ring() + USED_RING + 8 * 15, &[6, 0, 0, 0, 1]);
            rig.mem.fill(RING, rig.used_ring() + USED_IDX, &[0, 0]);
        }
        rig.go_on(&[], setup(16, packed).base);
        assert_eq!(rig.broken, MISSING);
    }
}
