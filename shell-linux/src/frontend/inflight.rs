//! The record of requests in flight that a front end keeps for its back ends.

use std::os::fd::OwnedFd;

use vhost::vhost_user::message::VhostUserInflight;

/// A region that one back end made and all later ones are given. Like the memory it outlives
/// connections.
#[derive(Debug)]
pub struct InflightRegion {
    pub(super) fd: OwnedFd,
    pub(super) bytes: u64,
    pub(super) offset: u64,
    pub(super) queues: u16,
    pub(super) size: u16,
}

impl InflightRegion {
    /// As messages have it.
    pub(super) fn describe(&self) -> VhostUserInflight {
        VhostUserInflight::new(self.bytes, self.offset, self.queues, self.size)
    }
}
