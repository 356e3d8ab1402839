use proptest::prelude::*;

use super::*;

const IMAGE: u64 = 0x1234;

/// The bytes that a write puts into one sector.
fn data(history: &History, write: &Write, sector: u64) -> [u8; SECTOR] {
    let mut bytes = [0; SECTOR];
    history.stamp(write, sector).fill(&mut bytes);
    bytes
}

fn history() -> History {
    History::new(IMAGE, Initial::Zero)
}

/// A write of sector 8 that is acknowledged at once.
fn written(history: &mut History) -> [u8; SECTOR] {
    let write = history.write_invoked(1, 8, 1);
    history.write_done(write);
    data(history, &write, 8)
}

/// A read of sector 8 without anything in between.
fn read(history: &mut History, bytes: &[u8]) -> Result<(), Wrong> {
    let read = history.read_invoked();
    history.read_done(read, 8, bytes).map_err(|violation| {
        assert_eq!(violation.sector, 8);
        violation.wrong
    })
}

fn is_stale(verdict: Result<(), Wrong>) -> bool {
    matches!(verdict, Err(Wrong::Stale { .. }))
}

#[test]
fn a_stale_read_is_caught() {
    let mut history = history();
    assert_eq!(read(&mut history, &[0; SECTOR]), Ok(()));
    let old = written(&mut history);
    assert_eq!(read(&mut history, &old), Ok(()));
    let new = written(&mut history);
    assert_eq!(read(&mut history, &new), Ok(()));
    assert!(is_stale(read(&mut history, &old)));
}

#[test]
fn a_restart_repeats_what_is_under_way_and_nothing_else() {
    let story = |restart: bool, acked: bool| {
        let mut history = history().with_restarts();
        let old = history.write_invoked(1, 8, 1);
        let bytes = data(&history, &old, 8);
        assert_eq!(read(&mut history, &bytes), Ok(()));
        if acked {
            history.write_done(old);
        }
        let new = written(&mut history);
        assert_eq!(read(&mut history, &new), Ok(()));
        if restart {
            history.restart();
        }
        let verdict = read(&mut history, &bytes);
        if !acked {
            history.write_done(old);
        }
        // Once it is over, it is as gone as any other one.
        let last = written(&mut history);
        assert_eq!(read(&mut history, &last), Ok(()));
        assert!(is_stale(read(&mut history, &bytes)));
        verdict
    };
    assert_eq!(story(true, false), Ok(()));
    assert!(is_stale(story(false, false)), "nothing happens twice without a restart");
    assert!(is_stale(story(true, true)), "what was acknowledged is not done again");
}

/// Of a process that has died a write may still be on its way to the disk, and front ends come and
/// go: what is under way is done again by each who finds it.
#[test]
fn a_restart_repeats_as_often_as_it_likes_until_the_end() {
    let mut history = history().with_restarts();
    let old = history.write_invoked(1, 8, 1);
    let bytes = data(&history, &old, 8);
    assert_eq!(read(&mut history, &bytes), Ok(()));
    history.restart();
    for _ in 0..3 {
        let new = written(&mut history);
        assert_eq!(read(&mut history, &new), Ok(()));
        assert_eq!(read(&mut history, &bytes), Ok(()));
    }
    history.write_done(old);
    let last = written(&mut history);
    assert_eq!(read(&mut history, &last), Ok(()));
    assert!(is_stale(read(&mut history, &bytes)));
}

#[test]
fn a_sector_may_be_torn_by_death_until_the_write_is_repeated() {
    let mut history = history().with_restarts();
    let old = written(&mut history);
    let write = history.write_invoked(1, 8, 1);
    let mut torn = data(&history, &write, 8);
    torn[341..].copy_from_slice(&old[341..]);
    let early = history.read_invoked();
    assert!(matches!(read(&mut history, &torn), Err(Wrong::Torn { .. })), "nobody has died");
    history.restart();
    assert_eq!(read(&mut history, &torn), Ok(()));
    history.write_done(write);
    assert_eq!(history.read_done(early, 8, &torn), Ok(()), "it began before that");
    assert!(matches!(read(&mut history, &torn), Err(Wrong::Torn { .. })));
}

