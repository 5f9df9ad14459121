//! One more process in a running container: it joins the namespaces and the cgroup, and gets credentials, filter
//! and limits there; it is proven at its exec stop like the first.
//!
//! ```text
//! caller ── clone ──> A: stays in the host's pid namespace, so nothing inside can see it; joins everything else,
//!    │                   closes every descriptor, takes limits, user and capabilities; then
//!    │                └─ clone(CLONE_PARENT) ──> B: born inside with no more than its program will have
//!    └── traces B to its exec stop, proves it, lets it go
//! ```
//! Invariants: B is a child of the caller; from its first instant it holds neither a capability, a descriptor nor a
//! root that the container's program will not hold, so that even who may trace it (CAP_SYS_PTRACE) gains nothing;
//! both are not dumpable until exec; the container may slow it down, so the caller waits [`PATIENCE`] and no longer;
//! a failure before exec comes back with step, path and errno, and nothing is left behind.

mod group;
mod join;
mod request;

pub use request::{ExecRequest, ExecUser};

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use berth_rt::sched::{self, SchedError};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::ptrace;
use nix::sys::signal::Signal;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use thiserror::Error;

use crate::container::Container;
use crate::create::Stdio;
use crate::dump::{self, DumpError};
use crate::proof::{self, Proof, Stage};
use crate::report::{Down, Failure, Up};
use crate::start::failures;
use crate::sys::fds;
use crate::sys::process::{self as sys, CloneArgs, Cloned};
use join::Join;
use request::Wanted;

/// Longest time from the clone to the exec. A real-time thread of the container can keep the new process from its
/// core.
const PATIENCE: Duration = Duration::from_secs(5);

/// A joined process.
#[derive(Debug)]
pub struct Exec {
    /// In the host's pid namespace.
    pub pid: i32,
    /// Its descriptor.
    pub pidfd: OwnedFd,
    /// The master of its terminal, where it was given one.
    pub console: Option<OwnedFd>,
    /// Promised beside actual at its exec stop.
    pub proof: Proof,
}

