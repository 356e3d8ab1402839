//! Memory that watches what the device does with it, and is as lazy as hardware may be.
//!
//! Stores of the device stand in a buffer before the guests see them. They become visible one
//! by one, late and in any order that the core has not ruled out: a release store waits for
//! everything before it, a full fence for everything. A store that lacks its fence is thus seen
//! in the wrong order sooner or later, and the [`Bus`] revokes a right at the very moment at
//! which a guest could act on its end.

use core::cell::{RefCell, RefMut};

use sluice_core::memory::{OutOfRegion, RegionId, Segment, SharedMemory};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::Bus;
use super::ram::{Extent, Ram};
use crate::prng::Prng;

/// A mapping of (a part of) a chunk, as the shell made it.
#[derive(Clone, Copy, Debug)]
struct Mapping {
    chunk: usize,
    /// Not unmapped yet.
    alive: bool,
}

/// A store that the guests do not see yet.
#[derive(Debug)]
struct Pending {
    to: Extent,
    bytes: [u8; 16],
    release: bool,
}

/// All memory that a shard shares, seen from the device.
#[derive(Debug)]
pub struct WatchedMemory {
    inner: RefCell<Inner>,
}

/// What is behind it.
#[derive(Debug)]
pub struct Inner {
    /// The guests' memory.
    pub ram: Ram,
    /// Who watches their rings.
    pub bus: Bus,
    mappings: Vec<Mapping>,
    pending: Vec<Pending>,
    prng: Prng,
    /// Of 1000 looks at a store, how many leave it in the buffer.
    lazy: u64,
    stores: u64,
    /// The store at which the device dies.
    stop_at: Option<u64>,
}

impl WatchedMemory {
    /// Memory without chunks. Of 1000 chances to become visible, stores miss `lazy`.
    #[must_use]
    pub fn new(prng: Prng, lazy: u64) -> Self {
        let (ram, bus) = (Ram::default(), Bus::default());
        let (mappings, pending) = (Vec::new(), Vec::new());
        let (stores, stop_at) = (0, None);
        let inner = Inner { ram, bus, mappings, pending, prng, lazy, stores, stop_at };
        Self { inner: RefCell::new(inner) }
    }

    /// Everything, for the world to look at and to change.
    pub fn inner(&self) -> RefMut<'_, Inner> {
        self.inner.borrow_mut()
    }

    /// The same memory as drivers see it: regions are chunks, always mapped.
    #[must_use]
    pub const fn guest_side(&self) -> GuestSide<'_> {
        GuestSide(self)
    }

    /// Bytes of an operation's payload leave the guest.
    ///
    /// # Errors
    /// Outside mapped memory.
    pub fn carry_out(&self, from: Segment, into: &mut [u8]) -> Result<(), OutOfRegion> {
        let mut inner = self.inner();
        let extent = inner.locate(from.region(), from.offset, into.len())?;
        inner.check_read(extent);
        into.copy_from_slice(inner.ram.bytes(extent));
        Ok(())
    }

    /// Bytes of an operation's payload reach the guest.
    ///
    /// # Errors
    /// Outside mapped memory.
    pub fn carry_in(&self, to: Segment, from: &[u8]) -> Result<(), OutOfRegion> {
        let mut inner = self.inner();
        let extent = inner.locate(to.region(), to.offset, from.len())?;
        inner.check_write(extent, "lands");
        inner.ram.bytes_mut(extent).copy_from_slice(from);
        Ok(())
    }
}

impl Inner {
    /// Maps a chunk and says under which number.
    pub fn map(&mut self, chunk: usize) -> RegionId {
        self.mappings.push(Mapping { chunk, alive: true });
        RegionId(u32::try_from(self.mappings.len() - 1).unwrap_or(u32::MAX))
    }

    /// Unmaps, because the core has said so.
    pub fn unmap(&mut self, region: RegionId) {
        match self.mappings.get_mut(region.0 as usize) {
            Some(mapping) if mapping.alive => mapping.alive = false,
            _ => self.bus.fault("I23", format!("{region:?} is unmapped twice")),
        }
    }

    /// Mappings that have not been unmapped.
    #[must_use]
    pub fn mapped(&self) -> usize {
        self.mappings.iter().filter(|mapping| mapping.alive).count()
    }

    /// Stores of the device so far.
    #[must_use]
    pub const fn stores(&self) -> u64 {
        self.stores
    }

