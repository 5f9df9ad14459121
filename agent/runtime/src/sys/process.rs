//! clone3, prctl, capabilities, ioprio, keyrings, descriptors and exec.
//!
//! Invariants: [`clone3`] without CLONE_VM behaves like fork: the child has its own copy of all memory. The caller
//! has one thread, so no lock is held by a thread that does not exist in the child.
#![allow(unsafe_code)] // raw system calls, and descriptors received from the kernel

use std::ffi::{CStr, CString};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::unistd::Pid;

/// `CLONE_INTO_CGROUP`.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;
/// `CLONE_CLEAR_SIGHAND`: every handler back to its default.
const CLONE_CLEAR_SIGHAND: u64 = 0x1_0000_0000;

/// Where [`clone3`] returned.
pub(crate) enum Cloned {
    /// In the new process.
    Child,
    /// In the caller, with the child and its pidfd.
    Parent(Pid, OwnedFd),
}

/// Namespaces a process is made in, and how.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct CloneArgs {
    /// `CLONE_NEW*` bits.
    pub(crate) namespaces: u64,
    /// cgroup v2 directory to be born in.
    pub(crate) cgroup: Option<RawFd>,
    /// A child of the caller's parent (CLONE_PARENT): it ends as the caller does.
    pub(crate) sibling: bool,
}

/// clone3(2) with a pidfd, default signal handlers and SIGCHLD at exit.
pub(crate) fn clone3(wanted: CloneArgs) -> Result<Cloned, Errno> {
    let mut pidfd: RawFd = -1;
    // SAFETY: clone_args is plain data for which all zeroes is valid.
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    args.flags = wanted.namespaces | libc::CLONE_PIDFD as u64 | CLONE_CLEAR_SIGHAND;
    match wanted.sibling {
        true => args.flags |= libc::CLONE_PARENT as u64,
        false => args.exit_signal = libc::SIGCHLD as u64,
    }
    if let Some(fd) = wanted.cgroup {
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup = fd as u64;
    }
    args.pidfd = (&raw mut pidfd) as u64;
    // SAFETY: no CLONE_VM: the child gets a copy of this address space and its own stack copy, so both sides
    // return from here as after fork(2). `args` and `pidfd` outlive the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_clone3,
            &raw mut args,
            std::mem::size_of::<libc::clone_args>(),
        )
    };
    match Errno::result(result)? {
        0 => Ok(Cloned::Child),
        pid => {
            // SAFETY: on success the kernel has stored a new descriptor there.
            let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
            Ok(Cloned::Parent(Pid::from_raw(pid as i32), pidfd))
        }
    }
}

/// A child of this process's own parent, as after fork(2): `None` in it. clone(2) rather than clone3(2), which the
/// filters of many containers do not know.
pub(crate) fn clone_sibling() -> Result<Option<Pid>, Errno> {
    // SAFETY: no CLONE_VM: both sides return from here on their own copy of the stack; no pointers.
    let result = unsafe { libc::syscall(libc::SYS_clone, libc::CLONE_PARENT as libc::c_ulong, 0, 0, 0, 0) };
    match Errno::result(result)? {
        0 => Ok(None),
        pid => Ok(Some(Pid::from_raw(pid as i32))),
    }
}

/// As many memory nodes as the kernel can have (MAX_NUMNODES with the largest NODES_SHIFT).
pub(crate) const NODES: usize = 1024;

/// set_mempolicy(2) with a mode, its flags and nodes below [`NODES`].
pub(crate) fn set_memory_policy(mode: u32, nodes: impl Iterator<Item = u32>) -> Result<(), Errno> {
    let mut mask = [0u64; NODES / 64];
    for node in nodes {
        let word = mask.get_mut(node as usize / 64).ok_or(Errno::EINVAL)?;
        *word |= 1 << (node % 64);
    }
    // SAFETY: the kernel reads one bit less than it is told of, all of them in `mask`.
    let result = unsafe { libc::syscall(libc::SYS_set_mempolicy, mode, mask.as_ptr(), NODES + 1) };
    Errno::result(result).map(drop)
}

