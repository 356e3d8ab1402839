//! What a driver says of its cache, and what its completed writes are worth.

use sluice_core::blk::{BlkConfig, BlkFeatures, Status};
use sluice_core::device::{ControlEvent, ControlFault, ControlReply};
use sluice_core::image::ImageConfig;
use sluice_core::inflight::{DEVICE_BYTES, region_bytes};
use sluice_core::op::{OpKind, Reply};
use sluice_core::shard::Input;
use sluice_sim::rig::{HIGH, LOW_GUEST, Rig, Setup, arena, memory};

const WRITE: u16 = 2;
const AREAS: u64 = region_bytes(1, 16, true);
const STATUS: u64 = LOW_GUEST + 0x2000;
/// Where the configuration space has the switch.
const AT: u32 = 32;
const LOOK: ControlEvent = ControlEvent::GetConfig { offset: 0, size: 60 };

const fn choose(value: u8) -> ControlEvent {
    ControlEvent::SetConfig { offset: AT, size: 1, value }
}

fn setup(features: BlkFeatures) -> Setup {
    let always = BlkFeatures::VERSION_1 | BlkFeatures::WRITE_ZEROES | BlkFeatures::DISCARD;
    Setup { features: always | features, ..Setup::default() }
}

/// Another connection to a device, which nobody looks at before it runs.
fn connect(rig: &mut Rig<'_>, more: &[ControlEvent]) {
    rig.input(Input::FrontEndGone(rig.device));
    // Nothing is in flight.
    rig.mem.fill(HIGH, 0, &vec![0; usize::try_from(AREAS).unwrap()]);
    rig.attach_with(more);
}

/// What a request makes the device do, one after the other, until it is given back.
fn steps(rig: &mut Rig<'_>, kind: u32) -> Vec<OpKind> {
    rig.header(LOW_GUEST, kind, 0);
    let range = [8_u64.to_le_bytes(), 8_u64.to_le_bytes()].concat();
    rig.put(LOW_GUEST + 0x1000, &range);
    let (len, direction) = match kind {
        0 => (512, WRITE),
        1 => (512, 0),
        4 => (0, 0),
        _ => (16, 0),
    };
    rig.link(&[(LOW_GUEST, 16, 0), (LOW_GUEST + 0x1000, len, direction), (STATUS, 1, WRITE)]);
    rig.offer(0);
    rig.take_in(rig.mem);
    let mut steps = Vec::new();
    while let Some(op) = rig.next_op() {
        rig.give_back(rig.mem);
        assert!(rig.used().is_empty(), "not before {:?} has ended", op.kind);
        assert!(rig.next_op().is_none(), "one after the other");
        steps.push(op.kind);
        rig.reply_ok(&op);
    }
    rig.give_back(rig.mem);
    assert_eq!((rig.used().len(), rig.get(STATUS, 1)), (1, vec![Status::Ok as u8]));
    steps
}

fn is_stable(rig: &mut Rig<'_>) -> bool {
    match steps(rig, 1)[..] {
        [OpKind::Write, OpKind::Sync] => true,
        [OpKind::Write] => false,
        ref other => panic!("{other:?}"),
    }
}

//= spec/blk.md#BLK-19
#[test]
fn a_driver_that_cannot_flush_or_has_chosen_not_to_gets_stable_writes() {
    let (flush, wce) = (BlkFeatures::FLUSH, BlkFeatures::CONFIG_WCE);
    for (features, chosen, stable) in [
        (BlkFeatures::empty(), None, true),
        (flush, None, false),
        (flush | wce, None, false),
        (flush | wce, Some(1), false),
        (flush | wce, Some(0), true),
        (wce, None, true),
    ] {
        let (mut arena, mem) = (arena(4), memory());
        let mut rig = Rig::new(&mut arena, &mem, setup(features));
        connect(&mut rig, &[]);
        if features.contains(wce) {
            // It did not look before the queue ran: what it has said before is not known.
            assert!(is_stable(&mut rig), "{features:?}");
        }
        rig.input(Input::FrontEndGone(rig.device));
        rig.control(LOOK);
        rig.attach_with(&[]);
        if let Some(value) = chosen {
            assert_eq!(rig.control(choose(value)), Some(ControlReply::Done));
        }
        assert_eq!(is_stable(&mut rig), stable, "{features:?} {chosen:?}");
        let zeroes = OpKind::WriteZeroes { unmap: false };
        let zeroed = if stable { vec![zeroes, OpKind::Sync] } else { vec![zeroes] };
        assert_eq!(steps(&mut rig, 13), zeroed);
        assert_eq!(steps(&mut rig, 0), [OpKind::Read]);
        assert_eq!(steps(&mut rig, 11), [OpKind::Discard], "it may keep what it had");
        assert_eq!(steps(&mut rig, 4), [OpKind::Sync]);
        let Some(ControlReply::Config(config)) = rig.control(LOOK) else { panic!() };
        assert_eq!(config.writeback, u8::from(chosen != Some(0)));
    }
}

