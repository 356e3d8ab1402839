//! Memory shared with front ends: mapping it, and the core's access to it.
//!
//! The only place where guest memory is touched through pointers. No reference to it is ever
//! formed: values are copied with volatile accesses, indices are atomics, payload is handed to
//! the kernel as ranges.

use core::sync::atomic::{AtomicU16, Ordering, fence};
use std::fs::File;
use std::os::fd::OwnedFd;

use crate::sigbus::Guarded;
use anyhow::{Context, ensure};
use rustix::fs::FileType;
use sluice_core::memory::{OutOfRegion, RegionId, Segment, SharedMemory};
use vm_memory::{FileOffset, MmapRegion};
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// One mapped piece of a front end's memory; unmapped when dropped.
#[derive(Debug)]
pub struct Mapping {
    // Dropped first: an address that is unmapped is not guarded any more.
    guard: Guarded,
    region: MmapRegion,
}

impl Mapping {
    /// Maps `size` bytes of `fd` from `offset` on, after checking that they are there.
    ///
    /// # Errors
    /// When `fd` is not a regular file (a memfd is one), is shorter than `offset + size`, or
    /// cannot be mapped for reading and writing.
    //= spec/lifecycle.md#LIF-8
    pub fn new(fd: OwnedFd, offset: u64, size: u64) -> anyhow::Result<Self> {
        let stat = rustix::fs::fstat(&fd).context("memory descriptor")?;
        let kind = FileType::from_raw_mode(stat.st_mode);
        ensure!(kind == FileType::RegularFile, "memory descriptor is no file but {kind:?}");
        let end = offset.checked_add(size).context("memory region wraps")?;
        let length = u64::try_from(stat.st_size).unwrap_or(0);
        ensure!(end <= length, "memory file has {length} bytes, the region ends at {end}");
        let size = usize::try_from(size).context("memory region is too large")?;
        let file = FileOffset::new(File::from(fd), offset);
        let region = MmapRegion::from_file(file, size).context("mapping guest memory")?;
        let guard = Guarded::new(region.as_ptr().addr(), size).context("too many mappings")?;
        Ok(Self { guard, region })
    }

    /// Whether the front end has taken the memory back.
    #[must_use]
    pub fn is_lost(&self) -> bool {
        self.guard.is_lost()
    }

    /// Bytes.
    #[must_use]
    pub fn size(&self) -> usize {
        self.region.size()
    }
}

/// The mappings of one shard, by the number the core knows them by.
#[derive(Debug, Default)]
pub struct Mappings {
    slots: Vec<Slot>,
}

#[derive(Debug)]
struct Slot {
    /// Null and of no length while the slot is free. Points into `mapping`.
    start: *mut u8,
    len: u64,
    mapping: Option<Mapping>,
}

impl Slot {
    const FREE: Self = Self { start: core::ptr::null_mut(), len: 0, mapping: None };
}

impl Mappings {
    /// Takes a mapping over and numbers it.
    ///
    /// # Panics
    /// With 2^32 mappings.
    pub fn insert(&mut self, mapping: Mapping) -> RegionId {
        let free = self.slots.iter().position(|slot| slot.mapping.is_none());
        let index = free.unwrap_or_else(|| {
            self.slots.push(Slot::FREE);
            self.slots.len() - 1
        });
        self.slots[index] = Slot {
            start: mapping.region.as_ptr(),
            len: mapping.size() as u64,
            mapping: Some(mapping),
        };
        RegionId(u32::try_from(index).expect("fewer than 2^32 mappings"))
    }

    /// Unmaps; the number may be used again.
    pub fn remove(&mut self, id: RegionId) {
        self.slots[id.0 as usize] = Slot::FREE;
    }

    /// Mappings there are.
    pub fn iter(&self) -> impl Iterator<Item = (RegionId, &Mapping)> {
        (0..).zip(&self.slots).filter_map(|(id, slot)| Some((RegionId(id), slot.mapping.as_ref()?)))
    }

    /// A segment as the kernel takes it.
    ///
    /// # Errors
    /// [`OutOfRegion`]
    #[inline]
    pub fn iovec(&self, segment: Segment) -> Result<libc::iovec, OutOfRegion> {
        let start = self.find(segment.region(), segment.offset, u64::from(segment.len))?;
        Ok(libc::iovec { iov_base: start.cast(), iov_len: segment.len as usize })
    }

