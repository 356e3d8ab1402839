//! What is reported at the end: lengths, failures, and requests of any size.

use sluice_core::device::ControlEvent;
use sluice_core::limits::{PART_BYTES_MAX, PARTS_PER_REQUEST_MAX};
use sluice_core::op::{Op, OpKind, Piece, Reply};
use sluice_core::shard::{Effect, Input};
use sluice_sim::rig::{HIGH_GUEST, LOW, LOW_GUEST, RING, Rig, Setup};
use sluice_sim::watched::Watched;

use super::{DATA, FLUSH, GET_ID, HEADER, IN, IOERR, NONE, OK, OUT, R, STATUS, W, outcome, rig};

/// A guest with 16 MiB in its upper region and an image of 2 TiB.
fn large() -> Setup {
    let mut setup = Setup::default();
    setup.image.capacity_sectors = 1 << 32;
    setup.regions[1].size = 16 << 20;
    setup.regions[2].guest = 1 << 40;
    setup
}

fn finish(rig: &mut Rig<'_>, op: &Op, result: i64) {
    rig.shard.handle_reply(&Reply { id: op.id, result, version: 0 });
}

//= spec/limits.md#LIM-1
#[test]
fn b83_a_request_of_a_gibibyte_goes_in_bounded_parts() {
    rig!(rig, Setup { size: 128, ..large() });
    rig.header(HEADER, IN, 0);
    let mut buffers = vec![(HEADER, 16, R)];
    buffers.extend(vec![(HIGH_GUEST, 8 << 20, W); 126]);
    buffers.push((STATUS, 1, W));
    rig.link(&buffers);
    rig.offer(0);
    rig.take_in(rig.mem);
    let (mut next, total) = (0, 126 * (8 << 20));
    let mut window = rig.ops();
    while !window.is_empty() {
        assert!(window.len() <= usize::from(PARTS_PER_REQUEST_MAX));
        for op in window {
            assert_eq!(op.offset, next, "in order, without a gap");
            assert!(op.len <= PART_BYTES_MAX);
            assert!(rig.shard.pieces(op.id).count() <= 2);
            next += op.len;
            rig.reply_ok(&op);
        }
        window = rig.ops();
    }
    assert_eq!(next, total);
    rig.give_back(rig.mem);
    assert_eq!(rig.used(), [(0, u32::try_from(total).unwrap() + 1)]);
}

//= spec/virtqueue.md#VQ-10
#[test]
fn b85_the_used_length_is_what_was_written() {
    rig!(rig);
    let mem = rig.mem;
    let mut check = |kind: u32, sector: u64, buffers: &[(u64, u32, u16)], expected: u32| {
        rig.header(HEADER, kind, sector);
        rig.put(STATUS, &[NONE]);
        rig.link(buffers);
        rig.offer(0);
        let watched = Watched::new(mem);
        rig.take_in(&watched);
        while let Some(op) = rig.next_op() {
            let reply = rig.ram.carry_out(&watched, &op, rig.shard.pieces(op.id));
            rig.shard.handle_reply(&reply);
        }
        rig.give_back(&watched);
        let written: u64 =
            watched.writes().iter().filter(|w| w.region != RING).map(|w| w.len).sum();
        assert_eq!(rig.used(), [(0, expected)]);
        assert_eq!(written, u64::from(expected), "not a byte more, not a byte less");
    };
    let [header, data, status] = [(HEADER, 16, R), (DATA, 1024, W), (STATUS, 1, W)];
    check(IN, 0, &[header, data, status], 1025);
    check(IN, 4095, &[header, data, status], 1);
    check(OUT, 0, &[header, (DATA, 512, R), data, status], 1);
    check(FLUSH, 0, &[header, data, status], 1);
    check(GET_ID, 0, &[header, data, status], 21);
    check(GET_ID, 0, &[header, (DATA, 5, W), status], 6);
    check(99, 0, &[header, data, status], 1);
    check(IN, 0, &[header], 0);
    check(IN, 0, &[header, (sluice_sim::rig::WILD, 512, W), status], 1);
}

