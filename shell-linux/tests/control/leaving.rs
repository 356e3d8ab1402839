//! Front ends that come, stop and go.

use std::os::fd::AsFd;

use crate::inflight::make;
use crate::support::Daemon;
use crate::support::client::{Client, NO_FD, OFFERED, VERSION, message, request, words};
use crate::support::guest::Guest;

const STOP: [u32; 2] = [0, 0];

/// A front end with a request that does not end.
fn held(daemon: &Daemon) -> (Client, Guest) {
    let mut client = daemon.connect(0);
    client.negotiate();
    let mut guest = Guest::new();
    guest.start(&mut client);
    daemon.hold.keep();
    guest.read();
    daemon.hold.wait();
    (client, guest)
}

#[test]
fn a_request_passes() {
    let daemon = Daemon::new(1);
    let (mut client, mut guest) = held(&daemon);
    daemon.hold.release();
    assert_eq!(client.ask(request::GET_VRING_BASE, &words(&STOP)).body, words(&[0, 1]));
    assert_eq!((guest.used(), guest.status()), (1, 0));
    assert_eq!(guest.signals(), 2, "a start is signalled too");
    // Memory is kept across a stop.
    guest.start_ring(&mut client);
    guest.read();
    assert_eq!(client.ask(request::GET_VRING_BASE, &words(&STOP)).body[..4], words(&[0]));
}

//= spec/vhost-user.md#VHU-9
//= spec/lifecycle.md#LIF-14
#[test]
fn b23_a_stop_is_answered_when_the_queue_has_drained() {
    let daemon = Daemon::new(2);
    let mut other = daemon.connect(1);
    let (mut client, guest) = held(&daemon);
    client.send(request::GET_VRING_BASE, &words(&STOP));
    // What follows waits, whole or not; the others do not.
    client.send(request::GET_FEATURES, &[]);
    client.send(request::GET_VRING_BASE, &words(&STOP));
    client.bytes(&message(request::GET_FEATURES, VERSION, &[])[..3], &[]);
    for _ in 0..10 {
        assert!(other.is_served());
    }
    assert_eq!(guest.used(), 0);
    daemon.hold.release();
    assert_eq!(client.expect(request::GET_VRING_BASE).body, words(&[0, 1]));
    assert_eq!((guest.used(), guest.status()), (1, 0));
    assert_eq!(guest.signals(), 2, "a guest that is paused like this hears of its last request");
    client.expect(request::GET_FEATURES);
    let again = client.expect(request::GET_VRING_BASE);
    assert_eq!(again.body, words(&[0, 1]), "the last known base, however often it is asked for");
    client.bytes(&message(request::GET_FEATURES, VERSION, &[])[3..], &[]);
    client.expect(request::GET_FEATURES);
}

/// Somebody else has the image, and nobody knows for how long.
//= spec/lifecycle.md#LIF-17
#[test]
fn a_stop_leaves_requests_in_the_region_where_that_was_agreed_on() {
    let daemon = Daemon::new(1);
    daemon.hold.refuse(true);
    let mut client = daemon.connect(0);
    client.negotiate_with(OFFERED);
    let (body, region) = make(&mut client, 1, 8);
    assert_eq!(client.acked(request::SET_INFLIGHT_FD, &body, &[region.as_fd()]), 0);
    let mut guest = Guest::new();
    guest.start(&mut client);
    guest.read();
    // The shard has had its turns.
    daemon.hold.mappings();
    assert_eq!(client.ask(request::GET_VRING_BASE, &words(&STOP)).body, words(&[0, 1]));
    assert_eq!(guest.used(), 0);
    daemon.hold.refuse(false);
    assert_eq!(client.acked(request::SET_INFLIGHT_FD, &body, &[region.as_fd()]), 0);
    guest.start_ring(&mut client);
    daemon.hold.mappings();
    assert_eq!(client.ask(request::GET_VRING_BASE, &words(&STOP)).body, words(&[0, 1]));
    assert_eq!((guest.used(), guest.status()), (1, 0));
}

/// A look at a message may see descriptors of a later one.
#[test]
fn messages_that_wait_behind_one_another_keep_their_descriptors() {
    let daemon = Daemon::new(1);
    let (mut client, guest) = held(&daemon);
    client.send(request::GET_VRING_BASE, &words(&STOP));
    // None of this is looked at before all of it is there.
    for ring in [1_u64, 2, 3] {
        client.send(request::GET_FEATURES, &[]);
        client.send(1000, &[0; 100]);
        client.send(request::SET_VRING_NUM, &words(&[1, 8]));
        client.send(request::SET_VRING_CALL, &(ring | NO_FD).to_ne_bytes());
        client.send_fds(request::SET_VRING_CALL, &ring.to_ne_bytes(), &[guest.call.as_fd()]);
        client.send_fds(1000, &[0; 100], &[guest.call.as_fd()]);
        client.send(request::GET_FEATURES, &[]);
        client.send_fds(request::SET_MEM_TABLE, &Guest::table(), &[guest.memory.as_fd()]);
    }
    daemon.hold.release();
    client.expect(request::GET_VRING_BASE);
    (0..6).for_each(|_| drop(client.expect(request::GET_FEATURES)));
    assert!(client.is_served());
    assert_eq!(daemon.hold.mappings(), 1);
    // And ones that do not belong are found all the same.
    drop(client);
    let (mut client, guest) = held(&daemon);
    client.send(request::GET_VRING_BASE, &words(&STOP));
    client.send_fds(request::SET_VRING_NUM, &words(&[1, 8]), &[guest.call.as_fd()]);
    client.send(request::GET_FEATURES, &[]);
    daemon.hold.release();
    client.expect(request::GET_VRING_BASE);
    assert!(client.is_closed());
}

