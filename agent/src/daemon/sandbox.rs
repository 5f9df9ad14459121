//! The agent's own sandbox, put in force once it has everything open that it must open itself: no capability,
//! no_new_privs, Landlock rules, a system call filter. Nothing of it can be taken back.
//!
//! | what | allows |
//! |---|---|
//! | capabilities | none, in any set |
//! | Landlock | reading /sys, /proc, /run/udev, RUN, STATE, CONFIG and the preloaded images; writing STATE/state, STATE/audit/agent, STATE/logs (to take old ones away), CONFIG/profiles; no TCP but the metrics socket, which is open already; no signal to anybody outside |
//! | seccomp | what an event loop over files, local sockets and timers needs: no program, process, thread, mount, module, trace; EPERM for the rest |
//!
//! The launcher is not started by this process (see [`super::starter`]), so no container inherits any of it.
//!
//! Invariants: this process has one thread when it enters; a mechanism that the kernel lacks is refused unless
//! `--on-missing report` says otherwise, and then it is told; what is in force is read back before this returns.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};
use berth_runtime::landlock::{self, Access, Landlock, PathRule, Scope};
use berth_runtime::seccomp;
use oci_spec::OciSpecError;
use oci_spec::runtime::{
    LinuxSeccompAction, LinuxSeccompArgBuilder, LinuxSeccompBuilder, LinuxSeccompOperator, LinuxSyscall,
    LinuxSyscallBuilder,
};
use serde::{Deserialize, Serialize};

use super::settings::{Folders, OnMissing, Settings};

/// System calls of the running agent. A name that an architecture does not have means nothing there.
const CALLS: &[&str] = &[
    // Memory, time, itself.
    "brk",
    "mmap",
    "munmap",
    "mremap",
    "mprotect",
    "madvise",
    "clock_gettime",
    "clock_nanosleep",
    "nanosleep",
    "gettimeofday",
    "getrandom",
    "getpid",
    "gettid",
    "getppid",
    "getuid",
    "geteuid",
    "getgid",
    "getegid",
    "getrusage",
    "sched_yield",
    "sched_getaffinity",
    "sched_setaffinity",
    "uname",
    "sysinfo",
    "getcwd",
    "rseq",
    "set_robust_list",
    "membarrier",
    "restart_syscall",
    "exit",
    "exit_group",
    "futex",
    "umask",
    "prlimit64",
    // Its own signals.
    "rt_sigaction",
    "rt_sigprocmask",
    "rt_sigreturn",
    "sigaltstack",
    // Files: Landlock says which.
    "open",
    "openat",
    "openat2",
    "close",
    "close_range",
    "read",
    "readv",
    "pread64",
    "write",
    "writev",
    "pwrite64",
    "lseek",
    "stat",
    "lstat",
    "fstat",
    "newfstatat",
    "statx",
    "fstatfs",
    "statfs",
    "access",
    "faccessat",
    "faccessat2",
    "readlink",
    "readlinkat",
    "getdents64",
    "mkdir",
    "mkdirat",
    "rename",
    "renameat",
    "renameat2",
    "unlink",
    "unlinkat",
    "rmdir",
    "ftruncate",
    "fsync",
    "fdatasync",
    "flock",
    "fchmod",
    "fchmodat",
    "chmod",
    "fcntl",
    "dup",
    "dup3",
    "getxattr",
    "lgetxattr",
    "fgetxattr",
    // Waiting.
    "epoll_create1",
    "epoll_ctl",
    "epoll_wait",
    "epoll_pwait",
    "epoll_pwait2",
    "poll",
    "ppoll",
    "pselect6",
    "select",
    "eventfd2",
    "timerfd_create",
    "timerfd_settime",
    "pipe2",
    // Local sockets, device events, the metrics' connections.
    "socketpair",
    "connect",
    "accept",
    "accept4",
    "bind",
    "listen",
    "sendto",
    "sendmsg",
    "recvfrom",
    "recvmsg",
    "shutdown",
    "getsockname",
    "getpeername",
    "getsockopt",
    "setsockopt",
    // Processes are watched, not made.
    "pidfd_open",
    "wait4",
    "waitid",
];

