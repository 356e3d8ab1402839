//! What vhost-user messages mean: negotiation, memory and rings of one device.
//!
//! Everything is checked here, in any order a front end may send it; what touches queues is
//! returned as a `Step` for the shard to carry out.

mod message;
mod area;

pub use message::{
    ControlEvent, ControlFault, ControlReply, ProtocolFeatures, RegionList, RingAddresses,
};

pub(crate) use area::InflightArea;

use crate::blk::config::{BlkConfig, BlkFeatures};
use crate::dirty::DirtyLog;
use crate::image::{ImageConfig, ImageId};
use crate::limits::{QUEUE_SIZE_MAX, QUEUES_PER_DEVICE_MAX, REGIONS_LIVE_MAX};
use crate::memory::{MemoryMap, Region, find_user};
use crate::shard::Share;
use crate::time::Instant;
use crate::virtqueue::layout::{EVENT_BYTES, avail_ring_bytes, desc_table_bytes, used_ring_bytes};
use crate::virtqueue::{PackedBase, Rings};

/// A device's place in its shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct DeviceId(pub u32);

/// A queue by its device and the number the front end gives it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct QueueId {
    /// The device.
    pub device: DeviceId,
    /// The queue of it, from 0.
    pub index: u16,
}

/// What the shell says of a device when it brings one in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceConfig {
    /// The image it shows.
    pub image: ImageId,
    /// The serial that `GET_ID` returns, padded with zeroes.
    pub serial: [u8; crate::blk::request::ID_BYTES],
    /// Queues it has, up to `limits::QUEUES_PER_DEVICE_MAX`.
    pub queues: u16,
}

/// No queue of the pool.
pub(crate) const NO_QUEUE: u32 = u32::MAX;

/// What a device knows of a queue whether or not the queue has a place in the pool.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Vring {
    pub(crate) queue: u32,
    /// Where its ring goes on, unless it begins.
    pub(crate) base: Option<u32>,
    /// Whether that is where the queue itself stopped for this front end, drained.
    pub(crate) drained: bool,
    pub(crate) enabled: bool,
}

impl Vring {
    const NONE: Self = Self { queue: NO_QUEUE, base: None, drained: false, enabled: false };

    pub(crate) const fn has_queue(&self) -> bool {
        self.queue != NO_QUEUE
    }
}

/// Whether a front end is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// A front end may come.
    Open,
    /// The last one has gone, its requests have not.
    Leaving,
}

/// What is left for the shard to do for a message that was accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    Answer(ControlReply),
    BeginAnew,
    SetSize { index: u16, size: u16 },
    SetBase { index: u16, base: u32 },
    SetAddresses { index: u16, addresses: RingAddresses },
    Start { index: u16 },
    Notify { index: u16 },
    Enable { index: u16, enable: bool },
    Stop { index: u16 },
    ReplaceTable,
    RemoveRegion { guest: u64, user: u64, size: u64 },
    GetInflight { bytes: u64 },
    SetInflight(InflightArea),
    SetWriteback(bool),
    SetLog(DirtyLog),
}

/// A device of a shard.
#[derive(Debug)]
pub struct Device {
    pub(crate) config: DeviceConfig,
    pub(crate) phase: Phase,
    pub(crate) map: MemoryMap,
    pub(crate) vrings: [Vring; QUEUES_PER_DEVICE_MAX as usize],
    features: BlkFeatures,
    pub(crate) inflight: Option<InflightArea>,
    pub(crate) log: Option<DirtyLog>,
    /// Requests that have been taken and not given back.
    pub(crate) live: u32,
    /// What it has of its shard's turns.
    pub(crate) share: Share,
    /// Queues that run; while there are any, features are frozen.
    pub(crate) running: u32,
    /// The queue whose base has been asked for, and since when.
    pub(crate) draining: Option<(u16, Instant)>,
    pub(crate) reply: Option<ControlReply>,
    /// The answer that was deferred. Not the same place: a message that came too early may have
    /// been refused in the meantime.
    pub(crate) late_reply: Option<ControlReply>,
    /// Broken queues that the shell has not been told of.
    pub(crate) broken: u32,
    /// Whether the front end has to hear that the configuration space is another.
    pub(crate) config_changed: bool,
    /// Whether the front end has read the configuration space.
    pub(crate) config_read: bool,
    /// Whether completed writes may be volatile, as the front end has been told or has said.
    pub(crate) writeback: Option<bool>,
    /// Whether the shell has to close the connection.
    pub(crate) evict: bool,
    /// Whether the shell has to hear that a new front end may come.
    pub(crate) left: bool,
    /// Whether it stands in the list of devices with effects.
    pub(crate) listed: bool,
    owner: bool,
    protocol: ProtocolFeatures,
}

