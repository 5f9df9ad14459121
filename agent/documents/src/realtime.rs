//! What a workload asks of the node's knobs while it runs: idle states, clock, interrupts, huge pages of its own cores,
//! and the same by CRI-O's annotations.
//!
//! Invariant: after [`WorkloadSpec::fold`] the fields alone say it: annotations and `realtime.cpus` are gone, and what
//! they said twice agreed.

use berth_rt::node::{KiloHertz, PageSize};
use serde::{Deserialize, Serialize};

use crate::document::{Metadata, shown};
use crate::fault::Problem;
use crate::values::Duration;
use crate::workload::{CpuRequest, Isolation, Realtime, WorkloadSpec};

/// What happens where the node lacks what is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Class {
    /// The launch is refused.
    Hard,
    /// The proof says so, and it runs.
    Soft,
}

/// Interrupts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Irqs {
    /// As they are.
    Leave,
    /// Off its cores.
    Away,
    /// Off its cores but the first, which takes them: two cores or more.
    First,
    /// Off its cores, and those of its own devices onto them.
    Device,
}

/// Idle states of its cores.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum CStates {
    /// All, whatever the node's document says.
    Enable,
    /// None but polling.
    Disable,
    /// Those that are left within this time, whole microseconds, at least 1us.
    MaxLatency(Duration),
}

/// The clock of its cores.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Clock {
    /// `scaling_governor`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub governor: Option<String>,
    /// Least.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min: Option<KiloHertz>,
    /// Most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max: Option<KiloHertz>,
}

/// Huge pages that no other workload claims.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HugePages {
    /// Their size.
    pub size: PageSize,
    /// How many, at least 1.
    pub count: u32,
}

impl Realtime {
    /// Whether anything of the node's knobs is asked for.
    #[must_use]
    pub fn wishes(&self) -> bool {
        self.class.is_some()
            || self.latency_target.is_some()
            || self.irqs.is_some()
            || self.c_states.is_some()
            || self.frequency.is_some()
            || !self.hugepages.is_empty()
            || self.share.is_some()
    }

    /// What is wrong with those wishes of a workload with so many cores; `None`: on shared cores.
    pub(crate) fn check_wishes(&self, cores: Option<u32>, problems: &mut Vec<Problem>) {
        let at = |field: &str, found: String| Problem::new(format!("spec.realtime.{field}"), found);
        for (field, there) in [
            ("class", self.class.is_some()),
            ("latencyTarget", self.latency_target.is_some()),
            ("irqs", self.irqs.is_some()),
            ("cStates", self.c_states.is_some()),
            ("frequency", self.frequency.is_some()),
            ("share", self.share.is_some()),
        ] {
            if there && cores.is_none() {
                problems.push(
                    at(field, "for shared cores".into())
                        .expected("whole cores")
                        .hint("what is set for a core is set for all that run there: set spec.cpus to a number of cores, or the Node document")
                        .rests_on(&["spec.cpus"]),
                );
            }
        }
        if self.irqs == Some(Irqs::First) && cores == Some(1) {
            problems.push(
                at("irqs", "`first` with one core".into())
                    .expected("two cores or more")
                    .hint(
                        "interrupts go to the first core in the place of the others: `away` is for one core",
                    )
                    .rests_on(&["spec.cpus"]),
            );
        }
        if self.latency_target.is_some_and(|target| target.as_nanos() == 0) {
            problems.push(at("latencyTarget", "found 0s".into()).expected("1ns or more"));
        }
        match self.c_states {
            Some(CStates::MaxLatency(most)) if most.as_micros() == 0 || most.as_nanos() % 1000 != 0 => {
                problems.push(
                    at("cStates.maxLatency", format!("found {most}"))
                        .expected("whole microseconds, 1us or more")
                        .hint("`cStates: disable` is for no idle state at all"),
                );
            }
            Some(CStates::Enable) if self.latency_target.is_some() => problems.push(
                at("cStates", "`enable` beside a latencyTarget".into())
                    .expected("one of them")
                    .hint("a latencyTarget keeps idle states out that take longer to leave"),
            ),
            _ => {}
        }
        let longest = Duration::from_secs(2000);
        for (field, time) in [
            ("latencyTarget", self.latency_target),
            (
                "cStates.maxLatency",
                match self.c_states {
                    Some(CStates::MaxLatency(most)) => Some(most),
                    _ => None,
                },
            ),
        ] {
            if let Some(time) = time.filter(|time| *time > longest) {
                problems.push(at(field, format!("found {time}")).expected("at most 2000s"));
            }
        }
        if let Some(clock) = &self.frequency {
            let name = |text: &String| {
                !text.is_empty()
                    && text.len() < 16
                    && text
                        .bytes()
                        .all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-')
            };
            if let Some(governor) = clock.governor.as_ref().filter(|text| !name(text)) {
                problems.push(
                    at("frequency.governor", format!("found `{}`", shown(governor)))
                        .expected("the name of a governor, such as performance"),
                );
            }
            if let (Some(min), Some(max)) = (clock.min, clock.max)
                && min > max
            {
                problems.push(
                    at("frequency.min", format!("{min} above {max}")).expected("at most frequency.max"),
                );
            }
            if *clock == Clock::default() {
                problems
                    .push(at("frequency", "nothing is asked for".into()).expected("governor, min or max"));
            }
        }
        for (index, pages) in self.hugepages.iter().enumerate() {
            if pages.count == 0 {
                problems
                    .push(at(&format!("hugepages[{index}].count"), "found 0".into()).expected("1 or more"));
            }
            if self.hugepages[..index]
                .iter()
                .any(|other| other.size == pages.size)
            {
                let twice = format!("{} a second time", pages.size);
                problems.push(at(&format!("hugepages[{index}].size"), twice).expected("each size once"));
            }
        }
        if let Some(share) = self.share.filter(|share| !(1..=100).contains(share)) {
            problems.push(at("share", format!("found {share}")).expected("percent of each core, 1 to 100"));
        }
        let realtime = self
            .scheduler
            .as_ref()
            .is_some_and(|s| matches!(s.policy, crate::Policy::Fifo | crate::Policy::Rr));
        if self.share.is_some() && !realtime {
            problems.push(
                at("share", "without policy fifo or rr".into())
                    .expected("a scheduler of policy fifo or rr")
                    .hint("a deadline policy says its share by runtime and period; others have none")
                    .rests_on(&["spec.realtime.scheduler"]),
            );
        }
    }
}

