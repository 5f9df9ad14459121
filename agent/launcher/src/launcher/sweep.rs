//! What is left when a monitor dies before its container was released.
//!
//! The kernel has killed the container's first process (PR_SET_PDEATHSIG), and with it its pid namespace; here
//! the rest goes: what else is in its cgroup, the cgroup itself, its writable layer, its state and the monitor's
//! socket. A record is written where the monitor left none, and stays until the next sweep or launch under that
//! id, so that an agent that was away can read it.
#![allow(unsafe_code)] // fork(2), from a process with one thread

use std::fs;
use std::os::fd::AsFd;

use berth_rt::cgroup::{Cgroup, OpenError};
use nix::unistd::{ForkResult, fork};

use super::{Launcher, Watched};
use crate::compose::chain;
use crate::monitor::quiet;
use crate::paths::{self, Record};
use crate::socket;
use crate::wire::{Exit, Refusal, VERSION};

impl Launcher {
    /// At start: watches the monitors of an earlier launcher, and sweeps after those that died meanwhile.
    pub(super) fn adopt(&mut self) {
        for id in self.known() {
            if !self.watch(&id) {
                self.on_dead(&id);
            }
        }
        if !self.paths.aside().is_empty() {
            self.clean();
        }
        // What could not be swept keeps its socket, and its categories.
        let monitors = self.paths.monitors();
        self.labels
            .retain(|id| monitors.join(format!("{id}.sock")).exists());
        self.ranges
            .retain(|id| monitors.join(format!("{id}.sock")).exists());
    }

    /// Ids with a socket or a state folder.
    fn known(&self) -> Vec<String> {
        let names = |folder: std::path::PathBuf| {
            let entries = fs::read_dir(folder).into_iter().flatten().flatten();
            entries.filter_map(|e| e.file_name().into_string().ok())
        };
        let sockets = names(self.paths.monitors()).filter_map(|n| n.strip_suffix(".sock").map(str::to_owned));
        let networks = crate::cni::known(&self.paths);
        let secrets = names(self.paths.run.join("secrets"));
        let containers = names(self.paths.run.join("containers"));
        let heard = names(self.paths.run.join("udev"));
        let holders = quiet::keeper(&self.paths).holders();
        let all = sockets.chain(containers).chain(networks);
        let mut all: Vec<String> = all
            .chain(secrets)
            .chain(heard)
            .chain(crate::vfio::known(&self.paths))
            .chain(holders)
            .collect();
        all.sort();
        all.dedup();
        all.retain(|id| crate::check::id(id).is_ok());
        all
    }

    /// Watches the monitor that listens for `id`; false where none does.
    fn watch(&mut self, id: &str) -> bool {
        let Ok(stream) = socket::connect(&self.paths.monitors(), &format!("{id}.sock")) else {
            return false;
        };
        // The kernel noted who listens when it began to.
        let Ok((pid, _)) = socket::peer(stream.as_fd()) else {
            return false;
        };
        match socket::pidfd_open(pid) {
            Ok(pidfd) => {
                self.watched.push(Watched {
                    id: id.to_owned(),
                    pidfd,
                });
                true
            }
            Err(_) => false,
        }
    }

    pub(super) fn monitor_lives(&self, id: &str) -> bool {
        socket::connect(&self.paths.monitors(), &format!("{id}.sock")).is_ok()
    }

    /// A monitor has ended: after `release` nothing is left; else it was killed.
    pub(super) fn on_dead(&mut self, id: &str) {
        let socket = self.paths.monitors().join(format!("{id}.sock"));
        if self.watched.iter().any(|w| w.id == id) {
            // Released, and the id is another container's by now.
            return;
        }
        let holds = crate::cni::known(&self.paths).iter().any(|n| n == id)
            || self.paths.vfio(id).exists()
            || quiet::keeper(&self.paths).holders().iter().any(|h| h == id);
        if !holds && !socket.exists() && !self.paths.container(id).exists() {
            self.drop_places(id);
            self.labels.free(id);
            self.ranges.free(id);
            return;
        }
        match self.clear(id, true) {
            Ok(()) => {
                eprintln!("berth launcher: the monitor of {id} is gone; swept");
                let text = "its monitor died, its container was killed with it, and what they left was freed";
                let lost = berth_audit::Entry::new("monitor-lost", id, text).result("failed");
                self.recorder.note(lost).ok();
            }
            Err(refusal) => eprintln!("berth launcher: sweeping {id}: {}", refusal.message),
        }
    }

