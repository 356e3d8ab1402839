//! What others do to the file of an image while it is served.

use std::path::{Path, PathBuf};

use sluice_core::op::OpKind;
use sluice_linux::store::{Captured, Change, EngineKind, OpenOptions, Resized, Store, Watch};

use super::kit::{Guest, disk, image, op, run, take, tmpfs};

const MIB: u64 = 1 << 20;

fn set_len(path: &Path, bytes: u64) {
    std::fs::File::options()
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)
        .unwrap()
        .set_len(bytes)
        .unwrap();
}

fn changes(watch: &Watch) -> Vec<Change> {
    watch.look().collect()
}

fn served(dir: &Path) -> (PathBuf, Store, Watch) {
    let path = image(dir, MIB);
    let store = Store::open(&path, OpenOptions::default()).unwrap();
    let watch = store.watch().unwrap().unwrap();
    (path, store, watch)
}

//= spec/store.md#STO-21
#[test]
fn its_size_is_that_of_the_open_file() {
    let dir = tmpfs();
    let (path, _store, watch) = served(dir.path());
    assert_eq!(changes(&watch), []);
    set_len(&path, 2 * MIB);
    assert_eq!(changes(&watch), [Change::Size { from: MIB, to: 2 * MIB }]);
    assert_eq!(changes(&watch), [], "each thing once");
    set_len(&path, MIB / 2);
    let [cut] = &changes(&watch)[..] else { panic!("one change") };
    assert_eq!(*cut, Change::Size { from: 2 * MIB, to: MIB / 2 });
    assert!(cut.is_grave() && cut.to_string().contains("--shrink"), "{cut}");
    assert!(Store::null(MIB).watch().unwrap().is_none());
}

//= spec/store.md#STO-21
//= spec/store.md#STO-25
#[test]
fn a_file_put_in_its_place_is_not_what_is_served() {
    let dir = tmpfs();
    let (path, _store, watch) = served(dir.path());
    let other = dir.path().join("other");
    set_len(&other, 4 * MIB);
    std::fs::rename(&other, &path).unwrap();
    let [parted] = &changes(&watch)[..] else { panic!("no size of another file") };
    let Change::Parted { now: None, rescue, .. } = parted else { panic!("{parted:?}") };
    assert_eq!(std::fs::metadata(rescue).unwrap().len(), MIB, "it can be had back there");
    assert!(parted.is_grave() && parted.to_string().contains("cp --sparse=always"), "{parted}");
    set_len(&path, 8 * MIB);
    assert_eq!(changes(&watch), []);
}

//= spec/store.md#STO-25
#[test]
fn a_file_that_is_moved_or_removed_is_said_once_and_when_it_is_back() {
    let dir = tmpfs();
    let (path, _store, watch) = served(dir.path());
    let elsewhere = dir.path().join("elsewhere.raw");
    for _ in 0..2 {
        std::fs::rename(&path, &elsewhere).unwrap();
        let now = Some(elsewhere.clone());
        let [parted] = &changes(&watch)[..] else { panic!("one change") };
        assert!(matches!(parted, Change::Parted { now: found, .. } if *found == now), "{parted:?}");
        assert!(parted.to_string().contains("elsewhere.raw"), "{parted}");
        assert_eq!(changes(&watch), []);
        std::fs::rename(&elsewhere, &path).unwrap();
        assert_eq!(changes(&watch), [Change::Back(path.clone())]);
    }
    std::fs::remove_file(&path).unwrap();
    assert!(matches!(changes(&watch)[..], [Change::Parted { now: None, .. }]));
}

/// A guest's store of 4 MiB that has written at 2 MiB with this engine, and been looked at.
fn written(dir: &Path, engine: EngineKind, guest: &Guest) -> (PathBuf, Store, Watch) {
    let path = image(dir, 4 * MIB);
    let mut store = take(&path, OpenOptions { engine: Some(engine), ..OpenOptions::default() });
    let watch = store.watch().unwrap().unwrap();
    assert_eq!(write_at(&mut store, 2 * MIB, guest), 4096);
    assert_eq!(changes(&watch), []);
    (path, store, watch)
}

fn write_at(store: &mut Store, offset: u64, guest: &Guest) -> i64 {
    run(store, &op(1, OpKind::Write, offset, 4096), &[guest.piece(0, 4096)], &guest.mem)
}

