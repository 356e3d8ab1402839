//! What happened, without formatting: counters, and a ring of rare events.

use crate::device::{ControlFault, DeviceId, QueueId};
use crate::image::ImageId;
use crate::limits::TRACE_EVENTS;
use crate::virtqueue::QueueFault;

/// Something worth a line in a log. Nothing that happens per request is an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum TraceEvent {
    /// A queue began to be served.
    QueueStarted(QueueId),
    /// A queue is served without a record of what is under way, though one was agreed upon: there
    /// is no inflight region, or no room in it.
    Unrecorded(QueueId),
    /// A queue has drained and stopped.
    QueueStopped(QueueId),
    /// A queue is no longer served because its driver broke it.
    QueueBroken(QueueId, QueueFault),
    /// A control message was refused.
    Refused(DeviceId, ControlFault),
    /// The front end went away; requests under way run out.
    Leaving(DeviceId),
    /// Nothing of the last front end is left.
    Left(DeviceId),
    /// The first I/O on an image.
    CaptureAsked(ImageId),
    /// I/O on an image is allowed.
    CaptureGranted(ImageId),
    /// A sync failed: nothing more is written to the image.
    Poisoned(ImageId),
}

/// Sums since the shard began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Counters {
    /// Requests taken from rings.
    pub requests: u64,
    /// Requests given back.
    pub completions: u64,
    /// Requests answered with an error of theirs or of the store.
    pub errors: u64,
    /// Chains given back without an answer because there was no place for one.
    pub unanswerable: u64,
    /// Operations handed out.
    pub ops: u64,
    /// Replies that belonged to nothing under way.
    pub stale_replies: u64,
    /// Used indices published.
    pub batches: u64,
    /// Notifications sent to drivers.
    pub notifications: u64,
    /// Notifications received from drivers.
    pub kicks: u64,
    /// Queues that broke.
    pub broken_queues: u64,
    /// Trace events that were overwritten before anybody read them.
    pub trace_lost: u64,
}

/// The most recent events.
#[derive(Debug)]
pub struct Trace {
    events: heapless::Deque<TraceEvent, TRACE_EVENTS>,
    lost: u64,
}

impl Trace {
    /// A ring without events.
    #[must_use]
    pub const fn new() -> Self {
        Self { events: heapless::Deque::new(), lost: 0 }
    }

    /// Adds an event; the oldest makes room.
    pub fn push(&mut self, event: TraceEvent) {
        #[cfg(feature = "defmt")]
        defmt::debug!("{}", event);
        if self.events.is_full() {
            self.events.pop_front();
            self.lost += 1;
        }
        let _ = self.events.push_back(event);
    }

    /// Takes the oldest event.
    pub fn pop(&mut self) -> Option<TraceEvent> {
        self.events.pop_front()
    }

    /// Events that nobody read.
    #[must_use]
    pub const fn lost(&self) -> u64 {
        self.lost
    }
}

impl Default for Trace {
    fn default() -> Self {
        Self::new()
    }
}
