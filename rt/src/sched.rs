//! Scheduling of one thread: policy and its parameters (`sched_setattr(2)`, `sched_getattr(2)`), CPU
//! affinity (`sched_setaffinity(2)`), timer slack (`PR_SET_TIMERSLACK`, `/proc/PID/timerslack_ns`).
//!
//! The C library has no wrapper for the attr calls, so they are made by number. Values are checked before the
//! kernel sees them, so a refusal names the value; what the kernel refuses keeps its errno and gets a hint.
//! A pid of 0 is the calling thread everywhere. Nothing here believes a set call: callers read back.
#![allow(unsafe_code)] // system calls without a safe wrapper: sched_setattr, sched_getattr, large affinity masks

mod error;
mod room;

use std::fmt;
use std::io;
use std::path::Path;

use oci_spec::runtime as oci;
use serde::{Deserialize, Serialize};

use crate::cpu::{CpuSet, MAX_CPU};

pub use error::SchedError;
pub use room::Room;

/// Children start again with the default policy (`SCHED_FLAG_RESET_ON_FORK`).
pub const RESET_ON_FORK: u64 = 0x01;
/// A deadline task may use bandwidth that others leave (`SCHED_FLAG_RECLAIM`).
pub const RECLAIM: u64 = 0x02;
/// A deadline task gets SIGXCPU when it overruns (`SCHED_FLAG_DL_OVERRUN`).
pub const DL_OVERRUN: u64 = 0x04;

/// A scheduling policy with its parameters, as `sched(7)` has them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "policy", rename_all = "lowercase", deny_unknown_fields)]
pub enum Scheduler {
    /// `SCHED_OTHER`: time-shared.
    Other {
        /// -20 (most) to 19 (least).
        #[serde(default)]
        nice: i32,
    },
    /// `SCHED_BATCH`: time-shared, never preempts on wake-up.
    Batch {
        /// -20 (most) to 19 (least).
        #[serde(default)]
        nice: i32,
    },
    /// `SCHED_IDLE`: only when nothing else wants the CPU.
    Idle,
    /// `SCHED_FIFO`: real-time, runs until it blocks or yields.
    Fifo {
        /// 1 (low) to 99 (high).
        priority: u32,
    },
    /// `SCHED_RR`: real-time, in turns with its equals.
    Rr {
        /// 1 (low) to 99 (high).
        priority: u32,
    },
    /// `SCHED_DEADLINE`: earliest deadline first; `runtime` ≤ `deadline` ≤ `period`, in nanoseconds.
    Deadline {
        /// Time it may run in each period; at least 1024 ns.
        runtime: u64,
        /// The time, from the start of the period, by which `runtime` must have been given.
        deadline: u64,
        /// Length of the period; below 2⁶³ ns.
        period: u64,
    },
}

