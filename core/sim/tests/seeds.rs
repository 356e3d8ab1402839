//! Whole lives of guests and front ends, from seeds. `.ci/run` runs many more of them.

use sluice_sim::world::run;

/// Seeds that every run of the tests looks at.
const SEEDS: std::ops::Range<u64> = 0..60;

//= spec/virtqueue.md#VQ-12
//= spec/lifecycle.md#LIF-9
//= spec/lifecycle.md#LIF-13
#[test]
fn no_seed_violates_an_invariant() {
    for seed in SEEDS {
        let outcome = run(seed, false);
        let violations = &outcome.violations;
        assert!(violations.is_empty(), "seed {seed}: {:?}", violations.first());
    }
}

#[test]
fn i20_the_same_seed_is_the_same_life() {
    for seed in SEEDS.take(10) {
        let (first, second) = (run(seed, false), run(seed, false));
        assert_eq!(first.hash, second.hash, "seed {seed}");
        assert!(first.events > 0);
    }
    assert_ne!(run(0, false).hash, run(1, false).hash, "another seed is another life");
}
