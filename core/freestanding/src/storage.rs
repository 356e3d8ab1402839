//! Static memory for a shard, and the door to it.

use core::cell::UnsafeCell;

use sluice_core::blk::Range;
use sluice_core::device::Device;
use sluice_core::image::Image;
use sluice_core::limits::{RANGES_MAX, SEGMENTS_MAX};
use sluice_core::memory::Segment;
use sluice_core::request::{Part, Request};
use sluice_core::shard::{self, Queue};
use sluice_core::slots::Slot;

const REQUESTS: usize = 4;
const PARTS: usize = 4;

/// What a shard of one device works in.
pub(crate) struct Storage {
    images: [Slot<Image, 1>; 1],
    devices: [Slot<Device, 4>; 1],
    queues: [Slot<Queue, 3>; 1],
    requests: [Slot<Request, 1>; REQUESTS],
    segments: [[Segment; SEGMENTS_MAX]; REQUESTS],
    ranges: [[Range; RANGES_MAX]; REQUESTS],
    parts: [Slot<Part, 1>; PARTS],
}

impl Storage {
    /// All of it unused.
    pub(crate) const EMPTY: Self = Self {
        images: [const { Slot::new(Image::VACANT) }; 1],
        devices: [const { Slot::new(Device::vacant()) }; 1],
        queues: [const { Slot::new(Queue::EMPTY) }; 1],
        requests: [const { Slot::new(Request::EMPTY) }; REQUESTS],
        segments: [[Segment::EMPTY; SEGMENTS_MAX]; REQUESTS],
        ranges: [[Range::EMPTY; RANGES_MAX]; REQUESTS],
        parts: [const { Slot::new(Part::EMPTY) }; PARTS],
    };

    /// Lends all of it to a shard.
    pub(crate) fn lend(&mut self) -> shard::Storage<'_> {
        shard::Storage {
            images: &mut self.images,
            devices: &mut self.devices,
            queues: &mut self.queues,
            requests: &mut self.requests,
            segments: &mut self.segments,
            ranges: &mut self.ranges,
            parts: &mut self.parts,
            primaries: &mut [],
        }
    }
}

/// A static that C code guards: it calls one function of the library at a time.
pub(crate) struct Border<T>(UnsafeCell<T>);

// SAFETY: `get` is the only way in, and its caller promises to be alone.
unsafe impl<T> Sync for Border<T> {}

impl<T> Border<T> {
    pub(crate) const fn new(value: T) -> Self {
        Self(UnsafeCell::new(value))
    }

    /// The value.
    ///
    /// # Safety
    /// No other reference to it exists.
    #[expect(clippy::mut_from_ref, reason = "that is the promise")]
    pub(crate) unsafe fn get(&self) -> &mut T {
        // SAFETY: the pointer is good, and the caller promises that it is the only one in use.
        unsafe { &mut *self.0.get() }
    }
}