/// get_mempolicy(2): mode with flags, and the nodes.
pub(crate) fn memory_policy() -> Result<(u32, Vec<u32>), Errno> {
    let (mut mode, mut mask) = (0i32, [0u64; NODES / 64]);
    // SAFETY: the kernel writes one int, and one bit less than it is told of to `mask`.
    Errno::result(unsafe {
        libc::syscall(
            libc::SYS_get_mempolicy,
            &raw mut mode,
            mask.as_mut_ptr(),
            NODES + 1,
            0,
            0,
        )
    })?;
    let set = (0..NODES as u32).filter(|n| mask[*n as usize / 64] & (1 << (n % 64)) != 0);
    Ok((mode as u32, set.collect()))
}

/// pidfd_getfd(2): a copy of another process's descriptor.
pub(crate) fn pidfd_getfd(pidfd: BorrowedFd<'_>, number: RawFd) -> Result<OwnedFd, Errno> {
    // SAFETY: no pointers.
    let fd = Errno::result(unsafe { libc::syscall(libc::SYS_pidfd_getfd, pidfd.as_raw_fd(), number, 0) })?;
    // SAFETY: the kernel has just returned this descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

/// End this process without running anything of the caller's.
pub(crate) fn exit_now(status: i32) -> ! {
    // SAFETY: _exit runs no destructors and no handlers.
    unsafe { libc::_exit(status) }
}

/// pidfd_open(2).
pub(crate) fn pidfd_open(pid: Pid) -> Result<OwnedFd, Errno> {
    // SAFETY: no pointers.
    let fd = Errno::result(unsafe { libc::syscall(libc::SYS_pidfd_open, pid.as_raw(), 0) })?;
    // SAFETY: the kernel has just returned this descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

/// pidfd_send_signal(2); any number, real-time signals too.
pub(crate) fn pidfd_signal(pidfd: BorrowedFd<'_>, signal: i32) -> Result<(), Errno> {
    // SAFETY: a null siginfo asks for the default.
    let result = unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            pidfd.as_raw_fd(),
            signal,
            std::ptr::null::<libc::siginfo_t>(),
            0,
        )
    };
    Errno::result(result).map(drop)
}

fn prctl(option: i32, a: u64, b: u64, c: u64) -> Result<i32, Errno> {
    // SAFETY: only options whose arguments are numbers are passed by the functions below.
    Errno::result(unsafe { libc::prctl(option, a, b, c, 0u64) })
}

/// SIGKILL when the parent thread ends (0 switches it off).
pub(crate) fn set_parent_death_signal(signal: i32) -> Result<(), Errno> {
    prctl(libc::PR_SET_PDEATHSIG, signal as u64, 0, 0).map(drop)
}

/// Set no_new_privs and read it back.
pub(crate) fn set_no_new_privs() -> Result<(), Errno> {
    prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0)?;
    match prctl(libc::PR_GET_NO_NEW_PRIVS, 0, 0, 0)? {
        1 => Ok(()),
        _ => Err(Errno::EPERM),
    }
}

/// Keep permitted capabilities over the change of user.
pub(crate) fn set_keep_caps(on: bool) -> Result<(), Errno> {
    prctl(libc::PR_SET_KEEPCAPS, u64::from(on), 0, 0).map(drop)
}

/// Take one capability out of the bounding set.
pub(crate) fn drop_bounding(capability: u32) -> Result<(), Errno> {
    prctl(libc::PR_CAPBSET_DROP, u64::from(capability), 0, 0).map(drop)
}

/// Is it in the bounding set? EINVAL for a capability the kernel does not know.
pub(crate) fn in_bounding(capability: u32) -> Result<bool, Errno> {
    prctl(libc::PR_CAPBSET_READ, u64::from(capability), 0, 0).map(|v| v == 1)
}