#[test]
fn a_repeated_write_is_certain_once_it_is_acknowledged() {
    let mut history = history().with_restarts();
    let write = history.write_invoked(1, 8, 1);
    history.restart();
    history.restart();
    history.write_done(write);
    assert!(is_stale(read(&mut history, &[0; SECTOR])));
}

#[test]
fn a_lost_write_is_caught() {
    let mut history = history();
    written(&mut history);
    assert!(is_stale(read(&mut history, &[0; SECTOR])));
}

#[test]
fn torn_misplaced_invented_and_foreign_sectors_are_caught() {
    let mut history = history();
    let (one, two) = (written(&mut history), written(&mut history));
    let mut torn = one;
    torn[128..].copy_from_slice(&two[128..]);
    assert!(matches!(read(&mut history, &torn), Err(Wrong::Torn { at: 128, .. })));
    let write = history.write_invoked(1, 9, 1);
    let elsewhere = data(&history, &write, 9);
    assert!(matches!(read(&mut history, &elsewhere), Err(Wrong::WrongSector(_))));
    let mut invented = [0; SECTOR];
    Stamp { image: IMAGE, sector: 8, sequence: 1000, writer: 1 }.fill(&mut invented);
    assert!(matches!(read(&mut history, &invented), Err(Wrong::Invented(_))));
    Stamp { image: IMAGE + 1, sector: 8, sequence: 1, writer: 1 }.fill(&mut invented);
    assert_eq!(read(&mut history, &invented), Err(Wrong::Garbage));
    assert_eq!(read(&mut history, &[7; SECTOR]), Err(Wrong::Garbage));
    assert_eq!(read(&mut history, &two), Ok(()));
}

#[test]
fn reads_do_not_go_back() {
    let mut history = history();
    let old = written(&mut history);
    let write = history.write_invoked(1, 8, 1);
    let new = data(&history, &write, 8);
    // While the write is under way either is legal, until one read has seen the new one.
    let overlapping = history.read_invoked();
    assert_eq!(read(&mut history, &old), Ok(()));
    assert_eq!(read(&mut history, &new), Ok(()));
    assert!(is_stale(read(&mut history, &old)));
    assert_eq!(history.read_done(overlapping, 8, &old), Ok(()), "it began before");
    history.write_done(write);
    assert!(is_stale(read(&mut history, &old)));
    assert_eq!(read(&mut history, &new), Ok(()));
}

#[test]
fn two_writes_at_once_may_end_either_way_but_only_one_way() {
    let mut history = history();
    let (a, b) = (history.write_invoked(1, 8, 1), history.write_invoked(2, 8, 1));
    history.write_done(b);
    history.write_done(a);
    let (a, b) = (data(&history, &a, 8), data(&history, &b, 8));
    assert_eq!(read(&mut history, &b), Ok(()));
    assert!(is_stale(read(&mut history, &a)));
    assert_eq!(read(&mut history, &b), Ok(()));
}

#[test]
fn a_write_that_comes_back_after_a_newer_one_was_acknowledged_is_caught() {
    let mut history = history();
    let late = history.write_invoked(1, 8, 1);
    let stale = data(&history, &late, 8);
    history.write_failed(late);
    let new = written(&mut history);
    assert!(is_stale(read(&mut history, &stale)));
    assert_eq!(read(&mut history, &new), Ok(()));
}

