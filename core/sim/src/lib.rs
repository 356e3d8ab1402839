//! The world around the core: guests, memory, clusters and the checkers that watch them.

pub mod arena;
pub mod belt;
pub mod bus;
pub mod clock;
pub mod cluster;
pub mod compare;
pub mod crash;
pub mod crowd;
pub mod driver;
pub mod durable;
mod either;
pub mod front;
pub mod guest;
pub mod history;
pub mod hostile;
pub mod lives;
pub mod log;
pub mod memory;
pub mod migration;
pub mod negotiate;
pub mod options;
pub mod prng;
pub mod ram;
pub mod reference;
pub mod rig;
pub mod watched;
pub mod world;