impl Scheduler {
    /// The kernel's name of the policy.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Scheduler::Other { .. } => "SCHED_OTHER",
            Scheduler::Batch { .. } => "SCHED_BATCH",
            Scheduler::Idle => "SCHED_IDLE",
            Scheduler::Fifo { .. } => "SCHED_FIFO",
            Scheduler::Rr { .. } => "SCHED_RR",
            Scheduler::Deadline { .. } => "SCHED_DEADLINE",
        }
    }

    /// Whether the policy is a real-time one (FIFO, RR or DEADLINE).
    #[must_use]
    pub fn is_realtime(&self) -> bool {
        matches!(
            self,
            Scheduler::Fifo { .. } | Scheduler::Rr { .. } | Scheduler::Deadline { .. }
        )
    }

    /// Whether every parameter is in the range that `sched(7)` allows.
    ///
    /// # Errors
    /// [`SchedError::Invalid`] names the parameter and its range.
    pub fn validate(&self) -> Result<(), SchedError> {
        let wrong = |what: String| Err(SchedError::Invalid { what });
        match *self {
            Scheduler::Other { nice } | Scheduler::Batch { nice } if !(-20..=19).contains(&nice) => {
                wrong(format!("{}: nice {nice} is not between -20 and 19", self.name()))
            }
            Scheduler::Fifo { priority } | Scheduler::Rr { priority } if !(1..=99).contains(&priority) => {
                wrong(format!(
                    "{}: priority {priority} is not between 1 and 99",
                    self.name()
                ))
            }
            Scheduler::Deadline {
                runtime,
                deadline,
                period,
            } => {
                if runtime < 1024 {
                    wrong(format!("SCHED_DEADLINE: runtime {runtime} ns is below 1024 ns"))
                } else if runtime > deadline || deadline > period || period >= 1 << 63 {
                    wrong(format!(
                        "SCHED_DEADLINE: runtime {runtime} ≤ deadline {deadline} ≤ period {period} < 2^63 does not hold"
                    ))
                } else {
                    Ok(())
                }
            }
            _ => Ok(()),
        }
    }

    /// The policy and flags of an OCI `process.scheduler`.
    ///
    /// # Errors
    /// [`SchedError::Invalid`] for `SCHED_ISO`, a missing or misplaced parameter, utilisation clamp flags (the
    /// OCI field has no values for them), the keep flags (they would keep a policy that nobody named), and
    /// values out of range.
    pub fn from_oci(scheduler: &oci::Scheduler) -> Result<(Scheduler, u64), SchedError> {
        use oci::{LinuxSchedulerFlag as Flag, LinuxSchedulerPolicy as Policy};
        let wrong = |what: String| SchedError::Invalid { what };
        let policy = scheduler.policy();
        let nice = scheduler.nice().unwrap_or(0);
        let priority = scheduler.priority().unwrap_or(0);
        let deadline = [*scheduler.runtime(), *scheduler.deadline(), *scheduler.period()];
        let realtime = |priority: i32| {
            u32::try_from(priority)
                .map_err(|_| wrong(format!("{policy:?}: priority {priority} is not between 1 and 99")))
        };
        let parsed = match policy {
            Policy::SchedOther => Scheduler::Other { nice },
            Policy::SchedBatch => Scheduler::Batch { nice },
            Policy::SchedIdle => Scheduler::Idle,
            Policy::SchedFifo => Scheduler::Fifo {
                priority: realtime(priority)?,
            },
            Policy::SchedRr => Scheduler::Rr {
                priority: realtime(priority)?,
            },
            Policy::SchedDeadline => {
                let [runtime, deadline, period] = deadline.map(Option::unwrap_or_default);
                Scheduler::Deadline {
                    runtime,
                    deadline,
                    period: if period == 0 { deadline } else { period },
                }
            }
            Policy::SchedIso => return Err(wrong("SCHED_ISO: Linux has no such policy".into())),
        };
        if !matches!(parsed, Scheduler::Fifo { .. } | Scheduler::Rr { .. }) && priority != 0 {
            return Err(wrong(format!(
                "{}: priority {priority} has no meaning for this policy",
                parsed.name()
            )));
        }
        if !matches!(parsed, Scheduler::Deadline { .. }) && deadline.iter().flatten().any(|&value| value != 0)
        {
            return Err(wrong(format!(
                "{}: runtime, deadline and period belong to SCHED_DEADLINE",
                parsed.name()
            )));
        }
        if !matches!(parsed, Scheduler::Other { .. } | Scheduler::Batch { .. }) && nice != 0 {
            return Err(wrong(format!(
                "{}: nice {nice} has no meaning for this policy",
                parsed.name()
            )));
        }
        let mut flags = 0;
        for flag in scheduler.flags().iter().flatten() {
            flags |= match flag {
                Flag::SchedResetOnFork => RESET_ON_FORK,
                Flag::SchedFlagReclaim => RECLAIM,
                Flag::SchedFlagDLOverrun => DL_OVERRUN,
                Flag::SchedFlagKeepPolicy | Flag::SchedFlagKeepParams => {
                    return Err(wrong(format!(
                        "scheduler flag {flag:?}: would keep a policy that is not named"
                    )));
                }
                Flag::SchedFlagUtilClampMin | Flag::SchedFlagUtilClampMax => {
                    return Err(wrong(format!(
                        "scheduler flag {flag:?}: there is no field for its value"
                    )));
                }
            };
        }
        parsed.validate()?;
        Ok((parsed, flags))
    }
}

impl fmt::Display for Scheduler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Scheduler::Other { nice } | Scheduler::Batch { nice } => write!(f, "{} nice {nice}", self.name()),
            Scheduler::Idle => f.write_str(self.name()),
            Scheduler::Fifo { priority } | Scheduler::Rr { priority } => {
                write!(f, "{} {priority}", self.name())
            }
            Scheduler::Deadline {
                runtime,
                deadline,
                period,
            } => {
                write!(f, "{} {runtime}/{deadline}/{period} ns", self.name())
            }
        }
    }
}

/// What `sched_getattr` says of a thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attributes {
    /// Policy and parameters.
    pub scheduler: Scheduler,
    /// [`RESET_ON_FORK`], [`RECLAIM`], [`DL_OVERRUN`].
    pub flags: u64,
}

