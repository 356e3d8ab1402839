//! The whole belt with nothing beside it: one device, one driver, a store that ends every
//! operation at once. For measuring the core alone.

use std::hint::black_box;

use sluice_core::blk::BlkFeatures;
use sluice_core::device::{ControlEvent, ControlReply, DeviceConfig};
use sluice_core::image::{Backing, ImageConfig};
use sluice_core::inflight::region_bytes;
use sluice_core::memory::{Region, RegionId};
use sluice_core::op::Reply;
use sluice_core::shard::{Budget, Effect, Granted, Input, Shard};
use sluice_core::time::Instant;

use crate::arena::{Arena, Capacity};
use crate::driver::{Buffer, Driver, Layout, RequestSpec};
use crate::memory::FlatMemory;
use crate::negotiate::{ask, connect, features, start_queue};

const MEMORY_BYTES: u64 = 8 << 20;
const DATA: u64 = 4 << 20;
const INFLIGHT: RegionId = RegionId(1);
const SIZE: u16 = 256;

/// Memory for one belt: the guest's, and an inflight region that nobody has used.
#[must_use]
pub fn memory() -> FlatMemory {
    let guest = usize::try_from(MEMORY_BYTES).expect("small");
    let inflight = usize::try_from(region_bytes(1, SIZE, true)).expect("small");
    let mem = FlatMemory::new(&[guest, inflight]);
    mem.fill(INFLIGHT, 0, &vec![0; inflight]);
    mem
}

/// Room for one belt.
#[must_use]
pub fn arena() -> Arena {
    Arena::new(Capacity { images: 1, devices: 1, queues: 1, requests: 256, parts: 257, groups: 0 })
}

/// A device that runs, and its driver.
#[derive(Debug)]
pub struct Belt<'a> {
    mem: &'a FlatMemory,
    /// The core.
    pub shard: Shard<'a>,
    driver: Driver,
    added: u32,
}

impl<'a> Belt<'a> {
    /// A belt at a standstill, with the chains under way recorded or not, and a split or a packed
    /// ring.
    ///
    /// # Panics
    /// When the core refuses what every front end says.
    #[must_use]
    pub fn new(arena: &'a mut Arena, mem: &'a FlatMemory, inflight: bool, packed: bool) -> Self {
        let mut shard = Shard::new(arena.storage());
        let image = ImageConfig {
            backing: Backing::Store,
            capacity_sectors: 1 << 21,
            block_bytes: 512,
            read_only: false,
            discard: true,
            write_zeroes: true,
            poisoned: false,
            in_turn: false,
        };
        let image = shard.add_image(image).expect("room for one");
        let config = DeviceConfig { image, serial: [0; 20], queues: 1 };
        let device = shard.add_device(config).expect("room for one");
        let region = Region { id: RegionId(0), guest: 0, user: 0, size: MEMORY_BYTES };
        let new = if packed { Layout::packed } else { Layout::new };
        let layout = new(RegionId(0), 0, 0, SIZE, 0);
        let driver = Driver::new(mem, layout, true).expect("memory for the driver");
        let area = ControlEvent::SetInflight {
            region: INFLIGHT,
            offset: 0,
            len: region_bytes(1, SIZE, packed),
            queues: 1,
            size: SIZE,
        };
        let mut features = features(true);
        features.set(BlkFeatures::RING_PACKED, packed);
        let events = connect(features, &[region])
            .chain(inflight.then_some(area))
            .chain(start_queue(0, &layout, &region, layout.base()));
        for event in events {
            let reply = ask(&mut shard, mem, device, event);
            assert!(!matches!(reply, ControlReply::Refused(_)), "{reply:?}");
        }
        Self { mem, shard, driver, added: 0 }
    }

    /// Adds 4 KiB reads until `depth` are under way, and shows them to the device.
    ///
    /// # Panics
    /// When the ring is full.
    pub fn feed(&mut self, depth: u16) {
        while self.driver.in_flight() < depth {
            let sector = u64::from(self.added.wrapping_mul(2_654_435_761) >> 12);
            let buffer = Buffer { addr: DATA + u64::from(self.added % 256) * 4096, len: 4096 };
            self.driver.add(self.mem, &RequestSpec::read(sector, &[buffer])).expect("room");
            self.added = self.added.wrapping_add(1);
        }
        self.driver.expose(self.mem);
    }

    /// Takes back what has ended; says how many.
    ///
    /// # Panics
    /// When a request failed.
    pub fn reap(&mut self) -> u32 {
        let mut ended = 0;
        while let Some(completion) = self.driver.reap(self.mem).expect("a sound device") {
            assert_eq!((completion.status, completion.used_len), (0, 4097));
            ended += 1;
        }
        ended
    }

    /// One turn of the shard. Everything that is measured happens in here, and nothing else.
    #[inline(never)]
    pub fn measured_turn(&mut self) {
        self.shard.poll_queues(self.mem, Budget::of_turn(0));
        while let Some(op) = self.shard.poll_op() {
            let result = i64::try_from(op.len).unwrap_or(0);
            for piece in self.shard.pieces(op.id) {
                black_box(piece);
            }
            self.shard.handle_reply(&Reply { id: op.id, result, version: 0 });
        }
        self.shard.publish(self.mem);
        while let Some(queue) = self.shard.poll_notify() {
            black_box(queue);
        }
    }

    /// Grants the image when it is asked for.
    ///
    /// # Panics
    /// Never: a grant is not refused.
    pub fn grant(&mut self) {
        while let Some(Effect::Capture(image)) = self.shard.poll_effect() {
            let granted = Input::Capture(image, Granted::Yes);
            self.shard.handle(Instant(0), self.mem, granted).expect("no cluster update");
        }
    }
}
