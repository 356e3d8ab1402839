//! The area of a packed queue by itself, with a daemon that is killed at every store of it and
//! of its recovery. The ring is played by its flags alone.

use sluice_core::inflight::packed::{PackedInflight, Place, Saved, packed_bytes};
use sluice_core::inflight::{InflightFault, PackedState, resume_packed};
use sluice_core::memory::{RegionId, SharedMemory};
use sluice_core::virtqueue::QueueFault;
use sluice_sim::crash::{Choices, Life, Mortal};
use sluice_sim::memory::FlatMemory;
use zerocopy::byteorder::little_endian::{U16, U32, U64};

const RING: RegionId = RegionId(0);
const AREA: RegionId = RegionId(1);
const SIZE: u16 = 5;
/// Descriptors of the chains that the driver makes available one after the other, by buffer ids
/// that come again.
const CHAINS: [u16; 5] = [2, 1, 2, 1, 3];

fn memory() -> FlatMemory {
    let mem = FlatMemory::new(&[16 * usize::from(SIZE), bytes()]);
    mem.fill(AREA, 0, &vec![0; bytes()]);
    mem.fill(RING, 0, &[0; 16 * SIZE as usize]);
    mem
}

fn bytes() -> usize {
    usize::try_from(packed_bytes(SIZE)).expect("small")
}

const START: Place = Place { index: 0, wrap: true };

fn state() -> PackedState {
    PackedState { desc: (RING, 0), size: SIZE, base: (START, START) }
}

const fn flags_at(place: Place) -> u64 {
    16 * place.index as u64 + 14
}

/// A descriptor of a chain, told from all others by its address.
fn saved(chain: usize, index: u16) -> Saved {
    let (id, address) = (id(chain), 100 * chain as u64 + u64::from(index));
    Saved { id: U16::new(id), flags: U16::ZERO, len: U32::new(9), addr: U64::new(address) }
}

fn id(chain: usize) -> u16 {
    u16::try_from(chain % usize::from(SIZE)).expect("small")
}

/// What happened in the world, whoever was killed.
#[derive(Clone, Debug, Default)]
struct Truth {
    /// Chains that were made available, carried out, and given back.
    offered: usize,
    sent: Vec<usize>,
    given_back: Vec<usize>,
    /// How many of these the driver has seen, and where it looks for the next.
    came: usize,
    looks: Option<Place>,
}

/// Takes back what the ring says is used. Believes nothing twice.
fn reap(mem: &FlatMemory, truth: &mut Truth) {
    loop {
        let seen = truth.looks.unwrap_or(START);
        let flags = u16::from_le_bytes(mem.dump(RING, flags_at(seen), 2).try_into().expect("two"));
        let used = if seen.wrap { 1 << 7 | 1 << 15 } else { 0 };
        if flags & (1 << 7 | 1 << 15) != used || truth.came == CHAINS.len() {
            return;
        }
        let chain = truth.given_back.get(truth.came);
        let chain = *chain.unwrap_or_else(|| panic!("{seen:?} is used, {truth:?}"));
        truth.looks = Some(seen.after(CHAINS[chain], SIZE));
        truth.came += 1;
    }
}

/// The driver makes as many chains available as there is room for.
fn offer(mem: &FlatMemory, truth: &mut Truth) {
    reap(mem, truth);
    let place = |count: usize| {
        CHAINS[..count].iter().fold(START, |place, &entries| place.after(entries, SIZE))
    };
    let held = |truth: &Truth| {
        let came = &truth.given_back[..truth.came];
        let waiting = (0..truth.offered).filter(|chain| !came.contains(chain));
        waiting.map(|chain| CHAINS[chain]).sum::<u16>()
    };
    while truth.offered < CHAINS.len() && held(truth) + CHAINS[truth.offered] <= SIZE {
        for index in 0..CHAINS[truth.offered] {
            let at = place(truth.offered).after(index, SIZE);
            let flags: u16 = if at.wrap { 1 << 7 } else { 1 << 15 };
            mem.fill(RING, flags_at(at), &flags.to_le_bytes());
        }
        truth.offered += 1;
    }
}

/// One daemon. Takes what there is, and gives back chains in an order of its choice.
fn live(
    mem: &FlatMemory,
    truth: &mut Truth,
    life: &Life,
    mut pick: impl FnMut(usize, u64) -> usize,
) {
    let mortal = Mortal { inner: mem, life };
    let resumed = resume_packed(&mortal, AREA, 0, state()).expect("a sound area");
    let (mut inflight, mut used) = (resumed.inflight, resumed.used);
    let mut again = Vec::new();
    for &head in resumed.again.iter().rev() {
        inflight.renumber(&mortal, head).expect("mapped");
        again.push(check_saved(&mortal, &inflight, head));
    }
    check(truth, &again, used);
    let mut pending = again;
    let mut next = truth.given_back.len() + pending.len();
    while !life.is_over() {
        offer(mem, truth);
        while next < truth.offered && !life.is_over() {
            for index in 0..CHAINS[next] {
                inflight.save(&mortal, &saved(next, index)).expect("mapped");
            }
            inflight.mark(&mortal, id(next)).expect("mapped");
            if life.moment() {
                truth.sent.push(next);
            }
            pending.push(next);
            next += 1;
        }
        if pending.is_empty() || life.is_over() {
            break;
        }
        let mut batch = Vec::new();
        while !pending.is_empty() && batch.len() < 3 {
            let choice = pick(pending.len() + usize::from(!batch.is_empty()), life.spent());
            if choice == pending.len() {
                break;
            }
            batch.push(pending.remove(choice));
        }
        give_back(&mortal, &mut inflight, &mut used, &batch, truth);
    }
}

