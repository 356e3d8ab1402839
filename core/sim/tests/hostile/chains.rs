//! Descriptor chains: loops, lengths, indirect tables, addresses.

use sluice_core::blk::BlkFeatures;
use sluice_core::memory::Region;
use sluice_sim::rig::{
    DATA_BYTES, HIGH, HIGH_GUEST, LOW, LOW_GUEST, RING, RING_BYTES, RING_GUEST, Rig, Setup, WILD,
};

use super::{DATA, HEADER, I, IN, IOERR, N, NONE, OK, OUT, R, STATUS, TABLE, W, outcome, rig};

fn status(rig: &Rig<'_>) -> u8 {
    rig.get(STATUS, 1)[0]
}

//= spec/virtqueue.md#VQ-6
#[test]
fn b53_a_next_outside_the_table_leaves_the_chain_unanswered() {
    rig!(rig);
    rig.header(HEADER, IN, 0);
    for bad in [16, 0xffff] {
        rig.desc(0, (HEADER, 16, N, 1));
        rig.desc(1, (STATUS, 1, W | N, bad));
        assert_eq!(rig.run(0), [(0, 0)], "the status byte was not the last");
        assert_eq!(status(&rig), NONE);
    }
    // In an indirect table it is that table's length that counts.
    rig.table(TABLE, &[(HEADER, 16, N, 1), (DATA, 512, W | N, 3), (STATUS, 1, W, 0)]);
    rig.desc(0, (TABLE, 48, I, 0));
    assert_eq!(rig.run(0), [(0, 0)]);
    rig.table(TABLE, &[(HEADER, 16, N, 1), (DATA, 512, W | N, 2), (STATUS, 1, W, 77)]);
    assert_eq!(rig.run(0), [(0, 513)], "a next that is not asked for is not looked at");
    assert_eq!((status(&rig), rig.broken), (OK, None));
}

//= spec/virtqueue.md#VQ-6
#[test]
fn b54_a_loop_ends_after_as_many_steps_as_the_table_has_entries() {
    rig!(rig);
    rig.header(HEADER, IN, 0);
    // To itself; back to the head; into the middle at the last step.
    rig.desc(0, (HEADER, 16, N, 0));
    assert_eq!(rig.run(0), [(0, 0)]);
    rig.desc(0, (HEADER, 16, N, 1));
    rig.desc(1, (STATUS, 1, W | N, 0));
    assert_eq!(rig.run(0), [(0, 0)]);
    for index in 0..16 {
        rig.desc(index, (DATA, 32, W | N, index + 1));
    }
    rig.desc(0, (HEADER, 16, N, 1));
    rig.desc(15, (STATUS, 1, W | N, 7));
    assert_eq!(rig.run(0), [(0, 0)]);
    // In an indirect table.
    rig.table(TABLE, &[(HEADER, 16, N, 1), (STATUS, 1, W | N, 0)]);
    rig.desc(0, (TABLE, 32, I, 0));
    assert_eq!(rig.run(0), [(0, 0)]);
    assert_eq!(status(&rig), NONE);
    // The longest chain that is no loop: every entry once.
    for index in 0..15 {
        rig.desc(index, (DATA, 512, W | N, index + 1));
    }
    rig.desc(0, (HEADER, 16, N, 1));
    rig.desc(15, (STATUS, 1, W, 0));
    assert_eq!(rig.run(0), [(0, 14 * 512 + 1)]);
    assert_eq!((status(&rig), rig.broken), (OK, None));
}

