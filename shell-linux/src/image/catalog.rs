//! A directory of images.

use std::fs::{File, create_dir_all, read_dir, remove_file};
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::Context;
use rustix::fs::{FallocateFlags, fallocate};
use serde::Serialize;

use super::claim::{absent, claim};
use super::fault::Fault;
use super::name::Name;
use super::new::NewFile;
use super::raw;
use crate::size::show_size;
use crate::store::lock::Access;
use crate::store::{Holder, bytes, marker};

/// A directory of images.
#[derive(Clone, Debug)]
pub struct Catalog {
    dir: PathBuf,
}

/// What there is to know of an image.
#[derive(Clone, Debug, Serialize)]
pub struct About {
    /// Its name.
    pub name: String,
    /// Its file.
    pub path: PathBuf,
    /// The size that guests see.
    pub bytes: u64,
    /// What it takes on the file system; shared blocks count for each who shares them.
    pub allocated_bytes: u64,
    /// Whether a sync of it failed.
    pub poisoned: bool,
    /// Who has it, as far as that can be seen from here.
    pub in_use: Option<Holder>,
}

impl Catalog {
    /// The images of a directory, which need not be there yet.
    #[must_use]
    pub const fn new(dir: PathBuf) -> Self {
        Self { dir }
    }

    /// The directory.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Where the image of this name lies, if there is one.
    #[must_use]
    pub fn path(&self, name: &Name) -> PathBuf {
        self.dir.join(format!("{name}.raw"))
    }

