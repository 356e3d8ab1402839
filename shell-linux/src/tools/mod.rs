//! The commands, one file each.

mod consent;
mod guest;
mod load;
pub mod bench;
pub mod demo;
pub mod image;
pub mod qemu_args;
pub mod serve_one;
