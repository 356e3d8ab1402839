//! One daemon, from its start to its end.

use std::collections::VecDeque;

use sluice_core::blk::BlkFeatures;
use sluice_core::device::{ControlEvent, ControlReply, DeviceConfig, DeviceId};
use sluice_core::image::{Backing, ImageConfig};
use sluice_core::memory::Region;
use sluice_core::op::{Op, Reply};
use sluice_core::shard::{Budget, Effect, Granted, Idle, Input, Shard};
use sluice_core::time::Instant;

use super::{Choices, GUEST, GUEST_BYTES, Guest, INFLIGHT, Mortal, Plan};
use crate::arena::Arena;
use crate::negotiate::{connect, features, start_queue};

/// Requests that end in one turn, at most.
const BATCH_MAX: usize = 3;

/// A daemon with one device.
#[derive(Debug)]
pub(super) struct Daemon<'a> {
    shard: Shard<'a>,
    mem: Mortal<'a>,
    device: DeviceId,
    generation: u16,
    /// Operations under way, and the requests that they are for.
    pending: Vec<(Op, u16)>,
    /// The request for which the last operation was sent.
    last: Option<u16>,
    replies: VecDeque<ControlReply>,
    connected: bool,
}

impl<'a> Daemon<'a> {
    pub(super) fn new(arena: &'a mut Arena, mem: Mortal<'a>, generation: u16) -> Self {
        let mut shard = Shard::new(arena.storage());
        let image = ImageConfig {
            backing: Backing::Store,
            capacity_sectors: 1 << 10,
            block_bytes: 512,
            read_only: false,
            discard: true,
            write_zeroes: true,
            poisoned: false,
            in_turn: false,
        };
        let image = shard.add_image(image).expect("room for one");
        let config = DeviceConfig { image, serial: [0; 20], queues: 1 };
        let device = shard.add_device(config).expect("room for one");
        let (pending, replies) = (Vec::new(), VecDeque::new());
        let (last, connected) = (None, false);
        Self { shard, mem, device, generation, pending, last, replies, connected }
    }

    /// Serves the guest as long as it asks for something, and stops its queue at rest.
    pub(super) fn live(
        &mut self,
        guest: &mut Guest<'_>,
        plan: Plan,
        mut choices: Option<&mut Choices>,
    ) -> Result<(), String> {
        loop {
            self.start(guest, plan)?;
            self.serve(guest, choices.as_deref_mut())?;
            if self.is_over() || !guest.is_done() {
                return Ok(());
            }
            self.stop(guest)?;
            if self.is_over() || !guest.asks_again() {
                return Ok(());
            }
            guest.wake()?;
        }
    }

    /// Until everything has come back, its life is over, or all are asleep.
    fn serve(
        &mut self,
        guest: &mut Guest<'_>,
        mut choices: Option<&mut Choices>,
    ) -> Result<(), String> {
        while !self.is_over() {
            let mut busy = self.send(guest)?;
            busy |= self.finish(guest, choices.as_deref_mut());
            if self.is_over() {
                break;
            }
            self.shard.publish(&self.mem);
            busy |= self.notify(guest)?;
            self.take_effects()?;
            if !busy && !self.is_over() && self.shard.arm(&self.mem) == Idle::Idle {
                if core::mem::take(&mut guest.kicked) {
                    let queue = sluice_core::device::QueueId { device: self.device, index: 0 };
                    self.shard.handle_kick(&self.mem, queue);
                } else {
                    break;
                }
            }
        }
        Ok(())
    }

    fn is_over(&self) -> bool {
        self.mem.life.is_over()
    }

    /// What its front end says when it connects, for the first time or again.
    fn start(&mut self, guest: &Guest<'_>, plan: Plan) -> Result<(), String> {
        let region = Region { id: GUEST, guest: 0, user: 0, size: GUEST_BYTES };
        let area = ControlEvent::SetInflight {
            region: INFLIGHT,
            offset: 0,
            len: plan.area_bytes() as u64,
            queues: 1,
            size: plan.size,
        };
        // Call descriptors come first, so no later one wakes the driver.
        let queue = start_queue(0, guest.layout(), &region, guest.known_base())
            .filter(|event| !matches!(event, ControlEvent::SetVringCall { .. }));
        let mut features = features(plan.event_idx);
        features.set(BlkFeatures::RING_PACKED, plan.packed);
        let connect = connect(features, &[region]).chain([area]);
        let connected = core::mem::replace(&mut self.connected, true);
        for event in connect.take(if connected { 0 } else { usize::MAX }).chain(queue) {
            if self.is_over() {
                return Ok(());
            }
            match self.ask(event.clone())? {
                Some(ControlReply::Refused(fault)) => {
                    return Err(format!("{event:?} is refused: {fault:?}"));
                }
                Some(_) => {}
                None => return Err(format!("{event:?} is not answered")),
            }
        }
        Ok(())
    }

