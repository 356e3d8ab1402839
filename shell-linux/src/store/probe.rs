//! What an image's file system is good for, found out when the image is opened.

use std::fs::{File, OpenOptions as StdOptions};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use anyhow::{Context, ensure};
use rustix::fs::{FallocateFlags, fallocate, fstatfs};
use rustix::io::Errno;

use super::align::Alignment;
use super::file::Way;
use super::options::OpenOptions;

/// `TMPFS_MAGIC` and `RAMFS_MAGIC` of linux/magic.h.
const MEMORY_FILE_SYSTEMS: [i64; 2] = [0x0102_1994, 0x8584_58f6];

/// Whether the file's bytes are in memory for good, so that no call on it sleeps on a device.
pub(super) fn never_sleeps(file: &File) -> bool {
    #[allow(clippy::useless_conversion, reason = "the field's type depends on the target")]
    fstatfs(file).is_ok_and(|about| MEMORY_FILE_SYSTEMS.contains(&i64::from(about.f_type)))
}

/// The descriptor for an image's I/O: past the page cache where its blocks allow that.
//= spec/store.md#STO-5
//= spec/store.md#STO-6
pub(super) fn open_best(
    path: &Path,
    plain: File,
    options: OpenOptions,
    bytes: u64,
) -> anyhow::Result<(File, Way)> {
    let buffered = |file, how| Ok((file, Way { alignment: Alignment::NONE, how }));
    if never_sleeps(&plain) {
        return buffered(plain, "in memory");
    }
    if !options.direct {
        return buffered(plain, "buffered as asked for");
    }
    let mut how = StdOptions::new();
    how.read(true).write(!options.read_only).custom_flags(libc::O_DIRECT);
    let direct = match how.open(path) {
        Ok(direct) => direct,
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
            return buffered(plain, "buffered: the file system has no direct I/O");
        }
        Err(error) => return Err(error).with_context(|| format!("opening {}", path.display())),
    };
    let same = |a: std::fs::Metadata, b: std::fs::Metadata| {
        (a.dev(), a.ino(), a.len()) == (b.dev(), b.ino(), b.len())
    };
    ensure!(
        same(plain.metadata()?, direct.metadata()?),
        "{} changed while it was being opened",
        path.display()
    );
    let Some(alignment) = Alignment::of(&direct) else {
        return buffered(plain, "buffered: the file system has no direct I/O for it");
    };
    if !options.block_bytes.is_multiple_of(alignment.offset) {
        return buffered(
            plain,
            "buffered: the file system's blocks are larger than the image's (4096-byte blocks \
             would be direct)",
        );
    }
    if !bytes.is_multiple_of(u64::from(alignment.offset)) {
        return buffered(plain, "buffered: its size is no multiple of the file system's block");
    }
    Ok((direct, Way { alignment, how: "direct" }))
}

/// Whether holes can be punched. Asked behind the end, where there is nothing to lose.
pub(super) fn can_punch(file: &File, bytes: u64) -> bool {
    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    let behind = bytes.next_multiple_of(1 << 20);
    loop {
        match fallocate(file, flags, behind, 1 << 20) {
            Err(Errno::INTR) => {}
            result => return result.is_ok(),
        }
    }
}
