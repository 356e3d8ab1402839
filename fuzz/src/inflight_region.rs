//! A front end that hands over any inflight region for any ring, more than once.

use sluice_core::blk::BlkFeatures;
use sluice_core::device::ControlEvent;
use sluice_core::inflight::region_bytes;
use sluice_core::memory::SharedMemory;
use sluice_core::op::Op;
use sluice_core::shard::{Effect, Input};
use sluice_core::virtqueue::layout::{AVAIL_IDX, AVAIL_RING};
use sluice_sim::rig::{self, HIGH, LOW_GUEST, RING, Rig, Setup};

use crate::bytes::Bytes;
use crate::memory::view;

/// A few starts of one queue, each with what the one before has left and what the input makes
/// of it.
pub fn inflight_region(data: &[u8]) {
    let bytes = &mut Bytes::new(data);
    let kind = bytes.u8();
    let setup = if kind < 128 {
        Setup { size: 1 << (kind % 6), ..Setup::default() }
    } else {
        let size = 1 + u16::from(kind % 16);
        let mut setup = Setup { size, base: 0x8000, ..Setup::default() };
        setup.features |= BlkFeatures::RING_PACKED;
        setup
    };
    let (mut arena, mem) = (rig::arena(8), rig::memory());
    let memory = view(bytes, &mem);
    let mut rig = Rig::new(&mut arena, &mem, setup);
    rig.input(Input::FrontEndGone(rig.device));
    mem.fill(HIGH, 0, &vec![0; area_bytes(&rig)]);
    chains(&mut rig);
    let mut used = 0;
    for _ in 0..4 {
        let base = match rig.is_packed() {
            false => spoil_split(&mut rig, bytes, &mut used),
            true => spoil_packed(&mut rig, bytes),
        };
        rig.go_on_in(&memory, &[area(&rig)], base);
        let mut pending: Vec<Op> = Vec::new();
        for _ in 0..bytes.below(6) {
            rig.take_in(&memory);
            pending.extend(rig.ops());
            for _ in 0..bytes.below(4).min(u8::try_from(pending.len()).unwrap_or(0)) {
                let op = pending.swap_remove(usize::from(bytes.u8()) % pending.len());
                rig.reply_ok(&op);
            }
            rig.give_back(&memory);
        }
        if bytes.bool() {
            stop(&mut rig, &mut pending, &memory);
        }
        leave(&mut rig, pending);
        used = used.wrapping_add(u16::try_from(rig.used().len()).unwrap_or(0));
    }
    // A queue with an area that nobody has used is served, whatever was before.
    mem.fill(HIGH, 0, &[0; 16]);
    let area = area(&rig);
    rig.attach_with(&[area]);
    let back = if rig.is_packed() { rig.run_row(0, &SHORT) } else { rig.run(0) };
    assert_eq!(back.len(), 1);
}

/// A chain without a place for its status.
const SHORT: [(u64, u32, u16); 1] = [(LOW_GUEST, 16, 0)];

fn area_bytes(rig: &Rig<'_>) -> usize {
    usize::try_from(region_bytes(1, rig.size(), rig.is_packed())).expect("small")
}

fn area(rig: &Rig<'_>) -> ControlEvent {
    let size = rig.size();
    ControlEvent::SetInflight { region: HIGH, offset: 0, len: 0x4000, queues: 1, size }
}

/// Short chains at all heads.
fn chains(rig: &mut Rig<'_>) {
    rig.header(LOW_GUEST, 0, 1);
    for head in 0..rig.size() {
        if rig.is_packed() {
            rig.offer_row(head, &SHORT);
        } else {
            rig.desc(head, (LOW_GUEST, 16, 0, 0));
        }
    }
}

