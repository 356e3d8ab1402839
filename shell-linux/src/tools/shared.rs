//! What the queues of a verifying guest have in common, and what they did.

use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::Serialize;
use sluice_sim::history::History;

use super::plan::What;

/// Violations that are kept; one is enough to fail.
const VIOLATIONS_MAX: usize = 16;

/// What the queues have in common.
#[derive(Debug)]
pub(super) struct Shared {
    history: Mutex<History>,
    violations: Mutex<Vec<String>>,
    /// Requests that may still be sent.
    budget: AtomicU64,
    /// Requests that came back.
    pub(super) done: AtomicU64,
    /// No more requests.
    pub(super) stop: AtomicBool,
    /// The device is gone, or does not answer.
    pub(super) abort: AtomicBool,
    /// Back ends that have died.
    deaths: AtomicU64,
    /// Of how many of them each queue has seen all that they gave back.
    seen: Vec<AtomicU64>,
    /// What each queue waits for, by the names of its chains, in the order in which it was asked.
    asked: Vec<Mutex<Vec<u16>>>,
}

/// What was done.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(super) struct Tally {
    pub(super) reads: u64,
    pub(super) writes: u64,
    pub(super) zeroes: u64,
    pub(super) discards: u64,
    pub(super) flushes: u64,
    pub(super) bytes: u64,
    /// Requests that the device failed.
    pub(super) errors: u64,
    /// Completions that were slept for.
    pub(super) interrupts: u64,
}

impl Shared {
    pub(super) fn new(history: History, budget: u64, queues: u16) -> Self {
        Self {
            history: Mutex::new(history),
            violations: Mutex::default(),
            budget: AtomicU64::new(budget),
            done: AtomicU64::new(0),
            stop: AtomicBool::new(false),
            abort: AtomicBool::new(false),
            deaths: AtomicU64::new(0),
            seen: (0..queues).map(|_| AtomicU64::new(u64::MAX)).collect(),
            asked: (0..queues).map(|_| Mutex::default()).collect(),
        }
    }

    /// A queue asks for something, by the name of its chain; nobody can see it before.
    pub(super) fn asks(&self, queue: u16, name: u16) {
        self.asked(queue).push(name);
    }

    /// It has come back.
    pub(super) fn came_back(&self, queue: u16, name: u16) {
        self.asked(queue).retain(|&other| other != name);
    }

    /// What a queue waits for, in the order in which it was asked.
    pub(super) fn asked(&self, queue: u16) -> MutexGuard<'_, Vec<u16>> {
        self.asked[usize::from(queue)].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One more back end has died. Says how many that are.
    pub(super) fn died(&self) -> u64 {
        self.deaths.fetch_add(1, Ordering::Release) + 1
    }

    /// How many back ends have died: what they gave back can be seen from now on.
    pub(super) fn deaths(&self) -> u64 {
        self.deaths.load(Ordering::Acquire)
    }

    /// A queue has seen all that so many of them gave back. One that is at rest has seen all that
    /// anybody ever will.
    pub(super) fn has_seen(&self, queue: u16, deaths: u64) {
        self.seen[usize::from(queue)].store(deaths, Ordering::Release);
    }

    /// Whether all queues have.
    pub(super) fn have_all_seen(&self, deaths: u64) -> bool {
        self.seen.iter().all(|seen| seen.load(Ordering::Acquire) >= deaths)
    }

    pub(super) fn history(&self) -> MutexGuard<'_, History> {
        self.history.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn violated(&self, what: String) {
        self.stop.store(true, Ordering::Relaxed);
        let mut all = self.violations.lock().unwrap_or_else(PoisonError::into_inner);
        if all.len() < VIOLATIONS_MAX {
            all.push(what);
        }
    }

    pub(super) fn has_violations(&self) -> bool {
        !self.violations.lock().unwrap_or_else(PoisonError::into_inner).is_empty()
    }

    pub(super) fn into_violations(self) -> Vec<String> {
        self.violations.into_inner().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes one request off the budget.
    pub(super) fn may_send(&self) -> bool {
        !self.stop.load(Ordering::Relaxed)
            && self
                .budget
                .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1))
                .is_ok()
    }
}

impl Tally {
    pub(super) fn count(&mut self, what: What, bytes: u64, good: bool) {
        *match what {
            What::Read => &mut self.reads,
            What::Write => &mut self.writes,
            What::Zero => &mut self.zeroes,
            What::Discard => &mut self.discards,
            What::Flush => &mut self.flushes,
        } += 1;
        if matches!(what, What::Read | What::Write) {
            self.bytes += bytes;
        }
        self.errors += u64::from(!good);
    }

    /// Adds another queue's.
    pub(super) fn add(&mut self, other: &Self) {
        self.reads += other.reads;
        self.writes += other.writes;
        self.zeroes += other.zeroes;
        self.discards += other.discards;
        self.flushes += other.flushes;
        self.bytes += other.bytes;
        self.errors += other.errors;
        self.interrupts += other.interrupts;
    }

    pub(super) const fn requests(&self) -> u64 {
        self.reads + self.writes + self.zeroes + self.discards + self.flushes
    }
}
