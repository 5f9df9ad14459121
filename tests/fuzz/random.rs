//! Numbers and mutations from a seed and the number of a case: the same every time.

/// xorshift64*.
pub(crate) struct Random(u64);

/// `PROPTEST_RNG_SEED`, or a fixed one.
pub(crate) fn seed() -> u64 {
    std::env::var("PROPTEST_RNG_SEED")
        .ok()
        .and_then(|s| s.parse().ok())
        .unwrap_or(20_261_121)
}

impl Random {
    pub(crate) fn new(seed: u64, case: usize) -> Random {
        let mut random = Random((seed ^ (case as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15)) | 1);
        for _ in 0..4 {
            random.next();
        }
        random
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// Below `end`, which is not 0.
    pub(crate) fn below(&mut self, end: usize) -> usize {
        usize::try_from((self.next() >> 11) % end.max(1) as u64).unwrap_or(0)
    }

    pub(crate) fn pick<'a, T>(&mut self, of: &'a [T]) -> &'a T {
        &of[self.below(of.len())]
    }

    /// A few bytes changed, cut out, doubled or put in.
    pub(crate) fn mutate(&mut self, bytes: &mut Vec<u8>) {
        for _ in 0..=self.below(6) {
            if bytes.is_empty() {
                return;
            }
            let at = self.below(bytes.len());
            let len = self.below(16).min(bytes.len() - at);
            match self.below(5) {
                0 => bytes[at] ^= 1 << self.below(8),
                1 => bytes[at] = self.next() as u8,
                2 => drop(bytes.drain(at..at + len)),
                3 => {
                    let copy = bytes[at..at + len].to_vec();
                    bytes.splice(at..at, copy);
                }
                _ => bytes.insert(at, *self.pick(b"\0\"{}[]:,/.\\-0\xff\x80")),
            }
        }
    }
}
