//! How much of a core a policy can have: throttling, budget and fair server against what was promised.
//!
//! Before Linux 6.12, and with RT_GROUP_SCHED, `sched_rt_runtime_us` of each `sched_rt_period_us` is all that SCHED_FIFO and
//! SCHED_RR get (Documentation/scheduler/sched-rt-group.rst). Since 6.12 the fair server gives its part of each CPU to
//! SCHED_OTHER whatever that file says. SCHED_DEADLINE is admitted up to that file's ratio (sched-deadline.rst), unless it is -1.

use super::lacks::Lack;
use super::{Reading, Wish};
use crate::machine::Machine;
use crate::sched::Scheduler;

const RUNTIME: &str = "/proc/sys/kernel/sched_rt_runtime_us";
const PERIOD: &str = "/proc/sys/kernel/sched_rt_period_us";
const SERVER: &str = "/sys/kernel/debug/sched/fair_server";
/// Of the kernel, where debugfs does not say: 50 ms of each second.
const SERVER_DEFAULT: u64 = 500;

/// What can be had of each core, in hundredths of a percent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Share {
    /// 10000 is all of it.
    pub most: u64,
    /// What takes the rest.
    pub why: Vec<String>,
    /// What to change.
    pub hint: &'static str,
}

/// The ratio in hundredths of a percent, rounded down.
fn ratio(part: u64, whole: u64) -> u64 {
    if whole == 0 {
        return 10_000;
    }
    u64::try_from(u128::from(part) * 10_000 / u128::from(whole)).unwrap_or(10_000)
}

fn percent(of: u64) -> String {
    format!("{}.{:02} %", of / 100, of % 100)
}

/// What the policy of `wish` can have of each of its cores; `None` where it has none that the kernel bounds.
#[must_use]
pub fn available(machine: &Machine, wish: &Wish) -> Option<Share> {
    let scheduler = wish.scheduler?;
    if !scheduler.is_realtime() {
        return None;
    }
    let number = |path: &str| -> Option<i64> { machine.read(path)?.parse().ok() };
    let mut share = Share {
        most: 10_000,
        why: Vec::new(),
        hint: "raise kernel.sched_rt_runtime_us (spec.realtime.throttling of the Node document)",
    };
    let positive = |value: Option<i64>| value.and_then(|value| u64::try_from(value).ok());
    let (runtime, period) = (
        positive(number(RUNTIME)),
        positive(number(PERIOD)).unwrap_or(1_000_000),
    );
    let deadline = matches!(scheduler, Scheduler::Deadline { .. });
    let served = machine.version() >= (6, 12);
    if let Some(runtime) = runtime.filter(|_| deadline || !served || wish.budget.is_some()) {
        share.most = ratio(runtime, period);
        share
            .why
            .push(format!("sched_rt_runtime_us {runtime} of {period}"));
    }
    if deadline {
        return Some(share);
    }
    if let Some((runtime, period)) = wish.budget
        && ratio(runtime, period) < share.most
    {
        share.most = ratio(runtime, period);
        share.why.push(format!("its budget, {runtime} us of {period}"));
        share.hint = "raise spec.realtime.budget of the workload";
    }
    if served {
        let (taken, told) = wish
            .cpus
            .iter()
            .map(|cpu| {
                let of = |name: &str| number(&format!("{SERVER}/cpu{cpu}/{name}"));
                match (positive(of("runtime")), positive(of("period"))) {
                    (Some(runtime), Some(period)) => (ratio(runtime, period), true),
                    _ => (SERVER_DEFAULT, false),
                }
            })
            .max()
            .unwrap_or((SERVER_DEFAULT, false));
        let rest = 10_000_u64.saturating_sub(taken);
        if taken > 0 && rest < share.most {
            share.most = rest;
            share.hint = "set spec.realtime.fairServer of the Node document, and run berth node tune";
        }
        if taken > 0 {
            let from = if told {
                ""
            } else {
                " (the kernel's default; debugfs does not say)"
            };
            share.why.push(format!(
                "the fair server gives SCHED_OTHER {}{from} where it waits",
                percent(taken)
            ));
        }
    }
    Some(share)
}

/// What was promised: what a deadline policy needs, or the share that was asked for.
fn promised(wish: &Wish) -> Option<u64> {
    match wish.scheduler {
        Some(Scheduler::Deadline { runtime, period, .. }) => {
            // Rounded up: it must be possible.
            let exact = (u128::from(runtime) * 10_000).div_ceil(u128::from(period.max(1)));
            Some(u64::try_from(exact).unwrap_or(u64::MAX))
        }
        _ => wish.share.map(|percent| u64::from(percent) * 100),
    }
}

pub(super) fn lack(machine: &Machine, wish: &Wish) -> Option<Lack> {
    let share = available(machine, wish)?;
    let wanted = promised(wish)?;
    (wanted > share.most).then(|| Lack {
        name: "share".into(),
        why: format!(
            "{} of each core is asked for, {} can be had: {}",
            percent(wanted),
            percent(share.most),
            share.why.join(", ")
        ),
        hint: share.hint.into(),
        source: RUNTIME.into(),
    })
}

pub(super) fn reading(machine: &Machine, wish: &Wish) -> Option<Reading> {
    let share = available(machine, wish)?;
    let wanted = promised(wish);
    let why = match &share.why[..] {
        [] => String::new(),
        why => format!(": {}", why.join(", ")),
    };
    Some(Reading {
        name: "share".into(),
        promised: wanted.map_or_else(
            || "what its policy can have is said".to_owned(),
            |w| format!("{} of each core", percent(w)),
        ),
        actual: format!("at most {}{why}", percent(share.most)),
        source: RUNTIME.into(),
        holds: wanted.is_none_or(|wanted| wanted <= share.most),
    })
}
