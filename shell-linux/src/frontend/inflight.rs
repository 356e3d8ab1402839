//! The record of requests in flight that a front end keeps for its back ends.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;

use sluice_core::inflight::{queue_bytes, region_bytes};
use sluice_core::limits::QUEUE_SIZE_MAX;
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
    /// What the area of a queue holds, in a region that this program's daemon has made.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn area(&self, index: u16, packed: bool) -> anyhow::Result<Vec<u8>> {
        let mut bytes = vec![0; usize::try_from(queue_bytes(QUEUE_SIZE_MAX, packed))?];
        let at = self.offset + region_bytes(index, QUEUE_SIZE_MAX, packed);
        File::from(self.fd.try_clone()?).read_exact_at(&mut bytes, at)?;
        Ok(bytes)
    }

    /// As messages have it.
    pub(super) fn describe(&self) -> VhostUserInflight {
        VhostUserInflight::new(self.bytes, self.offset, self.queues, self.size)
    }
}
