//! Packed rings: what only they can get wrong.

use sluice_core::blk::BlkFeatures;
use sluice_core::device::{ControlEvent, ControlFault, ControlReply};
use sluice_core::inflight::region_bytes;
use sluice_core::limits::QUEUE_SIZE_MAX;
use sluice_core::op::OpKind;
use sluice_core::shard::{Effect, Granted, Idle, Input};
use sluice_core::virtqueue::QueueFault;
use sluice_core::virtqueue::layout::{DESC_AVAIL, DESC_USED};
use sluice_sim::rig::{HIGH, HIGH_GUEST, LOW, RING, Rig, Setup};
use sluice_sim::watched::{Change, Watched};

use super::{DATA, FLUSH, HEADER, I, IN, IOERR, N, NONE, OK, OUT, R, STATUS, TABLE, W, rig};

/// A read of one sector.
const READ: [(u64, u32, u16); 3] = [(HEADER, 16, R), (DATA, 512, W), (STATUS, 1, W)];
/// A flush behind one descriptor.
const SMALL: [(u64, u32, u16); 1] = [(TABLE, 32, I)];

fn setup(size: u16, base: u16) -> Setup {
    let mut setup = Setup { size, base, ..Setup::default() };
    setup.features |= BlkFeatures::RING_PACKED;
    setup
}

/// What [`READ`] and [`SMALL`] point to.
fn prepare(rig: &Rig<'_>) {
    rig.header(HEADER, IN, 0);
    rig.header(HEADER + 0x80, FLUSH, 0);
    // Links and ids in the table are of no meaning.
    rig.table(TABLE, &[(HEADER + 0x80, 16, 77, N), (STATUS, 1, 78, W)]);
}

//= spec/packed.md#PVQ-1
//= spec/packed.md#PVQ-2
//= spec/packed.md#PVQ-8
#[test]
fn b68_b72_chains_of_every_length_go_round_rings_of_every_size() {
    for size in (1..=9).chain([31, 100, QUEUE_SIZE_MAX - 1, QUEUE_SIZE_MAX]) {
        for event_idx in [false, true] {
            let mut setup = setup(size, 0x8000 | (size - 1));
            setup.features.set(BlkFeatures::EVENT_IDX, event_idx);
            rig!(rig, setup);
            prepare(&rig);
            for turn in 0..9 {
                if turn % 2 == 0 {
                    assert_eq!(rig.shard.arm(rig.mem), Idle::Idle);
                }
                let (row, len) =
                    if turn % 3 == 0 && size > 2 { (&READ[..], 513) } else { (&SMALL[..], 1) };
                let id = turn % size;
                rig.offer_row(id, row);
                rig.shard.handle_kick(rig.mem, rig.queue());
                rig.turn();
                assert_eq!(rig.used(), [(id.into(), len)], "size {size}, turn {turn}");
            }
            assert_eq!(rig.broken, None);
        }
    }
}

//= spec/packed.md#PVQ-8
#[test]
fn b67_a_full_ring_is_given_back_in_any_order() {
    rig!(rig, setup(7, 0x8003));
    prepare(&rig);
    rig.offer_row(6, &READ);
    rig.offer_row(2, &READ);
    rig.offer_row(4, &SMALL);
    rig.take_in(rig.mem);
    let ops = rig.ops();
    assert_eq!(ops.len(), 3);
    for (op, back) in [(2, (4, 1)), (0, (6, 513)), (1, (2, 513))] {
        rig.reply_ok(&ops[op]);
        rig.give_back(rig.mem);
        assert_eq!(rig.used(), [back]);
    }
    assert_eq!(rig.run_row(2, &READ), [(2, 513)], "and again");
}

