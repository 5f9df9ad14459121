//! Start: trace the waiting process up to its exec, prove it there, let it go.
//!
//! ```text
//! set policy, affinity, I/O priority from outside → PTRACE_SEIZE (EXITKILL, TRACEEXEC) → start message
//!   → proof of what exec leaves as it is → PTRACE_EVENT_EXEC → the rest of the proof → detach → poststart hooks
//! ```
//! Invariants: between the exec stop and the detach not one instruction of the program has run; the tracer is the
//! caller, and when it dies the container dies with it (EXITKILL) until the detach; a start that fails for any
//! reason after the message was sent ends in a killed and freed container.

use std::ffi::CString;
use std::fs;
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;

use berth_rt::sched::{self, SchedError};
use nix::errno::Errno;
use nix::sys::ptrace;
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use thiserror::Error;

use crate::container::{Channel, Container, remains};
use crate::dump::{self, DumpError};
use crate::hooks::{self, HookError};
use crate::proof::{self, Proof, Stage};
use crate::report::{self, Down, Failure, Up};
use crate::state::{self, Status};
use crate::sys::process as sys;
use crate::timing;

/// What an armed container is started with.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StartArgs {
    /// Replaces `process.args` where not empty.
    pub args: Vec<String>,
    /// Added to `process.env`; a name that is there already is replaced.
    pub env: Vec<(String, String)>,
}

/// A container that was not started. It is killed and freed, except after [`StartCause::NotCreated`] and
/// [`StartCause::Args`].
#[derive(Debug, Error)]
#[error("{cause}{}", remains(left))]
pub struct StartError {
    /// Why.
    #[source]
    pub cause: StartCause,
    /// What could not be freed.
    pub left: Vec<String>,
}

