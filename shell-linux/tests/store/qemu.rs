//! QEMU's programs and daemons of ours see each other.

use std::io::Write;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use sluice_linux::store::{Captured, OpenOptions, Store};

use super::kit::{image, refused, take, tmpfs};

const READER: OpenOptions =
    OpenOptions { read_only: true, block_bytes: 512, direct: true, engine: None };

/// Runs one of QEMU's tools to its end.
fn qemu(program: &str, args: &[&str], path: &Path) -> Output {
    Command::new(program).args(args).arg(path).output().expect("qemu-utils are installed")
}

fn writes(path: &Path) -> Output {
    qemu("qemu-io", &["-f", "raw", "-c", "write -P 0x51 0 512"], path)
}

fn refused_for(output: &Output, what: &str) {
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.contains(what), "{output:?}");
}

/// A qemu-io that has an image open, once it answers.
struct Open(Child);

impl Open {
    fn new(options: &[&str], path: &Path) -> Self {
        let mut child = Command::new("qemu-io")
            .args(options)
            .args(["-f", "raw"])
            .arg(path)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("qemu-utils are installed");
        // What is asked for is done when the answer is there.
        writeln!(child.stdin.as_mut().unwrap(), "length").unwrap();
        let mut answer = [0; 1];
        std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut answer).unwrap();
        Self(child)
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn taken_at_last(store: &mut Store) {
    let give_up = Instant::now() + Duration::from_secs(60);
    while !matches!(store.capture(), Captured::Yes) {
        assert!(Instant::now() < give_up, "the image stays locked");
        std::thread::sleep(Duration::from_millis(10));
    }
}

//= spec/store.md#STO-24
#[test]
fn qemus_tools_leave_a_served_image_alone() {
    let dir = tmpfs();
    let path = image(dir.path(), 1 << 20);
    let mut store = Store::open(&path, OpenOptions::default()).unwrap();
    // Served and not used yet.
    refused_for(&writes(&path), "lock");
    let resize =
        Command::new("qemu-img").args(["resize", "-f", "raw"]).arg(&path).arg("2M").output();
    refused_for(&resize.unwrap(), "lock");
    assert!(matches!(store.capture(), Captured::Yes));
    refused_for(&writes(&path), "lock");
    let info = qemu("qemu-img", &["info", "-U"], &path);
    assert!(info.status.success(), "{info:?}");
    // Given up, but still served.
    store.release();
    refused_for(&writes(&path), "lock");
    drop(store);
    assert!(writes(&path).status.success());
}

//= spec/store.md#STO-24
#[test]
fn a_served_image_may_be_read_by_qemu_where_nobody_writes() {
    let dir = tmpfs();
    let path = image(dir.path(), 1 << 20);
    let _store = take(&path, READER);
    let reads = qemu("qemu-io", &["-r", "-f", "raw", "-c", "read 0 512"], &path);
    assert!(reads.status.success(), "{reads:?}");
    refused_for(&writes(&path), "lock");
}

//= spec/store.md#STO-24
#[test]
fn an_image_that_qemu_writes_is_waited_for() {
    let dir = tmpfs();
    let path = image(dir.path(), 1 << 20);
    for options in [READER, OpenOptions::default()] {
        let qemu = Open::new(&[], &path);
        let mut store = Store::open(&path, options).unwrap();
        for _ in 0..2 {
            let Captured::Held { by, alive } = refused(&mut store) else { panic!("two writers") };
            let by = by.unwrap();
            assert_eq!((by.pid, alive), (qemu.0.id(), true), "{by}");
            assert!(by.command.contains("qemu-io"), "{by}");
        }
        drop(qemu);
        taken_at_last(&mut store);
    }
}

//= spec/store.md#STO-24
#[test]
fn an_image_changes_hands_between_daemons_beside_readers_of_qemu() {
    let dir = tmpfs();
    let path = image(dir.path(), 1 << 20);
    let mut source = take(&path, OpenOptions::default());
    let mut destination = Store::open(&path, OpenOptions::default()).unwrap();
    assert!(matches!(refused(&mut destination), Captured::Held { .. }));
    source.release();
    assert!(matches!(destination.capture(), Captured::Yes));
    assert!(matches!(refused(&mut source), Captured::Held { .. }));
    destination.release();
    drop(destination);
    // One that has said that it does not mind.
    let _reader = Open::new(&["-r", "-U"], &path);
    assert!(matches!(source.capture(), Captured::Yes));
}
