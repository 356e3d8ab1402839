//! The history checker: whether what reads return can be explained by what was written.
//!
//! Every sector is a register. Each write fills it with a [`Stamp`] of its own, so a read says
//! which write it saw, and the history is checked as it happens, exactly and without search. A
//! request is not atomic over its sectors. Callers report a request *before* the device can see
//! it and its end *after* they have seen it: intervals that are too wide excuse more, never less.
//!
//! What has been superseded for every read under way is forgotten, so memory grows with the
//! sectors touched and the requests in flight, not with time.

mod stamp;
mod sector;
mod pages;
mod violation;

pub use stamp::{Content, SECTOR, Stamp};
pub use violation::{Violation, Wrong};

use std::collections::{BTreeMap, VecDeque};

use pages::Sectors;
use sector::{Clock, Illegal, NEVER, Sector, Value};

/// What an image holds when its history begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Initial {
    /// Zeroes.
    Zero,
    /// Anything: the first read of a sector tells.
    Any,
}

/// A write, write-zeroes or discard of one range, under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Write {
    /// First sector.
    pub first: u64,
    /// Sectors.
    pub sectors: u32,
    /// Its number in the history.
    pub sequence: u64,
    writer: u32,
    kind: Kind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Data,
    Zero,
    Discard,
}

impl Write {
    const fn value(&self) -> Value {
        match self.kind {
            Kind::Data => Value::data(self.sequence),
            Kind::Zero | Kind::Discard => Value::zero(self.sequence),
        }
    }
}

/// A read under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Read {
    start: u64,
    /// Its number among the reads.
    number: u64,
}

/// A flush under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flush {
    start: u64,
}

/// The history of one image.
#[derive(Debug)]
pub struct History {
    image: u64,
    initial: Value,
    power: bool,
    /// Writes under way by their number, if the device may restart.
    under_way: Option<BTreeMap<u64, Write>>,
    /// Writes that a restart found under way, and when they ended.
    repeated: BTreeMap<u64, u64>,
    /// Counts events: each has a time of its own.
    now: u64,
    /// Writes acknowledged before this are durable.
    durable: u64,
    sequence: u64,
    /// When the last power loss was.
    power_lost: u64,
    /// When the reads under way began, oldest first; those that ended leave `None` until they
    /// are the oldest.
    reads: VecDeque<Option<u64>>,
    /// The number of the oldest read in the queue.
    first_read: u64,
    sectors: Sectors,
}

impl History {
    /// The history of an image that nobody else writes. `image` goes into every stamp and should
    /// differ from run to run.
    #[must_use]
    pub fn new(image: u64, initial: Initial) -> Self {
        let initial = match initial {
            Initial::Zero => Value::zero(0),
            Initial::Any => Value::UNKNOWN,
        };
        Self {
            image,
            initial,
            power: false,
            under_way: None,
            repeated: BTreeMap::new(),
            now: 0,
            durable: 1,
            sequence: 0,
            power_lost: 0,
            reads: VecDeque::new(),
            first_read: 0,
            sectors: Sectors::default(),
        }
    }

    /// Keeps what a power loss might bring back; without it [`lose_power`](Self::lose_power)
    /// may not be called.
    #[must_use]
    pub fn with_power_losses(mut self) -> Self {
        self.power = true;
        self
    }

    /// Keeps what is under way; without it [`restart`](Self::restart) may not be called.
    #[must_use]
    pub fn with_restarts(mut self) -> Self {
        self.under_way = Some(BTreeMap::new());
        self
    }

    /// A write is about to be sent; its data is what [`Stamp::fill`] makes.
    pub fn write_invoked(&mut self, writer: u32, first: u64, sectors: u32) -> Write {
        self.invoke(Kind::Data, writer, first, sectors)
    }

    /// A range is about to be zeroed.
    pub fn zero_invoked(&mut self, first: u64, sectors: u32) -> Write {
        self.invoke(Kind::Zero, 0, first, sectors)
    }

