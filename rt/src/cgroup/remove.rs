//! Taking a cgroup away again, with the cgroups below it, deepest first.
//!
//! v1 real-time budgets are written back to 0 before `rmdir`: the kernel frees a removed group late, and until then
//! its budget counts. Parents give back what the group held (budget, exclusive CPUs). `rmdir` says EBUSY while the
//! last process is still leaving, so it is tried again for a while. Removal goes on after an error and returns all.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use thiserror::Error;

use super::file::{self, FileError};
use super::{Cgroup, Controller, Hierarchy, PathError, Version, checked, realtime};
use crate::partition;

/// How long a cgroup may stay busy after its last process has gone.
const PATIENCE: Duration = Duration::from_secs(2);
const PAUSE: Duration = Duration::from_micros(200);

/// What is left of a cgroup that was to be removed.
#[derive(Debug, Error)]
#[error("the cgroup `{path}` is not wholly removed: {}", join(errors))]
pub struct RemoveError {
    /// The cgroup.
    pub path: String,
    /// Each thing that went wrong.
    pub errors: Vec<FileError>,
}

fn join(errors: &[FileError]) -> String {
    errors
        .iter()
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join("; ")
}

impl RemoveError {
    /// The setting to change, where the environment is at fault.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        let busy = |error: &FileError| error.errno() == Some(libc::EBUSY);
        self.errors
            .iter()
            .any(busy)
            .then(|| "processes are still in it: kill them first".into())
    }
}

impl Cgroup {
    /// Removes the cgroup and the cgroups below it from every hierarchy. Its processes must have been ended
    /// ([`kill`](Cgroup::kill)). One that is gone already is no error.
    ///
    /// # Errors
    /// [`RemoveError`] with everything that went wrong.
    pub fn remove(&self) -> Result<(), RemoveError> {
        let mut errors = Vec::new();
        for (index, dir) in &self.dirs {
            let tree = &self.hierarchy.trees()[*index];
            match tree.version {
                Version::V1 => remove_v1(&tree.mount, dir, &mut errors),
                Version::V2 => {
                    let exclusive = partition::leave(dir).unwrap_or_else(|error| {
                        errors.push(error);
                        false
                    });
                    rmdir_all(dir, &mut errors);
                    if exclusive {
                        errors.extend(partition::shrink_parents(&tree.mount, dir).err());
                    }
                }
            }
        }
        if errors.is_empty() {
            Ok(())
        } else {
            Err(RemoveError {
                path: self.path.clone(),
                errors,
            })
        }
    }
}

impl Cgroup {
    /// Removes a cgroup in which nothing is left, without listing anything first: `rmdir` itself says whether a process
    /// or a cgroup is in it. `false`: something is, or it is a v2 cgroup, or it cannot be removed; what is left of it goes
    /// the long way ([`kill`](Cgroup::kill), [`remove`](Cgroup::remove)). The freezer goes last, so that `kill` has it.
    #[must_use]
    pub fn remove_empty(&self) -> bool {
        let trees = self.hierarchy.trees();
        if self
            .dirs
            .iter()
            .any(|(index, _)| trees[*index].version == Version::V2)
        {
            return false;
        }
        let freezer = |index: usize| trees[index].controllers.contains(&Controller::Freezer);
        let (last, first): (Vec<_>, Vec<_>) = self.dirs.iter().partition(|(index, _)| freezer(*index));
        first.into_iter().chain(last).all(|(index, dir)| {
            let tree = &trees[*index];
            if tree.controllers.contains(&Controller::Cpu) && realtime::release(&tree.mount, dir).is_err() {
                return false;
            }
            match fs::remove_dir(dir) {
                Ok(()) => true,
                Err(error) => error.kind() == io::ErrorKind::NotFound,
            }
        })
    }
}

