//! One sector as a register: which values a read may still return.
//!
//! Every value has a *zone*: it was surely there at some time between `finish`, the first end of
//! an operation on it, and `start`, the last begin of one. Value *a* comes before *b* when an
//! operation on *a* ended before one on *b* began, `a.finish < b.start`. A history with unique
//! values is linearizable exactly when no two values come before each other (P. B. Gibbons and
//! E. Korach, Testing Shared Memories, 1997), so looking at pairs is enough: no search.

/// A time that has not come: the write is under way, or nobody will ever know.
pub(super) const NEVER: u64 = u64::MAX;

/// Which value: the sequence of the write, with the kind in the two highest bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Value(u64);

const KIND: u64 = 3 << 62;
const ZERO: u64 = 1 << 62;
const FOREIGN: u64 = 2 << 62;

impl Value {
    /// What no sector holds: sequences begin at 1.
    pub(super) const NONE: Self = Self(0);
    /// Whatever was there before the history began.
    pub(super) const UNKNOWN: Self = Self(KIND);

    pub(super) const fn data(sequence: u64) -> Self {
        Self(sequence)
    }

    /// Zeroes look the same whoever wrote them; the sequence tells the writes apart.
    pub(super) const fn zero(sequence: u64) -> Self {
        Self(sequence | ZERO)
    }

    /// Something that is none of the history's stamps.
    pub(super) const fn foreign(hash: u64) -> Self {
        Self((hash & !KIND) | FOREIGN)
    }

    pub(super) const fn is_zero(self) -> bool {
        self.0 & KIND == ZERO
    }

    /// The request that wrote it, if one of the history did.
    pub(super) const fn sequence(self) -> Option<u64> {
        match self.0 & KIND {
            0 | ZERO => Some(self.0 & !KIND),
            _ => None,
        }
    }

    /// Whether a sector with content `read` may hold this value.
    const fn matches(self, read: Self) -> bool {
        self.0 == read.0
            || (self.is_zero() && read.is_zero())
            || (self.0 == Self::UNKNOWN.0 && read.0 & KIND != 0)
    }
}

/// What is known of one value.
#[derive(Clone, Copy, Debug)]
pub(super) struct Entry {
    value: Value,
    start: u64,
    finish: u64,
    /// When the write was acknowledged; for power losses.
    acked: u64,
    /// Whether it surely took effect. A failed write or a discard may never have: it binds
    /// nothing until it has been seen.
    certain: bool,
    /// Surely superseded for every read that may still return.
    dead: bool,
    /// Superseded by something durable: not even a power loss brings it back.
    buried: bool,
    /// A write under way that may take effect any number of times before it is acknowledged: that
    /// it was there once says nothing about when it is there again.
    repeats: bool,
}

/// What the sectors share.
#[derive(Clone, Copy, Debug)]
pub(super) struct Clock {
    /// No read that will return was invoked before this.
    pub(super) horizon: u64,
    /// Writes acknowledged before this are durable.
    pub(super) durable: u64,
    /// Whether values have to be kept for power losses.
    pub(super) power: bool,
}

/// The values that a sector may hold.
#[derive(Debug)]
pub(super) struct Sector {
    /// Empty until the sector is first written: it holds what it held before the history.
    entries: Vec<Entry>,
    /// How many values there may be before it is worth looking which can be forgotten: while
    /// none can, looking at every write would cost the square of their number each time.
    prune_at: usize,
}

/// Why a value may not be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Illegal {
    /// It was superseded, by this one if that is still known.
    Superseded(Option<Value>),
    /// The sector cannot hold it.
    Unknown,
}

impl Entry {
    /// What a sector held before the history.
    pub(super) const fn before(value: Value) -> Self {
        let (start, finish, acked) = (0, 0, 0);
        let (dead, buried, repeats) = (false, false, false);
        Self { value, start, finish, acked, certain: true, dead, buried, repeats }
    }

    /// A write under way.
    const fn invoked(value: Value, now: u64) -> Self {
        let (start, finish, acked) = (now, NEVER, NEVER);
        let (dead, buried, repeats) = (false, false, false);
        Self { value, start, finish, acked, certain: false, dead, buried, repeats }
    }

    /// Whether this value, if it was ever there, came before the other, which surely was.
    fn is_before(&self, other: &Self) -> bool {
        other.certain && self.finish < other.start && other.value != self.value
    }
}

impl Sector {
    pub(super) const UNTOUCHED: Self = Self { entries: Vec::new(), prune_at: 0 };

    /// A write begins.
    #[inline]
    pub(super) fn invoke(&mut self, value: Value, now: u64, clock: &Clock, initial: Value) {
        self.touch(initial);
        if self.entries.len() > self.prune_at {
            self.prune(clock);
            self.prune_at = if self.entries.len() < 8 { 0 } else { 2 * self.entries.len() };
        }
        self.entries.push(Entry::invoked(value, now));
    }