//= spec/packed.md#PVQ-4
#[test]
fn b50_b54_b55_a_chain_longer_than_what_the_ring_has_free_breaks_the_queue() {
    for size in [1, 2, 5, 16] {
        // All descriptors available, and each leads on.
        rig!(rig, setup(size, 0x8000));
        prepare(&rig);
        let endless = vec![(HEADER, 1, N); usize::from(size)];
        rig.offer_row(0, &endless);
        rig.turn();
        assert_eq!(rig.broken, Some(QueueFault::BadChain), "{size}");
        assert_eq!((rig.used(), rig.shard.counters().requests), (vec![], 0));
        // As long as the ring, with an end, is as long as it may be.
        rig!(rig, setup(size, 0x8000));
        let mut all = vec![(HEADER, 0, R); usize::from(size)];
        all[usize::from(size) - 1] = (STATUS, 1, W);
        assert_eq!(rig.run_row(0, &all), [(0, 1)]);
        assert_eq!((rig.get(STATUS, 1), rig.broken), (vec![IOERR], None));
    }
    // What is in flight is not free.
    rig!(rig, setup(4, 0x8000));
    prepare(&rig);
    rig.offer_row(0, &READ);
    rig.take_in(rig.mem);
    rig.offer_row(1, &[(HEADER, 16, R), (STATUS, 1, W)]);
    rig.take_in(rig.mem);
    assert_eq!(rig.broken, Some(QueueFault::BadChain));
    // A ring that is full and goes on.
    rig!(rig, setup(3, 0x8000));
    prepare(&rig);
    rig.offer_row(0, &READ);
    rig.take_in(rig.mem);
    rig.offer_row(1, &SMALL);
    rig.take_in(rig.mem);
    assert_eq!(rig.broken, Some(QueueFault::IndexJump));
    let ops = rig.ops();
    rig.reply_ok(&ops[0]);
    rig.give_back(rig.mem);
    assert_eq!(rig.shard.live(), 0, "what was under way still ends");
}

//= spec/packed.md#PVQ-5
#[test]
fn b52_b69_an_id_that_is_none_or_in_flight_breaks_the_queue() {
    for bad in [16, 17, 0x8000, 0xffff] {
        rig!(rig, setup(16, 0x8000));
        prepare(&rig);
        rig.offer_row(3, &READ);
        rig.offer_row(bad, &SMALL);
        rig.turn();
        assert_eq!(rig.broken, Some(QueueFault::BadHead), "{bad}");
        assert_eq!(rig.used(), [(3, 513)], "the chain before it was good");
    }
    rig!(rig, setup(16, 0x8000));
    prepare(&rig);
    rig.offer_row(15, &READ);
    rig.offer_row(15, &SMALL);
    rig.turn();
    assert_eq!(rig.broken, Some(QueueFault::HeadInFlight));
    assert_eq!(rig.used(), [(15, 513)], "what was under way still ends, once");
    // Given back, it may come again; ids anywhere but in the last descriptor mean nothing.
    rig!(rig, setup(16, 0x8000));
    prepare(&rig);
    assert_eq!([rig.run_row(15, &READ), rig.run_row(15, &READ)], [[(15, 513)], [(15, 513)]]);
    rig.write_row(9, &READ);
    let (at, wrap) = rig.next_place();
    rig.desc(at, (HEADER, 16, 0xffff, N | Rig::lap(wrap)));
    rig.desc(at + 1, (DATA, 512, 15, W | N | Rig::lap(wrap)));
    rig.skip_row(9, 3);
    rig.turn();
    assert_eq!((rig.used(), rig.broken), (vec![(9, 513)], None));
}

