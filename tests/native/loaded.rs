//! The seccomp filter that is loaded for a process, read back with ptrace(2) (PTRACE_SECCOMP_GET_FILTER: the kernel's own copy
//! of the program; CONFIG_CHECKPOINT_RESTORE, and a caller with CAP_SYS_ADMIN and no filter).

#![allow(unsafe_code)] // ptrace requests that nix has no function for

use std::os::fd::{FromRawFd, OwnedFd};

use anyhow::{Context, Result, ensure};
use berth_runtime::seccomp::{Filter, Insn};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;

/// linux/ptrace.h.
const PTRACE_SECCOMP_GET_FILTER: libc::c_uint = 0x420c;

/// A descriptor that has just come over a socket.
pub(crate) fn own(descriptor: i32) -> OwnedFd {
    // SAFETY: the kernel has made it for this message, and nobody else has its number.
    unsafe { OwnedFd::from_raw_fd(descriptor) }
}

/// The filter that was loaded last for a process, which is stopped meanwhile.
///
/// # Errors
/// The process cannot be traced, or the kernel hands no filter out.
pub(crate) fn filter(pid: i32) -> Result<Filter> {
    let call = |request: libc::c_uint, address: usize, data: *mut Insn| -> Result<usize> {
        // SAFETY: `data` is null or has room for the whole program; other requests take no pointer.
        let done = unsafe { libc::ptrace(request, pid, address, data) };
        let done = usize::try_from(done);
        done.map_err(|_| std::io::Error::last_os_error())
            .with_context(|| format!("ptrace {request:#x} of {pid}"))
    };
    let none = std::ptr::null_mut();
    call(libc::PTRACE_SEIZE, 0, none)?;
    let read = || -> Result<Filter> {
        call(libc::PTRACE_INTERRUPT, 0, none)?;
        waitpid(Pid::from_raw(pid), Some(WaitPidFlag::__WALL))?;
        let length = call(PTRACE_SECCOMP_GET_FILTER, 0, none)?;
        let empty = Insn {
            code: 0,
            jt: 0,
            jf: 0,
            k: 0,
        };
        let mut program = vec![empty; length];
        let got = call(PTRACE_SECCOMP_GET_FILTER, 0, program.as_mut_ptr())?;
        ensure!(got == length, "{got} of {length} instructions");
        Ok(Filter {
            program,
            flags: 0,
            listener: None,
        })
    };
    let found = read();
    // With its tracer's thread gone it would go on too; this test's thread lives on.
    call(libc::PTRACE_DETACH, 0, none)?;
    found
}
