//! systemd's notification socket, as `sd_notify(3)` has it.

use std::os::fd::OwnedFd;
use std::time::Duration;

use anyhow::Context;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};

/// How long it may not read what it is sent.
pub(crate) const PATIENCE: Duration = Duration::from_secs(1);

/// Connects to the socket that the service manager listens at, if there is one.
///
/// # Errors
/// When it is named but cannot be reached.
pub fn connect_to_manager() -> anyhow::Result<Option<OwnedFd>> {
    let Some(path) = std::env::var_os("NOTIFY_SOCKET") else { return Ok(None) };
    let connect = || -> anyhow::Result<OwnedFd> {
        let name = path.as_encoded_bytes();
        let address = match name.strip_prefix(b"@") {
            Some(name) => SocketAddrUnix::new_abstract_name(name)?,
            None => SocketAddrUnix::new(name)?,
        };
        let flags = SocketFlags::CLOEXEC;
        let socket = socket_with(AddressFamily::UNIX, SocketType::DGRAM, flags, None)?;
        set_socket_timeout(&socket, Timeout::Send, Some(PATIENCE))?;
        connect(&socket, &address)?;
        Ok(socket)
    };
    connect().map(Some).with_context(|| format!("NOTIFY_SOCKET {}", path.display()))
}

/// Tells a service manager how a daemon stands; does nothing without one.
#[derive(Debug)]
pub struct Notify(Option<OwnedFd>);

impl Notify {
    /// The one that has started this process. One that cannot be reached is not told.
    #[must_use]
    pub fn from_environment() -> Self {
        Self(connect_to_manager().unwrap_or_else(|error| {
            tracing::warn!("{error:#}; the service manager is not told of the start");
            None
        }))
    }

    /// Front ends can connect.
    //= spec/host.md#HOST-4
    pub fn ready(&self) {
        self.say("READY=1");
    }

    /// The end has been asked for.
    //= spec/host.md#HOST-4
    pub fn stopping(&self) {
        self.say("STOPPING=1");
    }

    fn say(&self, word: &str) {
        let Some(socket) = &self.0 else { return };
        if let Err(error) = rustix::io::write(socket, word.as_bytes()) {
            tracing::warn!(%error, "the service manager was not told {word}");
        }
    }
}
