//! Every small ring, and every small request over every small object.

use sluice_core::blk::BlkFeatures;
use sluice_core::image::{Backing, Cut, Geometry};
use sluice_core::limits::SEGMENTS_MAX;
use sluice_core::memory::{MemoryMap, RegionId, Segment, SharedMemory};
use sluice_core::placement::{ClusterId, Epoch, OsdNum, PgNum, PoolConfig, PoolId, Update};
use sluice_core::shard::Input;
use sluice_core::time::Instant;
use sluice_core::virtqueue::chain::take_packed;
use sluice_core::virtqueue::layout::{DESC_AVAIL, DESC_USED, PackedDescriptor};
use sluice_core::virtqueue::packed::parts;
use sluice_core::virtqueue::{PackedBase, PackedRing, Rings};
use sluice_sim::compare::{compare, compare_row};
use sluice_sim::memory::FlatMemory;
use sluice_sim::reference::Answer;
use sluice_sim::rig::{Desc, HIGH_GUEST, Rig, Setup, WILD};

use zerocopy::byteorder::little_endian::U16;

use super::{DATA, HEADER, I, IN, N, OUT, R, STATUS, TABLE, W, rig};

/// What one descriptor may be, apart from where it leads. Each stands for a class.
const SHAPES: [(u64, u32, u16); 18] = [
    // A header, whole and in two pieces; across a border.
    (HEADER, 16, R),
    (HEADER, 7, R),
    (HEADER + 7, 9, R),
    (HIGH_GUEST - 5, 16, R),
    // Nothing, at a good and at a bad place; something at a bad one.
    (HEADER, 0, R),
    (WILD, 0, W),
    (WILD, 1, R),
    (WILD, 1, W),
    // Data and status: apart, together, across a border, one byte short.
    (DATA, 512, W),
    (STATUS, 1, W),
    (HIGH_GUEST - 100, 513, W),
    (DATA, 511, W),
    (DATA, 512, R),
    // Tables: a whole request, its last two elements, a loop, and no table at all.
    (TABLE, 48, I),
    (TABLE + 64, 32, I),
    (TABLE + 128, 16, I),
    (TABLE, 17, I),
    (WILD, 48, I),
];

fn prepare(rig: &Rig<'_>) {
    rig.header(HEADER, IN, 1);
    rig.header(HIGH_GUEST - 5, OUT, 1);
    rig.table(TABLE, &[(HEADER, 16, N, 1), (DATA, 512, W | N, 2), (STATUS, 1, W, 0)]);
    rig.table(TABLE + 64, &[(DATA, 512, W | N, 1), (STATUS, 1, W, 0)]);
    rig.table(TABLE + 128, &[(STATUS, 1, W | N, 0)]);
}

/// Every descriptor of a ring of `size` entries: each shape, at the end of its chain or leading
/// to each entry and to the first one that is none.
fn descriptors(size: u16) -> Vec<Desc> {
    let ends = SHAPES.iter().map(|&(addr, len, flags)| (addr, len, flags, 0));
    let links = SHAPES
        .iter()
        .flat_map(|&(addr, len, flags)| (0..=size).map(move |next| (addr, len, flags | N, next)));
    ends.chain(links).collect()
}

/// Runs `chain` and everything that it may go on with, `depth` descriptors further. Entries
/// that the walk does not reach are left out: they cannot matter. Returns how many were run,
/// and how many of those were carried out.
fn extend(
    rig: &mut Rig<'_>,
    all: &[Desc],
    at: u16,
    used: &mut Vec<u16>,
    depth: usize,
) -> (u64, u64) {
    let (mut count, mut done) = (0, 0);
    used.push(at);
    for &desc in all {
        rig.desc(at, desc);
        let goes_on = desc.2 & (N | I) == N;
        if goes_on && depth > 1 && desc.3 < rig.size() && !used.contains(&desc.3) {
            let (more, deeds) = extend(rig, all, desc.3, used, depth - 1);
            (count, done) = (count + more, done + deeds);
        } else {
            count += 1;
            done += u64::from(matches!(compare(rig, 0), Answer::Do(..)));
        }
    }
    used.pop();
    (count, done)
}

//= spec/virtqueue.md#VQ-6
//= spec/virtqueue.md#VQ-7
//= spec/virtqueue.md#VQ-8
#[test]
fn every_chain_of_up_to_three_descriptors_in_every_ring_of_up_to_four() {
    for size in [1, 2, 4] {
        rig!(rig, Setup { size, base: 0xfff0, ..Setup::default() });
        prepare(&rig);
        // Whatever is reached behind the third descriptor.
        for index in 0..size {
            rig.desc(index, (STATUS, 1, W, 0));
        }
        let (count, done) = extend(&mut rig, &descriptors(size), 0, &mut Vec::new(), 3);
        println!("{count} rings of {size}, {done} of them good");
        assert!(count >= [0, 50, 900, 0, 90_000][usize::from(size)]);
        assert!(done > 0, "some are good");
        assert_eq!(rig.broken, None);
    }
}

