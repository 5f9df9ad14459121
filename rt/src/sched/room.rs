//! How much bandwidth SCHED_DEADLINE has on a thread's CPUs, for the refusal of more (EBUSY).
//!
//! The kernel admits by root domain (Documentation/scheduler/sched-deadline.rst, section 4): for each of its CPUs
//! `sched_rt_runtime_us` of `sched_rt_period_us`. Its own account is in debugfs (`dl_bw->bw` for one CPU and
//! `dl_bw->total_bw` for all of them, in 2^20ths of a CPU; since 6.12 the fair servers may be in it); where that cannot be
//! read, the threads are added up that may run there. Read to word an error, never on the way to a launch that succeeds.

use std::fmt;
use std::fs;

use crate::cpu::CpuSet;

use super::Scheduler;

const ACCOUNT: &str = "/sys/kernel/debug/sched/debug";
const RUNTIME: &str = "/proc/sys/kernel/sched_rt_runtime_us";
const PERIOD: &str = "/proc/sys/kernel/sched_rt_period_us";
/// `SCHED_DEADLINE` in `/proc/PID/stat`.
const DEADLINE: &str = "6";
/// How many threads are named.
const NAMED: usize = 8;

/// What a root domain has for SCHED_DEADLINE, in thousandths of one CPU.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Room {
    /// Its CPUs, as far as the thread's affinity tells.
    pub cpus: CpuSet,
    /// Of all its CPUs together.
    pub most: u64,
    /// What is admitted.
    pub taken: u64,
    /// Threads that have some of it: number, name, how much.
    pub holders: Vec<(i32, String, u64)>,
    /// What was asked for.
    pub asked: u64,
}

impl fmt::Display for Room {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let of = |part: u64| format!("{}.{:03}", part / 1000, part % 1000);
        let mut holders: Vec<String> = self
            .holders
            .iter()
            .take(NAMED)
            .map(|(tid, name, part)| format!("{name}, thread {tid}: {}", of(*part)))
            .collect();
        let threads: u64 = self.holders.iter().map(|(_, _, part)| part).sum();
        if self.taken > threads {
            holders.push(format!("the kernel's own: {}", of(self.taken - threads)));
        }
        let holders = match &holders[..] {
            [] => String::new(),
            holders => format!(" ({})", holders.join("; ")),
        };
        write!(
            f,
            "{} of a CPU is asked for; of {} that CPUs {} have for SCHED_DEADLINE {} are taken{holders} and {} free",
            of(self.asked),
            of(self.most),
            self.cpus,
            of(self.taken),
            of(self.most.saturating_sub(self.taken)),
        )
    }
}

/// A ratio in thousandths, to the nearest.
fn thousandths(part: u64, whole: u64) -> u64 {
    if whole == 0 {
        return 0;
    }
    let exact = (u128::from(part) * 1000 + u128::from(whole) / 2) / u128::from(whole);
    u64::try_from(exact).unwrap_or(u64::MAX)
}

/// One CPU's limit and the root domain's sum, in 2^20ths, from the kernel's account of `cpu`.
fn account(text: &str, cpu: u32) -> Option<(u64, u64)> {
    let block = text.split(&format!("dl_rq[{cpu}]:")).nth(1)?;
    let block = block.split("dl_rq[").next()?;
    let number = |name: &str| -> Option<u64> {
        let line = block.lines().find_map(|line| line.trim().strip_prefix(name))?;
        line.trim_start_matches([' ', ':']).trim().parse().ok()
    };
    Some((number(".dl_bw->bw")?, number(".dl_bw->total_bw")?))
}

/// The threads of SCHED_DEADLINE that may run on `cpus`, but `own`.
fn holders(cpus: &CpuSet, own: i32) -> Vec<(i32, String, u64)> {
    let mut all = Vec::new();
    let names = |path: &str| -> Vec<i32> {
        let entries = fs::read_dir(path).into_iter().flatten().flatten();
        entries
            .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
            .collect()
    };
    for pid in names("/proc") {
        for tid in names(&format!("/proc/{pid}/task")) {
            let stat = fs::read_to_string(format!("/proc/{pid}/task/{tid}/stat")).unwrap_or_default();
            // The policy is field 41; behind the name come those from 3 on.
            let policy = stat
                .rsplit_once(") ")
                .and_then(|(_, rest)| rest.split(' ').nth(38));
            if policy != Some(DEADLINE) || tid == own {
                continue;
            }
            let there = super::affinity(tid).is_ok_and(|allowed| !allowed.is_disjoint(cpus));
            if let (true, Ok(now)) = (there, super::get(tid))
                && let Scheduler::Deadline { runtime, period, .. } = now.scheduler
            {
                let name = fs::read_to_string(format!("/proc/{pid}/task/{tid}/comm")).unwrap_or_default();
                all.push((tid, name.trim_end().to_owned(), thousandths(runtime, period)));
            }
        }
    }
    all
}

/// What there is for thread `pid`, 0 for the caller, that asks for `runtime` of each `period`.
pub(super) fn room(pid: i32, runtime: u64, period: u64) -> Room {
    let cpus = super::affinity(pid).unwrap_or_default();
    let holders = holders(&cpus, pid);
    let number = |path: &str| -> Option<u64> { fs::read_to_string(path).ok()?.trim().parse().ok() };
    let kernels = cpus
        .first()
        .and_then(|cpu| account(&fs::read_to_string(ACCOUNT).ok()?, cpu));
    let count = u64::try_from(cpus.len()).unwrap_or(1);
    let (most, taken) = match kernels {
        Some((one, sum)) => (
            thousandths(one.saturating_mul(count), 1 << 20),
            thousandths(sum, 1 << 20),
        ),
        None => (
            thousandths(
                number(RUNTIME).unwrap_or(950_000).saturating_mul(count),
                number(PERIOD).unwrap_or(1_000_000),
            ),
            holders.iter().map(|(_, _, part)| part).sum(),
        ),
    };
    Room {
        cpus,
        most,
        taken,
        holders,
        asked: thousandths(runtime, period),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_account_of_a_root_domain() {
        let text = "cpu#2, 2000.000 MHz\ndl_rq[2]:\n  .dl_nr_running                 : 0\n  .dl_bw->bw                     : 104857\n  \
                    .dl_bw->total_bw               : 52428\n\ndl_rq[20]:\n  .dl_bw->bw                     : -1\n  .dl_bw->total_bw               : 7\n";
        assert_eq!(account(text, 2), Some((104_857, 52_428)));
        assert_eq!(account(text, 20), None, "no limit");
        assert_eq!(account(text, 3), None);
        assert_eq!(account("", 2), None);
    }

    #[test]
    fn what_is_free_and_who_has_the_rest() {
        let room = Room {
            cpus: "2-3".parse().unwrap_or_default(),
            most: 1900,
            taken: 600,
            holders: vec![(71, "loop".into(), 500)],
            asked: 1400,
        };
        assert_eq!(
            room.to_string(),
            "1.400 of a CPU is asked for; of 1.900 that CPUs 2-3 have for SCHED_DEADLINE 0.600 are taken (loop, thread 71: 0.500; \
             the kernel's own: 0.100) and 1.300 free"
        );
        let none = Room {
            taken: 0,
            holders: Vec::new(),
            ..room
        };
        assert!(
            none.to_string().ends_with("0.000 are taken and 1.900 free"),
            "{none}"
        );
        assert_eq!(thousandths(1, 3), 333);
        assert_eq!(thousandths(u64::MAX, u64::MAX), 1000);
    }
}
