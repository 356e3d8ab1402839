//! Regions for the record of requests in flight.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{MemfdFlags, memfd_create};
use sluice_core::inflight::region_bytes;

use crate::support::client::{Client, longs, request};
use crate::support::guest::Guest;
use crate::support::shard::QUEUES;
use crate::support::{Daemon, descriptors};

/// A description of a region: bytes, offset, queues and their size.
fn area(bytes: u64, offset: u64, queues: u16, size: u16) -> Vec<u8> {
    let last = u64::from(queues) | u64::from(size) << 16;
    longs(&[bytes, offset, last])
}

/// Has a region made: its description and itself.
pub(crate) fn make(client: &mut Client, queues: u16, size: u16) -> (Vec<u8>, OwnedFd) {
    let fd = client.ask_fd(request::GET_INFLIGHT_FD, &area(0, 0, queues, size));
    (client.expect(request::GET_INFLIGHT_FD).body, fd)
}

fn negotiated(daemon: &Daemon) -> Client {
    let mut client = daemon.connect(0);
    client.negotiate();
    client
}

//= spec/vhost-user.md#VHU-13
#[test]
fn a_region_is_sealed_zeroes_and_its_answer_is_defined() {
    let daemon = Daemon::new(1);
    let mut client = negotiated(&daemon);
    let (body, region) = make(&mut client, 2, 128);
    let region = File::from(region);
    let bytes = region.metadata().unwrap().len();
    assert_eq!(body, area(bytes, 0, 2, 128), "the padding is zero too");
    assert!(bytes >= 2 * (16 + 16 * 128));
    region.set_len(bytes - 1).expect_err("nobody can take it back");
    region.set_len(bytes + 1).expect_err("nor make it longer");
    let content = std::fs::read(format!("/proc/self/fd/{}", {
        use std::os::fd::AsRawFd;
        region.as_raw_fd()
    }));
    assert!(content.unwrap().iter().all(|&byte| byte == 0));
    assert_eq!(client.acked(request::SET_INFLIGHT_FD, &body, &[region.as_fd()]), 0);
    Guest::new().start(&mut client);
}

#[test]
fn b87_a_region_for_queues_that_cannot_be_is_not_made() {
    let daemon = Daemon::new(1);
    for (queues, size) in [(0, 128), (2, 0), (QUEUES + 1, 128), (u16::MAX, u16::MAX)] {
        let mut client = negotiated(&daemon);
        client.send(request::GET_INFLIGHT_FD, &area(0, 0, queues, size));
        assert!(client.is_closed(), "{queues} {size}");
    }
    make(&mut negotiated(&daemon), QUEUES, 128);
}

//= spec/vhost-user.md#VHU-14
#[test]
fn b88_a_region_is_as_long_as_it_has_to_be() {
    let daemon = Daemon::new(1);
    let mut client = negotiated(&daemon);
    let (_, made) = make(&mut client, 2, 128);
    let bytes = File::from(made).metadata().unwrap().len();
    let file = File::from(memfd_create("region", MemfdFlags::CLOEXEC).unwrap());
    file.set_len(bytes).unwrap();
    // There is room for rings of either format and something of the device's own; what a front
    // end has of another back end need not have it.
    let least = region_bytes(2, 128, false);
    assert!(least < bytes);
    for (said, offset) in [(least - 1, 0), (bytes, 4096), (bytes, 8), (bytes, u64::MAX - 4095)] {
        let body = area(said, offset, 2, 128);
        let told = client.acked(request::SET_INFLIGHT_FD, &body, &[file.as_fd()]);
        assert_eq!(told, 1, "{said} at {offset}");
    }
    assert_eq!(client.acked(request::SET_INFLIGHT_FD, &area(least, 0, 2, 128), &[file.as_fd()]), 0);
    let mut client = {
        drop(client);
        daemon.settle(0)
    };
    client.negotiate();
    file.set_len(bytes - 1).unwrap();
    let body = area(bytes, 0, 2, 128);
    assert_eq!(client.acked(request::SET_INFLIGHT_FD, &body, &[file.as_fd()]), 1);
    assert_eq!(daemon.hold.mappings(), 0);
    file.set_len(bytes + 4096).unwrap();
    assert_eq!(client.acked(request::SET_INFLIGHT_FD, &body, &[file.as_fd()]), 0);
    let body = area(bytes, 4096, 2, 128);
    assert_eq!(client.acked(request::SET_INFLIGHT_FD, &body, &[file.as_fd()]), 0);
    assert_eq!(daemon.hold.mappings(), 1, "the one before was given back");
}

#[test]
fn b95_regions_cost_nothing_over_and_over() {
    const TIMES: u32 = 100_000;
    let daemon = Daemon::new(1);
    let mut client = negotiated(&daemon);
    let (body, region) = make(&mut client, 2, 128);
    assert_eq!(client.acked(request::SET_INFLIGHT_FD, &body, &[region.as_fd()]), 0);
    let before = (daemon.hold.mappings(), descriptors());
    for _ in 0..TIMES {
        drop(make(&mut client, 2, 128));
    }
    for _ in 0..TIMES / 10 {
        // Unacknowledged ones follow each other as fast as they are read.
        client.send_fds(request::SET_INFLIGHT_FD, &body, &[region.as_fd()]);
    }
    assert_eq!(client.acked(request::SET_INFLIGHT_FD, &body, &[region.as_fd()]), 0);
    assert_eq!((daemon.hold.mappings(), descriptors()), before);
}
