//! A made container: opened, looked at, signalled, frozen. Devices, interfaces and deletion are in the files below.
//!
//! Invariant: the first process is known by its pidfd, and by pid only together with its start time.

mod delete;
mod devices;
mod errors;
mod filesystem;
mod repair;
mod update;

pub use devices::Device;
pub use errors::{ContainerError, DeleteError, OpenError};
pub use filesystem::{FILESYSTEMS, Filesystem};
pub(crate) use update::promise_cgroup;

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use berth_rt::cgroup::{Cgroup, Hierarchy, Stats};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::Pid;

use crate::exec::ExecError;
use crate::proof::Promise;
use crate::recipe::Process;
use crate::seccomp::Filter;
use crate::state::{Record, Status, claim};
use crate::sys::process as sys;
use crate::timing::Timing;

/// How the start message reaches the container.
#[derive(Debug)]
pub(crate) enum Channel {
    /// It was made by this process.
    Socket(OwnedFd),
    /// Through the FIFOs of its state folder.
    Fifos,
    /// It was started.
    None,
}

/// Credentials and filter of a container's processes.
#[derive(Debug)]
pub(crate) struct Words {
    pub(crate) process: Process,
    pub(crate) filter: Option<Filter>,
    /// Facts that the first process read before its exec, and nobody outside can.
    pub(crate) inside: Vec<crate::report::Inside>,
}

/// A container between create and delete.
#[derive(Debug)]
pub struct Container {
    pub(crate) record: Record,
    pub(crate) pidfd: Option<OwnedFd>,
    pub(crate) cgroup: Option<Cgroup>,
    pub(crate) dir: PathBuf,
    /// The folder itself, open.
    pub(crate) folder: Option<OwnedFd>,
    pub(crate) channel: Channel,
    pub(crate) timing: Timing,
    /// When its program was let go, nanoseconds since the epoch; only in the process that started it.
    pub(crate) released_at: Option<u64>,
    /// Credentials and filter for processes that join; only in the process that made it.
    pub(crate) words: Option<Words>,
    /// The master of its terminal; only in the process that made it.
    pub(crate) console: Option<OwnedFd>,
}

/// "; still there: …", or nothing.
pub(crate) fn remains(left: &[String]) -> String {
    if left.is_empty() {
        String::new()
    } else {
        format!("; could not be undone: {}", left.join("; "))
    }
}

/// Nanoseconds since the epoch.
pub(crate) fn now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |d| d.as_nanos() as u64)
}

impl Container {
    pub(crate) fn made(
        record: Record,
        pidfd: OwnedFd,
        cgroup: Cgroup,
        dir: PathBuf,
        channel: Channel,
        timing: Timing,
        words: Words,
    ) -> Self {
        Self {
            record,
            pidfd: Some(pidfd),
            cgroup: Some(cgroup),
            dir,
            folder: None,
            channel,
            timing,
            released_at: None,
            words: Some(words),
            console: None,
        }
    }

