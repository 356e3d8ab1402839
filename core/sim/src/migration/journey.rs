//! A small guest on its way to another host, with one device.

use sluice_core::blk::BlkFeatures;
use sluice_core::device::{ControlEvent, ProtocolFeatures, RegionList};
use sluice_core::dirty::PAGE_BYTES;
use sluice_core::image::Backing;
use sluice_core::inflight::region_bytes;
use sluice_core::memory::{Region, RegionId};
use sluice_core::op::{Op, OpKind, Piece};
use sluice_core::placement::{ClusterId, Epoch, OsdNum, PgNum, PoolConfig, PoolId, Update};
use sluice_core::shard::Input;
use sluice_core::virtqueue::layout::{DESC_WRITE, USED_IDX, avail_event_offset};

use super::{Copied, NEVER, REMAPPED};
use crate::memory::FlatMemory;
use crate::rig::{DATA_BYTES, HIGH_GUEST, LOW_GUEST, RING, RING_BYTES, Rig, Setup, arena};

const LOG: RegionId = RegionId(3);
const LOG_BYTES: usize = 0x200;
const INFLIGHT: RegionId = RegionId(4);
const INFLIGHT_BYTES: usize = 0x5000;

const IN: u32 = 0;
const OUT: u32 = 1;
const FLUSH: u32 = 4;
const GET_ID: u32 = 8;

/// Chains of the guest by name, and what they ask for.
const CHAINS: [(u16, u32); 5] = [(6, IN), (0, FLUSH), (12, IN), (3, GET_ID), (9, OUT)];

/// A device, and where its parts lie.
#[derive(Clone, Debug)]
pub struct Case {
    setup: Setup,
    /// Whether its memory is mapped anew while reads are under way.
    remaps: bool,
    /// Whether a stop comes in the middle of a read of two objects, and leaves it.
    leaves: bool,
}

/// The pool of images that are cut into objects: eight sectors each.
const POOL: PoolConfig = PoolConfig {
    id: PoolId(1),
    block_bytes: 4096,
    data_chunks: 1,
    pg_stripe_bytes: 4096,
    pg_count: 1,
};

impl Case {
    fn new(features: BlkFeatures, size: u16, base: u16, places: Option<[u64; 2]>) -> Self {
        let mut setup = Setup { size, base, places, ..Setup::default() };
        setup.features |= features | BlkFeatures::LOG_ALL;
        setup.image.backing = Backing::Cluster { cluster: ClusterId(0), pool: POOL.id, inode: 1 };
        Self { setup, remaps: false, leaves: false }
    }

    /// Rings of both formats, laid out so that what could be forgotten is alone in its page.
    #[must_use]
    pub fn all() -> Vec<Self> {
        let (event, packed) = (BlkFeatures::EVENT_IDX, BlkFeatures::RING_PACKED);
        // The event index begins a page: nothing else of the ring is in it.
        let alone = 3 * PAGE_BYTES - avail_event_offset(16);
        // An entry of a ring that is in use ends a page.
        let crossing = 3 * PAGE_BYTES - 4 - 8 * 8;
        // Event suppressions in pages of their own, behind a ring that crosses into a second one.
        let far = Some([6 * PAGE_BYTES, 7 * PAGE_BYTES]);
        let plain = [
            Self::new(BlkFeatures::empty(), 16, 0, None),
            Self::new(event, 16, 0, Some([PAGE_BYTES, alone])),
            Self::new(event, 16, 7, Some([PAGE_BYTES, crossing])),
            Self::new(packed, 16, 0x8000, None),
            Self::new(packed | event, 300, 0x8000 | 251, far),
            Self::new(packed | event, 17, 16, far),
        ];
        let kinds = |case: Self| {
            let remaps = Self { remaps: true, ..case.clone() };
            let leaves = Self { leaves: true, ..case.clone() };
            [case, remaps, leaves]
        };
        plain.into_iter().flat_map(kinds).collect()
    }

