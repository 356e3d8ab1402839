//! A front end that sends bytes.

use std::io::{ErrorKind, IoSlice, IoSliceMut, Read};
use std::mem::MaybeUninit;
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};

/// Request numbers as the protocol has them.
pub(crate) mod request {
    pub(crate) const GET_FEATURES: u32 = 1;
    pub(crate) const SET_FEATURES: u32 = 2;
    pub(crate) const SET_OWNER: u32 = 3;
    pub(crate) const SET_MEM_TABLE: u32 = 5;
    pub(crate) const SET_LOG_BASE: u32 = 6;
    pub(crate) const SET_LOG_FD: u32 = 7;
    pub(crate) const SET_VRING_NUM: u32 = 8;
    pub(crate) const SET_VRING_ADDR: u32 = 9;
    pub(crate) const SET_VRING_BASE: u32 = 10;
    pub(crate) const GET_VRING_BASE: u32 = 11;
    pub(crate) const SET_VRING_KICK: u32 = 12;
    pub(crate) const SET_VRING_CALL: u32 = 13;
    pub(crate) const SET_VRING_ERR: u32 = 14;
    pub(crate) const GET_PROTOCOL_FEATURES: u32 = 15;
    pub(crate) const SET_PROTOCOL_FEATURES: u32 = 16;
    pub(crate) const GET_QUEUE_NUM: u32 = 17;
    pub(crate) const SET_VRING_ENABLE: u32 = 18;
    pub(crate) const SET_BACKEND_REQ_FD: u32 = 21;
    pub(crate) const GET_CONFIG: u32 = 24;
    pub(crate) const SET_CONFIG: u32 = 25;
    pub(crate) const GET_INFLIGHT_FD: u32 = 31;
    pub(crate) const SET_INFLIGHT_FD: u32 = 32;
    pub(crate) const RESET_DEVICE: u32 = 34;
    pub(crate) const GET_MAX_MEM_SLOTS: u32 = 36;
    pub(crate) const ADD_MEM_REG: u32 = 37;
    pub(crate) const REM_MEM_REG: u32 = 38;
    pub(crate) const GET_STATUS: u32 = 40;
}

pub(crate) const VERSION: u32 = 1;
pub(crate) const NEED_REPLY: u32 = 1 << 3;
pub(crate) const NO_FD: u64 = 1 << 8;

/// `VERSION_1` and `PROTOCOL_FEATURES`.
pub(crate) const FEATURES: u64 = 1 << 32 | 1 << 30;
/// `MQ`, `LOG_SHMFD`, `REPLY_ACK`, `BACKEND_REQ`, `CONFIG`, `INFLIGHT_SHMFD` and
/// `CONFIGURE_MEM_SLOTS`.
pub(crate) const PROTOCOL: u64 = 1 | 1 << 1 | 1 << 3 | 1 << 5 | 1 << 9 | 1 << 12 | 1 << 15;

/// The same and `GET_VRING_BASE_INFLIGHT`.
pub(crate) const OFFERED: u64 = PROTOCOL | 1 << 20;

/// How long a test waits for what has to come; a test that gets there has failed.
const LIMIT: Duration = Duration::from_secs(30);

/// An answer.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) request: u32,
    pub(crate) body: Vec<u8>,
}

impl Answer {
    pub(crate) fn number(&self) -> u64 {
        u64::from_ne_bytes(self.body[..].try_into().expect("one number"))
    }
}

pub(crate) struct Client {
    pub(crate) stream: UnixStream,
}

impl Client {
    pub(crate) fn new(stream: UnixStream) -> Self {
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        stream.set_write_timeout(Some(LIMIT)).unwrap();
        Self { stream }
    }

