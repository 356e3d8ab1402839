//! The engine: rings in, operations out; replies in, used rings out.
//!
//! A shard is driven. Everything enters by a `handle_*` or `poll_queues` call and everything
//! leaves by a `poll_*` call, all of them on one thread, none of them blocking. One turn of the
//! loop that drives it:
//!
//! 1. [`handle`](Shard::handle) what the control side sent;
//! 2. [`poll_queues`](Shard::poll_queues), which begins a turn of one or more devices;
//! 3. [`poll_op`](Shard::poll_op) until it says `None`, handing each to whoever carries it out:
//!    what this turn does not have room for is handed out in a later one;
//! 4. [`handle_reply`](Shard::handle_reply) for what has ended;
//! 5. [`publish`](Shard::publish) once, then [`poll_notify`](Shard::poll_notify) until `None`;
//! 6. [`poll_effect`](Shard::poll_effect) until `None`;
//! 7. before sleeping, [`arm`](Shard::arm): it says whether work came in the meantime.
//!
//! A panic out of here is a bug of the core or of its driver; nothing that a guest, a front end
//! or a store does may cause one.

mod control;
mod dirty;
mod intake;
mod share;
mod staged;
mod work;

pub use intake::{Budget, Idle, Work};
pub(crate) use share::Share;

use crate::blk::Range;
use crate::device::{ControlReply, Device, DeviceConfig, DeviceId, QueueId, RingAddresses};
use crate::image::{Capture, CaptureNews, Image, ImageConfig, ImageId};
use crate::inflight::Inflight;
use crate::limits::{PARTS_RESERVED, RANGES_MAX, SEGMENTS_MAX};
use crate::memory::{RegionId, RegionSet, Segment, SharedMemory};
use crate::placement::{ClusterId, Epoch, MapError, OsdNum, PgMap, Update};
use crate::planted::{Fault, planted};
use crate::request::{Part, Request};
use crate::slots::{Fifo, Slot, Slots};
use crate::time::Instant;
use crate::trace::{Counters, Trace, TraceEvent};
use crate::virtqueue::{QueueFault, Ring};

/// The memory a shard works in, lent by the shell for the shard's life. Lengths are capacities.
#[derive(Debug)]
pub struct Storage<'s> {
    /// Images.
    pub images: &'s mut [Slot<Image, 1>],
    /// Devices.
    pub devices: &'s mut [Slot<Device, 4>],
    /// Queues of all devices together.
    pub queues: &'s mut [Slot<Queue, 3>],
    /// Requests under way.
    pub requests: &'s mut [Slot<Request, 1>],
    /// Segments of each request: as many as there are requests.
    pub segments: &'s mut [[Segment; SEGMENTS_MAX]],
    /// Ranges of each request: as many as there are requests.
    pub ranges: &'s mut [[Range; RANGES_MAX]],
    /// Parts under way.
    pub parts: &'s mut [Slot<Part, 1>],
    /// Primaries of placement groups; see [`PgMap::new`].
    pub primaries: &'s mut [Option<OsdNum>],
}

/// What the control side tells a shard.
#[derive(Clone, Debug)]
#[expect(clippy::large_enum_variant, reason = "control input is rare, and there is no box")]
pub enum Input {
    /// A message of a front end.
    Control(DeviceId, crate::device::ControlEvent),
    /// A device's front end is gone.
    FrontEndGone(DeviceId),
    /// The shell may do I/O on an image, or must not any more.
    Capture(ImageId, Granted),
    /// A change in a cluster's map.
    Cluster(ClusterId, Epoch, Update),
    /// An image has another size now, in sectors.
    Resized(ImageId, u64),
    /// A mapping turned out to have no memory behind it.
    MemoryLost(RegionId),
    /// Nothing more is taken from any ring; what is under way runs out.
    Shutdown,
}

/// The end of asking for a capture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Granted {
    /// I/O is allowed.
    Yes,
    /// Not now; requests go on waiting until it is granted after all.
    No,
}

