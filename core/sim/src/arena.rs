//! A shard's memory on the heap.

use sluice_core::blk::Range;
use sluice_core::device::Device;
use sluice_core::image::Image;
use sluice_core::limits::{RANGES_MAX, SEGMENTS_MAX};
use sluice_core::memory::Segment;
use sluice_core::placement::OsdNum;
use sluice_core::request::{Part, Request};
use sluice_core::shard::{Queue, Storage};
use sluice_core::slots::Slot;

/// How much a shard can hold.
#[derive(Clone, Copy, Debug)]
pub struct Capacity {
    /// Images.
    pub images: usize,
    /// Devices.
    pub devices: usize,
    /// Queues of all devices together.
    pub queues: usize,
    /// Requests under way.
    pub requests: usize,
    /// Parts under way.
    pub parts: usize,
    /// Placement groups, over all pools.
    pub groups: usize,
}

/// The slices that a shard borrows, allocated once.
#[derive(Debug)]
pub struct Arena {
    images: Vec<Slot<Image, 1>>,
    devices: Vec<Slot<Device, 4>>,
    queues: Vec<Slot<Queue, 3>>,
    requests: Vec<Slot<Request, 1>>,
    segments: Vec<[Segment; SEGMENTS_MAX]>,
    ranges: Vec<[Range; RANGES_MAX]>,
    parts: Vec<Slot<Part, 1>>,
    primaries: Vec<Option<OsdNum>>,
}

impl Arena {
    /// Memory for this much.
    #[must_use]
    pub fn new(capacity: Capacity) -> Self {
        fn many<T>(count: usize, make: impl Fn() -> T) -> Vec<T> {
            (0..count).map(|_| make()).collect()
        }
        Self {
            images: many(capacity.images, || Slot::new(Image::VACANT)),
            devices: many(capacity.devices, || Slot::new(Device::vacant())),
            queues: many(capacity.queues, || Slot::new(Queue::EMPTY)),
            requests: many(capacity.requests, || Slot::new(Request::EMPTY)),
            segments: vec![[Segment::EMPTY; SEGMENTS_MAX]; capacity.requests],
            ranges: vec![[Range::EMPTY; RANGES_MAX]; capacity.requests],
            parts: many(capacity.parts, || Slot::new(Part::EMPTY)),
            primaries: vec![None; capacity.groups],
        }
    }

    /// Lends everything to one shard.
    pub fn storage(&mut self) -> Storage<'_> {
        Storage {
            images: &mut self.images,
            devices: &mut self.devices,
            queues: &mut self.queues,
            requests: &mut self.requests,
            segments: &mut self.segments,
            ranges: &mut self.ranges,
            parts: &mut self.parts,
            primaries: &mut self.primaries,
        }
    }
}
