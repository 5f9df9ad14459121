//! Isolated CPUs: cpuset partitions of cgroup v2, and the truth about who else may run on a set of CPUs.
//!
//! A write to `cpuset.cpus.partition` succeeds even when the partition is invalid, and a later change elsewhere can make it
//! invalid: only what is read back counts. Two forms exist. *Local*: the parent is the root or a partition itself. *Remote*
//! (Linux 6.7): `cpuset.cpus.exclusive` names the CPUs on every cgroup down to the partition, whose parents
//! stay plain members. Which one a node takes depends on its kernel and command line, so both are tried.
//! A kernel before 6.7 takes a partition below partitions alone: there the partitions of one launcher are children of a
//! folder of their own below the root ([`chained`]), which is a partition of all their CPUs as long as it has any.
//! A partition whose parent is one no more still reads `isolated`: its parents are read too.
//! cgroup v1 has no partitions: CPUs there are pinned, and isolated only if nobody else may run on them.

use std::fs::File;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::cgroup::create::parents;
use crate::cgroup::file::{self, FileError};
use crate::cgroup::remove::children;
use crate::cgroup::{Cgroup, Controller, Hierarchy, Missing, Version};
use crate::cpu::CpuSet;
use crate::threads::{Foreign, ThreadsError, foreign_threads};

const PARTITION: &str = "cpuset.cpus.partition";
const EXCLUSIVE: &str = "cpuset.cpus.exclusive";
/// In the root alone, and since remote partitions are there.
const SINCE_REMOTE: &str = "cpuset.cpus.isolated";
/// Ends the name of a folder below the root that becomes a partition for its children.
const CHAIN: &str = ".isolated";

/// What keeps others off the CPUs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum How {
    /// A v2 partition whose parent is the root or a partition.
    Local,
    /// A v2 partition below plain members, with `cpuset.cpus.exclusive`.
    Remote,
    /// No partition, but the CPUs are in the kernel's `isolcpus=` or v1's root cpuset balances nothing, and no other
    /// thread may run there.
    Tuned,
}

/// What is true of a set of CPUs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Isolation {
    /// Nobody else runs there.
    Isolated {
        /// What keeps the others off.
        how: How,
    },
    /// The container is bound to them, and so many threads that are not its own may run there too.
    #[serde(rename_all = "camelCase")]
    Pinned {
        /// Threads outside the container that may run there; the kernel's per-CPU threads are not counted.
        foreign_threads: usize,
    },
}

impl std::fmt::Display for Isolation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Isolation::Isolated { how: How::Local } => f.write_str("isolated (cpuset partition)"),
            Isolation::Isolated { how: How::Remote } => f.write_str("isolated (remote cpuset partition)"),
            Isolation::Isolated { how: How::Tuned } => {
                f.write_str("isolated (tuned node, no foreign threads)")
            }
            Isolation::Pinned { foreign_threads } => {
                write!(
                    f,
                    "pinned, not isolated: {foreign_threads} foreign threads may run here"
                )
            }
        }
    }
}

/// Why a cgroup could not be made an isolated partition. It is a plain member again.
#[derive(Debug, Error)]
pub enum PartitionError {
    /// The cpuset controller is not there.
    #[error(transparent)]
    Missing(#[from] Missing),
    /// cgroup v1.
    #[error("CPUs {cpus} can be pinned but not isolated: cgroup v1 has no cpuset partitions")]
    OnlyV1 {
        /// What was asked.
        cpus: CpuSet,
    },
    /// Neither form became valid.
    #[error("CPUs {cpus} cannot be isolated: {}", answers.join("; "))]
    Refused {
        /// What was asked.
        cpus: CpuSet,
        /// For each form that was tried, what the kernel said.
        answers: Vec<String>,
    },
    /// A file refused.
    #[error("CPUs {cpus} cannot be isolated: {error}")]
    File {
        /// What was asked.
        cpus: CpuSet,
        /// The file and the kernel's answer.
        #[source]
        error: FileError,
    },
}

impl PartitionError {
    /// The setting to change, where the environment is at fault.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            PartitionError::Missing(missing) => missing.hint(),
            PartitionError::OnlyV1 { .. } => {
                Some("boot with systemd.unified_cgroup_hierarchy=1 (cgroup v2), or ask for isolation: any".into())
            }
            PartitionError::Refused { .. } => Some(
                "the CPUs must be in no other partition and not the last ones of the parent; before Linux 6.7 the cgroup's \
                 parent must be the root, a partition, or a folder below the root whose name ends in `.isolated`; with \
                 isolcpus=domain only such CPUs can be in an isolated one"
                    .into(),
            ),
            PartitionError::File { .. } => None,
        }
    }
}

