//! From a message to its control event and back: descriptors are checked here, everything that
//! is meant is the core's to judge.

use std::cell::{Cell, RefCell};
use std::fs::File;
use std::os::fd::OwnedFd;
use std::rc::Rc;

use sluice_core::device::{ControlEvent, ControlReply};
use vhost::vhost_user::{Error, Result};

use super::descriptors::own;
use super::disk::Disk;
use super::remedy::{Refusal, remedy};
use crate::foreign::kinds::{Use, check_eventfd};
use crate::mapping::Mapping;

/// What became of a message, beside what the dispatcher says.
///
/// The dispatcher returns a handler's error and its own as one type; here they stay apart.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Nothing to add.
    #[default]
    Pass,
    /// Refused; the connection may go on if the front end was told.
    Nack,
    /// Refused, and the connection may go on whether or not the front end was told.
    Harmless,
    /// Refused, and the connection cannot go on.
    Close,
    /// The answer comes later, by hand.
    Deferred,
    /// There is nobody to ask any more.
    ShardGone,
}

/// One connection's handler.
pub(super) struct Handler<'e> {
    disk: Rc<Disk<'e>>,
    verdict: Cell<Verdict>,
    owned: Cell<bool>,
    told_features: Cell<bool>,
    reply_ack: Cell<bool>,
    /// Where the device may speak.
    channel: RefCell<Option<Rc<OwnedFd>>>,
}

impl<'e> Handler<'e> {
    pub(super) fn new(disk: Rc<Disk<'e>>) -> Self {
        Self {
            disk,
            verdict: Cell::default(),
            owned: Cell::default(),
            told_features: Cell::default(),
            reply_ack: Cell::default(),
            channel: RefCell::default(),
        }
    }

    /// Where the device may speak, if anywhere.
    pub(super) fn channel(&self) -> Option<Rc<OwnedFd>> {
        self.channel.borrow().clone()
    }

    /// What became of the last message.
    pub(super) fn take_verdict(&self) -> Verdict {
        self.verdict.take()
    }

    /// Whether tracking of requests in flight is offered.
    pub(super) fn is_tracked(&self) -> bool {
        self.disk.tracked
    }

    /// Whether a front end has made itself the owner.
    pub(super) fn is_owned(&self) -> bool {
        self.owned.get()
    }

    /// Whether messages that ask for an acknowledgement get one. The dispatcher keeps the same
    /// account and does not tell.
    pub(super) fn acknowledges(&self) -> bool {
        self.told_features.get() && self.reply_ack.get()
    }

    pub(super) fn set_owned(&self) {
        self.owned.set(true);
    }

    pub(super) fn set_told_features(&self) {
        self.told_features.set(true);
    }

    pub(super) fn set_reply_ack(&self, negotiated: bool) {
        self.reply_ack.set(negotiated);
    }

    /// The answer comes later. An error makes the dispatcher send nothing and forget nothing.
    pub(super) fn defer(&self) -> Error {
        self.verdict.set(Verdict::Deferred);
        Error::InvalidOperation("deferred")
    }

    /// Sends one event and waits for the shard's next turn.
    pub(super) fn ask(
        &self,
        event: ControlEvent,
        mappings: Vec<Mapping>,
        fd: Option<OwnedFd>,
    ) -> Result<ControlReply> {
        let keep = Keep::of(&self.disk, &event, &mappings, fd.as_ref());
        let channel = match event {
            ControlEvent::SetBackendReq => fd.as_ref().and_then(|fd| fd.try_clone().ok()),
            _ => None,
        };
        let held = fd.map(|fd| self.disk.account.hold(fd)).transpose();
        let fd = held.map_err(|error| self.refuse(&Refusal::Limit(error)))?;
        match self.disk.end.ask(self.disk.device, event, mappings, fd) {
            Some(ControlReply::Refused(fault)) => {
                self.refuse(&Refusal::Core(fault));
                if fault.closes() {
                    self.verdict.set(Verdict::Close);
                } else if fault.is_harmless() {
                    self.verdict.set(Verdict::Harmless);
                }
                Err(Error::InvalidOperation("refused"))
            }
            Some(reply) => {
                if channel.is_some() {
                    self.channel.replace(channel.map(Rc::new));
                }
                if let Some(keep) = keep {
                    keep.park(&self.disk);
                }
                Ok(reply)
            }
            None => {
                self.verdict.set(Verdict::ShardGone);
                Err(Error::BackendInternalError)
            }
        }
    }

