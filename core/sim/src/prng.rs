//! Random numbers from a seed, the same on every machine.

/// SplitMix64: one word of state, and every seed is a good one.
#[derive(Clone, Debug)]
pub struct Prng(u64);

impl Prng {
    /// The sequence that belongs to a seed.
    #[must_use]
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// Any number.
    pub const fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A sequence of its own, so that more draws here do not shift what is drawn there.
    pub const fn fork(&mut self) -> Self {
        Self(self.next())
    }

    /// A number below `bound`.
    ///
    /// # Panics
    /// When `bound` is 0.
    pub const fn below(&mut self, bound: u64) -> u64 {
        assert!(bound > 0, "there is no number below 0");
        let product = (self.next() as u128) * (bound as u128);
        (product >> 64) as u64
    }

    /// A number from `low` to `high`, both included.
    pub const fn between(&mut self, low: u64, high: u64) -> u64 {
        low + self.below(high - low + 1)
    }

    /// An index into something of `len` elements.
    #[expect(clippy::cast_possible_truncation, reason = "below a usize")]
    pub const fn index(&mut self, len: usize) -> usize {
        self.below(len as u64) as usize
    }

    /// `true` once in `1000 / per_mille` times.
    pub const fn chance(&mut self, per_mille: u64) -> bool {
        self.below(1000) < per_mille
    }

    /// One of the elements.
    ///
    /// # Panics
    /// When there is none.
    pub const fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.index(from.len())]
    }

    /// A number up to `max`, small ones much more often than large ones.
    pub const fn skewed(&mut self, max: u64) -> u64 {
        let bits = 64 - max.leading_zeros();
        let shift = self.below(bits as u64 + 1);
        let bound = if shift >= 64 { u64::MAX } else { (1 << shift) - 1 };
        self.below(if bound < max { bound + 1 } else { max + 1 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sequence_of_a_seed_never_changes() {
        let mut prng = Prng::new(1_234_567);
        assert_eq!(prng.next(), 6_457_827_717_110_365_317, "the reference implementation's first");
        assert_eq!(prng.next(), 3_203_168_211_198_807_973);
    }

    #[test]
    fn draws_stay_in_their_bounds() {
        let mut prng = Prng::new(0);
        for max in [0, 1, 2, 7, 4096] {
            for _ in 0..200 {
                assert!(prng.skewed(max) <= max);
                assert!((5..=max + 5).contains(&prng.between(5, max + 5)));
            }
        }
    }
}
