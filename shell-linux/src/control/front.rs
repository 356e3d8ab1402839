//! One disk's place for a front end: free, taken, or waiting until the last one has left.

use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::rc::Rc;
use std::time::{Duration, Instant};

use rustix::event::PollFlags;
use sluice_core::device::DeviceId;

use super::connection::{Connection, End, Progress};
use super::disk::Disk;
use super::look;
use crate::mailbox::Message;
use crate::parking::{Found, Parked, Place};
use crate::store::Change;

/// How long a listener that cannot accept is left alone.
const ACCEPT_RETRY: Duration = Duration::from_secs(1);

/// Who holds the place.
enum Client<'e> {
    /// Nobody.
    None,
    /// A front end.
    Connected(Box<Connection<'e>>, Peer),
    /// What a front end has left behind.
    Leaving,
}

/// Who a front end is, for the log.
#[derive(Clone, Copy)]
struct Peer {
    pid: i32,
    uid: u32,
    announced: bool,
}

/// A disk as the control thread knows it.
pub(super) struct Front<'e> {
    pub(super) shard: usize,
    disk: Rc<Disk<'e>>,
    listener: Option<UnixListener>,
    client: Client<'e>,
    /// Whether somebody may wait at the listener.
    waiting: bool,
    accept_due: Option<Instant>,
}

impl<'e> Front<'e> {
    pub(super) fn new(shard: usize, disk: Disk<'e>, listener: Option<UnixListener>) -> Self {
        Self {
            shard,
            disk: Rc::new(disk),
            waiting: listener.is_some(),
            listener,
            client: Client::None,
            accept_due: None,
        }
    }

    pub(super) fn device(&self) -> DeviceId {
        self.disk.device
    }

    pub(super) const fn listener(&self) -> Option<&UnixListener> {
        self.listener.as_ref()
    }

    pub(super) fn stream(&self) -> Option<&UnixStream> {
        match &self.client {
            Client::Connected(connection, _) => Some(connection.stream()),
            Client::None | Client::Leaving => None,
        }
    }

    /// Somebody came to the listener.
    //= spec/host.md#HOST-9
    pub(super) fn knock(&mut self) {
        self.waiting = true;
        if let Client::Connected(connection, Peer { pid, uid, .. }) = &self.client
            && connection.is_owned()
            && look::hung_up(connection.stream()).is_ok_and(|gone| !gone)
        {
            tracing::warn!(
                disk = %self.disk.name, pid, uid,
                "another front end waits until this one has left: a disk has one at a time"
            );
        }
    }

    /// Gives the place to a stream.
    pub(super) fn connect(&mut self, stream: UnixStream, now: Instant) -> std::io::Result<()> {
        // Reading is gated, writing never finds the socket full: blocking calls do not block.
        stream.set_nonblocking(false)?;
        rustix::io::fcntl_setfd(&stream, rustix::io::FdFlags::CLOEXEC)?;
        let peer = crate::sys::peer(&stream)?;
        let peer = Peer { pid: peer.pid, uid: peer.uid, announced: false };
        tracing::debug!(disk = %self.disk.name, peer.pid, peer.uid, "connection");
        let connection = Connection::new(stream, Rc::clone(&self.disk), now)?;
        self.disk.park(|parked| parked.connect(connection.stream()));
        self.client = Client::Connected(Box::new(connection), peer);
        Ok(())
    }

    /// Takes a disk's parking up, and the connection that a predecessor has left in it.
    //= spec/parking.md#PRK-8
    pub(super) fn take_up(&mut self, place: Place, now: Instant) -> anyhow::Result<()> {
        let (mut parked, found) = Parked::take_up(place)?;
        if let Some(found) = found {
            match self.resume(&found, now) {
                Ok(()) => parked.commit(),
                Err(error) => {
                    tracing::warn!(disk = %self.disk.name, "cannot go on where the last daemon was: {error:#}");
                    if let Ok(stream) = found.stream() {
                        let _ = stream.shutdown(Shutdown::Both);
                    }
                    parked.leave();
                    self.client = Client::Leaving;
                    self.disk.end.send(Message::FrontEndGone(self.disk.device));
                }
            }
        }
        *self.disk.parked.borrow_mut() = Some(parked);
        Ok(())
    }

    fn resume(&mut self, found: &Found, now: Instant) -> anyhow::Result<()> {
        let stream = found.stream()?;
        let peer = crate::sys::peer(&stream)?;
        let peer = Peer { pid: peer.pid, uid: peer.uid, announced: true };
        let connection = Connection::resume(stream, found, Rc::clone(&self.disk), now)?;
        tracing::info!(disk = %self.disk.name, peer.pid, peer.uid, "going on with the front end");
        self.client = Client::Connected(Box::new(connection), peer);
        Ok(())
    }

