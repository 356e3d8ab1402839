//! Block devices that an image is written onto.

use std::fs::File;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;

use anyhow::Context;
use rustix::fs::{FallocateFlags, fallocate, ioctl_blksszget};
use rustix::io::Errno;

use super::claim::hold;
use super::fault::Fault;
use super::format::Format;
use super::text::shown;
use crate::size::show_size;
use crate::store::lock::Access;
use crate::store::probe;

/// Bytes that are zeroed at once.
const STRETCH: u64 = 256 << 20;

/// Whether a path leads to a block device.
pub(super) fn is_device(path: &Path) -> bool {
    std::fs::metadata(path).is_ok_and(|about| about.file_type().is_block_device())
}

/// Opens a device to be overwritten with `bytes`, for nobody but this command.
//= spec/convert.md#CNV-13
pub(super) fn open(path: &Path, format: Format, bytes: u64, force: bool) -> Result<File, Fault> {
    let name = shown(path);
    if format != Format::Raw {
        return Err(Fault::Usage(format!("{name} is a block device, which takes --format raw")));
    }
    if !force {
        return Err(Fault::Taken(format!(
            "{name} is a block device; give --force to overwrite what is on it"
        )));
    }
    let alone = File::options().read(true).write(true).custom_flags(libc::O_EXCL).open(path);
    let device = match alone {
        Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {
            return Err(Fault::Taken(probe::busy(path)));
        }
        device => device.with_context(|| format!("cannot open {name}"))?,
    };
    hold(&device, &name, Access::Change)?;
    let room = probe::size_of(&device).with_context(|| format!("cannot measure {name}"))?;
    if room < bytes {
        return Err(Fault::Usage(format!(
            "{name} has {} ({room} bytes), too few for an image of {} ({bytes} bytes)",
            show_size(room),
            show_size(bytes)
        )));
    }
    Ok(device)
}

/// Makes the front of a device read as zeroes, up to the end of a block.
pub(super) fn zero(device: &File, bytes: u64) -> rustix::io::Result<()> {
    let bytes = bytes.next_multiple_of(ioctl_blksszget(device)?.into());
    let mut at = 0;
    while at < bytes {
        let len = STRETCH.min(bytes - at);
        // Where the device can, its space is given back.
        let punched = fallocate(device, flags(FallocateFlags::PUNCH_HOLE), at, len);
        match punched {
            Err(Errno::OPNOTSUPP) => fallocate(device, flags(FallocateFlags::ZERO_RANGE), at, len)?,
            done => done?,
        }
        at += len;
    }
    Ok(())
}

fn flags(what: FallocateFlags) -> FallocateFlags {
    what | FallocateFlags::KEEP_SIZE
}
