//! What guests do when they run: look at what came back, ask for more, go to sleep.

use super::{Event, Meant, World, queue};
use crate::driver::{Completion, Kind};
use crate::guest::{Outstanding, Wish};
use crate::history::SECTOR;

impl World<'_> {
    /// A guest asks for something on its own account.
    pub(super) fn think(&mut self, id: u32) {
        if self.is_healing() {
            return;
        }
        if self.is_open(id) {
            self.vandalize(id);
        } else {
            let index = self.prng.index(self.guests[id as usize].queues.len());
            self.look(id, u16::try_from(index).unwrap_or(0));
        }
        let delay = self.prng.skewed(30_000);
        self.clock.plan(delay, Event::Think(id));
    }

    /// A driver runs on one of its queues.
    pub(super) fn look(&mut self, id: u32, index: u16) {
        if self.is_open(id) {
            return;
        }
        self.reap(id, index);
        if !self.is_healing() {
            let mut more = self.prng.skewed(6);
            while more > 0 && self.guests[id as usize].is_hungry(index.into()) {
                more -= 1;
                self.submit(id, index);
            }
        }
        self.expose(id, index);
        self.settle_down(id, index);
    }

    pub(super) fn reap(&mut self, id: u32, index: u16) {
        loop {
            match self.guests[id as usize].reap(&self.mem, index.into()) {
                Ok(Some((done, request))) => self.came_back(id, index, &done, &request),
                Ok(None) => return,
                Err(what) => return self.fault("I03", what),
            }
        }
    }

    fn came_back(&mut self, id: u32, index: u16, done: &Completion, request: &Outstanding) {
        self.requests += 1;
        let head = done.tag.0;
        self.line(
            queue(id, index),
            "done",
            format_args!("{head} {:?} {} {}", request.wish.kind, done.status, done.used_len),
        );
        let image = self.image_of(id);
        let of_image = u32::try_from(image).unwrap_or(u32::MAX);
        let cluster = &self.cluster;
        let era = self.fronts[id as usize].era;
        let unstable = self
            .durable
            .unstable((id, index, head), era, |sector| cluster.dirty_since(of_image, sector));
        //= spec/blk.md#BLK-19
        if let Some(sector) = unstable.filter(|_| done.status == 0) {
            self.fault("I02", format!("image {image}: sector {sector} is not stable"));
        }
        let cluster = &self.cluster;
        self.durable.came_back((id, index, head), done.status == 0, of_image, |sector| {
            cluster.dirty_since(of_image, sector)
        });
        let history = &mut self.histories[image];
        let meant = self.meant.remove(&(id, index, head)).unwrap_or(Meant::Nothing);
        let verdict = match (meant, done.status) {
            (Meant::Read(read), 0) => {
                let data = self.guests[id as usize].data(&self.mem, request);
                history.read_done(read, request.wish.sector, &data)
            }
            (Meant::Read(read), _) => {
                history.read_failed(read);
                Ok(())
            }
            (Meant::Writes(writes), status) => {
                for write in writes {
                    if status == 0 {
                        history.write_done(write)
                    } else {
                        history.write_failed(write)
                    }
                }
                Ok(())
            }
            (Meant::Flush(flush, sent), 0) => {
                history.flush_done(flush);
                self.check_flush(image, sent);
                Ok(())
            }
            (Meant::Flush(..) | Meant::Nothing, _) => Ok(()),
        };
        if let Err(violation) = verdict {
            self.fault("I01", format!("image {image}: {violation}"));
        }
    }

    //= spec/blk.md#BLK-17
    fn check_flush(&mut self, image: usize, sent: u64) {
        let image = u32::try_from(image).unwrap_or(u32::MAX);
        let unsaved = self.durable.flushed(sent, image, self.cluster.dirty(image));
        if !unsaved.is_empty() {
            self.fault("I02", format!("image {image}: a flush has not saved {unsaved:?}"));
        }
    }

    fn submit(&mut self, id: u32, index: u16) {
        let image = self.image_of(id);
        if !self.fronts[id as usize].negotiated {
            return;
        }
        let Some(disk) = self.mem.inner().bus.disks.get(&id).copied() else { return };
        let guest = &mut self.guests[id as usize];
        let wish = Wish::draw(&mut self.prng, &guest.taste, &disk);
        if self.meets_another(id, &wish) {
            return;
        }
        // The history has to know of a request before the device can see it.
        let history = &mut self.histories[image];
        let sectors = u32::try_from(wish.bytes / 512).unwrap_or(0);
        let legal = wish.is_legal(&disk);
        let write = (wish.kind == Kind::Write && legal)
            .then(|| history.write_invoked(id, wish.sector, sectors));
        let fill = |wish: &Wish, data: &mut [u8]| {
            let Some(write) = &write else { return };
            for (sector, into) in (wish.sector..).zip(data.chunks_exact_mut(SECTOR)) {
                let into: &mut [u8; SECTOR] = into.try_into().expect("a sector");
                history.stamp(write, sector).fill(into);
            }
        };
        let kind = wish.kind;
        let shown = wish.clone();
        let added = self.guests[id as usize].add(&self.mem, index.into(), wish, fill);
        let history = &mut self.histories[image];
        let Some(head) = added else {
            if let Some(write) = write {
                history.write_failed(write);
            }
            return;
        };
        let ranges = |each: &mut dyn FnMut(u64, u32) -> _| {
            shown.ranges.iter().map(|range| each(range.sector.get(), range.sectors.get())).collect()
        };
        let meant = match kind {
            _ if !legal => Meant::Nothing,
            Kind::Read => Meant::Read(history.read_invoked()),
            Kind::Write => Meant::Writes(write.into_iter().collect()),
            Kind::Flush => Meant::Flush(history.flush_invoked(), self.durable.now()),
            Kind::Discard => Meant::Writes(ranges(&mut |s, n| history.discard_invoked(s, n))),
            Kind::WriteZeroes => Meant::Writes(ranges(&mut |s, n| history.zero_invoked(s, n))),
            Kind::GetId | Kind::Other { .. } => Meant::Nothing,
        };
        let front = &self.fronts[id as usize];
        if front.writes_through() && matches!(kind, Kind::Write | Kind::WriteZeroes) {
            self.durable.sent_through((id, index, head), front.era);
        }
        self.meant.insert((id, index, head), meant);
        let (sector, bytes, ranges) = (shown.sector, shown.bytes, shown.ranges.len());
        self.line(
            queue(id, index),
            "ask",
            format_args!("{head} {kind:?} {sector} {bytes} {ranges}"),
        );
    }

    /// Whether a discard or write-zeroes touches what another one under way touches: nobody
    /// could tell whose operations are whose.
    fn meets_another(&self, id: u32, wish: &Wish) -> bool {
        let image = self.image_of(id);
        let bounds = |wish: &Wish| -> Vec<(u64, u64)> {
            let range = |range: &sluice_core::blk::request::RangeWire| {
                (range.sector.get(), range.sector.get().saturating_add(range.sectors.get().into()))
            };
            wish.ranges.iter().map(range).collect()
        };
        let mine = bounds(wish);
        let neighbours = self.guests.iter().filter(|guest| self.image_of(guest.id) == image);
        neighbours.flat_map(|guest| &guest.queues).flat_map(|queue| queue.waiting.values()).any(
            |other| {
                let meets = |&(s, e): &(u64, u64)| mine.iter().any(|&(a, b)| s < b && a < e);
                bounds(&other.wish).iter().any(meets)
            },
        )
    }

    fn expose(&mut self, id: u32, index: u16) {
        let driver = &mut self.guests[id as usize].queues[usize::from(index)].driver;
        let side = self.mem.guest_side();
        driver.expose(&side);
        if driver.should_kick(&side) {
            let delay = self.prng.skewed(3000);
            self.clock.plan(delay, Event::Kick(id, index));
        }
    }

    /// The driver waits for a notification, at once or after some completions, or polls on.
    fn settle_down(&mut self, id: u32, index: u16) {
        let healing = self.is_healing();
        let queue = &mut self.guests[id as usize].queues[usize::from(index)];
        let side = self.mem.guest_side();
        let under_way = u64::from(queue.driver.in_flight());
        let choice = self.prng.below(10);
        let came = if healing || choice < 6 || under_way == 0 {
            queue.driver.arm(&side)
        } else if choice < 8 {
            let more = u16::try_from(self.prng.below(under_way)).unwrap_or(0);
            queue.driver.arm_after(&side, more)
        } else {
            queue.driver.disarm(&side).map(|()| true)
        };
        if came == Ok(true) && self.looking.insert((id, index), true).is_none() {
            let delay = self.prng.skewed(5000);
            self.clock.plan(delay, Event::Look(id, index));
        }
    }
}
