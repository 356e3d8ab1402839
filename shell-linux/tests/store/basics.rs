//! What every kind of image does.

use sluice_core::op::{OpKind, Piece};
use sluice_linux::store::{OpenOptions, Resized, Store};

use super::kit::{Guest, disk, image, op, run, take, tmpfs};

const MIB: u64 = 1 << 20;

fn stores() -> Vec<(Store, Option<tempfile::TempDir>)> {
    let mut stores = vec![(Store::memory(MIB).unwrap(), None)];
    for dir in [tmpfs(), disk()] {
        let path = image(dir.path(), MIB);
        stores.push((take(&path, OpenOptions::default()), Some(dir)));
    }
    stores
}

//= spec/store.md#STO-2
//= spec/store.md#STO-3
#[test]
fn what_is_written_is_read_from_wherever_it_lands() {
    for (mut store, _dir) in stores() {
        let guest = Guest::new(MIB);
        let mem = &guest.mem;
        let bytes: Vec<u8> = (0..8192_u32).map(|i| (i * 7 + i / 256).to_le_bytes()[0]).collect();
        guest.put(4096, &bytes);
        let pieces = [guest.piece(4096, 512), guest.piece(4608, 7680)];
        assert_eq!(run(&mut store, &op(1, OpKind::Write, 512, 8192), &pieces, mem), 8192);
        assert_eq!(run(&mut store, &op(2, OpKind::Sync, 0, 0), &[], mem), 0);
        // Segments that no direct I/O takes: odd addresses, odd lengths.
        let pieces = [guest.piece(100_001, 1), guest.piece(200_003, 8191)];
        assert_eq!(run(&mut store, &op(3, OpKind::Read, 512, 8192), &pieces, mem), 8192, "{store}");
        assert_eq!(guest.get(100_001, 1), bytes[..1], "{store}");
        assert_eq!(guest.get(200_003, 8191), bytes[1..], "{store}");
        let pieces = [Piece::Skip(8192)];
        assert_eq!(run(&mut store, &op(4, OpKind::Read, 512, 8192), &pieces, mem), 8192);
        assert!(run(&mut store, &op(5, OpKind::Write, 512, 8192), &pieces, mem) < 0, "{store}");
    }
}

//= spec/store.md#STO-4
#[test]
fn b39_memory_that_has_vanished_is_an_error_and_nothing_worse() {
    for dir in [tmpfs(), disk()] {
        let path = image(dir.path(), MIB);
        let mut store = take(&path, OpenOptions::default());
        let guest = Guest::new(MIB);
        rustix::fs::ftruncate(&guest.memfd, 0).unwrap();
        for (kind, at) in [OpKind::Read, OpKind::Write].into_iter().zip([0, 1]) {
            for piece in [guest.piece(4096, 4096), guest.piece(4097, 4096)] {
                let result = run(&mut store, &op(at, kind, 0, 4096), &[piece], &guest.mem);
                assert_eq!(result, -i64::from(libc::EFAULT), "{kind:?} {piece:?} {store}");
            }
        }
        let outside = guest.piece(MIB, 4096);
        let result = run(&mut store, &op(3, OpKind::Read, 0, 4096), &[outside], &guest.mem);
        assert_eq!(result, -i64::from(libc::EFAULT));
    }
}

//= spec/store.md#STO-1
#[test]
fn the_null_image_moves_nothing() {
    let mut store = Store::null(MIB);
    let guest = Guest::new(MIB);
    guest.put(0, &[9; 4096]);
    let pieces = [guest.piece(0, 4096)];
    assert_eq!(run(&mut store, &op(1, OpKind::Read, 0, 4096), &pieces, &guest.mem), 4096);
    assert_eq!(guest.get(0, 4096), [9; 4096]);
    assert_eq!(run(&mut store, &op(1, OpKind::Sync, 0, 0), &[], &guest.mem), 0);
    assert_eq!(store.config().capacity_sectors, MIB / 512);
}

