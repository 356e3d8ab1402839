//! Warnings that a front end can provoke, bounded.

use std::cell::Cell;
use std::time::{Duration, Instant};

/// Warnings in one [`PERIOD`].
const WARNINGS_MAX: u32 = 10;
const PERIOD: Duration = Duration::from_secs(10);

/// Counts the warnings about one device, over all its connections.
#[derive(Debug)]
pub(super) struct Quiet {
    since: Cell<Instant>,
    warnings: Cell<u32>,
}

impl Quiet {
    pub(super) fn new() -> Self {
        Self { since: Cell::new(Instant::now()), warnings: Cell::new(0) }
    }

    /// Whether one more may be logged.
    pub(super) fn allows(&self) -> bool {
        if self.since.get().elapsed() >= PERIOD {
            self.since.set(Instant::now());
            self.warnings.set(0);
        }
        self.warnings.set(self.warnings.get().saturating_add(1));
        self.warnings.get() <= WARNINGS_MAX
    }
}
