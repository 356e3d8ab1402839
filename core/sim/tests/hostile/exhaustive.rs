//! Every small ring, and every small request over every small object.

use sluice_core::image::{Backing, Geometry};
use sluice_core::placement::{ClusterId, Epoch, OsdNum, PgNum, PoolConfig, PoolId, Update};
use sluice_core::shard::Input;
use sluice_core::time::Instant;
use sluice_sim::compare::compare;
use sluice_sim::reference::Answer;
use sluice_sim::rig::{Desc, HIGH_GUEST, Rig, Setup, WILD};

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

//= spec/placement.md#PLC-1
//= spec/placement.md#PLC-2
#[test]
fn every_slice_of_small_objects() {
    for object in 1..=7 {
        for offset in 0..=2 * object {
            for len in 1..=3 * object + 1 {
                let (mut at, mut owners) = (offset, Vec::new());
                while at < offset + len {
                    let part = Geometry::Objects(object).first_part(at, offset + len - at, true);
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
