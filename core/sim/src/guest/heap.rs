//! A guest's free memory: ranges of its address space, given out and taken back.

use std::collections::BTreeMap;

use crate::prng::Prng;

/// Free ranges, by their first address; neighbours are always merged.
#[derive(Clone, Debug, Default)]
pub struct Heap {
    free: BTreeMap<u64, u64>,
}

impl Heap {
    /// A heap in which one range is free.
    #[must_use]
    pub fn new(start: u64, len: u64) -> Self {
        Self { free: BTreeMap::from([(start, len)]) }
    }

    /// Takes `len` bytes, from anywhere and not aligned to anything.
    pub fn take(&mut self, prng: &mut Prng, len: u64) -> Option<u64> {
        let fits: Vec<(u64, u64)> =
            self.free.iter().filter(|&(_, &l)| l >= len).map(|(&s, &l)| (s, l)).collect();
        if fits.is_empty() {
            return None;
        }
        let (start, free) = prng.pick(&fits);
        let skip = if prng.chance(700) { 0 } else { prng.between(0, free - len) };
        self.free.remove(&start);
        if skip > 0 {
            self.free.insert(start, skip);
        }
        if skip + len < free {
            self.free.insert(start + skip + len, free - len - skip);
        }
        Some(start + skip)
    }

    /// Takes a range back.
    pub fn give(&mut self, start: u64, len: u64) {
        let (mut start, mut len) = (start, len);
        if let Some((&before, &free)) = self.free.range(..start).next_back()
            && before + free == start
        {
            self.free.remove(&before);
            (start, len) = (before, free + len);
        }
        if let Some(behind) = self.free.remove(&(start + len)) {
            len += behind;
        }
        self.free.insert(start, len);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_given_back_is_whole_again() {
        let (mut prng, mut heap) = (Prng::new(1), Heap::new(100, 1000));
        let mut taken: Vec<(u64, u64)> = Vec::new();
        for len in 1..30 {
            let start = heap.take(&mut prng, len).unwrap();
            let apart = |&(s, l): &(u64, u64)| s + l <= start || start + len <= s;
            assert!(start >= 100 && start + len <= 1100 && taken.iter().all(apart));
            taken.push((start, len));
        }
        assert_eq!(heap.take(&mut prng, 1000), None);
        taken.iter().for_each(|&(start, len)| heap.give(start, len));
        assert_eq!(heap.free, BTreeMap::from([(100, 1000)]));
    }
}
