//! Dirty logs: every page that is written is marked, and no log is written outside of.

use std::collections::BTreeSet;

use sluice_core::blk::BlkFeatures;
use sluice_core::device::{ControlEvent, ControlFault, ControlReply, ProtocolFeatures};
use sluice_core::dirty::PAGE_BYTES;
use sluice_core::memory::RegionId;
use sluice_core::op::Reply;
use sluice_core::shard::Effect;
use sluice_core::virtqueue::QueueFault;
use sluice_sim::memory::FlatMemory;
use sluice_sim::rig::{
    DATA_BYTES, HIGH_GUEST, LOW, LOW_GUEST, RING_BYTES, RING_GUEST, Rig, Setup, arena,
};
use sluice_sim::watched::Watched;

use super::{DATA, FLUSH, GET_ID, HEADER, IN, OUT, R, STATUS, W};

/// Two logs that a front end lends, with room behind them that is nobody's.
const LOG: RegionId = RegionId(3);
const OTHER: RegionId = RegionId(4);
const LOG_BYTES: u64 = RING_GUEST / PAGE_BYTES / 8 + 1;
const ROOM: usize = 0x200;

fn memory() -> FlatMemory {
    let bytes = |len| usize::try_from(len).unwrap();
    let (data, ring) = (bytes(DATA_BYTES), bytes(RING_BYTES));
    let mem = FlatMemory::new(&[data, data, ring, ROOM, ROOM]);
    clear(&mem);
    mem
}

fn clear(mem: &FlatMemory) {
    mem.fill(LOG, 0, &[0; ROOM]);
    mem.fill(OTHER, 0, &[0; ROOM]);
}

fn marked(mem: &FlatMemory, log: RegionId) -> BTreeSet<u64> {
    let bytes = mem.dump(log, 0, ROOM);
    let bit = |page: &u64| bytes[usize::try_from(page / 8).unwrap()] & (1 << (page % 8)) != 0;
    (0..8 * ROOM as u64).filter(bit).collect()
}

fn pages(ranges: &[(u64, u64)]) -> BTreeSet<u64> {
    let of = |&(at, len): &(u64, u64)| at / PAGE_BYTES..=(at + len - 1) / PAGE_BYTES;
    ranges.iter().flat_map(of).collect()
}

/// Pages that the core itself wrote.
fn written(watched: &Watched<'_>) -> BTreeSet<u64> {
    let starts = [LOW_GUEST, HIGH_GUEST, RING_GUEST];
    let in_guest = watched.writes().into_iter().filter_map(|write| {
        starts.get(write.region.0 as usize).map(|start| (start + write.offset, write.len))
    });
    pages(&in_guest.collect::<Vec<_>>())
}

fn lend(region: RegionId, bytes: u64) -> ControlEvent {
    ControlEvent::SetLogBase { region, bytes }
}

fn features(logged: bool) -> ControlEvent {
    let mut features = Setup::default().features;
    features.set(BlkFeatures::LOG_ALL, logged);
    ControlEvent::SetFeatures(features.bits())
}

/// Turns logging on while the queue runs, as front ends do.
fn log(rig: &mut Rig<'_>, bytes: u64) {
    for event in [lend(LOG, bytes), features(true)] {
        assert_eq!(rig.control(event), Some(ControlReply::Done));
    }
}

fn status_only() -> Vec<(u64, u32, u16)> {
    vec![(HEADER, 16, R), (STATUS, 1, W)]
}

/// Data that crosses from one region into the next.
const CROSSING: (u64, u64) = (HIGH_GUEST - 0x600, 0x2000);

fn crossing(flags: u16) -> Vec<(u64, u32, u16)> {
    vec![(HEADER, 16, R), (CROSSING.0, u32::try_from(CROSSING.1).unwrap(), flags), (STATUS, 1, W)]
}

//= spec/migration.md#MIG-2
//= spec/migration.md#MIG-3
//= spec/migration.md#MIG-4
#[test]
fn b49_i14_every_page_that_is_written_is_marked() {
    let (mut arena, mem) = (arena(64), memory());
    let mut rig = Rig::new(&mut arena, &mem, Setup::default());
    log(&mut rig, LOG_BYTES);
    let ring = rig.used_ring();
    let own = [(STATUS, 1), (RING_GUEST + ring, rig.rings_end() - ring)];
    let cases = [
        (IN, crossing(W), pages(&[CROSSING, own[0], own[1]])),
        (OUT, crossing(R), pages(&own)),
        (FLUSH, status_only(), pages(&own)),
        (GET_ID, vec![(HEADER, 16, R), (DATA, 20, W), (STATUS, 1, W)], {
            pages(&[(DATA, 20), own[0], own[1]])
        }),
    ];
    for (kind, buffers, expected) in cases {
        clear(&mem);
        rig.header(HEADER, kind, 8);
        rig.link(&buffers);
        rig.offer(0);
        let watched = Watched::new(&mem);
        rig.turn_in(&watched);
        assert_eq!(rig.used().len(), 1, "type {kind}");
        let marked = marked(&mem, LOG);
        assert!(marked.is_superset(&written(&watched)), "type {kind}");
        assert_eq!(marked, expected, "type {kind}: these pages and no others");
    }
}

