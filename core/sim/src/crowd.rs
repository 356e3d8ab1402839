//! Devices that ask one shard for more than their shares, and how long each of them waits.
//!
//! Everybody always has something to ask for. No clock: waiting is counted in turns, and in what
//! was done for others meanwhile.

use sluice_core::blk::BlkFeatures;
use sluice_core::blk::request::RangeWire;
use sluice_core::device::{ControlEvent, ControlReply, DeviceConfig, DeviceId};
use sluice_core::image::{Backing, ImageConfig, ImageId};
use sluice_core::limits::{OP_COST, SLICE_BYTES, TURN_COST, TURN_SHARE_MIN};
use sluice_core::memory::{Region, RegionId};
use sluice_core::op::{Op, OpKind, Reply, Target};
use sluice_core::shard::{Budget, Effect, Granted, Input, Shard, Work};
use sluice_core::time::Instant;

use crate::arena::{Arena, Capacity};
use crate::driver::{Buffer, Driver, Kind, Layout, RequestSpec, Shape};
use crate::memory::FlatMemory;
use crate::negotiate::{ask, connect, features, start_queue};
use crate::prng::Prng;

/// Entries of each ring.
const SIZE: u16 = 128;
/// Bytes of memory for each queue, and behind them for the data of the largest request.
const QUEUE_BYTES: u64 = 64 << 10;
const DATA_BYTES: u64 = 1 << 20;

/// A device and what its guest does.
#[derive(Clone, Copy, Debug)]
pub struct Member {
    /// Queues, each of which always has `depth` requests under way.
    pub queues: u16,
    /// Requests in each queue.
    pub depth: u16,
    /// What they do.
    pub kind: Kind,
    /// Bytes of each, up to 1 MiB for those with a payload.
    pub bytes: u32,
    /// Whether its rings are packed.
    pub packed: bool,
    /// Whether its store works inside the turn; one that does not answers in the next.
    pub in_turn: bool,
    /// Whether its store answers at all.
    pub answers: bool,
}

impl Member {
    /// One queue with one request of 4 KiB at a time, on a store that works inside the turn.
    pub const LIGHT: Self = Self {
        queues: 1,
        depth: 1,
        kind: Kind::Read,
        bytes: 4096,
        packed: false,
        in_turn: true,
        answers: true,
    };

    /// Memory that its guest has.
    fn memory_bytes(&self) -> u64 {
        u64::from(self.queues) * QUEUE_BYTES + DATA_BYTES
    }
}

/// Memory for these devices.
#[must_use]
pub fn memory(members: &[Member]) -> FlatMemory {
    let bytes = |member: &Member| usize::try_from(member.memory_bytes()).expect("small");
    FlatMemory::new(&members.iter().map(bytes).collect::<Vec<_>>())
}

/// Room for these devices and so many requests.
#[must_use]
pub fn arena(members: &[Member], requests: usize) -> Arena {
    let queues = members.iter().map(|member| usize::from(member.queues)).sum();
    let (images, devices) = (members.len(), members.len());
    Arena::new(Capacity { images, devices, queues, requests, parts: requests + 1, groups: 0 })
}

/// What one turn did, by device.
#[derive(Clone, Debug, Default)]
pub struct Turn {
    /// What the shard said of it.
    pub work: Work,
    /// Operations that were handed out.
    pub ops: Vec<Op>,
    /// Requests that came back.
    pub ended: Vec<u32>,
    /// Answers to control messages.
    pub replies: Vec<(usize, ControlReply)>,
}

impl Turn {
    /// Operations that were handed out for one device.
    pub fn ops_of(&self, member: usize) -> impl Iterator<Item = &Op> {
        self.ops.iter().filter(move |op| owner(op) == member)
    }
}

/// A shard and its devices.
#[derive(Debug)]
pub struct Crowd<'a> {
    mem: &'a FlatMemory,
    /// The core.
    pub shard: Shard<'a>,
    members: Vec<Member>,
    drivers: Vec<Vec<Driver>>,
    /// Operations without an answer.
    pending: Vec<Op>,
    /// Whose guests ask for nothing more.
    quiet: Vec<bool>,
    /// Answers since the last turn.
    replies: Vec<(usize, ControlReply)>,
}

impl<'a> Crowd<'a> {
    /// All devices run, and nobody has asked for anything.
    ///
    /// # Panics
    /// When the core refuses what every front end says.
    #[must_use]
    pub fn new(arena: &'a mut Arena, mem: &'a FlatMemory, members: &[Member]) -> Self {
        let mut shard = Shard::new(arena.storage());
        let mut drivers = Vec::new();
        for (number, member) in (0..).zip(members) {
            let image = shard.add_image(image(member)).expect("room for its image");
            let config = DeviceConfig { image, serial: [0; 20], queues: member.queues };
            let device = shard.add_device(config).expect("room for the device");
            drivers.push(bring_up(&mut shard, mem, device, RegionId(number), member));
        }
        let quiet = vec![false; members.len()];
        let (members, pending, replies) = (members.to_vec(), Vec::new(), Vec::new());
        Self { mem, shard, members, drivers, pending, quiet, replies }
    }

