//! Fair shares: whose turn it is, and what a turn may cost.
//!
//! Devices take turns, not queues. Each has a credit of bytes that a turn fills up and that its
//! operations use; who has overdrawn it pays that back in its next turns. A device that uses its
//! share up has turns of its own: what others have asked for is not published behind its bytes.

use super::intake::{Budget, Work};
use super::{Shard, TURN};
use crate::image::{Backing, Cut, Geometry};
use crate::limits::{
    CHAINS_SHARE_MIN, CLEARED_BYTES, FLIGHT_ALONE_BYTES, FLIGHT_BYTES, LINGER_TURNS, OP_COST,
    PART_BYTES_MAX, PARTS_RESERVED, QUEUE_BATCH, SLICE_BYTES, TURN_SHARE_MIN,
};
use crate::memory::SharedMemory;
use crate::op::OpKind;
use crate::planted::{Fault, planted};
use crate::slots::Fifo;

/// What a device has of its shard.
#[derive(Debug)]
pub(crate) struct Share {
    /// Queues visited in its turns, and queues that are armed.
    pub(crate) active: Fifo<TURN>,
    pub(crate) armed: Fifo<TURN>,
    /// Requests with something to cut.
    pub(crate) cut: Fifo<0>,
    /// Operations under way, and what they weigh together.
    parts: u32,
    weight: u64,
    /// What its operations may still cost; below 0 it is a debt.
    credit: i64,
    /// The turn that filled it up last.
    turn: u32,
    /// Whether it had more to do than its last turn let it.
    spent: bool,
    /// Whether it stands in the lists of devices with work, with armed queues, and of those that
    /// have this turn.
    in_round: bool,
    in_armed: bool,
    in_turn: bool,
}

impl Share {
    pub(crate) const NONE: Self = Self {
        active: Fifo::EMPTY,
        armed: Fifo::EMPTY,
        cut: Fifo::EMPTY,
        parts: 0,
        weight: 0,
        credit: 0,
        turn: 0,
        spent: false,
        in_round: false,
        in_armed: false,
        in_turn: false,
    };

    /// An operation is handed out that weighs so much.
    #[inline]
    pub(super) const fn charge(&mut self, weight: u64, cost: i64) {
        self.credit -= cost;
        self.parts += 1;
        self.weight += weight;
    }

    /// An operation has ended that weighed so much.
    #[inline]
    pub(super) const fn discharge(&mut self, weight: u64) {
        self.parts -= 1;
        self.weight -= weight;
    }
}

/// What the devices that have this turn may do in it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Allowance {
    number: u32,
    /// Turns in a row in which no more than one device had work.
    alone: u32,
    /// Chains that each may take, and what its operations may cost.
    chains: u32,
    cost: i64,
    /// What each may have under way in the store, and what one operation moves there, in bytes.
    window: u64,
    moved: u64,
    /// Bits of how many places a device has that count: none where it is the only one.
    shared: u32,
}

impl Allowance {
    pub(super) const NONE: Self =
        Self { number: 0, alone: u32::MAX, chains: 0, cost: 0, window: 0, moved: 0, shared: 0 };

    /// The next turn, of so many devices with work. One that is alone has all of it; several have
    /// a quarter of it together, because each waits for the others.
    //= spec/fairness.md#FAIR-2
    fn next(self, devices: u32, only: bool, budget: Budget) -> Self {
        let among = 4 * devices.max(1);
        let share = |whole: u32, least: u32| match devices {
            0 | 1 => whole,
            _ => (whole / among).max(least.min(whole)),
        };
        let alone = if devices > 1 { 0 } else { self.alone.saturating_add(1) };
        let (window, moved) = Self::under_way(devices, only, alone);
        Self {
            number: self.number.wrapping_add(1),
            alone,
            chains: share(budget.chains, CHAINS_SHARE_MIN),
            cost: share(budget.cost, TURN_SHARE_MIN).into(),
            window,
            moved,
            shared: if only || planted(Fault::SlotsForOne) { 0 } else { u32::MAX },
        }
    }

    /// What each of so many devices may have under way, and move with one operation. Who thinks
    /// between two requests must not find the store full of others' bytes.
    //= spec/fairness.md#FAIR-6
    const fn under_way(devices: u32, only: bool, alone: u32) -> (u64, u64) {
        if only {
            return (u64::MAX, PART_BYTES_MAX);
        }
        if alone >= LINGER_TURNS {
            return (FLIGHT_ALONE_BYTES, PART_BYTES_MAX);
        }
        let among = if devices < 2 { 2 } else { devices as u64 };
        let part = FLIGHT_BYTES / among;
        (if part < SLICE_BYTES { SLICE_BYTES } else { part }, SLICE_BYTES)
    }
}