impl Device {
    /// A place for a device.
    #[must_use]
    pub const fn vacant() -> Self {
        let config = DeviceConfig {
            image: ImageId(0),
            serial: [0; crate::blk::request::ID_BYTES],
            queues: 1,
        };
        Self::new(config)
    }

    pub(crate) const fn new(config: DeviceConfig) -> Self {
        Self {
            config,
            phase: Phase::Open,
            map: MemoryMap::new(),
            vrings: [Vring::NONE; QUEUES_PER_DEVICE_MAX as usize],
            features: BlkFeatures::empty(),
            inflight: None,
            log: None,
            live: 0,
            share: Share::NONE,
            running: 0,
            draining: None,
            reply: None,
            late_reply: None,
            broken: 0,
            config_changed: false,
            config_read: false,
            writeback: None,
            evict: false,
            left: false,
            listed: false,
            owner: false,
            protocol: ProtocolFeatures::empty(),
        }
    }

    /// The negotiated features.
    #[must_use]
    pub const fn features(&self) -> BlkFeatures {
        self.features
    }

    /// The negotiated protocol features.
    #[must_use]
    pub const fn protocol_features(&self) -> ProtocolFeatures {
        self.protocol
    }

    /// The answer that the shell has not polled yet.
    #[must_use]
    pub const fn pending_reply(&self) -> Option<ControlReply> {
        self.reply
    }

    /// Whether no front end has said anything yet.
    pub(crate) fn is_untouched(&self) -> bool {
        self.phase == Phase::Open
            && !self.owner
            && self.live == 0
            && self.map.regions().len() == 0
            && self.features().is_empty()
            && self.protocol.is_empty()
            && self.inflight.is_none()
            && self.log.is_none()
            && self.vrings.iter().all(|vring| !vring.has_queue() && !vring.enabled)
    }

    /// Gives up all memory of the front end, which shares it again if it goes on.
    //= spec/lifecycle.md#LIF-2
    pub(crate) fn begin_anew(&mut self) {
        if let Some(area) = self.inflight.take() {
            self.map.disown(area.region);
        }
        if let Some(log) = self.log.take() {
            self.map.disown(log.region);
        }
        self.map.clear();
    }

    /// Forgets the front end, whose memory has been given up.
    pub(crate) fn reset(&mut self) {
        self.phase = Phase::Open;
        self.vrings.fill(Vring::NONE);
        self.features = BlkFeatures::empty();
        self.draining = None;
        self.owner = false;
        self.protocol = ProtocolFeatures::empty();
        self.config_changed = false;
        self.config_read = false;
        self.writeback = None;
        self.evict = false;
    }

