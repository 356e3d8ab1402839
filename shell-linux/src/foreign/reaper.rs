//! Memory that is not needed any more is unmapped by a thread that nobody waits for.
//!
//! Unmapping gigabytes takes long, and whoever drops the last reference to pages frees them. Each
//! disk's memory has a thread of its own while there is any, so that nobody waits behind another
//! disk's either.

use std::collections::VecDeque;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::{Duration, Instant};

use crate::mailbox::Bell;
use crate::mapping::Body;

/// How long a mapping may take before it is worth a word.
const LONG: Duration = Duration::from_secs(30);
/// How often it is looked for such ones while any is under way.
const LOOK_INTERVAL: Duration = Duration::from_secs(5);

/// Mappings of one disk that may wait; its front end waits with the next.
const WAITING_MAX: usize = 64;

/// What one disk's front ends have left.
#[derive(Debug)]
pub(crate) struct Grave {
    /// The disk, for the log.
    disk: String,
    left: Mutex<Left>,
    /// Rings when somebody waits for it and need not any more.
    bell: Bell,
}

#[derive(Debug, Default)]
struct Left {
    bodies: VecDeque<Body>,
    /// Since when a thread is at work on one, and how many bytes it has.
    busy: Option<(Instant, usize)>,
    /// Whether a front end waits.
    awaited: bool,
}

impl Grave {
    pub(crate) fn new(disk: String, bell: Bell) -> Self {
        Self { disk, left: Mutex::default(), bell }
    }

    fn left(&self) -> MutexGuard<'_, Left> {
        self.left.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether so much waits to be unmapped that nothing more is to come. The bell rings when it
    /// is less.
    //= spec/outsiders.md#OUT-4
    pub(crate) fn is_full(&self) -> bool {
        let left = &mut *self.left();
        left.awaited = left.bodies.len() >= WAITING_MAX;
        left.awaited
    }

    /// Unmaps everything that is there.
    fn clear(&self) {
        loop {
            let body = {
                let left = &mut *self.left();
                let body = left.bodies.pop_front();
                left.busy = body.as_ref().map(|body| (Instant::now(), body.size()));
                if left.bodies.len() < WAITING_MAX && core::mem::take(&mut left.awaited) {
                    self.bell.ring();
                }
                body
            };
            match body {
                Some(body) => body.unmap(),
                None => return,
            }
        }
    }
}

/// Has a mapping unmapped some time.
//= spec/outsiders.md#OUT-3
pub(crate) fn bury(body: Body, grave: &Arc<Grave>) {
    let idle = {
        let left = &mut *grave.left();
        left.bodies.push_back(body);
        left.busy.is_none() && left.busy.replace((Instant::now(), 0)).is_none()
    };
    if idle {
        // The receiver lives as long as the process.
        let _ = reaper().send(Arc::clone(grave));
    }
}

/// The way to the thread that starts the others: starting one takes longer than a shard has.
/// To be called once by whoever can wait.
pub(crate) fn reaper() -> &'static Sender<Arc<Grave>> {
    static REAPER: OnceLock<Sender<Arc<Grave>>> = OnceLock::new();
    REAPER.get_or_init(|| {
        let (sender, graves) = channel();
        // Without a thread nothing is unmapped, which is no worse than to have the memory.
        let started = spawn("reaper", move || run(&graves));
        if let Err(error) = started {
            tracing::error!(%error, "cannot start a thread: memory of front ends is kept");
        }
        sender
    })
}

fn spawn(name: &str, body: impl FnOnce() + Send + 'static) -> std::io::Result<()> {
    std::thread::Builder::new().name(name.to_owned()).spawn(body).map(drop)
}

fn run(graves: &Receiver<Arc<Grave>>) {
    let mut busy: Vec<Weak<Grave>> = Vec::new();
    loop {
        let next = if busy.is_empty() {
            graves.recv().map_err(|_| RecvTimeoutError::Disconnected)
        } else {
            graves.recv_timeout(LOOK_INTERVAL)
        };
        match next {
            Ok(grave) => {
                busy.push(Arc::downgrade(&grave));
                let clear = Arc::clone(&grave);
                if spawn("reaper-disk", move || clear.clear()).is_err() {
                    grave.clear();
                }
            }
            Err(RecvTimeoutError::Timeout) => busy.retain(is_busy),
            Err(RecvTimeoutError::Disconnected) => return,
        }
    }
}

