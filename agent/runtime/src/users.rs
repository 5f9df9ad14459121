//! A user namespace that is there already: whose it is, whom it maps, and how a first process is born in it.
//!
//! ```text
//! caller ── clone ──> helper: enters the user namespace; then
//!    │                   └─ clone3(CLONE_PARENT | new namespaces) ──> the container's first process, the caller's child
//! ```
//! So its other namespaces belong to that user namespace, as they would had the clone made both. Invariants: only a
//! namespace made by the caller's own user in the caller's own namespace is entered: whoever made it has every right
//! over what runs there; neither helper nor first process can be traced from inside (they are not dumpable, and their
//! memory is the host's users').

use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sched::{CloneFlags, setns};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use nix::sys::stat::{Mode, fstat};
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::{Pid, geteuid};

use crate::proof::IdMap;
use crate::sys::process::{self as sys, CloneArgs, Cloned};
use crate::sys::{fds, ns};

/// Open it, and see that it may be entered.
pub(crate) fn open(path: &Path) -> Result<OwnedFd, String> {
    let call = |what: &'static str| move |e: Errno| format!("{what}: {}", e.desc());
    let fd =
        nix::fcntl::open(path, OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty()).map_err(call("open"))?;
    if ns::kind(&fd) != Ok(libc::CLONE_NEWUSER as u64) {
        return Err("it is no user namespace".into());
    }
    let own = std::fs::metadata("/proc/self/ns/user").map_err(|e| format!("/proc/self/ns/user: {e}"))?;
    let inode = |fd: &OwnedFd| fstat(fd).map(|s| s.st_ino);
    if inode(&fd) == Ok(own.ino()) {
        return Err("it is the runtime's own".into());
    }
    if ns::parent(&fd).and_then(|p| inode(&p)) != Ok(own.ino()) {
        return Err("it was not made in the runtime's own user namespace".into());
    }
    match ns::owner(&fd).map_err(call("owner"))? {
        uid if uid == geteuid().as_raw() => Ok(fd),
        uid => Err(format!("user {uid} made it, and has every right in it")),
    }
}

/// Its uid_map and gid_map: those of a process in it, which is there for as long as they are read.
pub(crate) fn maps(users: &OwnedFd) -> Result<(Vec<IdMap>, Vec<IdMap>), String> {
    let failed = |e: &dyn std::fmt::Display| format!("its maps cannot be read: {e}");
    let (mut ours, theirs) = UnixStream::pair().map_err(|e| failed(&e))?;
    let caller = nix::unistd::getpid();
    let (pid, pidfd) = match sys::clone3(CloneArgs::default()).map_err(|e| failed(&e.desc()))? {
        Cloned::Child => {
            // Other threads of the caller may hold the allocator: system calls alone.
            let _ = sys::set_not_dumpable();
            let _ = sys::set_parent_death_signal(libc::SIGKILL);
            if nix::unistd::getppid() == caller && setns(users, CloneFlags::CLONE_NEWUSER).is_ok() {
                let _ = nix::unistd::write(&theirs, b"in");
                loop {
                    nix::unistd::pause();
                }
            }
            sys::exit_now(1)
        }
        Cloned::Parent(pid, pidfd) => (pid, pidfd),
    };
    drop(theirs);
    let read = |name: &str| std::fs::read_to_string(format!("/proc/{pid}/{name}"));
    let inside = ours.read_exact(&mut [0; 2]);
    let texts = inside.and_then(|()| Ok((read("uid_map")?, read("gid_map")?)));
    let _ = sys::pidfd_signal(pidfd.as_fd(), libc::SIGKILL); // it cannot have been reaped
    reap(&pidfd);
    let (uids, gids) = texts.map_err(|e| failed(&e))?;
    match (parse(&uids), parse(&gids)) {
        (Some(uids), Some(gids)) if !uids.is_empty() && !gids.is_empty() => Ok((uids, gids)),
        (Some(_), Some(_)) => Err("it has no maps yet".into()),
        _ => Err(failed(&"they are not what proc(5) says")),
    }
}

fn reap(pidfd: &OwnedFd) {
    while waitid(Id::PIDFd(pidfd.as_fd()), WaitPidFlag::WEXITED) == Err(Errno::EINTR) {}
}

/// user_namespaces(7): first id inside, first outside, how many.
fn parse(text: &str) -> Option<Vec<IdMap>> {
    let line = |line: &str| {
        let mut words = line.split_ascii_whitespace().map(|w| w.parse().ok());
        Some(IdMap {
            inside: words.next()??,
            outside: words.next()??,
            count: words.next()??,
        })
    };
    text.lines().map(line).collect()
}

/// clone3(2) by a helper that has entered `users`, and joined `pids` for its children: see the module.
pub(crate) fn clone_in(
    users: BorrowedFd<'_>,
    pids: Option<BorrowedFd<'_>>,
    wanted: CloneArgs,
) -> Result<Cloned, Errno> {
    let (ours, theirs) = socketpair(
        AddressFamily::Unix,
        SockType::SeqPacket,
        None,
        SockFlag::SOCK_CLOEXEC,
    )?;
    let helper = match sys::clone3(CloneArgs::default())? {
        Cloned::Parent(_, helper) => helper,
        Cloned::Child => {
            drop(ours);
            let born = sys::set_parent_death_signal(libc::SIGKILL)
                .and_then(|()| sys::set_not_dumpable())
                .and_then(|()| pids.map_or(Ok(()), |pids| setns(pids, CloneFlags::CLONE_NEWPID)))
                .and_then(|()| setns(users, CloneFlags::CLONE_NEWUSER))
                .and_then(|()| sys::set_not_dumpable()) // new credentials
                .and_then(|()| {
                    sys::clone3(CloneArgs {
                        sibling: true,
                        ..wanted
                    })
                });
            let told = match born {
                Ok(Cloned::Child) => return Ok(Cloned::Child),
                Ok(Cloned::Parent(pid, pidfd)) => {
                    fds::send(theirs.as_fd(), &pid.as_raw().to_ne_bytes(), &[pidfd.as_fd()])
                }
                Err(errno) => fds::send(theirs.as_fd(), &(-(errno as i32)).to_ne_bytes(), &[]),
            };
            sys::exit_now(i32::from(told.is_err()))
        }
    };
    drop(theirs);
    let mut number = [0u8; 4];
    let said = fds::receive(ours.as_fd(), &mut number);
    reap(&helper);
    let (n, mut list) = said?;
    match (n, i32::from_ne_bytes(number), list.pop()) {
        (4, pid, Some(pidfd)) if pid > 0 => Ok(Cloned::Parent(Pid::from_raw(pid), pidfd)),
        (4, errno, None) if errno < 0 => Err(Errno::from_raw(-errno)),
        _ => Err(Errno::ECHILD), // the helper was killed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn maps_are_read() {
        let map = IdMap {
            inside: 0,
            outside: 100_000,
            count: 65536,
        };
        assert_eq!(parse("         0     100000      65536\n"), Some(vec![map]));
        assert_eq!(parse(""), Some(Vec::new()));
        assert_eq!(parse("0 1\n"), None);
    }

    #[test]
    fn what_is_no_user_namespace() {
        for (path, why) in [
            ("/proc/self/ns/mnt", "no user namespace"),
            ("/proc/self/ns/user", "runtime's own"),
            ("/etc/passwd", "no user namespace"),
            ("/no/such", "open"),
        ] {
            assert!(open(Path::new(path)).unwrap_err().contains(why), "{path}");
        }
    }
}
