//! What is watched of a container with cores of its own, besides its proof.
//!
//! Its partition: `cpuset.cpus.partition` of its cgroup, and of those above it, polled for POLLPRI
//! (Documentation/admin-guide/cgroup-v2.rst). The running proof then comes at once, and judges.
//!
//! Its cores, with each running proof: periods in which a bandwidth limit stopped it (`nr_throttled` of `cpu.stat`); threads that
//! wait for a CPU most of the time although the container uses less than half of its cores (`/proc/PID/task/TID/schedstat`:
//! nanoseconds run and waited); where isolation is promised, threads of others that may run there and did not at the
//! first running proof. Kernel workers come and go by themselves: where they may run is a matter of `berth node check`.

use std::collections::{BTreeSet, HashMap};
use std::fs::{self, File};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

use berth_rt::cpu::CpuSet;
use berth_rt::threads::{Stranger, strangers};
use berth_runtime::proof::Fact;

use super::Monitor;

/// The threads of the node are listed with every so many running proofs.
const EVERY: u32 = 3;
/// Shortest time over which waits are judged.
const SLICE: Duration = Duration::from_millis(500);
/// Most threads of a container whose waits are read.
const THREADS: usize = 256;

/// From the kernel's word to the proof: one change of a partition is told in several files.
const SETTLE: Duration = Duration::from_millis(20);

/// The files that tell.
pub(super) struct Partitions {
    files: Vec<File>,
}

impl Partitions {
    /// They tell of what changes from now on.
    fn heard(&self) {
        for file in &self.files {
            // The kernel compares with what was read last. The cgroup may be gone.
            let _ = file.read_at(&mut [0; 256], 0);
        }
    }

    pub(super) fn fds(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.files.iter().map(AsFd::as_fd)
    }
}

impl Monitor<'_> {
    /// From now on a change of its partition is told.
    pub(super) fn watch_partitions(&mut self) {
        if self.request.placement.shared {
            return;
        }
        let Some(cgroup) = self.container.as_ref().and_then(|c| c.cgroup()) else {
            return;
        };
        let files = berth_rt::partition::telling_files(cgroup);
        let files: Vec<File> = files.iter().filter_map(|path| File::open(path).ok()).collect();
        if !files.is_empty() {
            let partitions = Partitions { files };
            partitions.heard();
            self.partitions = Some(partitions);
        }
    }

    /// A partition has changed: is everything as it was promised?
    pub(super) fn on_partitions(&mut self) {
        if let Some(partitions) = &self.partitions {
            partitions.heard();
        }
        let soon = Instant::now() + SETTLE;
        self.prove_at = self.prove_at.map(|at| at.min(soon));
    }
}

/// Nanoseconds run and waited, by thread.
type Account = HashMap<i32, (u64, u64)>;

/// What was seen last.
#[derive(Default)]
pub(super) struct Cores {
    round: u32,
    /// Number and name of each stranger of the first running proof.
    known: Option<BTreeSet<(i32, String)>>,
    /// What the last list told.
    strangers: Option<Fact>,
    throttled: Option<u64>,
    /// With when it was read.
    waits: Option<(Instant, Account)>,
    starved: Option<Fact>,
}

fn fact(name: &str, promised: &str, actual: String, source: &str) -> Fact {
    Fact {
        name: name.into(),
        promised: promised.into(),
        actual,
        source: source.into(),
        holds: false,
    }
}

/// Periods in which it was stopped since the last look.
fn throttled(before: Option<u64>, now: u64) -> Option<Fact> {
    let more = now.checked_sub(before?).filter(|more| *more > 0)?;
    let actual = format!("stopped in {more} periods since it was looked at last");
    Some(fact(
        "cpus.throttled",
        "never stopped by a bandwidth limit",
        actual,
        "cpu.stat nr_throttled",
    ))
}

