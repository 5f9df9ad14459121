//! What a cgroup is promised, and its resources changed while the container is there.
//!
//! Invariants: a value that the kernel rounds or replaces is promised as the kernel shows it; an update that fails
//! at any field puts back what it had changed.

use std::fs;
use std::path::PathBuf;

use berth_rt::cgroup::{Cgroup, Controller, Extras, Version, weight};
use berth_rt::cpu::CpuSet;
use oci_spec::runtime::{LinuxCpu, LinuxMemory, LinuxResources};

use super::{Container, ContainerError};
use crate::proof::{CgroupFile, Promise};
use crate::state::Status;

/// What is promised of the cgroup and can be said only when it exists.
pub(crate) fn promise_cgroup(
    promise: &mut Promise,
    cgroup: &Cgroup,
    resources: &LinuxResources,
    extras: &Extras,
) {
    promise.cgroups = cgroup
        .memberships()
        .into_iter()
        .map(|(name, path)| {
            (
                if name.is_empty() {
                    "unified".to_owned()
                } else {
                    name
                },
                path,
            )
        })
        .collect();
    promise.cgroup_files = files(cgroup, resources, extras);
}

/// The files of one controller: v1's name, v2's name (empty: it has none there), the value.
struct Files<'a> {
    cgroup: &'a Cgroup,
    list: Vec<CgroupFile>,
}

impl Files<'_> {
    fn add(&mut self, controller: Controller, v1: &str, v2: &str, value: impl ToString) {
        let version = self.cgroup.hierarchy().tree(controller).map(|tree| tree.version);
        let name = if version == Some(Version::V2) { v2 } else { v1 };
        if let (Some(dir), false) = (self.cgroup.dir(controller), name.is_empty()) {
            self.list.push(CgroupFile {
                path: dir.join(name),
                value: value.to_string(),
            });
        }
    }
}

/// Each file that `resources` sets, with what the kernel will show of it.
fn files(cgroup: &Cgroup, resources: &LinuxResources, extras: &Extras) -> Vec<CgroupFile> {
    let mut files = Files {
        cgroup,
        list: Vec::new(),
    };
    if let Some(memory) = resources.memory() {
        memory_files(&mut files, memory);
    }
    if let Some(pids) = resources.pids() {
        let limit = match pids.limit() {
            limit if limit > 0 => limit.to_string(),
            _ => "max".to_owned(),
        };
        files.add(Controller::Pids, "pids.max", "pids.max", limit);
    }
    if let Some(cpu) = resources.cpu() {
        cpu_files(&mut files, cpu, extras);
    }
    if let Some(budget) = extras.rt_budget {
        files.add(Controller::Cpu, "cpu.rt_runtime_us", "", budget.runtime_us);
    }
    for limit in resources.hugepage_limits().iter().flatten() {
        let size = limit.page_size();
        let (v1, v2) = (
            format!("hugetlb.{size}.limit_in_bytes"),
            format!("hugetlb.{size}.max"),
        );
        // Whole pages of that size; a limit that is none is shown in many ways.
        if let Some(page) = bytes(size).filter(|_| limit.limit() >= 0) {
            let whole = limit.limit() as u64 / page * page;
            files.add(Controller::Hugetlb, &v1, &v2, whole);
        }
    }
    if let Some(class) = resources.network().as_ref().and_then(|n| n.class_id()) {
        files.add(Controller::NetCls, "net_cls.classid", "", class);
    }
    for (name, value) in resources.unified().iter().flatten() {
        // Files of one plain value read back as they were written; the others have a form of their own.
        if let (true, Some((_, dir))) = (value.bytes().all(|b| b.is_ascii_digit()), cgroup.paths().first()) {
            files.list.push(CgroupFile {
                path: dir.join(name),
                value: value.clone(),
            });
        }
    }
    files.list
}

/// `2MB`, `1GB`, `64KB` in bytes.
fn bytes(size: &str) -> Option<u64> {
    let digits = size.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = match &size[digits.len()..] {
        "KB" => 1 << 10,
        "MB" => 1 << 20,
        "GB" => 1 << 30,
        _ => return None,
    };
    digits.parse::<u64>().ok().map(|n| n * unit)
}

fn memory_files(files: &mut Files<'_>, memory: &LinuxMemory) {
    use Controller::Memory;
    let page = nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE);
    let page = page.ok().flatten().unwrap_or(4096); // the kernel rounds down to whole pages
    let whole = |bytes: i64| bytes / page * page;
    if let Some(limit) = memory.limit().filter(|l| *l > 0) {
        files.add(Memory, "memory.limit_in_bytes", "memory.max", whole(limit));
    }
    if let Some(swap) = memory.swap().filter(|s| *s > 0) {
        files.add(Memory, "memory.memsw.limit_in_bytes", "", whole(swap));
        let alone = swap - memory.limit().unwrap_or(0);
        files.add(Memory, "", "memory.swap.max", whole(alone));
    }
    if let Some(low) = memory.reservation().filter(|r| *r > 0) {
        files.add(Memory, "memory.soft_limit_in_bytes", "memory.low", whole(low));
    }
    if let Some(swappiness) = memory.swappiness() {
        files.add(Memory, "memory.swappiness", "", swappiness);
    }
}

