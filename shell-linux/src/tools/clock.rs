//! A clock that may be read for every request.
//!
//! Where the kernel itself keeps time by the processor's counter, so does this: asking the
//! kernel costs up to a tenth of the fastest requests.

use std::fs;
use std::time::{Duration, Instant};

use crate::sys::processor_counter;

/// How long the counter is watched to learn its speed; the error is below a thousandth.
const WATCH: Duration = Duration::from_millis(10);

/// Fraction bits of the counter's speed.
const SHIFT: u32 = 32;

/// Nanoseconds since the clock was made.
#[derive(Clone, Copy, Debug)]
pub(super) struct Clock {
    begin: Instant,
    /// The counter at the beginning, and nanoseconds per count as a fixed-point number.
    counter: Option<(u64, u64)>,
}

/// Counter and kernel time of the same moment: the best of a few tries, because a thread that is
/// interrupted between the two readings would learn a wrong speed.
fn moment() -> Option<(Instant, u64)> {
    let tries = (0..50).filter_map(|_| {
        let before = Instant::now();
        let counter = processor_counter()?;
        Some((before.elapsed(), before, counter))
    });
    tries.min_by_key(|(apart, ..)| *apart).map(|(_, at, counter)| (at, counter))
}

/// The counter now, and nanoseconds per count.
fn learn() -> Option<(Instant, u64, u64)> {
    let source = "/sys/devices/system/clocksource/clocksource0/current_clocksource";
    if fs::read_to_string(source).ok()?.trim() != "tsc" {
        return None;
    }
    let (begin, first) = moment()?;
    std::thread::sleep(WATCH);
    let (end, last) = moment()?;
    let ns = (end - begin).as_nanos() << SHIFT;
    let speed = ns.checked_div(last.checked_sub(first)?.into())?;
    Some((begin, first, u64::try_from(speed).ok()?))
}

impl Clock {
    pub(super) fn new() -> Self {
        match learn() {
            Some((begin, first, speed)) => Self { begin, counter: Some((first, speed)) },
            None => Self { begin: Instant::now(), counter: None },
        }
    }

    #[inline]
    pub(super) fn ns(&self) -> u64 {
        if let Some((first, speed)) = self.counter
            && let Some(now) = processor_counter()
        {
            let ns = (u128::from(now.saturating_sub(first)) * u128::from(speed)) >> SHIFT;
            return u64::try_from(ns).unwrap_or(u64::MAX);
        }
        u64::try_from(self.begin.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_runs_as_fast_as_the_kernels_clock() {
        let clock = Clock::new();
        let (outer, first, inner) = (Instant::now(), clock.ns(), Instant::now());
        std::thread::sleep(Duration::from_millis(100));
        let (inner, last, outer) = (inner.elapsed(), clock.ns(), outer.elapsed());
        let ns = Duration::from_nanos(last - first).as_secs_f64();
        assert!(ns < outer.as_secs_f64() * 1.01, "{ns} s were at most {outer:?}");
        assert!(ns > inner.as_secs_f64() * 0.99, "{ns} s were at least {inner:?}");
    }
}
