//! `run` and `exec` wait for their process, pass signals on and relay its terminal.
//!
//! Invariant: signals are blocked, and so kept, from before the clone: none is lost, and the end of the process is
//! read from its pidfd, not from SIGCHLD.

use std::os::fd::{AsFd, BorrowedFd};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};

use super::terminal::Session;
use crate::sys::process as sys;

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

    /// Until the process ends: its exit status, or 128 + the signal that killed it.
    pub(super) fn wait(self, pidfd: BorrowedFd<'_>, mut session: Option<Session>) -> Result<i32, Errno> {
        let (stdin, stdout) = (std::io::stdin(), std::io::stdout());
        loop {
            let mut fds = vec![
                PollFd::new(pidfd, PollFlags::POLLIN),
                PollFd::new(self.0.as_fd(), PollFlags::POLLIN),
            ];
            if let Some(session) = &session {
                fds.push(PollFd::new(session.relay.master(), PollFlags::POLLIN));
                if session.relay.reads() {
                    fds.push(PollFd::new(stdin.as_fd(), PollFlags::POLLIN));
                }
            }
            match poll(&mut fds, PollTimeout::NONE) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno),
            }
            let ready: Vec<bool> = fds.iter().map(|fd| fd.any().unwrap_or(false)).collect();
            while let Some(info) = self.0.read_signal()? {
                match &session {
                    Some(session) if info.ssi_signo == libc::SIGWINCH as u32 => {
                        session.relay.resize(stdin.as_fd());
                    }
                    // It may have ended meanwhile: the next look at the pidfd says so.
                    _ => drop(sys::pidfd_signal(pidfd, info.ssi_signo as i32)),
                }
            }
            if let Some(open) = &mut session {
                if ready.get(3).copied().unwrap_or(false) {
                    open.relay.input(stdin.as_fd())?;
                }
                if ready[2] && !open.relay.output(stdout.as_fd())? {
                    session = None; // nobody holds the other end any more
                }
            }
            if ready[0] {
                if let Some(mut open) = session {
                    drain(&mut open, stdout.as_fd())?;
                }
                return loop {
                    match waitid(Id::PIDFd(pidfd), WaitPidFlag::WEXITED) {
                        Err(Errno::EINTR) => {}
                        Ok(WaitStatus::Exited(_, code)) => break Ok(code),
                        Ok(WaitStatus::Signaled(_, signal, _)) => break Ok(128 + signal as i32),
                        Ok(_) => break Ok(1),
                        Err(errno) => break Err(errno),
                    }
                };
            }
        }
    }
}

/// What the terminal still holds after the end.
fn drain(session: &mut Session, to: BorrowedFd<'_>) -> Result<(), Errno> {
    loop {
        let mut fds = [PollFd::new(session.relay.master(), PollFlags::POLLIN)];
        match poll(&mut fds, PollTimeout::ZERO)? {
            0 => return Ok(()),
            _ if !session.relay.output(to)? => return Ok(()),
            _ => {}
        }
    }
}
