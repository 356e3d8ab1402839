//! What may stand in an inflight region when a queue starts with it.

use sluice_core::device::{ControlEvent, ControlReply, ProtocolFeatures};
use sluice_core::inflight::InflightFault;
use sluice_core::limits::QUEUE_SIZE_MAX;
use sluice_core::shard::{Effect, Input};
use sluice_core::virtqueue::QueueFault;
use sluice_sim::rig::{HIGH, Rig, Setup, arena, memory};
use sluice_sim::watched::{Change, Watched};

use super::{DATA, HEADER, IN, N, STATUS, W, rig};

const SIZE: u16 = 16;
/// Heads of whole chains; each reads the sector of its number.
const HEADS: [u16; 5] = [0, 3, 6, 9, 12];

/// An area as bytes that anybody may have written.
#[derive(Clone)]
struct Area {
    features: u64,
    version: u16,
    desc_num: u16,
    last_batch_head: u16,
    used_idx: u16,
    /// Mark, next, counter.
    records: Vec<(u8, u16, u64)>,
}

impl Area {
    /// What a daemon leaves that had these heads under way, taken in this order.
    fn new(used_idx: u16, taken: &[u16]) -> Self {
        let mut records = vec![(0, 0, 0); usize::from(SIZE)];
        for (&head, counter) in taken.iter().zip(100..) {
            records[usize::from(head)] = (1, 0, counter);
        }
        Self { features: 0, version: 1, desc_num: SIZE, last_batch_head: 0, used_idx, records }
    }

    /// The same after these were given back together, before it was settled.
    fn with_batch(mut self, batch: &[u16]) -> Self {
        for &head in batch {
            self.records[usize::from(head)].1 = self.last_batch_head;
            self.last_batch_head = head;
        }
        self
    }

    fn bytes(&self) -> Vec<u8> {
        let mut bytes = self.features.to_le_bytes().to_vec();
        for index in [self.version, self.desc_num, self.last_batch_head, self.used_idx] {
            bytes.extend(index.to_le_bytes());
        }
        for (mark, next, counter) in &self.records {
            bytes.extend([*mark, 0, 0, 0, 0, 0]);
            bytes.extend(next.to_le_bytes());
            bytes.extend(counter.to_le_bytes());
        }
        bytes
    }
}

fn region() -> ControlEvent {
    ControlEvent::SetInflight { region: HIGH, offset: 0, len: 0x4000, queues: 1, size: SIZE }
}

/// The front end has not agreed to a stop that leaves requests in the region.
fn drains() -> ControlEvent {
    let leaves = ProtocolFeatures::GET_VRING_BASE_INFLIGHT;
    ControlEvent::SetProtocolFeatures(ProtocolFeatures::all().difference(leaves).bits())
}

/// A guest whose chains are laid out, whose ring has these indices and these entries from the
/// used index on, and the area; its front end is away.
fn prepare(rig: &mut Rig<'_>, area: &Area, used: u16, avail: u16) {
    rig.input(Input::FrontEndGone(rig.device));
    for head in HEADS {
        let at = u64::from(head);
        rig.header(HEADER + 16 * at, IN, at);
        rig.desc(head, (HEADER + 16 * at, 16, N, head + 1));
        rig.desc(head + 1, (DATA + 512 * at, 512, W | N, head + 2));
        rig.desc(head + 2, (STATUS + at, 1, W, 0));
    }
    for (head, index) in HEADS.into_iter().zip(0..) {
        rig.entry(used.wrapping_add(index), head);
    }
    rig.set_used(used);
    rig.set_avail(avail);
    rig.mem.fill(HIGH, 0, &area.bytes());
}

