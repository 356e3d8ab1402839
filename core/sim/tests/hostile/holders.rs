//! Flushes while the cluster's map changes: nobody who may hold a write is left out.

use std::collections::BTreeSet;

use sluice_core::image::Backing;
use sluice_core::op::{Op, Target};
use sluice_core::placement::{ClusterId, Epoch, OsdNum, PgNum, PoolConfig, PoolId, Update};
use sluice_core::shard::Input;
use sluice_core::time::Instant;
use sluice_sim::rig::{Rig, Setup};

use super::{FLUSH, HEADER, OK, R, STATUS, W, rig};

const CLUSTER: ClusterId = ClusterId(1);
const POOL: PoolConfig = PoolConfig {
    id: PoolId(1),
    block_bytes: 4096,
    data_chunks: 1,
    pg_stripe_bytes: 0,
    pg_count: 3,
};

fn setup() -> Setup {
    let mut setup = Setup::default();
    setup.image.backing = Backing::Cluster { cluster: CLUSTER, pool: POOL.id, inode: 1 };
    setup
}

fn update(rig: &mut Rig<'_>, update: Update) {
    let input = Input::Cluster(CLUSTER, Epoch(1), update);
    rig.shard.handle(Instant(0), rig.mem, input).unwrap();
}

fn primary(rig: &mut Rig<'_>, pg: u32, osd: Option<u32>) {
    update(rig, Update::Primary { pool: POOL.id, pg: PgNum(pg), osd: osd.map(OsdNum) });
}

fn flush(rig: &mut Rig<'_>) {
    rig.header(HEADER, FLUSH, 0);
    rig.link(&[(HEADER, 16, R), (STATUS, 1, W)]);
    rig.offer(0);
    rig.take_in(rig.mem);
}

/// Who is asked now; all of them answer.
fn asked(rig: &mut Rig<'_>) -> BTreeSet<u32> {
    let ops = rig.ops();
    ops.iter().for_each(|op| rig.reply_ok(op));
    rig.give_back(rig.mem);
    let osd = |op: &Op| match op.target {
        Target::Osd(_, osd) => osd.0,
        Target::Store(_) => panic!("an image in a cluster"),
    };
    ops.iter().map(osd).collect()
}

//= spec/blk.md#BLK-17
#[test]
fn a_flush_before_the_map_is_there_asks_everybody_when_it_comes() {
    rig!(rig, setup());
    flush(&mut rig);
    assert_eq!(asked(&mut rig), BTreeSet::new());
    update(&mut rig, Update::Pool(POOL));
    for pg in 1..=3 {
        assert_eq!(rig.used(), []);
        primary(&mut rig, pg, Some(10 + pg));
    }
    assert_eq!(asked(&mut rig), BTreeSet::from([11, 12, 13]));
    assert_eq!((rig.used(), rig.get(STATUS, 1)), (vec![(0, 1)], vec![OK]));
}

//= spec/blk.md#BLK-17
#[test]
fn a_group_that_moves_under_a_flush_hides_nobody() {
    rig!(rig, setup());
    update(&mut rig, Update::Pool(POOL));
    primary(&mut rig, 1, Some(11));
    primary(&mut rig, 3, Some(13));
    flush(&mut rig);
    assert_eq!(asked(&mut rig), BTreeSet::from([11]), "nobody serves the second group");
    // The first group goes where the second one turns up.
    primary(&mut rig, 1, Some(12));
    primary(&mut rig, 2, Some(12));
    assert_eq!(asked(&mut rig), BTreeSet::from([12, 13]));
    assert_eq!(rig.used(), [(0, 1)]);
}

//= spec/blk.md#BLK-17
#[test]
fn a_flush_does_not_look_for_groups_that_are_gone() {
    rig!(rig, setup());
    update(&mut rig, Update::Pool(POOL));
    primary(&mut rig, 1, Some(11));
    primary(&mut rig, 2, Some(12));
    flush(&mut rig);
    assert_eq!(asked(&mut rig), BTreeSet::from([11, 12]));
    update(&mut rig, Update::Pool(PoolConfig { pg_count: 2, ..POOL }));
    primary(&mut rig, 1, Some(11));
    primary(&mut rig, 2, Some(11));
    assert_eq!(asked(&mut rig), BTreeSet::from([11]), "one sync for both");
    assert_eq!(rig.used(), [(0, 1)]);
}
