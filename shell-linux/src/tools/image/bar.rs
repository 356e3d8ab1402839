//! How far a long command has come: a bar for people, a line now and then for logs.

use std::cell::Cell;
use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::output;
use crate::size::show_size;

/// Time between two lines where there is no terminal.
const LINES: Duration = Duration::from_secs(5);

pub(super) struct Bar {
    what: &'static str,
    bar: Option<ProgressBar>,
    said: Cell<Instant>,
}

impl Bar {
    pub(super) fn new(what: &'static str) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::stderr());
            let style = "{msg} {bar:30} {percent:>3} %  {binary_bytes_per_sec}  {eta} left";
            if let Ok(style) = ProgressStyle::with_template(style) {
                bar.set_style(style);
            }
            bar.set_message(what);
            bar
        });
        Self { what, bar, said: Cell::new(Instant::now()) }
    }

    pub(super) fn set(&self, done: u64, all: u64) {
        if let Some(bar) = &self.bar {
            bar.set_length(all);
            bar.set_position(done);
        } else if self.said.get().elapsed() >= LINES {
            self.said.set(Instant::now());
            let percent = u128::from(done) * 100 / u128::from(all.max(1));
            output::note(format!("{} {percent} % of {}", self.what, show_size(all)));
        }
    }

    /// Takes the bar away.
    pub(super) fn end(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
