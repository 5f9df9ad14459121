//! OCI hooks: programs run around a container's life, each with the container's state as JSON on its standard
//! input.
//!
//! Invariants: a hook is waited for; one that outlives its timeout is killed with its process group, and one whose
//! runtime is killed dies with it (what it started itself does not); a hook that fails names its path, its kind and how
//! it ended. A standard output or error that nobody reads any more is /dev/null to it: it would end by SIGPIPE.
#![allow(unsafe_code)] // what the new process does before its exec

use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use crate::sys::process as sys;

/// One hook.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hook {
    /// Program, absolute.
    pub path: PathBuf,
    /// Arguments with the program itself first; empty: the path alone.
    #[serde(default)]
    pub args: Vec<String>,
    /// Environment; `None`: that of the runtime.
    #[serde(default)]
    pub env: Option<Vec<String>>,
    /// Seconds, more than 0; `None`: no limit.
    #[serde(default)]
    pub timeout: Option<u64>,
}

/// Why a hook did not succeed.
#[derive(Debug, thiserror::Error)]
pub enum HookError {
    /// It could not be started or waited for.
    #[error("{kind} hook `{path}`: {source}")]
    Run {
        /// `createRuntime`, ….
        kind: &'static str,
        /// Program.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// It ended with another status than 0.
    #[error("{kind} hook `{path}` failed: {status}")]
    Failed {
        /// `createRuntime`, ….
        kind: &'static str,
        /// Program.
        path: PathBuf,
        /// How it ended.
        status: String,
    },
    /// It was killed.
    #[error("{kind} hook `{path}` did not end within {seconds} s and was killed")]
    Timeout {
        /// `createRuntime`, ….
        kind: &'static str,
        /// Program.
        path: PathBuf,
        /// The limit.
        seconds: u64,
    },
}

/// Run hooks one after the other; the first failure ends it.
///
/// # Errors
/// [`HookError`] of the first hook that failed.
pub fn run(kind: &'static str, hooks: &[Hook], state: &str) -> Result<(), HookError> {
    hooks.iter().try_for_each(|hook| run_one(kind, hook, state))
}

fn run_one(kind: &'static str, hook: &Hook, state: &str) -> Result<(), HookError> {
    let error = |source| HookError::Run {
        kind,
        path: hook.path.clone(),
        source,
    };
    let mut command = Command::new(&hook.path);
    if let Some((name, rest)) = hook.args.split_first() {
        command.arg0(name).args(rest);
    }
    if let Some(env) = &hook.env {
        command.env_clear();
        command.envs(env.iter().map(|pair| pair.split_once('=').unwrap_or((pair, ""))));
    }
    if unread(std::io::stdout().as_fd()) {
        command.stdout(Stdio::null());
    }
    if unread(std::io::stderr().as_fd()) {
        command.stderr(Stdio::null());
    }
    let parent = nix::unistd::getpid();
    let die_with_parent = move || {
        sys::set_parent_death_signal(libc::SIGKILL)?;
        // It may have died before. Across pid namespaces a parent is 0, and here it is in the same.
        match nix::unistd::getppid() == parent {
            true => Ok(()),
            false => Err(Errno::ESRCH.into()),
        }
    };
    // SAFETY: between fork and exec it only makes system calls, and allocates nothing.
    unsafe { command.pre_exec(die_with_parent) };
    let mut child = command
        .stdin(Stdio::piped())
        .process_group(0)
        .spawn()
        .map_err(error)?;
    if let Some(mut stdin) = child.stdin.take() {
        // A hook need not read its input: a closed pipe is no failure.
        match stdin.write_all(state.as_bytes()) {
            Err(e) if e.raw_os_error() != Some(libc::EPIPE) => return Err(error(e)),
            _ => {}
        }
    }
    let status = match hook.timeout {
        None => child.wait().map_err(error)?,
        Some(seconds) => match wait_for(&mut child, Duration::from_secs(seconds)).map_err(error)? {
            Some(status) => status,
            None => {
                let _ = killpg(Pid::from_raw(child.id() as i32), Signal::SIGKILL); // ESRCH: it has just ended
                child.wait().map_err(error)?;
                return Err(HookError::Timeout {
                    kind,
                    path: hook.path.clone(),
                    seconds,
                });
            }
        },
    };
    if status.success() {
        return Ok(());
    }
    let status = match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit status {code}"),
        (None, Some(signal)) => format!("signal {signal}"),
        _ => status.to_string(),
    };
    Err(HookError::Failed {
        kind,
        path: hook.path.clone(),
        status,
    })
}

/// A pipe or socket whose other end is gone.
fn unread(fd: BorrowedFd<'_>) -> bool {
    let mut fds = [PollFd::new(fd, PollFlags::empty())];
    let gone = PollFlags::POLLERR | PollFlags::POLLHUP;
    poll(&mut fds, PollTimeout::ZERO).is_ok() && fds[0].revents().is_some_and(|r| r.intersects(gone))
}

fn wait_for(child: &mut Child, limit: Duration) -> std::io::Result<Option<ExitStatus>> {
    let pidfd = sys::pidfd_open(Pid::from_raw(child.id() as i32))?;
    let end = Instant::now() + limit;
    loop {
        let left = end.saturating_duration_since(Instant::now());
        let timeout = PollTimeout::try_from(left + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX);
        let mut fds = [PollFd::new(std::os::fd::AsFd::as_fd(&pidfd), PollFlags::POLLIN)];
        match poll(&mut fds, timeout) {
            Ok(0) if left.is_zero() => return Ok(None),
            Ok(0) | Err(Errno::EINTR) => {}
            Ok(_) => return child.wait().map(Some),
            Err(errno) => return Err(errno.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str, timeout: Option<u64>) -> Hook {
        let args = ["sh", "-c", script].map(str::to_owned).to_vec();
        Hook {
            path: "/bin/sh".into(),
            args,
            env: Some(vec!["HOOK=here".into()]),
            timeout,
        }
    }

    #[test]
    fn state_environment_and_failures() {
        run(
            "poststop",
            &[shell("read s; test \"$s\" = state -a $HOOK = here", None)],
            "state\n",
        )
        .unwrap();
        let error = run("poststop", &[shell("exit 3", Some(9))], "")
            .unwrap_err()
            .to_string();
        assert_eq!(error, "poststop hook `/bin/sh` failed: exit status 3");
        let missing = Hook {
            path: "/no/such".into(),
            args: vec![],
            env: None,
            timeout: None,
        };
        assert!(matches!(
            run("poststop", &[missing], ""),
            Err(HookError::Run { .. })
        ));
    }

    #[test]
    fn a_hook_that_hangs_is_killed_with_its_children() {
        let error = run("prestart", &[shell("sleep 1000 & wait", Some(1))], "").unwrap_err();
        assert!(matches!(error, HookError::Timeout { seconds: 1, .. }), "{error}");
    }
}
