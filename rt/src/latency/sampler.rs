//! A probe beside a workload: a process of one thread that now and then asks to be woken on each of the workload's CPUs and
//! counts how late it was. cyclictest's method ([`super::probe`]), at a rate that costs nothing.
//!
//! Invariants: it never runs while the workload wants to run ([`below`] gives it the next lower priority, so what it counts
//! is an upper end: the wait of the first thread behind the workload's); between two sleeps it allocates nothing, opens
//! nothing and makes no call but sched_setaffinity(2), clock_gettime(2) and clock_nanosleep(2); what it counts is in memory that
//! it shares with its parent ([`Board`]), so nobody waits for it and it waits for nobody. Its memory is not locked: the
//! pages would be charged to the workload, and the few it touches ten times a second stay where they are.
//!
//! A wake-up during which its parent froze or thawed the workload is not counted ([`Board::turn`]).
#![allow(unsafe_code)] // mmap(2) of shared memory, which a fork keeps, has no safe form in the crates at hand

use std::io;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use super::probe::{now, sleep_until};
use super::tally::{BOUNDS, Tally};
use crate::cpu::CpuSet;
use crate::sched::{self, Scheduler};

/// From one wake-up to the next, whatever the number of CPUs: they take turns.
pub const PERIOD_NS: u64 = 100_000_000;

/// What the probe runs under: never before the workload, and before everything else that is below it.
///
/// FIFO and RR: the next lower priority, SCHED_OTHER below the lowest. DEADLINE is before every other policy: FIFO 99. Of the
/// policies that share by weight: one step of nice less, which leaves a thread of the workload that wakes up first.
#[must_use]
pub fn below(workload: Option<&Scheduler>) -> Scheduler {
    match workload.copied().unwrap_or(Scheduler::Other { nice: 0 }) {
        Scheduler::Fifo { priority } | Scheduler::Rr { priority } if priority > 1 => Scheduler::Fifo {
            priority: priority - 1,
        },
        Scheduler::Fifo { .. } | Scheduler::Rr { .. } => Scheduler::Other { nice: 0 },
        Scheduler::Deadline { .. } => Scheduler::Fifo { priority: 99 },
        Scheduler::Other { nice } => Scheduler::Other {
            nice: (nice + 1).min(19),
        },
        Scheduler::Batch { nice } => Scheduler::Batch {
            nice: (nice + 1).min(19),
        },
        Scheduler::Idle => Scheduler::Idle,
    }
}

/// Steps of a probe's beginning, as [`Board::failed`] tells them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// It lives as long as its parent.
    Parent,
    /// It enters the workload's cgroup.
    Cgroup,
    /// Policy and timer slack.
    Policy,
    /// It gives its rights up.
    Rights,
    /// A sleep.
    Sleep,
}

const STEPS: [(Step, &str); 5] = [
    (Step::Parent, "prctl(PR_SET_PDEATHSIG)"),
    (Step::Cgroup, "its cgroup"),
    (Step::Policy, "sched_setattr(2)"),
    (Step::Rights, "setresuid(2)"),
    (Step::Sleep, "clock_nanosleep(2)"),
];

/// What is shared, all zero at first.
#[repr(C)]
struct Page {
    /// Even: it counts. Odd: its workload is frozen.
    turn: AtomicU64,
    count: AtomicU64,
    sum_ns: AtomicU64,
    buckets: [AtomicU64; BOUNDS.len()],
    /// The step that failed, from 1.
    step: AtomicU32,
    errno: AtomicU32,
}

/// Memory that a probe and its parent share: made before the fork, unmapped when dropped.
#[derive(Debug)]
pub struct Board(NonNull<Page>);

// SAFETY: the page is reached through atomics alone, from any thread, and stays mapped as long as the board.
unsafe impl Send for Board {}
// SAFETY: as above.
unsafe impl Sync for Board {}

impl Board {
    /// New, with nothing counted.
    ///
    /// # Errors
    /// The kernel's: no memory.
    pub fn new() -> io::Result<Board> {
        // SAFETY: a new anonymous mapping of the page's size; nothing that exists is touched.
        let there = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                size_of::<Page>(),
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        if there == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        NonNull::new(there.cast())
            .map(Board)
            .ok_or_else(io::Error::last_os_error)
    }

    fn page(&self) -> &Page {
        // SAFETY: mapped, aligned to a page, of its size, zero is a valid value, and all of it is atomic.
        unsafe { self.0.as_ref() }
    }

    /// What was counted so far.
    #[must_use]
    pub fn tally(&self) -> Tally {
        let page = self.page();
        // The count is raised last: the buckets and the sum have at least what it says.
        let mut tally = Tally {
            count: page.count.load(Ordering::Acquire),
            ..Tally::default()
        };
        tally.sum_ns = page.sum_ns.load(Ordering::Relaxed);
        for (bucket, counted) in tally.buckets.iter_mut().zip(&page.buckets) {
            *bucket = counted.load(Ordering::Relaxed).min(tally.count);
        }
        tally
    }

