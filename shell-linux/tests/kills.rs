//! The daemon's deaths: under load, with and without a record of what was in flight, with and
//! without parking; and its ends in order.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant, SystemTime};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;

const SLUICE: &str = env!("CARGO_BIN_EXE_sluice");

/// How long a test waits for what has to come; a test that gets there has failed.
const LIMIT: Duration = Duration::from_secs(60);

fn verify(args: &[&str]) -> (Output, Value) {
    let output = Command::new(SLUICE).args(["verify", "--json"]).args(args).output().unwrap();
    let report = serde_json::from_slice(&output.stdout).unwrap_or(Value::Null);
    (output, report)
}

#[test]
fn a_killed_daemon_loses_nothing() {
    for rings in [&["--queues", "1"][..], &["--queues", "4"], &["--queues", "4", "--packed"]] {
        let (output, report) = verify(&[&["--kill", "25"], rings].concat());
        assert_eq!(report["verdict"], "PASS", "{report} {output:?}");
        assert!(output.status.success());
        assert_eq!(report["kills"], 25);
        assert!(report["reconnects"].as_u64().unwrap() > 0);
    }
}

/// A check that cannot fail proves nothing.
#[test]
fn a_killed_daemon_without_a_record_is_found_out() {
    let (output, report) =
        verify(&["--kill", "200", "--queues", "1", "--seed", "3", "--daemon=--untracked"]);
    assert_eq!(report["verdict"], "FAIL", "{report}");
    assert_eq!(output.status.code(), Some(1));
    assert!(!report["violations"].as_array().unwrap().is_empty());
}

/// Its front end talks all the time. A kill in the middle of a message takes the connection along,
/// and the guest comes anew; nothing that was agreed upon is lost by either.
//= spec/parking.md#PRK-2
//= spec/parking.md#PRK-3
//= spec/parking.md#PRK-8
#[test]
fn a_parked_connection_goes_on_by_itself() {
    for rings in [&[][..], &["--packed"]] {
        let parked = ["--kill", "25", "--parked", "--queues", "2"];
        let (output, report) = verify(&[&parked, rings].concat());
        assert_eq!(report["verdict"], "PASS", "{report} {output:?}");
        assert_eq!(report["kills"], 25);
        assert!(report["messages"].as_u64().unwrap() > 0, "{report}");
    }
}

/// Requests alone are no messages, so a kill among them leaves the connection.
//= spec/parking.md#PRK-3
#[test]
fn a_kill_between_messages_leaves_the_parked_connection() {
    let place = Place::new();
    let serve = || place.serve(Path::new(SLUICE), "disk.sock", &["--park", "keeper"]);
    let mut daemon = serve();
    let load = check(&place.path("disk.sock"), &["--seconds", "4", "--reconnect"]);
    place.work("disk.sock");
    for _ in 0..3 {
        daemon.0.kill().unwrap();
        daemon.0.wait().unwrap();
        let written = place.written();
        daemon = serve();
        until("request that came over it", || {
            place.written() > written || place.is_left("disk.sock")
        });
    }
    let verdict = verdict(load);
    assert_eq!((&verdict["verdict"], &verdict["reconnects"]), (&"PASS".into(), &0.into()));
    assert_eq!(daemon.terminate(), Some(0));
}

/// A disk whose daemons come and go.
struct Place {
    directory: TempDir,
}

