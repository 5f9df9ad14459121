//! Network namespaces made before a container needs them, or beside the reading of its configuration: making one takes the
//! kernel several times as long as all other namespaces together.
//!
//! Invariants: a namespace is used once, by one container: [`Network`] is moved into the plan and cannot be copied; nothing
//! has ever run in it but the few calls below, by a process of one thread; its loopback interface is up; it belongs to
//! the caller's user namespace, so a container with a user namespace of its own gets none of these. A process that cannot
//! get back into its own namespace ends at once: everything it would do later would happen in the wrong one.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::thread::{Builder, JoinHandle};

use nix::fcntl::OFlag;
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::stat::Mode;

use crate::sys::process as sys;

/// This thread's network namespace.
const OWN: &str = "/proc/thread-self/ns/net";

/// Of the thread: three system calls, and an open.
const STACK: usize = 64 * 1024;

/// A network namespace that nobody has used.
#[derive(Debug)]
pub struct Network(OwnedFd);

impl Network {
    /// Makes one. The caller has one thread.
    ///
    /// # Errors
    /// The kernel's answer: EPERM without CAP_SYS_ADMIN, ENOSPC at `user.max_net_namespaces`.
    pub fn make() -> io::Result<Self> {
        let open = || nix::fcntl::open(OWN, OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty());
        let own = open()?;
        unshare(CloneFlags::CLONE_NEWNET)?;
        let made = sys::loopback_up().and_then(|()| open());
        if let Err(errno) = setns(&own, CloneFlags::CLONE_NEWNET) {
            eprintln!(
                "berth: cannot go back to the network namespace {OWN}: {}",
                errno.desc()
            );
            std::process::abort();
        }
        Ok(Self(made?))
    }
}

impl AsFd for Network {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// A network namespace that a thread is making.
#[derive(Debug)]
pub(crate) struct Beside(JoinHandle<nix::Result<OwnedFd>>);

impl Beside {
    /// Begin, where the text of a config.json names a network namespace. What is read wrongly here costs time only: the
    /// plan decides whether the container takes it.
    pub(crate) fn begin(config: &[u8]) -> Option<Self> {
        const NAME: &[u8] = b"\"network\"";
        let named = config.windows(NAME.len()).any(|part| part == NAME);
        let make = || {
            // The thread stays there, and ends.
            unshare(CloneFlags::CLONE_NEWNET)?;
            sys::loopback_up()?;
            nix::fcntl::open(OWN, OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())
        };
        let thread = named.then(|| Builder::new().stack_size(STACK).spawn(make))?;
        thread.ok().map(Beside)
    }

    /// The namespace, and the thread has ended. `None`: it could not be made; clone(2) will say why.
    pub(crate) fn end(self) -> Option<Network> {
        self.0.join().ok()?.ok().map(Network)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn a_thread_makes_one_and_this_one_stays_where_it_is() {
        assert!(Beside::begin(br#"{"type":"pid"}"#).is_none());
        let before = std::fs::metadata(OWN).unwrap().ino();
        let made = Beside::begin(br#"{"type":"network"}"#)
            .unwrap()
            .end()
            .expect("root is needed");
        let inside = nix::sys::stat::fstat(&made).unwrap().st_ino;
        assert_ne!(inside, before);
        assert_eq!(std::fs::metadata(OWN).unwrap().ino(), before);
    }
}
