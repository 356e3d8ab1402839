//! Memory shared with front ends: mapping it, and the core's access to it.
//!
//! The only place where guest memory is touched through pointers. No reference to it is ever
//! formed: values are copied with volatile accesses, indices are atomics, payload is handed to
//! the kernel as ranges.

use core::mem::ManuallyDrop;
use core::sync::atomic::{AtomicU8, AtomicU16, Ordering, fence};
use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use anyhow::Context;
use rustix::mm::Advice;
use sluice_core::memory::{OutOfRegion, RegionId, Segment, SharedMemory};
use vm_memory::{FileOffset, MmapRegion};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::foreign::kinds::{Use, check_memory};
use crate::foreign::reaper::{self, Grave};
use crate::foreign::{Account, Taken};
use crate::sigbus::Guarded;

/// The largest page of any Linux: its multiples are whole pages everywhere.
const PAGE_BYTES_MAX: usize = 64 << 10;

/// Bytes that are unmapped at a time. Whoever maps something waits for one of them.
const SLICE_BYTES: usize = 16 << 20;

/// One mapped piece of memory. That of a front end is unmapped by another thread when this is
/// dropped.
#[derive(Debug)]
pub struct Mapping {
    body: ManuallyDrop<Body>,
    grave: Option<Arc<Grave>>,
}

/// What has to be unmapped.
#[derive(Debug)]
pub(crate) struct Body {
    // Dropped first: an address that is unmapped is not guarded any more.
    guard: Option<Guarded>,
    region: MmapRegion,
    /// What its owner has of it.
    _taken: Option<Box<(Taken, Taken)>>,
}

impl Body {
    /// Maps a file that has been checked.
    fn new(
        fd: OwnedFd,
        offset: u64,
        size: u64,
        taken: Option<Box<(Taken, Taken)>>,
    ) -> anyhow::Result<Self> {
        let size = usize::try_from(size).context("a memory region is too large")?;
        let file = FileOffset::new(File::from(fd), offset);
        let region = MmapRegion::from_file(file, size).context("mapping guest memory")?;
        let guard = Guarded::new(region.as_ptr().addr(), size).context("too many mappings")?;
        Ok(Self { guard: Some(guard), region, _taken: taken })
    }

    /// Bytes.
    pub(crate) fn size(&self) -> usize {
        self.region.size()
    }

    /// Unmaps it piece by piece, so that those who map something or touch it for the first time
    /// come in between.
    //= spec/outsiders.md#OUT-3
    pub(crate) fn unmap(self) {
        for offset in (0..self.size()).step_by(SLICE_BYTES) {
            let len = SLICE_BYTES.min(self.size() - offset);
            // SAFETY: the range lies inside the mapping, which nobody uses any more. Pages that
            // cannot be dropped here are dropped below.
            let _ = unsafe {
                let start = self.region.as_ptr().add(offset);
                rustix::mm::madvise(start.cast(), len, Advice::LinuxDontNeed)
            };
        }
    }
}

impl Mapping {
    /// Maps `size` bytes of a file of our own from `offset` on.
    ///
    /// # Errors
    /// When it cannot be mapped for reading and writing.
    pub fn new(fd: OwnedFd, offset: u64, size: u64) -> anyhow::Result<Self> {
        let body = Body::new(fd, offset, size, None)?;
        Ok(Self { body: ManuallyDrop::new(body), grave: None })
    }

    /// Maps `size` bytes of a front end's memory from `offset` on, after checking what it is and
    /// that it is there.
    ///
    /// # Errors
    /// When `fd` is no memory or too short, when its front end has too much already, or when it
    /// cannot be mapped for reading and writing.
    //= spec/lifecycle.md#LIF-8
    //= spec/outsiders.md#OUT-5
    pub fn of_front_end(
        fd: OwnedFd,
        (offset, size): (u64, u64),
        used: Use,
        account: &Account,
    ) -> anyhow::Result<Self> {
        check_memory(&fd, (offset, size), used, account.any_file())?;
        let taken = Box::new((account.map(size)?, account.open(1)?));
        let body = Body::new(fd, offset, size, Some(taken))?;
        // Whoever drops it cannot wait until that thread has been started.
        let _ = reaper::reaper();
        Ok(Self { body: ManuallyDrop::new(body), grave: Some(Arc::clone(account.grave())) })
    }

