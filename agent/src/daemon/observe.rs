//! Metrics of containers: phases, launches, ends, restarts, drift, lost output, cores and budget.

use std::collections::BTreeSet;

use berth_launcher::wire::Exit;
use prometheus::{
    Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
};

use crate::core::instance::Phase;
use crate::core::{Event, NoticeKind, Report, State};

use super::metrics::register;

/// Counters and gauges of containers.
pub(crate) struct Metrics {
    phases: IntGaugeVec,
    launches: IntCounterVec,
    exits: IntCounterVec,
    restarts: IntCounter,
    drift: IntCounter,
    facts: IntCounterVec,
    drifting: IntGauge,
    starved: IntGauge,
    loud: IntGauge,
    dropped: IntCounter,
    uevents_held: IntCounter,
    adopted: IntCounter,
    monitors_lost: IntCounter,
    refused_places: IntCounter,
    cpus: IntGauge,
    budget: IntGauge,
    /// Request sent → first instruction.
    pub launch_seconds: Histogram,
    /// Device event read → request sent.
    pub plug_seconds: Histogram,
}

impl Metrics {
    pub(super) fn new(registry: &Registry) -> prometheus::Result<Metrics> {
        let counter = |name, help| register(registry, IntCounter::new(name, help));
        let gauge = |name, help| register(registry, IntGauge::new(name, help));
        let vec = |name, help, label| register(registry, IntCounterVec::new(Opts::new(name, help), &[label]));
        let histogram = |name, help, buckets: &[f64]| {
            register(
                registry,
                Histogram::with_opts(HistogramOpts::new(name, help).buckets(buckets.to_vec())),
            )
        };
        let phases = Opts::new("berth_containers", "Containers, by phase.");
        Ok(Metrics {
            phases: register(registry, IntGaugeVec::new(phases, &["phase"]))?,
            launches: vec("berth_launches_total", "Launches, by result.", "result")?,
            exits: vec("berth_exits_total", "Containers that ended, by how.", "how")?,
            restarts: counter("berth_restarts_total", "Restarts by policy.")?,
            facts: vec(
                "berth_drift_facts_total",
                "Times that a fact was told as drift, by its name.",
                "fact",
            )?,
            drift: counter("berth_drift_total", "Times that a proven fact no longer held.")?,
            drifting: gauge(
                "berth_containers_drifting",
                "Containers with a fact that does not hold.",
            )?,
            starved: gauge(
                "berth_kernel_threads_starved",
                "Kernel threads that do not get a CPU of a real-time container.",
            )?,
            loud: gauge(
                "berth_containers_loud",
                "Live containers with a loud security profile, such as privileged.",
            )?,
            dropped: counter("berth_log_dropped_bytes_total", "Bytes of output lost.")?,
            uevents_held: counter(
                "berth_uevents_held_total",
                "Device events not passed on into a container: too many came.",
            )?,
            adopted: counter(
                "berth_adopted_total",
                "Containers found again after a restart of the agent.",
            )?,
            monitors_lost: counter(
                "berth_monitors_lost_total",
                "Monitors that died, each with its container.",
            )?,
            refused_places: counter(
                "berth_placement_refusals_total",
                "Times that a container found no place.",
            )?,
            cpus: gauge("berth_cpus_given", "CPUs given away as whole cores.")?,
            budget: gauge(
                "berth_rt_budget_held_us",
                "Real-time budget held, microseconds of each second.",
            )?,
            launch_seconds: histogram(
                "berth_launch_seconds",
                "From the launch request to the first instruction.",
                &[
                    0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.125, 0.25, 0.5, 1.0, 4.0,
                ],
            )?,
            plug_seconds: histogram(
                "berth_plug_seconds",
                "From the device event read to the launch request sent.",
                &[
                    0.000_05, 0.000_1, 0.000_2, 0.000_4, 0.000_8, 0.001_6, 0.003_2, 0.01, 0.1, 1.0,
                ],
            )?,
        })
    }

    /// Counts what an event says of a container.
    pub(crate) fn event(&self, event: &Event) {
        let Event::Report { report, .. } = event else {
            return;
        };
        match report {
            Report::Started { .. } => self.launches.with_label_values(&["started"]).inc(),
            Report::Failed(_) | Report::NotLaunched { .. } => {
                self.launches.with_label_values(&["failed"]).inc()
            }
            Report::Exited(exit) => self.exits.with_label_values(&[how(exit)]).inc(),
            Report::Dropped(bytes) => self.dropped.inc_by(*bytes),
            Report::Drift(facts, _) => facts
                .iter()
                .for_each(|fact| self.facts.with_label_values(&[kind(fact)]).inc()),
            _ => {}
        }
    }

    /// Counts what a notice says.
    pub(crate) fn notice(&self, kind: NoticeKind) {
        match kind {
            NoticeKind::Backoff => self.restarts.inc(),
            NoticeKind::Drift => self.drift.inc(),
            NoticeKind::Adopted => self.adopted.inc(),
            NoticeKind::MonitorLost => self.monitors_lost.inc(),
            NoticeKind::Waiting => self.refused_places.inc(),
            _ => {}
        }
    }

    /// Sets the gauges; called when they are asked for.
    pub(crate) fn levels(&self, state: &State) {
        for word in Phase::WORDS {
            let count = state
                .instances
                .values()
                .filter(|i| i.phase.as_str() == word)
                .count();
            self.phases
                .with_label_values(&[word])
                .set(i64::try_from(count).unwrap_or(i64::MAX));
        }
        let held = state.uevents_left_out();
        self.uevents_held
            .inc_by(held.saturating_sub(self.uevents_held.get()));
        let drifting = state.instances.values().filter(|i| !i.drift.is_empty()).count();
        self.drifting.set(i64::try_from(drifting).unwrap_or(i64::MAX));
        let starved: BTreeSet<i32> = (state.instances.values())
            .filter(|i| i.phase == Phase::Running)
            .flat_map(|i| i.starved.iter().map(|s| s.pid))
            .collect();
        self.starved.set(i64::try_from(starved.len()).unwrap_or(i64::MAX));
        let live = state.instances.values().filter(|i| i.phase.is_live());
        let loud = live.filter(|i| state.is_loud(i)).count();
        self.loud.set(i64::try_from(loud).unwrap_or(i64::MAX));
        let held = state.held();
        let given: usize = held
            .iter()
            .map(|h| h.cpus.intersection(&state.node.pool.isolated).len())
            .sum();
        self.cpus.set(i64::try_from(given).unwrap_or(i64::MAX));
        let budget: u64 = held.iter().map(|h| h.rt_runtime_us).sum();
        self.budget.set(i64::try_from(budget).unwrap_or(i64::MAX));
    }
}

fn how(exit: &Exit) -> &'static str {
    match (exit.oom, exit.code, exit.signal) {
        (true, ..) => "oom",
        (_, Some(0), _) => "success",
        (_, Some(_), _) => "failure",
        (_, None, Some(_)) => "signal",
        _ => "unknown",
    }
}

/// The name of a drifted fact as a label: without what tells one device or interface from another.
fn kind(fact: &str) -> &str {
    let end = fact.find(|c: char| !(c.is_ascii_lowercase() || c == '_' || c == '.'));
    fact.get(..end.unwrap_or(fact.len())).unwrap_or_default()
}
