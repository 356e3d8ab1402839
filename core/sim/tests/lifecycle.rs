//! A device from its first message to its last, by its front end's view.

use sluice_core::blk::config::{BlkConfig, CONFIG_BYTES};
use sluice_core::blk::{BlkFeatures, Status};
use sluice_core::device::{
    ControlEvent as E, ControlFault, ControlReply, ProtocolFeatures, RegionList, RingAddresses,
};
use sluice_core::image::{Capture, ImageConfig};
use sluice_core::memory::{MapFault, Region, RegionId};
use sluice_core::op::{OpKind, Reply};
use sluice_core::shard::{Effect, Granted, Idle, Input};
use sluice_sim::arena::{Arena, Capacity};
use sluice_sim::rig::{self, LOW, LOW_GUEST, RING, Rig, Setup};

const WRITE: u16 = 2;
const STATUS: u64 = LOW_GUEST + 0x2000;

/// A rig with room for 4 requests.
macro_rules! rig {
    ($rig:ident, $setup:expr) => {
        let (mut arena, mem) = (rig::arena(4), rig::memory());
        #[allow(unused_mut)]
        let mut $rig = Rig::new(&mut arena, &mem, $setup);
    };
}

fn refused(reply: Option<ControlReply>) -> Option<ControlFault> {
    match reply {
        Some(ControlReply::Refused(fault)) => Some(fault),
        _ => None,
    }
}

/// Puts a request without data at descriptors 0 and 1.
fn plain(rig: &Rig<'_>, kind: u32) {
    rig.header(LOW_GUEST, kind, 0);
    rig.link(&[(LOW_GUEST, 16, 0), (STATUS, 1, WRITE)]);
}

/// Puts a read of one sector at descriptors 0 to 2.
fn read(rig: &Rig<'_>) {
    rig.header(LOW_GUEST, 0, 0);
    rig.link(&[(LOW_GUEST, 16, 0), (LOW_GUEST + 0x1000, 512, WRITE), (STATUS, 1, WRITE)]);
}

fn messages() -> Vec<E> {
    let region = Region { id: LOW, guest: 0x4000_0000, user: 0x4000_0000, size: 0x1000 };
    let addresses = RingAddresses { desc: 0, avail: 0, used: 0 };
    let mut all = vec![
        E::SetOwner,
        E::ResetOwner,
        E::GetFeatures,
        E::GetProtocolFeatures,
        E::SetProtocolFeatures(ProtocolFeatures::all().bits()),
        E::SetProtocolFeatures(1 << 40),
        E::SetFeatures(1 << 32),
        E::SetFeatures(1 << 24),
        E::GetQueueNum,
        E::GetMaxMemSlots,
        E::SetMemTable(RegionList::from_slice(&[region]).unwrap()),
        E::AddMemRegion(region),
        E::RemoveMemRegion { guest: 1, user: 1, size: 1 },
        E::GetConfig { offset: 0, size: 60 },
        E::SetConfig { offset: 0, size: 1, value: 0 },
        E::SetConfig { offset: 32, size: 1, value: 0 },
    ];
    for index in [0, 1, 2, 0x1_0000, u32::MAX] {
        all.extend([
            E::SetVringNum { index, size: 16 },
            E::SetVringNum { index, size: 0 },
            E::SetVringBase { index, base: 7 },
            E::SetVringAddr { index, addresses },
            E::SetVringKick { index },
            E::SetVringCall { index },
            E::SetVringErr { index },
            E::SetVringEnable { index, enable: true },
            E::SetVringEnable { index, enable: false },
            E::GetVringBase { index },
        ]);
    }
    all
}

//= spec/lifecycle.md#LIF-1
//= spec/lifecycle.md#LIF-5
#[test]
fn every_message_is_answered_once_in_every_state() {
    for first in messages() {
        for second in messages() {
            for running in [true, false] {
                rig!(rig, Setup::default());
                if !running {
                    rig.input(Input::FrontEndGone(rig.device));
                }
                rig.effects.clear();
                for event in [first.clone(), second.clone()] {
                    assert!(rig.control(event.clone()).is_some(), "{event:?} after {first:?}");
                    let more = rig.effects.iter().any(|e| matches!(e, Effect::Reply(..)));
                    assert!(!more, "{event:?} is answered twice");
                }
                // Whatever was said, the end leaves nothing.
                rig.input(Input::FrontEndGone(rig.device));
                assert!(rig.effects.contains(&Effect::Left(rig.device)));
                assert!(rig.shard.remove_device(rig.device));
            }
        }
    }
}

