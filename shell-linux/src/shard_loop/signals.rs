//! Signals to front ends: the one call on a descriptor of theirs that can block, and who ends it.
//!
//! Whether a write to a full eventfd waits is a flag of the open file, and its front end can change
//! that at any moment. No flag of the call overrules it: Linux refuses `RWF_NOWAIT` for eventfds.
//! So the shard changes a number before and after each write, and a thread of its own looks at the
//! number now and then. A shard that it finds in the same call twice gets a signal, which ends the
//! call, and whose eventfd it was loses its connection.
//!
//! A signal that comes late ends another call, which then has to be made again: whoever makes one
//! on a shard's thread expects `EINTR`.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{Builder, Thread};
use std::time::Duration;

use anyhow::Context;
use rustix::io::Errno;
use sluice_core::device::{DeviceId, QueueId};

use super::{Loop, QueueFds};
use crate::foreign::Descriptor;
use crate::mailbox::News;
use crate::sys::Interruptible;

/// Between two looks at the number.
const INTERVAL: Duration = Duration::from_millis(50);
/// Looks that find no call before the watcher sleeps until there is one.
const LOOKS: u32 = 20;

/// What a front end is told of a queue.
#[derive(Clone, Copy, Debug)]
pub(super) enum Signal {
    /// Requests were given back.
    Used,
    /// It is broken.
    Broken,
}

impl Signal {
    const fn place(self, queue: &QueueFds) -> Option<&Descriptor> {
        match self {
            Self::Used => queue.call.as_ref(),
            Self::Broken => queue.err.as_ref(),
        }
    }
}

/// A write was ended from outside.
#[derive(Clone, Copy, Debug)]
struct Held;

/// One thread's way to signal, and the watcher over it, which ends with it.
#[derive(Debug)]
pub(super) struct Signaller {
    shared: Arc<Shared>,
    watcher: Thread,
}

#[derive(Debug, Default)]
struct Shared {
    /// Odd while there is a call, and another number in each.
    call: AtomicU64,
    /// The last call that was to be ended.
    ended: AtomicU64,
    /// Whether the watcher sleeps until it is woken, or is about to.
    resting: AtomicBool,
    over: AtomicBool,
}

impl Signaller {
    /// For the calling thread.
    pub(super) fn new() -> anyhow::Result<Self> {
        let thread = Interruptible::this_thread().context("setting up a signal")?;
        let shared = Arc::new(Shared::default());
        let watched = Arc::clone(&shared);
        let builder = Builder::new().name("watcher".to_owned());
        let watcher =
            builder.spawn(move || watch(&watched, thread)).context("starting a thread")?;
        Ok(Self { shared, watcher: watcher.thread().clone() })
    }

    /// Adds one to an eventfd. A full one has been signalled already, a broken one is its owner's.
    //= spec/outsiders.md#OUT-20
    #[inline]
    fn signal(&self, fd: impl AsFd) -> Result<(), Held> {
        let Shared { call, ended, resting, .. } = &*self.shared;
        let number = call.load(Ordering::Relaxed) + 1;
        call.store(number, Ordering::Relaxed);
        if resting.load(Ordering::Relaxed) {
            self.wake_watcher();
        }
        let done = loop {
            match rustix::io::write(&fd, &1_u64.to_ne_bytes()) {
                Err(Errno::INTR) if ended.load(Ordering::Acquire) == number => break Err(Held),
                Err(Errno::INTR) => {}
                Ok(_) | Err(_) => break Ok(()),
            }
        };
        call.store(number + 1, Ordering::Relaxed);
        done
    }

    #[cold]
    fn wake_watcher(&self) {
        self.shared.resting.store(false, Ordering::Relaxed);
        self.watcher.unpark();
    }
}

impl Drop for Signaller {
    fn drop(&mut self) {
        self.shared.over.store(true, Ordering::Release);
        self.watcher.unpark();
    }
}

/// Looks after the calls of a thread.
fn watch(shared: &Shared, thread: Interruptible) {
    let Shared { call, ended, resting, over } = shared;
    let (mut last, mut quiet) = (0, 0);
    while !over.load(Ordering::Acquire) {
        std::thread::sleep(INTERVAL);
        let number = call.load(Ordering::Acquire);
        if number != last {
            (last, quiet) = (number, 0);
            resting.store(false, Ordering::Relaxed);
        } else if number % 2 == 1 {
            // Again at the next look, if it comes before the thread has entered the kernel.
            ended.store(number, Ordering::Release);
            thread.interrupt();
        } else {
            quiet += 1;
            if quiet == LOOKS {
                // A call that began without seeing this is seen at the next look.
                resting.store(true, Ordering::Relaxed);
            } else if quiet > LOOKS {
                std::thread::park();
                quiet = 0;
                resting.store(false, Ordering::Relaxed);
            }
        }
    }
}

impl Loop<'_> {
    /// Tells a front end something of a queue, if it wants to know.
    #[inline]
    pub(super) fn signal(&mut self, QueueId { device, index }: QueueId, signal: Signal) {
        let queue = &self.served[device.0 as usize].queues[usize::from(index)];
        if let Some(fd) = signal.place(queue)
            && self.signaller.signal(fd).is_err()
        {
            self.cut_off(device);
        }
    }

    /// A front end has held this thread up: it gets no signals any more.
    #[cold]
    fn cut_off(&mut self, device: DeviceId) {
        let served = &mut self.served[device.0 as usize];
        served.cut_off = true;
        for queue in &mut served.queues {
            (queue.call, queue.err) = (None, None);
        }
        self.end.tell(News::Held(device));
    }
}
