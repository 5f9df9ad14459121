//! The `spec` of a `Node` document: which CPUs are kept for housekeeping, which are given away, how much real time there
//! is for workloads, and how the node itself is tuned ([`crate::knob`]). Checked against the topology; CPUs and budget make
//! the [`Pool`] of the placement.
//!
//! A field of `cpus` that is not given is filled so that nothing is lost: what is not isolated is housekeeping and the other
//! way round; without both, the core of the lowest CPU is housekeeping and every other core is given away. Any other field
//! that is not given leaves the node as it is, unless a hint fills it ([`NodeSpec::effective`]).

mod hints;
mod sections;
mod validate;
mod values;

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::cgroup::Support;
use crate::cpu::CpuSet;
use crate::placement::{Core, Pool};
use crate::topology::Topology;

pub use sections::{
    Frequencies, FrequencyOf, Hints, Hugepage, Hugepages, Interrupts, KernelWants, MachineCheck, MemoryNoise,
    NetDevice, NodeCpus, NodeNetwork, NodeRealtime, Numa, NumaPolicy, Power, Preemption, Priorities, Pstate,
    Transparent, Watchdogs, Workqueues,
};
pub use values::{
    CpuChoice, KiloHertz, PageSize, PerSecond, Priority, Queues, ResumeLatency, Seconds, Share,
};

/// `spec` of `kind: Node`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct NodeSpec {
    /// The CPUs.
    pub cpus: NodeCpus,
    /// Real time.
    pub realtime: NodeRealtime,
    /// What fills fields that are not given.
    #[serde(skip_serializing_if = "Hints::is_empty")]
    pub hints: Hints,
    /// Huge pages.
    #[serde(skip_serializing_if = "Hugepages::is_empty")]
    pub hugepages: Hugepages,
    /// CPU frequencies.
    #[serde(skip_serializing_if = "Frequencies::is_empty")]
    pub frequency: Frequencies,
    /// Idle states.
    #[serde(skip_serializing_if = "Power::is_empty")]
    pub power: Power,
    /// Device interrupts.
    #[serde(skip_serializing_if = "Interrupts::is_empty")]
    pub interrupts: Interrupts,
    /// Memory nodes.
    #[serde(skip_serializing_if = "Numa::is_empty")]
    pub numa: Numa,
    /// Network queues and packet steering.
    #[serde(skip_serializing_if = "NodeNetwork::is_empty")]
    pub network: NodeNetwork,
    /// What the memory management does on its own.
    #[serde(skip_serializing_if = "MemoryNoise::is_empty")]
    pub memory: MemoryNoise,
    /// The kernel's lockup detectors.
    #[serde(skip_serializing_if = "Watchdogs::is_empty")]
    pub watchdogs: Watchdogs,
    /// The kernel's unbound work.
    #[serde(skip_serializing_if = "Workqueues::is_empty")]
    pub workqueues: Workqueues,
    /// Machine checks (x86).
    #[serde(skip_serializing_if = "MachineCheck::is_empty")]
    pub machine_check: MachineCheck,
    /// The kernel and its arguments.
    #[serde(skip_serializing_if = "KernelWants::is_empty")]
    pub kernel: KernelWants,
}

/// Something wrong with a node document on this node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Problem {
    /// The field, such as `spec.cpus.isolated`.
    pub path: String,
    /// What is wrong.
    pub message: String,
    /// What to change.
    pub hint: Option<String>,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path, self.message)?;
        self.hint.iter().try_for_each(|hint| write!(f, " ({hint})"))
    }
}

impl NodeSpec {
    /// The housekeeping and the isolated CPUs, with what is not given filled in; shared and off-lined CPUs are in neither
    /// unless they are named there.
    #[must_use]
    pub fn cpus(&self, topology: &Topology) -> (CpuSet, CpuSet) {
        let mut left = topology.online();
        for taken in [&self.cpus.shared, &self.cpus.offlined].into_iter().flatten() {
            left = left.difference(taken);
        }
        match (&self.cpus.housekeeping, &self.cpus.isolated) {
            (Some(housekeeping), Some(isolated)) => (housekeeping.clone(), isolated.clone()),
            (Some(housekeeping), None) => (housekeeping.clone(), left.difference(housekeeping)),
            (None, Some(isolated)) => (left.difference(isolated), isolated.clone()),
            (None, None) => {
                let first = topology.cpus.iter().find(|cpu| left.contains(cpu.id));
                let housekeeping = first
                    .map(|cpu| cpu.siblings.intersection(&left))
                    .unwrap_or_default();
                let isolated = left.difference(&housekeeping);
                (housekeeping, isolated)
            }
        }
    }

