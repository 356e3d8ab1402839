//! Memory that remembers what the core did to it, and that may change under the core's eyes.
//!
//! A second processor of the guest can rewrite a descriptor between two reads of it. One thread
//! is enough to show that: the memory changes by itself after a chosen read, or answers every
//! read a little differently.

use core::cell::{Cell, RefCell};

use sluice_core::memory::{OutOfRegion, RegionId, SharedMemory};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::memory::FlatMemory;

/// Bytes that the core read or wrote at one go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Access {
    /// In this region.
    pub region: RegionId,
    /// From here.
    pub offset: u64,
    /// This many.
    pub len: u64,
}

impl Access {
    /// Whether the byte is one of them.
    #[must_use]
    pub fn covers(&self, region: RegionId, offset: u64) -> bool {
        self.region == region && offset.checked_sub(self.offset).is_some_and(|at| at < self.len)
    }
}

/// A byte that changes while the core works.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Change {
    /// Right after this many reads, index loads included.
    pub after: usize,
    /// In this region.
    pub region: RegionId,
    /// This byte.
    pub offset: u64,
    /// Flips these bits.
    pub flips: u8,
}

/// A view of flat memory through which every access is noted.
#[derive(Debug)]
pub struct Watched<'m> {
    inner: &'m FlatMemory,
    count: Cell<usize>,
    reads: RefCell<Vec<Access>>,
    writes: RefCell<Vec<Access>>,
    changes: Vec<Change>,
    noise: Option<u64>,
}

impl<'m> Watched<'m> {
    /// Memory that stays as it is unless it is written.
    #[must_use]
    pub fn new(inner: &'m FlatMemory) -> Self {
        Self::changing(inner, Vec::new())
    }

    /// Memory that makes these changes by itself. Changes outside of it do not happen.
    #[must_use]
    pub fn changing(inner: &'m FlatMemory, changes: Vec<Change>) -> Self {
        Self {
            inner,
            count: Cell::new(0),
            reads: RefCell::default(),
            writes: RefCell::default(),
            changes,
            noise: None,
        }
    }

    /// Memory in which about a quarter of all reads sees one byte differently.
    #[must_use]
    pub fn noisy(inner: &'m FlatMemory, seed: u64) -> Self {
        Self { noise: Some(seed), ..Self::new(inner) }
    }

    /// Reads so far, index loads included.
    #[must_use]
    pub const fn count(&self) -> usize {
        self.count.get()
    }

    /// Everything that was read, without index loads: these have to be repeated.
    #[must_use]
    pub fn reads(&self) -> Vec<Access> {
        self.reads.borrow().clone()
    }

    /// Everything that was written, index stores included.
    #[must_use]
    pub fn writes(&self) -> Vec<Access> {
        self.writes.borrow().clone()
    }

    /// How often the byte was read.
    #[must_use]
    pub fn times_read(&self, region: RegionId, offset: u64) -> usize {
        self.reads.borrow().iter().filter(|access| access.covers(region, offset)).count()
    }

    /// A byte in `offset..offset + len` that was read more than once.
    #[must_use]
    pub fn read_twice(&self, region: RegionId, offset: u64, len: u64) -> Option<u64> {
        (offset..offset + len).find(|&at| self.times_read(region, at) > 1)
    }

    /// Forgets what was noted; changes go on being counted.
    pub fn forget(&self) {
        self.reads.borrow_mut().clear();
        self.writes.borrow_mut().clear();
    }

    fn after_read(&self) {
        self.count.set(self.count.get() + 1);
        for change in self.changes.iter().filter(|change| change.after == self.count.get()) {
            if let Ok(byte) = self.inner.read::<u8>(change.region, change.offset) {
                let _ = self.inner.write(change.region, change.offset, &(byte ^ change.flips));
            }
        }
    }

    fn disturb(&self, bytes: &mut [u8]) {
        let Some(seed) = self.noise else { return };
        let roll = mix(seed ^ self.count.get() as u64).to_le_bytes();
        if roll[0].is_multiple_of(4) && !bytes.is_empty() {
            let at = usize::from(roll[1]) % bytes.len();
            // Small differences reach further than garbage does.
            bytes[at] ^= if roll[2].is_multiple_of(2) { 1 << (roll[3] % 8) } else { roll[4] };
        }
    }
}

/// A well-mixed function of its argument (the finaliser of splitmix64).
#[must_use]
pub const fn mix(seed: u64) -> u64 {
    let seed = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let seed = (seed ^ (seed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let seed = (seed ^ (seed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    seed ^ (seed >> 31)
}

impl SharedMemory for Watched<'_> {
    fn read<T: FromBytes + IntoBytes>(
        &self,
        region: RegionId,
        offset: u64,
    ) -> Result<T, OutOfRegion> {
        let mut value: T = self.inner.read(region, offset)?;
        let len = size_of::<T>() as u64;
        self.reads.borrow_mut().push(Access { region, offset, len });
        self.disturb(value.as_mut_bytes());
        self.after_read();
        Ok(value)
    }

    fn write<T: IntoBytes + Immutable>(
        &self,
        region: RegionId,
        offset: u64,
        value: &T,
    ) -> Result<(), OutOfRegion> {
        self.inner.write(region, offset, value)?;
        let len = size_of::<T>() as u64;
        self.writes.borrow_mut().push(Access { region, offset, len });
        Ok(())
    }

    fn load_acquire_u16(&self, region: RegionId, offset: u64) -> Result<u16, OutOfRegion> {
        let index = self.inner.load_acquire_u16(region, offset)?;
        self.after_read();
        Ok(index)
    }

    fn store_release_u16(
        &self,
        region: RegionId,
        offset: u64,
        value: u16,
    ) -> Result<(), OutOfRegion> {
        self.inner.store_release_u16(region, offset, value)?;
        self.writes.borrow_mut().push(Access { region, offset, len: 2 });
        Ok(())
    }

    fn set_bits(&self, region: RegionId, offset: u64, bits: u8) -> Result<(), OutOfRegion> {
        self.inner.set_bits(region, offset, bits)?;
        self.writes.borrow_mut().push(Access { region, offset, len: 1 });
        Ok(())
    }

    fn full_fence(&self) {
        self.inner.full_fence();
    }
}
