//! From the dispatcher's calls to control events: types are translated and descriptors checked,
//! everything that is meant is the core's to judge.

use std::cell::Cell;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::rc::Rc;

use sluice_core::device::{
    ControlEvent, ControlReply, DeviceId, ProtocolFeatures, RegionList, RingAddresses,
};
use sluice_core::memory::{Region, RegionId};
use vhost::vhost_user::message::{
    VhostTransferStateDirection, VhostTransferStatePhase, VhostUserConfigFlags, VhostUserInflight,
    VhostUserLog, VhostUserMemoryRegion, VhostUserProtocolFeatures, VhostUserShMemConfig,
    VhostUserSharedMsg, VhostUserSingleMemoryRegion, VhostUserVringAddrFlags, VhostUserVringState,
};
use vhost::vhost_user::{Error, GpuBackend, Result, VhostUserBackendReqHandler};

use super::descriptors::{check_eventfd, own};
use super::quiet::Quiet;
use super::remedy::{Refusal, remedy};
use crate::mailbox::ControlEnd;
use crate::mapping::Mapping;

/// What became of a message, beside what the dispatcher says.
///
/// The dispatcher returns a handler's error and its own as one type; here they stay apart.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Nothing to add.
    #[default]
    Pass,
    /// Refused; the connection may go on if the front end was told.
    Nack,
    /// Refused, and the connection cannot go on.
    Close,
    /// The answer comes later, by hand.
    Deferred,
    /// There is nobody to ask any more.
    ShardGone,
}

/// One connection's handler.
pub(super) struct Handler<'e> {
    end: &'e ControlEnd,
    device: DeviceId,
    name: Rc<str>,
    quiet: Rc<Quiet>,
    verdict: Cell<Verdict>,
    owned: Cell<bool>,
    told_features: Cell<bool>,
    reply_ack: Cell<bool>,
}

impl<'e> Handler<'e> {
    pub(super) fn new(
        end: &'e ControlEnd,
        device: DeviceId,
        name: Rc<str>,
        quiet: Rc<Quiet>,
    ) -> Self {
        Self {
            end,
            device,
            name,
            quiet,
            verdict: Cell::default(),
            owned: Cell::default(),
            told_features: Cell::default(),
            reply_ack: Cell::default(),
        }
    }

    /// What became of the last message.
    pub(super) fn take_verdict(&self) -> Verdict {
        self.verdict.take()
    }

    /// Whether a front end has made itself the owner.
    pub(super) fn is_owned(&self) -> bool {
        self.owned.get()
    }

    /// Whether messages that ask for an acknowledgement get one. The dispatcher keeps the same
    /// account and does not tell.
    pub(super) fn acknowledges(&self) -> bool {
        self.told_features.get() && self.reply_ack.get()
    }

    fn ask(
        &self,
        event: ControlEvent,
        mappings: Vec<Mapping>,
        fd: Option<OwnedFd>,
    ) -> Result<ControlReply> {
        match self.end.ask(self.device, event, mappings, fd) {
            Some(ControlReply::Refused(fault)) => {
                self.refuse(&Refusal::Core(fault));
                if fault.closes() {
                    self.verdict.set(Verdict::Close);
                }
                Err(Error::InvalidOperation("refused"))
            }
            Some(reply) => Ok(reply),
            None => {
                self.verdict.set(Verdict::ShardGone);
                Err(Error::BackendInternalError)
            }
        }
    }

    /// A message that changes something.
    fn tell(&self, event: ControlEvent, fd: Option<OwnedFd>) -> Result<()> {
        self.ask(event, Vec::new(), fd).map(drop)
    }

    /// A message that asks for a number. There is no way to refuse that but to close.
    fn number(&self, event: ControlEvent) -> Result<u64> {
        match self.ask(event, Vec::new(), None).map_err(|error| self.close(error))? {
            ControlReply::Value(value) => Ok(value),
            _ => Err(self.close(Error::BackendInternalError)),
        }
    }

    fn close(&self, error: Error) -> Error {
        if self.verdict.get() != Verdict::ShardGone {
            self.verdict.set(Verdict::Close);
        }
        error
    }

