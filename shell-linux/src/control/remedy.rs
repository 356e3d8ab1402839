//! What went wrong with a front end, in an operator's words, and what to do about it.

use core::fmt;

use sluice_core::device::ControlFault;
use sluice_core::memory::MapFault;

use crate::foreign::Exceeded;

/// Why a message was refused.
#[derive(Debug)]
pub(super) enum Refusal {
    /// The core said no.
    Core(ControlFault),
    /// Memory that cannot be mapped.
    Memory(anyhow::Error),
    /// Too much of something.
    Limit(Exceeded),
    /// A ring's descriptor that cannot be used.
    Ring(anyhow::Error),
    /// An inflight region that cannot be mapped.
    Inflight(anyhow::Error),
    /// A dirty log that cannot be mapped.
    Log(anyhow::Error),
    /// A channel that cannot be used.
    Channel(anyhow::Error),
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use ControlFault as F;
        let text = match self {
            Self::Memory(error)
            | Self::Ring(error)
            | Self::Inflight(error)
            | Self::Log(error)
            | Self::Channel(error) => return write!(f, "{error:#}"),
            Self::Limit(exceeded) => return write!(f, "{exceeded}"),
            Self::Core(fault) => match fault {
                F::Owner => "a message out of turn: who owns the device?",
                F::NotOffered => "features that were not offered",
                F::Running => "a change to a queue that runs",
                F::QueueIndex => "a queue that the disk does not have",
                F::QueueSize => "a queue size that is no power of two or too large",
                F::QueueBase => "a queue base of more than 16 bits",
                F::Order => "a queue that is started before it has a size and addresses",
                F::Alignment => "ring addresses that are not aligned",
                F::RingNotShared => "rings that lie outside shared memory",
                F::QueuePool => "more queues than the shard has room for",
                F::Memory(MapFault::BadRange) => "a memory region that is empty or wraps",
                F::Memory(MapFault::Overlap) => "memory regions that overlap",
                F::Memory(MapFault::Full) => "too many memory regions",
                F::Memory(MapFault::Unknown) => "the removal of a memory region there is none of",
                F::RegionInUse => "the removal of memory that holds a running ring",
                F::Config => "a change to a configuration field that is read-only",
                F::Leaving => "a message of a front end that has gone",
                F::Busy => "a message while the answer to another is due",
                F::Inflight => "an inflight region that does not fit the queues",
                F::Channel => "a channel for the device that was not negotiated",
                F::Log => "a dirty log that was not negotiated",
            },
        };
        f.write_str(text)
    }
}

/// What an operator can do.
pub(super) fn remedy(refusal: &Refusal) -> &'static str {
    use ControlFault as F;
    const SHARE: &str = "start the virtual machine with shared memory \
        (QEMU: -object memory-backend-memfd,id=mem,size=...,share=on -machine memory-backend=mem)";
    match refusal {
        Refusal::Core(F::RingNotShared) | Refusal::Memory(_) => SHARE,
        Refusal::Limit(_) => {
            "if it is what the virtual machine needs, start this program with a higher limit"
        }
        Refusal::Core(F::QueueIndex | F::QueuePool) => {
            "give the disk's front end fewer queues (QEMU: num-queues=)"
        }
        Refusal::Core(F::QueueSize) => "give its queues another size (QEMU: queue-size=)",
        Refusal::Core(F::Memory(MapFault::Full)) => "give the virtual machine fewer memory devices",
        Refusal::Core(_)
        | Refusal::Ring(_)
        | Refusal::Inflight(_)
        | Refusal::Log(_)
        | Refusal::Channel(_) => {
            "this looks like a fault of the front end: please report it with its version"
        }
    }
}