/// What a shard wants from the shell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// An answer for the front end.
    Reply(DeviceId, ControlReply),
    /// A mapping that is no longer used.
    Unmap(RegionId),
    /// Ask for an image, then say [`Input::Capture`].
    Capture(ImageId),
    /// The image's last front end is gone: give it up.
    Release(ImageId),
    /// A queue is no longer served; its error descriptor is to be signalled.
    QueueBroken(QueueId, QueueFault),
    /// The front end has to hear that the configuration space has changed.
    ConfigChanged(DeviceId),
    /// The front end cannot be served any more: close the connection.
    Evict(DeviceId),
    /// Nothing of the last front end is left; the next may come.
    Left(DeviceId),
    /// A sync of this image failed: that has to outlive the daemon.
    Poisoned(ImageId),
}

/// Which lists of queues there are, by link.
const TURN: usize = 0;
const PUBLISH: usize = 1;
const NOTIFY: usize = 2;

/// Which lists of devices there are, by link.
const NEWS: usize = 0;
const ROUND: usize = 1;
const ARMED: usize = 2;
const SERVING: usize = 3;

/// How a queue comes by its turns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Turn {
    /// Not at all.
    None,
    /// Visited at each poll.
    Active,
    /// Armed, and looked at now and then.
    Armed,
}

/// A queue of the pool.
#[derive(Debug)]
pub struct Queue {
    device: u32,
    index: u16,
    size: u16,
    addresses: Option<RingAddresses>,
    /// There while the queue runs, drains or is broken.
    ring: Option<Ring>,
    inflight: Option<Inflight>,
    broken: Option<QueueFault>,
    /// Whether the shell has been told that it is broken.
    reported: bool,
    /// Whether it is being stopped and leaves what has not begun.
    leaving: bool,
    /// Whether a chain is taken only when the last one has been given back: there is no record, so
    /// the order of the ring has to say what is done.
    in_turn: bool,
    turn: Turn,
    /// Visits without work in a row.
    empty: u16,
    /// Requests taken and not given back.
    live: u32,
    /// The place of the request that was taken last.
    last: u32,
    /// Requests to be given back.
    done: Fifo<0>,
    publishing: bool,
    notifying: bool,
}

impl Queue {
    /// A place for a queue.
    pub const EMPTY: Self = Self {
        device: 0,
        index: 0,
        size: 0,
        addresses: None,
        ring: None,
        inflight: None,
        broken: None,
        reported: false,
        leaving: false,
        in_turn: false,
        turn: Turn::None,
        empty: 0,
        live: 0,
        last: 0,
        done: Fifo::EMPTY,
        publishing: false,
        notifying: false,
    };

    const fn id(&self) -> QueueId {
        QueueId { device: DeviceId(self.device), index: self.index }
    }
}

/// One shard: its own devices, queues, requests and map, shared with nobody.
#[derive(Debug)]
pub struct Shard<'s> {
    images: Slots<'s, Image, 1>,
    devices: Slots<'s, Device, 4>,
    queues: Slots<'s, Queue, 3>,
    requests: Slots<'s, Request, 1>,
    segments: &'s mut [[Segment; SEGMENTS_MAX]],
    ranges: &'s mut [[Range; RANGES_MAX]],
    parts: Slots<'s, Part, 1>,
    map: PgMap<'s>,
    staged: staged::Staged,
    /// The turn that goes on.
    turn: share::Allowance,
    /// Devices with work, in the order of their turns; those with armed queues; and those that
    /// have this turn and may have something to hand out.
    round: Fifo<ROUND>,
    armed: Fifo<ARMED>,
    serving: Fifo<SERVING>,
    /// Queues with requests to give back, and queues whose drivers want to hear of it.
    publishing: Fifo<PUBLISH>,
    notifying: Fifo<NOTIFY>,
    /// Requests that wait for a primary.
    unplaced: Fifo<0>,
    /// Images and devices with something for the shell.
    image_news: Fifo<0>,
    device_news: Fifo<NEWS>,
    stopping: bool,
    counters: Counters,
    trace: Trace,
}

