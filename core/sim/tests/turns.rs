//! Whose turn it is, and in which order a turn's results become visible.

use std::cell::RefCell;

use sluice_core::device::DeviceConfig;
use sluice_core::image::{Backing, ImageConfig};
use sluice_core::limits::QUEUE_BATCH;
use sluice_core::memory::{OutOfRegion, Region, RegionId, SharedMemory};
use sluice_core::op::Reply;
use sluice_core::shard::{Budget, Granted, Idle, Input, Shard};
use sluice_core::time::Instant;
use sluice_core::virtqueue::layout::{USED_IDX, used_ring_bytes};
use sluice_sim::arena::{Arena, Capacity};
use sluice_sim::belt::{self, Belt};
use sluice_sim::driver::{Driver, Layout, RequestSpec};
use sluice_sim::memory::FlatMemory;
use sluice_sim::negotiate::{ask, connect, features, start_queue};
use sluice_sim::rig::{self, LOW_GUEST, RING, Rig, Setup};
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// What was done to memory, in program order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Done {
    Write(RegionId, u64),
    Publish(RegionId, u64),
    Read(RegionId, u64),
    Fence,
}

struct Logged<'a> {
    mem: &'a FlatMemory,
    log: RefCell<Vec<Done>>,
}

impl SharedMemory for Logged<'_> {
    fn read<T: FromBytes + IntoBytes>(&self, region: RegionId, at: u64) -> Result<T, OutOfRegion> {
        self.log.borrow_mut().push(Done::Read(region, at));
        self.mem.read(region, at)
    }

    fn write<T: IntoBytes + Immutable>(
        &self,
        region: RegionId,
        at: u64,
        value: &T,
    ) -> Result<(), OutOfRegion> {
        self.log.borrow_mut().push(Done::Write(region, at));
        self.mem.write(region, at, value)
    }

    fn load_acquire_u16(&self, region: RegionId, at: u64) -> Result<u16, OutOfRegion> {
        self.mem.load_acquire_u16(region, at)
    }

    fn store_release_u16(&self, region: RegionId, at: u64, value: u16) -> Result<(), OutOfRegion> {
        self.log.borrow_mut().push(Done::Publish(region, at));
        self.mem.store_release_u16(region, at, value)
    }

    fn set_bits(&self, region: RegionId, at: u64, bits: u8) -> Result<(), OutOfRegion> {
        self.mem.set_bits(region, at, bits)
    }

    fn full_fence(&self) {
        self.log.borrow_mut().push(Done::Fence);
        self.mem.full_fence();
    }
}

//= spec/virtqueue.md#VQ-11
//= spec/virtqueue.md#VQ-12
//= spec/blk.md#BLK-15
#[test]
fn i04_a_batch_is_whole_before_its_index_and_the_wish_is_read_behind_a_fence() {
    let (mut arena, mem) = (rig::arena(8), rig::memory());
    let mut rig = Rig::new(&mut arena, &mem, Setup::default());
    // Five flushes in one batch, each with a header and a status byte of its own.
    for head in 0..5_u16 {
        let at = LOW_GUEST + 0x100 * u64::from(head);
        rig.header(at, 4, 0);
        rig.desc(2 * head, (at, 16, 1, 2 * head + 1));
        rig.desc(2 * head + 1, (at + 16, 1, 2, 0));
        rig.offer(2 * head);
    }
    rig.take_in(&mem);
    rig.work();
    let logged = Logged { mem: &mem, log: RefCell::default() };
    rig.give_back(&logged);
    assert_eq!(rig.used().len(), 5);

    let log = logged.log.into_inner();
    let index = Done::Publish(RING, rig.used_ring() + USED_IDX);
    let at = log.iter().position(|done| *done == index).expect("an index");
    let publishes = log.iter().filter(|done| matches!(done, Done::Publish(..))).count();
    assert_eq!(publishes, 1, "one store of the index a batch");
    let writes = |log: &[Done]| log.iter().filter(|d| matches!(d, Done::Write(..))).count();
    assert_eq!((writes(&log[..at]), writes(&log[at..])), (10, 0), "all of it before the index");
    let used = rig.used_ring()..rig.used_ring() + used_ring_bytes(rig.size());
    let entries = |d: &&Done| matches!(d, Done::Write(RING, at) if used.contains(at));
    assert_eq!(log.iter().filter(entries).count(), 5);
    assert_eq!(log[at + 1..], [Done::Fence, Done::Read(RING, rig.avail())]);
}

