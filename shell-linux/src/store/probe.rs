//! What an image's file system is good for, found out when the image is opened.

use std::fs::{File, OpenOptions as StdOptions};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

use anyhow::{Context, bail, ensure};
use rustix::fs::{
    FallocateFlags, OFlags, SeekFrom, fallocate, fcntl_setfl, fstatfs, ioctl_blksszget, major,
    minor, seek,
};
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
        // Its name lies in memory, its bytes do not.
        _ if is_device(file) => EngineKind::Uring,
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
    let direct = match open_direct(path, &plain, options.read_only) {
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

/// Past the page cache. A device keeps its descriptor: nobody opens it a second time.
fn open_direct(path: &Path, plain: &File, read_only: bool) -> std::io::Result<File> {
    if is_device(plain) {
        fcntl_setfl(plain, OFlags::DIRECT)?;
        return plain.try_clone();
    }
    StdOptions::new().read(true).write(!read_only).custom_flags(libc::O_DIRECT).open(path)
}

/// Opens what may be an image: a file, or a block device that nobody else has for himself.
//= spec/store.md#STO-28
pub(super) fn open_plain(path: &Path, read_only: bool) -> anyhow::Result<File> {
    let shown = path.display();
    let about = std::fs::metadata(path).with_context(|| format!("cannot open image {shown}"))?;
    let device = about.file_type().is_block_device();
    // For a device the flag asks for it alone. Who only reads shares it.
    let alone = if device && !read_only { libc::O_EXCL } else { 0 };
    let mut how = StdOptions::new();
    // What waits on opening, as a pipe does, is no image anyway.
    how.read(true).write(!read_only).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY | alone);
    let file = match how.open(path) {
        Err(error) if device && error.raw_os_error() == Some(libc::EBUSY) => bail!(busy(path)),
        file => file.with_context(|| format!("cannot open image {shown}"))?,
    };
    let regular = file.metadata().with_context(|| format!("cannot look at {shown}"))?.is_file();
    ensure!(
        regular || is_device(&file),
        "{shown} is no regular file and no block device: images are raw files or devices"
    );
    // With the flag left on, io_uring would answer EAGAIN where it has to wait.
    fcntl_setfl(&file, OFlags::empty())?;
    Ok(file)
}

/// Says that somebody has a device for himself.
pub(crate) fn busy(path: &Path) -> String {
    format!(
        "{} is mounted, part of another device, or served already: unmount it or stop what uses \
         it first (`lsblk` shows what does)",
        path.display()
    )
}

/// Whether it is a block device.
fn is_device(file: &File) -> bool {
    file.metadata().is_ok_and(|about| about.file_type().is_block_device())
}

/// Bytes of a device's logical block; 0 for a file, which has none of its own.
pub(super) fn block_of(file: &File) -> anyhow::Result<u32> {
    if !is_device(file) {
        return Ok(0);
    }
    let bytes = ioctl_blksszget(file).context("cannot ask the device for its block size")?;
    ensure!(matches!(bytes, 512 | 4096), "the device has blocks of {bytes} bytes, not 512 or 4096");
    Ok(bytes)
}

/// Whether space can be given back.
pub(super) fn can_discard(file: &File, bytes: u64) -> bool {
    if is_device(file) { device_discards(file) } else { can_punch(file, bytes) }
}

fn device_discards(file: &File) -> bool {
    let Ok(about) = file.metadata() else { return false };
    let (major, minor) = (major(about.rdev()), minor(about.rdev()));
    // A partition has no queue of its own.
    ["queue", "../queue"].iter().any(|queue| {
        let path = format!("/sys/dev/block/{major}:{minor}/{queue}/discard_max_bytes");
        std::fs::read_to_string(path).is_ok_and(|most| most.trim() != "0")
    })
}

/// Whether holes can be punched. Asked behind the end, where there is nothing to lose.
fn can_punch(file: &File, bytes: u64) -> bool {
    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    let behind = bytes.next_multiple_of(1 << 20);
    loop {
        match fallocate(file, flags, behind, 1 << 20) {
            Err(Errno::INTR) => {}
            result => return result.is_ok(),
        }
    }
}