/// The sectors that are read, in their order, when a queue starts in this state; or its fault,
/// in which case the area is as it was.
fn start(area: &Area, used: u16, avail: u16, base: u16) -> Result<Vec<u64>, QueueFault> {
    rig!(rig, Setup::default());
    prepare(&mut rig, area, used, avail);
    rig.go_on(&[region()], base);
    //= spec/recovery.md#REC-8
    assert_eq!(rig.notified_at_start, 1);
    if let Some(fault) = rig.broken {
        let bytes = area.bytes();
        assert_eq!(rig.mem.dump(HIGH, 0, bytes.len()), bytes, "evidence is left as it is");
        rig.turn();
        assert_eq!((rig.used(), rig.shard.live()), (vec![], 0));
        return Err(fault);
    }
    rig.take_in(rig.mem);
    Ok(rig.ops().iter().map(|op| op.offset / 512).collect())
}

const fn fault(fault: InflightFault) -> QueueFault {
    QueueFault::Inflight(fault)
}

//= spec/recovery.md#REC-1
//= spec/inflight.md#INF-3
#[test]
fn b89_an_area_of_another_kind() {
    let sound = Area::new(7, &[3, 0]);
    assert_eq!(start(&sound, 7, 9, 7), Ok(vec![3, 0]));
    for wrong in [
        Area { version: 2, ..sound.clone() },
        Area { version: u16::MAX, ..sound.clone() },
        Area { features: 1, ..sound.clone() },
        Area { features: 1 << 63, ..sound.clone() },
    ] {
        assert_eq!(start(&wrong, 7, 9, 7), Err(fault(InflightFault::Layout)));
    }
}

//= spec/inflight.md#INF-6
//= spec/recovery.md#REC-11
#[test]
fn b89_an_area_of_version_0_is_empty_whatever_it_holds() {
    let mut stale = Area { version: 0, features: 9, ..Area::new(3, &[9, 6, 0]) };
    stale.records[12].0 = 77;
    // What is available is taken as new, in the order of the ring.
    assert_eq!(start(&stale, 7, 9, 7), Ok(vec![0, 3]));
    rig!(rig, Setup::default());
    prepare(&mut rig, &stale, 7, 7);
    rig.go_on(&[region()], 7);
    let (clean, found) = (Area::new(7, &[]), rig.mem.dump(HIGH, 0, stale.bytes().len()));
    assert_eq!(found[..16], clean.bytes()[..16]);
    assert!(found[16..].iter().step_by(16).all(|&mark| mark == 0), "{found:?}");
}

//= spec/recovery.md#REC-3
//= spec/recovery.md#REC-4
#[test]
fn b90_marks_that_are_none_and_marks_that_are_too_many() {
    let mut area = Area::new(7, &[3, 0]);
    for mark in [2, 3, 128, 255] {
        area.records[6].0 = mark;
        assert_eq!(start(&area, 7, 9, 7), Ok(vec![3, 0]), "{mark}");
    }
    // As many as the driver waits for may be under way, and not one more.
    let area = Area::new(7, &[3, 0, 6]);
    assert_eq!(start(&area, 7, 10, 7), Ok(vec![3, 0, 6]));
    assert_eq!(start(&area, 7, 9, 7), Err(fault(InflightFault::Count)));
    assert_eq!(start(&area, 7, 7, 7), Err(fault(InflightFault::Count)));
    let all: Vec<u16> = (0..SIZE).collect();
    let area = Area::new(0xfff8, &all);
    assert!(start(&area, 0xfff8, 8, 8).is_ok(), "a full ring, across the wrap");
    assert_eq!(start(&area, 0xfff8, 7, 0xfff8), Err(fault(InflightFault::Count)));
    // And no more than a queue holds.
    assert_eq!(start(&Area::new(7, &[]), 7, 24, 7), Err(fault(InflightFault::Count)));
    assert_eq!(start(&Area::new(7, &[]), 7, 6, 7), Err(fault(InflightFault::Count)));
}

//= spec/recovery.md#REC-5
#[test]
fn b90_a_base_that_is_somewhere_else() {
    let area = Area::new(7, &[3, 0]);
    for base in [7, 9] {
        assert_eq!(start(&area, 7, 10, base), Ok(vec![3, 0]), "{base}: two again, then the rest");
    }
    for base in [6, 8, 10, 0, 0x8007] {
        assert_eq!(start(&area, 7, 10, base), Err(fault(InflightFault::Base)), "{base}");
    }
    let fresh = Area { version: 0, ..Area::new(0, &[]) };
    assert_eq!(start(&fresh, 7, 8, 7), Ok(vec![0]));
    assert_eq!(start(&fresh, 7, 8, 8), Err(fault(InflightFault::Base)));
}

