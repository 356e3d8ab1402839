//! Ranges of discard and write-zeroes requests.

use sluice_core::limits::{RANGE_SECTORS_MAX, RANGES_MAX};
use sluice_core::op::OpKind;
use sluice_sim::rig::{HIGH_GUEST, Rig, Setup};

use super::{DATA, DISCARD, HEADER, IOERR, OK, R, STATUS, UNSUPP, W, WRITE_ZEROES, outcome, rig};

/// One range: sector, sectors, flags.
type Range = (u64, u32, u32);

fn wire(ranges: &[Range]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (sector, sectors, flags) in ranges {
        bytes.extend(sector.to_le_bytes());
        bytes.extend(sectors.to_le_bytes());
        bytes.extend(flags.to_le_bytes());
    }
    bytes
}

/// Sends the ranges in one buffer and says (status, operations it took).
fn send(rig: &mut Rig<'_>, kind: u32, ranges: &[Range]) -> (u8, u64) {
    let bytes = wire(ranges);
    rig.header(HEADER, kind, 0);
    rig.put(DATA, &bytes);
    let len = u32::try_from(bytes.len()).unwrap();
    let before = rig.shard.counters().ops;
    let (used, status) = outcome(rig, &[(HEADER, 16, R), (DATA, len, R), (STATUS, 1, W)]);
    assert_eq!(used, 1);
    (status, rig.shard.counters().ops - before)
}

/// As large as the ranges may be.
fn large() -> Setup {
    let mut setup = Setup::default();
    setup.image.capacity_sectors = 1 << 30;
    setup
}

//= spec/blk.md#BLK-9
#[test]
fn b78_ranges_are_checked_one_by_one_and_all_before_the_first_is_done() {
    rig!(rig, large());
    let end = 1 << 30;
    for kind in [DISCARD, WRITE_ZEROES] {
        for bad in [
            (0, 0, 0),
            (0, RANGE_SECTORS_MAX + 1, 0),
            (0, u32::MAX, 0),
            (end - 1, 2, 0),
            (end, 1, 0),
            (u64::MAX, 1, 0),
            (u64::MAX, u32::MAX, 0),
            (1 << 55, 1, 0),
        ] {
            assert_eq!(send(&mut rig, kind, &[bad]), (IOERR, 0), "{bad:?}");
            let good = (8, 8, 0);
            assert_eq!(send(&mut rig, kind, &[good, good, bad]), (IOERR, 0), "nothing is done");
            assert_eq!(send(&mut rig, kind, &[bad, good]), (IOERR, 0));
        }
        for flags in [2, 4, 1 << 16, 1 << 31, u32::MAX] {
            assert_eq!(send(&mut rig, kind, &[(8, 8, 0), (0, 1, flags)]), (UNSUPP, 0));
        }
        for good in [(0, 1, 0), (end - 1, 1, 0), (0, RANGE_SECTORS_MAX, 0)] {
            assert_eq!(send(&mut rig, kind, &[good]), (OK, 1), "{good:?}");
        }
    }
    assert_eq!(send(&mut rig, DISCARD, &[(0, 1, 1)]), (UNSUPP, 0), "it always unmaps");
    assert_eq!(send(&mut rig, WRITE_ZEROES, &[(0, 1, 1)]), (OK, 1));
}

//= spec/blk.md#BLK-9
#[test]
fn b78_as_many_ranges_as_advertised_and_no_part_of_one() {
    rig!(rig, large());
    let many = |count: usize| -> Vec<Range> {
        (0_u64..).zip(0..count).map(|(at, _)| (at * 16, 8, 0)).collect()
    };
    for kind in [DISCARD, WRITE_ZEROES] {
        assert_eq!(send(&mut rig, kind, &many(0)), (IOERR, 0));
        assert_eq!(send(&mut rig, kind, &many(RANGES_MAX)), (OK, 16));
        assert_eq!(send(&mut rig, kind, &many(RANGES_MAX + 1)), (IOERR, 0));
        for len in [1, 8, 15, 17, 31] {
            rig.header(HEADER, kind, 0);
            rig.put(DATA, &wire(&many(2)));
            let buffers = [(HEADER, 16, R), (DATA, len, R), (STATUS, 1, W)];
            assert_eq!(outcome(&mut rig, &buffers), (1, IOERR), "{len} bytes");
        }
        // In the device's half of the chain there are none.
        let buffers = [(HEADER, 16, R), (DATA, 16, W), (STATUS, 1, W)];
        assert_eq!(outcome(&mut rig, &buffers), (1, IOERR));
    }
}

//= spec/blk.md#BLK-9
#[test]
fn b78_ranges_split_anywhere_are_the_same_ranges() {
    rig!(rig, large());
    let bytes = wire(&[(16, 8, 1), (64, 24, 0)]);
    for first in 0..=32 {
        // Across a border between regions, and behind the header in one buffer.
        let at = HIGH_GUEST - 12;
        rig.put(at, &bytes);
        rig.header(HEADER, WRITE_ZEROES, 0);
        rig.link(&[
            (HEADER, 16, R),
            (at, first, R),
            (at + u64::from(first), 32 - first, R),
            (STATUS, 1, W),
        ]);
        rig.offer(0);
        rig.take_in(rig.mem);
        let ops = rig.ops();
        let seen: Vec<_> = ops.iter().map(|op| (op.kind, op.offset, op.len)).collect();
        let kind = |unmap| OpKind::WriteZeroes { unmap };
        assert_eq!(seen, [(kind(true), 8192, 4096), (kind(false), 32768, 12288)], "{first}");
        ops.iter().for_each(|op| rig.reply_ok(op));
        rig.give_back(rig.mem);
        assert_eq!(rig.used(), [(0, 1)]);
        assert_eq!(rig.get(STATUS, 1), [OK]);
    }
}

//= spec/blk.md#BLK-9
#[test]
fn b78_ranges_keep_to_blocks() {
    let mut setup = large();
    setup.image.block_bytes = 4096;
    rig!(rig, setup);
    assert_eq!(send(&mut rig, DISCARD, &[(8, 8, 0)]), (OK, 1));
    assert_eq!(send(&mut rig, DISCARD, &[(4, 8, 0)]), (IOERR, 0));
    assert_eq!(send(&mut rig, DISCARD, &[(8, 4, 0)]), (IOERR, 0));
}
