//! How many lines outsiders can cause: so many per disk and cause, and then only their number.

use std::collections::HashMap;
use std::collections::hash_map::DefaultHasher;
use std::fmt::{Debug, Write};
use std::hash::{Hash, Hasher};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;

/// Time over which lines are counted.
const PERIOD: Duration = Duration::from_secs(10);
/// Lines of one disk and place in the code in a [`PERIOD`], and how many of them may say the same.
const LINES_MAX: u32 = 30;
const REPEATS_MAX: u32 = 10;

/// What says how many lines were left out is not left out itself.
const REPORT: &str = "sluice_linux::log";

/// Leaves out lines from the warnings down to what is of interest to an operator. Who asks for
/// more than that gets it all.
#[derive(Debug)]
pub(super) struct RateLimit(Arc<Mutex<Window>>);

/// Where a line comes from: its place in the code, and the disk it is about.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Cause {
    file: &'static str,
    line: u32,
    disk: String,
}

/// The lines of one [`PERIOD`].
#[derive(Debug)]
struct Window {
    since: Instant,
    causes: HashMap<Cause, Lines>,
    left_out: u64,
}

#[derive(Debug, Default)]
struct Lines {
    written: u32,
    repeats: HashMap<u64, u32>,
    left_out: u64,
    /// The first one that was left out.
    text: String,
}

impl RateLimit {
    pub(super) fn new() -> Self {
        Self(Arc::new(Mutex::new(Window::new())))
    }

    fn admit(&self, cause: Cause, text: &str) -> bool {
        let mut window = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if window.left_out == 0 && window.since.elapsed() >= PERIOD {
            *window = Window::new();
        }
        let admitted = window.admit(cause, text);
        if !admitted && window.left_out == 1 {
            report_later(Arc::clone(&self.0));
        }
        admitted
    }
}

impl<S: Subscriber> Layer<S> for RateLimit {
    //= spec/limits.md#LIM-5
    fn event_enabled(&self, event: &Event<'_>, _: Context<'_, S>) -> bool {
        let about = event.metadata();
        if *about.level() > Level::INFO || about.target() == REPORT {
            return true;
        }
        let (file, line) = (about.file().unwrap_or_default(), about.line().unwrap_or(0));
        let mut seen = Seen::default();
        event.record(&mut seen);
        self.admit(Cause { file, line, disk: seen.disk }, &seen.text)
    }
}

impl Window {
    fn new() -> Self {
        Self { since: Instant::now(), causes: HashMap::new(), left_out: 0 }
    }

    fn admit(&mut self, cause: Cause, text: &str) -> bool {
        let mut hasher = DefaultHasher::new();
        text.hash(&mut hasher);
        let lines = self.causes.entry(cause).or_default();
        if lines.written < LINES_MAX {
            let repeats = lines.repeats.entry(hasher.finish()).or_default();
            if *repeats < REPEATS_MAX {
                *repeats += 1;
                lines.written += 1;
                return true;
            }
        }
        if lines.left_out == 0 {
            text.clone_into(&mut lines.text);
        }
        lines.left_out += 1;
        self.left_out += 1;
        false
    }

    /// Says what was left out.
    fn report(self) {
        for (Cause { disk, .. }, Lines { left_out, text, .. }) in self.causes {
            if left_out > 0 {
                tracing::warn!(target: REPORT, disk, left_out, "more lines like this: {text}");
            }
        }
    }
}

/// At the end of the period, also when no more lines come.
fn report_later(window: Arc<Mutex<Window>>) {
    let report = move || {
        std::thread::sleep(PERIOD);
        let mut window = window.lock().unwrap_or_else(PoisonError::into_inner);
        let over = core::mem::replace(&mut *window, Window::new());
        drop(window);
        over.report();
    };
    // Without a thread the lines stay left out, and their number is not said.
    let _ = std::thread::Builder::new().name("log".to_owned()).spawn(report);
}

/// What a line says, and about which disk.
#[derive(Default)]
struct Seen {
    disk: String,
    text: String,
}

impl Visit for Seen {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        let into = match field.name() {
            "disk" | "device" | "image" => &mut self.disk,
            "message" => &mut self.text,
            _ => return,
        };
        // Writing to a string does not fail.
        let _ = write!(into, "{value:?}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cause(line: u32, disk: &str) -> Cause {
        Cause { file: "here.rs", line, disk: disk.to_owned() }
    }

    //= spec/limits.md#LIM-5
    #[test]
    fn one_cause_on_one_disk_hides_no_other() {
        let mut window = Window::new();
        let flood = |window: &mut Window| {
            (0..1000).filter(|_| window.admit(cause(1, "a"), "the queue broke")).count()
        };
        assert_eq!(flood(&mut window), 10);
        assert!(window.admit(cause(1, "b"), "the queue broke"), "another disk");
        assert!(window.admit(cause(2, "a"), "the queue broke"), "another place");
        assert!(window.admit(cause(1, "a"), "something else"), "another text");
        assert_eq!(flood(&mut window), 0);
        let left_out: Vec<_> = window.causes.values().map(|lines| lines.left_out).collect();
        assert_eq!(left_out.iter().sum::<u64>(), 1990);
        assert_eq!(window.left_out, 1990);
    }

    //= spec/limits.md#LIM-5
    #[test]
    fn texts_that_all_differ_are_bounded_too() {
        let mut window = Window::new();
        let all = (0..1000).filter(|n| window.admit(cause(1, "a"), &n.to_string())).count();
        assert_eq!(all, 30);
        assert_eq!(window.causes[&cause(1, "a")].repeats.len(), 30, "nor is it remembered");
    }
}
