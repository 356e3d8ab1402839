//! One sync at a time.
//!
//! A file system tells of data that it could not write once: of two syncs that run side by side
//! one fails and the other succeeds, and the one that succeeds may be heard first. So the second
//! waits, and all that wait share the next: a burst of flushes costs two syncs.

use std::collections::VecDeque;

use rustix::io::Errno;
use sluice_core::op::{Op, OpKind};

use super::engine::Ended;
use super::work::failure;

/// The syncs of an image.
#[derive(Debug, Default)]
pub(super) struct Syncs {
    /// Those that end with the one that the engine has, which is the first of them.
    running: Vec<Op>,
    /// Those that came since it began.
    waiting: Vec<Op>,
    /// Those that have ended and were not reaped.
    ended: VecDeque<Ended>,
}

impl Syncs {
    /// Whether an operation has to wait: it is kept then.
    //= spec/store.md#STO-22
    #[inline]
    pub(super) fn hold(&mut self, op: &Op) -> bool {
        let wait = op.kind == OpKind::Sync && !self.running.is_empty();
        if wait {
            self.waiting.push(*op);
        }
        wait
    }

    /// The engine has this one now.
    pub(super) fn begun(&mut self, op: &Op) {
        self.running.push(*op);
    }

    /// The engine's sync has ended like this. Says which one it gets next, for all who wait.
    pub(super) fn over(&mut self, result: i64) -> Option<Op> {
        let end = |op: Op, result| Ended { id: op.id, kind: op.kind, offset: op.offset, result };
        self.ended.extend(self.running.drain(..).map(|op| end(op, result)));
        if result < 0 {
            let lost = failure(Errno::IO);
            self.ended.extend(self.waiting.drain(..).map(|op| end(op, lost)));
        }
        core::mem::swap(&mut self.running, &mut self.waiting);
        self.running.first().copied()
    }

    /// The next that has ended.
    #[inline]
    pub(super) fn reap(&mut self) -> Option<Ended> {
        self.ended.pop_front()
    }
}
