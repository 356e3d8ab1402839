//! What is parked of a front end at every moment of its conversation.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::fs::{MemfdFlags, memfd_create};

use crate::inflight::make;
use crate::support::client::{Client, FEATURES, event, longs, request, words};
use crate::support::guest::{Guest, MEMORY, USER};
use crate::support::store::{Store, is_marked};
use crate::support::{Daemon, alone};

fn memfd(bytes: u64) -> OwnedFd {
    let file = File::from(memfd_create("more", MemfdFlags::CLOEXEC).unwrap());
    file.set_len(bytes).unwrap();
    file.into()
}

/// Another region behind the guest's memory.
fn more() -> Vec<u8> {
    longs(&[0, MEMORY, 0x10000, USER + (1 << 32), 0])
}

/// Everything that a front end may say over again to a device that runs, with what comes along.
fn chatter(guest: &Guest) -> Vec<(u32, Vec<u8>, Option<OwnedFd>)> {
    let memory: OwnedFd = guest.memory.try_clone().unwrap().into();
    let ring = 0_u64.to_ne_bytes().to_vec();
    vec![
        (request::SET_FEATURES, FEATURES.to_ne_bytes().to_vec(), None),
        (request::SET_MEM_TABLE, Guest::table(), Some(memory)),
        (request::ADD_MEM_REG, more(), Some(memfd(0x10000))),
        (request::REM_MEM_REG, more(), None),
        (request::SET_LOG_BASE, longs(&[0x1000, 0]), Some(memfd(0x1000))),
        (request::SET_BACKEND_REQ_FD, vec![], Some(socket())),
        (request::SET_VRING_CALL, ring.clone(), Some(event())),
        (request::SET_VRING_ERR, ring.clone(), Some(event())),
        (request::SET_VRING_KICK, ring, Some(event())),
        (request::SET_VRING_ENABLE, words(&[0, 0]), None),
        (request::SET_VRING_ENABLE, words(&[0, 1]), None),
    ]
}

fn socket() -> OwnedFd {
    UnixStream::pair().unwrap().0.into()
}

fn say(client: &mut Client, (number, body, fd): &(u32, Vec<u8>, Option<OwnedFd>)) {
    let fds: Vec<BorrowedFd<'_>> = fd.iter().map(AsFd::as_fd).collect();
    if *number == request::SET_LOG_BASE {
        // It has an answer of its own.
        client.send_fds(*number, body, &fds);
        client.expect(*number);
    } else {
        assert_eq!(client.acked(*number, body, &fds), 0, "{number}");
    }
}

/// A front end with a tracked ring that runs.
fn start(client: &mut Client) -> Guest {
    client.negotiate();
    let (body, region) = make(client, 1, 8);
    assert_eq!(client.acked(request::SET_INFLIGHT_FD, &body, &[region.as_fd()]), 0);
    let guest = Guest::new();
    guest.start(client);
    guest
}

/// Bytes of messages that the daemon has not taken.
fn unheard(theirs: &UnixStream) -> u64 {
    rustix::io::ioctl_fionread(theirs).unwrap()
}

fn stop(client: &mut Client) -> u32 {
    let body = client.ask(request::GET_VRING_BASE, &[0; 8]).body;
    u32::from_ne_bytes(body[4..].try_into().unwrap())
}

//= spec/parking.md#PRK-1
//= spec/parking.md#PRK-2
#[test]
fn the_mark_is_there_before_a_message_is_heard_and_until_it_is_answered() {
    let alone = alone();
    let (mut store, place) = Store::new(BTreeMap::new());
    let (daemon, mut client, theirs) = Daemon::parking(place, alone);
    store.record();
    let (file, heard) = (store.file(), Arc::new(AtomicU32::new(0)));
    let (watched, count) = (file.try_clone().unwrap(), Arc::clone(&heard));
    daemon.hold.watch(move |event| {
        assert!(is_marked(&watched), "{event:?} is heard, and the record is not marked");
        count.fetch_add(1, Ordering::Relaxed);
    });
    let guest = start(&mut client);
    for message in &chatter(&guest) {
        say(&mut client, message);
        store.record();
    }
    stop(&mut client);
    assert!(heard.load(Ordering::Relaxed) > 20);
    // From the moment at which a message is taken off the connection, as often as it can be seen.
    for _ in 0..500 {
        store.record();
        client.send(request::GET_FEATURES, &[]);
        while client.queued() == 0 {
            let taken = unheard(&theirs) == 0;
            let marked = is_marked(&file);
            assert!(!taken || marked || client.queued() > 0, "taken, not marked, not answered");
        }
        client.expect(request::GET_FEATURES);
    }
}

