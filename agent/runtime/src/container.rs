//! A made container: signals, freezer, devices, interfaces, proof, deletion.
//!
//! Invariants: the first process is known by its pidfd, and by pid only together with its start time; deletion goes
//! on after an error and returns all of them; whatever is injected is put into the promise, so that the next proof
//! asks for it.

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use berth_rt::cgroup::{
    Access, Cgroup, Controller, DeviceError, DeviceKind, DeviceRule, Extras, FreezeError, Hierarchy, Mode,
};
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::Pid;
use oci_spec::runtime::LinuxResources;
use thiserror::Error;

use crate::hooks;
use crate::net::{self, NetError};
use crate::plan::Interface;
use crate::proof::{CgroupFile, Promise};
use crate::recipe::{Node, NodeKind, Process};
use crate::report::Failure;
use crate::seccomp::Filter;
use crate::state::{Record, Status};
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
}

/// A container between create and delete.
#[derive(Debug)]
pub struct Container {
    pub(crate) record: Record,
    pub(crate) pidfd: Option<OwnedFd>,
    pub(crate) cgroup: Option<Cgroup>,
    pub(crate) dir: PathBuf,
    pub(crate) channel: Channel,
    pub(crate) timing: Timing,
    /// Credentials and filter for processes that join; only in the process that made it.
    pub(crate) words: Option<Words>,
}

/// A device to be put into a running or armed container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    /// Block, or character.
    pub block: bool,
    /// Major number.
    pub major: u32,
    /// Minor number.
    pub minor: u32,
    /// Path inside, absolute.
    pub path: PathBuf,
    /// Some of `r`, `w`, `m`.
    pub access: String,
    /// File mode, 0 to 7777 octal.
    pub mode: u32,
    /// Owner inside.
    pub uid: u32,
    /// Group inside.
    pub gid: u32,
}

impl Device {
    fn node(&self) -> Node {
        Node {
            path: self.path.clone(),
            kind: if self.block {
                NodeKind::Block
            } else {
                NodeKind::Char
            },
            major: self.major,
            minor: self.minor,
            mode: self.mode,
            uid: self.uid,
            gid: self.gid,
        }
    }

    fn rule(&self, allow: bool, access: Access) -> DeviceRule {
        let kind = if self.block {
            DeviceKind::Block
        } else {
            DeviceKind::Char
        };
        DeviceRule::device(allow, kind, self.major, self.minor, access)
    }

    fn word(&self) -> String {
        let ordered: String = "rwm".chars().filter(|c| self.access.contains(*c)).collect();
        format!(
            "{} {}:{} {ordered}",
            if self.block { 'b' } else { 'c' },
            self.major,
            self.minor
        )
    }
}

/// A stored container that cannot be opened.
#[derive(Debug, Error)]
pub enum OpenError {
    /// There is none.
    #[error("container `{id}` does not exist")]
    NotFound {
        /// The id.
        id: String,
    },
    /// Its state cannot be read.
    #[error("state of container `{id}`: {source}")]
    State {
        /// The id.
        id: String,
        /// The cause.
        source: io::Error,
    },
    /// Its making was cut off.
    #[error("container `{id}` was never wholly made")]
    Unfinished {
        /// The id.
        id: String,
    },
}

impl OpenError {
    /// The setting to change.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Unfinished { id } | Self::State { id, .. } => {
                Some(format!("free it with `delete --force {id}`"))
            }
            Self::NotFound { .. } => {
                Some("`list` shows those that exist; --root names the folder of their states".into())
            }
        }
    }
}

