//! One more process in a running container: it joins the namespaces and the cgroup, and gets the container's
//! credentials and filter.
//!
//! Invariants: it is a child of the caller; it is not dumpable from before it joins until exec, so that nothing in
//! the container can trace it meanwhile; it can be stopped from in there, so the caller waits [`PATIENCE`] and no
//! longer; a failure before exec comes back with step, path and errno.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, setns};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use nix::sys::stat::{Mode, umask};
use nix::unistd::{Pid, setsid};
use thiserror::Error;

use crate::child;
use crate::container::Container;
use crate::create::Stdio;
use crate::recipe::Process;
use crate::report::{self, Failure, Step, Up};
use crate::rootfs::PROC_MAGIC;
use crate::seccomp::Filter;
use crate::sys::process::{self as sys, CloneArgs, Cloned};

/// Longest time from the clone to the exec. A process of the container with the same user id can stop the new one
/// (kill(2) asks for no more), and a real-time thread can keep it from its core.
const PATIENCE: Duration = Duration::from_secs(5);

/// What runs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ExecRequest {
    /// Program and arguments, at least one.
    pub args: Vec<String>,
    /// `NAME=value`, added to the container's environment; a name that is there already is replaced.
    pub env: Vec<String>,
    /// Working directory inside, absolute; that of the container where absent.
    pub cwd: Option<String>,
}

/// A joined process.
#[derive(Debug)]
pub struct Exec {
    /// In the host's pid namespace.
    pub pid: i32,
    /// Its descriptor.
    pub pidfd: OwnedFd,
}

/// Why no process was joined.
#[derive(Debug, Error)]
pub enum ExecError {
    /// The container's first process has ended.
    #[error("container `{0}` is not running")]
    NotRunning(String),
    /// Its credentials are known only to the process that made it.
    #[error("container `{0}` was made by another process: its credentials are not known here")]
    Foreign(String),
    /// The request.
    #[error("exec: {0}")]
    Request(&'static str),
    /// A system call of the caller's side.
    #[error("exec: {what}: {source}")]
    Call {
        /// What was tried.
        what: &'static str,
        /// The cause.
        source: io::Error,
    },
    /// Something in the container keeps the new process from its exec; it was killed.
    #[error("exec: the new process did not get to its program in {} s", PATIENCE.as_secs())]
    Late,
    /// A step inside the new process.
    #[error(transparent)]
    Inside(#[from] Failure),
}

impl ExecError {
    /// The setting to change.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Inside(failure) => failure.hint(),
            Self::Late => Some(
                "a process of the container stops it, or keeps it from its core: stop the container".into(),
            ),
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
    /// Run one more process inside.
    ///
    /// # Errors
    /// [`ExecError`]; nothing is left behind.
    pub fn exec(&self, request: ExecRequest, stdio: Stdio) -> Result<Exec, ExecError> {
        let id = || self.record.id.clone();
        let words = self.words.as_ref().ok_or_else(|| ExecError::Foreign(id()))?;
        let pidfd = self
            .pidfd
            .as_ref()
            .filter(|_| self.alive())
            .ok_or_else(|| ExecError::NotRunning(id()))?;
        let process = join_words(&words.process, &request)?;
        let entries: Vec<PathBuf> = self
            .cgroup
            .iter()
            .flat_map(|c| c.paths())
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
        let stdio = [high[0].as_raw_fd(), high[1].as_raw_fd(), high[2].as_raw_fd()];
        // Only children enter a pid namespace.
        let own_path = "/proc/self/ns/pid_for_children";
        let own = nix::fcntl::open(own_path, OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())
            .map_err(call("open own pid namespace"))?;
        setns(pidfd, CloneFlags::CLONE_NEWPID).map_err(call("join pid namespace"))?;
        let cloned = sys::clone3(CloneArgs::default());
        if let Ok(Cloned::Child) = cloned {
            let join = Join {
                id: &self.record.id,
                pidfd,
                users: self.record.promise.uid_map.is_some(),
                oom_score_adj: self.record.promise.oom_score_adj,
                entries: &entries,
            };
            let Err(failure) = enter(&join, &process, words.filter.as_ref(), stdio, &theirs);
            let _ = report::send_to(theirs.as_fd(), &Up::Failed(failure).encode()); // the caller is gone
            sys::exit_now(127)
        }
        setns(own, CloneFlags::CLONE_NEWPID).map_err(call("leave pid namespace"))?;
        drop(theirs);
        let (pid, child) = match cloned.map_err(call("clone"))? {
            Cloned::Parent(pid, pidfd) => (pid, pidfd),
            Cloned::Child => sys::exit_now(127),
        };
        if !told(&ours).map_err(call("poll"))? {
            let _ = sys::pidfd_signal(child.as_fd(), libc::SIGKILL); // it is ending anyway
            // One that is frozen ends, and is reaped by the caller, once it is thawed.
            if crate::container::ended(child.as_fd(), Duration::from_millis(500)) {
                reap(pid);
            }
            return Err(ExecError::Late);
        }
        let mut buffer = vec![0u8; 16 * 1024];
        // The socket closes at exec.
        match report::receive(&ours, &mut buffer)
            .map_err(call("receive"))?
            .map(Up::decode)
        {
            None => Ok(Exec {
                pid: pid.as_raw(),
                pidfd: child,
            }),
            Some(up) => {
                let _ = sys::pidfd_signal(child.as_fd(), libc::SIGKILL); // it is ending anyway
                reap(pid);
                match up {
                    Some(Up::Failed(failure)) => Err(failure.into()),
                    _ => Err(ExecError::Request("the new process sent something unknown")),
                }
            }
        }
    }
}

/// Has the new process said something, or closed its end, in time?
fn told(socket: &OwnedFd) -> Result<bool, Errno> {
    let end = Instant::now() + PATIENCE;
    loop {
        let left = end.saturating_duration_since(Instant::now());
        let mut fds = [PollFd::new(socket.as_fd(), PollFlags::POLLIN)];
        match poll(&mut fds, PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)) {
            Err(Errno::EINTR) => {}
            other => return other.map(|n| n > 0),
        }
    }
}

fn reap(pid: Pid) {
    while nix::sys::wait::waitpid(pid, None) == Err(Errno::EINTR) {}
}

fn join_words(words: &Process, request: &ExecRequest) -> Result<Process, ExecError> {
    let c = |text: &String| CString::new(text.as_str()).map_err(|_| ExecError::Request("a NUL byte"));
    if request.args.is_empty() {
        return Err(ExecError::Request("no program is named"));
    }
    let mut process = words.clone();
    process.args = request.args.iter().map(c).collect::<Result<_, _>>()?;
    for pair in &request.env {
        let Some((name, _)) = pair.split_once('=') else {
            return Err(ExecError::Request("an environment entry has no `=`"));
        };
        let prefix = format!("{name}=");
        process
            .env
            .retain(|e| !e.to_bytes().starts_with(prefix.as_bytes()));
        process.env.push(c(pair)?);
    }
    if let Some(cwd) = &request.cwd {
        process.cwd = PathBuf::from(cwd);
        if !process.cwd.is_absolute() {
            return Err(ExecError::Request("the working directory is not absolute"));
        }
    }
    Ok(process)
}

struct Join<'a> {
    id: &'a str,
    pidfd: &'a OwnedFd,
    users: bool,
    oom_score_adj: Option<i32>,
    entries: &'a [PathBuf],
}