#[test]
fn b23_every_stop_of_many_is_answered_once() {
    let daemon = Daemon::new(1);
    let mut client = daemon.connect(0);
    client.negotiate();
    let mut guest = Guest::new();
    guest.start(&mut client);
    for round in 1..=50 {
        daemon.hold.keep();
        guest.read();
        daemon.hold.wait();
        client.send(request::GET_VRING_BASE, &words(&STOP));
        daemon.hold.release();
        assert_eq!(client.expect(request::GET_VRING_BASE).body, words(&[0, round]));
        assert!(client.is_served());
        guest.start_ring(&mut client);
    }
}

//= spec/vhost-user.md#VHU-8
#[test]
fn b29_a_second_front_end_waits_for_the_first() {
    let daemon = Daemon::new(1);
    let (mut first, guest) = held(&daemon);
    let mut second = daemon.connect(0);
    second.send(request::GET_FEATURES, &[]);
    assert!(first.is_served());
    daemon.hold.release();
    first.ask(request::GET_VRING_BASE, &words(&STOP));
    assert_eq!(guest.used(), 1, "the first one's requests end");
    drop(first);
    second.expect(request::GET_FEATURES);
    // It finds the device as new.
    second.negotiate();
    Guest::new().start(&mut second);
}

//= spec/vhost-user.md#VHU-8
//= spec/lifecycle.md#LIF-13
#[test]
fn b29_a_second_front_end_waits_for_what_the_first_left_behind() {
    let daemon = Daemon::new(2);
    let before = daemon.open();
    let (first, guest) = held(&daemon);
    drop(first);
    let mut second = daemon.connect(0);
    second.send(request::GET_FEATURES, &[]);
    // The second one is not let in while a request of the first is under way.
    let mut other = daemon.connect(1);
    assert!(other.is_served());
    assert_eq!(second.queued(), 0);
    daemon.hold.release();
    second.expect(request::GET_FEATURES);
    assert_eq!(guest.used(), 0, "nothing is published to who has gone");
    drop((second, other, guest));
    daemon.has_open(&before);
}

#[test]
fn b30_five_hundred_front_ends_in_a_row() {
    let daemon = Daemon::new(1);
    let before = daemon.open();
    for round in 0..500 {
        let mut client = daemon.connect(0);
        match round % 4 {
            0 => client.negotiate(),
            1 => client.send(request::SET_OWNER, &[]),
            2 => client.bytes(&[1], &[]),
            _ => {}
        }
    }
    for _ in 0..50 {
        let mut client = daemon.connect(0);
        client.negotiate();
        Guest::new().start(&mut client);
    }
    daemon.has_open(&before);
}

//= spec/vhost-user.md#VHU-10
#[test]
fn b31_the_end_of_a_connection_whose_stop_is_due() {
    let daemon = Daemon::new(2);
    let before = daemon.open();
    for how in 0..4 {
        let (client, guest) = held(&daemon);
        client.send(request::GET_VRING_BASE, &words(&STOP));
        if how % 2 == 1 {
            // Messages behind the stop hide the end.
            client.send(request::GET_FEATURES, &[]);
        }
        if how < 2 {
            drop(client);
            daemon.hold.release();
            drop(daemon.settle(0));
            continue;
        }
        // It says that it will send nothing more, and hears the answer all the same.
        let mut client = client;
        client.half_close();
        let mut other = daemon.connect(1);
        assert!(other.is_served());
        daemon.hold.release();
        assert_eq!(client.expect(request::GET_VRING_BASE).body, words(&[0, 1]));
        assert_eq!(guest.used(), 1);
        while client.answer().is_some() {}
    }
    daemon.has_open(&before);
}

#[test]
fn b31_the_end_of_a_connection_inside_each_message() {
    let daemon = Daemon::new(1);
    let before = daemon.open();
    let guest = Guest::new();
    let table = message(request::SET_MEM_TABLE, VERSION, &Guest::table());
    for length in 1..=table.len() {
        let mut client = daemon.connect(0);
        client.negotiate();
        client.bytes(&table[..length], &crate::support::client::copies(&guest.memory, 1));
    }
    drop(guest);
    daemon.has_open(&before);
}

#[test]
fn a_connected_socket_is_served_and_seen_to_end() {
    let (daemon, mut client, kept) = Daemon::connected();
    client.negotiate();
    // Whoever handed it down still holds it, and yet the front end sees its end.
    client.send(request::SET_FEATURES, &u64::MAX.to_ne_bytes());
    assert!(client.is_closed());
    drop((kept, daemon));
}
