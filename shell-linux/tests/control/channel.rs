//! The channel on which the device speaks.

use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use crate::support::Daemon;
use crate::support::client::{Client, VERSION, request, words};
use crate::support::guest::Guest;

/// A front end with a channel: its end, and the daemon's, which a test may write to as well.
fn with_channel(daemon: &Daemon) -> (Client, UnixStream, UnixStream) {
    let mut client = daemon.connect(0);
    client.negotiate();
    let (ours, theirs) = UnixStream::pair().unwrap();
    assert_eq!(client.acked(request::SET_BACKEND_REQ_FD, &[], &[theirs.as_fd()]), 0);
    ours.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    (client, ours, theirs)
}

fn hears(channel: &mut UnixStream) {
    let mut message = [0; 12];
    channel.read_exact(&mut message).expect("the device says something");
    assert_eq!(message[..], words(&[2, VERSION, 0])[..]);
}

//= spec/vhost-user.md#VHU-15
//= spec/lifecycle.md#LIF-16
#[test]
fn whoever_starts_without_a_look_at_the_configuration_is_told_to_look() {
    let daemon = Daemon::new(1);
    let (mut client, mut channel, _) = with_channel(&daemon);
    Guest::new().start(&mut client);
    hears(&mut channel);
    // One that has looked is told nothing.
    drop(client);
    let (mut client, mut channel, _) = with_channel(&daemon);
    let mut body = words(&[0, 60, 0]);
    body.extend([0; 60]);
    client.ask(request::GET_CONFIG, &body);
    Guest::new().start(&mut client);
    assert!(client.is_served());
    channel.set_nonblocking(true).unwrap();
    assert_eq!(channel.read(&mut [0]).unwrap_err().kind(), ErrorKind::WouldBlock);
}

//= spec/vhost-user.md#VHU-15
#[test]
fn b27_a_channel_that_is_not_read_holds_nobody_up() {
    let daemon = Daemon::new(1);
    let (mut client, _channel, mut theirs) = with_channel(&daemon);
    theirs.set_nonblocking(true).unwrap();
    while theirs.write(&[0; 4096]).is_ok() {}
    Guest::new().start(&mut client);
    assert!(client.is_served());
}

/// Sending on a socket of another kind can wait, whatever is said with it.
//= spec/outsiders.md#OUT-22
#[test]
fn a_channel_is_a_local_socket() {
    let daemon = Daemon::new(1);
    let (mut client, mut channel, theirs) = with_channel(&daemon);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let tcp = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let pipe = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap().1;
    for wrong in [tcp.as_fd(), listener.as_fd(), pipe.as_fd()] {
        assert_eq!(client.acked(request::SET_BACKEND_REQ_FD, &[], &[wrong]), 1);
        client.send_fds(request::SET_BACKEND_REQ_FD, &[], &[wrong]);
        assert!(client.is_served());
    }
    // The one before is still there.
    Guest::new().start(&mut client);
    hears(&mut channel);
    assert_eq!(client.acked(request::SET_BACKEND_REQ_FD, &[], &[theirs.as_fd()]), 0);
}

//= spec/vhost-user.md#VHU-15
#[test]
fn b18_a_channel_has_to_be_negotiated() {
    let daemon = Daemon::new(1);
    let mut client = daemon.connect(0);
    client.features();
    let some: u64 = 1 | 1 << 3 | 1 << 9;
    client.send(request::SET_PROTOCOL_FEATURES, &some.to_ne_bytes());
    let (_ours, theirs) = UnixStream::pair().unwrap();
    assert_eq!(client.acked(request::SET_BACKEND_REQ_FD, &[], &[theirs.as_fd()]), 1);
    assert!(client.is_served());
}
