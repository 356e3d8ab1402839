//! The driver side of a split ring: indices that run freely, one for each direction.

use sluice_core::memory::{OutOfRegion, SharedMemory};
use sluice_core::virtqueue::layout::{
    AVAIL_IDX, AVAIL_NO_INTERRUPT, AVAIL_RING, DESC_BYTES, DESC_NEXT, Descriptor, USED_IDX,
    USED_NO_NOTIFY, USED_RING, UsedElement, avail_event_offset, used_event_offset,
};
use sluice_core::virtqueue::passes_event;
use zerocopy::byteorder::little_endian::{U16, U32, U64};

use super::{Fault, Layout, MAPPED};

/// Where a driver stands in its split ring.
#[derive(Clone, Debug, Default)]
pub(super) struct Split {
    /// The available index up to which entries are written.
    avail: u16,
    /// The available index that the device sees.
    pub(super) exposed: u16,
    /// The available index at the last question whether to notify.
    asked: u16,
    /// The next used entry to look at.
    pub(super) used: u16,
    /// The device's used index as last seen.
    seen_used: u16,
}

impl Split {
    /// Where a driver stands whose ring, empty by now, has come as far as `index`.
    pub(super) fn at(
        mem: &impl SharedMemory,
        layout: &Layout,
        index: u16,
    ) -> Result<Self, OutOfRegion> {
        mem.store_release_u16(layout.region, layout.avail + AVAIL_IDX, index)?;
        mem.store_release_u16(layout.region, layout.used + USED_IDX, index)?;
        Ok(Self { avail: index, exposed: index, asked: index, used: index, seen_used: index })
    }

    /// Writes an available entry.
    #[inline]
    pub(super) fn offer(&mut self, mem: &impl SharedMemory, layout: &Layout, head: u16) {
        let entry = u64::from(self.avail & (layout.size - 1));
        let at = layout.avail + AVAIL_RING + 2 * entry;
        mem.write(layout.region, at, &U16::new(head)).expect(MAPPED);
        self.avail = self.avail.wrapping_add(1);
    }

    #[inline]
    pub(super) fn expose(&mut self, mem: &impl SharedMemory, layout: &Layout) {
        if self.exposed != self.avail {
            self.exposed = self.avail;
            let offset = layout.avail + AVAIL_IDX;
            mem.store_release_u16(layout.region, offset, self.avail).expect(MAPPED);
        }
    }

    #[inline]
    pub(super) fn should_kick(
        &mut self,
        mem: &impl SharedMemory,
        layout: &Layout,
        event_idx: bool,
    ) -> bool {
        let old = core::mem::replace(&mut self.asked, self.exposed);
        if old == self.exposed {
            return false;
        }
        // The index has to be out before the wish is read, or both sides may sleep.
        mem.full_fence();
        if event_idx {
            let offset = layout.used + avail_event_offset(layout.size);
            let event: U16 = mem.read(layout.region, offset).expect(MAPPED);
            passes_event(event.get(), self.exposed, old)
        } else {
            let flags: U16 = mem.read(layout.region, layout.used).expect(MAPPED);
            flags.get() & USED_NO_NOTIFY == 0
        }
    }

    /// The next used entry: what came back, and its length.
    #[inline]
    pub(super) fn look(
        &mut self,
        mem: &impl SharedMemory,
        layout: &Layout,
        under_way: u16,
    ) -> Result<Option<(u32, u32)>, Fault> {
        if self.used == self.seen_used {
            let seen = mem.load_acquire_u16(layout.region, layout.used + USED_IDX)?;
            if seen == self.used {
                return Ok(None);
            }
            if seen.wrapping_sub(self.used) > under_way {
                return Err(Fault::UsedIndexJump { from: self.used, to: seen });
            }
            self.seen_used = seen;
        }
        let entry = u64::from(self.used & (layout.size - 1));
        let at = layout.used + USED_RING + 8 * entry;
        let element: UsedElement = mem.read(layout.region, at)?;
        Ok(Some((element.id.get(), element.len.get())))
    }

    /// Goes on to the used entry behind it.
    pub(super) const fn pass(&mut self) {
        self.used = self.used.wrapping_add(1);
    }

    pub(super) fn arm_after(
        &self,
        mem: &impl SharedMemory,
        layout: &Layout,
        event_idx: bool,
        more: u16,
    ) -> Result<bool, Fault> {
        let (region, avail) = (layout.region, layout.avail);
        if event_idx {
            let event = U16::new(self.used.wrapping_add(more));
            mem.write(region, avail + used_event_offset(layout.size), &event)?;
        } else {
            mem.write(region, avail, &U16::ZERO)?;
        }
        mem.full_fence();
        let seen = mem.load_acquire_u16(region, layout.used + USED_IDX)?;
        Ok(seen != self.used)
    }

    /// With event indices it is a matter of asking for a point that has just gone by.
    pub(super) fn disarm(
        &self,
        mem: &impl SharedMemory,
        layout: &Layout,
        event_idx: bool,
    ) -> Result<(), Fault> {
        let (region, avail) = (layout.region, layout.avail);
        if event_idx {
            let past = U16::new(self.used.wrapping_sub(1));
            Ok(mem.write(region, avail + used_event_offset(layout.size), &past)?)
        } else {
            Ok(mem.write(region, avail, &U16::new(AVAIL_NO_INTERRUPT))?)
        }
    }
}

/// Where the next descriptor of a linked chain goes.
pub(super) struct Cursor<'a> {
    layout: &'a Layout,
    /// Offset of the table.
    table: u64,
    /// The next free descriptors, or `None` for an indirect table, which is filled in order.
    next: Option<&'a [u16]>,
    /// The next descriptor to fill.
    index: u16,
    /// The one filled last.
    last: u16,
    left: u16,
}

impl<'a> Cursor<'a> {
    pub(super) const fn ring(layout: &'a Layout, next: &'a [u16], head: u16, count: u16) -> Self {
        Self { layout, table: layout.desc, next: Some(next), index: head, last: head, left: count }
    }

    pub(super) const fn table(layout: &'a Layout, table: u64, count: u16) -> Self {
        Self { layout, table, next: None, index: 0, last: 0, left: count }
    }

    #[inline]
    pub(super) fn put(&mut self, mem: &impl SharedMemory, addr: u64, len: u32, flags: u16) {
        let next = self.next.map_or(self.index + 1, |next| next[usize::from(self.index)]);
        self.left -= 1;
        let (more, link) = if self.left > 0 { (DESC_NEXT, next) } else { (0, 0) };
        let descriptor = Descriptor {
            addr: U64::new(addr),
            len: U32::new(len),
            flags: U16::new(flags | more),
            next: U16::new(link),
        };
        let offset = self.table + DESC_BYTES * u64::from(self.index);
        mem.write(self.layout.region, offset, &descriptor).expect(MAPPED);
        (self.last, self.index) = (self.index, next);
    }

    /// The descriptor filled last.
    pub(super) const fn last(&self) -> u16 {
        self.last
    }
}
