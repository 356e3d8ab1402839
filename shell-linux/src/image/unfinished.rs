//! What a command that is told to end takes with it: its files in the making, and its converter.

use std::collections::BTreeSet;
use std::fs::remove_file;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process, waitid};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use signal_hook::low_level::emulate_default_handler;

use crate::sys;

static WORK: Mutex<Work> = Mutex::new(Work { files: BTreeSet::new(), children: Vec::new() });

/// What this process has begun and not finished.
struct Work {
    files: BTreeSet<PathBuf>,
    children: Vec<Pid>,
}

/// Whoever waits for it never gets it once a signal has come.
fn work() -> MutexGuard<'static, Work> {
    WORK.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Work {
    fn abandon(&self) {
        for &child in &self.children {
            // Both fail only when it is gone, which is what they are for.
            let _ = kill_process(child, Signal::KILL);
            let ended = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
            let _ = waitid(WaitId::Pid(child), ended);
        }
        for path in &self.files {
            let _ = remove_file(path);
        }
    }
}

/// The name of a file in the making, which goes when this is dropped.
#[derive(Debug)]
pub(super) struct Unfinished(PathBuf);

impl Unfinished {
    pub(super) fn new(path: PathBuf) -> Self {
        work().files.insert(path.clone());
        Self(path)
    }

    pub(super) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        let mut work = work();
        // It may have got another name.
        let _ = remove_file(&self.0);
        work.files.remove(&self.0);
    }
}

/// A child that ends with this process, and at the latest when this is dropped.
#[derive(Debug)]
pub(super) struct Underway(pub(super) Child);

impl Underway {
    /// Starts it so that no signal comes between its start and its being known here.
    pub(super) fn start<E>(start: impl FnOnce() -> Result<Child, E>) -> Result<Self, E> {
        let mut work = work();
        let child = start()?;
        work.children.push(Pid::from_child(&child));
        Ok(Self(child))
    }
}

impl Drop for Underway {
    fn drop(&mut self) {
        let mut work = work();
        // Nothing happens to one that has been waited for.
        let _ = self.0.kill();
        let _ = self.0.wait();
        let this = Pid::from_child(&self.0);
        work.children.retain(|&child| child != this);
    }
}

/// From now on a signal that ends this program takes with it what is unfinished. One that is
/// ignored, as by `nohup`, stays so.
///
/// # Errors
/// When there are no more threads or descriptors.
//= spec/convert.md#CNV-1
pub fn goes_with_signals() -> anyhow::Result<()> {
    let heeded = [SIGINT, SIGTERM, SIGHUP].into_iter().filter(|&signal| !sys::ignored(signal));
    let mut signals = Signals::new(heeded)?;
    std::thread::Builder::new().name("signals".to_owned()).spawn(move || {
        for signal in signals.forever() {
            // Kept to the end: nothing gets a name, and nobody complains of a dead converter.
            let work = work();
            work.abandon();
            let _ = emulate_default_handler(signal);
        }
    })?;
    Ok(())
}
