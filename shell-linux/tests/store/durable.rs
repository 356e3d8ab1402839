//! What a loss of power leaves of images, at every moment of a command and after it.

use std::collections::BTreeSet;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use sluice_linux::image::{Catalog, Format, ImportOptions, Name};
use sluice_linux::store::marker;

use super::client::{Client, FEATURES, request};
use super::disk::Disk;
use super::fuse::opcode;
use super::guest::{self, Guest};
use super::mounted::Mounted;
use super::room;
use super::volatile::Files;

const BYTES: usize = 8192;
/// Where the images are in their file system.
const A: &str = "/state/images/a.raw";
const B: &str = "/state/images/b.raw";
const MARK_A: &str = "/state/images/a.raw.poisoned";
const MARK_B: &str = "/state/images/b.raw.poisoned";

/// `VIRTIO_BLK_T_FLUSH`, and the feature that has it.
const FLUSH: u32 = 4;
const FLUSHES: u64 = 1 << 9;
/// `VIRTIO_BLK_S_IOERR`.
const IOERR: u8 = 1;

fn name(text: &str) -> Name {
    text.parse().unwrap()
}

fn bytes() -> Vec<u8> {
    b"not zeroes".iter().copied().cycle().take(BYTES).collect()
}

/// An empty file system that forgets, and images in it.
fn images() -> (Mounted, Catalog) {
    let mounted = Mounted::new();
    let images = Catalog::new(mounted.dir().join("state/images"));
    (mounted, images)
}

/// The same with an image `a` that is not empty.
fn with_image() -> (Mounted, Catalog) {
    let (mounted, images) = images();
    import(&images, "a");
    (mounted, images)
}

fn import(images: &Catalog, into: &str) {
    let source = tempfile::NamedTempFile::new_in("/dev/shm").unwrap();
    std::fs::write(source.path(), bytes()).unwrap();
    let options = ImportOptions::default();
    images.import(source.path(), &name(into), &options, &|_, _| (), &|_| ()).unwrap();
}

/// Whether the file is there with these bytes, and known to be raw; not there otherwise.
fn is_whole(files: &Files, path: &str, bytes: &[u8]) -> bool {
    let Some(file) = files.get(path) else { return false };
    assert_eq!(file.bytes.len(), bytes.len(), "{path} has another size");
    assert!(file.bytes == bytes, "{path} has other bytes");
    assert!(file.attributes.contains_key("user.sluice.format"), "{path} is not known to be raw");
    true
}

/// A command makes a file: nothing or all of it is there whenever the power goes, and all of it
/// once the command has ended.
fn makes(mounted: &Mounted, path: &str, bytes: &[u8], command: impl FnOnce()) -> BTreeSet<Files> {
    let seen = mounted.during(command);
    let there: BTreeSet<_> = seen.iter().map(|files| is_whole(files, path, bytes)).collect();
    assert_eq!(there, [false, true].into(), "the file system has seen the command");
    for files in mounted.survivors() {
        assert!(is_whole(&files, path, bytes), "{path} is lost: {:?}", files.keys());
    }
    seen
}

//= spec/store.md#STO-31
#[test]
fn a_new_image_survives_whole_or_not_at_all() {
    if !room::inside("durable::a_new_image_survives_whole_or_not_at_all") {
        return;
    }
    let zeroes = vec![0; BYTES];
    for reserve in [false, true] {
        let (mounted, images) = images();
        makes(&mounted, A, &zeroes, || {
            drop(images.create(&name("a"), BYTES as u64, reserve).unwrap())
        });
        makes(&mounted, B, &zeroes, || {
            drop(images.create(&name("b"), BYTES as u64, reserve).unwrap())
        });
    }
    let (mounted, images) = images();
    makes(&mounted, A, &bytes(), || import(&images, "a"));
}

//= spec/store.md#STO-31
#[test]
fn an_exported_file_survives_whole_and_so_does_what_it_replaces() {
    if !room::inside("durable::an_exported_file_survives_whole_and_so_does_what_it_replaces") {
        return;
    }
    let (mounted, images) = with_image();
    images.create(&name("b"), BYTES as u64, false).unwrap();
    let into = mounted.dir().join("out");
    let export = |image: &str, replace| {
        let format = Format::Raw;
        images.export(&name(image), &into, format, replace, &|_, _| (), &|_| ()).unwrap();
    };
    makes(&mounted, "/out", &bytes(), || export("a", false));
    let zeroes = vec![0; BYTES];
    for files in mounted.during(|| export("b", true)) {
        let old_or_new = if files["/out"].bytes == zeroes { &zeroes } else { &bytes() };
        assert!(is_whole(&files, "/out", old_or_new), "{:?}", files.keys());
    }
    assert!(mounted.survivors().iter().all(|files| is_whole(files, "/out", &zeroes)));
}

//= spec/store.md#STO-32
#[test]
fn a_resized_image_has_one_of_two_sizes() {
    if !room::inside("durable::a_resized_image_has_one_of_two_sizes") {
        return;
    }
    let (mounted, images) = with_image();
    let mut old = BYTES;
    for new in [2 * old, old / 2] {
        let resize = || drop(images.resize(&name("a"), new as u64, true).unwrap());
        let seen = mounted.during(resize);
        let sizes: BTreeSet<_> = seen.iter().map(|files| files[A].bytes.len()).collect();
        assert_eq!(sizes, [old, new].into());
        assert!(mounted.survivors().iter().all(|files| files[A].bytes.len() == new));
        old = new;
    }
}