//= spec/packed.md#PVQ-2
//= spec/packed.md#PVQ-4
#[test]
fn b69_b70_flags_of_another_lap_are_nothing_new_and_a_chain_is_available_whole() {
    for base in [0_u16, 0x8000] {
        let (this, other) = (Rig::lap(base != 0), Rig::lap(base == 0));
        // Neither both nor none nor those of the other lap, and a head that stays away.
        for flags in [0, DESC_AVAIL | DESC_USED, other] {
            rig!(rig, setup(8, base));
            prepare(&rig);
            rig.write_row(1, &READ);
            rig.desc(0, (HEADER, 16, 1, N | flags));
            rig.turn();
            rig.turn();
            assert_eq!((rig.shard.counters().requests, rig.broken), (0, None));
            rig.desc(0, (HEADER, 16, 1, N | this));
            rig.skip_row(1, 3);
            rig.turn();
            assert_eq!(rig.used(), [(1, 513)]);
        }
        // The head is there, but not all of the rest.
        for flags in [0, DESC_AVAIL | DESC_USED, other] {
            for missing in [1, 2] {
                rig!(rig, setup(8, base));
                prepare(&rig);
                rig.write_row(1, &READ);
                let more = if missing == 1 { N } else { 0 };
                rig.desc(missing, (STATUS, 1, 1, W | more | flags));
                rig.turn();
                assert_eq!(rig.broken, Some(QueueFault::BadChain));
                assert_eq!(rig.shard.live(), 0);
            }
        }
    }
}

//= spec/packed.md#PVQ-7
#[test]
fn b56_b57_b58_tables() {
    let table = [(HEADER, 16, 0, 0), (DATA, 512, 0, W), (STATUS, 1, 0, W)];
    let run = |len: u32, flags: u16, at: u64, entries: &[sluice_sim::rig::Desc]| {
        rig!(rig, setup(8, 0x8000));
        prepare(&rig);
        rig.put(STATUS, &[NONE]);
        rig.table(at, entries);
        let mut row = vec![(at, len, I | flags)];
        if flags & N != 0 {
            row = vec![(at, len, I), (HEADER, 16, R), (DATA, 77, W)];
        }
        let used = rig.run_row(0, &row);
        assert_eq!(rig.broken, None);
        (used, rig.get(STATUS, 1)[0])
    };
    assert_eq!(run(48, 0, TABLE, &table), (vec![(0, 513)], OK));
    assert_eq!(run(48, W, TABLE, &table), (vec![(0, 513)], OK), "its direction means nothing");
    assert_eq!(run(48, 0, HIGH_GUEST - 40, &table), (vec![(0, 513)], OK), "across a border");
    assert_eq!(run(48, 0, TABLE + 1, &table), (vec![(0, 513)], OK), "unaligned");
    // With NEXT beside it the chain has three entries, and fails.
    assert_eq!(run(48, N, TABLE, &table), (vec![(0, 1)], IOERR));
    // One inside another.
    let nested = [(HEADER, 16, 0, 0), (TABLE, 48, 0, I), (STATUS, 1, 0, W)];
    assert_eq!(run(48, 0, TABLE, &nested), (vec![(0, 1)], IOERR));
    // No length for a table.
    for len in [0, 1, 15, 47, 16 * (u32::from(QUEUE_SIZE_MAX) + 1), u32::MAX, !15] {
        assert_eq!(run(len, 0, TABLE, &table), (vec![(0, 0)], NONE), "{len}");
    }
    // The length is the number of entries, whatever they say of a next one.
    let linked = [(HEADER, 16, 9, N), (DATA, 512, 9, W), (STATUS, 1, 9, W | N)];
    assert_eq!(run(48, 0, TABLE, &linked), (vec![(0, 513)], OK));
    assert_eq!(run(32, 0, TABLE, &linked), (vec![(0, 1)], NONE), "the status ends the data");
}

