//! One connection to a back end: what is negotiated, and what runs over it.

use std::os::fd::AsFd;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, ensure};
use sluice_core::blk::{BlkConfig, BlkFeatures};
use vhost::vhost_user::message::{
    FrontendReq, VhostUserConfig, VhostUserConfigFlags, VhostUserInflight, VhostUserMemory,
    VhostUserMemoryRegion, VhostUserProtocolFeatures as Protocol, VhostUserSingleMemoryRegion,
    VhostUserU64, VhostUserVringAddr, VhostUserVringAddrFlags, VhostUserVringState,
};
use vm_memory::ByteValued;
use zerocopy::{FromZeros, IntoBytes};

use super::memory::GUEST;
use super::wire::Socket;
use super::{GuestMemory, InflightRegion, Wires};

/// Protocol features that are used if the back end has them.
const PROTOCOL: Protocol = Protocol::MQ
    .union(Protocol::REPLY_ACK)
    .union(Protocol::CONFIG)
    .union(Protocol::CONFIGURE_MEM_SLOTS)
    .union(Protocol::INFLIGHT_SHMFD);

/// Device features that the driver uses if the back end has them.
const KNOWN: BlkFeatures = BlkFeatures::SEG_MAX
    .union(BlkFeatures::RO)
    .union(BlkFeatures::BLK_SIZE)
    .union(BlkFeatures::FLUSH)
    .union(BlkFeatures::TOPOLOGY)
    .union(BlkFeatures::MQ)
    .union(BlkFeatures::DISCARD)
    .union(BlkFeatures::WRITE_ZEROES)
    .union(BlkFeatures::INDIRECT_DESC)
    .union(BlkFeatures::EVENT_IDX)
    .union(BlkFeatures::PROTOCOL_FEATURES)
    .union(BlkFeatures::VERSION_1);

/// A connection up to `DRIVER_OK`, and the device behind it.
#[derive(Debug)]
pub struct Connection {
    pub(super) socket: Socket,
    protocol: Protocol,
    features: BlkFeatures,
    config: BlkConfig,
    queues_max: u16,
}

impl Connection {
    /// Connects, negotiates everything both sides know, of packed rings only if they are in
    /// `also`, and reads the configuration space.
    ///
    /// # Errors
    /// When nobody listens, or the other side is no virtio-blk device of version 1.
    pub fn open(path: &Path, also: BlkFeatures) -> anyhow::Result<Self> {
        let (socket, offered) = hello(path)?;
        let features = offered & (KNOWN | also);
        ensure!(features.contains(BlkFeatures::VERSION_1), "the device is older than virtio 1.0");
        let has_protocol = features.contains(BlkFeatures::PROTOCOL_FEATURES);
        ensure!(has_protocol, "the back end negotiates no protocol features");
        let offered = socket.ask::<VhostUserU64>(FrontendReq::GET_PROTOCOL_FEATURES, &[])?.value;
        let protocol = Protocol::from_bits_truncate(offered) & PROTOCOL;
        ensure!(protocol.contains(Protocol::CONFIG), "the device shows no configuration space");
        let (config, queues_max) = (BlkConfig::new_zeroed(), 1);
        let mut this = Self { socket, protocol, features, config, queues_max };
        this.introduce()?;
        this.config = read_config(&this.socket)?;
        this.set_features()?;
        Ok(this)
    }

    /// Connects to the back end's successor with what was negotiated before. The guest has been
    /// told already, so nothing is open to negotiation, and the configuration is not read again.
    ///
    /// # Errors
    /// When nobody listens, or the successor cannot do what its predecessor could.
    pub fn reopen(&self, path: &Path) -> anyhow::Result<Self> {
        let (socket, offered) = hello(path)?;
        let &Self { protocol, features, config, queues_max, .. } = self;
        let lost = features & !offered;
        ensure!(lost.is_empty(), "the device has lost features: {lost:?}");
        let offered = socket.ask::<VhostUserU64>(FrontendReq::GET_PROTOCOL_FEATURES, &[])?.value;
        let lost = protocol & !Protocol::from_bits_truncate(offered);
        ensure!(lost.is_empty(), "the back end has lost protocol features: {lost:?}");
        let mut this = Self { socket, protocol, features, config, queues_max };
        this.introduce()?;
        this.set_features()?;
        Ok(this)
    }

    /// Says what is spoken and who owns the device.
    fn introduce(&mut self) -> anyhow::Result<()> {
        let bits = VhostUserU64::new(self.protocol.bits());
        self.socket.tell(FrontendReq::SET_PROTOCOL_FEATURES, bits.as_slice(), &[])?;
        self.socket.reply_ack = self.protocol.contains(Protocol::REPLY_ACK);
        self.socket.tell(FrontendReq::SET_OWNER, &[], &[])?;
        if self.protocol.contains(Protocol::MQ) {
            let queues = self.socket.ask::<VhostUserU64>(FrontendReq::GET_QUEUE_NUM, &[])?.value;
            self.queues_max = u16::try_from(queues).unwrap_or(u16::MAX);
        }
        Ok(())
    }

    fn set_features(&self) -> anyhow::Result<()> {
        let bits = VhostUserU64::new(self.features.bits());
        self.socket.tell(FrontendReq::SET_FEATURES, bits.as_slice(), &[])
    }

    /// What was negotiated.
    #[must_use]
    pub const fn features(&self) -> BlkFeatures {
        self.features
    }

    /// What the device says of itself.
    #[must_use]
    pub const fn config(&self) -> &BlkConfig {
        &self.config
    }

