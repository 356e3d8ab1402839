//! Memory that changes while the core looks at it.

use sluice_sim::rig::{HIGH, HIGH_GUEST, LOW, LOW_GUEST, RING, Rig, Setup};
use sluice_sim::watched::{Change, Watched};

use super::{DATA, DISCARD, HEADER, I, IN, N, OK, OUT, R, STATUS, TABLE, W, WRITE_ZEROES, rig};

/// Bytes of the descriptor table of the standard rig.
const DESC_TABLE: u64 = 16 * 16;

/// Runs what the rig's guest has prepared. That nothing panics and that each operation is sound
/// is checked by the rig.
fn survive(rig: &mut Rig<'_>, memory: &Watched<'_>) {
    rig.turn_in(memory);
    assert_eq!(rig.shard.live(), 0);
}

/// Buffers that do not overlap and tables without loops are read once.
fn read_once(memory: &Watched<'_>) {
    for (region, offset, len) in [(RING, 0, DESC_TABLE), (LOW, 0, 0x400), (HIGH, 0, 0x40)] {
        assert_eq!(memory.read_twice(region, offset, len), None, "{region:?}");
    }
}

/// A chain with everything in it: direct descriptors, then a table across a border whose first
/// entry completes a split header.
fn prepare(rig: &Rig<'_>, kind: u32) {
    rig.header(HEADER, kind, 1);
    rig.put(HEADER + 16, &[1, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0]);
    rig.desc(0, (HEADER, 5, N, 1));
    rig.desc(1, (HEADER + 5, 8, N, 9));
    let table = HIGH_GUEST - 24;
    rig.desc(9, (table, 64, I, 0));
    let entries = match kind {
        IN => [(HEADER + 13, 3, N, 1), (DATA, 512, W | N, 2), (DATA + 512, 512, W | N, 3)],
        OUT => [(HEADER + 13, 3, N, 1), (DATA, 512, N, 2), (DATA + 512, 512, N, 3)],
        _ => [(HEADER + 13, 3, N, 1), (HEADER + 16, 7, N, 2), (HEADER + 23, 9, N, 3)],
    };
    rig.table(table, &[entries[0], entries[1], entries[2], (STATUS, 1, W, 0)]);
}

//= spec/virtqueue.md#VQ-8
#[test]
fn b62_each_descriptor_is_read_once_and_may_change_at_any_moment() {
    for kind in [IN, OUT, DISCARD, WRITE_ZEROES] {
        // How many reads there are when nothing changes; the used length says all went well.
        rig!(rig);
        prepare(&rig, kind);
        rig.offer(0);
        let memory = Watched::new(rig.mem);
        survive(&mut rig, &memory);
        read_once(&memory);
        assert_eq!(rig.used(), [(0, if kind == IN { 1025 } else { 1 })]);
        assert_eq!(rig.get(STATUS, 1), [OK]);
        let reads = memory.count();

        // After each of them, each byte of each descriptor in use changes.
        let places = (0..32).chain(9 * 16..10 * 16).map(|at| (RING, at));
        let tables = (0x4000 - 24..0x4000).map(|at| (LOW, at)).chain((0..40).map(|at| (HIGH, at)));
        for (region, offset) in places.chain(tables) {
            for after in 1..=reads {
                for flips in [1, 0x80] {
                    rig!(rig);
                    prepare(&rig, kind);
                    rig.offer(0);
                    let change = Change { after, region, offset, flips };
                    let memory = Watched::changing(rig.mem, vec![change]);
                    survive(&mut rig, &memory);
                    assert_eq!(rig.used().len(), 1, "{change:?}");
                }
            }
        }
    }
}

//= spec/virtqueue.md#VQ-8
#[test]
fn b62_a_descriptor_that_changes_after_it_was_read_changes_nothing() {
    rig!(rig);
    rig.header(HEADER, OUT, 0);
    rig.put(DATA, &[0x5a; 512]);
    rig.link(&[(HEADER, 16, R), (DATA, 512, R), (STATUS, 1, W)]);
    rig.offer(0);
    // Index, head, descriptors: after the fourth read the data's address is known.
    let changes = (0..8).map(|at| Change { after: 4, region: RING, offset: 16 + at, flips: 0xff });
    let memory = Watched::changing(rig.mem, changes.collect());
    survive(&mut rig, &memory);
    assert_eq!(rig.used(), [(0, 1)]);
    assert_eq!((rig.get(STATUS, 1), rig.ram.byte(511)), (vec![OK], 0x5a));
    // Before that, it is the new address that counts.
    rig.desc(1, (DATA, 512, N, 2));
    rig.offer(0);
    let changes = (0..8).map(|at| Change { after: 2, region: RING, offset: 16 + at, flips: 0xff });
    let memory = Watched::changing(rig.mem, changes.collect());
    rig.turn_in(&memory);
    assert_eq!((rig.used(), rig.get(STATUS, 1)), (vec![(0, 1)], vec![super::IOERR]));
}

