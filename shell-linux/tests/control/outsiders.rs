//! Descriptors and memory that are made to hold somebody up, and front ends that want everything.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{MemfdFlags, memfd_create};
use sluice_linux::control::Options;
use sluice_linux::foreign::Quota;

use crate::fuse::opcode::READ;
use crate::fuse::{Behaviour, Fuse};
use crate::room::inside;
use crate::support::client::{Client, copies, event, longs, request};
use crate::support::guest::{Guest, MEMORY, USER};
use crate::support::{Daemon, descriptors, eventually};

const MIB: u64 = 1 << 20;
const TIB: u64 = 1 << 40;

fn negotiated(daemon: &Daemon, disk: u32) -> Client {
    let mut client = daemon.connect(disk);
    client.negotiate();
    client
}

fn sparse(name: &str, bytes: u64, flags: MemfdFlags) -> File {
    let file = File::from(memfd_create(name, MemfdFlags::CLOEXEC | flags).unwrap());
    file.set_len(bytes).unwrap();
    file
}

/// A region of `bytes` at a place of its own.
fn region(at: u64, bytes: u64) -> Vec<u8> {
    longs(&[0, at, bytes, USER + at, 0])
}

fn add(client: &mut Client, at: u64, bytes: u64, file: &impl AsFd) -> u64 {
    client.acked(request::ADD_MEM_REG, &region(at, bytes), &[file.as_fd()])
}

/// Of the kinds of front-end memory, whatever message it comes with.
//= spec/outsiders.md#OUT-1
#[test]
fn memory_is_refused_whose_file_system_need_not_answer() {
    if !inside("outsiders::memory_is_refused_whose_file_system_need_not_answer") {
        return;
    }
    let fuse = Fuse::new(Behaviour { silent: &[READ], ..Behaviour::default() });
    let open = |path| OwnedFd::from(File::options().read(true).write(true).open(path).unwrap());
    let mut disk = tempfile::Builder::new().tempfile_in("/var/tmp").unwrap();
    disk.as_file_mut().set_len(MEMORY).unwrap();
    let on_disk = OwnedFd::from(disk.into_file());
    let daemon = Daemon::new(1);
    for fd in [open(fuse.image()), on_disk] {
        if rustix::fs::fcntl_get_seals(&fd).is_ok() {
            continue; // Where temporary files are in memory they are memory.
        }
        let fds = [fd.as_fd()];
        let mut client = negotiated(&daemon, 0);
        assert_eq!(client.acked(request::SET_MEM_TABLE, &Guest::table(), &fds), 1);
        assert_eq!(client.acked(request::ADD_MEM_REG, &Guest::region(), &fds), 1);
        let area = [longs(&[MEMORY, 0]), vec![1, 0, 8, 0], vec![0; 4]].concat();
        assert_eq!(client.acked(request::SET_INFLIGHT_FD, &area, &fds), 1);
        client.send_fds(request::SET_LOG_BASE, &longs(&[MEMORY, 0]), &fds);
        assert!(client.is_closed());
        assert_eq!(daemon.hold.mappings(), 0);
    }
}

/// What virtual machines are started with.
//= spec/outsiders.md#OUT-1
#[test]
fn memory_of_every_kind_that_front_ends_use_is_taken() {
    let daemon = Daemon::new(1);
    let mut client = negotiated(&daemon, 0);
    let path = std::path::Path::new("/dev/shm").join(format!("sluice-{}", std::process::id()));
    let shared = File::options().read(true).write(true).create_new(true).open(&path).unwrap();
    std::fs::remove_file(path).unwrap();
    shared.set_len(MIB).unwrap();
    let seals = MemfdFlags::ALLOW_SEALING;
    let files = [
        (shared, MIB),
        (sparse("plain", MIB, MemfdFlags::empty()), MIB),
        (sparse("sealable", MIB, seals), MIB),
        (sparse("huge", 2 * MIB, MemfdFlags::HUGETLB | MemfdFlags::HUGE_2MB), 2 * MIB),
        (sparse("huge-sealable", 2 * MIB, MemfdFlags::HUGETLB | seals), 2 * MIB),
    ];
    for ((file, bytes), place) in files.iter().zip(0_u64..) {
        assert_eq!(add(&mut client, place << 30, *bytes, file), 0, "{place}");
    }
    assert_eq!(daemon.hold.mappings(), 5);
}

