//! Front ends that hold still: nobody else notices.

use std::fs::File;

use crate::support::Daemon;
use crate::support::client::{Client, VERSION, copies, message, request, words};

/// Asks until the daemon's answers fill the way back and it stops reading.
fn flood(client: &Client) {
    let ask = message(request::GET_FEATURES, VERSION, &[]).repeat(64);
    client.stream.set_nonblocking(true).unwrap();
    let mut full = 0;
    while full < 20 {
        match client.try_bytes(&ask, &[]) {
            Ok(()) => full = 0,
            Err(_) => {
                full += 1;
                std::thread::yield_now();
            }
        }
    }
    client.stream.set_nonblocking(false).unwrap();
}

//= spec/vhost-user.md#VHU-1
#[test]
fn b28_one_thread_serves_past_everybody_who_is_stuck() {
    let daemon = Daemon::new(7);
    let clients: Vec<_> = (0..6).map(|disk| daemon.connect(disk)).collect();
    let mut other = daemon.connect(6);
    other.negotiate();
    let null = File::open("/dev/null").unwrap();
    // Five bytes of a header.
    clients[0].bytes(&message(request::GET_FEATURES, VERSION, &[])[..5], &[]);
    assert!(other.is_served());
    // A header without its body, and half of one.
    clients[1].bytes(&words(&[request::SET_FEATURES, VERSION, 8]), &[]);
    assert!(other.is_served());
    clients[1].bytes(&[0; 4], &[]);
    assert!(other.is_served());
    // Too many descriptors before an eight-byte body.
    let bytes = message(request::SET_FEATURES, VERSION, &[0; 8]);
    clients[2].bytes(&bytes, &copies(&null, 33));
    assert!(other.is_served());
    // Answers that nobody reads.
    flood(&clients[3]);
    assert!(other.is_served());
    // The same, and nothing more is sent.
    flood(&clients[4]);
    clients[4].half_close();
    assert!(other.is_served());
    // Silence.
    for _ in 0..100 {
        assert!(other.is_served());
    }
}

#[test]
fn b28_who_reads_again_is_served_again() {
    let daemon = Daemon::new(1);
    let mut client = daemon.connect(0);
    client.negotiate();
    let ask = message(request::GET_FEATURES, VERSION, &[]);
    // Far more answers than fit, asked for by another thread because the asking blocks.
    let asked = 3000;
    let writer = Client::new(client.stream.try_clone().unwrap());
    let thread = std::thread::spawn(move || (0..asked).for_each(|_| writer.bytes(&ask, &[])));
    (0..asked).for_each(|_| drop(client.expect(request::GET_FEATURES)));
    thread.join().unwrap();
}

//= spec/vhost-user.md#VHU-11
#[test]
fn b28_pieces_and_unread_answers_end_a_connection() {
    let daemon = Daemon::impatient(2);
    let mut piece = daemon.connect(0);
    piece.bytes(&[1, 0, 0], &[]);
    assert!(piece.is_closed());
    let mut unread = daemon.connect(1);
    flood(&unread);
    unread.wait_closed();
    while unread.answer().is_some() {}
    daemon.settle(0);
    daemon.settle(1);
}

//= spec/vhost-user.md#VHU-11
#[test]
fn b30_a_silent_connection_gives_way_and_an_owner_does_not() {
    let daemon = Daemon::impatient(2);
    let mut silent = daemon.connect(0);
    let mut next = daemon.connect(0);
    next.negotiate();
    assert!(silent.is_closed());
    // An owner stays however long it says nothing: the place is still its own after the other
    // disk has seen a silent one go.
    let mut late = daemon.connect(0);
    late.send(request::GET_FEATURES, &[]);
    let mut silent = daemon.connect(1);
    daemon.settle(1);
    assert!(silent.is_closed());
    assert!(next.is_served());
    drop(next);
    late.expect(request::GET_FEATURES);
    // And so does who says nothing while nobody waits.
    let mut alone = daemon.connect(1);
    late.stream.shutdown(std::net::Shutdown::Both).unwrap();
    let mut silent = daemon.connect(0);
    daemon.settle(0);
    assert!(silent.is_closed());
    assert!(alone.is_served());
}
