//! A guest's virtio-blk driver: the driver side of a virtqueue and the requests in it.
//!
//! The one model of a driver that there is: the simulator, the load generator, the verifier and
//! the fuzzers all use it. Like the core it is plain data, and the memory is an argument. What it
//! sends is legal by construction; [`hostile`](crate::hostile) spoils it. Free descriptors and
//! buffer ids are kept as Linux keeps them, last in first out, so that a lightly loaded ring stays
//! in the cache.

mod layout;
mod request;
mod chain;
mod split;
mod packed;
mod fault;

pub use fault::{Completion, Fault, STATUS_UNTOUCHED, Tag};
pub use layout::Layout;
pub use request::{Buffer, Kind, RequestSpec, Shape};

use sluice_core::memory::{OutOfRegion, SharedMemory};
use sluice_core::virtqueue::layout::DESC_INDIRECT;
use zerocopy::byteorder::little_endian::U16;

use packed::Packed;
use split::Split;

use crate::either::either;

/// What is known of one head or buffer id.
#[derive(Clone, Copy, Debug)]
struct InFlight {
    /// Offset of the status byte in the driver's region.
    status: u64,
    /// Descriptors of the ring that the chain holds; 0 while it is not under way.
    count: u16,
    /// The last of its names: of a split chain every descriptor is one, of a packed one the id.
    last: u16,
}

/// Where the driver stands in its ring.
#[derive(Clone, Debug)]
enum Side {
    Split(Split),
    Packed(Packed),
}

/// The driver's side of one queue.
#[derive(Clone, Debug)]
pub struct Driver {
    layout: Layout,
    event_idx: bool,
    /// The free name behind each free name, and the next one of each in a split chain.
    next: Box<[u16]>,
    free_name: u16,
    /// Free descriptors of the ring.
    free: u16,
    in_flight: Box<[InFlight]>,
    under_way: u16,
    side: Side,
}

impl Driver {
    /// A driver with an empty split ring whose indices have come as far as `index`, as that of a
    /// guest that has been running for a while.
    ///
    /// # Errors
    /// When the layout does not lie in mapped memory.
    ///
    /// # Panics
    /// When the ring cannot have this size.
    pub fn new_at(
        mem: &impl SharedMemory,
        layout: Layout,
        event_idx: bool,
        index: u16,
    ) -> Result<Self, OutOfRegion> {
        let mut driver = Self::new(mem, layout, event_idx)?;
        if let Side::Split(split) = &mut driver.side {
            *split = Split::at(mem, &layout, index)?;
        }
        Ok(driver)
    }

    /// A driver with an empty ring, which is zeroed in memory.
    ///
    /// # Errors
    /// When the layout does not lie in mapped memory.
    ///
    /// # Panics
    /// When the ring cannot have this size.
    pub fn new(
        mem: &impl SharedMemory,
        layout: Layout,
        event_idx: bool,
    ) -> Result<Self, OutOfRegion> {
        let size = layout.size;
        let possible = size.is_power_of_two() || layout.packed && size > 0;
        assert!(possible && size <= 1 << 15, "a ring's size: {size}");
        for offset in (layout.desc..layout.slots).step_by(2) {
            mem.write(layout.region, offset, &U16::ZERO)?;
        }
        mem.read::<u8>(layout.region, layout.end() - 1)?;
        let idle = InFlight { status: 0, count: 0, last: 0 };
        let side =
            if layout.packed { Side::Packed(Packed::START) } else { Side::Split(Split::default()) };
        Ok(Self {
            layout,
            event_idx,
            next: (1..=size).collect(),
            free_name: 0,
            free: size,
            in_flight: vec![idle; usize::from(size)].into(),
            under_way: 0,
            side,
        })
    }

    /// Where everything lies.
    #[must_use]
    pub const fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Requests that were added and did not come back.
    #[must_use]
    pub const fn in_flight(&self) -> u16 {
        self.under_way
    }

    /// Whether this request is among them.
    #[must_use]
    pub fn is_in_flight(&self, tag: Tag) -> bool {
        self.in_flight.get(usize::from(tag.0)).is_some_and(|entry| entry.count > 0)
    }

    /// Descriptors of the ring that are free.
    #[must_use]
    pub const fn free_descriptors(&self) -> u16 {
        self.free
    }

    /// The available index that the device sees; in a packed ring a place's 16 bits.
    #[must_use]
    pub const fn avail_index(&self) -> u16 {
        match &self.side {
            Side::Split(split) => split.exposed,
            Side::Packed(packed) => packed.exposed.bits(),
        }
    }

    /// The used index up to which requests were reaped; in a packed ring a place's 16 bits.
    #[must_use]
    pub const fn used_index(&self) -> u16 {
        match &self.side {
            Side::Split(split) => split.used,
            Side::Packed(packed) => packed.used.bits(),
        }
    }

    /// Writes a request into the ring, invisible to the device until [`expose`](Self::expose).
    ///
    /// `None` while too few descriptors are free, or for more descriptors than the ring has.
    ///
    /// # Panics
    /// When the driver's memory was unmapped, with more ranges than `limits::RANGES_MAX`, or when
    /// an inline header or status does not lie in the driver's region.
    #[inline]
    pub fn add(&mut self, mem: &impl SharedMemory, spec: &RequestSpec<'_>) -> Option<Tag> {
        let entries = u16::try_from(spec.descriptors()).ok()?;
        let indirect = spec.shape.indirect && entries <= self.layout.table_entries;
        let count = if indirect { 1 } else { entries };
        if count > self.free {
            return None;
        }
        let name = self.free_name;
        let (status, last) = if self.layout.packed {
            (self.add_packed(mem, spec, name, count, indirect.then_some(entries)), name)
        } else {
            self.add_split(mem, spec, name, count, indirect.then_some(entries))
        };
        self.free_name = self.next[usize::from(last)];
        self.in_flight[usize::from(name)] = InFlight { status, count, last };
        self.free -= count;
        self.under_way += 1;
        Some(Tag(name))
    }