//= spec/recovery.md#REC-2
#[test]
fn b91_a_last_batch_that_is_no_list() {
    // 0 and 6 were given back with used indices 7 and 8; 3 is under way.
    let area = Area::new(7, &[3, 0, 6]).with_batch(&[0, 6]);
    assert_eq!(start(&area, 9, 10, 9), Ok(vec![3]), "the whole batch is done");
    assert_eq!(start(&area, 8, 10, 8), Ok(vec![3, 0]), "a batch of one");
    let broken = Err(fault(InflightFault::Batch));
    let outside = Area { last_batch_head: SIZE, ..area.clone() };
    assert_eq!(start(&outside, 9, 10, 9), broken);
    assert_eq!(start(&outside, 7, 10, 7), Ok(vec![3, 0, 6]), "nobody looks at it");
    for next in [SIZE, u16::MAX, 6] {
        let mut area = area.clone();
        area.records[6].1 = next;
        assert_eq!(start(&area, 9, 10, 9), broken, "{next}");
    }
    let mut ring = area.clone();
    ring.records[0].1 = 6;
    assert_eq!(start(&ring, 10, 11, 10), broken, "a list of two for three");
    let all: Vec<u16> = (0..SIZE).collect();
    assert_eq!(start(&Area::new(7, &all).with_batch(&all), 7 + SIZE, 24, 23), Ok(vec![0]));
}

//= spec/recovery.md#REC-2
#[test]
fn f10_a_used_index_that_disagrees_wildly() {
    let area = Area::new(7, &[3, 0]).with_batch(&[3]);
    assert_eq!(start(&area, 8, 9, 8), Ok(vec![0]));
    for used in [6, 7 + SIZE + 1, 0x8007, 0] {
        let found = start(&area, used, used.wrapping_add(2), used);
        assert_eq!(found, Err(fault(InflightFault::UsedIndex)), "{used}");
    }
}

//= spec/recovery.md#REC-6
#[test]
fn b92_counters_of_any_value() {
    let mut area = Area::new(7, &[9, 3, 0]);
    let mut order = |counters: [u64; 3]| {
        for (head, counter) in [0, 3, 9].into_iter().zip(counters) {
            area.records[head].2 = counter;
        }
        start(&area, 7, 10, 7)
    };
    assert_eq!(order([5, 5, 5]), Ok(vec![0, 3, 9]), "the same: as the records stand");
    assert_eq!(order([u64::MAX, 0, u64::MAX - 1]), Ok(vec![3, 9, 0]));
    assert_eq!(order([3, 2, 1]), Ok(vec![9, 3, 0]));
    assert_eq!(order([0, 1 << 32, 1 << 31]), Ok(vec![0, 9, 3]));
}

//= spec/inflight.md#INF-4
//= spec/recovery.md#REC-6
#[test]
fn b92_numbers_begin_anew_after_a_start() {
    rig!(rig, Setup::default());
    let mut area = Area::new(7, &[9, 3]);
    (area.records[9].2, area.records[3].2) = (u64::MAX - 1, u64::MAX);
    prepare(&mut rig, &area, 7, 9);
    rig.go_on(&[region()], 7);
    rig.take_in(rig.mem);
    rig.offer(6);
    rig.take_in(rig.mem);
    let record = |head: u64| rig.mem.dump(HIGH, 16 + 16 * head, 16);
    for (head, counter) in [(9, 0_u64), (3, 1), (6, 2)] {
        let found = record(head);
        assert_eq!((found[0], &found[8..]), (1, &counter.to_le_bytes()[..]), "{head}");
    }
}

