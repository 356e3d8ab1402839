//! What may stand in the area of a packed queue when the queue starts with it.

use sluice_core::blk::BlkFeatures;
use sluice_core::device::{ControlEvent, ControlReply};
use sluice_core::inflight::{InflightFault, region_bytes};
use sluice_core::shard::Input;
use sluice_core::virtqueue::QueueFault;
use sluice_sim::rig::{HIGH, RING, Rig, Setup, arena, memory};
use sluice_sim::watched::{Change, Watched};

use super::{DATA, HEADER, IN, R, STATUS, W, rig};

const SIZE: u16 = 5;

fn setup() -> Setup {
    let mut setup = Setup { size: SIZE, base: 0x8000, ..Setup::default() };
    setup.features |= BlkFeatures::RING_PACKED;
    setup
}

fn bytes() -> usize {
    usize::try_from(region_bytes(1, SIZE, true)).expect("small")
}

fn region() -> ControlEvent {
    let len = region_bytes(1, SIZE, true);
    ControlEvent::SetInflight { region: HIGH, offset: 0, len, queues: 1, size: SIZE }
}

/// A read of the sector of its number, in three entries or in two.
fn read(rig: &mut Rig<'_>, number: u16, entries: usize) {
    let at = u64::from(number);
    rig.header(HEADER + 16 * at, IN, at);
    let header = (HEADER + 16 * at, 16, R);
    let (data, status) = ((DATA + 1024 * at, 512, W), (STATUS + at, 1, W));
    match entries {
        2 => rig.offer_row(number, &[header, (DATA + 1024 * at, 513, W)]),
        _ => rig.offer_row(number, &[header, data, status]),
    }
}

/// A daemon took chain 0, of records 0 and 1, and chain 1, of records 2 to 4, and is gone.
fn prepare(rig: &mut Rig<'_>) {
    rig.input(Input::FrontEndGone(rig.device));
    rig.mem.fill(HIGH, 0, &vec![0; bytes()]);
    rig.attach_with(&[region()]);
    read(rig, 0, 2);
    read(rig, 1, 3);
    rig.take_in(rig.mem);
    leave(rig);
}

/// The front end goes, with everything under way.
fn leave(rig: &mut Rig<'_>) {
    rig.input(Input::FrontEndGone(rig.device));
    rig.ops().iter().for_each(|op| rig.reply_ok(op));
    rig.give_back(rig.mem);
    assert_eq!((rig.used(), rig.shard.live()), (vec![], 0));
    rig.effects.clear();
}

