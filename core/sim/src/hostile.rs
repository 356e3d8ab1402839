//! What no driver should do: arbitrary bytes in the rings of a queue.
//!
//! For queues without a driver, and for spoiling what a [`Driver`](crate::driver::Driver) has
//! added and not yet exposed: a request's tag is the index of its first descriptor.

use sluice_core::memory::{OutOfRegion, SharedMemory};
use sluice_core::virtqueue::Rings;
use sluice_core::virtqueue::layout::{
    AVAIL_IDX, AVAIL_RING, DESC_BYTES, Descriptor, USED_IDX, USED_RING, UsedElement,
    used_event_offset,
};
use zerocopy::byteorder::little_endian::{U16, U32, U64};

/// Free access to the rings of one queue.
#[derive(Clone, Copy, Debug)]
pub struct Hostile {
    /// Where the rings lie.
    pub rings: Rings,
    /// Entries; indices into the rings are reduced by it, a power of two.
    pub size: u16,
}

/// A descriptor from plain numbers.
#[must_use]
pub const fn descriptor(addr: u64, len: u32, flags: u16, next: u16) -> Descriptor {
    Descriptor {
        addr: U64::new(addr),
        len: U32::new(len),
        flags: U16::new(flags),
        next: U16::new(next),
    }
}

impl Hostile {
    /// Writes one descriptor of the table.
    ///
    /// # Errors
    /// Outside mapped memory, as for all methods here.
    pub fn put(
        &self,
        mem: &impl SharedMemory,
        index: u16,
        descriptor: &Descriptor,
    ) -> Result<(), OutOfRegion> {
        let (region, offset) = self.rings.desc;
        mem.write(region, offset + DESC_BYTES * u64::from(index), descriptor)
    }

    /// Reads one descriptor of the table.
    ///
    /// # Errors
    /// See [`put`](Self::put).
    pub fn get(&self, mem: &impl SharedMemory, index: u16) -> Result<Descriptor, OutOfRegion> {
        let (region, offset) = self.rings.desc;
        mem.read(region, offset + DESC_BYTES * u64::from(index))
    }

    /// Writes the available entry at a free-running index.
    ///
    /// # Errors
    /// See [`put`](Self::put).
    pub fn offer(&self, mem: &impl SharedMemory, index: u16, head: u16) -> Result<(), OutOfRegion> {
        let (region, offset) = self.rings.avail;
        let entry = u64::from(index & (self.size - 1));
        mem.write(region, offset + AVAIL_RING + 2 * entry, &U16::new(head))
    }

    /// Sets the available index.
    ///
    /// # Errors
    /// See [`put`](Self::put).
    pub fn set_avail_index(&self, mem: &impl SharedMemory, index: u16) -> Result<(), OutOfRegion> {
        let (region, offset) = self.rings.avail;
        mem.store_release_u16(region, offset + AVAIL_IDX, index)
    }

    /// Sets the available ring's flags and its `used_event`.
    ///
    /// # Errors
    /// See [`put`](Self::put).
    pub fn set_wishes(
        &self,
        mem: &impl SharedMemory,
        flags: u16,
        used_event: u16,
    ) -> Result<(), OutOfRegion> {
        let (region, offset) = self.rings.avail;
        mem.write(region, offset, &U16::new(flags))?;
        mem.write(region, offset + used_event_offset(self.size), &U16::new(used_event))
    }

    /// Sets the used index, which is the device's to write.
    ///
    /// # Errors
    /// See [`put`](Self::put).
    pub fn set_used_index(&self, mem: &impl SharedMemory, index: u16) -> Result<(), OutOfRegion> {
        let (region, offset) = self.rings.used;
        mem.store_release_u16(region, offset + USED_IDX, index)
    }

    /// The used index.
    ///
    /// # Errors
    /// See [`put`](Self::put).
    pub fn used_index(&self, mem: &impl SharedMemory) -> Result<u16, OutOfRegion> {
        let (region, offset) = self.rings.used;
        mem.load_acquire_u16(region, offset + USED_IDX)
    }

    /// The used entry at a free-running index: descriptor and length.
    ///
    /// # Errors
    /// See [`put`](Self::put).
    pub fn used(&self, mem: &impl SharedMemory, index: u16) -> Result<(u32, u32), OutOfRegion> {
        let (region, offset) = self.rings.used;
        let entry = u64::from(index & (self.size - 1));
        let element: UsedElement = mem.read(region, offset + USED_RING + 8 * entry)?;
        Ok((element.id.get(), element.len.get()))
    }
}