//= spec/outsiders.md#OUT-1
#[test]
fn an_operator_may_let_files_of_any_kind_pass() {
    let mut file = tempfile::Builder::new().tempfile_in("/var/tmp").unwrap();
    file.as_file_mut().set_len(MEMORY).unwrap();
    let daemon = Daemon::limited(1, Options { any_file: true, ..Options::default() });
    let mut client = negotiated(&daemon, 0);
    assert_eq!(add(&mut client, 0, MEMORY, file.as_file()), 0);
    let (pipe, _) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
    assert_eq!(add(&mut client, 1 << 30, MEMORY, &pipe), 1);
}

//= spec/outsiders.md#OUT-2
#[test]
fn regions_are_whole_pages() {
    let daemon = Daemon::new(1);
    let mut client = negotiated(&daemon, 0);
    let small = sparse("small", MIB, MemfdFlags::empty());
    let huge = sparse("huge", 4 * MIB, MemfdFlags::HUGETLB | MemfdFlags::HUGE_2MB);
    let mut place = 0;
    for (file, offset, bytes, told) in [
        (&small, 0, MIB - 1, 1),
        (&small, 0, 4097, 1),
        (&small, 1, 4096, 1),
        (&small, 512, 4096, 1),
        (&small, MIB - 4096, 4096, 0),
        (&huge, 0, MIB, 1),
        (&huge, 0, 4096, 1),
        (&huge, 0, 3 * MIB, 1),
        (&huge, MIB, 2 * MIB, 1),
        (&huge, 2 * MIB, 2 * MIB, 0),
    ] {
        place += 1 << 30;
        let body = longs(&[0, place, bytes, USER + place, offset]);
        let answer = client.acked(request::ADD_MEM_REG, &body, &[file.as_fd()]);
        assert_eq!(answer, told, "{bytes} at {offset}");
    }
    // The record of dirty pages has a bit for each, however many there are.
    let log = longs(&[100, 0]);
    client.send_fds(request::SET_LOG_BASE, &log, &[small.as_fd()]);
    client.expect(request::SET_LOG_BASE);
    client.send_fds(request::SET_LOG_BASE, &log, &[huge.as_fd()]);
    assert!(client.is_closed());
}

/// Memory of huge pages that is not there any more when it is touched.
//= spec/outsiders.md#OUT-2
#[test]
fn huge_pages_that_were_taken_back_are_replaced_and_unmapped() {
    let daemon = Daemon::new(1);
    let mut client = negotiated(&daemon, 0);
    let mut guest = Guest::new();
    guest.start(&mut client);
    let huge = sparse("taken-back", 2 * MIB, MemfdFlags::HUGETLB | MemfdFlags::HUGE_2MB);
    let ours = || descriptors().keys().filter(|name| name.contains("taken-back")).count();
    assert_eq!(add(&mut client, 1 << 30, 2 * MIB, &huge), 0);
    huge.set_len(0).unwrap();
    // A request whose header lies there: it is read as zeroes, a read of the first sector.
    guest.read_with_header(1 << 30);
    eventually(|| guest.used() == 1, || "the request ends".to_owned());
    assert_eq!(client.acked(request::REM_MEM_REG, &region(1 << 30, 2 * MIB), &[]), 0);
    drop(huge);
    eventually(|| ours() == 0, || format!("{:?}", descriptors()));
    assert!(client.is_served());
}