fn cpu_files(files: &mut Files<'_>, cpu: &LinuxCpu, extras: &Extras) {
    use Controller::Cpu;
    if let Some(quota) = cpu.quota().filter(|q| *q > 0) {
        let period = cpu.period().unwrap_or(100_000);
        files.add(Cpu, "cpu.cfs_quota_us", "", quota);
        files.add(Cpu, "", "cpu.max", format!("{quota} {period}"));
    }
    if let Some(period) = cpu.period().filter(|p| *p > 0) {
        files.add(Cpu, "cpu.cfs_period_us", "", period);
    }
    if let Some(burst) = cpu.burst() {
        files.add(Cpu, "cpu.cfs_burst_us", "cpu.max.burst", burst);
    }
    if let Some(idle) = cpu.idle() {
        files.add(Cpu, "cpu.idle", "cpu.idle", idle);
    }
    // Of an idle group the kernel shows another weight.
    if let Some(shares) = cpu
        .shares()
        .filter(|s| (2..=262_144).contains(s) && cpu.idle().unwrap_or(0) == 0)
    {
        files.add(Cpu, "cpu.shares", "", shares);
        files.add(Cpu, "", "cpu.weight", weight(shares));
    }
    if let Some(runtime) = cpu.realtime_runtime().filter(|_| extras.rt_budget.is_none()) {
        files.add(Cpu, "cpu.rt_runtime_us", "", runtime);
    }
}

impl Container {
    /// Change resources: what is not in `resources` stays as it is. Device rules are not changed here.
    ///
    /// # Errors
    /// The container has ended, a field cannot be applied (then nothing is changed), or the record cannot be stored.
    pub fn update(&mut self, resources: &LinuxResources) -> Result<(), ContainerError> {
        let status = self.status();
        if !matches!(status, Status::Created | Status::Running | Status::Paused) {
            return Err(ContainerError::Status {
                id: self.record.id.clone(),
                what: "updated",
                status,
            });
        }
        let refuse = |field: &'static str, reason: String| ContainerError::Resource { field, reason };
        if resources.devices().as_ref().is_some_and(|d| !d.is_empty()) {
            let reason = "device rules are made with the container".to_owned();
            return Err(refuse("devices", reason));
        }
        let list = |field, text: Option<&String>| match text.filter(|t| !t.is_empty()) {
            None => Ok(None),
            Some(text) => text
                .parse::<CpuSet>()
                .map(Some)
                .map_err(|e| refuse(field, format!("`{text}`: {e}"))),
        };
        let cpu = resources.cpu().as_ref();
        let cpus = list("cpu.cpus", cpu.and_then(|c| c.cpus().as_ref()))?;
        let mems = list("cpu.mems", cpu.and_then(|c| c.mems().as_ref()))?;
        let cgroup = self.group()?.clone();
        let changed = files(&cgroup, resources, &Extras::default());
        let mut before: Vec<(PathBuf, String)> = changed
            .iter()
            .filter_map(|f| Some((f.path.clone(), fs::read_to_string(&f.path).ok()?)))
            .collect();
        for name in ["cpuset.cpus", "cpuset.mems"] {
            if let Some(dir) = cgroup.dir(Controller::Cpuset) {
                let path = dir.join(name);
                before.extend(fs::read_to_string(&path).ok().map(|text| (path, text)));
            }
        }
        if let Err(source) = cgroup.apply(resources, &Extras::default()) {
            // Twice: of two limits that hold each other the second may have to go first.
            for (path, text) in before.iter().chain(&before) {
                let _ = fs::write(path, text.trim_end()); // it was so a moment ago; the proof would tell
            }
            return Err(source.into());
        }
        let promise = &mut self.record.promise;
        for file in changed {
            match promise.cgroup_files.iter_mut().find(|f| f.path == file.path) {
                Some(old) => *old = file,
                None => promise.cgroup_files.push(file),
            }
        }
        if let (Some(cpus), None) = (cpus, &self.record.affinity) {
            promise.cpus = Some(cpus);
        }
        promise.mems = mems.or(promise.mems.take());
        self.store()
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn page_sizes() {
        for (size, expected) in [
            ("2MB", Some(2 << 20)),
            ("1GB", Some(1 << 30)),
            ("64KB", Some(64 << 10)),
            ("2", None),
        ] {
            assert_eq!(super::bytes(size), expected, "{size}");
        }
    }
}