    /// What a front end says before it starts the queue.
    fn connect(&self) -> [ControlEvent; 3] {
        let leaves = ProtocolFeatures::GET_VRING_BASE_INFLIGHT;
        let mut protocol = ProtocolFeatures::all();
        protocol.set(leaves, self.leaves);
        let size = self.setup.size;
        let len = region_bytes(1, size, true);
        [
            ControlEvent::SetProtocolFeatures(protocol.bits()),
            ControlEvent::SetLogBase { region: LOG, bytes: LOG_BYTES as u64 },
            ControlEvent::SetInflight { region: INFLIGHT, offset: 0, len, queues: 1, size },
        ]
    }

    /// Its memory table, mapped anew.
    fn remapped(&self) -> ControlEvent {
        let again = |region: &Region| Region { id: RegionId(region.id.0 + REMAPPED), ..*region };
        ControlEvent::SetMemTable(self.setup.regions.iter().map(again).collect::<RegionList>())
    }
}

/// Copies the guest at every moment of its device's life.
///
/// # Errors
/// What was missed, or went wrong otherwise.
pub fn copy_at_any_moment(case: &Case) -> Result<(), String> {
    let moments = travel(case, NEVER, NEVER)?;
    (0..moments).try_for_each(|copies_at| travel(case, copies_at, NEVER).map(drop))
}

/// Kills the device at every moment of its life, and copies the guest at none and at every one
/// before that.
///
/// # Errors
/// What was missed, or went wrong otherwise.
pub fn copy_before_any_death(case: &Case) -> Result<(), String> {
    for dies_at in 0..travel(case, NEVER, NEVER)? {
        travel(case, NEVER, dies_at)?;
        for copies_at in 0..=dies_at {
            travel(case, copies_at, dies_at)?;
        }
    }
    Ok(())
}

/// A guest on its way, and its device.
struct Journey<'m, 'a> {
    case: &'a Case,
    mem: &'a Copied<'m>,
    rig: Rig<'m>,
    /// Operations under way, each with what it moves.
    ops: Vec<(Op, Vec<Piece>)>,
    /// Whether the device has died while it gave something back.
    died_giving: bool,
}

impl Journey<'_, '_> {
    /// The guest asks for everything. Status bytes lie in a page of their own, and so do serial
    /// and data; one read crosses from one region into the next.
    fn ask(&mut self) {
        for (name, kind) in CHAINS {
            let at = u64::from(name);
            let header = LOW_GUEST + 16 * at;
            self.rig.header(header, kind, at + 1);
            // From one object into the next, and from one region into the next.
            let (data, bytes) = match name {
                6 => (HIGH_GUEST - 0x100, 1024),
                _ => (LOW_GUEST + 0x1000 + 0x100 * at, 512),
            };
            let status = (HIGH_GUEST + 0x1000 + 0x200 * at, 1, DESC_WRITE);
            let header = (header, 16, 0);
            let chain = match kind {
                IN => &[header, (data, bytes, DESC_WRITE), status][..],
                OUT => &[header, (data, bytes, 0), status],
                GET_ID => &[header, (data, 20, DESC_WRITE), status],
                _ => &[header, status],
            };
            self.rig.offer_chain(name, chain);
        }
    }

    /// Takes chains in, and sends at most so many operations.
    fn take_in(&mut self, count: usize) {
        self.rig.take_in(self.mem);
        while self.ops.len() < count
            && let Some(op) = self.rig.next_op()
        {
            self.ops.push((op, self.rig.shard.pieces(op.id).collect()));
        }
    }

    /// The last of the operations under way end, and are given back.
    fn finish(&mut self, count: usize) {
        let was_dead = self.mem.is_dead();
        let first = self.ops.len().saturating_sub(count);
        for (op, pieces) in self.ops.split_off(first) {
            for piece in pieces {
                if let (OpKind::Read, Piece::Guest(segment)) = (op.kind, piece) {
                    self.mem.land(segment);
                }
            }
            self.rig.reply_ok(&op);
        }
        self.rig.give_back(self.mem);
        self.died_giving |= !was_dead && self.mem.is_dead();
    }

