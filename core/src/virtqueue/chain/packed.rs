//! Walking a chain of a packed ring: its descriptors lie in a row, and so do those of a table.

use super::{Chain, ChainFault, End, Walk};
use crate::limits::SEGMENTS_MAX;
use crate::memory::{MemoryMap, Segment, SharedMemory};
use crate::virtqueue::layout::{DESC_INDIRECT, DESC_NEXT, DESC_WRITE, PackedDescriptor};
use crate::virtqueue::{PackedRing, QueueFault};

/// Takes the next chain of a packed ring and finds its buffers in memory; `None` when there is
/// none.
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
    segments: &mut [Segment; SEGMENTS_MAX],
) -> Result<Option<Chain>, QueueFault> {
    if ring.available(mem)? == 0 {
        return Ok(None);
    }
    let mut walk = Walk::new(map, segments);
    let mut table = None;
    let mut count = 0;
    let id = loop {
        let descriptor = ring.descriptor(mem, count)?;
        count += 1;
        // What follows a table belongs to the chain, but is not looked at.
        if table.is_none() && !walk.add_unless_table(&descriptor) {
            table = Some(descriptor);
        }
        if descriptor.flags.get() & DESC_NEXT == 0 {
            break descriptor.id.get();
        }
    };
    let token = ring.take(id, count)?;
    let end = table.map_or(End::Whole, |outer| walk.read_table(mem, &outer));
    Ok(Some(walk.finish(token, end)))
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