    /// The pool that the placement gives from.
    ///
    /// # Errors
    /// What [`validate`](NodeSpec::validate) finds, and a budget that the kernel does not have.
    pub fn pool(&self, topology: &Topology, support: &Support) -> Result<Pool, Vec<Problem>> {
        let mut problems = self.validate(Some(topology));
        let most = match support {
            Support::PerGroup(budget) | Support::NodeOnly(Some(budget)) => {
                let share = u128::from(budget.runtime_us) * 1_000_000 / u128::from(budget.period_us.max(1));
                u64::try_from(share).unwrap_or(u64::MAX)
            }
            Support::NodeOnly(None) => 1_000_000,
        };
        let rt_budget_us = self.realtime.budget.map_or(most, PerSecond::us);
        if rt_budget_us > most {
            problems.push(Problem {
                path: "spec.realtime.budget".into(),
                message: format!(
                    "{rt_budget_us} us a second are more than the {most} us that the kernel has for real time"
                ),
                hint: Some("lower it, or raise kernel.sched_rt_runtime_us".into()),
            });
        }
        if !problems.is_empty() {
            return Err(problems);
        }
        let (housekeeping, isolated) = self.cpus(topology);
        let online = topology.online();
        let cores = topology
            .cpus
            .iter()
            .filter(|cpu| cpu.online && cpu.siblings.intersection(&online).first() == Some(cpu.id))
            .map(|cpu| Core {
                cpus: cpu.siblings.intersection(&online),
                node: cpu.node,
            })
            .collect();
        Ok(Pool {
            online,
            housekeeping,
            isolated,
            cores,
            memory_nodes: topology.memory_nodes(),
            rt_budget_us,
            numa: self.numa.policy,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cgroup::RtBudget;
    use crate::topology::{Cpu, Node};

    fn set(list: &str) -> CpuSet {
        list.parse().unwrap()
    }

    /// Four CPUs; 2 and 3 are threads of one core; CPU 4 is offline.
    fn topology() -> Topology {
        let cpu = |id, siblings: &str, online| Cpu {
            id,
            core: i64::from(id),
            package: 0,
            node: 0,
            siblings: set(siblings),
            online,
        };
        Topology {
            cpus: vec![
                cpu(0, "0", true),
                cpu(1, "1", true),
                cpu(2, "2-3", true),
                cpu(3, "2-3", true),
                cpu(4, "4", false),
            ],
            nodes: vec![Node {
                id: 0,
                cpus: set("0-4"),
                memory: true,
            }],
            isolated: CpuSet::new(),
            nohz_full: CpuSet::new(),
        }
    }

    fn spec(json: &str) -> NodeSpec {
        serde_json::from_str(json).unwrap()
    }

    const BUDGET: Support = Support::PerGroup(RtBudget {
        runtime_us: 950_000,
        period_us: 1_000_000,
    });

    #[test]
    fn what_is_not_given_is_filled() {
        for (json, housekeeping, isolated) in [
            ("{}", "0", "1-3"),
            (r#"{"cpus":{"housekeeping":"0-1"}}"#, "0-1", "2-3"),
            (r#"{"cpus":{"isolated":"1"}}"#, "0,2-3", "1"),
            (r#"{"cpus":{"housekeeping":"0","isolated":"2-3"}}"#, "0", "2-3"),
            (r#"{"cpus":{"reserved":"0","isolated":"2-3"}}"#, "0", "2-3"),
            (r#"{"cpus":{"isolated":"2-3","shared":"1"}}"#, "0", "2-3"),
            (r#"{"cpus":{"offlined":"1"}}"#, "0", "2-3"),
        ] {
            let pool = spec(json).pool(&topology(), &BUDGET).unwrap();
            assert_eq!(
                (pool.housekeeping, pool.isolated),
                (set(housekeeping), set(isolated)),
                "{json}"
            );
            assert_eq!(pool.rt_budget_us, 950_000);
            assert_eq!(pool.cores.len(), 3);
        }
    }

    #[test]
    fn what_does_not_fit_the_node_is_told_with_its_field() {
        for (json, path, part) in [
            (
                r#"{"cpus":{"isolated":"1,4"}}"#,
                "spec.cpus.isolated",
                "CPUs 4 are not online",
            ),
            (
                r#"{"cpus":{"housekeeping":"0-1","isolated":"1-3"}}"#,
                "spec.cpus.isolated",
                "CPUs 1 are in",
            ),
            (
                r#"{"cpus":{"isolated":"0-3"}}"#,
                "spec.cpus.housekeeping",
                "no CPU is left",
            ),
            (
                r#"{"cpus":{"isolated":"3"}}"#,
                "spec.cpus.isolated",
                "2-3 are threads of one core",
            ),
            (
                r#"{"realtime":{"budget":"960ms"}}"#,
                "spec.realtime.budget",
                "more than the 950000 us",
            ),
        ] {
            let problems = spec(json).pool(&topology(), &BUDGET).unwrap_err();
            assert_eq!(problems.len(), 1, "{json}: {problems:?}");
            assert_eq!(problems[0].path, path);
            assert!(
                problems[0].message.contains(part) && problems[0].hint.is_some(),
                "{json}: {problems:?}"
            );
        }
    }

    #[test]
    fn documents_are_strict() {
        for json in [
            r#"{"cpu":{}}"#,
            r#"{"cpus":{"isolate":"1"}}"#,
            r#"{"cpus":{"isolated":"1-"}}"#,
            r#"{"realtime":{"budget":"0ms"}}"#,
            r#"{"realtime":{"budget":"2s"}}"#,
            r#"{"realtime":{"budget":"900"}}"#,
            r#"{"realtime":{"budget":"ms"}}"#,
        ] {
            assert!(serde_json::from_str::<NodeSpec>(json).is_err(), "{json}");
        }
        let spec = spec(r#"{"cpus":{"isolated":"1"},"realtime":{"budget":"900ms"}}"#);
        assert_eq!(spec.realtime.budget.map(PerSecond::us), Some(900_000));
        let text = serde_json::to_string(&spec).unwrap();
        assert_eq!(text, r#"{"cpus":{"isolated":"1"},"realtime":{"budget":"900ms"}}"#);
    }
}