//= spec/lifecycle.md#LIF-2
//= spec/lifecycle.md#LIF-3
#[test]
fn b16_memory_and_rings_need_an_owner() {
    rig!(rig, Setup::default());
    assert_eq!(rig.control(E::SetOwner), Some(ControlReply::Done), "it is the owner already");
    rig.input(Input::FrontEndGone(rig.device));
    for event in [E::GetFeatures, E::GetQueueNum, E::GetConfig { offset: 0, size: 60 }] {
        assert_eq!(refused(rig.control(event)), None);
    }
    let early = E::SetVringNum { index: 0, size: 16 };
    assert_eq!(refused(rig.control(early.clone())), Some(ControlFault::Owner));
    assert!(!ControlFault::Owner.closes(), "the front end may go on");
    assert_eq!(rig.control(E::SetOwner), Some(ControlReply::Done));
    assert_eq!(rig.control(early), Some(ControlReply::Done));
}

/// QEMU keeps the connection when a device is unplugged, and the next one says everything again.
//= spec/lifecycle.md#LIF-2
#[test]
fn an_owner_without_rings_begins_anew() {
    rig!(rig, Setup::default());
    rig.input(Input::FrontEndGone(rig.device));
    rig.control(E::SetOwner);
    let region = Region { id: RegionId(70), guest: 0, user: 1 << 40, size: 1 << 20 };
    let shares = E::AddMemRegion(region);
    rig.control(E::SetOwner);
    assert_eq!(rig.control(shares.clone()), Some(ControlReply::Done));
    let overlaps = ControlFault::Memory(MapFault::Overlap);
    assert_eq!(refused(rig.control(shares.clone())), Some(overlaps), "the same owner");
    rig.effects.clear();
    assert_eq!(rig.control(E::SetOwner), Some(ControlReply::Done));
    assert!(rig.effects.contains(&Effect::Unmap(RegionId(70))), "{:?}", rig.effects);
    assert_eq!(rig.control(shares), Some(ControlReply::Done), "another device");
}

//= spec/lifecycle.md#LIF-4
#[test]
fn b17_b20_features_are_what_was_offered_and_freeze() {
    rig!(rig, Setup::default());
    let negotiated = Setup::default().features;
    let other = negotiated | BlkFeatures::EVENT_IDX;
    assert_eq!(rig.control(E::SetFeatures(negotiated.bits())), Some(ControlReply::Done));
    let fault = refused(rig.control(E::SetFeatures(other.bits()))).unwrap();
    assert_eq!(fault, ControlFault::Running);
    assert!(fault.closes(), "front end and device would disagree");
    assert!(matches!(
        rig.control(E::GetVringBase { index: 0 }),
        Some(ControlReply::VringBase { index: 0, base: 0 })
    ));
    assert_eq!(rig.control(E::SetFeatures(other.bits())), Some(ControlReply::Done));
    let unknown = refused(rig.control(E::SetFeatures(1 << 24)));
    assert_eq!(unknown, Some(ControlFault::NotOffered));
}

//= spec/lifecycle.md#LIF-7
#[test]
fn b43_b44_rings_are_aligned_and_inside_one_region() {
    rig!(rig, Setup::default());
    let good = rig.addresses();
    rig.control(E::GetVringBase { index: 0 });
    let last = Setup::default().regions[2];
    let behind = last.user + last.size;
    let cases = [
        (RingAddresses { desc: good.desc + 8, ..good }, ControlFault::Alignment),
        (RingAddresses { avail: good.avail + 1, ..good }, ControlFault::Alignment),
        (RingAddresses { used: good.used + 2, ..good }, ControlFault::Alignment),
        (RingAddresses { used: behind - 16, ..good }, ControlFault::RingNotShared),
        (RingAddresses { desc: 0, ..good }, ControlFault::RingNotShared),
        (RingAddresses { avail: u64::MAX - 1, ..good }, ControlFault::RingNotShared),
    ];
    for (addresses, fault) in cases {
        let event = E::SetVringAddr { index: 0, addresses };
        assert_eq!(refused(rig.control(event)), Some(fault));
    }
    let event = E::SetVringAddr { index: 0, addresses: good };
    assert_eq!(rig.control(event), Some(ControlReply::Done));
}

