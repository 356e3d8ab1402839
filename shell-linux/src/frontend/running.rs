//! What a front end says to a device that runs.

use std::os::fd::AsFd;

use anyhow::ensure;
use rustix::event::{EventfdFlags, eventfd};
use vhost::vhost_user::message::{
    FrontendReq, VhostUserMemory, VhostUserMemoryRegion, VhostUserSingleMemoryRegion, VhostUserU64,
    VhostUserVringState,
};
use vm_memory::ByteValued;

use super::connection::read_config;
use super::memory::GUEST;
use super::{Connection, GuestMemory, Wires};

/// How far behind a guest's memory more of it lies, in either kind of address.
const FURTHER: u64 = 1 << 36;

impl Connection {
    /// Stops a queue when all its requests came back. Says at which base.
    ///
    /// # Errors
    /// When the back end does not answer.
    pub fn stop(&self, queue: &Wires) -> anyhow::Result<u32> {
        let state = VhostUserVringState::new(queue.index.into(), 0);
        let answer: VhostUserVringState =
            self.socket.ask(FrontendReq::GET_VRING_BASE, state.as_slice())?;
        ensure!(answer.index == u32::from(queue.index), "another queue was stopped");
        Ok(answer.num)
    }

    /// Has a queue fetched from, or not.
    ///
    /// # Errors
    /// When the back end refuses it.
    pub fn enable(&self, queue: &Wires, enable: bool) -> anyhow::Result<()> {
        let state = VhostUserVringState::new(queue.index.into(), enable.into());
        self.socket.tell(FrontendReq::SET_VRING_ENABLE, state.as_slice(), &[])
    }

    /// Tells where a queue's interrupts go by now.
    ///
    /// # Errors
    /// When the back end refuses it.
    pub fn tell_call(&self, queue: &Wires) -> anyhow::Result<()> {
        let number = VhostUserU64::new(queue.index.into());
        let call = queue.call.get();
        self.socket.tell(FrontendReq::SET_VRING_CALL, number.as_slice(), &[call.as_fd()])
    }

    /// Hands over a new descriptor on which a broken queue would be told.
    ///
    /// # Errors
    /// When the back end refuses it.
    pub fn tell_err(&self, queue: &Wires) -> anyhow::Result<()> {
        let number = VhostUserU64::new(queue.index.into());
        let err = eventfd(0, EventfdFlags::CLOEXEC)?;
        self.socket.tell(FrontendReq::SET_VRING_ERR, number.as_slice(), &[err.as_fd()])
    }

    /// Reads the configuration space once more.
    ///
    /// # Errors
    /// When it is another disk's.
    pub fn look_again(&self) -> anyhow::Result<()> {
        let capacity = read_config(&self.socket)?.capacity.get();
        ensure!(capacity == self.capacity_sectors(), "the disk has {capacity} sectors by now");
        Ok(())
    }

    /// Hands a guest's memory over anew, with more of it or without, as one table.
    ///
    /// # Errors
    /// When the back end refuses it.
    pub fn share_table(
        &self,
        memory: &GuestMemory,
        more: Option<&GuestMemory>,
    ) -> anyhow::Result<()> {
        let pieces = [(memory, 0)].into_iter().chain(more.map(|more| (more, FURTHER)));
        let (mut body, mut fds) = (Vec::new(), Vec::new());
        for (memory, at) in pieces {
            let user = memory.user(at);
            let region = VhostUserMemoryRegion::new(GUEST + at, memory.size(), user, 0);
            body.extend_from_slice(region.as_slice());
            fds.push(memory.fd());
        }
        let count = VhostUserMemory::new(u32::try_from(fds.len())?);
        let body = [count.as_slice(), &body].concat();
        self.socket.tell(FrontendReq::SET_MEM_TABLE, &body, &fds)
    }

    /// Plugs more memory in, or takes it away again.
    ///
    /// # Errors
    /// When the back end refuses it.
    pub fn plug(&self, more: &GuestMemory, add: bool) -> anyhow::Result<()> {
        let user = more.user(FURTHER);
        let region = VhostUserSingleMemoryRegion::new(GUEST + FURTHER, more.size(), user, 0);
        match add {
            true => self.socket.tell(FrontendReq::ADD_MEM_REG, region.as_slice(), &[more.fd()]),
            false => self.socket.tell(FrontendReq::REM_MEM_REG, region.as_slice(), &[]),
        }
    }
}
