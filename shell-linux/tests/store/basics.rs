//! What every kind of image does.

use sluice_core::op::{OpKind, Piece};
use sluice_linux::store::{OpenOptions, Store};

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