/// Makes `cgroup` an isolated partition of `cpus` and reads back that it is one.
///
/// # Errors
/// [`PartitionError`]; the cgroup is a plain member again then.
pub fn isolate(hierarchy: &Hierarchy, cgroup: &Cgroup, cpus: &CpuSet) -> Result<How, PartitionError> {
    let (version, dir) = cgroup.need("isolated CPUs", Controller::Cpuset)?;
    let Some(tree) = hierarchy
        .tree(Controller::Cpuset)
        .filter(|_| version == Version::V2)
    else {
        return Err(PartitionError::OnlyV1 { cpus: cpus.clone() });
    };
    let refused = |error| PartitionError::File {
        cpus: cpus.clone(),
        error,
    };
    let mut answers = Vec::new();
    file::write(&dir.join("cpuset.cpus"), &cpus.to_string()).map_err(refused)?;
    if local_is_possible(&tree.mount, dir).map_err(refused)? {
        match become_isolated(dir, cpus).map_err(refused)? {
            None => return Ok(How::Local),
            Some(answer) => answers.push(format!("as a child of a partition: {answer}")),
        }
    } else if let Some(parent) = chain_of(&tree.mount, dir) {
        match chain(parent, dir, cpus) {
            Ok(None) => return Ok(How::Local),
            Ok(Some(answer)) => answers.push(format!("as a child of {}: {answer}", parent.display())),
            Err(error) => answers.push(format!("as a child of {}: {error}", parent.display())),
        }
    } else {
        answers.push("as a child of a partition: the parent is neither the root nor a partition".into());
    }
    if !dir.join(EXCLUSIVE).exists() {
        answers.push(format!("as a remote partition: this kernel has no {EXCLUSIVE}"));
        shrink_parents(&tree.mount, dir).map_err(refused)?;
        return Err(PartitionError::Refused {
            cpus: cpus.clone(),
            answers,
        });
    }
    match remote(&tree.mount, dir, cpus) {
        Ok(None) => return Ok(How::Remote),
        Ok(Some(answer)) => answers.push(format!("as a remote partition: {answer}")),
        Err(error) => answers.push(format!("as a remote partition: {error}")),
    }
    leave(dir).map_err(refused)?;
    shrink_parents(&tree.mount, dir).map_err(refused)?;
    Err(PartitionError::Refused {
        cpus: cpus.clone(),
        answers,
    })
}

/// The parent of isolated containers where `parent` is that of the others: another folder on a node whose partitions
/// must be children of partitions. `None` where they may be children of `parent`.
#[must_use]
pub fn chained(hierarchy: &Hierarchy, parent: &str) -> Option<String> {
    let tree = hierarchy
        .tree(Controller::Cpuset)
        .filter(|tree| tree.version == Version::V2)?;
    let parent = parent.trim_matches('/');
    if parent.is_empty() || tree.mount.join(SINCE_REMOTE).exists() {
        return None;
    }
    Some(format!("{}{CHAIN}", parent.replace('/', "-")))
}

/// The parent of `dir`, if it is one that is made a partition for its children on this kernel.
fn chain_of<'a>(mount: &Path, dir: &'a Path) -> Option<&'a Path> {
    let parent = dir.parent()?;
    let named = parent.file_name()?.to_str()?.ends_with(CHAIN);
    (named && parent.parent() == Some(mount) && !mount.join(SINCE_REMOTE).exists()).then_some(parent)
}

/// Whether the parent is the root, or a partition that is valid itself.
fn local_is_possible(mount: &Path, dir: &Path) -> Result<bool, FileError> {
    match dir.parent() {
        Some(parent) if parent != mount => {
            // A folder of partitions must have the CPUs first.
            if chain_of(mount, dir).is_some() {
                return Ok(false);
            }
            Ok(stands(mount, parent)?.is_some())
        }
        _ => Ok(true),
    }
}

