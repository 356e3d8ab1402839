//! Front ends that send any message at any time, with I/O in between.

use core::cell::RefCell;
use std::collections::BTreeSet;

use sluice_core::blk::BlkFeatures;
use sluice_core::device::{
    ControlEvent, ControlReply, DeviceConfig, DeviceId, QueueId, RegionList, RingAddresses,
};
use sluice_core::image::{Backing, ImageConfig, ImageId};
use sluice_core::memory::{OutOfRegion, Region, RegionId, SharedMemory};
use sluice_core::op::{Op, Reply};
use sluice_core::shard::{Budget, Effect, Granted, Input, Shard};
use sluice_core::time::Instant;
use sluice_core::trace::TraceEvent;
use sluice_sim::arena::{Arena, Capacity};
use sluice_sim::memory::FlatMemory;
use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::bytes::Bytes;

const DEVICES: usize = 2;
const QUEUES: usize = 3;
const REGIONS: u32 = 12;
const REGION_BYTES: u64 = 0x2000;
/// Front-end addresses of regions begin here, guest addresses at 0.
const USER: u64 = 0x10_0000;
const STEPS: usize = 200;

/// A sequence of messages, ring writes, polls and replies on two devices of one image.
pub fn control_events(data: &[u8]) {
    let bytes = &mut Bytes::new(data);
    let mut arena = Arena::new(Capacity {
        images: 1,
        devices: DEVICES,
        // One less than both could have: the pool runs dry.
        queues: DEVICES * QUEUES - 1,
        requests: 6,
        parts: 8,
        groups: 16,
    });
    let mut world = World::new(&mut arena);
    for _ in 0..STEPS {
        if bytes.is_empty() {
            break;
        }
        world.step(bytes);
    }
    world.finish();
}

/// Memory of which only mapped regions may be touched.
#[derive(Debug)]
struct Mapped {
    flat: FlatMemory,
    mapped: RefCell<BTreeSet<u32>>,
}

impl Mapped {
    fn check(&self, region: RegionId) {
        assert!(self.mapped.borrow().contains(&region.0), "{region:?} is not mapped any more");
    }
}

impl SharedMemory for Mapped {
    fn read<T: FromBytes + IntoBytes>(&self, r: RegionId, offset: u64) -> Result<T, OutOfRegion> {
        self.check(r);
        self.flat.read(r, offset)
    }

    fn write<T: IntoBytes + Immutable>(
        &self,
        r: RegionId,
        offset: u64,
        value: &T,
    ) -> Result<(), OutOfRegion> {
        self.check(r);
        self.flat.write(r, offset, value)
    }

    fn load_acquire_u16(&self, r: RegionId, offset: u64) -> Result<u16, OutOfRegion> {
        self.check(r);
        self.flat.load_acquire_u16(r, offset)
    }

    fn store_release_u16(&self, r: RegionId, offset: u64, value: u16) -> Result<(), OutOfRegion> {
        self.check(r);
        self.flat.store_release_u16(r, offset, value)
    }

    fn set_bits(&self, r: RegionId, offset: u64, bits: u8) -> Result<(), OutOfRegion> {
        self.check(r);
        self.flat.set_bits(r, offset, bits)
    }

    fn full_fence(&self) {
        self.flat.full_fence();
    }
}

/// What a queue needs before it may run.
#[derive(Clone, Copy, Debug, Default)]
struct Vring {
    size: bool,
    addresses: bool,
    running: bool,
}

/// What the shell knows of a device.
#[derive(Debug, Default)]
struct Model {
    owner: bool,
    table: bool,
    leaving: bool,
    deferred: bool,
    vrings: [Vring; QUEUES],
    /// Mappings that the core has to give back.
    held: BTreeSet<u32>,
}

struct World<'a> {
    shard: Shard<'a>,
    mem: Mapped,
    models: [Model; DEVICES],
    image: ImageId,
    pending: Vec<Op>,
    /// Answers since the last message.
    replies: Vec<(DeviceId, ControlReply)>,
    asked: bool,
    next_avail: u16,
}