/// What an annotation says: nothing that berth would not do anyway, or a field's value.
fn said(key: &str, value: &str) -> Result<Option<Realtime>, (&'static str, Option<&'static str>)> {
    let latency = |text: &str| {
        let micros: u32 = text.parse().ok().filter(|us| *us > 0)?;
        Some(CStates::MaxLatency(Duration::from_nanos(
            u64::from(micros) * 1000,
        )))
    };
    let some = |realtime: Realtime| Ok(Some(realtime));
    // CRI-O's older word for it, in these three.
    let value = match (key, value) {
        ("cpu-quota.crio.io" | "cpu-load-balancing.crio.io" | "irq-load-balancing.crio.io", "true") => {
            "disable"
        }
        _ => value,
    };
    match (key, value) {
        // berth gives no quota, and `isolation` is the spec's own field.
        ("cpu-quota.crio.io" | "cpu-load-balancing.crio.io", "disable") => Ok(None),
        ("cpu-quota.crio.io", _) => Err(("disable", Some("berth sets no CPU quota"))),
        ("cpu-load-balancing.crio.io", _) => Err((
            "disable",
            Some("without it cores are balanced where the node cannot isolate"),
        )),
        ("irq-load-balancing.crio.io", "disable" | "housekeeping") => some(Realtime {
            irqs: Some(match value {
                "disable" => Irqs::Away,
                _ => Irqs::First,
            }),
            ..Realtime::default()
        }),
        ("irq-load-balancing.crio.io", _) => Err(("disable or housekeeping", None)),
        ("cpu-shared.crio.io", _) => Err((
            "no such annotation",
            Some(
                "whole cores and shared ones are not mixed in one workload: declare the work without real time as another, with `cpus: shared`",
            ),
        )),
        ("cpu-c-states.crio.io", value) => {
            let states = match value {
                "enable" => Some(CStates::Enable),
                "disable" => Some(CStates::Disable),
                value => value.strip_prefix("max_latency:").and_then(latency),
            };
            match states {
                Some(states) => some(Realtime {
                    c_states: Some(states),
                    ..Realtime::default()
                }),
                None => Err(("enable, disable or max_latency:MICROSECONDS", None)),
            }
        }
        ("cpu-freq-governor.crio.io", governor) => some(Realtime {
            frequency: Some(Clock {
                governor: Some(governor.to_owned()),
                ..Clock::default()
            }),
            ..Realtime::default()
        }),
        _ => Err((
            "cpu-load-balancing, cpu-quota, irq-load-balancing, cpu-c-states or cpu-freq-governor, each with .crio.io",
            Some("what is for people belongs into metadata.labels"),
        )),
    }
}

