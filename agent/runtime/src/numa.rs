//! `linux.memoryPolicy`: from which memory nodes a container's processes get their memory, set_mempolicy(2).
//!
//! Invariants: it is set by the process itself once its cgroup holds it, for the kernel takes nodes of its cpuset
//! alone; what it inherits over exec and fork is read back with get_mempolicy(2) before the program runs.

use berth_rt::cpu::CpuSet;
use nix::errno::Errno;
use oci_spec::runtime::{LinuxMemoryPolicy, MemoryPolicyFlagType as Flag, MemoryPolicyModeType as Mode};
use serde::{Deserialize, Serialize};

use crate::report::{Failure, Inside, Step};
use crate::sys::process as sys;

const FIELD: &str = "linux.memoryPolicy";

/// linux/mempolicy.h, in the order of its numbers.
const MODES: [&str; 7] = [
    "MPOL_DEFAULT",
    "MPOL_PREFERRED",
    "MPOL_BIND",
    "MPOL_INTERLEAVE",
    "MPOL_LOCAL",
    "MPOL_PREFERRED_MANY",
    "MPOL_WEIGHTED_INTERLEAVE",
];
const FLAGS: [(u32, &str); 3] = [
    (1 << 15, "MPOL_F_STATIC_NODES"),
    (1 << 14, "MPOL_F_RELATIVE_NODES"),
    (1 << 13, "MPOL_F_NUMA_BALANCING"),
];

/// One policy, in the kernel's numbers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct MemoryPolicy {
    /// Mode and flags.
    mode: u32,
    nodes: CpuSet,
}

impl MemoryPolicy {
    /// In the specification's words; or why it makes no sense.
    pub(crate) fn of(wanted: &LinuxMemoryPolicy) -> Result<Self, String> {
        let mut mode = match wanted.mode() {
            Mode::MpolDefault => 0,
            Mode::MpolPreferred => 1,
            Mode::MpolBind => 2,
            Mode::MpolInterleave => 3,
            Mode::MpolLocal => 4,
            Mode::MpolPreferredMany => 5,
            Mode::MpolWeightedInterleave => 6,
        };
        for flag in wanted.flags().iter().flatten() {
            mode |= match flag {
                Flag::MpolFStaticNodes => FLAGS[0].0,
                Flag::MpolFRelativeNodes => FLAGS[1].0,
                Flag::MpolFNumaBalancing => FLAGS[2].0,
            };
        }
        let text = wanted.nodes().as_deref().unwrap_or_default();
        let nodes: CpuSet = match text {
            "" => CpuSet::new(),
            text => text.parse().map_err(|e| format!("nodes `{text}`: {e}"))?,
        };
        if nodes.last().is_some_and(|n| n as usize >= sys::NODES) {
            return Err(format!("nodes `{text}`: the kernel has at most {}", sys::NODES));
        }
        let needs = matches!(mode & 0xff, 2 | 3 | 5 | 6);
        match (needs, nodes.is_empty()) {
            (true, true) => Err(format!("{} without nodes", MODES[mode as usize & 0xff])),
            // What the kernel makes of it: nobody is preferred but where one runs.
            (false, true) if mode == 1 => Ok(Self { mode: 4, nodes }),
            _ => Ok(Self { mode, nodes }),
        }
    }

    /// Mode, flags, nodes.
    fn words(&self) -> String {
        let mode = MODES.get(self.mode as usize & 0xff).map_or("unknown", |m| *m);
        let mut words = vec![mode.to_owned()];
        let set = FLAGS.iter().filter(|(bit, _)| self.mode & bit != 0);
        words.extend(set.map(|(_, name)| (*name).to_owned()));
        if !self.nodes.is_empty() {
            words.push(self.nodes.to_string());
        }
        words.join(" ")
    }

    /// In force for the calling process, and what the kernel says of it.
    pub(crate) fn enter(&self) -> Result<Inside, Failure> {
        sys::set_memory_policy(self.mode, self.nodes.iter()).map_err(|errno| {
            let mut failure = Failure::new("set", FIELD, errno);
            failure.detail = match errno {
                Errno::EINVAL => format!(
                    "{}: a node is not there, or not among linux.resources.cpu.mems",
                    self.words()
                ),
                _ => self.words(),
            };
            failure
        })?;
        let (mode, nodes) = sys::memory_policy().step("read back", FIELD)?;
        let actual = Self {
            mode,
            nodes: nodes.into_iter().collect(),
        };
        let source = "get_mempolicy(2) inside, before exec".to_owned();
        Ok(["memory.policy".into(), self.words(), actual.words(), source])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(json: &str) -> Result<String, String> {
        MemoryPolicy::of(&serde_json::from_str(json).unwrap()).map(|p| p.words())
    }

    #[test]
    fn a_policy_in_words() {
        for (json, words) in [
            (
                r#"{"mode": "MPOL_BIND", "nodes": "0-1,3", "flags": ["MPOL_F_STATIC_NODES"]}"#,
                "MPOL_BIND MPOL_F_STATIC_NODES 0-1,3",
            ),
            (r#"{"mode": "MPOL_PREFERRED", "nodes": ""}"#, "MPOL_LOCAL"),
            (r#"{"mode": "MPOL_DEFAULT"}"#, "MPOL_DEFAULT"),
        ] {
            assert_eq!(of(json).as_deref(), Ok(words));
        }
        for (json, word) in [
            (r#"{"mode": "MPOL_INTERLEAVE"}"#, "without nodes"),
            (r#"{"mode": "MPOL_BIND", "nodes": "x"}"#, "nodes `x`"),
            (r#"{"mode": "MPOL_BIND", "nodes": "5000"}"#, "at most"),
        ] {
            assert!(of(json).unwrap_err().contains(word), "{json}");
        }
    }
}
