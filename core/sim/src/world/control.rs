//! Front ends: saying the next message of the script, and hearing the answers.

use sluice_core::blk::{BlkConfig, BlkFeatures};
use sluice_core::device::{
    ControlEvent, ControlFault, ControlReply, DeviceId, ProtocolFeatures, RegionList, RingAddresses,
};
use sluice_core::inflight::{DEVICE_BYTES, region_bytes};
use sluice_core::memory::{MapFault, Region};
use sluice_core::shard::Input;
use sluice_core::virtqueue::Rings;

use super::{Event, Meant, Phase, World, guest};
use crate::bus::decode::Disk;
use crate::bus::memory::Inner;
use crate::bus::ram::{Extent, READ};
use crate::front::{Message, State};

impl World<'_> {
    /// A front end says its next message, or thinks of something new.
    pub(super) fn go_on(&mut self, id: u32) {
        let front = &mut self.fronts[id as usize];
        if front.awaited.is_some() || front.state == State::Leaving {
            return;
        }
        front.begin_anew(&mut self.prng);
        if let Some(message) = front.script.pop_front() {
            return self.say(id, message);
        }
        match (front.state, self.phase) {
            (State::Away, Phase::Faults) => self.connect(id),
            (State::Away, Phase::Healing) if !self.is_open(id) => self.connect(id),
            (State::Here, Phase::Faults) if self.is_open(id) => self.babble(id),
            (State::Here, Phase::Faults) => {
                self.fronts[id as usize].disturb(&mut self.prng, &self.options.control);
                let delay = self.prng.skewed(self.options.control_pause);
                self.clock.plan(delay, Event::Front(id));
            }
            _ => {}
        }
    }

    fn connect(&mut self, id: u32) {
        self.choose_features(id);
        for index in 0..self.guests[id as usize].queues.len() {
            self.reset_queue(id, u16::try_from(index).unwrap_or(0));
        }
        self.fronts[id as usize].connect(&mut self.prng);
        self.clock.plan(1, Event::Front(id));
    }

    fn choose_features(&mut self, id: u32) {
        let config = &self.options.images[self.image_of(id)];
        let offered = BlkFeatures::offered(config);
        let front = &mut self.fronts[id as usize];
        front.negotiated = false;
        front.choose_features(&mut self.prng, offered);
    }

    /// The driver forgets what it asked for: none of it may happen any more, but what is sent.
    pub(super) fn reset_queue(&mut self, id: u32, index: u16) {
        let event_idx = self.fronts[id as usize].features.contains(BlkFeatures::EVENT_IDX);
        let guest = &mut self.guests[id as usize];
        let forgotten = guest.reset_queue(&self.mem, index.into(), event_idx);
        let image = self.image_of(id);
        for head in forgotten.into_keys() {
            self.durable.forget((id, index, head));
            match self.meant.remove(&(id, index, head)) {
                Some(Meant::Read(read)) => self.histories[image].read_failed(read),
                Some(Meant::Writes(writes)) => self.ghosts.entry(id).or_default().extend(writes),
                Some(Meant::Flush(..) | Meant::Nothing) | None => {}
            }
        }
    }

    /// What was forgotten has had its effect by now, or never will.
    fn bury_ghosts(&mut self, id: u32) {
        let image = self.image_of(id);
        for write in self.ghosts.remove(&id).into_iter().flatten() {
            self.histories[image].write_failed(write);
        }
    }

    fn region(&mut self, id: u32, index: usize) -> Region {
        let chunk = self.guests[id as usize].chunks[index];
        let mut inner = self.mem.inner();
        let region = inner.map(chunk);
        let size = inner.ram.len(chunk) as u64;
        let guest = inner.ram.chunk(chunk).address;
        drop(inner);
        self.fronts[id as usize].offered.push(region);
        Region { id: region, guest, user: user_address(chunk), size }
    }

    fn say(&mut self, id: u32, message: Message) {
        use ControlEvent as E;
        use Message as M;
        let front = &self.fronts[id as usize];
        let mut protocol = ProtocolFeatures::all();
        protocol.set(ProtocolFeatures::INFLIGHT_SHMFD, front.inflight);
        protocol.set(ProtocolFeatures::GET_VRING_BASE_INFLIGHT, front.leaves);
        let protocol = protocol.bits();
        let event = match message {
            M::Owner => E::SetOwner,
            M::AskFeatures => E::GetFeatures,
            M::Features => E::SetFeatures(front.features.bits()),
            M::AskProtocol => E::GetProtocolFeatures,
            M::Protocol => E::SetProtocolFeatures(protocol),
            M::AskConfig => E::GetConfig { offset: 0, size: 60 },
            M::AskQueues => E::GetQueueNum,
            M::Inflight => self.inflight_region(id),
            M::Table => {
                let mut regions = RegionList::new();
                for index in 0..self.guests[id as usize].chunks.len() {
                    regions.push(self.region(id, index)).expect("a handful of regions");
                }
                E::SetMemTable(regions)
            }
            M::AddRegion(index) => E::AddMemRegion(self.region(id, index)),
            M::Num(q) => E::SetVringNum {
                index: q.into(),
                size: self.options.guests[id as usize].0.size.into(),
            },
            M::Base(q) => E::SetVringBase { index: q.into(), base: front.bases[usize::from(q)] },
            M::Addr(q) => E::SetVringAddr { index: q.into(), addresses: self.addresses(id, q) },
            M::Kick(q) => {
                let area = self.area(id, q);
                let event_idx = front.features.contains(BlkFeatures::EVENT_IDX);
                let enabled = !front.has_protocol() || front.enabled[usize::from(q)];
                let Inner { ram, bus, .. } = &mut *self.mem.inner();
                bus.take_over(ram, (id, q), area);
                bus.start(ram, (id, q), event_idx, enabled);
                E::SetVringKick { index: q.into() }
            }
            M::Call(q) => E::SetVringCall { index: q.into() },
            M::Enable(q, enable) => {
                self.fronts[id as usize].enabled[usize::from(q)] = enable;
                E::SetVringEnable { index: q.into(), enable }
            }
            // From here on nothing is promised, and the opposite only with the answer.
            M::Writeback(writeback) => {
                if writeback {
                    self.fronts[id as usize].choose_writeback(true);
                }
                E::SetConfig { offset: 32, size: 1, value: writeback.into() }
            }
            M::GetBase(q) => E::GetVringBase { index: q.into() },
            M::Reset(q) => {
                if self.fronts[id as usize].negotiated {
                    self.choose_features(id);
                }
                self.reset_queue(id, q);
                self.bury_ghosts(id);
                let front = &mut self.fronts[id as usize];
                front.bases[usize::from(q)] = front.first_base();
                // Some keep a region over a reset: a queue that has drained has left nothing in it.
                if front.leaves || self.prng.chance(700) {
                    (front.area, front.handed_over) = (None, false);
                }
                self.clock.plan(1, Event::Front(id));
                return;
            }
            M::Vanish => return self.vanish(id),
        };
        self.line(guest(id), "say", format_args!("{message:?}"));
        self.fronts[id as usize].awaited = Some(message);
        if let M::Enable(q, true) = message {
            self.set_enabled(id, q, true);
        }
        self.input(Input::Control(DeviceId(id), event));
        if let M::Enable(q, false) | M::GetBase(q) = message {
            self.set_enabled(id, q, false);
        }
    }

    fn set_enabled(&mut self, id: u32, index: u16, enabled: bool) {
        if let Some(ring) = self.mem.inner().bus.rings.get_mut(&(id, index)) {
            ring.enabled = enabled;
        }
    }

    fn inflight_region(&mut self, id: u32) -> ControlEvent {
        let build = self.options.guests[id as usize].0;
        let bytes = region_bytes(build.queues, build.size, true) + DEVICE_BYTES;
        let len = usize::try_from(bytes).expect("a small region");
        let mut inner = self.mem.inner();
        let chunk = *self.fronts[id as usize].area.get_or_insert_with(|| {
            let chunk = inner.ram.add(u32::MAX, 0, len, true);
            inner.ram.bytes_mut(Extent { chunk, at: 0, len }).fill(0);
            chunk
        });
        let region = inner.map(chunk);
        drop(inner);
        self.fronts[id as usize].offered.push(region);
        ControlEvent::SetInflight {
            region,
            offset: 0,
            len: bytes,
            queues: build.queues,
            size: build.size,
        }
    }

    fn addresses(&self, id: u32, index: u16) -> RingAddresses {
        let Rings { desc, avail, used } = self.guests[id as usize].layout(index.into()).rings();
        let user = |(region, offset): (sluice_core::memory::RegionId, u64)| {
            user_address(region.0 as usize) + offset
        };
        RingAddresses { desc: user(desc), avail: user(avail), used: user(used) }
    }

    /// The device has answered the message that its front end waits for.
    pub(super) fn answered(&mut self, id: u32, reply: ControlReply) {
        use ControlReply as R;
        self.line(guest(id), "answer", format_args!("{reply:?}"));
        if reply == R::Deferred {
            return;
        }
        // What was refused is not the device's to give back.
        for region in core::mem::take(&mut self.fronts[id as usize].offered) {
            if matches!(reply, R::Refused(_)) {
                self.mem.inner().unmap(region);
            }
        }
        if self.is_open(id) {
            return self.hostile_answered(id, reply);
        }
        // Whoever waits for a reply has seen everything that was stored before it.
        self.mem.inner().settle();
        let front = &mut self.fronts[id as usize];
        let Some(message) = front.awaited.take() else {
            return self.fault("I19", format!("guest {id} did not ask for {reply:?}"));
        };
        match (message, reply) {
            (Message::GetBase(q), R::VringBase { index, base }) if q == index => {
                front.bases[usize::from(q)] = base;
                front.running[usize::from(q)] = false;
                let leaves = front.leaves && front.has_protocol();
                let left = {
                    let Inner { ram, bus, .. } = &mut *self.mem.inner();
                    bus.stop(ram, (id, q), base, leaves)
                };
                let image = self.image_of(id);
                for head in left {
                    if let Some(Meant::Writes(writes)) = self.meant.get(&(id, q, head)) {
                        self.histories[image].repeat(writes);
                    }
                }
                if self.flights.values().any(|flight| flight.queue() == Some((id, q))) {
                    self.fault("I08", format!("{id} {q} has stopped with operations under way"));
                }
            }
            (Message::Table, R::Refused(ControlFault::Memory(MapFault::Full))) => {
                self.fronts[id as usize].script.push_front(message);
            }
            (_, R::Refused(fault)) => {
                self.fault("I19", format!("guest {id}: {message:?} is refused: {fault:?}"));
            }
            (Message::Kick(q), R::Done) => front.running[usize::from(q)] = true,
            (Message::Features, R::Done) => self.agree(id),
            (Message::Inflight, R::Done) => front.handed_over = true,
            (Message::Writeback(false), R::Done) => front.choose_writeback(false),
            (Message::AskConfig, R::Config(config)) => self.check_config(id, &config),
            (Message::AskFeatures | Message::AskProtocol | Message::AskQueues, R::Value(_))
            | (_, R::Done) => {}
            _ => self.fault("I19", format!("guest {id}: {message:?} is answered {reply:?}")),
        }
        let delay = self.prng.skewed(10_000);
        self.clock.plan(delay, Event::Front(id));
    }

    /// The features are agreed upon: now it is known what the disk promises.
    fn agree(&mut self, id: u32) {
        let image = self.image_of(id);
        let config = &self.options.images[image];
        let front = &mut self.fronts[id as usize];
        front.negotiated = true;
        let disk = Disk {
            image: u32::try_from(image).unwrap_or(u32::MAX),
            sectors: config.capacity_sectors,
            block_sectors: u64::from(config.block_bytes) / 512,
            read_only: config.read_only,
            discard: front.features.contains(BlkFeatures::DISCARD),
            write_zeroes: front.features.contains(BlkFeatures::WRITE_ZEROES),
            syncs: !front.features.contains(BlkFeatures::FLUSH)
                || front.features.contains(BlkFeatures::CONFIG_WCE),
            serial: self.serials[id as usize],
        };
        self.mem.inner().bus.disks.insert(id, disk);
    }

    fn check_config(&mut self, id: u32, config: &BlkConfig) {
        let image = &self.options.images[self.image_of(id)];
        let right = config.capacity.get() == image.capacity_sectors
            && config.blk_size.get() == image.block_bytes;
        if !right {
            self.fault("I04", format!("guest {id} is told {config:?}"));
        }
    }

    /// A front end is gone from one moment to the next, and its guest with it.
    pub(super) fn vanish(&mut self, id: u32) {
        // The shell hears of a hang-up after it has heard of what was said before.
        if self.fronts[id as usize].awaited.is_some() {
            self.take_effects();
        }
        let front = &mut self.fronts[id as usize];
        if front.state != State::Here {
            return;
        }
        front.state = State::Leaving;
        front.script.clear();
        front.awaited = None;
        front.negotiated = false;
        front.enabled.fill(false);
        front.running.fill(false);
        self.line(guest(id), "vanish", format_args!(""));
        self.mem.inner().settle();
        self.input(Input::FrontEndGone(DeviceId(id)));
        // What is being sent is still read; nothing else of the guest is touched any more.
        let mut sending = Vec::new();
        for (_, ring) in self.mem.inner().bus.rings.range((id, 0)..(id + 1, 0)) {
            let sent = ring.live.values().filter(|live| live.ops > 0);
            let reads = sent.flat_map(|live| &live.grants).filter(|(_, right)| *right == READ);
            sending.extend(reads.copied());
        }
        for index in 0..self.guests[id as usize].queues.len() {
            self.reset_queue(id, u16::try_from(index).unwrap_or(0));
        }
        let mut inner = self.mem.inner();
        sending.into_iter().for_each(|(extent, right)| inner.ram.grant(extent, right));
    }

    /// Nothing of a front end is left.
    pub(super) fn left(&mut self, id: u32) {
        self.line(guest(id), "left", format_args!(""));
        if self.fronts[id as usize].state != State::Leaving {
            self.fault("I19", format!("guest {id} has not gone"));
        }
        if self.flights.values().any(|flight| flight.guest() == Some(id)) {
            self.fault("I08", format!("guest {id} has left with operations under way"));
        }
        self.gone(id);
    }

    /// Nobody knows of a front end any more: its writes have had their effect, or never will.
    pub(super) fn gone(&mut self, id: u32) {
        self.fronts[id as usize].state = State::Away;
        self.bury_ghosts(id);
        let mut inner = self.mem.inner();
        for &chunk in &self.guests[id as usize].chunks {
            let len = inner.ram.len(chunk);
            inner.ram.revoke(Extent { chunk, at: 0, len });
        }
        drop(inner);
        let delay = self.prng.skewed(50_000);
        self.clock.plan(delay, Event::Front(id));
    }
}

/// Where a front end has a chunk in its own address space.
pub(super) const fn user_address(chunk: usize) -> u64 {
    0x7f00_0000_0000 + 0x1000_0000 * chunk as u64
}
