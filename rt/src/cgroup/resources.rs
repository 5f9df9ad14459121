//! Applying OCI `linux.resources`: each field goes to its controller's file or is refused by name.
//!
//! The order matters to the kernel: cpuset before anything attaches, bandwidth before the real-time budget, limits
//! last. Fields that a hierarchy's version does not have are refused, never skipped; a field whose value asks for what
//! is so anyway (0 burst, an OOM killer that is on) is the one exception.

use std::collections::HashMap;

use oci_spec::runtime::{LinuxMemory, LinuxNetwork, LinuxPids, LinuxRdma, LinuxResources};
use thiserror::Error;

use super::file::{self, FileError};
use super::{BudgetError, Cgroup, Controller, DeviceError, Extras, Isolate, Missing, Mode, Version, cpu};
use crate::cpu::{CpuSet, ParseCpuSetError};
use crate::partition::{self, PartitionError};

/// How often CPUs may be taken back before that is an error.
const ROOM_TRIES: u32 = 5;

/// Why resources could not be applied. Some may be in force: remove the cgroup.
#[derive(Debug, Error)]
pub enum ApplyError {
    /// A controller is not there.
    #[error(transparent)]
    Missing(#[from] Missing),
    /// The field exists, but not in this node's kind of hierarchy or kernel.
    #[error("{field}: not supported here: {reason}")]
    Unsupported {
        /// The OCI field.
        field: String,
        /// Why.
        reason: String,
    },
    /// The value makes no sense.
    #[error("{field}: {reason}")]
    Invalid {
        /// The OCI field.
        field: String,
        /// What is wrong with the value.
        reason: String,
    },
    /// The kernel refused the value.
    #[error("{field}: {error}")]
    File {
        /// The OCI field.
        field: String,
        /// The file, the value and the kernel's answer.
        #[source]
        error: FileError,
    },
    /// The kernel took the value, but it is not what is in force.
    #[error("{field}: asked for {asked}, but {actual} is in force")]
    NotInForce {
        /// The OCI field.
        field: String,
        /// What was written.
        asked: String,
        /// What was read back.
        actual: String,
    },
    /// The real-time budget could not be given.
    #[error(transparent)]
    Budget(#[from] BudgetError),
    /// The CPUs could not be isolated.
    #[error(transparent)]
    Partition(#[from] PartitionError),
    /// The device rules could not be set.
    #[error(transparent)]
    Devices(#[from] DeviceError),
}

impl ApplyError {
    pub(crate) fn file(field: &str, error: FileError) -> ApplyError {
        ApplyError::File {
            field: field.into(),
            error,
        }
    }

    /// The setting to change, where the environment is at fault.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            ApplyError::Missing(missing) => missing.hint(),
            ApplyError::Budget(error) => error.hint(),
            ApplyError::Devices(error) => error.hint(),
            ApplyError::Partition(error) => error.hint(),
            ApplyError::File { field, error } => match error.errno()? {
                libc::EACCES if field.contains("cpu.cpus") || field.contains("cpu.mems") => Some(
                    "the parent cpuset does not have them: compare cpuset.cpus and cpuset.mems of the parents with what is \
                     online"
                        .into(),
                ),
                libc::EBUSY if field.contains("memory") => Some("more memory than that is in use already".into()),
                libc::EROFS => Some("the hierarchy is mounted read-only here: remount it read-write".into()),
                _ => None,
            },
            ApplyError::NotInForce { .. } => Some("a parent cgroup limits it: look at the same file of the parents".into()),
            ApplyError::Unsupported { .. } | ApplyError::Invalid { .. } => None,
        }
    }
}

/// Drops the "not supported" of a field whose value asks for what is so anyway.
pub(crate) fn optional(outcome: Result<(), ApplyError>, is_default: bool) -> Result<(), ApplyError> {
    match outcome {
        Err(ApplyError::Unsupported { .. }) if is_default => Ok(()),
        other => other,
    }
}

impl Cgroup {
    /// Applies every field of `resources` and of `extras`, or refuses by name. Safe to call again with other values.
    ///
    /// # Errors
    /// [`ApplyError`] for the first field that cannot be applied.
    pub fn apply(&self, resources: &LinuxResources, extras: &Extras) -> Result<(), ApplyError> {
        let mut budget = extras.rt_budget;
        if let Some(cpu) = resources.cpu() {
            self.apply_cpus(cpu.cpus().as_deref(), cpu.mems().as_deref(), extras.isolate)?;
            self.apply_isolation(cpu.cpus().as_deref(), extras.isolate)?;
            self.apply_cpu(cpu)?;
            match (cpu::rt_budget(cpu)?, budget) {
                (Some(oci), Some(extra)) if oci != extra => {
                    return Err(ApplyError::Invalid {
                        field: "linux.resources.cpu.realtimeRuntime".into(),
                        reason: format!("{oci:?} contradicts the budget {extra:?} that is asked for besides"),
                    });
                }
                (oci, extra) => budget = extra.or(oci),
            }
        }
        if let Some(budget) = budget {
            self.set_rt_budget(budget)?;
        }
        if let Some(memory) = resources.memory() {
            self.apply_memory(memory)?;
        }
        if let Some(pids) = resources.pids() {
            self.apply_pids(pids)?;
        }
        if let Some(io) = resources.block_io() {
            self.apply_io(io)?;
        }
        for limit in resources.hugepage_limits().iter().flatten() {
            self.apply_hugetlb(limit)?;
        }
        if let Some(network) = resources.network() {
            self.apply_network(network)?;
        }
        if let Some(rdma) = resources.rdma() {
            self.apply_rdma(rdma)?;
        }
        if let Some(unified) = resources.unified() {
            self.apply_unified(unified)?;
        }
        if let Some(rules) = resources.devices().as_ref().filter(|rules| !rules.is_empty()) {
            self.set_devices(rules)?;
        }
        Ok(())
    }

    /// The cpuset; below a partition of partitions the parent is given the CPUs first. Another container that leaves
    /// may take them back in between, until this one is a partition itself: then it is tried again.
    fn apply_cpus(&self, cpus: Option<&str>, mems: Option<&str>, isolate: Isolate) -> Result<(), ApplyError> {
        let wanted = cpus.filter(|_| isolate != Isolate::No);
        let wanted = wanted
            .and_then(|list| list.parse::<CpuSet>().ok())
            .filter(|cpus| !cpus.is_empty());
        let mut tries = 0;
        loop {
            let room = match &wanted {
                Some(cpus) => partition::make_room(self, cpus)
                    .map_err(|error| ApplyError::file("linux.resources.cpu.cpus", error))?,
                None => false,
            };
            tries += 1;
            match self.apply_cpuset(cpus, mems) {
                Err(ApplyError::NotInForce { .. }) if room && tries < ROOM_TRIES => {}
                other => return other,
            }
        }
    }

    /// Makes the CPUs an isolated partition before anything enters: a process already there would be moved off them and
    /// back. Their list is in force already.
    fn apply_isolation(&self, cpus: Option<&str>, isolate: Isolate) -> Result<(), ApplyError> {
        let field = "linux.resources.cpu.cpus";
        let Some(cpus) = cpus.filter(|list| !list.is_empty() && isolate != Isolate::No) else {
            return Ok(());
        };
        let cpus: CpuSet = cpus
            .parse()
            .map_err(|error: ParseCpuSetError| ApplyError::Invalid {
                field: field.into(),
                reason: error.to_string(),
            })?;
        match partition::isolate(self.hierarchy(), self, &cpus) {
            // What is true of CPUs without a partition is for `partition::isolation` to say.
            Ok(_) | Err(PartitionError::OnlyV1 { .. }) => Ok(()),
            Err(PartitionError::Refused { .. }) if isolate == Isolate::Try => Ok(()),
            Err(PartitionError::Refused { .. })
                if partition::tuned(self.hierarchy(), &cpus)
                    .map_err(|error| ApplyError::file(field, error))? =>
            {
                Ok(())
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Writes one file of a controller. A file that this kernel does not have makes the field unsupported.
    pub(crate) fn put(
        &self,
        field: &str,
        controller: Controller,
        name: &str,
        value: &str,
    ) -> Result<(), ApplyError> {
        let (_, dir) = self.need(field, controller)?;
        match file::write(&dir.join(name), value) {
            Err(error) if error.errno() == Some(libc::ENOENT) && dir.is_dir() => {
                Err(ApplyError::Unsupported {
                    field: field.into(),
                    reason: format!("{} is not there", error.path.display()),
                })
            }
            other => other.map_err(|error| ApplyError::file(field, error)),
        }
    }

    fn apply_pids(&self, pids: &LinuxPids) -> Result<(), ApplyError> {
        // The OCI specification: "Default is no limit" for 0 and below.
        let limit = if pids.limit() > 0 {
            pids.limit().to_string()
        } else {
            "max".into()
        };
        self.put("linux.resources.pids.limit", Controller::Pids, "pids.max", &limit)
    }

    fn apply_network(&self, network: &LinuxNetwork) -> Result<(), ApplyError> {
        if let Some(class) = network.class_id() {
            let field = "linux.resources.network.classID";
            self.put(field, Controller::NetCls, "net_cls.classid", &class.to_string())?;
        }
        for priority in network.priorities().iter().flatten() {
            let value = format!("{} {}", priority.name(), priority.priority());
            let field = "linux.resources.network.priorities";
            self.put(field, Controller::NetPrio, "net_prio.ifpriomap", &value)?;
        }
        Ok(())
    }

    fn apply_rdma(&self, limits: &HashMap<String, LinuxRdma>) -> Result<(), ApplyError> {
        let mut limits: Vec<_> = limits.iter().collect();
        limits.sort_by_key(|(device, _)| device.as_str());
        for (device, limit) in limits {
            let field = format!("linux.resources.rdma.{device}");
            let mut value = device.clone();
            for (name, limit) in [
                ("hca_handle", limit.hca_handles()),
                ("hca_object", limit.hca_objects()),
            ] {
                value.extend(limit.map(|limit| format!(" {name}={limit}")));
            }
            if value == *device {
                return Err(ApplyError::Invalid {
                    field,
                    reason: "neither hcaHandles nor hcaObjects is given".into(),
                });
            }
            self.put(&field, Controller::Rdma, "rdma.max", &value)?;
        }
        Ok(())
    }

    fn apply_unified(&self, unified: &HashMap<String, String>) -> Result<(), ApplyError> {
        let mut entries: Vec<_> = unified.iter().collect();
        entries.sort();
        for (name, value) in entries {
            let field = format!("linux.resources.unified.{name}");
            let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
            if !name.contains('.') || name.starts_with('.') || !name.bytes().all(plain) {
                return Err(ApplyError::Invalid {
                    field,
                    reason: "it is not the name of a cgroup v2 file".into(),
                });
            }
            if name.starts_with("cgroup.") {
                return Err(ApplyError::Unsupported {
                    field,
                    reason: "the cgroup.* files are berth's own: they move, freeze and kill".into(),
                });
            }
            if self.hierarchy().mode() != Mode::V2 {
                return Err(ApplyError::Unsupported {
                    field,
                    reason: format!(
                        "it takes cgroup v2, and this node has {}",
                        self.hierarchy().mode()
                    ),
                });
            }
            let Some((Version::V2, dir)) = self.dirs().next() else {
                continue;
            };
            match file::write(&dir.join(name), value) {
                Err(error) if error.errno() == Some(libc::ENOENT) => {
                    return Err(ApplyError::Unsupported {
                        field,
                        reason: format!("{} is not there", error.path.display()),
                    });
                }
                other => other.map_err(|error| ApplyError::File { field, error })?,
            }
        }
        Ok(())
    }
}

/// A limit in bytes as v2 writes it: `max` for -1.
pub(crate) fn or_max(limit: i64) -> String {
    if limit < 0 {
        "max".into()
    } else {
        limit.to_string()
    }
}

impl Cgroup {
    pub(crate) fn apply_memory(&self, memory: &LinuxMemory) -> Result<(), ApplyError> {
        match self.need("linux.resources.memory", Controller::Memory)? {
            (Version::V1, dir) => self.memory_v1(memory, dir),
            (Version::V2, dir) => self.memory_v2(memory, dir),
        }
    }
}