    fn refuse(&self, refusal: &Refusal) -> Error {
        self.verdict.set(Verdict::Nack);
        if self.quiet.allows() {
            tracing::warn!(disk = %self.name, "refused: {refusal}; {}", remedy(refusal));
        }
        Error::InvalidOperation("refused")
    }

    /// A message that is never let in here.
    fn unexpected<T>(&self) -> Result<T> {
        Err(self.close(Error::InvalidMessage))
    }

    fn ring(&self, event: ControlEvent, file: Option<File>) -> Result<()> {
        let fd = file.map(own).transpose().map_err(|error| Error::SocketError(error.into()))?;
        if let Some(fd) = &fd {
            check_eventfd(fd).map_err(|error| self.close(self.refuse(&Refusal::Ring(error))))?;
        }
        self.tell(event, fd)
    }
}

/// Regions are numbered by the place of their mapping until the shard gives them their numbers.
fn region(place: usize, region: &VhostUserMemoryRegion) -> Region {
    Region {
        id: RegionId(u32::try_from(place).unwrap_or(u32::MAX)),
        guest: region.guest_phys_addr,
        user: region.user_addr,
        size: region.memory_size,
    }
}

impl VhostUserBackendReqHandler for Handler<'_> {
    fn set_owner(&self) -> Result<()> {
        self.tell(ControlEvent::SetOwner, None)?;
        self.owned.set(true);
        Ok(())
    }

    fn reset_owner(&self) -> Result<()> {
        self.tell(ControlEvent::ResetOwner, None)
    }

    fn reset_device(&self) -> Result<()> {
        self.unexpected()
    }

    fn get_features(&self) -> Result<u64> {
        let features = self.number(ControlEvent::GetFeatures)?;
        self.told_features.set(true);
        Ok(features)
    }

    // The dispatcher takes the bits for acknowledged whatever is returned here and below: after
    // a refusal it must not go on.
    fn set_features(&self, features: u64) -> Result<()> {
        self.tell(ControlEvent::SetFeatures(features), None).map_err(|error| self.close(error))
    }

    fn get_protocol_features(&self) -> Result<VhostUserProtocolFeatures> {
        self.number(ControlEvent::GetProtocolFeatures)
            .map(VhostUserProtocolFeatures::from_bits_retain)
    }

    fn set_protocol_features(&self, features: u64) -> Result<()> {
        self.tell(ControlEvent::SetProtocolFeatures(features), None)
            .map_err(|error| self.close(error))?;
        self.reply_ack.set(features & ProtocolFeatures::REPLY_ACK.bits() != 0);
        Ok(())
    }

    fn get_queue_num(&self) -> Result<u64> {
        self.number(ControlEvent::GetQueueNum)
    }

    fn get_max_mem_slots(&self) -> Result<u64> {
        self.number(ControlEvent::GetMaxMemSlots)
    }

    fn set_mem_table(
        &self,
        table: &[VhostUserMemoryRegion],
        files: Vec<File>,
        _postcopy: Option<bool>,
    ) -> Result<Option<Vec<u64>>> {
        let own_all = files.into_iter().map(own).collect::<rustix::io::Result<Vec<_>>>();
        let fds = own_all.map_err(|error| Error::SocketError(error.into()))?;
        let mut regions = RegionList::new();
        let mut mappings = Vec::with_capacity(table.len());
        for (place, (entry, fd)) in table.iter().zip(fds).enumerate() {
            let mapping = Mapping::new(fd, entry.mmap_offset, entry.memory_size)
                .map_err(|error| self.refuse(&Refusal::Memory(error)))?;
            mappings.push(mapping);
            regions.push(region(place, entry)).map_err(|_| self.close(Error::InvalidMessage))?;
        }
        self.ask(ControlEvent::SetMemTable(regions), mappings, None)?;
        Ok(None)
    }

    fn add_mem_region(
        &self,
        entry: &VhostUserSingleMemoryRegion,
        file: File,
        _postcopy: Option<bool>,
    ) -> Result<Option<u64>> {
        let fd = own(file).map_err(|error| Error::SocketError(error.into()))?;
        let mapping = Mapping::new(fd, entry.mmap_offset, entry.memory_size)
            .map_err(|error| self.refuse(&Refusal::Memory(error)))?;
        self.ask(ControlEvent::AddMemRegion(region(0, entry)), vec![mapping], None)?;
        Ok(None)
    }

    fn remove_mem_region(&self, entry: &VhostUserSingleMemoryRegion) -> Result<()> {
        let Region { guest, user, size, .. } = region(0, entry);
        self.tell(ControlEvent::RemoveMemRegion { guest, user, size }, None)
    }

    //= spec/vhost-user.md#VHU-13
    fn get_config(&self, offset: u32, size: u32, _flags: VhostUserConfigFlags) -> Result<Vec<u8>> {
        // The dispatcher has bounded the size; another length would count as a failure.
        let mut bytes = vec![0; size as usize];
        match self.ask(ControlEvent::GetConfig { offset, size }, Vec::new(), None)? {
            ControlReply::Config(config) => config.read(offset, &mut bytes),
            _ => return Err(self.close(Error::BackendInternalError)),
        }
        Ok(bytes)
    }

    fn set_config(&self, offset: u32, bytes: &[u8], _flags: VhostUserConfigFlags) -> Result<()> {
        let size = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        self.tell(ControlEvent::SetConfig { offset, size }, None)
    }

    fn set_vring_num(&self, index: u32, size: u32) -> Result<()> {
        self.tell(ControlEvent::SetVringNum { index, size }, None)
    }

    fn set_vring_base(&self, index: u32, base: u32) -> Result<()> {
        self.tell(ControlEvent::SetVringBase { index, base }, None)
    }

    fn set_vring_addr(
        &self,
        index: u32,
        flags: VhostUserVringAddrFlags,
        desc: u64,
        used: u64,
        avail: u64,
        _log: u64,
    ) -> Result<()> {
        if !flags.is_empty() {
            // A log of dirty pages was never offered.
            return self.unexpected();
        }
        let addresses = RingAddresses { desc, avail, used };
        self.tell(ControlEvent::SetVringAddr { index, addresses }, None)
    }

    fn set_vring_kick(&self, index: u8, file: Option<File>) -> Result<()> {
        self.ring(ControlEvent::SetVringKick { index: index.into() }, file)
    }

    fn set_vring_call(&self, index: u8, file: Option<File>) -> Result<()> {
        self.ring(ControlEvent::SetVringCall { index: index.into() }, file)
    }

    fn set_vring_err(&self, index: u8, file: Option<File>) -> Result<()> {
        self.ring(ControlEvent::SetVringErr { index: index.into() }, file)
    }

    fn set_vring_enable(&self, index: u32, enable: bool) -> Result<()> {
        self.tell(ControlEvent::SetVringEnable { index, enable }, None)
    }

    //= spec/vhost-user.md#VHU-9
    fn get_vring_base(&self, index: u32) -> Result<VhostUserVringState> {
        let event = ControlEvent::GetVringBase { index };
        match self.ask(event, Vec::new(), None).map_err(|error| self.close(error))? {
            ControlReply::VringBase { index, base } => {
                Ok(VhostUserVringState::new(index.into(), base.into()))
            }
            ControlReply::Deferred => {
                // An error makes the dispatcher send nothing and forget nothing.
                self.verdict.set(Verdict::Deferred);
                Err(Error::InvalidOperation("deferred"))
            }
            _ => Err(self.close(Error::BackendInternalError)),
        }
    }

    fn set_gpu_socket(&self, _gpu: GpuBackend) -> Result<()> {
        self.unexpected()
    }

    fn get_shared_object(&self, _uuid: VhostUserSharedMsg) -> Result<File> {
        self.unexpected()
    }

    fn get_inflight_fd(&self, _area: &VhostUserInflight) -> Result<(VhostUserInflight, File)> {
        self.unexpected()
    }

    fn set_inflight_fd(&self, _area: &VhostUserInflight, _file: File) -> Result<()> {
        self.unexpected()
    }

    fn set_device_state_fd(
        &self,
        _direction: VhostTransferStateDirection,
        _phase: VhostTransferStatePhase,
        _fd: File,
    ) -> Result<Option<File>> {
        self.unexpected()
    }

    fn check_device_state(&self) -> Result<()> {
        self.unexpected()
    }

    fn get_shmem_config(&self) -> Result<VhostUserShMemConfig> {
        self.unexpected()
    }

    fn set_log_base(&self, _log: &VhostUserLog, _file: File) -> Result<()> {
        self.unexpected()
    }
}