    /// Sectors of 512 bytes.
    #[must_use]
    pub fn capacity_sectors(&self) -> u64 {
        self.config.capacity.get()
    }

    /// Sectors in a logical block.
    #[must_use]
    pub fn block_sectors(&self) -> u64 {
        if self.features.contains(BlkFeatures::BLK_SIZE) {
            u64::from(self.config.blk_size.get() / 512).max(1)
        } else {
            1
        }
    }

    /// Queues that may be started.
    #[must_use]
    pub fn queues_max(&self) -> u16 {
        let device =
            if self.features.contains(BlkFeatures::MQ) { self.config.num_queues.get() } else { 1 };
        self.queues_max.min(device)
    }

    /// Hands a guest's memory over.
    ///
    /// # Errors
    /// When the back end refuses it.
    pub fn share(&self, memory: &GuestMemory) -> anyhow::Result<()> {
        let (size, user) = (memory.size(), memory.user(0));
        let fds = [memory.fd()];
        if self.protocol.contains(Protocol::CONFIGURE_MEM_SLOTS) {
            let region = VhostUserSingleMemoryRegion::new(GUEST, size, user, 0);
            return self.socket.tell(FrontendReq::ADD_MEM_REG, region.as_slice(), &fds);
        }
        let region = VhostUserMemoryRegion::new(GUEST, size, user, 0);
        let body = [VhostUserMemory::new(1).as_slice(), region.as_slice()].concat();
        self.socket.tell(FrontendReq::SET_MEM_TABLE, &body, &fds)
    }

    /// Has a region made that keeps what is in flight in so many queues of so many entries;
    /// `None` when the back end does not track that.
    ///
    /// # Errors
    /// When the back end fails to make one.
    pub fn make_inflight(&self, queues: u16, size: u16) -> anyhow::Result<Option<InflightRegion>> {
        if !self.protocol.contains(Protocol::INFLIGHT_SHMFD) {
            return Ok(None);
        }
        let wish = VhostUserInflight::new(0, 0, queues, size);
        let (made, fd) = self
            .socket
            .ask_fd::<VhostUserInflight>(FrontendReq::GET_INFLIGHT_FD, wish.as_slice())?;
        let (bytes, offset) = (made.mmap_size, made.mmap_offset);
        Ok(Some(InflightRegion { fd, bytes, offset, queues, size }))
    }

    /// Hands the region over, before any queue is started.
    ///
    /// # Errors
    /// When the back end refuses it.
    pub fn share_inflight(&self, region: &InflightRegion) -> anyhow::Result<()> {
        let fds = [region.fd.as_fd()];
        self.socket.tell(FrontendReq::SET_INFLIGHT_FD, region.describe().as_slice(), &fds)
    }

    /// Starts a queue. A fresh one begins at its layout's base, one that ran on an earlier
    /// connection where its [wires](Wires::known_base) say.
    ///
    /// # Errors
    /// When the back end refuses it.
    pub fn start(&self, memory: &GuestMemory, queue: &Wires, base: u32) -> anyhow::Result<()> {
        let Wires { index, layout, kick, call, .. } = queue;
        let (index, call) = (u32::from(*index), call.get());
        let state = |request, value: u32| {
            let state = VhostUserVringState::new(index, value);
            self.socket.tell(request, state.as_slice(), &[])
        };
        state(FrontendReq::SET_VRING_NUM, layout.size.into())?;
        state(FrontendReq::SET_VRING_BASE, base)?;
        let [desc, used, avail] =
            [layout.desc, layout.used, layout.avail].map(|at| memory.user(at));
        let flags = VhostUserVringAddrFlags::empty();
        let rings = VhostUserVringAddr::new(index, flags, desc, used, avail, 0);
        self.socket.tell(FrontendReq::SET_VRING_ADDR, rings.as_slice(), &[])?;
        let number = VhostUserU64::new(index.into());
        let events = [(FrontendReq::SET_VRING_CALL, &*call), (FrontendReq::SET_VRING_KICK, kick)];
        for (request, fd) in events {
            self.socket.tell(request, number.as_slice(), &[fd.as_fd()])?;
        }
        state(FrontendReq::SET_VRING_ENABLE, 1)
    }

    /// Waits this long, or until the back end is gone, which it says.
    #[must_use]
    pub fn wait_closed(&self, at_most: Duration) -> bool {
        self.socket.wait_closed(at_most)
    }
}

/// Connects and hears what device is there.
fn hello(path: &Path) -> anyhow::Result<(Socket, BlkFeatures)> {
    let socket = Socket::connect(path)?;
    let offered = socket.ask::<VhostUserU64>(FrontendReq::GET_FEATURES, &[])?.value;
    Ok((socket, BlkFeatures::from_bits_truncate(offered)))
}

pub(super) fn read_config(socket: &Socket) -> anyhow::Result<BlkConfig> {
    let mut config = BlkConfig::new_zeroed();
    let size = u32::try_from(config.as_bytes().len()).context("configuration space")?;
    let head = VhostUserConfig::new(0, size, VhostUserConfigFlags::empty());
    let ask = [head.as_slice(), config.as_bytes()].concat();
    let mut answer = vec![0; ask.len()];
    socket.ask_bytes(FrontendReq::GET_CONFIG, &ask, &mut answer)?;
    config.as_mut_bytes().copy_from_slice(&answer[head.as_slice().len()..]);
    let capacity = config.capacity.get();
    ensure!(capacity.checked_mul(512).is_some(), "the disk has {capacity} sectors");
    Ok(config)
}
