//! A guest that writes whatever it likes into its ring, whenever it likes.

use sluice_core::blk::BlkFeatures;
use sluice_core::device::ControlEvent;
use sluice_core::op::{Op, Reply};
use sluice_core::shard::{Effect, Input};
use sluice_sim::rig::{self, HIGH, LOW, RING, Rig, Setup};

use crate::bytes::Bytes;
use crate::memory::{address, length, view};

/// Steps of one input; more than this says nothing new.
const STEPS: usize = 200;

/// What a guest does to its ring at one of six steps.
type Write = fn(u8, &mut Bytes<'_>, &mut Rig<'_>);

/// A sequence of guest stores, polls and replies on one running queue with a split ring.
pub fn virtqueue_split(data: &[u8]) {
    let bytes = &mut Bytes::new(data);
    let (size, base) = (1 << bytes.below(6), bytes.pick(&[0, 1, 0x7fff, 0xfffe]));
    run(bytes, Setup { size, base, ..Setup::default() }, write_split);
}

/// The same with a packed ring.
pub fn virtqueue_packed(data: &[u8]) {
    let bytes = &mut Bytes::new(data);
    let size = 1 + u16::from(bytes.below(40));
    let base = (u16::from(bytes.u8()) % size) | bytes.pick(&[0, 0x8000]);
    let mut setup = Setup { size, base, ..Setup::default() };
    setup.features |= BlkFeatures::RING_PACKED;
    run(bytes, setup, write_packed);
}

fn write_split(step: u8, bytes: &mut Bytes<'_>, rig: &mut Rig<'_>) {
    match step {
        0 | 1 => {
            let index = u16::from(bytes.u8()) % rig.size();
            rig.desc(index, (address(bytes), length(bytes), bytes.below(8).into(), next(bytes)));
        }
        5..=7 => rig.offer(next(bytes)),
        _ => rig.set_avail(rig.avail_index().wrapping_add(u16::from(bytes.u8()))),
    }
}

fn write_packed(step: u8, bytes: &mut Bytes<'_>, rig: &mut Rig<'_>) {
    let place = rig.next_place();
    match step {
        // Any entry in any state, or one of the next in the right lap.
        0 => {
            let index = u16::from(bytes.u8()) % rig.size();
            let flags = u16::from(bytes.below(8)) | bytes.pick(&[0, 0x80, 0x8000, 0x8080]);
            rig.desc(index, (address(bytes), length(bytes), next(bytes), flags));
        }
        1 => {
            let (index, wrap) = rig.place_after(place, bytes.below(4).into());
            let flags = u16::from(bytes.below(8)) | Rig::lap(wrap);
            rig.desc(index, (address(bytes), length(bytes), next(bytes), flags));
        }
        // A chain as it should be, of up to as many entries as there are and one more.
        5..=7 => {
            let count = 1 + usize::from(u16::from(bytes.u8()) % (rig.size() + 1)).min(5);
            let row: Vec<_> = (0..count)
                .map(|_| (address(bytes), length(bytes), u16::from(bytes.below(4)) << 1))
                .collect();
            rig.offer_row(next(bytes), &row);
        }
        _ => rig.skip_row(next(bytes), u16::from(bytes.u8()) % rig.size()),
    }
}

fn run(bytes: &mut Bytes<'_>, mut setup: Setup, write: Write) {
    setup.features.set(BlkFeatures::EVENT_IDX, bytes.bool());
    let (mut arena, mem) = (rig::arena(8), rig::memory());
    let memory = view(bytes, &mem);
    let mut rig = Rig::new(&mut arena, &mem, setup);
    let mut pending: Vec<Op> = Vec::new();
    for _ in 0..STEPS {
        if bytes.is_empty() {
            break;
        }
        match bytes.below(16) {
            step @ (0 | 1 | 5..=8) => write(step, bytes, &mut rig),
            2 => {
                let (at, taken) = (u64::from(bytes.u16()) % 0x1000, bytes.below(32));
                mem.fill(RING, at, bytes.take(taken.into()));
            }
            3 => {
                let (region, at) = (bytes.pick(&[LOW, HIGH]), u64::from(bytes.u16()) % 0x1000);
                let taken = bytes.below(64);
                mem.fill(region, at, bytes.take(taken.into()));
            }
            4 => {
                let at = bytes.u16() % 0x100;
                let (kind, sector) = (bytes.below(16), bytes.below(32));
                rig.header(rig::LOW_GUEST + u64::from(at), kind.into(), sector.into());
            }
            9 => rig.turn_in(&memory),
            10 => {
                rig.take_in(&memory);
            }
            11 => pending.extend(rig.ops()),
            12 if !pending.is_empty() => {
                let op = pending.swap_remove(usize::from(bytes.u8()) % pending.len());
                let result = match bytes.below(4) {
                    0 | 1 => op.len.try_into().unwrap_or(0),
                    2 => -5,
                    _ => i64::from(bytes.u16()),
                };
                rig.shard.handle_reply(&Reply { id: op.id, result, version: 0 });
            }
            12 | 13 => rig.give_back(&memory),
            14 => {
                if bytes.bool() {
                    let _ = rig.shard.arm(&memory);
                } else {
                    rig.shard.handle_kick(&memory, rig.queue());
                }
            }
            _ => {
                let enable = bytes.bool();
                rig.control(ControlEvent::SetVringEnable { index: 0, enable });
            }
        }
        rig.used();
    }
    finish(&mut rig, pending);
}

/// The front end goes. Nothing of it may be left, and the next one is served.
fn finish(rig: &mut Rig<'_>, mut pending: Vec<Op>) {
    rig.input(Input::FrontEndGone(rig.device));
    pending.extend(rig.ops());
    for op in pending {
        rig.reply_ok(&op);
        assert_eq!(rig.next_op(), None, "nothing is begun for a front end that has gone");
    }
    rig.give_back(rig.mem);
    assert_eq!((rig.shard.live(), rig.shard.ops_live()), (0, 0));
    assert!(rig.effects.contains(&Effect::Left(rig.device)));
    rig.attach();
    let used =
        if rig.is_packed() { rig.run_row(0, &[(rig::LOW_GUEST, 16, 0)]) } else { rig.run(0) };
    assert_eq!(used.len(), 1);
}

fn next(bytes: &mut Bytes<'_>) -> u16 {
    match bytes.u8() {
        small @ 0..0xfe => (small % 40).into(),
        _ => bytes.u16(),
    }
}