    /// Maps what a message has brought.
    pub(super) fn map(&self, fd: OwnedFd, place: (u64, u64), used: Use) -> anyhow::Result<Mapping> {
        Mapping::of_front_end(fd, place, used, &self.disk.account)
    }

    /// A message that changes something.
    pub(super) fn tell(&self, event: ControlEvent, fd: Option<OwnedFd>) -> Result<()> {
        self.ask(event, Vec::new(), fd).map(drop)
    }

    /// A message that asks for a number. There is no way to refuse that but to close.
    pub(super) fn number(&self, event: ControlEvent) -> Result<u64> {
        match self.ask(event, Vec::new(), None).map_err(|error| self.close(error))? {
            ControlReply::Value(value) => Ok(value),
            _ => Err(self.close(Error::BackendInternalError)),
        }
    }

    pub(super) fn close(&self, error: Error) -> Error {
        if self.verdict.get() != Verdict::ShardGone {
            self.verdict.set(Verdict::Close);
        }
        error
    }

    pub(super) fn refuse(&self, refusal: &Refusal) -> Error {
        self.verdict.set(Verdict::Nack);
        tracing::warn!(disk = %self.disk.name, "refused: {refusal}; {}", remedy(refusal));
        Error::InvalidOperation("refused")
    }

    /// A refusal that the front end need not hear of.
    pub(super) fn refuse_harmlessly(&self, refusal: &Refusal) -> Error {
        let error = self.refuse(refusal);
        self.verdict.set(Verdict::Harmless);
        error
    }

    /// A ring has stopped there and then.
    pub(super) fn note_stopped(&self, index: u16, base: u32) {
        self.disk.park(|parked| parked.stopped(index, base));
    }

    /// A message that is never let in here.
    pub(super) fn unexpected<T>(&self) -> Result<T> {
        Err(self.close(Error::InvalidMessage))
    }

    pub(super) fn ring(&self, event: ControlEvent, file: Option<File>) -> Result<()> {
        let fd = file.map(own).transpose().map_err(|error| Error::SocketError(error.into()))?;
        if let Some(fd) = &fd {
            check_eventfd(fd).map_err(|error| self.close(self.refuse(&Refusal::Ring(error))))?;
        }
        self.tell(event, fd)
    }
}

/// What is to be parked of an event once it is accepted, which takes the event away.
struct Keep {
    event: ControlEvent,
    files: Vec<(u64, OwnedFd)>,
    fd: Option<OwnedFd>,
}

impl Keep {
    /// `None` when nothing is parked. A copy that cannot be had is missed when the record is read.
    fn of(
        disk: &Disk<'_>,
        event: &ControlEvent,
        mappings: &[Mapping],
        fd: Option<&OwnedFd>,
    ) -> Option<Self> {
        disk.parked.borrow().as_ref()?;
        let files = mappings.iter().filter_map(Mapping::file);
        let copy = |(offset, file): (u64, &File)| Some((offset, file.try_clone().ok()?.into()));
        Some(Self {
            event: event.clone(),
            files: files.filter_map(copy).collect(),
            fd: fd.and_then(|fd| fd.try_clone().ok()),
        })
    }

    fn park(&self, disk: &Disk<'_>) {
        disk.park(|parked| parked.note(&self.event, &self.files, self.fd.as_ref()));
    }
}
