//! What front ends hand over: descriptors and memory.
//!
//! A call that works on something foreign may take as long as its owner likes. So nothing is taken
//! in whose kind does not bound that, what goes is taken care of by threads that nobody waits for,
//! and what one disk's front ends may have is bounded.

mod account;
pub(crate) mod kinds;
pub(crate) mod reaper;

pub use account::{Account, Descriptor, Exceeded, Pools, Quota, Taken};
