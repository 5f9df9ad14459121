//! Control groups: one [`Cgroup`] that knows the hierarchy it found ([`Hierarchy`]: v1, hybrid or v2), and a small
//! file for each controller.
//!
//! ```text
//! Hierarchy::discover ─> Cgroup::create(path, Wanted) ─> apply(resources, Extras) ─> attach ─> … ─> kill ─> remove
//!    v1: /sys/fs/cgroup/CONTROLLER/PATH for each wanted controller        v2: /sys/fs/cgroup/PATH
//! ```
//!
//! Invariants: nothing outside the caller's path is changed, except what the kernel demands of its parents (v1:
//! their cpuset and real-time budget, v2: `cgroup.subtree_control` and exclusive CPUs); every field is applied or
//! refused by name; what `create` made, a failure of `create` takes away again.

mod attach;
mod bpf;
mod cpu;
mod cpuset;
pub(crate) mod create;
mod devices;
pub(crate) mod file;
mod freezer;
mod hierarchy;
mod io;
mod kill;
mod memory;
mod program;
mod realtime;
pub(crate) mod remove;
mod resources;
mod rules;
mod stats;

use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use oci_spec::runtime::LinuxResources;
use serde::{Deserialize, Serialize};
use thiserror::Error;

pub use attach::AttachError;
pub use bpf::BpfError;
pub use cpu::weight;
pub use create::{CreateError, OpenError};
pub use devices::DeviceError;
pub use file::FileError;
pub use freezer::FreezeError;
pub use hierarchy::{Absence, Controller, DiscoverError, Hierarchy, Missing, Mode, Tree, Version};
pub use kill::KillError;
pub use realtime::{BudgetError, Support};
pub use remove::{RemoveError, prune};
pub use resources::ApplyError;
pub use rules::{Access, DeviceKind, DeviceRule, DeviceRules};
pub use stats::Stats;

/// What is wanted beyond the OCI resources.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct Extras {
    /// Real-time budget of the group (`cpu.rt_runtime_us`, `cpu.rt_period_us`; v1 with CONFIG_RT_GROUP_SCHED).
    pub rt_budget: Option<RtBudget>,
    /// Whether the CPUs of the resources (`cpu.cpus`) become an isolated partition; `no` without CPUs.
    pub isolate: Isolate,
}

/// How much a cgroup's CPUs are to be kept for it alone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Isolate {
    /// They are shared.
    #[default]
    No,
    /// A partition where the kernel makes one; without one the CPUs are pinned, as
    /// [`isolation`](crate::partition::isolation) says.
    Try,
    /// A partition, or CPUs that `isolcpus=` keeps free; refused with the kernel's answers otherwise. With cgroup v1,
    /// which has no partitions, only [`isolation`](crate::partition::isolation) tells.
    Must,
}

/// A real-time budget: `runtime_us` in every `period_us`, on each CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RtBudget {
    /// Microseconds of real-time running in each period; at most the period.
    pub runtime_us: u64,
    /// Length of the period in microseconds, at least 1.
    pub period_us: u64,
}

/// The controllers that a cgroup needs. Freezer and pids come with every cgroup where the node has them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// Each controller, with what needs it.
    needs: Vec<(Controller, String)>,
    everywhere: bool,
    not_cpu: bool,
}

impl Wanted {
    /// Nothing beyond what every cgroup has.
    #[must_use]
    pub fn new() -> Wanted {
        Wanted::default()
    }

    /// Adds a controller; `what` (an OCI field, a promise) is named when the node lacks it.
    #[must_use]
    pub fn and(mut self, controller: Controller, what: &str) -> Wanted {
        if !self.has(controller) {
            self.needs.push((controller, what.into()));
        }
        self
    }

