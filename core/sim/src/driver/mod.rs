//! A guest's virtio-blk driver: the driver side of a split virtqueue and the requests in it.
//!
//! The one model of a driver that there is: the simulator, the load generator, the verifier and
//! the fuzzers all use it. Like the core it is plain data, and the memory is an argument. What it
//! sends is legal by construction; [`hostile`](crate::hostile) spoils it. Free descriptors are
//! kept as Linux keeps them, last in first out, so that a lightly loaded ring stays in the cache.

mod layout;
mod request;
mod chain;
mod fault;

pub use fault::{Completion, Fault, STATUS_UNTOUCHED, Tag};
pub use layout::Layout;
pub use request::{Buffer, Kind, RequestSpec, Shape};

use sluice_core::memory::{OutOfRegion, SharedMemory};
use sluice_core::virtqueue::layout::{
    AVAIL_IDX, AVAIL_NO_INTERRUPT, AVAIL_RING, DESC_INDIRECT, USED_IDX, USED_NO_NOTIFY, USED_RING,
    UsedElement, avail_event_offset, used_event_offset,
};
use sluice_core::virtqueue::passes_event;
use zerocopy::byteorder::little_endian::U16;

use chain::Cursor;

/// What is known of one head.
#[derive(Clone, Copy, Debug)]
struct InFlight {
    /// Offset of the status byte in the driver's region.
    status: u64,
    /// Descriptors of the ring that the chain holds; 0 while the head is not under way.
    count: u16,
    /// The last of them.
    last: u16,
}

/// The driver's side of one queue.
#[derive(Clone, Debug)]
pub struct Driver {
    layout: Layout,
    event_idx: bool,
    /// The free descriptor behind each free descriptor, and the next one of each in a chain.
    next: Box<[u16]>,
    free_head: u16,
    free: u16,
    in_flight: Box<[InFlight]>,
    under_way: u16,
    /// The available index up to which entries are written.
    avail: u16,
    /// The available index that the device sees.
    exposed: u16,
    /// The available index at the last question whether to notify.
    asked: u16,
    /// The next used entry to look at.
    used: u16,
    /// The device's used index as last seen.
    seen_used: u16,
}

