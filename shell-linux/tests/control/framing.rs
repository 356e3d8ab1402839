//! Bytes that are no message, and pieces of one.

use std::fs::File;
use std::os::fd::AsFd;

use rustix::net::SendFlags;

use crate::support::Daemon;
use crate::support::client::{
    FEATURES, NEED_REPLY, NO_FD, VERSION, copies, event, message, request, words,
};
use crate::support::guest::Guest;

/// What ends a connection, after a proper beginning.
fn closes(daemon: &Daemon, what: &str, bytes: &[u8], fds: usize) {
    let mut client = daemon.connect(0);
    client.negotiate();
    let event = event();
    client.bytes(bytes, &copies(&event, fds));
    assert!(client.is_closed(), "{what}");
    daemon.settle(0);
}

//= spec/vhost-user.md#VHU-1
#[test]
fn b01_pieces_are_waited_for() {
    let daemon = Daemon::new(2);
    let (mut slow, mut other) = (daemon.connect(0), daemon.connect(1));
    slow.negotiate();
    // Byte by byte, each of which the daemon sees before the next: the other one's answer says so.
    for byte in message(request::SET_FEATURES, VERSION | NEED_REPLY, &FEATURES.to_ne_bytes()) {
        slow.bytes(&[byte], &[]);
        assert!(other.is_served());
    }
    assert_eq!(slow.expect(request::SET_FEATURES).number(), 0);
    // Many at once.
    let many = message(request::GET_FEATURES, VERSION, &[]).repeat(100);
    slow.bytes(&many, &[]);
    (0..100).for_each(|_| drop(slow.expect(request::GET_FEATURES)));
}

#[test]
fn b01_a_stream_that_ends_inside_a_message_is_closed() {
    let daemon = Daemon::new(1);
    let whole = message(request::SET_FEATURES, VERSION, &FEATURES.to_ne_bytes());
    for length in 0..whole.len() {
        let mut client = daemon.connect(0);
        client.bytes(&whole[..length], &[]);
        client.half_close();
        assert!(client.is_closed(), "{length}");
    }
    // The whole of it is taken, and answered after the front end has shut its side.
    let mut client = daemon.connect(0);
    client.bytes(&whole, &[]);
    client.send(request::GET_FEATURES, &[]);
    client.half_close();
    assert!(client.expect(request::GET_FEATURES).number() != 0);
    assert!(client.is_closed());
}

//= spec/vhost-user.md#VHU-2
#[test]
fn b02_b03_sizes_close_without_their_bodies() {
    let daemon = Daemon::new(1);
    for (request, size) in [
        (request::SET_FEATURES, 9),
        (request::SET_FEATURES, 7),
        (request::SET_FEATURES, 0),
        (request::SET_OWNER, 1),
        (request::SET_MEM_TABLE, 8),
        (request::SET_MEM_TABLE, 4096),
        (request::SET_VRING_ADDR, 32),
        (request::GET_CONFIG, 12),
        (request::GET_FEATURES, 4097),
        (request::GET_FEATURES, u32::MAX),
        (1000, 4097),
    ] {
        let header = words(&[request, VERSION, size]);
        closes(&daemon, &format!("{request} with {size} bytes"), &header, 0);
    }
    let mut client = daemon.connect(0);
    client.negotiate();
    assert_eq!(client.acked(request::SET_FEATURES, &FEATURES.to_ne_bytes(), &[]), 0);
}

//= spec/vhost-user.md#VHU-2
#[test]
fn b04_flags_close() {
    let daemon = Daemon::new(1);
    for flags in [0, 2, 3, VERSION | 4, VERSION | 1 << 4, VERSION | 1 << 31] {
        let bytes = words(&[request::GET_FEATURES, flags, 0]);
        closes(&daemon, &format!("flags {flags:#x}"), &bytes, 0);
    }
}

//= spec/vhost-user.md#VHU-3
#[test]
fn b05_unknown_requests_are_refused_and_survived() {
    let daemon = Daemon::new(1);
    let mut client = daemon.connect(0);
    let body = vec![0x55; 4096];
    let event = event();
    // Before acknowledgements are negotiated there is nothing to say.
    client.bytes(&message(1000, VERSION | NEED_REPLY, &body), &copies(&event, 32));
    client.negotiate();
    for request in [0, 19, 20, 33, 34, 39, 40, 42, 43, 44, 45, 1000, u32::MAX] {
        for size in [0, 8, 4096] {
            assert_eq!(client.acked(request, &body[..size], &copies(&event, 3)), 1, "{request}");
            client.send(request, &body[..size]);
        }
        assert!(client.is_served(), "after {request}");
    }
    // A body in pieces, with descriptors on the second.
    client.bytes(&words(&[1000, VERSION | NEED_REPLY, 8]), &copies(&event, 2));
    client.bytes(&[0; 8], &copies(&event, 2));
    assert_eq!(client.expect(1000).number(), 1);
    assert!(client.is_served());
}

