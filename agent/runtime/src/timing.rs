//! Microseconds of each step.

use std::time::Instant;

/// Steps in the order they were taken.
#[derive(Debug, Clone)]
pub(crate) struct Timing {
    last: Instant,
    pub(crate) steps: Vec<(String, u64)>,
}

impl Timing {
    pub(crate) fn begin() -> Self {
        Self {
            last: Instant::now(),
            steps: Vec::with_capacity(16),
        }
    }

    /// Everything since the last mark was `step`.
    pub(crate) fn mark(&mut self, step: &str) {
        let now = Instant::now();
        self.steps
            .push((step.to_owned(), now.duration_since(self.last).as_micros() as u64));
        self.last = now;
    }

    /// Forget the time between two calls.
    pub(crate) fn resume(&mut self) {
        self.last = Instant::now();
    }
}