//= spec/blk.md#BLK-13
//= spec/blk.md#BLK-14
#[test]
fn b86_a_read_that_fails_in_part_fails() {
    let parts = 4;
    for bad in 0..parts {
        for result in [-5, 0, 512, i64::MIN, i64::MAX, (1 << 20) - 1, (1 << 20) + 1] {
            rig!(rig, large());
            rig.header(HEADER, IN, 0);
            rig.link(&[(HEADER, 16, R), (HIGH_GUEST, 4 << 20, W), (STATUS, 1, W)]);
            rig.put(STATUS, &[NONE]);
            rig.offer(0);
            rig.take_in(rig.mem);
            let ops = rig.ops();
            assert_eq!(ops.len(), parts);
            for (index, op) in ops.iter().enumerate() {
                finish(&mut rig, op, if index == bad { result } else { 1 << 20 });
            }
            rig.give_back(rig.mem);
            assert_eq!((rig.used(), rig.get(STATUS, 1)), (vec![(0, 1)], vec![IOERR]));
        }
    }
    rig!(rig, large());
    rig.header(HEADER, IN, 0);
    rig.link(&[(HEADER, 16, R), (HIGH_GUEST, 4 << 20, W), (STATUS, 1, W)]);
    rig.offer(0);
    rig.take_in(rig.mem);
    // In any order.
    for op in rig.ops().iter().rev() {
        rig.reply_ok(op);
    }
    rig.give_back(rig.mem);
    assert_eq!((rig.used(), rig.get(STATUS, 1)), (vec![(0, (4 << 20) + 1)], vec![OK]));
}

//= spec/blk.md#BLK-14
#[test]
fn b86_after_a_failure_nothing_more_is_cut() {
    rig!(rig, large());
    rig.header(HEADER, OUT, 0);
    let buffers: Vec<_> = [(HEADER, 16, R)]
        .into_iter()
        .chain([(HIGH_GUEST, 8 << 20, R); 8])
        .chain([(STATUS, 1, W)])
        .collect();
    rig.link(&buffers);
    rig.offer(0);
    rig.take_in(rig.mem);
    let ops = rig.ops();
    assert_eq!(ops.len(), usize::from(PARTS_PER_REQUEST_MAX));
    finish(&mut rig, &ops[3], -28);
    for op in ops.iter().enumerate().filter(|(index, _)| *index != 3).map(|(_, op)| op) {
        assert_eq!(rig.next_op(), None);
        rig.give_back(rig.mem);
        assert_eq!(rig.used(), [], "not before the last part has ended");
        rig.reply_ok(op);
    }
    // A reply that comes twice belongs to nobody.
    finish(&mut rig, &ops[3], 1 << 20);
    assert_eq!(rig.shard.counters().stale_replies, 1);
    rig.give_back(rig.mem);
    assert_eq!((rig.used(), rig.get(STATUS, 1)), (vec![(0, 1)], vec![IOERR]));
}

/// A large request that waits for replies is in no list when its front end goes.
//= spec/lifecycle.md#LIF-13
#[test]
fn nothing_is_begun_for_a_front_end_that_has_gone() {
    for (kind, flags) in [(IN, W), (OUT, R)] {
        rig!(rig, large());
        rig.header(HEADER, kind, 0);
        let buffers: Vec<_> = [(HEADER, 16, R)]
            .into_iter()
            .chain([(HIGH_GUEST, 8 << 20, flags); 8])
            .chain([(STATUS, 1, W)])
            .collect();
        rig.put(STATUS, &[NONE]);
        rig.link(&buffers);
        rig.offer(0);
        rig.take_in(rig.mem);
        let ops = rig.ops();
        rig.input(Input::FrontEndGone(rig.device));
        assert!(!rig.effects.contains(&Effect::Left(rig.device)));
        for op in &ops {
            // What was read lands nowhere; a write that was sent is sent to its end.
            let skipped = rig.shard.pieces(op.id).any(|piece| matches!(piece, Piece::Skip(_)));
            assert_eq!(skipped, kind == IN);
            rig.reply_ok(op);
            assert_eq!(rig.next_op(), None, "64 MiB were asked for, 16 were sent");
        }
        rig.give_back(rig.mem);
        assert!(rig.effects.contains(&Effect::Left(rig.device)));
        assert_eq!((rig.used(), rig.get(STATUS, 1)), (vec![], vec![NONE]), "nothing is published");
        assert_eq!((rig.shard.live(), rig.shard.ops_live()), (0, 0));
    }
}

