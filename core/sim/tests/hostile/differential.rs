//! Random chains, against a parser that was written a second time.

use proptest::prelude::*;
use proptest::test_runner::FileFailurePersistence;
use sluice_core::blk::BlkFeatures;
use sluice_core::memory::Region;
use sluice_core::virtqueue::layout::{DESC_AVAIL, DESC_USED};
use sluice_sim::compare::{compare, compare_row};
use sluice_sim::rig::{
    self, DATA_BYTES, Desc, HIGH, HIGH_GUEST, LOW, LOW_GUEST, RING, RING_BYTES, RING_GUEST, Rig,
    Setup, WILD,
};

use super::{DISCARD, FLUSH, GET_ID, HEADER, I, IN, N, OUT, R, STATUS, TABLE, W, WRITE_ZEROES};

fn config() -> ProptestConfig {
    ProptestConfig {
        cases: 10_000,
        failure_persistence: Some(Box::new(FileFailurePersistence::Direct(concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../../proptest-regressions/hostile.txt"
        )))),
        ..ProptestConfig::default()
    }
}

/// Addresses of memory, some of them at a border.
fn good_address() -> impl Strategy<Value = u64> {
    prop_oneof![
        (0_u64..0x800).prop_map(|at| LOW_GUEST + 0x800 + at),
        (0_u64..1200).prop_map(|back| HIGH_GUEST - back),
        (0_u64..0x800).prop_map(|at| HIGH_GUEST + at),
    ]
}

/// Addresses near everything that matters.
fn address() -> impl Strategy<Value = u64> {
    let end = HIGH_GUEST + DATA_BYTES;
    prop_oneof![
        2 => (0_u64..40).prop_map(|at| HEADER + at),
        2 => good_address(),
        2 => (0_u64..1200).prop_map(move |back| end - back),
        1 => (0_u64..64).prop_map(|at| RING_GUEST + RING_BYTES - at),
        2 => (0_u64..1200).prop_map(|back| u64::MAX - back),
        1 => (0_u64..4).prop_map(|back| LOW_GUEST - back),
        1 => Just(WILD),
    ]
}

/// Lengths near everything that matters, and small.
fn good_length() -> impl Strategy<Value = u32> {
    prop_oneof![
        1 => 0_u32..20,
        3 => prop::sample::select(vec![1, 256, 511, 512, 513, 528, 1024, 1025, 4096]),
    ]
}

/// The same and large ones.
fn length() -> impl Strategy<Value = u32> {
    let large = prop::sample::select(vec![u32::MAX, 1 << 31, 0x4000, 0x8000, 16, 17, 32, 48]);
    prop_oneof![3 => good_length(), 1 => large]
}

/// A chain that is nearly right.
#[derive(Clone, Debug)]
struct Case {
    kind: u32,
    sector: u64,
    ranges: Vec<(u64, u32, u32)>,
    /// Where the 16 bytes of the header are cut.
    cuts: (u32, u32),
    /// Buffers of data; the last is made to fit unless `odd`.
    data: Vec<(u64, u32)>,
    odd: bool,
    /// Whether the status byte shares the last buffer.
    joined: bool,
    size: u16,
    /// Elements in front of the indirect table; no table when there are as many elements.
    direct: usize,
    table_at: u64,
    /// The ring's table is used from its end.
    backwards: bool,
    /// What is wrong: (descriptor, field, address, length, flags or next).
    wrong: Vec<(usize, u8, u64, u32, u16)>,
    setup: Setup,
}

impl Case {
    /// The buffers, with their direction.
    fn elements(&self) -> Vec<(u64, u32, u16)> {
        let (first, second) = (self.cuts.0.min(self.cuts.1), self.cuts.0.max(self.cuts.1));
        let mut elements: Vec<_> = [(0, first), (first, second), (second, 16)]
            .into_iter()
            .filter(|(from, to)| from < to)
            .map(|(from, to)| (HEADER + u64::from(from), to - from, R))
            .collect();
        let mut data = self.data.clone();
        match self.kind {
            DISCARD | WRITE_ZEROES => {
                let len = u32::try_from(16 * self.ranges.len()).unwrap();
                let first = self.cuts.0.min(len);
                data = vec![(HEADER + 16, first), (HEADER + 16 + u64::from(first), len - first)];
            }
            _ if self.odd => {}
            _ => {
                let sum: u32 = data.iter().map(|buffer| buffer.1).sum();
                if let Some(last) = data.last_mut() {
                    last.1 += sum.next_multiple_of(512) - sum;
                }
            }
        }
        let flags = if matches!(self.kind, IN | GET_ID) { W } else { R };
        elements.extend(data.iter().map(|&(addr, len)| (addr, len, flags)));
        match elements.last_mut() {
            Some(last) if self.joined && last.2 == W => last.1 += 1,
            _ => elements.push((STATUS, 1, W)),
        }
        elements
    }

