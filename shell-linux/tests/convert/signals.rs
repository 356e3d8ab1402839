//! Commands that are told to end.

use std::fs;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use super::kit::{MIB, Room, SLUICE, noise, room};

const SIGNALS: [Signal; 3] = [Signal::INT, Signal::TERM, Signal::HUP];

fn command(room: &Room, arguments: &[&str]) -> Command {
    // These tests may be run by somebody who ignores SIGHUP.
    let mut command = Command::new("env");
    command
        .args(["--default-signal", SLUICE, "image", "--dir"])
        .arg(room.images.dir())
        .args(arguments);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    // Of its own group, so that a signal for these tests does not reach it.
    command.process_group(0);
    command
}

fn unfinished(dir: &Path) -> Vec<String> {
    let names = fs::read_dir(dir).into_iter().flatten().flatten();
    let names = names.map(|entry| entry.file_name().to_string_lossy().into_owned());
    names.filter(|name| name.ends_with(".sluice-new")).collect()
}

/// Waits until the command has begun to write, or has ended already.
fn begun(child: &mut Child, dir: &Path) {
    let give_up = Instant::now() + Duration::from_secs(60);
    while unfinished(dir).is_empty() && child.try_wait().unwrap().is_none() {
        assert!(Instant::now() < give_up, "nothing is written");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// The processes that have `dir` open, by this test's own files.
fn converters_in(dir: &Path) -> usize {
    let processes = fs::read_dir("/proc").unwrap().flatten().map(|entry| entry.path());
    let is_one = |process: &std::path::PathBuf| {
        let name = fs::read_to_string(process.join("comm")).unwrap_or_default();
        let files = fs::read_dir(process.join("fd")).into_iter().flatten().flatten();
        let mut targets = files.filter_map(|entry| fs::read_link(entry.path()).ok());
        name.trim() == "qemu-img" && targets.any(|target| target.starts_with(dir))
    };
    processes.filter(is_one).count()
}

/// Enough bytes to be at it for a while.
fn large(room: &Room) -> std::path::PathBuf {
    let path = room.path("large");
    let file = fs::File::create(&path).unwrap();
    let noise = noise(1 << 20);
    for at in 0..400 {
        std::os::unix::fs::FileExt::write_all_at(&file, &noise, at * MIB).unwrap();
    }
    path
}

/// What a command says that a signal ends in the middle. One that was faster than the signal is
/// undone and begun again.
fn ended_by(signal: Signal, made: &Path, mut spawn: impl FnMut() -> Child) -> String {
    let give_up = Instant::now() + Duration::from_secs(60);
    loop {
        let mut child = spawn();
        begun(&mut child, made.parent().unwrap());
        kill_process(Pid::from_child(&child), signal).unwrap();
        let ended = child.wait_with_output().unwrap();
        if !ended.status.success() {
            assert_eq!(ended.status.signal(), Some(signal.as_raw()), "{made:?} {ended:?}");
            return String::from_utf8_lossy(&ended.stderr).into_owned();
        }
        assert!(Instant::now() < give_up, "always faster than {signal:?}: {made:?}");
        fs::remove_file(made).unwrap();
    }
}

//= spec/convert.md#CNV-1
#[test]
fn a_signal_ends_a_command_and_leaves_nothing() {
    let room = &room();
    let large = large(room);
    let packed = room.converted(&large, "large.qcow2", &["-O", "qcow2"]);
    let out = room.path("out");
    fs::create_dir(&out).unwrap();
    let (large, packed) = (large.to_str().unwrap(), packed.to_str().unwrap());
    assert!(command(room, &["import", large, "there"]).status().unwrap().success());
    let raw = out.join("x.raw");
    let vdi = out.join("x.vdi");
    let made = room.images.dir().join("k.raw");
    let commands: [(&[&str], &Path); 5] = [
        (&["import", large, "k"], &made),
        (&["import", packed, "k"], &made),
        (&["clone", "--copy", "there", "k"], &made),
        (&["export", "there", raw.to_str().unwrap()], &raw),
        (&["export", "--format", "vdi", "there", vdi.to_str().unwrap()], &vdi),
    ];
    for (arguments, made) in commands {
        for signal in SIGNALS {
            let dir = made.parent().unwrap();
            let said = ended_by(signal, made, || command(room, arguments).spawn().unwrap());
            assert_eq!(unfinished(dir), [""; 0], "{arguments:?} {signal:?}");
            assert_eq!(converters_in(room.dir.path()), 0, "{arguments:?} {signal:?}");
            assert!(!said.contains("qemu-img cannot"), "{said}");
        }
    }
    room.has_images(1);
    assert_eq!(fs::read_dir(&out).unwrap().count(), 0);
}

//= spec/convert.md#CNV-1
#[test]
fn sigkill_ends_the_converter_and_the_next_command_tidies_up() {
    let room = &room();
    let large = large(room);
    let packed = room.converted(&large, "large.qcow2", &["-O", "qcow2"]);
    let out = room.path("out");
    fs::create_dir(&out).unwrap();
    assert!(
        command(room, &["import", large.to_str().unwrap(), "there"]).status().unwrap().success()
    );
    let to = |name: &str| out.join(name).to_str().unwrap().to_owned();
    let import = ["import", packed.to_str().unwrap(), "k"];
    let export = ["export", "--format", "vdi", "there", &to("x.vdi")];
    let made = [room.images.dir().join("k.raw"), out.join("x.vdi")];
    for (arguments, made) in [&import[..], &export].into_iter().zip(&made) {
        ended_by(Signal::KILL, made, || command(room, arguments).spawn().unwrap());
        let give_up = Instant::now() + Duration::from_secs(60);
        while converters_in(room.dir.path()) > 0 {
            assert!(Instant::now() < give_up, "the converter goes on");
            std::thread::sleep(Duration::from_millis(1));
        }
    }
    assert!(command(room, &["create", "small", "1M"]).status().unwrap().success());
    assert!(command(room, &["export", "small", &to("small.raw")]).status().unwrap().success());
    assert_eq!(unfinished(room.images.dir()), [""; 0]);
    assert_eq!(unfinished(&out), [""; 0]);
    room.has_images(2);
}

//= spec/convert.md#CNV-1
#[test]
fn what_is_ignored_stays_ignored() {
    let room = &room();
    let large = large(room);
    let arguments = ["--", SLUICE, "image", "--dir", room.images.dir().to_str().unwrap()];
    let mut child = Command::new("nohup")
        .args(&arguments[1..])
        .args(["import", large.to_str().unwrap(), "k"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    begun(&mut child, room.images.dir());
    kill_process(Pid::from_child(&child), Signal::HUP).unwrap();
    assert!(child.wait().unwrap().success());
    room.has_images(1);
}
