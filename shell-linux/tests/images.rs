//! Images as commands see them.

use std::os::unix::fs::FileExt;
use std::path::Path;

use sluice_linux::image::{Catalog, Fault, Format, ImportOptions, Name};
use sluice_linux::store::{Captured, OpenOptions, Store, marker};
use tempfile::TempDir;

const MIB: u64 = 1 << 20;

struct Room {
    dir: TempDir,
    images: Catalog,
}

fn room() -> Room {
    let dir = TempDir::new_in("/dev/shm").unwrap();
    let images = Catalog::new(dir.path().join("images"));
    Room { dir, images }
}

fn name(text: &str) -> Name {
    text.parse().unwrap()
}

fn plain() -> ImportOptions {
    ImportOptions::default()
}

fn quiet(_: u64, _: u64) {}

fn silent(_: String) {}

/// The exit code and the sentence of a refusal.
fn refused<T>(result: Result<T, Fault>) -> (u8, String) {
    match result {
        Ok(_) => panic!("it was done"),
        Err(fault) => (fault.exit_code(), fault.to_string()),
    }
}

fn files(dir: &Path) -> usize {
    std::fs::read_dir(dir).unwrap().count()
}

#[test]
fn images_are_made_listed_resized_and_removed() {
    let Room { images, .. } = &room();
    assert!(images.list().unwrap().is_empty(), "a directory that is not there has no images");
    let (a, b) = (name("a"), name("b"));
    let made = images.create(&b, 64 * MIB, false).unwrap();
    assert_eq!((made.name.as_str(), made.bytes, made.allocated_bytes), ("b", 64 * MIB, 0));
    assert!(!made.poisoned && made.in_use.is_none());
    assert!(images.create(&a, MIB, true).unwrap().allocated_bytes >= MIB);
    std::fs::write(images.dir().join("readme.txt"), b"no image").unwrap();
    let names: Vec<_> = images.list().unwrap().into_iter().map(|about| about.name).collect();
    assert_eq!(names, ["a", "b"]);

    assert_eq!(refused(images.create(&a, MIB, false)).0, 5);
    assert_eq!(refused(images.create(&name("c"), 1000, false)).0, 2);
    assert_eq!(refused(images.create(&name("c"), 0, false)).0, 2);
    assert_eq!(refused(images.create(&name("c"), u64::MAX, false)).0, 2);
    assert_eq!(refused(images.create(&name("c"), u64::MAX - 511, false)).0, 1);
    assert_eq!(refused(images.about(&name("c"))).0, 4);
    assert_eq!(refused(images.remove(&name("c"))).0, 4);
    assert_eq!(refused(images.resize(&name("c"), MIB, false)).0, 4);

    assert_eq!(images.resize(&a, 2 * MIB, false).unwrap().bytes, 2 * MIB);
    let (code, said) = refused(images.resize(&a, MIB, false));
    assert!(code == 2 && said.contains("--shrink"), "{said}");
    assert_eq!(images.resize(&a, MIB, true).unwrap().bytes, MIB);
    images.remove(&a).unwrap();
    images.remove(&b).unwrap();
    assert_eq!(files(images.dir()), 1, "nothing is left but what is no image");
}

//= spec/store.md#STO-17
#[test]
fn an_image_in_use_is_left_alone_and_its_holder_named() {
    let Room { images, dir } = &room();
    let a = name("a");
    images.create(&a, MIB, false).unwrap();
    let hold = |read_only| {
        let options = OpenOptions { read_only, ..OpenOptions::default() };
        let mut store = Store::open(&images.path(&a), options).unwrap();
        assert!(matches!(store.capture(), Captured::Yes));
        store
    };
    let elsewhere = dir.path().join("a.img");
    let changes = || {
        [
            refused(images.remove(&a)),
            refused(images.resize(&a, MIB / 2, true)),
            refused(images.repair(&a)),
        ]
    };
    let reads = || {
        [
            refused(images.clone_image(&a, &name("b"), true, &quiet)),
            refused(images.export(&a, &elsewhere, Format::Raw, false, &quiet, &silent)),
        ]
    };
    let check = |refusals: &[(u8, String)]| {
        for (code, said) in refusals {
            let pid = format!("process {}", std::process::id());
            assert!(*code == 5 && said.contains(&pid), "{code} {said}");
        }
    };
    let writer = hold(false);
    check(&changes());
    check(&reads());
    assert_eq!(images.about(&a).unwrap().in_use.unwrap().pid, std::process::id());
    drop(writer);
    let reader = hold(true);
    check(&changes());
    images.clone_image(&a, &name("b"), true, &quiet).unwrap();
    drop(reader);
    images.remove(&a).unwrap();
}

