//! CPUs and memory nodes: `cpuset.cpus`, `cpuset.mems`.
//!
//! v1: a new cpuset is empty and takes no process; both files are always written, parents first, a field that is not
//! given is taken from the parent. A parent that is too small is widened by what is asked. v2: an empty file means "as the
//! parent", and a set that the parent cannot give is taken in silence, so `.effective` is read back.

use std::path::Path;

use super::create::parents;
use super::file::{self, FileError};
use super::{ApplyError, Cgroup, Controller, Version};
use crate::cpu::CpuSet;

const FILES: [&str; 2] = ["cpuset.cpus", "cpuset.mems"];

/// Gives a v1 cpuset that is still empty its parent's CPUs and nodes. Where its parent does not balance it does not
/// either: it spans what was given away on a tuned node.
pub(crate) fn inherit_v1(dir: &Path) -> Result<(), FileError> {
    let Some(parent) = dir.parent() else { return Ok(()) };
    let balance = "cpuset.sched_load_balance";
    if file::read(&dir.join(FILES[0]))?.is_empty()
        && file::read_if_there(&parent.join(balance))?.as_deref() == Some("0")
    {
        file::write(&dir.join(balance), "0")?;
    }
    for name in FILES {
        if file::read(&dir.join(name))?.is_empty() {
            file::write(&dir.join(name), &file::read(&parent.join(name))?)?;
        }
    }
    Ok(())
}

impl Cgroup {
    /// Sets the CPUs and memory nodes.
    pub(crate) fn apply_cpuset(&self, cpus: Option<&str>, mems: Option<&str>) -> Result<(), ApplyError> {
        let fields = ["linux.resources.cpu.cpus", "linux.resources.cpu.mems"];
        let asked = [cpus, mems].map(|list| list.filter(|list| !list.is_empty()));
        let mut sets = [None, None];
        for ((set, field), list) in sets.iter_mut().zip(fields).zip(asked) {
            if let Some(list) = list {
                let parsed = list.parse::<CpuSet>();
                *set = Some(parsed.map_err(|error| ApplyError::Invalid {
                    field: field.into(),
                    reason: error.to_string(),
                })?);
            }
        }
        if sets.iter().all(Option::is_none) {
            return Ok(());
        }
        let (version, dir) = self.need(fields[0], Controller::Cpuset)?;
        for ((set, field), name) in sets.iter().zip(fields).zip(FILES) {
            match (version, set) {
                (Version::V1, Some(set)) => self.write_v1(field, dir, name, set)?,
                (Version::V1, None) => {
                    inherit_one(dir, name).map_err(|error| ApplyError::file(field, error))?
                }
                (Version::V2, Some(set)) => write_v2(field, dir, name, set)?,
                (Version::V2, None) => {}
            }
        }
        Ok(())
    }

    /// Writes the set; parents that do not have all of it are widened and the write is tried again.
    fn write_v1(&self, field: &str, dir: &Path, name: &str, set: &CpuSet) -> Result<(), ApplyError> {
        let refused = |error| ApplyError::file(field, error);
        let path = dir.join(name);
        let first = match file::write(&path, &set.to_string()) {
            Ok(()) => return Ok(()),
            Err(error) => error,
        };
        if !matches!(first.errno(), Some(libc::EACCES | libc::EINVAL)) {
            return Err(refused(first));
        }
        let Some(tree) = self.hierarchy().tree(Controller::Cpuset) else {
            return Err(refused(first));
        };
        for parent in parents(&tree.mount, dir) {
            inherit_v1(&parent).map_err(refused)?;
            let file = parent.join(name);
            let there: CpuSet = file::parse(&file).map_err(refused)?;
            if !set.is_subset(&there) {
                file::write(&file, &there.union(set).to_string()).map_err(refused)?;
            }
        }
        file::write(&path, &set.to_string()).map_err(refused)
    }
}

fn inherit_one(dir: &Path, name: &str) -> Result<(), FileError> {
    if !file::read(&dir.join(name))?.is_empty() {
        return Ok(());
    }
    let Some(parent) = dir.parent() else { return Ok(()) };
    let from_parent = file::read(&parent.join(name))?;
    if from_parent.is_empty() {
        inherit_v1(parent)?;
        return file::write(&dir.join(name), &file::read(&parent.join(name))?);
    }
    file::write(&dir.join(name), &from_parent)
}

/// Writes the set and reads the effective one back: the kernel takes what the parent cannot give without a word.
fn write_v2(field: &str, dir: &Path, name: &str, set: &CpuSet) -> Result<(), ApplyError> {
    let refused = |error| ApplyError::file(field, error);
    file::write(&dir.join(name), &set.to_string()).map_err(refused)?;
    let effective: CpuSet = file::parse(&dir.join(format!("{name}.effective"))).map_err(refused)?;
    if effective == *set {
        return Ok(());
    }
    Err(ApplyError::NotInForce {
        field: field.into(),
        asked: set.to_string(),
        actual: effective.to_string(),
    })
}