    /// A range is about to be discarded: afterwards it holds zeroes or what it held. A device
    /// that promises zeroes is checked with [`zero_invoked`](Self::zero_invoked) instead.
    pub fn discard_invoked(&mut self, first: u64, sectors: u32) -> Write {
        self.invoke(Kind::Discard, 0, first, sectors)
    }

    fn invoke(&mut self, kind: Kind, writer: u32, first: u64, sectors: u32) -> Write {
        self.sequence += 1;
        let write = Write { first, sectors, sequence: self.sequence, writer, kind };
        if let Some(under_way) = &mut self.under_way {
            under_way.insert(write.sequence, write);
        }
        let (now, clock, initial) = (self.tick(), self.clock(), self.initial);
        self.sectors.each(first, sectors.into(), |_, sector| {
            sector.invoke(write.value(), now, &clock, initial);
        });
        write
    }

    /// The stamp of one of a write's sectors.
    #[must_use]
    pub const fn stamp(&self, write: &Write, sector: u64) -> Stamp {
        let Write { sequence, writer, .. } = *write;
        Stamp { image: self.image, sector, sequence, writer }
    }

    /// The write was acknowledged.
    pub fn write_done(&mut self, write: Write) {
        self.finish(write, write.kind != Kind::Discard);
    }

    /// The write was answered with an error: it took effect or not, sector by sector, but will
    /// not any more.
    pub fn write_failed(&mut self, write: Write) {
        self.finish(write, false);
    }

    /// Nobody will ever answer the write: it may take effect at any time.
    pub fn write_lost(&mut self, write: Write) {
        let _ = write;
    }

    fn finish(&mut self, write: Write, certain: bool) {
        if let Some(under_way) = &mut self.under_way {
            under_way.remove(&write.sequence);
            if let Some(end) = self.repeated.get_mut(&write.sequence) {
                *end = self.now + 1;
            }
        }
        let now = self.tick();
        self.sectors.each(write.first, write.sectors.into(), |_, sector| {
            sector.finish(write.value(), now, certain);
        });
    }

    /// A flush is about to be sent.
    pub fn flush_invoked(&mut self) -> Flush {
        Flush { start: self.tick() }
    }

    /// The flush succeeded: what was acknowledged before it was sent is durable.
    pub fn flush_done(&mut self, flush: Flush) {
        self.durable = self.durable.max(flush.start);
    }

    /// A read is about to be sent.
    pub fn read_invoked(&mut self) -> Read {
        let start = self.tick();
        let number = self.first_read + self.reads.len() as u64;
        self.reads.push_back(Some(start));
        Read { start, number }
    }

    /// The read failed, or will never be answered.
    pub fn read_failed(&mut self, read: Read) {
        self.end_read(read);
    }

    /// The read returned these bytes, from sector `first` on.
    ///
    /// # Errors
    /// The first sector that cannot hold what was read. The other ones are looked at all the same.
    pub fn read_done(&mut self, read: Read, first: u64, bytes: &[u8]) -> Result<(), Violation> {
        let (sectors, rest) = bytes.as_chunks::<SECTOR>();
        assert!(rest.is_empty(), "whole sectors");
        let mut contents = sectors.iter().map(Content::of);
        self.read_done_contents(read, first, &mut contents)
    }

    /// The same for sectors that were already taken apart, so that callers with a lock can hold
    /// it for a shorter time.
    ///
    /// # Errors
    /// See [`read_done`](Self::read_done).
    pub fn read_done_contents(
        &mut self,
        read: Read,
        first: u64,
        contents: &mut dyn ExactSizeIterator<Item = Content>,
    ) -> Result<(), Violation> {
        let end = self.tick();
        let (image, newest, initial) = (self.image, self.sequence, self.initial);
        // A read from before a power loss does not tell which values survived it.
        let learn = read.start > self.power_lost;
        let mut verdict = Ok(());
        self.sectors.each(first, contents.len() as u64, |at, sector| {
            let Some(content) = contents.next() else { return };
            // Death may stop a write inside a sector. Until it has been repeated, reads that were
            // sent before its end may see that.
            if let Content::Torn(stamp, _) = content
                && (stamp.image, stamp.sector) == (image, at)
                && self.repeated.get(&stamp.sequence).is_some_and(|&end| read.start < end)
            {
                return;
            }
            let (value, fault) = judge(content, image, at, newest);
            let Err(illegal) = sector.read(value, (read.start, end), learn, initial) else {
                return;
            };
            let wrong = match illegal {
                Illegal::Superseded(by) => Wrong::Stale {
                    found: if let Content::Stamp(stamp) = content { Some(stamp) } else { None },
                    superseded_by: by.and_then(Value::sequence),
                },
                Illegal::Unknown => fault,
            };
            verdict = verdict.and(Err(Violation { sector: at, wrong }));
        });
        self.end_read(read);
        verdict
    }

