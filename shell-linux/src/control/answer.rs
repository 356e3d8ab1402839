//! Answers written by hand: the refusal of an unknown request, a stop's late answer, and an
//! inflight region.

use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::BorrowedFd;
use std::os::unix::net::UnixStream;

use rustix::io::Errno;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use sluice_core::gate::Header;

const VERSION: u32 = 1;
const GET_FEATURES: u32 = 1;
const SET_FEATURES: u32 = 2;
const SET_OWNER: u32 = 3;
const SET_PROTOCOL_FEATURES: u32 = 16;

/// `BACKEND_CONFIG_CHANGE_MSG`, of the device's own requests.
const CONFIG_CHANGE: Header = Header { request: 2, flags: VERSION, size: 0 };
/// `GET_VRING_BASE`.
const GET_VRING_BASE: Header = Header { request: 11, flags: 0, size: 0 };

/// Says whether a request was accepted.
pub(super) fn acknowledge(
    stream: &UnixStream,
    request: Header,
    done: bool,
) -> rustix::io::Result<()> {
    send(stream, request, u64::from(!done).to_ne_bytes())
}

/// Says on a front end's channel that the configuration space has changed. Whoever does not read
/// it misses that, and nobody waits.
pub(super) fn config_changed(channel: BorrowedFd<'_>) -> rustix::io::Result<()> {
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    rustix::net::send(channel, &CONFIG_CHANGE.to_bytes(), flags).map(drop)
}

/// Says where a stopped ring stands.
pub(super) fn vring_base(stream: &UnixStream, index: u16, base: u32) -> rustix::io::Result<()> {
    let [a, b, c, d] = u32::from(index).to_ne_bytes();
    let [e, f, g, h] = base.to_ne_bytes();
    send(stream, GET_VRING_BASE, [a, b, c, d, e, f, g, h])
}

/// The messages that tell a dispatcher what was negotiated: protocol features, whether there is
/// an owner, and features.
pub(super) fn negotiation(
    (protocol, owner, features): (Option<u64>, bool, Option<u64>),
) -> Vec<Vec<u8>> {
    let message = |request, body: Option<u64>| {
        let body = body.map(|number| number.to_ne_bytes().to_vec()).unwrap_or_default();
        let header = Header { request, flags: VERSION, size: if body.is_empty() { 0 } else { 8 } };
        [header.to_bytes().to_vec(), body].concat()
    };
    let mut messages = vec![message(GET_FEATURES, None)];
    messages.extend(protocol.map(|bits| message(SET_PROTOCOL_FEATURES, Some(bits))));
    messages.extend(owner.then(|| message(SET_OWNER, None)));
    messages.extend(features.map(|bits| message(SET_FEATURES, Some(bits))));
    messages
}

/// Hands an inflight region out, from its first byte on, or none of 0 bytes, for `(queues, size)`
/// as they were asked.
pub(super) fn inflight(
    stream: &UnixStream,
    request: Header,
    bytes: u64,
    (queues, size): (u16, u16),
    region: Option<BorrowedFd<'_>>,
) -> rustix::io::Result<()> {
    let mut body = [0; 24];
    body[..8].copy_from_slice(&bytes.to_ne_bytes());
    body[16..18].copy_from_slice(&queues.to_ne_bytes());
    body[18..20].copy_from_slice(&size.to_ne_bytes());
    send_with(stream, request, &body, region.as_slice())
}

fn send(stream: &UnixStream, request: Header, body: [u8; 8]) -> rustix::io::Result<()> {
    send_with(stream, request, &body, &[])
}

/// The gate has seen room for an answer, and nothing has been sent since: one that does not fit
/// now is an error.
fn send_with(
    stream: &UnixStream,
    request: Header,
    body: &[u8],
    fds: &[BorrowedFd<'_>],
) -> rustix::io::Result<()> {
    let size = u32::try_from(body.len()).unwrap_or(u32::MAX);
    let message = [&request.answer(size).to_bytes()[..], body].concat();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() {
        control.push(SendAncillaryMessage::ScmRights(fds));
    }
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    let sent = sendmsg(stream, &[IoSlice::new(&message)], &mut control, flags)?;
    if sent == message.len() { Ok(()) } else { Err(Errno::AGAIN) }
}
