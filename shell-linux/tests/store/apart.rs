//! Requests that overlap, where the page cache is in between.

use std::collections::BTreeMap;

use sluice_core::op::OpKind;
use sluice_linux::store::{EngineKind, OpenOptions, Store};

use super::fuse::{Behaviour, Fuse};
use super::kit::{Guest, disk, image, op, take, wait};
use super::room;

const ENGINES: [EngineKind; 2] = [EngineKind::Uring, EngineKind::Threads];

fn cached(engine: EngineKind) -> OpenOptions {
    OpenOptions { engine: Some(engine), direct: false, ..OpenOptions::default() }
}

/// Reaps until so many have ended; they are added in their order.
fn reap(store: &mut Store, ended: &mut Vec<u32>, count: usize) {
    while ended.len() < count {
        match store.reap() {
            Some(reply) => {
                assert!(reply.result > 0, "{reply:?}");
                ended.push(reply.id.index);
            }
            None => wait(store),
        }
    }
}

/// The file system holds a write back. What overlaps it is not begun, the rest is.
//= spec/store.md#STO-27
#[test]
fn a_read_waits_for_the_write_that_it_overlaps() {
    if !room::inside("apart::a_read_waits_for_the_write_that_it_overlaps") {
        return;
    }
    for engine in ENGINES {
        let fuse = Fuse::new(Behaviour { hold_writes: true, ..Behaviour::default() });
        let mut store = take(&fuse.image(), cached(engine));
        let guest = Guest::new(1 << 20);
        let submit = |store: &mut Store, index, kind, offset| {
            let pieces = [guest.piece(u64::from(index) * 8192, 8192)];
            let op = op(index, kind, offset, 8192);
            assert_eq!(store.submit(&op, pieces.into_iter(), &guest.mem), None);
            store.kick();
        };
        submit(&mut store, 0, OpKind::Write, 0);
        fuse.wait_for_write();
        submit(&mut store, 1, OpKind::Read, 7680);
        for index in 2..34 {
            submit(&mut store, index, OpKind::Read, 65_536 + u64::from(index) * 512);
        }
        let mut ended = Vec::new();
        reap(&mut store, &mut ended, 32);
        fuse.change(|behaviour| behaviour.hold_writes = false);
        assert!(ended.iter().all(|&index| index > 1), "{engine}: {ended:?}");
        reap(&mut store, &mut ended, 34);
        assert_eq!(ended[32..], [0, 1], "{engine}");
    }
}

/// Writes of one value over all of a range, and reads of it beside them.
//= spec/store.md#STO-27
#[test]
fn a_sector_is_old_or_new() {
    const BYTES: u32 = 128 << 10;
    for engine in ENGINES {
        let dir = disk();
        let mut store = take(&image(dir.path(), 1 << 20), cached(engine));
        let guest = Guest::new(1 << 20);
        for round in 0..200_u32 {
            let value = round.to_le_bytes()[0];
            guest.put(0, &vec![value; BYTES as usize]);
            for (index, kind) in [(0, OpKind::Write), (1, OpKind::Read), (2, OpKind::Read)] {
                let pieces = [guest.piece(u64::from(index) * 256 * 1024, BYTES)];
                let op = op(index, kind, 0, BYTES.into());
                assert_eq!(store.submit(&op, pieces.into_iter(), &guest.mem), None);
            }
            store.kick();
            reap(&mut store, &mut Vec::new(), 3);
            for at in [256 << 10, 512 << 10] {
                let bytes = guest.get(at, BYTES as usize);
                let torn = bytes.chunks(512).find(|sector| sector.iter().any(|b| *b != sector[0]));
                assert_eq!(torn, None, "{engine}, round {round}");
            }
        }
    }
}

/// However many wait for one another, all of them end.
//= spec/store.md#STO-27
#[test]
fn a_crowd_at_one_place_is_served() {
    for engine in ENGINES {
        let dir = disk();
        let mut store = take(&image(dir.path(), 1 << 20), cached(engine));
        let guest = Guest::new(1 << 20);
        let mut last = BTreeMap::new();
        for index in 0..1500_u32 {
            let sector = u64::from(index % 7) * 512;
            let kind = if index % 3 == 0 { OpKind::Read } else { OpKind::Write };
            let at = u64::from(index) * 512;
            guest.put(at, &index.to_le_bytes());
            let pieces = [guest.piece(at, 512)];
            let op = op(index, kind, sector, 512);
            assert_eq!(store.submit(&op, pieces.into_iter(), &guest.mem), None);
            if kind == OpKind::Write {
                last.insert(sector, index);
            }
        }
        store.kick();
        reap(&mut store, &mut Vec::new(), 1500);
        assert_eq!(store.reap(), None);
        let file = std::fs::read(dir.path().join("disk.raw")).unwrap();
        for (sector, index) in last {
            let at = usize::try_from(sector).unwrap();
            assert_eq!(file[at..at + 4], index.to_le_bytes(), "{engine}: the last write stays");
        }
    }
}
