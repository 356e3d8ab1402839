//! Regions for the record of requests in flight.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;

use rustix::fs::{MemfdFlags, memfd_create};
use sluice_core::inflight::{DEVICE_BYTES, region_bytes};
use sluice_core::limits::QUEUE_SIZE_MAX;

use crate::support::client::{Client, longs, request};
use crate::support::guest::Guest;
use crate::support::shard::QUEUES;
use crate::support::{Daemon, descriptors, eventually};

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

/// No question is wrong enough to be left without a disk.
//= spec/inflight.md#INF-1
#[test]
fn b87_a_region_is_made_whatever_is_asked_for() {
    let daemon = Daemon::new(1);
    let mut client = negotiated(&daemon);
    let of = |queues| region_bytes(queues, QUEUE_SIZE_MAX, true) + DEVICE_BYTES;
    for (queues, size, made) in [
        (0, 128, QUEUES),
        (2, 0, QUEUES),
        (1, 1, QUEUES),
        (QUEUES + 1, 128, QUEUES + 1),
        (u16::MAX, u16::MAX, 128),
    ] {
        let (body, region) = make(&mut client, queues, size);
        assert_eq!(body, area(of(made), 0, queues, size));
        assert_eq!(File::from(region).metadata().unwrap().len(), of(made));
    }
}

/// Runs one read over a ring of so many entries, and says whether it was recorded, while it was
/// under way, in the first area of `region`.
fn is_recorded(daemon: &Daemon, client: &mut Client, ring: u32, region: &File) -> bool {
    let mut guest = Guest::with_ring(ring);
    guest.start(client);
    daemon.hold.keep();
    guest.read();
    daemon.hold.wait();
    // A header of 16 bytes, and the mark of the first head.
    let mut mark = [0];
    region.read_exact_at(&mut mark, 16).unwrap();
    daemon.hold.release();
    while guest.used() == 0 {
        std::thread::yield_now();
    }
    assert_eq!(guest.status(), 0);
    mark == [1]
}

/// What QEMU 10.0 does: it asks with its property, and the rings are what its guest likes.
//= spec/inflight.md#INF-2
#[test]
fn a_front_end_that_asks_for_a_small_region_and_starts_large_rings() {
    let daemon = Daemon::new(1);
    for ring in [64, 128, 256, 1024] {
        let mut client = daemon.settle(0);
        client.negotiate();
        let (body, region) = make(&mut client, 2, 128);
        client.send_fds(request::SET_INFLIGHT_FD, &body, &[region.as_fd()]);
        let region = File::from(region);
        assert!(is_recorded(&daemon, &mut client, ring, &region), "{ring}");
    }
}

/// A region of another program, or of another version, may have no room.
//= spec/vhost-user.md#VHU-14
//= spec/recovery.md#REC-15
#[test]
fn b88_a_region_that_is_too_small_costs_the_record_and_not_the_disk() {
    let daemon = Daemon::new(1);
    let file = File::from(memfd_create("region", MemfdFlags::CLOEXEC).unwrap());
    file.set_len(1 << 20).unwrap();
    let least = region_bytes(2, 128, false);
    for (bytes, queues, ring, recorded) in [
        (least, 2, 128, true),
        (least, 2, 256, false),
        (least / 2 - 64, 1, 128, false),
        (least / 2, 2, 128, true),
        (64, 2, 128, false),
    ] {
        let mut client = daemon.settle(0);
        client.negotiate();
        file.write_all_at(&vec![0; 1 << 20], 0).unwrap();
        client.send_fds(request::SET_INFLIGHT_FD, &area(bytes, 0, queues, 128), &[file.as_fd()]);
        let found = is_recorded(&daemon, &mut client, ring, &file);
        assert_eq!(found, recorded, "{bytes} {ring}");
    }
}

//= spec/vhost-user.md#VHU-14
#[test]
fn b88_a_region_is_there_as_a_whole() {
    let daemon = Daemon::new(1);
    let mut client = negotiated(&daemon);
    let (_, made) = make(&mut client, 2, 128);
    let bytes = File::from(made).metadata().unwrap().len();
    let file = File::from(memfd_create("region", MemfdFlags::CLOEXEC).unwrap());
    file.set_len(bytes).unwrap();
    for (said, offset) in [(bytes, 4096), (bytes, 8), (bytes, u64::MAX - 4095)] {
        let body = area(said, offset, 2, 128);
        let told = client.acked(request::SET_INFLIGHT_FD, &body, &[file.as_fd()]);
        assert_eq!(told, 1, "{said} at {offset}");
    }
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
    let open = || (daemon.hold.mappings(), descriptors());
    eventually(|| open() == before, || format!("{:?}, not {before:?}", open()));
}