    /// The address of `len` bytes that lie inside one mapping.
    #[inline]
    fn find(&self, region: RegionId, offset: u64, len: u64) -> Result<*mut u8, OutOfRegion> {
        let slot = self.slots.get(region.0 as usize).ok_or(OutOfRegion)?;
        if offset.checked_add(len).is_none_or(|end| end > slot.len) {
            return Err(OutOfRegion);
        }
        // SAFETY: `offset + len` is at most the length of the mapping that `start` begins, and
        // the mapping lives in the slot.
        Ok(unsafe { slot.start.add(usize::try_from(offset).map_err(|_| OutOfRegion)?) })
    }

    /// The index at an even place of a mapping.
    #[inline]
    fn index(&self, region: RegionId, offset: u64) -> Result<&AtomicU16, OutOfRegion> {
        let start = self.find(region, offset, 2)?.cast::<u16>();
        if !start.is_aligned() {
            return Err(OutOfRegion);
        }
        // SAFETY: two aligned bytes of a live mapping; other parties access them as one index.
        Ok(unsafe { AtomicU16::from_ptr(start) })
    }
}

impl SharedMemory for Mappings {
    #[inline]
    fn read<T: FromBytes + IntoBytes>(
        &self,
        region: RegionId,
        offset: u64,
    ) -> Result<T, OutOfRegion> {
        let from = self.find(region, offset, size_of::<T>() as u64)?;
        let mut value = T::new_zeroed();
        let into = value.as_mut_bytes();
        if size_of::<T>().is_multiple_of(8) && from.cast::<u64>().is_aligned() {
            for (word, at) in into.chunks_exact_mut(8).zip(0..) {
                // SAFETY: the word lies inside the checked, aligned range.
                let read = unsafe { from.cast::<u64>().add(at).read_volatile() };
                word.copy_from_slice(&read.to_ne_bytes());
            }
        } else if size_of::<T>() == 2 && from.cast::<u16>().is_aligned() {
            // SAFETY: the two bytes lie inside the checked, aligned range.
            let read = unsafe { from.cast::<u16>().read_volatile() };
            into.copy_from_slice(&read.to_ne_bytes());
        } else {
            for (byte, at) in into.iter_mut().zip(0..) {
                // SAFETY: the byte lies inside the checked range.
                *byte = unsafe { from.add(at).read_volatile() };
            }
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
        let into = self.find(region, offset, size_of::<T>() as u64)?;
        let from = value.as_bytes();
        if size_of::<T>().is_multiple_of(8) && into.cast::<u64>().is_aligned() {
            for (word, at) in from.chunks_exact(8).zip(0..) {
                let value = u64::from_ne_bytes(word.try_into().expect("eight bytes"));
                // SAFETY: the word lies inside the checked, aligned range.
                unsafe { into.cast::<u64>().add(at).write_volatile(value) };
            }
        } else if size_of::<T>() == 2 && into.cast::<u16>().is_aligned() {
            let value = u16::from_ne_bytes(from.try_into().expect("two bytes"));
            // SAFETY: the two bytes lie inside the checked, aligned range.
            unsafe { into.cast::<u16>().write_volatile(value) };
        } else {
            for (&byte, at) in from.iter().zip(0..) {
                // SAFETY: the byte lies inside the checked range.
                unsafe { into.add(at).write_volatile(byte) };
            }
        }
        Ok(())
    }

    #[inline]
    fn load_acquire_u16(&self, region: RegionId, offset: u64) -> Result<u16, OutOfRegion> {
        Ok(u16::from_le(self.index(region, offset)?.load(Ordering::Acquire)))
    }

    #[inline]
    fn store_release_u16(
        &self,
        region: RegionId,
        offset: u64,
        value: u16,
    ) -> Result<(), OutOfRegion> {
        self.index(region, offset)?.store(value.to_le(), Ordering::Release);
        Ok(())
    }

    #[inline]
    fn full_fence(&self) {
        fence(Ordering::SeqCst);
    }

    #[inline]
    fn prefetch(&self, region: RegionId, offset: u64) {
        #[cfg(target_arch = "x86_64")]
        if let Ok(address) = self.find(region, offset, 1) {
            use core::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
            // SAFETY: a prefetch never faults, and the address lies in a mapping anyway.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(address.cast()) };
        }
        #[cfg(not(target_arch = "x86_64"))]
        let _ = (region, offset);
    }
}
