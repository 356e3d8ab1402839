//! One front end's connection: look, judge, and let one whole message in at a time.

use core::fmt;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use sluice_core::device::ControlEvent;
use sluice_core::gate::{self, Arm, Decision, GateFault, Header};
use vhost::vhost_user::BackendReqHandler;

use super::descriptors::sealed_region;
use super::disk::Disk;
use super::handler::{Handler, Verdict};
use super::remedy::Refusal;
use super::{answer, look, sys};
use crate::foreign::kinds::{check_channel, check_eventfd};
use crate::parking::{Found, Parked, Step};

const SET_LOG_FD: u32 = 7;
const SET_VRING_ENABLE: u32 = 18;
const SET_BACKEND_REQ_FD: u32 = 21;

/// Messages of one connection before the others have their turn.
const BUDGET: u32 = 16;

/// Where a connection stands after its turn.
#[derive(Debug)]
pub(super) enum Progress {
    /// There is nothing to do until something happens on its socket, or its stop is answered.
    Parked,
    /// Its turn is over, its messages are not.
    Again,
    /// It has ended.
    Closed(End),
}

/// Why a connection ended.
#[derive(Debug)]
pub(super) enum End {
    /// The front end closed it.
    Gone,
    /// Bytes that are no message.
    Gate(GateFault),
    /// The dispatcher found a message wrong.
    Malformed(vhost::vhost_user::Error),
    /// A message was refused, and the front end could not be told or cannot go on.
    Refused,
    /// A message, or the reading of its answer, took too long.
    Deadline,
    /// Another client waits, and this one never said that it owns the device.
    Silent,
    /// The device cannot serve it any more.
    Evicted,
    /// It has held a thread up, and its disk takes no front end for so long.
    Held(Duration),
    /// The shard has ended.
    ShardGone,
    /// The socket failed.
    Socket(rustix::io::Errno),
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Gone => write!(f, "the front end closed the connection"),
            Self::Gate(fault) => write!(f, "the front end does not speak vhost-user ({fault:?})"),
            Self::Malformed(error) => write!(f, "the front end sent a wrong message: {error}"),
            Self::Refused => write!(f, "a message was refused"),
            Self::Deadline => write!(f, "the front end stopped in the middle of a message"),
            Self::Silent => write!(f, "the front end said nothing, and another one waits"),
            Self::Evicted => write!(f, "the disk cannot be served to this front end any more"),
            Self::Held(pause) => write!(
                f,
                "the front end made its eventfd, which is full, block whoever writes to it; the \
                 disk takes no front end for {pause:?}"
            ),
            Self::ShardGone => write!(f, "the shard has ended"),
            Self::Socket(error) => write!(f, "the socket failed: {error}"),
        }
    }
}

pub(super) struct Connection<'e> {
    disk: Rc<Disk<'e>>,
    stream: UnixStream,
    requests: BackendReqHandler<Handler<'e>>,
    handler: Arc<Handler<'e>>,
    opened: Instant,
    /// Since when a message, or room for an answer, is incomplete.
    stuck: Option<Instant>,
    /// The answer to a stop is due; nothing is read until it has been given.
    stopping: bool,
}

impl<'e> Connection<'e> {
    pub(super) fn new(
        stream: UnixStream,
        disk: Rc<Disk<'e>>,
        now: Instant,
    ) -> std::io::Result<Self> {
        let own = stream.try_clone()?;
        Ok(Self::dispatching(own, stream, disk, now))
    }

    /// A connection that a predecessor had, brought to where it was: what the dispatcher has to
    /// know is told it over a socket of our own, everything else goes to the shard as it is.
    //= spec/parking.md#PRK-3
    pub(super) fn resume(
        stream: UnixStream,
        found: &Found,
        disk: Rc<Disk<'e>>,
        now: Instant,
    ) -> anyhow::Result<Self> {
        let (stage, prompter) = UnixStream::pair()?;
        let mut this = Self::dispatching(stage, stream, disk, now);
        for line in answer::negotiation(found.features()) {
            rustix::io::write(&prompter, &line)?;
            this.requests.handle_request()?;
        }
        sys::redirect(&this.requests, &this.stream)?;
        for Step { event, mappings, fd } in found.replay(&this.disk.account)? {
            this.handler.ask(event, mappings, fd)?;
        }
        Ok(this)
    }

