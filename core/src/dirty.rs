//! The dirty log: which pages of the guest's memory were written while it moves to another host.
//!
//! A bitmap that the front end lends, one bit a page of guest-physical memory, set here and
//! cleared there (vhost-user specification, "Migration"). A page that is written and not marked
//! arrives old on the other host, without any error.

use crate::memory::{MemoryMap, OutOfRegion, RegionId, SharedMemory};

/// Bytes that one bit stands for, whatever the pages of the guest or the host are.
pub const PAGE_BYTES: u64 = 4096;

/// A dirty log in force.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DirtyLog {
    /// Where the bitmap is mapped.
    pub(crate) region: RegionId,
    /// Bytes of it.
    pub(crate) bytes: u64,
}

/// A page that has no bit in the log, or memory that has no guest address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct OutOfLog;

impl From<OutOfRegion> for OutOfLog {
    fn from(_: OutOfRegion) -> Self {
        Self
    }
}

impl DirtyLog {
    /// Marks the pages of `len` bytes at a place of guest memory.
    ///
    /// # Errors
    /// [`OutOfLog`] when one of them has no bit; nothing outside of the log is touched.
    //= spec/migration.md#MIG-2
    pub(crate) fn mark(
        &self,
        mem: &impl SharedMemory,
        map: &MemoryMap,
        (region, offset): (RegionId, u64),
        len: u64,
    ) -> Result<(), OutOfLog> {
        let Some(more) = len.checked_sub(1) else { return Ok(()) };
        let first = map.guest_address(region, offset).ok_or(OutOfLog)?;
        let last = first.checked_add(more).ok_or(OutOfLog)? / PAGE_BYTES;
        let first = first / PAGE_BYTES;
        if last / 8 >= self.bytes {
            return Err(OutOfLog);
        }
        for byte in first / 8..=last / 8 {
            let from = first.saturating_sub(8 * byte).min(7);
            let to = last.saturating_sub(8 * byte).min(7);
            let bits = (0xff_u8 << from) & (0xff_u8 >> (7 - to));
            mem.set_bits(self.region, byte, bits)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::Region;
    use crate::memory::flat::Flat;

    /// The log; region 0 is guest memory, which nobody touches here.
    const LOG: RegionId = RegionId(1);

    //= spec/migration.md#MIG-2
    #[test]
    fn b47_every_range_marks_its_pages_and_no_others() {
        let region = Region { id: RegionId(0), guest: 0, user: 0, size: 64 * PAGE_BYTES };
        let mut map = MemoryMap::new();
        map.add(region).unwrap();
        let log = DirtyLog { region: LOG, bytes: 3 };
        for first in 0..28_u64 {
            for pages in 1..28_u64 {
                for (early, late) in [(0, 0), (PAGE_BYTES - 1, PAGE_BYTES - 1), (5, 0)] {
                    let bits = Flat::new(&[0, 4]);
                    let offset = first * PAGE_BYTES + early;
                    let last = first + pages - 1;
                    let end = (last * PAGE_BYTES + late).max(offset) + 1;
                    let done = log.mark(&bits, &map, (RegionId(0), offset), end - offset);
                    let last = (end - 1) / PAGE_BYTES;
                    let expected = if last < 24 { (1_u32 << (last + 1)) - (1 << first) } else { 0 };
                    let found = u32::from_le_bytes(bits.bytes(LOG).try_into().unwrap());
                    assert_eq!((done.is_ok(), found), (last < 24, expected), "{first} {pages}");
                }
            }
        }
        let bits = Flat::new(&[0, 4]);
        assert_eq!(log.mark(&bits, &map, (RegionId(0), u64::MAX), 2), Err(OutOfLog));
        assert_eq!(log.mark(&bits, &map, (LOG, 0), 1), Err(OutOfLog), "no guest memory");
        assert_eq!(log.mark(&bits, &map, (LOG, 0), 0), Ok(()), "nothing to mark");
    }
}
