//! A queue: a driver, and the two eventfds between it and the device.

use std::os::fd::OwnedFd;

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
    pub(super) call: OwnedFd,
}

impl Wires {
    /// The same as an interrupt: ends another thread's [`Queue::wait`].
    pub fn interrupt(&self) {
        let _ = rustix::io::write(&self.call, &1_u64.to_ne_bytes());
    }

    /// Where the queue is to go on after its back end was killed, as far as a front end knows: a
    /// split ring at its used index, a packed one anywhere, as nothing in memory says where.
    ///
    /// # Errors
    /// When the ring is not mapped.
    pub fn known_base(&self, mem: &impl SharedMemory) -> anyhow::Result<u32> {
        if self.layout.packed {
            return Ok(self.layout.base());
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
        let fd = |flags| eventfd(0, EventfdFlags::CLOEXEC | flags).context("eventfd");
        // The call descriptor blocks: waiting for an interrupt is then a single call.
        let (kick, call) = (fd(EventfdFlags::NONBLOCK)?, fd(EventfdFlags::empty())?);
        Ok(Self { driver, wires: Wires { index, layout, kick, call } })
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
        loop {
            match rustix::io::read(&self.wires.call, &mut [0; 8]) {
                Ok(_) => return Ok(()),
                Err(Errno::INTR) => {}
                // The flag belongs to both ends, and the other one may have set it.
                Err(Errno::AGAIN) => {
                    let mut fds = [PollFd::new(&self.wires.call, PollFlags::IN)];
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
        let Wires { index, layout, kick, call } = &self.wires;
        let copy = |fd: &OwnedFd| fd.try_clone().context("eventfd");
        Ok(Wires { index: *index, layout: *layout, kick: copy(kick)?, call: copy(call)? })
    }
}
