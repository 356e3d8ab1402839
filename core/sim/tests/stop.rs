//! A queue that is stopped.

use sluice_core::device::{ControlEvent, ControlFault, ControlReply, ProtocolFeatures};
use sluice_core::op::{OpKind, Reply};
use sluice_core::shard::{Effect, Granted, Input};
use sluice_sim::crash::in_flight;
use sluice_sim::rig::{HIGH, LOW_GUEST, Rig, Setup, arena, memory};

const WRITE: u16 = 2;
const NEXT: u16 = 1;
/// Heads of chains that read the sector of their number.
const HEADS: [u16; 3] = [6, 0, 3];
const STOP: ControlEvent = ControlEvent::GetVringBase { index: 0 };

//= spec/lifecycle.md#LIF-14
#[test]
fn the_last_batch_before_a_stop_is_notified() {
    for stop_before_the_reply in [false, true] {
        let (mut arena, mem) = (arena(4), memory());
        let mut rig = Rig::new(&mut arena, &mem, Setup::default());
        rig.header(LOW_GUEST, 0, 0);
        rig.link(&[
            (LOW_GUEST, 16, 0),
            (LOW_GUEST + 0x1000, 512, WRITE),
            (LOW_GUEST + 0x2000, 1, WRITE),
        ]);
        rig.offer(0);
        rig.take_in(&mem);
        if stop_before_the_reply {
            assert_eq!(rig.control(STOP), Some(ControlReply::Deferred));
            rig.work();
        } else {
            rig.work();
            assert_eq!(rig.control(STOP), Some(ControlReply::Deferred));
        }
        let before = rig.notified;
        rig.give_back(&mem);
        assert_eq!(rig.used(), [(0, 513)]);
        assert_eq!(rig.notified, before + 1, "the driver waits for it");
    }
}

/// A front end that is connected anew, with these protocol features and a fresh region.
fn begin(rig: &mut Rig<'_>, without: ProtocolFeatures) {
    rig.input(Input::FrontEndGone(rig.device));
    for head in HEADS {
        let at = u64::from(head);
        rig.header(LOW_GUEST + 16 * at, 0, at);
        rig.desc(head, (LOW_GUEST + 16 * at, 16, NEXT, head + 1));
        rig.desc(head + 1, (LOW_GUEST + 0x1000 + 512 * at, 512, WRITE | NEXT, head + 2));
        rig.desc(head + 2, (LOW_GUEST + 0x400 + at, 1, WRITE, 0));
    }
    rig.mem.fill(HIGH, 0, &[0; 512]);
    let protocol = ProtocolFeatures::all().difference(without);
    rig.attach_with(&[ControlEvent::SetProtocolFeatures(protocol.bits()), region()]);
    rig.effects.clear();
}

fn region() -> ControlEvent {
    ControlEvent::SetInflight { region: HIGH, offset: 0, len: 0x4000, queues: 1, size: 16 }
}

/// Starts the queue again where it was stopped.
fn start(rig: &mut Rig<'_>, base: u32) {
    rig.effects.clear();
    let (index, addresses) = (0, rig.addresses());
    for event in [
        region(),
        ControlEvent::SetVringBase { index, base },
        ControlEvent::SetVringAddr { index, addresses },
        ControlEvent::SetVringKick { index },
    ] {
        assert_eq!(rig.control(event), Some(ControlReply::Done));
    }
}

/// The answer to a stop that comes late.
fn base(rig: &Rig<'_>) -> Option<u32> {
    rig.effects.iter().find_map(|effect| match effect {
        Effect::Reply(_, ControlReply::VringBase { index: 0, base }) => Some(*base),
        _ => None,
    })
}

fn marked(rig: &Rig<'_>, used: u16) -> Vec<u16> {
    in_flight(&rig.mem.dump(HIGH, 0, 16 + 16 * 16), used).expect("a sound area")
}

/// Somebody else has the image, and nobody knows for how long.
//= spec/lifecycle.md#LIF-17
#[test]
fn a_stop_leaves_what_has_not_begun() {
    for agreed in [true, false] {
        let (mut arena, mem) = (arena(4), memory());
        let mut rig = Rig::new(&mut arena, &mem, Setup { grant: false, ..Setup::default() });
        let leaves = ProtocolFeatures::GET_VRING_BASE_INFLIGHT;
        begin(&mut rig, if agreed { ProtocolFeatures::empty() } else { leaves });
        HEADS.into_iter().for_each(|head| rig.offer(head));
        rig.take_in(&mem);
        assert!(rig.effects.contains(&Effect::Capture(rig.image)));
        assert_eq!(rig.control(STOP), Some(ControlReply::Deferred));
        rig.give_back(&mem);
        if !agreed {
            assert_eq!((base(&rig), rig.shard.live()), (None, 3), "it waits for the image");
            continue;
        }
        assert_eq!((base(&rig), rig.shard.live()), (Some(3), 0));
        assert_eq!((rig.used(), marked(&rig, 0)), (vec![], HEADS.to_vec()));
        assert!(rig.effects.contains(&Effect::Release(rig.image)), "it asks no more");
        // The grant that was under way is for nobody.
        rig.input(Input::Capture(rig.image, Granted::Yes));
        assert!(rig.ops().is_empty());
        start(&mut rig, 3);
        assert_eq!(rig.broken, None);
        rig.take_in(&mem);
        rig.input(Input::Capture(rig.image, Granted::Yes));
        let again = rig.ops();
        let sectors = |ops: &[sluice_core::op::Op]| -> Vec<u16> {
            ops.iter().map(|op| u16::try_from(op.offset / 512).unwrap()).collect()
        };
        assert_eq!(sectors(&again), HEADS, "in the order in which they were taken");
        again.iter().for_each(|op| rig.reply_ok(op));
        rig.give_back(&mem);
        assert_eq!(rig.used(), HEADS.map(|head| (u32::from(head), 513)));
    }
}