/// Families of sockets it may make: AF_UNIX, AF_NETLINK.
const FAMILIES: [u64; 2] = [1, 16];
/// Requests of ioctl(2): FIONBIO, FIOCLEX, and TCGETS (is it a terminal?).
const REQUESTS: [u64; 3] = [0x5421, 0x5451, 0x5401];
/// Options of prctl(2): PR_SET_NAME, PR_GET_DUMPABLE, PR_CAPBSET_READ, PR_GET_SECCOMP, PR_SET_VMA (allocators name memory).
const OPTIONS: [u64; 5] = [15, 3, 23, 21, 0x5356_4d41];

/// What the agent knows of its sandbox; the rest is read from outside by `berth prove agent`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Sandbox {
    /// Process of the agent.
    pub pid: u32,
    /// The launcher's, where it answers.
    pub launcher: Option<i32>,
    /// Version of Landlock in this kernel; 0: none.
    pub landlock: i64,
    /// What opening `/` for reading gave just now. No file of the kernel shows a process's rules: they are tried.
    pub probe: String,
    /// Mechanisms that are not in force, by `--on-missing report`.
    pub missing: Vec<String>,
    /// The CPUs it keeps to, kernel list form.
    pub housekeeping: String,
}

/// Puts all of it in force.
///
/// # Errors
/// What could not be, and the option that lets the agent run without.
pub(crate) fn enter(settings: &Settings) -> anyhow::Result<Sandbox> {
    let threads = std::fs::read_dir("/proc/self/task")?.count();
    ensure!(
        threads == 1,
        "the agent has {threads} threads: its sandbox would not hold for all of them"
    );
    super::harden::drop_capabilities().context("giving up capabilities")?;
    const NONE: &str = "0000000000000000";
    let status = std::fs::read_to_string("/proc/self/status")?;
    fields(
        &status,
        &[
            ("CapEff:", NONE),
            ("CapPrm:", NONE),
            ("CapInh:", NONE),
            ("CapAmb:", NONE),
        ],
    )?;
    let mut missing = Vec::new();
    let mut attempt = |what: &str, done: anyhow::Result<()>| -> anyhow::Result<()> {
        let Err(error) = done else { return Ok(()) };
        if settings.on_missing == OnMissing::Refuse {
            return Err(error.context(format!(
                "{what} (`--on-missing report` lets the agent run without)"
            )));
        }
        tracing::warn!("{what}: {error:#}");
        missing.push(format!("{what}: {error:#}"));
        Ok(())
    };
    attempt(
        "no_new_privs or an empty bounding set is not in force",
        fields(&status, &[("NoNewPrivs:", "1"), ("CapBnd:", NONE)]),
    )?;
    let mut version = 0;
    let entered = rules(&settings.folders).map(|in_force| version = in_force);
    attempt("no Landlock rules are in force", entered)?;
    attempt("no system call filter is in force", filter())?;
    Ok(Sandbox {
        pid: std::process::id(),
        launcher: None,
        landlock: version,
        probe: probe(),
        missing,
        housekeeping: String::new(),
    })
}

/// What opening `/` for reading gives.
pub(crate) fn probe() -> String {
    match std::fs::read_dir("/") {
        Ok(_) => "opened".to_owned(),
        Err(error) => {
            let known = error.raw_os_error().map(nix::errno::Errno::from_raw);
            known.map_or_else(|| error.to_string(), |errno| format!("{errno:?}"))
        }
    }
}

