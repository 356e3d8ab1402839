//! The mark of a poisoned image: a file beside it, there from the first failed sync on.
//!
//! After a failed sync the kernel may have dropped what could not be written and call the next
//! sync a success, so no later sync of this process or another may be believed.

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use anyhow::Context;

/// Where the mark of an image lies.
#[must_use]
pub fn path_of(image: &Path) -> PathBuf {
    let mut name = OsString::from(image);
    name.push(".poisoned");
    PathBuf::from(name)
}

/// Whether an image is marked. One that cannot be looked for counts as there.
#[must_use]
pub fn is_there(image: &Path) -> bool {
    !matches!(path_of(image).try_exists(), Ok(false))
}

/// Marks an image so that it lasts.
///
/// # Errors
/// When the mark cannot be written or synced.
//= spec/store.md#STO-12
//= spec/store.md#STO-34
pub fn set(image: &Path) -> anyhow::Result<()> {
    let path = path_of(image);
    let set = || -> std::io::Result<()> {
        let mut file = OpenOptions::new().create(true).append(true).open(&path)?;
        file.write_all(
            b"A sync of this image failed: writes that were acknowledged may be lost.\n\
              Check what is on it, then clear this mark with `sluice image repair`.\n",
        )?;
        file.sync_all()?;
        sync_directory(&path)
    };
    set().with_context(|| format!("cannot mark {} as poisoned", image.display()))
}

/// Takes the mark away so that it lasts; `false` when there was none.
///
/// # Errors
/// When it cannot be removed.
pub fn clear(image: &Path) -> anyhow::Result<bool> {
    let path = path_of(image);
    let was_there = match std::fs::remove_file(&path) {
        Err(error) if error.kind() == ErrorKind::NotFound => false,
        result => {
            result.with_context(|| format!("cannot remove {}", path.display()))?;
            true
        }
    };
    // Also where there is none: somebody may have been killed between the two.
    sync_directory(&path).with_context(|| format!("cannot sync beside {}", path.display()))?;
    Ok(was_there)
}

/// Makes a change of the directory that `path` lies in durable.
pub(crate) fn sync_directory(path: &Path) -> std::io::Result<()> {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    File::open(parent.unwrap_or(Path::new(".")))?.sync_all()
}