    /// Sends bytes, with descriptors on the first of them; fails when the daemon has closed.
    pub(crate) fn try_bytes(&self, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> std::io::Result<()> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(64))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() {
            assert!(control.push(SendAncillaryMessage::ScmRights(fds)));
        }
        let pieces = [IoSlice::new(bytes)];
        let sent = sendmsg(&self.stream, &pieces, &mut control, SendFlags::NOSIGNAL)?;
        assert_eq!(sent, bytes.len());
        Ok(())
    }

    pub(crate) fn bytes(&self, bytes: &[u8], fds: &[BorrowedFd<'_>]) {
        self.try_bytes(bytes, fds).expect("the daemon listens");
    }

    /// Sends a message.
    pub(crate) fn send(&self, request: u32, body: &[u8]) {
        self.bytes(&message(request, VERSION, body), &[]);
    }

    pub(crate) fn send_fds(&self, request: u32, body: &[u8], fds: &[BorrowedFd<'_>]) {
        self.bytes(&message(request, VERSION, body), fds);
    }

    /// Sends a message and returns what it is acknowledged with.
    pub(crate) fn acked(&mut self, request: u32, body: &[u8], fds: &[BorrowedFd<'_>]) -> u64 {
        self.bytes(&message(request, VERSION | NEED_REPLY, body), fds);
        self.expect(request).number()
    }

    /// Sends a message that has an answer.
    pub(crate) fn ask(&mut self, request: u32, body: &[u8]) -> Answer {
        self.send(request, body);
        self.expect(request)
    }

    /// Sends a message and reads the descriptor that comes with its answer, which stays unread.
    pub(crate) fn ask_fd(&mut self, request: u32, body: &[u8]) -> OwnedFd {
        self.send(request, body);
        let mut byte = [0];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::PEEK | RecvFlags::CMSG_CLOEXEC;
        recvmsg(&self.stream, &mut [IoSliceMut::new(&mut byte)], &mut control, flags).unwrap();
        let fds = control.drain().filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(fds) => Some(fds),
            _ => None,
        });
        let fds: Vec<_> = fds.flatten().collect();
        let [fd] = fds.try_into().expect("one descriptor");
        fd
    }

    /// Reads the answer to a request.
    pub(crate) fn expect(&mut self, request: u32) -> Answer {
        let answer = self.answer().expect("an answer, no end");
        assert_eq!(answer.request, request);
        answer
    }

    /// Reads an answer; `None` when the daemon has closed the connection.
    pub(crate) fn answer(&mut self) -> Option<Answer> {
        let mut header = [0; 12];
        match self.stream.read_exact(&mut header) {
            Ok(()) => {}
            Err(error)
                if [
                    ErrorKind::UnexpectedEof,
                    ErrorKind::ConnectionReset,
                    ErrorKind::BrokenPipe,
                ]
                .contains(&error.kind()) =>
            {
                return None;
            }
            Err(error) => panic!("no answer: {error}"),
        }
        let word = |at| u32::from_ne_bytes(header[at..at + 4].try_into().unwrap());
        assert_eq!(word(4), VERSION | 1 << 2, "an answer says so");
        let mut body = vec![0; word(8) as usize];
        self.stream.read_exact(&mut body).expect("all of the body");
        Some(Answer { request: word(0), body })
    }

    /// Whether the daemon has closed the connection without another word.
    pub(crate) fn is_closed(&mut self) -> bool {
        self.answer().is_none()
    }

    /// Bytes of answers that wait.
    pub(crate) fn queued(&self) -> u64 {
        rustix::io::ioctl_fionread(&self.stream).unwrap()
    }

    /// Waits until the daemon has closed the connection, and reads nothing.
    pub(crate) fn wait_closed(&self) {
        let mut polled = [PollFd::new(&self.stream, PollFlags::empty())];
        let limit = Timespec { tv_sec: 30, tv_nsec: 0 };
        assert_eq!(poll(&mut polled, Some(&limit)).unwrap(), 1, "it closes");
    }

    /// Whether the daemon still answers, after everything that was sent before.
    pub(crate) fn is_served(&mut self) -> bool {
        self.features() != 0
    }

    pub(crate) fn features(&mut self) -> u64 {
        self.ask(request::GET_FEATURES, &[]).number()
    }

    pub(crate) fn half_close(&self) {
        self.stream.shutdown(Shutdown::Write).unwrap();
    }

    /// Negotiates as front ends do.
    pub(crate) fn negotiate(&mut self) {
        self.negotiate_with(PROTOCOL);
    }

    /// The same with other protocol features.
    pub(crate) fn negotiate_with(&mut self, protocol: u64) {
        self.features();
        let offered = self.ask(request::GET_PROTOCOL_FEATURES, &[]).number();
        assert_eq!(offered, OFFERED);
        self.send(request::SET_PROTOCOL_FEATURES, &protocol.to_ne_bytes());
        self.send(request::SET_OWNER, &[]);
        self.send(request::SET_FEATURES, &FEATURES.to_ne_bytes());
        assert!(self.is_served());
    }
}

/// The bytes of a message.
pub(crate) fn message(request: u32, flags: u32, body: &[u8]) -> Vec<u8> {
    let size = u32::try_from(body.len()).expect("a short body");
    [&words(&[request, flags, size])[..], body].concat()
}

/// Numbers of 32 bits, one after the other.
pub(crate) fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

/// Numbers of 64 bits, one after the other.
pub(crate) fn longs(longs: &[u64]) -> Vec<u8> {
    longs.iter().flat_map(|long| long.to_ne_bytes()).collect()
}

/// An eventfd.
pub(crate) fn event() -> OwnedFd {
    eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).expect("an eventfd")
}

/// The same descriptor several times.
pub(crate) fn copies(fd: &impl AsFd, count: usize) -> Vec<BorrowedFd<'_>> {
    vec![fd.as_fd(); count]
}