impl<'a> World<'a> {
    fn new(arena: &'a mut Arena) -> Self {
        let mut shard = Shard::new(arena.storage());
        let config = ImageConfig {
            backing: Backing::Store,
            capacity_sectors: 64,
            block_bytes: 512,
            read_only: false,
            discard: true,
            write_zeroes: true,
            poisoned: false,
            in_turn: false,
        };
        let image = shard.add_image(config).expect("room");
        for _ in 0..DEVICES {
            let config = DeviceConfig { image, serial: [0; 20], queues: QUEUES as u16 };
            shard.add_device(config).expect("room");
        }
        let lengths = [REGION_BYTES as usize; REGIONS as usize];
        let mem = Mapped { flat: FlatMemory::new(&lengths), mapped: RefCell::default() };
        let models = core::array::from_fn(|_| Model::default());
        let (pending, replies) = (Vec::new(), Vec::new());
        Self { shard, mem, models, image, pending, replies, asked: false, next_avail: 0 }
    }

    fn step(&mut self, bytes: &mut Bytes<'_>) {
        let device = usize::from(bytes.below(DEVICES as u8));
        match bytes.below(16) {
            0..=6 => self.message(bytes, device),
            7 => self.set_up(bytes, device),
            8 => self.write_chain(bytes),
            9 => {
                self.shard.poll_queues(&self.mem, Budget { chains: 8, ..Budget::of_turn(2) });
            }
            10 => self.pending.extend(core::iter::from_fn(|| self.shard.poll_op())),
            11 => self.reply(bytes),
            12 => self.shard.publish(&self.mem),
            13 => {
                let id = QueueId { device: id(device), index: bytes.below(4).into() };
                self.shard.handle_kick(&self.mem, id);
                let _ = self.shard.arm(&self.mem);
            }
            14 if self.asked => {
                self.asked = bytes.bool();
                let granted = if self.asked { Granted::No } else { Granted::Yes };
                self.input(Input::Capture(self.image, granted));
            }
            14 => while self.shard.poll_notify().is_some() {},
            _ => match bytes.below(8) {
                0..=3 => self.gone(device),
                4 => {
                    let region = RegionId(bytes.below(REGIONS as u8).into());
                    self.input(Input::MemoryLost(region));
                }
                _ => {}
            },
        }
        self.effects();
    }

    /// One message out of all there are.
    fn message(&mut self, bytes: &mut Bytes<'_>, device: usize) {
        use ControlEvent as E;
        let index = match bytes.u8() {
            small @ 0..240 => u32::from(small % (QUEUES as u8 + 1)),
            _ => bytes.u32(),
        };
        let event = match bytes.below(24) {
            0 | 1 => E::SetOwner,
            2 => E::ResetOwner,
            3 => E::GetFeatures,
            4 => E::SetFeatures(features(bytes)),
            5 => E::GetProtocolFeatures,
            6 => E::SetProtocolFeatures(bytes.pick(&[
                0,
                0x8209,
                0x9209,
                9,
                0x10_9209,
                1 << 20,
                u64::MAX,
            ])),
            7 => E::GetQueueNum,
            8 => E::GetMaxMemSlots,
            9 => {
                let mut list = RegionList::new();
                for _ in 0..bytes.below(4) {
                    // Each has a mapping of its own.
                    let found = self.region(bytes);
                    let _ = found
                        .filter(|region| list.iter().all(|other| other.id != region.id))
                        .map(|region| list.push(region));
                }
                E::SetMemTable(list)
            }
            10 => match self.region(bytes) {
                Some(region) => E::AddMemRegion(region),
                None => return,
            },
            11 => {
                let at = region(bytes, RegionId(0));
                E::RemoveMemRegion { guest: at.guest, user: at.user, size: at.size }
            }
            12 => E::GetConfig { offset: bytes.u32(), size: bytes.u32() },
            13 => {
                let (offset, size) = (bytes.pick(&[32, 0, 0x120, 59]), bytes.pick(&[1, 0, 60]));
                E::SetConfig { offset, size, value: bytes.u8() }
            }
            14 => E::SetVringNum { index, size: bytes.pick(&[4, 1, 16, 0, 3, 1024, 2048, 65536]) },
            15 => E::SetVringBase { index, base: bytes.pick(&[0, 1, 0xffff, 0x1_0000, 0x8000]) },
            16 => E::SetVringAddr { index, addresses: addresses(bytes, index) },
            17 | 18 => E::SetVringKick { index },
            19 => E::SetVringCall { index },
            20 => E::SetVringErr { index },
            21 => E::SetVringEnable { index, enable: bytes.bool() },
            22 => E::GetVringBase { index },
            _ => match self.free_region() {
                Some(region) => E::SetInflight {
                    region,
                    offset: bytes.pick(&[0, 64, 0x1fff, u64::MAX, u64::MAX - 63]),
                    len: bytes.pick(&[REGION_BYTES, u64::MAX, 0x140, 0]),
                    queues: bytes.below(4).into(),
                    size: bytes.pick(&[16, 4, 0, 1024, 1025]),
                },
                None => return,
            },
        };
        self.send(device, event);
    }

