//! The commands, one file each.

pub mod demo;
pub mod image;
pub mod qemu_args;
pub mod serve_one;