    /// Checks a message and takes in what concerns the device alone.
    //= spec/lifecycle.md#LIF-1
    //= spec/lifecycle.md#LIF-2
    pub(crate) fn control(
        &mut self,
        image: &ImageConfig,
        event: &ControlEvent,
    ) -> Result<Step, ControlFault> {
        use ControlEvent as E;
        if self.phase == Phase::Leaving {
            return Err(ControlFault::Leaving);
        }
        if self.draining.is_some() {
            return Err(ControlFault::Busy);
        }
        let answer = |reply| Ok(Step::Answer(reply));
        match *event {
            E::GetFeatures => answer(ControlReply::Value(BlkFeatures::offered(image).bits())),
            E::SetFeatures(bits) => self.set_features(image, bits),
            E::GetProtocolFeatures => answer(ControlReply::Value(ProtocolFeatures::all().bits())),
            E::SetProtocolFeatures(bits) => self.set_protocol(bits),
            E::GetQueueNum => answer(ControlReply::Value(self.config.queues.into())),
            E::GetMaxMemSlots => answer(ControlReply::Value(REGIONS_LIVE_MAX as u64)),
            E::GetConfig { .. } => answer(ControlReply::Config(self.show_config(image))),
            E::SetConfig { offset, size, value } => {
                let writeback = BlkConfig::written(offset, size, value)
                    .filter(|_| self.features.contains(BlkFeatures::CONFIG_WCE));
                Ok(Step::SetWriteback(writeback.ok_or(ControlFault::Config)?))
            }
            E::ResetOwner => answer(ControlReply::Done),
            E::SetBackendReq => {
                //= spec/lifecycle.md#LIF-16
                if !self.protocol.contains(ProtocolFeatures::BACKEND_REQ) {
                    return Err(ControlFault::Channel);
                }
                answer(ControlReply::Done)
            }
            E::SetOwner if self.owner && self.running == 0 => Ok(Step::BeginAnew),
            E::SetOwner => {
                self.owner = true;
                answer(ControlReply::Done)
            }
            _ if !self.owner => Err(ControlFault::Owner),
            E::SetMemTable(_) => Ok(Step::ReplaceTable),
            E::AddMemRegion(region) => {
                self.map.add(region).map_err(ControlFault::Memory)?;
                answer(ControlReply::Done)
            }
            E::RemoveMemRegion { guest, user, size } => {
                Ok(Step::RemoveRegion { guest, user, size })
            }
            E::SetVringNum { index, size } => {
                let index = self.index(index)?;
                let size = u16::try_from(size).map_err(|_| ControlFault::QueueSize)?;
                let possible = size.is_power_of_two() || self.packed() && size > 0;
                if !possible || size > QUEUE_SIZE_MAX {
                    return Err(ControlFault::QueueSize);
                }
                Ok(Step::SetSize { index, size })
            }
            E::SetVringBase { index, base } => {
                let index = self.index(index)?;
                if !self.packed() && base > u16::MAX.into() {
                    return Err(ControlFault::QueueBase);
                }
                Ok(Step::SetBase { index, base })
            }
            E::SetVringAddr { index, addresses } => {
                let index = self.index(index)?;
                Ok(Step::SetAddresses { index, addresses })
            }
            E::SetVringKick { index } => Ok(Step::Start { index: self.index(index)? }),
            E::SetVringCall { index } => Ok(Step::Notify { index: self.index(index)? }),
            E::SetVringErr { index } => {
                self.index(index)?;
                answer(ControlReply::Done)
            }
            E::SetVringEnable { index, enable } => {
                Ok(Step::Enable { index: self.index(index)?, enable })
            }
            E::GetVringBase { index } => Ok(Step::Stop { index: self.index(index)? }),
            E::SetLogBase { region, bytes } => {
                //= spec/migration.md#MIG-1
                if !self.protocol.contains(ProtocolFeatures::LOG_SHMFD) || bytes == 0 {
                    return Err(ControlFault::Log);
                }
                Ok(Step::SetLog(DirtyLog { region, bytes }))
            }
            E::GetInflight { .. } | E::SetInflight { .. } if !self.tracks() => {
                Err(ControlFault::Inflight)
            }
            //= spec/inflight.md#INF-1
            E::GetInflight { queues, .. } => {
                let queues = queues.min(QUEUES_PER_DEVICE_MAX).max(self.config.queues);
                Ok(Step::GetInflight { bytes: InflightArea::bytes(queues) })
            }
            //= spec/inflight.md#INF-2
            E::SetInflight { region, offset, len, queues, size } => {
                if self.running > 0 {
                    return Err(ControlFault::Inflight);
                }
                Ok(Step::SetInflight(InflightArea::new(region, (offset, len), queues, size)))
            }
        }
    }

    /// Whether requests in flight are to be recorded.
    pub(crate) const fn tracks(&self) -> bool {
        self.protocol.contains(ProtocolFeatures::INFLIGHT_SHMFD)
    }

    //= spec/lifecycle.md#LIF-17
    fn set_protocol(&mut self, bits: u64) -> Result<Step, ControlFault> {
        use ProtocolFeatures as P;
        let protocol = P::from_bits(bits).ok_or(ControlFault::NotOffered)?;
        if protocol.contains(P::GET_VRING_BASE_INFLIGHT) && !protocol.contains(P::INFLIGHT_SHMFD) {
            return Err(ControlFault::NotOffered);
        }
        self.protocol = protocol;
        Ok(Step::Answer(ControlReply::Done))
    }

