//! Failed syncs stick.

use sluice_core::op::OpKind;
use sluice_linux::store::{Captured, EngineKind, OpenOptions, Store, marker};

use super::fuse::{Behaviour, Fuse};
use super::kit::{Guest, image, op, run, take, tmpfs, wait};
use super::room;

//= spec/store.md#STO-8
#[test]
fn f31_a_failed_sync_is_not_made_good_by_the_next() {
    if !room::inside("poison::f31_a_failed_sync_is_not_made_good_by_the_next") {
        return;
    }
    for engine in [EngineKind::Inline, EngineKind::Uring, EngineKind::Threads] {
        let fuse = Fuse::new(Behaviour { failing_syncs: 1, ..Behaviour::default() });
        let options = OpenOptions { engine: Some(engine), ..OpenOptions::default() };
        let mut store = take(&fuse.image(), options);
        let guest = Guest::new(1 << 16);
        let failed = -i64::from(libc::EIO);
        let pieces = [guest.piece(0, 4096)];
        let write = op(1, OpKind::Write, 0, 4096);
        assert_eq!(run(&mut store, &write, &pieces, &guest.mem), 4096);
        for _ in 0..3 {
            // The file system fails the first only.
            assert_eq!(run(&mut store, &op(2, OpKind::Sync, 0, 0), &[], &guest.mem), failed);
            assert_eq!(run(&mut store, &write, &pieces, &guest.mem), failed);
        }
        assert_eq!(store.counters().syncs, 3);
        let read = op(3, OpKind::Read, 0, 4096);
        assert_eq!(run(&mut store, &read, &pieces, &guest.mem), 4096, "reads go on");
    }
}

/// Runs syncs that are handed over together; says how they ended, and how many the file system saw.
fn sync_together(count: u32, failing_syncs: u32, engine: EngineKind) -> (Vec<i64>, u32) {
    let fuse = Fuse::new(Behaviour { failing_syncs, ..Behaviour::default() });
    let options = OpenOptions { engine: Some(engine), ..OpenOptions::default() };
    let mut store = take(&fuse.image(), options);
    let guest = Guest::new(1 << 16);
    let mut ended = vec![None; count as usize];
    for index in 0..count {
        let sync = op(index, OpKind::Sync, 0, 0);
        ended[index as usize] = store.submit(&sync, [].into_iter(), &guest.mem);
    }
    store.kick();
    while ended.contains(&None) {
        wait(&store);
        while let Some(reply) = store.reap() {
            assert_eq!(ended[reply.id.index as usize].replace(reply.result), None, "twice");
        }
    }
    let mut syncs = 0;
    fuse.change(|behaviour| syncs = behaviour.syncs);
    (ended.into_iter().flatten().collect(), syncs)
}

//= spec/store.md#STO-22
#[test]
fn f31_no_sync_runs_beside_one_that_fails() {
    if !room::inside("poison::f31_no_sync_runs_beside_one_that_fails") {
        return;
    }
    let failed = -i64::from(libc::EIO);
    for engine in [EngineKind::Uring, EngineKind::Threads] {
        // The file system tells only one of them.
        assert_eq!(sync_together(3, 1, engine), (vec![failed; 3], 1), "{engine}");
        assert_eq!(sync_together(1, 0, engine), (vec![0], 1), "{engine}");
        // Those that came while the first ran share the next.
        assert_eq!(sync_together(3, 0, engine), (vec![0; 3], 2), "{engine}");
    }
}

//= spec/store.md#STO-12
#[test]
fn f31_the_mark_of_poison_outlives_the_process_and_is_cleared_by_hand() {
    let dir = tmpfs();
    let path = image(dir.path(), 1 << 20);
    let mut store = take(&path, OpenOptions::default());
    assert!(!store.config().poisoned);
    store.poison().unwrap();
    store.poison().unwrap();
    assert!(store.config().poisoned);
    drop(store);
    let link = dir.path().join("link");
    std::os::unix::fs::symlink(&path, &link).unwrap();
    for path in [&path, &link] {
        let store = Store::open(path, OpenOptions::default()).unwrap();
        assert!(store.config().poisoned, "{store}");
        assert!(store.describe().contains("POISONED"));
    }
    assert!(marker::clear(&path).unwrap());
    assert!(!marker::clear(&path).unwrap());
    assert!(!Store::open(&path, OpenOptions::default()).unwrap().config().poisoned);
}

//= spec/store.md#STO-13
#[test]
fn an_image_that_changed_before_it_was_taken_is_refused() {
    let change = |what: &dyn Fn(&std::path::Path)| {
        let dir = tmpfs();
        let path = image(dir.path(), 1 << 20);
        let mut store = Store::open(&path, OpenOptions::default()).unwrap();
        what(&path);
        match store.capture() {
            Captured::Failed(error) => error.to_string(),
            other => panic!("{other:?}"),
        }
    };
    let said = change(&|path| {
        let file = std::fs::File::options().write(true).open(path).unwrap();
        file.set_len(1 << 19).unwrap();
    });
    assert!(said.contains("has 524288 now"), "{said}");
    let said = change(&|path| {
        std::fs::rename(path, path.with_extension("old")).unwrap();
        std::fs::copy(path.with_extension("old"), path).unwrap();
    });
    assert!(said.contains("replaced"), "{said}");
    assert!(change(&|path| std::fs::remove_file(path).unwrap()).contains("gone"));
    assert!(change(&|path| marker::set(path).unwrap()).contains("poisoned"));
}