/// Every byte of the area is read once, so that it does not matter when it changes.
//= spec/recovery.md#REC-1
#[test]
fn b93_an_area_that_changes_while_it_is_read() {
    let area = Area::new(7, &[3, 0, 6]).with_batch(&[0, 6]);
    let len = area.bytes().len() as u64;
    let mut reads = 1;
    let mut at = 0;
    while at < reads {
        let change = Change { after: at, region: HIGH, offset: at as u64 * 7 % len, flips: 0x55 };
        let (mut arena, mem) = (arena(64), memory());
        let mut rig = Rig::new(&mut arena, &mem, Setup::default());
        prepare(&mut rig, &area, 9, 10);
        let watched = Watched::changing(&mem, vec![change]);
        rig.go_on_in(&watched, &[region()], 9);
        assert_eq!(watched.read_twice(HIGH, 0, len), None);
        reads = watched.count();
        at += 1;
        // Whatever was found: it is served or broken, and there is an end.
        rig.turn();
        rig.input(Input::FrontEndGone(rig.device));
        rig.give_back(&mem);
        assert_eq!(rig.shard.live(), 0);
    }
    assert!(reads > 16, "{reads}");
}

//= spec/recovery.md#REC-1
#[test]
fn b96_an_area_of_a_queue_of_another_size() {
    let sound = Area::new(7, &[3, 0]);
    assert_eq!(start(&sound, 7, 9, 7), Ok(vec![3, 0]));
    for desc_num in [0, 1, SIZE / 2, SIZE - 1, SIZE + 1, 2 * SIZE, QUEUE_SIZE_MAX, u16::MAX] {
        let other = Area { desc_num, ..sound.clone() };
        assert_eq!(start(&other, 7, 9, 7), Err(fault(InflightFault::Layout)), "{desc_num}");
    }
}

/// After a migration the region is fresh and the ring is not. With a used index of 0 instead of
/// the ring's, the next daemon would take live chains for given back.
//= spec/inflight.md#INF-6
//= spec/inflight.md#INF-8
#[test]
fn b97_a_fresh_region_for_a_ring_in_use() {
    rig!(rig, Setup::default());
    prepare(&mut rig, &Area { version: 0, ..Area::new(0, &[]) }, 5, 6);
    rig.go_on(&[region()], 5);
    rig.take_in(rig.mem);
    assert_eq!(rig.ops().len(), 1);
    // It goes away with its chain under way, and comes back.
    rig.input(Input::FrontEndGone(rig.device));
    rig.give_back(rig.mem);
    rig.input(Input::FrontEndGone(rig.device));
    rig!(next, Setup::default());
    next.mem.fill(HIGH, 0, &rig.mem.dump(HIGH, 0, 0x110));
    let left = next.mem.dump(HIGH, 0, 0x110);
    prepare(&mut next, &Area::new(0, &[]), 5, 6);
    next.mem.fill(HIGH, 0, &left);
    next.go_on(&[region()], 5);
    next.turn();
    assert_eq!((next.used(), next.broken), (vec![(0, 513)], None));
}

/// The guest is reset after its queue has stopped; its front end keeps the region.
//= spec/inflight.md#INF-7
//= spec/recovery.md#REC-11
#[test]
fn b97_a_region_that_was_kept_over_a_reset() {
    rig!(rig, Setup::default());
    prepare(&mut rig, &Area { version: 0, ..Area::new(0, &[]) }, 5, 7);
    rig.go_on(&[region()], 5);
    rig.turn();
    assert_eq!(rig.used().len(), 2);
    let stopped = rig.control(ControlEvent::GetVringBase { index: 0 });
    assert_eq!(stopped, Some(ControlReply::VringBase { index: 0, base: 7 }));
    rig.input(Input::FrontEndGone(rig.device));
    rig.set_used(0);
    rig.set_avail(0);
    rig.go_on(&[region()], 0);
    assert_eq!(rig.broken, None);
    rig.turn();
    assert_eq!(rig.used(), [], "nobody has asked for anything");
    assert_eq!(rig.run(3), [(3, 513)]);
}

