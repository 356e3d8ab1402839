//! Latencies in a flat array: 64 steps per power of two, so an error below 1.6 %.

const STEP_BITS: u32 = 6;
const STEPS: u64 = 1 << STEP_BITS;
const BUCKETS: usize = (65 - STEP_BITS as usize) << STEP_BITS;

/// Counts of values in clock ticks.
pub struct Histogram {
    buckets: Box<[u64; BUCKETS]>,
    count: u64,
    sum: u64,
}

impl Histogram {
    pub fn new() -> Self {
        Self {
            buckets: Box::new([0; BUCKETS]),
            count: 0,
            sum: 0,
        }
    }

    #[inline(always)]
    pub fn record(&mut self, value: u64) {
        self.buckets[bucket(value)] += 1;
        self.count += 1;
        self.sum += value;
    }

    pub fn clear(&mut self) {
        *self = Self::new();
    }

    pub fn count(&self) -> u64 {
        self.count
    }

    pub fn mean(&self) -> f64 {
        self.sum as f64 / self.count.max(1) as f64
    }

    /// The value below which `share` of all values lie.
    pub fn percentile(&self, share: f64) -> f64 {
        let rank = (self.count as f64 * share).ceil() as u64;
        let mut seen = 0;
        for (index, &count) in self.buckets.iter().enumerate() {
            seen += count;
            if count > 0 && seen >= rank {
                return middle(index as u64);
            }
        }
        0.0
    }
}

#[inline(always)]
fn bucket(value: u64) -> usize {
    if value < STEPS {
        return value as usize;
    }
    let exponent = 63 - value.leading_zeros();
    let step = (value >> (exponent - STEP_BITS)) & (STEPS - 1);
    (u64::from(exponent - STEP_BITS + 1) * STEPS + step) as usize
}

fn middle(index: u64) -> f64 {
    if index < STEPS {
        return index as f64;
    }
    let shift = index / STEPS - 1;
    ((STEPS + index % STEPS) as f64 + 0.5) * 2f64.powi(shift as i32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_lands_near_the_middle_of_its_bucket() {
        for bits in 0..64 {
            for value in [1u64 << bits, (1u64 << bits) + (1u64 << bits) / 3] {
                let found = middle(bucket(value) as u64);
                assert!(
                    (found / value as f64 - 1.0).abs() < 0.016,
                    "{value} became {found}"
                );
            }
        }
        assert!(bucket(u64::MAX) < BUCKETS);
    }

    #[test]
    fn percentiles_are_ranks() {
        let mut histogram = Histogram::new();
        (1..=50).for_each(|v| histogram.record(v));
        assert_eq!(histogram.percentile(0.5), 25.0);
        assert_eq!(histogram.percentile(1.0), 50.0);
        assert_eq!(histogram.mean(), 25.5);
    }
}
