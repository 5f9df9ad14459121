//! The end of a container.
//!
//! Invariants: deletion goes on after an error and returns all of them; the state folder goes last, so that what is
//! left can be tried again. Who deletes holds the folder ([`claim`]): nothing of a container that is being made, or that
//! has got the same id since, is taken away.

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use berth_rt::cgroup::{Cgroup, Hierarchy};
use nix::errno::Errno;
use nix::sys::wait::{Id, WaitPidFlag, waitid};

use super::{Channel, Container, DeleteError, OpenError, ended};
use crate::hooks;
use crate::proof::{NamespaceKind, NamespacePromise};
use crate::state::claim::{self, PATIENCE, Taken};
use crate::state::{self, Record};
use crate::sys::process as sys;

impl Container {
    /// Free what a creation left that was cut off: its processes, its cgroup, its folder.
    ///
    /// # Errors
    /// Everything that could not be freed.
    pub fn sweep(state_root: &Path, id: &str, hierarchy: &Hierarchy) -> Result<(), Vec<DeleteError>> {
        let dir = state_root.join(id);
        let folder = match claim::open(&dir) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            other => other.map_err(|e| vec![of_state(&dir, &e)])?,
        };
        let held = match claim::take(folder, &dir, PATIENCE) {
            Ok(Taken::Held(held)) => held,
            // Somebody else has freed it.
            Ok(Taken::Gone | Taken::Another) => return Ok(()),
            Ok(Taken::Busy(folder)) => return Err(vec![busy(id, &folder)]),
            Err(e) => return Err(vec![of_state(&dir, &e)]),
        };
        if let Ok(Some(_)) = Record::load_from(&held) {
            // It was finished meanwhile.
            drop(held);
            return match Container::open(state_root, id, hierarchy) {
                Ok(mut container) => container.delete(),
                Err(OpenError::NotFound { .. }) => Ok(()),
                Err(e) => Err(vec![DeleteError {
                    what: "state",
                    message: e.to_string(),
                }]),
            };
        }
        let mut errors = Vec::new();
        if let Ok(path) = fs::read_to_string(dir.join(state::CGROUP))
            && let Ok(cgroup) = Cgroup::open(hierarchy, path.trim())
        {
            free_cgroup(&cgroup, &mut errors);
        }
        if let Err(message) = crate::joined::give_back(&dir, None) {
            errors.push(DeleteError {
                what: "mounts",
                message,
            });
        }
        if errors.is_empty() {
            remove_dir(&dir, &mut errors);
        }
        if errors.is_empty() { Ok(()) } else { Err(errors) }
    }

    /// Does its root lie over that of a mount namespace that was joined?
    fn lends_mounts(&self) -> bool {
        let promise = self.record.promise.namespaces.get(&NamespaceKind::Mnt);
        matches!(promise, Some(NamespacePromise::Joined { .. }))
    }

    /// Kill every process, free the cgroup and the state folder, run the poststop hooks.
    ///
    /// # Errors
    /// Everything that could not be freed; what could be, is. The state folder stays while anything else does, so
    /// that deletion can be tried again.
    pub fn delete(&mut self) -> Result<(), Vec<DeleteError>> {
        self.timing.resume();
        let mut errors = Vec::new();
        let taken = match self.folder.take() {
            Some(folder) => claim::take(folder, &self.dir, PATIENCE),
            None => Ok(Taken::Gone),
        };
        let held = match taken {
            Ok(Taken::Held(held)) => Some(held),
            Ok(Taken::Gone) => None,
            Ok(Taken::Another) => {
                // Freed by somebody else; the cgroup and the folder of this name are another container's.
                self.cgroup = None;
                None
            }
            Ok(Taken::Busy(folder)) => {
                let error = busy(&self.record.id, &folder);
                self.folder = Some(folder);
                return Err(vec![error]);
            }
            Err(e) => return Err(vec![of_state(&self.dir, &e)]),
        };
        self.channel = Channel::None;
        let mounts = self.lends_mounts().then(|| {
            // As long as it is there its own file is the surer name.
            crate::joined::open(
                &Path::new("/proc")
                    .join(self.record.pid.to_string())
                    .join("ns/mnt"),
            )
            .ok()
            .filter(|_| self.alive())
        });
        if let Some(pidfd) = &self.pidfd {
            match sys::pidfd_signal(pidfd.as_fd(), libc::SIGKILL) {
                Ok(()) => {
                    // A frozen process of cgroup v1 ends only once it is thawed.
                    let thawed = self.cgroup.as_ref().map_or(Ok(()), Cgroup::thaw_to_kill);
                    if let Err(e) = thawed {
                        errors.push(DeleteError {
                            what: "cgroup",
                            message: e.to_string(),
                        });
                    } else if !ended(pidfd.as_fd(), Duration::from_secs(10)) {
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
        if let Some(first) = mounts
            && let Err(message) = crate::joined::give_back(&self.dir, first)
        {
            errors.push(DeleteError {
                what: "mounts",
                message,
            });
        }
        if let Some(cgroup) = self.cgroup.take() {
            free_cgroup(&cgroup, &mut errors);
            if !errors.is_empty() {
                self.cgroup = Some(cgroup);
            }
        }
        self.timing.mark("free cgroup");
        if errors.is_empty() {
            // Who frees the folder runs them, and nobody twice.
            let Some(_) = held else {
                return Ok(());
            };
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
        if !errors.is_empty() {
            self.folder = held.and_then(|h| h.unlock().ok());
        }
        self.timing.mark("free state");
        if errors.is_empty() { Ok(()) } else { Err(errors) }
    }
}

fn of_state(dir: &Path, error: &io::Error) -> DeleteError {
    DeleteError {
        what: "state",
        message: format!("{}: {error}", dir.display()),
    }
}

fn busy(id: &str, folder: &OwnedFd) -> DeleteError {
    let by = claim::describe(claim::holder(folder));
    DeleteError {
        what: "state",
        message: format!(
            "container `{id}` is being created or deleted by {by}, and was for {PATIENCE:?}: wait, or kill that process"
        ),
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
