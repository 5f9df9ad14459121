//! The two new processes of an exec: the helper that joins and restricts itself, and the one it bears inside.
//!
//! Invariants: the helper never enters the pid namespace itself; what it still holds when it clones is what the
//! program will hold, the socket to the caller apart.

use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::path::PathBuf;

use berth_rt::cpu::CpuSet;
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sched::{CloneFlags, setns};
use nix::sys::stat::{Mode, umask};
use nix::unistd::setsid;

use crate::child;
use crate::console;
use crate::proof::NamespacePromise;
use crate::recipe::Process;
use crate::report::{Failure, Step, Up};
use crate::rootfs::{PROC_MAGIC, open_dir};
use crate::seccomp::Filter;
use crate::sys::fds;
use crate::sys::process as sys;

/// Where to.
pub(super) struct Join<'a> {
    pub(super) pidfd: &'a OwnedFd,
    pub(super) mounts: Option<&'a NamespacePromise>,
    pub(super) users: Option<&'a NamespacePromise>,
    pub(super) time: Option<&'a NamespacePromise>,
    pub(super) id: &'a str,
    /// The container's first process, host pid namespace.
    pub(super) first: i32,
    pub(super) oom_score_adj: Option<i32>,
    pub(super) entries: &'a [PathBuf],
    pub(super) first_cpus: Option<&'a CpuSet>,
    /// Descriptors from 3 on that go in: how many.
    pub(super) preserved: u32,
}

fn own(promise: Option<&NamespacePromise>) -> bool {
    matches!(
        promise,
        Some(NamespacePromise::New | NamespacePromise::Joined { .. })
    )
}

/// In the helper; in the new process too, after its clone.
pub(super) fn run(
    join: &Join<'_>,
    process: &Process,
    filter: Option<&Filter>,
    stdio: [RawFd; 3],
    socket: &OwnedFd,
) -> ! {
    let failure = match enter(join, process, filter, stdio, socket) {
        Ok(()) => sys::exit_now(0),
        Err(failure) => failure,
    };
    // write(2) rather than send(2): the filter may be in force. The caller is gone if it fails.
    let _ = nix::unistd::write(socket, &Up::Failed(failure).encode());
    sys::exit_now(127)
}

