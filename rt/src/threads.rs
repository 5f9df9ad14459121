//! Who may run on a set of CPUs: every thread's `Cpus_allowed_list`, from `/proc/PID/task/TID/status`.
//!
//! A thread that ends while the table is read is skipped. The kernel's threads that are bound to one CPU (`ksoftirqd/1`,
//! `migration/1`: PF_KTHREAD and a single allowed CPU) come with the CPU, cannot be moved, and are counted apart.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;

use crate::cpu::CpuSet;

/// `PF_KTHREAD` in the flags of `/proc/PID/stat`.
pub(crate) const KTHREAD: u64 = 0x0020_0000;
/// How many foreign threads are named.
const NAMED: usize = 16;

/// The threads that may run on a set of CPUs and are not the container's.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Foreign {
    /// How many, without the kernel's per-CPU threads.
    pub threads: usize,
    /// The kernel's threads that are bound to one of the CPUs.
    pub bound_kthreads: usize,
    /// Some of `threads`: thread id, name and allowed CPUs.
    pub examples: Vec<(i32, String, CpuSet)>,
}

/// The table of threads could not be read.
#[derive(Debug, Error)]
pub enum ThreadsError {
    /// A file or directory could not be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// A file does not say what proc(5) says it does.
    #[error("{} has no {what}", path.display())]
    Form {
        /// The file.
        path: PathBuf,
        /// What was looked for.
        what: &'static str,
    },
}

/// Counts the threads below `proc_root` that may run on one of `cpus` and whose process `own` does not claim.
///
/// # Errors
/// [`ThreadsError`].
pub fn foreign_threads(
    proc_root: &Path,
    cpus: &CpuSet,
    own: &dyn Fn(i32) -> bool,
) -> Result<Foreign, ThreadsError> {
    let mut foreign = Foreign::default();
    each_foreign(proc_root, cpus, own, &mut |thread| {
        if thread.bound {
            foreign.bound_kthreads += 1;
            return;
        }
        foreign.threads += 1;
        if foreign.examples.len() < NAMED {
            foreign.examples.push((thread.tid, thread.name, thread.allowed));
        }
    })?;
    Ok(foreign)
}

/// A thread that may run on CPUs that are not its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stranger {
    /// Its number.
    pub tid: i32,
    /// Its name.
    pub name: String,
    /// Where it may run.
    pub allowed: CpuSet,
    /// Whether it is a thread of the kernel that is bound to one CPU.
    pub bound: bool,
}

/// Every thread that [`foreign_threads`] counts, the bound ones too.
///
/// # Errors
/// [`ThreadsError`].
pub fn strangers(
    proc_root: &Path,
    cpus: &CpuSet,
    own: &dyn Fn(i32) -> bool,
) -> Result<Vec<Stranger>, ThreadsError> {
    let mut all = Vec::new();
    each_foreign(proc_root, cpus, own, &mut |thread| all.push(thread))?;
    Ok(all)
}

fn each_foreign(
    proc_root: &Path,
    cpus: &CpuSet,
    own: &dyn Fn(i32) -> bool,
    found: &mut dyn FnMut(Stranger),
) -> Result<(), ThreadsError> {
    for pid in numbers(proc_root)? {
        if own(pid) {
            continue;
        }
        let process = proc_root.join(pid.to_string());
        for tid in numbers(&process.join("task"))? {
            let task = process.join("task").join(tid.to_string());
            let Some(status) = read(&task.join("status"))? else {
                continue;
            };
            // A zombie runs nowhere.
            if field(&status, "State:").is_some_and(|state| state.starts_with(['Z', 'X'])) {
                continue;
            }
            let form = |what| ThreadsError::Form {
                path: task.join("status"),
                what,
            };
            let allowed: CpuSet = field(&status, "Cpus_allowed_list:")
                .and_then(|list| list.parse().ok())
                .ok_or_else(|| form("Cpus_allowed_list"))?;
            if allowed.is_disjoint(cpus) {
                continue;
            }
            found(Stranger {
                tid,
                name: field(&status, "Name:").unwrap_or_default().to_owned(),
                bound: allowed.len() == 1 && is_kthread(&task)?,
                allowed,
            });
        }
    }
    Ok(())
}

pub(crate) fn field<'a>(status: &'a str, name: &str) -> Option<&'a str> {
    status
        .lines()
        .find_map(|line| line.strip_prefix(name))
        .map(str::trim)
}

/// Whether the flags of `/proc/PID/stat` (the 9th field; the 2nd, in brackets, may hold anything) say kernel thread.
fn is_kthread(task: &Path) -> Result<bool, ThreadsError> {
    let path = task.join("stat");
    let Some(stat) = read(&path)? else { return Ok(true) };
    let flags = stat
        .rsplit_once(')')
        .and_then(|(_, rest)| rest.split_ascii_whitespace().nth(6)?.parse::<u64>().ok());
    flags
        .map(|flags| flags & KTHREAD != 0)
        .ok_or(ThreadsError::Form { path, what: "flags" })
}

/// The text of a file of a thread; `None` when the thread has ended.
fn read(path: &Path) -> Result<Option<String>, ThreadsError> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(String::from_utf8_lossy(&bytes).into_owned())),
        Err(error) if ended(&error) => Ok(None),
        Err(source) => Err(ThreadsError::Read {
            path: path.into(),
            source,
        }),
    }
}

/// The entries of a directory that are numbers; none when the process has ended.
fn numbers(dir: &Path) -> Result<Vec<i32>, ThreadsError> {
    let fail = |source| ThreadsError::Read {
        path: dir.into(),
        source,
    };
    let entries = match fs::read_dir(dir) {
        Err(error) if ended(&error) && dir.ends_with("task") => return Ok(Vec::new()),
        other => other.map_err(fail)?,
    };
    let mut all = Vec::new();
    for entry in entries {
        match entry {
            Ok(entry) => all.extend(
                entry
                    .file_name()
                    .to_str()
                    .and_then(|name| name.parse::<i32>().ok()),
            ),
            Err(error) if ended(&error) => break,
            Err(source) => return Err(fail(source)),
        }
    }
    Ok(all)
}

fn ended(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ESRCH))
}
