//! One disk's connection, parked as it changes.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use anyhow::{Context, ensure};
use rustix::fs::{MemfdFlags, memfd_create};
use sluice_core::device::ControlEvent;
use sluice_core::virtqueue::layout::USED_IDX;

use super::record::{self, BYTES_MAX, INSIDE, Mapped, Record, Replayed, Serial};
use super::{FdStore, Place};
use crate::foreign::Account;
use crate::foreign::kinds::{Use, check_memory};
use crate::mapping::Mapping;

/// The name of the record's own file behind a disk's prefix.
const RECORD: &str = "record";

/// What is parked of a disk, and the file that says so.
#[derive(Debug)]
pub struct Parked {
    store: Arc<FdStore>,
    prefix: String,
    file: File,
    record: Record,
    /// Descriptors in the store, with the identity of those that may be parked once for several
    /// uses.
    held: BTreeMap<Serial, Option<(u64, u64)>>,
    /// Whether the file is behind.
    changed: bool,
    /// Whether something could not be parked: nothing is valid from then on.
    broken: bool,
}

/// A connection that a predecessor has left.
#[derive(Debug)]
pub struct Found {
    record: Record,
    fds: BTreeMap<Serial, OwnedFd>,
}

/// One event of a replay, with everything that comes along.
#[derive(Debug)]
pub struct Step {
    /// The event.
    pub event: ControlEvent,
    /// Memory, mapped.
    pub mappings: Vec<Mapping>,
    /// A ring's descriptor.
    pub fd: Option<OwnedFd>,
}

impl Parked {
    /// Takes a disk's place up, and the connection in it if there is a whole one. Everything else
    /// in it is dropped, which ends the connection it belonged to.
    ///
    /// # Errors
    /// When nothing can be parked here.
    pub fn take_up(place: Place) -> anyhow::Result<(Self, Option<Found>)> {
        let Place { store, prefix, mut found } = place;
        let file = found.remove(&format!("{prefix}{RECORD}")).map(File::from);
        let fds: BTreeMap<Serial, OwnedFd> = found
            .into_iter()
            .filter_map(|(name, fd)| Some((name.strip_prefix(&prefix)?.parse().ok()?, fd)))
            .collect();
        let was = file.as_ref().map(read);
        let (record, found) = match was {
            Some(Ok(record)) if record.descriptors().all(|serial| fds.contains_key(&serial)) => {
                (record.clone(), record.socket.is_some().then_some(record))
            }
            Some(Ok(record)) => {
                tracing::warn!("a parked descriptor is missing; the front end has to come anew");
                (Record { next: record.next, ..Record::default() }, None)
            }
            Some(Err(error)) => {
                tracing::warn!("{error:#}; the front end has to come anew");
                (Record::default(), None)
            }
            None => (Record::default(), None),
        };
        // Numbers are never used again while an old descriptor may have one.
        //= spec/parking.md#PRK-9
        let next = fds.keys().max().map_or(0, |last| last + 1).max(record.next);
        let is_new = file.is_none();
        let file = match file {
            Some(file) => file,
            None => File::from(memfd_create("sluice-parked", MemfdFlags::CLOEXEC)?),
        };
        let held = fds.iter().map(|(&serial, fd)| (serial, identity(fd.as_fd()))).collect();
        let record = Record { next, ..record };
        let changed = true;
        let mut this = Self { store, prefix, file, record, held, changed, broken: false };
        if is_new {
            this.store.put(&this.name(RECORD), this.file.as_fd())?;
        }
        if found.is_none() {
            this.leave();
        }
        Ok((this, found.map(|record| Found { record, fds })))
    }

    fn name(&self, what: &str) -> String {
        format!("{}{what}", self.prefix)
    }

    /// A message is being handled from now on: what is parked is not whole.
    pub fn begin(&self) {
        // A mark that cannot be set is found by the checksum, or there is nothing parked.
        let _ = self.file.write_all_at(&1_u32.to_le_bytes(), INSIDE);
    }

    /// The message is done with.
    //= spec/parking.md#PRK-2
    pub fn commit(&mut self) {
        if self.broken {
            return;
        }
        let written = if core::mem::take(&mut self.changed) {
            self.file.write_all_at(&record::write(&self.record), 0)
        } else {
            self.file.write_all_at(&0_u32.to_le_bytes(), INSIDE)
        };
        if written.is_err() {
            self.give_up(&anyhow::anyhow!("the record cannot be written"));
            return;
        }
        let used: std::collections::BTreeSet<_> = self.record.descriptors().collect();
        let unused: Vec<_> = self.held.keys().filter(|s| !used.contains(s)).copied().collect();
        for serial in unused {
            self.held.remove(&serial);
            if let Err(error) = self.store.remove(&self.name(&serial.to_string())) {
                self.give_up(&error);
                return;
            }
        }
    }

    /// A front end has connected.
    pub fn connect(&mut self, stream: &UnixStream) {
        self.begin();
        self.record = Record { next: self.record.next, ..Record::default() };
        self.record.socket = self.park(stream.as_fd(), None);
        self.changed = true;
        self.commit();
    }