    /// The folders on the host that a container sees parts of.
    pub(super) fn drop_places(&self, id: &str) {
        crate::secrets::detach(&self.paths.secrets(id));
        crate::uevent::forget(&self.paths, id);
    }

    /// By request: everything of a dead monitor, its record too.
    pub(super) fn sweep(&mut self, id: &str) -> Result<(), Refusal> {
        if self.monitor_lives(id) {
            let hint = Some("stop and release it instead".to_owned());
            return Err(Refusal {
                stage: "sweep".into(),
                message: format!("the monitor of {id} lives"),
                hint,
            });
        }
        self.watched.retain(|w| w.id != id);
        self.clear(id, false)
    }

    /// Goes on after an error, and tells all of them. A container that is not wholly gone keeps its categories.
    fn clear(&mut self, id: &str, keep_record: bool) -> Result<(), Refusal> {
        self.drop_places(id);
        let mut errors = Vec::new();
        let mut hint = None;
        let parent = &self.config.cgroup_parent;
        let chained = berth_rt::partition::chained(&self.hierarchy, parent);
        for parent in chained.iter().chain([parent]) {
            match Cgroup::open(&self.hierarchy, &format!("{parent}/{id}")) {
                Ok(cgroup) => {
                    if let Err(e) = cgroup.kill() {
                        hint = e.hint();
                        errors.push(chain(&e));
                    }
                    if let Err(e) = cgroup.remove() {
                        hint = hint.or_else(|| e.hint());
                        errors.push(chain(&e));
                    }
                }
                Err(OpenError::NotFound { .. }) => {}
                Err(e) => errors.push(chain(&e)),
            }
        }
        errors.extend(crate::cni::detach(&self.paths, id).err().into_iter().flatten());
        errors.extend(crate::vfio::give_back(&Default::default(), &self.paths, id));
        if let Err(e) = quiet::keeper(&self.paths).release(id) {
            hint = hint.or_else(|| e.hint());
            errors.push(e.to_string());
        }
        let folder = self.paths.container(id);
        let record = Record::read(&folder)
            .ok()
            .flatten()
            .filter(|r| r.boot_id == self.boot_id);
        let mut done = vec![paths::remove_tree(&folder)];
        match self.paths.set_aside(id) {
            Ok(Some(_)) => self.clean(),
            Ok(None) => {}
            Err(e) => errors.push(e.to_string()),
        }
        if keep_record {
            let record = record.unwrap_or_else(|| self.unwitnessed(id));
            done.push(record.write(&folder));
        }
        // Last: while the socket is there, a launcher that starts anew sweeps again.
        done.push(paths::remove_file(
            &self.paths.monitors().join(format!("{id}.sock")),
        ));
        errors.extend(done.into_iter().filter_map(Result::err).map(|e| e.to_string()));
        if errors.is_empty() {
            self.labels.free(id);
            self.ranges.free(id);
            return Ok(());
        }
        Err(Refusal {
            stage: "sweep".into(),
            message: errors.join("; "),
            hint,
        })
    }

    /// Removes what was set aside, in a process of its own: a container may have written for hours, and this loop has
    /// others to answer. What a process that is killed leaves is met again by the next.
    pub(super) fn clean(&mut self) {
        // SAFETY: as in `launch`: one thread, and the child never returns into the launcher's loop.
        match unsafe { fork() } {
            Ok(ForkResult::Child) => {
                self.leave();
                // SAFETY: setpriority(2) takes numbers alone.
                unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, 19) };
                for folder in self.paths.aside() {
                    // Another such process may be at it.
                    if let Err(e) = paths::remove_tree(&folder)
                        && folder.exists()
                    {
                        eprintln!("berth launcher: removing: {e}");
                    }
                }
                // SAFETY: ends the process at once; the launcher's exit handlers are not its own.
                unsafe { libc::_exit(0) }
            }
            Ok(ForkResult::Parent { .. }) => {} // reaped at its SIGCHLD
            Err(e) => eprintln!("berth launcher: a process to remove storage: fork: {e}"),
        }
    }

    fn unwitnessed(&self, id: &str) -> Record {
        let exit = Exit {
            code: None,
            signal: Some(libc::SIGKILL),
            oom: false,
            at: paths::now(),
        };
        Record {
            version: VERSION,
            id: id.to_owned(),
            workload: None,
            boot_id: self.boot_id.clone(),
            exit: Some(exit),
            failure: None,
            unwitnessed: true,
        }
    }
}
