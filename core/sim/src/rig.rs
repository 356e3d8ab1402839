//! A shard with one device whose rings are written by hand, right or wrong.
//!
//! The rig plays the front end (once, well-behaved), the shell and the store; the guest is
//! whoever holds the rig. Whatever the guest does, the rig checks each operation against the
//! image and the memory before it is carried out.

mod packed;

use std::collections::VecDeque;

use packed::Hand;
use sluice_core::blk::BlkFeatures;
use sluice_core::device::{
    ControlEvent, ControlReply, DeviceConfig, DeviceId, ProtocolFeatures, QueueId, RegionList,
    RingAddresses,
};
use sluice_core::image::{Backing, ImageConfig, ImageId};
use sluice_core::limits::QUEUE_SIZE_MAX;
use sluice_core::memory::{Region, RegionId, SharedMemory};
use sluice_core::op::{Op, OpKind, Piece, Reply};
use sluice_core::shard::{Budget, Effect, Granted, Input, Shard, Work};
use sluice_core::time::Instant;
use sluice_core::virtqueue::QueueFault;
use sluice_core::virtqueue::layout::{
    AVAIL_IDX, AVAIL_RING, DESC_BYTES, DESC_NEXT, EVENT_BYTES, USED_IDX, USED_RING,
    avail_ring_bytes, desc_table_bytes, used_ring_bytes,
};

use crate::arena::{Arena, Capacity};
use crate::memory::FlatMemory;
use crate::ram::Ram;
use crate::reference::Reference;

/// The region of the guest's lower memory.
pub const LOW: RegionId = RegionId(0);
/// The region that follows it without a gap in guest addresses, and with one in the front end's.
pub const HIGH: RegionId = RegionId(1);
/// The region of the rings.
pub const RING: RegionId = RegionId(2);

/// Guest address of [`LOW`].
pub const LOW_GUEST: u64 = 0x10_0000;
/// Guest address of [`HIGH`]: the border.
pub const HIGH_GUEST: u64 = LOW_GUEST + DATA_BYTES;
/// Guest address of [`RING`].
pub const RING_GUEST: u64 = 0x80_0000;
/// A guest address where there is no memory.
pub const WILD: u64 = 0x66_0000_0000;

/// Bytes of [`LOW`] and of [`HIGH`].
pub const DATA_BYTES: u64 = 0x4000;
/// Bytes of [`RING`].
pub const RING_BYTES: u64 = 0x8000;

const RING_USER: u64 = 0x7f20_0000_0000;

/// One descriptor: address, length, flags, next.
pub type Desc = (u64, u32, u16, u16);

/// What the device is like before the guest touches it.
#[derive(Clone, Debug)]
pub struct Setup {
    /// Entries of the ring.
    pub size: u16,
    /// Where the ring begins: both indices, or both places of a packed ring.
    pub base: u16,
    /// What is negotiated.
    pub features: BlkFeatures,
    /// The image behind it.
    pub image: ImageConfig,
    /// Regions; the rings stay in [`RING`].
    pub regions: Vec<Region>,
    /// Whether the image's capture is granted as soon as it is asked for.
    pub grant: bool,
    /// Offsets in [`RING`] of the available and the used ring, or of the two event suppressions of
    /// a packed one; behind the descriptors unless they are given.
    pub places: Option<[u64; 2]>,
}

impl Default for Setup {
    fn default() -> Self {
        let region = |id, guest, user, size| Region { id, guest, user, size };
        let image = ImageConfig {
            backing: Backing::Store,
            capacity_sectors: 4096,
            block_bytes: 512,
            read_only: false,
            discard: true,
            write_zeroes: true,
            poisoned: false,
            in_turn: false,
        };
        Self {
            size: 16,
            base: 0,
            features: BlkFeatures::VERSION_1
                | BlkFeatures::FLUSH
                | BlkFeatures::DISCARD
                | BlkFeatures::WRITE_ZEROES
                | BlkFeatures::INDIRECT_DESC,
            image,
            regions: vec![
                region(LOW, LOW_GUEST, 0x7f00_0000_0000, DATA_BYTES),
                region(HIGH, HIGH_GUEST, 0x7f10_0000_0000, DATA_BYTES),
                region(RING, RING_GUEST, RING_USER, RING_BYTES),
            ],
            grant: true,
            places: None,
        }
    }
}

