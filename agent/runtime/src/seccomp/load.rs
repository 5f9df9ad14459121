//! A compiled filter put in force for the calling thread: seccomp(2), `SECCOMP_SET_MODE_FILTER`.
//!
//! Allocates nothing and takes no lock, so a freshly cloned child may call it. Irreversible. The caller has set
//! no_new_privs or holds CAP_SYS_ADMIN; whether the filter is really there is for the proof to say.
#![allow(unsafe_code)] // seccomp(2) has no safe wrapper that takes a ready program

use std::io;
use std::os::fd::{FromRawFd, OwnedFd};

use thiserror::Error;

use super::{Filter, Insn};

const _: () = assert!(size_of::<Insn>() == size_of::<libc::sock_filter>());

/// Why a filter is not in force.
#[derive(Debug, Error)]
pub enum LoadError {
    /// The kernel refused it.
    #[error("seccomp(SECCOMP_SET_MODE_FILTER, flags {flags:#x}, {instructions} instructions): {source}")]
    Refused {
        /// `SECCOMP_FILTER_FLAG_*` bits.
        flags: u32,
        /// Length of the program.
        instructions: usize,
        /// The kernel's answer.
        source: io::Error,
    },
    /// `SECCOMP_FILTER_FLAG_TSYNC` found a thread that could not follow.
    #[error("seccomp: thread {tid} cannot be synchronised")]
    Thread {
        /// The thread.
        tid: i64,
    },
}

impl LoadError {
    /// The setting to change.
    pub fn hint(&self) -> Option<String> {
        let Self::Refused { source, .. } = self else {
            return None;
        };
        match source.raw_os_error()? {
            libc::EACCES => Some("set process.noNewPrivileges, or give CAP_SYS_ADMIN".into()),
            libc::EINVAL => {
                Some("the kernel needs CONFIG_SECCOMP_FILTER and every flag of linux.seccomp.flags".into())
            }
            libc::ENOSYS => Some("the kernel needs CONFIG_SECCOMP".into()),
            libc::ENOMEM => Some("the filters already in force leave no room for this one".into()),
            _ => None,
        }
    }
}

/// Put `filter` in force for the calling thread. With a NOTIFY action the notification descriptor comes back.
pub fn load(filter: &Filter) -> Result<Option<OwnedFd>, LoadError> {
    let refused = |source| LoadError::Refused {
        flags: filter.flags,
        instructions: filter.program.len(),
        source,
    };
    let len = u16::try_from(filter.program.len())
        .map_err(|_| refused(io::Error::from_raw_os_error(libc::EINVAL)))?;
    let program = libc::sock_fprog {
        len,
        filter: filter.program.as_ptr().cast::<libc::sock_filter>().cast_mut(),
    };
    // SAFETY: `program` points at `len` instructions whose layout is that of sock_filter (asserted above); the kernel
    // copies them and writes nothing.
    let answer = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            libc::c_ulong::from(filter.flags),
            &raw const program,
        )
    };
    if answer < 0 {
        return Err(refused(io::Error::last_os_error()));
    }
    if u64::from(filter.flags) & libc::SECCOMP_FILTER_FLAG_NEW_LISTENER != 0 {
        // SAFETY: with NEW_LISTENER a non-negative answer is a new descriptor that nobody else owns.
        return Ok(Some(unsafe { OwnedFd::from_raw_fd(answer as i32) }));
    }
    if answer > 0 {
        return Err(LoadError::Thread { tid: answer });
    }
    Ok(None)
}