//= spec/virtqueue.md#VQ-8
#[test]
fn b55_a_chain_of_too_many_segments_or_bytes_is_refused() {
    rig!(rig, Setup { size: 256, ..Setup::default() });
    rig.header(HEADER, IN, 0);
    let chain = |data: usize| {
        let mut buffers = vec![(HEADER, 16, R)];
        buffers.extend(vec![(DATA, 512, W); data]);
        buffers.push((STATUS, 1, W));
        buffers
    };
    assert_eq!(outcome(&mut rig, &chain(126)), (126 * 512 + 1, OK), "what is advertised");
    assert_eq!(outcome(&mut rig, &chain(134)), (134 * 512 + 1, OK), "what fits");
    assert_eq!(outcome(&mut rig, &chain(135)), (1, IOERR));
    assert_eq!(outcome(&mut rig, &chain(254)), (1, IOERR));
    // The status byte is looked for to the end, and is not mistaken for another buffer's.
    for more in [(DATA, 512, R), (WILD, 0, W), (STATUS, 0, R)] {
        rig.put(DATA, &[NONE; 512]);
        let mut buffers = chain(140);
        buffers.push(more);
        assert_eq!(outcome(&mut rig, &buffers), (1, IOERR));
        assert_eq!(rig.get(DATA, 512), [NONE; 512], "{more:x?}");
    }
    let mut buffers = chain(140);
    buffers.push((WILD, 1, W));
    assert_eq!(outcome(&mut rig, &buffers), (0, NONE));

    // 4 GiB and more, in memory that is as large as that.
    let mut setup = Setup::default();
    setup.image.capacity_sectors = 1 << 40;
    setup.regions[1].size = 1 << 33;
    setup.regions[2].guest = 1 << 40;
    rig!(rig, setup);
    rig.header(HEADER, IN, 0);
    let half = 1 << 31;
    let buffers = [(HEADER, 16, R), (HIGH_GUEST, half, W), (HIGH_GUEST, half, W), (STATUS, 1, W)];
    assert_eq!(outcome(&mut rig, &buffers), (1, IOERR));
    let buffers = [(HEADER, 16, R), (HIGH_GUEST, u32::MAX, W), (STATUS, 1, W)];
    assert_eq!(outcome(&mut rig, &buffers), (1, IOERR), "the sum counts");
    let most = u32::MAX - 511 - 512;
    rig.link(&[(HEADER, 16, R), (HIGH_GUEST, most, W), (STATUS, 1, W)]);
    rig.offer(0);
    rig.take_in(rig.mem);
    assert!(rig.next_op().is_some(), "one of almost 4 GiB is begun");
}

//= spec/virtqueue.md#VQ-7
#[test]
fn b56_an_indirect_table_that_is_none() {
    rig!(rig);
    rig.header(HEADER, IN, 0);
    rig.table(TABLE, &[(HEADER, 16, N, 1), (DATA, 512, W | N, 2), (STATUS, 1, W, 0)]);
    let beyond = 16 * (u32::from(sluice_core::limits::QUEUE_SIZE_MAX) + 1);
    for len in [0, 1, 15, 17, 47, 49, beyond, 16 * 32768, 16 * 65536, 16 * 65537, u32::MAX - 15] {
        rig.desc(0, (TABLE, len, I, 0));
        assert_eq!(rig.run(0), [(0, 0)], "{len}");
    }
    for addr in [WILD, u64::MAX, u64::MAX - 47, LOW_GUEST - 1] {
        rig.desc(0, (addr, 48, I, 0));
        assert_eq!(rig.run(0), [(0, 0)], "{addr:x}");
    }
    assert_eq!((status(&rig), rig.broken), (NONE, None));
    // The longest one; that the rest of it is garbage does not matter.
    let room = u32::try_from(DATA_BYTES - (TABLE - LOW_GUEST)).unwrap() & !15;
    rig.desc(0, (TABLE, room.min(beyond - 16), I, 0));
    assert_eq!(rig.run(0), [(0, 513)]);
    rig.desc(0, (TABLE, 48, I | W, 0));
    assert_eq!(rig.run(0), [(0, 513)], "the write flag means nothing on a table");
}

//= spec/virtqueue.md#VQ-7
#[test]
fn b57_indirect_tables_where_they_should_not_be() {
    rig!(rig);
    rig.header(HEADER, IN, 0);
    let inner = TABLE + 0x100;
    rig.table(inner, &[(DATA, 512, W, 0)]);
    // Nested: refused, but the walk goes on and finds where to say so.
    rig.table(TABLE, &[(HEADER, 16, N, 1), (inner, 16, I | N, 2), (STATUS, 1, W, 0)]);
    rig.desc(0, (TABLE, 48, I, 0));
    assert_eq!(rig.run(0), [(0, 1)]);
    assert_eq!(status(&rig), IOERR);
    // A table that contains itself.
    rig.table(TABLE, &[(TABLE, 16, I, 0)]);
    rig.desc(0, (TABLE, 16, I, 0));
    assert_eq!(rig.run(0), [(0, 0)]);
    // Together with next.
    rig.put(STATUS, &[NONE]);
    rig.table(TABLE, &[(HEADER, 16, N, 1), (DATA, 512, W | N, 2), (STATUS, 1, W, 0)]);
    rig.desc(0, (TABLE, 48, I | N, 1));
    assert_eq!(rig.run(0), [(0, 1)]);
    assert_eq!(status(&rig), IOERR);
    // Behind direct descriptors it is legal.
    rig.table(TABLE, &[(DATA, 512, W | N, 1), (STATUS, 1, W, 0)]);
    rig.desc(0, (HEADER, 16, N, 1));
    rig.desc(1, (TABLE, 32, I, 0));
    assert_eq!(rig.run(0), [(0, 513)]);
    // And known drivers use it without having asked.
    let mut setup = Setup::default();
    setup.features.remove(BlkFeatures::INDIRECT_DESC);
    rig!(rig, setup);
    rig.header(HEADER, IN, 0);
    rig.table(TABLE, &[(HEADER, 16, N, 1), (DATA, 512, W | N, 2), (STATUS, 1, W, 0)]);
    rig.desc(0, (TABLE, 48, I, 0));
    assert_eq!(rig.run(0), [(0, 513)]);
}