//= spec/lifecycle.md#LIF-10
#[test]
fn b24_a_queue_is_served_from_its_kick_and_while_it_is_enabled() {
    let features = Setup::default().features | BlkFeatures::PROTOCOL_FEATURES;
    rig!(rig, Setup { features, ..Setup::default() });
    plain(&rig, 4);
    rig.control(E::SetVringEnable { index: 0, enable: false });
    assert_eq!(rig.run(0), [], "disabled");
    rig.control(E::SetVringEnable { index: 0, enable: true });
    rig.turn();
    assert_eq!(rig.used(), [(0, 1)], "looked at without a kick");
    rig.control(E::GetVringBase { index: 0 });
    assert_eq!(rig.run(0), [], "stopped");
    let addresses = rig.addresses();
    assert_eq!(
        refused(rig.control(E::SetVringKick { index: 0 })),
        Some(ControlFault::Order),
        "a stopped queue has no addresses"
    );
    for event in [
        E::SetVringBase { index: 0, base: 1 },
        E::SetVringAddr { index: 0, addresses },
        E::SetVringKick { index: 0 },
    ] {
        assert_eq!(rig.control(event), Some(ControlReply::Done));
    }
    rig.turn();
    assert_eq!(rig.used(), [(0, 1)]);
}

//= spec/lifecycle.md#LIF-11
//= spec/lifecycle.md#LIF-12
#[test]
fn an_image_is_captured_at_the_first_request_and_released_at_the_last_goodbye() {
    rig!(rig, Setup { grant: false, ..Setup::default() });
    assert_eq!(rig.shard.image(rig.image).capture, Capture::None);
    // The serial needs no image.
    rig.header(LOW_GUEST, 8, 0);
    rig.link(&[(LOW_GUEST, 16, 0), (LOW_GUEST + 0x1000, 20, WRITE), (STATUS, 1, WRITE)]);
    assert_eq!(rig.run(0), [(0, 21)]);
    assert_eq!(rig.shard.image(rig.image).capture, Capture::None);
    read(&rig);
    assert_eq!(rig.run(0), [], "it waits");
    assert!(rig.effects.contains(&Effect::Capture(rig.image)));
    rig.input(Input::Capture(rig.image, Granted::No));
    rig.turn();
    assert_eq!(rig.used(), [], "refused: it goes on waiting");
    rig.input(Input::Capture(rig.image, Granted::Yes));
    rig.turn();
    assert_eq!(rig.used(), [(0, 513)]);
    rig.input(Input::FrontEndGone(rig.device));
    assert!(rig.effects.contains(&Effect::Release(rig.image)));
}

//= spec/lifecycle.md#LIF-15
//= spec/virtqueue.md#VQ-1
#[test]
fn b39_lost_memory_ends_the_device() {
    rig!(rig, Setup::default());
    read(&rig);
    rig.offer(0);
    rig.take_in(rig.mem);
    rig.input(Input::MemoryLost(RING));
    assert!(rig.effects.contains(&Effect::Evict(rig.device)));
    let broken = |e: &Effect| matches!(e, Effect::QueueBroken(..));
    assert!(rig.broken.is_some() || rig.effects.iter().any(broken));
    // What was taken still ends; nothing more is taken.
    rig.work();
    rig.give_back(rig.mem);
    assert_eq!(rig.used(), [(0, 513)]);
    assert_eq!(rig.run(0), []);
    rig.input(Input::FrontEndGone(rig.device));
    assert!(rig.effects.contains(&Effect::Left(rig.device)));
}

//= spec/virtqueue.md#VQ-13
#[test]
fn a_chain_that_comes_while_its_queue_is_armed_is_not_forgotten() {
    rig!(rig, Setup::default());
    plain(&rig, 4);
    rig.turn();
    rig.offer(0);
    // The driver has looked at the flags before: it will not notify.
    assert_eq!(rig.shard.arm(rig.mem), Idle::More);
    rig.turn();
    assert_eq!(rig.used(), [(0, 1)]);
    assert_eq!(rig.shard.arm(rig.mem), Idle::Idle);
    rig.offer(0);
    let queue = rig.queue();
    rig.shard.handle_kick(rig.mem, queue);
    rig.turn();
    assert_eq!(rig.used(), [(0, 1)]);
}

//= spec/blk.md#BLK-17
#[test]
fn f30_a_flush_syncs_even_when_nothing_was_written() {
    rig!(rig, Setup::default());
    plain(&rig, 4);
    for _ in 0..3 {
        rig.offer(0);
        rig.take_in(rig.mem);
        let ops = rig.ops();
        assert_eq!(ops.iter().map(|op| op.kind).collect::<Vec<_>>(), [OpKind::Sync]);
        assert_eq!(rig.used(), [], "not before the sync has ended");
        rig.shard.handle_reply(&Reply { id: ops[0].id, result: 0, version: 0 });
        rig.give_back(rig.mem);
        assert_eq!(rig.used(), [(0, 1)]);
        assert_eq!(rig.get(STATUS, 1), [Status::Ok as u8]);
    }
}

