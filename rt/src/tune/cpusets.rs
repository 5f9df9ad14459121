//! Cpusets of cgroup v1, and threads in them: made, left, removed.
//!
//! Documentation/admin-guide/cgroup-v1/cpusets.rst: a new cpuset is empty and takes no thread; one write to `tasks` moves
//! one thread, and gives it the CPUs of its new cpuset.

use std::fs;
use std::io;

use crate::cpu::CpuSet;
use crate::machine::Machine;
use crate::sched;
use crate::survey::cpusets::{ABSENT, HOUSEKEEPING, ROOT};

use super::put;

/// How often a cpuset is emptied: what is in it may fork meanwhile.
const TRIES: usize = 20;

/// What a cpuset is, in the form in which it is written.
pub(super) fn read(machine: &Machine, path: &str) -> String {
    let file = |name: &str| machine.read(&format!("{path}/{name}"));
    match (file("cpuset.cpus"), file("cpuset.mems")) {
        (Some(cpus), Some(mems)) => format!("cpus {cpus} mems {mems}"),
        _ => ABSENT.to_owned(),
    }
}

/// Makes, changes or removes a cpuset. What is in one that is removed goes to the one above.
pub(super) fn write(machine: &Machine, path: &str, value: &str) -> io::Result<()> {
    let dir = machine.path(path);
    if value == ABSENT {
        return remove(machine, path);
    }
    let (cpus, mems) = value
        .strip_prefix("cpus ")
        .and_then(|rest| rest.split_once(" mems "))
        .ok_or_else(|| io::Error::other(format!("`{value}` says no CPUs and memory nodes")))?;
    match fs::create_dir(&dir) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    // What was killed here has an empty one, and is put back by removing it.
    for (name, list) in [("cpuset.mems", mems), ("cpuset.cpus", cpus)] {
        if !list.is_empty() {
            put(&dir.join(name), list)?;
        }
    }
    Ok(())
}

fn remove(machine: &Machine, path: &str) -> io::Result<()> {
    let above = path.rsplit_once('/').map_or("", |(above, _)| above);
    let mut last = Ok(());
    for _ in 0..TRIES {
        let tasks = machine.read(&format!("{path}/tasks")).unwrap_or_default();
        for tid in tasks.lines() {
            match put(&machine.path(&format!("{above}/tasks")), tid) {
                // It has ended.
                Err(error) if error.raw_os_error() == Some(libc::ESRCH) => {}
                other => other?,
            }
        }
        match fs::remove_dir(machine.path(path)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) => last = Err(error),
            other => return other,
        }
    }
    last
}

/// Where a thread is below `root`: `/`, the name of a child, or the whole path in the hierarchy of one that is elsewhere.
pub(super) fn member(machine: &Machine, pid: i32, root: &str) -> Option<String> {
    let is_in = |path: &str| {
        let tasks = machine.read(&format!("{path}/tasks"))?;
        let id = pid.to_string();
        tasks.lines().any(|line| line == id).then_some(())
    };
    if is_in(root).is_some() {
        return Some(ROOT.to_owned());
    }
    if is_in(&format!("{root}/{HOUSEKEEPING}")).is_some() {
        return Some(HOUSEKEEPING.to_owned());
    }
    let groups = machine.read(&format!("/proc/{pid}/cgroup"))?;
    let line = groups.lines().find_map(|line| {
        let mut fields = line.splitn(3, ':').skip(1);
        let of = fields.next()?.split(',').any(|name| name == "cpuset");
        fields.next().filter(|_| of)
    });
    line.map(|path| format!("elsewhere: {path}"))
}

/// Moves a thread. Of the CPUs that it had it keeps those that it may have there.
pub(super) fn enter(machine: &Machine, pid: i32, root: &str, value: &str) -> io::Result<()> {
    let folder = match value {
        ROOT => root.to_owned(),
        name => format!("{root}/{name}"),
    };
    let before = machine.allowed(pid);
    put(&machine.path(&format!("{folder}/tasks")), &pid.to_string())?;
    let (Some(before), Some(after)) = (before, machine.allowed(pid)) else {
        return Ok(());
    };
    let keep: CpuSet = before.intersection(&after);
    if !keep.is_empty() && keep != after {
        // One that the kernel refuses may use all of the cpuset's: it has lost nothing that matters here.
        let _ = sched::set_affinity(pid, &keep);
    }
    Ok(())
}
