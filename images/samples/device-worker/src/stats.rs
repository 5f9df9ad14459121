//! Wake-up latencies in buckets, so that the loop allocates nothing.

use serde_json::{Value, json};

/// Buckets of one microsecond; what is later falls in the last and still counts in the maximum.
const BUCKETS: usize = 10_000;

/// Latencies since the last report.
pub(crate) struct Latencies {
    buckets: Box<[u32]>,
    count: u64,
    min_ns: u64,
    max_ns: u64,
}

impl Latencies {
    pub(crate) fn new() -> Self {
        Self {
            buckets: vec![0; BUCKETS].into_boxed_slice(),
            count: 0,
            min_ns: u64::MAX,
            max_ns: 0,
        }
    }

    pub(crate) fn add(&mut self, ns: u64) {
        let bucket = usize::try_from(ns / 1000).unwrap_or(usize::MAX).min(BUCKETS - 1);
        self.buckets[bucket] = self.buckets[bucket].saturating_add(1);
        self.count += 1;
        self.min_ns = self.min_ns.min(ns);
        self.max_ns = self.max_ns.max(ns);
    }

    pub(crate) fn clear(&mut self) {
        self.buckets.fill(0);
        (self.count, self.min_ns, self.max_ns) = (0, u64::MAX, 0);
    }

    /// The latency in microseconds that `share` per mille of the wake-ups do not pass.
    fn quantile(&self, per_mille: u64) -> u64 {
        let wanted = (self.count * per_mille).div_ceil(1000).max(1);
        let mut seen = 0;
        for (at, count) in self.buckets.iter().enumerate() {
            seen += u64::from(*count);
            if seen >= wanted {
                return if at == BUCKETS - 1 {
                    self.max_ns / 1000
                } else {
                    at as u64
                };
            }
        }
        self.max_ns / 1000
    }

    /// Minimum, median, 99th percentile and maximum in microseconds; null before the first wake-up.
    pub(crate) fn summary(&self) -> Value {
        if self.count == 0 {
            return Value::Null;
        }
        json!({
            "min": self.min_ns / 1000,
            "median": self.quantile(500),
            "p99": self.quantile(990),
            "max": self.max_ns / 1000,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_of_a_known_row() {
        let mut latencies = Latencies::new();
        assert_eq!(latencies.summary(), Value::Null);
        for us in 1..=100 {
            latencies.add(us * 1000);
        }
        assert_eq!(
            latencies.summary(),
            json!({"min": 1, "median": 50, "p99": 99, "max": 100})
        );
        latencies.add(60_000_000);
        assert_eq!(latencies.summary()["max"], 60_000);
        latencies.clear();
        assert_eq!(latencies.summary(), Value::Null);
    }
}