/// Changes the area and the ring, or leaves them; says where the front end goes on.
fn spoil_split(rig: &mut Rig<'_>, bytes: &mut Bytes<'_>, used: &mut u16) -> u16 {
    let size = rig.size();
    for _ in 0..bytes.below(8) {
        let record = 16 + 16 * u64::from(u16::from(bytes.u8()) % size);
        match bytes.below(8) {
            0 => rig.mem.fill(HIGH, 8, &[bytes.below(3), 0]),
            1 => rig.mem.fill(HIGH, 10, &size.to_le_bytes()),
            2 => rig.mem.fill(HIGH, 12, &[bytes.u8() % 40]),
            3 => rig.mem.fill(HIGH, 14, &used.wrapping_sub(bytes.below(8).into()).to_le_bytes()),
            4 => rig.mem.fill(HIGH, record, &[bytes.below(3)]),
            5 => rig.mem.fill(HIGH, record + 6, &[bytes.u8() % 40]),
            6 => rig.mem.fill(HIGH, record + 8, &[bytes.u8()]),
            _ => {
                let (at, taken) = (u64::from(bytes.u16()) % 0x200, bytes.below(32));
                rig.mem.fill(HIGH, at, bytes.take(taken.into()));
            }
        }
    }
    if bytes.below(4) == 0 {
        *used = bytes.pick(&[0, 1, 7, 0xffff, 0x8000]);
        rig.set_used(*used);
    }
    for _ in 0..bytes.below(6) {
        let at = rig.avail() + AVAIL_RING + 2 * u64::from(u16::from(bytes.u8()) % size);
        rig.mem.fill(RING, at, &(u16::from(bytes.u8()) % size).to_le_bytes());
    }
    let avail = used.wrapping_add(u16::from(bytes.u8()) % (size + 2));
    rig.mem.fill(RING, rig.avail() + AVAIL_IDX, &avail.to_le_bytes());
    used.wrapping_add(if bytes.bool() { 0 } else { bytes.below(40).into() })
}

/// The same for a packed ring.
fn spoil_packed(rig: &mut Rig<'_>, bytes: &mut Bytes<'_>) -> u16 {
    let size = rig.size();
    for _ in 0..bytes.below(8) {
        let index = u64::from(u16::from(bytes.u8()) % size);
        let (record, number) = (32 + 32 * index, [bytes.u8() % 20, 0]);
        match bytes.below(10) {
            0 => rig.mem.fill(HIGH, 8, &[bytes.below(3), 0]),
            1 => rig.mem.fill(HIGH, 10, &size.to_le_bytes()),
            // Free heads and places, old and new; wrap counters.
            2 => rig.mem.fill(HIGH, 12 + 2 * u64::from(bytes.below(4)), &number),
            3 => rig.mem.fill(HIGH, 20 + u64::from(bytes.below(2)), &[bytes.below(3)]),
            4 => rig.mem.fill(HIGH, record, &[bytes.below(3)]),
            // Next, last, how many.
            5 => rig.mem.fill(HIGH, record + 2 + 2 * u64::from(bytes.below(3)), &number),
            6 => rig.mem.fill(HIGH, record + 8, &[bytes.u8()]),
            // The descriptor that was kept.
            7 => rig.mem.fill(HIGH, record + 16 + u64::from(bytes.below(16)), &number[..1]),
            8 => rig.mem.fill(RING, 16 * index + 14, &bytes.u16().to_le_bytes()),
            _ => {
                let (at, taken) = (u64::from(bytes.u16()) % 0x220, bytes.below(32));
                rig.mem.fill(HIGH, at, bytes.take(taken.into()));
            }
        }
    }
    match bytes.bool() {
        false => 0x8000,
        true => u16::from(bytes.u8()) % size | if bytes.bool() { 0 } else { 0x8000 },
    }
}

/// A stop is answered, late or at once, when everything has come to its end.
fn stop(rig: &mut Rig<'_>, pending: &mut Vec<Op>, mem: &impl SharedMemory) {
    rig.effects.clear();
    let stopped = rig.control(ControlEvent::GetVringBase { index: 0 });
    let mut answered = stopped != Some(sluice_core::device::ControlReply::Deferred);
    for _ in 0..200 {
        if answered {
            return;
        }
        rig.take_in(mem);
        pending.extend(rig.ops());
        pending.drain(..).for_each(|op| rig.reply_ok(&op));
        rig.give_back(mem);
        answered = rig.effects.iter().any(|effect| matches!(effect, Effect::Reply(..)));
    }
    panic!("a stop is not answered");
}

/// The front end goes, and nothing of it is left.
fn leave(rig: &mut Rig<'_>, mut pending: Vec<Op>) {
    rig.input(Input::FrontEndGone(rig.device));
    pending.extend(rig.ops());
    pending.iter().for_each(|op| rig.reply_ok(op));
    rig.give_back(rig.mem);
    assert_eq!((rig.shard.live(), rig.shard.ops_live()), (0, 0));
    assert!(rig.effects.contains(&Effect::Left(rig.device)));
    rig.effects.clear();
}
