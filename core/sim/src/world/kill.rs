//! The daemon is killed, and another one takes its place at once.

use sluice_core::device::{DeviceConfig, DeviceId};
use sluice_core::image::ImageId;
use sluice_core::inflight::{InflightFault, queue_bytes};
use sluice_core::placement::{PgNum, Update};
use sluice_core::shard::Shard;
use sluice_core::virtqueue::QueueFault;
use sluice_core::virtqueue::layout::USED_IDX;

use super::{Event, World};
use crate::arena::Arena;
use crate::bus::memory::Inner;
use crate::bus::ram::Extent;
use crate::front::State;
use crate::history::History;
use crate::options::Options;

impl<'s> World<'s> {
    /// Kills the daemon: at once, or at one of its next stores.
    pub(super) fn kill(&mut self) {
        if self.is_healing() {
            return;
        }
        let stores = if self.prng.chance(200) { 0 } else { self.prng.skewed(60) };
        self.mem.inner().kill_after(stores);
    }

    /// Whether the daemon is dead: what it seems to do does not happen.
    pub(super) fn is_dead(&self) -> bool {
        self.mem.inner().is_dead()
    }

    /// Nothing, while the daemon lives.
    pub(super) fn alive(&self) -> Option<()> {
        (!self.is_dead()).then_some(())
    }

    /// Buries the daemon and starts the next.
    pub(super) fn bury(&mut self) {
        self.line(None, "killed", format_args!(""));
        {
            // What was stored is seen, sooner or later, and before anybody comes next.
            let mut inner = self.mem.inner();
            inner.settle();
            let Inner { ram, bus, .. } = &mut *inner;
            bus.killed(ram);
            inner.replace_device();
        }
        self.end_flights();
        self.restart_histories();
        self.kicks.clear();
        self.echoes.clear();
        for answer in core::mem::take(&mut self.answers) {
            // A sync that failed is taken to be on record, as the shell sees to it.
            if let Some(image) = answer.sync_failed {
                self.poisoned[image as usize] = true;
                self.mem.inner().bus.poisoned.insert(image);
            }
        }
        self.captured.fill(false);
        self.questions.iter_mut().for_each(|question| *question += 1);
        let arena = self.arenas.next().expect("as many as there are kills");
        self.shard = populate(arena, &self.options, &self.serials, &self.poisoned);
        self.tell_map();
        for id in 0..self.fronts.len() {
            self.reconnect(u32::try_from(id).unwrap_or(u32::MAX));
        }
        self.kills += 1;
        self.plan_kill();
        self.wake();
    }

    /// What is under way will be done again. What was given back will not.
    fn restart_histories(&mut self) {
        let queues = self.guests.iter().flat_map(|g| (0..g.queues.len()).map(|q| (g.id, q)));
        for (id, index) in queues.collect::<Vec<_>>() {
            if !self.is_open(id) {
                self.reap(id, u16::try_from(index).unwrap_or(0));
            }
        }
        self.histories.iter_mut().for_each(History::restart);
    }

    pub(super) fn plan_kill(&mut self) {
        if self.kills < self.options.kills {
            let delay = self.prng.skewed(2 * self.options.phase / self.options.kills);
            self.clock.plan(1 + delay, Event::Kill);
        }
    }

    fn tell_map(&mut self) {
        self.update(Update::Pool(self.options.pool));
        for pg in 1..=self.options.pool.pg_count {
            let osd = self.cluster.primaries[pg as usize - 1];
            let (pool, pg) = (self.options.pool.id, PgNum(pg));
            self.update(Update::Primary { pool, pg, osd });
        }
    }

    /// A front end finds its connection closed and connects again.
    fn reconnect(&mut self, id: u32) {
        let front = &mut self.fronts[id as usize];
        front.offered.clear();
        let may_resume = front.may_resume();
        front.awaited = None;
        match front.state {
            State::Away => return,
            State::Leaving => return self.gone(id),
            State::Here => {}
        }
        let resumes = may_resume && !self.is_open(id) && self.prng.chance(800);
        let front = &mut self.fronts[id as usize];
        front.script.clear();
        front.negotiated &= resumes;
        front.running.fill(false);
        front.enabled.fill(false);
        if !resumes {
            // The guest is reset meanwhile, or gone: the next connection is about a new one.
            for index in 0..self.guests[id as usize].queues.len() {
                self.reset_queue(id, u16::try_from(index).unwrap_or(0));
            }
            return self.gone(id);
        }
        // Where a packed ring stands nothing in memory says: it knows where it was started.
        let queues = if front.packed { 0 } else { self.guests[id as usize].queues.len() };
        for index in 0..queues {
            let (region, offset) = self.guests[id as usize].layout(index).rings().used;
            let at = usize::try_from(offset + USED_IDX).unwrap_or(usize::MAX);
            let place = Extent { chunk: region.0 as usize, at, len: 2 };
            self.fronts[id as usize].bases[index] = self.mem.inner().ram.u16(place, 0).into();
        }
        // And without its area nobody could tell that something is lost.
        let keeps = !self.prng.chance(100) || self.fronts[id as usize].packed;
        let front = &mut self.fronts[id as usize];
        front.resume(&mut self.prng, keeps);
        let delay = self.prng.skewed(20_000);
        self.clock.plan(delay, Event::Front(id));
    }

    /// Where a queue's records are.
    pub(super) fn area(&self, id: u32, index: u16) -> Option<Extent> {
        let front = &self.fronts[id as usize];
        let chunk = front.area.filter(|_| front.handed_over)?;
        let build = self.options.guests[id as usize].0;
        let len = usize::try_from(queue_bytes(build.size, build.packed)).unwrap_or(0);
        Some(Extent { chunk, at: usize::from(index) * len, len })
    }

    /// A queue is broken: that has to be because nobody knows what of it was taken (F12). Its
    /// guest is reset.
    pub(super) fn broken(&mut self, (id, index): (u32, u16), fault: QueueFault) {
        let front = &mut self.fronts[id as usize];
        let missing = QueueFault::Inflight(InflightFault::Missing);
        let due =
            fault == missing && front.lost_area && self.mem.inner().bus.is_waiting((id, index));
        front.begins_anew |= due;
        if !due {
            self.fault("I19", format!("a legal queue is broken: {id} {index} {fault:?}"));
        }
    }
}

/// A daemon's shard with all images and devices.
pub(super) fn populate<'s>(
    arena: &'s mut Arena,
    options: &Options,
    serials: &[[u8; 20]],
    poisoned: &[bool],
) -> Shard<'s> {
    let mut shard = Shard::new(arena.storage());
    for (&config, &poisoned) in options.images.iter().zip(poisoned) {
        let config = sluice_core::image::ImageConfig { poisoned, ..config };
        shard.add_image(config).expect("there is room for all images");
    }
    for (&(build, image), &serial) in options.guests.iter().zip(serials) {
        let config = DeviceConfig { image: ImageId(image), serial, queues: build.queues };
        let device = shard.add_device(config).expect("there is room for all devices");
        debug_assert_eq!(device, DeviceId(build.id));
    }
    shard
}
