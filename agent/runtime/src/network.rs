//! Network namespaces made before a container needs them: making one takes the kernel several times as long as all other
//! namespaces together.
//!
//! Invariants: a namespace is used once, by one container: [`Network`] is moved into the plan and cannot be copied; nothing
//! has ever run in it but the few calls below, by a process of one thread; its loopback interface is up; it belongs to
//! the caller's user namespace, so a container with a user namespace of its own gets none of these. A process that cannot
//! get back into its own namespace ends at once: everything it would do later would happen in the wrong one.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::fcntl::OFlag;
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::stat::Mode;

use crate::sys::process as sys;

/// This thread's network namespace.
const OWN: &str = "/proc/thread-self/ns/net";

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
