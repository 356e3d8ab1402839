//! Descriptors that are not what they should be, and who else gets them.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::process::Command;

use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};

use crate::support::client::{Client, VERSION, copies, event, longs, message, request, words};
use crate::support::guest::{Guest, MEMORY, USER};
use crate::support::{Daemon, descriptors};

fn wrong() -> Vec<(&'static str, OwnedFd)> {
    let (pipe, _) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
    let (socket, _) = std::os::unix::net::UnixStream::pair().unwrap();
    let open = |path| OwnedFd::from(File::open(path).unwrap());
    vec![
        ("a pipe", pipe),
        ("a directory", open("/")),
        ("a socket", socket.into()),
        ("a device", open("/dev/zero")),
        ("a file that can only be read", open("/proc/self/exe")),
        (
            "an epoll",
            rustix::event::epoll::create(rustix::event::epoll::CreateFlags::CLOEXEC).unwrap(),
        ),
    ]
}

fn negotiated(daemon: &Daemon) -> Client {
    let mut client = daemon.connect(0);
    client.negotiate();
    client
}

#[test]
fn b10_memory_is_a_file_that_can_be_written() {
    let daemon = Daemon::new(1);
    let before = daemon.open();
    let messages =
        [(request::SET_MEM_TABLE, Guest::table()), (request::ADD_MEM_REG, Guest::region())];
    for (request, body) in messages {
        for (what, fd) in wrong().into_iter().chain([("an eventfd", event())]) {
            let mut client = negotiated(&daemon);
            assert_eq!(client.acked(request, &body, &[fd.as_fd()]), 1, "{what}");
            assert!(client.is_served(), "it was told");
            client.send_fds(request, &body, &[fd.as_fd()]);
            assert!(client.is_closed(), "{what}");
        }
        let mut client = negotiated(&daemon);
        let guest = Guest::new();
        assert_eq!(client.acked(request, &body, &[guest.memory.as_fd()]), 0);
    }
    daemon.has_open(&before);
}

#[test]
fn b38_memory_is_as_long_as_it_says() {
    let daemon = Daemon::new(1);
    let mut client = negotiated(&daemon);
    let short = File::from(memfd_create("short", MemfdFlags::CLOEXEC).unwrap());
    short.set_len((1 << 20) - 1).unwrap();
    assert_eq!(client.acked(request::ADD_MEM_REG, &Guest::region(), &[short.as_fd()]), 1);
    assert_eq!(daemon.hold.mappings(), 0);
    short.set_len(1 << 20).unwrap();
    assert_eq!(client.acked(request::ADD_MEM_REG, &Guest::region(), &[short.as_fd()]), 0);
}

#[test]
fn b46_memory_that_is_sealed_against_writing_is_refused() {
    let daemon = Daemon::new(1);
    let mut client = negotiated(&daemon);
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    for (seals, told) in [
        (SealFlags::WRITE, 1),
        (SealFlags::FUTURE_WRITE, 1),
        (SealFlags::SHRINK | SealFlags::GROW, 0),
    ] {
        let file = File::from(memfd_create("sealed", flags).unwrap());
        file.set_len(1 << 20).unwrap();
        fcntl_add_seals(&file, seals).unwrap();
        let answer = client.acked(request::ADD_MEM_REG, &Guest::region(), &[file.as_fd()]);
        assert_eq!(answer, told, "{seals:?}");
        assert_eq!(daemon.hold.mappings(), 1 - u32::try_from(told).unwrap());
    }
}

/// A table is put in force whole or not at all.
//= spec/lifecycle.md#LIF-8
#[test]
fn b35_a_table_with_one_wrong_offset_leaves_the_old_one_in_force() {
    let daemon = Daemon::new(1);
    let mut client = negotiated(&daemon);
    let mut guest = Guest::new();
    guest.start(&mut client);
    let file = guest.memory.try_clone().unwrap();
    let memory = copies(&file, 2);
    let table = |offset: u64| {
        let other = [MEMORY, 4096, USER + MEMORY, offset];
        [words(&[2, 0]), longs(&[0, MEMORY, USER, 0]), longs(&other)].concat()
    };
    // Between pages, at the end, and behind it.
    for offset in [1, 8, MEMORY, MEMORY + 4096, u64::MAX - 8191] {
        assert_eq!(client.acked(request::SET_MEM_TABLE, &table(offset), &memory), 1, "{offset:#x}");
        assert_eq!(daemon.hold.mappings(), 1);
    }
    guest.read();
    assert_eq!(client.ask(request::GET_VRING_BASE, &[0; 8]).body[..4], [0; 4]);
    assert_eq!(client.acked(request::SET_MEM_TABLE, &table(MEMORY - 4096), &memory), 0);
    assert_eq!(daemon.hold.mappings(), 2);
    // Around the end of numbers it is no message for the dispatcher.
    assert_eq!(client.acked(request::SET_MEM_TABLE, &table(u64::MAX - 4095), &memory), 1);
    assert!(client.is_closed());
}