/// Something that cannot be done to a container.
#[derive(Debug, Error)]
pub enum ContainerError {
    /// Its first process has ended.
    #[error("container `{id}` is not running")]
    NotRunning {
        /// The id.
        id: String,
    },
    /// Its cgroup is gone.
    #[error("container `{id}` has no cgroup")]
    NoCgroup {
        /// The id.
        id: String,
    },
    /// A signal was refused.
    #[error("cannot send signal {signal} to container `{id}`: {}", errno.desc())]
    Signal {
        /// The id.
        id: String,
        /// The signal.
        signal: i32,
        /// The kernel's answer.
        errno: Errno,
    },
    /// The freezer.
    #[error(transparent)]
    Freeze(#[from] FreezeError),
    /// Killing all its processes.
    #[error(transparent)]
    Kill(#[from] berth_rt::cgroup::KillError),
    /// Device permission.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// A device node.
    #[error(transparent)]
    Node(#[from] Failure),
    /// The description of a device is not valid.
    #[error("device `{path}`: {reason}")]
    BadDevice {
        /// Path inside.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// An interface.
    #[error(transparent)]
    Net(#[from] NetError),
    /// The record.
    #[error("cannot store the state of container `{id}`: {source}")]
    Store {
        /// The id.
        id: String,
        /// The cause.
        source: io::Error,
    },
}

impl ContainerError {
    /// The setting to change.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Freeze(e) => e.hint(),
            Self::Kill(e) => e.hint(),
            Self::Device(e) => e.hint(),
            Self::Net(e) => e.hint(),
            Self::Node(e) => e.hint(),
            _ => None,
        }
    }
}

/// One thing that could not be freed.
#[derive(Debug, Error)]
#[error("{what}: {message}")]
pub struct DeleteError {
    /// `process`, `cgroup`, `state`, `poststop`.
    pub what: &'static str,
    /// What went wrong and where.
    pub message: String,
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

/// What is promised of the cgroup and can be said only when it exists.
pub(crate) fn promise_cgroup(
    promise: &mut Promise,
    cgroup: &Cgroup,
    resources: &LinuxResources,
    extras: &Extras,
) {
    promise.cgroups = cgroup
        .memberships()
        .into_iter()
        .map(|(name, path)| {
            (
                if name.is_empty() {
                    "unified".to_owned()
                } else {
                    name
                },
                path,
            )
        })
        .collect();
    let v2 = cgroup.hierarchy().mode() == Mode::V2;
    let mut file = |controller: Controller, v1: &str, unified: &str, value: String| {
        let name = if v2 { unified } else { v1 };
        if let (Some(dir), false) = (cgroup.dir(controller), name.is_empty()) {
            promise.cgroup_files.push(CgroupFile {
                path: dir.join(name),
                value,
            });
        }
    };
    if let Some(limit) = resources
        .memory()
        .as_ref()
        .and_then(|m| m.limit())
        .filter(|l| *l > 0)
    {
        let page = 4096; // the kernel rounds down to whole pages
        file(
            Controller::Memory,
            "memory.limit_in_bytes",
            "memory.max",
            (limit / page * page).to_string(),
        );
    }
    if let Some(pids) = resources.pids().as_ref().map(|p| p.limit()).filter(|l| *l > 0) {
        file(Controller::Pids, "pids.max", "pids.max", pids.to_string());
    }
    if let Some(cpu) = resources.cpu() {
        if let Some(quota) = cpu.quota().filter(|q| *q > 0) {
            let period = cpu.period().unwrap_or(100_000);
            file(Controller::Cpu, "cpu.cfs_quota_us", "", quota.to_string());
            file(Controller::Cpu, "", "cpu.max", format!("{quota} {period}"));
        }
        if let Some(runtime) = cpu.realtime_runtime().filter(|_| extras.rt_budget.is_none()) {
            file(Controller::Cpu, "cpu.rt_runtime_us", "", runtime.to_string());
        }
    }
    if let Some(budget) = extras.rt_budget {
        file(
            Controller::Cpu,
            "cpu.rt_runtime_us",
            "",
            budget.runtime_us.to_string(),
        );
    }
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
            channel,
            timing,
            words: Some(words),
        }
    }

    /// Open a stored container.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn open(state_root: &Path, id: &str, hierarchy: &Hierarchy) -> Result<Self, OpenError> {
        let dir = state_root.join(id);
        let id = id.to_owned();
        if id.is_empty() || id.contains('/') || id.starts_with('.') || !dir.is_dir() {
            return Err(OpenError::NotFound { id });
        }
        let record = match Record::load(&dir) {
            Ok(Some(record)) => record,
            Ok(None) => return Err(OpenError::Unfinished { id }),
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
            channel,
            timing: Timing::begin(),
            words: None,
        })
    }

