//! A store of descriptors by name, outside of this process.
//!
//! systemd's, spoken to as `sd_notify(3)` has it, or a keeper's, which understands the same words.

use std::collections::BTreeMap;
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use anyhow::{Context, ensure};
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType, connect, recvmsg,
    sendmsg, socket_with,
};

/// How long a store may not read what it is sent.
const PATIENCE: Duration = Duration::from_secs(1);

/// Bytes of the longest message.
const MESSAGE_BYTES: usize = 512;

/// The first descriptor that systemd hands down.
const LISTEN_FDS_START: i32 = 3;

/// The way to a store.
#[derive(Debug)]
pub struct FdStore(OwnedFd);

impl FdStore {
    pub(super) fn new(socket: OwnedFd) -> anyhow::Result<Self> {
        set_socket_timeout(&socket, Timeout::Send, Some(PATIENCE))?;
        Ok(Self(socket))
    }

    /// systemd's, if this service has one, and what is in it.
    pub(super) fn systemd() -> anyhow::Result<Option<(Self, BTreeMap<String, OwnedFd>)>> {
        let variable = |name| std::env::var(name).ok();
        let (Some(path), Some(room)) = (variable("NOTIFY_SOCKET"), variable("FDSTORE")) else {
            return Ok(None);
        };
        if room == "0" {
            return Ok(None);
        }
        let address = match path.strip_prefix('@') {
            Some(name) => SocketAddrUnix::new_abstract_name(name.as_bytes())?,
            None => SocketAddrUnix::new(path.as_str())?,
        };
        let flags = SocketFlags::CLOEXEC;
        let socket = socket_with(AddressFamily::UNIX, SocketType::DGRAM, flags, None)?;
        connect(&socket, &address).with_context(|| format!("NOTIFY_SOCKET {path}"))?;
        let ours = variable("LISTEN_PID").is_some_and(|pid| pid == std::process::id().to_string());
        let names = variable("LISTEN_FDNAMES").filter(|_| ours).unwrap_or_default();
        let mut found = BTreeMap::new();
        for (name, fd) in names.split(':').zip(LISTEN_FDS_START..) {
            if name.starts_with("sluice-") {
                found.insert(name.to_owned(), crate::sys::inherited(fd)?);
            }
        }
        Ok(Some((Self::new(socket)?, found)))
    }

    /// Puts a copy of a descriptor in.
    ///
    /// # Errors
    /// When the store is gone or does not read.
    pub fn put(&self, name: &str, fd: BorrowedFd<'_>) -> anyhow::Result<()> {
        send(self.0.as_fd(), &format!("FDSTORE=1\nFDNAME={name}"), &[fd])
            .with_context(|| format!("parking {name}"))
    }

    /// Takes a descriptor out.
    ///
    /// # Errors
    /// When the store is gone or does not read.
    pub fn remove(&self, name: &str) -> anyhow::Result<()> {
        send(self.0.as_fd(), &format!("FDSTOREREMOVE=1\nFDNAME={name}"), &[])
            .with_context(|| format!("dropping {name}"))
    }

    /// Says something else.
    pub(super) fn say(&self, word: &str) -> anyhow::Result<()> {
        send(self.0.as_fd(), word, &[])
    }

    /// The next message.
    pub(super) fn hear(&self) -> anyhow::Result<(String, Option<OwnedFd>)> {
        receive(self.0.as_fd())
    }
}

/// Sends one message.
pub(super) fn send(
    socket: BorrowedFd<'_>,
    text: &str,
    fds: &[BorrowedFd<'_>],
) -> anyhow::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() {
        ensure!(control.push(SendAncillaryMessage::ScmRights(fds)), "too many descriptors");
    }
    sendmsg(socket, &[IoSlice::new(text.as_bytes())], &mut control, SendFlags::NOSIGNAL)?;
    Ok(())
}

/// Receives one message, with one descriptor at most; empty at the end.
pub(super) fn receive(socket: BorrowedFd<'_>) -> anyhow::Result<(String, Option<OwnedFd>)> {
    let mut bytes = [0; MESSAGE_BYTES];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut pieces = [IoSliceMut::new(&mut bytes)];
    let got = rustix::io::retry_on_intr(|| {
        recvmsg(socket, &mut pieces, &mut control, RecvFlags::CMSG_CLOEXEC)
    })?;
    let fds = control.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(fds) => Some(fds),
        _ => None,
    });
    let fd = fds.flatten().next();
    Ok((String::from_utf8_lossy(&bytes[..got.bytes]).into_owned(), fd))
}
