//! cgroup v1: every process off the CPUs that are given away, and no load balancing over them. Only with consent
//! (`spec.cpus.schedLoadBalance: false`).
//!
//! Source: Documentation/admin-guide/cgroup-v1/cpusets.rst, 1.7 "What is sched_load_balance?": as long as the root cpuset has
//! it, there is one scheduling domain of all CPUs; without it those of its children that have it make the domains, and
//! children that overlap make one together. So the root gives it up, one child has all CPUs but the isolated ones and
//! every process that was in the root, and none that spans both kinds keeps it. The kernel's own threads stay in the root: most
//! cannot be moved, and where they run is `spec.workqueues.threads`.

use std::path::PathBuf;

use super::{As, Change, State, Survey, Target};
use crate::cgroup::{Controller, Hierarchy, Version};
use crate::cpu::CpuSet;

/// Name of the cpuset that is made.
pub(crate) const HOUSEKEEPING: &str = "berth-housekeeping";
/// Deepest cpuset that is looked at.
const DEEPEST: usize = 16;
const BALANCE: &str = "cpuset.sched_load_balance";

impl Survey<'_> {
    pub(super) fn cpusets(&mut self) {
        if self.spec.cpus.sched_load_balance != Some(false) {
            return;
        }
        let isolated = self.parts.isolated.clone();
        let cpus = self.online.difference(&isolated);
        let Some(root) = self.cpuset_root() else {
            let why = "no cpuset hierarchy of cgroup v1 is mounted; with cgroup v2 a workload's partition takes its cores out of the \
                       balancing by itself";
            for knob in ["cpuset-housekeeping", "sched-load-balance"] {
                self.absent(knob, "the root cpuset of cgroup v1", "0", Some(why.into()));
            }
            return;
        };
        let mems = self
            .machine
            .read(&format!("{root}/cpuset.mems"))
            .unwrap_or_default();
        self.housekeeping(&root, &cpus, &mems);
        let before = self.findings.len();
        self.file("sched-load-balance", &format!("{root}/{BALANCE}"), "0", As::Text);
        self.spanning(&root, &cpus, &isolated, 0);
        // The domains change with each write: those below first, the root last.
        self.findings[before..].reverse();
    }

    /// The root cpuset: the one that is given, else where the hierarchy is mounted; `None` without cgroup v1.
    fn cpuset_root(&self) -> Option<String> {
        if let Some(given) = &self.context.cpuset {
            return Some(given.to_str()?.trim_end_matches('/').to_owned());
        }
        let top = self.machine.path("/");
        let hierarchy = Hierarchy::discover(&top).ok()?;
        let tree = hierarchy.tree(Controller::Cpuset)?;
        if tree.version != Version::V1 || tree.mount_root != "/" {
            return None;
        }
        let below: PathBuf = tree.mount.strip_prefix(&top).ok()?.into();
        Some(format!("/{}", below.to_str()?))
    }

    /// The cpuset of all other CPUs, with every process of the root.
    fn housekeeping(&mut self, root: &str, cpus: &CpuSet, mems: &str) {
        let path = format!("{root}/{HOUSEKEEPING}");
        let target = Target::Cpuset { path: path.clone() };
        let wanted = format!("cpus {cpus} mems {mems}");
        let read = |file: &str| self.machine.read(&format!("{path}/{file}"));
        let actual = match (read("cpuset.cpus"), read("cpuset.mems")) {
            (Some(cpus), Some(mems)) => format!("cpus {cpus} mems {mems}"),
            _ => ABSENT.to_owned(),
        };
        let mut finding = self.finding("cpuset-housekeeping", path, wanted.clone());
        finding.actual = Some(actual.clone());
        if actual != wanted {
            finding.state = State::Differs;
            finding.mend = Some("berth node tune".into());
            finding.change = Some(Change {
                knob: "cpuset-housekeeping".into(),
                target: target.clone(),
                value: wanted,
                restore: vec![(target, actual)],
            });
        }
        self.findings.push(finding);
        let mut left = 0;
        for (tid, at) in self.processes(root) {
            let Some(thread) = self.machine.thread(tid).filter(|thread| !thread.kernel) else {
                continue;
            };
            let Some(allowed) = self.machine.allowed(tid) else {
                continue;
            };
            left += 1;
            let target = Target::Member {
                pid: tid,
                start: thread.start,
                name: thread.name.clone(),
                root: root.to_owned(),
            };
            let affinity = Target::Affinity {
                pid: tid,
                start: thread.start,
                name: thread.name,
            };
            let mut finding = self.finding("cpuset-housekeeping", target.to_string(), HOUSEKEEPING);
            finding.actual = Some(at.clone());
            finding.state = State::Differs;
            finding.mend = Some("berth node tune".into());
            finding.change = Some(Change {
                knob: "cpuset-housekeeping".into(),
                target: target.clone(),
                value: HOUSEKEEPING.into(),
                restore: vec![(target, at), (affinity, allowed.to_string())],
            });
            self.findings.push(finding);
        }
        if left == 0 {
            let mut finding = self.finding(
                "cpuset-housekeeping",
                format!("{root}/tasks"),
                "the kernel's threads alone",
            );
            finding.actual = Some("no process".into());
            self.findings.push(finding);
        }
    }

    /// Threads in the root cpuset, with the value that puts each back.
    fn processes(&self, root: &str) -> Vec<(i32, String)> {
        let tasks = self.machine.read(&format!("{root}/tasks")).unwrap_or_default();
        let numbers = tasks.lines().filter_map(|line| line.trim().parse().ok());
        numbers.map(|tid| (tid, ROOT.to_owned())).collect()
    }

    /// Cpusets that balance over isolated CPUs and others at once. One without a process of its own, such as a container
    /// manager's parent, only has to stop; one with processes is the operator's to narrow.
    fn spanning(&mut self, folder: &str, cpus: &CpuSet, isolated: &CpuSet, depth: usize) {
        for name in self.machine.names(folder) {
            let path = format!("{folder}/{name}");
            if depth == 0 && name == HOUSEKEEPING {
                continue;
            }
            let Some(set) = self.machine.read(&format!("{path}/cpuset.cpus")) else {
                continue;
            };
            if depth < DEEPEST {
                self.spanning(&path, cpus, isolated, depth + 1);
            }
            let set = set.parse::<CpuSet>().unwrap_or_default();
            if set.is_disjoint(isolated) || set.is_subset(isolated) {
                continue;
            }
            let file = format!("{path}/{BALANCE}");
            let tasks = self.machine.read(&format!("{path}/tasks")).unwrap_or_default();
            if tasks.is_empty() {
                self.file("sched-load-balance", &file, "0", As::Text);
                continue;
            }
            let mut finding = self.finding("sched-load-balance", file, "0");
            finding.actual = self.machine.read(&finding.interface);
            finding.state = State::Refused;
            finding.reason = Some(format!(
                "its {} threads may run on CPUs {set}, isolated ones among them",
                tasks.lines().count()
            ));
            finding.mend = Some(format!(
                "give whoever made it other CPUs: echo {cpus} > {path}/cpuset.cpus"
            ));
            self.findings.push(finding);
        }
    }
}

/// A cpuset that is not there.
pub(crate) const ABSENT: &str = "absent";
/// A thread's membership: in the root cpuset.
pub(crate) const ROOT: &str = "/";
