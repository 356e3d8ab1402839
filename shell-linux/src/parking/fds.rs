//! A store of descriptors by name, outside of this process.
//!
//! systemd's, spoken to as `sd_notify(3)` has it, or a keeper's, which understands the same words.

use std::collections::BTreeMap;
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use anyhow::{Context, ensure};
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};

use crate::notify::{PATIENCE, connect_to_manager};

/// Bytes of the longest message.
const MESSAGE_BYTES: usize = 512;

/// The first descriptor that systemd hands down.
const LISTEN_FDS_START: i32 = 3;

/// The way to a store.
#[derive(Debug)]
pub struct FdStore {
    socket: OwnedFd,
    /// What a descriptor is put in with.
    put: &'static str,
}

impl FdStore {
    /// A keeper's, which looks at nothing that it holds.
    pub(super) fn keeper(socket: OwnedFd) -> anyhow::Result<Self> {
        set_socket_timeout(&socket, Timeout::Send, Some(PATIENCE))?;
        Ok(Self { socket, put: "FDSTORE=1" })
    }

    /// systemd's, if there is a service manager, and what is in it. It would drop a descriptor that
    /// hangs up, and a successor would not learn that it had ever been there.
    //= spec/parking.md#PRK-10
    pub(super) fn systemd() -> anyhow::Result<Option<(Self, BTreeMap<String, OwnedFd>)>> {
        let Some(socket) = connect_to_manager()? else { return Ok(None) };
        let variable = |name| std::env::var(name).ok();
        let ours = variable("LISTEN_PID").is_some_and(|pid| pid == std::process::id().to_string());
        let names = variable("LISTEN_FDNAMES").filter(|_| ours).unwrap_or_default();
        let mut found = BTreeMap::new();
        for (name, fd) in names.split(':').zip(LISTEN_FDS_START..) {
            if name.starts_with("sluice-") {
                found.insert(name.to_owned(), crate::sys::inherited(fd)?);
            }
        }
        Ok(Some((Self { socket, put: "FDSTORE=1\nFDPOLL=0" }, found)))
    }

    /// Whether the service manager says that it keeps descriptors. systemd before 254 keeps them
    /// and does not say so.
    pub(super) fn systemd_is_announced() -> bool {
        std::env::var_os("FDSTORE").is_some_and(|room| room != "0")
    }

    /// Puts a copy of a descriptor in.
    ///
    /// # Errors
    /// When the store is gone or does not read.
    pub fn put(&self, name: &str, fd: BorrowedFd<'_>) -> anyhow::Result<()> {
        send(self.socket.as_fd(), &format!("{}\nFDNAME={name}", self.put), &[fd])
            .with_context(|| format!("parking {name}"))
    }

    /// Takes a descriptor out.
    ///
    /// # Errors
    /// When the store is gone or does not read.
    pub fn remove(&self, name: &str) -> anyhow::Result<()> {
        send(self.socket.as_fd(), &format!("FDSTOREREMOVE=1\nFDNAME={name}"), &[])
            .with_context(|| format!("dropping {name}"))
    }

    /// Says something else.
    pub(super) fn say(&self, word: &str) -> anyhow::Result<()> {
        send(self.socket.as_fd(), word, &[])
    }

    /// The next message.
    pub(super) fn hear(&self) -> anyhow::Result<(String, Option<OwnedFd>)> {
        receive(self.socket.as_fd())
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