impl Place {
    fn new() -> Self {
        let directory = TempDir::new().unwrap();
        let image = std::fs::File::create(directory.path().join("disk.raw")).unwrap();
        image.set_len(32 << 20).unwrap();
        Self { directory }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Starts a daemon and waits until it listens.
    fn serve(&self, program: &Path, socket: &str, args: &[&str]) -> Daemon {
        let log = std::fs::File::create(self.path(&format!("{socket}.log"))).unwrap();
        let child = Command::new(program)
            .args(["serve-one", "--blk-file"])
            .arg(self.path("disk.raw"))
            .arg("--socket-path")
            .arg(self.path(socket))
            .args(args)
            .stderr(log)
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let daemon = Daemon(child);
        until("a socket", || self.sockets(socket, true) > 0 && self.path(socket).exists());
        daemon
    }

    /// Sockets of this name: those that listen, or those that are connected.
    fn sockets(&self, socket: &str, listening: bool) -> usize {
        // The kernel shows the hidden name by which they were bound.
        let name = self.path(&format!(".{socket}.")).display().to_string();
        let all = std::fs::read_to_string("/proc/net/unix").unwrap();
        let named = all.lines().filter(|line| line.contains(&name) && line.contains(" 0001 "));
        named.filter(|line| line.contains(" 00010000 ") == listening).count()
    }

    /// Waits until a front end is there and has written something.
    fn work(&self, socket: &str) {
        until("a front end", || self.sockets(socket, false) > 0);
        let before = self.written();
        until("a write", || self.written() > before || self.is_left(socket));
    }

    /// When something was written last.
    fn written(&self) -> SystemTime {
        std::fs::metadata(self.path("disk.raw")).unwrap().modified().unwrap()
    }

    /// Whether the front end has done its work and gone, which ends all waiting for more of it.
    fn is_left(&self, socket: &str) -> bool {
        self.sockets(socket, false) == 0
    }

    fn log(&self, socket: &str) -> String {
        std::fs::read_to_string(self.path(&format!("{socket}.log"))).unwrap()
    }

    fn keeper(&self) -> PathBuf {
        self.path(".disk.sock.keeper")
    }
}

struct Daemon(Child);

impl Daemon {
    fn terminate(mut self) -> Option<i32> {
        kill_process(Pid::from_child(&self.0), Signal::TERM).unwrap();
        self.0.wait().unwrap().code()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn until(what: &str, is_so: impl Fn() -> bool) {
    let begin = Instant::now();
    while !is_so() {
        assert!(begin.elapsed() < LIMIT, "no {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Starts a check of a disk.
fn check(socket: &Path, args: &[&str]) -> Child {
    let mut check = Command::new(SLUICE);
    check.args(["verify", "--json", "--yes", "--queues", "1", "--socket-path"]).arg(socket);
    check.args(args).stdout(Stdio::piped()).spawn().unwrap()
}

fn verdict(check: Child) -> Value {
    serde_json::from_slice(&check.wait_with_output().unwrap().stdout).unwrap()
}

#[test]
fn f14_a_second_daemon_waits_and_says_for_whom() {
    let place = Place::new();
    let this = Path::new(SLUICE);
    let first = place.serve(this, "first.sock", &[]);
    let holder = first.0.id();
    let busy = check(&place.path("first.sock"), &["--seconds", "60"]);
    until("load", || std::fs::read(place.path("disk.raw")).unwrap().iter().any(|&b| b != 0));
    let second = place.serve(this, "second.sock", &[]);
    let waiting = check(&place.path("second.sock"), &["--requests", "300"]);
    until("word of the holder", || {
        place.log("second.sock").contains(&format!("in use by process {holder}"))
    });
    // The first one's check would find anything that the second wrote.
    kill_process(Pid::from_child(&busy), Signal::TERM).unwrap();
    verdict_of_the_interrupted(busy);
    let verdict = verdict(waiting);
    assert_eq!(verdict["verdict"], "PASS", "it went on when the first had let go: {verdict}");
    assert_eq!((first.terminate(), second.terminate()), (Some(0), Some(0)));
}

fn verdict_of_the_interrupted(mut check: Child) {
    check.wait().unwrap();
}

#[test]
fn the_disk_of_another_daemon_is_not_written() {
    let place = Place::new();
    let this = Path::new(SLUICE);
    let first = place.serve(this, "first.sock", &[]);
    let second = place.serve(this, "second.sock", &[]);
    let ours = check(&place.path("first.sock"), &["--seconds", "3"]);
    until("load", || std::fs::read(place.path("disk.raw")).unwrap().iter().any(|&b| b != 0));
    let mut theirs = check(&place.path("second.sock"), &["--requests", "1000000"]);
    let verdict = verdict(ours);
    assert_eq!(verdict["verdict"], "PASS", "{verdict}");
    theirs.kill().unwrap();
    theirs.wait().unwrap();
    drop((first, second));
}

#[test]
fn another_build_takes_over_with_requests_in_flight() {
    let place = Place::new();
    let other = place.path("sluice-next");
    std::fs::copy(SLUICE, &other).unwrap();
    // Requests that are late when the first one ends stay in the region.
    let late = ["--late-us", "20000", "--shutdown-ms", "5"];
    for park in ["never", "keeper"] {
        let args = [&late[..], &["--park", park]].concat();
        let first = place.serve(Path::new(SLUICE), "disk.sock", &args);
        let socket = place.path("disk.sock");
        let load = check(&socket, &["--seconds", "4", "--reconnect"]);
        place.work("disk.sock");
        assert_eq!(first.terminate(), Some(0), "{park}");
        assert!(!socket.exists(), "it took its socket along");
        let second = place.serve(&other, "disk.sock", &args);
        place.work("disk.sock");
        assert_eq!(second.terminate(), Some(0), "{park}");
        let third = place.serve(Path::new(SLUICE), "disk.sock", &args);
        let verdict = verdict(load);
        assert_eq!(verdict["verdict"], "PASS", "{park}: {verdict}");
        assert_eq!(third.terminate(), Some(0));
        assert!(!place.keeper().exists(), "it went with its daemon");
    }
}

//= spec/parking.md#PRK-5
//= spec/parking.md#PRK-6
//= spec/parking.md#PRK-7
#[test]
fn a_keeper_that_dies_does_no_harm() {
    use std::os::unix::fs::PermissionsExt;
    let place = Place::new();
    let args = ["--park", "keeper"];
    let mut first = place.serve(Path::new(SLUICE), "disk.sock", &args);
    until("keeper", || place.keeper().exists());
    let mode = std::fs::metadata(place.keeper()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600, "for this user alone");
    let children = format!("/proc/{0}/task/{0}/children", first.0.id());
    let child = || std::fs::read_to_string(&children).unwrap().trim().parse::<i32>();
    until("keeper", || child().is_ok());
    let keeper = child().unwrap();
    let load = check(&place.path("disk.sock"), &["--seconds", "3", "--reconnect"]);
    place.work("disk.sock");
    kill_process(Pid::from_raw(keeper).unwrap(), Signal::KILL).unwrap();
    let stat = format!("/proc/{keeper}/stat");
    until("end of the keeper", || {
        std::fs::read_to_string(&stat).map_or(true, |s| s.contains(") Z "))
    });
    first.0.kill().unwrap();
    first.0.wait().unwrap();
    let second = place.serve(Path::new(SLUICE), "disk.sock", &args);
    let verdict = verdict(load);
    assert_eq!(verdict["verdict"], "PASS", "{verdict}");
    assert_eq!(second.terminate(), Some(0));
    assert!(!place.keeper().exists());
}

//= spec/tools.md#TOOL-10
#[test]
fn a_check_that_is_ended_by_a_signal_leaves_nothing() {
    for signal in [Signal::INT, Signal::TERM, Signal::HUP, Signal::KILL] {
        for parked in [&[][..], &["--parked"]] {
            let place = TempDir::new().unwrap();
            let inside = |name: &str| {
                let entries = std::fs::read_dir(place.path()).unwrap().flatten();
                entries.map(|entry| entry.path().join(name)).any(|path| path.exists())
            };
            // These tests may be run by somebody who ignores SIGHUP.
            let mut verify = Command::new("env");
            verify.args(["--default-signal", SLUICE, "verify", "--kill", "100000", "--json"]);
            verify.arg("--dir").arg(place.path());
            let mut check = verify.args(parked).stdout(Stdio::null()).spawn().unwrap();
            let last = if parked.is_empty() { "disk.sock" } else { ".disk.sock.keeper" };
            until("daemon", || inside(last));
            kill_process(Pid::from_child(&check), signal).unwrap();
            assert_eq!(check.wait().unwrap().code(), None, "it was ended by {signal:?}");
            until("end of the directory", || {
                std::fs::read_dir(place.path()).unwrap().next().is_none()
            });
            // What they were started with names the directory.
            let place = place.path().display().to_string();
            let is_there = || {
                let all = std::fs::read_dir("/proc").unwrap().flatten();
                let lines =
                    all.filter_map(|process| std::fs::read(process.path().join("cmdline")).ok());
                lines.into_iter().any(|line| String::from_utf8_lossy(&line).contains(&place))
            };
            until("end of daemon and keeper", || !is_there());
        }
    }
}