impl<'s> Shard<'s> {
    /// A shard without images and devices.
    ///
    /// # Panics
    /// When there are not as many segment and range arrays as requests, or no more parts than are
    /// kept for internal work.
    #[must_use]
    pub fn new(storage: Storage<'s>) -> Self {
        assert_eq!(storage.requests.len(), storage.segments.len(), "one array per request");
        assert_eq!(storage.requests.len(), storage.ranges.len(), "one array per request");
        assert!(storage.parts.len() > PARTS_RESERVED as usize, "parts for requests");
        Self {
            images: Slots::new(storage.images),
            devices: Slots::new(storage.devices),
            queues: Slots::new(storage.queues),
            requests: Slots::new(storage.requests),
            segments: storage.segments,
            ranges: storage.ranges,
            parts: Slots::new(storage.parts),
            map: PgMap::new(storage.primaries),
            staged: staged::Staged::EMPTY,
            turn: share::Allowance::NONE,
            round: Fifo::EMPTY,
            armed: Fifo::EMPTY,
            serving: Fifo::EMPTY,
            publishing: Fifo::EMPTY,
            notifying: Fifo::EMPTY,
            unplaced: Fifo::EMPTY,
            image_news: Fifo::EMPTY,
            device_news: Fifo::EMPTY,
            stopping: false,
            counters: Counters::default(),
            trace: Trace::new(),
        }
    }

    /// Brings an image in; `None` when there is no room.
    ///
    /// # Panics
    /// When the block size is not a power of two of at least 512.
    pub fn add_image(&mut self, config: ImageConfig) -> Option<ImageId> {
        assert!(config.block_bytes.is_power_of_two() && config.block_bytes >= 512);
        let index = self.images.acquire()?;
        self.images[index] = Image::new(config);
        Some(ImageId(index))
    }

    /// Takes out an image that no device shows; `false` when one does.
    pub fn remove_image(&mut self, id: ImageId) -> bool {
        let free = self.images[id.0].devices == 0 && !self.images[id.0].listed;
        if free {
            self.images.release(id.0);
        }
        free
    }

    /// Brings in a device that shows an image; `None` when there is no room.
    ///
    /// # Panics
    /// When the device has no queue or more than `limits::QUEUES_PER_DEVICE_MAX`.
    pub fn add_device(&mut self, config: DeviceConfig) -> Option<DeviceId> {
        assert!((1..=crate::limits::QUEUES_PER_DEVICE_MAX).contains(&config.queues));
        let index = self.devices.acquire()?;
        let image = &mut self.images[config.image.0];
        image.devices += 1;
        self.devices[index] = Device::new(config);
        Some(DeviceId(index))
    }

    /// Takes out a device that has no front end; `false` when it has one.
    pub fn remove_device(&mut self, id: DeviceId) -> bool {
        let device = &self.devices[id.0];
        let free = device.is_untouched() && !device.listed;
        if free {
            let image = device.config.image;
            self.images[image.0].devices -= 1;
            self.unlist_share(id.0);
            self.devices.release(id.0);
        }
        free
    }

    /// A device.
    #[must_use]
    pub fn device(&self, id: DeviceId) -> &Device {
        &self.devices[id.0]
    }

    /// An image.
    #[must_use]
    pub fn image(&self, id: ImageId) -> &Image {
        &self.images[id.0]
    }

    /// Requests taken from rings and not given back.
    #[must_use]
    pub const fn live(&self) -> u32 {
        self.requests.in_use()
    }

    /// Operations handed out and not replied to.
    #[must_use]
    pub const fn ops_live(&self) -> u32 {
        self.parts.in_use()
    }

    /// Sums since the shard began.
    #[must_use]
    pub const fn counters(&self) -> Counters {
        let mut counters = self.counters;
        counters.trace_lost = self.trace.lost();
        counters
    }

    /// The next event for the log.
    pub fn poll_trace(&mut self) -> Option<TraceEvent> {
        self.trace.pop()
    }

    /// Takes in what the control side sends.
    ///
    /// The answer to a control event has to be taken by [`poll_effect`](Self::poll_effect)
    /// before the same device gets its next event: there is room for one.
    ///
    /// # Errors
    /// [`MapError`] for a cluster update that is refused; everything else is answered by an
    /// effect.
    pub fn handle(
        &mut self,
        now: Instant,
        mem: &impl SharedMemory,
        input: Input,
    ) -> Result<(), MapError> {
        match input {
            Input::Control(device, event) => self.control(now, mem, device, &event),
            Input::FrontEndGone(device) => self.front_end_gone(device),
            Input::Capture(image, granted) => self.capture(image, granted),
            Input::Cluster(_, epoch, update) => {
                self.map.update(epoch, update)?;
                self.look_again();
            }
            Input::Resized(image, sectors) => self.resized(image, sectors),
            Input::MemoryLost(region) => self.memory_lost(region),
            Input::Shutdown => self.stopping = true,
        }
        Ok(())
    }

