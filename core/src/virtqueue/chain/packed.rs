//! Walking a chain of a packed ring: its descriptors lie in a row, and so do those of a table.

use super::{Chain, ChainFault, End, Walk};
use crate::inflight::PackedInflight;
use crate::limits::SEGMENTS_MAX;
use crate::memory::{MemoryMap, Segment, SharedMemory};
use crate::virtqueue::layout::{DESC_INDIRECT, DESC_NEXT, DESC_WRITE, PackedDescriptor};
use crate::virtqueue::packed::token;
use crate::virtqueue::{ChainToken, PackedRing, QueueFault};

/// Takes the next chain of a packed ring and finds its buffers in memory; `None` when there is
/// none. What is in an inflight area of an earlier daemon comes first; otherwise the area keeps
/// the chain's descriptors, which its used ones will overwrite.
///
/// The chain has to be walked to be taken: its last descriptor has its name, and where it ends
/// the next begins. What is wrong with its buffers is noted as for a split ring.
///
/// # Errors
/// When end or name of the chain cannot be known; nothing was taken then.
//= spec/packed.md#PVQ-6
#[inline]
pub fn take_packed(
    mem: &impl SharedMemory,
    map: &MemoryMap,
    ring: &mut PackedRing,
    mut area: Option<&mut PackedInflight>,
    segments: &mut [Segment; SEGMENTS_MAX],
) -> Result<Option<Chain>, QueueFault> {
    if let Some(area) = &area
        && let Some(id) = ring.backlog.pop()
    {
        return Ok(Some(take_again(mem, map, area, id, segments)?));
    }
    if ring.waiting(mem)? == 0 {
        return Ok(None);
    }
    let mut row = Row::new(map, segments);
    let id = loop {
        let descriptor = ring.descriptor(mem, row.count)?;
        if let Some(area) = &mut area {
            area.save(mem, &descriptor)?;
        }
        row.add(&descriptor);
        if descriptor.flags.get() & DESC_NEXT == 0 {
            break descriptor.id.get();
        }
    };
    let token = ring.take(id, row.count)?;
    Ok(Some(row.finish(mem, token)))
}

/// Takes a chain again that is in the area. What was kept of it counts, not what stands in the
/// ring by now.
//= spec/recovery.md#REC-14
#[cold]
fn take_again(
    mem: &impl SharedMemory,
    map: &MemoryMap,
    area: &PackedInflight,
    id: u16,
    segments: &mut [Segment; SEGMENTS_MAX],
) -> Result<Chain, QueueFault> {
    let mut row = Row::new(map, segments);
    for record in area.chain(id) {
        row.add(&area.saved(mem, record)?);
    }
    let token = token(id, row.count);
    Ok(row.finish(mem, token))
}

/// The descriptors of a chain as they come.
struct Row<'a> {
    walk: Walk<'a>,
    /// The one that stands for a table.
    table: Option<PackedDescriptor>,
    count: u16,
}

impl<'a> Row<'a> {
    #[inline(always)]
    const fn new(map: &'a MemoryMap, segments: &'a mut [Segment; SEGMENTS_MAX]) -> Self {
        Self { walk: Walk::new(map, segments), table: None, count: 0 }
    }

    #[inline(always)]
    fn add(&mut self, descriptor: &PackedDescriptor) {
        self.count += 1;
        // What follows a table belongs to the chain, but is not looked at.
        if self.table.is_none() && !self.walk.add_unless_table(descriptor) {
            self.table = Some(*descriptor);
        }
    }

    #[inline(always)]
    fn finish(mut self, mem: &impl SharedMemory, token: ChainToken) -> Chain {
        let end = self.table.map_or(End::Whole, |outer| self.walk.read_table(mem, &outer));
        self.walk.finish(token, end)
    }
}

impl Walk<'_> {
    /// Adds the buffer of a descriptor; `false` when it stands for a table.
    #[inline(always)]
    fn add_unless_table(&mut self, descriptor: &PackedDescriptor) -> bool {
        let flags = descriptor.flags.get();
        if flags & DESC_INDIRECT != 0 {
            return false;
        }
        self.add(descriptor.addr.get(), descriptor.len.get(), flags & DESC_WRITE != 0);
        true
    }

    /// Adds all buffers of an indirect table.
    //= spec/packed.md#PVQ-7
    #[inline]
    fn read_table(&mut self, mem: &impl SharedMemory, outer: &PackedDescriptor) -> End {
        if outer.flags.get() & DESC_NEXT != 0 {
            self.note(ChainFault::Nested);
        }
        let Some(table) = self.find_table(outer.addr.get(), outer.len.get()) else {
            return End::Cut(ChainFault::BadIndirect);
        };
        for index in 0..table.count {
            let Some(entry) = table.entry::<PackedDescriptor>(mem, self.map, index) else {
                return End::Cut(ChainFault::OutOfMemory);
            };
            if !self.add_unless_table(&entry) {
                self.note(ChainFault::Nested);
            }
        }
        End::Whole
    }
}