    fn ask(&mut self, event: ControlEvent) -> Result<Option<ControlReply>, String> {
        let asked = Input::Control(self.device, event);
        self.shard.handle(Instant(0), &self.mem, asked).expect("no cluster update");
        self.take_effects()?;
        Ok(self.replies.pop_front())
    }

    /// Takes chains and sends their operations; in the order in which they were asked for, in
    /// this life and before.
    fn send(&mut self, guest: &mut Guest<'_>) -> Result<bool, String> {
        let budget = Budget { chains: 8, ..Budget::of_turn(0) };
        let mut busy = self.shard.poll_queues(&self.mem, budget).chains > 0;
        self.take_effects()?;
        while !self.is_over() {
            let Some(op) = self.shard.poll_op() else { break };
            if !self.mem.life.moment() {
                break;
            }
            busy = true;
            let number = u16::try_from(op.offset / 512).unwrap_or(u16::MAX);
            guest.asked(number)?;
            if self.last.replace(number).is_some_and(|last| last >= number) {
                return Err(format!("request {number} is submitted after {:?}", self.last));
            }
            self.pending.push((op, number));
        }
        Ok(busy)
    }

    /// Some operations end.
    fn finish(&mut self, guest: &mut Guest<'_>, mut choices: Option<&mut Choices>) -> bool {
        if self.pending.is_empty() {
            return false;
        }
        for done in 0..BATCH_MAX {
            if self.pending.is_empty() || self.is_over() {
                break;
            }
            let moment = self.mem.life.spent();
            let index = match &mut choices {
                // The last choice is to end no more in this turn.
                Some(choices) => choices.pick(self.pending.len() + usize::from(done > 0), moment),
                // Successors take turns with both ends, and with the size of their batches.
                None if done > usize::from(self.generation % 2) => break,
                None => (self.pending.len() - 1) * usize::from(self.generation % 2),
            };
            if index == self.pending.len() || !self.mem.life.moment() {
                break;
            }
            let (op, number) = self.pending.remove(index);
            guest.land(number);
            self.shard.handle_reply(&Reply { id: op.id, result: 512, version: 0 });
        }
        true
    }

    fn notify(&mut self, guest: &mut Guest<'_>) -> Result<bool, String> {
        let mut any = false;
        while !self.is_over() {
            let Some(_) = self.shard.poll_notify() else { break };
            if self.mem.life.moment() {
                guest.wake()?;
                any = true;
            }
        }
        Ok(any)
    }

    fn take_effects(&mut self) -> Result<(), String> {
        while let Some(effect) = self.shard.poll_effect() {
            match effect {
                Effect::Reply(_, reply) => self.replies.push_back(reply),
                Effect::Capture(image) => {
                    let granted = Input::Capture(image, Granted::Yes);
                    self.shard.handle(Instant(0), &self.mem, granted).expect("no cluster update");
                }
                Effect::Release(_) | Effect::ConfigChanged(_) => {}
                Effect::QueueBroken(_, fault) => return Err(format!("it is broken: {fault:?}")),
                other => return Err(format!("{other:?}")),
            }
        }
        Ok(())
    }

    /// The queue is stopped at rest: it stands where its ring does, and its area is empty.
    fn stop(&mut self, guest: &mut Guest<'_>) -> Result<(), String> {
        let base = guest.rest_base();
        let reply = self.ask(ControlEvent::GetVringBase { index: 0 })?;
        if reply != Some(ControlReply::VringBase { index: 0, base }) {
            return Err(format!("stopped at {reply:?} instead of {base}"));
        }
        if !self.is_over() {
            guest.base = base;
        }
        guest.check_empty(self.is_over())
    }
}
