//! Requests through a whole shard, with a store that does nothing and a guest that costs nothing
//! inside the measured part: instructions per request (under callgrind) and nanoseconds.
//!
//! `hot_path [--inflight] [--depth N] [--requests N]`

use std::hint::black_box;
use std::time::Instant;

use sluice_core::blk::BlkFeatures;
use sluice_core::device::{ControlEvent, ControlReply, DeviceConfig};
use sluice_core::image::{Backing, ImageConfig};
use sluice_core::inflight::queue_bytes;
use sluice_core::memory::{Region, RegionId, SharedMemory};
use sluice_core::op::Reply;
use sluice_core::shard::{Budget, Effect, Granted, Input, Shard};
use sluice_core::time::Instant as Now;
use sluice_sim::arena::{Arena, Capacity};
use sluice_sim::driver::{Buffer, Driver, Layout, RequestSpec};
use sluice_sim::memory::FlatMemory;
use sluice_sim::negotiate::{ask, connect, features, start_queue};

const MEMORY: usize = 8 << 20;
const DATA: u64 = 4 << 20;
const SIZE: u16 = 256;

/// One turn of a shard with a store that ends everything at once. Everything that is measured
/// happens in here, and nothing else does.
#[inline(never)]
fn measured_turn(shard: &mut Shard<'_>, mem: &FlatMemory) {
    shard.poll_queues(mem, Budget { chains: 128, samples: 0 });
    while let Some(op) = shard.poll_op() {
        let result = i64::try_from(op.len).unwrap_or(0);
        for piece in shard.pieces(op.id) {
            black_box(piece);
        }
        shard.handle_reply(&Reply { id: op.id, result, version: 0 });
    }
    shard.publish(mem);
    while let Some(queue) = shard.poll_notify() {
        black_box(queue);
    }
}

fn option(name: &str, default: u32) -> u32 {
    let mut args = std::env::args();
    args.find(|arg| arg == name).map_or(default, |_| args.next().unwrap().parse().unwrap())
}

fn main() {
    // `cargo bench` and `cargo test --benches` pass flags of their own; a few requests do then.
    let inflight = std::env::args().any(|arg| arg == "--inflight");
    let depth = option("--depth", 32);
    let requests = option("--requests", 100_000);

    let mem = FlatMemory::new(&[MEMORY, 1 << 20]);
    let mut arena = Arena::new(Capacity {
        images: 1,
        devices: 1,
        queues: 1,
        requests: 256,
        parts: 257,
        groups: 0,
    });
    let mut shard = Shard::new(arena.storage());
    let image = ImageConfig {
        backing: Backing::Store,
        capacity_sectors: 1 << 21,
        block_bytes: 512,
        read_only: false,
        discard: true,
        write_zeroes: true,
        poisoned: false,
    };
    let image = shard.add_image(image).unwrap();
    let device = shard.add_device(DeviceConfig { image, serial: [0; 20], queues: 1 }).unwrap();
    let region = Region { id: RegionId(0), guest: 0, user: 0, size: MEMORY as u64 };
    let layout = Layout::new(RegionId(0), 0, 0, SIZE, 0);
    let mut driver = Driver::new(&mem, layout, true).unwrap();
    let area = ControlEvent::SetInflight { region: RegionId(1), offset: 0, queues: 1, size: SIZE };
    if inflight {
        for offset in 0..queue_bytes(SIZE) {
            mem.write(RegionId(1), offset, &0_u8).unwrap();
        }
    }
    let offered: BlkFeatures = features(true);
    let events = connect(offered, &[region])
        .chain(inflight.then_some(area))
        .chain(start_queue(0, &layout, &region, 0));
    for event in events {
        let reply = ask(&mut shard, &mem, device, event);
        assert!(!matches!(reply, ControlReply::Refused(_)), "{reply:?}");
    }

    let (mut added, mut ended, mut nanos) = (0, 0, 0);
    while ended < requests {
        while added < ended + depth {
            let sector = u64::from(added.wrapping_mul(2_654_435_761) >> 12);
            let buffer = Buffer { addr: DATA + u64::from(added % 256) * 4096, len: 4096 };
            driver.add(&mem, &RequestSpec::read(sector, &[buffer])).unwrap();
            added += 1;
        }
        driver.expose(&mem);
        let start = Instant::now();
        measured_turn(&mut shard, &mem);
        nanos += start.elapsed().as_nanos();
        while let Some(Effect::Capture(image)) = shard.poll_effect() {
            shard.handle(Now(0), &mem, Input::Capture(image, Granted::Yes)).unwrap();
        }
        while let Some(completion) = driver.reap(&mem).unwrap() {
            assert_eq!((completion.status, completion.used_len), (0, 4097));
            ended += 1;
        }
    }
    let per_request = nanos / u128::from(requests);
    println!("{requests} requests at depth {depth}, inflight {inflight}: {per_request} ns each");
}
