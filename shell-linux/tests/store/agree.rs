//! All engines do the same to an image as the same operations do to a list of bytes.

use proptest::prelude::*;
use proptest::test_runner::{FileFailurePersistence, TestRunner};
use sluice_core::op::OpKind;
use sluice_linux::store::{EngineKind, OpenOptions, Store};
use tempfile::TempDir;

use super::fuse::{Behaviour, Fuse};
use super::kit::{Guest, disk, image, op, run, take, tmpfs, wait};
use super::room;

const BYTES: u64 = 256 << 10;
const ENGINES: [EngineKind; 3] = [EngineKind::Inline, EngineKind::Uring, EngineKind::Threads];

#[derive(Clone, Debug)]
struct Action {
    kind: OpKind,
    sector: u64,
    sectors: u64,
    /// Where the payload is cut in two, and how far its memory is off.
    cut: u64,
    odd: u64,
    fill: u8,
}

fn action() -> impl Strategy<Value = Action> {
    let kind = prop_oneof![
        4 => Just(OpKind::Write),
        3 => Just(OpKind::Read),
        1 => Just(OpKind::Sync),
        1 => Just(OpKind::Discard),
        1 => Just(OpKind::WriteZeroes { unmap: false }),
        1 => Just(OpKind::WriteZeroes { unmap: true }),
    ];
    let odd = prop_oneof![Just(0), Just(1), Just(4), Just(512), 0..4096_u64];
    let place = (0..BYTES / 512, 1..200_u64, 0..102_400_u64);
    (kind, place, odd, any::<u8>()).prop_map(|(kind, (sector, sectors, cut), odd, fill)| {
        let sectors = sectors.min(BYTES / 512 - sector);
        Action { kind, sector, sectors, cut: cut % (sectors * 512), odd, fill }
    })
}

/// Does an action to an image and to the model; reads have to agree.
fn apply(store: &mut Store, guest: &Guest, model: &mut [u8], action: &Action) {
    let Action { kind, sector, sectors, cut, odd, fill } = *action;
    if kind == OpKind::Discard && !store.config().discard {
        return;
    }
    let (offset, len) = (sector * 512, sectors * 512);
    let range = usize::try_from(offset).unwrap()..usize::try_from(offset + len).unwrap();
    // Two pieces, far apart and in reverse order.
    let (front, back) = (400_000 + odd, 100_000 + odd);
    let mut pieces = Vec::new();
    for (at, len) in [(front, cut), (back, len - cut)] {
        if len > 0 && matches!(kind, OpKind::Read | OpKind::Write) {
            pieces.push(guest.piece(at, u32::try_from(len).unwrap()));
        }
    }
    let cut = usize::try_from(cut).unwrap();
    match kind {
        OpKind::Write => {
            for (byte, at) in model[range.clone()].iter_mut().zip(0_usize..) {
                *byte = fill ^ at.to_le_bytes()[0] ^ at.to_le_bytes()[1];
            }
            guest.put(front, &model[range.clone()][..cut]);
            guest.put(back, &model[range.clone()][cut..]);
        }
        OpKind::Read | OpKind::Sync => {}
        OpKind::Discard | OpKind::WriteZeroes { .. } => model[range.clone()].fill(0),
    }
    let op = match kind {
        OpKind::Sync => op(3, kind, 0, 0),
        _ => op(3, kind, offset, len),
    };
    let moved = if pieces.is_empty() { 0 } else { i64::try_from(len).unwrap() };
    let result = run(store, &op, &pieces, &guest.mem);
    assert_eq!(result, moved, "{action:?} on {store}");
    if kind == OpKind::Read {
        assert_eq!(guest.get(front, cut), model[range.clone()][..cut], "{action:?} on {store}");
        assert_eq!(
            guest.get(back, range.len() - cut),
            model[range.clone()][cut..],
            "{action:?} on {store}"
        );
    }
}

