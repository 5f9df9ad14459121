//! The other processes of the container: forked by its first one, or executed in it. All that are in its cgroup are
//! looked at, thread by thread.
//!
//! The first process must be what was promised, exactly. Another one may be less, never more:
//!
//! | of | may be |
//! |---|---|
//! | capabilities, each set | any part of the promised bounding set (in a user namespace of its own: not compared) |
//! | no_new_privs | on where it was promised |
//! | seccomp | a filter where one was promised, and as many or more |
//! | CPUs | any part of the promised ones |
//! | policy | one without real time; or a real-time priority up to the promised one, up to RLIMIT_RTPRIO, or any with CAP_SYS_NICE |
//! | user | the promised one; one of the container's own map; any with CAP_SETUID |
//! | cgroup | the promised one, or one below it |
//!
//! Passed over: what ended meanwhile, and what is still berth's own executable (an `exec` under way; it changes its
//! rights before its program begins). Beyond [`MOST`] threads the rest is counted and not read.

use std::io;
use std::path::Path;

use berth_rt::sched::{self, Scheduler};

use super::Promise;
use super::facts::Facts;
use super::procfs::{Process, Status, status};
use super::read::{Where, cgroup_path};

/// Most threads read in one round.
const MOST: usize = 1024;
const CAP_SETUID: u64 = 1 << 7;
const CAP_SYS_NICE: u64 = 1 << 23;

/// What breaks the promise, by property.
#[derive(Default)]
struct Wrong {
    rows: Vec<(&'static str, String, Vec<String>)>,
}

impl Wrong {
    fn add(&mut self, name: &'static str, promised: String, text: String) {
        let at = self.rows.iter().position(|r| r.0 == name).unwrap_or_else(|| {
            self.rows.push((name, promised, Vec::new()));
            self.rows.len() - 1
        });
        // Enough to act on.
        if self.rows[at].2.len() < 8 {
            self.rows[at].2.push(text);
        }
    }
}

pub(super) fn facts(facts: &mut Facts, promise: &Promise, first: &Process, place: &Where<'_>) {
    let Some(cgroup) = place.cgroup else { return };
    let source = "every process of the cgroup: status, cgroup, sched_getattr";
    let promised = "each within what was promised";
    let pids = match cgroup.procs() {
        Ok(pids) => pids,
        Err(e) => return facts.unreadable("processes", promised, source, &e),
    };
    let own = first.link("ns/user").ok();
    let berth = nix::sys::stat::stat(&place.proc_root.join("self/exe"))
        .ok()
        .map(|s| (s.st_dev, s.st_ino));
    let (mut wrong, mut seen, mut threads, mut left) = (Wrong::default(), 0, 0, 0);
    for pid in pids.into_iter().filter(|pid| *pid != first.pid) {
        if threads >= MOST {
            left += 1;
            continue;
        }
        match one(pid, promise, place.proc_root, own.as_deref(), berth, &mut wrong) {
            Ok(0) => {}
            Ok(n) => (seen, threads) = (seen + 1, threads + n),
            Err(e) if ended(&e) => {}
            Err(e) => wrong.add(
                "processes",
                promised.to_owned(),
                format!("process {pid}: unreadable: {e}"),
            ),
        }
    }
    let rest = if left > 0 {
        format!(", {left} more not read")
    } else {
        String::new()
    };
    if !wrong.rows.iter().any(|r| r.0 == "processes") {
        let actual = format!("{} besides the first, {threads} threads{rest}", seen);
        facts.add("processes", promised, actual, source, true);
    }
    for (name, promised, list) in wrong.rows {
        facts.add(name, promised, list.join("; "), source, false);
    }
}

fn ended(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ESRCH))
}