    /// What a sound front end sends, so that the rest is about something.
    fn set_up(&mut self, bytes: &mut Bytes<'_>, device: usize) {
        let Some(id) = self.free_region() else { return };
        self.mem.flat.fill(id, 0, &[0; REGION_BYTES as usize]);
        let index = bytes.below(QUEUES as u8).into();
        let region = Region { id, guest: 0, user: USER, size: REGION_BYTES };
        let regions = RegionList::from_slice(&[region]).expect("one");
        let addresses = ring(index);
        for event in [
            ControlEvent::SetOwner,
            ControlEvent::SetFeatures(features(bytes)),
            ControlEvent::SetMemTable(regions),
            ControlEvent::SetVringNum { index, size: 4 },
            ControlEvent::SetVringBase { index, base: 0 },
            ControlEvent::SetVringAddr { index, addresses },
            ControlEvent::SetVringKick { index },
            ControlEvent::SetVringEnable { index, enable: true },
        ] {
            self.send(device, event);
        }
        self.next_avail = 0;
    }

    fn send(&mut self, device: usize, event: ControlEvent) {
        let regions: Vec<u32> = match &event {
            ControlEvent::SetMemTable(list) => list.iter().map(|region| region.id.0).collect(),
            ControlEvent::AddMemRegion(region) => vec![region.id.0],
            ControlEvent::SetInflight { region, .. } => vec![region.0],
            _ => Vec::new(),
        };
        // The shell maps them before it asks.
        self.mem.mapped.borrow_mut().extend(&regions);
        self.models[device].held.extend(&regions);
        self.effects();
        self.replies.clear();
        self.input(Input::Control(id(device), event.clone()));
        self.effects();
        let [(who, reply)] = self.replies[..] else {
            panic!("one answer to {event:?}, not {:?}", self.replies)
        };
        assert_eq!(who, id(device));
        self.replies.clear();
        self.learn(device, &event, reply, &regions);
    }

    /// What the answer means for the model.
    fn learn(&mut self, device: usize, event: &ControlEvent, reply: ControlReply, regions: &[u32]) {
        let model = &mut self.models[device];
        if let ControlReply::Refused(_) = reply {
            // The core has kept nothing of it.
            for region in regions {
                self.mem.mapped.borrow_mut().remove(region);
                model.held.remove(region);
            }
            return;
        }
        assert!(!model.leaving, "no message is taken in while the last front end leaves");
        match *event {
            ControlEvent::SetOwner => model.owner = true,
            ControlEvent::SetMemTable(_) | ControlEvent::AddMemRegion(_) => model.table = true,
            ControlEvent::SetVringNum { index, .. } => {
                let vring = &mut model.vrings[index as usize];
                // The same size again changes nothing of a ring that runs.
                if !vring.running {
                    *vring = Vring { size: true, ..Vring::default() };
                }
            }
            ControlEvent::SetVringAddr { index, .. } => {
                model.vrings[index as usize].addresses = true;
            }
            ControlEvent::GetVringBase { .. } => model.deferred = reply == ControlReply::Deferred,
            _ => {}
        }
    }

    fn gone(&mut self, device: usize) {
        self.effects();
        self.models[device].leaving = true;
        self.models[device].deferred = false;
        self.input(Input::FrontEndGone(id(device)));
    }