/// Threads that waited for more than half of the time, while all of them together ran for less than half of that of `cores`.
fn starved(before: &Account, now: &Account, elapsed: Duration, cores: usize) -> Option<Fact> {
    let elapsed = u64::try_from(elapsed.as_nanos()).unwrap_or(u64::MAX);
    let since = |tid: &i32, now: &(u64, u64)| {
        let (ran, waited) = before.get(tid).copied()?;
        Some((now.0.checked_sub(ran)?, now.1.checked_sub(waited)?))
    };
    let all = now.iter().filter_map(|(tid, now)| Some((*tid, since(tid, now)?)));
    let all: Vec<(i32, (u64, u64))> = all.collect();
    let ran = all
        .iter()
        .fold(0_u64, |sum, (_, (ran, _))| sum.saturating_add(*ran));
    let (worst, (_, waited)) = all.iter().copied().max_by_key(|(_, (_, waited))| *waited)?;
    let room = elapsed.saturating_mul(u64::try_from(cores).unwrap_or(1)) / 2;
    if waited <= elapsed / 2 || ran >= room {
        return None;
    }
    let ms = |ns: u64| ns / 1_000_000;
    let actual = format!(
        "thread {worst} waited for {} of {} ms, while all of its threads ran for {} ms",
        ms(waited),
        ms(elapsed),
        ms(ran)
    );
    Some(fact(
        "cpus.starved",
        "its cores when it wants them",
        actual,
        "/proc/PID/task/TID/schedstat",
    ))
}

/// Those that came since it began.
fn came(known: &BTreeSet<(i32, String)>, now: &[Stranger], cpus: &CpuSet) -> Option<Fact> {
    let new = now.iter().filter(|s| !known.contains(&(s.tid, s.name.clone())));
    let new: Vec<String> = new
        .take(8)
        .map(|s| format!("{} (thread {}) on CPUs {}", s.name, s.tid, s.allowed))
        .collect();
    if new.is_empty() {
        return None;
    }
    let promised = format!("nobody new on CPUs {cpus}");
    let actual = format!("may run there: {}", new.join(", "));
    Some(fact(
        "cpus.strangers",
        &promised,
        actual,
        "Cpus_allowed of every thread",
    ))
}

/// Workers come and go; berth's own join a container, or leave its cores.
fn counts(stranger: &Stranger) -> bool {
    !stranger.name.starts_with("kworker/") && !stranger.name.starts_with("berth")
}

/// Nanoseconds run and waited of each thread; none on a kernel without an account.
fn account(processes: &[i32]) -> Account {
    let mut all = HashMap::new();
    for process in processes {
        let entries = fs::read_dir(Path::new("/proc").join(process.to_string()).join("task"));
        for entry in entries.into_iter().flatten().flatten() {
            if all.len() == THREADS {
                return all;
            }
            let Some(tid) = entry.file_name().to_str().and_then(|n| n.parse().ok()) else {
                continue;
            };
            let text = fs::read_to_string(entry.path().join("schedstat")).unwrap_or_default();
            let mut numbers = text.split_ascii_whitespace().map_while(|n| n.parse::<u64>().ok());
            if let (Some(ran), Some(waited)) = (numbers.next(), numbers.next()) {
                all.insert(tid, (ran, waited));
            }
        }
    }
    all
}

