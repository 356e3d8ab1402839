//! Messages over and over: nothing may be left of those before the last.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::fs::{MemfdFlags, memfd_create};

use crate::inflight::make;
use crate::support::client::{
    Client, FEATURES, NO_FD, OFFERED, event, longs, message, request, words,
};
use crate::support::guest::{Guest, MEMORY, RING, USER};
use crate::support::{Daemon, descriptors, eventually};

/// How often each message is repeated: `SLUICE_REPEAT` times, or as often as a debug build does
/// in a few seconds.
fn times() -> usize {
    let asked = std::env::var("SLUICE_REPEAT").ok();
    asked.map_or(10_000, |times| times.parse().expect("a number"))
}

/// Bytes of memory that this process has touched.
fn resident() -> usize {
    let pages = std::fs::read_to_string("/proc/self/statm").unwrap();
    4096 * pages.split(' ').nth(1).unwrap().parse::<usize>().unwrap()
}

/// What allocators keep for later, of memory that was given back.
const SLACK: usize = 1 << 20;

/// What is there when everything that was sent has been answered.
fn held(daemon: &Daemon, client: &mut Client) -> (u32, BTreeMap<String, usize>) {
    assert!(client.is_served());
    (daemon.hold.mappings(), descriptors())
}

/// The same as `before`, as soon as everything that was given up is closed.
fn holds(
    daemon: &Daemon,
    client: &mut Client,
    before: &(u32, BTreeMap<String, usize>),
    what: &str,
) {
    let otherwise = || format!("{what}: {:?}, not {before:?}", descriptors());
    eventually(|| held(daemon, client) == *before, otherwise);
}

/// Sends a message again and again, as fast as it is read: what is there afterwards is what was
/// there after the first.
fn repeat(daemon: &Daemon, client: &mut Client, request: u32, body: &[u8], fd: Option<&OwnedFd>) {
    let bytes = message(request, 1, body);
    let fds: Vec<_> = fd.into_iter().map(AsFd::as_fd).collect();
    let mut send = |count: usize| {
        for _ in 0..count {
            client.bytes(&bytes, &fds);
        }
        held(daemon, client)
    };
    let first = send(1);
    // Threads that unmap have memory of their own, which comes with the first of them.
    send(times() / 10);
    let few = resident();
    send(times());
    holds(daemon, client, &first, &format!("message {request}"));
    let many = resident();
    assert!(many < few + SLACK, "{request}: {few} bytes, then {many}");
}

#[test]
fn b15_every_message_that_sets_something_keeps_the_last_and_nothing_else() {
    let daemon = Daemon::new(1);
    let mut client = daemon.connect(0);
    client.negotiate_with(OFFERED);
    let wce = longs(&[FEATURES | 1 << 9 | 1 << 11]);
    let (area, region) = make(&mut client, 2, 128);
    let log = memfd_create("log", MemfdFlags::CLOEXEC).unwrap();
    rustix::fs::ftruncate(&log, 4096).unwrap();
    let (event, (channel, _ours)) = (event(), UnixStream::pair().unwrap());
    let channel = OwnedFd::from(channel);
    let guest = Guest::new();
    let memory = OwnedFd::from(guest.memory.try_clone().unwrap());
    let ring = longs(&[1]);
    let addresses = [words(&[1, 0]), longs(&[USER, USER + 0x2000, USER + 0x1000, 0])].concat();
    let switch = [words(&[32, 1, 0]), vec![0]].concat();
    for (request, body, fd) in [
        (request::SET_FEATURES, wce, None),
        (request::SET_PROTOCOL_FEATURES, longs(&[OFFERED]), None),
        (request::SET_CONFIG, switch, None),
        (request::SET_BACKEND_REQ_FD, vec![], Some(&channel)),
        (request::SET_LOG_FD, vec![], Some(&event)),
        (request::SET_INFLIGHT_FD, area, Some(&region)),
        (request::SET_MEM_TABLE, Guest::table(), Some(&memory)),
        (request::SET_VRING_NUM, words(&[1, RING]), None),
        (request::SET_VRING_BASE, words(&[1, 7]), None),
        (request::SET_VRING_ADDR, addresses, None),
        (request::SET_VRING_CALL, ring.clone(), Some(&event)),
        (request::SET_VRING_ERR, ring.clone(), Some(&event)),
        (request::SET_VRING_KICK, ring, Some(&event)),
        (request::SET_VRING_ENABLE, words(&[1, 1]), None),
    ] {
        repeat(&daemon, &mut client, request, &body, fd);
    }
    // Those that have an answer.
    let log_at = longs(&[4096, 0]);
    for round in 0..=times() {
        client.send_fds(request::SET_LOG_BASE, &log_at, &[log.as_fd()]);
        client.answer().expect("it is answered");
        if round == 0 {
            held(&daemon, &mut client);
        }
    }
    let before = held(&daemon, &mut client);
    // A ring that has stopped has no kick descriptor any more, and another gets none.
    for _ in 0..times() {
        client.ask(request::GET_VRING_BASE, &words(&[1, 0]));
        client.send(request::SET_VRING_CALL, &(2 | NO_FD).to_ne_bytes());
    }
    client.send(request::SET_VRING_CALL, &(1 | NO_FD).to_ne_bytes());
    client.send(request::SET_VRING_ERR, &(1 | NO_FD).to_ne_bytes());
    // The test's shard keeps a stopped ring's kick descriptor; call and error are gone.
    let mut without = before;
    *without.1.get_mut("anon_inode").expect("bells at least") -= 2;
    holds(&daemon, &mut client, &without, "stopped rings");
}

/// Regions that come and go one by one, and messages that are refused.
#[test]
fn b15_what_is_added_and_removed_or_refused_is_gone() {
    let daemon = Daemon::new(1);
    let mut client = daemon.connect(0);
    client.negotiate();
    let guest = Guest::new();
    let memory = [guest.memory.as_fd()];
    let before = held(&daemon, &mut client);
    for round in 0..=times() / 10 {
        client.send_fds(request::ADD_MEM_REG, &Guest::region(), &memory);
        let wrong = longs(&[0, 0, MEMORY, USER + MEMORY, 0]);
        assert_eq!(client.acked(request::ADD_MEM_REG, &wrong, &memory), 1, "{round}");
        client.send(request::REM_MEM_REG, &Guest::region());
        assert_eq!(client.acked(40, &[0; 24], &memory), 1);
    }
    holds(&daemon, &mut client, &before, "regions");
}

/// The table changes while requests are under way.
//= spec/lifecycle.md#LIF-9
#[test]
fn b41_tables_are_swapped_under_load() {
    let daemon = Daemon::new(1);
    let mut client = daemon.connect(0);
    client.negotiate();
    let mut guest = Guest::new();
    guest.start(&mut client);
    let before = held(&daemon, &mut client);
    let table = message(request::SET_MEM_TABLE, 1, &Guest::table());
    for _ in 0..times() / 10 {
        client.bytes(&table, &[guest.memory.as_fd()]);
    }
    held(&daemon, &mut client);
    let few = resident();
    let mut asked = 0;
    for _ in 0..times() {
        if guest.used() == asked {
            guest.read();
            asked = asked.wrapping_add(1);
        }
        client.bytes(&table, &[guest.memory.as_fd()]);
    }
    assert!(asked > 0);
    while guest.used() != asked {
        client.is_served();
    }
    assert_eq!(guest.status(), 0);
    holds(&daemon, &mut client, &before, "tables");
    let many = resident();
    assert!(many < few + SLACK, "{few} bytes, then {many}");
}