/// Removes the shared parent `path` from every hierarchy where no cgroup and no process is left in it.
///
/// # Errors
/// [`PathError`] when the path cannot be used. That it is still in use is no error.
pub fn prune(hierarchy: &Hierarchy, path: &str) -> Result<(), PathError> {
    let path = checked(path)?;
    for tree in hierarchy.trees() {
        // A budget is left in an empty parent only after a crash; it would keep real time from the whole node.
        let dir = tree.mount.join(&path);
        if tree.version == Version::V1 && children(&dir).is_ok_and(|below| below.is_empty()) {
            let _ = realtime::release(&tree.mount, &dir);
        }
        let _ = fs::remove_dir(dir);
    }
    Ok(())
}

/// A v1 directory: budgets down to 0 from the bottom up, then the directories, then the parents' budget.
fn remove_v1(mount: &Path, dir: &Path, errors: &mut Vec<FileError>) {
    errors.extend(realtime::release(mount, dir).err());
    rmdir_all(dir, errors);
}

/// Takes back what a failing `create` made: the directories are new and empty.
pub(crate) fn undo(cgroup: &Cgroup) {
    for (_, dir) in &cgroup.dirs {
        let _ = fs::remove_dir(dir);
    }
}

/// Removes an empty leftover of an earlier run, with the empty cgroups below it.
pub(crate) fn leftover(mount: &Path, version: Version, dir: &Path) -> Result<(), FileError> {
    let mut errors = Vec::new();
    match version {
        Version::V1 => remove_v1(mount, dir, &mut errors),
        Version::V2 => rmdir_all(dir, &mut errors),
    }
    errors.into_iter().next().map_or(Ok(()), Err)
}

/// Removes `dir` and everything below it, deepest first.
fn rmdir_all(dir: &Path, errors: &mut Vec<FileError>) {
    match subtree(dir) {
        Ok(dirs) => {
            for dir in dirs.iter().rev() {
                if let Err(error) = rmdir(dir) {
                    errors.push(error);
                    return;
                }
            }
        }
        Err(error) => errors.push(error),
    }
}

fn rmdir(dir: &Path) -> Result<(), FileError> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match fs::remove_dir(dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) && Instant::now() < deadline => {
                // A cgroup with processes in it will not go by waiting.
                if procs_of(dir).is_ok_and(|pids| !pids.is_empty()) {
                    return Err(FileError::new("remove the cgroup", dir, error));
                }
                std::thread::sleep(PAUSE);
            }
            other => return other.map_err(|error| FileError::new("remove the cgroup", dir, error)),
        }
    }
}

/// The cgroups directly below `dir`; none when it is gone.
pub(crate) fn children(dir: &Path) -> Result<Vec<PathBuf>, FileError> {
    let fail = |source| FileError::new("list", dir, source);
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(fail)?,
    };
    let mut below = Vec::new();
    for entry in entries {
        let entry = entry.map_err(fail)?;
        if entry.file_type().map_err(fail)?.is_dir() {
            below.push(entry.path());
        }
    }
    below.sort();
    Ok(below)
}

/// `dir` and every cgroup below it, parents first.
pub(crate) fn subtree(dir: &Path) -> Result<Vec<PathBuf>, FileError> {
    let mut all = vec![dir.to_path_buf()];
    let mut next = 0;
    while next < all.len() {
        let below = children(&all[next])?;
        all.extend(below);
        next += 1;
    }
    Ok(all)
}

/// The processes of one cgroup directory; none when it is gone. A process of a PID namespace that this process cannot
/// see is listed by the kernel as 0.
pub(crate) fn procs_of(dir: &Path) -> Result<Vec<i32>, FileError> {
    let path = dir.join("cgroup.procs");
    let text = match file::read(&path) {
        Ok(text) => text,
        Err(error) if matches!(error.errno(), Some(libc::ENOENT | libc::ENODEV)) => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    text.lines()
        .map(|line| {
            line.parse().map_err(|_| {
                let source = io::Error::new(
                    io::ErrorKind::InvalidData,
                    format!("`{line}` is not a process number"),
                );
                FileError::new("read", &path, source)
            })
        })
        .collect()
}
