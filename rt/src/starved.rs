//! The kernel's own threads that are bound to a CPU and do not get it: runnable, and not one instant run since an earlier
//! look. A container at a real-time priority that never sleeps does that to them (`ksoftirqd/1`, `rcuc/1`, `ktimers/1`):
//! timers, network packets and RCU callbacks of that CPU wait, and in the end the whole node does.
//!
//! Read from `/proc/PID/stat` (state, flags; proc(5)), `Cpus_allowed_list` of `/proc/PID/status`, and `/proc/PID/schedstat`
//! (nanoseconds run, nanoseconds waited, times run; the kernel's Documentation/scheduler/sched-stats.rst). Since Linux 6.12
//! the fair server gives SCHED_OTHER 50 ms of each second of a hogged CPU; threads at a low real-time priority get nothing.
//!
//! Invariants: a thread counts as starved only when two looks found it runnable and its account did not move between
//! them. Threads that are not the kernel's are never named. After the first look, a look reads `stat` of the threads
//! that are bound to the CPUs in question, and of new ones.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use crate::cpu::CpuSet;
use crate::threads::{KTHREAD, field};

/// A kernel thread that does not get its CPU.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Starved {
    /// Its process id.
    pub pid: i32,
    /// Its name.
    pub name: String,
    /// The CPU that it is bound to.
    pub cpu: u32,
    /// Milliseconds since the first look at which it waited already.
    pub waits_ms: u64,
}

impl std::fmt::Display for Starved {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Starved { pid, name, cpu, .. } = self;
        write!(
            f,
            "{name} (pid {pid}) has not run on CPU {cpu} for {} s",
            self.waits_ms / 1000
        )
    }
}

/// What a thread's account said when it was found runnable first.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Seen {
    account: String,
    since_ms: u64,
}

/// Looks again and again.
#[derive(Debug)]
pub struct Watch {
    proc: PathBuf,
    /// The CPU that a kernel thread is bound to; `None`: not the kernel's, or not bound to one.
    bound: BTreeMap<i32, Option<u32>>,
    waiting: BTreeMap<i32, Seen>,
}

impl Watch {
    /// `proc`: where procfs is.
    #[must_use]
    pub fn new(proc: &Path) -> Watch {
        Watch {
            proc: proc.to_owned(),
            bound: BTreeMap::new(),
            waiting: BTreeMap::new(),
        }
    }

    /// One look at the threads bound to one of `cpus`; `now_ms` is of a clock that never goes back. Those that waited at
    /// the last look already, and have not run since. A thread that cannot be read has ended.
    pub fn look(&mut self, cpus: &CpuSet, now_ms: u64) -> Vec<Starved> {
        let mut starved = Vec::new();
        let mut bound = BTreeMap::new();
        let mut waiting = BTreeMap::new();
        for entry in fs::read_dir(&self.proc).into_iter().flatten().flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|n| n.parse::<i32>().ok()) else {
                continue;
            };
            let cpu = match self.bound.get(&pid) {
                Some(known) => *known,
                None => self.bound_to(pid),
            };
            bound.insert(pid, cpu);
            let Some(cpu) = cpu.filter(|cpu| cpus.contains(*cpu)) else {
                continue;
            };
            let Some((name, true)) = self.stat(pid).map(|s| (s.name, s.runnable)) else {
                continue;
            };
            let Some(account) = self.read(pid, "schedstat") else {
                continue;
            };
            let ran = ran(&account);
            let since_ms = match self.waiting.get(&pid) {
                Some(seen) if seen.account == ran => seen.since_ms,
                _ => now_ms,
            };
            // Its number may be another's by now.
            if since_ms < now_ms && self.bound_to(pid) == Some(cpu) {
                starved.push(Starved {
                    pid,
                    name,
                    cpu,
                    waits_ms: now_ms - since_ms,
                });
            }
            waiting.insert(
                pid,
                Seen {
                    account: ran,
                    since_ms,
                },
            );
        }
        (self.bound, self.waiting) = (bound, waiting);
        starved.sort_by_key(|s| s.pid);
        starved
    }

    fn read(&self, pid: i32, file: &str) -> Option<String> {
        fs::read_to_string(self.proc.join(pid.to_string()).join(file)).ok()
    }

    fn stat(&self, pid: i32) -> Option<Stat> {
        stat(&self.read(pid, "stat")?)
    }

    fn bound_to(&self, pid: i32) -> Option<u32> {
        self.stat(pid).filter(|s| s.kernel)?;
        let status = self.read(pid, "status")?;
        let allowed: CpuSet = field(&status, "Cpus_allowed_list:")?.parse().ok()?;
        allowed.iter().next().filter(|_| allowed.len() == 1)
    }
}

