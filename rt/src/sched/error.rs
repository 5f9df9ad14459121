//! Errors of scheduling calls: the kernel's errno, and a hint at the setting that is in the way.

use std::io;
use std::path::PathBuf;

use thiserror::Error;

use super::{Room, Scheduler};
use crate::cpu::CpuSet;

/// Why a thread's scheduling could not be set or read.
#[derive(Debug, Error)]
pub enum SchedError {
    /// A parameter is out of range; the kernel was not asked.
    #[error("{what}")]
    Invalid {
        /// The parameter, its value and its range.
        what: String,
    },
    /// The kernel refused the policy.
    #[error("cannot set {scheduler} for {}: {source}", thread(*pid))]
    Set {
        /// The thread; 0 is the caller.
        pid: i32,
        /// What was asked.
        scheduler: Scheduler,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The root domain has no room for the bandwidth of a deadline policy (EBUSY).
    #[error("cannot set {scheduler} for {}: {source}: {room}", thread(*pid))]
    Full {
        /// The thread; 0 is the caller.
        pid: i32,
        /// What was asked.
        scheduler: Scheduler,
        /// The kernel's answer.
        source: io::Error,
        /// What there is.
        room: Box<Room>,
    },
    /// The policy could not be read.
    #[error("cannot read the scheduling of {}: {source}", thread(*pid))]
    Get {
        /// The thread; 0 is the caller.
        pid: i32,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The kernel reports a policy that this version does not know.
    #[error("{} has the unknown scheduling policy {policy}", thread(*pid))]
    Unknown {
        /// The thread; 0 is the caller.
        pid: i32,
        /// The kernel's number of it.
        policy: u32,
    },
    /// The affinity could not be set.
    #[error("cannot bind {} to CPUs {cpus}: {source}", thread(*pid))]
    SetAffinity {
        /// The thread; 0 is the caller.
        pid: i32,
        /// What was asked.
        cpus: CpuSet,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The affinity could not be read.
    #[error("cannot read the CPU affinity of {}: {source}", thread(*pid))]
    GetAffinity {
        /// The thread; 0 is the caller.
        pid: i32,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The timer slack of the calling thread could not be set.
    #[error("cannot set a timer slack of {ns} ns: {source}")]
    SetSlack {
        /// What was asked, in nanoseconds.
        ns: u64,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The timer slack of a process could not be read.
    #[error("cannot read {}: {source}", path.display())]
    GetSlack {
        /// The file.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
}

fn thread(pid: i32) -> String {
    if pid == 0 {
        "the calling thread".into()
    } else {
        format!("thread {pid}")
    }
}

impl SchedError {
    /// The kernel's error number, where the kernel was asked.
    #[must_use]
    pub fn errno(&self) -> Option<i32> {
        match self {
            SchedError::Invalid { .. } | SchedError::Unknown { .. } => None,
            SchedError::Set { source, .. }
            | SchedError::Full { source, .. }
            | SchedError::Get { source, .. }
            | SchedError::SetAffinity { source, .. }
            | SchedError::GetAffinity { source, .. }
            | SchedError::SetSlack { source, .. }
            | SchedError::GetSlack { source, .. } => source.raw_os_error(),
        }
    }

    /// The setting to change, where the environment is at fault.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        let hint = match (self, self.errno()?) {
            (
                SchedError::Set {
                    scheduler: Scheduler::Deadline { .. },
                    ..
                },
                libc::EPERM,
            ) => {
                "SCHED_DEADLINE needs CAP_SYS_NICE and an affinity that covers the thread's whole root domain: put \
                 it into an isolated cpuset partition of its own instead of narrowing its affinity; \
                 CPUs of isolcpus= have none, in a partition either: boot without it"
            }
            (SchedError::Full { .. }, _) => {
                "the root domain has no room for this bandwidth: lower runtime/period, end a thread that has some of it, or \
                 raise kernel.sched_rt_runtime_us"
            }
            (SchedError::Set { scheduler, .. }, libc::EPERM) if scheduler.is_realtime() => {
                if has_sys_nice() {
                    "CAP_SYS_NICE is there, so the thread's cpu cgroup has no real-time budget \
                     (CONFIG_RT_GROUP_SCHED): with cgroup v1 set cpu.rt_runtime_us, parents first; with cgroup v2 \
                     such a kernel permits real-time policies only where the cpu controller is not enabled"
                } else {
                    "raise RLIMIT_RTPRIO to the priority, or give CAP_SYS_NICE"
                }
            }
            (SchedError::Set { .. }, libc::EPERM) => "raise RLIMIT_NICE, or give CAP_SYS_NICE",
            (SchedError::SetAffinity { .. }, libc::EINVAL) => {
                "none of these CPUs is online and in the thread's cpuset: compare /sys/devices/system/cpu/online and \
                 the Cpus_allowed_list of the thread"
            }
            (SchedError::SetAffinity { .. }, libc::EPERM) => "give CAP_SYS_NICE",
            (_, libc::ESRCH) => "the thread has ended",
            (SchedError::Set { .. }, libc::ENOSYS) => {
                "the kernel has no sched_setattr: Linux 3.14 or later is needed"
            }
            _ => return None,
        };
        Some(hint.into())
    }
}

/// Whether the caller has CAP_SYS_NICE in its effective set; read only to word a hint.
fn has_sys_nice() -> bool {
    const CAP_SYS_NICE: u32 = 23;
    std::fs::read_to_string("/proc/thread-self/status").is_ok_and(|status| {
        status
            .lines()
            .find_map(|line| line.strip_prefix("CapEff:"))
            .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
            .is_some_and(|mask| mask >> CAP_SYS_NICE & 1 == 1)
    })
}
