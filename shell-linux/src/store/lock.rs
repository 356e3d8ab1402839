//! Taking an image for this host: flock(2) on the very descriptor that does the I/O.
//!
//! The lock belongs to the open file, and so does every request in the kernel: it outlives a
//! killed process for exactly as long as a write of that process can still land.

use std::fmt;
use std::fs::File;

use anyhow::anyhow;
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use super::holder::Holder;

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
    /// The image cannot be taken as it is; asking again is no use before somebody acts.
    Failed(anyhow::Error),
}

impl fmt::Display for Captured {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Yes => f.write_str("the image is taken"),
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

/// Takes the lock, or says who has it.
//= spec/store.md#STO-11
pub(crate) fn take(file: &File, shared: bool) -> Captured {
    let operation = if shared {
        FlockOperation::NonBlockingLockShared
    } else {
        FlockOperation::NonBlockingLockExclusive
    };
    loop {
        match flock(file, operation) {
            Ok(()) => return Captured::Yes,
            Err(Errno::INTR) => {}
            Err(Errno::WOULDBLOCK) => {
                let by = Holder::find(file);
                let alive = by.as_ref().is_none_or(|holder| holder.alive);
                return Captured::Held { by, alive };
            }
            Err(errno) => return Captured::Failed(anyhow!("cannot lock the image: {errno}")),
        }
    }
}

/// Gives the lock back.
pub(crate) fn give_back(file: &File) {
    // The only error there is says that there was no lock.
    let _ = flock(file, FlockOperation::Unlock);
}