//= spec/vhost-user.md#VHU-2
#[test]
fn b06_b07_the_number_of_descriptors_is_the_requests() {
    let daemon = Daemon::new(1);
    let plain = message(request::SET_FEATURES, VERSION, &FEATURES.to_ne_bytes());
    let ring = message(request::SET_VRING_CALL, VERSION, &0_u64.to_ne_bytes());
    let table = message(request::SET_MEM_TABLE, VERSION, &Guest::table());
    let region = message(request::ADD_MEM_REG, VERSION, &Guest::region());
    let unknown = message(1000, VERSION, &[]);
    for (what, bytes, fds) in [
        ("features with a descriptor", &plain, 1),
        ("features with many", &plain, 33),
        ("a ring with two", &ring, 2),
        ("a ring without", &ring, 0),
        ("a table without", &table, 0),
        ("a table with two for one", &table, 2),
        ("a table with too many", &table, 33),
        ("a region without", &region, 0),
        ("a region with two", &region, 2),
        ("anything with too many", &unknown, 33),
        ("anything with far too many", &unknown, 60),
    ] {
        closes(&daemon, what, bytes, fds);
    }
    let mut client = daemon.connect(0);
    client.negotiate();
    let guest = Guest::new();
    guest.start(&mut client);
}

/// A library that reads descriptors into too little room may take the body for a header.
#[test]
fn b08_a_header_hidden_behind_too_many_descriptors_is_not_executed() {
    let daemon = Daemon::new(2);
    let mut other = daemon.connect(1);
    for body in [8_u32, 12, 24] {
        let mut client = daemon.connect(0);
        client.negotiate();
        let hidden = message(request::GET_FEATURES, VERSION, &[]).repeat(2);
        let mut bytes = words(&[request::SET_FEATURES, VERSION, body]);
        bytes.extend(&hidden[..body as usize]);
        let null = File::open("/dev/null").unwrap();
        client.bytes(&bytes, &copies(&null, 33));
        assert!(client.is_closed(), "no answer, {body} bytes");
        assert!(other.is_served());
    }
}

#[test]
fn b09_descriptors_come_with_the_header() {
    let daemon = Daemon::new(1);
    let event = event();
    let bytes = message(request::SET_VRING_CALL, VERSION | NEED_REPLY, &0_u64.to_ne_bytes());
    // With the header, the body apart: legal.
    let mut client = daemon.connect(0);
    client.negotiate();
    client.bytes(&bytes[..12], &[event.as_fd()]);
    client.bytes(&bytes[12..15], &[]);
    client.bytes(&bytes[15..], &[]);
    assert_eq!(client.expect(request::SET_VRING_CALL).number(), 0);
    // With the body.
    client.bytes(&bytes[..12], &[]);
    let _ = client.try_bytes(&bytes[12..], &[event.as_fd()]);
    assert!(client.is_closed());
    // With half a header.
    let mut client = daemon.connect(0);
    client.negotiate();
    client.bytes(&bytes[..5], &[event.as_fd()]);
    let _ = client.try_bytes(&bytes[5..], &[]);
    assert!(client.is_closed());
    daemon.settle(0);
}

//= spec/vhost-user.md#VHU-4
#[test]
fn b13_b14_ring_words_are_read_in_full() {
    let daemon = Daemon::new(1);
    for (word, fds) in [
        (NO_FD, 1),
        (0, 0),
        (1 << 9, 1),
        (1 << 9 | NO_FD, 0),
        (1 << 16, 1),
        (1 << 63, 1),
        (0xff, 1),
        (4, 1),
    ] {
        for request in [request::SET_VRING_KICK, request::SET_VRING_CALL, request::SET_VRING_ERR] {
            let bytes = message(request, VERSION | NEED_REPLY, &u64::to_ne_bytes(word));
            let mut client = daemon.connect(0);
            client.negotiate();
            let event = event();
            client.bytes(&bytes, &copies(&event, fds));
            // A ring there is none of is refused in words before it closes.
            while let Some(answer) = client.answer() {
                assert_eq!(answer.number(), 1, "{word:#x} with {fds}");
            }
            daemon.settle(0);
        }
    }
    let mut client = daemon.connect(0);
    client.negotiate();
    let event = event();
    for ring in 0..4_u64 {
        let fd = [event.as_fd()];
        assert_eq!(client.acked(request::SET_VRING_CALL, &ring.to_ne_bytes(), &fd), 0);
        assert_eq!(client.acked(request::SET_VRING_ERR, &(ring | NO_FD).to_ne_bytes(), &[]), 0);
    }
}

/// An urgent byte counts as queued and is skipped by reads.
#[test]
fn urgent_bytes_hold_nobody_up() {
    let daemon = Daemon::new(2);
    let mut other = daemon.connect(1);
    let whole = message(request::SET_FEATURES, VERSION, &FEATURES.to_ne_bytes());
    for at in 0..whole.len() {
        let client = daemon.connect(0);
        client.bytes(&whole[..at], &[]);
        // Not every kernel has them.
        let _ = rustix::net::send(&client.stream, b"!", SendFlags::OOB | SendFlags::NOSIGNAL);
        let _ = client.try_bytes(&whole[at..], &[]);
        assert!(other.is_served(), "{at}");
        drop(client);
        daemon.settle(0);
    }
}