    /// The device dies at the store behind so many more: what it does from then on goes nowhere.
    pub const fn kill_after(&mut self, stores: u64) {
        self.stop_at = Some(self.stores + stores);
    }

    /// Whether a store has gone nowhere.
    #[must_use]
    pub const fn is_dead(&self) -> bool {
        matches!(self.stop_at, Some(at) if self.stores > at)
    }

    /// The device goes on living.
    pub const fn spare(&mut self) {
        self.stop_at = None;
    }

    /// Another device takes the place of the dead one. Its mappings have to be made anew.
    pub fn replace_device(&mut self) {
        self.spare();
        self.mappings.iter_mut().for_each(|mapping| mapping.alive = false);
    }

    /// Where a segment of a mapping lies.
    ///
    /// # Errors
    /// Outside mapped memory.
    pub fn locate(
        &mut self,
        region: RegionId,
        offset: u64,
        len: usize,
    ) -> Result<Extent, OutOfRegion> {
        let mapping = *self.mappings.get(region.0 as usize).ok_or(OutOfRegion)?;
        if !mapping.alive {
            self.bus.fault("I07", format!("{region:?} is touched after it was unmapped"));
            return Err(OutOfRegion);
        }
        let at = usize::try_from(offset).map_err(|_| OutOfRegion)?;
        let end = at.checked_add(len).ok_or(OutOfRegion)?;
        let inside = end <= self.ram.len(mapping.chunk);
        if inside { Ok(Extent { chunk: mapping.chunk, at, len }) } else { Err(OutOfRegion) }
    }

    /// Gives every store in the buffer a chance to become visible.
    pub fn drift(&mut self) {
        let mut index = 0;
        while index < self.pending.len() {
            if self.prng.chance(self.lazy) || !self.may_pass(index) {
                index += 1;
            } else {
                self.reveal(index);
            }
        }
    }

    /// Makes all stores visible.
    pub fn settle(&mut self) {
        while !self.pending.is_empty() {
            self.reveal(0);
        }
    }

    /// Whether a store may become visible before those ahead of it.
    fn may_pass(&self, index: usize) -> bool {
        let store = &self.pending[index];
        let meets = |other: &Pending| {
            other.to.chunk == store.to.chunk
                && other.to.at < store.to.at + store.to.len
                && store.to.at < other.to.at + other.to.len
        };
        index == 0 || (!store.release && !self.pending[..index].iter().any(meets))
    }

    fn reveal(&mut self, index: usize) {
        let Pending { to, bytes, .. } = self.pending.remove(index);
        self.check_write(to, "becomes visible");
        self.ram.bytes_mut(to).copy_from_slice(&bytes[..to.len]);
        self.bus.device_stored(&mut self.ram, to);
    }

    fn check_read(&mut self, from: Extent) {
        if !self.ram.may_read(from) {
            self.bus.fault("I05", format!("read of {from:?}"));
        }
    }

    fn check_write(&mut self, to: Extent, how: &str) {
        if !self.ram.may_write(to) {
            self.bus.fault("I05", format!("write to {to:?} {how}"));
        }
    }

    fn store(&mut self, to: Extent, from: &[u8], release: bool) {
        self.stores += 1;
        if self.is_dead() {
            return;
        }
        self.check_write(to, "is issued");
        for (index, part) in from.chunks(16).enumerate() {
            let mut bytes = [0; 16];
            bytes[..part.len()].copy_from_slice(part);
            let to = to.part(16 * index, part.len());
            self.pending.push(Pending { to, bytes, release });
        }
        self.drift();
    }

    /// What the device finds: its own stores are never late for itself.
    fn load(&self, from: Extent, into: &mut [u8]) {
        into.copy_from_slice(self.ram.bytes(from));
        for store in &self.pending {
            for (at, byte) in (store.to.at..).zip(&store.bytes[..store.to.len]) {
                if let Some(position) = from.position(store.to.chunk, at) {
                    into[position] = *byte;
                }
            }
        }
    }
}

impl SharedMemory for WatchedMemory {
    fn read<T: FromBytes + IntoBytes>(
        &self,
        region: RegionId,
        offset: u64,
    ) -> Result<T, OutOfRegion> {
        let mut value = T::new_zeroed();
        let mut inner = self.inner();
        let from = inner.locate(region, offset, size_of::<T>())?;
        inner.load(from, value.as_mut_bytes());
        if inner.is_dead() {
            return Ok(value);
        }
        inner.check_read(from);
        let Inner { ram, bus, .. } = &mut *inner;
        bus.device_read(ram, from);
        Ok(value)
    }