/// Every row of up to `depth` descriptors more. Returns how many were run, and how many of those
/// were carried out.
fn extend_row(rig: &mut Rig<'_>, row: &mut Vec<(u64, u32, u16)>, depth: u16) -> (u64, u64) {
    let (mut count, mut done) = (0, 0);
    for shape in SHAPES {
        row.push(shape);
        let id = u16::try_from(row.len() - 1).unwrap();
        count += 1;
        done += u64::from(matches!(compare_row(rig, id, row), Answer::Do(..)));
        if depth > 1 {
            let (more, deeds) = extend_row(rig, row, depth - 1);
            (count, done) = (count + more, done + deeds);
        }
        row.pop();
    }
    (count, done)
}

//= spec/packed.md#PVQ-6
//= spec/packed.md#PVQ-7
#[test]
fn every_row_of_up_to_three_descriptors_in_every_packed_ring_of_up_to_four() {
    for size in 1..=4 {
        let mut setup = Setup { size, base: 0x8000, ..Setup::default() };
        setup.features |= BlkFeatures::RING_PACKED;
        rig!(rig, setup);
        prepare(&rig);
        rig.table(TABLE, &[(HEADER, 16, 0, 0), (DATA, 512, 0, W), (STATUS, 1, 0, W)]);
        rig.table(TABLE + 64, &[(DATA, 512, 3, W | N), (STATUS, 1, 7, W)]);
        let (count, done) = extend_row(&mut rig, &mut Vec::new(), size.min(3));
        println!("{count} rows in rings of {size}, {done} of them good");
        assert_eq!(count, [18, 18 + 324, 18 + 324 + 5832][usize::from(size.min(3) - 1)]);
        assert!(done > 0, "some are good");
        assert_eq!(rig.broken, None);
    }
}

/// A ring's entries as flags and id; what is to be taken of them when looked at for this lap.
fn expected(ring: &[(u16, u16)], first: usize, wrap: bool) -> (Vec<(u16, u16)>, bool) {
    let (mut taken, mut at, mut held) = (Vec::new(), 0, 0);
    // Entry and lap of the so-many-th place.
    let place = |at: usize| {
        let (index, lap) = ((first + at) % ring.len(), wrap ^ (first + at >= ring.len()));
        let (flags, id) = ring[index];
        let here = flags & (DESC_AVAIL | DESC_USED) == if lap { DESC_AVAIL } else { DESC_USED };
        (here, flags & N != 0, id)
    };
    loop {
        // One lap ahead of the first place its own flags are found again, which are of another.
        if at == ring.len() || !place(at).0 {
            return (taken, false);
        }
        let mut end = at;
        while place(end).1 {
            end += 1;
            if end == ring.len() || !place(end).0 {
                return (taken, true);
            }
        }
        let id = place(end).2;
        if usize::from(id) >= ring.len() || taken.iter().any(|&(other, _)| other == id) {
            return (taken, true);
        }
        let count = u16::try_from(end - at + 1).unwrap();
        taken.push((id, count));
        held += count;
        at = usize::from(held);
    }
}

/// All that a ring can say of whose entries are, how they hang together and what they are called.
//= spec/packed.md#PVQ-2
//= spec/packed.md#PVQ-4
//= spec/packed.md#PVQ-5
#[test]
fn every_packed_ring_of_up_to_four_entries() {
    let mem = FlatMemory::new(&[128]);
    let map = MemoryMap::new();
    let part = |at| (RegionId(0), at);
    let rings = Rings { desc: part(0), avail: part(64), used: part(68) };
    let mut segments = [Segment::EMPTY; SEGMENTS_MAX];
    let (mut count, mut broken) = (0_u64, 0_u64);
    for size in 1..=4_u16 {
        // Ids that are the first, the last, and none.
        let ids = [0, size - 1, size];
        let laps = [0, DESC_AVAIL, DESC_USED, DESC_AVAIL | DESC_USED];
        let entries: Vec<(u16, u16)> = laps
            .iter()
            .flat_map(|lap| [*lap, lap | N])
            .flat_map(|flags| ids.map(|id| (flags, id)))
            .collect();
        let kinds = entries.len();
        for number in 0..kinds.pow(size.into()) {
            let mut rest = number;
            let ring: Vec<(u16, u16)> = (0..size)
                .map(|_| {
                    let entry = entries[rest % kinds];
                    rest /= kinds;
                    entry
                })
                .collect();
            for (index, &(flags, id)) in ring.iter().enumerate() {
                let descriptor = PackedDescriptor {
                    id: U16::new(id),
                    flags: U16::new(flags),
                    ..PackedDescriptor::EMPTY
                };
                mem.write(RegionId(0), 16 * index as u64, &descriptor).unwrap();
            }
            for (first, wrap) in (0..size).flat_map(|first| [(first, false), (first, true)]) {
                let bits = u32::from(first | u16::from(wrap) << 15);
                let base = PackedBase::from_bits(bits | bits << 16, size).unwrap();
                let mut device = PackedRing::start(rings, size, base, false);
                let mut taken = Vec::new();
                let fault = loop {
                    match take_packed(&mem, &map, &mut device, None, &mut segments) {
                        Ok(Some(chain)) => taken.push(chain.token),
                        Ok(None) => break false,
                        Err(_) => break true,
                    }
                };
                let (names, breaks) = expected(&ring, first.into(), wrap);
                let found: Vec<_> = taken.iter().map(|&token| parts(token)).collect();
                assert_eq!((found, fault), (names, breaks), "{ring:x?} from {first} {wrap}");
                count += 1;
                broken += u64::from(fault);
            }
        }
    }
    println!("{count} rings, {broken} of them broken");
    assert!(broken > 0 && broken < count);
}

