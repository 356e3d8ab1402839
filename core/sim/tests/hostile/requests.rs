//! Request headers and layouts.

use sluice_sim::rig::{Rig, Setup};

use super::{
    DATA, DISCARD, FLUSH, GET_ID, HEADER, IN, IOERR, NONE, OK, OUT, R, STATUS, UNSUPP, W,
    WRITE_ZEROES, outcome, rig,
};

fn read_only() -> Setup {
    let mut setup = Setup::default();
    setup.image.read_only = true;
    setup.features.remove(sluice_core::blk::BlkFeatures::DISCARD);
    setup.features.remove(sluice_core::blk::BlkFeatures::WRITE_ZEROES);
    setup
}

//= spec/blk.md#BLK-1
#[test]
fn b73_a_chain_without_a_place_for_its_status_comes_back_empty() {
    rig!(rig);
    rig.header(HEADER, IN, 0);
    for buffers in [
        &[(HEADER, 16, R)][..],
        &[(HEADER, 16, R), (DATA, 512, R), (STATUS, 1, R)],
        &[(HEADER, 0, R)],
        &[(HEADER, 0, W)],
        &[(HEADER, 16, R), (STATUS, 0, W)],
    ] {
        assert_eq!(outcome(&mut rig, buffers), (0, NONE), "{buffers:x?}");
    }
    assert_eq!(rig.shard.counters().unanswerable, 5);
    // A status byte is enough to be told so.
    assert_eq!(outcome(&mut rig, &[(STATUS, 1, W)]), (1, IOERR));
    assert_eq!(outcome(&mut rig, &[(HEADER, 15, R), (STATUS, 1, W)]), (1, IOERR));
    let good = [(HEADER, 16, R), (DATA, 512, W), (STATUS, 1, W)];
    assert_eq!(outcome(&mut rig, &good), (513, OK));
}

/// Every way to cut `len` bytes at `at` into up to three buffers of one direction.
fn cuts(at: u64, len: u32, flags: u16) -> Vec<Vec<(u64, u32, u16)>> {
    let mut found = Vec::new();
    for first in 0..=len {
        for second in 0..=len - first {
            let end = at + u64::from(first + second);
            found.push(vec![
                (at, first, flags),
                (at + u64::from(first), second, flags),
                (end, len - first - second, flags),
            ]);
        }
    }
    found
}

//= spec/blk.md#BLK-3
#[test]
fn b74_any_layout_of_header_data_and_status_is_legal() {
    rig!(rig);
    // The header in any pieces, alone or with data behind it.
    for sector in [0, 5] {
        rig.header(HEADER, IN, sector);
        for mut buffers in cuts(HEADER, 16, R) {
            buffers.extend([(DATA, 512, W), (STATUS, 1, W)]);
            assert_eq!(outcome(&mut rig, &buffers), (513, OK), "{buffers:x?}");
        }
    }
    rig.header(HEADER, OUT, 3);
    rig.put(HEADER + 16, &[0x21; 512]);
    for first in 0..16 + 512 {
        let buffers = [
            (HEADER, first, R),
            (HEADER + u64::from(first), 528 - first, R),
            (STATUS + 0x400, 1, W),
        ];
        for at in 0..512 {
            rig.ram.set(3 * 512 + at, 0);
        }
        assert_eq!(rig.chain(&buffers), 1);
        assert_eq!(rig.get(STATUS + 0x400, 1), [OK]);
        assert!((0..512).all(|at| rig.ram.byte(3 * 512 + at) == 0x21), "{first}");
    }
    // The status byte together with data, data in odd pieces, status in a longer buffer.
    rig.header(HEADER, IN, 3);
    for first in 0..=513 {
        rig.put(DATA, &[NONE; 520]);
        let rest = (DATA + u64::from(first), 513 - first, W);
        assert_eq!(rig.chain(&[(HEADER, 16, R), (DATA, first, W), rest]), 513);
        assert_eq!(rig.get(DATA, 514), [&[0x21; 512][..], &[OK, NONE]].concat(), "{first}");
    }
    let buffers = [(HEADER, 16, R), (DATA, 500, W), (STATUS - 12, 13, W)];
    assert_eq!(outcome(&mut rig, &buffers), (513, OK));
    // The status is the last byte, whatever is in front of it.
    let buffers = [(HEADER, 16, R), (DATA, 512, W), (STATUS - 3, 4, W)];
    assert_eq!(outcome(&mut rig, &buffers), (1, IOERR), "three bytes too many");
}

