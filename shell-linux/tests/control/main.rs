//! The control thread against front ends that are slow, wrong, hostile or gone.
//!
//! Numbers in the names of tests are those of the project's list of bad input.

#[path = "../support/mod.rs"]
mod support;

#[path = "../store/fuse.rs"]
#[expect(dead_code, reason = "tests of stores use the rest")]
mod fuse;
#[path = "../store/room.rs"]
mod room;

mod channel;
mod descriptors;
mod framing;
mod inflight;
mod leaving;
mod log;
mod meaning;
mod parking;
mod repeat;
mod outsiders;
mod sockets;
mod stuck;
