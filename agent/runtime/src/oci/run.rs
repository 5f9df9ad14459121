//! `run` waits for its container and passes signals on.
//!
//! Invariant: signals are blocked, and so kept, from before the clone: none is lost, and the end of the container is
//! read from its pidfd, not from SIGCHLD.

use std::os::fd::AsFd;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::WaitStatus;

use crate::container::Container;

/// Signals kept for the container.
pub(super) struct Waiting(SignalFd);

/// Those that are passed on.
const PASSED_ON: [Signal; 9] = [
    Signal::SIGTERM,
    Signal::SIGINT,
    Signal::SIGHUP,
    Signal::SIGQUIT,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
    Signal::SIGCONT,
    Signal::SIGALRM,
    Signal::SIGWINCH,
];

impl Waiting {
    pub(super) fn begin() -> Result<Self, Errno> {
        let set: SigSet = PASSED_ON.into_iter().collect();
        set.thread_block()?;
        Ok(Self(SignalFd::with_flags(
            &set,
            SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK,
        )?))
    }

    /// Until the container ends: its exit status, or 128 + the signal that killed it.
    pub(super) fn wait(self, container: &Container) -> Result<i32, Errno> {
        let pidfd = container.pidfd().ok_or(Errno::ECHILD)?;
        loop {
            let mut fds = [
                PollFd::new(pidfd, PollFlags::POLLIN),
                PollFd::new(self.0.as_fd(), PollFlags::POLLIN),
            ];
            match poll(&mut fds, PollTimeout::NONE) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno),
            }
            while let Some(info) = self.0.read_signal()? {
                // It may have ended meanwhile: the next look at the pidfd says so.
                let _ = container.signal(info.ssi_signo as i32);
            }
            if fds[0].revents().is_some_and(|r| r.contains(PollFlags::POLLIN)) {
                return Ok(match container.wait()? {
                    WaitStatus::Exited(_, code) => code,
                    WaitStatus::Signaled(_, signal, _) => 128 + signal as i32,
                    _ => 1,
                });
            }
        }
    }
}
