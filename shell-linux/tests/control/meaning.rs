//! Whole messages that mean something wrong: told, or closed, and nothing in between.

use std::os::fd::AsFd;

use crate::support::Daemon;
use crate::support::client::{
    Client, FEATURES, NEED_REPLY, NO_FD, OFFERED, PROTOCOL, VERSION, event, longs, message,
    request, words,
};
use crate::support::guest::{Guest, MEMORY, RING, USER};

fn negotiated(daemon: &Daemon) -> Client {
    let mut client = daemon.connect(0);
    client.negotiate();
    client
}

/// Sends a message to a new connection that has got as far as `begin` takes it, asking for an
/// acknowledgement: `Some` with it, `None` when the connection closes.
fn outcome(daemon: &Daemon, begin: impl Fn(&mut Client), request: u32, body: &[u8]) -> Option<u64> {
    let mut client = daemon.connect(0);
    begin(&mut client);
    client.bytes(&message(request, VERSION | NEED_REPLY, body), &[]);
    let answer = client.answer()?.number();
    // A refusal that closes is told as well.
    let _ = client.try_bytes(&message(request::GET_FEATURES, VERSION, &[]), &[]);
    client.answer().map(|_| answer)
}

fn acknowledging(client: &mut Client) {
    client.features();
    client.send(request::SET_PROTOCOL_FEATURES, &PROTOCOL.to_ne_bytes());
}

//= spec/vhost-user.md#VHU-5
//= spec/lifecycle.md#LIF-2
#[test]
fn b16_messages_out_of_turn_are_told_or_close() {
    let daemon = Daemon::new(1);
    let ring = words(&[0, RING]);
    // Before the owner.
    for (request, body) in [
        (request::SET_VRING_NUM, ring.clone()),
        (request::SET_VRING_BASE, words(&[0, 0])),
        (request::SET_VRING_ADDR, Guest::addresses(0)),
        (request::SET_VRING_KICK, longs(&[NO_FD])),
        (request::SET_VRING_CALL, longs(&[NO_FD])),
        (request::SET_VRING_ERR, longs(&[NO_FD])),
        (request::SET_VRING_ENABLE, words(&[0, 1])),
        (request::REM_MEM_REG, Guest::region()),
    ] {
        assert_eq!(outcome(&daemon, acknowledging, request, &body), Some(1), "{request}");
        // Nobody would hear of it.
        let mut client = daemon.connect(0);
        client.send(request, &body);
        assert!(client.is_closed(), "{request}");
    }
    // Enabling before features is legal, and being the owner already.
    let owned = |client: &mut Client| {
        acknowledging(client);
        client.send(request::SET_OWNER, &[]);
    };
    assert_eq!(outcome(&daemon, owned, request::SET_VRING_ENABLE, &words(&[0, 1])), Some(0));
    assert_eq!(outcome(&daemon, owned, request::SET_OWNER, &[]), Some(0));
    // Addresses before a size, before memory; a start before addresses.
    let addresses = Guest::addresses(0);
    let begin = Client::negotiate;
    assert_eq!(outcome(&daemon, begin, request::SET_VRING_ADDR, &addresses), Some(1));
    assert_eq!(outcome(&daemon, begin, request::SET_VRING_KICK, &longs(&[NO_FD])), Some(1));
    let sized = |client: &mut Client| {
        client.negotiate();
        assert_eq!(client.acked(request::SET_VRING_NUM, &ring, &[]), 0);
    };
    assert_eq!(outcome(&daemon, sized, request::SET_VRING_ADDR, &addresses), Some(1));
    assert_eq!(outcome(&daemon, sized, request::SET_VRING_KICK, &longs(&[NO_FD])), Some(1));
    // Enabling and stopping rings that were never set up is legal.
    assert_eq!(outcome(&daemon, begin, request::SET_VRING_ENABLE, &words(&[3, 1])), Some(0));
    let mut client = negotiated(&daemon);
    assert_eq!(client.ask(request::GET_VRING_BASE, &words(&[2, 0])).body, words(&[2, 0]));
    // In the right order, without a kick descriptor: the ring is polled.
    let guest = Guest::new();
    guest.start(&mut client);
    assert_eq!(client.acked(request::SET_VRING_KICK, &longs(&[NO_FD]), &[]), 0);
}