    /// Open a stored container.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn open(state_root: &Path, id: &str, hierarchy: &Hierarchy) -> Result<Self, OpenError> {
        let dir = state_root.join(id);
        let id = id.to_owned();
        if crate::plan::check_id(&id).is_err() {
            return Err(OpenError::NotFound { id });
        }
        let folder = match claim::open(&dir) {
            Ok(folder) => folder,
            Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                return Err(OpenError::NotFound { id });
            }
            Err(source) => return Err(OpenError::State { id, source }),
        };
        let record = match Record::load_from(&folder) {
            Ok(Some(record)) => record,
            Ok(None) => {
                return Err(match claim::holder(&folder) {
                    Some(pid) => OpenError::Creating {
                        id,
                        by: claim::describe(Some(pid)),
                    },
                    None => OpenError::Unfinished { id },
                });
            }
            Err(source) => return Err(OpenError::State { id, source }),
        };
        let mut pidfd = sys::pidfd_open(Pid::from_raw(record.pid)).ok();
        if !record.alive() {
            pidfd = None; // another process has the pid, or none
        }
        let cgroup = Cgroup::open(hierarchy, &record.cgroup).ok();
        let channel = if record.detached {
            Channel::Fifos
        } else {
            Channel::None
        };
        Ok(Self {
            record,
            pidfd,
            cgroup,
            dir,
            folder: Some(folder),
            channel,
            timing: Timing::begin(),
            released_at: None,
            words: None,
            console: None,
        })
    }

    /// Container id.
    pub fn id(&self) -> &str {
        &self.record.id
    }

    /// First process, host pid namespace.
    pub fn pid(&self) -> i32 {
        self.record.pid
    }

    /// Field 22 of /proc/PID/stat.
    pub fn start_time(&self) -> u64 {
        self.record.start_time
    }

    /// Descriptor of the first process; `None` when it was gone before this process looked.
    pub fn pidfd(&self) -> Option<BorrowedFd<'_>> {
        self.pidfd.as_ref().map(AsFd::as_fd)
    }

    /// Its cgroup.
    pub fn cgroup(&self) -> Option<&Cgroup> {
        self.cgroup.as_ref()
    }

    /// What it is promised now.
    pub fn promise(&self) -> &Promise {
        &self.record.promise
    }

    /// The promise, to be changed by who changes the container.
    pub fn promise_mut(&mut self) -> &mut Promise {
        &mut self.record.promise
    }

    /// The stored record.
    pub fn record(&self) -> &Record {
        &self.record
    }

    /// State folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Where it stands.
    pub fn status(&self) -> Status {
        match (&self.channel, self.record.status_if(self.alive(), &self.dir)) {
            (Channel::Socket(_), Status::Running) => Status::Created,
            (_, Status::Running) if self.paused() => Status::Paused,
            (_, status) => status,
        }
    }

    /// The master of its terminal, once, in the process that made it.
    pub fn take_console(&mut self) -> Option<OwnedFd> {
        self.console.take()
    }

    /// Credentials and filter for a process that joins.
    pub(crate) fn words(&self) -> Result<(Process, Option<Filter>), ExecError> {
        if let Some(words) = &self.words {
            return Ok((words.process.clone(), words.filter.clone()));
        }
        let foreign = |what| ExecError::Foreign(self.record.id.clone(), what);
        let process = self.record.process.clone().ok_or_else(|| foreign("user"))?;
        let Some(stored) = &self.record.filter else {
            return Ok((process, None));
        };
        let mut filter = match std::fs::read(self.dir.join(crate::state::FILTER)) {
            Ok(bytes) => crate::seccomp::from_bytes(stored.flags, &bytes),
            Err(_) => {
                let spec = crate::plan::load(self.record.state.bundle()).ok();
                let linux = spec.and_then(|b| b.spec.linux().clone());
                let section = linux.and_then(|l| l.seccomp().clone());
                let filter = section
                    .and_then(|s| crate::seccomp::compile(&s, &crate::seccomp::Options::default()).ok());
                filter
                    .filter(|f| crate::seccomp::hash(f) == stored.hash)
                    .ok_or_else(|| foreign("seccomp filter"))?
            }
        };
        filter.listener.clone_from(&stored.listener);
        Ok((process, Some(filter)))
    }

    /// The OCI state as JSON.
    pub fn state_json(&self) -> String {
        let status = self.status();
        let pid = if status == Status::Stopped {
            0
        } else {
            self.record.pid
        };
        self.record.state.at(pid, status.as_str())
    }

    /// Microseconds of each step taken in this process, in order.
    pub fn timing(&self) -> &[(String, u64)] {
        &self.timing.steps
    }

    /// When its program was let go, nanoseconds since the epoch; `None` before, and in a process that did not start it.
    pub fn released_at(&self) -> Option<u64> {
        self.released_at
    }

    /// Has the first process not ended? Its descriptor was checked against the record when it was opened.
    pub(crate) fn alive(&self) -> bool {
        self.pidfd
            .as_ref()
            .is_some_and(|fd| !ended(fd.as_fd(), Duration::ZERO))
    }

    /// The time since the last step went into `step`.
    pub(crate) fn mark(&mut self, step: &str) {
        self.timing.mark(step);
    }

    /// Steps taken before it was made.
    pub(crate) fn prepend(&mut self, before: Timing) {
        self.timing.steps.splice(0..0, before.steps);
    }

    fn group(&self) -> Result<&Cgroup, ContainerError> {
        self.cgroup.as_ref().ok_or_else(|| ContainerError::NoCgroup {
            id: self.record.id.clone(),
        })
    }

    fn not_running(&self) -> ContainerError {
        ContainerError::NotRunning {
            id: self.record.id.clone(),
        }
    }

    /// Send a signal (1 to 64) to the first process. SIGKILL thaws: a frozen process of cgroup v1 would not end.
    ///
    /// # Errors
    /// It has ended, the kernel refuses, or a cgroup above it is frozen: the signal is sent then, and works once that is
    /// thawed.
    pub fn signal(&self, signal: i32) -> Result<(), ContainerError> {
        let sent = self.send_signal(signal);
        match &self.cgroup {
            Some(cgroup) if sent.is_ok() && signal == libc::SIGKILL => Ok(cgroup.thaw_to_kill()?),
            _ => sent,
        }
    }

    fn send_signal(&self, signal: i32) -> Result<(), ContainerError> {
        let pidfd = self.pidfd.as_ref().ok_or_else(|| self.not_running())?;
        match sys::pidfd_signal(pidfd.as_fd(), signal) {
            Err(Errno::ESRCH) => Err(self.not_running()),
            Err(errno) => Err(ContainerError::Signal {
                id: self.record.id.clone(),
                signal,
                errno,
            }),
            Ok(()) => Ok(()),
        }
    }

    /// Send a signal to every process of the cgroup; SIGKILL waits until none is left.
    ///
    /// # Errors
    /// The cgroup is gone or the kernel refuses.
    pub fn signal_all(&self, signal: i32) -> Result<(), ContainerError> {
        let cgroup = self.group()?;
        if signal == libc::SIGKILL {
            return Ok(cgroup.kill()?);
        }
        let id = || self.record.id.clone();
        let pids = cgroup
            .procs()
            .map_err(|_| ContainerError::NoCgroup { id: id() })?;
        for pid in pids {
            let Ok(fd) = sys::pidfd_open(Pid::from_raw(pid)) else {
                continue;
            }; // it has ended meanwhile
            match sys::pidfd_signal(fd.as_fd(), signal) {
                Ok(()) | Err(Errno::ESRCH) => {}
                Err(errno) => {
                    return Err(ContainerError::Signal {
                        id: id(),
                        signal,
                        errno,
                    });
                }
            }
        }
        Ok(())
    }

    /// SIGKILL to every process of the cgroup; waits until none is left.
    ///
    /// # Errors
    /// No cgroup, or something does not end.
    pub fn kill_all(&self) -> Result<(), ContainerError> {
        Ok(self.group()?.kill()?)
    }

    /// How often the kernel's memory killer struck in its cgroup; 0 where there is no memory controller.
    pub fn oom_kills(&self) -> u64 {
        let stats = self.cgroup.as_ref().and_then(|c| c.stats().ok());
        stats.and_then(|s| s.oom_kills).unwrap_or(0)
    }

    /// Its processes, host pid namespace, ascending.
    ///
    /// # Errors
    /// No cgroup.
    pub fn processes(&self) -> Result<Vec<i32>, ContainerError> {
        let mut pids = self.group()?.procs().map_err(|_| ContainerError::NoCgroup {
            id: self.record.id.clone(),
        })?;
        pids.sort_unstable();
        Ok(pids)
    }

    /// What it has used.
    ///
    /// # Errors
    /// No cgroup, or a counter that cannot be read.
    pub fn stats(&self) -> Result<Stats, ContainerError> {
        Ok(self.group()?.stats()?)
    }

    fn paused(&self) -> bool {
        self.cgroup.as_ref().is_some_and(|c| c.frozen().unwrap_or(false))
    }

    /// Freeze a container that is created or running.
    ///
    /// # Errors
    /// It is neither, or the freezer refuses.
    pub fn pause(&self) -> Result<(), ContainerError> {
        match self.status() {
            Status::Running | Status::Created => self.freeze(),
            status => Err(ContainerError::Status {
                id: self.record.id.clone(),
                what: "paused",
                status,
            }),
        }
    }

    /// Thaw a paused container.
    ///
    /// # Errors
    /// It is not paused, or the freezer refuses.
    pub fn resume(&self) -> Result<(), ContainerError> {
        if self.paused() {
            return self.thaw();
        }
        Err(ContainerError::Status {
            id: self.record.id.clone(),
            what: "resumed",
            status: self.status(),
        })
    }

    /// Freeze every process.
    ///
    /// # Errors
    /// No cgroup, or the freezer refuses.
    pub fn freeze(&self) -> Result<(), ContainerError> {
        Ok(self.group()?.freeze()?)
    }

    /// Thaw.
    ///
    /// # Errors
    /// No cgroup, or the freezer refuses.
    pub fn thaw(&self) -> Result<(), ContainerError> {
        Ok(self.group()?.thaw()?)
    }

    /// Store the record again, after its promise or its devices changed.
    ///
    /// # Errors
    /// The folder cannot be written.
    pub fn store(&self) -> Result<(), ContainerError> {
        self.record
            .store(&self.dir)
            .map_err(|source| ContainerError::Store {
                id: self.record.id.clone(),
                source,
            })
    }

    /// Wait for the end of the first process, which must be a child of the caller.
    ///
    /// # Errors
    /// ECHILD: it is not, or was waited for.
    pub fn wait(&self) -> Result<WaitStatus, Errno> {
        let pidfd = self.pidfd.as_ref().ok_or(Errno::ECHILD)?;
        loop {
            match waitid(Id::PIDFd(pidfd.as_fd()), WaitPidFlag::WEXITED) {
                Err(Errno::EINTR) => {}
                other => return other,
            }
        }
    }
}

/// Wait until the process of a pidfd has ended.
pub(crate) fn ended(pidfd: BorrowedFd<'_>, limit: Duration) -> bool {
    let end = Instant::now() + limit;
    loop {
        let left = end.saturating_duration_since(Instant::now());
        let mut fds = [PollFd::new(pidfd, PollFlags::POLLIN)];
        match poll(&mut fds, PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)) {
            Ok(0) | Err(Errno::EINTR) if left.is_zero() => return false,
            Ok(0) | Err(Errno::EINTR) => {}
            Ok(_) => return true,
            Err(_) => return false,
        }
    }
}
