//! How far writes reach that may have made a file longer again since somebody has cut it.
//!
//! No call writes to a file and leaves its length alone. A write that meets a file which was cut
//! a moment ago therefore makes it grow, up to its own end, and nobody is told. What can be known
//! is which writes there were since the file was last seen whole: where none of them ends at or
//! behind the size that it has now, that size is somebody's choice.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// What those who look at a file and those who write to it tell each other.
#[derive(Debug)]
pub(super) struct Looks {
    count: AtomicU32,
    bytes: AtomicU64,
}

impl Looks {
    pub(super) const fn new(bytes: u64) -> Self {
        Self { count: AtomicU32::new(0), bytes: AtomicU64::new(bytes) }
    }

    /// Somebody looks now.
    pub(super) fn begin(&self) {
        self.count.fetch_add(1, Ordering::AcqRel);
    }

    /// The file has this size; the size it had at the last look.
    pub(super) fn found(&self, bytes: u64) -> u64 {
        self.bytes.swap(bytes, Ordering::AcqRel)
    }

    #[inline]
    fn count(&self) -> u32 {
        self.count.load(Ordering::Acquire)
    }
}

/// The highest ends of writes since the last look, and between that and the one before.
#[derive(Debug)]
pub(super) struct Reach {
    pub(super) looks: Arc<Looks>,
    /// Looks there had been when a write last began or ended.
    seen: u32,
    now: u64,
    before: u64,
}

impl Reach {
    pub(super) fn new(bytes: u64) -> Self {
        Self { looks: Arc::new(Looks::new(bytes)), seen: 0, now: 0, before: 0 }
    }

    /// A write begins that ends at `end`. Nothing is forgotten as long as any is under way.
    #[inline]
    pub(super) fn begins(&mut self, end: u64, idle: bool) {
        self.age(idle);
        self.now = self.now.max(end);
    }

    /// A write has ended.
    #[inline]
    pub(super) fn ended(&mut self) {
        self.seen = self.looks.count();
    }

    /// Whether a file whose size has been found to be `bytes` may have it from a write.
    pub(super) fn explains(&mut self, bytes: u64, idle: bool) -> bool {
        self.age(idle);
        self.now.max(self.before) >= bytes
    }

    #[inline]
    fn age(&mut self, idle: bool) {
        let looks = self.looks.count();
        if !idle || looks == self.seen {
            return;
        }
        let last = core::mem::take(&mut self.now);
        self.before = if looks == self.seen.wrapping_add(1) { last } else { 0 };
        self.seen = looks;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_count_until_two_looks_have_followed_their_end() {
        let mut reach = Reach::new(4096);
        assert!(!reach.explains(512, true), "none yet");
        reach.begins(1024, true);
        for (bytes, explained) in [(512, true), (1024, true), (1025, false)] {
            assert_eq!(reach.explains(bytes, true), explained, "{bytes}");
        }
        reach.looks.begin();
        assert!(reach.explains(1024, true));
        reach.begins(512, true);
        assert!(reach.explains(1024, true), "it may have ended behind the look before");
        reach.looks.begin();
        assert!(reach.explains(512, true) && !reach.explains(1024, true));
        reach.looks.begin();
        assert!(!reach.explains(512, true));
    }

    #[test]
    fn writes_under_way_and_those_that_have_just_ended_count() {
        let mut reach = Reach::new(4096);
        reach.begins(1024, true);
        for _ in 0..3 {
            reach.looks.begin();
            reach.begins(512, false);
        }
        assert!(reach.explains(1024, false));
        reach.ended();
        reach.looks.begin();
        assert!(reach.explains(1024, true));
        reach.looks.begin();
        reach.looks.begin();
        assert!(!reach.explains(1, true));
    }
}
