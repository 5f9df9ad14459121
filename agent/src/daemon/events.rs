//! What happened: a bounded ring with running numbers, the log, and the counters of notices.

use std::collections::VecDeque;
use std::time::{SystemTime, UNIX_EPOCH};

use prometheus::{IntCounterVec, Opts, Registry};

use crate::api::Happening;
use crate::core::{Notice, NoticeKind};

use super::metrics::register;

/// So many are kept.
const KEPT: usize = 4096;

/// Counters of what happened.
pub(crate) struct Metrics {
    happenings: IntCounterVec,
}

impl Metrics {
    pub(super) fn new(registry: &Registry) -> prometheus::Result<Metrics> {
        let opts = Opts::new(
            "berth_events_total",
            "Things that happened, by the word that `berth events` has for them.",
        );
        Ok(Metrics {
            happenings: register(registry, IntCounterVec::new(opts, &["event"]))?,
        })
    }
}

/// The ring.
#[derive(Debug, Default)]
pub(crate) struct Events {
    kept: VecDeque<Happening>,
    last: u64,
}

/// Nanoseconds since the epoch.
pub(crate) fn now_ns() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

/// The word of a kind, as in JSON.
pub(crate) fn word(kind: NoticeKind) -> String {
    match serde_json::to_value(kind) {
        Ok(serde_json::Value::String(word)) => word,
        _ => String::new(),
    }
}

impl Events {
    /// Takes a notice in: ring, log, counter.
    pub(crate) fn push(&mut self, notice: Notice, metrics: &Metrics) -> &Happening {
        let event = word(notice.kind);
        metrics.happenings.with_label_values(&[&event]).inc();
        let Notice { kind, subject, text } = notice;
        match kind {
            NoticeKind::LaunchFailed
            | NoticeKind::GaveUp
            | NoticeKind::Drift
            | NoticeKind::Held
            | NoticeKind::Starved
            | NoticeKind::Dropped
            | NoticeKind::UeventsHeld
            | NoticeKind::Refused
            | NoticeKind::MonitorLost
            | NoticeKind::SweepFailed
            | NoticeKind::DocumentsRefused
            | NoticeKind::Overflow => tracing::warn!(event, subject, "{text}"),
            _ => tracing::info!(event, subject, "{text}"),
        }
        self.last += 1;
        if self.kept.len() == KEPT {
            self.kept.pop_front();
        }
        self.kept.push_back(Happening {
            seq: self.last,
            at: now_ns(),
            event: kind,
            subject,
            text,
        });
        &self.kept[self.kept.len() - 1]
    }

    /// Those with a greater number than `since`.
    pub(crate) fn after(&self, since: u64) -> impl Iterator<Item = &Happening> {
        self.kept.iter().filter(move |h| h.seq > since)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ring_is_bounded_and_numbers_go_on() {
        let metrics = Metrics::new(&Registry::new()).unwrap();
        let mut events = Events::default();
        for n in 0..KEPT + 10 {
            let notice = Notice {
                kind: NoticeKind::Agent,
                subject: "x".into(),
                text: n.to_string(),
            };
            events.push(notice, &metrics);
        }
        assert_eq!(events.kept.len(), KEPT);
        let seen: Vec<u64> = events.after(KEPT as u64 + 7).map(|h| h.seq).collect();
        assert_eq!(seen, [KEPT as u64 + 8, KEPT as u64 + 9, KEPT as u64 + 10]);
    }
}