/// What the kernel or an OSD has would touch the guest's memory behind the answer.
//= spec/lifecycle.md#LIF-17
#[test]
fn a_stop_waits_for_what_was_sent() {
    let (mut arena, mem) = (arena(4), memory());
    let mut rig = Rig::new(&mut arena, &mem, Setup::default());
    begin(&mut rig, ProtocolFeatures::empty());
    HEADS.into_iter().for_each(|head| rig.offer(head));
    rig.take_in(&mem);
    let sent = rig.shard.poll_op().expect("the first read");
    assert_eq!(rig.control(STOP), Some(ControlReply::Deferred));
    rig.give_back(&mem);
    assert_eq!((base(&rig), rig.shard.poll_op()), (None, None), "nothing more is begun");
    rig.reply_ok(&sent);
    rig.give_back(&mem);
    assert_eq!((rig.used(), base(&rig)), (vec![(6, 513)], Some(3)), "what has ended is given back");
    assert_eq!(marked(&rig, 1), [0, 3]);
    start(&mut rig, 3);
    rig.turn();
    assert_eq!(rig.used(), [(0, 513), (3, 513)]);
}

/// A request in two parts, of which one is sent.
//= spec/lifecycle.md#LIF-17
#[test]
fn a_stop_leaves_the_rest_of_what_has_begun() {
    let (mut arena, mem) = (arena(1), memory());
    let mut rig = Rig::new(&mut arena, &mem, Setup::default());
    begin(&mut rig, ProtocolFeatures::empty());
    // Two ranges are two operations.
    let range = |sector: u64| [sector.to_le_bytes(), 8_u64.to_le_bytes()].concat();
    rig.header(LOW_GUEST, 11, 0);
    rig.put(LOW_GUEST + 0x1000, &[range(0), range(64)].concat());
    rig.link(&[(LOW_GUEST, 16, 0), (LOW_GUEST + 0x1000, 32, 0), (LOW_GUEST + 0x400, 1, WRITE)]);
    rig.offer(0);
    rig.take_in(&mem);
    let sent = rig.shard.poll_op().expect("the first range");
    assert_eq!((sent.kind, sent.offset), (OpKind::Discard, 0));
    assert_eq!(rig.control(STOP), Some(ControlReply::Deferred));
    rig.give_back(&mem);
    assert_eq!(base(&rig), None);
    rig.shard.handle_reply(&Reply { id: sent.id, result: 0, version: 0 });
    rig.give_back(&mem);
    assert_eq!((rig.used(), base(&rig), marked(&rig, 0)), (vec![], Some(1), vec![0]));
    start(&mut rig, 1);
    rig.take_in(&mem);
    let again = rig.ops();
    assert_eq!(again.iter().map(|op| op.offset / 512).collect::<Vec<_>>(), [0, 64]);
    again.iter().for_each(|op| rig.reply_ok(op));
    rig.give_back(&mem);
    assert_eq!(rig.used(), [(0, 1)]);
}

/// What an earlier daemon took, and this one has not taken again.
//= spec/lifecycle.md#LIF-17
#[test]
fn a_stop_leaves_what_was_left_before() {
    let (mut arena, mem) = (arena(1), memory());
    let mut rig = Rig::new(&mut arena, &mem, Setup { grant: false, ..Setup::default() });
    begin(&mut rig, ProtocolFeatures::empty());
    HEADS.into_iter().for_each(|head| rig.offer(head));
    rig.take_in(&mem);
    rig.control(STOP);
    rig.give_back(&mem);
    assert_eq!((base(&rig), marked(&rig, 0)), (Some(1), vec![6]), "room for one at a time");
    rig.effects.clear();
    for stop in 0..3 {
        start(&mut rig, 1);
        assert_eq!(rig.broken, None);
        if stop == 1 {
            rig.take_in(&mem);
        }
        let answer = rig.control(STOP);
        rig.give_back(&mem);
        let at_once = ControlReply::VringBase { index: 0, base: 1 };
        assert!(answer == Some(at_once) || base(&rig) == Some(1), "{stop}: {answer:?}");
        assert_eq!(marked(&rig, 0), [6], "{stop}");
        rig.effects.clear();
    }
}

/// Nobody would know what was left.
//= spec/lifecycle.md#LIF-17
#[test]
fn b18_leaving_requests_takes_a_region_to_leave_them_in() {
    let (mut arena, mem) = (arena(1), memory());
    let mut rig = Rig::new(&mut arena, &mem, Setup::default());
    let only = ProtocolFeatures::all().difference(ProtocolFeatures::INFLIGHT_SHMFD);
    let refused = rig.control(ControlEvent::SetProtocolFeatures(only.bits()));
    assert_eq!(refused, Some(ControlReply::Refused(ControlFault::NotOffered)));
    let all = ControlEvent::SetProtocolFeatures(ProtocolFeatures::all().bits());
    assert_eq!(rig.control(all), Some(ControlReply::Done));
}