//= spec/store.md#STO-33
#[test]
fn f31_no_clone_has_its_name_before_its_mark() {
    if !room::inside("durable::f31_no_clone_has_its_name_before_its_mark") {
        return;
    }
    let (mounted, images) = with_image();
    let clone =
        |into: &str| drop(images.clone_image(&name("a"), &name(into), true, &|_, _| ()).unwrap());
    let seen = makes(&mounted, B, &bytes(), || clone("b"));
    assert!(seen.iter().all(|files| !files.contains_key(MARK_B)), "it is sound");

    let (mounted, images) = with_image();
    marker::set(&images.path(&name("a"))).unwrap();
    let clone = || drop(images.clone_image(&name("a"), &name("b"), true, &|_, _| ()).unwrap());
    let seen = makes(&mounted, B, &bytes(), clone);
    assert!(seen.iter().all(|files| !files.contains_key(B) || files.contains_key(MARK_B)));
    assert!(mounted.survivors().iter().all(|files| !files[MARK_B].bytes.is_empty()));
}

//= spec/store.md#STO-33
#[test]
fn f31_no_removed_image_comes_back_without_its_mark() {
    if !room::inside("durable::f31_no_removed_image_comes_back_without_its_mark") {
        return;
    }
    let (mounted, images) = with_image();
    marker::set(&images.path(&name("a"))).unwrap();
    for files in mounted.during(|| images.remove(&name("a")).unwrap()) {
        assert!(!files.contains_key(A) || files.contains_key(MARK_A), "{:?}", files.keys());
    }
    for files in mounted.survivors() {
        assert!(!files.contains_key(A) && !files.contains_key(MARK_A), "{:?}", files.keys());
    }
}

//= spec/store.md#STO-33
#[test]
fn f31_a_mark_that_was_taken_away_stays_away() {
    if !room::inside("durable::f31_a_mark_that_was_taken_away_stays_away") {
        return;
    }
    let (mounted, images) = with_image();
    let gone = || mounted.survivors().iter().all(|files| !files.contains_key(MARK_A));
    let path = images.path(&name("a"));
    marker::set(&path).unwrap();
    assert!(mounted.survivors().iter().all(|files| files.contains_key(MARK_A)));
    assert!(images.repair(&name("a")).unwrap());
    assert!(gone());
    // A repair was killed in the middle; the next one ends what it began.
    marker::set(&path).unwrap();
    std::fs::remove_file(marker::path_of(&path)).unwrap();
    assert!(!gone());
    assert!(!images.repair(&name("a")).unwrap());
    assert!(gone());
}

/// A daemon that serves an image, and a guest of it that can flush.
fn serve(path: PathBuf) -> (Disk, Client, Guest) {
    let disk = Disk::serve(&["--blk-file", path.to_str().unwrap()]);
    let mut client = Client::new(UnixStream::connect(disk.socket()).unwrap());
    client.negotiate();
    client.send(request::SET_FEATURES, &(FEATURES | FLUSHES).to_ne_bytes());
    let guest = Guest::new();
    guest.start(&mut client);
    (disk, client, guest)
}

fn flush(guest: &mut Guest) -> u8 {
    let (before, begun) = (guest.used(), Instant::now());
    guest.ask(FLUSH, 0, 0);
    while guest.used() == before {
        assert!(begun.elapsed() < Duration::from_secs(60), "no answer within a minute");
        std::thread::sleep(Duration::from_millis(1));
    }
    guest.status()
}

//= spec/store.md#STO-34
#[test]
fn f31_the_mark_lasts_before_the_guest_hears_of_the_failed_flush() {
    if !room::inside("durable::f31_the_mark_lasts_before_the_guest_hears_of_the_failed_flush") {
        return;
    }
    let (mounted, images) = with_image();
    let (_disk, _client, mut guest) = serve(images.path(&name("a")));
    assert_eq!(flush(&mut guest), 0);
    assert!(mounted.survivors().iter().all(|files| !files.contains_key(MARK_A)));
    let memory = guest.memory.try_clone().unwrap();
    let (early, whole) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let (heard, synced) = (Arc::clone(&early), Arc::clone(&whole));
    {
        let mut disk = mounted.disk();
        disk.failing_syncs = 1;
        // The shard waits for the file system, which looks what the guest knows by now.
        disk.watcher = Some(Box::new(move |code| {
            let marks = matches!(code, opcode::CREATE | opcode::FSYNC | opcode::FSYNCDIR);
            if marks && !synced.load(Ordering::SeqCst) {
                heard.fetch_or(guest::used(&memory) > 1, Ordering::SeqCst);
            }
            synced.fetch_or(code == opcode::FSYNCDIR, Ordering::SeqCst);
        }));
    }
    assert_eq!(flush(&mut guest), IOERR);
    for files in mounted.survivors() {
        assert!(files.get(MARK_A).is_some_and(|mark| !mark.bytes.is_empty()), "{:?}", files.keys());
    }
    assert!(!early.load(Ordering::SeqCst), "the guest has heard of it before");
    assert!(whole.load(Ordering::SeqCst));
}

//= spec/store.md#STO-35
#[test]
fn what_is_served_is_known_to_be_raw_whenever_the_power_goes() {
    if !room::inside("durable::what_is_served_is_known_to_be_raw_whenever_the_power_goes") {
        return;
    }
    let mounted = Mounted::new();
    let path = mounted.dir().join("disk");
    std::fs::write(&path, bytes()).unwrap();
    let file = std::fs::File::open(&path).unwrap();
    file.sync_data().unwrap();
    std::fs::File::open(mounted.dir()).unwrap().sync_all().unwrap();
    assert!(mounted.survivors().iter().all(|files| files["/disk"].attributes.is_empty()));
    let (_disk, _client, mut guest) = serve(path);
    assert!(mounted.survivors().iter().all(|files| is_whole(files, "/disk", &bytes())));
    assert_eq!(flush(&mut guest), 0);
}