/// The form of the partition that `dir` says it is, where everything above it holds too; `None`: it is none.
fn stands(mount: &Path, dir: &Path) -> Result<Option<How>, FileError> {
    let state = file::read_if_there(&dir.join(PARTITION))?;
    if !state.is_some_and(|state| state == "root" || state == "isolated") {
        return Ok(None);
    }
    let parent = match dir.parent() {
        Some(parent) if parent != mount => parent,
        _ => return Ok(Some(How::Local)),
    };
    let above = file::read_if_there(&parent.join(PARTITION))?.unwrap_or_default();
    if above == "member" || above.is_empty() {
        let own = file::read_if_there(&dir.join(EXCLUSIVE))?.unwrap_or_default();
        return Ok((!own.is_empty()).then_some(How::Remote));
    }
    // A remote one further up makes this no remote one: its parent is a partition.
    Ok(stands(mount, parent)?.map(|_| How::Local))
}

/// The CPUs of the partitions below `parent`, valid or not, but of `dir`.
fn partitions_below(parent: &Path, dir: &Path) -> Result<CpuSet, FileError> {
    let mut all = CpuSet::new();
    for child in children(parent)?.iter().filter(|child| *child != dir) {
        if file::read_if_there(&child.join(PARTITION))?.is_some_and(|state| state != "member") {
            all = all.union(&file::parse(&child.join("cpuset.cpus"))?);
        }
    }
    Ok(all)
}

/// Gives the parent of `cgroup` the CPUs, where it is a partition of partitions: one whose CPUs are all taken has none for
/// another cgroup below it. Whether there is such a parent.
pub(crate) fn make_room(cgroup: &Cgroup, cpus: &CpuSet) -> Result<bool, FileError> {
    let hierarchy = cgroup.hierarchy();
    let (Some(tree), Some(dir)) = (hierarchy.tree(Controller::Cpuset), cgroup.dir(Controller::Cpuset)) else {
        return Ok(false);
    };
    let Some(parent) = chain_of(&tree.mount, dir).filter(|_| tree.version == Version::V2) else {
        return Ok(false);
    };
    let _lock = lock_file(parent)?;
    grow(parent, dir, cpus)?;
    Ok(true)
}

/// The parent has what those below it have, and `cpus`; asked for as a partition. Under its lock.
fn grow(parent: &Path, dir: &Path, cpus: &CpuSet) -> Result<(), FileError> {
    let needed = partitions_below(parent, dir)?.union(cpus);
    let there: CpuSet = file::parse(&parent.join("cpuset.cpus"))?;
    if there != needed {
        file::write(&parent.join("cpuset.cpus"), &needed.to_string())?;
    }
    anew(parent)
}

/// A partition of all that those below it have, then the partition below it; what the kernel says when it is not valid.
fn chain(parent: &Path, dir: &Path, cpus: &CpuSet) -> Result<Option<String>, FileError> {
    // Held to the end: whoever leaves meanwhile must not take these CPUs from the parent.
    let _lock = lock_file(parent)?;
    grow(parent, dir, cpus)?;
    let state = file::read(&parent.join(PARTITION))?;
    if state != "isolated" {
        return Ok(Some(format!("the kernel says `{state}` of that")));
    }
    become_isolated(dir, cpus)
}

/// Asks for the partition and reads back; what the kernel says when it is not valid. Not valid ends as a member.
fn become_isolated(dir: &Path, cpus: &CpuSet) -> Result<Option<String>, FileError> {
    let path = dir.join(PARTITION);
    let answer = match file::write(&path, "isolated") {
        Ok(()) => match valid(dir, cpus)? {
            Ok(()) => return Ok(None),
            Err(answer) => answer,
        },
        Err(error) => error.to_string(),
    };
    file::write(&path, "member")?;
    Ok(Some(answer))
}

/// Whether `dir` is a valid isolated partition of exactly `cpus`.
fn valid(dir: &Path, cpus: &CpuSet) -> Result<Result<(), String>, FileError> {
    let state = file::read(&dir.join(PARTITION))?;
    if state != "isolated" {
        return Ok(Err(format!("the kernel says `{state}`")));
    }
    let effective: CpuSet = file::parse(&dir.join("cpuset.cpus.effective"))?;
    Ok(if effective == *cpus {
        Ok(())
    } else {
        Err(format!("only CPUs {effective} are in force"))
    })
}

/// The remote form: exclusive CPUs from the top down, then the partition.
fn remote(mount: &Path, dir: &Path, cpus: &CpuSet) -> Result<Option<String>, FileError> {
    claim(mount, dir, cpus)?;
    become_isolated(dir, cpus)
}

