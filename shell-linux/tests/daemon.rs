//! `sluice serve-one` as a process: how it starts, what its neighbours notice, how it ends.

#[allow(dead_code)]
#[path = "support/client.rs"]
mod client;
#[path = "support/disk.rs"]
mod disk;
#[allow(dead_code)]
#[path = "support/guest.rs"]
mod guest;

use std::fs::{File, OpenOptions, read_dir, read_link};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::{Command, ExitStatus};
use std::time::{Duration, Instant};

use client::{Client, event, request};
use disk::{Disk, SLUICE, run};
use guest::{AVAIL, Guest};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll as poll_fds};
use rustix::io::{FdFlags, fcntl_setfd};
use rustix::process::{Pid, Signal, kill_process};
use sluice_core::blk::BlkFeatures;
use sluice_linux::frontend::{Connection, GUEST, GuestMemory, Queue, REGION};
use sluice_sim::driver::Layout;
use tempfile::TempDir;

fn end(disk: &mut Disk) -> ExitStatus {
    let pid = Pid::from_child(&disk.daemon);
    kill_process(pid, Signal::TERM).unwrap();
    disk.daemon.wait().unwrap()
}

/// The memory that this process shares as a guest's, by another descriptor.
fn shared_file() -> File {
    let fds = read_dir("/proc/self/fd").unwrap().flatten();
    let guest = fds
        .map(|entry| entry.path())
        .find(|path| read_link(path).is_ok_and(|to| to.to_string_lossy().contains("sluice-guest")));
    OpenOptions::new().write(true).open(guest.unwrap()).unwrap()
}

//= spec/lifecycle.md#LIF-15
#[test]
fn b39_a_guest_that_loses_its_memory_loses_its_disk_and_nobody_else_does() {
    for poll in ["event", "busy"] {
        let args = ["--blk-memory", "32M", "--count", "2", "--poll", poll];
        let mut disk = Disk::serve_at("disk.sock1", &args);
        let first = disk.socket().with_extension("sock0");
        let connection = Connection::open(&first, BlkFeatures::empty()).unwrap();
        let memory = GuestMemory::new(2 << 20).unwrap();
        let mem = memory.map().unwrap();
        let layout = Layout::new(REGION, GUEST, 0, 16, 0);
        let queue = Queue::new(&mem, 0, layout, true).unwrap();
        connection.share(&memory).unwrap();
        connection.start(&memory, queue.wires(), 0).unwrap();
        // From here on nobody may touch the memory, this process included.
        shared_file().set_len(0).unwrap();
        queue.kick();
        assert!(connection.wait_closed(Duration::from_secs(30)), "{poll}: still served");
        drop((connection, mem));
        for socket in ["sock1", "sock0"] {
            let socket = disk.socket().with_extension(socket);
            let (output, report) = run(&socket, "verify", &["--requests", "500"]);
            assert_eq!(report["verdict"], "PASS", "{poll} {socket:?} {output:?}");
        }
        assert_eq!(end(&mut disk).code(), Some(0));
    }
}

