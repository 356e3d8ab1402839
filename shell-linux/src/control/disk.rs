//! What the control thread knows of a disk, whoever its front end is.

use std::cell::RefCell;

use sluice_core::device::DeviceId;

use crate::foreign::Account;
use crate::mailbox::ControlEnd;
use crate::parking::Parked;
use crate::store::Watch;

/// A disk: its name here and on its shard, and the way there.
pub(super) struct Disk<'e> {
    pub(super) device: DeviceId,
    pub(super) name: String,
    pub(super) end: &'e ControlEnd,
    /// Whether tracking of requests in flight is offered.
    pub(super) tracked: bool,
    /// The file whose size is the disk's.
    pub(super) image: Option<Watch>,
    /// What its front ends have.
    pub(super) account: Account,
    /// What is parked of its front end.
    pub(super) parked: RefCell<Option<Parked>>,
}

impl Disk<'_> {
    /// Does something with what is parked, if anything is to be.
    pub(super) fn park(&self, change: impl FnOnce(&mut Parked)) {
        if let Some(parked) = &mut *self.parked.borrow_mut() {
            change(parked);
        }
    }
}