fn check(stores: &mut [Store], cases: u32) {
    let persistence = FileFailurePersistence::Direct(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../proptest-regressions/store.txt"
    ));
    let config = ProptestConfig {
        cases,
        failure_persistence: Some(Box::new(persistence)),
        ..ProptestConfig::default()
    };
    let guest = Guest::new(1 << 20);
    let actions = proptest::collection::vec(action(), 1..40);
    // Images live on from case to case; zeroing them is one more operation that has to work.
    let clean = Action {
        kind: OpKind::WriteZeroes { unmap: true },
        sector: 0,
        sectors: BYTES / 512,
        cut: 0,
        odd: 0,
        fill: 0,
    };
    let stores = std::cell::RefCell::new(stores);
    TestRunner::new(config)
        .run(&actions, |actions| {
            for store in stores.borrow_mut().iter_mut() {
                let mut model = vec![0; usize::try_from(BYTES).unwrap()];
                apply(store, &guest, &mut model, &clean);
                for action in &actions {
                    apply(store, &guest, &mut model, action);
                }
            }
            Ok(())
        })
        .unwrap();
}

/// Every engine, direct and not, on files of a directory.
fn all_engines(dir: &TempDir) -> Vec<Store> {
    let mut stores = Vec::new();
    for engine in ENGINES {
        for direct in [false, true] {
            let path = dir.path().join(format!("{engine}-{direct}.raw"));
            std::fs::File::create(&path).unwrap().set_len(BYTES).unwrap();
            let options = OpenOptions { engine: Some(engine), direct, ..OpenOptions::default() };
            stores.push(take(&path, options));
        }
    }
    stores
}

//= spec/store.md#STO-2
//= spec/store.md#STO-5
//= spec/store.md#STO-9
#[test]
fn engines_agree() {
    let (disk, memory) = (disk(), tmpfs());
    let mut stores = all_engines(&disk);
    stores.extend(all_engines(&memory));
    stores.push(Store::memory(BYTES).unwrap());
    check(&mut stores, 24);
}

//= spec/store.md#STO-10
#[test]
fn a_file_system_without_holes_gets_zeroes_written() {
    if !room::inside("agree::a_file_system_without_holes_gets_zeroes_written") {
        return;
    }
    let dir = disk();
    room::mount_at(dir.path(), "ramfs", "");
    let mut stores = all_engines(&dir);
    assert!(stores.iter().all(|store| !store.config().discard && store.config().write_zeroes));
    check(&mut stores, 20);
}

/// A device may stop in the middle of a block; what follows begins at a block again.
//= spec/store.md#STO-7
#[test]
fn direct_transfers_that_end_inside_a_block_go_on_at_its_start() {
    if !room::inside("agree::direct_transfers_that_end_inside_a_block_go_on_at_its_start") {
        return;
    }
    for engine in [EngineKind::Inline, EngineKind::Threads] {
        let behaviour =
            Behaviour { short: Some(4096 + 700), block: Some(4096), ..Behaviour::default() };
        let fuse = Fuse::new(behaviour);
        let engine = Some(engine);
        let options = OpenOptions { engine, block_bytes: 4096, ..OpenOptions::default() };
        let mut store = take(&fuse.image(), options);
        assert!(store.describe().contains("direct"), "{store}");
        let guest = Guest::new(1 << 20);
        let bytes: Vec<u8> = (0..5 * 4096_u32).map(|i| (i / 7).to_le_bytes()[0]).collect();
        let len = bytes.len();
        // From and to memory as it is, and by the detour of odd addresses.
        for (from, into) in [(0, 1 << 17), (3, (1 << 17) + 5)] {
            guest.put(from, &bytes);
            let pieces = |at| [guest.piece(at, u32::try_from(len).unwrap())];
            let all = |kind| op(3, kind, 8192, len as u64);
            let moved = i64::try_from(len).unwrap();
            assert_eq!(run(&mut store, &all(OpKind::Write), &pieces(from), &guest.mem), moved);
            assert_eq!(run(&mut store, &all(OpKind::Read), &pieces(into), &guest.mem), moved);
            assert!(guest.get(into, len) == bytes, "{store}");
        }
    }
}

//= spec/store.md#STO-7
#[test]
fn transfers_cut_short_go_on() {
    if !room::inside("agree::transfers_cut_short_go_on") {
        return;
    }
    // Not io_uring: it goes on by itself here, from a wrong place, and says that all is well.
    for engine in [EngineKind::Inline, EngineKind::Threads] {
        let fuse = Fuse::new(Behaviour { short: Some(700), ..Behaviour::default() });
        let options = OpenOptions { engine: Some(engine), ..OpenOptions::default() };
        check(&mut [take(&fuse.image(), options)], 5);
        let store = Store::open(&fuse.image(), OpenOptions::default()).unwrap();
        assert!(store.describe().contains("engine threads"), "{store}");
    }
}

