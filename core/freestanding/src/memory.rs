//! Guest memory that C code has shared: one region, reached by raw pointers only.

use core::sync::atomic::{AtomicU8, AtomicU16, Ordering, fence};

use sluice_core::memory::{OutOfRegion, RegionId, SharedMemory};
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// The only region there is.
pub(crate) const GUEST: RegionId = RegionId(0);

/// Bytes that the guest writes at the same time.
pub(crate) struct Guest {
    base: *mut u8,
    size: usize,
}

impl Guest {
    /// Memory at `base`.
    ///
    /// # Safety
    /// `base` points to `size` bytes that stay mapped, and no Rust reference to them exists.
    pub(crate) const unsafe fn new(base: *mut u8, size: usize) -> Self {
        Self { base, size }
    }

    pub(crate) const fn size(&self) -> u64 {
        self.size as u64
    }

    /// A pointer to `len` bytes, all of them inside.
    fn at(&self, region: RegionId, offset: u64, len: usize) -> Result<*mut u8, OutOfRegion> {
        let start = usize::try_from(offset).map_err(|_| OutOfRegion)?;
        let end = start.checked_add(len).ok_or(OutOfRegion)?;
        if region != GUEST || end > self.size {
            return Err(OutOfRegion);
        }
        Ok(self.base.wrapping_add(start))
    }

    /// A 16-bit index, aligned where it lies in the host.
    fn index(&self, region: RegionId, offset: u64) -> Result<&AtomicU16, OutOfRegion> {
        let at = self.at(region, offset, 2)?.cast::<u16>();
        if !at.is_aligned() {
            return Err(OutOfRegion);
        }
        // SAFETY: two bytes inside, aligned; an atomic may be shared with whoever writes them.
        Ok(unsafe { AtomicU16::from_ptr(at) })
    }
}

impl SharedMemory for Guest {
    fn read<T: FromBytes + IntoBytes>(
        &self,
        region: RegionId,
        offset: u64,
    ) -> Result<T, OutOfRegion> {
        let from = self.at(region, offset, size_of::<T>())?;
        let mut value = T::new_zeroed();
        for (at, byte) in value.as_mut_bytes().iter_mut().enumerate() {
            // SAFETY: inside; volatile, because the guest may write it at this moment.
            *byte = unsafe { from.wrapping_add(at).read_volatile() };
        }
        Ok(value)
    }

    fn write<T: IntoBytes + Immutable>(
        &self,
        region: RegionId,
        offset: u64,
        value: &T,
    ) -> Result<(), OutOfRegion> {
        let to = self.at(region, offset, size_of::<T>())?;
        for (at, &byte) in value.as_bytes().iter().enumerate() {
            // SAFETY: inside; volatile, because the guest may read it at this moment.
            unsafe { to.wrapping_add(at).write_volatile(byte) };
        }
        Ok(())
    }

    fn load_acquire_u16(&self, region: RegionId, offset: u64) -> Result<u16, OutOfRegion> {
        Ok(u16::from_le(self.index(region, offset)?.load(Ordering::Acquire)))
    }

    fn store_release_u16(
        &self,
        region: RegionId,
        offset: u64,
        value: u16,
    ) -> Result<(), OutOfRegion> {
        self.index(region, offset)?.store(value.to_le(), Ordering::Release);
        Ok(())
    }

    fn set_bits(&self, region: RegionId, offset: u64, bits: u8) -> Result<(), OutOfRegion> {
        let at = self.at(region, offset, 1)?;
        // SAFETY: a byte inside; an atomic may be shared with whoever writes it.
        unsafe { AtomicU8::from_ptr(at) }.fetch_or(bits, Ordering::AcqRel);
        Ok(())
    }

    fn full_fence(&self) {
        fence(Ordering::SeqCst);
    }
}
