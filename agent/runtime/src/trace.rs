//! A container's system calls, from the first instruction of its program to the end of its last process (ptrace(2):
//! PTRACE_SYSCALL, PTRACE_GET_SYSCALL_INFO). For recording a run; nothing here belongs to an ordinary launch.
//!
//! Invariants: every process and thread that the first one makes is traced before it runs (PTRACE_O_TRACECLONE and its
//! kin); when the tracer dies they all die (PTRACE_O_EXITKILL). A call is told twice: before it is made, and with its
//! result. The tracer is the caller, which has one thread and no other children that it waits for.
#![allow(unsafe_code)] // ptrace(PTRACE_GET_SYSCALL_INFO) has no wrapper that passes the size

use std::collections::BTreeMap;

use nix::errno::Errno;
use nix::sys::ptrace;
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use crate::container::Container;
use crate::seccomp::Filter;
use crate::start::{StartArgs, StartError};

/// One system call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Call {
    /// Host pid of the thread.
    pub tid: i32,
    /// AUDIT_ARCH_* of the call.
    pub arch: u32,
    /// Its number.
    pub number: u64,
    /// Its arguments.
    pub args: [u64; 6],
}

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seen {
    /// A call is about to be made; no filter has judged it yet.
    Enter(Call),
    /// It returned: a value, or minus an errno.
    Exit(Call, i64),
    /// A thread executed another program.
    Exec(i32),
}

/// How a traced container ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// Exit code of its first process.
    Code(i32),
    /// Signal that killed it.
    Signal(i32),
}

fn info(pid: Pid) -> Result<libc::ptrace_syscall_info, Errno> {
    // SAFETY: all-zero bytes are a valid structure of numbers.
    let mut info: libc::ptrace_syscall_info = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel writes at most the given size.
    let answer = unsafe {
        libc::ptrace(
            libc::PTRACE_GET_SYSCALL_INFO,
            pid.as_raw(),
            std::mem::size_of_val(&info),
            &raw mut info,
        )
    };
    Errno::result(answer)?;
    Ok(info)
}

/// What one stop means for the thread: the signal it is given on its way.
fn stopped(
    status: WaitStatus,
    open: &mut BTreeMap<i32, Call>,
    see: &mut dyn FnMut(Seen),
) -> Result<Option<Signal>, Errno> {
    match status {
        WaitStatus::PtraceSyscall(pid) => {
            let info = info(pid)?;
            let tid = pid.as_raw();
            match info.op {
                libc::PTRACE_SYSCALL_INFO_ENTRY => {
                    // SAFETY: `op` says that this member is the one in use.
                    let entry = unsafe { info.u.entry };
                    let call = Call {
                        tid,
                        arch: info.arch,
                        number: entry.nr,
                        args: entry.args,
                    };
                    open.insert(tid, call);
                    see(Seen::Enter(call));
                }
                libc::PTRACE_SYSCALL_INFO_EXIT => {
                    // SAFETY: as above.
                    let exit = unsafe { info.u.exit };
                    if let Some(call) = open.remove(&tid) {
                        see(Seen::Exit(call, exit.sval));
                    }
                }
                _ => {}
            }
            Ok(None)
        }
        WaitStatus::PtraceEvent(pid, _, libc::PTRACE_EVENT_EXEC) => {
            see(Seen::Exec(pid.as_raw()));
            Ok(None)
        }
        // A signal on its way; SIGTRAP of a stop that is none is not passed on.
        WaitStatus::Stopped(_, signal) if signal != Signal::SIGTRAP => Ok(Some(signal)),
        _ => Ok(None),
    }
}

impl Container {
    /// Start, and trace until every process has ended. `see` is told of each call; `end` is a child of the caller's: when
    /// it ends, the container is sent SIGTERM, and the second time SIGKILL (by then it runs no more: see `again`).
    /// `again` makes the next such child.
    ///
    /// # Errors
    /// [`StartError`] where it was not started; the container is freed then. Later errors end the trace.
    pub fn start_traced(
        &mut self,
        args: Option<&StartArgs>,
        mut end: Option<Pid>,
        again: &mut dyn FnMut() -> Option<Pid>,
        see: &mut dyn FnMut(Seen),
    ) -> Result<Result<Ended, Errno>, StartError> {
        self.start_held(args)?;
        let first = self.record.pid;
        see(Seen::Exec(first));
        Ok(trace(first, &mut end, again, see))
    }

    /// The filter that is in force in it.
    pub fn filter(&self) -> Option<&Filter> {
        self.words.as_ref().and_then(|w| w.filter.as_ref())
    }
}

fn trace(
    first: i32,
    end: &mut Option<Pid>,
    again: &mut dyn FnMut() -> Option<Pid>,
    see: &mut dyn FnMut(Seen),
) -> Result<Ended, Errno> {
    let first = Pid::from_raw(first);
    let options = ptrace::Options::PTRACE_O_TRACESYSGOOD
        | ptrace::Options::PTRACE_O_TRACECLONE
        | ptrace::Options::PTRACE_O_TRACEFORK
        | ptrace::Options::PTRACE_O_TRACEVFORK
        | ptrace::Options::PTRACE_O_TRACEEXEC
        | ptrace::Options::PTRACE_O_EXITKILL;
    ptrace::setoptions(first, options)?;
    ptrace::syscall(first, None)?;
    let mut open = BTreeMap::new();
    let mut ended = None;
    let mut asked = false;
    loop {
        let status = match waitpid(None, Some(WaitPidFlag::__WALL)) {
            Err(Errno::EINTR) => continue,
            Err(Errno::ECHILD) => break,
            other => other?,
        };
        let Some(pid) = status.pid() else { continue };
        match status {
            WaitStatus::Exited(..) | WaitStatus::Signaled(..) if Some(pid) == *end => {
                let signal = if asked { Signal::SIGKILL } else { Signal::SIGTERM };
                asked = true;
                match nix::sys::signal::kill(first, signal) {
                    Ok(()) | Err(Errno::ESRCH) => {}
                    Err(errno) => return Err(errno),
                }
                *end = again();
            }
            WaitStatus::Exited(_, code) if pid == first => ended = Some(Ended::Code(code)),
            WaitStatus::Signaled(_, signal, _) if pid == first => ended = Some(Ended::Signal(signal as i32)),
            WaitStatus::Exited(..) | WaitStatus::Signaled(..) => drop(open.remove(&pid.as_raw())),
            status => {
                let signal = match stopped(status, &mut open, see) {
                    Err(Errno::ESRCH) => continue, // it was killed meanwhile
                    other => other?,
                };
                match ptrace::syscall(pid, signal) {
                    Ok(()) | Err(Errno::ESRCH) => {}
                    Err(errno) => return Err(errno),
                }
            }
        }
        // Its pid namespace ends with its first process, and every other process in it.
        if ended.is_some() && end.is_none() {
            continue;
        }
        if ended.is_some() {
            break;
        }
    }
    ended.ok_or(Errno::ECHILD)
}