/// Empty the ambient set.
pub(crate) fn clear_ambient() -> Result<(), Errno> {
    prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL as u64, 0, 0).map(drop)
}

/// Put one capability into the ambient set.
pub(crate) fn raise_ambient(capability: u32) -> Result<(), Errno> {
    prctl(
        libc::PR_CAP_AMBIENT,
        libc::PR_CAP_AMBIENT_RAISE as u64,
        u64::from(capability),
        0,
    )
    .map(drop)
}

/// Timer slack of this thread in nanoseconds.
pub(crate) fn timer_slack() -> Result<u64, Errno> {
    prctl(libc::PR_GET_TIMERSLACK, 0, 0, 0).map(|v| v as u64)
}

/// Set it; a child made afterwards has it as its default.
pub(crate) fn set_timer_slack(nanoseconds: u64) -> Result<(), Errno> {
    prctl(libc::PR_SET_TIMERSLACK, nanoseconds, 0, 0).map(drop)
}

/// capset(2) of effective, permitted and inheritable, as 64-bit masks.
pub(crate) fn set_capabilities(effective: u64, permitted: u64, inheritable: u64) -> Result<(), Errno> {
    #[repr(C)]
    struct Header {
        version: u32,
        pid: i32,
    }
    #[repr(C)]
    struct Data {
        effective: u32,
        permitted: u32,
        inheritable: u32,
    }
    let mut header = Header {
        version: 0x2008_0522,
        pid: 0,
    };
    let data = [0u32, 32].map(|shift| Data {
        effective: (effective >> shift) as u32,
        permitted: (permitted >> shift) as u32,
        inheritable: (inheritable >> shift) as u32,
    });
    // SAFETY: version 3 of the interface reads one header and two data elements, both alive here.
    Errno::result(unsafe { libc::syscall(libc::SYS_capset, &raw mut header, data.as_ptr()) }).map(drop)
}

/// ioprio_set(2) of one process: class 1 real-time, 2 best-effort, 3 idle.
pub(crate) fn set_io_priority(pid: Pid, class: u32, level: u32) -> Result<(), Errno> {
    const IOPRIO_WHO_PROCESS: i32 = 1;
    // SAFETY: no pointers.
    let result = unsafe {
        libc::syscall(
            libc::SYS_ioprio_set,
            IOPRIO_WHO_PROCESS,
            pid.as_raw(),
            (class << 13) | level,
        )
    };
    Errno::result(result).map(drop)
}

/// A session keyring of its own, named `name`. ENOSYS where the kernel has no keyrings.
pub(crate) fn join_session_keyring(name: &str) -> Result<(), Errno> {
    const KEYCTL_JOIN_SESSION_KEYRING: i32 = 1;
    let name = CString::new(name).map_err(|_| Errno::EINVAL)?;
    // SAFETY: `name` outlives the call.
    Errno::result(unsafe { libc::syscall(libc::SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, name.as_ptr()) })
        .map(drop)
}

/// The name of the session keyring (`keyctl(KEYCTL_DESCRIBE)`: type;uid;gid;permissions;name).
pub(crate) fn session_keyring() -> Result<String, Errno> {
    const KEYCTL_DESCRIBE: libc::c_int = 6;
    const KEY_SPEC_SESSION_KEYRING: libc::c_int = -3;
    let mut text = [0u8; 512];
    // SAFETY: the kernel writes at most the given length.
    let length = Errno::result(unsafe {
        libc::syscall(
            libc::SYS_keyctl,
            KEYCTL_DESCRIBE,
            KEY_SPEC_SESSION_KEYRING,
            text.as_mut_ptr(),
            text.len(),
        )
    })?;
    let text = text.get(..length as usize).unwrap_or_default();
    let name = text.splitn(5, |b| *b == b';').nth(4).unwrap_or_default();
    Ok(String::from_utf8_lossy(name).trim_end_matches('\0').to_owned())
}

const PR_SCHED_CORE: i32 = 62;

