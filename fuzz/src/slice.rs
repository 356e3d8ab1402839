//! Requests to a cluster image: cut at objects, sent to primaries that come and go.

use std::collections::BTreeSet;

use sluice_core::image::Backing;
use sluice_core::op::{Op, OpKind, Reply, Target};
use sluice_core::placement::{ClusterId, Epoch, OsdNum, PgNum, PoolConfig, PoolId, Update};
use sluice_core::shard::Input;
use sluice_core::time::Instant;
use sluice_sim::rig::{self, HIGH_GUEST, LOW_GUEST, Rig, Setup};

use crate::bytes::Bytes;

const CLUSTER: ClusterId = ClusterId(3);
const POOL: PoolId = PoolId(5);
const GROUPS: u32 = 4;

/// A pool of any shape and a few requests to it.
pub fn slice(data: &[u8]) {
    let bytes = &mut Bytes::new(data);
    let pool = PoolConfig {
        id: POOL,
        block_bytes: 4096 << bytes.below(6),
        data_chunks: 1 + u32::from(bytes.below(5)),
        pg_stripe_bytes: u64::from(bytes.u32()),
        pg_count: 1 + u32::from(bytes.below(4)),
    };
    let mut setup = Setup::default();
    setup.image.backing = Backing::Cluster { cluster: CLUSTER, pool: POOL, inode: 9 };
    setup.image.capacity_sectors = 1 << 20;
    setup.regions[1].size = 1 << 30;
    setup.regions[2].guest = 1 << 40;
    let (mut arena, mem) = (rig::arena(4), rig::memory());
    let mut rig = Rig::new(&mut arena, &mem, setup);
    update(&mut rig, Update::Pool(pool));
    let mut primaries = [None; GROUPS as usize];
    for _ in 0..8 {
        if bytes.is_empty() {
            break;
        }
        request(bytes, &mut rig, &pool, &mut primaries);
    }
}

/// One request from its chain to its end, with changes of the map in between.
fn request(
    bytes: &mut Bytes<'_>,
    rig: &mut Rig<'_>,
    pool: &PoolConfig,
    primaries: &mut [Option<OsdNum>; GROUPS as usize],
) {
    let kind = bytes.pick(&[0, 1, 4, 11, 13]);
    let sector = u64::from(bytes.u32()) % (1 << 19);
    let sectors = 1 + u32::from(bytes.u16()) % 4096;
    rig.header(LOW_GUEST, kind, sector);
    rig.put(LOW_GUEST + 16, &sector.to_le_bytes());
    rig.put(LOW_GUEST + 24, &u64::from(sectors).to_le_bytes());
    let total = sectors * 512;
    let first = u32::from(bytes.u16()) % total;
    let data = |flags| [(HIGH_GUEST, first, flags), (HIGH_GUEST, total - first, flags)];
    let [one, two] = match kind {
        0 => data(2),
        1 => data(0),
        _ => [(LOW_GUEST + 16, 9, 0), (LOW_GUEST + 25, 7, 0)],
    };
    rig.link(&[(LOW_GUEST, 16, 0), one, two, (LOW_GUEST + 0x100, 1, 2)]);
    rig.offer(0);
    let (mut next, mut failed, mut synced) = (sector * 512, false, BTreeSet::new());
    let mut pending: Vec<Op> = Vec::new();
    let mut quiet = 0;
    rig.take_in(rig.mem);
    while rig.shard.live() > 0 {
        // Each turn begins only so much.
        rig.take_in(rig.mem);
        for op in rig.ops() {
            check(&op, pool, primaries);
            if op.kind == OpKind::Sync {
                assert!(synced.insert(op.target.osd()), "one sync a holder");
            } else {
                assert_eq!(op.offset, next, "in order, without a gap");
                next += op.len;
            }
            pending.push(op);
        }
        // When the input has run out, everybody serves and everything ends well.
        let over = bytes.is_empty() || quiet > 64;
        if over || bytes.below(4) == 0 {
            for pg in 1..=pool.pg_count {
                let osd = if over {
                    Some(OsdNum(pg))
                } else {
                    bytes.pick(&[None, Some(1), Some(2)]).map(OsdNum)
                };
                let place = &mut primaries[pg as usize - 1];
                if !over || place.is_none() {
                    *place = osd;
                    update(rig, Update::Primary { pool: POOL, pg: PgNum(pg), osd });
                    // Holders that were asked before the change may be asked again.
                    synced.clear();
                }
            }
        }
        quiet += 1;
        if pending.is_empty() {
            rig.give_back(rig.mem);
            continue;
        }
        let op = pending.swap_remove(usize::from(bytes.u8()) % pending.len());
        // Not a sync: that would poison the image, and nothing could be learnt from the rest.
        if op.kind != OpKind::Sync && bytes.below(32) == 31 {
            failed = true;
            rig.shard.handle_reply(&Reply { id: op.id, result: -5, version: 0 });
        } else {
            rig.reply_ok(&op);
        }
        rig.give_back(rig.mem);
    }
    let moved = if kind == 4 { 0 } else { u64::from(total) };
    assert!(failed || next == sector * 512 + moved, "all of it");
    let status = rig.get(LOW_GUEST + 0x100, 1)[0];
    assert_eq!(status != 0, failed);
    let used = if kind == 0 && !failed { total + 1 } else { 1 };
    assert_eq!(rig.used(), [(0, used)]);
}

/// Where it goes and how far it reaches, by the words of the documentation.
fn check(op: &Op, pool: &PoolConfig, primaries: &[Option<OsdNum>; GROUPS as usize]) {
    assert_eq!(op.inode, 9);
    if op.kind == OpKind::Sync {
        assert!(primaries.contains(&Some(op.target.osd())));
        return;
    }
    let object = u64::from(pool.block_bytes) * u64::from(pool.data_chunks);
    let start = op.offset - op.offset % object;
    assert!(op.offset + op.len <= start + object, "inside one object");
    let stripe = start / pool.pg_stripe_bytes.max(object);
    let group = usize::try_from(stripe % u64::from(pool.pg_count)).expect("small");
    assert_eq!(Some(op.target.osd()), primaries[group], "its object's primary");
}

trait ToOsd {
    fn osd(&self) -> OsdNum;
}

impl ToOsd for Target {
    fn osd(&self) -> OsdNum {
        match *self {
            Self::Osd(CLUSTER, osd) => osd,
            _ => panic!("an OSD of the cluster"),
        }
    }
}

fn update(rig: &mut Rig<'_>, update: Update) {
    let input = Input::Cluster(CLUSTER, Epoch(1), update);
    rig.shard.handle(Instant(0), rig.mem, input).expect("a sound update");
}