    /// A connection whose messages are dispatched as they come from `from`.
    #[expect(clippy::arc_with_non_send_sync, reason = "the dispatcher asks for it; one thread")]
    fn dispatching(from: UnixStream, stream: UnixStream, disk: Rc<Disk<'e>>, now: Instant) -> Self {
        let handler = Arc::new(Handler::new(Rc::clone(&disk)));
        let requests = BackendReqHandler::from_stream(from, Arc::clone(&handler));
        Self { disk, stream, requests, handler, opened: now, stuck: None, stopping: false }
    }

    pub(super) const fn stream(&self) -> &UnixStream {
        &self.stream
    }

    /// When it came.
    pub(super) const fn opened(&self) -> Instant {
        self.opened
    }

    /// Since when it has been in the middle of something.
    pub(super) const fn stuck(&self) -> Option<Instant> {
        self.stuck
    }

    /// Whether a front end has made itself the owner.
    pub(super) fn is_owned(&self) -> bool {
        self.handler.is_owned()
    }

    /// Lets messages in, as many as its turn allows.
    pub(super) fn turn(&mut self, now: Instant) -> Progress {
        match self.messages(now) {
            Ok(progress) => progress,
            Err(end) => Progress::Closed(end),
        }
    }

    //= spec/vhost-user.md#VHU-1
    fn messages(&mut self, now: Instant) -> Result<Progress, End> {
        for _ in 0..BUDGET {
            if self.stopping {
                // What follows the stop stays unread, so its end is not seen behind it.
                return match look::hung_up(&self.stream).map_err(End::Socket)? {
                    true => Err(End::Gone),
                    false => Ok(Progress::Parked),
                };
            }
            if self.disk.account.is_full() {
                return Ok(Progress::Parked);
            }
            let facts = look::look(&self.stream).map_err(End::Socket)?;
            match gate::judge(&facts) {
                Decision::Idle => {
                    self.stuck = None;
                    return Ok(Progress::Parked);
                }
                Decision::Wait | Decision::WaitWrite => {
                    self.stuck.get_or_insert(now);
                    return Ok(Progress::Parked);
                }
                Decision::Bad(fault) => return Err(End::Gate(fault)),
                Decision::Eof => return Err(End::Gone),
                Decision::Whole(arm, header) => {
                    self.stuck = None;
                    self.disk.park(|parked| parked.begin());
                    match arm {
                        Arm::Known => self.dispatch(header)?,
                        Arm::Own => self.own(header)?,
                        Arm::Unknown => self.unknown(header)?,
                    }
                    // A message whose answer is due is not over.
                    if !self.stopping {
                        self.disk.park(Parked::commit);
                    }
                }
            }
        }
        Ok(Progress::Again)
    }

    //= spec/vhost-user.md#VHU-5
    fn dispatch(&mut self, header: Header) -> Result<(), End> {
        let done = self.requests.handle_request();
        match (self.handler.take_verdict(), done) {
            (Verdict::Pass, Ok(())) => Ok(()),
            (Verdict::Pass, Err(error)) => Err(End::Malformed(error)),
            // A refusal that has an answer of its own.
            (Verdict::Nack, Ok(())) => Ok(()),
            (Verdict::Nack, Err(_)) if self.is_told(header) => Ok(()),
            (Verdict::Harmless, _) => Ok(()),
            (Verdict::Nack | Verdict::Close, _) => Err(End::Refused),
            (Verdict::Deferred, _) => {
                self.stopping = true;
                Ok(())
            }
            (Verdict::ShardGone, _) => Err(End::ShardGone),
        }
    }

    fn own(&self, header: Header) -> Result<(), End> {
        match header.request {
            SET_VRING_ENABLE => self.enable(header),
            SET_BACKEND_REQ_FD => self.channel(header),
            SET_LOG_FD => self.log_fd(header),
            _ => self.inflight(header),
        }
    }

    /// An eventfd on which the device may say that its dirty log has changed. It says nothing: who
    /// wants to know looks at the log.
    //= spec/vhost-user.md#VHU-16
    fn log_fd(&self, header: Header) -> Result<(), End> {
        let fd = self.descriptor(header)?;
        let done = check_eventfd(&fd).map_err(|error| self.handler.refuse(&Refusal::Log(error)));
        let _ = self.handler.take_verdict();
        match done {
            done if self.is_told(header) => {
                answer::acknowledge(&self.stream, header, done.is_ok()).map_err(End::Socket)
            }
            Ok(()) => Ok(()),
            Err(_) => Err(End::Refused),
        }
    }