    /// All images by name.
    ///
    /// # Errors
    /// When the directory cannot be read. One that is not there has no images.
    pub fn list(&self) -> Result<Vec<About>, Fault> {
        let entries = match read_dir(&self.dir) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            result => result.with_context(|| format!("cannot read {}", self.dir.display()))?,
        };
        let mut all = Vec::new();
        for entry in entries {
            let entry = entry.with_context(|| format!("cannot read {}", self.dir.display()))?;
            let file_name = entry.file_name();
            let name = file_name.to_str().and_then(|name| name.strip_suffix(".raw"));
            let Some(name) = name.and_then(|name| name.parse::<Name>().ok()) else { continue };
            match self.about(&name) {
                Ok(about) => all.push(about),
                // Removed meanwhile.
                Err(Fault::NotFound(_)) => {}
                Err(fault) => return Err(fault),
            }
        }
        all.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(all)
    }

    /// One image.
    ///
    /// # Errors
    /// When there is none of this name, or it cannot be looked at.
    pub fn about(&self, name: &Name) -> Result<About, Fault> {
        let path = self.path(name);
        let stat = match std::fs::metadata(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Err(absent(&path, name)),
            result => result.with_context(|| format!("cannot look at {}", path.display()))?,
        };
        Ok(About {
            name: name.to_string(),
            bytes: stat.len(),
            allocated_bytes: stat.blocks() * 512,
            poisoned: marker::is_there(&path),
            in_use: Holder::seen(&stat),
            path,
        })
    }

    /// Makes an image that reads as zeroes. `reserve` takes its space at once.
    ///
    /// # Errors
    /// When the name is taken, the size is none for an image, or there is no space.
    pub fn create(&self, name: &Name, bytes: u64, reserve: bool) -> Result<About, Fault> {
        check_size(bytes)?;
        let target = self.vacant(name)?;
        let new = NewFile::beside(&target)?;
        let made = || format!("cannot make an image of {}", show_size(bytes));
        new.file.set_len(bytes).with_context(made)?;
        if reserve {
            fallocate(&new.file, FallocateFlags::empty(), 0, bytes).with_context(made)?;
        }
        self.publish(new, name, false)
    }

    /// Removes an image that nobody uses, and its mark.
    ///
    /// # Errors
    /// When there is none, or it is in use.
    pub fn remove(&self, name: &Name) -> Result<(), Fault> {
        let path = self.path(name);
        let _claim = claim(&path, name, Access::Change)?;
        let removing = || format!("cannot remove {}", path.display());
        remove_file(&path).with_context(removing)?;
        // The mark goes last: an image never loses it first, whenever the power goes.
        //= spec/store.md#STO-33
        marker::sync_directory(&path).with_context(removing)?;
        marker::clear(&path)?;
        Ok(())
    }

    /// Changes the size of an image that nobody uses. One that a daemon serves can grow: the
    /// daemon follows it.
    ///
    /// # Errors
    /// When it would lose bytes and `shrink` does not allow that, and as for
    /// [`remove`](Self::remove).
    //= spec/store.md#STO-26
    //= spec/store.md#STO-32
    pub fn resize(&self, name: &Name, bytes: u64, shrink: bool) -> Result<About, Fault> {
        check_size(bytes)?;
        let path = self.path(name);
        let file = match claim(&path, name, Access::Change) {
            Err(in_use @ Fault::Taken(_)) => growing(&path, bytes).ok_or(in_use)?,
            claimed => claimed?,
        };
        let looking = || format!("cannot resize {}", path.display());
        let old = file.metadata().with_context(looking)?.len();
        if bytes < old && !shrink {
            return Err(Fault::Usage(format!(
                "image {name} has {}: making it smaller cuts {} off its end for good; shrink what \
                 is on it first, then give --shrink",
                show_size(old),
                show_size(old - bytes)
            )));
        }
        file.set_len(bytes).with_context(looking)?;
        file.sync_all().with_context(looking)?;
        drop(file);
        self.about(name)
    }

    /// Clears the mark of a failed sync; `false` when there was none.
    ///
    /// # Errors
    /// As for [`remove`](Self::remove).
    pub fn repair(&self, name: &Name) -> Result<bool, Fault> {
        let path = self.path(name);
        let _claim = claim(&path, name, Access::Change)?;
        Ok(marker::clear(&path)?)
    }

    /// Takes an image for reading: the file, its size, and whether it is poisoned.
    pub(super) fn source(&self, name: &Name) -> Result<(File, u64, bool), Fault> {
        let path = self.path(name);
        let file = claim(&path, name, Access::Copy)?;
        let bytes = file.metadata().with_context(|| format!("image {name}"))?.len();
        Ok((file, bytes, marker::is_there(&path)))
    }

    /// The path of a name that is not taken, in a directory that is there.
    pub(super) fn vacant(&self, name: &Name) -> Result<PathBuf, Fault> {
        make_dir(&self.dir).with_context(|| format!("cannot make {}", self.dir.display()))?;
        let target = self.path(name);
        if target.symlink_metadata().is_ok() {
            return Err(Fault::Taken(format!(
                "there is an image {name} in {} already",
                self.dir.display()
            )));
        }
        Ok(target)
    }

    /// Lets a new image appear under its name.
    pub(super) fn publish(
        &self,
        new: NewFile,
        name: &Name,
        poisoned: bool,
    ) -> Result<About, Fault> {
        let target = self.path(name);
        // Where that cannot be written down, the name says it.
        let _ = raw::mark(&new.file);
        // Before the name, so that no image ever stands there without its mark.
        //= spec/store.md#STO-33
        if poisoned {
            marker::set(&target)?;
        } else {
            // Left behind by a removal that was cut short.
            marker::clear(&target)?;
        }
        new.publish(&target, false)?;
        self.about(name)
    }
}

/// Makes a directory, and those above it, so that they last.
//= spec/store.md#STO-31
fn make_dir(dir: &Path) -> std::io::Result<()> {
    let missing = |dir: &&Path| !dir.as_os_str().is_empty() && !dir.exists();
    let missing: Vec<_> = dir.ancestors().take_while(missing).collect();
    create_dir_all(dir)?;
    missing.into_iter().try_for_each(marker::sync_directory)
}

/// A served image that may grow to this size, and that nobody else makes grow meanwhile.
fn growing(path: &Path, bytes: u64) -> Option<File> {
    let file = File::options().read(true).write(true).open(path).ok()?;
    let grows = bytes::is_served(&file) && bytes::size_alone(&file);
    (grows && file.metadata().ok()?.len() <= bytes).then_some(file)
}

/// What a disk can have.
///
/// # Errors
/// When there is no disk of this size.
pub fn check_size(bytes: u64) -> Result<(), Fault> {
    if bytes > 0 && bytes.is_multiple_of(512) {
        return Ok(());
    }
    Err(Fault::Usage(format!(
        "{bytes} bytes are no size for a disk: it has a multiple of 512 bytes, and not 0; the next \
         one is {}",
        bytes.max(1).checked_next_multiple_of(512).unwrap_or(u64::MAX - 511)
    )))
}