/// Memory of the rig's standard regions.
#[must_use]
pub fn memory() -> FlatMemory {
    let bytes = |len| usize::try_from(len).expect("small");
    FlatMemory::new(&[bytes(DATA_BYTES), bytes(DATA_BYTES), bytes(RING_BYTES)])
}

/// Room for one device and a few requests.
#[must_use]
pub fn arena(requests: usize) -> Arena {
    let parts = requests * 2 + 2;
    Arena::new(Capacity { images: 1, devices: 1, queues: 2, requests, parts, groups: 16 * 4 })
}

/// The shard and everything around it.
#[derive(Debug)]
pub struct Rig<'a> {
    /// The guest's memory.
    pub mem: &'a FlatMemory,
    /// The core.
    pub shard: Shard<'a>,
    /// Its only device.
    pub device: DeviceId,
    /// The image the device shows.
    pub image: ImageId,
    /// What is in it.
    pub ram: Ram,
    /// Notifications to the guest.
    pub notified: u32,
    /// Those at the start of the queue are counted apart.
    pub notified_at_start: u32,
    /// How often the front end was told that the configuration space has changed.
    pub config_changes: u32,
    /// How the queue broke.
    pub broken: Option<QueueFault>,
    /// Effects that the rig has no use for, the replies among them.
    pub effects: VecDeque<Effect>,
    setup: Setup,
    /// The guest's indices.
    next_avail: u16,
    next_used: u16,
    hand: Hand,
}

impl<'a> Rig<'a> {
    /// A device that runs.
    ///
    /// # Panics
    /// When the setup is one that the core refuses.
    #[must_use]
    pub fn new(arena: &'a mut Arena, mem: &'a FlatMemory, setup: Setup) -> Self {
        let mut shard = Shard::new(arena.storage());
        let image = shard.add_image(setup.image).expect("room for an image");
        let config = DeviceConfig { image, serial: *b"0123456789abcdefghij", queues: 2 };
        let device = shard.add_device(config).expect("room for a device");
        let (next_avail, next_used) = (setup.base, setup.base);
        let hand = Hand::default();
        let mut rig = Self {
            mem,
            shard,
            device,
            image,
            ram: Ram::default(),
            notified: 0,
            notified_at_start: 0,
            config_changes: 0,
            broken: None,
            effects: VecDeque::new(),
            setup,
            next_avail,
            next_used,
            hand,
        };
        rig.attach();
        rig
    }

    /// Plays the front end up to a running queue 0.
    ///
    /// # Panics
    /// When the core refuses any of it.
    pub fn attach(&mut self) {
        self.attach_with(&[]);
    }

    /// The same, with these messages before the queue is set up.
    ///
    /// # Panics
    /// When the core refuses any of it.
    pub fn attach_with(&mut self, more: &[ControlEvent]) {
        if self.is_packed() {
            self.clear_ring();
        } else {
            self.store_u16(AVAIL_IDX + self.avail(), self.setup.base);
            self.store_u16(USED_IDX + self.used_ring(), self.setup.base);
            self.store_u16(self.avail(), 0);
        }
        (self.next_avail, self.next_used) = (self.setup.base, self.setup.base);
        self.go_on(more, self.setup.base);
    }

    /// The same for a guest whose ring is in use: the queue goes on at `base`.
    ///
    /// # Panics
    /// When the core refuses any of it.
    pub fn go_on(&mut self, more: &[ControlEvent], base: u16) {
        self.go_on_in(self.mem, more, base);
    }

    /// The same while the core sees the memory in another way.
    ///
    /// # Panics
    /// When the core refuses any of it.
    pub fn go_on_in(&mut self, mem: &impl SharedMemory, more: &[ControlEvent], base: u16) {
        self.broken = None;
        let (index, size, mut base) = (0, self.setup.size.into(), u32::from(base));
        if self.is_packed() {
            base |= base << 16;
        }
        let regions = RegionList::from_slice(&self.setup.regions).expect("few regions");
        let addresses = self.addresses();
        let first = [
            ControlEvent::SetProtocolFeatures(ProtocolFeatures::all().bits()),
            ControlEvent::SetOwner,
            ControlEvent::SetFeatures(self.setup.features.bits()),
            ControlEvent::SetMemTable(regions),
        ];
        let last = [
            ControlEvent::SetVringNum { index, size },
            ControlEvent::SetVringBase { index, base },
            ControlEvent::SetVringAddr { index, addresses },
            ControlEvent::SetVringKick { index },
            ControlEvent::SetVringEnable { index, enable: true },
        ];
        for event in first.into_iter().chain(more.iter().cloned()).chain(last) {
            self.input_in(mem, Input::Control(self.device, event));
            assert_eq!(self.reply(), Some(ControlReply::Done));
        }
        self.notified_at_start = 0;
        while self.shard.poll_notify().is_some() {
            self.notified_at_start += 1;
        }
    }