//= spec/blk.md#BLK-5
#[test]
fn b75_data_is_whole_blocks() {
    rig!(rig);
    for len in [0, 1, 511, 513, 1023, 4095] {
        rig.header(HEADER, IN, 0);
        let buffers = [(HEADER, 16, R), (DATA, len, W), (STATUS, 1, W)];
        assert_eq!(outcome(&mut rig, &buffers), (1, IOERR), "read {len}");
        rig.header(HEADER, OUT, 0);
        let buffers = [(HEADER, 16, R), (DATA, len, R), (STATUS, 1, W)];
        assert_eq!(outcome(&mut rig, &buffers), (1, IOERR), "write {len}");
    }
    // Pieces of any length whose sum is right.
    rig.header(HEADER, IN, 0);
    let buffers = [(HEADER, 16, R), (DATA, 1, W), (DATA, 510, W), (DATA, 1, W), (STATUS, 1, W)];
    assert_eq!(outcome(&mut rig, &buffers), (513, OK));
    // With larger blocks, both the start and the length count in them.
    let mut setup = Setup::default();
    setup.image.block_bytes = 4096;
    rig!(rig, setup);
    for (sector, len, expected) in [
        (0, 4096, (4097, OK)),
        (8, 8192, (8193, OK)),
        (1, 4096, (1, IOERR)),
        (8, 512, (1, IOERR)),
        (8, 4096 + 512, (1, IOERR)),
    ] {
        rig.header(HEADER, IN, sector);
        let buffers = [(HEADER, 16, R), (DATA, len, W), (STATUS, 1, W)];
        assert_eq!(outcome(&mut rig, &buffers), expected, "{sector} {len}");
    }
}

//= spec/blk.md#BLK-5
#[test]
fn b76_nothing_behind_the_end_of_the_image() {
    rig!(rig);
    let end = 4096;
    let wrap = 1_u64 << 55;
    for kind in [IN, OUT] {
        let (flags, full) = if kind == IN { (W, 1025) } else { (R, 1) };
        for (sector, expected) in [
            (end - 2, (full, OK)),
            (end - 1, (1, IOERR)),
            (end, (1, IOERR)),
            (end + 1, (1, IOERR)),
            (u64::MAX, (1, IOERR)),
            (u64::MAX - 1, (1, IOERR)),
            // These become small when multiplied by the sector size in 64 bits.
            (wrap, (1, IOERR)),
            (wrap + 1, (1, IOERR)),
            (1 << 63, (1, IOERR)),
        ] {
            rig.header(HEADER, kind, sector);
            // Each element alone would fit.
            let buffers =
                [(HEADER, 16, R), (DATA, 512, flags), (DATA + 512, 512, flags), (STATUS, 1, W)];
            assert_eq!(outcome(&mut rig, &buffers), expected, "{kind} {sector}");
        }
    }
    let mut setup = Setup::default();
    setup.image.capacity_sectors = 0;
    rig!(rig, setup);
    rig.header(HEADER, IN, 0);
    let buffers = [(HEADER, 16, R), (DATA, 512, W), (STATUS, 1, W)];
    assert_eq!(outcome(&mut rig, &buffers), (1, IOERR), "an image of nothing");
}

//= spec/blk.md#BLK-6
#[test]
fn b77_a_read_only_image_is_only_read() {
    rig!(rig, read_only());
    for kind in [OUT, DISCARD, WRITE_ZEROES] {
        rig.header(HEADER, kind, 0);
        rig.put(DATA, &[0; 512]);
        rig.put(DATA + 8, &[1]);
        let len = if kind == OUT { 512 } else { 16 };
        let buffers = [(HEADER, 16, R), (DATA, len, R), (STATUS, 1, W)];
        let expected = if kind == OUT { IOERR } else { UNSUPP };
        assert_eq!(outcome(&mut rig, &buffers), (1, expected), "{kind}");
    }
    assert_eq!(rig.shard.counters().ops, 0);
    rig.header(HEADER, IN, 0);
    let buffers = [(HEADER, 16, R), (DATA, 512, W), (STATUS, 1, W)];
    assert_eq!(outcome(&mut rig, &buffers), (513, OK));
    rig.header(HEADER, FLUSH, 0);
    assert_eq!(outcome(&mut rig, &[(HEADER, 16, R), (STATUS, 1, W)]), (1, OK));
}

//= spec/blk.md#BLK-7
#[test]
fn b79_types_that_this_device_does_not_do() {
    rig!(rig);
    let barrier = 1 << 31;
    for kind in [
        2,
        3,
        5,
        6,
        7,
        9,
        10,
        12,
        14,
        15,
        16,
        26,
        u32::MAX,
        barrier,
        barrier | OUT,
        barrier | FLUSH,
        IN | 1 << 8,
        OUT | 1 << 16,
    ] {
        rig.header(HEADER, kind, 0);
        for flags in [R, W] {
            let buffers = [(HEADER, 16, R), (DATA, 512, flags), (STATUS, 1, W)];
            assert_eq!(outcome(&mut rig, &buffers), (1, UNSUPP), "{kind:x}");
        }
    }
    assert_eq!(rig.shard.counters().ops, 0);
    // The reserved word of the header has no meaning (it was a priority once).
    rig.header(HEADER, IN, 0);
    rig.put(HEADER + 4, &[0xff; 4]);
    let buffers = [(HEADER, 16, R), (DATA, 512, W), (STATUS, 1, W)];
    assert_eq!(outcome(&mut rig, &buffers), (513, OK));
}