impl WorkloadSpec {
    /// Takes annotations and `realtime.cpus` into the fields they are other words for.
    pub(crate) fn fold(&mut self, metadata: &mut Metadata) -> Vec<Problem> {
        let mut problems = Vec::new();
        for (key, value) in std::mem::take(&mut metadata.annotations) {
            let path = format!("metadata.annotations.{key}");
            let text = format!("annotation `{}: {}`", shown(&key), shown(&value));
            match said(&key, &value) {
                Err((expected, hint)) => {
                    let problem = Problem::new(&path, text).expected(expected);
                    problems.push(match hint {
                        Some(hint) => problem.hint(hint),
                        None => problem,
                    });
                }
                Ok(None) if key.starts_with("cpu-load") => self.isolation = Isolation::Required,
                Ok(None) => {}
                Ok(Some(said)) => {
                    let into = self.realtime.get_or_insert_with(Realtime::default);
                    if let Some(field) = take(into, said) {
                        problems.push(
                            Problem::new(&path, format!("{text} beside another `{field}`"))
                                .expected("the same, or one of them"),
                        );
                    }
                }
            }
        }
        let asked = self.realtime.as_mut().and_then(|realtime| realtime.cpus.take());
        match (asked, self.cpus) {
            (None, _) => {}
            (Some(asked), CpuRequest::Shared) => self.cpus = asked,
            (Some(asked), cpus) if asked == cpus => {}
            (Some(asked), cpus) => problems.push(
                Problem::new(
                    "spec.realtime.cpus",
                    format!("found {asked} beside spec.cpus {cpus}"),
                )
                .expected("the same, or one of them"),
            ),
        }
        if self.realtime == Some(Realtime::default()) {
            self.realtime = None;
        }
        problems
    }
}