#[test]
fn b16_messages_before_the_owner_that_are_legal() {
    let daemon = Daemon::new(1);
    let mut client = daemon.connect(0);
    acknowledging(&mut client);
    assert_eq!(client.ask(request::GET_QUEUE_NUM, &[]).number(), 4);
    assert_eq!(client.ask(request::GET_MAX_MEM_SLOTS, &[]).number(), 32);
    assert_eq!(client.acked(request::SET_FEATURES, &FEATURES.to_ne_bytes(), &[]), 0);
    assert_eq!(client.ask(request::GET_CONFIG, &words(&[0, 1, 0, 0])[..13]).body.len(), 13);
}

//= spec/vhost-user.md#VHU-5
//= spec/lifecycle.md#LIF-3
//= spec/lifecycle.md#LIF-4
#[test]
fn b17_features_that_were_not_offered_close() {
    let daemon = Daemon::new(1);
    let offered = daemon.settle(0).features();
    for bit in 0..64 {
        let features = FEATURES | 1 << bit;
        let told = outcome(&daemon, acknowledging, request::SET_FEATURES, &features.to_ne_bytes());
        assert_eq!(told, (offered & 1 << bit != 0).then_some(0), "feature {bit}");
        let protocol = PROTOCOL | 1 << bit;
        let request = request::SET_PROTOCOL_FEATURES;
        let told = outcome(&daemon, acknowledging, request, &protocol.to_ne_bytes());
        assert_eq!(told, (OFFERED & 1 << bit != 0).then_some(0), "protocol feature {bit}");
    }
    // Leaving requests takes a region to leave them in.
    for (protocol, told) in [(OFFERED, Some(0)), (OFFERED & !(1 << 12), None)] {
        let request = request::SET_PROTOCOL_FEATURES;
        assert_eq!(outcome(&daemon, acknowledging, request, &protocol.to_ne_bytes()), told);
    }
}

#[test]
fn b18_messages_of_features_that_were_not_negotiated() {
    let daemon = Daemon::new(1);
    let plain = |client: &mut Client| {
        client.features();
        client.send(request::SET_PROTOCOL_FEATURES, &(1_u64 << 3).to_ne_bytes());
        client.send(request::SET_OWNER, &[]);
    };
    for (request, body) in [
        (request::GET_QUEUE_NUM, Vec::new()),
        (request::GET_MAX_MEM_SLOTS, Vec::new()),
        (request::GET_CONFIG, words(&[0, 4, 0, 0])),
        (request::SET_CONFIG, words(&[0, 4, 0, 0])),
        (request::REM_MEM_REG, Guest::region()),
        (request::GET_INFLIGHT_FD, vec![1; 24]),
    ] {
        assert_eq!(outcome(&daemon, plain, request, &body), None, "{request}");
    }
    // Those that are never offered are unknown, and told.
    for request in [request::RESET_DEVICE, request::GET_STATUS] {
        assert_eq!(outcome(&daemon, plain, request, &[0; 24]), Some(1), "{request}");
    }
    // Without acknowledgements nobody is told, and an unknown request is no reason to close.
    let mut client = daemon.connect(0);
    client.features();
    client.bytes(&message(request::GET_STATUS, VERSION | NEED_REPLY, &[]), &[]);
    assert!(client.is_served());
}

