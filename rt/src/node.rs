//! The `spec` of a `Node` document: which CPUs are kept for housekeeping, which are given away, and how much real time
//! there is for workloads. Checked against the topology; together they make the [`Pool`] of the placement.
//!
//! A field that is not given is filled so that nothing is lost: what is not isolated is housekeeping and the other way round;
//! without both, the core of the lowest CPU is housekeeping and every other core is given away.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::cgroup::Support;
use crate::cpu::CpuSet;
use crate::placement::{Core, Pool};
use crate::topology::Topology;

/// `spec` of `kind: Node`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct NodeSpec {
    /// The CPUs.
    pub cpus: NodeCpus,
    /// Real time.
    pub realtime: NodeRealtime,
}

/// `spec.cpus` of a node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct NodeCpus {
    /// Where everything runs that is not given a core.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub housekeeping: Option<CpuSet>,
    /// The CPUs that are given away as whole cores.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub isolated: Option<CpuSet>,
}

/// `spec.realtime` of a node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct NodeRealtime {
    /// Real-time budget of all workloads together; what the kernel has when not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub budget: Option<PerSecond>,
}

/// A share of each second in microseconds, written `900ms`, `900000us` or `1s`; above 0, at most a second.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PerSecond(u64);

impl PerSecond {
    /// Microseconds of each second.
    #[must_use]
    pub fn us(self) -> u64 {
        self.0
    }
}

impl FromStr for PerSecond {
    type Err = String;

    fn from_str(text: &str) -> Result<PerSecond, String> {
        let bad = || format!("`{text}` is not a share of a second: expected such as 900ms, 900000us or 1s");
        let digits = text.bytes().take_while(u8::is_ascii_digit).count();
        let (number, unit) = text.split_at(digits);
        let factor = match unit {
            "us" => 1,
            "ms" => 1_000,
            "s" => 1_000_000,
            _ => return Err(bad()),
        };
        let us = number
            .parse::<u64>()
            .ok()
            .and_then(|number| number.checked_mul(factor))
            .ok_or_else(bad)?;
        if us == 0 || us > 1_000_000 {
            return Err(format!("`{text}` is not above 0 and at most 1s"));
        }
        Ok(PerSecond(us))
    }
}

impl fmt::Display for PerSecond {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            us if us % 1_000_000 == 0 => write!(f, "{}s", us / 1_000_000),
            us if us % 1_000 == 0 => write!(f, "{}ms", us / 1_000),
            us => write!(f, "{us}us"),
        }
    }
}

impl TryFrom<String> for PerSecond {
    type Error = String;

    fn try_from(text: String) -> Result<PerSecond, String> {
        text.parse()
    }
}

impl From<PerSecond> for String {
    fn from(share: PerSecond) -> String {
        share.to_string()
    }
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
    /// The housekeeping and the isolated CPUs, with what is not given filled in.
    #[must_use]
    pub fn cpus(&self, topology: &Topology) -> (CpuSet, CpuSet) {
        let online = topology.online();
        match (&self.cpus.housekeeping, &self.cpus.isolated) {
            (Some(housekeeping), Some(isolated)) => (housekeeping.clone(), isolated.clone()),
            (Some(housekeeping), None) => (housekeeping.clone(), online.difference(housekeeping)),
            (None, Some(isolated)) => (online.difference(isolated), isolated.clone()),
            (None, None) => {
                let first = topology.cpus.iter().find(|cpu| cpu.online);
                let housekeeping = first
                    .map(|cpu| cpu.siblings.intersection(&online))
                    .unwrap_or_default();
                let isolated = online.difference(&housekeeping);
                (housekeeping, isolated)
            }
        }
    }

    /// Everything that is wrong with the document on a node of this topology; empty when it is good.
    #[must_use]
    pub fn validate(&self, topology: &Topology) -> Vec<Problem> {
        let mut problems = Vec::new();
        let mut add = |path: &str, message: String, hint: Option<String>| {
            problems.push(Problem {
                path: path.into(),
                message,
                hint,
            });
        };
        let online = topology.online();
        let given = [
            ("spec.cpus.housekeeping", &self.cpus.housekeeping),
            ("spec.cpus.isolated", &self.cpus.isolated),
        ];
        for (path, cpus) in given
            .iter()
            .filter_map(|(path, cpus)| Some((path, cpus.as_ref()?)))
        {
            let absent = cpus.difference(&online);
            if !absent.is_empty() {
                let message = format!("CPUs {absent} are not online");
                add(
                    path,
                    message,
                    Some(format!("the node's online CPUs are {online}")),
                );
            }
        }
        let (housekeeping, isolated) = self.cpus(topology);
        let both = housekeeping.intersection(&isolated);
        if !both.is_empty() {
            let message = format!("CPUs {both} are in spec.cpus.housekeeping too");
            add(
                "spec.cpus.isolated",
                message,
                Some(format!("isolated could be {}", isolated.difference(&both))),
            );
        }
        if housekeeping.intersection(&online).is_empty() {
            let hint = "leave at least one core of the online CPUs for the system and for berth itself";
            add(
                "spec.cpus.housekeeping",
                "no CPU is left for housekeeping".into(),
                Some(hint.into()),
            );
        }
        for cpu in topology
            .cpus
            .iter()
            .filter(|cpu| cpu.online && cpu.siblings.first() == Some(cpu.id))
        {
            let threads = cpu.siblings.intersection(&online);
            let inside = threads.intersection(&isolated);
            if !inside.is_empty() && inside != threads && both.is_empty() {
                let message =
                    format!("CPUs {threads} are threads of one core, but only {inside} are isolated");
                let hint = format!("put all of {threads} on one side: a neighbour on the same core disturbs");
                add("spec.cpus.isolated", message, Some(hint));
            }
        }
        problems
    }

    /// The pool that the placement gives from.
    ///
    /// # Errors
    /// What [`validate`](NodeSpec::validate) finds, and a budget that the kernel does not have.
    pub fn pool(&self, topology: &Topology, support: &Support) -> Result<Pool, Vec<Problem>> {
        let mut problems = self.validate(topology);
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