    /// The front end has gone.
    pub fn leave(&mut self) {
        self.begin();
        self.record = Record { next: self.record.next, ..Record::default() };
        self.changed = true;
        self.commit();
    }

    /// Takes in what was accepted, with copies of the descriptors that came along.
    pub fn note(&mut self, event: &ControlEvent, files: &[(u64, OwnedFd)], fd: Option<&OwnedFd>) {
        let park_file = |(offset, file): &(u64, OwnedFd)| {
            let file = self.park(file.as_fd(), identity(file.as_fd()))?;
            Some(Mapped { offset: *offset, file })
        };
        let mapped: Vec<_> = files.iter().filter_map(park_file).collect();
        let fd = fd.and_then(|fd| self.park(fd.as_fd(), None));
        self.record.note(event, &mapped, fd);
        self.changed = true;
    }

    /// Takes in that a ring has stopped.
    pub fn stopped(&mut self, index: u16, base: u32) {
        self.record.stopped(index.into(), base);
        self.changed = true;
    }

    /// Puts a copy into the store, unless the same file is there already.
    fn park(&mut self, fd: BorrowedFd<'_>, same: Option<(u64, u64)>) -> Option<Serial> {
        if self.broken {
            return None;
        }
        if let Some((&serial, _)) = self.held.iter().find(|(_, is)| same.is_some() && **is == same)
        {
            return Some(serial);
        }
        let serial = self.record.next;
        self.record.next += 1;
        match self.store.put(&self.name(&serial.to_string()), fd) {
            Ok(()) => {
                self.held.insert(serial, same);
                Some(serial)
            }
            Err(error) => {
                self.give_up(&error);
                None
            }
        }
    }

    /// What is parked is not whole and will not be: the mark stays.
    //= spec/parking.md#PRK-5
    fn give_up(&mut self, error: &anyhow::Error) {
        self.begin();
        self.broken = true;
        tracing::warn!("{error:#}; front ends have to connect anew after a restart");
    }
}

impl Found {
    /// The front end's socket.
    ///
    /// # Errors
    /// When there are no more descriptors.
    pub fn stream(&self) -> anyhow::Result<UnixStream> {
        let socket = self.record.socket.context("no socket is parked")?;
        Ok(UnixStream::from(self.copy(socket)?))
    }

    /// Protocol features and device features, as far as there were.
    #[must_use]
    pub const fn features(&self) -> (Option<u64>, bool, Option<u64>) {
        (self.record.protocol, self.record.owner, self.record.features)
    }

    /// What brings the device to where it was.
    ///
    /// # Errors
    /// When something does not fit or cannot be mapped.
    //= spec/outsiders.md#OUT-1
    pub fn replay(&self, account: &Account) -> anyhow::Result<Vec<Step>> {
        let any_file = account.any_file();
        let used_index = |record: &Record, address| self.used_index(record, address, any_file);
        let events = self.record.events(used_index)?;
        let complete = |Replayed { event, mapped, fd }| {
            let used = match event {
                ControlEvent::AddMemRegion(_) => Use::Guest,
                _ => Use::Record,
            };
            let map = |(bytes, Mapped { offset, file })| {
                Mapping::of_front_end(self.copy(file)?, (offset, bytes), used, account)
            };
            let mappings = mapped.map(map).transpose()?.into_iter().collect();
            let fd = fd.map(|fd| self.copy(fd)).transpose()?;
            Ok(Step { event, mappings, fd })
        };
        events.into_iter().map(complete).collect()
    }

    /// The used index of the ring at this user address.
    fn used_index(&self, record: &Record, address: u64, any_file: bool) -> anyhow::Result<u16> {
        let at = address.checked_add(USED_IDX).context("a ring's address wraps")?;
        let holds = |r: &&record::Region| at.checked_sub(r.user).is_some_and(|o| o < r.size);
        let region = record.regions.iter().find(holds).context("a ring outside memory")?;
        let at = region.offset.checked_add(at - region.user).context("a region wraps")?;
        let file = self.copy(region.file)?;
        check_memory(&file, (region.offset, region.size), Use::Guest, any_file)?;
        let mut index = [0; 2];
        File::from(file).read_exact_at(&mut index, at)?;
        Ok(u16::from_le_bytes(index))
    }

    fn copy(&self, serial: Serial) -> anyhow::Result<OwnedFd> {
        let fd = self.fds.get(&serial).with_context(|| format!("descriptor {serial}"))?;
        fd.try_clone().context("copying a descriptor")
    }
}

fn read(file: &File) -> anyhow::Result<Record> {
    let length = file.metadata()?.len();
    ensure!(length <= BYTES_MAX as u64, "the record is too long");
    let mut bytes = vec![0; usize::try_from(length)?];
    file.read_exact_at(&mut bytes, 0)?;
    record::parse(&bytes)
}

/// Which regular file it is. Others have no identity of their own.
fn identity(fd: BorrowedFd<'_>) -> Option<(u64, u64)> {
    let stat = rustix::fs::fstat(fd).ok()?;
    let kind = rustix::fs::FileType::from_raw_mode(stat.st_mode);
    (kind == rustix::fs::FileType::RegularFile).then_some((stat.st_dev, stat.st_ino))
}
