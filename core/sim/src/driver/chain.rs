//! Laying a request out as a chain of descriptors.

use sluice_core::blk::request::Header;
use sluice_core::limits::RANGES_MAX;
use sluice_core::memory::{RegionId, SharedMemory};
use sluice_core::virtqueue::layout::{DESC_BYTES, DESC_NEXT, DESC_WRITE, Descriptor};
use zerocopy::byteorder::little_endian::{U16, U32, U64};

use super::layout::SLOT_STATUS;
use super::{Driver, Layout, MAPPED, RequestSpec, STATUS_UNTOUCHED};

impl Driver {
    /// Writes header, status and descriptors. Says where the status byte lies.
    #[inline]
    pub(super) fn put_chain(
        &self,
        mem: &impl SharedMemory,
        cursor: &mut Cursor<'_>,
        spec: &RequestSpec<'_>,
        head: u16,
    ) -> u64 {
        let layout = &self.layout;
        let slot = layout.slot(head);
        let flags = if spec.kind.fills_buffers() { DESC_WRITE } else { 0 };
        let mut buffers = spec.buffers;

        let inline = |addr: u64| addr.checked_sub(layout.guest).expect("in the driver's region");
        let mut header_at = slot;
        if let (true, [first, rest @ ..]) = (spec.header_inline(), buffers) {
            header_at = inline(first.addr - 16);
            cursor.put(mem, first.addr - 16, first.len + 16, 0);
            buffers = rest;
        } else if let Some(cut) = spec.header_cut() {
            let addr = layout.guest_address(slot);
            cursor.put(mem, addr, cut, 0);
            cursor.put(mem, addr + u64::from(cut), 16 - cut, 0);
        } else {
            cursor.put(mem, layout.guest_address(slot), 16, 0);
        }
        let header = Header {
            kind: U32::new(spec.kind.wire()),
            reserved: U32::ZERO,
            sector: U64::new(spec.sector),
        };
        self.write(mem, header_at, &header);

        if !spec.ranges.is_empty() {
            self.put_ranges(mem, cursor, spec, head);
        }

        let mut status_at = slot + SLOT_STATUS;
        let mut shared = None;
        if let (true, [rest @ .., last]) = (spec.status_inline(), buffers) {
            status_at = inline(last.addr + u64::from(last.len));
            (buffers, shared) = (rest, Some(last));
        }
        for buffer in buffers {
            cursor.put(mem, buffer.addr, buffer.len, flags);
        }
        self.write(mem, status_at, &STATUS_UNTOUCHED);
        match shared {
            Some(last) => cursor.put(mem, last.addr, last.len + 1, DESC_WRITE),
            None => cursor.put(mem, layout.guest_address(status_at), 1, DESC_WRITE),
        }
        status_at
    }

    fn put_ranges(
        &self,
        mem: &impl SharedMemory,
        cursor: &mut Cursor<'_>,
        spec: &RequestSpec<'_>,
        head: u16,
    ) {
        assert!(spec.ranges.len() <= RANGES_MAX, "{} ranges", spec.ranges.len());
        let start = self.layout.slot_ranges(head);
        let mut end = start;
        for range in spec.ranges {
            self.write(mem, end, range);
            end += 16;
        }
        let len = u32::try_from(end - start).expect("a few ranges");
        cursor.put(mem, self.layout.guest_address(start), len, 0);
    }

    #[inline]
    pub(super) fn write<T>(&self, mem: &impl SharedMemory, offset: u64, value: &T)
    where
        T: zerocopy::IntoBytes + zerocopy::Immutable,
    {
        mem.write(self.layout.region, offset, value).expect(MAPPED);
    }
}

/// Where the next descriptor of a chain goes.
pub(super) struct Cursor<'a> {
    region: RegionId,
    /// Offset of the table.
    table: u64,
    /// The next free descriptors, or `None` for an indirect table, which is filled in order.
    next: Option<&'a [u16]>,
    /// The next descriptor to fill.
    pub(super) index: u16,
    /// The one filled last.
    pub(super) last: u16,
    left: u16,
}

impl<'a> Cursor<'a> {
    pub(super) fn ring(layout: &Layout, next: &'a [u16], head: u16, count: u16) -> Self {
        let (region, table) = (layout.region, layout.desc);
        Self { region, table, next: Some(next), index: head, last: head, left: count }
    }

    pub(super) fn table(layout: &Layout, table: u64, count: u16) -> Self {
        Self { region: layout.region, table, next: None, index: 0, last: 0, left: count }
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
        mem.write(self.region, offset, &descriptor).expect(MAPPED);
        (self.last, self.index) = (self.index, next);
    }
}