/// `struct sched_attr`, first published size (48 bytes): every kernel since 3.14 takes it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
struct Attr {
    size: u32,
    policy: u32,
    flags: u64,
    nice: i32,
    priority: u32,
    runtime: u64,
    deadline: u64,
    period: u64,
}

const ATTR_SIZE: u32 = size_of::<Attr>() as u32;
const SCHED_OTHER: u32 = libc::SCHED_OTHER as u32;
const SCHED_FIFO: u32 = libc::SCHED_FIFO as u32;
const SCHED_RR: u32 = libc::SCHED_RR as u32;
const SCHED_BATCH: u32 = libc::SCHED_BATCH as u32;
const SCHED_IDLE: u32 = libc::SCHED_IDLE as u32;
const SCHED_DEADLINE: u32 = libc::SCHED_DEADLINE as u32;

impl Attr {
    fn new(scheduler: &Scheduler, flags: u64) -> Attr {
        let attr = Attr {
            size: ATTR_SIZE,
            flags,
            ..Attr::default()
        };
        match *scheduler {
            Scheduler::Other { nice } => Attr {
                policy: SCHED_OTHER,
                nice,
                ..attr
            },
            Scheduler::Batch { nice } => Attr {
                policy: SCHED_BATCH,
                nice,
                ..attr
            },
            Scheduler::Idle => Attr {
                policy: SCHED_IDLE,
                ..attr
            },
            Scheduler::Fifo { priority } => Attr {
                policy: SCHED_FIFO,
                priority,
                ..attr
            },
            Scheduler::Rr { priority } => Attr {
                policy: SCHED_RR,
                priority,
                ..attr
            },
            Scheduler::Deadline {
                runtime,
                deadline,
                period,
            } => Attr {
                policy: SCHED_DEADLINE,
                runtime,
                deadline,
                period,
                ..attr
            },
        }
    }

    fn scheduler(&self) -> Option<Scheduler> {
        Some(match self.policy {
            SCHED_OTHER => Scheduler::Other { nice: self.nice },
            SCHED_BATCH => Scheduler::Batch { nice: self.nice },
            SCHED_IDLE => Scheduler::Idle,
            SCHED_FIFO => Scheduler::Fifo {
                priority: self.priority,
            },
            SCHED_RR => Scheduler::Rr {
                priority: self.priority,
            },
            SCHED_DEADLINE => Scheduler::Deadline {
                runtime: self.runtime,
                deadline: self.deadline,
                period: self.period,
            },
            _ => return None,
        })
    }
}

/// Sets policy, parameters and flags ([`RESET_ON_FORK`] and its like, 0 for none) of thread `pid`, 0 for the caller.
///
/// # Errors
/// [`SchedError::Invalid`] before the call, [`SchedError::Full`] where a root domain has no room, [`SchedError::Set`] with the
/// kernel's errno and a hint.
pub fn set(pid: i32, scheduler: &Scheduler, flags: u64) -> Result<(), SchedError> {
    scheduler.validate()?;
    let attr = Attr::new(scheduler, flags);
    // SAFETY: the kernel reads `attr.size` bytes from `attr`, which lives through the call.
    let answer = unsafe { libc::syscall(libc::SYS_sched_setattr, pid, &raw const attr, 0u32) };
    if answer != 0 {
        let source = io::Error::last_os_error();
        let scheduler = *scheduler;
        return Err(match scheduler {
            Scheduler::Deadline { runtime, period, .. } if source.raw_os_error() == Some(libc::EBUSY) => {
                SchedError::Full {
                    pid,
                    scheduler,
                    source,
                    room: Box::new(room::room(pid, runtime, period)),
                }
            }
            _ => SchedError::Set {
                pid,
                scheduler,
                source,
            },
        });
    }
    Ok(())
}

/// Reads policy, parameters and flags of thread `pid`, 0 for the caller, from the kernel.
///
/// # Errors
/// [`SchedError::Get`], or [`SchedError::Unknown`] for a policy of a later kernel.
pub fn get(pid: i32) -> Result<Attributes, SchedError> {
    let mut attr = Attr::default();
    // SAFETY: the kernel writes at most ATTR_SIZE bytes, the size of `attr`, which lives through the call.
    let answer = unsafe { libc::syscall(libc::SYS_sched_getattr, pid, &raw mut attr, ATTR_SIZE, 0u32) };
    if answer != 0 {
        return Err(SchedError::Get {
            pid,
            source: io::Error::last_os_error(),
        });
    }
    let scheduler = attr.scheduler().ok_or(SchedError::Unknown {
        pid,
        policy: attr.policy,
    })?;
    Ok(Attributes {
        scheduler,
        flags: attr.flags,
    })
}

