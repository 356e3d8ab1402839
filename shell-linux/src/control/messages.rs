//! The dispatcher's calls, each one control event.

use std::fs::File;

use sluice_core::device::{
    ControlEvent, ControlReply, ProtocolFeatures, RegionList, RingAddresses,
};
use sluice_core::memory::{Region, RegionId};
use vhost::vhost_user::message::{
    VhostTransferStateDirection, VhostTransferStatePhase, VhostUserConfigFlags, VhostUserInflight,
    VhostUserLog, VhostUserMemoryRegion, VhostUserProtocolFeatures, VhostUserShMemConfig,
    VhostUserSharedMsg, VhostUserSingleMemoryRegion, VhostUserVringAddrFlags, VhostUserVringState,
};
use vhost::vhost_user::{Error, GpuBackend, Result, VhostUserBackendReqHandler};

use super::descriptors::own;
use super::handler::Handler;
use super::remedy::Refusal;
use crate::foreign::kinds::Use;

const TRACKING: u64 =
    ProtocolFeatures::INFLIGHT_SHMFD.union(ProtocolFeatures::GET_VRING_BASE_INFLIGHT).bits();

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
        self.set_owned();
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
        self.set_told_features();
        Ok(features)
    }

    // The dispatcher takes the bits for acknowledged whatever is returned here and below: after
    // a refusal it must not go on.
    fn set_features(&self, features: u64) -> Result<()> {
        self.tell(ControlEvent::SetFeatures(features), None).map_err(|error| self.close(error))
    }

    fn get_protocol_features(&self) -> Result<VhostUserProtocolFeatures> {
        self.number(ControlEvent::GetProtocolFeatures)
            .map(|offered| if self.is_tracked() { offered } else { offered & !TRACKING })
            .map(VhostUserProtocolFeatures::from_bits_retain)
    }

    fn set_protocol_features(&self, features: u64) -> Result<()> {
        self.tell(ControlEvent::SetProtocolFeatures(features), None)
            .map_err(|error| self.close(error))?;
        self.set_reply_ack(features & ProtocolFeatures::REPLY_ACK.bits() != 0);
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
            let mapping = self
                .map(fd, (entry.mmap_offset, entry.memory_size), Use::Guest)
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
        let mapping = self
            .map(fd, (entry.mmap_offset, entry.memory_size), Use::Guest)
            .map_err(|error| self.refuse(&Refusal::Memory(error)))?;
        self.ask(ControlEvent::AddMemRegion(region(0, entry)), vec![mapping], None)?;
        Ok(None)
    }

    fn remove_mem_region(&self, entry: &VhostUserSingleMemoryRegion) -> Result<()> {
        let Region { guest, user, size, .. } = region(0, entry);
        self.tell(ControlEvent::RemoveMemRegion { guest, user, size }, None)
    }

    //= spec/blk.md#BLK-18
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
        let value = bytes.first().copied().unwrap_or(0);
        self.tell(ControlEvent::SetConfig { offset, size, value }, None)
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
        // Where a ring lies is known, so the place that the log should say for it is not needed.
        if !(flags - VhostUserVringAddrFlags::VHOST_VRING_F_LOG).is_empty() {
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
                self.note_stopped(index, base);
                Ok(VhostUserVringState::new(index.into(), base))
            }
            ControlReply::Deferred => Err(self.defer()),
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

    //= spec/vhost-user.md#VHU-14
    fn set_inflight_fd(&self, area: &VhostUserInflight, file: File) -> Result<()> {
        let fd = own(file).map_err(|error| Error::SocketError(error.into()))?;
        let mapping = match self.map(fd, (area.mmap_offset, area.mmap_size), Use::Record) {
            Ok(mapping) => mapping,
            // Who asks for another one has none: the last one is not this front end's any more.
            Err(error) => {
                self.number(ControlEvent::GetInflight { queues: 0, size: 0 })?;
                return Err(self.refuse_harmlessly(&Refusal::Inflight(error)));
            }
        };
        let event = ControlEvent::SetInflight {
            region: RegionId(0),
            offset: 0,
            len: area.mmap_size,
            queues: area.num_queues,
            size: area.queue_size,
        };
        self.ask(event, vec![mapping], None).map(drop)
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

    // The dispatcher answers this one whatever was asked for; a refusal that it does not send
    // would leave the front end waiting.
    //= spec/migration.md#MIG-1
    fn set_log_base(&self, log: &VhostUserLog, file: File) -> Result<()> {
        let fd = own(file).map_err(|error| self.close(Error::SocketError(error.into())))?;
        let mapping = self
            .map(fd, (log.mmap_offset, log.mmap_size), Use::Record)
            .map_err(|error| self.close(self.refuse(&Refusal::Log(error))))?;
        let event = ControlEvent::SetLogBase { region: RegionId(0), bytes: log.mmap_size };
        self.ask(event, vec![mapping], None).map(drop).map_err(|error| self.close(error))
    }
}
