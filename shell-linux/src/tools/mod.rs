//! The commands, one file each.

pub mod bench;
pub mod demo;
pub mod qemu_args;
pub mod serve_one;
pub mod verify;

mod checked;
mod consent;
mod guest;
mod load;
mod plan;