struct Stat {
    name: String,
    runnable: bool,
    kernel: bool,
}

/// Fields 2, 3 and 9 of `/proc/PID/stat`; the 2nd, in brackets, may hold anything.
fn stat(text: &str) -> Option<Stat> {
    let (head, rest) = text.rsplit_once(") ")?;
    let mut fields = rest.split_ascii_whitespace();
    let state = fields.next()?;
    let flags: u64 = fields.nth(5)?.parse().ok()?;
    Some(Stat {
        name: head.split_once('(')?.1.to_owned(),
        runnable: state == "R",
        kernel: flags & KTHREAD != 0,
    })
}

/// Of the three numbers of schedstat those that move when it runs: the first and the last.
fn ran(schedstat: &str) -> String {
    let mut words = schedstat.split_ascii_whitespace();
    let (ran, times) = (words.next().unwrap_or(""), words.nth(1).unwrap_or(""));
    format!("{ran} {times}")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A thread as procfs shows it.
    fn thread(proc: &Path, pid: i32, name: &str, state: char, flags: u64, cpus: &str, schedstat: &str) {
        let dir = proc.join(pid.to_string());
        fs::create_dir_all(&dir).unwrap();
        let stat = format!("{pid} ({name}) {state} 2 0 0 0 -1 {flags} 0 0 0 0\n");
        fs::write(dir.join("stat"), stat).unwrap();
        fs::write(
            dir.join("status"),
            format!("Name:\t{name}\nCpus_allowed_list:\t{cpus}\n"),
        )
        .unwrap();
        fs::write(dir.join("schedstat"), format!("{schedstat}\n")).unwrap();
    }

    #[test]
    fn starved_is_who_waits_at_two_looks_and_has_not_run() {
        let temp = tempfile::tempdir().unwrap();
        let proc = temp.path();
        let kernel = KTHREAD | 0x40;
        let all = |second: bool| {
            let (waited, ran) = if second { (9, 7) } else { (1, 1) };
            thread(proc, 20, "rcuc/1", 'R', kernel, "1", &format!("5 {waited} 3"));
            thread(
                proc,
                21,
                "ksoftirqd/1",
                'R',
                kernel,
                "1",
                &format!("{ran} {waited} 3"),
            );
            thread(proc, 22, "kworker/1:0-e) R", 'S', kernel, "1", "5 1 3");
            thread(proc, 23, "rcuc/0", 'R', kernel, "0", "5 1 3");
            thread(proc, 24, "kworker/u4:1", 'R', kernel, "0-1", "5 1 3");
            thread(proc, 25, "hog", 'R', 0x40_0000, "1", "5 1 3");
        };
        all(false);
        let cpus: CpuSet = "1".parse().unwrap();
        let mut watch = Watch::new(proc);
        assert_eq!(watch.look(&cpus, 1000), []);
        all(true);
        let found = watch.look(&cpus, 3000);
        assert_eq!(found.len(), 1, "{found:?}");
        assert_eq!(
            found[0].to_string(),
            "rcuc/1 (pid 20) has not run on CPU 1 for 2 s"
        );
        assert_eq!(watch.look(&cpus, 6000)[0].waits_ms, 5000);
        // It runs.
        thread(proc, 20, "rcuc/1", 'R', kernel, "1", "6 9 4");
        let left: Vec<i32> = watch.look(&cpus, 8000).iter().map(|s| s.pid).collect();
        assert_eq!(left, [21], "ksoftirqd/1 has not run since the second look");
        // A number that is somebody else's by now, and threads that end.
        thread(proc, 21, "sh", 'R', 0x40_0000, "1", "7 9 3");
        fs::remove_dir_all(proc.join("20")).unwrap();
        assert_eq!(watch.look(&cpus, 9000), []);
    }

    #[test]
    fn this_machine_is_read() {
        let mut watch = Watch::new(Path::new("/proc"));
        let cpus: CpuSet = "0-7".parse().unwrap();
        watch.look(&cpus, 0);
        assert!(watch.bound.contains_key(&(std::process::id() as i32)));
        let bound = watch.bound.values().filter(|c| c.is_some()).count();
        let kernel = fs::read_to_string("/proc/2/comm").is_ok_and(|c| c.trim() == "kthreadd");
        assert!(bound > 0 || !kernel, "kernel threads are here, and none is bound");
    }
}