/// The core scheduling cookie of a process (0: one's own); 0 is none.
pub(crate) fn core_cookie(pid: i32) -> Result<u64, Errno> {
    let mut cookie = 0u64;
    // SAFETY: PR_SCHED_CORE_GET (0) of one thread (0) writes one u64.
    let answer = unsafe { libc::prctl(PR_SCHED_CORE, 0u64, pid as u64, 0u64, &raw mut cookie) };
    Errno::result(answer)?;
    Ok(cookie)
}

/// A new cookie for every thread of a process.
pub(crate) fn create_core_cookie(pid: i32) -> Result<(), Errno> {
    // PR_SCHED_CORE_CREATE for PR_SCHED_CORE_SCOPE_THREAD_GROUP
    prctl(PR_SCHED_CORE, 1, pid as u64, 1).map(drop)
}

/// The cookie of process `pid` for the calling thread.
pub(crate) fn take_core_cookie(pid: i32) -> Result<(), Errno> {
    // PR_SCHED_CORE_SHARE_FROM for PR_SCHED_CORE_SCOPE_THREAD
    prctl(PR_SCHED_CORE, 3, pid as u64, 0).map(drop)
}

/// Close every descriptor from 3 on but those in `keep`.
pub(crate) fn close_all_but(keep: &[RawFd]) -> Result<(), Errno> {
    let mut keep: Vec<u32> = keep.iter().filter(|fd| **fd >= 3).map(|fd| *fd as u32).collect();
    keep.sort_unstable();
    keep.dedup();
    let mut first = 3u32;
    for fd in keep.into_iter().chain([u32::MAX]) {
        let last = if fd == u32::MAX { u32::MAX } else { fd - 1 };
        if first <= last {
            // SAFETY: closing descriptors is sound here: the process execs or exits and never drops one again.
            Errno::result(unsafe { libc::syscall(libc::SYS_close_range, first, last, 0u32) })?;
        }
        first = fd.saturating_add(1);
    }
    Ok(())
}

/// The numbers of `count` descriptors behind the standard ones.
pub(crate) fn preserved(count: u32) -> impl Iterator<Item = RawFd> {
    (3..3u32.saturating_add(count)).filter_map(|fd| RawFd::try_from(fd).ok())
}

/// Is this number an open descriptor?
pub(crate) fn is_open(fd: RawFd) -> bool {
    // SAFETY: no pointers; a number that is not open is answered EBADF.
    unsafe { libc::fcntl(fd, libc::F_GETFD) >= 0 }
}

/// Whether a descriptor is closed at exec.
pub(crate) fn close_on_exec(fd: RawFd, closed: bool) -> Result<(), Errno> {
    let flags = if closed { libc::FD_CLOEXEC } else { 0 };
    // SAFETY: no pointers.
    Errno::result(unsafe { libc::fcntl(fd, libc::F_SETFD, flags) }).map(drop)
}

/// dup2(2) onto 0, 1 or 2 (not close-on-exec).
pub(crate) fn dup_onto(fd: RawFd, target: RawFd) -> Result<(), Errno> {
    if fd == target {
        // SAFETY: no pointers; clears close-on-exec.
        return Errno::result(unsafe { libc::fcntl(fd, libc::F_SETFD, 0) }).map(drop);
    }
    // SAFETY: no pointers; `target` is one of the standard descriptors, which nothing owns in the child.
    Errno::result(unsafe { libc::dup2(fd, target) }).map(drop)
}

/// A copy of a descriptor that is above the standard ones, close-on-exec.
pub(crate) fn dup_high(fd: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    // SAFETY: no pointers.
    let copy = Errno::result(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_DUPFD_CLOEXEC, 3) })?;
    // SAFETY: the kernel has just returned this descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(copy) })
}