//= spec/store.md#STO-7
#[test]
fn what_is_behind_the_end_reads_as_zeroes() {
    for engine in ENGINES {
        for direct in [false, true] {
            let dir = disk();
            let path = image(dir.path(), BYTES);
            let options = OpenOptions { engine: Some(engine), direct, ..OpenOptions::default() };
            let mut store = take(&path, options);
            std::fs::File::options().write(true).open(&path).unwrap().set_len(700).unwrap();
            let guest = Guest::new(1 << 16);
            for at in [0, 8192] {
                guest.put(0, &[0xff; 9000]);
                // Once as direct I/O likes it and once not.
                let pieces = [guest.piece(at, 4096)];
                let result = run(&mut store, &op(1, OpKind::Read, 0, 4096), &pieces, &guest.mem);
                assert_eq!(result, 4096, "{store}");
                assert_eq!(guest.get(at, 4096), [0; 4096], "{store}");
                let pieces = [guest.piece(at + 1, 4096)];
                let result = run(&mut store, &op(1, OpKind::Read, 8192, 4096), &pieces, &guest.mem);
                assert_eq!(result, 4096, "{store}");
                assert_eq!(guest.get(at + 1, 4096), [0; 4096], "{store}");
            }
        }
    }
}

/// More operations than any queue of an engine holds, half of them through aligned memory.
//= spec/store.md#STO-6
#[test]
fn many_operations_at_once_all_end() {
    const COUNT: u32 = 1500;
    for engine in [EngineKind::Uring, EngineKind::Threads] {
        let dir = disk();
        let path = image(dir.path(), u64::from(COUNT) * 512);
        let options = OpenOptions { engine: Some(engine), ..OpenOptions::default() };
        let mut store = take(&path, options);
        let guest = Guest::new(2 << 20);
        for kind in [OpKind::Write, OpKind::Read] {
            let mut ended = vec![false; COUNT as usize];
            for index in 0..COUNT {
                let at = u64::from(index) * 1024 + u64::from(index % 2) * 3;
                let bytes = if kind == OpKind::Write { index.to_le_bytes() } else { [0; 4] };
                guest.put(at, &bytes);
                let op = op(index, kind, u64::from(index) * 512, 512);
                let pieces = [guest.piece(at, 512)].into_iter();
                assert_eq!(store.submit(&op, pieces, &guest.mem), None);
            }
            store.kick();
            let mut left = COUNT;
            while left > 0 {
                let Some(reply) = store.reap() else {
                    wait(&store);
                    continue;
                };
                assert_eq!(reply.result, 512);
                assert!(!core::mem::replace(&mut ended[reply.id.index as usize], true));
                left -= 1;
            }
            assert_eq!(store.reap(), None);
        }
        for index in 0..COUNT {
            let at = u64::from(index) * 1024 + u64::from(index % 2) * 3;
            assert_eq!(guest.get(at, 4), index.to_le_bytes(), "{engine}");
        }
    }
}

/// Giving a store up with operations under way waits for them: their memory goes next.
//= spec/store.md#STO-15
#[test]
fn dropping_a_store_waits_for_what_is_under_way() {
    for engine in [EngineKind::Uring, EngineKind::Threads] {
        let dir = disk();
        let path = image(dir.path(), 1 << 20);
        let options = OpenOptions { engine: Some(engine), ..OpenOptions::default() };
        let mut store = take(&path, options);
        let guest = Guest::new(1 << 20);
        guest.put(0, &[0x5a; 4096]);
        for index in 0..256 {
            let op = op(index, OpKind::Write, u64::from(index) * 4096, 4096);
            assert_eq!(store.submit(&op, [guest.piece(0, 4096)].into_iter(), &guest.mem), None);
        }
        drop(store);
        assert!(std::fs::read(&path).unwrap().iter().all(|&byte| byte == 0x5a));
    }
}