#[test]
fn a_failed_write_may_have_happened_and_a_lost_one_may_still() {
    let mut history = history();
    let old = written(&mut history);
    let failed = history.write_invoked(1, 8, 1);
    let failed_data = data(&history, &failed, 8);
    history.write_failed(failed);
    assert_eq!(read(&mut history, &old), Ok(()));
    assert!(is_stale(read(&mut history, &failed_data)), "too late, it has been answered");
    let lost = history.write_invoked(1, 8, 1);
    let lost_data = data(&history, &lost, 8);
    history.write_lost(lost);
    let new = written(&mut history);
    assert_eq!(read(&mut history, &new), Ok(()));
    assert_eq!(read(&mut history, &lost_data), Ok(()));
    assert!(is_stale(read(&mut history, &new)));
}

#[test]
fn zeroes_and_discards() {
    let mut history = history();
    let one = written(&mut history);
    let discard = history.discard_invoked(8, 1);
    history.write_done(discard);
    assert_eq!(read(&mut history, &one), Ok(()), "a discard may do nothing");
    assert!(is_stale(read(&mut history, &[0; SECTOR])), "but not change its mind");
    let discard = history.discard_invoked(8, 1);
    history.write_done(discard);
    assert_eq!(read(&mut history, &[0; SECTOR]), Ok(()));
    assert!(is_stale(read(&mut history, &one)));
    let two = written(&mut history);
    assert!(is_stale(read(&mut history, &[0; SECTOR])));
    let zero = history.zero_invoked(0, 64);
    assert_eq!(read(&mut history, &two), Ok(()));
    history.write_done(zero);
    assert!(is_stale(read(&mut history, &two)));
    assert_eq!(read(&mut history, &[0; SECTOR]), Ok(()));
}

#[test]
fn an_unknown_image_is_learnt_from_its_first_reads() {
    let mut history = History::new(IMAGE, Initial::Any);
    assert_eq!(read(&mut history, &[7; SECTOR]), Ok(()));
    assert_eq!(read(&mut history, &[7; SECTOR]), Ok(()));
    assert_eq!(read(&mut history, &[8; SECTOR]), Err(Wrong::Garbage));
    let new = written(&mut history);
    assert!(is_stale(read(&mut history, &[7; SECTOR])));
    assert_eq!(read(&mut history, &new), Ok(()));
}

#[test]
fn a_power_loss_takes_only_what_was_not_flushed() {
    let mut history = history().with_power_losses();
    let old = written(&mut history);
    let durable = written(&mut history);
    let flush = history.flush_invoked();
    let first = written(&mut history);
    history.flush_done(flush);
    let second = written(&mut history);
    assert_eq!(read(&mut history, &second), Ok(()));
    assert!(is_stale(read(&mut history, &first)));
    history.lose_power();
    assert!(is_stale(read(&mut history, &old)), "the flush covered its successor");
    assert_eq!(read(&mut history, &[0; SECTOR]), Err(Wrong::Zeroes), "long forgotten");
    assert_eq!(read(&mut history, &first), Ok(()));
    assert!(is_stale(read(&mut history, &second)), "one value survives, not all");
    assert!(is_stale(read(&mut history, &durable)));
    history.lose_power();
    assert_eq!(read(&mut history, &durable), Ok(()), "what was read was not flushed either");
    let newest = written(&mut history);
    assert_eq!(read(&mut history, &newest), Ok(()));
}

#[test]
fn memory_follows_what_is_in_flight_and_not_time() {
    let mut history = history();
    for _ in 0..100 {
        let stuck = history.read_invoked();
        for _ in 0..100 {
            written(&mut history);
        }
        assert!(history.values() <= 110, "{} values", history.values());
        history.read_failed(stuck);
    }
    for _ in 0..10_000 {
        written(&mut history);
        assert!(history.values() <= 110, "{} values", history.values());
    }
    assert!(history.values() <= 3, "{} values", history.values());
}

/// An operation on one sector in a small history, with times in the order of events.
#[derive(Clone, Copy, Debug)]
struct Op {
    start: usize,
    end: usize,
    /// The value written or read: 0 is zeroes, the others are indices of writes plus one.
    value: usize,
    read: bool,
    /// Whether it may as well not have happened.
    optional: bool,
}

