//! `berth-kill-at N PROGRAM ARG…`: run a program and kill it (SIGKILL) on entry to its Nth system call that changes something:
//! write(2), fsync(2), ftruncate(2), unlink(2), sched_setattr(2), sched_setaffinity(2). The call itself is never made.
//!
//! Exit code 137 when it was killed there, else the program's own: it made fewer such calls. Interface: ptrace(2),
//! PTRACE_GET_SYSCALL_INFO. The program must not start threads.
#![allow(unsafe_code)]

use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

use nix::sys::ptrace;
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;

fn changes(number: i64) -> bool {
    #[cfg(target_arch = "x86_64")]
    if number == libc::SYS_unlink {
        return true;
    }
    [
        libc::SYS_write,
        libc::SYS_fsync,
        libc::SYS_ftruncate,
        libc::SYS_unlinkat,
        libc::SYS_sched_setattr,
        libc::SYS_sched_setaffinity,
    ]
    .contains(&number)
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
    // SAFETY: between fork and exec only ptrace(2) is called, which is safe there.
    unsafe {
        command.pre_exec(|| ptrace::traceme().map_err(std::io::Error::from));
    }
    let child = Pid::from_raw(command.spawn()?.id().cast_signed());
    // The stop at exec.
    waitpid(child, None)?;
    ptrace::setoptions(
        child,
        ptrace::Options::PTRACE_O_TRACESYSGOOD | ptrace::Options::PTRACE_O_EXITKILL,
    )?;
    let (mut count, mut signal): (u64, Option<Signal>) = (0, None);
    loop {
        ptrace::syscall(child, signal.take())?;
        match waitpid(child, None)? {
            WaitStatus::Exited(_, code) => return Ok(u8::try_from(code).unwrap_or(1)),
            WaitStatus::Signaled(..) => return Ok(2),
            WaitStatus::Stopped(_, other) => signal = Some(other),
            WaitStatus::PtraceSyscall(_) => {
                let info = ptrace::syscall_info(child)?;
                if info.op != libc::PTRACE_SYSCALL_INFO_ENTRY {
                    continue;
                }
                // SAFETY: the kernel says that this is the entry of a call, so `entry` is what it filled.
                let number = unsafe { info.u.entry.nr };
                if changes(i64::try_from(number).unwrap_or(-1)) {
                    count += 1;
                    if count == wanted {
                        nix::sys::signal::kill(child, Signal::SIGKILL)?;
                        while !matches!(waitpid(child, None)?, WaitStatus::Signaled(..)) {}
                        return Ok(137);
                    }
                }
            }
            _ => {}
        }
    }
}
