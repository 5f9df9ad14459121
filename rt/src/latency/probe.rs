//! The loop that measures: clock_nanosleep(2) with TIMER_ABSTIME, mlockall(2), sched_setattr(2), a thread on each CPU.
//!
//! Invariants: each thread reads back that it is bound and scheduled as asked before its first sleep; between two sleeps
//! nothing is allocated and no call is made but clock_gettime(2) (the vDSO's) and clock_nanosleep(2).
#![allow(unsafe_code)] // mlockall, prctl(PR_GET_TIMERSLACK) and clock_nanosleep have no safe form in the crates at hand

use std::io;
use std::thread;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::Histogram;
use crate::cpu::CpuSet;
use crate::sched::{self, SchedError, Scheduler};

/// The least interval: below it a sleep is no longer one.
pub const LEAST_INTERVAL: Duration = Duration::from_micros(20);
/// Stack of a probe thread: locked whole where memory is locked.
const STACK: usize = 128 << 10;
/// From the start of the threads to the first wake-up.
const LEAD: Duration = Duration::from_millis(10);
/// Wake-ups of each thread that are not counted.
const WARM_UP: u64 = 3;

/// What to measure.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// A thread on each of these.
    pub cpus: CpuSet,
    /// The threads' policy; `None`: that of the caller.
    pub scheduler: Option<Scheduler>,
    /// The threads' timer slack, at least 1 ns; `None`: that of the caller.
    pub slack_ns: Option<u64>,
    /// From one wake-up to the next, at least [`LEAST_INTERVAL`].
    pub interval: Duration,
    /// How long, at least one interval.
    pub duration: Duration,
}

/// What was measured.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Measured {
    /// Why the memory was not locked; absent where it was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_locked: Option<String>,
    /// One of each CPU.
    pub cpus: Vec<OfCpu>,
}

/// What one thread saw.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct OfCpu {
    /// Where it ran.
    pub cpu: u32,
    /// Its policy, as the kernel says.
    pub scheduler: Scheduler,
    /// Its timer slack, as the kernel says; not used by real-time policies.
    pub slack_ns: u64,
    /// Wake-ups that were never asked for, as an earlier one came later than they were due.
    pub missed: u64,
    /// Times from the moment asked for to running again.
    pub latency: Histogram,
}

impl Measured {
    /// All CPUs together.
    #[must_use]
    pub fn all(&self) -> Histogram {
        let mut sum = Histogram::new();
        self.cpus.iter().for_each(|cpu| sum.merge(&cpu.latency));
        sum
    }
}

/// Why nothing was measured.
#[derive(Debug, Error)]
pub enum ProbeError {
    /// The plan makes no sense.
    #[error("{0}")]
    Plan(String),
    /// A thread could not be started.
    #[error("cannot start a thread: {0}")]
    Thread(io::Error),
    /// A thread ended before its time.
    #[error("the thread on CPU {0} panicked")]
    Panicked(u32),
    /// A thread could not be bound or scheduled.
    #[error("on CPU {cpu}: {source}")]
    Sched {
        /// Whose.
        cpu: u32,
        /// Why.
        source: SchedError,
    },
    /// The kernel did not say that it did what it was told to.
    #[error("on CPU {cpu}: {what} is {actual}, asked for was {asked}")]
    ReadBack {
        /// Whose.
        cpu: u32,
        /// Of what.
        what: &'static str,
        /// Read.
        actual: String,
        /// Set.
        asked: String,
    },
    /// A sleep failed.
    #[error("on CPU {cpu}: clock_nanosleep: {source}")]
    Sleep {
        /// Whose.
        cpu: u32,
        /// Why.
        source: io::Error,
    },
}

impl ProbeError {
    /// The setting to change.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            ProbeError::Sched { source, .. } => source.hint(),
            _ => None,
        }
    }
}