impl Driver {
    /// A driver with empty rings, which are zeroed in memory.
    ///
    /// # Errors
    /// When the layout does not lie in mapped memory.
    ///
    /// # Panics
    /// When the size is no power of two.
    pub fn new(
        mem: &impl SharedMemory,
        layout: Layout,
        event_idx: bool,
    ) -> Result<Self, OutOfRegion> {
        let size = layout.size;
        assert!(size.is_power_of_two() && size <= 1 << 15, "a split ring's size: {size}");
        for offset in (layout.desc..layout.slots).step_by(2) {
            mem.write(layout.region, offset, &U16::ZERO)?;
        }
        mem.read::<u8>(layout.region, layout.end() - 1)?;
        let idle = InFlight { status: 0, count: 0, last: 0 };
        Ok(Self {
            layout,
            event_idx,
            next: (1..=size).collect(),
            free_head: 0,
            free: size,
            in_flight: vec![idle; usize::from(size)].into(),
            under_way: 0,
            avail: 0,
            exposed: 0,
            asked: 0,
            used: 0,
            seen_used: 0,
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

    /// The available index that the device sees.
    #[must_use]
    pub const fn avail_index(&self) -> u16 {
        self.exposed
    }

    /// The used index up to which requests were reaped.
    #[must_use]
    pub const fn used_index(&self) -> u16 {
        self.used
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
        let head = self.free_head;
        let mut ring = Cursor::ring(&self.layout, &self.next, head, count);
        let status = if indirect {
            let offset = self.layout.table(head);
            let table = self.layout.guest_address(offset);
            ring.put(mem, table, u32::from(entries) * 16, DESC_INDIRECT);
            let mut table = Cursor::table(&self.layout, offset, entries);
            self.put_chain(mem, &mut table, spec, head)
        } else {
            self.put_chain(mem, &mut ring, spec, head)
        };
        let (last, behind) = (ring.last, ring.index);
        self.in_flight[usize::from(head)] = InFlight { status, count, last };
        self.free_head = behind;
        self.free -= count;
        self.under_way += 1;
        let entry = u64::from(self.avail & (self.layout.size - 1));
        self.write(mem, self.layout.avail + AVAIL_RING + 2 * entry, &U16::new(head));
        self.avail = self.avail.wrapping_add(1);
        Some(Tag(head))
    }

    /// Shows the device what was added since the last time.
    #[inline]
    pub fn expose(&mut self, mem: &impl SharedMemory) {
        if self.exposed != self.avail {
            self.exposed = self.avail;
            let offset = self.layout.avail + AVAIL_IDX;
            mem.store_release_u16(self.layout.region, offset, self.avail).expect(MAPPED);
        }
    }

    /// Whether the device wants to hear of what was exposed since the last question.
    #[inline]
    pub fn should_kick(&mut self, mem: &impl SharedMemory) -> bool {
        let old = core::mem::replace(&mut self.asked, self.exposed);
        if old == self.exposed {
            return false;
        }
        // The index has to be out before the wish is read, or both sides may sleep.
        mem.full_fence();
        if self.event_idx {
            let offset = self.layout.used + avail_event_offset(self.layout.size);
            let event: U16 = mem.read(self.layout.region, offset).expect(MAPPED);
            passes_event(event.get(), self.exposed, old)
        } else {
            let flags: U16 = mem.read(self.layout.region, self.layout.used).expect(MAPPED);
            flags.get() & USED_NO_NOTIFY == 0
        }
    }

    /// Takes one request that came back.
    ///
    /// # Errors
    /// When the device broke the queue; nothing more can be told from its used ring.
    #[inline]
    pub fn reap(&mut self, mem: &impl SharedMemory) -> Result<Option<Completion>, Fault> {
        let region = self.layout.region;
        if self.used == self.seen_used {
            let seen = mem.load_acquire_u16(region, self.layout.used + USED_IDX)?;
            if seen == self.used {
                return Ok(None);
            }
            if seen.wrapping_sub(self.used) > self.under_way {
                return Err(Fault::UsedIndexJump { from: self.used, to: seen });
            }
            self.seen_used = seen;
        }
        let entry = u64::from(self.used & (self.layout.size - 1));
        let element: UsedElement = mem.read(region, self.layout.used + USED_RING + 8 * entry)?;
        let id = element.id.get();
        let head = u16::try_from(id).map_err(|_| Fault::BadId(id))?;
        let found = self.in_flight.get_mut(usize::from(head)).ok_or(Fault::BadId(id))?;
        if found.count == 0 {
            return Err(Fault::NotInFlight(Tag(head)));
        }
        let status = mem.read(region, found.status)?;
        self.next[usize::from(found.last)] = self.free_head;
        self.free_head = head;
        self.free += found.count;
        found.count = 0;
        self.under_way -= 1;
        self.used = self.used.wrapping_add(1);
        Ok(Some(Completion { tag: Tag(head), status, used_len: element.len.get() }))
    }

    /// Asks for an interrupt at the next completion. `true` when one came in the meantime, for
    /// which there may be no interrupt.
    ///
    /// # Errors
    /// [`Fault::Unmapped`]
    pub fn arm(&mut self, mem: &impl SharedMemory) -> Result<bool, Fault> {
        self.arm_after(mem, 0)
    }

    /// The same, but with event indices `more` completions are let pass first.
    ///
    /// # Errors
    /// [`Fault::Unmapped`]
    pub fn arm_after(&mut self, mem: &impl SharedMemory, more: u16) -> Result<bool, Fault> {
        let (region, avail) = (self.layout.region, self.layout.avail);
        if self.event_idx {
            let event = U16::new(self.used.wrapping_add(more));
            mem.write(region, avail + used_event_offset(self.layout.size), &event)?;
        } else {
            mem.write(region, avail, &U16::ZERO)?;
        }
        mem.full_fence();
        let seen = mem.load_acquire_u16(region, self.layout.used + USED_IDX)?;
        Ok(seen != self.used)
    }

    /// Tells the device that interrupts are of no use. With event indices it is a matter of
    /// asking for a point that has just gone by.
    ///
    /// # Errors
    /// [`Fault::Unmapped`]
    pub fn disarm(&mut self, mem: &impl SharedMemory) -> Result<(), Fault> {
        let (region, avail) = (self.layout.region, self.layout.avail);
        if self.event_idx {
            let past = U16::new(self.used.wrapping_sub(1));
            Ok(mem.write(region, avail + used_event_offset(self.layout.size), &past)?)
        } else {
            Ok(mem.write(region, avail, &U16::new(AVAIL_NO_INTERRUPT))?)
        }
    }
}

/// A driver's own memory was checked when the driver was made.
const MAPPED: &str = "the driver's memory is mapped";

#[cfg(test)]
mod tests;