    /// The whole image lost power: acknowledged writes that no flush covered may be gone.
    ///
    /// # Panics
    /// Without [`with_power_losses`](Self::with_power_losses).
    pub fn lose_power(&mut self) {
        assert!(self.power, "values were not kept for power losses");
        let (now, clock) = (self.tick(), self.clock());
        self.power_lost = now;
        for sector in self.sectors.iter_mut() {
            sector.lose_power(now, &clock);
        }
    }

    /// The device has died, or lost its connection, and everything is done again that is under way.
    /// What was not acknowledged may so take effect more than once, with newer writes in between.
    /// Everything that was acknowledged has to be reported before: that is not done again.
    ///
    /// # Panics
    /// Without [`with_restarts`](Self::with_restarts).
    pub fn restart(&mut self) {
        let under_way = self.under_way.as_ref().expect("writes under way are kept for restarts");
        let under_way: Vec<Write> = under_way.values().copied().collect();
        self.repeat(&under_way);
    }

    /// The same for these writes alone, which are under way.
    pub fn repeat(&mut self, writes: &[Write]) {
        let horizon = self.clock().horizon;
        self.repeated.retain(|_, end| *end >= horizon);
        for write in writes {
            self.repeated.insert(write.sequence, NEVER);
            self.sectors.each(write.first, write.sectors.into(), |_, sector| {
                sector.repeat(write.value());
            });
        }
    }

    /// Values that are kept, over all sectors: grows with what is in flight.
    #[must_use]
    pub fn values(&self) -> usize {
        self.sectors.iter().map(Sector::values).sum()
    }

    fn tick(&mut self) -> u64 {
        self.now += 1;
        self.now
    }

    fn clock(&self) -> Clock {
        let oldest = self.reads.front().copied().flatten();
        Clock { horizon: oldest.unwrap_or(self.now), durable: self.durable, power: self.power }
    }

    fn end_read(&mut self, read: Read) {
        let place = usize::try_from(read.number - self.first_read).expect("reads under way");
        self.reads[place] = None;
        while self.reads.front() == Some(&None) {
            self.reads.pop_front();
            self.first_read += 1;
        }
    }
}

/// The value that a content is, and what is wrong if the sector cannot hold it.
fn judge(content: Content, image: u64, sector: u64, newest: u64) -> (Value, Wrong) {
    match content {
        Content::Zero => (Value::zero(0), Wrong::Zeroes),
        Content::Stamp(stamp) if stamp.image != image => {
            (Value::foreign(stamp.image ^ stamp.sequence), Wrong::Garbage)
        }
        Content::Torn(stamp, at) if stamp.image != image => {
            (Value::foreign(stamp.image ^ stamp.sequence ^ at as u64), Wrong::Garbage)
        }
        Content::Stamp(stamp) if stamp.sector != sector => (Value::NONE, Wrong::WrongSector(stamp)),
        Content::Stamp(stamp) if stamp.sequence > newest => (Value::NONE, Wrong::Invented(stamp)),
        Content::Stamp(stamp) => {
            // It was sent once, or nobody could have stamped it; so it is known or forgotten.
            let stale = Wrong::Stale { found: Some(stamp), superseded_by: None };
            (Value::data(stamp.sequence), stale)
        }
        Content::Torn(found, at) => (Value::NONE, Wrong::Torn { found, at }),
        Content::Other(hash) => (Value::foreign(hash), Wrong::Garbage),
    }
}

#[cfg(test)]
mod tests;
