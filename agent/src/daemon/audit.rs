//! The agent's audit log: who asked what with which role, what was refused, what changed in the configuration, what
//! drifted. The launcher keeps its own of what it was asked and did (berth-launcher's `record`).
//!
//! Invariants: looking is not recorded, changing and being refused is; no value of a document is written, its kind,
//! name and changed fields are; refusals that come faster than [`RATE`] are counted and told in one record, so that
//! nobody can turn the log over by knocking. The disk is waited for one second after the last record, in the
//! agent's loop.

use std::path::Path;
use std::time::{Duration, Instant};

use berth_audit::{AuditError, Chain, Entry, Head, Limits, Sink, Who};
use prometheus::{IntCounter, IntCounterVec, Opts, Registry};
use serde_json::{Value, json};

use crate::api::{Changes, Fault, Op};
use crate::core::{Notice, NoticeKind};

use super::metrics::register;

/// Refused connections and requests that are recorded one by one, each minute.
const RATE: u32 = 30;
/// From a record to its place on the disk.
const SYNC_AFTER: Duration = Duration::from_secs(1);

/// Counters of the log.
pub(crate) struct Metrics {
    records: IntCounterVec,
    failures: IntCounter,
}

impl Metrics {
    pub(super) fn new(registry: &Registry) -> prometheus::Result<Metrics> {
        let opts = Opts::new(
            "berth_audit_records_total",
            "Records of the agent's audit log, by result.",
        );
        let failures = "Records that could not be written, or that journald or syslog did not take.";
        Ok(Metrics {
            records: register(registry, IntCounterVec::new(opts, &["result"]))?,
            failures: register(registry, IntCounter::new("berth_audit_failures_total", failures))?,
        })
    }
}

/// The log.
#[derive(Debug)]
pub(crate) struct Audit {
    chain: Chain,
    sync_at: Option<Instant>,
    /// Head of the launcher's chain that was sealed last.
    sealed: u64,
    minute: Instant,
    refused: u32,
    /// Records lost to the sink that were counted already.
    lost: u64,
}

impl Audit {
    /// Opens STATE/audit/agent.
    pub(super) fn open(folder: &Path, bytes: u64, sink: Sink) -> Result<Audit, AuditError> {
        Ok(Audit {
            chain: Chain::open(folder, Limits { bytes }, sink)?,
            sync_at: None,
            sealed: 0,
            minute: Instant::now(),
            refused: 0,
            lost: 0,
        })
    }

    fn put(&mut self, entry: Entry, metrics: &Metrics) {
        let result = match entry.result.as_str() {
            "ok" => "ok",
            "refused" => "refused",
            _ => "failed",
        };
        match self.chain.append(entry) {
            Ok(_) => metrics.records.with_label_values(&[result]).inc(),
            Err(error) => {
                metrics.failures.inc();
                tracing::error!(%error, hint = error.hint(), "not recorded");
            }
        }
        let lost = self.chain.sink().lost();
        metrics.failures.inc_by(lost - self.lost);
        self.lost = lost;
        self.sync_at.get_or_insert(Instant::now() + SYNC_AFTER);
    }

    /// When [`Audit::sync`] is due.
    pub(super) fn due(&self) -> Option<Instant> {
        self.sync_at
    }

    /// The records so far go to the disk, where that is due.
    pub(super) fn sync(&mut self) {
        if self.sync_at.is_some_and(|at| at <= Instant::now()) {
            self.sync_at = None;
            if let Err(error) = self.chain.sync() {
                tracing::error!(%error, "audit log");
            }
        }
    }

    /// Notes the launcher's head, where it has gone on since.
    pub(super) fn seal(&mut self, launchers: &Path, metrics: &Metrics) {
        if let Ok(Some(head)) = Head::of(launchers)
            && head.seq != self.sealed
        {
            self.sealed = head.seq;
            self.put(Entry::seal("launcher", &head), metrics);
        }
    }