/// What an operation weighs while it is under way, in bytes.
#[inline]
pub(super) const fn weight(kind: OpKind, len: u64) -> u64 {
    OP_COST as u64
        + match kind {
            OpKind::Read | OpKind::Write => len,
            OpKind::Sync | OpKind::Discard | OpKind::WriteZeroes { .. } => SLICE_BYTES,
        }
}

/// What an operation of this weight costs the turn that hands it out, in bytes.
//= spec/fairness.md#FAIR-3
#[inline]
pub(super) const fn cost(weight: u64, in_turn: bool) -> i64 {
    if in_turn { weight.cast_signed() } else { OP_COST as i64 }
}

impl Allowance {
    /// Places for parts that are kept from a device.
    #[inline]
    const fn kept(&self, share: &Share) -> u32 {
        PARTS_RESERVED + (share.parts & self.shared)
    }

    /// How the parts of an image of the store are cut in this turn.
    //= spec/fairness.md#FAIR-4
    #[inline]
    pub(super) const fn cut(&self, in_turn: bool) -> Cut {
        let (moved, cleared) =
            if in_turn { (SLICE_BYTES, CLEARED_BYTES) } else { (self.moved, u64::MAX) };
        Cut { geometry: Geometry::Flat, moved, cleared }
    }
}

