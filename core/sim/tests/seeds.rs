//! Whole lives of guests and front ends, each from its seed. `.ci/run` runs many more of them.

use sluice_sim::world::run;

/// Runs seeds and complains of the first that goes wrong, with the command that replays it.
fn check(seeds: impl IntoIterator<Item = u64>) {
    for seed in seeds {
        let outcome = run(seed, false);
        assert!(
            outcome.violations.is_empty(),
            "{:#?}\nreplay: cargo run --release -p sluice-sim -- {seed} --log",
            outcome.violations,
        );
        assert!(outcome.events > 0);
    }
}

//= spec/virtqueue.md#VQ-12
//= spec/lifecycle.md#LIF-9
//= spec/lifecycle.md#LIF-13
//= spec/limits.md#LIM-4
//= spec/blk.md#BLK-17
#[test]
fn a_few_hundred_worlds_keep_all_rules() {
    check(0..600);
}

/// Without this no failure could be replayed.
#[test]
fn i20_a_seed_has_one_log() {
    for seed in (0..40).chain([u64::MAX]) {
        let (first, second) = (run(seed, false), run(seed, false));
        assert_eq!(first, second, "seed {seed}");
    }
    assert_ne!(run(1, false).hash, run(2, false).hash);
}

/// Most of what is drawn has to happen: a world in which nobody asks for anything proves nothing.
#[test]
fn worlds_are_busy() {
    let (mut requests, mut ops) = (0, 0);
    for seed in 0..40 {
        let outcome = run(seed, false);
        requests += outcome.requests;
        ops += outcome.ops;
    }
    assert!(requests > 40 * 100 && ops > 40 * 50, "{requests} requests, {ops} operations");
}
