//! Ending every process of a cgroup: `cgroup.kill` (v2, Linux 5.14), else SIGKILL to each listed process while the
//! freezer keeps them from forking.
//!
//! A process that is killed stays listed until it has left the cgroup, so the end is an empty list, not a sent signal.

use std::fs;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use thiserror::Error;

use super::file::{self, FileError};
use super::freezer::FreezeError;
use super::{Cgroup, Controller, Version};

/// How long killed processes may take to go.
const PATIENCE: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_micros(500);

/// Why processes of the cgroup could not be ended.
#[derive(Debug, Error)]
pub enum KillError {
    /// A file refused.
    #[error(transparent)]
    File(#[from] FileError),
    /// The freezer refused.
    #[error(transparent)]
    Freeze(#[from] FreezeError),
    /// A signal could not be sent.
    #[error("cannot kill process {pid} of the cgroup `{path}`: {source}")]
    Signal {
        /// The cgroup.
        path: String,
        /// The process.
        pid: i32,
        /// The kernel's answer.
        source: Errno,
    },
    /// Processes are still there.
    #[error(
        "of the cgroup `{path}` are still there {PATIENCE:?} after SIGKILL: {}",
        held(pids)
    )]
    Timeout {
        /// The cgroup.
        path: String,
        /// Those that are left.
        pids: Vec<i32>,
    },
    /// They cannot end: a cgroup above theirs is frozen (v1 only: v2 kills what is frozen).
    #[error(
        "processes of the cgroup `{path}` cannot end while `{above}` is frozen: {}",
        held(pids)
    )]
    Frozen {
        /// The cgroup.
        path: String,
        /// The directory of the frozen one.
        above: String,
        /// Those that are left.
        pids: Vec<i32>,
    },
}

impl KillError {
    /// The setting to change, where the environment is at fault.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            KillError::Freeze(error) => error.hint(),
            KillError::Timeout { .. } => {
                Some("a process in state D waits in the kernel for what follows it: a device, a server, a file system".into())
            }
            KillError::Frozen { above, .. } => Some(format!("thaw `{above}`")),
            _ => None,
        }
    }
}

/// `4711 (dd, D in io_schedule)`: name, state letter and the kernel function it waits in, as far as procfs says it.
fn held(pids: &[i32]) -> String {
    let one = |pid: &i32| {
        let read = |file: &str| fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap_or_default();
        let stat = read("stat");
        let Some((head, rest)) = stat.rsplit_once(") ") else {
            return format!("{pid} (gone)");
        };
        let name = head.split_once('(').map_or("", |(_, name)| name);
        let wchan = read("wchan");
        let at = match wchan.trim() {
            "" | "0" => String::new(),
            wchan => format!(" in {wchan}"),
        };
        format!("{pid} ({name}, {}{at})", rest.get(..1).unwrap_or_default())
    };
    pids.iter().map(one).collect::<Vec<_>>().join(", ")
}

impl Cgroup {
    /// Kills every process of the cgroup and of the cgroups below it, and waits until none is left. A frozen cgroup is
    /// thawed on the way (v1; v2 kills frozen processes as they are).
    ///
    /// # Errors
    /// [`KillError`].
    pub fn kill(&self) -> Result<(), KillError> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let pids = self.procs()?;
            if pids.is_empty() {
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err(KillError::Timeout {
                    path: self.path().into(),
                    pids,
                });
            }
            if !self.kill_v2()? {
                self.kill_listed()?;
                if let Some(above) = self.frozen_above() {
                    return Err(KillError::Frozen {
                        path: self.path().into(),
                        above,
                        pids,
                    });
                }
            }
            std::thread::sleep(PAUSE);
        }
    }

    /// `cgroup.kill`, where the whole cgroup is a v2 one and the kernel has it.
    fn kill_v2(&self) -> Result<bool, KillError> {
        let [(Version::V2, dir)] = self.dirs().collect::<Vec<_>>()[..] else {
            return Ok(false);
        };
        match file::write(&dir.join("cgroup.kill"), "1") {
            Ok(()) => Ok(true),
            Err(error) if error.errno() == Some(libc::ENOENT) && dir.is_dir() => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// SIGKILL to every listed process; frozen meanwhile where there is a freezer, so that none forks away.
    fn kill_listed(&self) -> Result<(), KillError> {
        let freezer = self.dir(Controller::Freezer).is_some();
        if freezer {
            self.ask(true)?;
        }
        let mut outcome = Ok(());
        for pid in self.procs()? {
            // The kernel lists a process of a PID namespace that is not ours as 0, and 0 would be our own group.
            let sent = if pid > 0 {
                kill(Pid::from_raw(pid), Signal::SIGKILL)
            } else {
                Err(Errno::EPERM)
            };
            match sent {
                Ok(()) | Err(Errno::ESRCH) => {}
                Err(source) => {
                    outcome = Err(KillError::Signal {
                        path: self.path().into(),
                        pid,
                        source,
                    })
                }
            }
        }
        if freezer {
            self.ask(false)?;
        }
        outcome
    }
}