    /// Writes what a header says, into memory that is otherwise filled.
    fn write_header(&self, rig: &Rig<'_>) {
        rig.mem.fill(LOW, 0, &[0x11; 0x4000]);
        rig.mem.fill(HIGH, 0, &[0x22; 0x4000]);
        rig.mem.fill(RING, RING_BYTES - 0x100, &[0x33; 0x100]);
        rig.header(HEADER, self.kind, self.sector);
        for ((sector, sectors, flags), at) in self.ranges.iter().zip((HEADER + 16..).step_by(16)) {
            rig.put(at, &sector.to_le_bytes());
            rig.put(at + 8, &sectors.to_le_bytes());
            rig.put(at + 12, &flags.to_le_bytes());
        }
    }

    /// Writes the chain and says where it begins.
    fn write(&self, rig: &Rig<'_>) -> u16 {
        self.write_header(rig);
        let elements = self.elements();
        let (direct, indirect) = elements.split_at(self.direct.min(elements.len()));
        let in_ring = direct.len() + usize::from(!indirect.is_empty());
        let mut ring: Vec<Desc> = self.linked(direct, in_ring, true);
        let mut table = self.linked(indirect, indirect.len(), false);
        if !indirect.is_empty() {
            ring.push((self.table_at, u32::try_from(16 * table.len()).unwrap(), I, 0));
        }
        for &(which, field, addr, len, word) in &self.wrong {
            let (at, all) = (which, ring.len() + table.len());
            let at = at % all;
            let desc = if at < ring.len() { &mut ring[at] } else { &mut table[at - ring.len()] };
            match field {
                0 => desc.0 = addr,
                1 => desc.1 = len,
                2 => desc.2 ^= 1 << (word % 3),
                3 => desc.3 = word,
                _ => desc.2 ^= word & !7,
            }
        }
        for (index, desc) in (0..self.size).zip(ring) {
            rig.desc(self.place(usize::from(index)), desc);
        }
        for (step, desc) in (0..).zip(table) {
            let at = self.table_at + 16 * step;
            if (0..16).all(|byte| rig.place(at + byte).is_some()) {
                rig.table(at, &[desc]);
            }
        }
        self.place(0)
    }

    /// What a packed ring's next places get: the row, and the table's entries.
    fn write_packed(&self, rig: &Rig<'_>) -> Vec<(u64, u32, u16)> {
        self.write_header(rig);
        let elements = self.elements();
        let (direct, indirect) = elements.split_at(self.direct.min(elements.len()));
        let mut row = direct.to_vec();
        let mut table: Vec<Desc> =
            indirect.iter().map(|&(addr, len, flags)| (addr, len, 0, flags)).collect();
        if !indirect.is_empty() {
            row.push((self.table_at, u32::try_from(16 * table.len()).unwrap(), I));
        }
        for &(which, field, addr, len, word) in &self.wrong {
            let at = which % (row.len() + table.len());
            if let Some(desc) = row.get_mut(at) {
                // Where the row ends and whose turn it is stays as it is.
                match field {
                    0 => desc.0 = addr,
                    1 => desc.1 = len,
                    2 => desc.2 ^= 2 << (word % 2),
                    _ => desc.2 ^= word & !(7 | DESC_AVAIL | DESC_USED),
                }
                continue;
            }
            let desc = &mut table[at - row.len()];
            match field {
                0 => desc.0 = addr,
                1 => desc.1 = len,
                2 => desc.3 ^= 1 << (word % 3),
                3 => desc.2 = word,
                _ => desc.3 ^= word & !7,
            }
        }
        for (step, desc) in (0..).zip(table) {
            let at = self.table_at + 16 * step;
            if (0..16).all(|byte| rig.place(at + byte).is_some()) {
                rig.table(at, &[desc]);
            }
        }
        row
    }

    /// Links elements of one table of which `count` follow each other.
    fn linked(&self, elements: &[(u64, u32, u16)], count: usize, ring: bool) -> Vec<Desc> {
        let next = |index: usize| {
            if ring { self.place(index) } else { u16::try_from(index).unwrap() }
        };
        let link = |(index, &(addr, len, flags)): (usize, &(u64, u32, u16))| {
            if index + 1 < count {
                (addr, len, flags | N, next(index + 1))
            } else {
                (addr, len, flags, 0)
            }
        };
        elements.iter().enumerate().map(link).collect()
    }

    /// The ring's descriptor that holds an element; outside the table when there is none left.
    fn place(&self, index: usize) -> u16 {
        let index = u16::try_from(index).unwrap();
        if self.backwards { (self.size - 1).wrapping_sub(index) } else { index }
    }
}

