//! The daemon among other users of its host, and whoever starts and stops it.

#[allow(dead_code)]
#[path = "support/client.rs"]
mod client;
#[allow(dead_code)]
#[path = "support/guest.rs"]
mod guest;

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, ErrorKind};
use std::os::fd::AsFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::os::unix::net::{SocketAddr, UnixDatagram, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use client::{Client, FEATURES, NO_FD, request, words};
use guest::{AVAIL, Guest};
use rustix::fs::{FlockOperation, flock};
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, accept, bind, connect, listen, recv,
    socket_with,
};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

const SLUICE: &str = env!("CARGO_BIN_EXE_sluice");

/// How long a test waits for what has to come; a test that gets there has failed.
const LIMIT: Duration = Duration::from_secs(60);

/// Somebody else.
const OTHER: u32 = 23_456;

fn until<T>(what: &str, mut found: impl FnMut() -> Option<T>) -> T {
    let begin = Instant::now();
    loop {
        if let Some(found) = found() {
            return found;
        }
        assert!(begin.elapsed() < LIMIT, "no {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

struct Host {
    directory: TempDir,
}

struct Daemon(Child);

impl Host {
    fn new() -> Self {
        Self { directory: TempDir::new().unwrap() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut serve = Command::new(SLUICE);
        serve.args(["serve-one", "--socket-path"]).arg(self.path("s"));
        if !args.contains(&"--blk-file") {
            serve.args(["--blk-memory", "1M"]);
        }
        for variable in ["NOTIFY_SOCKET", "FDSTORE", "LISTEN_PID", "LISTEN_FDNAMES", "SLUICE_LOG"] {
            serve.env_remove(variable);
        }
        serve.args(args).stdin(Stdio::null()).stderr(File::create(self.path("log")).unwrap());
        serve
    }

    fn serve(&self, args: &[&str]) -> Daemon {
        Daemon(self.command(args).spawn().unwrap())
    }

    fn client(&self) -> Client {
        Client::new(until("daemon", || UnixStream::connect(self.path("s")).ok()))
    }

    fn log(&self) -> String {
        fs::read_to_string(self.path("log")).unwrap()
    }
}

impl Daemon {
    fn end(mut self) -> Option<i32> {
        kill_process(Pid::from_child(&self.0), Signal::TERM).unwrap();
        until("end", || self.0.try_wait().unwrap()).code()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

//= spec/host.md#HOST-3
#[test]
fn a_name_that_is_there_can_be_connected_to() {
    let host = Host::new();
    for round in 0..40 {
        let daemon = host.serve(&[]);
        let begin = Instant::now();
        while let Err(error) = UnixStream::connect(host.path("s")) {
            assert_eq!(error.kind(), ErrorKind::NotFound, "round {round}");
            assert!(begin.elapsed() < LIMIT);
        }
        assert_eq!(daemon.end(), Some(0));
        assert!(!host.path("s").exists());
    }
    assert_eq!(fs::read_dir(host.directory.path()).unwrap().count(), 1, "only the log is left");
}

//= spec/host.md#HOST-3
#[test]
fn it_says_that_it_serves_when_it_does() {
    let host = Host::new();
    for _ in 0..20 {
        let mut serve = host.command(&[]);
        let mut daemon = Daemon(serve.stderr(Stdio::piped()).spawn().unwrap());
        let mut line = String::new();
        BufReader::new(daemon.0.stderr.take().unwrap()).read_line(&mut line).unwrap();
        assert!(line.contains("serving"), "{line}");
        UnixStream::connect(host.path("s")).unwrap();
        // This one has no chance to take its name along.
        daemon.0.kill().unwrap();
        daemon.0.wait().unwrap();
    }
    let output = host.command(&["--socket-path", "/nonexistent/s"]).stderr(Stdio::piped()).output();
    let said = String::from_utf8(output.unwrap().stderr).unwrap();
    assert!(!said.contains("serving"), "{said}");
}

/// A service manager's socket, of either form.
fn managers(host: &Host) -> [(String, UnixDatagram); 2] {
    let path = host.path("notify").display().to_string();
    let name = format!("sluice-test-{}", std::process::id());
    let address = SocketAddr::from_abstract_name(&name).unwrap();
    let managers = [
        (path.clone(), UnixDatagram::bind(path).unwrap()),
        (format!("@{name}"), UnixDatagram::bind_addr(&address).unwrap()),
    ];
    for (_, socket) in &managers {
        socket.set_read_timeout(Some(LIMIT)).unwrap();
    }
    managers
}

fn told(socket: &UnixDatagram) -> String {
    let mut bytes = [0; 512];
    let count = socket.recv(&mut bytes).expect("word");
    String::from_utf8(bytes[..count].to_vec()).unwrap()
}

//= spec/host.md#HOST-4
#[test]
fn a_service_manager_is_told_of_the_start_and_the_end() {
    let host = Host::new();
    for (name, socket) in managers(&host) {
        let mut serve = host.command(&[]);
        let daemon = Daemon(serve.env("NOTIFY_SOCKET", &name).spawn().unwrap());
        assert_eq!(told(&socket), "READY=1", "{name}");
        UnixStream::connect(host.path("s")).unwrap();
        assert_eq!(daemon.end(), Some(0));
        assert_eq!(told(&socket), "STOPPING=1", "{name}");
    }
    // One that is gone, and one that nobody can have.
    for name in ["/nonexistent/notify", "vsock:2:1234", ""] {
        let mut serve = host.command(&[]);
        let daemon = Daemon(serve.env("NOTIFY_SOCKET", name).spawn().unwrap());
        assert!(host.client().is_served(), "{name}");
        assert_eq!(daemon.end(), Some(0));
    }
}

//= spec/parking.md#PRK-10
#[test]
fn systemd_is_asked_to_keep_what_hangs_up_also_when_it_is_old() {
    let host = Host::new();
    let [(name, socket), _] = managers(&host);
    for (park, announced, parks) in [
        ("systemd", None, true),
        ("auto", Some("9"), true),
        ("auto", None, false),
        ("auto", Some("0"), false),
    ] {
        let mut serve = host.command(&["--park", park]);
        serve.env("NOTIFY_SOCKET", &name);
        if let Some(room) = announced {
            serve.env("FDSTORE", room);
        }
        let daemon = Daemon(serve.spawn().unwrap());
        let mut client = host.client();
        client.negotiate();
        assert!(client.is_served());
        drop(client);
        assert_eq!(daemon.end(), Some(0));
        let mut said = Vec::new();
        while said.last().is_none_or(|word| word != "STOPPING=1") {
            said.push(told(&socket));
        }
        let stored: Vec<_> = said.iter().filter(|word| word.contains("FDSTORE=1")).collect();
        assert_eq!(stored.len() >= 2, parks, "{park} {announced:?} {said:?}");
        assert!(stored.iter().all(|word| word.contains("\nFDPOLL=0\n")), "{said:?}");
    }
    let mut alone = host.serve(&["--park", "systemd"]);
    assert_eq!(alone.0.wait().unwrap().code(), Some(1));
    assert!(host.log().contains("NOTIFY_SOCKET"), "{}", host.log());
}

//= spec/host.md#HOST-5
#[test]
fn a_lock_on_the_directory_delays_nobody() {
    let host = Host::new();
    let held = File::open(host.directory.path()).unwrap();
    flock(&held, FlockOperation::LockExclusive).unwrap();
    let daemon = host.serve(&[]);
    assert!(host.client().is_served());
    assert_eq!(daemon.end(), Some(0));
    assert!(!host.path("s").exists());
}

/// Somebody who listens by the keeper's name, and takes nobody in.
struct Squatter {
    listener: rustix::fd::OwnedFd,
    waiting: Vec<rustix::fd::OwnedFd>,
}

impl Squatter {
    fn new(path: &Path, backlog: i32) -> Self {
        let address = SocketAddrUnix::new(path).unwrap();
        let end =
            |flags| socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap();
        let listener = end(SocketFlags::CLOEXEC);
        bind(&listener, &address).unwrap();
        listen(&listener, backlog).unwrap();
        let dial = || {
            let one = end(SocketFlags::CLOEXEC | SocketFlags::NONBLOCK);
            connect(&one, &address).ok().map(|()| one)
        };
        // As many as there is room for.
        let waiting = if backlog == 0 { std::iter::from_fn(dial).collect() } else { Vec::new() };
        Self { listener, waiting }
    }
}

//= spec/host.md#HOST-5
//= spec/parking.md#PRK-6
#[test]
fn a_keepers_name_that_another_user_has_keeps_nobody_from_a_disk() {
    for backlog in [0, 8] {
        let host = Host::new();
        let keeper = host.path(".s.keeper");
        let squatter = Squatter::new(&keeper, backlog);
        std::os::unix::fs::lchown(&keeper, Some(OTHER), None).expect("these tests are root's");
        let daemon = host.serve(&["--park", "keeper"]);
        assert!(host.client().is_served());
        let log = until("warning", || Some(host.log()).filter(|log| log.contains("WARN")));
        assert!(log.contains(&format!("user {OTHER}")) && log.contains(".s.keeper"), "{log}");
        assert_eq!(daemon.end(), Some(0));
        assert!(keeper.exists(), "it is not touched");
        drop(squatter);
    }
}

//= spec/host.md#HOST-5
#[test]
fn a_keeper_that_takes_nobody_in_is_an_error_that_names_it() {
    let host = Host::new();
    let squatter = Squatter::new(&host.path(".s.keeper"), 0);
    assert!(!squatter.waiting.is_empty());
    let mut daemon = host.serve(&["--park", "keeper"]);
    let status = until("end", || daemon.0.try_wait().unwrap());
    assert_eq!(status.code(), Some(1));
    assert!(host.log().contains(".s.keeper does not answer"), "{}", host.log());
}

//= spec/host.md#HOST-7
#[test]
fn a_start_that_is_stuck_can_be_ended() {
    let host = Host::new();
    let squatter = Squatter::new(&host.path(".s.keeper"), 8);
    let daemon = host.serve(&["--park", "keeper", "--shutdown-ms", "50"]);
    let connected = accept(&squatter.listener).unwrap();
    let mut question = [0; 16];
    let (count, _) = recv(&connected, &mut question, rustix::net::RecvFlags::empty()).unwrap();
    assert_eq!(&question[..count], b"TAKE", "it waits for an answer now");
    assert_eq!(daemon.end(), Some(0));
    assert!(!host.log().contains("does not answer"), "the end came first");
}

//= spec/host.md#HOST-7
#[test]
fn all_the_time_that_there_is_is_not_too_much() {
    let host = Host::new();
    let daemon = host.serve(&["--shutdown-ms", &u64::MAX.to_string()]);
    assert!(host.client().is_served());
    assert_eq!(daemon.end(), Some(0));
}

//= spec/host.md#HOST-6
#[test]
fn without_a_home_it_says_what_to_set() {
    let host = Host::new();
    let program = host.path("sluice");
    fs::copy(SLUICE, &program).unwrap();
    fs::set_permissions(host.directory.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755))
        .unwrap();
    let was_there = Path::new("/tmp/sluice").exists();
    let run = |args: &[&str], state: Option<&OsStr>| {
        let mut command = Command::new(&program);
        command.args(args).env_clear().uid(OTHER).gid(OTHER).current_dir("/");
        command.envs(state.map(|state| ("XDG_STATE_HOME", state)));
        // A child of another test holds the copy open for writing between fork and exec.
        let busy = |error: &std::io::Error| error.kind() == ErrorKind::ExecutableFileBusy;
        until("free program", || match command.output() {
            Err(error) if busy(&error) => None,
            output => Some(output.unwrap()),
        })
    };
    for args in [&["image", "create", "x", "1M"][..], &["image", "list"], &["demo"]] {
        for state in [None, Some(OsStr::new("relative")), Some(OsStr::new(""))] {
            let output = run(args, state);
            let said = String::from_utf8(output.stderr).unwrap();
            assert_eq!(output.status.code(), Some(2), "{args:?} {said}");
            assert!(said.contains("XDG_STATE_HOME") && said.contains("--dir"), "{args:?} {said}");
        }
    }
    assert_eq!(Path::new("/tmp/sluice").exists(), was_there);
    assert_eq!(run(&["image", "--dir", "/nonexistent", "list"], None).status.code(), Some(0));
    assert_eq!(run(&["image", "--help"], None).status.code(), Some(0));
    let state = host.path("state");
    fs::create_dir(&state).unwrap();
    std::os::unix::fs::chown(&state, Some(OTHER), None).unwrap();
    let made = run(&["image", "create", "x", "1M"], Some(state.as_os_str()));
    assert_eq!(made.status.code(), Some(0), "{made:?}");
    assert!(state.join(OsStr::from_bytes(b"sluice/images/x.raw")).exists());
}

//= spec/vhost-user.md#VHU-12
#[test]
fn who_may_connect_can_be_chosen() {
    use std::os::unix::fs::MetadataExt;
    let host = Host::new();
    let number = OTHER.to_string();
    for (args, mode, group) in [
        (&[][..], 0o660, 0),
        (&["--socket-mode", "0600"], 0o600, 0),
        (&["--socket-mode", "666", "--socket-group", &number], 0o666, OTHER),
        (&["--socket-group", "daemon"], 0o660, 1),
    ] {
        let daemon = host.serve(args);
        let about = until("socket", || fs::metadata(host.path("s")).ok());
        assert_eq!((about.mode() & 0o777, about.gid()), (mode, group), "{args:?}");
        assert_eq!(daemon.end(), Some(0));
    }
    for bad in ["8", "1777", "rw", ""] {
        let mut daemon = host.serve(&["--socket-mode", bad]);
        assert_eq!(daemon.0.wait().unwrap().code(), Some(2), "{bad}");
    }
    let mut daemon = host.serve(&["--socket-group", "no-such-group"]);
    assert_eq!(daemon.0.wait().unwrap().code(), Some(2));
}

/// A guest may break its queue and set it up anew as often as it likes.
//= spec/limits.md#LIM-5
#[test]
fn a_guest_that_breaks_its_queue_again_and_again_fills_no_log() {
    const ROUNDS: u32 = 300;
    let host = Host::new();
    let daemon = host.serve(&["--count", "2"]);
    let connect = |name: &str| {
        let path = host.path(name);
        let mut client = Client::new(until("daemon", || UnixStream::connect(&path).ok()));
        client.negotiate();
        client
    };
    let (mut client, mut other) = (connect("s0"), connect("s1"));
    let (guest, begin) = (Guest::new(), Instant::now());
    let err = client::event();
    let break_it = |client: &mut Client, guest: &Guest, err: &rustix::fd::OwnedFd| {
        guest.memory.write_all_at(&[0; 4], AVAIL).unwrap();
        guest.start(client);
        let ring = 0_u64.to_ne_bytes();
        assert_eq!(client.acked(request::SET_VRING_ERR, &ring, &[err.as_fd()]), 0);
        // The available index moves by more than the ring holds.
        guest.memory.write_all_at(&100_u16.to_le_bytes(), AVAIL + 2).unwrap();
        rustix::io::write(&guest.kick, &1_u64.to_ne_bytes()).unwrap();
        until("fault", || rustix::io::read(err, &mut [0; 8]).ok());
        client.ask(request::GET_VRING_BASE, &words(&[0, 0]));
    };
    for _ in 0..ROUNDS {
        break_it(&mut client, &guest, &err);
    }
    // The other disk's is heard of.
    break_it(&mut other, &Guest::new(), &err);
    let broken =
        |line: &&str, device: &str| line.contains("broke its queue") && line.contains(device);
    until("other's fault", || host.log().lines().any(|l| broken(&l, "device=1")).then_some(()));
    let log = until("count", || Some(host.log()).filter(|log| log.contains("left_out=")));
    let periods = usize::try_from(begin.elapsed().as_secs() / 10).unwrap() + 2;
    let lines = log.lines().filter(|line| broken(line, "device=0")).count();
    assert!((1..=30 * periods).contains(&lines), "{lines} lines in {periods} periods");
    assert!(log.lines().count() < 90 * periods, "of any kind: {log}");
    drop((client, other));
    assert_eq!(daemon.end(), Some(0));
}

/// The protocol asks for polling then.
//= spec/host.md#HOST-8
#[test]
fn a_ring_that_nobody_kicks_is_served() {
    for poll in ["busy", "adaptive", "event"] {
        let host = Host::new();
        let daemon = host.serve(&["--poll", poll]);
        let mut client = host.client();
        client.negotiate();
        let mut guest = Guest::new();
        let call = client::event();
        let memory = [guest.memory.as_fd()];
        assert_eq!(client.acked(request::SET_MEM_TABLE, &Guest::table(), &memory), 0);
        let start = |client: &mut Client, base: u32, kick: u64, fd: &[_]| {
            let ring = 0_u64.to_ne_bytes();
            for (request, body, fds) in [
                (request::SET_VRING_NUM, words(&[0, guest::RING]), &[][..]),
                (request::SET_VRING_BASE, words(&[0, base]), &[]),
                (request::SET_VRING_ADDR, Guest::addresses(0), &[]),
                (request::SET_VRING_CALL, ring.to_vec(), &[call.as_fd()]),
                (request::SET_VRING_KICK, kick.to_ne_bytes().to_vec(), fd),
                (request::SET_VRING_ENABLE, words(&[0, 1]), &[]),
            ] {
                assert_eq!(client.acked(request, &body, fds), 0, "{request}");
            }
        };
        start(&mut client, 0, NO_FD, &[]);
        for count in 1..=20 {
            // What it writes leads nowhere.
            guest.read();
            until("answer", || (guest.used() == count).then_some(()));
            // Long enough for a shard to fall asleep.
            std::thread::sleep(Duration::from_millis(2));
        }
        // A ring that has been stopped is left alone, and one that is kicked again is served.
        assert_eq!(client.ask(request::GET_VRING_BASE, &words(&[0, 0])).body.len(), 8);
        guest.read();
        assert!(client.is_served());
        assert_eq!(guest.used(), 20, "{poll}");
        start(&mut client, 20, 0, &[guest.kick.as_fd()]);
        until("answer", || (guest.used() == 21).then_some(()));
        drop(client);
        assert_eq!(daemon.end(), Some(0));
    }
}

//= spec/host.md#HOST-9
#[test]
fn kicks_that_lead_to_nothing_are_worth_a_word() {
    for poll in ["adaptive", "event"] {
        let host = Host::new();
        let daemon = host.serve(&["--poll", poll, "--count", "3"]);
        let connect = |name: &str| {
            let path = host.path(name);
            let stream = until("daemon", || UnixStream::connect(&path).ok());
            let mut client = Client::new(stream);
            client.negotiate();
            client
        };
        // One whose requests are there, one that has nothing to do, and one with private memory.
        let (mut good, mut idle, mut private) = (connect("s0"), connect("s1"), connect("s2"));
        let (mut reading, waiting, hiding) = (Guest::new(), Guest::new(), Guest::new());
        reading.start(&mut good);
        waiting.start(&mut idle);
        hiding.start(&mut private);
        reading.read();
        rustix::io::write(&hiding.kick, &1_u64.to_ne_bytes()).unwrap();
        let log = until("warning", || {
            rustix::io::write(&reading.kick, &1_u64.to_ne_bytes()).unwrap();
            Some(host.log()).filter(|log| log.contains("is the guest's memory shared?"))
        });
        let warned: Vec<_> = log.lines().filter(|line| line.contains("shared?")).collect();
        assert!(warned.iter().all(|line| line.contains("device=2")), "{warned:?}");
        drop((good, idle, private));
        assert_eq!(daemon.end(), Some(0));
    }
}

//= spec/host.md#HOST-9
#[test]
fn a_second_front_end_is_worth_a_word() {
    let host = Host::new();
    let daemon = host.serve(&[]);
    let mut first = host.client();
    first.negotiate();
    assert!(first.is_served());
    assert!(!host.log().contains("another front end waits"), "{}", host.log());
    let mut second = host.client();
    let pid = format!("pid={}", std::process::id());
    until("warning", || {
        let log = host.log();
        log.lines().any(|l| l.contains("another front end waits") && l.contains(&pid)).then_some(())
    });
    drop(first);
    second.negotiate();
    assert!(second.is_served());
    drop(second);
    assert_eq!(daemon.end(), Some(0));
}

/// The log of a daemon whose file has this done to it under a front end, once it warns.
fn warned(act: impl Fn(&Path), word: &str) -> String {
    let host = Host::new();
    let image = host.path("disk.raw");
    File::create(&image).unwrap().set_len(4 << 20).unwrap();
    let daemon = host.serve(&["--blk-file", image.to_str().unwrap()]);
    let mut client = host.client();
    client.negotiate();
    let mut guest = Guest::new();
    guest.start(&mut client);
    guest.read();
    until("answer", || (guest.used() == 1).then_some(()));
    act(&image);
    let log = until(word, || {
        let log = host.log();
        let warns = |line: &str| line.contains(" WARN ") && line.contains(word);
        log.lines().any(warns).then_some(log)
    });
    assert!(client.is_served(), "a warning is all");
    drop(client);
    assert_eq!(daemon.end(), Some(0));
    log
}

//= spec/store.md#STO-25
#[test]
fn a_file_that_is_replaced_or_removed_under_a_guest_is_a_warning() {
    for replace in [true, false] {
        let act = |image: &Path| {
            let other = image.with_extension("other");
            if replace {
                File::create(&other).unwrap().set_len(8 << 20).unwrap();
                fs::rename(&other, image).unwrap();
            } else {
                fs::remove_file(image).unwrap();
            }
        };
        let log = warned(act, "leads to the image no more");
        assert!(log.contains("cp --sparse=always /proc/"), "{log}");
        assert!(!log.contains("has grown"), "the size is that of the open file: {log}");
    }
}

//= spec/store.md#STO-25
#[test]
fn a_file_that_is_moved_under_a_guest_is_a_warning_that_says_where_to() {
    let act = |image: &Path| fs::rename(image, image.with_extension("moved")).unwrap();
    let log = warned(act, "leads to the image no more");
    assert!(log.contains("disk.moved"), "{log}");
}

//= spec/store.md#STO-21
#[test]
fn a_file_that_is_cut_short_under_a_guest_is_a_warning() {
    let act =
        |image: &Path| File::options().write(true).open(image).unwrap().set_len(1 << 20).unwrap();
    let log = warned(act, "was cut short under its guest");
    assert!(log.contains("it had 4M and has 1M now"), "{log}");
}

//= spec/store.md#STO-29
#[test]
fn a_file_that_is_emptied_under_a_guest_gets_its_size_back() {
    let act = |image: &Path| {
        File::create(image).unwrap();
        until("size", || (fs::metadata(image).unwrap().len() == 4 << 20).then_some(()));
    };
    let log = warned(act, "has its size of 4M back");
    assert!(!log.contains("has grown"), "{log}");
}

/// Types of requests.
const IN: u32 = 0;
const OUT: u32 = 1;
const DISCARD: u32 = 11;
const WRITE_ZEROES: u32 = 13;

//= spec/blk.md#BLK-5
//= spec/blk.md#BLK-9
//= spec/blk.md#BLK-12
#[test]
fn larger_blocks_are_kept_to_and_sectors_stay_what_they_are() {
    let host = Host::new();
    let image = host.path("disk.raw");
    fs::write(&image, vec![0x55; 1 << 20]).unwrap();
    let file = image.to_str().unwrap();
    let daemon = host.serve(&["--blk-file", file, "--block-size", "4096", "--format", "raw"]);
    let mut client = host.client();
    client.negotiate();
    let all = FEATURES | 1 << 6 | 1 << 13 | 1 << 14;
    assert_eq!(client.acked(request::SET_FEATURES, &all.to_ne_bytes(), &[]), 0);
    let body = [words(&[0, 60, 0]), vec![0; 60]].concat();
    let config = client.ask(request::GET_CONFIG, &body).body.split_off(12);
    assert_eq!(config[..8], (1_u64 << 11).to_le_bytes(), "the capacity is in sectors of 512 bytes");
    let word = |at: usize| u32::from_le_bytes(config[at..at + 4].try_into().unwrap());
    assert_eq!(word(20), 4096, "the block");
    assert_eq!(word(44), 8, "discards are aligned to it, in sectors");

    let mut guest = Guest::new();
    guest.start(&mut client);
    let mut ask = |kind, sector, data: &[u8], len| {
        guest.memory.write_all_at(data, guest::DATA).unwrap();
        let count = guest.used();
        guest.ask(kind, sector, len);
        until("answer", || (guest.used() > count).then_some(()));
        guest.status()
    };
    // What is no block, or begins inside one, is an error; a block is not.
    for kind in [IN, OUT] {
        for (sector, len) in [(0, 512), (8, 2048), (1, 4096), (7, 4096)] {
            assert_eq!(ask(kind, sector, &[0x66; 4096], len), 1, "{kind} {sector} {len}");
        }
    }
    assert!(fs::read(&image).unwrap().iter().all(|&byte| byte == 0x55), "nothing has been done");
    assert_eq!(ask(IN, 8, &[], 4096), 0);
    assert_eq!(ask(OUT, 8, &[0x66; 4096], 4096), 0);
    // Ranges count sectors of 512 bytes, and keep to blocks.
    let range = |sector: u64, sectors: u32| {
        [&sector.to_le_bytes()[..], &sectors.to_le_bytes(), &[0; 4]].concat()
    };
    for kind in [DISCARD, WRITE_ZEROES] {
        for (sector, sectors) in [(16, 1), (16, 7), (17, 8)] {
            assert_eq!(ask(kind, 0, &range(sector, sectors), 16), 1, "{kind} {sector} {sectors}");
        }
    }
    assert_eq!(ask(DISCARD, 0, &range(16, 8), 16), 0);
    assert_eq!(ask(WRITE_ZEROES, 0, &range(32, 16), 16), 0);
    drop(client);
    assert_eq!(daemon.end(), Some(0));
    let bytes = fs::read(&image).unwrap();
    for (block, all) in bytes.chunks(4096).enumerate() {
        let wanted = match block {
            1 => 0x66,
            2 | 4 | 5 => 0,
            _ => 0x55,
        };
        assert!(all.iter().all(|&byte| byte == wanted), "block {block}");
    }
}