//= spec/migration.md#MIG-3
#[test]
fn b49_a_landing_place_is_marked_before_and_after_whatever_becomes_of_it() {
    for result in [0x2000, -5] {
        let (mut arena, mem) = (arena(64), memory());
        let mut rig = Rig::new(&mut arena, &mem, Setup::default());
        log(&mut rig, LOG_BYTES);
        rig.header(HEADER, IN, 8);
        rig.link(&crossing(W));
        rig.offer(0);
        clear(&mem);
        rig.take_in(&mem);
        assert!(marked(&mem, LOG).is_superset(&pages(&[CROSSING])), "before it is asked for");
        let ops = rig.ops();
        clear(&mem);
        for op in ops {
            rig.shard.handle_reply(&Reply { id: op.id, result, version: 0 });
        }
        rig.give_back(&mem);
        assert_eq!(rig.used().len(), 1);
        assert!(marked(&mem, LOG).is_superset(&pages(&[CROSSING, (STATUS, 1)])), "{result}");
    }
}

//= spec/migration.md#MIG-4
#[test]
fn b49_the_wish_for_notifications_is_marked() {
    let (mut arena, mem) = (arena(64), memory());
    let mut rig = Rig::new(&mut arena, &mem, Setup::default());
    log(&mut rig, LOG_BYTES);
    clear(&mem);
    let watched = Watched::new(&mem);
    rig.shard.arm(&watched);
    assert!(!written(&watched).is_empty());
    assert!(marked(&mem, LOG).is_superset(&written(&watched)));
    clear(&mem);
    rig.shard.handle_kick(&watched, rig.queue());
    assert!(marked(&mem, LOG).is_superset(&written(&watched)));
}

//= spec/migration.md#MIG-2
#[test]
fn b47_a_page_without_a_bit_breaks_the_queue_and_nothing_else() {
    // One byte less than the rings need, than the data needs, and nearly nothing.
    let enough_for_data = (HIGH_GUEST + DATA_BYTES) / PAGE_BYTES / 8 + 1;
    for bytes in [LOG_BYTES - 1, enough_for_data, LOW_GUEST / PAGE_BYTES / 8, 1] {
        let (mut arena, mem) = (arena(64), memory());
        let mut rig = Rig::new(&mut arena, &mem, Setup::default());
        log(&mut rig, bytes);
        rig.header(HEADER, IN, 8);
        rig.put(STATUS, &[0xaa]);
        rig.link(&crossing(W));
        rig.offer(0);
        rig.turn();
        assert_eq!(rig.broken, Some(QueueFault::OutOfLog), "{bytes} bytes");
        assert_eq!(
            (rig.used(), rig.get(STATUS, 1)),
            (vec![], vec![0xaa]),
            "nothing was given back"
        );
        let beyond = usize::try_from(bytes).unwrap();
        assert!(mem.dump(LOG, bytes, ROOM - beyond).iter().all(|&b| b == 0), "{bytes} bytes");
    }
}

//= spec/migration.md#MIG-1
#[test]
fn b48_another_log_takes_over_at_once_and_the_old_one_is_unmapped() {
    let (mut arena, mem) = (arena(64), memory());
    let mut rig = Rig::new(&mut arena, &mem, Setup::default());
    rig.header(HEADER, IN, 8);
    rig.link(&crossing(W));
    rig.offer(0);
    rig.take_in(&mem);
    // Lent while a read is under way, and again.
    log(&mut rig, LOG_BYTES);
    assert_eq!(rig.control(lend(OTHER, LOG_BYTES)), Some(ControlReply::Done));
    assert_eq!(rig.effects.pop_front(), Some(Effect::Unmap(LOG)));
    clear(&mem);
    rig.work();
    rig.give_back(&mem);
    assert_eq!(rig.used().len(), 1);
    assert_eq!(marked(&mem, LOG), BTreeSet::new(), "unmapped is unmapped");
    assert!(marked(&mem, OTHER).is_superset(&pages(&[CROSSING, (STATUS, 1)])));
    // Turned off, nothing is marked.
    assert_eq!(rig.control(features(false)), Some(ControlReply::Done));
    clear(&mem);
    assert_eq!(rig.run(0).len(), 1);
    assert_eq!(marked(&mem, OTHER), BTreeSet::new());
    assert!(rig.effects.is_empty());
}

