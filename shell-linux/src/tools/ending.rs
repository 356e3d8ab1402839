//! The end of a daemon: asked for by a signal, and sure to come.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use anyhow::Context;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGXFSZ};
use signal_hook::iterator::Signals;

use crate::sys;

/// How long closing connections and parking may take behind the time that requests have.
pub(super) const CLOSING: Duration = Duration::from_secs(1);

/// More than anybody waits.
const FOR_EVER: Duration = Duration::from_secs(1 << 32);

/// What a terminal that goes away (SIGHUP) is to a daemon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hangup {
    /// Its end, unless it was started with that ignored, as by `nohup`.
    Ends,
    /// None of its business.
    Ignored,
}

/// Waits for SIGTERM and SIGINT, and ends the process itself if nobody else does in time: a thread
/// may be stuck in the kernel, in the middle of a start too.
#[derive(Debug)]
pub(super) struct Ending {
    asked: Receiver<Instant>,
    patience: Duration,
    /// Dropped when the process ends in order.
    _alive: Sender<()>,
}

impl Ending {
    /// Takes signals from now on. Comes before any thread: a signal that comes early must not end
    /// the process by default.
    //= spec/host.md#HOST-2
    //= spec/host.md#HOST-7
    pub(super) fn watch(patience: Duration, hangup: Hangup) -> anyhow::Result<Self> {
        let ends = hangup == Hangup::Ends && !sys::ignored(SIGHUP);
        let asking = [SIGTERM, SIGINT].into_iter().chain(ends.then_some(SIGHUP));
        let mut signals = Signals::new(asking)?;
        // A write beyond the limit on file sizes is an error of that write. What is asked for by
        // SIGHUP is not changed by its being caught here too.
        for ignored in [SIGXFSZ, SIGHUP] {
            signal_hook::flag::register(ignored, Arc::default())?;
        }
        let ((ask, asked), (alive, ended)) = (channel(), channel());
        let last_resort = move || {
            signals.forever().next();
            let _ = ask.send(Instant::now());
            let over = ended.recv_timeout(patience.saturating_add(CLOSING));
            if over == Err(RecvTimeoutError::Timeout) {
                // Without a word: whoever is stuck may have the log.
                std::process::exit(0);
            }
        };
        let thread = std::thread::Builder::new().name("signals".to_owned());
        thread.spawn(last_resort).context("starting a thread")?;
        Ok(Self { asked, patience, _alive: alive })
    }

    /// Waits until the end is asked for. Says until when requests may take.
    pub(super) fn wait(&self) -> Instant {
        let asked = self.asked.recv().unwrap_or_else(|_| Instant::now());
        asked.checked_add(self.patience).unwrap_or(asked + FOR_EVER)
    }
}
