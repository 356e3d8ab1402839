//! Who may write to an image: one host process, and nobody while a dead one still can.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use sluice_core::op::OpKind;
use sluice_linux::store::{Captured, EngineKind, Holder, OpenOptions, Store};

use super::fuse::{Behaviour, Fuse};
use super::kit::{Guest, image, op, refused, take, tmpfs};
use super::room;

const PATH: &str = "SLUICE_TEST_IMAGE";
const ACT: &str = "SLUICE_TEST_ACT";

/// Not a test by itself: what the processes started by the tests below do.
#[test]
fn child() {
    let (Some(path), Ok(act)) = (std::env::var_os(PATH), std::env::var(ACT)) else { return };
    let path = Path::new(&path);
    let engine = match act.as_str() {
        "inline" => EngineKind::Inline,
        "uring" => EngineKind::Uring,
        "threads" => EngineKind::Threads,
        "bequeath" => return bequeath(path),
        _ => {
            let _store = take(path, OpenOptions::default());
            println!("taken");
            std::thread::sleep(Duration::from_secs(600));
            return;
        }
    };
    let mut store = take(path, OpenOptions { engine: Some(engine), ..OpenOptions::default() });
    let guest = Guest::new(1 << 16);
    println!("taken");
    let write = op(1, OpKind::Write, 0, 4096);
    store.submit(&write, [guest.piece(0, 4096)].into_iter(), &guest.mem);
    store.kick();
    std::thread::sleep(Duration::from_secs(600));
}

/// Leaves the open, locked file to a process of another name, and goes.
#[expect(clippy::zombie_processes, reason = "it outlives this process, that is the point")]
fn bequeath(path: &Path) {
    let file = std::fs::File::options().write(true).open(path).unwrap();
    rustix::fs::flock(&file, rustix::fs::FlockOperation::LockExclusive).unwrap();
    let heir = Command::new("sleep").arg("600").stdout(Stdio::from(file)).spawn().unwrap();
    println!("heir {}", heir.id());
}

fn start(act: &str, path: &Path) -> (Child, BufReader<ChildStdout>) {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "lock::child", "--nocapture"])
        .env(PATH, path)
        .env(ACT, act)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let output = BufReader::new(child.stdout.take().unwrap());
    (child, output)
}

fn wait_for(output: &mut BufReader<ChildStdout>, word: &str) -> String {
    let mut line = String::new();
    while output.read_line(&mut line).unwrap() > 0 {
        if let Some(at) = line.find(word) {
            return line[at + word.len()..].trim().to_owned();
        }
        line.clear();
    }
    panic!("the child has ended without saying {word}");
}

fn held(store: &mut Store) -> (Option<Holder>, bool) {
    match refused(store) {
        Captured::Held { by, alive } => (by, alive),
        other => panic!("{other:?}"),
    }
}

fn taken_within(store: &mut Store, limit: Duration) -> bool {
    let start = Instant::now();
    while start.elapsed() < limit {
        match store.capture() {
            Captured::Yes => return true,
            Captured::Looking | Captured::Held { .. } => {
                std::thread::sleep(Duration::from_millis(10))
            }
            Captured::Failed(error) => panic!("{error:#}"),
        }
    }
    false
}

//= spec/store.md#STO-11
#[test]
fn f14_a_live_holder_is_named_and_respected() {
    let dir = tmpfs();
    let path = image(dir.path(), 1 << 20);
    let (mut child, mut output) = start("hold", &path);
    wait_for(&mut output, "taken");
    let mut store = Store::open(&path, OpenOptions::default()).unwrap();
    for _ in 0..2 {
        let (by, alive) = held(&mut store);
        let by = by.unwrap();
        assert!(alive);
        assert_eq!(by.pid, child.id());
        assert!(by.command.contains("lock::child"), "{by}");
    }
    // Not even reads without the image.
    let guest = Guest::new(1 << 16);
    let read = op(1, OpKind::Read, 0, 4096);
    let result = store.submit(&read, [guest.piece(0, 4096)].into_iter(), &guest.mem);
    assert_eq!(result, Some(-i64::from(libc::ENOLCK)));
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(taken_within(&mut store, Duration::from_secs(10)));
}

