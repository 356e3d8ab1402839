//! Clones: images that share the blocks of another until one of them is written.

use std::fs::File;
use std::path::Path;

use anyhow::{Context, anyhow};
use rustix::fs::{ioctl_ficlone, statfs};
use rustix::io::Errno;

use super::Progress;
use super::catalog::{About, Catalog};
use super::copy::copy;
use super::fault::Fault;
use super::name::Name;
use super::new::NewFile;

impl Catalog {
    /// Makes `into` out of `from`: by sharing blocks, or with `copying` by copying them.
    ///
    /// # Errors
    /// When the file system shares no blocks and copying was not asked for, when `from` is in
    /// use, when there is none, or when `into` is there already.
    pub fn clone_image(
        &self,
        from: &Name,
        into: &Name,
        copying: bool,
        progress: Progress<'_>,
    ) -> Result<About, Fault> {
        let (source, bytes, poisoned) = self.source(from)?;
        let target = self.vacant(into)?;
        let new = NewFile::beside(&target)?;
        if copying {
            copy(&source, &new.file, bytes, progress)
                .with_context(|| format!("cannot copy image {from}"))?;
        } else {
            share(&source, &new.file, self.dir())?;
        }
        // What may have been lost from one is lost from both.
        self.publish(new, into, poisoned)
    }
}

/// Lets `into` share all blocks of `from`.
//= spec/store.md#STO-20
fn share(from: &File, into: &File, dir: &Path) -> Result<(), Fault> {
    match ioctl_ficlone(into, from) {
        Ok(()) => Ok(()),
        Err(Errno::OPNOTSUPP | Errno::NOTTY | Errno::INVAL | Errno::XDEV | Errno::NOSYS) => {
            Err(Fault::Failed(anyhow!(
                "{} cannot share blocks between files{}; give --copy to copy all of them, or keep \
                 images on XFS (reflink=1) or btrfs",
                dir.display(),
                file_system(dir).map(|name| format!(", it is on {name}")).unwrap_or_default()
            )))
        }
        Err(errno) => Err(Fault::Failed(anyhow::Error::from(errno).context("cannot clone"))),
    }
}

/// The file systems that people keep images on, by their numbers in linux/magic.h.
fn file_system(dir: &Path) -> Option<&'static str> {
    #[allow(clippy::useless_conversion, reason = "the field's type depends on the target")]
    let kind = i64::from(statfs(dir).ok()?.f_type);
    Some(match kind {
        0xef53 => "ext4",
        0x5846_5342 => "XFS without reflink",
        0x0102_1994 => "tmpfs",
        0x6969 => "NFS",
        0x794c_7630 => "overlayfs",
        _ => return None,
    })
}