impl Monitor<'_> {
    /// What is amiss on its cores. Of a container without any, nothing is read.
    pub(super) fn cores_drift(&mut self) -> Vec<Fact> {
        let (Some(container), false) = (&self.container, self.request.placement.shared) else {
            return Vec::new();
        };
        let (Some(cgroup), Ok(cpus)) = (container.cgroup(), self.request.placement.cpus.parse::<CpuSet>())
        else {
            return Vec::new();
        };
        let mut told = Vec::new();
        if let Some(now) = cgroup.stats().ok().and_then(|s| s.throttled_periods) {
            told.extend(throttled(self.cores.throttled, now));
            self.cores.throttled = Some(now);
        }
        let own = cgroup.procs().unwrap_or_default();
        let now = Instant::now();
        let since = self.cores.waits.as_ref().map(|(at, _)| now - *at);
        // Too soon after the last look nothing new is said: one thread may wait that long for another one's time slice.
        if since.is_none_or(|since| since >= SLICE) {
            // A probe waits behind the workload: that is what it is for.
            let probe = self.probe_pid();
            let theirs: Vec<i32> = own.iter().copied().filter(|pid| Some(*pid) != probe).collect();
            let waits = account(&theirs);
            if let (Some((_, before)), Some(since)) = (&self.cores.waits, since) {
                self.cores.starved = starved(before, &waits, since, cpus.len());
            }
            self.cores.waits = Some((now, waits));
        }
        told.extend(self.cores.starved.clone());
        if self.request.placement.require_isolated {
            if self.cores.round.is_multiple_of(EVERY)
                && let Ok(all) = strangers(Path::new("/proc"), &cpus, &|pid| own.contains(&pid))
            {
                let all: Vec<Stranger> = all.into_iter().filter(counts).collect();
                match &self.cores.known {
                    Some(known) => self.cores.strangers = came(known, &all, &cpus),
                    None => self.cores.known = Some(all.into_iter().map(|s| (s.tid, s.name)).collect()),
                }
            }
            told.extend(self.cores.strangers.clone());
        }
        self.cores.round = self.cores.round.wrapping_add(1);
        told
    }

    /// Sends those that came off its cores. A thread that the kernel keeps there stays, and is told.
    pub(super) fn send_strangers_off(&mut self) {
        let (Some(container), Some(known), true) =
            (&self.container, &self.cores.known, self.cores.strangers.is_some())
        else {
            return;
        };
        let (Some(cgroup), Ok(cpus)) = (container.cgroup(), self.request.placement.cpus.parse::<CpuSet>())
        else {
            return;
        };
        let own = cgroup.procs().unwrap_or_default();
        let all = strangers(Path::new("/proc"), &cpus, &|pid| own.contains(&pid)).unwrap_or_default();
        for stranger in all
            .iter()
            .filter(|s| counts(s) && !known.contains(&(s.tid, s.name.clone())))
        {
            let elsewhere = stranger.allowed.difference(&cpus);
            if !elsewhere.is_empty() {
                let _ = berth_rt::sched::set_affinity(stranger.tid, &elsewhere);
            }
        }
        // Listed anew with the next look.
        self.cores.round = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_new_on_the_cores_is_told() {
        let one = |tid, name: &str, allowed: &str, bound| Stranger {
            tid,
            name: name.into(),
            allowed: allowed.parse().unwrap_or_default(),
            bound,
        };
        let cpus: CpuSet = "2-3".parse().unwrap_or_default();
        let there = [one(20, "ksoftirqd/2", "2", true), one(21, "rcuc/2", "2", true)];
        let known: BTreeSet<_> = there.iter().map(|s| (s.tid, s.name.clone())).collect();
        assert_eq!(came(&known, &there, &cpus), None);
        // The number of one that ended is another one's.
        let now = [
            there[0].clone(),
            one(21, "irq/33-eth0", "2", true),
            one(400, "httpd", "0-3", false),
        ];
        let told = came(&known, &now, &cpus).map(|f| f.actual).unwrap_or_default();
        assert_eq!(
            told,
            "may run there: irq/33-eth0 (thread 21) on CPUs 2, httpd (thread 400) on CPUs 0-3"
        );
        assert!(!counts(&one(1, "kworker/2:1", "2", true)) && counts(&now[1]) && counts(&now[2]));
    }

    #[test]
    fn throttling_is_what_came_since() {
        assert_eq!(throttled(None, 7), None);
        assert_eq!(throttled(Some(7), 7), None);
        assert_eq!(throttled(Some(7), 3), None);
        assert!(throttled(Some(7), 9).is_some_and(|f| f.actual.contains("in 2 periods")));
    }

    #[test]
    fn who_waits_while_its_cores_are_used_by_others_is_starved() {
        let second = Duration::from_secs(1);
        let (before, ms) = (HashMap::from([(5, (0, 0)), (6, (0, 0))]), 1_000_000);
        let told = |ran: u64, waited: u64, cores| {
            let now = HashMap::from([(5, (ran * ms, waited * ms)), (6, (0, 0)), (7, (0, 900 * ms))]);
            starved(&before, &now, second, cores).map(|f| f.actual)
        };
        assert_eq!(
            told(50, 950, 1).as_deref(),
            Some("thread 5 waited for 950 of 1000 ms, while all of its threads ran for 50 ms")
        );
        assert_eq!(told(50, 400, 1), None, "less than half");
        // It has its core: more of its threads than cores want to run.
        assert_eq!(told(600, 900, 1), None);
        assert!(told(600, 900, 2).is_some());
        assert_eq!(starved(&before, &before, second, 1), None);
    }
}
