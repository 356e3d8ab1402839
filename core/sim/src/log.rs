//! What happened in a run, one line per event, and the hash that two runs of a seed share.
//!
//! Columns: nanoseconds of virtual time (12), guest or `-` (3), queue or `-` (2), event (10),
//! details. Violations have the event `VIOLATION`.

use core::fmt::{Arguments, Write as _};

/// A rule of the system that did not hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// The invariant's number, `I01` to `I30`.
    pub invariant: &'static str,
    /// What was seen.
    pub what: String,
}

/// Who a line is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Who {
    /// Guest and device, which have the same number.
    pub guest: u32,
    /// The queue.
    pub queue: Option<u16>,
}

/// The log of a run.
#[derive(Debug)]
pub struct Log {
    hash: u64,
    lines: u64,
    show: bool,
    line: String,
    /// What went wrong so far.
    pub violations: Vec<Violation>,
}

impl Log {
    /// A log that prints its lines when `show` is set, and hashes them in any case.
    #[must_use]
    pub const fn new(show: bool) -> Self {
        Self {
            hash: 0xcbf2_9ce4_8422_2325,
            lines: 0,
            show,
            line: String::new(),
            violations: Vec::new(),
        }
    }

    /// FNV-1a over all lines.
    #[must_use]
    pub const fn hash(&self) -> u64 {
        self.hash
    }

    /// Lines written.
    #[must_use]
    pub const fn lines(&self) -> u64 {
        self.lines
    }

    /// Writes one line.
    pub fn line(&mut self, now: u64, who: Option<Who>, event: &str, details: Arguments<'_>) {
        let mut line = core::mem::take(&mut self.line);
        line.clear();
        let written = match who {
            Some(Who { guest, queue: Some(queue) }) => {
                write!(line, "{now:>12} {guest:>3} {queue:>2} {event:<10} {details}")
            }
            Some(Who { guest, queue: None }) => {
                write!(line, "{now:>12} {guest:>3}  - {event:<10} {details}")
            }
            None => write!(line, "{now:>12}   -  - {event:<10} {details}"),
        };
        debug_assert!(written.is_ok(), "writing to a string");
        for &byte in line.as_bytes() {
            self.hash = (self.hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
        self.lines += 1;
        if self.show {
            println!("{line}");
        }
        self.line = line;
    }

    /// Writes down that a rule did not hold.
    pub fn violation(&mut self, now: u64, violation: Violation) {
        self.line(now, None, "VIOLATION", format_args!("{} {}", violation.invariant, violation.what));
        self.violations.push(violation);
    }
}