//= spec/virtqueue.md#VQ-7
#[test]
fn b58_an_indirect_table_lies_where_it_likes() {
    rig!(rig);
    rig.header(HEADER, IN, 0);
    let entries = [(HEADER, 16, N, 1), (DATA, 512, W | N, 2), (STATUS, 1, W, 0)];
    // Each way across the border, aligned to nothing.
    for before in 0..=48 {
        let at = HIGH_GUEST - before;
        rig.table(at, &entries);
        rig.desc(0, (at, 48, I, 0));
        assert_eq!(rig.run(0), [(0, 513)], "{before} bytes before the border");
    }
    // A hole in it matters only when it is walked into.
    let end = HIGH_GUEST + DATA_BYTES;
    rig.table(end - 32, &[(HEADER, 16, N, 1), (STATUS, 1, W | N, 2)]);
    rig.desc(0, (end - 32, 48, I, 0));
    rig.put(STATUS, &[NONE]);
    assert_eq!(rig.run(0), [(0, 0)]);
    assert_eq!(status(&rig), NONE);
    rig.table(end - 32, &[(HEADER, 16, N, 1), (STATUS, 1, W, 0)]);
    assert_eq!(rig.run(0), [(0, 1)]);
    assert_eq!(status(&rig), IOERR, "a read of nothing");
}

/// Memory whose last byte is the last of the address space, in two regions; `last` bytes in
/// the upper one.
fn top(last: u64) -> Setup {
    let base = u64::MAX - (last + DATA_BYTES - 1);
    let regions = vec![
        Region { id: LOW, guest: base, user: 0, size: DATA_BYTES },
        Region { id: HIGH, guest: base + DATA_BYTES, user: DATA_BYTES, size: last },
        Region { id: RING, guest: RING_GUEST, user: 0x7f20_0000_0000, size: RING_BYTES },
    ];
    Setup { regions, ..Setup::default() }
}

//= spec/virtqueue.md#VQ-9
#[test]
fn b58_b60_the_last_byte_of_the_address_space_is_memory() {
    // A table and buffers that end there, or just before.
    let base = u64::MAX - (2 * DATA_BYTES - 1);
    for gap in 0..3 {
        rig!(rig, top(DATA_BYTES));
        rig.header(base, IN, 0);
        let at = u64::MAX - gap - 47;
        rig.table(at, &[(base, 16, N, 1), (base + 512, 512, W | N, 2), (base + 64, 1, W, 0)]);
        rig.desc(0, (at, 48, I, 0));
        assert_eq!(rig.run(0), [(0, 513)], "a table {gap} bytes before the end");
        rig.link(&[(base, 16, R), (u64::MAX - gap - 512, 512, W), (u64::MAX - gap, 1, W)]);
        assert_eq!(rig.run(0), [(0, 513)], "a status byte {gap} bytes before the end");
        rig.link(&[(base, 16, R), (u64::MAX - gap - 512, 512, W), (u64::MAX - gap, 2 + 3, W)]);
        assert_eq!(rig.run(0), [(0, 0)], "one that wraps");
    }
    // With a border inside the table, which is read byte by byte then.
    for gap in 0..3 {
        let last = 24 + gap;
        rig!(rig, top(last));
        let base = u64::MAX - (last + DATA_BYTES - 1);
        rig.header(base, IN, 0);
        let at = u64::MAX - gap - 47;
        rig.table(at, &[(base, 16, N, 1), (base + 512, 512, W | N, 2), (base + 64, 1, W, 0)]);
        rig.desc(0, (at, 48, I, 0));
        assert_eq!(rig.run(0), [(0, 513)], "across a border, {gap} bytes before the end");
    }
}