/// A daemon that has it open may begin at any moment, and would go on with what is left.
//= spec/store.md#STO-23
//= spec/store.md#STO-17
#[test]
fn a_served_image_is_left_alone_before_its_first_io() {
    let Room { images, dir } = &room();
    let (a, b) = (name("a"), name("b"));
    images.create(&a, MIB, false).unwrap();
    images.create(&b, MIB, false).unwrap();
    let path = images.path(&a);
    let elsewhere = dir.path().join("a.img");
    let serve = |read_only| {
        Store::open(&path, OpenOptions { read_only, ..OpenOptions::default() }).unwrap()
    };
    let changes = || {
        [
            refused(images.remove(&a)),
            refused(images.resize(&a, MIB / 2, true)),
            refused(images.repair(&a)),
            refused(images.export(&b, &path, Format::Raw, true, &quiet, &silent)),
        ]
    };
    let reads = || {
        [
            refused(images.clone_image(&a, &name("c"), true, &quiet)),
            refused(images.export(&a, &elsewhere, Format::Raw, false, &quiet, &silent)),
            refused(images.import(&path, &name("c"), &plain(), &quiet, &silent)),
        ]
    };
    let check = |refusals: &[(u8, String)]| {
        for (code, said) in refusals {
            let pid = format!("process {}", std::process::id());
            assert!(*code == 5 && said.contains(&pid), "{code} {said}");
        }
    };
    // At a migration there are two.
    let daemons = [serve(false), serve(false)];
    check(&changes());
    check(&reads());
    assert_eq!(images.about(&a).unwrap().in_use.unwrap().pid, std::process::id());
    drop(daemons);
    let reader = serve(true);
    check(&changes());
    images.clone_image(&a, &name("c"), true, &quiet).unwrap();
    images.import(&path, &name("d"), &plain(), &quiet, &silent).unwrap();
    drop(reader);
    images.export(&b, &path, Format::Raw, true, &quiet, &silent).unwrap();
    assert!(images.about(&a).unwrap().in_use.is_none());
    images.remove(&a).unwrap();
    assert_eq!(files(images.dir()), 3, "nothing is left of what was refused");
}

//= spec/store.md#STO-26
#[test]
fn a_served_image_grows_and_does_not_shrink() {
    let Room { images, .. } = &room();
    let a = name("a");
    images.create(&a, MIB, false).unwrap();
    for captured in [false, true] {
        let mut store = Store::open(&images.path(&a), OpenOptions::default()).unwrap();
        let watch = store.watch().unwrap().unwrap();
        if captured {
            assert!(matches!(store.capture(), Captured::Yes));
        }
        let bytes = images.about(&a).unwrap().bytes;
        assert_eq!(images.resize(&a, bytes + MIB, false).unwrap().bytes, bytes + MIB);
        let (code, said) = refused(images.resize(&a, bytes, true));
        assert!(code == 5 && said.contains("in use"), "{said}");
        assert_eq!(watch.look().count(), 1, "the daemon sees it");
        assert!(matches!(store.capture(), Captured::Yes), "whenever it begins");
    }
    let command = std::fs::File::options().write(true).open(images.path(&a)).unwrap();
    rustix::fs::flock(&command, rustix::fs::FlockOperation::LockShared).unwrap();
    assert_eq!(refused(images.resize(&a, 64 * MIB, false)).0, 5, "no daemon, none that follows");
}

//= spec/store.md#STO-24
#[test]
fn commands_leave_images_alone_that_qemu_has() {
    let Room { images, dir } = &room();
    let a = name("a");
    images.create(&a, MIB, false).unwrap();
    let hold = |options: &[&str]| {
        let mut qemu = std::process::Command::new("qemu-io")
            .args(options)
            .args(["-f", "raw"])
            .arg(images.path(&a))
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .expect("qemu-utils are installed");
        std::io::Write::write_all(qemu.stdin.as_mut().unwrap(), b"length\n").unwrap();
        std::io::Read::read_exact(qemu.stdout.as_mut().unwrap(), &mut [0]).unwrap();
        qemu
    };
    let elsewhere = dir.path().join("a.img");
    let mut writer = hold(&[]);
    for (code, said) in [
        refused(images.remove(&a)),
        refused(images.resize(&a, 2 * MIB, false)),
        refused(images.clone_image(&a, &name("b"), true, &quiet)),
        refused(images.export(&a, &elsewhere, Format::Raw, false, &quiet, &silent)),
        refused(images.import(&images.path(&a), &name("b"), &plain(), &quiet, &silent)),
    ] {
        assert!(code == 5 && said.contains("qemu-io"), "{said}");
    }
    writer.kill().unwrap();
    writer.wait().unwrap();
    let mut reader = hold(&["-r"]);
    images.export(&a, &elsewhere, Format::Raw, false, &quiet, &silent).unwrap();
    assert_eq!(refused(images.remove(&a)).0, 5);
    reader.kill().unwrap();
    reader.wait().unwrap();
    images.remove(&a).unwrap();
}

