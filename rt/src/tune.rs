//! The run-time half of a node's tuning: changes out of [`crate::survey`] are made one by one, and put back.
//!
//! Invariants: what puts a change back is in the journal, and on its disk, before the change is made (`journal`). Each
//! change is read back. Where one fails, all of this run are put back, and the error names the interface, what is there
//! and what helps. A journal that was not finished (the process was killed) is put back by the next [`undo`], the next
//! [`apply`], or a reboot, which resets everything that is changed here: a journal of another boot is thrown away.

mod cpusets;
mod journal;
#[cfg(test)]
mod tests;

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use thiserror::Error;

use crate::cpu::CpuSet;
use crate::machine::{Machine, selected};
use crate::sched::{self, Attributes, Scheduler};
use crate::survey::{Change, Target};
use crate::{ethtool, knob};

pub use journal::{Journal, JournalError};

/// The kernel's two lockup detectors, and what switches both.
const DETECTORS: [&str; 2] = ["/proc/sys/kernel/soft_watchdog", "/proc/sys/kernel/nmi_watchdog"];
const WATCHDOG: &str = "/proc/sys/kernel/watchdog";

/// What `apply` did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Applied {
    /// The changes that were made.
    pub made: Vec<Change>,
    /// What the kernel keeps as it is; no fault.
    pub kept: Vec<String>,
    /// How many changes of an interrupted run were put back first.
    pub put_back: usize,
}

/// What `undo` did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Undone {
    /// How many changes were put back.
    pub put_back: usize,
    /// How many were as before already.
    pub untouched: usize,
    /// Threads and interfaces that are gone, so that there is nothing to put back.
    pub gone: usize,
    /// The journal was of another boot, which has reset everything.
    pub other_boot: bool,
}

/// A change that could not be made or put back.
#[derive(Debug)]
pub struct Failed {
    /// What was written.
    pub target: Target,
    /// The value.
    pub value: String,
    /// What is there.
    pub actual: Option<String>,
    /// The kernel's answer; `None` where the write was taken and another value is there.
    pub source: Option<io::Error>,
    /// The knob's name.
    pub knob: String,
}

impl std::fmt::Display for Failed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: cannot be set to `{}`", self.target, self.value)?;
        match (&self.source, &self.actual) {
            (Some(source), Some(actual)) => write!(f, ": {source}; it is `{actual}`"),
            (Some(source), None) => write!(f, ": {source}"),
            (None, Some(actual)) => write!(f, ": the write was taken, and it is `{actual}`"),
            (None, None) => write!(f, ": the write was taken, and nothing can be read"),
        }
    }
}

impl Failed {
    /// What helps.
    #[must_use]
    pub fn hint(&self) -> String {
        let errno = self.source.as_ref().and_then(io::Error::raw_os_error);
        let knob = knob::find(&self.knob);
        let boot = knob.map_or("", |knob| knob.boot);
        let field = knob.map_or("", |knob| knob.field);
        let at_boot = match boot {
            "" => String::new(),
            boot => format!(", or the boot argument {boot}"),
        };
        match errno {
            Some(libc::EACCES | libc::EPERM) => {
                format!("tune as root with all capabilities; lockdown and a container forbid it{at_boot}")
            }
            Some(libc::EBUSY) if self.knob == "fair-server" => format!(
                "Linux 6.12 loses the servers' bandwidth from its account with a cpuset partition, and then refuses to lower it: \
                 tune before the first partition is made, or leave out {field}"
            ),
            Some(libc::EBUSY) => format!("something holds it: change {field}{at_boot}"),
            Some(libc::EINVAL | libc::ERANGE) => {
                format!("this kernel takes no such value: change {field}{at_boot}")
            }
            None if self.value == "1"
                && matches!(&self.target, Target::File { path } if DETECTORS.contains(&path.as_str())) =>
            {
                format!(
                    "kernel.watchdog is off, and switches both detectors: sysctl -w kernel.watchdog=1, or leave out {field}"
                )
            }
            _ if self.knob == "hugepages" => {
                format!("memory is too fragmented or too small for that: lower {field}{at_boot}")
            }
            _ => format!("change or leave out {field}{at_boot}"),
        }
    }
}