//= spec/blk.md#BLK-10
#[test]
fn b80_the_serial_into_buffers_of_any_length() {
    let serial = b"0123456789abcdefghij";
    for len in [0, 1, 19, 20, 21, 4096] {
        rig!(rig);
        rig.header(HEADER, GET_ID, 0);
        let buffers = [(HEADER, 16, R), (DATA, len, W), (STATUS, 1, W)];
        let written = len.min(20) as usize;
        assert_eq!(outcome(&mut rig, &buffers), (len.min(20) + 1, OK), "{len}");
        assert_eq!(rig.get(DATA, len.min(20).into()), serial[..written]);
        assert_eq!(rig.get(DATA + u64::from(len.min(20)), 4), [NONE; 4], "and not a byte more");
    }
    // In pieces, and with the status byte behind it in one.
    rig!(rig);
    rig.header(HEADER, GET_ID, u64::MAX);
    let buffers = [(HEADER, 16, R), (DATA, 7, W), (DATA + 100, 3, W), (DATA + 200, 11, W)];
    assert_eq!(rig.chain(&buffers), 21);
    assert_eq!(rig.get(DATA + 100, 3), serial[7..10]);
    assert_eq!(rig.get(DATA + 200, 11), [&serial[10..], &[OK]].concat());
    // A buffer that must not be written stays as it is.
    let buffers = [(HEADER, 16, R), (DATA, 20, R), (STATUS, 1, W)];
    rig.put(DATA, &[NONE; 20]);
    assert_eq!(outcome(&mut rig, &buffers), (1, OK));
    assert_eq!(rig.get(DATA, 20), [NONE; 20]);
    // And none at all.
    assert_eq!(outcome(&mut rig, &[(HEADER, 16, R), (STATUS, 1, W)]), (1, OK));
}

//= spec/blk.md#BLK-7
//= spec/blk.md#BLK-8
#[test]
fn b81_types_whose_feature_was_not_negotiated() {
    let features = sluice_core::blk::BlkFeatures::VERSION_1;
    rig!(rig, Setup { features, ..Setup::default() });
    let range = |rig: &Rig<'_>| {
        rig.put(DATA, &[0; 16]);
        rig.put(DATA + 8, &[1]);
    };
    range(&rig);
    for kind in [DISCARD, WRITE_ZEROES] {
        rig.header(HEADER, kind, 0);
        let buffers = [(HEADER, 16, R), (DATA, 16, R), (STATUS, 1, W)];
        assert_eq!(outcome(&mut rig, &buffers), (1, UNSUPP));
    }
    assert_eq!(rig.shard.counters().ops, 0);
    // A flush does no harm.
    rig.header(HEADER, FLUSH, 0);
    assert_eq!(outcome(&mut rig, &[(HEADER, 16, R), (STATUS, 1, W)]), (1, OK));
    assert_eq!(rig.shard.counters().ops, 1);
    // Negotiated, they are done.
    rig!(rig);
    range(&rig);
    for kind in [DISCARD, WRITE_ZEROES] {
        rig.header(HEADER, kind, 0);
        let buffers = [(HEADER, 16, R), (DATA, 16, R), (STATUS, 1, W)];
        assert_eq!(outcome(&mut rig, &buffers), (1, OK));
    }
}

//= spec/blk.md#BLK-8
#[test]
fn b82_a_flush_with_a_sector_or_with_data_is_a_flush() {
    rig!(rig);
    for sector in [0, 1, 4096, u64::MAX] {
        rig.header(HEADER, FLUSH, sector);
        for buffers in [
            &[(HEADER, 16, R), (STATUS, 1, W)][..],
            &[(HEADER, 16, R), (DATA, 512, R), (STATUS, 1, W)],
            &[(HEADER, 16, R), (DATA, 513, W), (STATUS, 1, W)],
        ] {
            rig.put(DATA, &[NONE]);
            assert_eq!(outcome(&mut rig, buffers), (1, OK), "{buffers:x?}");
            assert_eq!(rig.get(DATA, 1), [NONE]);
        }
    }
    assert_eq!(rig.shard.counters().ops, 12, "one sync each");
    // Without a status byte it does not happen.
    assert_eq!(rig.chain(&[(HEADER, 16, R)]), 0);
    assert_eq!(rig.shard.counters().ops, 12);
}