/// The kernel is asked on another thread: the shard gets an answer that does not wait for it.
//= spec/store.md#STO-30
#[test]
fn a_holder_is_looked_for_behind_the_shards_back() {
    let dir = tmpfs();
    let path = image(dir.path(), 1 << 20);
    let mut holder = take(&path, OpenOptions::default());
    let mut store = Store::open(&path, OpenOptions::default()).unwrap();
    for _ in 0..2 {
        assert!(matches!(store.capture(), Captured::Looking), "nobody can know that at once");
        assert_eq!(held(&mut store).0.unwrap().pid, std::process::id());
        assert!(matches!(store.capture(), Captured::Held { .. }), "it is known from then on");
        holder.release();
        assert!(matches!(store.capture(), Captured::Yes));
        store.release();
        assert!(matches!(holder.capture(), Captured::Yes));
    }
}

//= spec/store.md#STO-11
#[test]
fn readers_share_an_image_and_keep_writers_out() {
    let dir = tmpfs();
    let path = image(dir.path(), 1 << 20);
    let reader = OpenOptions { read_only: true, ..OpenOptions::default() };
    let mut readers = [take(&path, reader), take(&path, reader)];
    let mut writer = Store::open(&path, OpenOptions::default()).unwrap();
    assert_eq!(held(&mut writer).0.unwrap().pid, std::process::id());
    readers.iter_mut().for_each(Store::release);
    assert!(matches!(writer.capture(), Captured::Yes));
    held(&mut readers[0]);
    writer.release();
    assert!(matches!(readers[0].capture(), Captured::Yes));
}

//= spec/store.md#STO-11
#[test]
fn f15_who_inherited_the_open_file_is_the_holder() {
    let dir = tmpfs();
    let path = image(dir.path(), 1 << 20);
    let (mut child, mut output) = start("bequeath", &path);
    let heir: u32 = wait_for(&mut output, "heir").parse().unwrap();
    child.wait().unwrap();
    let mut store = Store::open(&path, OpenOptions::default()).unwrap();
    let (by, alive) = held(&mut store);
    let end = Command::new("kill").arg(heir.to_string()).status().unwrap();
    assert!(end.success() && alive);
    let by = by.unwrap();
    assert_eq!((by.pid, by.command.as_str()), (heir, "sleep 600"));
    assert!(taken_within(&mut store, Duration::from_secs(10)));
}

/// A process is killed while the kernel carries a write of it out. The file system holds that
/// write back, as a device or a network that has stopped answering does. The image must not be
/// had before the write has landed.
//= spec/store.md#STO-11
#[test]
fn f15_a_write_in_flight_of_a_dead_process_keeps_the_image() {
    if !room::inside("lock::f15_a_write_in_flight_of_a_dead_process_keeps_the_image") {
        return;
    }
    for act in ["inline", "uring", "threads"] {
        let fuse = Fuse::new(Behaviour { hold_writes: true, ..Behaviour::default() });
        assert!(fuse.dir().is_dir());
        let (mut child, mut output) = start(act, &fuse.image());
        wait_for(&mut output, "taken");
        fuse.wait_for_write();
        let mut store = Store::open(&fuse.image(), OpenOptions::default()).unwrap();
        assert!(held(&mut store).1, "{act}: still alive");
        child.kill().unwrap();
        assert!(!taken_within(&mut store, Duration::from_millis(500)), "{act}");
        let (by, alive) = held(&mut store);
        assert!(!alive, "{act}: {by:?}");
        assert_eq!(by.unwrap().pid, child.id(), "{act}");
        fuse.change(|behaviour| behaviour.hold_writes = false);
        assert!(taken_within(&mut store, Duration::from_secs(10)), "{act}");
        child.wait().unwrap();
    }
}