/// Tuning failed; nothing of this run is left unless `left` says so.
#[derive(Debug, Error)]
pub enum TuneError {
    /// A change could not be made; those before it were put back.
    #[error("{failed}{}", rest(left))]
    Change {
        /// The change.
        failed: Box<Failed>,
        /// What could not be put back, if anything.
        left: Vec<Failed>,
    },
    /// Something could not be put back; the journal is kept, so that it can be tried again.
    #[error("{} could not be put back: {}", failed.len(), texts(failed))]
    Undo {
        /// What is left.
        failed: Vec<Failed>,
    },
    /// The journal.
    #[error(transparent)]
    Journal(#[from] JournalError),
}

fn texts(failed: &[Failed]) -> String {
    let texts: Vec<String> = failed.iter().map(ToString::to_string).collect();
    texts.join("; ")
}

fn rest(left: &[Failed]) -> String {
    match left {
        [] => "; everything that was changed is put back".to_owned(),
        left => format!("; what could not be put back: {}", texts(left)),
    }
}

impl TuneError {
    /// What helps.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            TuneError::Change { failed, .. } => Some(failed.hint()),
            TuneError::Undo { .. } => {
                Some("mend the cause and run berth node tune --undo again; a reboot resets all of it".into())
            }
            TuneError::Journal(error) => Some(error.hint()),
        }
    }
}

/// Puts back what an interrupted run left; how many changes. Before a survey: one that is made while half a run is in
/// force takes what that run did for settled.
///
/// # Errors
/// As [`undo`].
pub fn settle(machine: &Machine, journal: &Path) -> Result<usize, TuneError> {
    let mut log = Journal::open(journal, &boot_id(machine))?;
    if !log.unfinished() {
        return Ok(0);
    }
    let since = log.begin_of_last();
    Ok(put_back(machine, &mut log, since)?.put_back)
}

/// Makes `changes`, in their order. What an interrupted run left is put back first.
///
/// # Errors
/// [`TuneError`]; then nothing of this run is left, or the error says what.
pub fn apply(machine: &Machine, journal: &Path, changes: &[Change]) -> Result<Applied, TuneError> {
    let mut applied = Applied::default();
    let mut log = Journal::open(journal, &boot_id(machine))?;
    if log.unfinished() {
        let since = log.begin_of_last();
        applied.put_back = put_back(machine, &mut log, since)?.put_back;
    }
    if changes.is_empty() {
        return Ok(applied);
    }
    let since = log.begin()?;
    for change in changes {
        let Some(prepared) = prepare(machine, change) else {
            applied.kept.push(format!("{}: it is gone", change.target));
            continue;
        };
        if prepared
            .restore
            .iter()
            .any(|(target, old)| *target == prepared.target && agrees(old, &prepared.value))
        {
            // A write before it did it too: machinecheckN/ignore_ce is one setting for all CPUs.
            continue;
        }
        log.add(&prepared)?;
        let failed = match write(machine, &prepared.target, &prepared.value) {
            Ok(()) => match current(machine, &prepared.target) {
                Some(actual) if agrees(&actual, &prepared.value) => {
                    applied.made.push(prepared);
                    continue;
                }
                actual => failed(&prepared, actual, None),
            },
            Err(error) if gone(&error, &prepared.target) => {
                applied.kept.push(format!("{}: it is gone", prepared.target));
                continue;
            }
            Err(error) if keeps(&prepared, &error) => {
                applied
                    .kept
                    .push(format!("{}: the kernel keeps it ({error})", prepared.target));
                if let Target::File { path } = &prepared.target
                    && let Some(irq) = path
                        .strip_prefix("/proc/irq/")
                        .and_then(|rest| rest.split('/').next())
                    && let Ok(irq) = irq.parse()
                {
                    log.keep(irq)?;
                }
                continue;
            }
            Err(error) => {
                let actual = current(machine, &prepared.target);
                failed(&prepared, actual, Some(error))
            }
        };
        let left = match put_back(machine, &mut log, since) {
            Ok(_) => Vec::new(),
            Err(TuneError::Undo { failed }) => failed,
            Err(other) => return Err(other),
        };
        return Err(TuneError::Change {
            failed: Box::new(failed),
            left,
        });
    }
    log.finish()?;
    Ok(applied)
}

/// Puts everything back that the journal holds, the last change first.
///
/// # Errors
/// [`TuneError::Undo`] for what could not be put back: all the rest is, and the journal is kept.
pub fn undo(machine: &Machine, journal: &Path) -> Result<Undone, TuneError> {
    let mut log = Journal::open(journal, &boot_id(machine))?;
    let mut undone = put_back(machine, &mut log, 0)?;
    undone.other_boot = log.other_boot();
    Ok(undone)
}