/// The front end is gone once, however often that is said.
//= spec/lifecycle.md#LIF-13
#[test]
fn a_front_end_has_not_left_before_its_operations_have_ended() {
    rig!(rig);
    rig.header(HEADER, IN, 0);
    rig.link(&[(HEADER, 16, R), (DATA, 512, W), (STATUS, 1, W)]);
    rig.offer(0);
    rig.take_in(rig.mem);
    let ops = rig.ops();
    rig.input(Input::FrontEndGone(rig.device));
    rig.input(Input::FrontEndGone(rig.device));
    assert!(!rig.effects.contains(&Effect::Left(rig.device)));
    rig.reply_ok(&ops[0]);
    rig.give_back(rig.mem);
    let left = rig.effects.iter().filter(|&&effect| effect == Effect::Left(rig.device)).count();
    assert_eq!(left, 1);
    rig.attach();
    assert_eq!(rig.run(0), [(0, 513)], "and the next one is served");
}

//= spec/lifecycle.md#LIF-14
#[test]
fn every_message_is_answered_while_a_queue_drains() {
    use sluice_core::device::ControlReply::{Deferred, Refused, VringBase};
    rig!(rig);
    rig.header(HEADER, IN, 0);
    rig.link(&[(HEADER, 16, R), (DATA, 512, W), (STATUS, 1, W)]);
    rig.offer(0);
    rig.take_in(rig.mem);
    let ops = rig.ops();
    assert_eq!(rig.control(ControlEvent::GetVringBase { index: 0 }), Some(Deferred));
    // A message that comes in the very turn in which the queue drains.
    let now = sluice_core::time::Instant(0);
    let input = Input::Control(rig.device, ControlEvent::GetFeatures);
    rig.shard.handle(now, rig.mem, input).unwrap();
    rig.reply_ok(&ops[0]);
    rig.give_back(rig.mem);
    let replies: Vec<_> = rig.effects.iter().filter(|e| matches!(e, Effect::Reply(..))).collect();
    let busy = Refused(sluice_core::device::ControlFault::Busy);
    let base = VringBase { index: 0, base: 1 };
    assert_eq!(replies, [&Effect::Reply(rig.device, busy), &Effect::Reply(rig.device, base)]);
}

/// A second sync that was on its way when the first failed cannot vouch for what was lost.
//= spec/blk.md#BLK-16
#[test]
fn a_flush_that_overlaps_a_failed_one_fails() {
    rig!(rig);
    rig.header(HEADER, FLUSH, 0);
    for head in [0, 2] {
        rig.desc(head, (HEADER, 16, super::N, head + 1));
        rig.desc(head + 1, (STATUS + u64::from(head), 1, W, 0));
        rig.offer(head);
    }
    rig.take_in(rig.mem);
    let ops = rig.ops();
    assert!(ops.iter().all(|op| op.kind == OpKind::Sync) && ops.len() == 2);
    finish(&mut rig, &ops[0], -5);
    finish(&mut rig, &ops[1], 0);
    rig.give_back(rig.mem);
    assert_eq!(rig.used(), [(0, 1), (2, 1)]);
    assert_eq!(rig.get(STATUS, 3), [IOERR, NONE, IOERR]);
    assert!(rig.effects.contains(&Effect::Poisoned(rig.image)));
    // Reads go on, everything else fails.
    rig.header(HEADER, IN, 0);
    let buffers = [(HEADER, 16, R), (DATA, 512, W), (STATUS, 1, W)];
    assert_eq!(outcome(&mut rig, &buffers), (513, OK));
    rig.header(HEADER, OUT, 0);
    let buffers = [(HEADER, 16, R), (DATA, 512, R), (STATUS, 1, W)];
    assert_eq!(outcome(&mut rig, &buffers), (1, IOERR));
}

/// What the guest sees of a refused request is its status byte and nothing else.
#[test]
fn b85_a_refused_read_leaves_the_data_alone() {
    rig!(rig);
    rig.header(HEADER, IN, 4096);
    rig.put(DATA, &[NONE; 512]);
    let buffers = [(HEADER, 16, R), (DATA, 512, W), (STATUS, 1, W)];
    assert_eq!(outcome(&mut rig, &buffers), (1, IOERR));
    assert_eq!(rig.mem.dump(LOW, DATA - LOW_GUEST, 512), [NONE; 512]);
}
