//! The world around the core: guests, memory, clusters and the checkers that watch them.

pub mod arena;
pub mod driver;
pub mod hostile;
pub mod prng;
pub mod history;
pub mod memory;
pub mod negotiate;
pub mod ram;
pub mod reference;
pub mod rig;
pub mod watched;