    fn control(&mut self, event: ControlEvent) {
        self.rig.input_in(self.mem, Input::Control(self.rig.device, event));
    }

    /// Everything that a device does, from a start to a stop.
    fn live(&mut self) {
        self.rig.shard.arm(self.mem);
        self.ask();
        self.rig.shard.handle_kick(self.mem, self.rig.queue());
        // The second half of the first read comes last.
        self.take_in(if self.case.leaves { 4 } else { usize::MAX });
        if self.case.remaps {
            self.control(self.case.remapped());
        }
        self.finish(2);
        self.rig.shard.arm(self.mem);
        if self.case.leaves {
            self.control(ControlEvent::GetVringBase { index: 0 });
        }
        self.finish(usize::MAX);
        self.rig.shard.handle_kick(self.mem, self.rig.queue());
        self.rig.shard.arm(self.mem);
        self.control(ControlEvent::GetVringBase { index: 0 });
    }

    /// A successor of a device that has died takes up what is left, to the end.
    fn go_on(&mut self) {
        self.rig.input_in(self.mem, Input::FrontEndGone(self.rig.device));
        self.ops.drain(..).for_each(|(op, _)| self.rig.reply_ok(&op));
        self.rig.give_back(self.mem);
        self.rig.effects.clear();
        self.mem.revive();
        let used = self.rig.mem.dump(RING, self.rig.used_ring() + USED_IDX, 2);
        let used = u16::from_le_bytes([used[0], used[1]]);
        let base = if self.rig.is_packed() { self.case.setup.base } else { used };
        self.rig.go_on_in(self.mem, &self.case.connect(), base);
        for _ in 0..3 {
            self.take_in(usize::MAX);
            self.finish(usize::MAX);
        }
        self.rig.shard.arm(self.mem);
        self.control(ControlEvent::GetVringBase { index: 0 });
    }
}

fn memory() -> FlatMemory {
    let bytes = |len| usize::try_from(len).expect("small");
    let (data, ring) = (bytes(DATA_BYTES), bytes(RING_BYTES));
    FlatMemory::new(&[data, data, ring, LOG_BYTES, INFLIGHT_BYTES])
}

/// Goes the whole way with a copy at one moment and a death at another. Says how many moments the
/// device had.
fn travel(case: &Case, copies_at: u64, dies_at: u64) -> Result<u64, String> {
    let (mut arena, flat) = (arena(64), memory());
    let mut rig = Rig::new(&mut arena, &flat, case.setup.clone());
    rig.input(Input::FrontEndGone(rig.device));
    rig.effects.clear();
    flat.fill(INFLIGHT, 0, &[0; INFLIGHT_BYTES]);
    flat.fill(LOG, 0, &[0; LOG_BYTES]);
    rig.attach_with(&case.connect());
    let primary = Update::Primary { pool: POOL.id, pg: PgNum(1), osd: Some(OsdNum(1)) };
    for (update, epoch) in [Update::Pool(POOL), primary].into_iter().zip(1..) {
        rig.input(Input::Cluster(ClusterId(0), Epoch(epoch), update));
    }
    // From here on the guest is being copied.
    flat.fill(LOG, 0, &[0; LOG_BYTES]);
    let mem = Copied::new(&flat, &case.setup.regions, (LOG, LOG_BYTES), (copies_at, dies_at));
    let mut journey = Journey { case, mem: &mem, rig, ops: Vec::new(), died_giving: false };
    journey.live();
    let moments = mem.moments();
    let when = || format!("copied at {copies_at}, killed at {dies_at} of {moments}, {case:?}");
    let complete = |missed: Vec<u64>| match missed[..] {
        [] => Ok(()),
        _ => Err(format!("{}: pages {missed:x?} are old", when())),
    };
    if mem.is_dead() {
        // It may be the last that this guest has here.
        if journey.died_giving && copies_at == NEVER {
            complete(mem.missed())?;
        }
        journey.go_on();
    }
    complete(mem.missed())?;
    let broken = journey.rig.broken;
    broken.map_or(Ok(moments), |fault| Err(format!("{}: {fault:?}", when())))
}
