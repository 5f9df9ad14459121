//! Who starts the launcher for an agent that may start nothing itself.
//!
//! A process forked before the agent has any thread, socket or sandbox. It waits on one end of a socket pair: a byte
//! asks for a launcher, eight bytes answer (pid and errno, in the machine's order). Invariants: it takes no
//! argument from the agent, so an agent that was taken over can have a launcher started and nothing else; what it
//! starts is the program and the command line it was given before; it ends when the agent's end of the pair is
//! closed, and launchers outlive it. With a launcher of its own unit there is no starter.
#![allow(unsafe_code)] // fork(2), before the process has a second thread

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use berth_launcher::socket;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::prctl;
use nix::unistd::{ForkResult, fork};

use super::settings::Settings;

/// Name in /proc/PID/comm.
const NAME: &std::ffi::CStr = c"berth-starter";

/// The agent's end.
#[derive(Debug)]
pub(crate) struct Starter {
    stream: UnixStream,
}

impl Starter {
    /// Forks the starter. Called by a process that has one thread.
    ///
    /// # Errors
    /// The kernel's.
    pub(crate) fn fork(settings: &Settings) -> io::Result<Starter> {
        let (ours, theirs) = UnixStream::pair()?;
        let command = command(settings)?;
        let pid_file = settings.folders.run.join("launcher.pid");
        // SAFETY: this process has one thread (it is called before the runtime is made), so the child may go on with all
        // of the library's state; it never returns from here.
        match unsafe { fork() }? {
            ForkResult::Parent { .. } => Ok(Starter { stream: ours }),
            ForkResult::Child => {
                drop(ours);
                let run = std::panic::AssertUnwindSafe(|| serve(theirs, command, &pid_file));
                let status = i32::from(std::panic::catch_unwind(run).is_err());
                // SAFETY: ends the process at once; the agent's exit handlers are not the starter's.
                unsafe { libc::_exit(status) }
            }
        }
    }

    /// Has a launcher started; its pid. Answered within a fork and an exec.
    ///
    /// # Errors
    /// Why it could not be started, or that the starter is gone.
    pub(crate) fn start(&mut self) -> io::Result<u32> {
        self.stream.write_all(b"!")?;
        let mut answer = [0; 8];
        self.stream.read_exact(&mut answer)?;
        let (pid, errno) = answer.split_at(4);
        let number = |bytes: &[u8]| bytes.try_into().map(i32::from_ne_bytes).unwrap_or(0);
        match (number(pid), number(errno)) {
            (pid, 0) => u32::try_from(pid).map_err(io::Error::other),
            (_, errno) => Err(io::Error::from_raw_os_error(errno)),
        }
    }
}

/// `berth launcher` as this agent wants it; it takes a session of its own by itself.
fn command(settings: &Settings) -> io::Result<Command> {
    let folders = &settings.folders;
    let mut command = Command::new(std::env::current_exe()?);
    command.arg("launcher").arg("--own-session");
    for (flag, path) in [
        ("--run-dir", &folders.run),
        ("--state-dir", &folders.state),
        ("--config-dir", &folders.config),
        ("--preloaded-dir", &folders.preloaded),
    ] {
        command.arg(flag).arg(path);
    }
    command
        .args(["--cgroup-parent", &settings.cgroup_parent])
        .args(["--audit-to", &settings.audit_to])
        .current_dir("/")
        .stdin(Stdio::null())
        // It writes to the agent's standard error; its output is nobody's.
        .stdout(Stdio::null());
    Ok(command)
}

/// The starter's whole life.
fn serve(mut stream: UnixStream, mut command: Command, pid_file: &Path) {
    // A terminal's signals are for the agent; the starter ends with it.
    let _ = nix::unistd::setsid();
    let _ = prctl::set_name(NAME);
    let _ = prctl::set_dumpable(false);
    let mut children: Vec<(Child, OwnedFd)> = Vec::new();
    loop {
        let mut fds = vec![PollFd::new(stream.as_fd(), PollFlags::POLLIN)];
        fds.extend(
            children
                .iter()
                .map(|(_, pidfd)| PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)),
        );
        match poll(&mut fds, PollTimeout::NONE) {
            Ok(_) => {}
            Err(nix::Error::EINTR) => continue,
            Err(_) => return,
        }
        let asked = fds[0].revents().is_some_and(|r| !r.is_empty());
        children.retain_mut(|(child, _)| !matches!(child.try_wait(), Ok(Some(_))));
        if !asked {
            continue;
        }
        let mut byte = [0; 1];
        if stream.read_exact(&mut byte).is_err() {
            return;
        }
        let (pid, errno) = match command.spawn() {
            Ok(child) => {
                let pid = i32::try_from(child.id()).unwrap_or(0);
                // For people; nobody reads it again.
                drop(std::fs::write(pid_file, format!("{pid}\n")));
                children.extend(socket::pidfd_open(pid).ok().map(|pidfd| (child, pidfd)));
                (pid, 0)
            }
            Err(e) => (0, e.raw_os_error().unwrap_or(libc::EIO)),
        };
        let answer = [pid.to_ne_bytes(), errno.to_ne_bytes()].concat();
        if stream.write_all(&answer).is_err() {
            return;
        }
    }
}