/// Without a region nothing is tracked, and everything is served.
#[test]
fn b19_a_region_that_was_negotiated_and_never_comes() {
    let daemon = Daemon::new(1);
    for protocol in [OFFERED, PROTOCOL] {
        let mut client = daemon.connect(0);
        client.negotiate_with(protocol);
        let mut guest = Guest::new();
        guest.start(&mut client);
        for base in 1..=3 {
            guest.read();
            while guest.used() < base {
                assert!(client.is_served());
            }
        }
        let stopped = client.ask(request::GET_VRING_BASE, &words(&[0, 0])).body;
        assert_eq!((stopped, guest.status()), (words(&[0, 3]), 0));
    }
}

/// Drivers write where they like, and their front ends pass it on without a question.
//= spec/lifecycle.md#LIF-18
#[test]
fn a_refusal_that_nothing_rests_on_costs_nobody_the_disk() {
    let daemon = Daemon::new(1);
    let mut client = daemon.connect(0);
    client.negotiate();
    let mut guest = Guest::new();
    client.send(request::SET_CONFIG, &words(&[0, 4, 0, 7]));
    client.send(request::REM_MEM_REG, &Guest::region());
    // A region that cannot be mapped is none: the one before is not in force any more.
    let (body, region) = super::inflight::make(&mut client, 1, 128);
    assert_eq!(client.acked(request::SET_INFLIGHT_FD, &body, &[region.as_fd()]), 0);
    assert_eq!(daemon.hold.mappings(), 1);
    client.send_fds(request::SET_INFLIGHT_FD, &body, &[event().as_fd()]);
    assert_eq!(daemon.hold.mappings(), 0);
    guest.start(&mut client);
    guest.read();
    while guest.used() == 0 {
        assert!(client.is_served());
    }
    assert_eq!(guest.status(), 0);
    // What is rested on closes as before.
    client.send(request::SET_VRING_NUM, &words(&[1, 3]));
    assert!(client.is_closed());
    let mut client = daemon.settle(0);
    client.features();
    client.send(request::SET_PROTOCOL_FEATURES, &(PROTOCOL & !(1 << 5)).to_ne_bytes());
    client.send_fds(request::SET_BACKEND_REQ_FD, &[], &[event().as_fd()]);
    assert!(client.is_served());
}

//= spec/lifecycle.md#LIF-6
//= spec/lifecycle.md#LIF-4
#[test]
fn b20_a_running_ring_is_not_changed() {
    let daemon = Daemon::new(1);
    let guest = Guest::new();
    let running = |client: &mut Client| {
        client.negotiate();
        guest.start(client);
    };
    let other = [words(&[0, 0]), longs(&[USER, USER + 0x8000, USER + 0x1000, 0])].concat();
    for (request, body) in [
        (request::SET_VRING_NUM, words(&[0, RING * 2])),
        (request::SET_VRING_BASE, words(&[0, 1])),
        (request::SET_VRING_ADDR, other.clone()),
        (request::SET_FEATURES, longs(&[FEATURES | 1 << 28])),
    ] {
        assert_eq!(outcome(&daemon, running, request, &body), None, "{request}");
    }
    assert_eq!(outcome(&daemon, running, request::SET_VRING_ADDR, &Guest::addresses(0)), Some(0));
    assert_eq!(outcome(&daemon, running, request::SET_VRING_NUM, &words(&[0, RING])), Some(0));
    assert_eq!(outcome(&daemon, running, request::SET_VRING_BASE, &words(&[0, 0])), Some(0));
    assert_eq!(outcome(&daemon, running, request::SET_FEATURES, &longs(&[FEATURES])), Some(0));
    // And once it has stopped, everything may be.
    let stopped = |client: &mut Client| {
        running(client);
        assert_eq!(client.ask(request::GET_VRING_BASE, &words(&[0, 0])).body, words(&[0, 0]));
    };
    assert_eq!(outcome(&daemon, stopped, request::SET_VRING_NUM, &words(&[0, 4])), Some(0));
    assert_eq!(outcome(&daemon, stopped, request::SET_FEATURES, &longs(&[1 << 32])), Some(0));
}

