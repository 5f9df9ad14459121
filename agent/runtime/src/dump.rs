//! A program that is not dumpable (PR_SET_DUMPABLE, proc(5)): no core of it is written or piped anywhere, and nobody without
//! CAP_SYS_PTRACE looks into it or traces it.
//!
//! exec(2) gives a program a memory of its own that can be dumped, whatever its caller had set. So the stopped program makes the
//! two calls itself, at its exec stop and before its first instruction: one to set it, one to ask. It makes them from the
//! vDSO, which every program has; its memory is only read, and its registers are put back.
//!
//! What its children execute can be dumped again, and a program may set it back unless its filter denies prctl(2).
#![allow(unsafe_code)] // ptrace(PTRACE_GETREGSET, PTRACE_SETREGSET): no wrapper for every C library

use std::fs::File;
use std::os::unix::fs::FileExt;

use nix::errno::Errno;
use nix::sys::ptrace;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use crate::proof::{Fact, Promise};

/// Why it could not be done. The program has run no instruction of its own, and must not.
#[derive(Debug, thiserror::Error)]
pub enum DumpError {
    /// A system call on the stopped program.
    #[error("{what}")]
    Trace {
        /// What was tried.
        what: &'static str,
        /// Its answer.
        source: Errno,
    },
    /// The program is not of the node's own word size.
    #[error("`dumpable: false` holds for 64-bit programs; this one is none")]
    Compat,
    /// No vDSO (`vdso=0` on the kernel's command line), or none with a system call in it.
    #[error("the program has no vDSO to make a call from")]
    NoVdso,
    /// The filter, or the kernel, refuses.
    #[error("prctl({call}) answers {}", errno.desc())]
    Refused {
        /// PR_SET_DUMPABLE or PR_GET_DUMPABLE.
        call: &'static str,
        /// Its errno.
        errno: Errno,
    },
    /// It ended meanwhile.
    #[error("the program ended: {0}")]
    Ended(String),
}

impl DumpError {
    /// The setting to change.
    pub fn hint(&self) -> Option<String> {
        let hint = match self {
            Self::Refused { .. } | Self::Ended(_) => {
                "let the profile's filter allow `prctl`, or take `dumpable` out"
            }
            Self::Compat | Self::NoVdso => "take `dumpable` out of the profile",
            Self::Trace { .. } => return None,
        };
        Some(hint.into())
    }
}

/// Words of `NT_PRSTATUS`, and where the parts of a call are among them.
#[cfg(target_arch = "x86_64")]
mod abi {
    pub(super) const WORDS: usize = 27;
    pub(super) const NUMBER: usize = 10; // rax
    pub(super) const RESULT: usize = 10;
    pub(super) const ARGUMENTS: [usize; 5] = [14, 13, 12, 7, 9]; // rdi rsi rdx r10 r8
    pub(super) const AT: usize = 16; // rip
    /// orig_rax: -1 says that no call is under way which a signal would restart.
    pub(super) const UNDER_WAY: Option<usize> = Some(15);
    pub(super) const INSTRUCTION: &[u8] = &[0x0f, 0x05];
}
#[cfg(target_arch = "aarch64")]
mod abi {
    pub(super) const WORDS: usize = 34;
    pub(super) const NUMBER: usize = 8;
    pub(super) const RESULT: usize = 0;
    pub(super) const ARGUMENTS: [usize; 5] = [0, 1, 2, 3, 4];
    pub(super) const AT: usize = 32;
    pub(super) const UNDER_WAY: Option<usize> = None;
    pub(super) const INSTRUCTION: &[u8] = &[0x01, 0x00, 0x00, 0xd4];
}

type Registers = [u64; abi::WORDS];

fn trace(what: &'static str) -> impl Fn(Errno) -> DumpError {
    move |source| DumpError::Trace { what, source }
}

/// Registers of the stopped program, read or written.
fn registers(pid: Pid, request: libc::c_uint, words: &mut Registers) -> Result<(), DumpError> {
    const NT_PRSTATUS: usize = 1;
    let whole = std::mem::size_of_val(words);
    let mut part = libc::iovec {
        iov_base: words.as_mut_ptr().cast(),
        iov_len: whole,
    };
    // SAFETY: the kernel reads and writes at most the given number of bytes of `words`.
    let done = unsafe { libc::ptrace(request as _, pid.as_raw(), NT_PRSTATUS, &raw mut part) };
    Errno::result(done).map_err(trace("registers of the program"))?;
    // Those of a 32-bit program are fewer.
    if part.iov_len == whole {
        Ok(())
    } else {
        Err(DumpError::Compat)
    }
}

