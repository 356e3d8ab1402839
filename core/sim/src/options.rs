//! What one seed's world is like: every run draws its own mixture of sizes and faults.

use sluice_core::image::{Backing, ImageConfig};
use sluice_core::placement::{ClusterId, PoolConfig, PoolId};

use crate::arena::Capacity;
use crate::guest::Build;
use crate::prng::Prng;

/// How the shard's thread spends its time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pace {
    /// It sleeps when there is nothing to do, and hears kicks.
    Sleep,
    /// It never sleeps, hears no kicks, and looks at idle queues now and then.
    Spin,
    /// Now this, now that.
    Both,
}

/// The options of a run. Rates are in events per 1000 chances.
#[derive(Clone, Debug)]
pub struct Options {
    /// The images.
    pub images: Vec<ImageConfig>,
    /// The pool of those in the cluster.
    pub pool: PoolConfig,
    /// OSDs of the cluster.
    pub osds: u64,
    /// The guests, hostile ones with open memory, and the image of each.
    pub guests: Vec<(Build, u32)>,
    /// The shard's capacity.
    pub capacity: Capacity,
    /// Its pace.
    pub pace: Pace,
    /// Chains in one poll.
    pub budget: u32,
    /// What the operations of one turn may cost.
    pub cost: u32,
    /// How long stores of the device stay invisible.
    pub lazy: u64,
    /// Guests that run between two steps of one turn.
    pub interleave: u64,
    /// Nanoseconds that a step of an operation takes at most.
    pub latency_max: u64,
    /// Operations that fail.
    pub errors: u64,
    /// Steps of the world at which a placement group moves.
    pub moves: u64,
    /// Weights of what front ends do: remap, pause, reset, disable, renew a call descriptor,
    /// vanish, choose another cache.
    pub control: [u64; 7],
    /// Nanoseconds between two things that a front end does.
    pub control_pause: u64,
    /// Captures that are refused at first.
    pub refusals: u64,
    /// Nanoseconds until a capture is granted, at most.
    pub capture_max: u64,
    /// Replies that come twice.
    pub echoes: u64,
    /// Nanoseconds of the first phase.
    pub phase: u64,
    /// Whether queues are tracked in inflight regions.
    pub inflight: bool,
    /// Whether a stop may leave requests in them.
    pub leaves: bool,
    /// How often the daemon is killed.
    pub kills: u64,
}

impl Options {
    /// The options that belong to a seed.
    #[must_use]
    pub fn draw(prng: &mut Prng) -> Self {
        // Most faults are absent from most runs, and overwhelming in some.
        let mut rate = |absent: u64, max: u64| {
            if prng.chance(absent) { 0 } else { 1 + prng.skewed(max) }
        };
        let (errors, moves, refusals) = (rate(700, 200), rate(600, 100), rate(800, 900));
        let (echoes, interleave) = (rate(800, 300), rate(200, 900));
        let (lazy, hostile) = (rate(200, 980), rate(700, 2));
        let control = [
            rate(500, 64),
            rate(500, 64),
            rate(700, 32),
            rate(700, 64),
            rate(700, 64),
            rate(700, 32),
            rate(700, 64),
        ];
        let kills = if prng.chance(500) { 0 } else { 1 + prng.skewed(9) };
        let legal = 1 + prng.skewed(3);
        let block_bytes = 4096 << prng.skewed(3);
        let pool = PoolConfig {
            id: PoolId(1),
            block_bytes,
            data_chunks: u32::try_from(prng.pick(&[1, 1, 2, 3])).unwrap_or(1),
            pg_stripe_bytes: u64::from(block_bytes) * prng.below(4),
            pg_count: u32::try_from(prng.between(1, 8)).unwrap_or(1),
        };
        let mut images = Vec::new();
        let mut guests = Vec::new();
        let mut queues = 0;
        for id in 0..legal + hostile {
            let open = id >= legal;
            let shares = !open && id > 0 && prng.chance(150);
            if !shares {
                let inode = 1 << 48 | (images.len() as u64 + 1);
                images.push(draw_image(prng, inode));
            }
            let packed = prng.chance(if kills == 0 { 700 } else { 400 });
            let size_bits = prng.between(u64::from(!open) * 2, 6);
            let build = Build {
                id: u32::try_from(id).unwrap_or(0),
                queues: u16::try_from(1 + prng.skewed(3)).unwrap_or(1),
                size: if packed {
                    u16::try_from(prng.between(1 << size_bits, 2 << size_bits)).unwrap_or(1)
                } else {
                    1 << size_bits
                },
                packed,
                table_entries: u16::try_from(prng.pick(&[0, 8, 40])).unwrap_or(0),
                more_chunks: prng.below(4),
                open,
            };
            queues += usize::from(build.queues);
            guests.push((build, u32::try_from(images.len() - 1).unwrap_or(0)));
        }
        let few = |prng: &mut Prng, low, max| usize::try_from(low + prng.skewed(max)).unwrap_or(9);
        let capacity = Capacity {
            images: images.len(),
            devices: guests.len(),
            queues,
            requests: few(prng, 1, 63),
            parts: few(prng, 2, 126),
            groups: 16 * pool.pg_count as usize,
        };
        Self {
            images,
            pool,
            osds: prng.between(1, 5),
            guests,
            capacity,
            pace: prng.pick(&[Pace::Sleep, Pace::Sleep, Pace::Spin, Pace::Both]),
            budget: u32::try_from(1 + prng.skewed(127)).unwrap_or(1),
            cost: 1 << prng.between(12, 20),
            lazy,
            interleave,
            latency_max: 1000 << prng.below(9),
            errors,
            moves,
            control,
            control_pause: 20_000 << prng.below(6),
            refusals,
            capture_max: 1000 << prng.below(12),
            echoes,
            phase: 300_000 << prng.below(4),
            inflight: prng.chance(if kills > 0 { 850 } else { 300 }),
            kills,
            leaves: prng.chance(300),
        }
    }
}

fn draw_image(prng: &mut Prng, inode: u64) -> ImageConfig {
    let block_bytes = prng.pick(&[512, 512, 512, 4096]);
    let blocks = 64 + prng.skewed(1 << 12);
    let backing = if prng.chance(500) {
        Backing::Store
    } else {
        Backing::Cluster { cluster: ClusterId(0), pool: PoolId(1), inode }
    };
    ImageConfig {
        backing,
        capacity_sectors: blocks * (u64::from(block_bytes) / 512),
        block_bytes,
        read_only: prng.chance(60),
        discard: prng.chance(700),
        write_zeroes: prng.chance(700),
        poisoned: false,
        in_turn: prng.chance(500),
    }
}