//= spec/blk.md#BLK-2
#[test]
fn b63_header_and_ranges_are_read_once_and_may_change_at_any_moment() {
    for kind in [IN, OUT, DISCARD, WRITE_ZEROES] {
        for offset in 0..32 {
            for after in 1..40 {
                rig!(rig);
                prepare(&rig, kind);
                rig.offer(0);
                let change = Change { after, region: LOW, offset, flips: 0xff };
                let memory = Watched::changing(rig.mem, vec![change]);
                survive(&mut rig, &memory);
                read_once(&memory);
                assert_eq!(rig.used().len(), 1, "{change:?}");
            }
        }
    }
    // What was checked is what is done: the sector changes right after the header was read.
    rig!(rig);
    rig.header(HEADER, OUT, 7);
    rig.put(DATA, &[0x77; 512]);
    rig.link(&[(HEADER, 16, R), (DATA, 512, R), (STATUS, 1, W)]);
    rig.offer(0);
    let memory = Watched::new(rig.mem);
    rig.take_in(&memory);
    assert!(memory.times_read(LOW, HEADER - LOW_GUEST) == 1);
    rig.header(HEADER, OUT, u64::MAX);
    rig.work();
    rig.give_back(&memory);
    assert_eq!((rig.get(STATUS, 1), rig.ram.byte(7 * 512)), (vec![OK], 0x77));
    assert_eq!(memory.times_read(LOW, HEADER - LOW_GUEST), 1);
}

//= spec/virtqueue.md#VQ-8
//= spec/blk.md#BLK-2
#[test]
fn b62_b63_reads_that_never_agree() {
    let kinds = [IN, OUT, DISCARD, WRITE_ZEROES].into_iter().cycle();
    for (seed, kind) in (0..2000).zip(kinds) {
        rig!(rig);
        prepare(&rig, kind);
        for _ in 0..3 {
            rig.offer(0);
        }
        let memory = Watched::noisy(rig.mem, seed);
        for _ in 0..4 {
            rig.turn_in(&memory);
        }
        assert_eq!(rig.shard.live(), 0);
    }
}

/// The payload is the guest's: it may change under a write, and each byte is then one or the
/// other. The core never looks at it.
#[test]
fn b64_payload_is_not_looked_at() {
    rig!(rig);
    rig.header(HEADER, OUT, 0);
    rig.put(DATA, &[1; 1024]);
    rig.link(&[(HEADER, 16, R), (DATA, 1024, R), (STATUS, 1, W)]);
    rig.offer(0);
    let memory = Watched::new(rig.mem);
    rig.take_in(&memory);
    rig.put(DATA + 512, &[2; 512]);
    rig.work();
    rig.give_back(&memory);
    let data = DATA - LOW_GUEST;
    assert!((data..data + 1024).all(|at| memory.times_read(LOW, at) == 0));
    assert_eq!((rig.used(), rig.get(STATUS, 1)), (vec![(0, 1)], vec![OK]));
    assert_eq!((rig.ram.byte(511), rig.ram.byte(512)), (1, 2));
}

//= spec/blk.md#BLK-15
#[test]
fn b84_buffers_that_overlap_each_other_the_header_the_status_and_the_ring() {
    rig!(rig);
    for at in 0..512 {
        rig.ram.set(at, 0xee);
        rig.ram.set(at + 512, 0xee);
    }
    // Each other, the header and the status byte: the status is written last.
    rig.header(HEADER, IN, 0);
    rig.link(&[(HEADER, 16, R), (HEADER, 512, W), (HEADER, 512, W), (HEADER + 100, 1, W)]);
    assert_eq!(rig.run(0), [(0, 1025)]);
    assert_eq!(rig.get(HEADER, 1), [0xee]);
    assert_eq!(rig.get(HEADER + 100, 1), [OK]);
    // The descriptors, while they are in use.
    rig.header(HEADER, IN, 0);
    let ring = sluice_sim::rig::RING_GUEST;
    rig.link(&[(HEADER, 16, R), (ring, 512, W), (STATUS, 1, W)]);
    rig.offer(0);
    rig.turn();
    // It covered the available ring, too, and what is there now is a jump.
    rig.turn();
    assert!(rig.broken.is_some());
    // A status byte on the used index, and on the entry of its own chain.
    for at in [2, 4, 5, 11] {
        rig!(rig, Setup { size: 4, ..Setup::default() });
        rig.header(HEADER, IN, 0);
        let used = ring + rig.used_ring();
        rig.link(&[(HEADER, 16, R), (DATA, 512, W), (used + at, 1, W)]);
        assert_eq!(rig.run(0), [(0, 513)], "the ring's own stores come after");
    }
    // And beside the ring everything goes on as ever.
    rig!(rig);
    rig.header(HEADER, IN, 0);
    rig.table(TABLE, &[(HEADER, 16, N, 1), (ring + 0x4000, 512, W | N, 2), (STATUS, 1, W, 77)]);
    rig.desc(0, (TABLE, 48, I, 0));
    assert_eq!(rig.run(0), [(0, 513)]);
}
