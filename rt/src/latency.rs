//! Wake-up latency: how long after the time it asked for a thread runs again.
//!
//! The method is cyclictest's: a thread on each CPU sleeps with `clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME)` until a
//! multiple of an interval, its memory locked, and counts in a [`Histogram`] how late it was woken ([`probe`]).
//! [`compare`] holds rounds of two sides against each other, [`plot`] draws them. [`sampler`] does the same beside a running
//! workload, now and then, for [`tally`].
//!
//! Invariants: the histogram never allocates once it is made, keeps the exact count, minimum, maximum and sum, and places a
//! value to 1/64 of itself.

pub mod compare;
pub mod plot;
pub mod probe;
pub mod sampler;
pub mod tally;

use serde::{Deserialize, Serialize};

/// Values below this have a bucket each; above, an octave has [`STEPS`] buckets.
const EXACT: u64 = 128;
/// Buckets of an octave.
const STEPS: u64 = 64;
/// The largest value that is told from larger ones: 2³⁴ - 1 ns, 17 s.
const LARGEST: u64 = (1 << 34) - 1;

/// Latencies in nanoseconds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Written", into = "Written")]
pub struct Histogram {
    counts: Vec<u64>,
    count: u64,
    min: u64,
    max: u64,
    sum: u64,
}

/// The form in documents: only buckets that have something, each as its least value and its count.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Written {
    count: u64,
    min_ns: u64,
    max_ns: u64,
    sum_ns: u64,
    buckets: Vec<(u64, u64)>,
}

impl From<Histogram> for Written {
    fn from(h: Histogram) -> Written {
        Written {
            count: h.count,
            min_ns: h.min(),
            max_ns: h.max,
            sum_ns: h.sum,
            buckets: h.buckets().map(|(low, _, count)| (low, count)).collect(),
        }
    }
}

impl From<Written> for Histogram {
    fn from(w: Written) -> Histogram {
        let mut h = Histogram::new();
        for (low, count) in w.buckets {
            let bucket = &mut h.counts[index(low)];
            *bucket = bucket.saturating_add(count);
            h.count = h.count.saturating_add(count);
        }
        if h.count > 0 {
            (h.min, h.max, h.sum) = (w.min_ns, w.max_ns.max(w.min_ns), w.sum_ns);
        }
        h
    }
}

/// The bucket of a value.
fn index(ns: u64) -> usize {
    let ns = ns.min(LARGEST);
    let place = if ns < EXACT {
        ns
    } else {
        let octave = u64::from(ns.ilog2()) - 7;
        EXACT + octave * STEPS + ((ns >> (octave + 1)) - STEPS)
    };
    usize::try_from(place).unwrap_or(usize::MAX)
}

/// The least value of a bucket and the least of the next one.
fn bounds(index: usize) -> (u64, u64) {
    let index = index as u64;
    if index < EXACT {
        return (index, index + 1);
    }
    let (octave, step) = ((index - EXACT) / STEPS, (index - EXACT) % STEPS);
    let width = 1 << (octave + 1);
    let low = (STEPS + step) * width;
    (low, low + width)
}

impl Default for Histogram {
    fn default() -> Self {
        Self::new()
    }
}

impl Histogram {
    /// An empty one.
    #[must_use]
    pub fn new() -> Histogram {
        Histogram {
            counts: vec![0; index(LARGEST) + 1],
            count: 0,
            min: u64::MAX,
            max: 0,
            sum: 0,
        }
    }

    /// Has its memory in place, so that counting causes no page fault.
    pub fn touch(&mut self) {
        for count in &mut self.counts {
            *std::hint::black_box(count) = 0;
        }
    }

    /// Counts one latency.
    pub fn add(&mut self, ns: u64) {
        self.counts[index(ns)] += 1;
        self.count += 1;
        self.min = self.min.min(ns);
        self.max = self.max.max(ns);
        self.sum = self.sum.saturating_add(ns);
    }

    /// Counts everything of another one.
    pub fn merge(&mut self, other: &Histogram) {
        for (mine, theirs) in self.counts.iter_mut().zip(&other.counts) {
            *mine = mine.saturating_add(*theirs);
        }
        self.count = self.count.saturating_add(other.count);
        self.min = self.min.min(other.min);
        self.max = self.max.max(other.max);
        self.sum = self.sum.saturating_add(other.sum);
    }

