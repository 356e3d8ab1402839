//! What is fuzzed: one function a target, from bytes to no panic.
//!
//! Every byte string is a valid input: it is decoded by [`bytes::Bytes`], which reads zeroes
//! behind the end. The functions need no fuzzer; a test replays them over the corpus.

pub mod bytes;
mod memory;
mod virtqueue;
mod blk_request;
mod slice;
mod control_events;
mod inflight_region;
mod parked_record;

pub use blk_request::blk_request;
pub use control_events::control_events;
pub use inflight_region::inflight_region;
pub use parked_record::parked_record;
pub use slice::slice;
pub use virtqueue::{virtqueue_packed, virtqueue_split};
