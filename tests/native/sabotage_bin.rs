//! `berth-sabotage SYSCALL[:ARG0] -- PROGRAM…`: run a program for which one system call does nothing and
//! answers 0. A runtime that believes its own calls does not notice; one that reads the kernel back does.
//!
//! Interface: seccomp(2) with SECCOMP_RET_ERRNO and errno 0, which makes a call return 0 without being made.
#![allow(unsafe_code)]

use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

/// linux/filter.h: BPF_LD | BPF_W | BPF_ABS, BPF_JMP | BPF_JEQ | BPF_K, BPF_RET | BPF_K.
const LOAD: u16 = 0x20;
const JUMP_EQUAL: u16 = 0x15;
const RETURN: u16 = 0x06;
/// offsetof(struct seccomp_data, nr) and the low half of the first argument (little endian on both architectures).
const NUMBER: u32 = 0;
const ARG0: u32 = 16;

fn number(name: &str) -> Option<libc::c_long> {
    Some(match name {
        "capset" => libc::SYS_capset,
        "clone3" => libc::SYS_clone3,
        "close_range" => libc::SYS_close_range,
        "landlock_restrict_self" => libc::SYS_landlock_restrict_self,
        "mount" => libc::SYS_mount,
        "mount_setattr" => libc::SYS_mount_setattr,
        "move_mount" => libc::SYS_move_mount,
        "pivot_root" => libc::SYS_pivot_root,
        "prctl" => libc::SYS_prctl,
        "prlimit64" => libc::SYS_prlimit64,
        "sched_setaffinity" => libc::SYS_sched_setaffinity,
        "sched_setattr" => libc::SYS_sched_setattr,
        "seccomp" => libc::SYS_seccomp,
        "setgroups" => libc::SYS_setgroups,
        "sethostname" => libc::SYS_sethostname,
        "setns" => libc::SYS_setns,
        "setresgid" => libc::SYS_setresgid,
        "setresuid" => libc::SYS_setresuid,
        "umount2" => libc::SYS_umount2,
        "unshare" => libc::SYS_unshare,
        _ => return None,
    })
}

fn main() -> ExitCode {
    let mut args = std::env::args().skip(1);
    let (Some(what), Some(_), Some(program)) = (args.next(), args.next().filter(|a| a == "--"), args.next())
    else {
        eprintln!("usage: berth-sabotage SYSCALL[:ARG0] -- PROGRAM [ARG…]");
        return ExitCode::from(2);
    };
    let (name, arg0) = match what.split_once(':') {
        Some((name, arg)) => (name, arg.parse::<u32>().ok()),
        None => (what.as_str(), None),
    };
    let Some(number) = number(name) else {
        eprintln!("berth-sabotage: no such call here: {name}");
        return ExitCode::from(2);
    };
    let op = |code, jt, jf, k| libc::sock_filter { code, jt, jf, k };
    let mut program_words = vec![
        op(LOAD, 0, 0, NUMBER),
        op(JUMP_EQUAL, 0, if arg0.is_some() { 3 } else { 1 }, number as u32),
    ];
    if let Some(arg) = arg0 {
        program_words.extend([op(LOAD, 0, 0, ARG0), op(JUMP_EQUAL, 0, 1, arg)]);
    }
    program_words.extend([
        op(RETURN, 0, 0, libc::SECCOMP_RET_ERRNO),
        op(RETURN, 0, 0, libc::SECCOMP_RET_ALLOW),
    ]);
    let filter = libc::sock_fprog {
        len: program_words.len() as u16,
        filter: program_words.as_mut_ptr(),
    };
    // SAFETY: the filter and its program outlive the call, which copies them.
    let done = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            0,
            &raw const filter,
        )
    };
    if done != 0 {
        eprintln!(
            "berth-sabotage: seccomp: {} (needs CAP_SYS_ADMIN)",
            std::io::Error::last_os_error()
        );
        return ExitCode::from(2);
    }
    let error = Command::new(&program).args(args).exec();
    eprintln!("berth-sabotage: {program}: {error}");
    ExitCode::from(2)
}