/// Measures.
///
/// # Errors
/// [`ProbeError`]; one thread's failure ends all.
pub fn run(plan: &Plan) -> Result<Measured, ProbeError> {
    if plan.cpus.is_empty() {
        return Err(ProbeError::Plan("no CPU to measure on".into()));
    }
    if plan.interval < LEAST_INTERVAL {
        return Err(ProbeError::Plan(format!(
            "an interval of {:?}: the least is {LEAST_INTERVAL:?}",
            plan.interval
        )));
    }
    if plan.duration < plan.interval {
        return Err(ProbeError::Plan(format!(
            "a duration of {:?} has not one interval of {:?}",
            plan.duration, plan.interval
        )));
    }
    let not_locked = lock_memory().err();
    // One beginning for all; threads take turns within an interval, so that no two wake-ups are due at once.
    let begin = now() + nanos(LEAD);
    let started: Result<Vec<Result<OfCpu, ProbeError>>, ProbeError> = thread::scope(|scope| {
        let mut threads = Vec::new();
        for (turn, cpu) in plan.cpus.iter().enumerate() {
            let offset = nanos(plan.interval) / plan.cpus.len() as u64 * turn as u64;
            let thread = thread::Builder::new()
                .name(format!("latency/{cpu}"))
                .stack_size(STACK)
                .spawn_scoped(scope, move || one(plan, cpu, begin + offset))
                .map_err(ProbeError::Thread)?;
            threads.push((cpu, thread));
        }
        let join = |(cpu, thread): (u32, thread::ScopedJoinHandle<'_, _>)| {
            thread.join().unwrap_or(Err(ProbeError::Panicked(cpu)))
        };
        Ok(threads.into_iter().map(join).collect())
    });
    if not_locked.is_none() {
        // SAFETY: takes nothing. What is no longer locked stays valid.
        unsafe { libc::munlockall() };
    }
    Ok(Measured {
        not_locked,
        cpus: started?.into_iter().collect::<Result<_, _>>()?,
    })
}

/// The thread of one CPU.
fn one(plan: &Plan, cpu: u32, begin: u64) -> Result<OfCpu, ProbeError> {
    let told = |source| ProbeError::Sched { cpu, source };
    let read_back = |what, asked: String, actual: String| {
        if asked == actual {
            return Ok(());
        }
        Err(ProbeError::ReadBack {
            cpu,
            what,
            actual,
            asked,
        })
    };
    let bound: CpuSet = [cpu].into_iter().collect();
    sched::set_affinity(0, &bound).map_err(told)?;
    let affinity = sched::affinity(0).map_err(told)?;
    read_back("the set of CPUs", bound.to_string(), affinity.to_string())?;
    if let Some(scheduler) = &plan.scheduler {
        sched::set(0, scheduler, 0).map_err(told)?;
    }
    let scheduler = sched::get(0).map_err(told)?.scheduler;
    if let Some(asked) = &plan.scheduler {
        read_back("the policy", format!("{asked:?}"), format!("{scheduler:?}"))?;
    }
    // A visit to a real-time policy sets the slack anew: after it.
    if let Some(ns) = plan.slack_ns {
        sched::set_timer_slack(ns).map_err(told)?;
    }
    let slack_ns = timer_slack();
    if let Some(asked) = plan.slack_ns.filter(|_| !scheduler.is_realtime()) {
        read_back("the timer slack", asked.to_string(), slack_ns.to_string())?;
    }
    let mut of = OfCpu {
        cpu,
        scheduler,
        slack_ns,
        missed: 0,
        latency: Histogram::new(),
    };
    of.latency.touch();
    cycles(plan, begin, &mut of).map_err(|source| ProbeError::Sleep { cpu, source })?;
    Ok(of)
}

fn cycles(plan: &Plan, begin: u64, of: &mut OfCpu) -> io::Result<()> {
    let interval = nanos(plan.interval);
    let end = begin + nanos(plan.duration);
    let mut due = begin;
    // The first wake-ups find cold caches and pages.
    let mut warm = WARM_UP;
    while due < end {
        sleep_until(due)?;
        let woken = now();
        match warm {
            0 => of.latency.add(woken.saturating_sub(due)),
            _ => warm -= 1,
        }
        due += interval;
        if due <= woken {
            let late = (woken - due) / interval + 1;
            due += late * interval;
            of.missed += late;
        }
    }
    Ok(())
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX / 4)
}

