//! A vhost-user front end of our own, for any vhost-user-blk back end: real memory, real rings,
//! real eventfds, and the project's one driver model in the rings.
//!
//! What belongs to the guest ([`GuestMemory`], [`Queue`]) is apart from the [`Connection`], so
//! that a guest can lose its back end and go on with the next one.

mod wire;
mod memory;
mod inflight;
mod queue;
mod connection;
mod running;

pub use connection::Connection;
pub use inflight::InflightRegion;
pub use memory::{GUEST, GuestMemory, REGION};
pub use queue::{Queue, Wires};