/// Let it go on to the next end of a system call, or the beginning of one.
fn to_call(pid: Pid) -> Result<(), DumpError> {
    let mut signal = None;
    loop {
        ptrace::syscall(pid, signal).map_err(trace("continue the program"))?;
        let status = loop {
            match waitpid(pid, Some(WaitPidFlag::__WALL)) {
                Err(Errno::EINTR) => {}
                other => break other.map_err(trace("wait for the program"))?,
            }
        };
        signal = match status {
            WaitStatus::PtraceSyscall(_) => return Ok(()),
            WaitStatus::Exited(..) | WaitStatus::Signaled(..) => {
                return Err(DumpError::Ended(format!("{status:?}")));
            }
            // It has no handler yet.
            WaitStatus::Stopped(_, sent) => Some(sent),
            _ => None,
        };
    }
}

/// Where a system call instruction lies in its vDSO.
fn instruction(pid: Pid) -> Result<u64, DumpError> {
    const AT_SYSINFO_EHDR: u64 = 33;
    let missing = |_| DumpError::NoVdso;
    let words = std::fs::read(format!("/proc/{pid}/auxv")).map_err(missing)?;
    let word = |bytes: &[u8]| bytes.try_into().map(u64::from_ne_bytes).unwrap_or(0);
    let vdso = words
        .chunks_exact(16)
        .find(|pair| word(&pair[..8]) == AT_SYSINFO_EHDR)
        .map(|pair| word(&pair[8..]))
        .ok_or(DumpError::NoVdso)?;
    let memory = File::open(format!("/proc/{pid}/mem")).map_err(missing)?;
    let mut code = vec![0u8; 16 * 1024];
    let read = memory.read_at(&mut code, vdso).map_err(missing)?;
    let step = if cfg!(target_arch = "aarch64") { 4 } else { 1 };
    (0..read.saturating_sub(abi::INSTRUCTION.len()))
        .step_by(step)
        .find(|at| code[*at..].starts_with(abi::INSTRUCTION))
        .map(|at| vdso + at as u64)
        .ok_or(DumpError::NoVdso)
}

/// One prctl(2), made by the program. It is stopped at the end of a system call, before and after.
fn prctl(pid: Pid, was: &Registers, at: u64, call: &'static str, option: i32) -> Result<i64, DumpError> {
    let mut words = *was;
    words[abi::NUMBER] = libc::SYS_prctl as u64;
    for (place, value) in abi::ARGUMENTS.into_iter().zip([option as u64, 0, 0, 0, 0]) {
        words[place] = value;
    }
    words[abi::AT] = at;
    if let Some(place) = abi::UNDER_WAY {
        words[place] = u64::MAX;
    }
    registers(pid, libc::PTRACE_SETREGSET as _, &mut words)?;
    to_call(pid)?;
    to_call(pid)?;
    registers(pid, libc::PTRACE_GETREGSET as _, &mut words)?;
    match words[abi::RESULT] as i64 {
        failed @ -4095..0 => Err(DumpError::Refused {
            call,
            errno: Errno::from_raw(-failed as i32),
        }),
        value => Ok(value),
    }
}

/// What a promise says of it, done and asked; nothing where it says nothing.
///
/// # Errors
/// [`DumpError`]; the program must not run then.
pub(crate) fn at_exec_stop(promise: &Promise, pid: Pid) -> Result<Option<Fact>, DumpError> {
    if !promise.undumpable {
        return Ok(None);
    }
    let found = forbid(pid)?;
    Ok(Some(Fact {
        name: "dumpable".into(),
        promised: "0".into(),
        actual: found.to_string(),
        source: "prctl(PR_GET_DUMPABLE), made by the program at its exec stop".into(),
        holds: found == 0,
    }))
}

/// Make a program at its exec stop (PTRACE_EVENT_EXEC, seized with PTRACE_O_TRACEEXEC and PTRACE_O_EXITKILL) not dumpable, and
/// ask. It is stopped again afterwards, at its first instruction.
///
/// # Errors
/// [`DumpError`]; the program must not run then.
fn forbid(pid: Pid) -> Result<i64, DumpError> {
    let options = ptrace::Options::PTRACE_O_TRACEEXEC | ptrace::Options::PTRACE_O_EXITKILL;
    let told = options | ptrace::Options::PTRACE_O_TRACESYSGOOD;
    ptrace::setoptions(pid, told).map_err(trace("trace system calls"))?;
    let at = instruction(pid)?;
    // The end of execve(2) itself, which writes a register.
    to_call(pid)?;
    let mut was = [0; abi::WORDS];
    registers(pid, libc::PTRACE_GETREGSET as _, &mut was)?;
    prctl(pid, &was, at, "PR_SET_DUMPABLE", libc::PR_SET_DUMPABLE)?;
    let found = prctl(pid, &was, at, "PR_GET_DUMPABLE", libc::PR_GET_DUMPABLE)?;
    registers(pid, libc::PTRACE_SETREGSET as _, &mut was)?;
    ptrace::setoptions(pid, options).map_err(trace("trace system calls"))?;
    Ok(found)
}