    /// A group in every hierarchy the node has, wanted or not; `cpu` false: but that of the cpu controller, whose
    /// groups have no real-time time of their own. A cgroup namespace hides what is above the group only where
    /// there is one: without, whoever may mount in a nested user namespace gets at the host's whole hierarchy.
    #[must_use]
    pub fn everywhere(mut self, cpu: bool) -> Wanted {
        self.everywhere = true;
        self.not_cpu = !cpu;
        self
    }

    /// Whether `controller` was added.
    #[must_use]
    pub fn has(&self, controller: Controller) -> bool {
        self.needs.iter().any(|(needed, _)| *needed == controller)
    }

    /// The controllers that applying these resources takes.
    #[must_use]
    pub fn for_resources(resources: Option<&LinuxResources>, extras: &Extras) -> Wanted {
        let mut wanted = Wanted::new();
        if extras.rt_budget.is_some() {
            wanted = wanted.and(Controller::Cpu, "the real-time budget");
        }
        let Some(resources) = resources else { return wanted };
        if let Some(cpu) = resources.cpu() {
            if cpu.cpus().as_deref().is_some_and(|list| !list.is_empty())
                || cpu.mems().as_deref().is_some_and(|list| !list.is_empty())
            {
                wanted = wanted.and(Controller::Cpuset, "linux.resources.cpu.cpus");
            }
            if cpu::needs_controller(cpu) {
                wanted = wanted.and(Controller::Cpu, "linux.resources.cpu");
            }
        }
        if resources.memory().is_some() {
            wanted = wanted.and(Controller::Memory, "linux.resources.memory");
        }
        if resources.pids().is_some() {
            wanted = wanted.and(Controller::Pids, "linux.resources.pids");
        }
        if resources
            .devices()
            .as_ref()
            .is_some_and(|rules| !rules.is_empty())
        {
            wanted = wanted.and(Controller::Devices, "linux.resources.devices");
        }
        if resources.block_io().is_some() {
            wanted = wanted.and(Controller::Io, "linux.resources.blockIO");
        }
        if resources
            .hugepage_limits()
            .as_ref()
            .is_some_and(|limits| !limits.is_empty())
        {
            wanted = wanted.and(Controller::Hugetlb, "linux.resources.hugepageLimits");
        }
        if resources.rdma().as_ref().is_some_and(|limits| !limits.is_empty()) {
            wanted = wanted.and(Controller::Rdma, "linux.resources.rdma");
        }
        if let Some(network) = resources.network() {
            if network.class_id().is_some() {
                wanted = wanted.and(Controller::NetCls, "linux.resources.network.classID");
            }
            if network.priorities().as_ref().is_some_and(|list| !list.is_empty()) {
                wanted = wanted.and(Controller::NetPrio, "linux.resources.network.priorities");
            }
        }
        wanted
    }
}

/// A control group: the same path in every hierarchy that it needs.
#[derive(Clone, Debug)]
pub struct Cgroup {
    hierarchy: Hierarchy,
    /// Below the mount points, without a slash at either end.
    path: String,
    /// Index into the hierarchy's trees, and the directory there.
    dirs: Vec<(usize, PathBuf)>,
}

impl Cgroup {
    /// The path below the mount points, without a slash at either end.
    #[must_use]
    pub fn path(&self) -> &str {
        &self.path
    }

    /// The hierarchies it was found or made in.
    #[must_use]
    pub fn hierarchy(&self) -> &Hierarchy {
        &self.hierarchy
    }

    /// The directory that has `controller`, where the cgroup has it.
    #[must_use]
    pub fn dir(&self, controller: Controller) -> Option<&Path> {
        let index = self.hierarchy.index(controller)?;
        self.dirs
            .iter()
            .find(|(tree, _)| *tree == index)
            .map(|(_, dir)| dir.as_path())
    }

    /// Each directory with its version.
    pub(crate) fn dirs(&self) -> impl Iterator<Item = (Version, &Path)> {
        self.dirs
            .iter()
            .map(|(tree, dir)| (self.hierarchy.trees()[*tree].version, dir.as_path()))
    }