/// Does the kernel know every action and flag that `filter` uses? An action it lacks is executed as KILL_PROCESS, so
/// this is asked before the launch. `Err` names what is missing.
pub fn supported(filter: &Filter) -> Result<(), String> {
    let mut asked = Vec::with_capacity(8);
    for insn in filter.program.iter().filter(|i| i.code == 0x06) {
        let action = insn.k & 0xffff_0000;
        if asked.contains(&action) {
            continue;
        }
        asked.push(action);
        // SAFETY: the kernel reads one u32 from the pointer.
        let answer = unsafe {
            libc::syscall(
                libc::SYS_seccomp,
                libc::SECCOMP_GET_ACTION_AVAIL,
                0 as libc::c_ulong,
                &raw const action,
            )
        };
        if answer != 0 {
            return Err(format!(
                "seccomp action {action:#x}: {}",
                io::Error::last_os_error()
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::{Options, compile};
    use super::*;
    use nix::sys::wait::{WaitStatus, waitpid};
    use nix::unistd::{ForkResult, fork};

    /// Run `check` in a child under the filter; its answer is the exit status.
    fn under(filter: &Filter, check: fn() -> i32) -> WaitStatus {
        // SAFETY: the child calls prctl, seccomp, the check (plain system calls) and _exit only.
        match unsafe { fork() }.expect("fork") {
            ForkResult::Child => {
                // SAFETY: plain system calls.
                unsafe {
                    libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
                    let code = if load(filter).is_ok() { check() } else { 99 };
                    libc::_exit(code)
                }
            }
            ForkResult::Parent { child } => waitpid(child, None).expect("waitpid"),
        }
    }

    fn getcpu() -> i32 {
        // SAFETY: with null pointers it writes nothing.
        errno_of(unsafe { libc::syscall(libc::SYS_getcpu, 0, 0, 0) })
    }

    fn dup3(to: u64) -> i32 {
        // SAFETY: both descriptors are bad: nothing changes.
        errno_of(unsafe { libc::syscall(libc::SYS_dup3, -1, to, 0) })
    }

    fn errno_of(result: i64) -> i32 {
        if result < 0 {
            io::Error::last_os_error().raw_os_error().unwrap_or(98)
        } else {
            0
        }
    }

    fn filter(text: &str) -> Filter {
        let filter =
            compile(&serde_json::from_str(text).expect("json"), &Options::default()).expect("compile");
        supported(&filter).expect("supported");
        filter
    }

    #[test]
    fn the_kernel_answers_as_written() {
        let filter = filter(
            r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[
                {"names":["getcpu"],"action":"SCMP_ACT_ERRNO","errnoRet":71},
                {"names":["dup3"],"action":"SCMP_ACT_ERRNO","errnoRet":72,
                 "args":[{"index":1,"op":"SCMP_CMP_GT","value":4294967296}]}]}"#,
        );
        let table: [(fn() -> i32, i32); 3] = [
            (getcpu, 71),
            (|| dup3(4_294_967_297), 72),
            (|| dup3(4_294_967_296), libc::EBADF),
        ];
        for (check, expected) in table {
            match under(&filter, check) {
                WaitStatus::Exited(_, code) => assert_eq!(code, expected),
                other => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn a_killing_action_kills() {
        let filter = filter(
            r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["getcpu"],"action":"SCMP_ACT_KILL_PROCESS"}]}"#,
        );
        let status = under(&filter, getcpu);
        assert!(
            matches!(
                status,
                WaitStatus::Signaled(_, nix::sys::signal::Signal::SIGSYS, _)
            ),
            "{status:?}"
        );
    }

    #[cfg(target_arch = "x86_64")]
    #[test]
    fn an_x32_call_dies_where_x32_is_not_listed() {
        let filter = filter(r#"{"defaultAction":"SCMP_ACT_ALLOW"}"#);
        fn getpid() -> i32 {
            // SAFETY: getpid by its x32 number.
            errno_of(unsafe { libc::syscall(0x4000_0000 + libc::SYS_getpid) })
        }
        let status = under(&filter, getpid);
        assert!(
            matches!(
                status,
                WaitStatus::Signaled(_, nix::sys::signal::Signal::SIGSYS, _)
            ),
            "{status:?}"
        );
    }
}