//= spec/placement.md#PLC-1
//= spec/placement.md#PLC-2
#[test]
fn every_slice_of_small_objects() {
    for object in 1..=7 {
        for offset in 0..=2 * object {
            for len in 1..=3 * object + 1 {
                let (mut at, mut owners) = (offset, Vec::new());
                while at < offset + len {
                    let geometry = Geometry::Objects(object);
                    let cut = Cut { geometry, moved: u64::MAX, cleared: u64::MAX };
                    let part = cut.first_part(at, offset + len - at, true);
                    assert!(part > 0 && at / object == (at + part - 1) / object);
                    owners.push(at / object);
                    at += part;
                }
                let objects = offset / object..=(offset + len - 1) / object;
                assert!(at == offset + len && owners.into_iter().eq(objects), "one part each");
            }
        }
    }
}

//= spec/placement.md#PLC-1
//= spec/placement.md#PLC-6
#[test]
fn every_small_request_to_objects_of_eight_sectors() {
    let pool = PoolConfig {
        id: PoolId(1),
        block_bytes: 4096,
        data_chunks: 1,
        pg_stripe_bytes: 0,
        pg_count: 3,
    };
    let mut setup = Setup::default();
    setup.image.backing = Backing::Cluster { cluster: ClusterId(1), pool: pool.id, inode: 77 };
    setup.image.capacity_sectors = 64;
    rig!(rig, setup);
    let groups =
        (1..=3).map(|pg| Update::Primary { pool: pool.id, pg: PgNum(pg), osd: Some(OsdNum(pg)) });
    for update in [Update::Pool(pool)].into_iter().chain(groups) {
        let input = Input::Cluster(ClusterId(1), Epoch(1), update);
        rig.shard.handle(Instant(0), rig.mem, input).unwrap();
    }
    for kind in [IN, OUT, super::WRITE_ZEROES] {
        for sector in 0..24 {
            for sectors in 1..=24 {
                rig.header(HEADER, kind, sector);
                rig.put(HEADER + 16, &sector.to_le_bytes());
                rig.put(HEADER + 24, &u64::from(sectors).to_le_bytes());
                let (flags, total) =
                    if kind == IN { (W, sectors * 512) } else { (R, sectors * 512) };
                // Two buffers, cut where no sector and no object is.
                let first = total / 3 + 1;
                let data = match kind {
                    super::WRITE_ZEROES => [(HEADER + 16, 9, R), (HEADER + 25, 7, R)],
                    _ => [(DATA, first, flags), (HIGH_GUEST, total - first, flags)],
                };
                rig.link(&[(HEADER, 16, R), data[0], data[1], (STATUS, 1, W)]);
                rig.offer(0);
                rig.take_in(rig.mem);
                let mut next = sector * 512;
                for op in rig.ops() {
                    assert_eq!((op.offset, op.inode), (next, 77));
                    let object = op.offset / 4096;
                    assert_eq!(object, (op.offset + op.len - 1) / 4096, "crosses no object");
                    let osd = OsdNum(u32::try_from(object % 3).unwrap() + 1);
                    assert_eq!(op.target, sluice_core::op::Target::Osd(ClusterId(1), osd));
                    next += op.len;
                    rig.reply_ok(&op);
                }
                assert_eq!(next, (sector + u64::from(sectors)) * 512, "all of it");
                rig.give_back(rig.mem);
                let used = if kind == IN { total + 1 } else { 1 };
                assert_eq!(rig.used(), [(0, used)]);
            }
        }
    }
}