    fn count(&self, ns: u64) {
        let page = self.page();
        for (bucket, bound) in page.buckets.iter().zip(BOUNDS) {
            if ns <= bound {
                bucket.fetch_add(1, Ordering::Relaxed);
            }
        }
        page.sum_ns.fetch_add(ns, Ordering::Relaxed);
        page.count.fetch_add(1, Ordering::Release);
    }

    /// The workload is about to be frozen (`true`), or was thawed.
    pub fn turn(&self, frozen: bool) {
        let turn = &self.page().turn;
        let odd = turn.load(Ordering::Relaxed) % 2 == 1;
        if odd != frozen {
            turn.fetch_add(1, Ordering::Release);
        }
    }

    /// Tells the parent why there is no probe.
    pub fn fail(&self, step: Step, errno: i32) {
        let page = self.page();
        page.errno.store(errno.unsigned_abs(), Ordering::Relaxed);
        let number = STEPS.iter().position(|(known, _)| *known == step).unwrap_or(0) + 1;
        page.step
            .store(u32::try_from(number).unwrap_or(1), Ordering::Release);
    }

    /// Why there is no probe.
    #[must_use]
    pub fn failed(&self) -> Option<String> {
        let page = self.page();
        let step = usize::try_from(page.step.load(Ordering::Acquire)).ok()?;
        let (_, name) = STEPS.get(step.checked_sub(1)?)?;
        let errno = i32::try_from(page.errno.load(Ordering::Relaxed)).unwrap_or(0);
        Some(format!("{name}: {}", io::Error::from_raw_os_error(errno)))
    }
}

impl Drop for Board {
    fn drop(&mut self) {
        // SAFETY: mapped by `new` with this size, and nobody has a reference to it any more.
        unsafe { libc::munmap(self.0.as_ptr().cast(), size_of::<Page>()) };
    }
}

/// Samples until `rounds` wake-ups were asked for; for ever where it is `None`. A CPU that cannot be had now (it is off line, or
/// was taken from the cgroup) is passed over.
///
/// # Errors
/// A sleep that the kernel refused.
pub fn sample(board: &Board, cpus: &CpuSet, rounds: Option<u64>) -> io::Result<()> {
    let sets: Vec<CpuSet> = cpus.iter().map(|cpu| [cpu].into_iter().collect()).collect();
    let mut due = now() + PERIOD_NS;
    let mut turns = sets.iter().cycle();
    let mut asked = 0;
    while rounds.is_none_or(|rounds| asked < rounds) {
        asked += 1;
        let there = turns
            .next()
            .is_some_and(|set| sched::set_affinity(0, set).is_ok());
        let turn = board.page().turn.load(Ordering::Acquire);
        sleep_until(due)?;
        let woken = now();
        let same = turn.is_multiple_of(2) && board.page().turn.load(Ordering::Acquire) == turn;
        if there && same {
            board.count(woken.saturating_sub(due));
        }
        due = (due + PERIOD_NS).max(woken + PERIOD_NS / 2);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_always_below_the_workload() {
        let fifo = |priority| Scheduler::Fifo { priority };
        let other = |nice| Scheduler::Other { nice };
        for (workload, probe) in [
            (Some(fifo(50)), fifo(49)),
            (Some(Scheduler::Rr { priority: 2 }), fifo(1)),
            (Some(fifo(1)), other(0)),
            (
                Some(Scheduler::Deadline {
                    runtime: 1_000_000,
                    deadline: 2_000_000,
                    period: 2_000_000,
                }),
                fifo(99),
            ),
            (None, other(1)),
            (Some(other(-20)), other(-19)),
            (Some(other(19)), other(19)),
            (Some(Scheduler::Batch { nice: 3 }), Scheduler::Batch { nice: 4 }),
            (Some(Scheduler::Idle), Scheduler::Idle),
        ] {
            assert_eq!(below(workload.as_ref()), probe, "{workload:?}");
            assert!(probe.validate().is_ok());
        }
    }

    #[test]
    fn it_counts_each_wake_up_but_those_of_a_frozen_workload() {
        let board = Board::new().unwrap();
        let here = sched::affinity(0).unwrap();
        // In a thread of its own: it binds itself to one CPU after the other.
        let run = |rounds| {
            std::thread::scope(|scope| scope.spawn(|| sample(&board, &here, Some(rounds))).join())
                .unwrap()
                .unwrap();
        };
        run(3);
        let told = board.tally();
        assert!(told.count == 3 && told.sum_ns > 0, "{told:?}");
        board.turn(true);
        run(1);
        assert_eq!(board.tally(), told, "frozen");
        board.turn(false);
        board.turn(false);
        run(1);
        assert_eq!(board.tally().count, 4);
        // A CPU that is not there gives nothing, and ends nothing.
        let gone: CpuSet = [4000].into_iter().collect();
        std::thread::scope(|scope| scope.spawn(|| sample(&board, &gone, Some(1))).join())
            .unwrap()
            .unwrap();
        assert_eq!(board.tally().count, 4);
    }

    #[test]
    fn why_there_is_none_is_told_in_words() {
        let board = Board::new().unwrap();
        assert_eq!(board.failed(), None);
        board.fail(Step::Policy, libc::EPERM);
        let told = board.failed().unwrap();
        assert!(
            told.starts_with("sched_setattr(2): Operation not permitted"),
            "{told}"
        );
    }
}