fn setup() -> impl Strategy<Value = Setup> {
    let block = prop::sample::select(vec![512, 512, 512, 512, 1024, 4096]);
    (any::<bool>(), 0_u8..8, block, 1_u64..100, any::<u8>()).prop_map(
        |(read_only, features, block_bytes, capacity, layout)| {
            let mut setup = Setup::default();
            setup.image.block_bytes = block_bytes;
            setup.image.capacity_sectors = capacity;
            setup.image.read_only = read_only && features > 4;
            if features % 4 == 0 || setup.image.read_only {
                setup.features.remove(BlkFeatures::DISCARD | BlkFeatures::WRITE_ZEROES);
            }
            if layout % 16 == 0 {
                // A third region inside the lower one's place, and a hole behind it.
                let at = 0x1000 + u64::from(layout);
                let low = Region { size: at, ..setup.regions[0] };
                let high =
                    Region { id: HIGH, guest: LOW_GUEST + at, user: 0x7f10_0000_0000, size: 0x300 };
                setup.regions = vec![high, setup.regions[2], low];
            } else if layout % 16 == 1 {
                setup.regions[1].guest = u64::MAX - (DATA_BYTES - 1);
            }
            setup
        },
    )
}

fn case() -> impl Strategy<Value = Case> {
    let sector = prop_oneof![
        6 => prop::sample::select(vec![0_u64, 8, 16]),
        3 => 0_u64..20,
        1 => Just(1_u64 << 55),
        1 => (0_u64..3).prop_map(|back| u64::MAX - back),
    ];
    let sectors = prop_oneof![6 => Just(8), 6 => 1_u32..10, 1 => Just(0), 1 => Just(u32::MAX)];
    let flags = prop::sample::select(vec![0_u32, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 2, 1 << 31]);
    let request = (
        prop::sample::select(vec![IN, IN, IN, OUT, OUT, OUT, FLUSH, GET_ID, DISCARD, 13, 13, 7]),
        sector,
        prop::collection::vec((0_u64..20, sectors, flags), 1..4),
    );
    let layout = (
        (0_u32..17, 0_u32..17),
        prop::collection::vec((good_address(), good_length()), 0..5),
        prop::bool::weighted(0.2),
        any::<bool>(),
        prop::sample::select(vec![1_u16, 2, 4, 8, 16, 16, 16, 16, 16, 16]),
        0_usize..10,
        prop_oneof![2 => Just(TABLE), 1 => (0_u64..140).prop_map(|back| HIGH_GUEST - back)],
        any::<bool>(),
    );
    let wrong = (0_usize..12, 0_u8..5, address(), length(), 0_u16..20);
    let wrong = prop_oneof![
        5 => Just(Vec::new()),
        3 => prop::collection::vec(wrong, 1..4),
    ];
    (request, layout, wrong, setup()).prop_map(|(request, layout, wrong, setup)| Case {
        kind: request.0,
        sector: request.1,
        ranges: request.2,
        cuts: layout.0,
        data: layout.1,
        odd: layout.2,
        joined: layout.3,
        size: layout.4,
        direct: layout.5,
        table_at: layout.6,
        backwards: layout.7,
        wrong,
        setup,
    })
}

proptest! {
    #![proptest_config(config())]

    //= spec/virtqueue.md#VQ-6
    //= spec/virtqueue.md#VQ-7
    //= spec/virtqueue.md#VQ-8
    //= spec/virtqueue.md#VQ-9
    //= spec/virtqueue.md#VQ-10
    //= spec/blk.md#BLK-1
    //= spec/blk.md#BLK-3
    //= spec/blk.md#BLK-5
    //= spec/blk.md#BLK-9
    #[test]
    fn two_readings_of_the_specification_agree(case in case()) {
        let (mut arena, mem) = (rig::arena(4), rig::memory());
        let setup = Setup { size: case.size, ..case.setup.clone() };
        let mut rig = Rig::new(&mut arena, &mem, setup);
        let head = case.write(&rig);
        compare(&mut rig, head);
        // The other descriptors are heads as well, of chains that make less sense.
        for other in 0..case.size {
            compare(&mut rig, other);
        }
    }
    //= spec/packed.md#PVQ-1
    //= spec/packed.md#PVQ-6
    //= spec/packed.md#PVQ-7
    //= spec/packed.md#PVQ-8
    #[test]
    fn two_readings_of_the_specification_agree_on_packed_rings(
        case in case(),
        base in 0_u16..64,
        wrap: bool,
        ids in prop::collection::vec(0_u16..64, 3),
    ) {
        let (mut arena, mem) = (rig::arena(4), rig::memory());
        // The rows of three turns, at any place of a ring that is as long as it is or longer.
        let size = case.size.max(u16::try_from(case.elements().len() + 1).unwrap());
        let base = (base % size) | u16::from(wrap) << 15;
        let mut setup = Setup { size, base, ..case.setup.clone() };
        setup.features |= BlkFeatures::RING_PACKED;
        let mut rig = Rig::new(&mut arena, &mem, setup);
        let row = case.write_packed(&rig);
        for id in ids {
            compare_row(&mut rig, id % size, &row);
        }
        prop_assert_eq!(rig.broken, None);
    }
}
