//! Every moment at which a daemon can be killed, in small worlds: what its successors make of it.
//!
//! A daemon serves a guest that asks for a few requests. It is killed at every store and between
//! any two things that somebody outside can tell, for every order and every grouping in which
//! the requests may end; its successor is killed likewise; the third goes on to the end.

mod choices;
mod daemon;
mod decode;
mod guest;
mod mortal;

pub use choices::Choices;
pub use decode::{in_flight, in_flight_packed};
pub use mortal::{Life, Mortal};

use sluice_core::inflight::region_bytes;

use crate::arena::{Arena, Capacity};
use crate::memory::FlatMemory;
use daemon::Daemon;
use guest::{GUEST, Guest, INFLIGHT};

/// Bytes of a request.
const SECTOR: usize = 512;
/// Where the guest has its data.
const DATA: u64 = 0x1000;
/// Bytes of the guest's memory.
const GUEST_BYTES: u64 = 0x3000;

/// One small world.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Requests that the guest asks for.
    pub requests: u16,
    /// How many of them at once; the next come when others have come back, by the same heads.
    pub depth: u16,
    /// How often it asks for so many. Between two rounds its queue is stopped and started: its
    /// ring is in use then, and its area is not, as after a migration.
    pub rounds: u16,
    /// Whether the ring is packed: then every other chain has three entries, not one.
    pub packed: bool,
    /// Entries of the ring.
    pub size: u16,
    /// Where the indices of a split ring begin.
    pub index: u16,
    /// Whether event indices are in use.
    pub event_idx: bool,
    /// Whether the guest asks for one more while nobody serves it.
    pub adds_while_down: bool,
    /// Whether the guest is reset while nobody serves it, the first time.
    pub resets_while_down: bool,
}

impl Plan {
    /// Bytes of its inflight region.
    fn area_bytes(&self) -> usize {
        usize::try_from(region_bytes(1, self.size, self.packed)).expect("small")
    }
}

/// How much was looked at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Explored {
    /// Ways in which the requests may end.
    pub ways: u64,
    /// Moments at which a daemon was killed.
    pub kills: u64,
    /// Moments at which its successor was killed too.
    pub kills_again: u64,
}

impl core::ops::AddAssign for Explored {
    fn add_assign(&mut self, more: Self) {
        self.ways += more.ways;
        self.kills += more.kills;
        self.kills_again += more.kills_again;
    }
}

/// A life that ends by itself.
const WHOLE: u64 = u64::MAX;

/// Goes all ways of a plan.
///
/// # Errors
/// What went wrong, and on which way.
pub fn explore(plan: Plan) -> Result<Explored, String> {
    let mut lab = Lab::new(plan);
    let mut choices = Choices::default();
    let mut explored = Explored::default();
    let mut from = 0;
    loop {
        let mut run = |lives: &[u64]| {
            choices.rewind();
            let spent = lab.run(&mut choices, lives);
            spent.map_err(|what| format!("{plan:?}, {choices:?}, killed at {lives:?}: {what}"))
        };
        let first = run(&[WHOLE])?;
        explored.ways += 1;
        for kill in from..first {
            let second = run(&[kill, WHOLE])?;
            explored.kills += 1;
            for again in 0..second {
                run(&[kill, again, WHOLE])?;
                explored.kills_again += 1;
            }
        }
        // Until there it was the same.
        match choices.next_way() {
            Some(moment) => from = moment,
            None => return Ok(explored),
        }
    }
}

/// What outlives the daemons, and what is used for one after the other.
#[derive(Debug)]
struct Lab {
    plan: Plan,
    mem: FlatMemory,
    arena: Arena,
}

impl Lab {
    fn new(plan: Plan) -> Self {
        let bytes = |len| usize::try_from(len).expect("small");
        let mem = FlatMemory::new(&[bytes(GUEST_BYTES), plan.area_bytes()]);
        let capacity =
            Capacity { images: 1, devices: 1, queues: 1, requests: 8, parts: 9, groups: 0 };
        Self { plan, mem, arena: Arena::new(capacity) }
    }

    /// Runs one daemon after the other, each with so many moments; says how many the last had.
    fn run(&mut self, choices: &mut Choices, lives: &[u64]) -> Result<u64, String> {
        let plan = self.plan;
        let area = vec![0; plan.area_bytes()];
        self.mem.fill(INFLIGHT, 0, &area);
        let mut guest = Guest::new(&self.mem, plan);
        guest.wake()?;
        let mut spent = 0;
        for (generation, &moments) in (0..).zip(lives) {
            let life = Life::new(moments);
            let mem = Mortal { inner: &self.mem, life: &life };
            let mut daemon = Daemon::new(&mut self.arena, mem, generation);
            // Only the first one's requests end in every order.
            let choices = (generation == 0).then_some(&mut *choices);
            daemon.live(&mut guest, plan, choices)?;
            spent = life.spent();
            if !life.is_over() {
                let left = if guest.is_done() { Ok(spent) } else { Err("all are asleep".into()) };
                return left;
            }
            guest.check_region()?;
            if plan.resets_while_down && generation == 0 {
                guest.reset();
                self.mem.fill(INFLIGHT, 0, &area);
                guest.wake()?;
            }
            if plan.adds_while_down && guest.add() {
                guest.expose();
            }
            guest.bury();
        }
        Ok(spent)
    }
}