//= spec/blk.md#BLK-11
//= spec/blk.md#BLK-12
//= spec/blk.md#BLK-18
#[test]
fn b25_the_configuration_space_says_what_the_image_can() {
    let image = Setup::default().image;
    let read_only = ImageConfig { read_only: true, ..image };
    let all = BlkFeatures::offered(&image);
    let writing = BlkFeatures::DISCARD | BlkFeatures::WRITE_ZEROES;
    assert!(all.contains(writing) && !all.contains(BlkFeatures::RO));
    let offered = BlkFeatures::offered(&read_only);
    assert!(offered.contains(BlkFeatures::RO) && !offered.intersects(writing));
    assert_eq!(all.bits() & 1 << 1, 0, "SIZE_MAX would cap segments");

    let config = BlkConfig::new(&ImageConfig { block_bytes: 4096, ..image }, 3);
    assert_eq!((config.capacity.get(), config.blk_size.get()), (4096, 4096));
    assert_eq!((config.seg_max.get(), config.num_queues.get()), (126, 3));
    assert_eq!((config.max_discard_seg.get(), config.max_discard_sectors.get()), (16, 1 << 21));
    let (mut long, mut other, mut tail) = ([0xff; 256], [0xff; 256], [0xff; 8]);
    config.read(0, &mut long);
    config.read(0x100, &mut other);
    assert_eq!(long, other);
    assert_eq!(long[..8], 4096_u64.to_le_bytes());
    assert!(long[CONFIG_BYTES..].iter().all(|&byte| byte == 0), "zero behind its end");
    config.read(58, &mut tail);
    assert_eq!(tail[2..], [0; 6]);
    config.read(u32::MAX, &mut tail);
    assert_eq!(tail, [0; 8]);
}

//= spec/blk.md#BLK-12
#[test]
fn the_configuration_space_has_the_queues_that_the_device_has() {
    rig!(rig, Setup::default());
    let Some(ControlReply::Value(queues)) = rig.control(E::GetQueueNum) else {
        panic!("a number");
    };
    let Some(ControlReply::Config(config)) = rig.control(E::GetConfig { offset: 0, size: 60 })
    else {
        panic!("a space");
    };
    assert_eq!((u64::from(config.num_queues.get()), queues), (2, 2));
}

//= spec/limits.md#LIM-2
#[test]
fn a_queue_that_finds_no_place_is_refused_and_nothing_else() {
    let capacity = Capacity { images: 1, devices: 1, queues: 1, requests: 4, parts: 6, groups: 0 };
    let (mut arena, mem) = (Arena::new(capacity), rig::memory());
    let mut rig = Rig::new(&mut arena, &mem, Setup::default());
    let second = E::SetVringNum { index: 1, size: 16 };
    assert_eq!(refused(rig.control(second.clone())), Some(ControlFault::QueuePool));
    read(&rig);
    assert_eq!(rig.run(0), [(0, 513)], "what runs is not touched");
    rig.input(Input::FrontEndGone(rig.device));
    assert_eq!(rig.control(E::SetOwner), Some(ControlReply::Done));
    assert_eq!(rig.control(second), Some(ControlReply::Done), "the place was given back");
}

//= spec/lifecycle.md#LIF-16
#[test]
fn another_size_is_told_and_kept_to() {
    rig!(rig, Setup::default());
    assert_eq!(rig.config_changes, 1, "it started without a look");
    let image = rig.image;
    rig.input(Input::Resized(image, 8192));
    rig.input(Input::Resized(image, 8192));
    assert_eq!(rig.config_changes, 2, "told once");
    let config = BlkConfig::new(&rig.shard.image(image).config, 2);
    assert_eq!(config.capacity.get(), 8192);
    // The last sector of the new size, and the first behind it.
    for (sector, status) in [(8191, Status::Ok), (8192, Status::IoErr)] {
        read(&rig);
        rig.header(LOW_GUEST, 0, sector);
        rig.offer(0);
        rig.take_in(rig.mem);
        for op in core::iter::from_fn(|| rig.shard.poll_op()).collect::<Vec<_>>() {
            assert_eq!(op.offset, 8191 * 512);
            rig.reply_ok(&op);
        }
        rig.give_back(rig.mem);
        assert_eq!(rig.used().len(), 1);
        assert_eq!(rig.get(STATUS, 1), [status as u8], "sector {sector}");
    }
}

//= spec/lifecycle.md#LIF-16
#[test]
fn who_does_not_listen_is_not_told() {
    rig!(rig, Setup::default());
    let without = ProtocolFeatures::all().difference(ProtocolFeatures::BACKEND_REQ);
    rig.control(E::SetProtocolFeatures(without.bits()));
    assert_eq!(refused(rig.control(E::SetBackendReq)), Some(ControlFault::Channel));
    let before = rig.config_changes;
    rig.input(Input::Resized(rig.image, 8192));
    assert_eq!(rig.config_changes, before);
}