fn failed(change: &Change, actual: Option<String>, source: Option<io::Error>) -> Failed {
    Failed {
        target: change.target.clone(),
        value: change.value.clone(),
        actual,
        source,
        knob: change.knob.clone(),
    }
}

/// Puts back the entries from `since` on, and takes them out of the journal if all went well.
fn put_back(machine: &Machine, log: &mut Journal, since: usize) -> Result<Undone, TuneError> {
    let mut undone = Undone::default();
    let mut left = Vec::new();
    for change in log.changes(since).into_iter().rev() {
        let mut touched = false;
        let mut absent = false;
        let own = change.restore.iter().map(|(_, old)| old).chain([&change.value]);
        if let Target::Member { .. } = &change.target
            && current(machine, &change.target).is_some_and(|now| !own.clone().any(|place| *place == now))
        {
            // Somebody moved it since: it is not where it was put, nor where it was.
            undone.untouched += 1;
            continue;
        }
        for (target, old) in &change.restore {
            match current(machine, target) {
                Some(actual) if actual == *old => continue,
                None => {
                    absent = true;
                    continue;
                }
                Some(_) => {}
            }
            touched = true;
            let fail = |source, actual| Failed {
                target: target.clone(),
                value: old.clone(),
                actual,
                source,
                knob: change.knob.clone(),
            };
            match write(machine, target, old) {
                Err(error) if gone(&error, target) => absent = true,
                Err(error) => left.push(fail(Some(error), current(machine, target))),
                Ok(()) => match read_back(machine, target, old) {
                    Some(actual) if agrees(&actual, old) => {}
                    actual => left.push(fail(None, actual)),
                },
            }
        }
        match (touched, absent) {
            (_, true) => undone.gone += 1,
            (true, false) => undone.put_back += 1,
            (false, false) => undone.untouched += 1,
        }
    }
    if !left.is_empty() {
        return Err(TuneError::Undo { failed: left });
    }
    log.truncate(since)?;
    Ok(undone)
}

/// What is there once `old` was put back into `target`. A lockup detector may need more than its own file: on 6.1 and 6.12
/// the *reading* of kernel.watchdog while both detectors are off switches it off (kernel/watchdog.c,
/// proc_watchdog_common() sets what userspace asked for to what it shows), and from then on 1 in soft_watchdog or
/// nmi_watchdog is taken and shows as 0. A detector that was on had kernel.watchdog on, so that is put back too: written,
/// never read.
fn read_back(machine: &Machine, target: &Target, old: &str) -> Option<String> {
    let actual = current(machine, target);
    match target {
        Target::File { path }
            if DETECTORS.contains(&path.as_str()) && old == "1" && actual.as_deref() == Some("0") =>
        {
            // A failure shows in what is read.
            let both = put(&machine.path(WATCHDOG), old);
            let _ = both.and_then(|()| put(&machine.path(path), old));
            current(machine, target)
        }
        _ => actual,
    }
}

/// The change with what puts it back, as things are now; `None` where its thread or interface is gone.
fn prepare(machine: &Machine, change: &Change) -> Option<Change> {
    let mut change = change.clone();
    let own = change.restore.iter().all(|(target, _)| *target == change.target);
    if own {
        let old = current(machine, &change.target)?;
        change.restore = vec![(change.target.clone(), old)];
    }
    Some(change)
}

/// What a target holds now, in the form in which it is written; `None` where it is not there.
fn current(machine: &Machine, target: &Target) -> Option<String> {
    match target {
        Target::File { path } => {
            let text = machine.read(path)?;
            Some(selected(&text).unwrap_or(text))
        }
        Target::Scheduler { pid, start, .. } => {
            machine.thread(*pid).filter(|thread| thread.start == *start)?;
            let attributes = sched::get(*pid).ok()?;
            serde_json::to_string(&Policy::from(attributes)).ok()
        }
        Target::Affinity { pid, start, .. } => {
            machine.thread(*pid).filter(|thread| thread.start == *start)?;
            machine.allowed(*pid).map(|cpus| cpus.to_string())
        }
        Target::Cpuset { path } => Some(cpusets::read(machine, path)),
        Target::Member { pid, start, root, .. } => {
            machine.thread(*pid).filter(|thread| thread.start == *start)?;
            cpusets::member(machine, *pid, root)
        }
        Target::Channels { interface } => ethtool::channels(interface).ok().map(|c| c.combined.to_string()),
    }
}

