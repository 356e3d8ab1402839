//! A guest that outlives its daemons: it sleeps until it is notified, and believes nothing twice.

use std::collections::{BTreeMap, BTreeSet};

use sluice_core::memory::{RegionId, SharedMemory};
use sluice_core::virtqueue::layout::USED_IDX;

use super::decode::{in_flight, in_flight_packed};
use super::{DATA, Plan, SECTOR};
use crate::driver::{Buffer, Driver, Layout, RequestSpec, Shape};
use crate::memory::FlatMemory;

/// The guest's memory, and the inflight region.
pub(super) const GUEST: RegionId = RegionId(0);
pub(super) const INFLIGHT: RegionId = RegionId(1);

/// A guest; its requests are reads, numbered in the order in which they are made available, and
/// each is for the sector of its number.
#[derive(Debug)]
pub(super) struct Guest<'m> {
    mem: &'m FlatMemory,
    plan: Plan,
    driver: Driver,
    /// Numbers by head.
    waiting: BTreeMap<u16, u16>,
    /// The next number, and the one behind the last.
    next: u16,
    end: u16,
    /// How often it asks for as much again.
    rounds: u16,
    /// Requests for which an operation was sent.
    pub(super) sent: BTreeSet<u16>,
    /// Those for which one is under way.
    under_way: BTreeSet<u16>,
    /// Whether it has notified, and nobody has heard.
    pub(super) kicked: bool,
    /// Where its queue began or was stopped, which its front end remembers.
    pub(super) base: u32,
}

impl<'m> Guest<'m> {
    pub(super) fn new(mem: &'m FlatMemory, plan: Plan) -> Self {
        let driver = Self::driver(mem, plan);
        let waiting = BTreeMap::new();
        let (sent, under_way) = (BTreeSet::new(), BTreeSet::new());
        let end = plan.requests;
        let (next, rounds, kicked) = (0, plan.rounds - 1, false);
        let base = Self::first_base(&driver, plan);
        Self { mem, plan, driver, waiting, next, end, rounds, sent, under_way, kicked, base }
    }

    fn driver(mem: &FlatMemory, plan: Plan) -> Driver {
        let new = if plan.packed { Layout::packed } else { Layout::new };
        let layout = new(GUEST, 0, 0, plan.size, 4);
        Driver::new_at(mem, layout, plan.event_idx, plan.index).expect("it has its memory")
    }

    /// Where its front end starts a queue for an empty ring.
    const fn first_base(driver: &Driver, plan: Plan) -> u32 {
        if plan.packed { driver.layout().base() } else { plan.index as u32 }
    }

    /// Begins anew with an empty ring: nothing of what it asked for may happen any more.
    pub(super) fn reset(&mut self) {
        self.driver = Self::driver(self.mem, self.plan);
        self.waiting.clear();
        self.end += self.plan.requests - 1;
        self.kicked = false;
        self.base = Self::first_base(&self.driver, self.plan);
    }

    pub(super) fn layout(&self) -> &Layout {
        self.driver.layout()
    }

    fn used_idx(&self) -> u16 {
        let offset = self.layout().used + USED_IDX;
        self.mem.load_acquire_u16(GUEST, offset).expect("its own memory")
    }

    /// Where its front end lets the queue go on: that is all it knows after a kill.
    pub(super) fn known_base(&self) -> u32 {
        if self.plan.packed { self.base } else { self.used_idx().into() }
    }

    /// Where its queue stands when nothing is under way.
    pub(super) const fn rest_base(&self) -> u32 {
        let used = self.driver.used_index() as u32;
        if self.plan.packed { self.driver.avail_index() as u32 | used << 16 } else { used }
    }

    /// Whether everything has come back.
    pub(super) fn is_done(&self) -> bool {
        self.next == self.end && self.waiting.is_empty()
    }

    /// After everything has come back: whether it asks for more.
    pub(super) const fn asks_again(&mut self) -> bool {
        let more = self.rounds > 0;
        if more {
            self.rounds -= 1;
            self.end += self.plan.requests;
        }
        more
    }

    /// It was notified: takes what came back, and asks for more.
    pub(super) fn wake(&mut self) -> Result<(), String> {
        loop {
            while let Some(done) = self.driver.reap(self.mem).map_err(|fault| fault.to_string())? {
                let number = self.waiting.remove(&done.tag.0).ok_or("nobody waits for it")?;
                self.check(number, done.status, done.used_len)?;
            }
            while self.waiting.len() < usize::from(self.plan.depth) && self.add() {}
            self.expose();
            let came = self.driver.arm(self.mem).map_err(|fault| fault.to_string())?;
            if !came {
                return Ok(());
            }
        }
    }