    /// A device's front end says something; the answer comes with a turn.
    ///
    /// # Panics
    /// Never: it is no cluster update.
    pub fn say(&mut self, member: u32, event: ControlEvent) {
        let input = Input::Control(DeviceId(member), event);
        self.shard.handle(Instant(0), self.mem, input).expect("no cluster update");
    }

    /// A device's guest asks for nothing more, or goes on.
    pub fn set_quiet(&mut self, member: usize, quiet: bool) {
        self.quiet[member] = quiet;
    }

    /// Fills every queue up to its depth.
    ///
    /// # Panics
    /// When a ring is too small for its depth.
    pub fn feed(&mut self) {
        let rows = self.members.iter().zip(&mut self.drivers).zip(&self.quiet);
        for ((member, drivers), _) in rows.filter(|(_, quiet)| !**quiet) {
            let range = RangeWire {
                sector: 0.into(),
                sectors: (member.bytes / 512).into(),
                flags: 0.into(),
            };
            let data = Buffer { addr: member.memory_bytes() - DATA_BYTES, len: member.bytes };
            let id = Buffer { len: 20, ..data };
            let (buffers, ranges): (&[Buffer], &[RangeWire]) = match member.kind {
                Kind::Read | Kind::Write => (&[data], &[]),
                Kind::GetId => (&[id], &[]),
                Kind::Discard | Kind::WriteZeroes => (&[], &[range]),
                Kind::Flush | Kind::Other { .. } => (&[], &[]),
            };
            let kind = member.kind;
            let shape = Shape::PLAIN;
            let spec = RequestSpec { kind, sector: 0, buffers, ranges, shape, silent: false };
            for driver in drivers {
                while driver.in_flight() < member.depth {
                    driver.add(self.mem, &spec).expect("room in the ring");
                }
                driver.expose(self.mem);
            }
        }
    }

    /// One turn of the shard's thread, after the guests have asked for what they want.
    ///
    /// # Panics
    /// When a request fails.
    pub fn turn(&mut self, samples: u32) -> Turn {
        self.feed();
        for op in core::mem::take(&mut self.pending) {
            if self.members[owner(&op)].answers { self.end(&op) } else { self.pending.push(op) }
        }
        let work = self.shard.poll_queues(self.mem, Budget::of_turn(samples));
        self.take_effects();
        let mut ops = Vec::new();
        while let Some(op) = self.shard.poll_op() {
            ops.push(op);
            let member = &self.members[owner(&op)];
            if member.in_turn && member.answers { self.end(&op) } else { self.pending.push(op) }
        }
        self.shard.publish(self.mem);
        while self.shard.poll_notify().is_some() {}
        self.take_effects();
        let replies = core::mem::take(&mut self.replies);
        Turn { work, ops, ended: self.reap(), replies }
    }

    fn end(&mut self, op: &Op) {
        let moves = matches!(op.kind, OpKind::Read | OpKind::Write);
        let result = if moves { i64::try_from(op.len).expect("small") } else { 0 };
        self.shard.handle_reply(&Reply { id: op.id, result, version: 0 });
    }

    fn reap(&mut self) -> Vec<u32> {
        let mut ended = vec![0; self.drivers.len()];
        for (count, drivers) in ended.iter_mut().zip(&mut self.drivers) {
            for driver in drivers {
                while let Some(done) = driver.reap(self.mem).expect("a sound device") {
                    assert_eq!(done.status, 0, "it can be done");
                    *count += 1;
                }
            }
        }
        ended
    }

    fn take_effects(&mut self) {
        while let Some(effect) = self.shard.poll_effect() {
            match effect {
                Effect::Capture(image) => {
                    let granted = Input::Capture(image, Granted::Yes);
                    self.shard.handle(Instant(0), self.mem, granted).expect("no cluster update");
                }
                Effect::Reply(device, reply) => self.replies.push((device.0 as usize, reply)),
                _ => {}
            }
        }
    }
}

/// Whose operation it is: each device has an image of its own.
fn owner(op: &Op) -> usize {
    let Target::Store(ImageId(image)) = op.target else { unreachable!("no cluster") };
    image as usize
}

