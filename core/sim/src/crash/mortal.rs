//! Memory of a process that is killed at a chosen moment.
//!
//! A moment is a store, or anything else that somebody outside can tell. What the process does
//! behind its last moment does not happen.

use core::cell::Cell;

use sluice_core::memory::{OutOfRegion, RegionId, SharedMemory};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::memory::FlatMemory;

/// A process by its moments.
#[derive(Debug)]
pub struct Life {
    spent: Cell<u64>,
    given: u64,
}

impl Life {
    /// A life of so many moments.
    #[must_use]
    pub const fn new(given: u64) -> Self {
        Self { spent: Cell::new(0), given }
    }

    /// Something is about to happen. Says whether it still does.
    pub fn moment(&self) -> bool {
        self.spent.set(self.spent.get() + 1);
        !self.is_over()
    }

    /// Whether something has not happened any more.
    #[must_use]
    pub const fn is_over(&self) -> bool {
        self.spent.get() > self.given
    }

    /// Moments so far, the one that did not happen included.
    #[must_use]
    pub const fn spent(&self) -> u64 {
        self.spent.get()
    }
}

/// The memory as that process has it.
#[derive(Debug)]
pub struct Mortal<'m> {
    /// Everybody's memory.
    pub inner: &'m FlatMemory,
    /// Who stores.
    pub life: &'m Life,
}

impl SharedMemory for Mortal<'_> {
    fn read<T: FromBytes + IntoBytes>(
        &self,
        region: RegionId,
        offset: u64,
    ) -> Result<T, OutOfRegion> {
        self.inner.read(region, offset)
    }

    fn write<T: IntoBytes + Immutable>(
        &self,
        region: RegionId,
        offset: u64,
        value: &T,
    ) -> Result<(), OutOfRegion> {
        if self.life.moment() { self.inner.write(region, offset, value) } else { Ok(()) }
    }

    fn load_acquire_u16(&self, region: RegionId, offset: u64) -> Result<u16, OutOfRegion> {
        self.inner.load_acquire_u16(region, offset)
    }

    fn store_release_u16(
        &self,
        region: RegionId,
        offset: u64,
        value: u16,
    ) -> Result<(), OutOfRegion> {
        if !self.life.moment() {
            return Ok(());
        }
        self.inner.store_release_u16(region, offset, value)
    }

    fn set_bits(&self, region: RegionId, offset: u64, bits: u8) -> Result<(), OutOfRegion> {
        if !self.life.moment() {
            return Ok(());
        }
        self.inner.set_bits(region, offset, bits)
    }

    fn full_fence(&self) {}
}
