//! Between the control thread and a shard: messages one way, answers and news the other.
//!
//! A control message is answered within one turn of its shard, and the control thread waits for
//! that; what takes longer (a queue that drains) comes back as [`News`] at its own time.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};

use rustix::event::{EventfdFlags, eventfd};
use sluice_core::device::{ControlEvent, ControlReply, DeviceId};

use crate::foreign::Descriptor;
use crate::mapping::Mapping;

/// What the control thread sends to a shard.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "control messages are rare")]
pub enum Message {
    /// A front end's message.
    Control {
        /// The device it is for.
        device: DeviceId,
        /// The message. Regions in it are numbered by their place in `mappings`.
        event: ControlEvent,
        /// The memory that came with it.
        mappings: Vec<Mapping>,
        /// The kick, call or error descriptor that came with it.
        fd: Option<Descriptor>,
        /// Where the answer goes.
        answer: Sender<ControlReply>,
    },
    /// A front end is gone.
    FrontEndGone(DeviceId),
    /// A device's image has so many bytes now.
    Resized(DeviceId, u64),
    /// Fetch nothing more; end when what is under way has ended.
    Shutdown,
}

/// What a shard tells the control thread unasked.
#[derive(Debug)]
pub enum News {
    /// The late answer to a message that was deferred.
    Late(DeviceId, ControlReply),
    /// The device's configuration space has changed.
    ConfigChanged(DeviceId),
    /// Close the device's connection.
    Evict(DeviceId),
    /// The device's front end has held the shard up: close its connection.
    Held(DeviceId),
    /// The last front end has left nothing behind; the next may come.
    Left(DeviceId),
}

/// An eventfd that says "look at your mailbox", and a flag that says the same to who is awake.
#[derive(Clone, Debug)]
pub struct Bell(Arc<(OwnedFd, AtomicBool)>);

impl Bell {
    /// A bell nobody has rung.
    ///
    /// # Errors
    /// When no descriptor can be had.
    pub fn new() -> rustix::io::Result<Self> {
        let fd = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Self(Arc::new((fd, AtomicBool::new(false)))))
    }

    /// Wakes who waits for it.
    pub fn ring(&self) {
        self.0.1.store(true, Ordering::Release);
        // A full counter rings as well.
        let _ = rustix::io::write(&self.0.0, &1_u64.to_ne_bytes());
    }

    /// Whether it has been rung since it was last asked. A shard asks at every turn, and asking
    /// the mailbox itself takes a fence.
    #[inline]
    #[must_use]
    pub fn has_rung(&self) -> bool {
        self.0.1.load(Ordering::Relaxed) && self.0.1.swap(false, Ordering::Acquire)
    }

    /// Silences it until it is rung again.
    pub fn clear(&self) {
        let _ = rustix::io::read(&self.0.0, &mut [0; 8]);
    }
}

impl AsFd for Bell {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.0.as_fd()
    }
}

/// The control thread's end.
#[derive(Debug)]
pub struct ControlEnd {
    line: Line,
    /// What the shard tells unasked.
    pub news: Receiver<News>,
    /// Rings when there is news.
    pub bell: Bell,
}

/// The shard's end.
#[derive(Debug)]
pub struct ShardEnd {
    /// What the control thread sends.
    pub messages: Receiver<Message>,
    /// Rings when there are messages.
    pub bell: Bell,
    news: Sender<News>,
    control_bell: Bell,
}

/// Makes the two ends.
///
/// # Errors
/// When no descriptors can be had.
pub fn mailbox() -> rustix::io::Result<(ControlEnd, ShardEnd)> {
    let (messages, received) = channel();
    let (news, told) = channel();
    let (control_bell, shard_bell) = (Bell::new()?, Bell::new()?);
    let line = Line { messages, bell: shard_bell.clone() };
    let control = ControlEnd { line, news: told, bell: control_bell.clone() };
    let shard = ShardEnd { messages: received, bell: shard_bell, news, control_bell };
    Ok((control, shard))
}

/// A way to a shard for what needs no answer.
#[derive(Clone, Debug)]
pub struct Line {
    messages: Sender<Message>,
    bell: Bell,
}

impl Line {
    /// Sends a message that has no answer.
    pub fn send(&self, message: Message) {
        // A shard that has ended needs nothing any more.
        let _ = self.messages.send(message);
        self.bell.ring();
    }
}

impl ControlEnd {
    /// Another way to the shard, for another thread.
    #[must_use]
    pub fn line(&self) -> Line {
        self.line.clone()
    }

    /// Sends a message that has no answer.
    pub fn send(&self, message: Message) {
        self.line.send(message);
    }

    /// Sends a front end's message and waits for the shard's next turn; `None` when the shard
    /// has ended.
    pub fn ask(
        &self,
        device: DeviceId,
        event: ControlEvent,
        mappings: Vec<Mapping>,
        fd: Option<Descriptor>,
    ) -> Option<ControlReply> {
        let (answer, answered) = channel();
        self.send(Message::Control { device, event, mappings, fd, answer });
        answered.recv().ok()
    }
}

impl ShardEnd {
    /// Tells the control thread.
    pub fn tell(&self, news: News) {
        let _ = self.news.send(news);
        self.control_bell.ring();
    }
}