/// The front end is told which of its guest's queues is not served any more.
//= spec/virtqueue.md#VQ-1
#[test]
fn b50_a_broken_queue_is_signalled_and_others_go_on() {
    for poll in ["event", "busy"] {
        let mut disk = Disk::serve(&["--blk-memory", "32M", "--poll", poll]);
        let mut client = Client::new(UnixStream::connect(disk.socket()).unwrap());
        client.negotiate();
        let guest = Guest::new();
        guest.start(&mut client);
        let errs = [event(), event()];
        for (err, ring) in errs.iter().zip(0_u64..) {
            let told = client.acked(request::SET_VRING_ERR, &ring.to_ne_bytes(), &[err.as_fd()]);
            assert_eq!(told, 0);
        }
        // The available index moves by more than the ring holds.
        guest.memory.write_all_at(&100_u16.to_le_bytes(), AVAIL + 2).unwrap();
        rustix::io::write(&guest.kick, &1_u64.to_ne_bytes()).unwrap();
        let mut signalled = [PollFd::new(&errs[0], PollFlags::IN)];
        let limit = Timespec { tv_sec: 30, tv_nsec: 0 };
        assert_eq!(poll_fds(&mut signalled, Some(&limit)).unwrap(), 1, "{poll}");
        let mut count = [0; 8];
        rustix::io::read(&errs[0], &mut count).unwrap();
        assert_eq!(u64::from_ne_bytes(count), 1, "once");
        assert!(client.is_served());
        rustix::io::read(&errs[0], &mut count).expect_err("and not again");
        rustix::io::read(&errs[1], &mut count).expect_err("the other one is not broken");
        // It can be set up anew.
        assert_eq!(client.ask(request::GET_VRING_BASE, &[0; 8]).body, [0; 8]);
        let mut guest = Guest::new();
        guest.start(&mut client);
        guest.read();
        let stopped = client.ask(request::GET_VRING_BASE, &[0; 8]).body;
        assert_eq!(stopped.len(), 8);
        drop(client);
        assert_eq!(end(&mut disk).code(), Some(0));
    }
}

/// A guest whose descriptors are these.
fn served(disk: &Disk, kick: OwnedFd, call: OwnedFd) {
    let mut client = Client::new(UnixStream::connect(disk.socket()).unwrap());
    client.negotiate();
    let mut guest = Guest::new();
    (guest.kick, guest.call) = (kick, call);
    guest.start(&mut client);
    for count in 1..=5 {
        guest.read();
        while guest.used() < count {
            assert!(client.is_served());
        }
    }
    assert_eq!(guest.status(), 0);
}

