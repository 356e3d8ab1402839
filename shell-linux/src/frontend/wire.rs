//! vhost-user messages on a socket, from the front end's side.
//!
//! One message at a time, one answer for each that has one. Nothing a back end sends is believed
//! before its length and its number are right.

use std::io::{ErrorKind, IoSlice, IoSliceMut, Read};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use vhost::vhost_user::message::{FrontendReq, MAX_MSG_SIZE, VhostUserU64};
use vm_memory::ByteValued;

const VERSION: u32 = 1;
const VERSION_MASK: u32 = 3;
const REPLY: u32 = 1 << 2;
const NEED_REPLY: u32 = 1 << 3;
const HEADER_BYTES: usize = 12;

/// How long a back end may think about one message.
const PATIENCE: Duration = Duration::from_secs(30);

/// The front end's end of the socket.
#[derive(Debug)]
pub(super) struct Socket {
    stream: UnixStream,
    /// Whether every message is answered, negotiated as `REPLY_ACK`.
    pub(super) reply_ack: bool,
}

impl Socket {
    pub(super) fn connect(path: &Path) -> anyhow::Result<Self> {
        let stream = UnixStream::connect(path)
            .with_context(|| format!("connecting to {}", path.display()))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        Ok(Self { stream, reply_ack: false })
    }

    /// Sends a message that has no answer of its own; waits for its acknowledgement if there are.
    pub(super) fn tell(
        &self,
        request: FrontendReq,
        body: &[u8],
        fds: &[BorrowedFd<'_>],
    ) -> anyhow::Result<()> {
        let flags = if self.reply_ack { NEED_REPLY } else { 0 };
        self.send(request, flags, body, fds)?;
        if self.reply_ack {
            let answer = self.receive::<VhostUserU64>(request)?.value;
            ensure!(answer == 0, "the back end refused {request:?} ({answer})");
        }
        Ok(())
    }

    /// Sends a message and takes its answer.
    pub(super) fn ask<T: ByteValued + Default>(
        &self,
        request: FrontendReq,
        body: &[u8],
    ) -> anyhow::Result<T> {
        self.send(request, 0, body, &[])?;
        self.receive(request)
    }

    /// The same for an answer that brings a descriptor along.
    pub(super) fn ask_fd<T: ByteValued + Default>(
        &self,
        request: FrontendReq,
        body: &[u8],
    ) -> anyhow::Result<(T, OwnedFd)> {
        self.send(request, 0, body, &[])?;
        let mut first = [0];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(8))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        // The descriptor comes with the first byte of the header; the rest is looked at below.
        let flags = RecvFlags::PEEK | RecvFlags::CMSG_CLOEXEC;
        recvmsg(&self.stream, &mut [IoSliceMut::new(&mut first)], &mut control, flags)
            .with_context(|| format!("waiting for {request:?}"))?;
        let mut fds = control.drain().filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(fds) => Some(fds),
            _ => None,
        });
        let fd = fds.next().and_then(|mut fds| fds.next());
        let fd = fd.with_context(|| format!("the answer to {request:?} brings no descriptor"))?;
        Ok((self.receive(request)?, fd))
    }

    /// The same for an answer whose length is known only to the caller.
    pub(super) fn ask_bytes(
        &self,
        request: FrontendReq,
        body: &[u8],
        answer: &mut [u8],
    ) -> anyhow::Result<()> {
        self.send(request, 0, body, &[])?;
        self.receive_into(request, answer)
    }

    fn send(
        &self,
        request: FrontendReq,
        flags: u32,
        body: &[u8],
        fds: &[BorrowedFd<'_>],
    ) -> anyhow::Result<()> {
        let mut message = Vec::with_capacity(HEADER_BYTES + body.len());
        let size = u32::try_from(body.len()).context("message too long")?;
        for word in [request as u32, VERSION | flags, size] {
            message.extend_from_slice(&word.to_ne_bytes());
        }
        message.extend_from_slice(body);
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(8))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() {
            ensure!(control.push(SendAncillaryMessage::ScmRights(fds)), "too many descriptors");
        }
        let pieces = [IoSlice::new(&message)];
        let sent = sendmsg(&self.stream, &pieces, &mut control, SendFlags::NOSIGNAL)
            .with_context(|| format!("sending {request:?}"))?;
        ensure!(sent == message.len(), "the back end does not read its messages");
        Ok(())
    }

    fn receive<T: ByteValued + Default>(&self, request: FrontendReq) -> anyhow::Result<T> {
        let mut answer = T::default();
        self.receive_into(request, answer.as_mut_slice())?;
        Ok(answer)
    }

    fn receive_into(&self, request: FrontendReq, answer: &mut [u8]) -> anyhow::Result<()> {
        let mut header = [0; HEADER_BYTES];
        self.read(request, &mut header)?;
        let word = |at: usize| {
            u32::from_ne_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]])
        };
        let (number, flags, size) = (word(0), word(4), word(8) as usize);
        ensure!(flags & VERSION_MASK == VERSION, "the back end speaks no vhost-user: {flags:#x}");
        ensure!(
            number == request as u32 && flags & REPLY != 0,
            "the back end sent message {number} where the answer to {request:?} was due"
        );
        ensure!(size <= MAX_MSG_SIZE, "the answer to {request:?} has {size} bytes");
        let mut body = vec![0; size];
        self.read(request, &mut body)?;
        ensure!(
            size == answer.len(),
            "the answer to {request:?} has {size} bytes instead of {}",
            answer.len()
        );
        answer.copy_from_slice(&body);
        Ok(())
    }

    fn read(&self, request: FrontendReq, into: &mut [u8]) -> anyhow::Result<()> {
        match (&self.stream).read_exact(into) {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => {
                bail!("the back end closed the connection at {request:?}")
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                bail!("the back end did not answer {request:?} within {} s", PATIENCE.as_secs())
            }
            Err(error) => Err(error).with_context(|| format!("waiting for {request:?}")),
        }
    }

    /// Waits this long, or until the back end is gone, which it says.
    pub(super) fn wait_closed(&self, at_most: Duration) -> bool {
        let gone = PollFlags::RDHUP | PollFlags::HUP | PollFlags::ERR;
        let mut fds = [PollFd::new(&self.stream, PollFlags::RDHUP)];
        let timeout = Timespec::try_from(at_most).ok();
        poll(&mut fds, timeout.as_ref()).is_ok() && fds[0].revents().intersects(gone)
    }
}
