//! Eventfds that would hold the thread that writes to them, and who notices.

#[allow(dead_code)]
#[path = "support/client.rs"]
mod client;
#[allow(dead_code)]
#[path = "support/disk.rs"]
mod disk;
#[allow(dead_code)]
#[path = "support/guest.rs"]
mod guest;

use std::fs::File;
use std::io::{Read, Seek};
use std::net::Shutdown;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use client::{Client, VERSION, event, message, request};
use disk::Disk;
use guest::{AVAIL, Guest};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::process::{Pid, Signal, kill_process};

/// How long anything may take that has to come.
const LIMIT: Duration = Duration::from_secs(60);

const FULL: u64 = u64::MAX - 1;

fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let limit = Instant::now() + LIMIT;
    while !done() {
        assert!(Instant::now() < limit, "{what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Disks of one shard, the last of which is the neighbour's, and their log.
struct Host {
    disk: Disk,
    log: File,
    neighbour: FrontEnd,
}

impl Host {
    fn new(disks: u32, poll: &str) -> Self {
        let log = tempfile::tempfile().unwrap();
        let last = disks - 1;
        let count = disks.to_string();
        let args =
            ["--blk-memory", "4M", "--count", &count, "--poll", poll, "--shutdown-ms", "60000"];
        let disk =
            Disk::serve_telling(&format!("disk.sock{last}"), &args, log.try_clone().unwrap());
        let neighbour = FrontEnd::new(&disk, last);
        Self { disk, log, neighbour }
    }

    /// Shard and control thread serve the neighbour, after all that was done before.
    fn goes_on(&mut self) {
        for _ in 0..10 {
            self.neighbour.read();
            assert!(self.neighbour.client.is_served());
        }
    }

    fn log(&mut self) -> String {
        let mut text = String::new();
        self.log.rewind().unwrap();
        self.log.read_to_string(&mut text).unwrap();
        text
    }

    /// Ends it in order: no thread is left behind.
    fn end(mut self) {
        kill_process(Pid::from_child(&self.disk.daemon), Signal::TERM).unwrap();
        assert_eq!(self.disk.daemon.wait().unwrap().code(), Some(0));
        let log = self.log();
        assert!(!log.contains("leaving them"), "{log}");
    }
}

/// A front end and its guest.
struct FrontEnd {
    client: Client,
    guest: Guest,
    done: u16,
    err: OwnedFd,
}

impl FrontEnd {
    fn new(disk: &Disk, number: u32) -> Self {
        let socket = disk.socket().with_extension(format!("sock{number}"));
        let mut client = Client::new(UnixStream::connect(socket).unwrap());
        client.negotiate();
        let guest = Guest::new();
        guest.start(&mut client);
        let err = event();
        let word = 0_u64.to_ne_bytes();
        assert_eq!(client.acked(request::SET_VRING_ERR, &word, &[err.as_fd()]), 0);
        Self { client, guest, done: 0, err }
    }

    /// Reads a sector.
    fn read(&mut self) {
        self.guest.read();
        self.done += 1;
        wait_until("a request is answered", || self.guest.used() == self.done);
    }

    /// Makes its guest break the ring.
    fn break_ring(&self) {
        self.guest.memory.write_all_at(&100_u16.to_le_bytes(), AVAIL + 2).unwrap();
        rustix::io::write(&self.guest.kick, &1_u64.to_ne_bytes()).unwrap();
    }
}

/// Fills the counter of an eventfd that does not block.
fn fill(fd: &OwnedFd) {
    wait_until("the counter is filled", || {
        // The daemon may count as well.
        let _ = rustix::io::read(fd, &mut [0; 8]);
        rustix::io::write(fd, &FULL.to_ne_bytes()).is_ok()
    });
}

/// Makes the open file block, whoever else has it.
fn block(fd: &OwnedFd) {
    let flags = fcntl_getfl(fd).unwrap();
    fcntl_setfl(fd, flags - OFlags::NONBLOCK).unwrap();
}

fn count(fd: &OwnedFd) -> u64 {
    let mut count = [0; 8];
    rustix::io::read(fd, &mut count).map_or(0, |_| u64::from_ne_bytes(count))
}

//= spec/outsiders.md#OUT-20
#[test]
fn a_call_eventfd_that_blocks_costs_its_own_disk_and_nobody_else() {
    for poll in ["event", "adaptive", "busy"] {
        let mut host = Host::new(2, poll);
        host.goes_on();
        let mut hostile = FrontEnd::new(&host.disk, 0);
        fill(&hostile.guest.call);
        block(&hostile.guest.call);
        hostile.guest.read();
        hostile.client.wait_closed();
        host.goes_on();
        let log = host.log();
        let line = log.lines().find(|line| line.contains("eventfd")).expect(&log);
        assert!(line.contains("disk.sock0") && line.contains("block"), "{line}");
        host.end();
    }
}

//= spec/outsiders.md#OUT-20
#[test]
fn so_does_an_err_eventfd() {
    let mut host = Host::new(2, "adaptive");
    let hostile = FrontEnd::new(&host.disk, 0);
    fill(&hostile.err);
    block(&hostile.err);
    hostile.break_ring();
    hostile.client.wait_closed();
    host.goes_on();
    host.end();
}

//= spec/outsiders.md#OUT-20
#[test]
fn full_counters_that_do_not_block_and_blocking_ones_with_room_are_served() {
    for poll in ["event", "busy"] {
        let mut host = Host::new(2, poll);
        let mut front_end = FrontEnd::new(&host.disk, 0);
        fill(&front_end.guest.call);
        for _ in 0..3 {
            front_end.read();
        }
        assert!(front_end.client.is_served());
        // Whoever empties it later hears of what comes then.
        assert_eq!(count(&front_end.guest.call), FULL);
        front_end.read();
        let heard = || count(&front_end.guest.call) > 0;
        wait_until("it is signalled again", heard);
        let call = front_end.guest.call.try_clone().unwrap();
        block(&call);
        for _ in 0..3 {
            front_end.read();
            wait_until("it is signalled", || count(&call) > 0);
        }
        assert!(front_end.client.is_served());
        host.goes_on();
        assert!(!host.log().contains("eventfd"));
        host.end();
    }
}

/// Some replace their descriptors while the shard is in a call, and some leave.
//= spec/outsiders.md#OUT-20
#[test]
fn many_at_once_cost_nobody_else_anything_either() {
    let mut host = Host::new(10, "adaptive");
    let mut hostile: Vec<_> = (0..9).map(|disk| FrontEnd::new(&host.disk, disk)).collect();
    for front_end in &mut hostile {
        fill(&front_end.guest.call);
        block(&front_end.guest.call);
    }
    hostile.iter_mut().for_each(|front_end| front_end.guest.read());
    let (word, other) = (0_u64.to_ne_bytes(), event());
    for (front_end, what) in hostile.iter().zip([0, 1, 2].into_iter().cycle()) {
        // Some are cut off by now.
        let _ = match what {
            0 => Ok(()),
            1 => front_end.client.stream.shutdown(Shutdown::Both),
            _ => {
                let replace = message(request::SET_VRING_CALL, VERSION, &word);
                front_end.client.try_bytes(&replace, &[other.as_fd()])
            }
        };
    }
    host.goes_on();
    host.end();
}

//= spec/outsiders.md#OUT-20
#[test]
fn a_daemon_ends_in_order_while_an_eventfd_blocks() {
    let host = Host::new(2, "adaptive");
    let mut hostile = FrontEnd::new(&host.disk, 0);
    fill(&hostile.guest.call);
    block(&hostile.guest.call);
    hostile.guest.read();
    host.end();
}

//= spec/outsiders.md#OUT-21
#[test]
fn a_disk_that_has_held_its_shard_up_takes_nobody_for_a_while() {
    let mut host = Host::new(2, "adaptive");
    let mut hostile = FrontEnd::new(&host.disk, 0);
    fill(&hostile.guest.call);
    block(&hostile.guest.call);
    hostile.guest.read();
    hostile.client.wait_closed();
    let next = UnixStream::connect(host.disk.socket().with_extension("sock0")).unwrap();
    let next = Client::new(next);
    next.send(request::GET_FEATURES, &[]);
    host.goes_on();
    assert_eq!(next.queued(), 0, "it waits");
    // One that leaves by itself is no reason.
    host.neighbour.client.stream.shutdown(Shutdown::Both).unwrap();
    host.neighbour = FrontEnd::new(&host.disk, 1);
    host.goes_on();
    host.end();
}
