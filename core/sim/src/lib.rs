//! The world around the core: guests, memory, clusters and the checkers that watch them.

pub mod memory;
pub mod arena;
pub mod driver;
pub mod hostile;
