//! What comes back from a device, well or broken.

use sluice_core::memory::OutOfRegion;

/// What a status byte holds until the device writes it: no status there is.
pub const STATUS_UNTOUCHED: u8 = 0xff;

/// A request under way: the head of its chain, below the ring's size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Tag(pub u16);

/// A request that came back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Completion {
    /// Which.
    pub tag: Tag,
    /// Its status byte, [`STATUS_UNTOUCHED`] if the device wrote none.
    pub status: u8,
    /// Bytes that the device says it wrote.
    pub used_len: u32,
}

/// How a device broke the queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The used index moved by more than there is under way.
    UsedIndexJump {
        /// Where it was.
        from: u16,
        /// Where it is.
        to: u16,
    },
    /// A used entry names a descriptor that does not exist.
    BadId(u32),
    /// A used entry names a chain that is not under way: given back twice, or never sent.
    NotInFlight(Tag),
    /// The rings are no longer mapped.
    Unmapped,
}

impl From<OutOfRegion> for Fault {
    fn from(_: OutOfRegion) -> Self {
        Self::Unmapped
    }
}

impl core::fmt::Display for Fault {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::UsedIndexJump { from, to } => {
                write!(f, "the device moved its used index from {from} to {to}")
            }
            Self::BadId(id) => write!(f, "the device gave back descriptor {id}: there is none"),
            Self::NotInFlight(Tag(head)) => {
                write!(f, "the device gave back chain {head}, which is not under way")
            }
            Self::Unmapped => f.write_str("the rings are not mapped"),
        }
    }
}

impl core::error::Error for Fault {}