/// A policy with its flags, for the journal.
#[derive(serde::Serialize, serde::Deserialize)]
struct Policy {
    #[serde(flatten)]
    scheduler: Scheduler,
    #[serde(default, skip_serializing_if = "is_zero")]
    flags: u64,
}

fn is_zero(flags: &u64) -> bool {
    *flags == 0
}

impl From<Attributes> for Policy {
    fn from(attributes: Attributes) -> Policy {
        Policy {
            scheduler: attributes.scheduler,
            flags: attributes.flags,
        }
    }
}

/// Writes a value.
fn write(machine: &Machine, target: &Target, value: &str) -> io::Result<()> {
    let same = |pid: i32, start: u64| match machine.thread(pid) {
        Some(thread) if thread.start == start => Ok(()),
        _ => Err(io::Error::from_raw_os_error(libc::ESRCH)),
    };
    let errno = |error: sched::SchedError| match error.errno() {
        Some(errno) => io::Error::from_raw_os_error(errno),
        None => io::Error::other(error.to_string()),
    };
    match target {
        Target::File { path } => put(&machine.path(path), value),
        Target::Scheduler { pid, start, .. } => {
            same(*pid, *start)?;
            let policy: Policy = serde_json::from_str(value)?;
            sched::set(*pid, &policy.scheduler, policy.flags).map_err(errno)
        }
        Target::Affinity { pid, start, .. } => {
            same(*pid, *start)?;
            let cpus: CpuSet = value.parse().map_err(io::Error::other)?;
            sched::set_affinity(*pid, &cpus).map_err(errno)
        }
        Target::Cpuset { path } => cpusets::write(machine, path, value),
        Target::Member { pid, start, root, .. } => {
            same(*pid, *start)?;
            cpusets::enter(machine, *pid, root, value)
        }
        Target::Channels { interface } => {
            let number = value.parse().map_err(io::Error::other)?;
            ethtool::set_combined(interface, number)
        }
    }
}

/// One write(2) into a file that must be there.
pub(crate) fn put(path: &PathBuf, value: &str) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).truncate(true).open(path)?;
    match file.write(value.as_bytes())? {
        written if written == value.len() => Ok(()),
        _ => Err(io::Error::new(
            io::ErrorKind::WriteZero,
            "the value was taken only in part",
        )),
    }
}

/// Whether what is read back is what was written: the same text, mask, list or policy.
pub(crate) fn agrees(actual: &str, value: &str) -> bool {
    let mask = |text: &str| CpuSet::from_mask(text);
    let list = |text: &str| text.parse::<CpuSet>().ok();
    let policy = |text: &str| {
        serde_json::from_str::<serde_json::Value>(text)
            .ok()
            .filter(serde_json::Value::is_object)
    };
    actual == value
        || (mask(value).is_some() && mask(actual) == mask(value))
        || (list(value).is_some() && list(actual) == list(value))
        || (policy(value).is_some() && policy(actual) == policy(value))
}

/// Whether the thing that was to be changed has ended.
fn gone(error: &io::Error, target: &Target) -> bool {
    match target {
        Target::Scheduler { .. } | Target::Affinity { .. } | Target::Member { .. } => {
            error.raw_os_error() == Some(libc::ESRCH)
        }
        Target::Cpuset { .. } => false,
        Target::Channels { .. } => error.raw_os_error() == Some(libc::ENODEV),
        // An interrupt or a queue goes with its device.
        Target::File { path } => {
            (path.starts_with("/proc/irq/") || path.starts_with("/sys/class/net/"))
                && error.raw_os_error() == Some(libc::ENOENT)
        }
    }
}

/// Whether the kernel refuses by its nature: managed interrupts and those of a CPU, threads that must not be moved.
fn keeps(change: &Change, error: &io::Error) -> bool {
    match change.knob.as_str() {
        "irq-affinity" => matches!(error.raw_os_error(), Some(libc::EIO | libc::EPERM | libc::ENOSPC)),
        "kernel-threads" => error.raw_os_error() == Some(libc::EINVAL),
        _ => false,
    }
}

/// This boot.
fn boot_id(machine: &Machine) -> String {
    machine
        .read("/proc/sys/kernel/random/boot_id")
        .unwrap_or_default()
}