/// Looks for any legal order, by trying all of them.
fn linearizable(ops: &[Op], done: u32, current: usize) -> bool {
    let open = |i: usize| done & (1 << i) == 0;
    let waiting = (0..ops.len()).filter(|&i| open(i));
    if waiting.clone().next().is_none() {
        return true;
    }
    waiting.clone().any(|i| {
        let first = waiting.clone().all(|j| j == i || ops[j].end > ops[i].start);
        let after = done | (1 << i);
        first
            && if ops[i].read {
                ops[i].value == current && linearizable(ops, after, current)
            } else {
                linearizable(ops, after, ops[i].value)
                    || (ops[i].optional && linearizable(ops, after, current))
            }
    })
}

/// Runs a history through the checker and says whether it found it legal.
fn accepted(ops: &[Op]) -> bool {
    let mut history = history();
    let mut writes = vec![None; ops.len()];
    let mut reads = vec![None; ops.len()];
    let mut legal = true;
    for time in 0..2 * ops.len() {
        let at = ops.iter().position(|op| op.start == time || op.end == time).unwrap();
        let op = ops[at];
        match (op.read, op.start == time) {
            (true, true) => reads[at] = Some(history.read_invoked()),
            (true, false) => {
                let bytes = match op.value {
                    0 => [0; SECTOR],
                    write => match &writes[write - 1] {
                        Some(write) => data(&history, write, 8),
                        None => return false,
                    },
                };
                legal &= history.read_done(reads[at].unwrap(), 8, &bytes).is_ok();
            }
            (false, true) if op.value == 0 && op.optional => {
                writes[at] = Some(history.discard_invoked(8, 1));
            }
            (false, true) if op.value == 0 => writes[at] = Some(history.zero_invoked(8, 1)),
            (false, true) => writes[at] = Some(history.write_invoked(1, 8, 1)),
            (false, false) if op.optional && op.value > 0 => {
                history.write_failed(writes[at].unwrap());
            }
            (false, false) => history.write_done(writes[at].unwrap()),
        }
    }
    legal
}

/// Small histories: a shuffle of begins and ends, and what each operation does.
fn histories(zeroes: bool) -> impl Strategy<Value = Vec<Op>> {
    (2..8_usize).prop_flat_map(move |count| {
        let times = Just((0..2 * count).collect::<Vec<_>>()).prop_shuffle();
        let what = prop::collection::vec((0..8_u8, any::<prop::sample::Index>()), count);
        (times, what).prop_map(move |(times, what)| {
            let writes: Vec<_> = (0..count).filter(|&i| what[i].0 >= 4).collect();
            let ops = (0..count).map(|i| {
                let (a, b) = (times[2 * i], times[2 * i + 1]);
                let read = what[i].0 < 4;
                let value = match what[i].0 {
                    // Reads return zeroes or what some write wrote.
                    0..4 => match what[i].1.index(writes.len() + 1) {
                        0 => 0,
                        n if zeroes && what[writes[n - 1]].0 >= 6 => 0,
                        n => writes[n - 1] + 1,
                    },
                    6.. if zeroes => 0,
                    _ => i + 1,
                };
                let optional = !read && what[i].0 % 2 == 1;
                Op { start: a.min(b), end: a.max(b), value, read, optional }
            });
            ops.collect()
        })
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(20_000))]

    #[test]
    fn verdicts_are_those_of_a_search_through_all_orders(ops in histories(false)) {
        prop_assert_eq!(accepted(&ops), linearizable(&ops, 0, 0));
    }

    #[test]
    fn zeroes_that_look_the_same_never_raise_a_false_alarm(ops in histories(true)) {
        if linearizable(&ops, 0, 0) {
            prop_assert!(accepted(&ops));
        }
    }
}