    /// A write under way is done again, perhaps more than once: by everybody who finds it, and by
    /// whoever has died and still has it on the way to the disk.
    pub(super) fn repeat(&mut self, value: Value) {
        let entry = self.entries.iter_mut().rev().find(|entry| entry.value == value);
        let entry = entry.expect("what is under way is kept");
        (entry.finish, entry.dead, entry.repeats) = (NEVER, false, true);
    }

    fn touch(&mut self, initial: Value) {
        if self.entries.is_empty() {
            self.entries.push(Entry::before(initial));
        }
    }

    /// A write ended at `now`; `certain` if it surely took effect.
    #[inline]
    pub(super) fn finish(&mut self, value: Value, now: u64, certain: bool) {
        let entry = self.entries.iter_mut().rev().find(|entry| entry.value == value);
        let entry = entry.expect("what is under way is kept");
        (entry.finish, entry.acked) = (entry.finish.min(now), now);
        (entry.certain, entry.repeats) = (entry.certain | certain, false);
    }

    /// A read in this interval returned this value. Without `learn` it binds nothing.
    #[inline]
    pub(super) fn read(
        &mut self,
        read: Value,
        (start, end): (u64, u64),
        learn: bool,
        initial: Value,
    ) -> Result<(), Illegal> {
        self.touch(initial);
        let (mut found, mut candidates, mut verdict) = (0, 0, Err(Illegal::Unknown));
        for (index, entry) in self.entries.iter().enumerate() {
            if !entry.value.matches(read) {
                continue;
            }
            match self.check(index, start, end) {
                Ok(()) => (found, candidates) = (index, candidates + 1),
                Err(illegal) => verdict = Err(illegal),
            }
        }
        if candidates == 0 {
            return verdict;
        }
        // Zeroes of several writes look the same. Only if there is no doubt something was learnt.
        let entry = &mut self.entries[found];
        if candidates == 1 && learn && !entry.repeats {
            if entry.value == Value::UNKNOWN {
                entry.value = read;
            }
            entry.start = entry.start.max(start);
            entry.finish = entry.finish.min(end);
            entry.certain = true;
        }
        Ok(())
    }

    /// Whether one more read of an entry leaves the history linearizable.
    #[inline]
    fn check(&self, index: usize, start: u64, end: u64) -> Result<(), Illegal> {
        let entry = &self.entries[index];
        if entry.dead {
            let by = self.entries.iter().find(|other| entry.is_before(other));
            return Err(Illegal::Superseded(by.map(|by| by.value)));
        }
        let (start, finish) = (entry.start.max(start), entry.finish.min(end));
        for (at, other) in self.entries.iter().enumerate() {
            if at != index && other.certain && finish < other.start && other.finish < start {
                return Err(Illegal::Superseded(Some(other.value)));
            }
        }
        Ok(())
    }

    /// Forgets what no read may return any more.
    ///
    /// What is under way stays. A superseded value goes only when no read is under way from before its own end: until
    /// then it may be what supersedes another one. All that it supersedes is marked first.
    #[inline]
    pub(super) fn prune(&mut self, clock: &Clock) {
        if self.entries.len() < 2 {
            return;
        }
        for index in 0..self.entries.len() {
            let entry = &self.entries[index];
            let mut superseding =
                self.entries.iter().filter(|other| entry.is_before(other)).peekable();
            if superseding.peek().is_none() {
                continue;
            }
            let (mut dead, mut buried) = (entry.dead, entry.buried);
            for other in superseding {
                dead |= other.finish < clock.horizon;
                buried |= other.acked < clock.durable;
            }
            (self.entries[index].dead, self.entries[index].buried) = (dead, buried);
        }
        self.entries.retain(|entry| {
            let gone = entry.dead && entry.finish < clock.horizon && entry.acked != NEVER;
            !(gone && (entry.buried || !clock.power))
        });
    }

    /// Everything that was not durable may be gone: the sector holds any one of the values that
    /// nothing durable supersedes, and holds it from `now` on. Writes under way stay so.
    pub(super) fn lose_power(&mut self, now: u64, clock: &Clock) {
        self.prune(clock);
        for entry in self.entries.iter_mut().filter(|entry| !entry.buried) {
            (entry.dead, entry.certain) = (false, false);
            if entry.acked == NEVER {
                entry.finish = NEVER;
            } else {
                (entry.start, entry.finish) = (now, now);
            }
        }
    }

    /// Values that a read might return.
    pub(super) fn values(&self) -> usize {
        self.entries.len()
    }
}