//= spec/recovery.md#REC-9
#[test]
fn f12_no_region_though_it_was_negotiated() {
    rig!(rig, Setup::default());
    for (avail, broken) in [(7, None), (8, Some(fault(InflightFault::Missing))), (7, None)] {
        prepare(&mut rig, &Area::new(0, &[]), 7, avail);
        rig.go_on(&[], 7);
        assert_eq!(rig.broken, broken, "{avail}");
    }
    // What came while the queue was stopped on one connection is new.
    rig.control(ControlEvent::GetVringBase { index: 0 });
    rig.offer(0);
    let (index, addresses) = (0, rig.addresses());
    for event in [
        ControlEvent::SetVringBase { index, base: 7 },
        ControlEvent::SetVringAddr { index, addresses },
        ControlEvent::SetVringKick { index },
    ] {
        assert_eq!(rig.control(event), Some(ControlReply::Done));
    }
    rig.turn();
    assert_eq!((rig.used(), rig.broken), (vec![(0, 513)], None));
}

/// With room for one request at a time the stop finds most heads not taken again yet.
//= spec/recovery.md#REC-10
#[test]
fn a_stop_takes_what_is_left_and_nothing_new() {
    let (mut arena, mem) = (arena(1), memory());
    let mut rig = Rig::new(&mut arena, &mem, Setup::default());
    prepare(&mut rig, &Area::new(7, &[6, 0, 3]), 7, 11);
    rig.go_on(&[drains(), region()], 7);
    rig.control(ControlEvent::SetVringEnable { index: 0, enable: false });
    let stopped = rig.control(ControlEvent::GetVringBase { index: 0 });
    assert_eq!(stopped, Some(ControlReply::Deferred));
    rig.effects.clear();
    for (round, head) in [6, 0, 3].into_iter().enumerate() {
        assert!(rig.effects.is_empty(), "{round}");
        rig.turn();
        assert_eq!(rig.used(), [(head, 513)]);
    }
    assert_eq!(rig.effects.pop_front(), Some(Effect::Release(rig.image)));
    let base = ControlReply::VringBase { index: 0, base: 10 };
    assert_eq!(rig.effects.pop_front(), Some(Effect::Reply(rig.device, base)));
    rig.turn();
    assert_eq!(rig.used(), [], "9 is new");
}

/// The queue breaks while a stop waits for the rest: it waits no longer.
//= spec/recovery.md#REC-10
#[test]
fn a_stop_is_answered_when_the_rest_cannot_be_taken() {
    rig!(rig, Setup::default());
    prepare(&mut rig, &Area::new(7, &[6, 0, 3]), 7, 11);
    rig.go_on(&[drains(), region()], 7);
    let stopped = rig.control(ControlEvent::GetVringBase { index: 0 });
    assert_eq!(stopped, Some(ControlReply::Deferred));
    rig.input(Input::MemoryLost(HIGH));
    rig.give_back(rig.mem);
    assert_eq!(rig.broken, Some(QueueFault::RingUnmapped));
    let answered =
        |effect: &Effect| matches!(effect, Effect::Reply(_, ControlReply::VringBase { .. }));
    assert!(rig.effects.iter().any(answered), "{:?}", rig.effects);
}

/// Firmware has used the device over the same connection, and the region was its.
//= spec/inflight.md#INF-12
#[test]
fn who_asks_for_a_region_has_none() {
    let (mut arena, mem) = (arena(64), memory());
    let mut rig = Rig::new(&mut arena, &mem, Setup::default());
    rig.input(Input::FrontEndGone(rig.device));
    rig.effects.clear();
    rig.go_on(&[region()], 0);
    let ask = ControlEvent::GetInflight { queues: 1, size: SIZE };
    assert!(matches!(rig.control(ask.clone()), Some(ControlReply::Value(1..))));
    assert!(rig.effects.is_empty(), "a queue runs with it");
    rig.control(ControlEvent::GetVringBase { index: 0 });
    rig.effects.clear();
    assert!(matches!(rig.control(ask), Some(ControlReply::Value(1..))));
    assert_eq!(rig.effects.pop_front(), Some(Effect::Unmap(HIGH)));
}