    /// Writes a linked chain that begins at `head`. Says where the status byte lies, and which
    /// descriptor is the last.
    #[inline]
    fn add_split(
        &mut self,
        mem: &impl SharedMemory,
        spec: &RequestSpec<'_>,
        head: u16,
        count: u16,
        table_entries: Option<u16>,
    ) -> (u64, u16) {
        let layout = &self.layout;
        let mut ring = split::Cursor::ring(layout, &self.next, head, count);
        let status = if let Some(entries) = table_entries {
            let offset = layout.table(head);
            ring.put(mem, layout.guest_address(offset), u32::from(entries) * 16, DESC_INDIRECT);
            let mut table = split::Cursor::table(layout, offset, entries);
            self.put_chain(mem, &mut |a, l, f| table.put(mem, a, l, f), spec, head)
        } else {
            self.put_chain(mem, &mut |a, l, f| ring.put(mem, a, l, f), spec, head)
        };
        let last = ring.last();
        if let Side::Split(split) = &mut self.side {
            split.offer(mem, &self.layout, head);
        }
        (status, last)
    }

    /// Writes a chain into the next places under this buffer id. Says where the status byte lies.
    #[inline]
    fn add_packed(
        &mut self,
        mem: &impl SharedMemory,
        spec: &RequestSpec<'_>,
        id: u16,
        count: u16,
        table_entries: Option<u16>,
    ) -> u64 {
        let layout = self.layout;
        let Side::Packed(packed) = &mut self.side else { return 0 };
        let mut ring = packed.cursor(&layout, id, count);
        let status = if let Some(entries) = table_entries {
            let offset = layout.table(id);
            ring.put(mem, layout.guest_address(offset), u32::from(entries) * 16, DESC_INDIRECT);
            let mut table = packed::Cursor::table(&layout, offset, entries);
            self.put_chain(mem, &mut |a, l, f| table.put(mem, a, l, f), spec, id)
        } else {
            self.put_chain(mem, &mut |a, l, f| ring.put(mem, a, l, f), spec, id)
        };
        if let Side::Packed(packed) = &mut self.side {
            packed.keep(&ring);
        }
        status
    }

    /// Shows the device what was added since the last time.
    #[inline]
    pub fn expose(&mut self, mem: &impl SharedMemory) {
        either!(&mut self.side, side => side.expose(mem, &self.layout));
    }

    /// Whether the device wants to hear of what was exposed since the last question.
    #[inline]
    pub fn should_kick(&mut self, mem: &impl SharedMemory) -> bool {
        either!(&mut self.side, side => side.should_kick(mem, &self.layout, self.event_idx))
    }

    /// Takes one request that came back.
    ///
    /// # Errors
    /// When the device broke the queue; nothing more can be told from its ring.
    #[inline]
    pub fn reap(&mut self, mem: &impl SharedMemory) -> Result<Option<Completion>, Fault> {
        let used = match &mut self.side {
            Side::Split(split) => split.look(mem, &self.layout, self.under_way)?,
            Side::Packed(packed) => packed.look(mem, &self.layout)?,
        };
        let Some((id, used_len)) = used else { return Ok(None) };
        let name = u16::try_from(id).map_err(|_| Fault::BadId(id))?;
        let found = self.in_flight.get_mut(usize::from(name)).ok_or(Fault::BadId(id))?;
        if found.count == 0 {
            return Err(Fault::NotInFlight(Tag(name)));
        }
        let status = mem.read(self.layout.region, found.status)?;
        match &mut self.side {
            Side::Split(split) => split.pass(),
            Side::Packed(packed) => packed.pass(&self.layout, found.count),
        }
        self.next[usize::from(found.last)] = self.free_name;
        self.free_name = name;
        self.free += found.count;
        found.count = 0;
        self.under_way -= 1;
        Ok(Some(Completion { tag: Tag(name), status, used_len }))
    }

    /// Asks for an interrupt at the next completion. `true` when one came in the meantime, for
    /// which there may be no interrupt.
    ///
    /// # Errors
    /// [`Fault::Unmapped`]
    pub fn arm(&mut self, mem: &impl SharedMemory) -> Result<bool, Fault> {
        self.arm_after(mem, 0)
    }

    /// The same, but with event indices `more` completions, or descriptors of a packed ring, are
    /// let pass first.
    ///
    /// # Errors
    /// [`Fault::Unmapped`]
    pub fn arm_after(&mut self, mem: &impl SharedMemory, more: u16) -> Result<bool, Fault> {
        either!(&self.side, side => side.arm_after(mem, &self.layout, self.event_idx, more))
    }

    /// Tells the device that interrupts are of no use.
    ///
    /// # Errors
    /// [`Fault::Unmapped`]
    pub fn disarm(&mut self, mem: &impl SharedMemory) -> Result<(), Fault> {
        match &self.side {
            Side::Split(split) => split.disarm(mem, &self.layout, self.event_idx),
            Side::Packed(packed) => packed.disarm(mem, &self.layout),
        }
    }
}

/// A driver's own memory was checked when the driver was made.
const MAPPED: &str = "the driver's memory is mapped";

#[cfg(test)]
mod tests;