//= spec/lifecycle.md#LIF-5
//= spec/lifecycle.md#LIF-6
#[test]
fn b21_b22_sizes_bases_and_rings_in_full_width() {
    let daemon = Daemon::new(1);
    let decide = |request, index, value| {
        outcome(&daemon, Client::negotiate, request, &words(&[index, value]))
    };
    for size in [0, 3, 2048, 1 << 16, 1 << 16 | 8, u32::MAX] {
        assert_eq!(decide(request::SET_VRING_NUM, 0, size), Some(1), "size {size}");
    }
    for base in [1 << 16, 1 << 31, u32::MAX] {
        assert_eq!(decide(request::SET_VRING_BASE, 0, base), Some(1), "base {base}");
    }
    assert_eq!(decide(request::SET_VRING_NUM, 3, 1024), Some(0));
    assert_eq!(decide(request::SET_VRING_BASE, 3, 0xffff), Some(0));
    for index in [4, 0x1_0000, 0x8000_0000, u32::MAX] {
        for request in [request::SET_VRING_NUM, request::SET_VRING_BASE, request::SET_VRING_ENABLE]
        {
            assert_eq!(decide(request, index, 1), None, "ring {index}");
        }
        let mut client = negotiated(&daemon);
        client.send(request::GET_VRING_BASE, &words(&[index, 0]));
        assert!(client.is_closed());
    }
    assert_eq!(decide(request::SET_VRING_ENABLE, 0, 2), None);
}

//= spec/blk.md#BLK-18
#[test]
fn b25_b26_the_configuration_space_in_any_length() {
    let daemon = Daemon::new(1);
    let mut client = negotiated(&daemon);
    let mut ask = |offset: u32, size: u32| {
        let body = [words(&[offset, size, 0]), vec![0x55; size as usize]].concat();
        let answer = client.ask(request::GET_CONFIG, &body).body;
        assert_eq!(answer[..12], words(&[offset, size, 0]));
        answer[12..].to_vec()
    };
    let whole = ask(0, 60);
    assert_eq!(whole[..8], 2048_u64.to_le_bytes());
    for size in [1, 8, 57, 60, 61, 256, 4084] {
        let bytes = ask(0, size);
        assert_eq!(bytes.len(), size as usize);
        assert!(bytes.iter().zip(&whole).all(|(a, b)| a == b));
        assert!(bytes.iter().skip(60).all(|&byte| byte == 0));
    }
    assert_eq!(ask(8, 4), whole[8..12]);
    assert_eq!(ask(0x100, 60), whole);
    assert_eq!(ask(4092, 4), [0; 4]);
    drop(client);
    for (offset, size, payload) in [(0, 0, 1), (4093, 4, 4), (u32::MAX, 4, 4), (0, 5, 4)] {
        let body = [words(&[offset, size, 0]), vec![0; payload]].concat();
        let mut client = negotiated(&daemon);
        client.send(request::GET_CONFIG, &body);
        assert!(client.is_closed(), "{size} bytes at {offset}");
    }
    let write = words(&[0, 4, 0, 0]);
    assert_eq!(outcome(&daemon, Client::negotiate, request::SET_CONFIG, &write), Some(1));
}