/// A write that was taken before the choice keeps to what held then.
//= spec/blk.md#BLK-19
#[test]
fn a_choice_is_for_the_writes_that_follow() {
    let (mut arena, mem) = (arena(4), memory());
    let mut rig = Rig::new(&mut arena, &mem, setup(BlkFeatures::FLUSH | BlkFeatures::CONFIG_WCE));
    rig.input(Input::FrontEndGone(rig.device));
    rig.control(LOOK);
    rig.attach_with(&[]);
    for (value, stable) in [(0, true), (1, false), (0, true), (0, true)] {
        assert_eq!(rig.control(choose(value)), Some(ControlReply::Done));
        assert_eq!(is_stable(&mut rig), stable);
    }
}

//= spec/blk.md#BLK-16
//= spec/blk.md#BLK-19
#[test]
fn a_stable_write_whose_sync_fails_fails() {
    let (mut arena, mem) = (arena(4), memory());
    let mut rig = Rig::new(&mut arena, &mem, setup(BlkFeatures::empty()));
    rig.header(LOW_GUEST, 1, 0);
    rig.link(&[(LOW_GUEST, 16, 0), (LOW_GUEST + 0x1000, 512, 0), (STATUS, 1, WRITE)]);
    for (write, sync) in [(-5, None), (512, Some(-5))] {
        rig.offer(0);
        rig.take_in(rig.mem);
        let op = rig.next_op().expect("the write");
        rig.shard.handle_reply(&Reply { id: op.id, result: write, version: 0 });
        let next = rig.next_op();
        assert_eq!(next.map(|op| op.kind), sync.map(|_| OpKind::Sync), "a failure is final");
        if let (Some(op), Some(result)) = (next, sync) {
            rig.shard.handle_reply(&Reply { id: op.id, result, version: 0 });
        }
        rig.give_back(rig.mem);
        assert_eq!((rig.used(), rig.get(STATUS, 1)), (vec![(0, 1)], vec![Status::IoErr as u8]));
        assert_eq!(rig.shard.image(rig.image).config.poisoned, sync.is_some());
    }
}

//= spec/blk.md#BLK-19
#[test]
fn b26_only_the_switch_is_written_and_only_where_it_was_negotiated() {
    let (mut arena, mem) = (arena(4), memory());
    let mut rig = Rig::new(&mut arena, &mem, setup(BlkFeatures::FLUSH | BlkFeatures::CONFIG_WCE));
    let refused = Some(ControlReply::Refused(ControlFault::Config));
    assert!(!ControlFault::Config.closes(), "the front end may go on");
    for (offset, size, value) in [
        (0, 1, 0),
        (0, 60, 0),
        (AT - 1, 2, 0),
        (AT, 0, 0),
        (AT, 2, 0),
        (AT, 1, 2),
        (AT, 1, 255),
        (AT + 1, 1, 0),
        (u32::MAX, 1, 0),
        (0x100, 1, 0),
    ] {
        let event = ControlEvent::SetConfig { offset, size, value };
        assert_eq!(rig.control(event), refused, "{offset} {size} {value}");
    }
    // Some front ends count from 0x100.
    for offset in [AT, 0x100 + AT] {
        for value in [0, 1] {
            let event = ControlEvent::SetConfig { offset, size: 1, value };
            assert_eq!(rig.control(event), Some(ControlReply::Done));
            assert_eq!(is_stable(&mut rig), value == 0);
        }
    }
    let image = Setup::default().image;
    assert!(BlkFeatures::offered(&image).contains(BlkFeatures::CONFIG_WCE));
    let read_only = BlkFeatures::offered(&ImageConfig { read_only: true, ..image });
    assert!(!read_only.contains(BlkFeatures::CONFIG_WCE));
    assert_eq!(BlkConfig::new(&image, 1).writeback, 1);
    rig.control(ControlEvent::GetVringBase { index: 0 });
    rig.control(ControlEvent::SetFeatures(setup(BlkFeatures::FLUSH).features.bits()));
    assert_eq!(rig.control(choose(0)), refused);
}

/// The front end of a killed daemon does not say again what its guest has chosen.
//= spec/inflight.md#INF-13
#[test]
fn a_choice_outlives_the_daemon() {
    let (mut arena, mem) = (arena(4), memory());
    let mut rig = Rig::new(&mut arena, &mem, setup(BlkFeatures::FLUSH | BlkFeatures::CONFIG_WCE));
    let region =
        |len| ControlEvent::SetInflight { region: HIGH, offset: 0, len, queues: 1, size: 16 };
    let (whole, small) = (region(AREAS + DEVICE_BYTES), region(AREAS));
    for chosen in [0, 1] {
        for before in [true, false] {
            rig.mem.fill(HIGH, 0, &[0; 512]);
            rig.input(Input::FrontEndGone(rig.device));
            rig.control(LOOK);
            let choice = choose(chosen);
            let mut more = [choice, whole.clone()];
            more.rotate_left(usize::from(!before));
            rig.attach_with(&more);
            assert_eq!(is_stable(&mut rig), chosen == 0);
            // Another connection, without a look.
            connect(&mut rig, core::slice::from_ref(&whole));
            assert_eq!(is_stable(&mut rig), chosen == 0, "{chosen} {before}");
            // A region without room for it, as another back end would have made it.
            connect(&mut rig, core::slice::from_ref(&small));
            assert!(is_stable(&mut rig));
            // What nobody has written is nothing.
            rig.mem.fill(HIGH, AREAS, &[9]);
            connect(&mut rig, core::slice::from_ref(&whole));
            assert!(is_stable(&mut rig));
        }
    }
}