//= spec/packed.md#PVQ-6
#[test]
fn b62_each_descriptor_is_copied_once_and_may_change_at_any_moment() {
    let rows = |rig: &mut Rig<'_>, kind: u32| {
        rig.header(HEADER, kind, 1);
        let data = if kind == IN { W } else { R };
        let table = HIGH_GUEST - 24;
        rig.table(table, &[(DATA, 512, 0, data), (DATA + 512, 512, 0, data), (STATUS, 1, 0, W)]);
        rig.offer_row(3, &[(HEADER, 5, R), (HEADER + 5, 11, R), (table, 48, I)]);
    };
    for kind in [IN, OUT] {
        rig!(rig, setup(4, 0x8002));
        rows(&mut rig, kind);
        let memory = Watched::new(rig.mem);
        rig.turn_in(&memory);
        for (region, offset, len) in [(RING, 0, 64), (LOW, 0, 0x400), (HIGH, 0, 0x40)] {
            assert_eq!(memory.read_twice(region, offset, len), None, "{region:?}");
        }
        assert_eq!(rig.used(), [(3, if kind == IN { 1025 } else { 1 })]);
        let reads = memory.count();
        let table = (0x4000 - 24..0x4000).map(|at| (LOW, at)).chain((0..24).map(|at| (HIGH, at)));
        for (region, offset) in (0..64).map(|at| (RING, at)).chain(table) {
            for after in 1..=reads {
                for flips in [1, 2, 0x80] {
                    rig!(rig, setup(4, 0x8002));
                    rows(&mut rig, kind);
                    let change = Change { after, region, offset, flips };
                    let memory = Watched::changing(rig.mem, vec![change]);
                    rig.turn_in(&memory);
                    assert_eq!(rig.shard.live(), 0, "{change:?}");
                }
            }
        }
    }
}

//= spec/packed.md#PVQ-9
#[test]
fn a_batch_becomes_visible_by_its_first_flags_which_are_stored_last() {
    rig!(rig, setup(8, 0x8006));
    prepare(&rig);
    for id in 0..4 {
        rig.offer_row(id, &SMALL);
    }
    rig.take_in(rig.mem);
    rig.work();
    let memory = Watched::new(rig.mem);
    rig.give_back(&memory);
    let writes = memory.writes();
    let flags = |index: u64| {
        writes.iter().rposition(|w| w.region == RING && w.covers(RING, 16 * index + 14)).unwrap()
    };
    assert_eq!(flags(6), writes.len() - 1, "{writes:?}");
    assert_eq!(writes.iter().filter(|w| w.covers(RING, 16 * 6 + 14)).count(), 1);
    assert!([7, 0, 1].into_iter().all(|index| flags(index) < flags(6)));
    assert_eq!(rig.used(), [(0, 1), (1, 1), (2, 1), (3, 1)]);
}

//= spec/packed.md#PVQ-10
#[test]
fn b66_the_drivers_event_suppression() {
    let notified = |event_idx: bool, place: u16, flags: u16| {
        let mut setup = setup(5, 0x8003);
        setup.features.set(BlkFeatures::EVENT_IDX, event_idx);
        rig!(rig, setup);
        prepare(&rig);
        rig.mem.fill(RING, rig.avail(), &[place.to_le_bytes(), flags.to_le_bytes()].concat());
        // Places 3, 4 and 0 of the next lap.
        assert_eq!(rig.run_row(2, &READ), [(2, 513)]);
        rig.notified == 1
    };
    for event_idx in [false, true] {
        assert!(notified(event_idx, 0, 0), "always");
        assert!(!notified(event_idx, 0x8003, 1), "never");
        assert!(notified(event_idx, 0, 3), "what there is not");
    }
    assert!(notified(false, 0x8001, 2), "places count with event indices only");
    for (place, expected) in [
        (0x8002, false),
        (0x8003, true),
        (0x8004, true),
        (0x0000, true),
        (0x0001, false),
        (0x8000, false),
        (0x0003, false),
        // No place of this ring.
        (0x8005, true),
        (0x7fff, true),
    ] {
        assert_eq!(notified(true, place, 2), expected, "{place:#x}");
    }
}

//= spec/packed.md#PVQ-11
#[test]
fn the_devices_event_suppression() {
    for event_idx in [false, true] {
        let mut setup = setup(3, 0x8002);
        setup.features.set(BlkFeatures::EVENT_IDX, event_idx);
        rig!(rig, setup);
        prepare(&rig);
        let wish = |rig: &Rig<'_>| {
            let bytes = rig.mem.dump(RING, rig.used_ring(), 4);
            [u16::from_le_bytes([bytes[0], bytes[1]]), u16::from_le_bytes([bytes[2], bytes[3]])]
        };
        assert_eq!(wish(&rig)[1], 1, "it is polled");
        assert_eq!(rig.run_row(0, &SMALL), [(0, 1)]);
        assert_eq!(rig.shard.arm(rig.mem), Idle::Idle);
        assert_eq!(wish(&rig), if event_idx { [0, 2] } else { [0, 0] }, "place 0 of the next lap");
        // What came before it was armed is found.
        rig.shard.handle_kick(rig.mem, rig.queue());
        assert_eq!(wish(&rig)[1], 1);
        rig.offer_row(1, &SMALL);
        assert_eq!(rig.shard.arm(rig.mem), Idle::More);
        rig.turn();
        assert_eq!(rig.used(), [(1, 1)]);
    }
}