fn lock_memory() -> Result<(), String> {
    // SAFETY: takes flags only.
    match unsafe { libc::mlockall(libc::MCL_CURRENT | libc::MCL_FUTURE) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error().to_string()),
    }
}

/// The calling thread's timer slack.
fn timer_slack() -> u64 {
    // SAFETY: takes no pointer.
    let ns = unsafe { libc::prctl(libc::PR_GET_TIMERSLACK, 0, 0, 0, 0) };
    u64::try_from(ns).unwrap_or(0)
}

/// CLOCK_MONOTONIC in nanoseconds.
pub(super) fn now() -> u64 {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: `time` is a valid timespec to write to; this clock exists on every Linux.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time) };
    u64::try_from(time.tv_sec).unwrap_or(0) * 1_000_000_000 + u64::try_from(time.tv_nsec).unwrap_or(0)
}

/// Sleeps until a time of CLOCK_MONOTONIC.
pub(super) fn sleep_until(ns: u64) -> io::Result<()> {
    let time = libc::timespec {
        tv_sec: libc::time_t::try_from(ns / 1_000_000_000).unwrap_or(libc::time_t::MAX),
        tv_nsec: libc::c_long::try_from(ns % 1_000_000_000).unwrap_or(0),
    };
    loop {
        // SAFETY: `time` is a valid timespec; with TIMER_ABSTIME the remainder is not written.
        let answer = unsafe {
            libc::clock_nanosleep(
                libc::CLOCK_MONOTONIC,
                libc::TIMER_ABSTIME,
                &raw const time,
                std::ptr::null_mut(),
            )
        };
        match answer {
            0 => return Ok(()),
            libc::EINTR => {}
            errno => return Err(io::Error::from_raw_os_error(errno)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan() -> Plan {
        let here = sched::affinity(0).unwrap();
        Plan {
            cpus: here.first().into_iter().collect(),
            scheduler: None,
            slack_ns: Some(1),
            interval: Duration::from_micros(500),
            duration: Duration::from_millis(100),
        }
    }

    #[test]
    fn every_wake_up_is_counted_or_missed() {
        let plan = plan();
        let measured = run(&plan).unwrap();
        let [of] = &measured.cpus[..] else {
            panic!("{measured:?}")
        };
        assert_eq!(Some(of.cpu), plan.cpus.first());
        assert_eq!(of.slack_ns, 1);
        assert!(of.latency.count() > 0 && of.latency.min() > 0, "{of:?}");
        assert_eq!(of.latency.count() + WARM_UP + of.missed, 200, "{of:?}");
        // The caller is as it was.
        assert_ne!(timer_slack(), 1);
        let text = serde_json::to_string(&measured).unwrap();
        assert_eq!(serde_json::from_str::<Measured>(&text).unwrap(), measured);
    }

    #[test]
    fn plans_that_make_no_sense_are_refused() {
        let good = plan();
        let bad = [
            (
                Plan {
                    cpus: CpuSet::new(),
                    ..good.clone()
                },
                "no CPU",
            ),
            (
                Plan {
                    interval: Duration::from_micros(19),
                    ..good.clone()
                },
                "interval",
            ),
            (
                Plan {
                    duration: Duration::from_micros(499),
                    ..good.clone()
                },
                "duration",
            ),
            (
                Plan {
                    cpus: [8191].into_iter().collect(),
                    ..good.clone()
                },
                "CPU 8191",
            ),
            (
                Plan {
                    scheduler: Some(Scheduler::Fifo { priority: 100 }),
                    ..good
                },
                "100",
            ),
        ];
        for (plan, word) in bad {
            let error = run(&plan).unwrap_err().to_string();
            assert!(error.contains(word), "{plan:?}: {error}");
        }
    }
}