fn give_back(
    mem: &Mortal<'_>,
    inflight: &mut PackedInflight,
    used: &mut Place,
    batch: &[usize],
    truth: &mut Truth,
) {
    let (first, mut at) = (*used, *used);
    for &chain in batch {
        inflight.link(mem, id(chain)).expect("mapped");
        let flags: u16 = if at.wrap { 1 << 7 | 1 << 15 } else { 0 };
        if at != first {
            mem.write(RING, flags_at(at), &flags.to_le_bytes()).expect("mapped");
        }
        at = at.after(CHAINS[chain], SIZE);
    }
    inflight.close_batch(mem, at).expect("mapped");
    let flags: u16 = if first.wrap { 1 << 7 | 1 << 15 } else { 0 };
    mem.store_release_u16(RING, flags_at(first), flags).expect("mapped");
    if !mem.life.is_over() {
        truth.given_back.extend(batch);
    }
    for &chain in batch {
        inflight.clear(mem, id(chain)).expect("mapped");
    }
    inflight.settle(mem, at).expect("mapped");
    *used = at;
}

/// The chain that begins with a record, whose descriptors are what its driver wrote.
fn check_saved(mem: &impl SharedMemory, inflight: &PackedInflight, head: u16) -> usize {
    let first = inflight.saved(mem, head).expect("mapped");
    let chain = usize::try_from(first.addr.get() / 100).expect("small");
    let mut record = head;
    for index in 0..CHAINS[chain] {
        let found = inflight.saved(mem, record).expect("mapped");
        assert_eq!(found, saved(chain, index));
        record = inflight.after(record);
    }
    chain
}

/// I13: what is in flight was taken and not given back, in order, without a hole.
fn check(truth: &Truth, again: &[usize], used: Place) {
    assert!(again.is_sorted(), "{again:?} of {truth:?}");
    for chain in again {
        assert!(*chain < truth.offered && !truth.given_back.contains(chain), "{again:?} {truth:?}");
    }
    for chain in truth.sent.iter().filter(|chain| !truth.given_back.contains(chain)) {
        assert!(again.contains(chain), "{chain} is not in {again:?} of {truth:?}");
    }
    let next = truth.given_back.len() + again.len();
    let all = (0..next).all(|chain| truth.given_back.contains(&chain) || again.contains(&chain));
    assert!(all, "a hole in {again:?} of {truth:?}");
    let entries = truth.given_back.iter().map(|&chain| CHAINS[chain]);
    assert_eq!(used, entries.fold(START, |place, count| place.after(count, SIZE)));
}

/// Runs daemons, each with so many moments, and says how many the last one had.
fn run(choices: &mut Choices, lives: &[u64]) -> u64 {
    choices.rewind();
    let (mem, mut truth) = (memory(), Truth::default());
    let mut spent = 0;
    for (generation, &moments) in lives.iter().enumerate() {
        let life = Life::new(moments);
        let ends = |count, _| if generation % 2 == 1 { count - 1 } else { 0 };
        match generation {
            0 => live(&mem, &mut truth, &life, |count, moment| choices.pick(count, moment)),
            _ => live(&mem, &mut truth, &life, ends),
        }
        spent = life.spent();
    }
    reap(&mem, &mut truth);
    assert_eq!((truth.given_back.len(), truth.came), (CHAINS.len(), CHAINS.len()), "{truth:?}");
    spent
}

//= spec/inflight.md#INF-9
//= spec/inflight.md#INF-10
//= spec/inflight.md#INF-11
//= spec/recovery.md#REC-12
//= spec/recovery.md#REC-13
#[test]
fn f01_f02_f04_killed_at_every_store_and_again() {
    let (mut choices, mut from) = (Choices::default(), 0);
    let (mut ways, mut kills, mut kills_again) = (0, 0, 0);
    loop {
        let first = run(&mut choices, &[u64::MAX]);
        ways += 1;
        for kill in from..first {
            let second = run(&mut choices, &[kill, u64::MAX]);
            kills += 1;
            for again in 0..second {
                run(&mut choices, &[kill, again, u64::MAX]);
                kills_again += 1;
            }
        }
        choices.rewind();
        match choices.next_way() {
            Some(moment) => from = moment,
            None => break,
        }
    }
    println!("{ways} ways, {kills} kills, {kills_again} of successors");
    assert!(ways > 10 && kills > 100 && kills_again > 1000);
}