/// Whether a thread is at work there; says so if it takes long.
fn is_busy(grave: &Weak<Grave>) -> bool {
    let Some(grave) = grave.upgrade() else { return false };
    let left = grave.left();
    let Some((since, bytes)) = left.busy else { return false };
    if since.elapsed() >= LONG {
        let (waiting, seconds) = (left.bodies.len(), since.elapsed().as_secs());
        tracing::warn!(disk = %grave.disk, bytes, waiting, seconds, "unmapping memory takes long");
    }
    true
}

#[cfg(test)]
mod tests {
    use rustix::event::{PollFd, PollFlags, poll};
    use rustix::fs::{MemfdFlags, ftruncate, memfd_create};

    use super::*;
    use crate::foreign::kinds::Use;
    use crate::foreign::{Account, Pools, Quota};
    use crate::mapping::Mapping;

    fn account(bell: &Bell) -> Account {
        let quota = Quota { each: 1 << 30, all: 1 << 30 };
        Pools::new(1, (quota, quota), false, bell.clone()).account(0, "disk")
    }

    fn mapped(account: &Account, name: &str) -> Mapping {
        let fd = memfd_create(name, MemfdFlags::CLOEXEC).unwrap();
        ftruncate(&fd, 1 << 20).unwrap();
        Mapping::of_front_end(fd, (0, 1 << 20), Use::Guest, account).unwrap()
    }

    fn is_mapped(name: &str) -> bool {
        std::fs::read_to_string("/proc/self/maps").unwrap().contains(name)
    }

    fn has_rung(bell: &Bell) -> bool {
        let now = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
        poll(&mut [PollFd::new(bell, PollFlags::IN)], Some(&now)).unwrap() > 0
    }

    /// As if a thread were at work on something that takes long.
    fn occupy(grave: &Grave) {
        grave.left().busy = Some((Instant::now(), 0));
    }

    //= spec/outsiders.md#OUT-3
    #[test]
    fn who_drops_a_mapping_does_not_unmap_it() {
        let account = account(&Bell::new().unwrap());
        let mapping = mapped(&account, "left-behind");
        occupy(account.grave());
        drop(mapping);
        assert!(is_mapped("left-behind"), "its thread is busy, and nobody else did it");
        assert!(account.map(1 << 30).is_err(), "it counts as long as it is mapped");
        account.grave().clear();
        assert!(!is_mapped("left-behind"));
        assert!(account.map(1 << 30).is_ok());
    }

    //= spec/outsiders.md#OUT-3
    #[test]
    fn one_disk_does_not_wait_for_another_ones_memory() {
        let bell = Bell::new().unwrap();
        let (slow, other) = (account(&bell), account(&bell));
        occupy(slow.grave());
        drop((mapped(&slow, "slow-disk"), mapped(&other, "other-disk")));
        let deadline = Instant::now() + Duration::from_secs(60);
        while is_mapped("other-disk") {
            assert!(Instant::now() < deadline, "it is unmapped");
            std::thread::yield_now();
        }
        assert!(is_mapped("slow-disk"));
        slow.grave().clear();
    }

    //= spec/outsiders.md#OUT-4
    #[test]
    fn a_front_end_waits_for_its_own_memory_and_is_called() {
        let bell = Bell::new().unwrap();
        let account = account(&bell);
        occupy(account.grave());
        for _ in 0..WAITING_MAX - 1 {
            drop(mapped(&account, "one-of-many"));
        }
        assert!(!account.is_full());
        drop(mapped(&account, "one-of-many"));
        assert!(account.is_full() && !has_rung(&bell));
        account.grave().clear();
        assert!(has_rung(&bell) && !account.is_full());
    }
}