fn counter(count: u32, flags: EventfdFlags) -> OwnedFd {
    eventfd(count, flags | EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap()
}

/// What counts is what stands in the ring, and that something was written.
#[test]
fn b12_a_kick_descriptor_that_counts_down_one_by_one_or_is_flooded() {
    for poll in ["event", "busy"] {
        let mut disk = Disk::serve(&["--blk-memory", "32M", "--poll", poll]);
        served(&disk, counter(u32::MAX, EventfdFlags::SEMAPHORE), event());
        let flooded = counter(0, EventfdFlags::empty());
        let most = u64::MAX - 1 - 5;
        rustix::io::write(&flooded, &most.to_ne_bytes()).unwrap();
        served(&disk, flooded, event());
        served(&disk, event(), event());
        assert_eq!(end(&mut disk).code(), Some(0));
    }
}

#[test]
fn b32_a_call_descriptor_that_takes_no_more_holds_nobody_up() {
    for poll in ["event", "busy"] {
        let mut disk = Disk::serve(&["--blk-memory", "32M", "--poll", poll]);
        let full = counter(0, EventfdFlags::empty());
        rustix::io::write(&full, &(u64::MAX - 1).to_ne_bytes()).unwrap();
        let kept = full.try_clone().unwrap();
        served(&disk, event(), full);
        let mut count = [0; 8];
        rustix::io::read(&kept, &mut count).unwrap();
        assert_eq!(u64::from_ne_bytes(count), u64::MAX - 1);
        served(&disk, event(), event());
        assert_eq!(end(&mut disk).code(), Some(0));
    }
}

/// Whoever starts the daemon may have limited the size of its files.
//= spec/store.md#STO-14
#[test]
fn a_limit_on_file_sizes_fails_requests_and_not_the_daemon() {
    let directory = TempDir::new().unwrap();
    let image = directory.path().join("disk.raw");
    File::create(&image).unwrap().set_len(64 << 20).unwrap();
    for (limit, verdict) in [("8192", false), ("unlimited", true)] {
        let socket = directory.path().join(limit);
        let serve = format!(
            "ulimit -f {limit}; exec \"$0\" --log error serve-one --socket-path \"$1\" --blk-file \"$2\""
        );
        let mut daemon = Command::new("sh")
            .args(["-c", &serve, SLUICE])
            .args([&socket, &image])
            .spawn()
            .unwrap();
        let give_up = Instant::now() + Duration::from_secs(20);
        while !socket.exists() {
            assert!(Instant::now() < give_up, "no socket");
            std::thread::sleep(Duration::from_millis(10));
        }
        let (output, _) = run(&socket, "verify", &["--requests", "500"]);
        assert_eq!(output.status.success(), verdict, "{output:?}");
        assert_eq!(daemon.try_wait().unwrap(), None, "it lives");
        kill_process(Pid::from_child(&daemon), Signal::TERM).unwrap();
        assert_eq!(daemon.wait().unwrap().code(), Some(0), "{limit}");
    }
}

#[test]
fn it_ends_cleanly_and_takes_its_socket_along() {
    for poll in ["busy", "adaptive", "event"] {
        let mut disk = Disk::serve(&["--blk-null", "1M", "--poll", poll]);
        assert_eq!(end(&mut disk).code(), Some(0), "{poll}");
        assert!(!disk.socket().exists());
    }
}

#[test]
fn it_ends_under_load() {
    let mut disk = Disk::serve(&["--blk-memory", "32M", "--poll", "busy"]);
    let socket = disk.socket();
    let load = std::thread::spawn(move || run(&socket, "bench", &["--seconds", "20"]));
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!(end(&mut disk).code(), Some(0));
    let (output, _) = load.join().unwrap();
    assert!(!output.status.success(), "its disk went away");
}

#[test]
fn it_says_what_it_can_do() {
    let output = Command::new(SLUICE).args(["serve-one", "--print-capabilities"]).output().unwrap();
    assert!(output.status.success());
    let said: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(said["type"], "block");
    assert_eq!(said["features"], serde_json::json!(["read-only", "blk-file"]));
}

#[test]
fn it_takes_over_a_listening_socket() {
    let directory = TempDir::new().unwrap();
    let socket = directory.path().join("inherited.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    fcntl_setfd(&listener, FdFlags::empty()).unwrap();
    let mut daemon = Command::new(SLUICE)
        .args(["serve-one", "--blk-memory", "32M", "--fd"])
        .arg(listener.as_raw_fd().to_string())
        .spawn()
        .unwrap();
    drop(listener);
    let (output, report) = run(&socket, "verify", &["--requests", "500"]);
    assert_eq!(report["verdict"], "PASS", "{output:?}");
    kill_process(Pid::from_child(&daemon), Signal::TERM).unwrap();
    assert_eq!(daemon.wait().unwrap().code(), Some(0));
    assert!(socket.exists(), "it is its owner's to remove");
}

#[test]
fn wrong_use_is_refused_with_a_reason() {
    let directory = TempDir::new().unwrap();
    let socket = directory.path().join("disk.sock");
    let socket = socket.to_str().unwrap();
    let cases: [(&[&str], &str); 6] = [
        (&["--socket-path", socket], "--blk-file"),
        (&["--socket-path", socket, "--blk-null", "12Q"], "12Q"),
        (&["--socket-path", socket, "--blk-file", "/nonexistent/disk.raw"], "/nonexistent"),
        (&["--socket-path", "/nonexistent/s.sock", "--blk-null", "1M"], "/nonexistent"),
        (&["--socket-path", socket, "--blk-null", "1M", "--queues", "129"], "128"),
        (&["--fd", "99", "--blk-null", "1M"], "99"),
    ];
    for (args, reason) in cases {
        let output = Command::new(SLUICE).arg("serve-one").args(args).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(matches!(output.status.code(), Some(1 | 2 | 4)), "{args:?} {said}");
        assert!(said.contains(reason), "{args:?} {said}");
    }
}

#[test]
fn the_demonstration_checks_itself() {
    let directory = TempDir::new().unwrap();
    let before = Instant::now();
    let output = Command::new(SLUICE)
        .args(["demo", "--size", "64M", "--verify", "1", "--dir"])
        .arg(directory.path())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.contains("PASS"), "{said}");
    assert!(before.elapsed() >= Duration::from_secs(1), "it did check");
    assert_eq!(read_dir(directory.path()).unwrap().count(), 0, "nothing is left");
}