    /// The directory and version for `controller`, or an error that names `what` needs it.
    pub(crate) fn need(&self, what: &str, controller: Controller) -> Result<(Version, &Path), Missing> {
        let Some(tree) = self.hierarchy.tree(controller) else {
            return Err(self.hierarchy.missing(what, controller));
        };
        self.dir(controller)
            .map(|dir| (tree.version, dir))
            .ok_or_else(|| Missing {
                what: what.into(),
                controller,
                why: Absence::NotInCgroup,
            })
    }

    /// The controllers' names (v1: as in `/proc/PID/cgroup`, joined by commas; v2: `unified`) and the directory of
    /// each hierarchy.
    #[must_use]
    pub fn paths(&self) -> Vec<(String, PathBuf)> {
        self.dirs
            .iter()
            .map(|(tree, dir)| (tree_name(&self.hierarchy.trees()[*tree]), dir.clone()))
            .collect()
    }

    /// What `/proc/PID/cgroup` says of a member: for each hierarchy one of its controllers (v1) or the empty string (v2),
    /// and the path in that hierarchy.
    #[must_use]
    pub fn memberships(&self) -> Vec<(String, String)> {
        self.dirs
            .iter()
            .map(|(tree, _)| {
                let tree = &self.hierarchy.trees()[*tree];
                let controller = match tree.version {
                    Version::V1 => match tree.controllers.first() {
                        Some(controller) => controller.v1_name(),
                        None => tree.name.as_deref().unwrap_or_default(),
                    },
                    Version::V2 => "",
                };
                (
                    controller.to_owned(),
                    format!("{}/{}", tree.mount_root.trim_end_matches('/'), self.path),
                )
            })
            .collect()
    }

    /// The v2 directory, opened for `CLONE_INTO_CGROUP`; `None` where the cgroup has no v2 directory.
    ///
    /// # Errors
    /// [`FileError`] when it cannot be opened.
    pub fn dir_fd(&self) -> Result<Option<OwnedFd>, FileError> {
        let Some((_, dir)) = self.dirs().find(|(version, _)| *version == Version::V2) else {
            return Ok(None);
        };
        let opened = File::open(dir).map_err(|source| FileError::new("open", dir, source))?;
        Ok(Some(opened.into()))
    }
}

/// `cpu,cpuacct` for a v1 hierarchy, `unified` for the v2 one.
fn tree_name(tree: &Tree) -> String {
    match tree.version {
        Version::V2 => "unified".into(),
        Version::V1 if tree.controllers.is_empty() => {
            let name = tree.name.as_deref().and_then(|n| n.strip_prefix("name="));
            name.unwrap_or("none").into()
        }
        Version::V1 => tree
            .controllers
            .iter()
            .map(|c| c.v1_name())
            .collect::<Vec<_>>()
            .join(","),
    }
}

/// A cgroup path that cannot be used.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("`{path}` is not a cgroup path: {reason}")]
pub struct PathError {
    /// The path.
    pub path: String,
    /// What is wrong with it.
    pub reason: &'static str,
}

/// The path without slashes at its ends; every component is a plain name.
fn checked(path: &str) -> Result<String, PathError> {
    let wrong = |reason| PathError {
        path: path.into(),
        reason,
    };
    let trimmed = path.trim_matches('/');
    if trimmed.is_empty() {
        return Err(wrong("it names the root of the hierarchy"));
    }
    for component in trimmed.split('/') {
        match component {
            "" => return Err(wrong("it has an empty component")),
            "." | ".." => return Err(wrong("it has a `.` or `..` component")),
            name if name.len() > 255 => return Err(wrong("a component is longer than 255 bytes")),
            name if name.bytes().any(|byte| byte < 0x20 || byte == 0x7f) => {
                return Err(wrong("it has a control character"));
            }
            _ => {}
        }
    }
    Ok(trimmed.into())
}
