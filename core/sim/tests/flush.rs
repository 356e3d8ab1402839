//! What a flush has to reach, and what must not be sent after one has failed.

use sluice_core::image::{Backing, ImageConfig};
use sluice_core::op::{Op, OpKind, Reply, Target};
use sluice_core::placement::{ClusterId, Epoch, OsdNum, PgNum, PoolConfig, PoolId, Update};
use sluice_core::shard::Input;
use sluice_sim::rig::{LOW_GUEST, Rig, Setup, arena, memory};

const WRITE: u16 = 2;
const CLUSTER: ClusterId = ClusterId(0);
const POOL: PoolId = PoolId(1);

fn update(rig: &mut Rig<'_>, epoch: u64, update: Update) {
    rig.input(Input::Cluster(CLUSTER, Epoch(epoch), update));
}

fn primary(rig: &mut Rig<'_>, epoch: u64, pg: u32, osd: Option<u32>) {
    update(rig, epoch, Update::Primary { pool: POOL, pg: PgNum(pg), osd: osd.map(OsdNum) });
}

fn asked(ops: &[Op]) -> Vec<u32> {
    let osd = |op: &Op| match op.target {
        Target::Osd(_, osd) if op.kind == OpKind::Sync => osd.0,
        _ => panic!("{op:?}"),
    };
    ops.iter().map(osd).collect()
}

//= spec/placement.md#PLC-6
#[test]
fn a_flush_asks_again_when_a_group_moves_before_all_are_asked() {
    let backing = Backing::Cluster { cluster: CLUSTER, pool: POOL, inode: 1 << 48 | 1 };
    let image = ImageConfig { backing, ..Setup::default().image };
    let (mut arena, mem) = (arena(4), memory());
    let mut rig = Rig::new(&mut arena, &mem, Setup { image, ..Setup::default() });
    let pool =
        PoolConfig { id: POOL, block_bytes: 4096, data_chunks: 1, pg_stripe_bytes: 0, pg_count: 3 };
    update(&mut rig, 1, Update::Pool(pool));
    primary(&mut rig, 2, 1, Some(1));
    primary(&mut rig, 3, 3, Some(3));

    rig.header(LOW_GUEST, 4, 0);
    rig.link(&[(LOW_GUEST, 16, 0), (LOW_GUEST + 0x2000, 1, WRITE)]);
    rig.offer(0);
    rig.take_in(&mem);
    let mut ops = rig.ops();
    assert_eq!(asked(&ops), [1], "nobody serves the second group");
    // Whoever holds the third group's writes has the first group now, but was not asked yet.
    primary(&mut rig, 4, 1, Some(3));
    primary(&mut rig, 5, 2, Some(2));
    ops.extend(rig.ops());
    let mut all = asked(&ops);
    all.sort_unstable();
    assert_eq!(all, [1, 2, 3]);
    ops.iter().for_each(|op| rig.reply_ok(op));
    rig.give_back(&mem);
    assert_eq!(rig.used(), [(0, 1)]);
}

//= spec/blk.md#BLK-16
#[test]
fn a_write_that_was_taken_before_a_sync_failed_is_not_sent_after_it() {
    let (mut arena, mem) = (arena(4), memory());
    let mut rig = Rig::new(&mut arena, &mem, Setup::default());
    rig.header(LOW_GUEST, 4, 0);
    rig.link(&[(LOW_GUEST, 16, 0), (LOW_GUEST + 0x2000, 1, WRITE)]);
    rig.offer(0);
    rig.take_in(&mem);
    let sync = rig.next_op().unwrap();

    let (data, status) = (LOW_GUEST + 0x1000, LOW_GUEST + 0x2001);
    rig.header(LOW_GUEST + 16, 1, 0);
    let chain = [(LOW_GUEST + 16, 16, 0), (data, 512, 0), (status, 1, WRITE)];
    for (index, (at, len, flags)) in (8..).zip(chain) {
        let more = u16::from(index < 10);
        rig.desc(index, (at, len, flags | more, index + 1));
    }
    rig.offer(8);
    rig.take_in(&mem);
    rig.shard.handle_reply(&Reply { id: sync.id, result: -5, version: 0 });
    assert_eq!(rig.next_op(), None);
    rig.give_back(&mem);
    assert_eq!(rig.used(), [(0, 1), (8, 1)]);
    assert_eq!(rig.get(status, 1), [1]);
}
