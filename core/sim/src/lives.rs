//! Lives of more requests than 16 bits can count, and what is left at their ends.

use sluice_core::blk::BlkFeatures;
use sluice_core::device::ControlEvent;
use sluice_core::inflight::region_bytes;
use sluice_core::op::Op;
use sluice_core::shard::Input;
use sluice_core::virtqueue::layout::DESC_WRITE;

use crate::rig::{HIGH, LOW_GUEST, Rig, Setup, arena, memory};

const SIZE: u16 = 16;

/// Chains that stay under way at the end of a life, in the order in which they are taken: neither
/// that of their names nor its reverse.
const LEFT: [u16; 5] = [9, 3, 12, 0, 6];

fn region(packed: bool) -> ControlEvent {
    let len = region_bytes(1, SIZE, packed);
    ControlEvent::SetInflight { region: HIGH, offset: 0, len, queues: 1, size: SIZE }
}

/// Makes a read of the sector of its number available, as the chain of that name.
fn read(rig: &mut Rig<'_>, number: u16) {
    let at = u64::from(number);
    let (header, status) = (LOW_GUEST + 16 * at, LOW_GUEST + 0x100 + at);
    let data = LOW_GUEST + 0x1000 + 512 * at;
    rig.header(header, 0, at);
    rig.offer_chain(number, &[(header, 16, 0), (data, 512, DESC_WRITE), (status, 1, DESC_WRITE)]);
}

/// The front end goes, with everything under way, and the next one comes for the same guest.
fn die_and_go_on(rig: &mut Rig<'_>, under_way: &[Op], base: u16) {
    let packed = rig.is_packed();
    rig.input(Input::FrontEndGone(rig.device));
    under_way.iter().for_each(|op| rig.reply_ok(op));
    rig.give_back(rig.mem);
    rig.effects.clear();
    rig.go_on(&[region(packed)], base);
}

/// Lives two lives, one after the other, in which the numbers with which chains are marked cross
/// 65,536 while some of them are under way. What follows has to be in the order of the guest. The
/// indices of a split ring, or the places of a packed one, begin at `base`.
///
/// # Errors
/// What is taken again, if it is anything else.
pub fn live_long(packed: bool, base: u16) -> Result<(), String> {
    let (mut arena, mem) = (arena(64), memory());
    let mut setup = Setup { size: SIZE, base, ..Setup::default() };
    setup.features.set(BlkFeatures::RING_PACKED, packed);
    let mut rig = Rig::new(&mut arena, &mem, setup);
    rig.input(Input::FrontEndGone(rig.device));
    rig.effects.clear();
    rig.mem.fill(HIGH, 0, &[0; 0x1000]);
    rig.attach_with(&[region(packed)]);
    let mut used = base;
    // In a second life the first numbers are those of the chains that are taken again.
    for before in [0, LEFT.len()] {
        for number in before..(1 << 16) - 2 {
            read(&mut rig, 0);
            rig.turn();
            if rig.used().len() != 1 {
                return Err(format!("request {number} does not come back"));
            }
            used = used.wrapping_add(1);
        }
        LEFT.iter().for_each(|&number| read(&mut rig, number));
        rig.take_in(rig.mem);
        let ops = rig.ops();
        die_and_go_on(&mut rig, &ops, if packed { base } else { used });
        rig.take_in(rig.mem);
        let ops = rig.ops();
        let sectors: Vec<u64> = ops.iter().map(|op| op.offset / 512).collect();
        if sectors != LEFT.map(u64::from) {
            let broken = rig.broken;
            return Err(format!("{LEFT:?} come again as {sectors:?}, {broken:?}"));
        }
        ops.iter().for_each(|op| rig.reply_ok(op));
        rig.give_back(rig.mem);
        used = used.wrapping_add(u16::try_from(rig.used().len()).unwrap_or(0));
    }
    Ok(())
}