//= spec/lifecycle.md#LIF-6
//= spec/packed.md#PVQ-3
#[test]
fn b21_b22_sizes_and_bases_of_packed_rings() {
    use ControlReply::{Done, Refused, VringBase};
    rig!(rig, setup(6, 0x8001));
    prepare(&rig);
    assert_eq!(rig.run_row(0, &READ), [(0, 513)]);
    let (index, stopped) = (0, 0x8004_8004);
    let base = |base| Some(VringBase { index, base });
    assert_eq!(rig.control(ControlEvent::GetVringBase { index: 0 }), base(stopped));
    let addresses = rig.addresses();
    let mut start = |size, from| {
        let index = 0;
        let mut events = vec![ControlEvent::SetVringNum { index, size }];
        events.extend(from);
        events.push(ControlEvent::SetVringAddr { index, addresses });
        events.push(ControlEvent::SetVringKick { index });
        let mut replies = events.into_iter().map(|event| rig.control(event).unwrap());
        let refused = replies.find(|reply| *reply != Done);
        let _ = rig.control(ControlEvent::GetVringBase { index });
        refused
    };
    let at = |base| Some(ControlEvent::SetVringBase { index: 0, base });
    for size in [0, u32::from(QUEUE_SIZE_MAX) + 1, 32768, 65536, u32::MAX] {
        assert_eq!(start(size, None), Some(Refused(ControlFault::QueueSize)), "{size}");
    }
    assert_eq!(start(6, None), None, "where it was stopped");
    assert_eq!(start(4, None), Some(Refused(ControlFault::QueueBase)), "there is no place 4");
    for (base, good) in [
        (0x8000_8000, true),
        (0x0002_0002, true),
        (0x8005_0005, false),
        (0x8003_8000, false),
        (0x8000_8003, false),
        (0x7fff_7fff, false),
        (0xffff_ffff, false),
    ] {
        let expected = (!good).then_some(Refused(ControlFault::QueueBase));
        assert_eq!(start(3, at(base)), expected, "{base:#x}");
    }
    // A split ring on the same connection takes neither.
    let features = Setup::default().features;
    assert_eq!(rig.control(ControlEvent::SetFeatures(features.bits())), Some(Done));
    assert_eq!(rig.control(at(0x1_0000).unwrap()), Some(Refused(ControlFault::QueueBase)));
    let odd = ControlEvent::SetVringNum { index: 0, size: 3 };
    assert_eq!(rig.control(odd), Some(Refused(ControlFault::QueueSize)));
}

//= spec/packed.md#PVQ-3
#[test]
fn a_packed_ring_without_a_base_begins_at_its_beginning() {
    rig!(rig, setup(4, 0x8000));
    rig.input(Input::FrontEndGone(rig.device));
    let index = 0;
    let features = ControlEvent::SetFeatures(setup(4, 0).features.bits());
    assert_eq!(rig.control(features), Some(ControlReply::Done));
    assert_eq!(rig.control(ControlEvent::SetOwner), Some(ControlReply::Done));
    let base = Some(ControlReply::VringBase { index, base: 0x8000_8000 });
    assert_eq!(rig.control(ControlEvent::GetVringBase { index: 0 }), base);
}

