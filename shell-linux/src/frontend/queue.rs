//! A queue: a driver, and the two eventfds between it and the device.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use anyhow::Context;
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::io::Errno;
use sluice_core::memory::SharedMemory;
use sluice_sim::driver::{Driver, Layout};

/// One queue of a guest. Like the memory it outlives connections.
#[derive(Debug)]
pub struct Queue {
    /// The rings' owner.
    pub driver: Driver,
    index: u16,
    kick: OwnedFd,
    call: OwnedFd,
}

/// Ends another thread's [`Queue::wait`].
#[derive(Debug)]
pub struct Waker(OwnedFd);

impl Waker {
    /// The same as an interrupt.
    pub fn wake(&self) {
        let _ = rustix::io::write(&self.0, &1_u64.to_ne_bytes());
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
        let fd = |flags| eventfd(0, EventfdFlags::CLOEXEC | flags).context("eventfd");
        // The call descriptor blocks: waiting for an interrupt is then a single call.
        let (kick, call) = (fd(EventfdFlags::NONBLOCK)?, fd(EventfdFlags::empty())?);
        Ok(Self { driver, index, kick, call })
    }

    /// Its number.
    #[must_use]
    pub const fn index(&self) -> u16 {
        self.index
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
        let _ = rustix::io::write(&self.kick, &1_u64.to_ne_bytes());
    }

    /// Sleeps until the device interrupts.
    ///
    /// # Errors
    /// When the eventfd is broken.
    pub fn wait(&self) -> anyhow::Result<()> {
        loop {
            match rustix::io::read(&self.call, &mut [0; 8]) {
                Ok(_) => return Ok(()),
                Err(Errno::INTR) => {}
                // The flag belongs to both ends, and the other one may have set it.
                Err(Errno::AGAIN) => {
                    let mut fds = [PollFd::new(&self.call, PollFlags::IN)];
                    let _ = poll(&mut fds, None);
                }
                Err(error) => return Err(error).context("waiting for an interrupt"),
            }
        }
    }

    /// For waking the thread that will [`wait`](Self::wait).
    ///
    /// # Errors
    /// When there are no more descriptors.
    pub fn waker(&self) -> anyhow::Result<Waker> {
        Ok(Waker(self.call.try_clone().context("eventfd")?))
    }

    pub(super) fn kick_fd(&self) -> BorrowedFd<'_> {
        self.kick.as_fd()
    }

    pub(super) fn call_fd(&self) -> BorrowedFd<'_> {
        self.call.as_fd()
    }
}