//= spec/parking.md#PRK-2
#[test]
fn a_record_is_whole_again_only_when_a_stop_is_answered() {
    let alone = alone();
    let (mut store, place) = Store::new(BTreeMap::new());
    let (daemon, mut client, theirs) = Daemon::parking(place, alone);
    let mut guest = start(&mut client);
    assert!(store.record().rings[&0].started);
    daemon.hold.keep();
    guest.read();
    daemon.hold.wait();
    client.send(request::GET_VRING_BASE, &[0; 8]);
    while unheard(&theirs) > 0 {
        std::thread::yield_now();
    }
    // The same thread has gone on to another disk since, more than once.
    let mut neighbour = daemon.connect(0);
    for _ in 0..3 {
        assert!(neighbour.is_served());
        assert!(is_marked(&store.file()), "its answer is due");
    }
    daemon.hold.release();
    let answer = client.expect(request::GET_VRING_BASE).body;
    let ring = store.record().rings[&0];
    assert_eq!((answer, ring.base), (words(&[0, 1]), 1));
    assert_eq!((ring.started, ring.kick, ring.addresses), (false, None, None));
}

/// Whether it was answered at once or late.
//= spec/parking.md#PRK-1
#[test]
fn a_ring_is_parked_as_it_is() {
    let alone = alone();
    let (mut store, place) = Store::new(BTreeMap::new());
    let (_daemon, mut client, _) = Daemon::parking(place, alone);
    let mut guest = start(&mut client);
    for served in 0..4 {
        let ring = store.record().rings[&0];
        assert!(ring.started && ring.enabled && ring.kick.is_some() && ring.call.is_some());
        if served % 2 == 1 {
            guest.read();
            while guest.used() == 0 {
                std::thread::yield_now();
            }
        }
        let base = stop(&mut client);
        let ring = store.record().rings[&0];
        assert_eq!((ring.base, ring.started, ring.kick), (base, false, None));
        if served % 2 == 1 {
            guest = Guest::new();
            guest.start(&mut client);
        } else {
            guest.start_ring(&mut client);
        }
    }
}

/// A descriptor of another message by an old number would be taken for what it is not.
//= spec/parking.md#PRK-9
#[test]
fn numbers_are_never_used_again() {
    let (mut left, mut last) = (BTreeMap::new(), None);
    for generation in 0..3 {
        let alone = alone();
        let (mut store, place) = Store::new(left);
        let daemon = Daemon::parking_at(place, alone);
        let mut client = daemon.connect(0);
        let guest = start(&mut client);
        for message in chatter(&guest).iter().chain(&chatter(&guest)) {
            say(&mut client, message);
            store.record();
        }
        drop(daemon);
        store.hear();
        let numbers = &store.numbers;
        assert!(numbers.is_sorted_by(|a, b| a < b), "{numbers:?}");
        assert!(last < numbers.first().copied(), "{last:?} was used before {numbers:?}");
        last = numbers.last().copied();
        left = store.leave();
        if generation == 1 {
            mark(&left);
        }
    }
}

/// The same front end over the same connection, whoever serves it: what it has said to one daemon
/// holds for the next.
//= spec/parking.md#PRK-1
//= spec/parking.md#PRK-3
//= spec/parking.md#PRK-9
#[test]
fn a_successor_goes_on_with_everything_that_was_said() {
    let (mut left, mut front) = (BTreeMap::new(), None);
    let ring = 0_u64.to_ne_bytes();
    for generation in 1..=4 {
        let alone = alone();
        let (mut store, place) = Store::new(left);
        let daemon = Daemon::parking_at(place, alone);
        let (mut client, mut guest) = front.take().unwrap_or_else(|| {
            let mut client = daemon.connect(0);
            let guest = start(&mut client);
            (client, guest)
        });
        assert!(client.is_served(), "generation {generation}");
        if !store.record().rings[&0].started {
            guest.start_ring(&mut client);
        }
        // Memory, ring and interrupts are those that it has handed over last.
        guest.signals();
        guest.read();
        while guest.used() < generation || guest.signals() == 0 {
            std::thread::yield_now();
        }
        for message in &chatter(&guest) {
            say(&mut client, message);
            store.record();
        }
        assert_eq!(client.acked(request::SET_VRING_CALL, &ring, &[guest.call.as_fd()]), 0);
        assert_eq!(client.acked(request::SET_VRING_KICK, &ring, &[guest.kick.as_fd()]), 0);
        // What the next one finds runs, or is stopped.
        if generation % 2 == 0 {
            assert_eq!(stop(&mut client), u32::from(generation));
        }
        assert_eq!(store.record().rings[&0].started, generation % 2 == 1);
        drop(daemon);
        left = store.leave();
        front = Some((client, guest));
    }
}

/// A daemon has died in the middle of a message.
fn mark(left: &BTreeMap<String, OwnedFd>) {
    use std::os::unix::fs::FileExt;
    let file = File::from(left["sluice-0-record"].try_clone().unwrap());
    file.write_all_at(&[1], 12).unwrap();
}