//= spec/vhost-user.md#VHU-7
#[test]
fn b11_ring_descriptors_are_eventfds() {
    let daemon = Daemon::new(1);
    let before = daemon.open();
    let memfd = memfd_create("memory", MemfdFlags::CLOEXEC).unwrap();
    for request in [request::SET_VRING_KICK, request::SET_VRING_CALL, request::SET_VRING_ERR] {
        for (what, fd) in wrong().into_iter().chain([("memory", memfd.try_clone().unwrap())]) {
            let mut client = negotiated(&daemon);
            client.send_fds(request, &0_u64.to_ne_bytes(), &[fd.as_fd()]);
            assert!(client.is_closed(), "{what}");
        }
    }
    // One that blocks is made not to.
    let blocking = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
    let mut client = negotiated(&daemon);
    let word = 0_u64.to_ne_bytes();
    assert_eq!(client.acked(request::SET_VRING_CALL, &word, &[blocking.as_fd()]), 0);
    let flags = rustix::fs::fcntl_getfl(&blocking).unwrap();
    assert!(flags.contains(rustix::fs::OFlags::NONBLOCK));
    drop((blocking, memfd, client));
    daemon.has_open(&before);
}

/// Nothing is ever said on it, and it is not kept.
//= spec/vhost-user.md#VHU-16
#[test]
fn b15_a_descriptor_for_changes_of_the_log_is_an_eventfd_and_closed() {
    let daemon = Daemon::new(1);
    let mut client = negotiated(&daemon);
    let before = descriptors();
    let event = event();
    for body in [&[][..], &[0; 8]] {
        assert_eq!(client.acked(request::SET_LOG_FD, body, &[event.as_fd()]), 0);
        client.send_fds(request::SET_LOG_FD, body, &[event.as_fd()]);
    }
    for (what, fd) in wrong() {
        assert_eq!(client.acked(request::SET_LOG_FD, &[], &[fd.as_fd()]), 1, "{what}");
    }
    assert!(client.is_served());
    drop(event);
    assert_eq!(descriptors(), before);
    let (_, pipe) = wrong().swap_remove(0);
    client.send_fds(request::SET_LOG_FD, &[], &[pipe.as_fd()]);
    assert!(client.is_closed(), "nobody would hear of it");
}

//= spec/vhost-user.md#VHU-6
#[test]
fn received_descriptors_are_not_inherited() {
    let daemon = Daemon::new(1);
    let mut client = negotiated(&daemon);
    let guest = Guest::new();
    guest.start(&mut client);
    let child = Command::new("ls").args(["-l", "/proc/self/fd"]).output().expect("ls runs");
    let seen = String::from_utf8_lossy(&child.stdout).into_owned();
    assert!(child.status.success() && seen.contains("pipe"), "{seen}");
    for kind in ["memfd", "eventfd", "eventpoll"] {
        assert!(!seen.contains(kind), "{seen}");
    }
    // They are there.
    assert!(descriptors().keys().any(|kind| kind.contains("memfd")));
}

//= spec/vhost-user.md#VHU-10
#[test]
fn b06_b30_nothing_is_left_of_refused_messages() {
    let daemon = Daemon::new(1);
    let before = daemon.open();
    let event = event();
    for fds in [1, 2, 31, 32, 33] {
        let client = negotiated(&daemon);
        let held = copies(&event, fds);
        client.bytes(&message(request::SET_OWNER, VERSION, &[]), &held);
        // A piece of a message with descriptors, never finished.
        let client = daemon.connect(0);
        client.bytes(&[1, 0, 0, 0], &held);
    }
    drop(event);
    daemon.has_open(&before);
}