/// A front end may ask for its region and hand it over before it says which rings it means.
//= spec/inflight.md#INF-2
#[test]
fn b96_a_region_of_a_split_queue_is_too_small_for_a_packed_one() {
    rig!(rig, setup(8, 0x8000));
    let (index, addresses) = (0, rig.addresses());
    let features = setup(8, 0).features;
    let split = ControlEvent::SetFeatures(features.difference(BlkFeatures::RING_PACKED).bits());
    let packed = ControlEvent::SetFeatures(features.bits());
    let inflight =
        |len| ControlEvent::SetInflight { region: HIGH, offset: 0, len, queues: 1, size: 8 };
    let [small, large] = [false, true].map(|packed| region_bytes(1, 8, packed));
    rig.mem.fill(HIGH, 0, &[0; 0x200]);
    for (len, version) in [(small, 0), (large - 1, 0), (large, 1)] {
        rig.control(ControlEvent::GetVringBase { index });
        for event in [
            split.clone(),
            inflight(len),
            packed.clone(),
            ControlEvent::SetVringAddr { index, addresses },
            ControlEvent::SetVringKick { index },
        ] {
            assert_eq!(rig.control(event), Some(ControlReply::Done));
        }
        assert_eq!(rig.broken, None);
        assert_eq!(rig.mem.dump(HIGH, 8, 2), [version, 0], "{len}");
    }
}

//= spec/packed.md#PVQ-13
#[test]
fn a_packed_queue_between_whose_places_something_lies_is_broken_at_once() {
    rig!(rig, setup(8, 0x8000));
    let index = 0;
    let addresses = rig.addresses();
    for (base, broken) in [(0x8001_8001, false), (0x8000_8001, true)] {
        rig.control(ControlEvent::GetVringBase { index });
        for event in [
            ControlEvent::SetVringBase { index, base },
            ControlEvent::SetVringAddr { index, addresses },
            ControlEvent::SetVringKick { index },
        ] {
            assert_eq!(rig.control(event), Some(ControlReply::Done));
        }
        assert_eq!(rig.broken.is_some(), broken, "{base:#x}");
    }
}

/// Somebody else has the image when the queue is stopped.
//= spec/lifecycle.md#LIF-17
#[test]
fn a_stop_leaves_chains_in_the_region() {
    rig!(rig, Setup { grant: false, ..setup(8, 0x8000) });
    let len = region_bytes(1, 8, true);
    let inflight = ControlEvent::SetInflight { region: HIGH, offset: 0, len, queues: 1, size: 8 };
    rig.mem.fill(HIGH, 0, &[0; 0x200]);
    rig.input(Input::FrontEndGone(rig.device));
    rig.attach_with(core::slice::from_ref(&inflight));
    prepare(&rig);
    rig.offer_row(5, &READ);
    rig.offer_row(2, &SMALL);
    rig.take_in(rig.mem);
    let (index, addresses) = (0, rig.addresses());
    assert_eq!(rig.control(ControlEvent::GetVringBase { index }), Some(ControlReply::Deferred));
    rig.give_back(rig.mem);
    // Four descriptors were taken and none was given back.
    let base = 0x8000_8004;
    let stopped = Effect::Reply(rig.device, ControlReply::VringBase { index: 0, base });
    assert!(rig.effects.contains(&stopped), "{:?}", rig.effects);
    assert_eq!((rig.used(), rig.shard.live()), (vec![], 0));
    rig.effects.clear();
    for event in [
        inflight,
        ControlEvent::SetVringBase { index, base },
        ControlEvent::SetVringAddr { index, addresses },
        ControlEvent::SetVringKick { index },
    ] {
        assert_eq!(rig.control(event), Some(ControlReply::Done));
    }
    assert_eq!(rig.broken, None);
    rig.take_in(rig.mem);
    rig.input(Input::Capture(rig.image, Granted::Yes));
    let again = rig.ops();
    assert_eq!(again.iter().map(|op| op.kind).collect::<Vec<_>>(), [OpKind::Read, OpKind::Sync]);
    again.iter().for_each(|op| rig.reply_ok(op));
    rig.give_back(rig.mem);
    assert_eq!(rig.used(), [(5, 513), (2, 1)]);
}