//= spec/store.md#STO-3
#[test]
fn what_is_no_image_is_refused_with_a_reason() {
    let dir = tmpfs();
    let say = |path: &std::path::Path, options| match Store::open(path, options) {
        Ok(store) => panic!("{store}"),
        Err(error) => format!("{error:#}"),
    };
    let plain = OpenOptions::default();
    assert!(say(&dir.path().join("nothing"), plain).contains("No such file"));
    assert!(say(dir.path(), plain).contains("cannot open"));
    assert!(say(std::path::Path::new("/dev/null"), plain).contains("no block device"));
    for bytes in [0, 511, 513] {
        let said = say(&image(dir.path(), bytes), plain);
        assert!(said.contains("multiple of 512"), "{said}");
    }
    let path = image(dir.path(), 4096 + 512);
    let blocks = OpenOptions { block_bytes: 4096, ..plain };
    assert!(say(&path, blocks).contains("logical block"));
    assert!(say(&path, OpenOptions { block_bytes: 1000, ..plain }).contains("512 or 4096"));
    assert!(Store::memory(0).is_err() && Store::memory(1000).is_err());
}

//= spec/store.md#STO-4
#[test]
fn operations_that_the_image_does_not_allow_fail() {
    let dir = tmpfs();
    let path = image(dir.path(), MIB);
    let guest = Guest::new(2 * MIB);
    let error = |errno: i32| -i64::from(errno);
    let mut store = take(&path, OpenOptions { read_only: true, ..OpenOptions::default() });
    assert!(store.config().read_only && !store.config().discard && !store.config().write_zeroes);
    let pieces = [guest.piece(0, 4096)];
    let mem = &guest.mem;
    let write = op(1, OpKind::Write, 0, 4096);
    assert_eq!(run(&mut store, &write, &pieces, mem), error(libc::EROFS));
    assert_eq!(run(&mut store, &op(1, OpKind::Discard, 0, 512), &[], mem), error(libc::EROFS));
    assert_eq!(run(&mut store, &op(1, OpKind::Read, 0, 4096), &pieces, mem), 4096);
    assert_eq!(run(&mut store, &op(1, OpKind::Sync, 0, 0), &[], mem), 0);
    for (offset, len) in [(MIB, 4096), (MIB - 512, 4096), (u64::MAX - 511, 4096)] {
        let read = op(1, OpKind::Read, offset, len);
        assert_eq!(run(&mut store, &read, &pieces, mem), error(libc::EINVAL));
    }
    // Pieces that are not as long as the operation says.
    let read = op(1, OpKind::Read, 0, 8192);
    assert_eq!(run(&mut store, &read, &pieces, mem), error(libc::EINVAL));
}

//= spec/store.md#STO-6
#[test]
fn the_engine_follows_the_file_system() {
    let (memory, disk) = (tmpfs(), disk());
    let said = take(&image(memory.path(), MIB), OpenOptions::default()).describe();
    assert!(said.contains("engine inline, in memory"), "{said}");
    let said = take(&image(disk.path(), MIB), OpenOptions::default()).describe();
    assert!(!said.contains("inline"), "{said}");
}

//= spec/store.md#STO-21
#[test]
fn a_file_that_grows_is_used_to_its_end() {
    let dir = tmpfs();
    let path = image(dir.path(), MIB);
    let mut store = take(&path, OpenOptions::default());
    let guest = Guest::new(MIB);
    let pieces = [guest.piece(0, 4096)];
    let write = op(1, OpKind::Write, MIB, 4096);
    assert!(run(&mut store, &write, &pieces, &guest.mem) < 0, "behind the end");
    std::fs::File::options().write(true).open(&path).unwrap().set_len(2 * MIB).unwrap();
    for none in [0, 2 * MIB + 1] {
        assert_ne!(store.resized(none), Resized::Followed);
    }
    assert_eq!(store.resized(2 * MIB), Resized::Followed);
    assert_eq!(store.config().capacity_sectors, 2 * MIB / 512);
    assert_eq!(run(&mut store, &write, &pieces, &guest.mem), 4096);
    assert_eq!(Store::null(MIB).resized(2 * MIB), Resized::Kept, "there is no file");
}
