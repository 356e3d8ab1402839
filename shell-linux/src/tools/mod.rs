//! The commands, one file each.

mod checked;
mod clock;
mod consent;
pub mod ending;
mod kill;
mod link;
mod load;
mod plan;
mod report;
mod shared;
mod talk;
mod shell;
pub mod bench;
pub mod cleanup;
pub mod demo;
pub mod front_ends;
pub mod guest;
pub mod image;
pub mod qemu_args;
pub mod serve_one;
pub mod verify;