    /// Maps `size` bytes of fresh zeroes that belong to nobody else.
    ///
    /// # Errors
    /// When there is no address space for them.
    pub fn anonymous(size: u64) -> anyhow::Result<Self> {
        let size = usize::try_from(size).context("memory region is too large")?;
        let region = MmapRegion::new(size).with_context(|| format!("mapping {size} bytes"))?;
        let body = Body { guard: None, region, _taken: None };
        Ok(Self { body: ManuallyDrop::new(body), grave: None })
    }

    /// The file it is a part of, and where in it it begins; `None` for an anonymous one.
    #[must_use]
    pub fn file(&self) -> Option<(u64, &File)> {
        self.body.region.file_offset().map(|place| (place.start(), place.file()))
    }

    /// A range as the kernel takes it. Good for as long as the mapping lives.
    ///
    /// # Errors
    /// [`OutOfRegion`]
    #[inline]
    pub fn iovec(&self, offset: u64, len: u64) -> Result<libc::iovec, OutOfRegion> {
        let start = self.find(offset, len)?;
        let len = usize::try_from(len).map_err(|_| OutOfRegion)?;
        Ok(libc::iovec { iov_base: start.cast(), iov_len: len })
    }

    /// Makes a range of an anonymous mapping read as zeroes; whole pages are given back.
    ///
    /// # Errors
    /// [`OutOfRegion`]
    pub fn zero(&self, offset: u64, len: u64) -> Result<(), OutOfRegion> {
        let start = self.find(offset, len)?;
        let len = usize::try_from(len).map_err(|_| OutOfRegion)?;
        let head = start.align_offset(PAGE_BYTES_MAX).min(len);
        let pages = (len - head) / PAGE_BYTES_MAX * PAGE_BYTES_MAX;
        let tail = len - head - pages;
        // SAFETY: the three pieces make up the checked range. No reference into the mapping
        // exists, and what `DontNeed` drops from private anonymous pages reads as zeroes.
        unsafe {
            start.write_bytes(0, head);
            let middle = start.add(head);
            if pages > 0
                && rustix::mm::madvise(middle.cast(), pages, Advice::LinuxDontNeed).is_err()
            {
                middle.write_bytes(0, pages);
            }
            middle.add(pages).write_bytes(0, tail);
        }
        Ok(())
    }

    /// The address of `len` bytes that lie inside.
    #[inline]
    fn find(&self, offset: u64, len: u64) -> Result<*mut u8, OutOfRegion> {
        if offset.checked_add(len).is_none_or(|end| end > self.body.region.size() as u64) {
            return Err(OutOfRegion);
        }
        let offset = usize::try_from(offset).map_err(|_| OutOfRegion)?;
        // SAFETY: `offset` is at most the length of the mapping.
        Ok(unsafe { self.body.region.as_ptr().add(offset) })
    }

    /// Whether the front end has taken the memory back.
    #[must_use]
    pub fn is_lost(&self) -> bool {
        self.body.guard.as_ref().is_some_and(Guarded::is_lost)
    }

