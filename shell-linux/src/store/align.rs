//! What direct I/O on a file asks of addresses, offsets and lengths.

use std::fs::{File, read_to_string};

use rustix::fs::{AtFlags, StatxFlags, major, minor, statx};

/// Multiples that direct I/O wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Alignment {
    /// Of addresses in memory.
    pub(super) memory: u32,
    /// Of offsets, and of the lengths of every range.
    pub(super) offset: u32,
}

/// Asked of file systems that do not tell: all of them can do with this.
const CAREFUL: u32 = 4096;

impl Alignment {
    /// The page cache takes anything.
    pub(super) const NONE: Self = Self { memory: 1, offset: 1 };

    /// What this file asks for, and whether the kernel says so itself; `None` when it has no
    /// direct I/O.
    ///
    /// The kernel tells since Linux 6.1. Before that the block device below does; a trial read
    /// would not, because a hole is read at any alignment. It may be the page cache all the same
    /// then: file systems that cannot do direct I/O have taken the flag without a word.
    //= spec/store.md#STO-5
    pub(super) fn of(file: &File) -> Option<(Self, bool)> {
        let told = statx(file, c"", AtFlags::EMPTY_PATH, StatxFlags::DIOALIGN).ok();
        let told = told.filter(|told| StatxFlags::DIOALIGN.bits() & told.stx_mask != 0);
        if let Some(told) = told {
            let (memory, offset) = (told.stx_dio_mem_align, told.stx_dio_offset_align);
            return (memory > 0 && offset > 0).then_some((Self { memory, offset }, true));
        }
        let bytes = super::probe::block_of(file).unwrap_or(0);
        let bytes = if bytes > 0 { bytes } else { device_block(file).unwrap_or(CAREFUL) };
        Some((Self { memory: bytes, offset: bytes }, false))
    }
}

/// The logical block of the block device that the file lies on.
fn device_block(file: &File) -> Option<u32> {
    let device = rustix::fs::fstat(file).ok()?.st_dev;
    let directory = format!("/sys/dev/block/{}:{}", major(device), minor(device));
    // A partition has no queue of its own.
    ["queue", "../queue"].iter().find_map(|queue| {
        let text = read_to_string(format!("{directory}/{queue}/logical_block_size")).ok()?;
        text.trim().parse().ok().filter(|bytes: &u32| bytes.is_power_of_two())
    })
}