    /// Moves the used index, which is not the guest's to write.
    pub fn set_used(&mut self, index: u16) {
        self.next_used = index;
        self.store_u16(USED_IDX + self.used_ring(), index);
    }

    /// Hands a message in and returns its answer.
    ///
    /// # Panics
    /// Never: only cluster updates can be refused.
    pub fn control(&mut self, event: ControlEvent) -> Option<ControlReply> {
        self.input(Input::Control(self.device, event));
        self.reply()
    }

    fn reply(&mut self) -> Option<ControlReply> {
        let at = self.effects.iter().position(|effect| matches!(effect, Effect::Reply(..)))?;
        match self.effects.remove(at) {
            Some(Effect::Reply(_, reply)) => Some(reply),
            _ => None,
        }
    }

    /// Hands anything in.
    ///
    /// # Panics
    /// When it is a cluster update that the map refuses.
    pub fn input(&mut self, input: Input) {
        self.input_in(self.mem, input);
    }

    /// The same while the core sees the memory in another way.
    ///
    /// # Panics
    /// When it is a cluster update that the map refuses.
    pub fn input_in(&mut self, mem: &impl SharedMemory, input: Input) {
        self.shard.handle(Instant(0), mem, input).expect("no cluster update is refused");
        self.take_effects(mem);
    }

    /// Entries of the ring.
    #[must_use]
    pub const fn size(&self) -> u16 {
        self.setup.size
    }

    /// Where the rings lie for the front end.
    #[must_use]
    pub fn addresses(&self) -> RingAddresses {
        RingAddresses {
            desc: RING_USER,
            avail: RING_USER + self.avail(),
            used: RING_USER + self.used_ring(),
        }
    }

    /// The queue.
    #[must_use]
    pub const fn queue(&self) -> QueueId {
        QueueId { device: self.device, index: 0 }
    }

    /// Whether the ring is packed.
    #[must_use]
    pub const fn is_packed(&self) -> bool {
        self.setup.features.contains(BlkFeatures::RING_PACKED)
    }

    /// Offset of the available ring in [`RING`], or of the driver's event suppression.
    #[must_use]
    pub const fn avail(&self) -> u64 {
        match self.setup.places {
            Some([avail, _]) => avail,
            None => desc_table_bytes(self.setup.size),
        }
    }

    /// Offset of the used ring in [`RING`], or of the device's event suppression.
    #[must_use]
    pub const fn used_ring(&self) -> u64 {
        let size = self.setup.size;
        let bytes = if self.is_packed() { EVENT_BYTES } else { avail_ring_bytes(size) };
        match self.setup.places {
            Some([_, used]) => used,
            None => (self.avail() + bytes).next_multiple_of(4),
        }
    }

    /// Where the rings end in [`RING`].
    #[must_use]
    pub const fn rings_end(&self) -> u64 {
        let size = self.setup.size;
        self.used_ring() + if self.is_packed() { EVENT_BYTES } else { used_ring_bytes(size) }
    }

    /// The part of [`RING`] that the device writes.
    #[must_use]
    pub const fn device_area(&self) -> core::ops::Range<u64> {
        (if self.is_packed() { 0 } else { self.used_ring() })..self.rings_end()
    }