    /// Takes the next client in, if the place is free and there is one; `true` when it did.
    //= spec/vhost-user.md#VHU-8
    pub(super) fn accept(&mut self, now: Instant) -> bool {
        let Some(listener) = &self.listener else { return false };
        if !self.waiting || !matches!(self.client, Client::None) || self.accept_due > Some(now) {
            return false;
        }
        self.accept_due = None;
        let accepted = match listener.accept() {
            Ok((stream, _)) => self.connect(stream, now),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                self.waiting = false;
                return false;
            }
            Err(error) => Err(error),
        };
        if let Err(error) = accepted {
            tracing::error!(disk = %self.disk.name, %error, "cannot take a front end in");
            self.accept_due = Some(now + ACCEPT_RETRY);
            return false;
        }
        self.waiting = self.is_wanted();
        true
    }

    /// Whether somebody waits at the listener.
    fn is_wanted(&self) -> bool {
        let ready = |listener| look::ready(listener, PollFlags::IN);
        self.listener.as_ref().is_some_and(|l| ready(l).is_ok_and(|r| !r.is_empty()))
    }

    /// Lets the front end's messages in; `true` when it has more.
    pub(super) fn turn(&mut self, now: Instant) -> bool {
        let Client::Connected(connection, peer) = &mut self.client else { return false };
        let progress = connection.turn(now);
        if connection.is_owned() && !peer.announced {
            peer.announced = true;
            tracing::info!(disk = %self.disk.name, peer.pid, peer.uid, "front end connected");
        }
        match progress {
            Progress::Parked => false,
            Progress::Again => true,
            Progress::Closed(end) => {
                self.close(&end);
                false
            }
        }
    }

    /// Tells the front end, if there is one, that the configuration space has changed.
    pub(super) fn config_changed(&self) {
        if let Client::Connected(connection, _) = &self.client {
            connection.config_changed();
        }
    }

    /// Whether there is a file whose size can change, and somebody to tell.
    pub(super) fn has_image(&self) -> bool {
        self.disk.image.is_some() && matches!(self.client, Client::Connected(..))
    }

    /// Looks what has become of the image's file since it was looked at last.
    pub(super) fn look_at_image(&self) {
        let Some(image) = self.disk.image.as_ref().filter(|_| self.has_image()) else { return };
        for change in image.look() {
            if change.is_grave() {
                tracing::warn!(disk = %self.disk.name, "{change}");
            } else {
                tracing::info!(disk = %self.disk.name, "{change}");
            }
            if let Change::Size { to, .. } = change {
                self.disk.end.send(Message::Resized(self.disk.device, to));
            }
        }
    }

    /// Gives the answer to a stop, and goes on.
    pub(super) fn stopped(&mut self, index: u16, base: u32) {
        if let Client::Connected(connection, _) = &mut self.client
            && let Err(end) = connection.stopped(index, base)
        {
            self.close(&end);
        }
    }

    /// Closes the connection and lets the shard know.
    //= spec/vhost-user.md#VHU-10
    //= spec/vhost-user.md#VHU-17
    pub(super) fn close(&mut self, end: &End) {
        let Client::Connected(connection, peer) = &self.client else { return };
        let peer = *peer;
        // Whoever handed a connected socket down may still hold it; the front end has to see an
        // end all the same.
        let _ = connection.stream().shutdown(Shutdown::Both);
        self.disk.park(Parked::leave);
        self.client = Client::Leaving;
        self.disk.end.send(Message::FrontEndGone(self.disk.device));
        let Peer { pid, uid, announced } = peer;
        let name = &self.disk.name;
        match end {
            End::Gone if announced => tracing::info!(disk = %name, pid, uid, "{end}"),
            End::Gone => tracing::debug!(disk = %name, pid, uid, "{end}"),
            _ => tracing::warn!(disk = %name, pid, uid, "connection closed: {end}"),
        }
    }

    /// The front end has held its shard up, and everybody there. It loses its connection, and the
    /// place stays empty for a while: this is not done over and over.
    //= spec/outsiders.md#OUT-21
    pub(super) fn held(&mut self, now: Instant, pause: Duration) {
        let end = End::Held(pause);
        self.accept_due = Some(now + pause);
        if matches!(self.client, Client::Connected(..)) {
            self.close(&end);
        } else {
            tracing::warn!(disk = %self.disk.name, "{end}");
        }
    }

    /// The last front end has left nothing behind.
    pub(super) fn left(&mut self) {
        if matches!(self.client, Client::Leaving) {
            self.client = Client::None;
        }
    }

    /// When [`check`](Self::check) has something to do.
    pub(super) fn deadline(&self, patience: Duration) -> Option<Instant> {
        let Client::Connected(connection, _) = &self.client else {
            let accepts = self.waiting && matches!(self.client, Client::None);
            return self.accept_due.filter(|_| accepts);
        };
        let stuck = connection.stuck();
        let silent = (self.waiting && !connection.is_owned()).then(|| connection.opened());
        Some(stuck.into_iter().chain(silent).min()? + patience)
    }

    /// Closes a connection that has taken too long.
    ///
    /// One that says nothing may stay as long as nobody else wants the place: a front end can
    /// be connected long before its disk is plugged in.
    //= spec/vhost-user.md#VHU-11
    pub(super) fn check(&mut self, now: Instant, patience: Duration) {
        if self.deadline(patience).is_none_or(|deadline| now < deadline) {
            return;
        }
        let Client::Connected(connection, _) = &self.client else { return };
        if connection.stuck().is_some_and(|stuck| now >= stuck + patience) {
            self.close(&End::Deadline);
        } else if self.is_wanted() {
            self.close(&End::Silent);
        } else {
            self.waiting = false;
        }
    }
}