    /// Free what a creation left that was cut off: its processes, its cgroup, its folder.
    ///
    /// # Errors
    /// Everything that could not be freed.
    pub fn sweep(state_root: &Path, id: &str, hierarchy: &Hierarchy) -> Result<(), Vec<DeleteError>> {
        let dir = state_root.join(id);
        let mut errors = Vec::new();
        if let Ok(path) = fs::read_to_string(dir.join(crate::state::CGROUP))
            && let Ok(cgroup) = Cgroup::open(hierarchy, path.trim())
        {
            free_cgroup(&cgroup, &mut errors);
        }
        if errors.is_empty() {
            remove_dir(&dir, &mut errors);
        }
        if errors.is_empty() { Ok(()) } else { Err(errors) }
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
        match (&self.channel, self.record.status(&self.dir)) {
            (Channel::Socket(_), Status::Running) => Status::Created,
            (_, status) => status,
        }
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

    /// Send a signal (1 to 64) to the first process.
    ///
    /// # Errors
    /// It has ended, or the kernel refuses.
    pub fn signal(&self, signal: i32) -> Result<(), ContainerError> {
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

    fn root(&self) -> Result<OwnedFd, ContainerError> {
        if !self.record.alive() {
            return Err(self.not_running());
        }
        let path = format!("/proc/{}/root", self.record.pid);
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        nix::fcntl::open(path.as_str(), flags, nix::sys::stat::Mode::empty())
            .map_err(|errno| Failure::new("open", &path, errno).into())
    }

    /// Give the container a device: permission in its cgroup, then the node in its /dev.
    ///
    /// # Errors
    /// Permission or node cannot be made; the permission is taken back when the node fails.
    pub fn inject_device(&mut self, device: &Device) -> Result<(), ContainerError> {
        let bad = |reason: &str| ContainerError::BadDevice {
            path: device.path.clone(),
            reason: reason.to_owned(),
        };
        if !device.path.starts_with("/dev/") || device.path.components().any(|c| c.as_os_str() == "..") {
            return Err(bad("the path must lie below /dev"));
        }
        if self.record.promise.uid_map.is_some() {
            return Err(bad("a container with a user namespace cannot be given a device"));
        }
        let access: Access = device.access.parse().map_err(|e: String| bad(&e))?;
        let root = self.root()?;
        self.group()?.allow_device(&device.rule(true, access))?;
        if let Err(failure) = crate::dev::inject(root.as_fd(), &device.node()) {
            self.group()?.deny_device(&device.rule(false, access))?;
            return Err(failure.into());
        }
        if let Some(devices) = &mut self.record.promise.devices {
            devices.push(device.word());
        }
        Ok(())
    }

    /// Take a device away: the permission, then the node if it is still that device.
    ///
    /// # Errors
    /// Both are tried; the first error is returned.
    pub fn eject_device(&mut self, device: &Device) -> Result<(), ContainerError> {
        let access: Access = device
            .access
            .parse()
            .map_err(|reason| ContainerError::BadDevice {
                path: device.path.clone(),
                reason,
            })?;
        let denied = self.group()?.deny_device(&device.rule(false, access));
        if denied.is_ok()
            && let Some(devices) = &mut self.record.promise.devices
            && let Some(at) = devices.iter().position(|d| *d == device.word())
        {
            devices.remove(at);
        }
        let removed = match self.root() {
            Ok(root) => crate::dev::eject(root.as_fd(), &device.node())
                .map(drop)
                .map_err(ContainerError::from),
            Err(ContainerError::NotRunning { .. }) => Ok(()), // the node went with its mount namespace
            Err(e) => Err(e),
        };
        denied?;
        removed
    }

    /// Move a network interface of the caller's namespace into the container's, rename it there and bring it up.
    ///
    /// # Errors
    /// [`NetError`] with the interface's name.
    pub fn move_interface_in(&mut self, interface: &Interface) -> Result<(), ContainerError> {
        if !self.record.alive() {
            return Err(self.not_running());
        }
        Ok(net::move_in(interface, Pid::from_raw(self.record.pid))?)
    }

    /// Name and index of every interface in the container's network namespace.
    ///
    /// # Errors
    /// [`NetError`].
    pub fn interfaces_inside(&self) -> Result<Vec<(String, u32)>, ContainerError> {
        if !self.record.alive() {
            return Err(self.not_running());
        }
        Ok(net::list_inside(Pid::from_raw(self.record.pid))?)
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

    /// Kill every process, free the cgroup and the state folder, run the poststop hooks.
    ///
    /// # Errors
    /// Everything that could not be freed; what could be, is. The state folder stays while anything else does, so
    /// that deletion can be tried again.
    pub fn delete(&mut self) -> Result<(), Vec<DeleteError>> {
        self.timing.resume();
        let mut errors = Vec::new();
        self.channel = Channel::None;
        if let Some(pidfd) = &self.pidfd {
            match sys::pidfd_signal(pidfd.as_fd(), libc::SIGKILL) {
                Ok(()) => {
                    // A frozen process of cgroup v1 ends only once it is thawed.
                    if let Some(cgroup) = &self.cgroup
                        && cgroup.frozen().unwrap_or(true)
                        && let Err(e) = cgroup.thaw()
                    {
                        errors.push(DeleteError {
                            what: "cgroup",
                            message: e.to_string(),
                        });
                    }
                    if !ended(pidfd.as_fd(), Duration::from_secs(10)) {
                        let message = format!("process {} does not end after SIGKILL", self.record.pid);
                        errors.push(DeleteError {
                            what: "process",
                            message,
                        });
                    }
                }
                Err(Errno::ESRCH) => {}
                Err(errno) => {
                    let message = format!("process {}: {}", self.record.pid, errno.desc());
                    errors.push(DeleteError {
                        what: "process",
                        message,
                    });
                }
            }
            // Only a child of the caller can be reaped; for others init does it.
            let _ = waitid(
                Id::PIDFd(pidfd.as_fd()),
                WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG,
            );
        }
        self.timing.mark("kill");
        if let Some(cgroup) = self.cgroup.take() {
            free_cgroup(&cgroup, &mut errors);
            if !errors.is_empty() {
                self.cgroup = Some(cgroup);
            }
        }
        self.timing.mark("free cgroup");
        if errors.is_empty() {
            remove_dir(&self.dir, &mut errors);
            let state = self.record.state.at(0, "stopped");
            for hook in &self.record.hooks.poststop {
                if let Err(e) = hooks::run("poststop", std::slice::from_ref(hook), &state) {
                    errors.push(DeleteError {
                        what: "poststop",
                        message: e.to_string(),
                    });
                }
            }
        }
        self.timing.mark("free state");
        if errors.is_empty() { Ok(()) } else { Err(errors) }
    }
}

fn free_cgroup(cgroup: &Cgroup, errors: &mut Vec<DeleteError>) {
    if let Err(e) = cgroup.kill() {
        errors.push(DeleteError {
            what: "cgroup",
            message: e.to_string(),
        });
    }
    if let Err(e) = cgroup.remove() {
        errors.push(DeleteError {
            what: "cgroup",
            message: e.to_string(),
        });
    }
}

fn remove_dir(dir: &Path, errors: &mut Vec<DeleteError>) {
    match fs::remove_dir_all(dir) {
        Ok(()) => {}
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        Err(e) => errors.push(DeleteError {
            what: "state",
            message: format!("{}: {e}", dir.display()),
        }),
    }
}

/// Wait until the process of a pidfd has ended.
fn ended(pidfd: BorrowedFd<'_>, limit: Duration) -> bool {
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