/// execve(2); returns only on failure.
pub(crate) fn exec(path: &CStr, argv: &[*const libc::c_char], envp: &[*const libc::c_char]) -> Errno {
    // SAFETY: both arrays end in null (the callers build them with `pointers`) and their strings are alive.
    unsafe { libc::execve(path.as_ptr(), argv.as_ptr(), envp.as_ptr()) };
    Errno::last()
}

/// The null-terminated pointer array of some strings.
pub(crate) fn pointers(strings: &[CString]) -> Vec<*const libc::c_char> {
    strings
        .iter()
        .map(|s| s.as_ptr())
        .chain([std::ptr::null()])
        .collect()
}

/// Bring the loopback interface of this network namespace up (SIOCSIFFLAGS).
pub(crate) fn loopback_up() -> Result<(), Errno> {
    let socket = nix::sys::socket::socket(
        nix::sys::socket::AddressFamily::Inet,
        nix::sys::socket::SockType::Datagram,
        nix::sys::socket::SockFlag::SOCK_CLOEXEC,
        None,
    )?;
    // SAFETY: ifreq is plain data for which all zeroes is valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    request.ifr_name[0] = b'l' as libc::c_char;
    request.ifr_name[1] = b'o' as libc::c_char;
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    // SAFETY: the request reads one ifreq, alive here.
    Errno::result(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) })
        .map(drop)
}

/// Unblock every signal.
pub(crate) fn unblock_signals() -> Result<(), Errno> {
    nix::sys::signal::SigSet::empty().thread_set_mask()
}

/// setdomainname(2).
pub(crate) fn set_domain_name(name: &str) -> Result<(), Errno> {
    // SAFETY: pointer and length describe `name`.
    Errno::result(unsafe { libc::setdomainname(name.as_ptr().cast(), name.len()) }).map(drop)
}

/// personality(2) with an execution domain (`PER_LINUX` 0, `PER_LINUX32` 8).
pub(crate) fn set_personality(domain: u64) -> Result<(), Errno> {
    // SAFETY: no pointers.
    Errno::result(unsafe { libc::personality(domain as libc::c_ulong) }).map(drop)
}

/// SIGPIPE back to its default (the Rust runtime ignores it, and what is ignored stays ignored over exec).
pub(crate) fn default_sigpipe() -> Result<(), Errno> {
    // SAFETY: SIG_DFL installs no handler.
    match unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) } {
        libc::SIG_ERR => Err(Errno::last()),
        _ => Ok(()),
    }
}

/// prlimit(2): set a resource limit of the calling process (`None`) or another.
pub(crate) fn set_limit(pid: Option<Pid>, resource: u32, soft: u64, hard: u64) -> Result<(), Errno> {
    let limit = libc::rlimit64 {
        rlim_cur: soft,
        rlim_max: hard,
    };
    let pid = pid.map_or(0, Pid::as_raw);
    // SAFETY: `limit` outlives the call; the old limit is not asked for.
    let result = unsafe {
        libc::syscall(
            libc::SYS_prlimit64,
            pid,
            resource,
            &raw const limit,
            std::ptr::null_mut::<libc::rlimit64>(),
        )
    };
    Errno::result(result).map(drop)
}

/// read(2) on a descriptor by number.
pub(crate) fn read_raw(fd: RawFd, buffer: &mut [u8]) -> Result<usize, Errno> {
    // SAFETY: pointer and length describe `buffer`.
    Errno::result(unsafe { libc::read(fd, buffer.as_mut_ptr().cast(), buffer.len()) }).map(|n| n as usize)
}

/// write(2) on a descriptor by number.
pub(crate) fn write_raw(fd: RawFd, bytes: &[u8]) -> Result<usize, Errno> {
    // SAFETY: pointer and length describe `bytes`.
    Errno::result(unsafe { libc::write(fd, bytes.as_ptr().cast(), bytes.len()) }).map(|n| n as usize)
}

/// Not traceable and without core dumps until the next exec.
pub(crate) fn set_not_dumpable() -> Result<(), Errno> {
    prctl(libc::PR_SET_DUMPABLE, 0, 0, 0).map(drop)
}
