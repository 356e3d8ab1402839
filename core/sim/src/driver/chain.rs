//! Laying a request out as a chain of descriptors.

use sluice_core::blk::request::Header;
use sluice_core::limits::RANGES_MAX;
use sluice_core::memory::SharedMemory;
use sluice_core::virtqueue::layout::DESC_WRITE;
use zerocopy::byteorder::little_endian::{U32, U64};

use super::layout::SLOT_STATUS;
use super::{Driver, MAPPED, RequestSpec, STATUS_UNTOUCHED};

impl Driver {
    /// Writes header and status, and puts address, length and flags of each buffer where they
    /// become a descriptor. Says where the status byte lies.
    #[inline]
    pub(super) fn put_chain(
        &self,
        mem: &impl SharedMemory,
        put: &mut impl FnMut(u64, u32, u16),
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
            put(first.addr - 16, first.len + 16, 0);
            buffers = rest;
        } else if let Some(cut) = spec.header_cut() {
            let addr = layout.guest_address(slot);
            put(addr, cut, 0);
            put(addr + u64::from(cut), 16 - cut, 0);
        } else {
            put(layout.guest_address(slot), 16, 0);
        }
        let header = Header {
            kind: U32::new(spec.kind.wire()),
            reserved: U32::ZERO,
            sector: U64::new(spec.sector),
        };
        self.write(mem, header_at, &header);

        if !spec.ranges.is_empty() {
            self.put_ranges(mem, put, spec, head);
        }

        let mut status_at = slot + SLOT_STATUS;
        let mut shared = None;
        if let (true, [rest @ .., last]) = (spec.status_inline(), buffers) {
            status_at = inline(last.addr + u64::from(last.len));
            (buffers, shared) = (rest, Some(last));
        }
        for buffer in buffers {
            put(buffer.addr, buffer.len, flags);
        }
        self.write(mem, status_at, &STATUS_UNTOUCHED);
        match shared {
            Some(last) => put(last.addr, last.len + 1, DESC_WRITE),
            None if spec.silent => put(layout.guest_address(status_at), 1, 0),
            None => put(layout.guest_address(status_at), 1, DESC_WRITE),
        }
        status_at
    }

    fn put_ranges(
        &self,
        mem: &impl SharedMemory,
        put: &mut impl FnMut(u64, u32, u16),
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
        put(self.layout.guest_address(start), len, 0);
    }

    #[inline]
    pub(super) fn write<T>(&self, mem: &impl SharedMemory, offset: u64, value: &T)
    where
        T: zerocopy::IntoBytes + zerocopy::Immutable,
    {
        mem.write(self.layout.region, offset, value).expect(MAPPED);
    }
}
