//! The probe beside a container ([`berth_rt::latency::sampler`]): where the kernel keeps no account of waits, or the document
//! asks for it, a process of berth's own samples wake-ups on the container's CPUs.
//!
//! It is forked from the monitor (which never starts a thread) once the container runs, and enters the container's cgroup:
//! nobody else may run on isolated cores, and there it has the same limits. So it counts as one of the container's tasks; it
//! is not in its pid namespace, has no descriptor and no right, and dies with the monitor (PR_SET_PDEATHSIG). The running
//! proof knows it by its executable and passes it over.
//!
//! What it counted is written to RUN/containers/ID/wakeups.json with each running proof, for whoever is asked for metrics.
//! A container that asks for none costs nothing here.
#![allow(unsafe_code)] // fork(2), from a process with one thread; close_range(2) has no safe wrapper

use std::convert::Infallible;
use std::path::{Path, PathBuf};

use berth_rt::cgroup::Cgroup;
use berth_rt::cpu::CpuSet;
use berth_rt::latency::sampler::{self, Board, Step};
use berth_rt::latency::tally::Tally;
use berth_rt::sched::{self, Scheduler};
use nix::errno::Errno;
use nix::sys::prctl;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::waitpid;
use nix::unistd::{ForkResult, Gid, Pid, Uid, fork, getppid, setgroups, setresgid, setresuid};
use serde::{Deserialize, Serialize};

use super::Monitor;
use crate::paths::{self, Paths};
use crate::wire::{Phase, VERSION};

/// Name of a probe in /proc/PID/comm.
const NAME: &std::ffi::CStr = c"berth-probe";
/// Whose it is once it has begun: the kernel's overflow uid.
const NOBODY: u32 = 65534;

/// What RUN/containers/ID/wakeups.json says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Wakeups {
    /// [`VERSION`].
    pub version: u32,
    /// What the probe runs under.
    pub scheduler: Scheduler,
    /// Why nothing is counted (any more).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failed: Option<String>,
    /// What it counted since the container began.
    pub tally: Tally,
}

impl Wakeups {
    /// The file of a container, below the run folder.
    #[must_use]
    pub fn path(run: &Path, id: &str) -> PathBuf {
        run.join("containers").join(id).join("wakeups.json")
    }

    /// Reads it; `None` where the container has no probe.
    #[must_use]
    pub fn read(run: &Path, id: &str) -> Option<Wakeups> {
        serde_json::from_slice(&std::fs::read(Wakeups::path(run, id)).ok()?).ok()
    }

    fn write(&self, paths: &Paths, id: &str) -> std::io::Result<()> {
        paths::make_dir(&paths.container(id), 0o700)?;
        let path = Wakeups::path(&paths.run, id);
        let new = path.with_extension("new");
        std::fs::write(&new, serde_json::to_vec(self).map_err(std::io::Error::other)?)?;
        std::fs::rename(&new, &path)
    }
}

/// A probe that was started.
pub(super) struct Probe {
    /// `None`: it has ended.
    pid: Option<Pid>,
    board: Board,
    scheduler: Scheduler,
    failed: Option<String>,
}

/// All that the forked process does. It has the monitor's memory, and no use for any of it but these.
fn live(board: &Board, cgroup: &Cgroup, cpus: &CpuSet, scheduler: &Scheduler, parent: Pid) -> (Step, i32) {
    let go = || -> Result<Infallible, (Step, i32)> {
        let at = |step: Step| move |e: Errno| (step, e as i32);
        // SAFETY: this process uses none of the monitor's descriptors, and never returns into its loop.
        unsafe { libc::close_range(0, libc::c_uint::MAX, 0) };
        let _ = prctl::set_name(NAME);
        cgroup
            .attach_self()
            .map_err(|e| (Step::Cgroup, e.error.errno().unwrap_or(libc::EIO)))?;
        let policy = |e: sched::SchedError| (Step::Policy, e.errno().unwrap_or(libc::EINVAL));
        sched::set(0, scheduler, 0).map_err(policy)?;
        // What is counted is the wait, and not how long the kernel may put it off.
        sched::set_timer_slack(1).map_err(policy)?;
        setgroups(&[]).map_err(at(Step::Rights))?;
        let gid = Gid::from_raw(NOBODY);
        setresgid(gid, gid, gid).map_err(at(Step::Rights))?;
        let uid = Uid::from_raw(NOBODY);
        setresuid(uid, uid, uid).map_err(at(Step::Rights))?;
        prctl::set_no_new_privs().map_err(at(Step::Rights))?;
        // A change of user clears it.
        prctl::set_pdeathsig(Signal::SIGKILL).map_err(at(Step::Parent))?;
        if getppid() != parent {
            return Err((Step::Parent, libc::ESRCH));
        }
        match sampler::sample(board, cpus, None) {
            Err(e) => Err((Step::Sleep, e.raw_os_error().unwrap_or(libc::EIO))),
            Ok(()) => Err((Step::Sleep, 0)),
        }
    };
    match go() {
        Err(failed) => failed,
        Ok(never) => match never {},
    }
}

