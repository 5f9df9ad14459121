//! Wake-ups counted into the buckets of a metric: one form for the scheduler's own account and for what a probe saw.

use serde::{Deserialize, Serialize};

/// Upper bounds of the buckets, nanoseconds.
pub const BOUNDS: [u64; 14] = [
    1_000,
    2_000,
    5_000,
    10_000,
    20_000,
    50_000,
    100_000,
    200_000,
    500_000,
    1_000_000,
    2_000_000,
    5_000_000,
    10_000_000,
    100_000_000,
];

/// So many, and how long they took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Tally {
    /// Those that took at most each of [`BOUNDS`]: each bucket has those before it too.
    pub buckets: [u64; BOUNDS.len()],
    /// All.
    pub count: u64,
    /// Together, nanoseconds.
    pub sum_ns: u64,
}

impl Tally {
    /// `times` waits that took `ns` together, each counted as their mean.
    pub fn add(&mut self, ns: u64, times: u64) {
        let Some(mean) = ns.checked_div(times) else { return };
        for (bucket, bound) in self.buckets.iter_mut().zip(BOUNDS) {
            if mean <= bound {
                *bucket += times;
            }
        }
        self.count += times;
        self.sum_ns = self.sum_ns.saturating_add(ns);
    }

    /// What came since `before`; all of it where `before` is of another beginning.
    #[must_use]
    pub fn since(&self, before: &Tally) -> Tally {
        if self.count < before.count {
            return *self;
        }
        let mut new = *self;
        for (bucket, old) in new.buckets.iter_mut().zip(before.buckets) {
            *bucket = bucket.saturating_sub(old);
        }
        new.count -= before.count;
        new.sum_ns = new.sum_ns.saturating_sub(before.sum_ns);
        new
    }

    /// And these.
    pub fn merge(&mut self, more: &Tally) {
        for (bucket, other) in self.buckets.iter_mut().zip(more.buckets) {
            *bucket += other;
        }
        self.count += more.count;
        self.sum_ns = self.sum_ns.saturating_add(more.sum_ns);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_came_since_is_added_once() {
        let mut before = Tally::default();
        before.add(3_000, 1);
        let mut now = before;
        now.add(40_000, 2);
        let new = now.since(&before);
        assert_eq!((new.count, new.sum_ns), (2, 40_000));
        // 20 us each: not in the bucket of 10 us, in that of 20 us and all above.
        assert_eq!((new.buckets[3], new.buckets[4], new.buckets[13]), (0, 2, 2));
        let mut sum = before;
        sum.merge(&new);
        assert_eq!(sum, now);
        assert_eq!(before.since(&now), before, "another beginning");
        let mut none = Tally::default();
        none.add(5, 0);
        assert_eq!(none, Tally::default());
    }
}