    fn check(&self, number: u16, status: u8, used_len: u32) -> Result<(), String> {
        let data = self.mem.dump(GUEST, Self::buffer(number), SECTOR);
        let right = data.iter().all(|&byte| byte == content(number));
        if (status, used_len) != (0, 513) || !right {
            return Err(format!("request {number} came back {status} {used_len} {}", data[0]));
        }
        if self.under_way.contains(&number) {
            return Err(format!("request {number} came back and is being carried out"));
        }
        Ok(())
    }

    /// Adds one request, if there is one more and room for it.
    pub(super) fn add(&mut self) -> bool {
        if self.next == self.end {
            return false;
        }
        let number = self.next;
        let buffer = Buffer { addr: Self::buffer(number), len: 512 };
        self.mem.fill(GUEST, buffer.addr, &[0xaa; SECTOR]);
        let buffers = [buffer];
        // In a packed ring chains are of different lengths.
        let indirect = !self.plan.packed || number.is_multiple_of(2);
        let shape = if indirect { Shape::INDIRECT } else { Shape::PLAIN };
        let spec = RequestSpec::read(number.into(), &buffers).shaped(shape);
        let Some(tag) = self.driver.add(self.mem, &spec) else { return false };
        self.waiting.insert(tag.0, number);
        self.next += 1;
        true
    }

    pub(super) fn expose(&mut self) {
        self.driver.expose(self.mem);
        self.kicked |= self.driver.should_kick(self.mem);
    }

    /// The daemon is dead, and with it what it had under way.
    pub(super) fn bury(&mut self) {
        self.under_way.clear();
        // Nobody hears what was signalled in the meantime.
        self.kicked = false;
    }

    /// The disk moves a request's data.
    pub(super) fn land(&mut self, number: u16) {
        self.under_way.remove(&number);
        self.mem.fill(GUEST, Self::buffer(number), &[content(number); SECTOR]);
    }

    const fn buffer(number: u16) -> u64 {
        DATA + 512 * number as u64
    }

    /// What it waits for by head, without what was given back and it has not seen yet.
    fn unpublished(&self) -> BTreeMap<u16, u16> {
        let (mut rest, mut driver) = (self.waiting.clone(), self.driver.clone());
        while let Ok(Some(done)) = driver.reap(self.mem) {
            rest.remove(&done.tag.0);
        }
        rest
    }

    /// The device sends an operation.
    pub(super) fn asked(&mut self, number: u16) -> Result<(), String> {
        if !self.unpublished().values().any(|&other| other == number) {
            return Err(format!("request {number} is carried out though nobody waits for it"));
        }
        self.sent.insert(number);
        self.under_way.insert(number);
        Ok(())
    }

    /// The region at a moment at which the daemon may be dead (I13): what was sent is in it, and
    /// nothing that was not asked for, in order.
    pub(super) fn check_region(&self) -> Result<(), String> {
        let area = self.mem.dump(INFLIGHT, 0, self.plan.area_bytes());
        let heads = if self.plan.packed {
            let ring = self.mem.dump(GUEST, self.layout().desc, 16 * usize::from(self.plan.size));
            in_flight_packed(&area, &ring)?
        } else {
            in_flight(&area, self.used_idx())?
        };
        let rest = self.unpublished();
        let numbers: Option<Vec<u16>> = heads.iter().map(|head| rest.get(head).copied()).collect();
        let numbers = numbers.ok_or_else(|| format!("{heads:?} in flight, {rest:?} asked for"))?;
        if !numbers.is_sorted() {
            return Err(format!("{numbers:?} are in flight, out of order"));
        }
        let missing = rest.values().find(|n| self.sent.contains(n) && !numbers.contains(n));
        missing.map_or(Ok(()), |n| Err(format!("request {n} was sent and is not in {numbers:?}")))
    }

    /// The area of a queue that has stopped looks as if nobody had used it.
    pub(super) fn check_empty(&self, interrupted: bool) -> Result<(), String> {
        let version = self.mem.dump(INFLIGHT, 8, 2);
        if version == [0, 0] || interrupted { Ok(()) } else { Err("a stop left its area".into()) }
    }
}

/// What the sector of a request holds.
fn content(number: u16) -> u8 {
    u8::try_from(number).unwrap_or(0x7f) + 1
}