    /// The agent itself: started, sandboxed, ended.
    pub(super) fn agent(&mut self, text: &str, metrics: &Metrics) {
        self.put(Entry::new("agent", "agent", text), metrics);
    }

    /// Something changed in the configuration, or would have.
    pub(super) fn configuration(&mut self, subject: &str, text: String, result: &str, metrics: &Metrics) {
        self.put(Entry::new("configuration", subject, text).result(result), metrics);
    }

    /// Somebody without a right to it asked, or asked what cannot be read.
    pub(super) fn turned_away(&mut self, who: Option<Who>, why: &str, metrics: &Metrics) {
        if self.minute.elapsed() >= Duration::from_secs(60) {
            let more = self.refused.saturating_sub(RATE);
            (self.minute, self.refused) = (Instant::now(), 0);
            if more > 0 {
                let text = format!("{more} more within a minute, not recorded one by one");
                self.put(Entry::new("refused", "api", text).result("refused"), metrics);
            }
        }
        self.refused = self.refused.saturating_add(1);
        if self.refused <= RATE {
            self.put(
                Entry::new("refused", "api", why).result("refused").who(who),
                metrics,
            );
        }
    }

    /// A request that changes something, and how it went.
    pub(super) fn request(&mut self, request: Asked, fault: Option<&Fault>, metrics: &Metrics) {
        let entry = Entry::new("api", &request.subject, request.op).who(Some(request.who));
        let entry = match fault {
            None => entry.detail(request.detail),
            Some(fault) => {
                let mut detail = request.detail;
                detail["why"] = json!(fault.message);
                entry.result("refused").detail(detail)
            }
        };
        self.put(entry, metrics);
    }

    /// What happened, where it belongs here.
    pub(super) fn notice(&mut self, notice: &Notice, metrics: &Metrics) {
        let (kind, result) = match notice.kind {
            NoticeKind::LaunchFailed => ("launch", "failed"),
            NoticeKind::Drift => ("drift", "failed"),
            NoticeKind::Restored => ("restored", "ok"),
            NoticeKind::MonitorLost => ("monitor-lost", "failed"),
            NoticeKind::Refused => ("refused", "refused"),
            NoticeKind::DocumentsRefused => ("configuration", "refused"),
            NoticeKind::Documents => ("configuration", "ok"),
            _ => return,
        };
        self.put(
            Entry::new(kind, &notice.subject, notice.text.clone()).result(result),
            metrics,
        );
    }
}

/// A request that is to be recorded.
#[derive(Debug)]
pub(crate) struct Asked {
    who: Who,
    op: &'static str,
    subject: String,
    detail: Value,
}

impl Asked {
    /// `None` where the request only looks.
    pub(super) fn of(op: &Op, word: &'static str, who: &Who) -> Option<Asked> {
        let names = |names: &[String]| names.join(" ");
        let (subject, detail) = match op {
            Op::Apply(changes) => (documents(changes), json!({})),
            Op::Stop { all: true, .. } => ("(everything)".to_owned(), json!({})),
            Op::Stop { names: list, .. }
            | Op::Start { names: list }
            | Op::Restart { names: list }
            | Op::Freeze { names: list }
            | Op::Thaw { names: list } => (names(list), json!({})),
            Op::Kill { names: list, signal } => (names(list), json!({"signal": signal})),
            Op::Run { name, spec } => (
                name.clone(),
                json!({"image": spec.image, "profile": spec.profile.to_string()}),
            ),
            _ => return None,
        };
        Some(Asked {
            who: who.clone(),
            op: word,
            subject,
            detail,
        })
    }
}

fn documents(changes: &Changes) -> String {
    let set = changes
        .set
        .keys()
        .into_iter()
        .map(|(kind, name)| format!("+{kind}/{name}"));
    let deleted = changes
        .delete
        .iter()
        .map(|(kind, name)| format!("-{kind}/{name}"));
    set.chain(deleted).collect::<Vec<_>>().join(" ")
}
