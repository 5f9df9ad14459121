//! `berth-kill-at N PROGRAM ARG…`: run a program and kill it (SIGKILL) on entry to its Nth system call that changes something:
//! write(2) to a file that it opened itself, ftruncate(2), unlink(2), sched_setattr(2), sched_setaffinity(2). The call
//! itself is never made. fsync(2) is none of them: SIGKILL loses nothing that was written, so a kill there leaves what
//! the next one leaves.
//!
//! Exit code 137 when it was killed there, else the program's own: it made fewer such calls. Interfaces: ptrace(2) with
//! PTRACE_GET_SYSCALL_INFO; seccomp(2) with SECCOMP_RET_TRACE, so that the program stops at these calls alone: at each of
//! its calls it would take ten times as long under emulation. The program must not start threads.
#![allow(unsafe_code)]

use std::io::Error;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

use nix::sys::ptrace;
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;

/// The calls, by number.
const CALLS: &[libc::c_long] = &[
    #[cfg(target_arch = "x86_64")]
    libc::SYS_unlink,
    libc::SYS_write,
    libc::SYS_ftruncate,
    libc::SYS_unlinkat,
    libc::SYS_sched_setattr,
    libc::SYS_sched_setaffinity,
];

/// A classic BPF program (seccomp(2)): `SECCOMP_RET_TRACE` for the calls, `SECCOMP_RET_ALLOW` for all others.
fn filter() -> Vec<libc::sock_filter> {
    let op = |code: u32, jt: usize, k: u32| libc::sock_filter {
        code: u16::try_from(code).unwrap_or(0),
        jt: u8::try_from(jt).unwrap_or(0),
        jf: 0,
        k,
    };
    // The number is the first word of struct seccomp_data.
    let mut program = vec![op(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0)];
    for (at, call) in CALLS.iter().enumerate() {
        let number = u32::try_from(*call).unwrap_or(u32::MAX);
        program.push(op(
            libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K,
            CALLS.len() - at,
            number,
        ));
    }
    program.push(op(libc::BPF_RET | libc::BPF_K, 0, libc::SECCOMP_RET_ALLOW));
    program.push(op(libc::BPF_RET | libc::BPF_K, 0, libc::SECCOMP_RET_TRACE));
    program
}

/// Has the caller, and what it executes, stop for its tracer at the calls.
fn stop_at(program: &mut [libc::sock_filter]) -> std::io::Result<()> {
    let set = libc::sock_fprog {
        len: u16::try_from(program.len()).unwrap_or(0),
        filter: program.as_mut_ptr(),
    };
    // SAFETY: two prctl(2) calls without pointers but the last, which is to a program that lives through the call.
    let done = unsafe {
        libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
            && libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const set) == 0
    };
    if done { Ok(()) } else { Err(Error::last_os_error()) }
}

fn main() -> ExitCode {
    let mut args = std::env::args().skip(1);
    let (Some(Ok(wanted)), Some(program)) = (args.next().map(|n| n.parse::<u64>()), args.next()) else {
        eprintln!("usage: berth-kill-at N PROGRAM [ARG…]");
        return ExitCode::from(2);
    };
    match run(wanted, &program, &args.collect::<Vec<_>>()) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("berth-kill-at: {error}");
            ExitCode::from(2)
        }
    }
}

fn run(wanted: u64, program: &str, args: &[String]) -> std::io::Result<u8> {
    let mut command = Command::new(program);
    command.args(args);
    let mut calls = filter();
    // SAFETY: between fork and exec only ptrace(2) and prctl(2) are called, which are safe there.
    unsafe {
        command.pre_exec(move || {
            ptrace::traceme()?;
            stop_at(&mut calls)
        });
    }
    let child = Pid::from_raw(command.spawn()?.id().cast_signed());
    // The stop at exec.
    waitpid(child, None)?;
    ptrace::setoptions(
        child,
        ptrace::Options::PTRACE_O_TRACESECCOMP | ptrace::Options::PTRACE_O_EXITKILL,
    )?;
    let (mut count, mut signal): (u64, Option<Signal>) = (0, None);
    loop {
        ptrace::cont(child, signal.take())?;
        match waitpid(child, None)? {
            WaitStatus::Exited(_, code) => return Ok(u8::try_from(code).unwrap_or(1)),
            WaitStatus::Signaled(..) => return Ok(2),
            WaitStatus::PtraceEvent(_, _, libc::PTRACE_EVENT_SECCOMP) => {
                let info = ptrace::syscall_info(child)?;
                if info.op != libc::PTRACE_SYSCALL_INFO_SECCOMP {
                    return Err(Error::other(format!("a stop of kind {}", info.op)));
                }
                // SAFETY: the kernel says that this is a stop by seccomp, so `seccomp` is what it filled.
                let (number, first) = unsafe { (info.u.seccomp.nr, info.u.seccomp.args[0]) };
                // What it prints changes nothing.
                if number == libc::SYS_write.cast_unsigned() && first <= 2 {
                    continue;
                }
                count += 1;
                if count == wanted {
                    nix::sys::signal::kill(child, Signal::SIGKILL)?;
                    while !matches!(waitpid(child, None)?, WaitStatus::Signaled(..)) {}
                    return Ok(137);
                }
            }
            WaitStatus::Stopped(_, other) => signal = Some(other),
            _ => {}
        }
    }
}