fn len(path: &Path) -> u64 {
    std::fs::metadata(path).unwrap().len()
}

/// What the daemon does once a second.
fn look(store: &mut Store, watch: &Watch) -> Vec<Resized> {
    let resized = |change| match change {
        Change::Size { to, .. } => Some(store.resized(to)),
        _ => None,
    };
    watch.look().filter_map(resized).collect()
}

const ENGINES: [EngineKind; 3] = [EngineKind::Inline, EngineKind::Threads, EngineKind::Uring];

//= spec/store.md#STO-29
#[test]
fn a_file_that_was_cut_does_not_grow_by_its_guests_writes() {
    let guest = Guest::new(MIB);
    for engine in ENGINES {
        for cut in [MIB, 2 * MIB + 512, 1000, 0] {
            let dir = disk();
            let (path, mut store, watch) = written(dir.path(), engine, &guest);
            set_len(&path, cut);
            assert_eq!(write_at(&mut store, 2 * MIB, &guest), 4096);
            assert_eq!(len(&path), 2 * MIB + 4096, "nothing keeps a write from that");
            assert_eq!(look(&mut store, &watch), [Resized::Undone], "{engine} {cut}");
            assert_eq!(len(&path), 4 * MIB);
            assert_eq!(changes(&watch), [], "that is no growth");
            assert_eq!(write_at(&mut store, 3 * MIB, &guest), 4096);
        }
    }
}

//= spec/store.md#STO-29
#[test]
fn a_write_between_the_look_and_its_news_is_thought_of() {
    let guest = Guest::new(MIB);
    let dir = disk();
    let (path, mut store, watch) = written(dir.path(), EngineKind::Uring, &guest);
    changes(&watch);
    set_len(&path, MIB);
    let [Change::Size { to, .. }] = changes(&watch)[..] else { panic!("cut") };
    assert_eq!(write_at(&mut store, 2 * MIB, &guest), 4096);
    assert_eq!(store.resized(to), Resized::Undone);
    assert_eq!(len(&path), 4 * MIB);
}

//= spec/store.md#STO-29
#[test]
fn a_size_that_is_none_for_an_image_is_undone_without_writes_too() {
    let dir = disk();
    let guest = Guest::new(MIB);
    for none in [0, 1000] {
        let (path, mut store, watch) = written(dir.path(), EngineKind::Uring, &guest);
        changes(&watch);
        set_len(&path, none);
        assert_eq!((look(&mut store, &watch), len(&path)), (vec![Resized::Undone], 4 * MIB));
        assert_eq!(changes(&watch), []);
    }
}

/// Who is not there to write has no say, as at the far end of a migration.
//= spec/store.md#STO-29
#[test]
fn an_image_that_is_not_taken_is_left_as_it_is() {
    let dir = tmpfs();
    let (path, mut store, watch) = served(dir.path());
    set_len(&path, 0);
    assert_eq!((look(&mut store, &watch), len(&path)), (vec![Resized::Kept], 0));
    assert!(matches!(store.capture(), Captured::Failed(_)), "it is not what was opened");
    assert_eq!(len(&path), 0);
}

//= spec/store.md#STO-21
//= spec/store.md#STO-29
#[test]
fn sizes_that_somebody_has_chosen_are_followed() {
    let guest = Guest::new(MIB);
    for engine in ENGINES {
        let dir = disk();
        let (path, mut store, watch) = written(dir.path(), engine, &guest);
        assert_eq!(changes(&watch), []);
        set_len(&path, MIB);
        assert_eq!(look(&mut store, &watch), [Resized::Followed], "{engine}");
        assert_eq!(write_at(&mut store, 2 * MIB, &guest), -i64::from(libc::EINVAL));
        assert_eq!((len(&path), store.config().capacity_sectors), (MIB, MIB / 512));
        // Writes before the cut say nothing of it.
        set_len(&path, 8 * MIB);
        assert_eq!(look(&mut store, &watch), [Resized::Followed]);
        assert_eq!(write_at(&mut store, MIB, &guest), 4096);
        set_len(&path, 6 * MIB);
        assert_eq!(look(&mut store, &watch), [Resized::Followed]);
        assert_eq!((len(&path), store.config().capacity_sectors), (6 * MIB, 6 * MIB / 512));
        assert_eq!(write_at(&mut store, 6 * MIB - 4096, &guest), 4096);
    }
}
