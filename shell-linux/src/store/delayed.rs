//! An image whose answers come late and out of order: for tests.
//!
//! Every operation is carried out as usual; some of the results are held back for a while. A
//! device may do that, and whatever goes wrong with requests in flight shows much sooner.

use std::fmt;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use anyhow::Context;
use rustix::event::epoll;
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};
use sluice_core::op::{Op, Piece, Reply};
use sluice_sim::prng::Prng;

use super::Store;
use crate::mapping::Mappings;

/// How many of a thousand answers are held back.
const HELD_PER_MILLE: u64 = 300;

/// An image, and the results that are held back.
#[derive(Debug)]
pub struct Delayed {
    pub(super) store: Box<Store>,
    at_most: Duration,
    prng: Prng,
    held: Vec<(Instant, Reply)>,
    timer: OwnedFd,
    /// Readable when the timer is or the image is.
    either: OwnedFd,
}

impl Delayed {
    pub(super) fn new(store: Store, at_most: Duration, seed: u64) -> anyhow::Result<Self> {
        let flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
        let timer = timerfd_create(TimerfdClockId::Monotonic, flags).context("a timer")?;
        let either = epoll::create(epoll::CreateFlags::CLOEXEC).context("an epoll")?;
        let data = epoll::EventData::new_u64(0);
        epoll::add(&either, &timer, data, epoll::EventFlags::IN)?;
        if let Some(fd) = store.wake_fd() {
            epoll::add(&either, fd, data, epoll::EventFlags::IN)?;
        }
        let (store, prng) = (Box::new(store), Prng::new(seed));
        Ok(Self { store, at_most, prng, held: Vec::new(), timer, either })
    }

    pub(super) fn wake_fd(&self) -> BorrowedFd<'_> {
        self.either.as_fd()
    }

    pub(super) fn submit(
        &mut self,
        op: &Op,
        pieces: impl Iterator<Item = Piece>,
        mem: &Mappings,
    ) -> Option<i64> {
        let result = self.store.submit(op, pieces, mem)?;
        let reply = Reply { id: op.id, result, version: 0 };
        self.hold(reply).map(|reply| reply.result)
    }

    pub(super) fn reap(&mut self) -> Option<Reply> {
        while let Some(reply) = self.store.reap() {
            if let Some(reply) = self.hold(reply) {
                return Some(reply);
            }
        }
        let now = Instant::now();
        let due = self.held.iter().position(|(due, _)| *due <= now);
        if let Some(due) = due {
            return Some(self.held.swap_remove(due).1);
        }
        self.set_timer(now);
        None
    }

    /// Keeps a reply for later, or gives it back.
    fn hold(&mut self, reply: Reply) -> Option<Reply> {
        if !self.prng.chance(HELD_PER_MILLE) {
            return Some(reply);
        }
        let at_most = u64::try_from(self.at_most.as_nanos()).unwrap_or(u64::MAX);
        let delay = Duration::from_nanos(self.prng.below(at_most.max(1)));
        let now = Instant::now();
        self.held.push((now + delay, reply));
        self.set_timer(now);
        None
    }

    /// Rings when the next reply is due. Setting it silences an earlier ring.
    fn set_timer(&self, now: Instant) {
        let next = self.held.iter().map(|(due, _)| *due).min();
        // A time of zero would stop the timer.
        let left = next.map(|due| due.saturating_duration_since(now).max(Duration::from_nanos(1)));
        let it_value = left.and_then(|left| Timespec::try_from(left).ok()).unwrap_or_default();
        let value = Itimerspec { it_interval: Timespec::default(), it_value };
        let _ = timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &value);
    }
}

impl fmt::Display for Delayed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, some answers up to {} us late", self.store, self.at_most.as_micros())
    }
}