//= spec/virtqueue.md#VQ-8
#[test]
fn b59_a_buffer_of_no_bytes_is_no_buffer() {
    rig!(rig);
    rig.header(HEADER, IN, 0);
    let wild = [(WILD, 0, R), (u64::MAX, 0, W), (0, 0, R)];
    for empty in wild {
        let [header, data, status] = [(HEADER, 16, R), (DATA, 512, W), (STATUS, 1, W)];
        for buffers in [
            [empty, header, data, status],
            [header, empty, data, status],
            [header, data, empty, status],
            [header, data, status, empty],
        ] {
            assert_eq!(outcome(&mut rig, &buffers), (513, OK), "{buffers:x?}");
        }
    }
    // With one byte, the same address is looked at.
    let buffers = [(HEADER, 16, R), (WILD, 1, R), (DATA, 512, W), (STATUS, 1, W)];
    assert_eq!(outcome(&mut rig, &buffers), (1, IOERR));
}

//= spec/virtqueue.md#VQ-9
#[test]
fn b60_buffers_outside_memory_and_around_the_end_of_addresses() {
    rig!(rig);
    rig.header(HEADER, IN, 0);
    let end = HIGH_GUEST + DATA_BYTES;
    for (addr, len) in [
        (WILD, 512),
        (u64::MAX, 1),
        (u64::MAX, 512),
        (u64::MAX - 511, 512),
        (u64::MAX - 511, u32::MAX),
        (0, 512),
        (LOW_GUEST - 1, 512),
        (end - 511, 512),
        (end, 512),
        (DATA, u32::MAX),
    ] {
        let buffers = [(HEADER, 16, R), (addr, len, W), (STATUS, 1, W)];
        assert_eq!(outcome(&mut rig, &buffers), (1, IOERR), "data at {addr:x}+{len:x}");
        let buffers = [(addr, len, R), (DATA, 512, W), (STATUS, 1, W)];
        assert_eq!(outcome(&mut rig, &buffers), (1, IOERR), "header at {addr:x}+{len:x}");
        let buffers = [(HEADER, 16, R), (DATA, 512, W), (addr, len, W)];
        assert_eq!(outcome(&mut rig, &buffers), (0, NONE), "status at {addr:x}+{len:x}");
    }
    // Up to the very last byte, and across the border between two regions.
    for addr in [end - 512, LOW_GUEST + 1024, HIGH_GUEST - 512, HIGH_GUEST - 1, HIGH_GUEST - 511] {
        let buffers = [(HEADER, 16, R), (addr, 512, W), (STATUS, 1, W)];
        assert_eq!(outcome(&mut rig, &buffers), (513, OK), "{addr:x}");
    }
    rig.header(HIGH_GUEST - 8, IN, 0);
    let buffers = [(HIGH_GUEST - 8, 16, R), (HIGH_GUEST - 512, 513, W)];
    assert_eq!(rig.chain(&buffers), 513, "header and status across it");
    assert_eq!(rig.get(HIGH_GUEST, 1), [OK]);
}

//= spec/virtqueue.md#VQ-8
#[test]
fn b61_what_the_device_reads_comes_first() {
    rig!(rig);
    rig.header(HEADER, IN, 0);
    for buffers in [
        [(DATA, 512, W), (HEADER, 16, R), (STATUS, 1, W)],
        [(DATA, 512, W), (STATUS, 1, W), (HEADER, 16, R)],
        [(HEADER, 8, R), (STATUS, 1, W), (HEADER + 8, 8, R)],
    ] {
        rig.put(STATUS, &[NONE]);
        assert_eq!(rig.chain(&buffers), 1);
        assert_eq!(status(&rig), IOERR, "{buffers:x?}");
    }
    rig.header(HEADER, OUT, 0);
    let buffers = [(HEADER, 16, R), (DATA, 512, R), (STATUS, 1, W)];
    assert_eq!(outcome(&mut rig, &buffers), (1, OK));
    // An empty buffer has no direction.
    let buffers = [(DATA, 0, W), (HEADER, 16, R), (DATA, 512, R), (STATUS, 1, W)];
    assert_eq!(outcome(&mut rig, &buffers), (1, OK));
}
