//! The core of sluice: virtqueues to block operations and back.
//!
//! The modules stand in the order in which a request passes them: a belt that runs one way.
//! Each hands the place of what it works on to the next and never calls back.
//!
//! ```text
//! available ring -> chain -> blk request -> parts (cut on demand) -> PG -> primary -> ops
//!                                                                                     |
//!     notify <- used ring <- inflight <- status byte <- join <- parts done <- replies <+
//! ```
//!
//! The core is a state machine. Time, memory and messages come in as arguments, effects go out
//! as values; there is no allocation, no callback, no lock and no unsafe code. The one trait is
//! [`memory::SharedMemory`], the one engine is [`shard::Shard`].
#![no_std]
#![forbid(unsafe_code)]

#[cfg(test)]
extern crate std;

pub mod limits;
pub mod time;
pub mod memory;
pub mod dirty;
pub mod slots;
mod either;
pub mod virtqueue;
pub mod inflight;
pub mod blk;
pub mod image;
pub mod placement;
pub mod op;
pub mod request;
mod complete;
pub mod gate;
pub mod device;
pub mod shard;
pub mod trace;
pub mod planted;