/// Why no process was joined.
#[derive(Debug, Error)]
pub enum ExecError {
    /// The container's first process has ended.
    #[error("container `{0}` is not running")]
    NotRunning(String),
    /// A frozen container runs nothing.
    #[error("container `{0}` is paused")]
    Paused(String),
    /// Its credentials are not stored.
    #[error("container `{0}` was made by another process: its {1} is not known here")]
    Foreign(String, &'static str),
    /// The request.
    #[error("exec: {0}")]
    Request(String),
    /// A system call of the caller's side.
    #[error("exec: {what}: {source}")]
    Call {
        /// What was tried.
        what: &'static str,
        /// The cause.
        source: io::Error,
    },
    /// The scheduling policy or affinity.
    #[error("exec: {0}")]
    Sched(#[from] SchedError),
    /// Something in the container keeps the new process from its exec; it was killed.
    #[error("exec: the new process did not get to its program in {} s", PATIENCE.as_secs())]
    Late,
    /// The new process ended without a word.
    #[error("exec: the new process ended before its program was executed: {0}")]
    Died(String),
    /// A step inside the new process.
    #[error(transparent)]
    Inside(#[from] Failure),
    /// The program could not be made undumpable.
    #[error("exec: dumpable: {0}")]
    Dumpable(#[from] DumpError),
    /// The kernel could not be asked.
    #[error("exec: proof: {0}")]
    Prove(#[from] proof::ProofError),
    /// What the kernel says is not what was promised; it was killed.
    #[error("exec: proof failed: {}", failures(.0))]
    Unproven(Box<Proof>),
}

impl ExecError {
    /// The setting to change.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Inside(failure) => failure.hint(),
            Self::Sched(e) => e.hint(),
            Self::Dumpable(e) => e.hint(),
            Self::Prove(e) => e.hint(),
            Self::Late => {
                Some("a process of the container keeps it from its core: stop the container".into())
            }
            Self::Paused(id) => Some(format!("resume container {id} first")),
            Self::Foreign(..) => Some("make the container again with this version".into()),
            Self::Call {
                what: "trace the new process",
                ..
            } => {
                Some("give the runtime CAP_SYS_PTRACE; the container may also have killed the process".into())
            }
            Self::Died(how) if how.contains("SIGSYS") => {
                Some("linux.seccomp must allow read, write, execve and exit_group".into())
            }
            _ => None,
        }
    }
}

fn call(what: &'static str) -> impl FnOnce(Errno) -> ExecError {
    move |e| ExecError::Call {
        what,
        source: e.into(),
    }
}

impl Container {
    /// Run one more process inside. With a terminal in the request `stdio` is not passed on: the process has the
    /// terminal, and its master comes back.
    ///
    /// # Errors
    /// [`ExecError`]; nothing is left behind.
    pub fn exec(&self, request: ExecRequest, stdio: Stdio) -> Result<Exec, ExecError> {
        let id = || self.record.id.clone();
        let pidfd = self
            .pidfd
            .as_ref()
            .filter(|_| self.alive())
            .ok_or_else(|| ExecError::NotRunning(id()))?;
        if !request.while_paused && self.is_frozen() {
            return Err(ExecError::Paused(id()));
        }
        let mut wanted = self.wanted(&request)?;
        let mut groups = self.cgroup.iter().flat_map(|c| c.paths()).collect();
        if !request.cgroups.is_empty() {
            groups = group::of(&request.cgroups, groups, &mut wanted.promise.cgroups)
                .map_err(ExecError::Request)?;
        }
        let entries: Vec<PathBuf> = groups
            .into_iter()
            .map(|(name, path)| match name.as_str() {
                "unified" => path.join("cgroup.procs"),
                _ => path.join("tasks"),
            })
            .collect();
        let (ours, theirs) = socketpair(
            AddressFamily::Unix,
            SockType::SeqPacket,
            None,
            SockFlag::SOCK_CLOEXEC,
        )
        .map_err(call("socketpair"))?;
        let mut high = Vec::new();
        for fd in [stdio.stdin, stdio.stdout, stdio.stderr] {
            high.push(if fd.as_raw_fd() < 3 {
                sys::dup_high(fd.as_fd()).map_err(call("dup"))?
            } else {
                fd
            });
        }
        let stdio: [RawFd; 3] = [high[0].as_raw_fd(), high[1].as_raw_fd(), high[2].as_raw_fd()];
        let cloned = sys::clone3(CloneArgs::default()).map_err(call("clone"))?;
        let (pid, helper) = match cloned {
            Cloned::Child => {
                let promise = &self.record.promise;
                let join = Join {
                    pidfd,
                    mounts: promise.namespaces.get(&proof::NamespaceKind::Mnt),
                    users: promise.namespaces.get(&proof::NamespaceKind::User),
                    time: promise.namespaces.get(&proof::NamespaceKind::Time),
                    id: &self.record.id,
                    first: self.record.pid,
                    oom_score_adj: promise.oom_score_adj,
                    entries: &entries,
                    first_cpus: wanted.first_cpus.as_ref(),
                    preserved: request.preserved,
                };
                join::run(&join, &wanted.process, wanted.filter.as_ref(), stdio, &theirs)
            }
            Cloned::Parent(pid, helper) => (pid, helper),
        };
        drop(theirs);
        let mut joined = Joined {
            helper: Some((pid, helper)),
            process: None,
        };
        match self.follow(&wanted, request.while_paused, &ours, &mut joined) {
            Ok((console, proof)) => {
                let Some((pid, pidfd)) = joined.process.take() else {
                    return Err(ExecError::Died("there is no process".into()));
                };
                Ok(Exec {
                    pid: pid.as_raw(),
                    pidfd,
                    console,
                    proof,
                })
            }
            Err(error) => {
                joined.end();
                Err(error)
            }
        }
    }

    fn is_frozen(&self) -> bool {
        self.cgroup.as_ref().is_some_and(|c| c.frozen().unwrap_or(false))
    }

    /// From the clone to the proven exec.
    fn follow(
        &self,
        wanted: &Wanted,
        while_paused: bool,
        ours: &OwnedFd,
        joined: &mut Joined,
    ) -> Result<(Option<OwnedFd>, Proof), ExecError> {
        let mut end = Instant::now() + PATIENCE;
        let mut buffer = vec![0u8; 16 * 1024];
        let (mut console, mut ready, mut fault) = (None, false, None);
        // Stopped once, it may be stopped again and again: then every moment counts.
        let mut pause = Duration::from_millis(20);
        let stopped = loop {
            if Instant::now() > end {
                if !while_paused || !self.is_frozen() {
                    return Err(ExecError::Late);
                }
                end = Instant::now() + PATIENCE;
            }
            if !told(ours, pause).map_err(call("poll"))? {
                // What the container does to it meanwhile (signals, stops) is passed by.
                if let Some((pid, _)) = &joined.process {
                    match next_stop(*pid, WaitPidFlag::WNOHANG, &mut fault)? {
                        Stop::None => pause = Duration::from_millis(1),
                        Stop::Passed => pause = Duration::ZERO,
                        stop => break stop,
                    }
                }
                continue;
            }
            let (n, mut list) = match fds::receive(ours.as_fd(), &mut buffer) {
                Err(Errno::ECONNRESET) => continue, // told once, then what was sent before can be read
                other => other.map_err(call("receive"))?,
            };
            match (&joined.process, Up::decode(&buffer[..n])) {
                // The socket closes at exec, and at the end of a process that could not say why.
                (Some((pid, _)), _) if n == 0 => match next_stop(*pid, WaitPidFlag::empty(), &mut fault)? {
                    Stop::Passed | Stop::None => {}
                    stop => break stop,
                },
                (None, _) if n == 0 => return Err(ExecError::Died("without a word".into())),
                (_, Some(Up::Failed(failure))) => return Err(failure.into()),
                (_, Some(Up::Joined(pid))) => {
                    let pid = Pid::from_raw(pid);
                    let pidfd = sys::pidfd_open(pid).map_err(call("open the new process"))?;
                    joined.process = Some((pid, pidfd));
                    let options = ptrace::Options::PTRACE_O_TRACEEXEC | ptrace::Options::PTRACE_O_EXITKILL;
                    if let Err(errno) = ptrace::seize(pid, options) {
                        // One that has ended has said why.
                        let said = told(ours, Duration::from_millis(20)).unwrap_or(false);
                        let said = said
                            .then(|| fds::receive(ours.as_fd(), &mut buffer).ok())
                            .flatten();
                        return Err(match said.and_then(|(n, _)| Up::decode(&buffer[..n])) {
                            Some(Up::Failed(failure)) => failure.into(),
                            _ => call("trace the new process")(errno),
                        });
                    }
                    joined.reap_helper();
                }
                (_, Some(Up::Console)) => console = list.pop(),
                (_, Some(Up::Notify(number))) => self.pass_listener(wanted, joined, number, ours)?,
                (_, Some(Up::Ready(..))) => ready = true,
                _ => return Err(ExecError::Died("it sent something unknown".into())),
            }
            // The helper's word may come after the process's own.
            if let (true, Some((pid, _))) = (ready, &joined.process) {
                ready = false;
                go(*pid, wanted, ours)?;
            }
        };
        let pid = match (stopped, &joined.process) {
            (Stop::Exec, Some((pid, _))) => *pid,
            (Stop::Ended(status), _) => {
                let said = fds::receive(ours.as_fd(), &mut buffer).ok();
                return Err(match (fault, said.and_then(|(n, _)| Up::decode(&buffer[..n]))) {
                    (_, Some(Up::Failed(failure))) => failure.into(),
                    (Some(signal), _) => ExecError::Died(format!("{signal}: the kernel could not load it")),
                    _ => ExecError::Died(format!("{status:?}")),
                });
            }
            _ => return Err(ExecError::Died("there is no process".into())),
        };
        let place = proof::Where {
            proc_root: std::path::Path::new("/proc"),
            cgroup: self.cgroup.as_ref(),
        };
        let dumpable = dump::at_exec_stop(&wanted.promise, pid)?;
        let mut proof = proof::read(&wanted.promise, pid.as_raw(), Stage::ExecStop, &place)?;
        proof.facts.extend(dumpable);
        if !proof.holds() {
            return Err(ExecError::Unproven(Box::new(proof)));
        }
        ptrace::detach(pid, None).map_err(call("let the new process go"))?;
        Ok((console, proof))
    }
}

impl Container {
    /// The descriptor of a filter with notifications, out of the process that has it and to who listens.
    fn pass_listener(
        &self,
        wanted: &Wanted,
        joined: &Joined,
        number: RawFd,
        ours: &OwnedFd,
    ) -> Result<(), ExecError> {
        let listener = wanted.filter.as_ref().and_then(|f| f.listener.as_ref());
        // A filter that goes before the credentials is the helper's, and the process has it from there.
        let from = joined.process.as_ref().or(joined.helper.as_ref());
        let (Some(listener), Some((pid, pidfd))) = (listener, from) else {
            return Err(ExecError::Died("it sent something unknown".into()));
        };
        let fd = sys::pidfd_getfd(pidfd.as_fd(), number).map_err(call("take the seccomp listener"))?;
        let state = self.record.state.at(self.record.pid, "running");
        crate::notify::send(listener, pid.as_raw(), &state, fd)?;
        crate::report::send_to(ours.as_fd(), &Down::Taken.encode()).map_err(call("send"))
    }
}

/// The processes on the way.
struct Joined {
    helper: Option<(Pid, OwnedFd)>,
    process: Option<(Pid, OwnedFd)>,
}

impl Joined {
    fn reap_helper(&mut self) {
        if let Some((pid, _)) = self.helper.take() {
            reap(pid);
        }
    }

    /// Kill and reap both. One that is frozen ends, and is reaped by the caller, once it is thawed.
    fn end(mut self) {
        for (pid, pidfd) in self.helper.take().into_iter().chain(self.process.take()) {
            let _ = sys::pidfd_signal(pidfd.as_fd(), libc::SIGKILL); // it may be ending anyway
            if crate::container::ended(pidfd.as_fd(), Duration::from_millis(500)) {
                reap(pid);
            }
        }
    }
}

/// Has the other side said something, or closed its end, in time?
fn told(socket: &OwnedFd, limit: Duration) -> Result<bool, Errno> {
    let end = Instant::now() + limit;
    loop {
        let left = end.saturating_duration_since(Instant::now());
        let mut fds = [PollFd::new(socket.as_fd(), PollFlags::POLLIN)];
        match poll(&mut fds, PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)) {
            Err(Errno::EINTR) => {}
            other => return other.map(|n| n > 0),
        }
    }
}

/// Policy and CPUs from outside, then the word to go on.
fn go(pid: Pid, wanted: &Wanted, ours: &OwnedFd) -> Result<(), ExecError> {
    if let Some(cpus) = &wanted.cpus {
        sched::set_affinity(pid.as_raw(), cpus)?;
    }
    if let Some((class, level)) = wanted.io_priority {
        sys::set_io_priority(pid, class, level).map_err(call("process.ioPriority"))?;
    }
    if let Some((scheduler, flags)) = &wanted.scheduler {
        sched::set(pid.as_raw(), scheduler, *flags)?;
    }
    let go = Down::Start {
        args: Vec::new(),
        env: Vec::new(),
    };
    crate::report::send_to(ours.as_fd(), &go.encode()).map_err(call("send"))
}

/// Where a traced process stands.
enum Stop {
    /// Nowhere.
    None,
    /// It was stopped, and goes on.
    Passed,
    /// At its exec stop.
    Exec,
    /// It has ended.
    Ended(WaitStatus),
}

fn next_stop(pid: Pid, flags: WaitPidFlag, fault: &mut Option<Signal>) -> Result<Stop, ExecError> {
    let status = match waitpid(pid, Some(flags | WaitPidFlag::__WALL)) {
        Err(Errno::EINTR) => return Ok(Stop::None),
        other => other.map_err(call("wait for the new process"))?,
    };
    let resume = match status {
        WaitStatus::StillAlive => return Ok(Stop::None),
        WaitStatus::PtraceEvent(_, _, libc::PTRACE_EVENT_EXEC) => return Ok(Stop::Exec),
        WaitStatus::Exited(..) | WaitStatus::Signaled(..) => return Ok(Stop::Ended(status)),
        // An exec that fails when there is no way back ends in a fault.
        WaitStatus::Stopped(_, signal @ (Signal::SIGSEGV | Signal::SIGBUS | Signal::SIGILL)) => {
            *fault = Some(signal);
            nix::sys::signal::kill(pid, Signal::SIGKILL)
        }
        // A stop before its program runs would only hold up the caller.
        WaitStatus::Stopped(_, Signal::SIGSTOP | Signal::SIGTSTP | Signal::SIGTTIN | Signal::SIGTTOU) => {
            ptrace::cont(pid, None)
        }
        WaitStatus::Stopped(_, signal) if signal != Signal::SIGTRAP => ptrace::cont(pid, signal),
        _ => ptrace::cont(pid, None),
    };
    match resume {
        Ok(()) | Err(Errno::ESRCH) => Ok(Stop::Passed),
        Err(errno) => Err(call("continue the new process")(errno)),
    }
}

fn reap(pid: Pid) {
    while waitpid(pid, Some(WaitPidFlag::__WALL)) == Err(Errno::EINTR) {}
}