/// How many threads were looked at; 0: it is none of the container's programs.
fn one(
    pid: i32,
    promise: &Promise,
    proc_root: &Path,
    own: Option<&str>,
    berth: Option<(u64, u64)>,
    wrong: &mut Wrong,
) -> io::Result<usize> {
    let Some(process) = Process::open(proc_root, pid)? else {
        return Err(io::Error::other("not procfs"));
    };
    match process.stat("exe") {
        Ok(file) if Some((file.dev, file.ino)) == berth => return Ok(0),
        // A zombie has none, and runs nothing.
        Err(e) if ended(&e) => return Ok(0),
        _ => {}
    }
    let groups = process.read("cgroup")?;
    for (controller, promised) in &promise.cgroups {
        let name = if controller == "unified" { "" } else { controller };
        let actual = cgroup_path(&groups, name).unwrap_or("none");
        let below = actual
            .strip_prefix(promised.as_str())
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
        if !below {
            wrong.add(
                "processes.cgroup",
                format!("{promised} or below"),
                format!("process {pid}: {controller} {actual}"),
            );
        }
    }
    let foreign = process.link("ns/user").ok().as_deref() != own;
    let mut looked = 0;
    for tid in process.threads()? {
        let text = match process.read(&format!("task/{tid}/status")) {
            Ok(text) => text,
            Err(e) if ended(&e) => continue,
            Err(e) => return Err(e),
        };
        let Ok(status) = status(&text) else {
            return Err(io::Error::other("status is malformed"));
        };
        looked += 1;
        thread(pid, tid, promise, &status, foreign, wrong);
        if let Ok(actual) = sched::get(tid)
            && let Some(promised) = &promise.scheduler
            && !may(&actual.scheduler, promised, promise)
        {
            wrong.add(
                "processes.sched",
                format!("{promised}, or without real time"),
                format!("process {pid} thread {tid}: {}", actual.scheduler),
            );
        }
    }
    Ok(looked)
}

fn thread(pid: i32, tid: i32, promise: &Promise, status: &Status, foreign: bool, wrong: &mut Wrong) {
    let who = format!("process {pid} thread {tid}");
    if let Some(cpus) = &promise.cpus
        && (!status.cpus.is_subset(cpus) || status.cpus.is_empty())
    {
        wrong.add(
            "processes.cpus",
            format!("within {cpus}"),
            format!("{who}: {}", status.cpus),
        );
    }
    let granted = promise.capabilities.as_ref().map(|sets| sets.bounding);
    if let Some(bounding) = granted.filter(|_| !foreign) {
        let sets = &status.capabilities;
        for (name, set) in [
            ("CapEff", sets.effective),
            ("CapPrm", sets.permitted),
            ("CapInh", sets.inheritable),
            ("CapBnd", sets.bounding),
            ("CapAmb", sets.ambient),
        ] {
            if set & !bounding != 0 {
                wrong.add(
                    "processes.caps",
                    format!("within {bounding:016x}"),
                    format!("{who}: {name} {set:016x}"),
                );
            }
        }
    }
    if promise.no_new_privs && !status.no_new_privs {
        wrong.add("processes.no_new_privs", "1".to_owned(), format!("{who}: 0"));
    }
    let seccomp = promise.seccomp;
    if seccomp.mode != 0
        && (status.seccomp != seccomp.mode || status.filters.is_some_and(|n| n < seccomp.filters))
    {
        let filters = status.filters.unwrap_or(0);
        wrong.add(
            "processes.seccomp",
            format!("mode {}, {} filters or more", seccomp.mode, seccomp.filters),
            format!("{who}: mode {}, {filters} filters", status.seccomp),
        );
    }
    if let Some(uid) = promise.uid {
        let mapped = |id: u32| {
            promise.uid_map.iter().flatten().any(|m| {
                u64::from(id) >= u64::from(m.outside)
                    && u64::from(id) - u64::from(m.outside) < u64::from(m.count)
            })
        };
        let may_change = granted.is_none_or(|set| set & CAP_SETUID != 0);
        if !may_change && status.uid.iter().any(|id| *id != uid && !mapped(*id)) {
            wrong.add(
                "processes.uid",
                uid.to_string(),
                format!("{who}: {:?}", status.uid),
            );
        }
    }
}

