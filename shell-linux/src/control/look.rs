//! Looking at a connection without taking anything, and taking what nobody dispatches.

use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, recvmsg};
use sluice_core::gate::{DESCRIPTORS_MAX, Facts, HEADER_BYTES, Header, rule};

/// One more than is allowed: a count that is too high has to be seen.
const LOOKED_FOR: usize = DESCRIPTORS_MAX as usize + 1;

/// Bytes of a header and a ring word.
const WORD_END: usize = HEADER_BYTES + 8;

/// Sees what the gate judges by, in the order that [`Facts`] asks for.
pub(super) fn look(stream: &UnixStream) -> rustix::io::Result<Facts> {
    let ready = ready(stream, PollFlags::OUT | PollFlags::RDHUP)?;
    let mut facts = Facts {
        writable: ready.contains(PollFlags::OUT),
        eof: ready.intersects(PollFlags::RDHUP | PollFlags::HUP | PollFlags::ERR),
        queued: usize::try_from(rustix::io::ioctl_fionread(stream)?).unwrap_or(usize::MAX),
        ..Facts::default()
    };
    if facts.queued == 0 {
        return Ok(facts);
    }
    let mut header = [0; HEADER_BYTES];
    let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
    // The copies of descriptors that a look leaves behind are closed when `seen` goes.
    let seen = receive(stream, &mut header, flags)?;
    facts.header = header;
    facts.peeked = seen.bytes;
    facts.descriptors = seen.descriptors.len();
    facts.truncated = seen.truncated;
    let has_word = facts.peeked == HEADER_BYTES
        && facts.queued >= WORD_END
        && rule(Header::from_bytes(header).request).ring_word;
    if has_word {
        facts.word = peek_word(stream)?;
    }
    Ok(facts)
}

/// Whether the front end has closed its socket altogether, not only its sending side.
pub(super) fn hung_up(stream: &UnixStream) -> rustix::io::Result<bool> {
    Ok(ready(stream, PollFlags::empty())?.intersects(PollFlags::HUP | PollFlags::ERR))
}

/// What of `wanted` is so right now.
pub(super) fn ready(
    fd: impl std::os::fd::AsFd,
    wanted: PollFlags,
) -> rustix::io::Result<PollFlags> {
    let mut asked = [PollFd::from_borrowed_fd(fd.as_fd(), wanted)];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    loop {
        match poll(&mut asked, Some(&now)) {
            Err(Errno::INTR) => {}
            Err(error) => return Err(error),
            Ok(_) => return Ok(asked[0].revents()),
        }
    }
}

/// Takes a whole message off the stream, closes its descriptors and returns its body; `None` when
/// it was not there after all.
pub(super) fn take(stream: &UnixStream, header: Header) -> rustix::io::Result<Option<Vec<u8>>> {
    let mut message = vec![0; HEADER_BYTES + header.size as usize];
    let mut taken = 0;
    while taken < message.len() {
        let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
        match receive(stream, &mut message[taken..], flags) {
            Ok(seen) if seen.bytes > 0 => taken += seen.bytes,
            Ok(_) | Err(Errno::AGAIN) => return Ok(None),
            Err(error) => return Err(error),
        }
    }
    Ok(Some(message.split_off(HEADER_BYTES)))
}

struct Received {
    bytes: usize,
    descriptors: Vec<OwnedFd>,
    truncated: bool,
}

fn receive(stream: &UnixStream, into: &mut [u8], flags: RecvFlags) -> rustix::io::Result<Received> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(LOOKED_FOR))];
    loop {
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut pieces = [IoSliceMut::new(into)];
        let got = match recvmsg(stream, &mut pieces, &mut control, flags) {
            Err(Errno::INTR) => continue,
            got => got?,
        };
        let mut descriptors = Vec::new();
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(fds) = message {
                descriptors.extend(fds);
            }
        }
        let truncated = got.flags.contains(ReturnFlags::CTRUNC);
        return Ok(Received { bytes: got.bytes, descriptors, truncated });
    }
}

/// The first eight bytes of the body; `None` when they were sent apart from the header.
fn peek_word(stream: &UnixStream) -> rustix::io::Result<Option<u64>> {
    let mut bytes = [0; WORD_END];
    // Without room for control data no descriptor is copied.
    let (_, seen) =
        rustix::net::recv(stream, &mut bytes[..], RecvFlags::PEEK | RecvFlags::DONTWAIT)?;
    let word = bytes.last_chunk().map(|&word| u64::from_ne_bytes(word));
    Ok(word.filter(|_| seen == WORD_END))
}
