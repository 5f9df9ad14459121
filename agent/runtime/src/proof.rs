//! The words of a proof: what was promised beside what the kernel says.
//!
//! [`Promise`] is everything one container is promised, written down by whoever set it up. [`read`] takes the
//! actual values from the kernel alone (procfs, cgroup files, `sched_getattr`, `statx`) and lays the two side
//! by side. What cannot be read does not hold.

mod facts;
mod mounts;
mod namespaces;
mod others;
mod procfs;
mod promise;
mod read;
#[cfg(test)]
mod tests;
mod threads;

pub use promise::{
    CapabilitySets, CgroupFile, FileId, IdMap, InterfacePromise, IsolationPromise, MountPromise,
    NamespaceKind, NamespacePromise, Promise, Rlimit, SeccompPromise,
};
pub use read::{Around, ProofError, Where, around, read, read_cheap, within};

use serde::{Deserialize, Serialize};

/// One promised property and its actual value, read from the kernel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fact {
    /// Stable dotted name: `cgroup.cpuset`, `sched.policy`, `caps.effective`, `seccomp.filters`, ….
    pub name: String,
    /// What was promised.
    pub promised: String,
    /// What the kernel says.
    pub actual: String,
    /// Where it was read: a path and field, or a system call.
    pub source: String,
    /// Does it hold?
    pub holds: bool,
}

/// When a proof was taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stage {
    /// Before exec, of an armed container.
    Armed,
    /// At PTRACE_EVENT_EXEC, before the first user instruction.
    ExecStop,
    /// Later.
    Running,
}

/// Every promise of one container beside what the kernel says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Proof {
    /// Host pid of the first process.
    pub pid: i32,
    /// When in the container's life.
    pub stage: Stage,
    /// Nanoseconds since the epoch.
    pub at: u64,
    /// One line for each fact.
    pub facts: Vec<Fact>,
}

impl Proof {
    /// Do all facts hold?
    pub fn holds(&self) -> bool {
        self.facts.iter().all(|f| f.holds)
    }

    /// The facts that do not.
    pub fn failures(&self) -> impl Iterator<Item = &Fact> {
        self.facts.iter().filter(|f| !f.holds)
    }
}
