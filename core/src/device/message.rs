//! vhost-user messages as the core hears them: without their file descriptors, which stay in the
//! shell.

use bitflags::bitflags;

use crate::blk::config::BlkConfig;
use crate::limits::REGIONS_LIVE_MAX;
use crate::memory::{MapFault, Region, RegionId};

bitflags! {
    /// vhost-user protocol features that are implemented; no other bit is ever offered, because
    /// front ends acknowledge whatever they have heard of.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    pub struct ProtocolFeatures: u64 {
        /// Several queues.
        const MQ = 1 << 0;
        /// A dirty log is lent as shared memory.
        const LOG_SHMFD = 1 << 1;
        /// Messages may ask for an acknowledgement.
        const REPLY_ACK = 1 << 3;
        /// The front end listens for what the device has to say.
        const BACKEND_REQ = 1 << 5;
        /// The configuration space is read by message.
        const CONFIG = 1 << 9;
        /// What is under way is recorded in memory that outlives the daemon.
        const INFLIGHT_SHMFD = 1 << 12;
        /// Memory regions come and go one by one.
        const CONFIGURE_MEM_SLOTS = 1 << 15;
        /// A stop may leave requests in the inflight region. Not without one.
        const GET_VRING_BASE_INFLIGHT = 1 << 20;
    }
}

/// A list of memory regions as one message carries it.
pub type RegionList = heapless::Vec<Region, REGIONS_LIVE_MAX>;

/// Ring addresses in the front end's user address space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct RingAddresses {
    /// Descriptor table.
    pub desc: u64,
    /// Available ring.
    pub avail: u64,
    /// Used ring.
    pub used: u64,
}

/// A vhost-user message, file descriptors left behind in the shell. `index` is a queue's number
/// as the message has it, unchecked.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the fields are those of the messages")]
#[expect(clippy::large_enum_variant, reason = "a message is rare, and there is no box")]
pub enum ControlEvent {
    SetOwner,
    ResetOwner,
    GetFeatures,
    SetFeatures(u64),
    GetProtocolFeatures,
    SetProtocolFeatures(u64),
    GetQueueNum,
    GetMaxMemSlots,
    SetMemTable(RegionList),
    AddMemRegion(Region),
    RemoveMemRegion {
        guest: u64,
        user: u64,
        size: u64,
    },
    GetConfig {
        offset: u32,
        size: u32,
    },
    /// `value` is the first of the bytes.
    SetConfig {
        offset: u32,
        size: u32,
        value: u8,
    },
    /// A channel on which the device may speak.
    SetBackendReq,
    /// A dirty log of so many bytes, mapped by the shell.
    SetLogBase {
        region: RegionId,
        bytes: u64,
    },
    SetVringNum {
        index: u32,
        size: u32,
    },
    SetVringBase {
        index: u32,
        base: u32,
    },
    SetVringAddr {
        index: u32,
        addresses: RingAddresses,
    },
    SetVringKick {
        index: u32,
    },
    SetVringCall {
        index: u32,
    },
    SetVringErr {
        index: u32,
    },
    SetVringEnable {
        index: u32,
        enable: bool,
    },
    GetVringBase {
        index: u32,
    },
    /// How large is an inflight region for `queues` queues of `size` entries? The answer is a
    /// [`ControlReply::Value`]; the shell makes a region of so many bytes, all zeroes, and hands
    /// it out from offset 0.
    GetInflight {
        queues: u16,
        size: u16,
    },
    /// An inflight region, mapped by the shell: its areas begin `offset` bytes into the mapping,
    /// which is `len` bytes long.
    SetInflight {
        region: RegionId,
        offset: u64,
        len: u64,
        queues: u16,
        size: u16,
    },
}

/// The answer to a control event. Each event gets exactly one, `Deferred` not counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ControlReply {
    /// Done, nothing to say.
    Done,
    /// A number.
    Value(u64),
    /// The configuration space.
    Config(BlkConfig),
    /// The answer comes when the queue has drained.
    Deferred,
    /// Where a stopped queue stands.
    VringBase {
        /// The queue.
        index: u16,
        /// Its next available index; of a packed ring both places as the message carries them.
        base: u32,
    },
    /// Refused.
    Refused(ControlFault),
}

/// Why a message was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum ControlFault {
    /// A message that needs an owner before there was one.
    Owner,
    /// Feature bits that were never offered.
    NotOffered,
    /// Features, size, base or addresses of a queue that is running.
    Running,
    /// No such queue.
    QueueIndex,
    /// A queue size of 0, over the maximum, or no power of two where the ring is split.
    QueueSize,
    /// A base that is not a 16-bit index, or that no packed ring of the size can be at.
    QueueBase,
    /// Addresses before a size, or a start before addresses.
    Order,
    /// Ring addresses that are misaligned.
    Alignment,
    /// Ring addresses outside shared memory: the front end has to share its guest's memory.
    RingNotShared,
    /// The shard has no room for another queue.
    QueuePool,
    /// A memory table that is refused.
    Memory(MapFault),
    /// A region that holds a running ring.
    RegionInUse,
    /// A part of the configuration space that does not exist or cannot be written.
    Config,
    /// A message while the last front end has not gone.
    Leaving,
    /// A message while another's answer is still due.
    Busy,
    /// An inflight region that does not fit, or was not negotiated.
    Inflight,
    /// A dirty log without a byte, or one that was not negotiated.
    Log,
    /// A channel for the device that was not negotiated.
    Channel,
}

impl ControlFault {
    /// Whether the connection cannot go on. The other faults leave everything as it was, and
    /// the front end may go on if it hears of them.
    //= spec/lifecycle.md#LIF-3
    #[must_use]
    pub const fn closes(self) -> bool {
        matches!(
            self,
            Self::NotOffered | Self::Running | Self::Leaving | Self::Busy | Self::QueueIndex
        )
    }

    /// Whether the device can be served though the front end does not hear of the refusal: nothing
    /// that either does later rests on it.
    //= spec/lifecycle.md#LIF-18
    #[must_use]
    pub const fn is_harmless(self) -> bool {
        matches!(self, Self::Config | Self::Channel | Self::Memory(MapFault::Unknown))
    }
}