    /// Bytes.
    #[must_use]
    pub fn size(&self) -> usize {
        self.body.region.size()
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: taken once, here, and not used any more.
        let body = unsafe { ManuallyDrop::take(&mut self.body) };
        if let Some(grave) = &self.grave {
            reaper::bury(body, grave);
        }
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
            start: mapping.body.region.as_ptr(),
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

    /// Copies `from` from `offset` on into a segment.
    ///
    /// # Errors
    /// [`OutOfRegion`] when either range is not mapped; nothing has been copied then.
    #[inline]
    pub fn copy_into(
        &self,
        segment: Segment,
        from: &Mapping,
        offset: u64,
    ) -> Result<(), OutOfRegion> {
        let into = self.find(segment.region(), segment.offset, u64::from(segment.len))?;
        let from = from.find(offset, u64::from(segment.len))?;
        // SAFETY: both ranges have been checked just now and stay mapped during the call.
        unsafe { copy(from, into, segment.len as usize) };
        Ok(())
    }

    /// Copies a segment to `offset` of `into`.
    ///
    /// # Errors
    /// [`OutOfRegion`] when either range is not mapped; nothing has been copied then.
    #[inline]
    pub fn copy_from(
        &self,
        segment: Segment,
        into: &Mapping,
        offset: u64,
    ) -> Result<(), OutOfRegion> {
        let from = self.find(segment.region(), segment.offset, u64::from(segment.len))?;
        let into = into.find(offset, u64::from(segment.len))?;
        // SAFETY: both ranges have been checked just now and stay mapped during the call.
        unsafe { copy(from, into, segment.len as usize) };
        Ok(())
    }

    /// Copies bytes of this process into a segment of the same length.
    ///
    /// # Errors
    /// [`OutOfRegion`] when the segment is not mapped or longer or shorter.
    pub fn copy_in(&self, from: &[u8], segment: Segment) -> Result<(), OutOfRegion> {
        let into = self.find(segment.region(), segment.offset, u64::from(segment.len))?;
        if from.len() != segment.len as usize {
            return Err(OutOfRegion);
        }
        // SAFETY: the segment has been checked just now, `from` is as long, and private memory
        // does not overlap a mapping that is shared.
        unsafe { copy(from.as_ptr(), into, from.len()) };
        Ok(())
    }

    /// Copies a segment to bytes of this process.
    ///
    /// # Errors
    /// [`OutOfRegion`] when the segment is not mapped or longer or shorter.
    pub fn copy_out(&self, segment: Segment, into: &mut [u8]) -> Result<(), OutOfRegion> {
        let from = self.find(segment.region(), segment.offset, u64::from(segment.len))?;
        if into.len() != segment.len as usize {
            return Err(OutOfRegion);
        }
        // SAFETY: as in `copy_in`, the other way round.
        unsafe { copy(from, into.as_mut_ptr(), into.len()) };
        Ok(())
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

/// Copies bytes that a guest may write at the same time: it gets either value.
///
/// The compiler sees one opaque instruction, so nothing is assumed of the bytes.
///
/// # Safety
/// Both ranges are mapped; they do not overlap.
#[cfg(target_arch = "x86_64")]
#[inline]
unsafe fn copy(from: *const u8, into: *mut u8, len: usize) {
    // SAFETY: the caller's ranges; the direction flag is clear on entry to any asm block.
    unsafe {
        core::arch::asm!(
            "rep movsb",
            inout("rcx") len => _,
            inout("rsi") from => _,
            inout("rdi") into => _,
            options(nostack, preserves_flags),
        );
    }
}

/// Copies bytes that a guest may write at the same time: it gets either value.
///
/// # Safety
/// Both ranges are mapped; they do not overlap.
#[cfg(not(target_arch = "x86_64"))]
unsafe fn copy(from: *const u8, into: *mut u8, len: usize) {
    let words = if from.cast::<u64>().is_aligned() && into.cast::<u64>().is_aligned() {
        len / 8
    } else {
        0
    };
    // SAFETY: words and bytes lie inside the caller's ranges, and the words are aligned.
    unsafe {
        for at in 0..words {
            let word = from.cast::<u64>().add(at).read_volatile();
            into.cast::<u64>().add(at).write_volatile(word);
        }
        for at in words * 8..len {
            into.add(at).write_volatile(from.add(at).read_volatile());
        }
    }
}

/// An instruction that tells the caches something of a line.
macro_rules! hint {
    ($mappings:expr, $region:expr, $offset:expr, $instruction:literal) => {
        #[cfg(target_arch = "x86_64")]
        if let Ok(address) = $mappings.find($region, $offset, 1) {
            // SAFETY: a hint changes no byte and never faults, and the address lies in a mapping
            // anyway. Where the processor does not know the instruction it does nothing.
            unsafe {
                core::arch::asm!(
                    $instruction,
                    in(reg) address,
                    options(nostack, preserves_flags, readonly),
                );
            }
        }
        #[cfg(not(target_arch = "x86_64"))]
        let _ = ($region, $offset);
    };
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

    fn set_bits(&self, region: RegionId, offset: u64, bits: u8) -> Result<(), OutOfRegion> {
        let at = self.find(region, offset, 1)?;
        // SAFETY: a byte of a live mapping; other parties access it as a byte or a word of bits.
        unsafe { AtomicU8::from_ptr(at) }.fetch_or(bits, Ordering::AcqRel);
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

    #[inline]
    fn prefetch_write(&self, region: RegionId, offset: u64) {
        hint!(self, region, offset, "prefetchw [{}]");
    }

    #[inline]
    fn hand_over(&self, region: RegionId, offset: u64) {
        hint!(self, region, offset, "cldemote [{}]");
    }
}
