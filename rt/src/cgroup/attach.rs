//! Putting processes into a cgroup, and listing those that are there.
//!
//! v1 wants one write for each hierarchy. A thread that writes `0` to `tasks` moves only itself, and the kernel
//! then spares the lock over all forks and exits of the node that a write to `cgroup.procs` takes: so a container
//! enters by itself ([`Cgroup::attach_self`]) where it can. v2 has one directory and CLONE_INTO_CGROUP
//! ([`Cgroup::dir_fd`]).

use thiserror::Error;

use super::file::{self, FileError};
use super::{Cgroup, Version, remove};

/// A process could not be put into the cgroup. It may be in some of the hierarchies.
#[derive(Debug, Error)]
#[error("cannot put {} into its cgroup: {error}", if *pid == 0 { "the calling thread".into() } else { format!("process {pid}") })]
pub struct AttachError {
    /// The process; 0 is the calling thread.
    pub pid: i32,
    /// The file that refused.
    #[source]
    pub error: FileError,
}

impl AttachError {
    /// The setting to change, where the environment is at fault.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        let file = self.error.path.display();
        Some(match self.error.errno()? {
            libc::EINVAL => format!(
                "a real-time thread cannot enter a v1 cpu cgroup without a budget (cpu.rt_runtime_us beside {file}): \
                 give it one first, or set the policy after it has entered"
            ),
            libc::ENOSPC => {
                format!("cpuset.cpus and cpuset.mems beside {file} must be set before a process can enter")
            }
            libc::EBUSY => {
                format!("the cgroup of {file} has children with controllers enabled (cgroup.subtree_control)")
            }
            libc::ESRCH => "the process has ended".into(),
            _ => return None,
        })
    }
}

impl Cgroup {
    /// Puts process `pid` with all its threads into every hierarchy of the cgroup.
    ///
    /// # Errors
    /// [`AttachError`] at the first hierarchy that refuses.
    pub fn attach(&self, pid: i32) -> Result<(), AttachError> {
        for (_, dir) in self.dirs() {
            file::write(&dir.join("cgroup.procs"), &pid.to_string())
                .map_err(|error| AttachError { pid, error })?;
        }
        Ok(())
    }

    /// Puts the calling thread into every hierarchy of the cgroup; meant for a process of one thread, such as a
    /// container between clone and exec. Cheaper than [`attach`](Cgroup::attach) with v1.
    ///
    /// # Errors
    /// [`AttachError`] with pid 0 at the first hierarchy that refuses.
    pub fn attach_self(&self) -> Result<(), AttachError> {
        for (version, dir) in self.dirs() {
            let name = match version {
                Version::V1 => "tasks",
                Version::V2 => "cgroup.procs",
            };
            file::write(&dir.join(name), "0").map_err(|error| AttachError { pid: 0, error })?;
        }
        Ok(())
    }

    /// The processes in the cgroup and in the cgroups below it, rising. Zombies are not among them.
    ///
    /// # Errors
    /// [`FileError`] when a list cannot be read.
    pub fn procs(&self) -> Result<Vec<i32>, FileError> {
        let mut pids = Vec::new();
        for (_, dir) in self.dirs() {
            for below in remove::subtree(dir)? {
                pids.extend(remove::procs_of(&below)?);
            }
        }
        pids.sort_unstable();
        pids.dedup();
        Ok(pids)
    }
}
