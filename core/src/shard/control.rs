//! Control messages that touch queues: starting, stopping, moving, and the end of a front end.

use super::{Queue, Shard, Turn, dirty};
use crate::blk::config::BlkFeatures;
use crate::device::{
    ControlEvent, ControlFault, ControlReply, Device, DeviceId, NO_QUEUE, Phase, ProtocolFeatures,
    QueueId, RegionList, RingAddresses, Step, find_rings,
};
use crate::image::{Capture, ImageId};
use crate::inflight::{self, InflightFault};
use crate::memory::{RegionId, SharedMemory};
use crate::planted::{Fault, planted};
use crate::request::Request;
use crate::slots::Fifo;
use crate::time::Instant;
use crate::trace::TraceEvent;
use crate::virtqueue::{PackedBase, PackedRing, QueueFault, Ring, Rings, SplitRing};

impl Shard<'_> {
    pub(super) fn control(
        &mut self,
        now: Instant,
        mem: &impl SharedMemory,
        id: DeviceId,
        event: &ControlEvent,
    ) {
        let device = &mut self.devices[id.0];
        let image = &self.images[device.config.image.0].config;
        let done = match device.control(image, event) {
            Ok(step) => self.step(now, mem, id.0, step, event),
            Err(fault) => Err(fault),
        };
        let reply = match done {
            Ok(reply) => reply,
            Err(fault) => {
                self.trace.push(TraceEvent::Refused(id, fault));
                ControlReply::Refused(fault)
            }
        };
        self.devices[id.0].reply = Some(reply);
        self.list_device(id.0);
    }

    fn step(
        &mut self,
        now: Instant,
        mem: &impl SharedMemory,
        device: u32,
        step: Step,
        event: &ControlEvent,
    ) -> Result<ControlReply, ControlFault> {
        match step {
            Step::Answer(reply) => return Ok(reply),
            Step::BeginAnew => self.devices[device].begin_anew(),
            Step::SetSize { index, size } => self.set_size(device, index, size)?,
            Step::SetBase { index, base } => {
                if self.running(device, index).is_some() {
                    let same = self.devices[device].base(index) == base;
                    return if same { Ok(ControlReply::Done) } else { Err(ControlFault::Running) };
                }
                let vring = &mut self.devices[device].vrings[usize::from(index)];
                vring.drained &= vring.base == Some(base);
                vring.base = Some(base);
            }
            Step::SetAddresses { index, addresses } => {
                self.set_addresses(device, index, addresses)?;
            }
            Step::Start { index } => self.start(mem, device, index)?,
            // What was signalled on the old descriptor may not have been heard.
            Step::Notify { index } => {
                if let Some(queue) = self.running(device, index) {
                    self.notify(queue);
                }
            }
            Step::Enable { index, enable } => self.enable(mem, device, index, enable),
            Step::Stop { index } => return Ok(self.stop(now, mem, device, index)),
            Step::ReplaceTable => {
                if let ControlEvent::SetMemTable(regions) = event {
                    self.replace_table(device, regions)?;
                }
            }
            Step::RemoveRegion { guest, user, size } => {
                self.remove_region(device, guest, user, size)?;
            }
            Step::SetLog(log) => {
                let device = &mut self.devices[device];
                device.map.adopt(log.region).map_err(ControlFault::Memory)?;
                if let Some(old) = device.log.replace(log) {
                    device.map.disown(old.region);
                }
            }
            Step::GetInflight { bytes } => {
                // Who asks for a region has none: an earlier one was another driver's.
                //= spec/inflight.md#INF-12
                let device = &mut self.devices[device];
                if device.running == 0
                    && let Some(old) = device.inflight.take()
                {
                    device.map.disown(old.region);
                }
                return Ok(ControlReply::Value(bytes));
            }
            Step::SetInflight(area) => {
                let device = &mut self.devices[device];
                device.map.adopt(area.region).map_err(ControlFault::Memory)?;
                if let Some(old) = device.inflight.replace(area) {
                    device.map.disown(old.region);
                }
                match device.writeback {
                    Some(writeback) => set_writeback(mem, device, writeback),
                    None => device.writeback = recall_writeback(mem, device),
                }
            }
            Step::SetWriteback(writeback) => {
                set_writeback(mem, &mut self.devices[device], writeback);
            }
        }
        Ok(ControlReply::Done)
    }

    /// A queue's place in the pool, if it has one.
    pub(super) fn find_queue(&self, id: QueueId) -> Option<u32> {
        let vring = self.devices[id.device.0].vrings.get(usize::from(id.index))?;
        vring.has_queue().then_some(vring.queue)
    }

    /// The same, if the queue has a ring.
    fn running(&self, device: u32, index: u16) -> Option<u32> {
        self.find_queue(QueueId { device: DeviceId(device), index })
            .filter(|&queue| self.queues[queue].ring.is_some())
    }

    //= spec/limits.md#LIM-2
    //= spec/lifecycle.md#LIF-6
    fn set_size(&mut self, device: u32, index: u16, size: u16) -> Result<(), ControlFault> {
        if let Some(queue) = self.running(device, index) {
            let same = self.queues[queue].size == size;
            return if same { Ok(()) } else { Err(ControlFault::Running) };
        }
        let found = self.find_queue(QueueId { device: DeviceId(device), index });
        let queue = match found {
            Some(queue) => queue,
            None => self.queues.acquire().ok_or(ControlFault::QueuePool)?,
        };
        // It must not stand in a list that it has forgotten.
        self.unpublish(queue);
        self.queues[queue] = Queue { device, index, size, ..Queue::EMPTY };
        self.devices[device].vrings[usize::from(index)].queue = queue;
        Ok(())
    }

    fn set_addresses(
        &mut self,
        device: u32,
        index: u16,
        addresses: RingAddresses,
    ) -> Result<(), ControlFault> {
        let id = QueueId { device: DeviceId(device), index };
        let queue = self.find_queue(id).ok_or(ControlFault::Order)?;
        if self.queues[queue].ring.is_some() && self.queues[queue].addresses != Some(addresses) {
            return Err(ControlFault::Running);
        }
        let owner = &self.devices[device];
        find_rings(owner.map.regions(), &addresses, self.queues[queue].size, owner.packed())?;
        self.queues[queue].addresses = Some(addresses);
        Ok(())
    }

    /// A kick descriptor has come: the ring runs from now on.
    //= spec/lifecycle.md#LIF-10
    fn start(
        &mut self,
        mem: &impl SharedMemory,
        device: u32,
        index: u16,
    ) -> Result<(), ControlFault> {
        let id = QueueId { device: DeviceId(device), index };
        let queue = self.find_queue(id).ok_or(ControlFault::Order)?;
        if self.queues[queue].ring.is_some() {
            return Ok(());
        }
        let addresses = self.queues[queue].addresses.ok_or(ControlFault::Order)?;
        let size = self.queues[queue].size;
        let owner = &self.devices[device];
        let rings = find_rings(owner.map.regions(), &addresses, size, owner.packed())?;
        let ring = open_ring(mem, owner, rings, size, owner.base(index))?;
        self.queues[queue].ring = Some(ring);
        self.devices[device].running += 1;
        self.trace.push(TraceEvent::QueueStarted(id));
        // It goes by what it read over an earlier connection.
        //= spec/lifecycle.md#LIF-16
        if !self.devices[device].config_read {
            self.devices[device].config_read = true;
            self.config_changed(device);
        }
        if let Err(fault) = self.recover(mem, queue) {
            self.break_queue(queue, fault);
        } else if self.devices[device].is_enabled(index) {
            self.activate(mem, queue);
        }
        //= spec/recovery.md#REC-8
        if !planted(Fault::RecoveryUnheard) {
            self.notify(queue);
        }
        Ok(())
    }

    /// Finds out what an earlier daemon left of a queue that starts.
    //= spec/recovery.md#REC-1
    //= spec/recovery.md#REC-9
    fn recover(&mut self, mem: &impl SharedMemory, queue: u32) -> Result<(), QueueFault> {
        let queue = &mut self.queues[queue];
        let device = &self.devices[queue.device];
        let Some(ring) = &mut queue.ring else { return Ok(()) };
        let (index, size, packed) = (queue.index, queue.size, device.packed());
        if let Some(area) = device.inflight
            && let Some(offset) = area.find(index, size, packed)
        {
            dirty::log_ring(mem, device, ring)?;
            queue.inflight = Some(ring.resume(mem, area.region, offset)?);
            return Ok(dirty::log_ring(mem, device, ring)?);
        }
        queue.in_turn = device.inflight.is_some();
        let drained = device.vrings[usize::from(queue.index)].drained;
        //= spec/packed.md#PVQ-13
        //= spec/recovery.md#REC-15
        let known = match ring {
            _ if !device.tracks() => !ring.holds_unknown(),
            Ring::Split(_) if queue.in_turn => !ring.is_held(),
            _ => !ring.holds_unknown() && (drained || ring.is_idle(mem)? || ring.is_new(mem)?),
        };
        if !known {
            return Err(InflightFault::Missing.into());
        }
        if device.tracks() {
            self.trace.push(TraceEvent::Unrecorded(queue.id()));
        }
        // Whatever an area that is too small says is of another life.
        if let Some(area) = device.inflight
            && let Some(offset) = area.find(index, 0, packed)
        {
            inflight::vacate(mem, area.region, offset)?;
        }
        Ok(())
    }

    /// A disabled ring is not fetched from; what was taken still ends.
    fn enable(&mut self, mem: &impl SharedMemory, device: u32, index: u16, enable: bool) {
        self.devices[device].vrings[usize::from(index)].enabled = enable;
        let Some(queue) = self.running(device, index) else { return };
        let state = &self.queues[queue];
        match (enable, state.turn) {
            (true, Turn::None) if state.broken.is_none() => self.activate(mem, queue),
            (false, _) => self.deactivate(queue),
            _ => {}
        }
    }

    /// Fetches nothing new, and answers when nothing is under way. What an earlier daemon took
    /// belongs to that, so it is taken again first.
    ///
    /// Where the front end has agreed to it, what has not begun is left in the inflight region
    /// instead. What was sent is waited for all the same: nobody can take it back, and it must
    /// touch neither the guest's memory nor the image behind the answer.
    //= spec/lifecycle.md#LIF-14
    //= spec/lifecycle.md#LIF-17
    //= spec/recovery.md#REC-10
    fn stop(
        &mut self,
        now: Instant,
        mem: &impl SharedMemory,
        device: u32,
        index: u16,
    ) -> ControlReply {
        let Some(queue) = self.running(device, index) else {
            return ControlReply::VringBase { index, base: self.devices[device].base(index) };
        };
        self.deactivate(queue);
        let leaves = ProtocolFeatures::GET_VRING_BASE_INFLIGHT;
        let leaves = self.devices[device].protocol_features().contains(leaves);
        let state = &mut self.queues[queue];
        state.leaving = leaves && state.inflight.is_some();
        let resubmitting = state.ring.as_mut().is_some_and(|ring| {
            ring.close();
            if state.leaving {
                ring.give_up();
            }
            ring.is_resubmitting()
        });
        if planted(Fault::EarlyStop) || (state.live == 0 && !resubmitting) {
            return self.stopped(mem, device, queue);
        }
        if resubmitting {
            self.activate(mem, queue);
        }
        if self.queues[queue].leaving {
            self.drop_unsent(queue, Request::has_unsent);
        }
        self.devices[device].draining = Some((index, now));
        ControlReply::Deferred
    }

    fn stopped(&mut self, mem: &impl SharedMemory, device: u32, queue: u32) -> ControlReply {
        // The last batch may have just been published: its notification is still to be polled.
        debug_assert!(!self.queues[queue].publishing, "nothing is under way");
        self.deactivate(queue);
        let state = &mut self.queues[queue];
        let index = state.index;
        let vring = &mut self.devices[device].vrings[usize::from(index)];
        if let Some(ring) = state.ring.take() {
            vring.base = Some(ring.base());
            vring.drained = !ring.is_held();
            self.devices[device].running -= 1;
        }
        let drained = self.devices[device].vrings[usize::from(index)].drained;
        let inflight = state.inflight.take();
        let inflight = inflight.filter(|_| drained || planted(Fault::LeftForgotten));
        // A region that is gone needs no closing.
        let _ = inflight.map(|inflight| inflight.close(mem));
        state.broken = None;
        state.leaving = false;
        state.addresses = None;
        let (id, base) = (state.id(), self.devices[device].base(index));
        self.trace.push(TraceEvent::QueueStopped(id));
        self.release_image(self.devices[device].config.image.0);
        ControlReply::VringBase { index, base }
    }

    /// The last request of a queue has been given back.
    pub(super) fn drained(&mut self, mem: &impl SharedMemory, device: u32, queue: u32) {
        if self.devices[device].phase == Phase::Leaving {
            self.leave_if_done(device);
        } else if let Some((index, _)) = self.devices[device].draining
            && index == self.queues[queue].index
            && !self.queues[queue].ring.as_ref().is_some_and(Ring::is_resubmitting)
        {
            self.devices[device].draining = None;
            self.devices[device].late_reply = Some(self.stopped(mem, device, queue));
            self.list_device(device);
        }
    }

    /// Puts another memory table in force; rings that run have to lie in it too.
    //= spec/lifecycle.md#LIF-8
    fn replace_table(&mut self, device: u32, regions: &RegionList) -> Result<(), ControlFault> {
        self.relocate(device, regions, false)?;
        self.devices[device].map.replace(regions).map_err(ControlFault::Memory)?;
        self.relocate(device, regions, true)
    }

    /// Finds the rings that run in other regions, and moves them there when `commit`.
    fn relocate(
        &mut self,
        device: u32,
        regions: &RegionList,
        commit: bool,
    ) -> Result<(), ControlFault> {
        let device = &self.devices[device];
        for vring in device.vrings.iter().filter(|vring| vring.has_queue()) {
            let queue = &mut self.queues[vring.queue];
            let (Some(ring), Some(addresses)) = (&mut queue.ring, &queue.addresses) else {
                continue;
            };
            let rings = find_rings(regions.iter(), addresses, queue.size, device.packed())?;
            if commit {
                ring.relocate(rings);
            }
        }
        Ok(())
    }

    fn remove_region(
        &mut self,
        device: u32,
        guest: u64,
        user: u64,
        size: u64,
    ) -> Result<(), ControlFault> {
        let same = |r: &&crate::memory::Region| (r.guest, r.user, r.size) == (guest, user, size);
        let found = self.devices[device].map.regions().find(same).map(|region| region.id);
        if found.is_some_and(|region| self.holds_ring(device, region)) {
            return Err(ControlFault::RegionInUse);
        }
        self.devices[device].map.remove(guest, user, size).map_err(ControlFault::Memory)?;
        Ok(())
    }

    fn holds_ring(&self, device: u32, region: RegionId) -> bool {
        let vrings = self.devices[device].vrings.iter().filter(|vring| vring.has_queue());
        let mut rings = vrings.filter_map(|vring| self.queues[vring.queue].ring.as_ref());
        rings.any(|ring| ring.rings().lie_in(region))
    }

    /// The connection is closed: from here on nothing is published. Operations that were sent
    /// run out; everything else of the front end is dropped.
    //= spec/lifecycle.md#LIF-13
    pub(super) fn front_end_gone(&mut self, id: DeviceId) {
        let device = &mut self.devices[id.0];
        device.reply = None;
        device.late_reply = None;
        if device.phase == Phase::Leaving {
            return;
        }
        if device.is_untouched() {
            device.left = true;
            self.list_device(id.0);
            return;
        }
        device.phase = Phase::Leaving;
        device.draining = None;
        self.trace.push(TraceEvent::Leaving(id));
        for index in 0..self.devices[id.0].vrings.len() {
            let vring = self.devices[id.0].vrings[index];
            if vring.has_queue() {
                self.deactivate(vring.queue);
                self.drop_unsent(vring.queue, |request| !request.is_done());
            }
        }
        self.leave_if_done(id.0);
    }

    /// Drops the requests of one queue that are `dropped`, and no others have anything unsent:
    /// the rest of those that wait for replies, and those that stand in a list, wherever that is.
    fn drop_unsent(&mut self, queue: u32, dropped: impl Fn(&Request) -> bool) {
        if self.queues[queue].live == 0 {
            return;
        }
        for request in self.requests.used_mut() {
            if request.queue == queue && dropped(request) {
                request.orphaned = true;
                request.fail(crate::blk::Status::IoErr);
            }
        }
        let image = self.devices[self.queues[queue].device].config.image.0;
        let device = self.queues[queue].device;
        let cut = core::mem::replace(&mut self.devices[device].share.cut, Fifo::EMPTY);
        self.devices[device].share.cut = self.without(cut, queue);
        let unplaced = core::mem::replace(&mut self.unplaced, Fifo::EMPTY);
        self.unplaced = self.without(unplaced, queue);
        let waiting = core::mem::replace(&mut self.images[image].waiting, Fifo::EMPTY);
        self.images[image].waiting = self.without(waiting, queue);
    }

    /// A list without the requests of one queue, of which nothing more will be cut.
    fn without(&mut self, mut list: Fifo<0>, queue: u32) -> Fifo<0> {
        let mut kept = Fifo::EMPTY;
        while let Some(slot) = list.pop(&mut self.requests) {
            let request = &mut self.requests[slot];
            if request.queue != queue {
                kept.push(&mut self.requests, slot);
                continue;
            }
            request.listed = false;
            if request.is_done() {
                self.complete(slot);
            }
        }
        kept
    }

    fn leave_if_done(&mut self, index: u32) {
        if self.devices[index].live > 0 {
            return;
        }
        for vring in 0..self.devices[index].vrings.len() {
            let queue = self.devices[index].vrings[vring].queue;
            if queue != NO_QUEUE {
                self.unpublish(queue);
                self.queues.release(queue);
            }
        }
        let device = &mut self.devices[index];
        device.running = 0;
        device.broken = 0;
        device.begin_anew();
        device.reset();
        device.left = true;
        let image = device.config.image;
        self.trace.push(TraceEvent::Left(DeviceId(index)));
        self.list_device(index);
        self.release_image(image.0);
    }

    /// Gives an image up when no front end uses it any more: none has a queue that runs, and
    /// nothing is under way.
    //= spec/migration.md#MIG-5
    fn release_image(&mut self, index: u32) {
        let used = |d: u32| {
            let device = &self.devices[d];
            device.config.image.0 == index && (device.running > 0 || device.live > 0)
        };
        if self.devices.used().any(used) || self.images[index].capture == Capture::None {
            return;
        }
        self.images[index].give_up();
        self.list_image(index);
    }

    /// Requests that were taken keep to the size they found; those that come keep to the new one.
    //= spec/lifecycle.md#LIF-16
    pub(super) fn resized(&mut self, id: ImageId, sectors: u64) {
        let image = &mut self.images[id.0].config;
        if core::mem::replace(&mut image.capacity_sectors, sectors) == sectors {
            return;
        }
        for device in 0..self.devices.capacity() {
            if self.devices.is_used(device) && self.devices[device].config.image == id {
                self.config_changed(device);
            }
        }
    }

    fn config_changed(&mut self, device: u32) {
        let listens = ProtocolFeatures::BACKEND_REQ;
        if self.devices[device].protocol_features().contains(listens) {
            self.devices[device].config_changed = true;
            self.list_device(device);
        }
    }

    /// The front end took memory back under its guest: its device ends, nobody else's.
    //= spec/lifecycle.md#LIF-15
    pub(super) fn memory_lost(&mut self, region: RegionId) {
        let owner = self.devices.used().find(|&d| self.devices[d].map.contains(region));
        let Some(device) = owner else { return };
        for index in 0..self.devices[device].vrings.len() {
            let vring = self.devices[device].vrings[index];
            if vring.has_queue() && self.queues[vring.queue].ring.is_some() {
                self.break_queue(vring.queue, QueueFault::RingUnmapped);
            }
        }
        self.devices[device].evict = true;
        self.list_device(device);
    }
}