    //= spec/lifecycle.md#LIF-12
    fn capture(&mut self, id: ImageId, granted: Granted) {
        let image = &mut self.images[id.0];
        if granted == Granted::Yes {
            image.granted_late();
        }
        if granted == Granted::No || image.capture != Capture::Asked {
            return;
        }
        image.capture = Capture::Granted;
        let mut waiting = core::mem::replace(&mut image.waiting, Fifo::EMPTY);
        self.list_all(&mut waiting);
        self.trace.push(TraceEvent::CaptureGranted(id));
    }

    /// The next thing that the shell has to do. What is to be done with an image comes before
    /// what front ends hear: who is told that a queue has stopped may use the image elsewhere.
    pub fn poll_effect(&mut self) -> Option<Effect> {
        if let Some(effect) = self.image_effect() {
            return Some(effect);
        }
        while let Some(index) = self.device_news.first() {
            if let Some(effect) = self.device_effect(index) {
                return Some(effect);
            }
            self.device_news.pop(&mut self.devices);
            self.devices[index].listed = false;
        }
        None
    }

    fn image_effect(&mut self) -> Option<Effect> {
        while let Some(index) = self.image_news.first() {
            let image = &mut self.images[index];
            if core::mem::take(&mut image.newly_poisoned) {
                return Some(Effect::Poisoned(ImageId(index)));
            }
            match image.news.take() {
                Some(CaptureNews::Take) => return Some(Effect::Capture(ImageId(index))),
                Some(CaptureNews::GiveUp(_)) => return Some(Effect::Release(ImageId(index))),
                None => {}
            }
            self.image_news.pop(&mut self.images);
            self.images[index].listed = false;
        }
        None
    }

    fn device_effect(&mut self, index: u32) -> Option<Effect> {
        let id = DeviceId(index);
        let device = &mut self.devices[index];
        if let Some(reply) = device.reply.take().or_else(|| device.late_reply.take()) {
            return Some(Effect::Reply(id, reply));
        }
        let in_use = self.regions_in_use(index);
        let device = &mut self.devices[index];
        if let Some(region) = device.map.take_unused(in_use) {
            return Some(Effect::Unmap(region));
        }
        if core::mem::take(&mut device.config_changed) {
            return Some(Effect::ConfigChanged(id));
        }
        if core::mem::take(&mut device.evict) {
            return Some(Effect::Evict(id));
        }
        if core::mem::take(&mut device.left) {
            return Some(Effect::Left(id));
        }
        if device.broken == 0 {
            return None;
        }
        device.broken -= 1;
        let vrings = &device.vrings;
        let queues = &mut self.queues;
        vrings.iter().filter(|vring| vring.has_queue()).find_map(|vring| {
            let queue = &mut queues[vring.queue];
            let fault = queue.broken.filter(|_| !queue.reported)?;
            queue.reported = true;
            Some(Effect::QueueBroken(queue.id(), fault))
        })
    }

    /// The regions that requests of a device touch. Counted only while one is to be unmapped.
    //= spec/lifecycle.md#LIF-9
    fn regions_in_use(&self, device: u32) -> RegionSet {
        if !self.devices[device].map.has_retired() || planted(Fault::EarlyUnmap) {
            return RegionSet::EMPTY;
        }
        let requests = self.requests.used().map(|slot| &self.requests[slot]);
        let own = requests.filter(|request| request.device == device);
        own.fold(RegionSet::EMPTY, |all, request| all.union(request.regions))
    }

    fn list_device(&mut self, index: u32) {
        if !self.devices[index].listed {
            self.devices[index].listed = true;
            self.device_news.push(&mut self.devices, index);
        }
    }

    fn list_image(&mut self, index: u32) {
        if !self.images[index].listed {
            self.images[index].listed = true;
            self.image_news.push(&mut self.images, index);
        }
    }
}
