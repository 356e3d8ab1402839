//! A file system without space.

use sluice_core::op::OpKind;
use sluice_linux::store::{EngineKind, OpenOptions};

use super::kit::{Guest, image, op, run, take, tmpfs};
use super::room;

//= spec/store.md#STO-14
#[test]
fn f39_no_space_is_an_error_that_is_counted_and_ends_with_the_cause() {
    if !room::inside("full::f39_no_space_is_an_error_that_is_counted_and_ends_with_the_cause") {
        return;
    }
    for engine in [EngineKind::Inline, EngineKind::Uring, EngineKind::Threads] {
        let dir = tmpfs();
        room::mount_at(dir.path(), "tmpfs", "size=256k");
        let path = image(dir.path(), 1 << 20);
        let options = OpenOptions { engine: Some(engine), ..OpenOptions::default() };
        let mut store = take(&path, options);
        let guest = Guest::new(1 << 20);
        guest.put(0, &[7; 65536]);
        let mut write = |at: u64| {
            let op = op(1, OpKind::Write, at * 65536, 65536);
            let result = run(&mut store, &op, &[guest.piece(0, 65536)], &guest.mem);
            (result, store.counters().no_space)
        };
        let results: Vec<_> = (0..6).map(&mut write).collect();
        let full = -i64::from(libc::ENOSPC);
        assert_eq!(results[0], (65536, 0));
        assert_eq!(results[4], (full, 1), "{results:?}");
        assert_eq!(results[5], (full, 2), "{results:?}");
        let discard = op(2, OpKind::Discard, 0, 131_072);
        assert_eq!(run(&mut store, &discard, &[], &guest.mem), 0);
        let again = op(1, OpKind::Write, 5 * 65536, 65536);
        let result = run(&mut store, &again, &[guest.piece(0, 65536)], &guest.mem);
        assert_eq!(result, 65536, "space is back, so writes are");
    }
}
