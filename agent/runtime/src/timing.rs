//! Microseconds of each step.

use std::time::{Duration, Instant};

use nix::time::{ClockId, clock_gettime};

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

    /// `step` took this long of the time since the last mark; the rest of it belongs to no step.
    pub(crate) fn took(&mut self, step: &str, time: Duration) {
        self.steps.push((step.to_owned(), time.as_micros() as u64));
        self.last = Instant::now();
    }

    /// Forget the time between two calls.
    pub(crate) fn resume(&mut self) {
        self.last = Instant::now();
    }
}

/// CPU time that this thread has used.
pub(crate) fn thread_time() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map_or(Duration::ZERO, Duration::from)
}
