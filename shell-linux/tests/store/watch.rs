//! What others do to the file of an image while it is served.

use std::path::{Path, PathBuf};

use sluice_linux::store::{Change, OpenOptions, Store, Watch};

use super::kit::{image, tmpfs};

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