//= spec/store.md#STO-19
#[test]
fn raw_files_come_in_and_go_out() {
    let Room { images, dir } = &room();
    let source = dir.path().join("source.img");
    let file = std::fs::File::create(&source).unwrap();
    file.set_len(32 * MIB + 100).unwrap();
    file.write_all_at(b"somewhere", 20 * MIB + 7).unwrap();
    file.write_all_at(b"the end", 32 * MIB + 93).unwrap();
    let notes = std::cell::RefCell::new(Vec::new());
    let note = |text| notes.borrow_mut().push(text);
    let a = name("a");
    let (code, said) = refused(images.import(&source, &a, &plain(), &quiet, &note));
    assert!(code == 2 && said.contains("--pad adds 412 zeroes"), "{said}");
    let padding = ImportOptions { pad: true, ..plain() };
    let about = images.import(&source, &a, &padding, &quiet, &note).unwrap();
    assert_eq!(about.bytes, 32 * MIB + 512);
    assert!(about.allocated_bytes < MIB);
    assert!(notes.borrow()[0].contains("multiple of 512"), "{notes:?}");

    let out = dir.path().join("out.img");
    images.export(&a, &out, Format::Raw, false, &quiet, &note).unwrap();
    let (mut wanted, got) = (std::fs::read(&source).unwrap(), std::fs::read(&out).unwrap());
    wanted.resize(wanted.len() + 412, 0);
    assert!(wanted == got);
    let (code, said) = refused(images.export(&a, &out, Format::Raw, false, &quiet, &note));
    assert!(code == 5 && said.contains("--force"), "{said}");
    images.export(&a, &out, Format::Raw, true, &quiet, &note).unwrap();
    let directory = images.export(&a, dir.path(), Format::Raw, true, &quiet, &note);
    assert_eq!(refused(directory).0, 2);

    assert_eq!(refused(images.import(&source, &a, &plain(), &quiet, &note)).0, 5);
    let nothing = dir.path().join("nothing");
    assert_eq!(refused(images.import(&nothing, &name("b"), &plain(), &quiet, &note)).0, 4);
    assert_eq!(
        refused(images.export(&name("b"), &nothing, Format::Raw, false, &quiet, &note)).0,
        4
    );
    assert_eq!(refused(images.import(dir.path(), &name("b"), &plain(), &quiet, &note)).0, 2);
    let empty = dir.path().join("empty");
    std::fs::write(&empty, b"").unwrap();
    assert_eq!(refused(images.import(&empty, &name("b"), &plain(), &quiet, &note)).0, 1);
    assert_eq!(files(images.dir()), 1, "refusals leave nothing behind");
}

//= spec/store.md#STO-20
#[test]
fn clones_share_or_say_why_not() {
    let Room { images, .. } = &room();
    let (a, b) = (name("a"), name("b"));
    images.create(&a, MIB, false).unwrap();
    std::fs::File::options()
        .write(true)
        .open(images.path(&a))
        .unwrap()
        .write_all_at(b"bytes", 5000)
        .unwrap();
    let (code, said) = refused(images.clone_image(&a, &b, false, &quiet));
    assert!(code == 1 && said.contains("--copy") && said.contains("tmpfs"), "{said}");
    assert_eq!(files(images.dir()), 1);
    assert!(!images.clone_image(&a, &b, true, &quiet).unwrap().poisoned);
    let read = |name| std::fs::read(images.path(name)).unwrap();
    assert!(read(&a) == read(&b));
    assert_eq!(refused(images.clone_image(&a, &b, true, &quiet)).0, 5);
    assert_eq!(refused(images.clone_image(&name("x"), &name("y"), true, &quiet)).0, 4);
    marker::set(&images.path(&a)).unwrap();
    assert!(images.clone_image(&a, &name("c"), true, &quiet).unwrap().poisoned);
}

//= spec/store.md#STO-12
#[test]
fn f31_poison_goes_by_command_or_with_the_image() {
    let Room { images, .. } = &room();
    let a = name("a");
    images.create(&a, MIB, false).unwrap();
    marker::set(&images.path(&a)).unwrap();
    assert!(images.about(&a).unwrap().poisoned);
    assert!(images.repair(&a).unwrap());
    assert!(!images.repair(&a).unwrap());
    assert!(!images.about(&a).unwrap().poisoned);
    marker::set(&images.path(&a)).unwrap();
    images.remove(&a).unwrap();
    assert_eq!(files(images.dir()), 0);
    // A removal was cut short: the next image of that name is another.
    marker::set(&images.path(&a)).unwrap();
    assert!(!images.create(&a, MIB, false).unwrap().poisoned);
}