/// The sectors that are read, in their order, when a queue starts after a change; or its fault, in
/// which case ring and area are as they were.
fn start(change: impl FnOnce(&Rig<'_>)) -> Result<Vec<u64>, QueueFault> {
    rig!(rig, setup());
    prepare(&mut rig);
    change(&rig);
    let both = |rig: &Rig<'_>| (rig.mem.dump(HIGH, 0, bytes()), rig.mem.dump(RING, 0, 80));
    let before = both(&rig);
    // A front end knows nothing after a kill: this is where it began.
    rig.go_on(&[region()], 0x8000);
    if let Some(fault) = rig.broken {
        assert_eq!(both(&rig), before, "evidence is left as it is");
        rig.turn();
        assert_eq!((rig.used(), rig.shard.live()), (vec![], 0));
        return Err(fault);
    }
    // What is taken again is taken first, and by itself.
    rig.take_in(rig.mem);
    rig.take_in(rig.mem);
    let ops = rig.ops();
    ops.iter().for_each(|op| rig.reply_ok(op));
    rig.give_back(rig.mem);
    assert_eq!((rig.used().len(), rig.broken), (ops.len(), None));
    Ok(ops.iter().map(|op| op.offset / 512).collect())
}

fn put(at: u64, value: u16) -> impl FnOnce(&Rig<'_>) {
    move |rig| rig.mem.fill(HIGH, at, &value.to_le_bytes())
}

const fn record(at: u64) -> u64 {
    32 + 32 * at
}

const fn fault(fault: InflightFault) -> QueueFault {
    QueueFault::Inflight(fault)
}

//= spec/recovery.md#REC-1
//= spec/recovery.md#REC-12
//= spec/inflight.md#INF-9
//= spec/inflight.md#INF-10
#[test]
fn b94_lists_of_any_value() {
    assert_eq!(start(|_| ()), Ok(vec![0, 1]));
    for (at, value, expected) in [
        (14, 6, InflightFault::Batch),
        (14, u16::MAX, InflightFault::Batch),
        (14, 1, InflightFault::Batch),
        (record(0) + 2, 2, InflightFault::Batch),
        (record(0) + 2, 0, InflightFault::Batch),
        (record(0) + 2, 9, InflightFault::Batch),
        (record(0) + 4, 0, InflightFault::Batch),
        (record(0) + 6, 1, InflightFault::Batch),
        (record(0) + 6, 0, InflightFault::Batch),
        (record(0) + 6, u16::MAX, InflightFault::Batch),
        (record(0), 0, InflightFault::Count),
        (record(0), 2, InflightFault::Count),
        (record(1), 1, InflightFault::Batch),
        (record(1) + 16, 1, InflightFault::Batch),
        (record(1) + 16, SIZE, InflightFault::Batch),
        (record(4) + 16, 0, InflightFault::Batch),
        (16, SIZE, InflightFault::UsedIndex),
        (18, SIZE, InflightFault::UsedIndex),
        (20, 2, InflightFault::UsedIndex),
        (18, 4, InflightFault::UsedIndex),
        (20, 0, InflightFault::UsedIndex),
    ] {
        assert_eq!(start(put(at, value)), Err(fault(expected)), "{at}: {value}");
    }
    // Chain 1 was about to be taken: its mark is none. Then what nobody looks at, and what only says the order.
    assert_eq!(start(put(14, 2)), Ok(vec![0, 1]), "the second anew");
    for (at, value) in [(record(4) + 2, 77), (record(0) + 16, 77), (12, 99)] {
        assert_eq!(start(put(at, value)), Ok(vec![0, 1]), "{at}: {value}");
    }
    assert_eq!(start(put(record(0) + 8, 9)), Ok(vec![1, 0]), "by counter");
}

/// Saved descriptors are as hostile as the ring's own: what is wrong fails the request.
//= spec/recovery.md#REC-14
#[test]
fn b94_saved_descriptors_of_any_value() {
    rig!(rig, setup());
    // Flags, length and address of the data.
    for (at, len) in [(18, 2_u64), (20, 4), (24, 8)] {
        prepare(&mut rig);
        for record_of_data in [1, 3] {
            let at = record(record_of_data) + at;
            rig.mem.fill(HIGH, at, &vec![0xf4; usize::try_from(len).expect("small")]);
        }
        rig.go_on(&[region()], 0x8000);
        rig.turn();
        assert_eq!((rig.used().len(), rig.broken), (2, None), "{at}");
    }
}

/// The ring's descriptors may be used ones by now: they are not looked at.
//= spec/recovery.md#REC-14
#[test]
fn chains_are_taken_again_from_what_was_kept() {
    let overwritten = start(|rig| {
        for entry in 0..u64::from(SIZE) {
            rig.mem.fill(RING, 16 * entry, &[0xff; 14]);
        }
    });
    assert_eq!(overwritten, Ok(vec![0, 1]));
}

/// Where a batch that was not given back left used descriptors, the driver would believe them.
//= spec/recovery.md#REC-13
#[test]
fn used_descriptors_of_a_batch_that_was_not_given_back_are_taken_back() {
    rig!(rig, setup());
    prepare(&mut rig);
    // Chain 1 was to be given back before chain 0: one entry is used behind the first.
    rig.mem.fill(RING, 16 * 3 + 8, &[1, 0, 0, 0, 0, 0, 0x80, 0x80]);
    rig.go_on(&[region()], 0x8000);
    rig.take_in(rig.mem);
    let ops = rig.ops();
    rig.reply_ok(&ops[1]);
    rig.give_back(rig.mem);
    assert_eq!(rig.used(), [(1, 513)], "nothing else has come back");
    rig.reply_ok(&ops[0]);
    rig.give_back(rig.mem);
    assert_eq!(rig.used(), [(0, 513)]);
}

/// A full ring comes to the batch's first entry again with the next chain.
//= spec/recovery.md#REC-12
#[test]
fn a_batch_whose_first_entry_is_available_again_was_given_back() {
    rig!(rig, setup());
    prepare(&mut rig);
    // Chain 0 was given back, and the daemon was killed before it settled that.
    for (at, value) in [(record(1) + 2, SIZE), (12, 0), (16, 2)] {
        put(at, value)(&rig);
    }
    read(&mut rig, 2, 2);
    rig.go_on(&[region()], 0x8000);
    rig.take_in(rig.mem);
    rig.take_in(rig.mem);
    let sectors: Vec<u64> = rig.ops().iter().map(|op| op.offset / 512).collect();
    assert_eq!((rig.broken, sectors), (None, vec![1, 2]));
}

//= spec/recovery.md#REC-12
#[test]
fn b96_an_area_of_another_layout() {
    for (at, value) in [(0, 1), (8, 2), (10, SIZE - 1), (10, SIZE + 1), (10, 0)] {
        assert_eq!(start(put(at, value)), Err(fault(InflightFault::Layout)), "{at}");
    }
    assert_eq!(start(put(8, 0)), Ok(vec![0, 1]), "version 0 is empty, whatever it holds");
}

/// A ring that was reset under an area says so by its flags.
//= spec/recovery.md#REC-12
#[test]
fn b97_an_area_of_a_ring_that_was_reset() {
    let reset = start(|rig| rig.mem.fill(RING, 0, &[0; 16 * SIZE as usize]));
    assert_eq!(reset, Err(fault(InflightFault::UsedIndex)));
    // With an area that nobody has used it is served.
    let fresh = start(|rig| {
        rig.mem.fill(RING, 0, &[0; 16 * SIZE as usize]);
        rig.mem.fill(HIGH, 0, &vec![0; bytes()]);
    });
    assert_eq!(fresh, Ok(vec![]));
}

/// The guest is reset after its queue has stopped; its front end keeps the region.
//= spec/inflight.md#INF-7
//= spec/recovery.md#REC-11
#[test]
fn b97_a_region_that_was_kept_over_a_reset() {
    rig!(rig, setup());
    prepare(&mut rig);
    rig.go_on(&[region()], 0x8000);
    rig.turn();
    assert_eq!(rig.used().len(), 2);
    let stopped = rig.control(ControlEvent::GetVringBase { index: 0 });
    assert_eq!(stopped, Some(ControlReply::VringBase { index: 0, base: 0 }), "once around");
    rig.input(Input::FrontEndGone(rig.device));
    rig.attach_with(&[region()]);
    rig.turn();
    assert_eq!((rig.used(), rig.broken), (vec![], None), "nobody has asked for anything");
    read(&mut rig, 3, 3);
    rig.turn();
    assert_eq!(rig.used(), [(3, 513)]);
}

/// The base counts for an area that nobody has used, and for no other.
//= spec/recovery.md#REC-12
#[test]
fn b90_a_base_that_is_somewhere_else() {
    rig!(rig, setup());
    for base in [0x8000, 0x8003, 0, 4] {
        prepare(&mut rig);
        rig.go_on(&[region()], base);
        rig.turn();
        assert_eq!((rig.used().len(), rig.broken), (2, None), "{base:x}");
    }
    rig.control(ControlEvent::GetVringBase { index: 0 });
    let (index, addresses) = (0, rig.addresses());
    for (base, broken) in [(0x8000_8001, true), (0x8001_8001, false)] {
        rig.broken = None;
        for event in [
            ControlEvent::SetVringBase { index, base },
            ControlEvent::SetVringAddr { index, addresses },
            ControlEvent::SetVringKick { index },
        ] {
            assert_eq!(rig.control(event), Some(ControlReply::Done));
        }
        assert_eq!(rig.broken.is_some(), broken, "{base:x}");
        rig.control(ControlEvent::GetVringBase { index });
    }
}

//= spec/recovery.md#REC-9
#[test]
fn f12_no_region_though_it_was_negotiated() {
    rig!(rig, setup());
    prepare(&mut rig);
    rig.go_on(&[], 0x8000);
    assert_eq!(rig.broken, Some(fault(InflightFault::Missing)));
    rig.input(Input::FrontEndGone(rig.device));
    rig.go_on(&[], 0);
    assert_eq!(rig.broken, None, "there nothing waits");
}

/// Everything is copied before it is judged, so that it does not matter when it changes.
//= spec/recovery.md#REC-1
#[test]
fn b93_an_area_that_changes_while_it_is_read() {
    let (mut at, mut reads) = (0, 1);
    while at < reads {
        let offset = at as u64 * 7 % bytes() as u64;
        let change = Change { after: at, region: HIGH, offset, flips: 0x55 };
        let (mut arena, mem) = (arena(64), memory());
        let mut rig = Rig::new(&mut arena, &mem, setup());
        prepare(&mut rig);
        let watched = Watched::changing(&mem, vec![change]);
        rig.go_on_in(&watched, &[region()], 0x8000);
        assert_eq!(watched.read_twice(HIGH, 0, bytes() as u64), None);
        // Whatever was found: it is served or broken, and there is an end.
        rig.turn_in(&watched);
        rig.used();
        reads = watched.count();
        at += 1;
        leave(&mut rig);
    }
    assert!(reads > 16, "{reads}");
}

/// Numbers begin anew after a start, in the old order.
//= spec/recovery.md#REC-6
#[test]
fn b92_numbers_begin_anew_after_a_start() {
    rig!(rig, setup());
    prepare(&mut rig);
    for (at, counter) in [(record(0), u64::MAX - 1), (record(2), u64::MAX)] {
        rig.mem.fill(HIGH, at + 8, &counter.to_le_bytes());
    }
    rig.go_on(&[region()], 0x8000);
    rig.take_in(rig.mem);
    for (at, counter) in [(record(0), 0_u64), (record(2), 1)] {
        let found = rig.mem.dump(HIGH, at, 16);
        assert_eq!((found[0], &found[8..]), (1, &counter.to_le_bytes()[..]));
    }
}
