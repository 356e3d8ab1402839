//! Requests that overlap, kept apart where the kernel does not.
//!
//! In the page cache a read beside a write of the same sector returns some bytes of either, and of
//! two writes each may leave a part. A request that overlaps an earlier one therefore waits until
//! that has ended, unless both only read. Who overlaps nobody is told so by counters of blocks;
//! only where these say "perhaps" is a list gone through.

use std::collections::VecDeque;

/// Bytes of a block that is counted for.
const BLOCK_LOG: u32 = 12;
/// Blocks there are counters for; others share them.
const BLOCKS: usize = 4096;
/// A request over more blocks is not counted block by block.
const WIDE: u64 = 257;

/// A range, and whether it is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Range {
    pub(super) start: u64,
    pub(super) end: u64,
    pub(super) modifies: bool,
}

impl Range {
    const fn conflicts(&self, other: &Self) -> bool {
        (self.modifies || other.modifies) && self.start < other.end && other.start < self.end
    }

    /// The blocks it touches, or `None` when they are too many to count.
    fn blocks(&self) -> Option<impl Iterator<Item = usize> + use<>> {
        let (first, last) = (self.start >> BLOCK_LOG, (self.end - 1) >> BLOCK_LOG);
        #[expect(clippy::cast_possible_truncation, reason = "the remainder is small")]
        (last - first < WIDE).then(|| (first..=last).map(|block| block as usize % BLOCKS))
    }
}

/// A request under way, or one that waits.
#[derive(Clone, Copy, Debug)]
struct Entry {
    key: u32,
    range: Range,
    /// Its place in the order of requests.
    number: u64,
    /// Earlier requests that it has to wait for.
    before: u32,
}

/// Requests in a block.
#[derive(Clone, Copy, Debug, Default)]
struct Users {
    all: u16,
    writers: u16,
}

/// The requests of an image that have not ended, by a number of their owner's choice.
#[derive(Debug)]
pub(super) struct Apart {
    blocks: Box<[Users]>,
    /// Requests that are in no block's counters.
    wide: u32,
    entries: Vec<Entry>,
    /// Where in `entries` a key is, and one more; 0 for none.
    places: Vec<u32>,
    waiting: u32,
    ready: VecDeque<u32>,
    next: u64,
}

impl Apart {
    pub(super) fn new() -> Self {
        Self {
            blocks: vec![Users::default(); BLOCKS].into(),
            wide: 0,
            entries: Vec::new(),
            places: Vec::new(),
            waiting: 0,
            ready: VecDeque::new(),
            next: 0,
        }
    }

    /// A request comes; `false` when it has to wait until [`ready`](Self::ready) names it.
    //= spec/store.md#STO-27
    #[inline]
    pub(super) fn enter(&mut self, key: u32, range: Range) -> bool {
        if range.start >= range.end {
            return true;
        }
        let before = if self.count(&range) { self.conflicts(&range) } else { 0 };
        let place = key as usize;
        if self.places.len() <= place {
            self.places.resize(place + 1, 0);
        }
        self.entries.push(Entry { key, range, number: self.next, before });
        self.places[place] = u32::try_from(self.entries.len()).unwrap_or(u32::MAX);
        self.next += 1;
        self.waiting += u32::from(before > 0);
        before == 0
    }

    /// A request has ended. One that never came is none of ours.
    #[inline]
    pub(super) fn leave(&mut self, key: u32) {
        let Some(place) = self.places.get_mut(key as usize) else { return };
        let Some(index) = core::mem::take(place).checked_sub(1) else { return };
        let ended = self.entries.swap_remove(index as usize);
        if let Some(moved) = self.entries.get(index as usize) {
            self.places[moved.key as usize] = index + 1;
        }
        match ended.range.blocks() {
            Some(blocks) => blocks.for_each(|block| {
                self.blocks[block].all -= 1;
                self.blocks[block].writers -= u16::from(ended.range.modifies);
            }),
            None => self.wide -= 1,
        }
        if self.waiting > 0 {
            self.release(&ended);
        }
    }

    /// A request that may begin now.
    #[inline]
    pub(super) fn ready(&mut self) -> Option<u32> {
        self.ready.pop_front()
    }

    /// Requests that have to wait.
    #[inline]
    pub(super) const fn waiting(&self) -> usize {
        self.waiting as usize
    }