fn enter(
    join: &Join<'_>,
    process: &Process,
    filter: Option<&Filter>,
    stdio: [RawFd; 3],
    socket: &OwnedFd,
) -> Result<(), Failure> {
    sys::set_parent_death_signal(libc::SIGKILL).step("set parent death signal", "")?;
    sys::set_not_dumpable().step("make undumpable", "")?;
    for (target, fd) in stdio.iter().enumerate() {
        sys::dup_onto(*fd, target as RawFd).step("standard streams", "")?;
    }
    if !process.callers_keyring {
        child::own_keyring(join.id)?;
    }
    if let Some(score) = join.oom_score_adj {
        // The caller's own may spare it from the kernel's memory killer.
        let file = "/proc/self/oom_score_adj";
        std::fs::write(file, score.to_string()).step("set oom_score_adj", file)?;
    }
    for file in join.entries {
        std::fs::write(file, "0").step("enter cgroup", file)?;
    }
    if let Some(cpus) = join.first_cpus {
        berth_rt::sched::set_affinity(0, cpus)
            .map_err(|e| Failure::refused("execCPUAffinity.initial", cpus.to_string(), &e.to_string()))?;
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
        | CloneFlags::CLONE_NEWCGROUP
        | CloneFlags::CLONE_NEWPID;
    let users = own(join.users);
    if users {
        child::limit(process, None)?;
        kinds |= CloneFlags::CLONE_NEWUSER;
    }
    if own(join.time) {
        kinds |= CloneFlags::from_bits_retain(libc::CLONE_NEWTIME);
    }
    // In a mount namespace that others have too its root need not be the container's.
    let root = match join.mounts {
        Some(NamespacePromise::Joined { .. }) => {
            let path = format!("{}/root", join.first);
            let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
            Some(nix::fcntl::openat(&proc, path.as_str(), flags, Mode::empty()).step("open root", &path)?)
        }
        _ => None,
    };
    setns(join.pidfd, kinds).step("join namespaces", "")?;
    if let Some(root) = root {
        crate::sys::mount::enter_root(root.as_fd()).step("chroot", "/")?;
    }
    let mut keep = vec![socket.as_raw_fd()];
    for fd in sys::preserved(join.preserved) {
        sys::close_on_exec(fd, false).step("preserve descriptor", fd.to_string())?;
        keep.push(fd);
    }
    keep.extend(label.as_ref().map(|(fd, _)| fd.as_raw_fd()));
    sys::close_all_but(&keep).step("close descriptors", "")?;
    std::mem::forget(proc); // closed by number
    if process.core_cookie {
        // The new process inherits it.
        sys::take_core_cookie(join.first).step("core scheduling", "")?;
    }
    if users {
        child::become_root()?;
    } else {
        child::limit(process, None)?;
    }
    // Only now: its master is one of the container's own.
    let slave = match process.terminal {
        Some(size) => {
            let root = open_dir(std::path::Path::new("/")).step("open", "/")?;
            let pty = console::open(root.as_fd(), process.uid, size)?;
            fds::send(socket.as_fd(), &Up::Console.encode(), &[pty.master.as_fd()])
                .step("send terminal", "")?;
            Some(pty.slave)
        }
        None => None,
    };
    if let Some(slave) = &slave {
        for target in 0..3 {
            sys::dup_onto(slave.as_raw_fd(), target).step("standard streams", "")?;
        }
    }
    drop(slave);
    if let Some(landlock) = &process.landlock {
        let found = crate::landlock::enter(landlock)?;
        if found.promised != found.actual {
            let why = format!("promised {}, actual {}", found.promised, found.actual);
            return Err(Failure::refused("landlock", "", &why));
        }
    }
    // Inherited by the clone, and in force from its exec on.
    label.map_or(Ok(()), |(fd, label)| {
        child::write_label((&fd, label)).inspect(|()| drop(fd))
    })?;
    if let Some(persona) = process.personality {
        sys::set_personality(persona).step("personality", "")?;
    }
    if let Some(policy) = &process.memory {
        let [_, promised, actual, _] = policy.enter()?;
        if promised != actual {
            let why = format!("promised {promised}, actual {actual}");
            return Err(Failure::refused("set", "linux.memoryPolicy", &why));
        }
    }
    let mut filter = filter;
    let early = if process.no_new_privs { None } else { filter.take() };
    if early.is_some() {
        // It needs a capability that is gone after the next step; the clone must come through it.
        early.map_or(Ok(()), |filter| child::load(filter, socket.as_fd()))?;
    }
    child::credentials(process)?;
    umask(Mode::from_bits_truncate(process.umask as nix::sys::stat::mode_t));
    child::enter_cwd(&process.cwd)?;
    sys::default_sigpipe().step("signal", "SIGPIPE")?;
    sys::unblock_signals().step("signal mask", "")?;
    match sys::clone_sibling().step("clone", "")? {
        Some(pid) => {
            let message = Up::Joined(pid.as_raw()).encode();
            nix::unistd::write(socket, &message).step("report", "")?;
            Ok(())
        }
        None => Err(inside(process, filter, socket)),
    }
}

/// In the new process: what is left to be done, then its program.
fn inside(process: &Process, filter: Option<&Filter>, socket: &OwnedFd) -> Failure {
    let done = (|| {
        setsid().step("setsid", "")?;
        if process.terminal.is_some() {
            console::control(0).step("controlling terminal", "")?;
        }
        child::find_program(process)?;
        child::restrict(process, filter, socket.as_fd())?;
        let ready = Up::Ready(Vec::new(), Vec::new()).encode();
        nix::unistd::write(socket, &ready).step("report", "")?;
        let mut go = [0u8; 16];
        loop {
            match sys::read_raw(socket.as_raw_fd(), &mut go) {
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(Failure::new("wait for start", "", errno)),
                Ok(0) => sys::exit_now(127), // the caller is gone
                Ok(_) => return Ok(()),
            }
        }
    })();
    match done {
        Ok(()) => child::exec_first(&process.args, &process.env),
        Err(failure) => failure,
    }
}