/// Exclusive CPUs from the top down.
fn claim(mount: &Path, dir: &Path, cpus: &CpuSet) -> Result<(), FileError> {
    let _lock = lock(mount, dir)?;
    for parent in parents(mount, dir) {
        let path = parent.join(EXCLUSIVE);
        let there: CpuSet = file::parse(&path)?;
        if !cpus.is_subset(&there) {
            file::write(&path, &there.union(cpus).to_string())?;
        }
    }
    file::write(&dir.join(EXCLUSIVE), &cpus.to_string())
}

/// Makes a cgroup a plain member again; whether its parents may have CPUs for it to give back.
pub(crate) fn leave(dir: &Path) -> Result<bool, FileError> {
    // Its parent may have been given the CPUs before it became a partition.
    let chained = |name: &std::ffi::OsStr| name.as_bytes().ends_with(CHAIN.as_bytes());
    let mut held = dir.parent().and_then(Path::file_name).is_some_and(chained);
    if file::read_if_there(&dir.join(PARTITION))?.is_some_and(|state| state != "member") {
        file::write(&dir.join(PARTITION), "member")?;
        held = true;
    }
    match file::read_if_there(&dir.join(EXCLUSIVE))? {
        Some(exclusive) if !exclusive.is_empty() => {
            file::write(&dir.join(EXCLUSIVE), "\n")?;
            Ok(true)
        }
        _ => Ok(held),
    }
}

/// Lowers the parents' exclusive CPUs, or the partition above, to those of the children that are left.
pub(crate) fn shrink_parents(mount: &Path, dir: &Path) -> Result<(), FileError> {
    if let Some(parent) = chain_of(mount, dir) {
        return shrink_chain(parent, dir);
    }
    let between = parents(mount, dir);
    let Some(top) = between.first() else { return Ok(()) };
    if !top.exists() {
        return Ok(());
    }
    let _lock = lock(mount, dir)?;
    for parent in between.iter().rev() {
        let Some(now) = file::read_if_there(&parent.join(EXCLUSIVE))? else {
            return Ok(());
        };
        let mut needed = CpuSet::new();
        for child in children(parent)? {
            if child.join(EXCLUSIVE).exists() {
                needed = needed.union(&file::parse(&child.join(EXCLUSIVE))?);
            }
        }
        if now != needed.to_string() {
            // An empty write(2) would not reach the file.
            let value = if needed.is_empty() {
                "\n".to_owned()
            } else {
                needed.to_string()
            };
            file::write(&parent.join(EXCLUSIVE), &value)?;
        }
    }
    Ok(())
}

/// The partition of partitions keeps the CPUs of those that are left; without any it is one no more.
fn shrink_chain(parent: &Path, dir: &Path) -> Result<(), FileError> {
    if !parent.exists() {
        return Ok(());
    }
    let _lock = lock_file(parent)?;
    let needed = partitions_below(parent, dir)?;
    if needed.is_empty() {
        file::write(&parent.join(PARTITION), "member")?;
        return file::write(&parent.join("cpuset.cpus"), "\n");
    }
    file::write(&parent.join("cpuset.cpus"), &needed.to_string())
}

/// An exclusive lock on the topmost directory of the path, as for the real-time budget.
fn lock(mount: &Path, dir: &Path) -> Result<Flock<File>, FileError> {
    let top = parents(mount, dir)
        .into_iter()
        .next()
        .unwrap_or_else(|| dir.to_path_buf());
    lock_file(&top)
}

fn lock_file(top: &Path) -> Result<Flock<File>, FileError> {
    let file = File::open(top).map_err(|source| FileError::new("open", top, source))?;
    Flock::lock(file, FlockArg::LockExclusive)
        .map_err(|(_, errno)| FileError::new("lock", top, io::Error::from_raw_os_error(errno as i32)))
}