    /// How many latencies there are.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.count
    }

    /// The least, 0 where there is none.
    #[must_use]
    pub fn min(&self) -> u64 {
        if self.count == 0 { 0 } else { self.min }
    }

    /// The greatest, 0 where there is none.
    #[must_use]
    pub fn max(&self) -> u64 {
        self.max
    }

    /// The mean, 0 where there is none.
    #[must_use]
    pub fn mean(&self) -> u64 {
        self.sum.checked_div(self.count).unwrap_or(0)
    }

    /// The value that a share `q` (0 to 1) of all latencies does not exceed: the middle of its bucket, within least
    /// and greatest. 0 where there is none.
    #[must_use]
    pub fn quantile(&self, q: f64) -> u64 {
        // A count beyond 2⁵³ would take longer than the machine lasts.
        let rank = (q.clamp(0.0, 1.0) * self.count as f64).ceil().max(1.0) as u64;
        let mut seen = 0u64;
        for (low, high, count) in self.buckets() {
            seen = seen.saturating_add(count);
            if seen >= rank {
                let middle = low + (high - low - 1) / 2;
                return middle.clamp(self.min, self.max);
            }
        }
        self.max
    }

    /// The buckets that have something: least value, least value of the next bucket, count.
    pub fn buckets(&self) -> impl Iterator<Item = (u64, u64, u64)> + '_ {
        let filled = self.counts.iter().enumerate().filter(|(_, count)| **count > 0);
        filled.map(|(at, count)| {
            let (low, high) = bounds(at);
            (low, high, *count)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn buckets_follow_each_other() {
        let mut next = 0;
        for at in 0..=index(LARGEST) {
            let (low, high) = bounds(at);
            assert_eq!(low, next, "bucket {at}");
            assert_eq!((index(low), index(high - 1)), (at, at), "{low}..{high}");
            next = high;
        }
        assert_eq!(next, LARGEST + 1);
        assert_eq!(index(u64::MAX), index(LARGEST));
    }

    #[test]
    fn quantiles_of_a_known_set() {
        let mut h = Histogram::new();
        assert_eq!((h.quantile(0.5), h.min(), h.max(), h.mean()), (0, 0, 0, 0));
        for ns in 1..=100 {
            h.add(ns);
        }
        assert_eq!((h.count(), h.min(), h.max(), h.mean()), (100, 1, 100, 50));
        assert_eq!(
            [0.0, 0.5, 0.9, 0.99, 1.0].map(|q| h.quantile(q)),
            [1, 50, 90, 99, 100]
        );
        h.add(20 << 30);
        assert_eq!((h.max(), h.quantile(1.0)), (20 << 30, h.quantile(0.999)));
    }

    proptest! {
        #[test]
        fn a_quantile_is_near_the_true_one(mut values in prop::collection::vec(0u64..10_000_000_000, 1..200), q in 0.0f64..=1.0) {
            let mut h = Histogram::new();
            values.iter().for_each(|v| h.add(*v));
            values.sort_unstable();
            let rank = ((q * values.len() as f64).ceil() as usize).clamp(1, values.len());
            let (is, told) = (values[rank - 1], h.quantile(q));
            prop_assert!(is.abs_diff(told) <= is / 64 + 1, "{} is told as {}", is, told);
        }

        #[test]
        fn written_and_read_it_is_the_same(values in prop::collection::vec(0u64..=LARGEST, 0..100), more in prop::collection::vec(0u64..1000, 0..50)) {
            let (mut a, mut b) = (Histogram::new(), Histogram::new());
            values.iter().for_each(|v| a.add(*v));
            more.iter().for_each(|v| b.add(*v));
            let text = serde_json::to_string(&a).unwrap();
            let back: Histogram = serde_json::from_str(&text).unwrap();
            prop_assert_eq!(&back, &a);
            a.merge(&b);
            prop_assert_eq!(a.count(), (values.len() + more.len()) as u64);
        }
    }
}