//= spec/blk.md#BLK-19
#[test]
fn b26_the_cache_switch_is_written_where_it_was_negotiated() {
    const CONFIG_WCE: u64 = 1 << 11;
    let daemon = Daemon::new(1);
    let write = |value: u8| [&words(&[32, 1, 0])[..], &[value]].concat();
    let chooses = |client: &mut Client| {
        client.negotiate();
        client.send(request::SET_FEATURES, &longs(&[FEATURES | 1 << 9 | CONFIG_WCE]));
    };
    for (value, told) in [(0, 0), (1, 0), (2, 1)] {
        assert_eq!(outcome(&daemon, chooses, request::SET_CONFIG, &write(value)), Some(told));
    }
    // The flag for migrations makes no other field writable.
    let migrated = [&words(&[0, 8, 1])[..], &[0; 8]].concat();
    assert_eq!(outcome(&daemon, chooses, request::SET_CONFIG, &migrated), Some(1));
    assert_eq!(outcome(&daemon, Client::negotiate, request::SET_CONFIG, &write(0)), Some(1));
    let mut client = daemon.connect(0);
    chooses(&mut client);
    let read = [words(&[32, 1, 0]), vec![0x55]].concat();
    for value in [1, 0, 1] {
        assert_eq!(client.acked(request::SET_CONFIG, &write(value), &[]), 0);
        assert_eq!(client.ask(request::GET_CONFIG, &read).body[12..], [value]);
    }
}

//= spec/lifecycle.md#LIF-8
#[test]
fn b33_b34_b36_b42_regions() {
    let daemon = Daemon::new(1);
    let guest = Guest::new();
    let mut client = negotiated(&daemon);
    let mut add = |guest_at: u64, user: u64, size: u64, offset: u64| {
        let body = longs(&[0, guest_at, size, user, offset]);
        client.acked(request::ADD_MEM_REG, &body, &[guest.memory.as_fd()])
    };
    for (at, user, size, offset) in [
        (0, USER, 0, 0),
        (u64::MAX - 4095, USER, 8192, 0),
        (0, u64::MAX - 4095, 8192, 0),
        (0, USER, 4096, u64::MAX - 4095),
        (0, USER, MEMORY, 4096),
        (0, USER, u64::MAX, 1),
        (0, USER, 4096, 1),
    ] {
        assert_eq!(add(at, user, size, offset), 1, "{size} bytes at {at:#x}, from {offset:#x}");
    }
    assert_eq!(add(0, USER, 8192, 4096), 0);
    assert_eq!(add(4096, USER + MEMORY, 4096, 0), 1, "overlaps");
    assert_eq!(add(8192, USER + 4096, 4096, 0), 1, "overlaps");
    assert_eq!(add(8192, USER + 8192, 4096, 0), 0);
    assert_eq!(daemon.hold.mappings(), 2);
    let region = |size| longs(&[0, 0, size, USER, 0]);
    assert_eq!(client.acked(request::REM_MEM_REG, &region(4096), &[]), 1, "no such region");
    // Old front ends send a descriptor.
    assert_eq!(client.acked(request::REM_MEM_REG, &region(8192), &[guest.memory.as_fd()]), 0);
    assert_eq!(daemon.hold.mappings(), 1);
}

/// The fault that operators meet: memory that is not shared.
//= spec/lifecycle.md#LIF-7
#[test]
fn b43_rings_outside_of_shared_memory_are_told() {
    let daemon = Daemon::new(1);
    let mut client = negotiated(&daemon);
    let guest = Guest::new();
    guest.start(&mut client);
    assert_eq!(client.acked(request::SET_VRING_NUM, &words(&[1, RING]), &[]), 0);
    let at = |desc: u64| [words(&[1, 0]), longs(&[desc, USER, USER, 0])].concat();
    for desc in [0, USER - 16, USER + MEMORY - 16, USER + MEMORY, u64::MAX - 15] {
        assert_eq!(client.acked(request::SET_VRING_ADDR, &at(desc), &[]), 1, "{desc:#x}");
    }
    assert_eq!(client.acked(request::SET_VRING_ADDR, &at(USER + MEMORY - 128), &[]), 0);
    drop(client);
    // A log of what is written was never offered, and misalignment is the dispatcher's.
    let logged = [words(&[1, 1]), longs(&[USER, USER, USER, 0])].concat();
    for body in [at(USER + 8), logged] {
        let mut client = negotiated(&daemon);
        client.send(request::SET_VRING_ADDR, &body);
        assert!(client.is_closed());
    }
}