    fn reply(&mut self, bytes: &mut Bytes<'_>) {
        if self.pending.is_empty() {
            return;
        }
        let op = self.pending.swap_remove(usize::from(bytes.u8()) % self.pending.len());
        let payload = self.shard.pieces(op.id).count();
        assert!(payload <= 136);
        let result = if bytes.below(8) == 7 { -5 } else { result(&op) };
        self.shard.handle_reply(&Reply { id: op.id, result, version: 0 });
    }

    fn input(&mut self, input: Input) {
        self.shard.handle(Instant(0), &self.mem, input).expect("no cluster update");
    }

    /// A chain of some kind in the ring that [`set_up`](Self::set_up) describes.
    fn write_chain(&mut self, bytes: &mut Bytes<'_>) {
        let region = RegionId(bytes.below(REGIONS as u8).into());
        let queue = u64::from(bytes.below(QUEUES as u8));
        let head = bytes.below(5);
        let flat = &self.mem.flat;
        let table = queue * 0x400;
        let descriptors =
            [(0x1000_u64, 16_u32, 1_u16, 1_u16), (0x1800, 512, 3, 2), (0x1100, 1, 2, 0)];
        for ((addr, len, flags, next), at) in descriptors.into_iter().zip([0, 16, 32]) {
            flat.fill(region, table + at, &addr.to_le_bytes());
            flat.fill(region, table + at + 8, &len.to_le_bytes());
            flat.fill(region, table + at + 12, &flags.to_le_bytes());
            flat.fill(region, table + at + 14, &next.to_le_bytes());
        }
        flat.fill(region, 0x1000, &[bytes.pick(&[0, 4, 8, 1])]);
        flat.fill(region, 0x1001, &[0; 15]);
        let entry = table + 0x104 + 2 * u64::from(self.next_avail % 4);
        flat.fill(region, entry, &[head, 0]);
        self.next_avail = self.next_avail.wrapping_add(u16::from(bytes.below(4)));
        flat.fill(region, table + 0x102, &self.next_avail.to_le_bytes());
    }

    /// Takes everything the shard says, and compares it with what is known.
    fn effects(&mut self) {
        while let Some(effect) = self.shard.poll_effect() {
            self.events();
            match effect {
                Effect::Reply(device, reply) => {
                    let model = &mut self.models[device.0 as usize];
                    let late = model.deferred && matches!(reply, ControlReply::VringBase { .. });
                    if late {
                        model.deferred = false;
                    } else {
                        self.replies.push((device, reply));
                    }
                }
                Effect::Unmap(region) => {
                    let mut models = self.models.iter_mut();
                    let owner = models.find_map(|m| m.held.remove(&region.0).then_some(()));
                    assert!(owner.is_some(), "{region:?} is given back once");
                    self.mem.mapped.borrow_mut().remove(&region.0);
                }
                Effect::Capture(_) => self.asked = true,
                Effect::Release(_) => self.asked = false,
                Effect::ConfigChanged(_) => {}
                Effect::Evict(device) => {
                    if !self.models[device.0 as usize].leaving {
                        self.models[device.0 as usize].leaving = true;
                        self.models[device.0 as usize].deferred = false;
                        self.input(Input::FrontEndGone(device));
                    }
                }
                Effect::Left(device) => {
                    let model = &mut self.models[device.0 as usize];
                    assert!(model.leaving, "left once");
                    *model = Model { held: core::mem::take(&mut model.held), ..Model::default() };
                }
                Effect::QueueBroken(..) | Effect::Poisoned(_) => {}
            }
        }
        self.events();
    }

    fn events(&mut self) {
        while let Some(event) = self.shard.poll_trace() {
            match event {
                TraceEvent::QueueStarted(id) => {
                    let model = &mut self.models[id.device.0 as usize];
                    let vring = &mut model.vrings[usize::from(id.index)];
                    assert!(model.owner && model.table, "no queue without memory");
                    assert!(vring.size && vring.addresses, "no queue without size and addresses");
                    assert!(!vring.running, "started once");
                    vring.running = true;
                }
                TraceEvent::QueueStopped(id) => {
                    let vring =
                        &mut self.models[id.device.0 as usize].vrings[usize::from(id.index)];
                    assert!(vring.running);
                    *vring = Vring { size: true, ..Vring::default() };
                }
                _ => {}
            }
        }
    }