    /// The device as the reference sees it.
    #[must_use]
    pub fn reference(&self) -> Reference<'_> {
        Reference {
            mem: self.mem,
            regions: &self.setup.regions,
            table: (RING, 0),
            size: self.setup.size,
            features: self.setup.features,
            image: &self.setup.image,
        }
    }

    /// Writes one descriptor of the ring's table.
    pub fn desc(&self, index: u16, desc: Desc) {
        self.mem.fill(RING, DESC_BYTES * u64::from(index), &wire(desc));
    }

    /// Writes an indirect table at a guest address.
    pub fn table(&self, at: u64, entries: &[Desc]) {
        self.put(at, &entries.iter().flat_map(|&entry| wire(entry)).collect::<Vec<_>>());
    }

    /// Writes a request header at a guest address.
    pub fn header(&self, at: u64, kind: u32, sector: u64) {
        self.put(at, &[u64::from(kind).to_le_bytes(), sector.to_le_bytes()].concat());
    }

    /// Writes guest memory.
    ///
    /// # Panics
    /// Where there is none.
    pub fn put(&self, at: u64, bytes: &[u8]) {
        for (byte, step) in bytes.iter().zip(0..) {
            let (region, offset) = self.place(at + step).expect("guest memory");
            self.mem.fill(region, offset, &[*byte]);
        }
    }

    /// Reads guest memory.
    ///
    /// # Panics
    /// Where there is none.
    #[must_use]
    pub fn get(&self, at: u64, len: u64) -> Vec<u8> {
        let byte = |step| {
            let (region, offset) = self.place(at + step).expect("guest memory");
            self.mem.dump(region, offset, 1)[0]
        };
        (0..len).map(byte).collect()
    }

    /// Where a guest address lies.
    #[must_use]
    pub fn place(&self, at: u64) -> Option<(RegionId, u64)> {
        place(&self.setup.regions, at)
    }

    /// Makes a chain available.
    pub fn offer(&mut self, head: u16) {
        self.entry(self.next_avail, head);
        self.set_avail(self.next_avail.wrapping_add(1));
    }

    /// Makes a chain of these buffers available under this name, whatever the format of the ring.
    pub fn offer_chain(&mut self, name: u16, buffers: &[(u64, u32, u16)]) {
        if self.is_packed() {
            return self.offer_row(name, buffers);
        }
        for ((&(address, len, flags), left), index) in
            buffers.iter().zip((0..buffers.len()).rev()).zip(name..)
        {
            let more = if left > 0 { DESC_NEXT } else { 0 };
            self.desc(index, (address, len, flags | more, index + 1));
        }
        self.offer(name);
    }

    /// Writes the entry that stands at a free-running index.
    pub fn entry(&self, index: u16, head: u16) {
        let at = u64::from(index & (self.setup.size - 1));
        self.store_u16(self.avail() + AVAIL_RING + 2 * at, head);
    }

    /// Moves the available index anywhere.
    pub fn set_avail(&mut self, index: u16) {
        self.next_avail = index;
        self.store_u16(self.avail() + AVAIL_IDX, index);
    }

    /// The available index as last written.
    #[must_use]
    pub const fn avail_index(&self) -> u16 {
        self.next_avail
    }

    /// Used entries that are new, as (head or id, length).
    pub fn used(&mut self) -> Vec<(u32, u32)> {
        if self.is_packed() {
            return self.used_rows();
        }
        let index = self.load_u16(self.used_ring() + USED_IDX);
        let mut found = Vec::new();
        while self.next_used != index && found.len() <= usize::from(QUEUE_SIZE_MAX) {
            let at = u64::from(self.next_used & (self.setup.size - 1));
            let bytes = self.mem.dump(RING, self.used_ring() + USED_RING + 8 * at, 8);
            let word = |at: usize| {
                u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
            };
            found.push((word(0), word(4)));
            self.next_used = self.next_used.wrapping_add(1);
        }
        found
    }

    /// One turn of the loop, with everything carried out at once.
    pub fn turn(&mut self) {
        self.turn_in(self.mem);
    }

    /// The same while the core sees the memory in another way.
    pub fn turn_in(&mut self, mem: &impl SharedMemory) {
        self.take_in(mem);
        self.work();
        self.give_back(mem);
    }

    /// Takes chains from the ring.
    pub fn take_in(&mut self, mem: &impl SharedMemory) -> Work {
        let work = self.shard.poll_queues(mem, Budget { chains: 256, cost: u32::MAX, samples: 4 });
        self.take_effects(mem);
        work
    }

    /// Carries out all operations.
    pub fn work(&mut self) {
        while let Some(op) = self.next_op() {
            let reply = self.ram.carry_out(self.mem, &op, self.shard.pieces(op.id));
            self.shard.handle_reply(&reply);
        }
    }

    /// All operations that the shard hands out before it gets a reply.
    pub fn ops(&mut self) -> Vec<Op> {
        core::iter::from_fn(|| self.next_op()).collect()
    }

    /// The next operation, checked.
    pub fn next_op(&mut self) -> Option<Op> {
        let op = self.shard.poll_op()?;
        self.check(&op);
        Some(op)
    }

    /// Ends an operation as well as it can.
    pub fn reply_ok(&mut self, op: &Op) {
        let moved = matches!(op.kind, OpKind::Read | OpKind::Write);
        let result = if moved { i64::try_from(op.len).expect("less than an image") } else { 0 };
        self.shard.handle_reply(&Reply { id: op.id, result, version: 0 });
    }

    /// Publishes, notifies and takes effects in.
    pub fn give_back(&mut self, mem: &impl SharedMemory) {
        self.shard.publish(mem);
        while self.shard.poll_notify().is_some() {
            self.notified += 1;
        }
        self.take_effects(mem);
    }

    /// Puts one chain in the ring and runs a turn; what came back, as (head, length).
    pub fn run(&mut self, head: u16) -> Vec<(u32, u32)> {
        self.offer(head);
        self.turn();
        self.used()
    }

    /// Puts a chain of these buffers in the ring, linked in order, and runs a turn. The used
    /// length.
    ///
    /// # Panics
    /// When anything but this one chain comes back.
    pub fn chain(&mut self, buffers: &[(u64, u32, u16)]) -> u32 {
        self.link(buffers);
        let used = self.run(0);
        let [(0, len)] = used[..] else { panic!("one chain is back, not {used:?}") };
        len
    }

    /// Writes descriptors 0, 1, 2, ... so that they form one chain.
    ///
    /// # Panics
    /// When there are none.
    pub fn link(&self, buffers: &[(u64, u32, u16)]) {
        let (_, rest) = buffers.split_first().expect("a chain of something");
        for (index, &(addr, len, flags)) in (0..).zip(buffers) {
            let more = u16::from(usize::from(index) < rest.len());
            self.desc(index, (addr, len, flags | more, (index + 1) * more));
        }
    }

    fn take_effects(&mut self, mem: &impl SharedMemory) {
        while let Some(effect) = self.shard.poll_effect() {
            match effect {
                Effect::Capture(image) if self.setup.grant => {
                    let input = Input::Capture(image, Granted::Yes);
                    self.shard.handle(Instant(0), mem, input).expect("no cluster update");
                }
                Effect::QueueBroken(_, fault) => self.broken = Some(fault),
                Effect::ConfigChanged(_) => self.config_changes += 1,
                effect => self.effects.push_back(effect),
            }
        }
    }

    /// What holds for every operation, whatever the guest wrote.
    ///
    /// # Panics
    /// When it does not hold.
    fn check(&self, op: &Op) {
        let image = &self.setup.image;
        let end = op.offset.checked_add(op.len).expect("the range does not wrap");
        assert!(end <= image.capacity_sectors * 512, "inside the image: {op:?}");
        assert!(op.offset.is_multiple_of(512) && op.len.is_multiple_of(512), "sectors: {op:?}");
        let moves = matches!(op.kind, OpKind::Read | OpKind::Write);
        assert!(op.kind == OpKind::Sync || op.len > 0, "something to do: {op:?}");
        assert!(!image.read_only || matches!(op.kind, OpKind::Read | OpKind::Sync), "{op:?}");
        let mut bytes = 0;
        for piece in self.shard.pieces(op.id) {
            bytes += match piece {
                Piece::Skip(len) => len,
                Piece::Guest(segment) => {
                    let found = self.setup.regions.iter().find(|r| r.id == segment.region());
                    let size = found.expect("a region of the guest").size;
                    assert!(segment.len > 0 && segment.offset < size);
                    assert!(u64::from(segment.len) <= size - segment.offset, "inside its region");
                    u64::from(segment.len)
                }
            };
        }
        assert_eq!(bytes, if moves { op.len } else { 0 }, "the payload is whole");
    }

    fn store_u16(&self, offset: u64, value: u16) {
        self.mem.fill(RING, offset, &value.to_le_bytes());
    }

    fn load_u16(&self, offset: u64) -> u16 {
        let bytes = self.mem.dump(RING, offset, 2);
        u16::from_le_bytes([bytes[0], bytes[1]])
    }
}

/// Where a guest address lies in a memory table.
#[must_use]
pub fn place(regions: &[Region], at: u64) -> Option<(RegionId, u64)> {
    let found = regions.iter().find(|r| at >= r.guest && at - r.guest < r.size)?;
    Some((found.id, at - found.guest))
}

fn wire((addr, len, flags, next): Desc) -> Vec<u8> {
    let mut bytes = addr.to_le_bytes().to_vec();
    bytes.extend(len.to_le_bytes());
    bytes.extend(flags.to_le_bytes());
    bytes.extend(next.to_le_bytes());
    bytes
}
