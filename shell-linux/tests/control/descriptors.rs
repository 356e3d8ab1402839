//! Descriptors that are not what they should be, and who else gets them.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::process::Command;

use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{MemfdFlags, memfd_create};

use crate::support::client::{Client, VERSION, event, message, request};
use crate::support::guest::Guest;
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
    assert_eq!(daemon.open(), before);
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
    assert_eq!(daemon.open(), before);
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
        let held = crate::support::client::copies(&event, fds);
        client.bytes(&message(request::SET_OWNER, VERSION, &[]), &held);
        // A piece of a message with descriptors, never finished.
        let client = daemon.connect(0);
        client.bytes(&[1, 0, 0, 0], &held);
    }
    drop(event);
    assert_eq!(daemon.open(), before);
}