    /// Takes a message that is one descriptor.
    fn descriptor(&self, header: Header) -> Result<OwnedFd, End> {
        self.take(header)?.descriptors.pop().ok_or(End::Gate(GateFault::Cut))
    }

    //= spec/vhost-user.md#VHU-3
    fn unknown(&self, header: Header) -> Result<(), End> {
        tracing::debug!(request = header.request, "a request that is not implemented");
        self.take(header)?;
        if self.is_told(header) {
            answer::acknowledge(&self.stream, header, false).map_err(End::Socket)?;
        }
        Ok(())
    }

    /// Makes the front end a region for the record of what is in flight. There is no way to
    /// refuse one but to close.
    //= spec/vhost-user.md#VHU-13
    fn inflight(&self, header: Header) -> Result<(), End> {
        let body = self.take(header)?.body;
        let number = |at| u16::from_ne_bytes([body[at], body[at + 1]]);
        let (queues, size) = (number(16), number(18));
        let refused = |_| match self.handler.take_verdict() {
            Verdict::ShardGone => End::ShardGone,
            _ => End::Refused,
        };
        let bytes =
            self.handler.number(ControlEvent::GetInflight { queues, size }).map_err(refused)?;
        // No bytes are no region.
        let region = (bytes > 0).then(|| sealed_region(bytes)).transpose().map_err(End::Socket)?;
        let fd = region.as_ref().map(AsFd::as_fd);
        answer::inflight(&self.stream, header, bytes, (queues, size), fd).map_err(End::Socket)
    }

    /// Takes the channel on which the device may speak.
    //= spec/vhost-user.md#VHU-15
    fn channel(&self, header: Header) -> Result<(), End> {
        let fd = self.descriptor(header)?;
        let done = check_channel(&fd)
            .map_err(|error| self.handler.refuse_harmlessly(&Refusal::Channel(error)))
            .and_then(|()| self.handler.tell(ControlEvent::SetBackendReq, Some(fd)));
        self.conclude(header, done.is_ok())
    }

    /// Starts or ends the fetching from a ring, which there need not be yet.
    fn enable(&self, header: Header) -> Result<(), End> {
        let body = self.take(header)?.body;
        let word = |at| body[at..].first_chunk().map_or(0, |&word| u32::from_ne_bytes(word));
        let enable = match word(4) {
            value @ (0 | 1) => value == 1,
            _ => return Err(End::Gate(GateFault::RingWord)),
        };
        let done = self.handler.tell(ControlEvent::SetVringEnable { index: word(0), enable }, None);
        self.conclude(header, done.is_ok())
    }

    /// Ends a message that was taken off the stream and told to the shard.
    fn conclude(&self, header: Header, done: bool) -> Result<(), End> {
        match self.handler.take_verdict() {
            Verdict::ShardGone => Err(End::ShardGone),
            Verdict::Close => Err(End::Refused),
            _ if self.is_told(header) => {
                answer::acknowledge(&self.stream, header, done).map_err(End::Socket)
            }
            Verdict::Nack => Err(End::Refused),
            Verdict::Pass | Verdict::Harmless | Verdict::Deferred => Ok(()),
        }
    }

    /// Tells the front end that the configuration space has changed.
    //= spec/vhost-user.md#VHU-15
    pub(super) fn config_changed(&self) {
        let Some(channel) = self.handler.channel() else { return };
        if let Err(error) = answer::config_changed(channel.as_fd()) {
            tracing::warn!(disk = %self.disk.name, %error, "the front end was not told of another size");
        }
    }

    fn take(&self, header: Header) -> Result<look::Taken, End> {
        let taken = look::take(&self.stream, header).map_err(End::Socket)?;
        taken.ok_or(End::Gate(GateFault::Cut))
    }

    /// Whether the front end hears of a refusal.
    fn is_told(&self, header: Header) -> bool {
        header.needs_reply() && self.handler.acknowledges()
    }

    /// Gives a stop its answer.
    //= spec/vhost-user.md#VHU-9
    pub(super) fn stopped(&mut self, index: u16, base: u32) -> Result<(), End> {
        if !std::mem::take(&mut self.stopping) {
            return Ok(());
        }
        answer::vring_base(&self.stream, index, base).map_err(End::Socket)?;
        self.disk.park(|parked| {
            parked.stopped(index, base);
            parked.commit();
        });
        Ok(())
    }
}
