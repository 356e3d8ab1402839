//! Taking an image for this host: flock(2) on the very descriptor that does the I/O.
//!
//! The lock belongs to the open file, and so does every request in the kernel: it outlives a
//! killed process for exactly as long as a write of that process can still land. Beside it,
//! [`bytes`] tells what QEMU's programs look for, and what is served before its first I/O.

use std::fmt;
use std::fs::File;

use anyhow::anyhow;
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use super::bytes;
use super::holder::{Holder, Lock, Place};

/// Who wants an image, and for what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    /// A daemon that serves it, and has said so.
    Serve { read_only: bool },
    /// A command that reads it.
    Copy,
    /// A command that changes, replaces or removes it.
    Change,
}

impl Access {
    pub(super) const fn writes(self) -> bool {
        matches!(self, Self::Serve { read_only: false } | Self::Change)
    }
}

/// What came of trying to take an image.
#[derive(Debug)]
pub enum Captured {
    /// It is this store's.
    Yes,
    /// Somebody has it: ask again.
    Held {
        /// Who, if that can be seen from here.
        by: Option<Holder>,
        /// `false` when the holder is dead and its last I/O has not ended: waiting is all there
        /// is to do, and it ends by itself. `true` when somebody has to let go first.
        alive: bool,
    },
    /// Somebody has it, and who is not known yet: ask again.
    Looking,
    /// The image cannot be taken as it is; asking again is no use before somebody acts.
    Failed(anyhow::Error),
}

impl Captured {
    /// Somebody has it: this one, if he can be seen.
    pub(super) fn held(by: Option<Holder>) -> Self {
        let alive = by.as_ref().is_none_or(|holder| holder.alive);
        Self::Held { by, alive }
    }
}

impl fmt::Display for Captured {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Yes => f.write_str("the image is taken"),
            Self::Looking => {
                f.write_str("the image is in use, and the kernel does not say by whom")
            }
            Self::Held { by: None, .. } => {
                f.write_str("the image is locked by a process that cannot be seen from here")
            }
            Self::Held { by: Some(holder), alive: true } => {
                write!(f, "the image is in use by {holder}; stop it or serve another image")
            }
            Self::Held { by: Some(holder), alive: false } => {
                write!(f, "the last I/O of {holder}, which is dead, has not ended")
            }
            Self::Failed(error) => write!(f, "{error:#}"),
        }
    }
}

/// Why an image cannot be taken.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Obstacle {
    /// Somebody's lock.
    Lock(Lock),
    /// The file cannot be locked.
    Failed(Errno),
}

impl Obstacle {
    /// The same with the one who is in the way, who may have to be looked for everywhere.
    pub(crate) fn explain(self, file: &File) -> Captured {
        match self {
            Self::Lock(lock) => {
                let place = Place::of(file).ok();
                Captured::held(place.and_then(|place| Holder::find(&place, lock)))
            }
            Self::Failed(errno) => unlockable(errno),
        }
    }
}

/// What comes of a file that cannot be locked.
pub(super) fn unlockable(errno: Errno) -> Captured {
    Captured::Failed(anyhow!("cannot lock the image: {errno}"))
}

/// Takes the image.
//= spec/store.md#STO-11
pub(crate) fn take(file: &File, access: Access) -> Result<(), Obstacle> {
    let operation = if access.writes() {
        FlockOperation::NonBlockingLockExclusive
    } else {
        FlockOperation::NonBlockingLockShared
    };
    loop {
        match flock(file, operation) {
            Ok(()) => break,
            Err(Errno::INTR) => {}
            Err(Errno::WOULDBLOCK) => return Err(Obstacle::Lock(Lock::Whole)),
            Err(errno) => return Err(Obstacle::Failed(errno)),
        }
    }
    bytes::take(file, access).map_err(|taken| {
        give_back(file);
        Obstacle::Lock(Lock::Byte(taken))
    })
}

/// Gives the image back. What says that it is served stays.
pub(crate) fn give_back(file: &File) {
    bytes::give_back(file);
    // The only error there is says that there was no lock.
    let _ = flock(file, FlockOperation::Unlock);
}