/// May a thread of the container run so? Pure.
fn may(actual: &Scheduler, promised: &Scheduler, promise: &Promise) -> bool {
    if actual == promised || !actual.is_realtime() && !matches!(actual, Scheduler::Deadline { .. }) {
        return true;
    }
    if promise
        .capabilities
        .as_ref()
        .is_none_or(|sets| sets.bounding & CAP_SYS_NICE != 0)
    {
        return true;
    }
    let limit = promise.rlimits.get("RLIMIT_RTPRIO").map_or(0, |limit| limit.hard);
    let most = match promised {
        Scheduler::Fifo { priority } | Scheduler::Rr { priority } => u64::from(*priority).max(limit),
        _ => limit,
    };
    matches!(actual, Scheduler::Fifo { priority } | Scheduler::Rr { priority } if u64::from(*priority) <= most)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proof::{CapabilitySets, Rlimit};

    #[test]
    fn less_is_allowed_and_more_is_not() {
        let mut promise = Promise {
            capabilities: Some(CapabilitySets::default()),
            ..Promise::default()
        };
        let (other, fifo) = (Scheduler::Other { nice: 0 }, |priority| Scheduler::Fifo {
            priority,
        });
        let table = [
            (other, fifo(50), true),
            (fifo(50), fifo(50), true),
            (fifo(10), fifo(50), true),
            (fifo(51), fifo(50), false),
            (fifo(1), other, false),
        ];
        for (actual, promised, good) in table {
            assert_eq!(
                may(&actual, &promised, &promise),
                good,
                "{actual} under {promised}"
            );
        }
        promise
            .rlimits
            .insert("RLIMIT_RTPRIO".into(), Rlimit { soft: 0, hard: 60 });
        assert!(may(&fifo(60), &other, &promise) && !may(&fifo(61), &other, &promise));
        promise.capabilities = Some(CapabilitySets {
            bounding: CAP_SYS_NICE,
            ..CapabilitySets::default()
        });
        assert!(may(&fifo(99), &other, &promise));
    }

    #[test]
    fn each_property_of_another_process_is_judged() {
        let promise = Promise {
            cpus: Some("1-2".parse().unwrap()),
            capabilities: Some(CapabilitySets {
                bounding: 0b1010,
                ..CapabilitySets::default()
            }),
            no_new_privs: true,
            seccomp: crate::proof::SeccompPromise { mode: 2, filters: 1 },
            uid: Some(0),
            ..Promise::default()
        };
        let good = Status {
            cpus: "2".parse().unwrap(),
            no_new_privs: true,
            seccomp: 2,
            filters: Some(3),
            ..Status::default()
        };
        let found = |status: &Status, foreign| {
            let mut wrong = Wrong::default();
            thread(7, 7, &promise, status, foreign, &mut wrong);
            wrong.rows.into_iter().map(|r| r.0).collect::<Vec<_>>()
        };
        assert!(found(&good, false).is_empty());
        type Change = fn(&mut Status);
        let table: [(&str, Change); 6] = [
            ("processes.cpus", |s| s.cpus = "2-3".parse().unwrap()),
            ("processes.caps", |s| s.capabilities.effective = 0b100),
            ("processes.caps", |s| s.capabilities.ambient = 0b1),
            ("processes.no_new_privs", |s| s.no_new_privs = false),
            ("processes.seccomp", |s| (s.seccomp, s.filters) = (0, Some(0))),
            ("processes.uid", |s| s.uid = [0, 5, 0, 0]),
        ];
        for (name, change) in table {
            let mut status = good.clone();
            change(&mut status);
            assert_eq!(found(&status, false), [name]);
        }
        let mut own = good;
        own.capabilities.effective = u64::MAX;
        assert!(found(&own, true).is_empty(), "in a user namespace of its own");
    }
}