//= spec/limits.md#LIM-1
//= spec/limits.md#LIM-4
#[test]
fn i22_a_queue_that_is_always_full_leaves_the_others_their_turns() {
    let mem = FlatMemory::new(&[1 << 20]);
    let capacity =
        Capacity { images: 1, devices: 1, queues: 3, requests: 2048, parts: 2, groups: 0 };
    let mut arena = Arena::new(capacity);
    let mut shard = Shard::new(arena.storage());
    let image = ImageConfig {
        backing: Backing::Store,
        capacity_sectors: 8,
        block_bytes: 512,
        read_only: false,
        discard: false,
        write_zeroes: false,
        poisoned: false,
        in_turn: false,
    };
    let image = shard.add_image(image).unwrap();
    let config = DeviceConfig { image, serial: [0; 20], queues: 3 };
    let device = shard.add_device(config).unwrap();
    let region = Region { id: RegionId(0), guest: 0, user: 0, size: 1 << 20 };
    for event in connect(features(true), &[region]) {
        ask(&mut shard, &mem, device, event);
    }
    let mut drivers = Vec::new();
    for index in 0..3 {
        let layout = Layout::new(RegionId(0), 0, 0x4_0000 * u64::from(index), 256, 0);
        drivers.push(Driver::new(&mem, layout, true).unwrap());
        for event in start_queue(index, &layout, &region, 0) {
            ask(&mut shard, &mem, device, event);
        }
    }
    // The first queue has 128 chains, the others one each, and the budget is a batch.
    for (driver, chains) in drivers.iter_mut().zip([128, 1, 1]) {
        for _ in 0..chains {
            driver.add(&mem, &RequestSpec::flush()).unwrap();
        }
        driver.expose(&mem);
    }
    let batch = u32::from(QUEUE_BATCH);
    let budget = Budget { chains: batch, cost: u32::MAX, samples: 0 };
    assert_eq!(shard.poll_queues(&mem, budget).chains, batch, "its batch, and no more");
    let all = shard.poll_queues(&mem, budget).chains;
    assert_eq!(all, batch, "the others first, then what is left of the budget for it");
    assert_eq!(shard.live(), 2 * batch);
    // What was taken comes back, and so says whose it was.
    let granted = Input::Capture(image, Granted::Yes);
    shard.handle(Instant(0), &mem, granted).unwrap();
    while let Some(op) = shard.poll_op() {
        shard.handle_reply(&Reply { id: op.id, result: 0, version: 0 });
    }
    shard.publish(&mem);
    let mut ended = |driver: &mut Driver| std::iter::from_fn(|| driver.reap(&mem).unwrap()).count();
    assert_eq!(drivers.iter_mut().map(&mut ended).collect::<Vec<_>>(), [62, 1, 1]);
}

/// Idle disks are looked at a few at a time, so that they cost what a few cost.
//= spec/limits.md#LIM-4
#[test]
fn an_armed_queue_is_found_by_sampling() {
    let (mut arena, mem) = (belt::arena(), belt::memory());
    let mut belt = Belt::new(&mut arena, &mem, false, false);
    belt.feed(1);
    belt.measured_turn();
    belt.grant();
    belt.measured_turn();
    assert_eq!(belt.reap(), 1);
    belt.shard.arm(&mem);
    belt.feed(1);
    let none = belt.shard.poll_queues(&mem, Budget { chains: 8, ..Budget::of_turn(0) });
    assert_eq!(none.chains, 0, "armed: it is not visited");
    let found = belt.shard.poll_queues(&mem, Budget { chains: 8, ..Budget::of_turn(1) });
    assert_eq!(found.chains, 1);
}

/// With every request under way a shard that looks again would find only what it cannot take.
//= spec/limits.md#LIM-3
#[test]
fn a_shard_without_free_requests_sleeps_until_one_ends() {
    let capacity =
        Capacity { images: 1, devices: 1, queues: 1, requests: 4, parts: 257, groups: 0 };
    let (mut arena, mem) = (Arena::new(capacity), belt::memory());
    let mut belt = Belt::new(&mut arena, &mem, false, false);
    belt.feed(6);
    let budget = Budget { chains: 8, ..Budget::of_turn(0) };
    assert_eq!(belt.shard.poll_queues(&mem, budget).chains, 4);
    assert_eq!(belt.shard.arm(&mem), Idle::Idle, "nothing can be taken");
    belt.grant();
    belt.measured_turn();
    assert_eq!(belt.reap(), 4);
    assert_eq!(belt.shard.arm(&mem), Idle::More, "two are left, and there is room");
    assert_eq!(belt.shard.poll_queues(&mem, budget).chains, 2);
    while belt.shard.poll_op().is_some() {}
    assert_eq!(belt.shard.arm(&mem), Idle::Idle);
}
