//! Memory for the core's own tests: regions of bytes and nothing else.

use core::cell::RefCell;
use std::vec;
use std::vec::Vec;

use super::{OutOfRegion, RegionId, SharedMemory};
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// Regions by number, zeroed at first.
#[derive(Debug)]
pub(crate) struct Flat(RefCell<Vec<Vec<u8>>>);

impl Flat {
    /// One region for each length.
    pub(crate) fn new(lengths: &[usize]) -> Self {
        Self(RefCell::new(lengths.iter().map(|&len| vec![0; len]).collect()))
    }

    /// What a region holds.
    pub(crate) fn bytes(&self, region: RegionId) -> Vec<u8> {
        self.0.borrow()[region.0 as usize].clone()
    }

    fn with<R>(
        &self,
        (region, offset): (RegionId, u64),
        len: usize,
        access: impl FnOnce(&mut [u8]) -> R,
    ) -> Result<R, OutOfRegion> {
        let mut regions = self.0.borrow_mut();
        let region = regions.get_mut(region.0 as usize).ok_or(OutOfRegion)?;
        let start = usize::try_from(offset).map_err(|_| OutOfRegion)?;
        let end = start.checked_add(len).ok_or(OutOfRegion)?;
        region.get_mut(start..end).map(access).ok_or(OutOfRegion)
    }
}

impl SharedMemory for Flat {
    fn read<T: FromBytes + IntoBytes>(&self, region: RegionId, at: u64) -> Result<T, OutOfRegion> {
        let mut value = T::new_zeroed();
        let into = value.as_mut_bytes();
        self.with((region, at), into.len(), |bytes| into.copy_from_slice(bytes))?;
        Ok(value)
    }

    fn write<T: IntoBytes + Immutable>(
        &self,
        region: RegionId,
        at: u64,
        value: &T,
    ) -> Result<(), OutOfRegion> {
        let from = value.as_bytes();
        self.with((region, at), from.len(), |bytes| bytes.copy_from_slice(from))
    }

    fn load_acquire_u16(&self, region: RegionId, at: u64) -> Result<u16, OutOfRegion> {
        self.read::<[u8; 2]>(region, at).map(u16::from_le_bytes)
    }

    fn store_release_u16(&self, region: RegionId, at: u64, value: u16) -> Result<(), OutOfRegion> {
        self.write(region, at, &value.to_le_bytes())
    }

    fn set_bits(&self, region: RegionId, at: u64, bits: u8) -> Result<(), OutOfRegion> {
        self.with((region, at), 1, |byte| byte[0] |= bits)
    }

    fn full_fence(&self) {}
}
