//! Raw disks stay raw, whatever their guests write into them.
//!
//! A guest can make its disk begin like an image of another format. What is known to be raw
//! carries a mark that guests cannot reach: an extended attribute of the file.

use std::fs::File;
use std::io::{Seek, SeekFrom};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;

use anyhow::{Context, bail};
use rustix::fs::{XattrFlags, fgetxattr, fsetxattr};
use rustix::io::Errno;

use super::format::{Content, Format};
use super::text::shown;

const ATTRIBUTE: &str = "user.sluice.format";
const RAW: &[u8] = b"raw";

/// Writes down that a file is raw.
///
/// # Errors
/// When its file system keeps no such attributes, or has no room.
//= spec/convert.md#CNV-4
pub(super) fn mark(file: &File) -> std::io::Result<()> {
    Ok(fsetxattr(file, ATTRIBUTE, RAW, XattrFlags::empty())?)
}

/// What is known of a file whatever is in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Known {
    Raw,
    Nothing,
    /// The file system keeps no attributes: names have to do.
    Unmarkable,
}

impl Known {
    pub(super) fn of(file: &File) -> Self {
        let mut value = [0; 16];
        match fgetxattr(file, ATTRIBUTE, &mut value) {
            Ok(len) if value.get(..len) == Some(RAW) => Self::Raw,
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => Self::Unmarkable,
            _ => Self::Nothing,
        }
    }
}

/// Whether a file's name says that it is raw.
pub(super) fn is_named_raw(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "raw")
}

/// Looks whether a file may be served as a raw disk, and marks one that will be.
///
/// Called with `sure`, it may be whatever it is. What has been served before is never refused.
///
/// # Errors
/// When it seems to hold a disk in another way; the message says what to do.
//= spec/convert.md#CNV-3
pub fn look_before_serving(path: &Path, sure: bool, read_only: bool) -> anyhow::Result<()> {
    let name = shown(path);
    // What waits on opening, as a pipe does, is no image anyway.
    let how = File::options().read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(path);
    let Ok(file) = how else { return Ok(()) };
    let kind = file.metadata().with_context(|| format!("cannot look at {name}"))?.file_type();
    if !kind.is_file() && !kind.is_block_device() {
        return Ok(());
    }
    let bytes = (&file).seek(SeekFrom::End(0)).with_context(|| format!("cannot measure {name}"))?;
    let content = Content::of(&file, bytes).with_context(|| format!("cannot read {name}"))?;
    let known = Known::of(&file);
    let by_name = known == Known::Unmarkable && is_named_raw(path);
    let is_raw = content == Content::Disk(Format::Raw);
    if !is_raw && !sure {
        if known != Known::Raw && !by_name && kind.is_file() {
            bail!(
                "{name} is {content}, and only raw disks are served. First run `{}`, then serve \
                 what that makes; or give --format raw if it is a disk that only looks like this",
                content.first()
            );
        }
        tracing::warn!("{name} looks like {content}; it is served as the raw disk that it was");
    }
    if !kind.is_file() || read_only || known == Known::Raw {
        return Ok(());
    }
    if mark(&file).is_ok() {
        // What the guest writes never lasts without it: a sync of bytes alone may leave it out.
        //= spec/store.md#STO-35
        file.sync_all().with_context(|| format!("cannot make the mark of {name} durable"))?;
    } else if !by_name {
        tracing::warn!(
            "{name} cannot be marked as raw on its file system: give --format raw each time, or a \
             guest that makes it look like something else is asked about at the next start"
        );
    }
    Ok(())
}