impl Shard<'_> {
    /// Begins a turn: nobody has it yet.
    pub(super) fn begin_turn(&mut self, budget: Budget) {
        self.turn = self.turn.next(self.round.len(), self.devices.in_use() == 1, budget);
        while let Some(device) = self.serving.pop(&mut self.devices) {
            self.devices[device].share.in_turn = false;
        }
    }

    /// Gives the turn to the devices with work in their order, until one has it for itself.
    //= spec/fairness.md#FAIR-1
    pub(super) fn give_turns(&mut self, mem: &impl SharedMemory, budget: Budget, work: &mut Work) {
        for _ in 0..self.round.len() {
            let Some(index) = self.round.first() else { break };
            let left = budget.chains - work.chains;
            let device = &mut self.devices[index];
            // It does more than others should wait for, or there is nothing left for it.
            //= spec/fairness.md#FAIR-8
            let spent = device.share.spent;
            if (spent && work.is_some()) || (left == 0 && !self.stopping) {
                break;
            }
            if !planted(Fault::TurnKept) || !spent {
                self.round.pop(&mut self.devices);
                let device = &mut self.devices[index];
                if device.share.active.is_empty() && device.live == 0 {
                    device.share.in_round = false;
                    continue;
                }
                self.round.push(&mut self.devices, index);
            }
            self.fill_up(index);
            let before = *work;
            if !self.stopping {
                self.visit_device(mem, index, left, work);
            }
            work.ready += u32::from(self.has_ops(index) && self.may_send(index));
            if spent && *work != before {
                break;
            }
        }
    }

    /// A device has this turn.
    fn fill_up(&mut self, index: u32) {
        let Allowance { number, cost, .. } = self.turn;
        let share = &mut self.devices[index].share;
        share.credit = (share.credit + cost).min(cost);
        share.spent = false;
        share.turn = number;
        self.serve(index);
    }

    fn serve(&mut self, index: u32) {
        if !core::mem::replace(&mut self.devices[index].share.in_turn, true) {
            self.serving.push(&mut self.devices, index);
        }
    }

    /// Takes chains from a device's queues, each in its turn.
    fn visit_device(&mut self, mem: &impl SharedMemory, index: u32, left: u32, work: &mut Work) {
        let share = self.turn.chains.min(left);
        let mut taken = 0;
        for _ in 0..self.devices[index].share.active.len() {
            let limit = self.room(index).min(share - taken);
            if limit == 0 {
                break;
            }
            let Some(queue) = self.devices[index].share.active.pop(&mut self.queues) else { break };
            // Its turn ends at the back of the list, unless the visit breaks it or it is idle.
            self.devices[index].share.active.push(&mut self.queues, queue);
            match self.visit(mem, queue, limit) {
                Ok(0) => self.count_empty(mem, queue),
                Ok(count) => {
                    self.queues[queue].empty = 0;
                    taken += count;
                }
                Err(fault) => self.break_queue(queue, fault),
            }
        }
        work.chains += taken;
        self.devices[index].share.spent |= taken == share;
    }

    /// How many chains a device may take now.
    #[inline]
    pub(super) fn room(&self, index: u32) -> u32 {
        let device = &self.devices[index];
        // What waits to be cut waits as well in its ring.
        if device.share.cut.len() >= QUEUE_BATCH.into() {
            return 0;
        }
        self.fair_share(self.requests.available(), device.live)
    }

    /// How many more of `free` places a device may have that has so many: it leaves the others as
    /// many as it has itself. With several that want all, each gets the same.
    //= spec/fairness.md#FAIR-5
    #[inline]
    fn fair_share(&self, free: u32, has: u32) -> u32 {
        match has & self.turn.shared {
            _ if self.turn.shared == 0 => free,
            has => free.saturating_sub(has).div_ceil(2),
        }
    }

    /// Whether a device has operations to hand out.
    pub(super) fn has_ops(&self, index: u32) -> bool {
        !self.devices[index].share.cut.is_empty()
    }

    /// Whether they may be handed out in this turn.
    #[inline]
    pub(super) fn may_send(&self, index: u32) -> bool {
        self.devices[index].share.credit > 0 && self.has_places(index)
    }

    /// Whether they may be handed out in any turn, before others have ended.
    //= spec/fairness.md#FAIR-5
    //= spec/fairness.md#FAIR-6
    #[inline]
    pub(super) fn has_places(&self, index: u32) -> bool {
        let share = &self.devices[index].share;
        self.parts.available() > self.turn.kept(share)
            && (share.weight < self.turn.window || !self.is_local(index))
    }

    /// Whether what is behind a device's image is one place, where its operations meet others'.
    #[cold]
    fn is_local(&self, index: u32) -> bool {
        self.images[self.devices[index].config.image.0].config.backing == Backing::Store
    }

    /// The next request to cut in this turn.
    #[inline]
    pub(super) fn next_cut(&mut self) -> Option<u32> {
        while let Some(index) = self.serving.first() {
            let share = &mut self.devices[index].share;
            let light = share.weight < self.turn.window;
            let placed = self.parts.available() > self.turn.kept(share);
            if share.credit > 0
                && placed
                && light
                && let Some(slot) = share.cut.pop(&mut self.requests)
            {
                return Some(slot);
            }
            let slot = self.serve_next(index);
            if slot.is_some() {
                return slot;
            }
        }
        None
    }

    /// Nothing of the first device may be handed out, or it has enough under way.
    #[cold]
    fn serve_next(&mut self, index: u32) -> Option<u32> {
        if self.may_send(index) {
            let slot = self.devices[index].share.cut.pop(&mut self.requests);
            if slot.is_some() {
                return slot;
            }
        }
        self.serving.pop(&mut self.devices);
        let share = &mut self.devices[index].share;
        share.in_turn = false;
        share.spent |= !share.cut.is_empty() && share.credit <= 0;
        None
    }

    /// Lists a request whose next part is to be cut.
    #[inline]
    pub(super) fn list_cut(&mut self, slot: u32) {
        let index = self.requests[slot].device;
        let share = &mut self.devices[index].share;
        share.cut.push(&mut self.requests, slot);
        if share.turn == self.turn.number {
            self.serve(index);
        }
    }

    /// The same for all of a list that waited for something.
    pub(super) fn list_all(&mut self, list: &mut Fifo<0>) {
        while let Some(slot) = list.pop(&mut self.requests) {
            self.list_cut(slot);
        }
    }

    /// A queue of a device is to be visited: the device has turns.
    pub(super) fn list_round(&mut self, index: u32) {
        if !core::mem::replace(&mut self.devices[index].share.in_round, true) {
            self.round.push(&mut self.devices, index);
        }
    }

    /// A queue of a device is armed: it is looked at now and then.
    pub(super) fn list_armed(&mut self, index: u32) {
        if !core::mem::replace(&mut self.devices[index].share.in_armed, true) {
            self.armed.push(&mut self.devices, index);
        }
    }

    /// The next armed queue to be looked at: of the next device, its next. It is in no list then.
    //= spec/fairness.md#FAIR-7
    pub(super) fn next_armed(&mut self) -> Option<u32> {
        for _ in 0..self.armed.len() {
            let index = self.armed.pop(&mut self.devices)?;
            if let Some(queue) = self.devices[index].share.armed.pop(&mut self.queues) {
                self.armed.push(&mut self.devices, index);
                return Some(queue);
            }
            self.devices[index].share.in_armed = false;
        }
        None
    }

    /// Takes a device out of all lists.
    pub(super) fn unlist_share(&mut self, index: u32) {
        let (mut round, mut armed, mut serving) = (self.round, self.armed, self.serving);
        let share = &self.devices[index].share;
        let (in_round, in_armed, in_turn) = (share.in_round, share.in_armed, share.in_turn);
        let _ = in_round && round.remove(&mut self.devices, index);
        let _ = in_armed && armed.remove(&mut self.devices, index);
        let _ = in_turn && serving.remove(&mut self.devices, index);
        (self.round, self.armed, self.serving) = (round, armed, serving);
    }
}
