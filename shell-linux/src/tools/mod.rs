//! The commands, one file each.

pub mod bench;
//pub mod verify;

mod consent;
mod guest;
mod load;
