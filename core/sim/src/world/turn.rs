//! One turn of the thread that drives the shard, with guests running between its steps.

use sluice_core::shard::{Budget, Effect, Idle};

use super::{Event, World, guest, queue};
use crate::bus::parts::finish;
use crate::options::{Options, Pace};

impl World<'_> {
    pub(super) fn turn(&mut self) {
        self.awake = false;
        // A turn that is not ended is that of a daemon that was killed.
        if let Some(busy) = self.steps() {
            self.rest(busy);
        }
    }

    /// Says whether there was anything to do; `None` when the daemon is killed.
    fn steps(&mut self) -> Option<bool> {
        let mut busy = false;
        for id in core::mem::take(&mut self.kicks) {
            self.mem.inner().bus.kicked((id.device.0, id.index));
            self.shard.handle_kick(&self.mem, id);
        }
        busy |= self.poll_queues();
        self.alive()?;
        self.interleave();
        busy |= self.poll_ops();
        self.interleave();
        busy |= self.take_replies();
        if self.prng.chance(500) {
            busy |= self.poll_ops();
        }
        self.interleave();
        self.shard.publish(&self.mem);
        self.alive()?;
        self.interleave();
        self.notify();
        self.take_effects();
        self.alive()?;
        self.interleave();
        Some(busy)
    }

    fn poll_queues(&mut self) -> bool {
        let samples = match self.options.pace {
            Pace::Sleep => 0,
            Pace::Spin => 1,
            Pace::Both => u32::try_from(self.prng.below(3)).unwrap_or(0),
        };
        let Options { budget: chains, cost, .. } = self.options;
        let budget = Budget { chains, cost, samples };
        self.mem.inner().bus.fetches = 0;
        let work = self.shard.poll_queues(&self.mem, budget);
        let fetches = self.mem.inner().bus.fetches;
        if work.chains > budget.chains || fetches > budget.chains {
            self.fault("I24", format!("{fetches} chains for a budget of {}", budget.chains));
        }
        if work.chains > 0 {
            let (live, ops) = (self.shard.live(), self.shard.ops_live());
            self.line(None, "taken", format_args!("{} live {live} ops {ops}", work.chains));
        }
        work.is_some()
    }

    fn poll_ops(&mut self) -> bool {
        let mut any = core::mem::take(&mut self.stirred);
        while let Some(op) = self.shard.poll_op() {
            any = true;
            self.send(&op);
        }
        any
    }

    fn take_replies(&mut self) -> bool {
        let answers = core::mem::take(&mut self.answers);
        for answer in &answers {
            self.shard.handle_reply(&answer.reply);
            if let Some(name) = answer.name {
                finish(&mut self.mem.inner(), name, answer.failed);
            }
            if let Some(image) = answer.sync_failed {
                self.poisoned[image as usize] = true;
                self.mem.inner().bus.poisoned.insert(image);
            }
            if self.prng.chance(self.options.echoes) {
                self.echoes.push(answer.reply);
            }
        }
        // What comes a second time, at any later time, is a reply to nothing.
        while !self.echoes.is_empty() && self.prng.chance(500) {
            let index = self.prng.index(self.echoes.len());
            let reply = self.echoes.swap_remove(index);
            self.shard.handle_reply(&reply);
        }
        !answers.is_empty()
    }

    fn notify(&mut self) {
        while let Some(id) = self.shard.poll_notify() {
            let who = (id.device.0, id.index);
            self.line(queue(who.0, who.1), "notify", format_args!(""));
            self.mem.inner().bus.notified(who);
            let delay = self.prng.skewed(3000);
            self.clock.plan(delay, Event::Look(who.0, who.1));
        }
        //= spec/virtqueue.md#VQ-12
        self.mem.inner().bus.all_notified();
    }

    pub(super) fn take_effects(&mut self) {
        while !self.is_dead()
            && let Some(effect) = self.shard.poll_effect()
        {
            match effect {
                Effect::Reply(device, reply) => self.answered(device.0, reply),
                Effect::Unmap(region) => {
                    self.line(None, "unmap", format_args!("{}", region.0));
                    self.mem.inner().unmap(region);
                }
                Effect::Capture(image) => {
                    self.line(None, "capture", format_args!("{}", image.0));
                    if core::mem::take(&mut self.captured[image.0 as usize]) {
                        self.fault("I09", format!("{image:?} is asked for while it is held"));
                    }
                    let question = &mut self.questions[image.0 as usize];
                    *question += 1;
                    let decision = Event::Capture(image.0, *question);
                    let delay = self.prng.skewed(self.options.capture_max);
                    self.clock.plan(delay, decision);
                }
                Effect::Release(image) => {
                    self.line(None, "release", format_args!("{}", image.0));
                    self.captured[image.0 as usize] = false;
                    self.questions[image.0 as usize] += 1;
                    if self.flights.values().any(|flight| flight.image == image.0) {
                        self.fault("I08", format!("{image:?} is given up with I/O under way"));
                    }
                }
                Effect::QueueBroken(id, fault) => {
                    let who = (id.device.0, id.index);
                    self.line(queue(who.0, who.1), "broken", format_args!("{fault:?}"));
                    if !self.is_open(who.0) {
                        self.broken(who, fault);
                    }
                }
                Effect::ConfigChanged(device) => {
                    self.line(guest(device.0), "config", format_args!("changed"));
                }
                Effect::Evict(device) => {
                    self.line(guest(device.0), "evict", format_args!(""));
                    self.vanish(device.0);
                }
                Effect::Left(device) => self.left(device.0),
                Effect::Poisoned(image) => {
                    self.line(None, "poisoned", format_args!("{}", image.0));
                }
            }
        }
    }

    /// Goes on at once, or arms the queues and sleeps.
    fn rest(&mut self, busy: bool) {
        let spins = match self.options.pace {
            Pace::Spin => true,
            Pace::Sleep => false,
            Pace::Both => self.prng.chance(500),
        };
        let pending = !self.kicks.is_empty() || !self.answers.is_empty() || self.stirred;
        if !spins && !busy && !pending {
            let idle = self.shard.arm(&self.mem);
            if self.is_dead() {
                return;
            }
            self.line(None, "arm", format_args!("{idle:?}"));
            self.interleave();
            if idle == Idle::Idle {
                self.mem.inner().bus.asleep();
                // Arming may have broken a hostile queue.
                self.take_effects();
                return;
            }
        }
        self.awake = true;
        let delay = if !busy { 500 + self.prng.skewed(8000) } else { self.prng.skewed(2000) };
        self.clock.plan(delay, Event::Turn);
    }

    /// Others run while the shard's thread is between two steps, or within one.
    fn interleave(&mut self) {
        self.mem.inner().drift();
        while self.prng.chance(self.options.interleave) {
            let id = self.prng.index(self.guests.len());
            let index = self.prng.index(self.guests[id].queues.len());
            let id = u32::try_from(id).unwrap_or(0);
            self.look(id, u16::try_from(index).unwrap_or(0));
            if !self.prng.chance(500) {
                break;
            }
        }
    }
}
