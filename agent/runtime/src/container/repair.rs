//! What drifted in a running container and can be set again from outside: the cgroup of its processes, the partition of its
//! cores, CPUs and policy of their threads.
//!
//! Limits, device rules and what a process has given up or taken itself are left as they are. Each step is tried whatever
//! became of the one before: the proof after it says what holds.

use std::path::Path;

use berth_rt::partition;
use berth_rt::sched;

use super::Container;
use crate::proof::IsolationPromise;

impl Container {
    /// Sets again what can be set again, and says what could not be.
    #[must_use]
    pub fn repair(&self) -> Vec<String> {
        let mut failed = Vec::new();
        let Some(cgroup) = &self.cgroup else { return failed };
        let promise = &self.record.promise;
        if let (Some(cpus), true) = (&promise.cpus, promise.isolation != IsolationPromise::None)
            && let Err(e) = partition::mend(cgroup, cpus)
        {
            failed.push(e.to_string());
        }
        let mut processes = match cgroup.procs() {
            Ok(processes) => processes,
            Err(e) => {
                failed.push(e.to_string());
                Vec::new()
            }
        };
        if !processes.contains(&self.record.pid) {
            processes.push(self.record.pid);
        }
        for process in processes {
            let first = process == self.record.pid;
            if let Err(e) = cgroup.attach(process)
                && e.error.errno() != Some(libc::ESRCH)
            {
                failed.push(e.to_string());
            }
            for thread in threads(process) {
                let may = promise.cpus.as_ref().zip(sched::affinity(thread).ok());
                // Another process may keep to fewer.
                let astray =
                    may.filter(|(cpus, now)| if first { now != *cpus } else { !now.is_subset(cpus) });
                if let Some((cpus, _)) = astray
                    && let Err(e) = sched::set_affinity(thread, cpus)
                {
                    failed.push(e.to_string());
                }
                // And to another policy.
                let policy = promise.scheduler.as_ref().filter(|_| first);
                let now = policy.and_then(|_| sched::get(thread).ok());
                if let Some((wanted, now)) = policy.zip(now)
                    && now.scheduler != *wanted
                    && let Err(e) = sched::set(thread, wanted, now.flags)
                {
                    failed.push(e.to_string());
                }
            }
        }
        failed
    }
}

/// The threads of a process; none of one that has ended.
fn threads(process: i32) -> Vec<i32> {
    let entries = std::fs::read_dir(Path::new("/proc").join(process.to_string()).join("task"));
    let entries = entries.into_iter().flatten().flatten();
    entries
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect()
}
