//! How long a shard looks for work before it sleeps.

use std::time::{Duration, Instant};

use super::Poll;

/// What a sleep costs, about: the interrupt that its waker sends, and the way back.
///
/// Who looks for as long as that before sleeping never spends more than twice what somebody spends
/// who knows when work comes.
const SLEEP_COST: Duration = Duration::from_micros(30);
/// Empty turns between two looks at the clock, which costs as much as a turn.
const TURNS_PER_CLOCK: u32 = 16;

/// Decides between looking again and sleeping.
#[derive(Debug)]
pub(super) struct Patience {
    poll: Poll,
    /// How long to look.
    look: Duration,
    /// Turns without work in a row, and since when.
    empty: u32,
    since: Instant,
}

impl Patience {
    pub(super) fn new(poll: Poll) -> Self {
        let look = match poll {
            Poll::Busy => Duration::MAX,
            Poll::Adaptive(look) => look,
            Poll::Event => Duration::ZERO,
        };
        Self { poll, look, empty: 0, since: Instant::now() }
    }

    /// There was work.
    #[inline]
    pub(super) const fn worked(&mut self) {
        self.empty = 0;
    }

    /// There was none: whether to look again.
    #[inline]
    pub(super) fn looks_again(&mut self) -> bool {
        if self.poll == Poll::Busy {
            return true;
        }
        self.empty = self.empty.wrapping_add(1);
        if self.empty == 1 {
            self.since = Instant::now();
        }
        !self.look.is_zero()
            && (!self.empty.is_multiple_of(TURNS_PER_CLOCK) || self.since.elapsed() < self.look)
    }

    /// It has slept.
    pub(super) fn slept(&mut self) {
        self.learn(self.since.elapsed());
        self.empty = 0;
    }

    /// Sleeping was not worth it if work came within what a sleep costs.
    fn learn(&mut self, idle: Duration) {
        if self.poll == Poll::Event {
            self.look = if idle < SLEEP_COST { SLEEP_COST } else { Duration::ZERO };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(1);

    #[test]
    fn event_looks_again_only_when_work_came_sooner_than_a_sleep_is_worth() {
        let mut patience = Patience::new(Poll::Event);
        assert!(!patience.looks_again(), "nothing is known yet");
        patience.learn(SLEEP_COST / 2);
        patience.worked();
        assert!(patience.looks_again());
        patience.learn(LONG);
        patience.worked();
        assert!(!patience.looks_again());
    }

    #[test]
    fn the_other_ways_learn_nothing() {
        let mut busy = Patience::new(Poll::Busy);
        let mut adaptive = Patience::new(Poll::Adaptive(LONG));
        let mut never = Patience::new(Poll::Adaptive(Duration::ZERO));
        for idle in [LONG, Duration::ZERO] {
            busy.learn(idle);
            adaptive.learn(idle);
            never.learn(idle);
            assert!(busy.looks_again() && adaptive.looks_again() && !never.looks_again());
        }
    }

    #[test]
    fn a_look_ends() {
        let mut patience = Patience::new(Poll::Adaptive(Duration::from_nanos(1)));
        assert!((0..TURNS_PER_CLOCK).any(|_| !patience.looks_again()));
    }
}