/// Bytes of a CPU mask with room for every number up to [`MAX_CPU`].
const MASK_BYTES: usize = (MAX_CPU as usize + 1) / 8;
/// Bits of one word of a CPU mask: the kernel reads it as an array of `unsigned long`.
const WORD_BITS: usize = libc::c_ulong::BITS as usize;

/// Binds thread `pid`, 0 for the caller, to `cpus`.
///
/// # Errors
/// [`SchedError::Invalid`] for the empty set or a number above [`MAX_CPU`], else [`SchedError::SetAffinity`].
pub fn set_affinity(pid: i32, cpus: &CpuSet) -> Result<(), SchedError> {
    let last = match cpus.last() {
        None => {
            return Err(SchedError::Invalid {
                what: "the set of CPUs to bind to is empty".into(),
            });
        }
        Some(last) if last > MAX_CPU => {
            return Err(SchedError::Invalid {
                what: format!("CPU {last} is above {MAX_CPU}"),
            });
        }
        Some(last) => last as usize,
    };
    let mut mask = vec![0 as libc::c_ulong; last / WORD_BITS + 1];
    for cpu in cpus.iter() {
        mask[cpu as usize / WORD_BITS] |= 1 << (cpu as usize % WORD_BITS);
    }
    // SAFETY: the kernel reads the given number of bytes from `mask`, which lives through the call.
    let answer = unsafe { libc::sched_setaffinity(pid, size_of_val(mask.as_slice()), mask.as_ptr().cast()) };
    if answer != 0 {
        return Err(SchedError::SetAffinity {
            pid,
            cpus: cpus.clone(),
            source: io::Error::last_os_error(),
        });
    }
    Ok(())
}

/// The CPUs that thread `pid`, 0 for the caller, may run on.
///
/// # Errors
/// [`SchedError::GetAffinity`].
pub fn affinity(pid: i32) -> Result<CpuSet, SchedError> {
    let mut mask = [0 as libc::c_ulong; MASK_BYTES / size_of::<libc::c_ulong>()];
    // SAFETY: the kernel writes at most the given number of bytes, the size of `mask`, which lives through the call.
    let answer = unsafe { libc::sched_getaffinity(pid, size_of_val(&mask), mask.as_mut_ptr().cast()) };
    if answer != 0 {
        return Err(SchedError::GetAffinity {
            pid,
            source: io::Error::last_os_error(),
        });
    }
    Ok((0..=MAX_CPU)
        .filter(|&cpu| mask[cpu as usize / WORD_BITS] >> (cpu as usize % WORD_BITS) & 1 == 1)
        .collect())
}

/// Sets the timer slack of the calling thread in nanoseconds, at least 1. Children get it as their default,
/// so it is set in the parent before the fork. The kernel uses 0 for real-time policies, whatever is set.
///
/// # Errors
/// [`SchedError::Invalid`] for 0 (the kernel would take it as "the default"), else [`SchedError::SetSlack`].
pub fn set_timer_slack(ns: u64) -> Result<(), SchedError> {
    if ns == 0 {
        return Err(SchedError::Invalid {
            what: "a timer slack of 0 ns: the least is 1 ns".into(),
        });
    }
    let value = libc::c_ulong::try_from(ns).map_err(|_| SchedError::Invalid {
        what: format!("a timer slack of {ns} ns is beyond this machine's word"),
    })?;
    // SAFETY: PR_SET_TIMERSLACK takes a plain number and touches no memory of this process.
    if unsafe { libc::prctl(libc::PR_SET_TIMERSLACK, value, 0, 0, 0) } != 0 {
        return Err(SchedError::SetSlack {
            ns,
            source: io::Error::last_os_error(),
        });
    }
    Ok(())
}

/// The timer slack of process `pid` in nanoseconds, from `PROC_ROOT/PID/timerslack_ns`.
///
/// # Errors
/// [`SchedError::GetSlack`]; reading another process needs CAP_SYS_NICE or ptrace rights.
pub fn timer_slack(proc_root: &Path, pid: i32) -> Result<u64, SchedError> {
    let path = proc_root.join(pid.to_string()).join("timerslack_ns");
    let text = std::fs::read_to_string(&path).map_err(|source| SchedError::GetSlack {
        path: path.clone(),
        source,
    })?;
    text.trim().parse().map_err(|_| SchedError::GetSlack {
        path,
        source: io::Error::new(
            io::ErrorKind::InvalidData,
            format!("`{}` is not a number", text.trim()),
        ),
    })
}

#[cfg(test)]
mod tests;
