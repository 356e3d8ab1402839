//! The Linux shell around the core: syscalls, descriptors, threads and mappings.

pub mod mailbox;
pub mod mapping;
pub mod control;
pub mod socket;