/// Takes what an annotation said; the field that says otherwise, if one does.
fn take(into: &mut Realtime, said: Realtime) -> Option<&'static str> {
    fn one<T: PartialEq>(into: &mut Option<T>, said: Option<T>) -> bool {
        match (&*into, said) {
            (_, None) => true,
            (Some(there), Some(said)) => *there == said,
            (None, said) => {
                *into = said;
                true
            }
        }
    }
    if !one(&mut into.irqs, said.irqs) {
        return Some("irqs");
    }
    if !one(&mut into.c_states, said.c_states) {
        return Some("cStates");
    }
    if let Some(clock) = said.frequency {
        let there = into.frequency.get_or_insert_with(Clock::default);
        if !one(&mut there.governor, clock.governor) {
            return Some("frequency.governor");
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Set, Source, check_sources};
    use std::path::PathBuf;

    fn read(metadata: &str, spec: &str) -> (Set, Vec<String>) {
        let text = format!(
            "apiVersion: berth/v1\nkind: Workload\nmetadata: {{name: a{metadata}}}\nspec:\n  image: a:1\n{spec}\n"
        );
        let source = Source {
            name: PathBuf::from("a.yaml"),
            text,
        };
        let report = check_sources(&[source], &Set::default());
        let faults = report.faults.iter().map(|f| format!("{}: {}", f.path, f.message));
        (report.set.clone(), faults.collect())
    }

    #[test]
    fn every_wish_is_read() {
        let (set, faults) = read(
            "",
            "  realtime:\n    class: soft\n    cpus: 2\n    scheduler: {policy: fifo, priority: 10}\n    latencyTarget: 50us\n    irqs: device\n    cStates: {maxLatency: 20us}\n    frequency: {governor: performance, min: 1GHz, max: 2GHz}\n    hugepages: [{size: 2M, count: 8}]\n    share: 95",
        );
        assert_eq!(faults, Vec::<String>::new());
        let spec = &set.workloads["a"].spec;
        let realtime = spec.realtime.as_ref().unwrap();
        assert_eq!(spec.cpus.to_string(), "2");
        assert_eq!(
            (realtime.cpus, realtime.class, realtime.irqs),
            (None, Some(Class::Soft), Some(Irqs::Device))
        );
        assert_eq!(
            realtime.c_states,
            Some(CStates::MaxLatency(Duration::from_nanos(20_000)))
        );
        assert_eq!(
            (realtime.hugepages[0].size.kib(), realtime.share),
            (2048, Some(95))
        );
    }

    #[test]
    fn annotations_are_other_words() {
        let (set, faults) = read(
            ", annotations: {cpu-quota.crio.io: disable, cpu-load-balancing.crio.io: disable, irq-load-balancing.crio.io: disable, cpu-c-states.crio.io: \"max_latency:10\", cpu-freq-governor.crio.io: performance}",
            "  cpus: 1",
        );
        let (same, _) = read(
            "",
            "  cpus: 1\n  isolation: required\n  realtime: {irqs: away, cStates: {maxLatency: 10us}, frequency: {governor: performance}}",
        );
        assert_eq!(faults, Vec::<String>::new());
        assert_eq!(set.workloads["a"].spec, same.workloads["a"].spec);
        assert!(set.workloads["a"].metadata.annotations.is_empty());
        let (set, faults) = read(
            ", annotations: {cpu-quota.crio.io: \"true\", cpu-load-balancing.crio.io: \"true\", irq-load-balancing.crio.io: housekeeping}",
            "  cpus: 2",
        );
        let (same, _) = read("", "  cpus: 2\n  isolation: required\n  realtime: {irqs: first}");
        assert_eq!(faults, Vec::<String>::new());
        assert_eq!(set.workloads["a"].spec, same.workloads["a"].spec);
    }

    #[test]
    fn what_makes_no_sense_is_refused_at_its_place() {
        for (metadata, spec, path) in [
            ("", "  realtime: {irqs: away}", "spec.realtime.irqs"),
            ("", "  cpus: 1\n  realtime: {cpus: 2}", "spec.realtime.cpus"),
            (
                "",
                "  cpus: 1\n  realtime: {latencyTarget: 0s}",
                "spec.realtime.latencyTarget",
            ),
            (
                "",
                "  cpus: 1\n  realtime: {latencyTarget: 1h}",
                "spec.realtime.latencyTarget",
            ),
            (
                "",
                "  cpus: 1\n  realtime: {cStates: {maxLatency: 1500ns}}",
                "spec.realtime.cStates.maxLatency",
            ),
            (
                "",
                "  cpus: 1\n  realtime: {cStates: enable, latencyTarget: 1us}",
                "spec.realtime.cStates",
            ),
            (
                "",
                "  cpus: 1\n  realtime: {frequency: {}}",
                "spec.realtime.frequency",
            ),
            (
                "",
                "  cpus: 1\n  realtime: {frequency: {governor: \"a/b\"}}",
                "spec.realtime.frequency.governor",
            ),
            (
                "",
                "  cpus: 1\n  realtime: {frequency: {min: 2GHz, max: 1GHz}}",
                "spec.realtime.frequency.min",
            ),
            (
                "",
                "  realtime: {hugepages: [{size: 2M, count: 0}]}",
                "spec.realtime.hugepages[0].count",
            ),
            (
                "",
                "  realtime: {hugepages: [{size: 2M, count: 1}, {size: 2M, count: 1}]}",
                "spec.realtime.hugepages[1].size",
            ),
            ("", "  cpus: 1\n  realtime: {share: 50}", "spec.realtime.share"),
            (
                "",
                "  cpus: 1\n  realtime: {scheduler: {policy: fifo, priority: 1}, share: 101}",
                "spec.realtime.share",
            ),
            (", annotations: {a: b}", "  cpus: 1", "metadata.annotations.a"),
            (
                ", annotations: {cpu-quota.crio.io: enable}",
                "  cpus: 1",
                "metadata.annotations.cpu-quota.crio.io",
            ),
            (
                ", annotations: {irq-load-balancing.crio.io: enable}",
                "  cpus: 1",
                "metadata.annotations.irq-load-balancing.crio.io",
            ),
            (
                ", annotations: {irq-load-balancing.crio.io: housekeeping}",
                "  cpus: 1",
                "spec.realtime.irqs",
            ),
            (
                ", annotations: {cpu-shared.crio.io: enable}",
                "  cpus: 1",
                "metadata.annotations.cpu-shared.crio.io",
            ),
            (
                ", annotations: {cpu-c-states.crio.io: \"max_latency:x\"}",
                "  cpus: 1",
                "metadata.annotations.cpu-c-states.crio.io",
            ),
            (
                ", annotations: {cpu-c-states.crio.io: disable}",
                "  cpus: 1\n  realtime: {cStates: enable}",
                "metadata.annotations.cpu-c-states.crio.io",
            ),
            (
                ", annotations: {cpu-c-states.crio.io: disable}",
                "",
                "spec.realtime.cStates",
            ),
        ] {
            let (_, faults) = read(metadata, spec);
            assert!(
                faults.iter().any(|fault| fault.starts_with(&format!("{path}: "))),
                "{path}: {faults:?}"
            );
        }
    }
}
