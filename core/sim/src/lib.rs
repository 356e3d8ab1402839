//! The world around the core: guests, memory, clusters and the checkers that watch them.

pub mod memory;
pub mod watched;
pub mod arena;
pub mod ram;
pub mod rig;
pub mod reference;
pub mod compare;