impl Monitor<'_> {
    /// Starts the probe, where the request asks for one.
    pub(super) fn start_probe(&mut self) {
        if !self.request.probe {
            return;
        }
        let Some(cgroup) = self.container.as_ref().and_then(|c| c.cgroup()) else {
            return;
        };
        let Ok(cpus) = self.request.placement.cpus.parse::<CpuSet>() else {
            return;
        };
        let scheduler = sampler::below(self.request.scheduler.as_ref());
        let board = match Board::new() {
            Ok(board) => board,
            Err(e) => return eprintln!("berth monitor of {}: a probe: {e}", self.request.id),
        };
        let parent = Pid::this();
        // SAFETY: a monitor has one thread, so its child may go on with all of its memory; it ends by _exit.
        let forked = match unsafe { fork() } {
            Ok(ForkResult::Child) => {
                let run = std::panic::AssertUnwindSafe(|| live(&board, cgroup, &cpus, &scheduler, parent));
                let (step, errno) = std::panic::catch_unwind(run).unwrap_or((Step::Sleep, libc::EIO));
                board.fail(step, errno);
                // SAFETY: ends the process at once; the monitor's exit handlers are not its own.
                unsafe { libc::_exit(1) }
            }
            Ok(ForkResult::Parent { child }) => Ok(child),
            Err(e) => Err(format!("fork: {e}")),
        };
        self.probe = Some(Probe {
            pid: forked.as_ref().ok().copied(),
            board,
            scheduler,
            failed: forked.err(),
        });
        self.write_wakeups();
    }

    /// The probe's process, where there is one.
    pub(super) fn probe_pid(&self) -> Option<i32> {
        self.probe.as_ref()?.pid.map(Pid::as_raw)
    }

    /// What was counted so far, for whoever is asked.
    pub(super) fn write_wakeups(&self) {
        let Some(probe) = &self.probe else { return };
        let wakeups = Wakeups {
            version: VERSION,
            scheduler: probe.scheduler,
            failed: probe.board.failed().or_else(|| probe.failed.clone()),
            tally: probe.board.tally(),
        };
        if let Err(e) = wakeups.write(&self.paths, &self.request.id) {
            eprintln!("berth monitor of {}: wake-ups: {e}", self.request.id);
        }
    }

    /// The container is about to be frozen, or was thawed: what is slept over that is no wake-up.
    pub(super) fn turn_probe(&self, frozen: bool) {
        if let Some(probe) = &self.probe {
            probe.board.turn(frozen);
        }
    }

    /// Whether this child was the probe. It is not started again: whoever ended it is told in the account.
    pub(super) fn probe_ended(&mut self, pid: Pid, how: &str) -> bool {
        let Some(probe) = self.probe.as_mut().filter(|probe| probe.pid == Some(pid)) else {
            return false;
        };
        probe.pid = None;
        probe.failed = Some(format!("the probe ended: {how}"));
        // With the container it is killed too.
        if matches!(self.phase, Phase::Running | Phase::Frozen) {
            eprintln!(
                "berth monitor of {}: no wake-ups are counted any more: {}",
                self.request.id,
                probe.board.failed().as_deref().unwrap_or(how)
            );
            self.write_wakeups();
        }
        true
    }

    /// Ends it, before its cgroup is freed.
    pub(super) fn end_probe(&mut self) {
        let Some(probe) = self.probe.take() else { return };
        if let Some(pid) = probe.pid
            && kill(pid, Signal::SIGKILL).is_ok()
        {
            while waitpid(pid, None) == Err(Errno::EINTR) {}
        }
        let path = Wakeups::path(&self.paths.run, &self.request.id);
        if let Err(e) = paths::remove_file(&path) {
            eprintln!("berth monitor of {}: {e}", self.request.id);
        }
    }
}
