//! The world around the core: guests, memory, clusters and the checkers that watch them.

pub mod arena;
pub mod compare;
pub mod driver;
pub mod history;
pub mod hostile;
pub mod memory;
pub mod negotiate;
pub mod prng;
pub mod ram;
pub mod reference;
pub mod rig;
pub mod watched;