    /// Counts a range; `true` when it may overlap another.
    #[inline]
    fn count(&mut self, range: &Range) -> bool {
        let mut perhaps = self.wide > 0;
        let Some(blocks) = range.blocks() else {
            self.wide += 1;
            return !self.entries.is_empty();
        };
        for block in blocks {
            let users = &mut self.blocks[block];
            perhaps |= users.writers > 0 || (range.modifies && users.all > 0);
            users.all += 1;
            users.writers += u16::from(range.modifies);
        }
        perhaps
    }

    #[cold]
    fn conflicts(&self, range: &Range) -> u32 {
        let count = self.entries.iter().filter(|entry| entry.range.conflicts(range)).count();
        u32::try_from(count).unwrap_or(u32::MAX)
    }

    /// Those who waited for this one wait for one less.
    #[cold]
    fn release(&mut self, ended: &Entry) {
        let ready = self.ready.len();
        for entry in &mut self.entries {
            if entry.before > 0
                && entry.number > ended.number
                && entry.range.conflicts(&ended.range)
            {
                entry.before -= 1;
                if entry.before == 0 {
                    self.waiting -= 1;
                    self.ready.push_back(entry.key);
                }
            }
        }
        // The list is in no order.
        let number = |key: &u32| self.entries[self.places[*key as usize] as usize - 1].number;
        self.ready.make_contiguous()[ready..].sort_by_key(number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn range() -> impl Strategy<Value = Range> {
        let len = prop_oneof![4 => 1..8_u64, 3 => 8..300_u64, 1 => 3000..9000_u64];
        (0..600_u64, len, any::<bool>()).prop_map(|(start, len, modifies)| Range {
            start: start * 512,
            end: (start + len) * 512,
            modifies,
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        /// Against a list of all that has come and not ended, in its order.
        //= spec/store.md#STO-27
        #[test]
        fn who_overlaps_waits_and_nobody_else_does(
            steps in proptest::collection::vec((range(), any::<proptest::sample::Index>(), any::<bool>()), 1..200)
        ) {
            let mut apart = Apart::new();
            // Key, range, whether it has begun.
            let mut model: Vec<(u32, Range, bool)> = Vec::new();
            let mut free: Vec<u32> = (0..64).collect();
            for (range, which, ends) in steps {
                let begun: Vec<_> = (0..model.len()).filter(|&at| model[at].2).collect();
                if (ends || free.is_empty()) && !begun.is_empty() {
                    let (key, ..) = model.remove(begun[which.index(begun.len())]);
                    apart.leave(key);
                    free.push(key);
                } else if let Some(key) = free.pop() {
                    let waits = model.iter().any(|(_, other, _)| other.conflicts(&range));
                    prop_assert_eq!(apart.enter(key, range), !waits);
                    model.push((key, range, !waits));
                }
                let mut ready = Vec::new();
                for at in 0..model.len() {
                    let (key, range, begun) = model[at];
                    if !begun && !model[..at].iter().any(|(_, other, _)| other.conflicts(&range)) {
                        ready.push(key);
                        model[at].2 = true;
                    }
                }
                prop_assert_eq!(std::iter::from_fn(|| apart.ready()).collect::<Vec<_>>(), ready);
                prop_assert_eq!(apart.waiting(), model.iter().filter(|(.., begun)| !begun).count());
            }
            while !model.is_empty() {
                let at = model.iter().position(|(.., begun)| *begun).expect("nobody waits for ever");
                apart.leave(model.remove(at).0);
                while let Some(key) = apart.ready() {
                    model.iter_mut().find(|(other, ..)| *other == key).unwrap().2 = true;
                }
            }
            prop_assert!(apart.blocks.iter().all(|users| users.all == 0 && users.writers == 0));
            prop_assert_eq!((apart.wide, apart.entries.len()), (0, 0));
        }
    }

    #[test]
    fn what_never_came_does_not_leave() {
        let mut apart = Apart::new();
        apart.leave(3);
        let range = Range { start: 0, end: 512, modifies: true };
        assert!(apart.enter(1, range));
        apart.leave(3);
        assert!(!apart.enter(2, range));
        assert!(apart.enter(3, Range { end: 0, ..range }), "nothing overlaps nothing");
        apart.leave(1);
        assert_eq!(apart.ready(), Some(2));
    }
}