/// The version of Landlock that is in force.
fn rules(folders: &Folders) -> anyhow::Result<i64> {
    let read = |path: &Path| PathRule {
        path: path.to_owned(),
        access: vec![Access::Read],
        optional: true,
    };
    let keep = |path: PathBuf| PathRule {
        path,
        access: vec![Access::Read, Access::Write, Access::Make],
        optional: true,
    };
    let looked_at = ["/sys", "/proc", "/run/udev"].map(Path::new);
    let own = [&folders.run, &folders.state, &folders.config, &folders.preloaded];
    let mut paths: Vec<PathRule> = looked_at.into_iter().map(read).collect();
    paths.extend(own.into_iter().map(|path| read(path)));
    paths.extend([
        keep(folders.state.join("state")),
        keep(folders.audit("agent")),
        keep(folders.state.join("logs")),
        keep(folders.config.join("profiles")),
    ]);
    let abstract_notify =
        std::env::var_os("NOTIFY_SOCKET").is_some_and(|path| path.as_encoded_bytes().starts_with(b"@"));
    let mut scope = vec![Scope::Signals];
    if !abstract_notify {
        scope.push(Scope::AbstractSockets);
    }
    // An older kernel's Landlock lacks truncation, TCP or scopes: what it has is put in force.
    let rules = Landlock {
        paths,
        bind_tcp: Some(Vec::new()),
        connect_tcp: Some(Vec::new()),
        scope,
        skip: true,
    };
    let version = landlock::restrict(&rules).map_err(|failure| anyhow::anyhow!("{failure}"))?;
    match probe().as_str() {
        "EACCES" => Ok(version),
        other => bail!("opening / gives {other} instead of EACCES"),
    }
}

fn call(names: &[&str], argument: Option<(usize, u64)>) -> Result<LinuxSyscall, OciSpecError> {
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    let mut call = LinuxSyscallBuilder::default()
        .names(names)
        .action(LinuxSeccompAction::ScmpActAllow);
    if let Some((index, value)) = argument {
        let argument = LinuxSeccompArgBuilder::default()
            .index(index)
            .value(value)
            .op(LinuxSeccompOperator::ScmpCmpEq)
            .build()?;
        call = call.args(vec![argument]);
    }
    call.build()
}

fn filter() -> anyhow::Result<()> {
    let mut calls = vec![call(CALLS, None)?];
    for (name, index, values) in [
        ("socket", 0, &FAMILIES[..]),
        ("ioctl", 1, &REQUESTS),
        ("prctl", 0, &OPTIONS),
        // To itself alone: abort(3).
        ("tgkill", 0, &[u64::from(std::process::id())]),
    ] {
        for value in values {
            calls.push(call(&[name], Some((index, *value)))?);
        }
    }
    let section = LinuxSeccompBuilder::default()
        .default_action(LinuxSeccompAction::ScmpActErrno)
        .default_errno_ret(1u32)
        .syscalls(calls)
        .build()?;
    let filter = seccomp::compile(&section, &seccomp::Options::default())?;
    let filters = |status: &str| {
        status
            .lines()
            .find_map(|l| l.strip_prefix("Seccomp_filters:")?.trim().parse::<u32>().ok())
    };
    let read = || std::fs::read_to_string("/proc/self/status");
    let before = filters(&read()?);
    seccomp::load(&filter)?;
    let status = read()?;
    // A kernel before 5.9 does not count them; then the mode must do.
    if let (Some(before), Some(now)) = (before, filters(&status)) {
        ensure!(
            now == before + 1,
            "{now} system call filters after {before}: it is not in force"
        );
    }
    fields(&status, &[("Seccomp:", "2")])
}

/// Does /proc/self/status say so?
fn fields(status: &str, wanted: &[(&str, &str)]) -> anyhow::Result<()> {
    for (field, value) in wanted {
        let actual = status
            .lines()
            .find_map(|line| line.strip_prefix(field))
            .map(str::trim);
        ensure!(
            actual == Some(value),
            "{field} {} instead of {value}",
            actual.unwrap_or("not told")
        );
    }
    Ok(())
}