/// Why the isolation of a set of CPUs could not be told.
#[derive(Debug, Error)]
pub enum IsolationError {
    /// A cgroup file could not be read.
    #[error(transparent)]
    File(#[from] FileError),
    /// The threads could not be listed.
    #[error(transparent)]
    Threads(#[from] ThreadsError),
}

/// What is true of `cpus` for the container of `cgroup`, from the kernel alone: a valid v2 partition, or a tuned node
/// without foreign threads, or pinned with the number of foreign threads. `own` says which processes are the container's.
/// Lists every thread of the node unless there is a partition: not for the launch path.
///
/// # Errors
/// [`IsolationError`].
pub fn isolation(
    cgroup: &Cgroup,
    cpus: &CpuSet,
    proc_root: &Path,
    own: &dyn Fn(i32) -> bool,
) -> Result<Isolation, IsolationError> {
    let hierarchy = cgroup.hierarchy();
    if let Some(how) = partition_of(cgroup, cpus)? {
        return Ok(Isolation::Isolated { how });
    }
    let Foreign { threads, .. } = foreign_threads(proc_root, cpus, own)?;
    if threads == 0 && tuned(hierarchy, cpus)? {
        return Ok(Isolation::Isolated { how: How::Tuned });
    }
    Ok(Isolation::Pinned {
        foreign_threads: threads,
    })
}

/// The form of the valid partition that the cgroup is, if it is one of exactly `cpus`.
///
/// # Errors
/// [`FileError`].
pub fn partition_of(cgroup: &Cgroup, cpus: &CpuSet) -> Result<Option<How>, FileError> {
    let hierarchy = cgroup.hierarchy();
    let (Some(tree), Some(dir)) = (hierarchy.tree(Controller::Cpuset), cgroup.dir(Controller::Cpuset)) else {
        return Ok(None);
    };
    if tree.version == Version::V1
        || file::read_if_there(&dir.join(PARTITION))?.is_none()
        || valid(dir, cpus)?.is_err()
    {
        return Ok(None);
    }
    stands(&tree.mount, dir)
}

/// Asks again for the partition of `cpus` that `cgroup` was, and for the one above it that is berth's; what is one holds as
/// it is. One that the kernel still refuses stays as it is too: whether it stands is for [`isolation`] to say.
///
/// # Errors
/// [`FileError`].
pub fn mend(cgroup: &Cgroup, cpus: &CpuSet) -> Result<(), FileError> {
    let hierarchy = cgroup.hierarchy();
    let (Some(tree), Some(dir)) = (hierarchy.tree(Controller::Cpuset), cgroup.dir(Controller::Cpuset)) else {
        return Ok(());
    };
    let state = |dir: &Path| file::read_if_there(&dir.join(PARTITION));
    if tree.version == Version::V1 || state(dir)?.is_none() || partition_of(cgroup, cpus)?.is_some() {
        return Ok(());
    }
    let mut above = None;
    if let Some(parent) = chain_of(&tree.mount, dir) {
        above = Some(lock_file(parent)?);
        grow(parent, dir, cpus)?;
    } else if dir.join(EXCLUSIVE).exists() && !local_is_possible(&tree.mount, dir)? {
        claim(&tree.mount, dir, cpus)?;
    }
    anew(dir)?;
    drop(above);
    Ok(())
}

/// Asks for the partition again, where it is not valid. Before Linux 6.7 an invalid one stays so until it was a member.
fn anew(dir: &Path) -> Result<(), FileError> {
    let path = dir.join(PARTITION);
    if file::read(&path)? == "isolated" {
        return Ok(());
    }
    file::write(&path, "member")?;
    file::write(&path, "isolated")
}

/// The files that tell when a partition becomes none: of the cgroup and of those above it. None with cgroup v1.
#[must_use]
pub fn telling_files(cgroup: &Cgroup) -> Vec<PathBuf> {
    let (Some(tree), Some(dir)) = (
        cgroup.hierarchy().tree(Controller::Cpuset),
        cgroup.dir(Controller::Cpuset),
    ) else {
        return Vec::new();
    };
    if tree.version == Version::V1 {
        return Vec::new();
    }
    let dirs = parents(&tree.mount, dir).into_iter().chain([dir.to_path_buf()]);
    dirs.map(|dir| dir.join(PARTITION))
        .filter(|path| path.exists())
        .collect()
}

/// Whether the scheduler balances nothing onto the CPUs: `isolcpus=`, or v1's root cpuset with balancing off.
pub(crate) fn tuned(hierarchy: &Hierarchy, cpus: &CpuSet) -> Result<bool, FileError> {
    let sys: PathBuf = hierarchy.root().join("sys/devices/system/cpu/isolated");
    if file::read_if_there(&sys)?
        .and_then(|list| list.parse::<CpuSet>().ok())
        .is_some_and(|list| cpus.is_subset(&list))
    {
        return Ok(true);
    }
    let Some(tree) = hierarchy
        .tree(Controller::Cpuset)
        .filter(|tree| tree.version == Version::V1)
    else {
        return Ok(false);
    };
    Ok(file::read_if_there(&tree.mount.join("cpuset.sched_load_balance"))?.is_some_and(|value| value == "0"))
}

#[cfg(test)]
mod tests;
