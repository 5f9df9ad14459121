//! What every thread must have: CPUs, memory nodes, policy, capabilities, no_new_privs, seccomp, ids. Each of them is
//! a property of a thread in Linux: one thread can differ from its process.
//!
//! A thread that ended between listing and reading is no thread; anything else that cannot be read does not hold.

use std::io;

use berth_rt::sched;

use super::facts::{Facts, capability_rows, numbers};
use super::procfs::{Process, Status, status};
use super::{Promise, Stage};

/// One property over several threads: the value of the first one, and the threads that break the promise.
struct Over {
    name: &'static str,
    promised: String,
    source: String,
    first: Option<String>,
    wrong: Vec<String>,
}

/// The facts under way, in order of first mention.
struct Table {
    rows: Vec<Over>,
    threads: usize,
}

impl Table {
    fn row(
        &mut self,
        name: &'static str,
        tid: i32,
        promised: String,
        actual: String,
        source: &str,
        holds: bool,
    ) {
        let at = self.rows.iter().position(|r| r.name == name).unwrap_or_else(|| {
            self.rows.push(Over {
                name,
                promised,
                source: source.into(),
                first: None,
                wrong: Vec::new(),
            });
            self.rows.len() - 1
        });
        let row = &mut self.rows[at];
        if !holds && row.wrong.len() < 8 {
            row.wrong.push(format!("thread {tid}: {actual}"));
        }
        row.first.get_or_insert(actual);
    }

    fn finish(self, facts: &mut Facts) {
        for row in self.rows {
            let first = row.first.unwrap_or_default();
            let holds = row.wrong.is_empty();
            let actual = match (holds, self.threads) {
                (true, 1) => first,
                (true, n) => format!("{first} ({n} threads)"),
                (false, 1) => first,
                (false, _) => row.wrong.join("; "),
            };
            facts.add(row.name, row.promised, actual, row.source, holds);
        }
    }
}

/// Everything `Status` and the scheduler say, for every thread (before exec returns there is one).
pub(super) fn facts(facts: &mut Facts, promise: &Promise, process: &Process, stage: Stage) {
    let tids = if stage == Stage::Running {
        match process.threads() {
            Ok(tids) => tids,
            Err(e) => return facts.unreadable("threads", "listed", process.source("task"), &e),
        }
    } else {
        vec![process.pid]
    };
    let alone = tids.len() == 1;
    let mut table = Table {
        rows: Vec::with_capacity(16),
        threads: 0,
    };
    for tid in tids {
        let name = if alone {
            "status".to_owned()
        } else {
            format!("task/{tid}/status")
        };
        let source = if alone {
            process.source("status")
        } else {
            process.source("task/*/status")
        };
        let text = match process.read(&name) {
            Ok(text) => text,
            Err(e) if tid != process.pid && ended(&e) => continue,
            Err(e) => {
                table.row(
                    "threads",
                    tid,
                    "readable".into(),
                    format!("unreadable: {e}"),
                    &source,
                    false,
                );
                continue;
            }
        };
        table.threads += 1;
        match status(&text) {
            Ok(status) => thread(&mut table, promise, tid, &status, &source, stage),
            Err(field) => {
                let actual = format!("field {field} is missing or malformed");
                table.row("threads", tid, "readable".into(), actual, &source, false);
            }
        }
        if stage != Stage::Armed {
            scheduling(&mut table, promise, tid, tid != process.pid);
        }
    }
    table.finish(facts);
}

fn ended(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ESRCH))
}

fn thread(table: &mut Table, promise: &Promise, tid: i32, status: &Status, source: &str, stage: Stage) {
    let mut row = |name, promised: String, actual: String, field: &str, holds| {
        table.row(name, tid, promised, actual, &format!("{source} {field}"), holds);
    };
    if let Some(cpus) = &promise.cpus {
        row(
            "cpus.allowed",
            cpus.to_string(),
            status.cpus.to_string(),
            "Cpus_allowed_list",
            *cpus == status.cpus,
        );
    }
    if let Some(mems) = &promise.mems {
        row(
            "mems.allowed",
            mems.to_string(),
            status.mems.to_string(),
            "Mems_allowed_list",
            *mems == status.mems,
        );
    }
    if stage == Stage::Armed {
        return;
    }
    if let Some(sets) = &promise.capabilities {
        for (name, field, promised, actual) in capability_rows(sets, &status.capabilities) {
            row(
                name,
                format!("{promised:016x}"),
                format!("{actual:016x}"),
                field,
                promised == actual,
            );
        }
    }
    let (promised, actual) = (u8::from(promise.no_new_privs), u8::from(status.no_new_privs));
    row(
        "no_new_privs",
        promised.to_string(),
        actual.to_string(),
        "NoNewPrivs",
        promised == actual,
    );
    let seccomp = promise.seccomp;
    row(
        "seccomp.mode",
        seccomp.mode.to_string(),
        status.seccomp.to_string(),
        "Seccomp",
        seccomp.mode == status.seccomp,
    );
    let filters = status
        .filters
        .map_or_else(|| "not told by this kernel".to_owned(), |n| n.to_string());
    let holds = status.filters == Some(seccomp.filters);
    row(
        "seccomp.filters",
        seccomp.filters.to_string(),
        filters,
        "Seccomp_filters",
        holds,
    );
    if let Some(uid) = promise.uid {
        row(
            "uid",
            uid.to_string(),
            numbers(&status.uid),
            "Uid",
            status.uid == [uid; 4],
        );
    }
    if let Some(gid) = promise.gid {
        row(
            "gid",
            gid.to_string(),
            numbers(&status.gid),
            "Gid",
            status.gid == [gid; 4],
        );
    }
    if let Some(groups) = &promise.groups {
        let mut groups = groups.clone();
        groups.sort_unstable();
        // The kernel keeps a group that is given twice.
        row(
            "groups",
            numbers(&groups),
            numbers(&status.groups),
            "Groups",
            groups == status.groups,
        );
    }
}

fn scheduling(table: &mut Table, promise: &Promise, tid: i32, may_end: bool) {
    let Some(promised) = &promise.scheduler else {
        return;
    };
    match sched::get(tid) {
        Ok(actual) => {
            let holds = actual.scheduler == *promised;
            table.row(
                "sched",
                tid,
                promised.to_string(),
                actual.scheduler.to_string(),
                "sched_getattr",
                holds,
            );
        }
        Err(e) if may_end && e.errno() == Some(libc::ESRCH) => {}
        Err(e) => {
            table.row(
                "sched",
                tid,
                promised.to_string(),
                format!("unreadable: {e}"),
                "sched_getattr",
                false,
            );
        }
    }
}
