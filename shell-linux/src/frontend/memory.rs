//! The memory of a guest that does not exist.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};

use anyhow::Context;
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use sluice_core::memory::RegionId;

use crate::mapping::{Mapping, Mappings};

/// The number of a guest's only region in every map of it.
pub const REGION: RegionId = RegionId(0);

/// Guest-physical address of the region. Neither 0 nor the user address, so that a back end that
/// takes one kind of address for the other is found out.
pub const GUEST: u64 = 0x4000_0000;

/// Front-end user address of the region. Nobody but the back end ever hears it.
const USER: u64 = 0x7ff0_0000_0000;

/// Shared memory that lives as long as this does, however many connections come and go.
#[derive(Debug)]
pub struct GuestMemory {
    file: File,
    size: u64,
}

impl GuestMemory {
    /// Memory of at least so many bytes.
    ///
    /// # Errors
    /// When there is not enough.
    pub fn new(bytes: u64) -> anyhow::Result<Self> {
        let size = bytes.next_multiple_of(2 << 20);
        let fd = memfd_create("sluice-guest", MemfdFlags::CLOEXEC).context("guest memory")?;
        ftruncate(&fd, size).with_context(|| format!("{size} bytes of guest memory"))?;
        Ok(Self { file: File::from(fd), size })
    }

    /// Maps it once more: a map is one thread's own.
    ///
    /// # Errors
    /// When the kernel will not.
    pub fn map(&self) -> anyhow::Result<Mappings> {
        let mapping = Mapping::new(self.file.try_clone()?.into(), 0, self.size)?;
        let mut mappings = Mappings::default();
        let region = mappings.insert(mapping);
        debug_assert_eq!(region, REGION);
        Ok(mappings)
    }

    /// Bytes.
    #[must_use]
    pub const fn size(&self) -> u64 {
        self.size
    }

    /// The front end's user address of an offset.
    pub(super) const fn user(&self, offset: u64) -> u64 {
        USER + offset
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}