/// What a start concludes from an area in which chains 0 and 1 are under way, after a change.
fn after(change: impl FnOnce(&FlatMemory)) -> Result<(u16, Vec<u16>), QueueFault> {
    let (mem, mut truth, life) = (memory(), Truth::default(), Life::new(u64::MAX));
    offer(&mem, &mut truth);
    let mortal = Mortal { inner: &mem, life: &life };
    let mut inflight = resume_packed(&mortal, AREA, 0, state())?.inflight;
    for (chain, &count) in CHAINS.iter().enumerate().take(2) {
        for index in 0..count {
            inflight.save(&mortal, &saved(chain, index))?;
        }
        inflight.mark(&mortal, id(chain))?;
    }
    change(&mem);
    let before = mem.dump(AREA, 0, bytes());
    let resumed = resume_packed(&mortal, AREA, 0, state());
    if resumed.is_err() {
        assert_eq!(mem.dump(AREA, 0, bytes()), before, "evidence is left as it is");
    }
    resumed.map(|found| (found.taken, found.again.to_vec()))
}

const fn record(at: u64) -> u64 {
    32 + 32 * at
}

//= spec/recovery.md#REC-12
#[test]
fn b94_lists_and_saved_descriptors_of_any_value() {
    let put =
        |at: u64, value: u16| move |mem: &FlatMemory| mem.fill(AREA, at, &value.to_le_bytes());
    let sound = Ok((3, vec![2, 0]));
    assert_eq!(after(|_| ()), sound);
    // Free: 3, 4. Chain 0 has records 0 and 1, chain 1 has record 2.
    for (at, value, fault) in [
        (14, 6, InflightFault::Batch),
        (14, u16::MAX, InflightFault::Batch),
        (14, SIZE, InflightFault::Count),
        (record(3) + 2, 3, InflightFault::Batch),
        (record(4) + 2, 3, InflightFault::Batch),
        (record(4) + 2, 7, InflightFault::Batch),
        (record(3) + 2, SIZE, InflightFault::Count),
        (record(0) + 2, 2, InflightFault::Batch),
        (record(0) + 2, 0, InflightFault::Batch),
        (record(0) + 2, 9, InflightFault::Batch),
        (record(0) + 4, 0, InflightFault::Batch),
        (record(0) + 6, 1, InflightFault::Batch),
        (record(0) + 6, 0, InflightFault::Batch),
        (record(0) + 6, u16::MAX, InflightFault::Batch),
        (record(0), 0, InflightFault::Count),
        (record(0), 2, InflightFault::Count),
        (record(1), 1, InflightFault::Batch),
        (record(1) + 16, 1, InflightFault::Batch),
        (record(1) + 16, SIZE, InflightFault::Batch),
        (16, SIZE, InflightFault::UsedIndex),
        (18, SIZE, InflightFault::UsedIndex),
        (20, 2, InflightFault::UsedIndex),
        (18, 4, InflightFault::UsedIndex),
        (20, 0, InflightFault::UsedIndex),
    ] {
        assert_eq!(after(put(at, value)), Err(QueueFault::Inflight(fault)), "{at}: {value}");
    }
    assert_eq!(after(put(14, 2)), Ok((2, vec![0])), "chain 1 was about to be taken");
    // Marks of free records, and what nobody looks at.
    for (at, value) in [(record(3), 1), (record(2) + 2, 4), (record(0) + 16, 77), (12, 99)] {
        assert_eq!(after(put(at, value)), sound, "{at}: {value}");
    }
    let reversed = after(|mem| mem.fill(AREA, record(0) + 8, &[9]));
    assert_eq!(reversed, Ok((3, vec![0, 2])), "by counter");
}

//= spec/recovery.md#REC-12
#[test]
fn b96_an_area_of_another_layout() {
    let layout = Err(QueueFault::Inflight(InflightFault::Layout));
    for (at, value) in [(0, 1), (8, 2), (10, SIZE - 1), (10, SIZE + 1), (10, 0)] {
        let value: u16 = value;
        assert_eq!(after(|mem| mem.fill(AREA, at, &value.to_le_bytes())), layout, "{at}");
    }
    let fresh = after(|mem| mem.fill(AREA, 8, &[0, 0]));
    assert_eq!(fresh, Ok((0, vec![])), "version 0 is empty, whatever it holds");
}

/// A ring that was reset under an area says so by its flags.
//= spec/recovery.md#REC-12
#[test]
fn b97_an_area_of_a_ring_that_was_reset() {
    let reset = after(|mem| mem.fill(RING, 0, &[0; 16 * SIZE as usize]));
    assert_eq!(reset, Err(QueueFault::Inflight(InflightFault::UsedIndex)));
}
