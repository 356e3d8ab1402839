//! What the control thread knows of a disk, whoever its front end is.

use std::cell::{Cell, RefCell};
use std::path::PathBuf;

use sluice_core::device::DeviceId;

use crate::mailbox::ControlEnd;
use crate::parking::Parked;

/// A disk: its name here and on its shard, and the way there.
pub(super) struct Disk<'e> {
    pub(super) device: DeviceId,
    pub(super) name: String,
    pub(super) end: &'e ControlEnd,
    /// Whether tracking of requests in flight is offered.
    pub(super) tracked: bool,
    /// The file whose size is the disk's, and that size when it was last looked at.
    pub(super) image: Option<(PathBuf, Cell<u64>)>,
    /// What is parked of its front end.
    pub(super) parked: RefCell<Option<Parked>>,
}

impl Disk<'_> {
    /// The size of the image's file, if it is another one than the last time.
    pub(super) fn new_size(&self) -> Option<u64> {
        let (path, seen) = self.image.as_ref()?;
        let file = std::fs::metadata(path).ok().filter(std::fs::Metadata::is_file)?;
        (seen.replace(file.len()) != file.len()).then_some(file.len())
    }

    /// Does something with what is parked, if anything is to be.
    pub(super) fn park(&self, change: impl FnOnce(&mut Parked)) {
        if let Some(parked) = &mut *self.parked.borrow_mut() {
            change(parked);
        }
    }
}
