//! What others do to the file of an image while it is served.

use std::cell::Cell;
use std::fmt;
use std::fs::{File, read_link};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::probe::size_of;
use super::reach::Looks;
use crate::size::show_size;

/// The open file of an image, to be looked at from time to time.
///
/// Everything is asked of the descriptor that the I/O uses: the path may lead elsewhere by now.
#[derive(Debug)]
pub struct Watch {
    file: File,
    path: PathBuf,
    looks: Arc<Looks>,
    named: Cell<bool>,
}

/// What has become of an image's file since the last look.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// It has another size.
    Size {
        /// Bytes at the last look.
        from: u64,
        /// Bytes now.
        to: u64,
    },
    /// Its path leads to another file, or nowhere.
    Parted {
        /// The path that it was opened by.
        path: PathBuf,
        /// Where it is now; `None` when it has no name any more and ends with the daemon.
        now: Option<PathBuf>,
        /// Where it can be read by whoever rescues it.
        rescue: PathBuf,
    },
    /// Its path leads to it again.
    Back(PathBuf),
}

impl Watch {
    pub(super) fn new(file: &File, path: &Path, looks: Arc<Looks>) -> io::Result<Self> {
        let file = file.try_clone()?;
        Ok(Self { file, path: path.to_owned(), looks, named: Cell::new(true) })
    }

    /// What is new. Each thing is told once.
    //= spec/store.md#STO-21
    pub fn look(&self) -> impl Iterator<Item = Change> {
        [self.size(), self.name()].into_iter().flatten()
    }

    fn size(&self) -> Option<Change> {
        self.looks.begin();
        let to = size_of(&self.file).ok()?;
        let from = self.looks.found(to);
        (from != to).then_some(Change::Size { from, to })
    }

    //= spec/store.md#STO-25
    fn name(&self) -> Option<Change> {
        let ours = self.file.metadata().ok()?;
        let there = std::fs::metadata(&self.path);
        let same =
            |there: std::fs::Metadata| (there.dev(), there.ino()) == (ours.dev(), ours.ino());
        let named = match there {
            Ok(there) => same(there),
            Err(error) if error.kind() == io::ErrorKind::NotFound => false,
            // Nothing can be said of it.
            Err(_) => return None,
        };
        if self.named.replace(named) == named {
            return None;
        }
        if named {
            return Some(Change::Back(self.path.clone()));
        }
        let fd = self.file.as_raw_fd();
        let now = read_link(format!("/proc/self/fd/{fd}")).ok().filter(|_| ours.nlink() > 0);
        let rescue = PathBuf::from(format!("/proc/{}/fd/{fd}", std::process::id()));
        Some(Change::Parted { path: self.path.clone(), now, rescue })
    }
}

impl Change {
    /// Whether something may be lost that somebody has to see to.
    #[must_use]
    pub fn is_grave(&self) -> bool {
        match self {
            Self::Size { from, to } => to < from,
            Self::Parted { .. } => true,
            Self::Back(_) => false,
        }
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Size { from, to } if to < from => write!(
                f,
                "the image was cut short under its guest, it had {} and has {} now: what lay behind \
                 is lost; stop the guest and restore it, and shrink images with `sluice image \
                 resize --shrink`, which asks first",
                show_size(*from),
                show_size(*to)
            ),
            Self::Size { from, to } => {
                write!(f, "the image has grown from {} to {}", show_size(*from), show_size(*to))
            }
            Self::Parted { path, now: Some(now), .. } => write!(
                f,
                "{path:?} leads to the image no more; the guest goes on with the file that was \
                 opened, which is {now:?} now: move it back, or serve it from there"
            ),
            Self::Parted { path, now: None, rescue } => write!(
                f,
                "{path:?} leads to the image no more; the guest goes on with the file that was \
                 opened, which has no name any more and is lost when this daemon ends: stop the \
                 guest, then rescue it with `cp --sparse=always {} FILE` before this daemon ends",
                rescue.display()
            ),
            Self::Back(path) => write!(f, "{path:?} leads to the image again"),
        }
    }
}