fn image(member: &Member) -> ImageConfig {
    ImageConfig {
        backing: Backing::Store,
        capacity_sectors: 1 << 21,
        block_bytes: 512,
        read_only: false,
        discard: true,
        write_zeroes: true,
        poisoned: false,
        in_turn: member.in_turn,
    }
}

/// Plays the front end until all queues run.
fn bring_up(
    shard: &mut Shard<'_>,
    mem: &FlatMemory,
    device: DeviceId,
    id: RegionId,
    member: &Member,
) -> Vec<Driver> {
    let region = Region { id, guest: 0, user: 0, size: member.memory_bytes() };
    let mut wanted = features(true);
    wanted.set(BlkFeatures::RING_PACKED, member.packed);
    let mut say = |event| {
        let reply = ask(shard, mem, device, event);
        assert!(!matches!(reply, ControlReply::Refused(_)), "{reply:?}");
    };
    connect(wanted, &[region]).for_each(&mut say);
    let new = if member.packed { Layout::packed } else { Layout::new };
    let start = |index: u16| {
        let layout = new(id, 0, u64::from(index) * QUEUE_BYTES, SIZE, 0);
        assert!(layout.end() <= u64::from(index + 1) * QUEUE_BYTES, "room for a queue");
        let driver = Driver::new(mem, layout, true).expect("memory for the driver");
        start_queue(index.into(), &layout, &region, layout.base()).for_each(&mut say);
        driver
    };
    (0..member.queues).map(start).collect()
}

/// What an operation costs others: what the core is expected to count.
#[must_use]
pub fn cost(op: &Op, member: &Member) -> u64 {
    let moved = match op.kind {
        _ if !member.in_turn => 0,
        OpKind::Read | OpKind::Write => op.len,
        OpKind::Sync | OpKind::Discard | OpKind::WriteZeroes { .. } => SLICE_BYTES,
    };
    u64::from(OP_COST) + moved
}

/// Turns of a crowd in which somebody with work may wait: one for each other, and as many more
/// rounds as it takes to pay back the largest debt.
#[must_use]
pub fn turns_max(members: usize) -> usize {
    let debt = u64::from(OP_COST) + SLICE_BYTES;
    let rounds = 1 + debt.div_ceil(TURN_SHARE_MIN.into());
    members * usize::try_from(rounds).expect("few")
}

/// A crowd drawn from a seed: nobody waits longer than is allowed for.
///
/// # Errors
/// Says who waited for how long.
pub fn run(seed: u64) -> Result<(), String> {
    let mut prng = Prng::new(seed);
    let members: Vec<_> = (0..2 + prng.below(4)).map(|_| draw(&mut prng)).collect();
    let (mut arena, mem) = (arena(&members, 16 << prng.below(6)), memory(&members));
    let mut crowd = Crowd::new(&mut arena, &mem, &members);
    let mut waits = vec![(0, 0); members.len()];
    for _ in 0..200 {
        let turn = crowd.turn(0);
        for (number, wait) in waits.iter_mut().enumerate() {
            *wait = judge(&turn, &members, number, *wait)
                .map_err(|what| format!("{number} of {members:#?}: {what}"))?;
        }
    }
    Ok(())
}

/// Turns that a device has waited for, and what was done for others meanwhile.
fn judge(
    turn: &Turn,
    members: &[Member],
    number: usize,
    (turns, bytes): (usize, u64),
) -> Result<(usize, u64), String> {
    if !members[number].answers || turn.ended[number] > 0 || turn.ops_of(number).next().is_some() {
        return Ok((0, 0));
    }
    let others: u64 = members.iter().enumerate().fold(0, |sum, (other, member)| {
        sum + turn.ops_of(other).map(|op| cost(op, member)).sum::<u64>()
    });
    let (turns, bytes) = (turns + 1, bytes + others);
    let (turns_max, most) = (turns_max(members.len()), u64::from(TURN_COST) + SLICE_BYTES);
    if turns > turns_max || bytes > turns_max as u64 * most {
        return Err(format!("it has waited for {turns} turns and {bytes} bytes"));
    }
    Ok((turns, bytes))
}

fn draw(prng: &mut Prng) -> Member {
    let kinds =
        [Kind::Read, Kind::Write, Kind::GetId, Kind::Flush, Kind::Discard, Kind::WriteZeroes];
    let light = prng.chance(300);
    let depth = u16::try_from(prng.between(1, 40)).unwrap_or(1);
    let queues = u16::try_from(1 + prng.skewed(15)).unwrap_or(1);
    Member {
        queues: if light { 1 } else { queues },
        depth: if light { 1 } else { depth },
        kind: kinds[prng.index(kinds.len())],
        bytes: 4096 << prng.below(9),
        packed: prng.chance(500),
        in_turn: prng.chance(600),
        answers: prng.chance(850),
    }
}