    /// A mapping that is in no use, of the memory there is.
    fn free_region(&self) -> Option<RegionId> {
        let held = |region: &u32| self.models.iter().any(|model| model.held.contains(region));
        (0..REGIONS).find(|region| !held(region)).map(RegionId)
    }

    fn region(&self, bytes: &mut Bytes<'_>) -> Option<Region> {
        let free = self.free_region()?;
        // Several of one message need different mappings; which ones does not matter.
        let id = RegionId(free.0 + u32::from(bytes.below(3)));
        let held = |region: &u32| self.models.iter().any(|model| model.held.contains(region));
        (id.0 < REGIONS && !held(&id.0)).then(|| region(bytes, id))
    }

    /// Everybody goes; then nothing is left.
    fn finish(mut self) {
        self.effects();
        for device in 0..DEVICES {
            if !self.models[device].leaving {
                self.gone(device);
            }
        }
        self.pending.extend(core::iter::from_fn(|| self.shard.poll_op()));
        for op in core::mem::take(&mut self.pending) {
            self.shard.handle_reply(&Reply { id: op.id, result: result(&op), version: 0 });
            assert_eq!(self.shard.poll_op(), None, "nothing is begun for one that has gone");
        }
        self.shard.publish(&self.mem);
        self.effects();
        assert_eq!((self.shard.live(), self.shard.ops_live()), (0, 0));
        for (device, model) in self.models.iter().enumerate() {
            assert!(!model.leaving && model.held.is_empty(), "device {device}: {model:?}");
            assert_eq!(self.shard.device(id(device)).features(), BlkFeatures::empty());
        }
        for device in 0..DEVICES {
            assert!(self.shard.remove_device(id(device)));
        }
        assert!(self.shard.remove_image(self.image));
    }
}

fn id(device: usize) -> DeviceId {
    DeviceId(u32::try_from(device).expect("few"))
}

fn result(op: &Op) -> i64 {
    let moves = matches!(op.kind, sluice_core::op::OpKind::Read | sluice_core::op::OpKind::Write);
    if moves { i64::try_from(op.len).expect("small") } else { 0 }
}

fn features(bytes: &mut Bytes<'_>) -> u64 {
    let sound = BlkFeatures::VERSION_1 | BlkFeatures::FLUSH;
    let other =
        bytes.pick(&[0, 1 << 30, 1 << 29, (1 << 29) | (1 << 30), 1 << 5, 1 << 34, u64::MAX]);
    sound.bits() | other
}

/// The rings of a queue at the beginning of memory.
fn ring(index: u32) -> RingAddresses {
    let base = USER + 0x400 * u64::from(index % QUEUES as u32);
    RingAddresses { desc: base, avail: base + 0x100, used: base + 0x200 }
}

fn addresses(bytes: &mut Bytes<'_>, index: u32) -> RingAddresses {
    let mut addresses = ring(index);
    match bytes.below(8) {
        0 => addresses.desc = bytes.u64(),
        1 => addresses.avail += 1,
        2 => addresses.used = u64::MAX - 3,
        3 => addresses.desc = USER + REGION_BYTES - 16,
        4 => addresses = RingAddresses { avail: addresses.desc, used: addresses.desc, ..addresses },
        _ => {}
    }
    addresses
}

/// Where a region may lie: most likely in one of four places that do not overlap.
fn region(bytes: &mut Bytes<'_>, id: RegionId) -> Region {
    let place = u64::from(bytes.below(4)) * REGION_BYTES;
    let (mut guest, mut user, mut size) = (place, USER + place, REGION_BYTES);
    match bytes.below(16) {
        0 => size = bytes.pick(&[0, 1, 0x1000, u64::MAX]),
        1 => guest = bytes.pick(&[u64::MAX, u64::MAX - (REGION_BYTES - 1), 1, 0x1000]),
        2 => user = bytes.pick(&[u64::MAX, 0, USER + 1, USER + 0x1000]),
        _ => {}
    }
    Region { id, guest, user, size }
}