/// Why a container was not started.
#[derive(Debug, Error)]
pub enum StartCause {
    /// It does not wait for a start.
    #[error("container `{id}` cannot be started: it is {}", status.as_str())]
    NotCreated {
        /// The id.
        id: String,
        /// Where it stands.
        status: Status,
    },
    /// Arguments that cannot be given.
    #[error("start arguments: {0}")]
    Args(&'static str),
    /// The scheduling policy or affinity.
    #[error(transparent)]
    Sched(#[from] SchedError),
    /// The I/O priority.
    #[error("process.ioPriority: {}", .0.desc())]
    IoPriority(Errno),
    /// The core scheduling cookie.
    #[error("core scheduling: prctl(PR_SCHED_CORE_CREATE): {}", .0.desc())]
    CoreCookie(Errno),
    /// The program could not be made undumpable.
    #[error("dumpable: {0}")]
    Dumpable(#[from] DumpError),
    /// The process cannot be traced, so nothing could be proven.
    #[error("cannot trace process {pid}: {}", errno.desc())]
    Trace {
        /// The process.
        pid: i32,
        /// The kernel's answer.
        errno: Errno,
    },
    /// The start message.
    #[error("cannot send the start message: {0}")]
    Message(#[source] io::Error),
    /// The program was not executed.
    #[error(transparent)]
    Inside(Failure),
    /// The process ended without a word.
    #[error("the process ended before its program was executed: {0}")]
    Died(String),
    /// The proof could not be taken.
    #[error("proof: {0}")]
    Prove(#[from] ProveError),
    /// What the kernel says is not what was promised.
    #[error("proof failed: {}", failures(.0))]
    Unproven(Box<Proof>),
    /// A hook.
    #[error(transparent)]
    Hook(#[from] HookError),
}

/// The facts that do not hold, in one line.
pub(crate) fn failures(proof: &Proof) -> String {
    let mut all = Vec::new();
    for f in proof.failures() {
        all.push(format!(
            "{}: promised {}, actual {} ({})",
            f.name, f.promised, f.actual, f.source
        ));
    }
    all.join("; ")
}

impl StartError {
    /// The setting to change.
    pub fn hint(&self) -> Option<String> {
        match &self.cause {
            StartCause::Sched(e) => e.hint(),
            StartCause::Inside(e) => e.hint(),
            StartCause::Dumpable(e) => e.hint(),
            StartCause::Trace { errno: Errno::EPERM, .. } => {
                Some("give the runtime CAP_SYS_PTRACE, set kernel.yama.ptrace_scope below 3, and trace it with nothing else".into())
            }
            StartCause::IoPriority(Errno::EPERM) => Some("the real-time class needs CAP_SYS_NICE".into()),
            StartCause::Died(how) if how.contains("SIGSYS") => {
                Some("linux.seccomp must allow read, write, execve and exit_group".into())
            }
            _ => None,
        }
    }

    /// The proof, where one was taken.
    pub fn proof(&self) -> Option<&Proof> {
        match &self.cause {
            StartCause::Unproven(proof) => Some(proof),
            _ => None,
        }
    }
}

/// Why a proof could not be taken.
#[derive(Debug, Error)]
pub enum ProveError {
    /// The first process has ended.
    #[error("container `{0}` is not running")]
    NotRunning(String),
    /// The kernel could not be asked.
    #[error(transparent)]
    Read(#[from] proof::ProofError),
}

impl ProveError {
    /// The setting to change.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::NotRunning(_) => None,
            Self::Read(e) => e.hint(),
        }
    }
}

impl Container {
    /// Promised beside actual, now.
    ///
    /// # Errors
    /// [`ProveError`].
    pub fn prove(&self, stage: Stage) -> Result<Proof, ProveError> {
        if !self.alive() {
            return Err(ProveError::NotRunning(self.record.id.clone()));
        }
        let around = proof::around(&self.record.promise, self.record.pid, stage, &self.place())?;
        self.proven(around, stage)
    }

    /// The proof whose first half was taken already.
    fn proven(&self, around: proof::Around, stage: Stage) -> Result<Proof, ProveError> {
        let mut proof = proof::within(&self.record.promise, around, stage, &self.place())?;
        for [name, promised, actual, source] in self.words.iter().flat_map(|w| &w.inside) {
            proof.facts.push(proof::Fact {
                name: name.clone(),
                promised: promised.clone(),
                actual: actual.clone(),
                source: source.clone(),
                holds: promised == actual,
            });
        }
        Ok(proof)
    }

    /// The cheap half of the proof, for a running container.
    ///
    /// # Errors
    /// [`ProveError`].
    pub fn prove_cheap(&self) -> Result<Proof, ProveError> {
        Ok(proof::read_cheap(
            &self.record.promise,
            self.record.pid,
            &self.place(),
        )?)
    }

    fn place(&self) -> proof::Where<'_> {
        proof::Where {
            proc_root: std::path::Path::new("/proc"),
            cgroup: self.cgroup.as_ref(),
        }
    }

    /// Let the program run: see the module. Returns the proof taken at the exec stop.
    ///
    /// # Errors
    /// [`StartError`]; the container is killed and freed, unless it was not waiting for a start.
    pub fn start(&mut self, args: Option<&StartArgs>) -> Result<Proof, StartError> {
        self.begin(args, false)
    }

    /// As [`Container::start`], but the process stays at its exec stop, traced by the caller.
    pub(crate) fn start_held(&mut self, args: Option<&StartArgs>) -> Result<Proof, StartError> {
        self.begin(args, true)
    }

    fn begin(&mut self, args: Option<&StartArgs>, hold: bool) -> Result<Proof, StartError> {
        self.timing.resume();
        let kept = |cause| StartError {
            cause,
            left: Vec::new(),
        };
        let status = self.status();
        if status != Status::Created {
            return Err(kept(StartCause::NotCreated {
                id: self.record.id.clone(),
                status,
            }));
        }
        let message = self
            .message(args.unwrap_or(&StartArgs::default()))
            .map_err(|e| kept(StartCause::Args(e)))?;
        match self.launch(&message, hold) {
            Ok(proof) => Ok(proof),
            Err(cause) => {
                let left = self
                    .delete()
                    .err()
                    .unwrap_or_default()
                    .iter()
                    .map(ToString::to_string)
                    .collect();
                Err(StartError { cause, left })
            }
        }
    }

    fn message(&self, args: &StartArgs) -> Result<Vec<u8>, &'static str> {
        if matches!(self.channel, Channel::Fifos) && *args != StartArgs::default() {
            return Err("a detached container takes none");
        }
        let c = |text: String| CString::new(text).map_err(|_| "they have a NUL byte");
        let down = Down::Start {
            args: args.args.iter().map(|a| c(a.clone())).collect::<Result<_, _>>()?,
            env: args
                .env
                .iter()
                .map(|(k, v)| c(format!("{k}={v}")))
                .collect::<Result<_, _>>()?,
        };
        let bytes = down.encode();
        if bytes.len() > report::LONGEST {
            Err("they are longer than 160 KiB")
        } else {
            Ok(bytes)
        }
    }

    fn launch(&mut self, message: &[u8], hold: bool) -> Result<Proof, StartCause> {
        let pid = Pid::from_raw(self.record.pid);
        if let Some(cpus) = &self.record.affinity {
            sched::set_affinity(pid.as_raw(), cpus)?;
        }
        if let Some((class, level)) = self.record.io_priority {
            sys::set_io_priority(pid, class, level).map_err(StartCause::IoPriority)?;
        }
        if let Some((scheduler, flags)) = &self.record.scheduler {
            sched::set(pid.as_raw(), scheduler, *flags)?;
        }
        if self.record.promise.core_cookie {
            sys::create_core_cookie(pid.as_raw()).map_err(StartCause::CoreCookie)?;
        }
        self.timing.mark("scheduler");
        let options = ptrace::Options::PTRACE_O_TRACEEXEC | ptrace::Options::PTRACE_O_EXITKILL;
        ptrace::seize(pid, options).map_err(|errno| StartCause::Trace {
            pid: pid.as_raw(),
            errno,
        })?;
        self.timing.mark("seize");
        let failure = self.failure()?;
        self.send(message)?;
        // All that is left for it to do is its exec: what that does not touch is read meanwhile.
        let stage = Stage::ExecStop;
        let around = self
            .record
            .ready_to_exec
            .then(|| proof::around(&self.record.promise, self.record.pid, stage, &self.place()));
        if around.is_some() {
            self.timing.mark("proof beside exec");
        }
        self.wait_for_exec(pid, failure)?;
        self.timing.mark("exec");
        let dumpable = dump::at_exec_stop(&self.record.promise, pid)?;
        let mut proof = match around {
            Some(around) => self.proven(around.map_err(ProveError::from)?, stage)?,
            None => self.prove(stage)?,
        };
        if self.record.detached && proof.failures().any(|f| f.name.starts_with("cgroup.")) {
            // Between create and start others may lay hands on it: it starts where it was promised to be.
            let _ = self.cgroup.as_ref().map(|c| c.attach(pid.as_raw())); // the proof says what became of it
            proof = self.prove(stage)?;
        }
        proof.facts.extend(dumpable);
        self.timing.mark("proof");
        if !proof.holds() {
            return Err(StartCause::Unproven(Box::new(proof)));
        }
        if matches!(self.channel, Channel::Fifos) {
            // From here on it counts as running.
            for name in [state::START, state::FAILURE] {
                fs::remove_file(self.dir.join(name)).map_err(StartCause::Message)?;
            }
        }
        if hold {
            self.channel = Channel::None;
            return Ok(proof);
        }
        // The program runs as soon as the call has begun, and on this core it runs before the call returns: the clock
        // is read before, and what the call itself took is this thread's own CPU time.
        self.timing.mark("judge");
        let (at, used) = (crate::container::now(), timing::thread_time());
        ptrace::detach(pid, None).map_err(|errno| StartCause::Trace {
            pid: pid.as_raw(),
            errno,
        })?;
        let detach = timing::thread_time().saturating_sub(used);
        self.released_at = Some(at + detach.as_nanos() as u64);
        self.channel = Channel::None;
        self.timing.took("detach", detach);
        if !self.record.hooks.poststart.is_empty() {
            let text = self.record.state.at(pid.as_raw(), "running");
            hooks::run("poststart", &self.record.hooks.poststart, &text)?;
            self.timing.mark("hooks");
        }
        Ok(proof)
    }

    fn send(&self, message: &[u8]) -> Result<(), StartCause> {
        match &self.channel {
            Channel::Socket(socket) => {
                report::send_to(socket.as_fd(), message).map_err(|e| StartCause::Message(e.into()))
            }
            Channel::Fifos => {
                let path = self.dir.join(state::START);
                let mut options = fs::OpenOptions::new();
                let flags = libc::O_NONBLOCK | libc::O_NOFOLLOW;
                let mut fifo = options
                    .write(true)
                    .custom_flags(flags)
                    .open(path)
                    .map_err(StartCause::Message)?;
                io::Write::write_all(&mut fifo, message).map_err(StartCause::Message)
            }
            Channel::None => Err(StartCause::Message(io::ErrorKind::NotConnected.into())),
        }
    }

    fn wait_for_exec(&self, pid: Pid, mut failure: Option<fs::File>) -> Result<(), StartCause> {
        let mut fault = None;
        loop {
            let status = match waitpid(pid, Some(WaitPidFlag::__WALL)) {
                Err(Errno::EINTR) => continue,
                other => other.map_err(|errno| StartCause::Trace {
                    pid: pid.as_raw(),
                    errno,
                })?,
            };
            let resume = match status {
                WaitStatus::PtraceEvent(_, _, libc::PTRACE_EVENT_EXEC) => return Ok(()),
                WaitStatus::Exited(..) | WaitStatus::Signaled(..) => {
                    return Err(match fault {
                        Some(signal) => StartCause::Died(format!("{signal}: the kernel could not load it")),
                        None => self.last_words(&status, failure.as_mut()),
                    });
                }
                // An exec that fails when there is no way back ends in a fault. The first process of a pid namespace
                // is spared by its own signals while it is traced: it would fault for ever.
                WaitStatus::Stopped(_, signal @ (Signal::SIGSEGV | Signal::SIGBUS | Signal::SIGILL)) => {
                    fault = Some(signal);
                    nix::sys::signal::kill(pid, Signal::SIGKILL)
                }
                // A signal on its way to the process; a stop that is no delivery is passed over.
                WaitStatus::Stopped(_, signal) if signal != Signal::SIGTRAP => ptrace::cont(pid, signal),
                _ => ptrace::cont(pid, None),
            };
            match resume {
                Ok(()) | Err(Errno::ESRCH) => {} // it has just been killed: the next wait says so
                Err(errno) => {
                    return Err(StartCause::Trace {
                        pid: pid.as_raw(),
                        errno,
                    });
                }
            }
        }
    }

    /// Why the process ended before exec, from the process itself where it said so.
    fn last_words(&self, status: &WaitStatus, failure: Option<&mut fs::File>) -> StartCause {
        let mut buffer = vec![0u8; 16 * 1024];
        let up = match &self.channel {
            Channel::Socket(socket) => report::receive(socket, &mut buffer)
                .ok()
                .flatten()
                .and_then(Up::decode),
            Channel::Fifos => failure
                .and_then(|fifo| fifo.read(&mut buffer).ok())
                .and_then(|n| Up::decode(&buffer[..n])),
            Channel::None => None,
        };
        match (up, status) {
            (Some(Up::Failed(failure)), _) => StartCause::Inside(failure),
            (_, WaitStatus::Exited(_, code)) => StartCause::Died(format!("exit status {code}")),
            (_, WaitStatus::Signaled(_, signal, _)) => StartCause::Died(format!("signal {signal}")),
            _ => StartCause::Died("unknown".into()),
        }
    }

    /// The FIFO for a failure before exec, opened before there can be one: what nobody has open is lost.
    fn failure(&self) -> Result<Option<fs::File>, StartCause> {
        if !matches!(self.channel, Channel::Fifos) {
            return Ok(None);
        }
        let mut options = fs::OpenOptions::new();
        let flags = libc::O_NONBLOCK | libc::O_NOFOLLOW;
        let fifo = options
            .read(true)
            .custom_flags(flags)
            .open(self.dir.join(state::FAILURE));
        fifo.map(Some).map_err(StartCause::Message)
    }
}
