//! The end of a run: healing, coming to rest, and what must be left then.

use sluice_core::device::DeviceId;
use sluice_core::image::{Capture, ImageId};

use super::{Event, Phase, World};
use crate::front::State;
use crate::history::SECTOR;

impl World<'_> {
    /// Faults stop. Everybody connects who is legal; hostile guests are sent away.
    pub(super) fn heal(&mut self) {
        self.phase = Phase::Healing;
        self.mem.inner().spare();
        self.line(None, "heal", format_args!(""));
        self.cluster.errors = 0;
        // Whoever is asked for an image answers soon now, and so does who was asked before.
        self.options.capture_max = 1000;
        for image in 0..self.questions.len() {
            let number = u32::try_from(image).unwrap_or(u32::MAX);
            if self.shard.image(ImageId(number)).capture == Capture::Asked {
                self.questions[image] += 1;
                self.clock.plan(3, Event::Capture(number, self.questions[image]));
            }
        }
        for pg in 1..=self.options.pool.pg_count {
            let osd = self.draw_osd();
            self.move_group(pg, osd);
        }
        for id in 0..self.options.guests.len() {
            let id = u32::try_from(id).unwrap_or(u32::MAX);
            if self.is_open(id) {
                self.vanish(id);
            }
            self.clock.plan(1, Event::Front(id));
            for index in 0..self.guests[id as usize].queues.len() {
                let index = u16::try_from(index).unwrap_or(u16::MAX);
                self.clock.plan(2, Event::Look(id, index));
            }
        }
    }

    /// Whether all requests have come back, and all front ends are where they should be.
    pub(super) fn is_at_rest(&self) -> bool {
        let settled = self.fronts.iter().zip(&self.options.guests).all(|(front, (build, _))| {
            if build.open { front.state == State::Away } else { front.is_up() }
        });
        settled && self.is_idle()
    }

    fn is_idle(&self) -> bool {
        let queues = self.guests.iter().flat_map(|guest| &guest.queues);
        self.flights.is_empty()
            && self.answers.is_empty()
            && queues.into_iter().all(|queue| queue.waiting.is_empty())
    }

    /// Everything has come back: nothing may be left over, the images hold what they should,
    /// and the front ends may go.
    pub(super) fn part(&mut self) {
        let requests = self.requests;
        self.line(None, "rest", format_args!("{requests} requests"));
        self.check_counts();
        self.check_images("at rest");
        self.cluster.lose_power();
        self.histories.iter_mut().for_each(crate::history::History::lose_power);
        self.check_images("after a power loss");
        self.phase = Phase::Leaving;
        for id in 0..self.fronts.len() {
            let front = &mut self.fronts[id];
            if front.state == State::Here {
                front.leave(&mut self.prng);
                let id = u32::try_from(id).unwrap_or(u32::MAX);
                self.clock.plan(1, Event::Front(id));
            }
        }
    }

    /// Whether all front ends have gone.
    pub(super) fn is_deserted(&self) -> bool {
        self.fronts.iter().all(|front| front.state == State::Away)
    }

    fn check_counts(&mut self) {
        let (live, ops) = (self.shard.live(), self.shard.ops_live());
        if live > 0 || ops > 0 {
            self.fault("I23", format!("{live} requests and {ops} operations are left at rest"));
        }
        let counters = self.shard.counters();
        if counters.requests != counters.completions {
            self.fault("I03", format!("counted differently: {counters:?}"));
        }
    }

    /// Nothing is left of anybody.
    pub(super) fn check_end(&mut self) {
        self.check_counts();
        let mapped = self.mem.inner().mapped();
        if mapped > 0 {
            self.fault("I23", format!("{mapped} mappings are left"));
        }
        if let Some(image) = self.captured.iter().position(|&held| held) {
            self.fault("I23", format!("image {image} has not been given up"));
        }
        for id in 0..self.fronts.len() {
            if !self.shard.remove_device(DeviceId(u32::try_from(id).unwrap_or(u32::MAX))) {
                self.fault("I29", format!("device {id} cannot be taken out"));
            }
        }
        for id in 0..self.options.images.len() {
            if !self.shard.remove_image(ImageId(u32::try_from(id).unwrap_or(u32::MAX))) {
                self.fault("I29", format!("image {id} cannot be taken out"));
            }
        }
        let counters = self.shard.counters();
        self.line(None, "end", format_args!("{counters:?}"));
    }

    /// Reads all images behind the device's back.
    fn check_images(&mut self, when: &str) {
        for image in 0..self.options.images.len() {
            let index = u32::try_from(image).unwrap_or(u32::MAX);
            let hostile = |(build, of): &(crate::guest::Build, u32)| build.open && *of == index;
            if self.options.guests.iter().any(hostile) {
                continue;
            }
            for sector in self.cluster.touched(index) {
                let history = &mut self.histories[image];
                let read = history.read_invoked();
                let bytes: [u8; SECTOR] = self.cluster.sector(index, sector);
                if let Err(violation) = history.read_done(read, sector, &bytes) {
                    let invariant = if when == "at rest" { "I01" } else { "I02" };
                    self.fault(invariant, format!("image {image} {when}: {violation}"));
                }
            }
        }
    }

    /// Says who waits for what, when nothing more comes.
    pub(super) fn report_stuck(&mut self, invariant: &'static str, why: &str) {
        let mut waiting = Vec::new();
        for (guest, front) in self.guests.iter().zip(&self.fronts) {
            let queues = guest.queues.iter().map(|queue| queue.waiting.len()).collect::<Vec<_>>();
            waiting.push((guest.id, front.state, front.awaited, queues));
        }
        let (live, ops, flights) = (self.shard.live(), self.shard.ops_live(), self.flights.len());
        let phase = self.phase;
        self.fault(
            invariant,
            format!("{why} in {phase:?}: {waiting:?}, {live} live, {ops} ops, {flights} sent"),
        );
    }
}
