//! The Linux shell around the core: syscalls, descriptors, threads and mappings.

pub mod control;
pub mod cpu;
pub mod foreign;
pub mod frontend;
pub mod image;
pub mod log;
pub mod mailbox;
pub mod mapping;
pub mod notify;
pub mod open_files;
pub mod output;
pub mod parking;
pub mod shard_loop;
pub mod sigbus;
pub mod size;
pub mod socket;
pub mod store;
pub mod sys;
pub mod tools;
