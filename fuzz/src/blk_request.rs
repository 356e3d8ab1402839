//! One chain of a request in any layout, against the second reading of the specification.

use sluice_core::blk::BlkFeatures;
use sluice_sim::compare::compare;
use sluice_sim::rig::{self, Desc, HIGH_GUEST, LOW, LOW_GUEST, Rig, Setup};

use crate::bytes::Bytes;
use crate::memory::{address, length, view};

const NEXT: u16 = 1;
const INDIRECT: u16 = 4;

/// A request, its chain, and a device to send it to.
pub fn blk_request(data: &[u8]) {
    let bytes = &mut Bytes::new(data);
    let (mut arena, mem) = (rig::arena(2), rig::memory());
    let mut rig = Rig::new(&mut arena, &mem, setup(bytes));
    let still = bytes.below(4) != 0;
    // The header, and what may be ranges behind it.
    let kind = bytes.pick(&[0, 1, 4, 8, 11, 13, 2, 1 << 31]);
    rig.header(LOW_GUEST, kind, sector(bytes));
    for range in 1..4 {
        let (sector, sectors) = (sector(bytes), bytes.pick(&[8, 1, 16, 0, u32::MAX, 1 << 21]));
        let flags = bytes.pick(&[0_u32, 1, 0, 2]);
        let tail = u64::from(sectors) | u64::from(flags) << 32;
        mem.fill(LOW, 16 * range, &[sector.to_le_bytes(), tail.to_le_bytes()].concat());
    }
    let head = chain(bytes, &rig);
    if still {
        compare(&mut rig, head);
        compare(&mut rig, head);
    } else {
        let memory = view(bytes, &mem);
        rig.offer(head);
        rig.turn_in(&memory);
        // The head is read once, too, and may have been another one.
        let back = usize::from(rig.broken.is_none());
        assert_eq!((rig.used().len(), rig.shard.live()), (back, 0));
    }
}

fn setup(bytes: &mut Bytes<'_>) -> Setup {
    let mut setup = Setup { size: 16, ..Setup::default() };
    setup.image.block_bytes = bytes.pick(&[512, 512, 1024, 4096]);
    setup.image.capacity_sectors = bytes.pick(&[64, 8, 1, 0, 1 << 40, u64::MAX / 512]);
    setup.image.read_only = bytes.below(8) == 7;
    if setup.image.read_only || bytes.below(8) == 7 {
        setup.features.remove(BlkFeatures::DISCARD | BlkFeatures::WRITE_ZEROES);
    }
    match bytes.below(8) {
        // The upper region somewhere inside, or at the end of all addresses.
        5 => setup.regions[0].size = 0x400 + u64::from(bytes.u8()),
        6 => setup.regions[1].guest = u64::MAX - (rig::DATA_BYTES - 1),
        7 => setup.regions.swap(0, 1),
        _ => {}
    }
    setup
}

fn sector(bytes: &mut Bytes<'_>) -> u64 {
    match bytes.u8() {
        0..200 => bytes.below(64).into(),
        200..230 => u64::MAX - u64::from(bytes.u8()),
        _ => bytes.u64(),
    }
}

/// Writes up to twelve elements, the later ones into an indirect table, and says where they
/// begin.
fn chain(bytes: &mut Bytes<'_>, rig: &Rig<'_>) -> u16 {
    let count = 1 + usize::from(bytes.below(12));
    let direct = usize::from(bytes.below(16));
    let table_at = bytes.pick(&[LOW_GUEST + 0x200, HIGH_GUEST - 40, HIGH_GUEST + 0x20]);
    let mut elements: Vec<Desc> = Vec::new();
    for index in 0..count {
        let (addr, len) = match bytes.below(4) {
            // Behind the one before, as pieces of one buffer are; the header is the first.
            0..=1 => {
                let last = elements.last().map_or(LOW_GUEST, |e| e.0.wrapping_add(e.1.into()));
                (last, length(bytes))
            }
            2 => (address(bytes), length(bytes)),
            _ => (LOW_GUEST + 0x800, 512),
        };
        let addr = if index == 0 && bytes.below(8) != 7 { LOW_GUEST } else { addr };
        let mut flags = u16::from(bytes.below(8) & 2);
        let mut next = 0;
        if index + 1 < count {
            (flags, next) = (flags | NEXT, u16::try_from(index + 1).unwrap_or(0));
        }
        if bytes.below(16) == 15 {
            (flags, next) = (flags ^ u16::from(bytes.below(8)), bytes.u8().into());
        }
        elements.push((addr, len, flags, next));
    }
    let (first, rest) = elements.split_at(direct.min(elements.len()));
    for (index, &desc) in (0..).zip(first) {
        rig.desc(index, desc);
    }
    if let Ok(index) = u16::try_from(first.len())
        && !rest.is_empty()
    {
        let len = if bytes.below(16) == 15 {
            length(bytes)
        } else {
            16 * u32::try_from(rest.len()).unwrap_or(1)
        };
        rig.desc(index, (table_at, len, INDIRECT, 0));
        for (step, &(addr, len, flags, next)) in (0..).zip(rest) {
            let at = table_at + 16 * step;
            if (0..16).all(|byte| rig.place(at + byte).is_some()) {
                rig.table(at, &[(addr, len, flags, next.wrapping_sub(index))]);
            }
        }
    }
    0
}
