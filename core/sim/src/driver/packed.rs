//! The driver side of a packed ring: places with a wrap counter, in the one ring there is.

use sluice_core::memory::SharedMemory;
use sluice_core::virtqueue::layout::{
    DESC_AVAIL, DESC_BYTES, DESC_NEXT, DESC_USED, EVENT_DISABLE, EVENT_ENABLE, EVENT_FLAGS,
    EVENT_PLACE, EventSuppression, PACKED_FLAGS, PackedDescriptor,
};
use sluice_core::virtqueue::packed::{Position, passes};
use zerocopy::byteorder::little_endian::{U16, U32, U64};

use super::{Fault, Layout, MAPPED};

/// Where a driver stands in its packed ring.
#[derive(Clone, Debug)]
pub(super) struct Packed {
    /// The next descriptor to make available.
    avail: Position,
    /// The first descriptor that the device does not see yet, and its flags, which are stored
    /// when it is to.
    pub(super) exposed: Position,
    first_flags: u16,
    /// The place at the last question whether to notify.
    asked: Position,
    /// The next used descriptor to look at.
    pub(super) used: Position,
}

impl Packed {
    pub(super) const START: Self = Self {
        avail: Position::START,
        exposed: Position::START,
        first_flags: 0,
        asked: Position::START,
        used: Position::START,
    };

    const fn place(layout: &Layout, at: Position) -> u64 {
        layout.desc + DESC_BYTES * at.index() as u64
    }

    /// Takes the next places for a chain of `count` descriptors.
    #[inline]
    pub(super) fn cursor<'a>(&mut self, layout: &'a Layout, id: u16, count: u16) -> Cursor<'a> {
        let at = self.avail;
        self.avail = at.after(count, layout.size);
        // Of the first chain that is not exposed, the first flags are held back.
        let hold = at == self.exposed;
        Cursor { layout, place: Place::Ring { at, id, hold }, first_flags: 0, left: count }
    }

    /// Keeps what a cursor has held back.
    #[inline]
    pub(super) const fn keep(&mut self, cursor: &Cursor<'_>) {
        if let Place::Ring { hold: true, .. } = cursor.place {
            self.first_flags = cursor.first_flags;
        }
    }

    #[inline]
    pub(super) fn expose(&mut self, mem: &impl SharedMemory, layout: &Layout) {
        if self.exposed != self.avail {
            let offset = Self::place(layout, self.exposed) + PACKED_FLAGS;
            self.exposed = self.avail;
            mem.store_release_u16(layout.region, offset, self.first_flags).expect(MAPPED);
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
        // The flags have to be out before the wish is read, or both sides may sleep.
        mem.full_fence();
        let wish: EventSuppression = mem.read(layout.region, layout.used).expect(MAPPED);
        match wish.flags.get() {
            EVENT_DISABLE => false,
            EVENT_PLACE if event_idx => Position::from_bits(wish.place.get(), layout.size)
                .is_none_or(|event| passes(old, self.exposed, event, layout.size)),
            _ => true,
        }
    }

    #[inline]
    fn is_used(&self, mem: &impl SharedMemory, layout: &Layout) -> Result<bool, Fault> {
        let offset = Self::place(layout, self.used) + PACKED_FLAGS;
        let flags = mem.load_acquire_u16(layout.region, offset)? & (DESC_AVAIL | DESC_USED);
        Ok(flags == if self.used.wrap() { DESC_AVAIL | DESC_USED } else { 0 })
    }

    /// The next used descriptor: what came back, and its length.
    #[inline]
    pub(super) fn look(
        &self,
        mem: &impl SharedMemory,
        layout: &Layout,
    ) -> Result<Option<(u32, u32)>, Fault> {
        if !self.is_used(mem, layout)? {
            return Ok(None);
        }
        let at = Self::place(layout, self.used);
        let descriptor: PackedDescriptor = mem.read(layout.region, at)?;
        Ok(Some((descriptor.id.get().into(), descriptor.len.get())))
    }

    /// Goes on behind a used chain of `count` descriptors.
    pub(super) const fn pass(&mut self, layout: &Layout, count: u16) {
        self.used = self.used.after(count, layout.size);
    }

    /// With event indices `more` descriptors are let pass first.
    pub(super) fn arm_after(
        &self,
        mem: &impl SharedMemory,
        layout: &Layout,
        event_idx: bool,
        more: u16,
    ) -> Result<bool, Fault> {
        let (region, wish) = (layout.region, layout.avail);
        let mut flags = EVENT_ENABLE;
        if event_idx {
            let event = self.used.after(more.min(layout.size), layout.size);
            mem.write(region, wish, &U16::new(event.bits()))?;
            flags = EVENT_PLACE;
        }
        mem.store_release_u16(region, wish + EVENT_FLAGS, flags)?;
        mem.full_fence();
        self.is_used(mem, layout)
    }

    pub(super) fn disarm(&self, mem: &impl SharedMemory, layout: &Layout) -> Result<(), Fault> {
        Ok(mem.store_release_u16(layout.region, layout.avail + EVENT_FLAGS, EVENT_DISABLE)?)
    }
}

/// Where a cursor fills descriptors.
#[derive(Clone, Copy)]
enum Place {
    /// In the ring, whose first flags may be held back.
    Ring { at: Position, id: u16, hold: bool },
    /// In an indirect table at an offset.
    Table(u64),
}

/// Where the next descriptor of a chain goes.
pub(super) struct Cursor<'a> {
    layout: &'a Layout,
    place: Place,
    first_flags: u16,
    left: u16,
}

impl<'a> Cursor<'a> {
    pub(super) const fn table(layout: &'a Layout, table: u64, count: u16) -> Self {
        Self { layout, place: Place::Table(table), first_flags: 0, left: count }
    }

    #[inline]
    pub(super) fn put(&mut self, mem: &impl SharedMemory, addr: u64, len: u32, flags: u16) {
        self.left -= 1;
        let (offset, id, flags) = match &mut self.place {
            Place::Table(offset) => {
                let entry = *offset;
                *offset += DESC_BYTES;
                (entry, 0, flags)
            }
            Place::Ring { at, id, hold } => {
                let more = if self.left > 0 { DESC_NEXT } else { 0 };
                let lap = if at.wrap() { DESC_AVAIL } else { DESC_USED };
                let entry = Packed::place(self.layout, *at);
                *at = at.after(1, self.layout.size);
                let flags = flags | more | lap;
                if *hold && self.first_flags == 0 {
                    self.first_flags = flags;
                    let whole = (U64::new(addr), U32::new(len), U16::new(*id));
                    let region = self.layout.region;
                    mem.write(region, entry, &whole.0).expect(MAPPED);
                    mem.write(region, entry + 8, &whole.1).expect(MAPPED);
                    mem.write(region, entry + 12, &whole.2).expect(MAPPED);
                    return;
                }
                (entry, *id, flags)
            }
        };
        let descriptor = PackedDescriptor {
            addr: U64::new(addr),
            len: U32::new(len),
            id: U16::new(id),
            flags: U16::new(flags),
        };
        mem.write(self.layout.region, offset, &descriptor).expect(MAPPED);
    }
}
