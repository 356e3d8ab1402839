//! Answers written by hand: the refusal of an unknown request, and a stop's late answer.

use std::os::unix::net::UnixStream;

use rustix::io::Errno;
use rustix::net::SendFlags;
use sluice_core::gate::{HEADER_BYTES, Header};

/// `GET_VRING_BASE`.
const GET_VRING_BASE: Header = Header { request: 11, flags: 0, size: 0 };

/// Bytes of a body: one number, or a ring's number and its state.
const BODY_BYTES: usize = 8;

/// Says no to a request.
pub(super) fn refuse(stream: &UnixStream, request: Header) -> rustix::io::Result<()> {
    send(stream, request, 1_u64.to_ne_bytes())
}

/// Says where a stopped ring stands.
pub(super) fn vring_base(stream: &UnixStream, index: u16, base: u32) -> rustix::io::Result<()> {
    let [a, b, c, d] = u32::from(index).to_ne_bytes();
    let [e, f, g, h] = base.to_ne_bytes();
    send(stream, GET_VRING_BASE, [a, b, c, d, e, f, g, h])
}

/// The gate has seen room for an answer, and nothing has been sent since: one that does not fit
/// now is an error.
fn send(stream: &UnixStream, request: Header, body: [u8; BODY_BYTES]) -> rustix::io::Result<()> {
    let mut bytes = [0; HEADER_BYTES + BODY_BYTES];
    let (header, rest) = bytes.split_at_mut(HEADER_BYTES);
    header.copy_from_slice(&request.answer(8).to_bytes());
    rest.copy_from_slice(&body);
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    let sent = rustix::net::send(stream, &bytes, flags)?;
    if sent == bytes.len() { Ok(()) } else { Err(Errno::AGAIN) }
}
