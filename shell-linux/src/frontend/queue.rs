//! A queue: a driver, and the two eventfds between it and the device.

use core::sync::atomic::{AtomicU16, Ordering};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Context;
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::io::Errno;
use sluice_core::memory::SharedMemory;
use sluice_core::virtqueue::layout::USED_IDX;
use sluice_sim::driver::{Driver, Layout};

/// One queue of a guest. Like the memory it outlives connections.
#[derive(Debug)]
pub struct Queue {
    /// The rings' owner.
    pub driver: Driver,
    wires: Wires,
}

/// What a back end is given of a queue. Whoever drives the queue keeps the rest, so that another
/// thread can hand it to the next back end.
#[derive(Debug)]
pub struct Wires {
    pub(super) index: u16,
    pub(super) layout: Layout,
    pub(super) kick: OwnedFd,
    pub(super) call: Call,
    /// Where the driver stands in what came back.
    seen: Arc<AtomicU16>,
}

/// The eventfd of a queue's interrupts, which may be exchanged for another one.
#[derive(Clone, Debug)]
pub(super) struct Call(Arc<Mutex<Arc<OwnedFd>>>);

impl Call {
    /// It blocks: waiting for an interrupt is then a single call.
    fn new() -> anyhow::Result<Self> {
        Ok(Self(Arc::new(Mutex::new(Arc::new(eventfd(0, EventfdFlags::CLOEXEC)?)))))
    }

    pub(super) fn get(&self) -> Arc<OwnedFd> {
        Arc::clone(&self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn interrupt(&self) {
        let _ = rustix::io::write(&*self.get(), &1_u64.to_ne_bytes());
    }
}

impl Wires {
    /// The same as an interrupt: ends another thread's [`Queue::wait`].
    pub fn interrupt(&self) {
        self.call.interrupt();
    }

    /// Waits for interrupts on another eventfd from now on, which the back end is to be told of.
    ///
    /// # Errors
    /// When there are no more descriptors.
    pub fn renew_call(&self) -> anyhow::Result<()> {
        let new = Arc::new(eventfd(0, EventfdFlags::CLOEXEC).context("eventfd")?);
        let mut call = self.call.0.lock().unwrap_or_else(PoisonError::into_inner);
        let old = core::mem::replace(&mut *call, new);
        // Whoever waits for the old one looks again.
        let _ = rustix::io::write(&*old, &1_u64.to_ne_bytes());
        Ok(())
    }

    /// Its number.
    #[must_use]
    pub const fn index(&self) -> u16 {
        self.index
    }

    /// Where everything lies.
    #[must_use]
    pub const fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Where the queue is to go on after its back end was killed, as far as a front end knows: a
    /// split ring at its used index. Where a packed one stands nothing in memory says; what counts
    /// if nothing is under way is where its driver does.
    ///
    /// # Errors
    /// When the ring is not mapped.
    pub fn known_base(&self, mem: &impl SharedMemory) -> anyhow::Result<u32> {
        if self.layout.packed {
            let seen = u32::from(self.seen.load(Ordering::Acquire));
            return Ok(seen | seen << 16);
        }
        let offset = self.layout.used + USED_IDX;
        let used = mem.load_acquire_u16(self.layout.region, offset);
        used.map(u32::from).ok().context("rings outside memory")
    }
}

impl Queue {
    /// A queue with empty rings.
    ///
    /// # Errors
    /// When the layout is not mapped, or there are no more descriptors.
    pub fn new(
        mem: &impl SharedMemory,
        index: u16,
        layout: Layout,
        event_idx: bool,
    ) -> anyhow::Result<Self> {
        let driver = Driver::new(mem, layout, event_idx).ok().context("rings outside memory")?;
        let kick = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).context("eventfd")?;
        let seen = Arc::new(AtomicU16::new(driver.used_index()));
        let wires = Wires { index, layout, kick, call: Call::new()?, seen };
        Ok(Self { driver, wires })
    }

    /// Lets whoever hands the queue to the next back end know how far its driver has come.
    #[inline]
    pub fn note_seen(&self) {
        self.wires.seen.store(self.driver.used_index(), Ordering::Release);
    }

    /// Its number.
    #[must_use]
    pub const fn index(&self) -> u16 {
        self.wires.index
    }

    /// Shows the device what was added and notifies it if it wants to know.
    #[inline]
    pub fn submit(&mut self, mem: &impl SharedMemory) {
        self.driver.expose(mem);
        if self.driver.should_kick(mem) {
            self.kick();
        }
    }

    /// Notifies the device. A counter that is full has not been read: it will be.
    pub fn kick(&self) {
        let _ = rustix::io::write(&self.wires.kick, &1_u64.to_ne_bytes());
    }

    /// Sleeps until the device interrupts.
    ///
    /// # Errors
    /// When the eventfd is broken.
    pub fn wait(&self) -> anyhow::Result<()> {
        let call = self.wires.call.get();
        loop {
            match rustix::io::read(&*call, &mut [0; 8]) {
                Ok(_) => return Ok(()),
                Err(Errno::INTR) => {}
                // The flag belongs to both ends, and the other one may have set it.
                Err(Errno::AGAIN) => {
                    let mut fds = [PollFd::new(&*call, PollFlags::IN)];
                    let _ = poll(&mut fds, None);
                }
                Err(error) => return Err(error).context("waiting for an interrupt"),
            }
        }
    }

    /// What a back end is given.
    #[must_use]
    pub const fn wires(&self) -> &Wires {
        &self.wires
    }

    /// The same, to be kept by another thread.
    ///
    /// # Errors
    /// When there are no more descriptors.
    pub fn share_wires(&self) -> anyhow::Result<Wires> {
        let Wires { index, layout, kick, call, seen } = &self.wires;
        let kick = kick.try_clone().context("eventfd")?;
        let (call, seen) = (call.clone(), Arc::clone(seen));
        Ok(Wires { index: *index, layout: *layout, kick, call, seen })
    }
}