/// One front end takes all the memory that it can get.
//= spec/outsiders.md#OUT-5
//= spec/outsiders.md#OUT-6
#[test]
fn nobody_takes_the_address_space() {
    let daemon = Daemon::new(3);
    let mut all = Vec::new();
    for disk in 0..2 {
        let mut greedy = negotiated(&daemon, disk);
        let (mut bytes, mut got) = (64 * TIB, 0);
        while bytes >= TIB {
            match add(&mut greedy, got, bytes, &sparse("sparse", bytes, MemfdFlags::empty())) {
                0 => got += bytes,
                _ => bytes /= 2,
            }
        }
        // The largest machine that one can rent has 32.
        assert!(got >= if disk == 0 { 32 * TIB } else { 16 * TIB }, "{got:#x}");
        assert!(greedy.is_served());
        all.push(greedy);
    }
    let mut neighbour = negotiated(&daemon, 2);
    let memory = sparse("neighbour", 4 * TIB, MemfdFlags::empty());
    assert_eq!(add(&mut neighbour, 0, 4 * TIB, &memory), 0);
    // Other tests count what is open.
    drop(all);
    let sparse = || descriptors().keys().filter(|name| name.contains("sparse")).count();
    eventually(|| sparse() == 0, || format!("{:?}", descriptors()));
}

//= spec/outsiders.md#OUT-5
#[test]
fn limits_on_memory_are_kept_until_it_is_unmapped() {
    let memory = Quota { each: 4 * MIB, all: 16 * MIB };
    let daemon = Daemon::limited(2, Options { memory, ..Options::default() });
    let mut client = negotiated(&daemon, 0);
    let file = sparse("limited", 8 * MIB, MemfdFlags::empty());
    assert_eq!(add(&mut client, 0, 3 * MIB, &file), 0);
    assert_eq!(add(&mut client, 1 << 30, 2 * MIB, &file), 1);
    assert_eq!(add(&mut client, 2 << 30, MIB, &file), 0);
    let mut other = negotiated(&daemon, 1);
    assert_eq!(add(&mut other, 0, 4 * MIB, &file), 0, "the other disk's is its own");
    assert_eq!(client.acked(request::REM_MEM_REG, &region(0, 3 * MIB), &[]), 0);
    eventually(|| add(&mut client, 3 << 30, 3 * MIB, &file) == 0, || "room again".to_owned());
}

//= spec/outsiders.md#OUT-5
//= spec/outsiders.md#OUT-6
#[test]
fn descriptors_are_counted_by_disk() {
    let descriptors = Quota { each: 12, all: 1000 };
    let daemon = Daemon::limited(2, Options { descriptors, ..Options::default() });
    let fill = |client: &mut Client| {
        let event = event();
        let set = |client: &mut Client, request, ring: u64| {
            client.acked(request, &ring.to_ne_bytes(), &[event.as_fd()])
        };
        let mut taken = 0;
        for request in [request::SET_VRING_CALL, request::SET_VRING_ERR] {
            for ring in 0..4 {
                taken += u64::from(set(client, request, ring) == 0);
            }
        }
        taken
    };
    let mut client = negotiated(&daemon, 0);
    let memory = sparse("pages", MIB, MemfdFlags::empty());
    for place in 0..8 {
        assert_eq!(add(&mut client, place << 30, 4096, &memory), 0, "{place}");
    }
    assert!(fill(&mut client) < 5);
    assert!(client.is_served(), "it was told");
    // Tables of more than is left: nothing of them stays.
    let before = descriptors_open();
    let table = [
        longs(&[8]),
        (0..8).flat_map(|at| longs(&[at << 31, 4096, USER + (at << 31), 0])).collect(),
    ]
    .concat();
    assert_eq!(client.acked(request::SET_MEM_TABLE, &table, &copies(&memory, 8)), 1);
    eventually(|| descriptors_open() == before, || "nothing of it stays".to_owned());
    let mut other = negotiated(&daemon, 1);
    assert_eq!(fill(&mut other), 8);
    // What has gone is there for the next one.
    drop(client);
    let mut next = daemon.settle(0);
    next.negotiate();
    eventually(|| fill(&mut next) == 8, || "room again".to_owned());
}

fn descriptors_open() -> usize {
    descriptors().values().sum()
}