    fn write<T: IntoBytes + Immutable>(
        &self,
        region: RegionId,
        offset: u64,
        value: &T,
    ) -> Result<(), OutOfRegion> {
        let mut inner = self.inner();
        let to = inner.locate(region, offset, size_of::<T>())?;
        inner.store(to, value.as_bytes(), false);
        Ok(())
    }

    fn load_acquire_u16(&self, region: RegionId, offset: u64) -> Result<u16, OutOfRegion> {
        if !offset.is_multiple_of(2) {
            return Err(OutOfRegion);
        }
        let mut inner = self.inner();
        let from = inner.locate(region, offset, 2)?;
        let mut bytes = [0; 2];
        inner.load(from, &mut bytes);
        let value = u16::from_le_bytes(bytes);
        if inner.is_dead() {
            return Ok(value);
        }
        inner.check_read(from);
        let Inner { ram, bus, .. } = &mut *inner;
        bus.device_acquired(ram, from, value);
        Ok(value)
    }

    fn store_release_u16(
        &self,
        region: RegionId,
        offset: u64,
        value: u16,
    ) -> Result<(), OutOfRegion> {
        if !offset.is_multiple_of(2) {
            return Err(OutOfRegion);
        }
        let mut inner = self.inner();
        let to = inner.locate(region, offset, 2)?;
        inner.store(to, &value.to_le_bytes(), true);
        Ok(())
    }

    fn set_bits(&self, region: RegionId, offset: u64, bits: u8) -> Result<(), OutOfRegion> {
        // Nobody else sets bits while the core runs, and a store behind another is late with it.
        let byte: u8 = self.read(region, offset)?;
        self.write(region, offset, &(byte | bits))
    }

    fn full_fence(&self) {
        self.inner().settle();
    }
}

/// Memory as the guests' drivers see it. Drivers are taken to have the fences they need: their
/// stores are visible at once.
#[derive(Clone, Copy, Debug)]
pub struct GuestSide<'m>(&'m WatchedMemory);

impl GuestSide<'_> {
    fn extent(
        inner: &Inner,
        region: RegionId,
        offset: u64,
        len: usize,
    ) -> Result<Extent, OutOfRegion> {
        let chunk = region.0 as usize;
        let at = usize::try_from(offset).map_err(|_| OutOfRegion)?;
        let end = at.checked_add(len).ok_or(OutOfRegion)?;
        let inside = end <= inner.ram.len(chunk);
        if inside { Ok(Extent { chunk, at, len }) } else { Err(OutOfRegion) }
    }
}

impl SharedMemory for GuestSide<'_> {
    fn read<T: FromBytes + IntoBytes>(
        &self,
        region: RegionId,
        offset: u64,
    ) -> Result<T, OutOfRegion> {
        let mut value = T::new_zeroed();
        let inner = self.0.inner();
        let from = Self::extent(&inner, region, offset, size_of::<T>())?;
        value.as_mut_bytes().copy_from_slice(inner.ram.bytes(from));
        Ok(value)
    }

    fn write<T: IntoBytes + Immutable>(
        &self,
        region: RegionId,
        offset: u64,
        value: &T,
    ) -> Result<(), OutOfRegion> {
        let mut inner = self.0.inner();
        let to = Self::extent(&inner, region, offset, size_of::<T>())?;
        inner.ram.bytes_mut(to).copy_from_slice(value.as_bytes());
        if to.len == 2 {
            let Inner { ram, bus, .. } = &mut *inner;
            bus.driver_stored(ram, to.chunk, to.at);
        }
        Ok(())
    }

    fn load_acquire_u16(&self, region: RegionId, offset: u64) -> Result<u16, OutOfRegion> {
        self.read::<[u8; 2]>(region, offset).map(u16::from_le_bytes)
    }

    fn store_release_u16(
        &self,
        region: RegionId,
        offset: u64,
        value: u16,
    ) -> Result<(), OutOfRegion> {
        self.write(region, offset, &value.to_le_bytes())
    }

    fn set_bits(&self, region: RegionId, offset: u64, bits: u8) -> Result<(), OutOfRegion> {
        let byte: u8 = self.read(region, offset)?;
        self.write(region, offset, &(byte | bits))
    }

    fn full_fence(&self) {}
}
