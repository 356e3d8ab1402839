//! A guest that is copied to another host while its device goes on writing into it.

mod journey;

pub use journey::{Case, copy_at_any_moment, copy_before_any_death};

use core::cell::{Cell, RefCell};
use std::collections::BTreeSet;

use sluice_core::dirty::PAGE_BYTES;
use sluice_core::memory::{OutOfRegion, Region, RegionId, Segment, SharedMemory};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::memory::FlatMemory;

/// Pages that the device has written and nobody has copied since: they are old on the other host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stale(BTreeSet<u64>);

impl Stale {
    /// The device has written here, by guest addresses.
    pub fn written(&mut self, address: u64, len: u64) {
        if let Some(more) = len.checked_sub(1) {
            self.0.extend(address / PAGE_BYTES..=(address + more) / PAGE_BYTES);
        }
    }

    /// A front end reads its log, clears what it has read, and copies those pages, as it does
    /// again and again while its guest runs.
    pub fn copy(&mut self, log: &mut [u8]) {
        self.0.retain(|&page| !is_marked(log, page));
        log.fill(0);
    }

    /// Pages that a copy at this moment would leave old.
    pub fn missed(&self, log: &[u8]) -> impl Iterator<Item = u64> {
        self.0.iter().copied().filter(|&page| !is_marked(log, page))
    }
}

fn is_marked(log: &[u8], page: u64) -> bool {
    let byte = usize::try_from(page / 8).ok().and_then(|at| log.get(at));
    byte.is_some_and(|byte| byte & (1 << (page % 8)) != 0)
}

/// No moment.
pub const NEVER: u64 = u64::MAX;

/// A region of so much higher a number is another mapping of the same memory.
pub const REMAPPED: u32 = 16;

/// Flat memory of a guest on its way, seen by a device that may die.
///
/// Each store is a moment, and so is each landing of data. At one of them, before the store, the
/// front end copies what is marked. What a device does from the moment of its death on does not
/// happen.
#[derive(Debug)]
pub struct Copied<'m> {
    inner: &'m FlatMemory,
    regions: Vec<Region>,
    log: RegionId,
    log_bytes: usize,
    stale: RefCell<Stale>,
    moments: Cell<u64>,
    copies_at: u64,
    dies_at: Cell<u64>,
}

impl<'m> Copied<'m> {
    /// Memory in which these regions are guest memory and `log` is a dirty log of so many bytes.
    #[must_use]
    pub fn new(
        inner: &'m FlatMemory,
        regions: &[Region],
        (log, log_bytes): (RegionId, usize),
        (copies_at, dies_at): (u64, u64),
    ) -> Self {
        Self {
            inner,
            regions: regions.to_vec(),
            log,
            log_bytes,
            stale: RefCell::default(),
            moments: Cell::new(0),
            copies_at,
            dies_at: Cell::new(dies_at),
        }
    }

    /// Moments so far.
    #[must_use]
    pub const fn moments(&self) -> u64 {
        self.moments.get()
    }

    /// Whether something has not happened any more.
    #[must_use]
    pub const fn is_dead(&self) -> bool {
        self.moments.get() > self.dies_at.get()
    }

    /// Another device takes its place, and lives.
    pub fn revive(&self) {
        self.dies_at.set(NEVER);
    }

    /// Data lands, by whoever carries operations out.
    pub fn land(&self, segment: Segment) {
        if self.moment() {
            self.note(segment.region(), segment.offset, segment.len.into());
        }
    }

    /// Pages that would be old on the other host if it went on with the guest now.
    #[must_use]
    pub fn missed(&self) -> Vec<u64> {
        let log = self.inner.dump(self.log, 0, self.log_bytes);
        self.stale.borrow().missed(&log).collect()
    }

    /// Something is about to happen. Says whether it still does.
    fn moment(&self) -> bool {
        if self.moments.get() == self.copies_at {
            let mut log = self.inner.dump(self.log, 0, self.log_bytes);
            self.stale.borrow_mut().copy(&mut log);
            self.inner.fill(self.log, 0, &log);
        }
        self.moments.set(self.moments.get() + 1);
        !self.is_dead()
    }

    fn note(&self, region: RegionId, offset: u64, len: u64) {
        let region = original(region);
        if let Some(region) = self.regions.iter().find(|known| known.id == region) {
            self.stale.borrow_mut().written(region.guest + offset, len);
        }
    }
}

const fn original(region: RegionId) -> RegionId {
    RegionId(region.0 % REMAPPED)
}

impl SharedMemory for Copied<'_> {
    fn read<T: FromBytes + IntoBytes>(
        &self,
        region: RegionId,
        offset: u64,
    ) -> Result<T, OutOfRegion> {
        self.inner.read(original(region), offset)
    }

    fn write<T: IntoBytes + Immutable>(
        &self,
        region: RegionId,
        offset: u64,
        value: &T,
    ) -> Result<(), OutOfRegion> {
        if !self.moment() {
            return Ok(());
        }
        self.inner.write(original(region), offset, value)?;
        self.note(region, offset, size_of::<T>() as u64);
        Ok(())
    }

    fn load_acquire_u16(&self, region: RegionId, offset: u64) -> Result<u16, OutOfRegion> {
        self.inner.load_acquire_u16(original(region), offset)
    }

    fn store_release_u16(
        &self,
        region: RegionId,
        offset: u64,
        value: u16,
    ) -> Result<(), OutOfRegion> {
        if !self.moment() {
            return Ok(());
        }
        self.inner.store_release_u16(original(region), offset, value)?;
        self.note(region, offset, 2);
        Ok(())
    }

    fn set_bits(&self, region: RegionId, offset: u64, bits: u8) -> Result<(), OutOfRegion> {
        if self.moment() { self.inner.set_bits(original(region), offset, bits) } else { Ok(()) }
    }

    fn full_fence(&self) {
        self.inner.full_fence();
    }
}
