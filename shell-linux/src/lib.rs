//! The Linux shell around the core: syscalls, descriptors, threads and mappings.

pub mod cpu;
pub mod mailbox;
pub mod mapping;
pub mod sigbus;
pub mod sys;
