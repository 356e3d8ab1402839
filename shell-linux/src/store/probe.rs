//! What an image's file system is good for, found out when the image is opened.

use std::fs::{File, OpenOptions as StdOptions};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use anyhow::{Context, ensure};
use rustix::fs::{FallocateFlags, SeekFrom, fallocate, fstatfs, seek};
use rustix::io::Errno;

use super::align::Alignment;
use super::file::Way;
use super::options::{EngineKind, OpenOptions};

/// `TMPFS_MAGIC`, `RAMFS_MAGIC` and `FUSE_SUPER_MAGIC` of linux/magic.h.
const TMPFS: i64 = 0x0102_1994;
const RAMFS: i64 = 0x8584_58f6;
const FUSE: i64 = 0x6573_5546;

/// The engine that suits a file's file system.
//= spec/store.md#STO-6
pub(super) fn best_engine(file: &File) -> EngineKind {
    match kind_of(file) {
        // The bytes are in memory for good, so no call sleeps on a device.
        Some(TMPFS | RAMFS) => EngineKind::Inline,
        // After a transfer that was cut short io_uring goes on by itself, and where the file
        // system is a program it does so at the wrong offset and reports success (Linux 6.18).
        Some(FUSE) => EngineKind::Threads,
        _ => EngineKind::Uring,
    }
}

/// Bytes of a file or block device, which has them at its end only.
pub(crate) fn size_of(file: &File) -> std::io::Result<u64> {
    let about = file.metadata()?;
    if about.is_file() { Ok(about.len()) } else { Ok(seek(file, SeekFrom::End(0))?) }
}

fn kind_of(file: &File) -> Option<i64> {
    #[allow(clippy::useless_conversion, reason = "the field's type depends on the target")]
    fstatfs(file).ok().map(|about| i64::from(about.f_type))
}

/// The descriptor for an image's I/O: past the page cache where its blocks allow that.
//= spec/store.md#STO-5
pub(super) fn open_best(
    path: &Path,
    plain: File,
    options: OpenOptions,
    bytes: u64,
) -> anyhow::Result<(File, Way)> {
    let buffered = |file, how| Ok((file, Way { alignment: Alignment::NONE, cached: true, how }));
    if best_engine(&plain) == EngineKind::Inline {
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
    let Some((alignment, told)) = Alignment::of(&direct) else {
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
    Ok((direct, Way { alignment, cached: !told, how: "direct" }))
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
