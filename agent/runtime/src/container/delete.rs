//! The end of a container.
//!
//! Invariants: deletion goes on after an error and returns all of them; the state folder goes last, so that what is
//! left can be tried again.

use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::path::Path;
use std::time::Duration;

use berth_rt::cgroup::{Cgroup, Hierarchy};
use nix::errno::Errno;
use nix::sys::wait::{Id, WaitPidFlag, waitid};

use super::{Channel, Container, DeleteError, ended};
use crate::hooks;
use crate::state;
use crate::sys::process as sys;

impl Container {
    /// Free what a creation left that was cut off: its processes, its cgroup, its folder.
    ///
    /// # Errors
    /// Everything that could not be freed.
    pub fn sweep(state_root: &Path, id: &str, hierarchy: &Hierarchy) -> Result<(), Vec<DeleteError>> {
        let dir = state_root.join(id);
        let mut errors = Vec::new();
        if let Ok(path) = fs::read_to_string(dir.join(state::CGROUP))
            && let Ok(cgroup) = Cgroup::open(hierarchy, path.trim())
        {
            free_cgroup(&cgroup, &mut errors);
        }
        if errors.is_empty() {
            remove_dir(&dir, &mut errors);
        }
        if errors.is_empty() { Ok(()) } else { Err(errors) }
    }

    /// Kill every process, free the cgroup and the state folder, run the poststop hooks.
    ///
    /// # Errors
    /// Everything that could not be freed; what could be, is. The state folder stays while anything else does, so
    /// that deletion can be tried again.
    pub fn delete(&mut self) -> Result<(), Vec<DeleteError>> {
        self.timing.resume();
        let mut errors = Vec::new();
        self.channel = Channel::None;
        if let Some(pidfd) = &self.pidfd {
            match sys::pidfd_signal(pidfd.as_fd(), libc::SIGKILL) {
                Ok(()) => {
                    // A frozen process of cgroup v1 ends only once it is thawed.
                    if let Some(cgroup) = &self.cgroup
                        && cgroup.frozen().unwrap_or(true)
                        && let Err(e) = cgroup.thaw()
                    {
                        errors.push(DeleteError {
                            what: "cgroup",
                            message: e.to_string(),
                        });
                    }
                    if !ended(pidfd.as_fd(), Duration::from_secs(10)) {
                        let message = format!("process {} does not end after SIGKILL", self.record.pid);
                        errors.push(DeleteError {
                            what: "process",
                            message,
                        });
                    }
                }
                Err(Errno::ESRCH) => {}
                Err(errno) => {
                    let message = format!("process {}: {}", self.record.pid, errno.desc());
                    errors.push(DeleteError {
                        what: "process",
                        message,
                    });
                }
            }
            // Only a child of the caller can be reaped; for others init does it.
            let _ = waitid(
                Id::PIDFd(pidfd.as_fd()),
                WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG,
            );
        }
        self.timing.mark("kill");
        if let Some(cgroup) = self.cgroup.take() {
            free_cgroup(&cgroup, &mut errors);
            if !errors.is_empty() {
                self.cgroup = Some(cgroup);
            }
        }
        self.timing.mark("free cgroup");
        if errors.is_empty() {
            remove_dir(&self.dir, &mut errors);
            let state = self.record.state.at(0, "stopped");
            for hook in &self.record.hooks.poststop {
                if let Err(e) = hooks::run("poststop", std::slice::from_ref(hook), &state) {
                    errors.push(DeleteError {
                        what: "poststop",
                        message: e.to_string(),
                    });
                }
            }
        }
        self.timing.mark("free state");
        if errors.is_empty() { Ok(()) } else { Err(errors) }
    }
}

fn free_cgroup(cgroup: &Cgroup, errors: &mut Vec<DeleteError>) {
    // As a rule its last process has ended.
    if cgroup.remove_empty() {
        return;
    }
    if let Err(e) = cgroup.kill() {
        errors.push(DeleteError {
            what: "cgroup",
            message: e.to_string(),
        });
    }
    if let Err(e) = cgroup.remove() {
        errors.push(DeleteError {
            what: "cgroup",
            message: e.to_string(),
        });
    }
}

/// The files by name, which is all there is as a rule; whatever else is there goes too.
fn remove_dir(dir: &Path, errors: &mut Vec<DeleteError>) {
    for name in [state::RECORD, state::CGROUP, state::START, state::FAILURE] {
        let _ = fs::remove_file(dir.join(name)); // what stays is met again below
    }
    match fs::remove_dir(dir).or_else(|_| fs::remove_dir_all(dir)) {
        Ok(()) => {}
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        Err(e) => errors.push(DeleteError {
            what: "state",
            message: format!("{}: {e}", dir.display()),
        }),
    }
}