/// What an earlier daemon knew of the driver's cache.
fn recall_writeback(mem: &impl SharedMemory, device: &Device) -> Option<bool> {
    let area = device.inflight?;
    inflight::recall_writeback(mem, area.region, area.device_at()?).ok()?
}

fn set_writeback(mem: &impl SharedMemory, device: &mut Device, writeback: bool) {
    device.writeback = Some(writeback);
    if let Some(area) = device.inflight
        && let Some(at) = area.device_at()
    {
        // Without the region nobody goes on with this device.
        let _ = inflight::note_writeback(mem, area.region, at, writeback);
    }
}

/// A ring in the negotiated format. Size and base are looked at once more, because the features
/// may have changed since they came.
fn open_ring(
    mem: &impl SharedMemory,
    device: &Device,
    rings: Rings,
    size: u16,
    base: u32,
) -> Result<Ring, ControlFault> {
    let event_idx = device.features().contains(BlkFeatures::EVENT_IDX);
    if device.packed() {
        let base = PackedBase::from_bits(base, size).ok_or(ControlFault::QueueBase)?;
        return Ok(Ring::Packed(PackedRing::start(rings, size, base, event_idx)));
    }
    if !size.is_power_of_two() {
        return Err(ControlFault::QueueSize);
    }
    let base = u16::try_from(base).map_err(|_| ControlFault::QueueBase)?;
    let ring = SplitRing::start(mem, rings, size, base, event_idx);
    ring.map(Ring::Split).map_err(|_| ControlFault::RingNotShared)
}