/// In the new process: join, restrict, exec.
fn enter(
    join: &Join<'_>,
    process: &Process,
    filter: Option<&Filter>,
    stdio: [RawFd; 3],
    socket: &OwnedFd,
) -> Result<std::convert::Infallible, Failure> {
    sys::set_not_dumpable().step("make undumpable", "")?;
    for (target, fd) in stdio.iter().enumerate() {
        sys::dup_onto(*fd, target as RawFd).step("standard streams", "")?;
    }
    setsid().step("setsid", "")?;
    child::own_keyring(join.id)?;
    if let Some(score) = join.oom_score_adj {
        // The caller's own may spare it from the kernel's memory killer.
        let file = "/proc/self/oom_score_adj";
        std::fs::write(file, score.to_string()).step("set oom_score_adj", file)?;
    }
    for file in join.entries {
        std::fs::write(file, "0").step("enter cgroup", file)?;
    }
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let proc = nix::fcntl::open("/proc", flags, Mode::empty()).step("open", "/proc")?;
    if crate::sys::mount::fs_magic(&proc).step("stat", "/proc")? != PROC_MAGIC {
        return Err(Failure::refused("open", "/proc", "it is not a proc file system"));
    }
    let label = process
        .label
        .as_ref()
        .map(|l| child::open_label(&proc, l))
        .transpose()?;
    let mut kinds = CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWUTS
        | CloneFlags::CLONE_NEWIPC
        | CloneFlags::CLONE_NEWNET
        | CloneFlags::CLONE_NEWCGROUP;
    if join.users {
        child::limit(process, None)?;
        kinds |= CloneFlags::CLONE_NEWUSER;
    }
    setns(join.pidfd, kinds).step("join namespaces", "")?;
    let mut keep = vec![socket.as_raw_fd()];
    keep.extend(label.as_ref().map(|(fd, _)| fd.as_raw_fd()));
    sys::close_all_but(&keep).step("close descriptors", "")?;
    std::mem::forget(proc); // closed by number
    if process.core_cookie {
        // This process is in the container's pid namespace since its clone: its first process is 1.
        sys::take_core_cookie(1).step("core scheduling", "")?;
    }
    if join.users {
        child::become_root()?;
    } else {
        child::limit(process, None)?;
    }
    if let Some(landlock) = &process.landlock {
        let found = crate::landlock::enter(landlock)?;
        if found.promised != found.actual {
            return Err(Failure::refused(
                "landlock",
                "",
                &format!("promised {}, actual {}", found.promised, found.actual),
            ));
        }
    }
    let mut filter = filter;
    if !process.no_new_privs
        && let Some(filter) = filter.take()
    {
        child::load(filter)?;
    }
    child::credentials(process)?;
    umask(Mode::from_bits_truncate(process.umask as nix::sys::stat::mode_t));
    child::enter_cwd(&process.cwd)?;
    sys::default_sigpipe().step("signal", "SIGPIPE")?;
    sys::unblock_signals().step("signal mask", "")?;
    child::find_program(process)?;
    label.map_or(Ok(()), child::write_label)?;
    child::restrict(process, filter)?;
    Err(child::exec_first(&process.args, &process.env))
}
