//! Aligned memory for operations whose own direct I/O does not take.
//!
//! It is a file in memory and mapped: guest memory is copied to and from it by the kernel, and
//! the mapping is what direct I/O gets.

use std::fs::File;

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::io::Errno;
use sluice_core::limits::PART_BYTES_MAX;

use super::work::Detour;
use crate::mapping::Mapping;

/// Room for operations of an image that take the detour at once; further ones wait.
const PLACES: u32 = 16;

/// Aligned places of one operation's length each; only what is used takes memory.
#[derive(Debug)]
pub(super) struct Asides {
    /// Made when it is first needed, which is never for most guests.
    memory: Option<(File, Mapping)>,
    free: Vec<u32>,
}

impl Default for Asides {
    fn default() -> Self {
        Self { memory: None, free: (0..PLACES).rev().collect() }
    }
}

impl Asides {
    /// A free place, the one used last.
    pub(super) fn take(&mut self) -> Option<u32> {
        self.free.pop()
    }

    pub(super) fn give_back(&mut self, place: u32) {
        self.free.push(place);
    }

    /// The memory of a place that has been taken.
    pub(super) fn detour(&mut self, place: u32) -> Result<Detour<'_>, Errno> {
        if self.memory.is_none() {
            self.memory = Some(make(u64::from(PLACES) * PART_BYTES_MAX)?);
        }
        let (file, mapping) = self.memory.as_ref().ok_or(Errno::NOMEM)?;
        let at = u64::from(place) * PART_BYTES_MAX;
        let range = mapping.iovec(at, PART_BYTES_MAX).map_err(|_| Errno::NOMEM)?;
        Ok(Detour { file, at, range })
    }
}

fn make(bytes: u64) -> Result<(File, Mapping), Errno> {
    let file = memfd_create(c"sluice-aside", MemfdFlags::CLOEXEC)?;
    ftruncate(&file, bytes)?;
    let mapping = file.try_clone().ok().and_then(|file| Mapping::new(file, 0, bytes).ok());
    Ok((File::from(file), mapping.ok_or(Errno::NOMEM)?))
}