    //= spec/lifecycle.md#LIF-4
    fn set_features(&mut self, image: &ImageConfig, bits: u64) -> Result<Step, ControlFault> {
        let features = BlkFeatures::from_bits(bits).ok_or(ControlFault::NotOffered)?;
        if !BlkFeatures::offered(image).contains(features) {
            return Err(ControlFault::NotOffered);
        }
        //= spec/migration.md#MIG-1
        if self.running > 0
            && !(features ^ self.features).difference(BlkFeatures::LOG_ALL).is_empty()
        {
            return Err(ControlFault::Running);
        }
        self.features = features;
        Ok(Step::Answer(ControlReply::Done))
    }

    /// Whoever reads the space before anything runs goes by it. Whoever reads it later may go by
    /// what it has said to an earlier daemon.
    fn show_config(&mut self, image: &ImageConfig) -> BlkConfig {
        if !core::mem::replace(&mut self.config_read, true) {
            self.writeback.get_or_insert(true);
        }
        let mut config = BlkConfig::new(image, self.config.queues);
        config.writeback = self.writeback.unwrap_or(true).into();
        config
    }

    /// Whether completed writes have to be stable: the driver cannot flush, or has chosen not to,
    /// or may have.
    //= spec/blk.md#BLK-19
    pub(crate) fn writes_through(&self) -> bool {
        let chooses = self.features.contains(BlkFeatures::CONFIG_WCE);
        !self.features.contains(BlkFeatures::FLUSH) || chooses && self.writeback != Some(true)
    }

    /// The dirty log, while writes are to be logged.
    //= spec/migration.md#MIG-1
    #[inline]
    pub(crate) fn dirty_log(&self) -> Option<&DirtyLog> {
        self.log.as_ref().filter(|_| self.features.contains(BlkFeatures::LOG_ALL))
    }

    //= spec/lifecycle.md#LIF-5
    fn index(&self, index: u32) -> Result<u16, ControlFault> {
        u16::try_from(index)
            .ok()
            .filter(|&index| index < self.config.queues)
            .ok_or(ControlFault::QueueIndex)
    }

    /// Whether rings are packed.
    pub(crate) const fn packed(&self) -> bool {
        self.features.contains(BlkFeatures::RING_PACKED)
    }

    /// Where a queue's ring goes on when it starts: at its beginning until somebody says more.
    pub(crate) fn base(&self, index: u16) -> u32 {
        let start = if self.packed() { PackedBase::START.bits() } else { 0 };
        self.vrings[usize::from(index)].base.unwrap_or(start)
    }

    /// Rings without a negotiated protocol start enabled.
    pub(crate) fn is_enabled(&self, index: u16) -> bool {
        !self.features.contains(BlkFeatures::PROTOCOL_FEATURES)
            || self.vrings[usize::from(index)].enabled
    }
}

/// Checks ring addresses for a queue of `size` entries and finds their places in `regions`.
//= spec/lifecycle.md#LIF-7
pub(crate) fn find_rings<'r>(
    regions: impl Iterator<Item = &'r Region> + Clone,
    addresses: &RingAddresses,
    size: u16,
    packed: bool,
) -> Result<Rings, ControlFault> {
    let RingAddresses { desc, avail, used } = *addresses;
    // Bytes of the parts, and the alignment of the available one.
    let (avail_bytes, used_bytes, avail_align) = if packed {
        (EVENT_BYTES, EVENT_BYTES, 4)
    } else {
        (avail_ring_bytes(size), used_ring_bytes(size), 2)
    };
    if desc % 16 != 0 || avail % avail_align != 0 || used % 4 != 0 {
        return Err(ControlFault::Alignment);
    }
    let find = |address, bytes| {
        find_user(regions.clone(), address, bytes).ok_or(ControlFault::RingNotShared)
    };
    Ok(Rings {
        desc: find(desc, desc_table_bytes(size))?,
        avail: find(avail, avail_bytes)?,
        used: find(used, used_bytes)?,
    })
}