//= spec/migration.md#MIG-1
#[test]
fn b48_a_log_has_to_be_negotiated_and_other_features_stay_frozen() {
    let (mut arena, mem) = (arena(64), memory());
    let mut rig = Rig::new(&mut arena, &mem, Setup::default());
    let refused = |fault| Some(ControlReply::Refused(fault));
    assert_eq!(rig.control(lend(LOG, 0)), refused(ControlFault::Log));
    let more = Setup::default().features | BlkFeatures::LOG_ALL | BlkFeatures::EVENT_IDX;
    let event = ControlEvent::SetFeatures(more.bits());
    assert_eq!(rig.control(event), refused(ControlFault::Running));
    let without = ProtocolFeatures::all().difference(ProtocolFeatures::LOG_SHMFD);
    rig.control(ControlEvent::SetProtocolFeatures(without.bits()));
    assert_eq!(rig.control(lend(LOG, LOG_BYTES)), refused(ControlFault::Log));
    assert_eq!(rig.control(features(true)), Some(ControlReply::Done), "without a log");
    rig.header(HEADER, IN, 8);
    assert_eq!(rig.place(DATA).unwrap().0, LOW);
    assert_eq!(rig.chain(&crossing(W)), 0x2001);
}

/// A seed found it asked for while it was still held.
//= spec/migration.md#MIG-5
#[test]
fn an_image_that_is_used_again_before_it_was_given_up_is_kept() {
    let (mut arena, mem) = (arena(64), memory());
    let mut rig = Rig::new(&mut arena, &mem, Setup::default());
    rig.header(HEADER, IN, 8);
    rig.link(&crossing(W));
    assert_eq!(rig.run(0).len(), 1);
    let message = |event| sluice_core::shard::Input::Control(rig.device, event);
    let (addresses, size, base) = (rig.addresses(), rig.size().into(), rig.avail_index().into());
    let index = 0;
    // No effect is polled in between.
    for input in [
        message(ControlEvent::GetVringBase { index }),
        message(ControlEvent::SetVringNum { index, size }),
        message(ControlEvent::SetVringBase { index, base }),
        message(ControlEvent::SetVringAddr { index, addresses }),
        message(ControlEvent::SetVringKick { index }),
    ] {
        rig.shard.handle(sluice_core::time::Instant(0), &mem, input).unwrap();
    }
    rig.offer(0);
    rig.turn();
    assert_eq!(rig.used().len(), 1);
    assert!(!rig.effects.iter().any(|effect| matches!(effect, Effect::Release(_))));
}

/// The next request would wait for ever.
//= spec/migration.md#MIG-5
#[test]
fn a_grant_that_comes_between_a_stop_and_a_start_counts() {
    use sluice_core::shard::{Granted, Input};
    use sluice_core::time::Instant;
    let (mut arena, mem) = (arena(64), memory());
    let mut rig = Rig::new(&mut arena, &mem, Setup { grant: false, ..Setup::default() });
    let (device, image, index) = (rig.device, rig.image, 0);
    rig.link(&crossing(W));
    // Asked for by a read, which its front end takes back by going away.
    rig.header(HEADER, IN, 8);
    rig.offer(0);
    rig.take_in(&mem);
    assert_eq!(rig.effects.pop_front(), Some(Effect::Capture(image)));
    rig.shard.handle(Instant(0), &mem, Input::FrontEndGone(device)).unwrap();
    rig.shard.publish(&mem);
    // Nothing was polled, so the shell still holds what it now grants.
    rig.shard.handle(Instant(0), &mem, Input::Capture(image, Granted::Yes)).unwrap();
    let regions = Setup::default().regions;
    let table = sluice_core::device::RegionList::from_slice(&regions).unwrap();
    let (addresses, size) = (rig.addresses(), rig.size().into());
    for event in [
        ControlEvent::SetOwner,
        ControlEvent::SetFeatures(Setup::default().features.bits()),
        ControlEvent::SetMemTable(table),
        ControlEvent::SetVringNum { index, size },
        ControlEvent::SetVringBase { index, base: 0 },
        ControlEvent::SetVringAddr { index, addresses },
        ControlEvent::SetVringKick { index },
        ControlEvent::SetVringEnable { index, enable: true },
    ] {
        rig.shard.handle(Instant(0), &mem, Input::Control(device, event)).unwrap();
    }
    rig.turn();
    assert_eq!(rig.used().len(), 1, "it does not wait for a grant that has come");
}

//= spec/migration.md#MIG-5
#[test]
fn the_image_is_given_up_before_the_stop_is_told_and_asked_for_again() {
    let (mut arena, mem) = (arena(64), memory());
    let mut rig = Rig::new(&mut arena, &mem, Setup { grant: false, ..Setup::default() });
    let image = rig.image;
    let stop = ControlEvent::GetVringBase { index: 0 };
    assert!(rig.effects.is_empty(), "nothing is asked for at the start");
    rig.header(HEADER, IN, 8);
    rig.link(&crossing(W));
    rig.offer(0);
    rig.take_in(&mem);
    assert_eq!(rig.effects.pop_front(), Some(Effect::Capture(image)));
    rig.input(sluice_core::shard::Input::Capture(image, sluice_core::shard::Granted::Yes));
    rig.turn();
    rig.input(sluice_core::shard::Input::Control(rig.device, stop));
    assert_eq!(rig.effects.pop_front(), Some(Effect::Release(image)));
    assert!(matches!(rig.effects.pop_front(), Some(Effect::Reply(..))));
}
