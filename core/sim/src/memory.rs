//! Memory shared between the core and its guests, as bytes in cells.

use core::cell::Cell;
use core::sync::atomic::{Ordering, fence};

use sluice_core::memory::{OutOfRegion, RegionId, SharedMemory};
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// Flat regions, numbered in the order they were added.
///
/// The cheapest memory there is: what benchmarks and plain tests use.
#[derive(Debug, Default)]
pub struct FlatMemory {
    regions: Vec<Box<[Cell<u8>]>>,
}

impl FlatMemory {
    /// One region for each length, filled with `0xaa`: nobody should count on zeroes.
    #[must_use]
    pub fn new(lengths: &[usize]) -> Self {
        let regions = lengths.iter().map(|&len| vec![Cell::new(0xaa); len].into()).collect();
        Self { regions }
    }

    #[inline]
    fn bytes(&self, region: RegionId, offset: u64, len: usize) -> Result<&[Cell<u8>], OutOfRegion> {
        let region = self.regions.get(region.0 as usize).ok_or(OutOfRegion)?;
        let start = usize::try_from(offset).map_err(|_| OutOfRegion)?;
        let end = start.checked_add(len).ok_or(OutOfRegion)?;
        region.get(start..end).ok_or(OutOfRegion)
    }

    /// Copies bytes out.
    ///
    /// # Panics
    /// Outside the regions.
    #[must_use]
    pub fn dump(&self, region: RegionId, offset: u64, len: usize) -> Vec<u8> {
        let bytes = self.bytes(region, offset, len).expect("inside a region");
        bytes.iter().map(Cell::get).collect()
    }

    /// Copies bytes in.
    ///
    /// # Panics
    /// Outside the regions.
    pub fn fill(&self, region: RegionId, offset: u64, from: &[u8]) {
        let bytes = self.bytes(region, offset, from.len()).expect("inside a region");
        for (cell, &byte) in bytes.iter().zip(from) {
            cell.set(byte);
        }
    }
}

impl SharedMemory for FlatMemory {
    #[inline]
    fn read<T: FromBytes + IntoBytes>(
        &self,
        region: RegionId,
        offset: u64,
    ) -> Result<T, OutOfRegion> {
        let mut value = T::new_zeroed();
        let from = self.bytes(region, offset, size_of::<T>())?;
        for (byte, cell) in value.as_mut_bytes().iter_mut().zip(from) {
            *byte = cell.get();
        }
        Ok(value)
    }

    #[inline]
    fn write<T: IntoBytes + Immutable>(
        &self,
        region: RegionId,
        offset: u64,
        value: &T,
    ) -> Result<(), OutOfRegion> {
        let into = self.bytes(region, offset, size_of::<T>())?;
        for (cell, &byte) in into.iter().zip(value.as_bytes()) {
            cell.set(byte);
        }
        Ok(())
    }

    #[inline]
    fn load_acquire_u16(&self, region: RegionId, offset: u64) -> Result<u16, OutOfRegion> {
        if !offset.is_multiple_of(2) {
            return Err(OutOfRegion);
        }
        self.read::<[u8; 2]>(region, offset).map(u16::from_le_bytes)
    }

    #[inline]
    fn store_release_u16(
        &self,
        region: RegionId,
        offset: u64,
        value: u16,
    ) -> Result<(), OutOfRegion> {
        if !offset.is_multiple_of(2) {
            return Err(OutOfRegion);
        }
        self.write(region, offset, &value.to_le_bytes())
    }

    fn set_bits(&self, region: RegionId, offset: u64, bits: u8) -> Result<(), OutOfRegion> {
        let byte: u8 = self.read(region, offset)?;
        self.write(region, offset, &(byte | bits))
    }

    #[inline]
    fn full_fence(&self) {
        fence(Ordering::SeqCst);
    }
}
