//! Parking: descriptors that outlive the daemon, so that a restart needs no front end's help.
//!
//! What a front end has handed over (its socket, memory, rings' descriptors, the inflight region)
//! is put outside the process as it comes, into systemd's descriptor store or else into a keeper,
//! a small process of this program. A record of what was negotiated lies in shared memory that is
//! parked too. A daemon that is killed leaves both behind, and its successor takes up the
//! connection where it was.
//!
//! Whatever is missing, torn, or in the middle of a message is dropped: the front end then sees
//! its connection end and comes back by itself, as it would without parking.

mod fds;
pub mod keeper;
mod parked;
pub mod record;

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;

use anyhow::Context;

pub use fds::FdStore;
pub use parked::{Found, Parked, Step};

use self::keeper::Keeper;

/// Where descriptors are parked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Choice {
    /// In systemd's descriptor store, if it says that the service has one; else nowhere
    Auto,
    /// In systemd's descriptor store, which systemd before 254 keeps without saying so
    Systemd,
    /// With a process of its own, which ends when the daemon ends in order
    Keeper,
    /// Nowhere
    Never,
}

/// The parking of a daemon.
#[derive(Debug)]
pub struct Parking {
    store: Arc<FdStore>,
    /// What a predecessor has left, by name.
    found: BTreeMap<String, OwnedFd>,
    keeper: Option<Keeper>,
}

impl Parking {
    /// Opens the parking, with what is in it. A keeper is found, or put, beside `socket`.
    ///
    /// # Errors
    /// When a keeper or systemd's store is wanted and cannot be had. A keeper whose name another
    /// user has is no error: nothing is parked then.
    pub fn open(choice: Choice, socket: Option<&Path>) -> anyhow::Result<Option<Self>> {
        match choice {
            Choice::Never => Ok(None),
            Choice::Auto if !FdStore::systemd_is_announced() => Ok(None),
            Choice::Auto => Ok(FdStore::systemd()?.map(Self::with_systemd)),
            Choice::Systemd => {
                let found = FdStore::systemd()?;
                let found =
                    found.context("--park systemd needs a service manager's NOTIFY_SOCKET")?;
                Ok(Some(Self::with_systemd(found)))
            }
            Choice::Keeper => {
                let socket = socket.context("a keeper needs a --socket-path to be found by")?;
                let found = Keeper::find_or_start(socket)?;
                Ok(found.map(|(keeper, store, found)| Self {
                    store: Arc::new(store),
                    found,
                    keeper: Some(keeper),
                }))
            }
        }
    }

    /// The parking behind a socket whose other end keeps what it is sent, and what it has kept so
    /// far, by name.
    ///
    /// # Errors
    /// When that is no socket.
    pub fn over(socket: OwnedFd, found: BTreeMap<String, OwnedFd>) -> anyhow::Result<Self> {
        Ok(Self { store: Arc::new(FdStore::keeper(socket)?), found, keeper: None })
    }

    fn with_systemd((store, found): (FdStore, BTreeMap<String, OwnedFd>)) -> Self {
        Self { store: Arc::new(store), found, keeper: None }
    }

    /// The part of one disk.
    #[must_use]
    pub fn place(&mut self, disk: u32) -> Place {
        let prefix = format!("sluice-{disk}-");
        let names: Vec<_> =
            self.found.keys().filter(|name| name.starts_with(&prefix)).cloned().collect();
        let found = names.into_iter().filter_map(|name| self.found.remove_entry(&name)).collect();
        Place { store: Arc::clone(&self.store), prefix, found }
    }

    /// After the last [`place`](Self::place): drops what belongs to no disk.
    pub fn tidy(&mut self) {
        for name in core::mem::take(&mut self.found).into_keys() {
            let _ = self.store.remove(&name);
        }
    }

    /// The daemon ends in order. A keeper has nothing more to do; what systemd has is systemd's to
    /// keep over a restart and to drop after a stop.
    //= spec/parking.md#PRK-7
    pub fn end(self) {
        if let Some(keeper) = self.keeper {
            keeper.end(&self.store);
        }
    }
}

/// One disk's part of the parking.
#[derive(Debug)]
pub struct Place {
    store: Arc<FdStore>,
    prefix: String,
    found: BTreeMap<String, OwnedFd>,
}
