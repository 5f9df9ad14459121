//! The container's life: launch, start, stop, the running proof, exit, release.
//!
//! Invariants: a launch that fails at any step leaves nothing but its log and its record; a proof that does not
//! hold at the exec stop has killed the container before this hears of it; the end is told once.

use std::time::{Duration, Instant};

use berth_audit::Entry;
use berth_runtime::proof::{Fact, Proof, Stage};
use berth_runtime::{Container, StartArgs, Stdio};
use nix::errno::Errno;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use serde_json::json;

use super::Monitor;
use super::output::Output;
use crate::compose::chain;
use crate::paths::{self, Record};
use crate::record;
use crate::wire::{DeviceGrant, Event, Exit, InterfaceGrant, Phase, Refusal, VERSION};

/// From SIGKILL to the next try, should a task be slow to die.
const KILL_AGAIN: Duration = Duration::from_secs(1);

fn refusal(stage: &str, message: String, hint: Option<String>) -> Refusal {
    Refusal {
        stage: stage.into(),
        message,
        hint,
    }
}

impl Monitor<'_> {
    /// Creates the container; an unarmed one is started at once.
    pub(super) fn launch(&mut self) {
        self.mark("monitor");
        if let Some(keeper) = self.conns.first_mut() {
            keeper.conn.subscribed = true;
        }
        if let Err(refusal) = self.create() {
            return self.fail(refusal, None);
        }
        if self.request.armed {
            match self.prove() {
                Ok(proof) if proof.holds() => {
                    self.proof = Some(proof.clone());
                    self.phase = Phase::Armed;
                    self.created(Some(proof));
                }
                Ok(proof) => self.fail(refusal("prove", failures(&proof), None), Some(proof)),
                Err(e) => self.fail(e, None),
            }
        } else {
            self.created(None);
            self.start(Vec::new(), Vec::new(), Vec::new(), Vec::new());
        }
        self.on_connections_waiting();
    }

    /// Commands that came in one breath with the request.
    fn on_connections_waiting(&mut self) {
        let numbers: Vec<u64> = self.conns.iter().map(|k| k.number).collect();
        for number in numbers {
            self.commands(number);
        }
    }

    fn create(&mut self) -> Result<(), Refusal> {
        let (devices, interfaces) = (self.request.devices.clone(), self.request.interfaces.clone());
        self.hush(&devices, &interfaces)?;
        let Some(plan) = self.plan.take() else {
            return Err(refusal("create", "there is no plan".into(), None));
        };
        for device in &self.request.devices {
            self.node_is_there(device)?;
        }
        let log = self.paths.log(&self.request.id);
        let (output, ends) = Output::open(&log, self.request.log_max_bytes).map_err(|e| {
            let hint = "--state-dir must be on a disk that can be written".to_owned();
            refusal("log", format!("{}: {e}", log.display()), Some(hint))
        })?;
        self.output = Some(output);
        let null = std::fs::File::open("/dev/null")
            .map_err(|e| refusal("create", format!("/dev/null: {e}"), None))?;
        let stdio = Stdio {
            stdin: null.into(),
            stdout: ends.stdout,
            stderr: ends.stderr,
        };
        self.mark("output");
        if self
            .secrets
            .attach(&self.request.secrets, &self.policy, &self.paths)?
        {
            self.mark("secrets");
        }
        if !self.relabel.is_empty() {
            crate::relabel::all(&self.relabel)?;
            self.mark("relabel");
        }
        let made = plan.create(stdio);
        // The container has them now, or there is none.
        self.secrets.detach();
        let container = made.map_err(|e| refusal("create", chain(&e), e.hint()))?;
        // Its own steps are added with those of the start.
        self.begun = Instant::now();
        self.pid = Some(container.pid());
        self.start_time = Some(container.start_time());
        self.container = Some(container);
        if let (Some(cni), Some(pid)) = (&self.request.cni, self.pid) {
            let host = crate::compose::host(&self.request);
            crate::cni::attach(&self.paths, &self.request.id, &host, pid, cni)?;
            self.mark("network");
        }
        self.give_functions()?;
        let devices = self.request.devices.clone();
        self.link_devices(&devices)?;
        self.note_devices(&devices)?;
        self.mount_devices(&devices)?;
        // Those of the request went in while it was made.
        self.watch_links(&self.request.interfaces.clone())
    }

    fn created(&mut self, proof: Option<Proof>) {
        let (Some(pid), Some(start_time)) = (self.pid, self.start_time) else {
            return;
        };
        self.tell(&Event::Created {
            pid,
            start_time,
            proof,
            takes: true,
        });
    }

    /// Lets the container go, with what it waited for.
    pub(super) fn start(
        &mut self,
        args: Vec<String>,
        env: Vec<(String, String)>,
        devices: Vec<DeviceGrant>,
        interfaces: Vec<InterfaceGrant>,
    ) {
        let new = !devices.is_empty() || !interfaces.is_empty();
        if new && let Err(e) = self.hush(&devices, &interfaces) {
            return self.fail(e, None);
        }
        if let Err(e) = self.inject(&devices, &interfaces) {
            return self.fail(e, None);
        }
        if self.phase == Phase::Armed {
            self.request.devices.extend(devices);
            self.request.interfaces.extend(interfaces);
            self.request.process.env.extend(env.iter().cloned());
            if !args.is_empty() {
                self.request.process.args.clone_from(&args);
            }
        }
        self.mark("inject");
        let quiet = match self.hushed() {
            Ok(facts) => facts,
            Err(e) => return self.fail(e, None),
        };
        let Some(container) = &mut self.container else {
            return;
        };
        // The steps of an armed container's making were told long ago.
        let told = if self.phase == Phase::Armed {
            container.timing().len()
        } else {
            0
        };
        // New arguments go behind the program that command or entrypoint named.
        let args = if args.is_empty() {
            args
        } else {
            self.program.iter().cloned().chain(args).collect()
        };
        match container.start(Some(&StartArgs { args, env })) {
            Ok(mut proof) => {
                proof.facts.extend(quiet);
                self.timing.extend_from_slice(&container.timing()[told..]);
                self.phase = Phase::Running;
                let started_at = container.released_at().unwrap_or_else(paths::now);
                self.started_at = Some(started_at);
                self.proof = Some(proof.clone());
                self.prove_at = Some(Instant::now() + self.proof_interval);
                let timing = self.timing.clone();
                self.tell(&Event::Started {
                    proof,
                    timing,
                    started_at,
                });
                // The agent has been told: nobody waits for this.
                self.watch_partitions();
                self.start_probe();
                let proof = self.proof.as_ref().map(record::proof);
                let detail = json!({"request": record::asked(&self.request), "proof": proof});
                let text = format!("proven and running as process {}", self.pid.unwrap_or(0));
                self.note(Entry::new("launch", &self.request.id, text).detail(detail));
            }
            Err(e) => {
                let proof = e.proof().cloned();
                let stage = if proof.is_some() { "prove" } else { "start" };
                self.fail(refusal(stage, chain(&e), e.hint()), proof);
            }
        }
    }

    pub(super) fn mark(&mut self, step: &str) {
        super::mark(&mut self.timing, &mut self.begun, step);
    }

    /// The launch did not happen.
    fn fail(&mut self, refusal: Refusal, proof: Option<Proof>) {
        self.free();
        self.phase = Phase::Failed;
        self.failure = Some(refusal.clone());
        self.proof = proof.clone();
        self.record(None, Some(refusal.clone()));
        self.tell_drops(true);
        self.output = None;
        let mut failed = record::refused("launch", &self.request.id, &refusal, None).result("failed");
        failed.detail["request"] = record::asked(&self.request);
        failed.detail["proof"] = proof.as_ref().map(record::proof).unwrap_or_default();
        self.tell(&Event::Failed { refusal, proof });
        self.note(failed);
    }

    pub(super) fn prove(&mut self) -> Result<Proof, Refusal> {
        // What has gone is promised no longer.
        self.on_links();
        self.living(
            "prove",
            &[
                Phase::Creating,
                Phase::Armed,
                Phase::Running,
                Phase::Frozen,
                Phase::Stopping,
            ],
        )?;
        let stage = if matches!(self.phase, Phase::Armed | Phase::Creating) {
            Stage::Armed
        } else {
            Stage::Running
        };
        let Some(container) = &self.container else {
            return Err(refusal("prove", "there is no container".into(), None));
        };
        let mut proof = container
            .prove(stage)
            .map_err(|e| refusal("prove", chain(&e), e.hint()))?;
        if let Some(cni) = &self.request.cni
            && let Some(checked) = crate::cni::check(&self.paths, &self.request.id)
        {
            let words =
                |a: Vec<std::net::IpAddr>| a.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
            let promised = format!("network {} as it was added", cni.network);
            proof.facts.push(Fact {
                name: "network".into(),
                holds: checked.is_ok(),
                actual: checked.map_or_else(|e| e, |a| format!("{promised}: {}", words(a))),
                promised,
                source: "CNI CHECK".into(),
            });
        }
        proof.facts.extend(self.quiet_facts()?);
        Ok(proof)
    }

    pub(super) fn signal(&mut self, signal: i32) -> Result<(), Refusal> {
        self.living("signal", &[Phase::Running, Phase::Frozen, Phase::Stopping])?;
        let Some(container) = &self.container else {
            return Ok(());
        };
        container
            .signal(signal)
            .map_err(|e| refusal("signal", chain(&e), e.hint()))
    }

    pub(super) fn freeze(&mut self) -> Result<(), Refusal> {
        self.living("freeze", &[Phase::Running, Phase::Frozen])?;
        self.turn_probe(true);
        let Some(container) = &mut self.container else {
            return Ok(());
        };
        if let Err(e) = container.freeze() {
            let refusal = refusal("freeze", chain(&e), e.hint());
            self.turn_probe(false);
            return Err(refusal);
        }
        self.phase = Phase::Frozen;
        Ok(())
    }

    pub(super) fn thaw(&mut self) -> Result<(), Refusal> {
        self.living("thaw", &[Phase::Running, Phase::Frozen])?;
        let Some(container) = &mut self.container else {
            return Ok(());
        };
        container
            .thaw()
            .map_err(|e| refusal("thaw", chain(&e), e.hint()))?;
        self.turn_probe(false);
        self.phase = Phase::Running;
        Ok(())
    }

    /// Stop signal, grace, SIGKILL. What waits for its device has nothing to finish and is killed.
    pub(super) fn stop(&mut self) {
        match self.phase {
            Phase::Armed => self.kill(),
            Phase::Frozen => {
                if self.thaw().is_ok() {
                    self.stop();
                } else {
                    self.kill();
                }
            }
            Phase::Running => {
                // Somebody may have frozen it behind berth's back: it would not hear the signal.
                if let Some(cgroup) = self.container.as_ref().and_then(Container::cgroup)
                    && let Err(e) = cgroup.thaw_if_frozen()
                {
                    self.held(chain(&e));
                    return self.kill();
                }
                self.phase = Phase::Stopping;
                let sent = self.signal(self.request.stop.signal);
                let grace = if sent.is_ok() {
                    self.request.stop.grace_ms
                } else {
                    0
                };
                self.kill_at = Some(Instant::now() + Duration::from_millis(grace));
            }
            _ => {}
        }
    }

    /// SIGKILL to all of it, until the first process has been reaped.
    pub(super) fn kill(&mut self) {
        if matches!(self.phase, Phase::Exited | Phase::Failed) {
            return;
        }
        self.phase = Phase::Stopping;
        if let Some(container) = &self.container
            && let Err(e) = container.signal_all(libc::SIGKILL)
        {
            self.held(chain(&e));
        }
        self.kill_at = Some(Instant::now() + KILL_AGAIN);
        self.reap();
    }

    /// What keeps it from ending or from being freed, told once for each cause.
    fn held(&mut self, by: String) {
        eprintln!("berth monitor of {}: {by}", self.request.id);
        if self.held.as_ref() != Some(&by) {
            self.tell(&Event::Held { by: by.clone() });
            self.note(Entry::new("held", &self.request.id, by.clone()).result("failed"));
            self.held = Some(by);
        }
    }

    pub(super) fn on_signals(&mut self) {
        let mut stop = false;
        while let Ok(Some(info)) = self.signals.read_signal() {
            stop |= info.ssi_signo == libc::SIGTERM as u32 || info.ssi_signo == libc::SIGINT as u32;
        }
        self.reap();
        if stop {
            match self.phase {
                // The node goes down, or somebody ends this monitor by hand: the container gets its grace.
                Phase::Armed | Phase::Running | Phase::Frozen => self.stop(),
                _ => {}
            }
        }
    }

    /// Takes every child that ended: the container, what was executed in it, and orphans of either.
    pub(super) fn reap(&mut self) {
        loop {
            let (pid, code, signal) = match waitpid(None, Some(WaitPidFlag::WNOHANG | WaitPidFlag::__WALL)) {
                Ok(WaitStatus::Exited(pid, code)) => (pid, Some(code), None),
                Ok(WaitStatus::Signaled(pid, signal, _)) => (pid, None, Some(signal as i32)),
                Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD) => return,
                Ok(_) | Err(Errno::EINTR) => continue,
                Err(e) => {
                    eprintln!("berth monitor of {}: waitpid: {e}", self.request.id);
                    return;
                }
            };
            self.ended(
                pid,
                Exit {
                    code,
                    signal,
                    oom: false,
                    at: paths::now(),
                },
            );
        }
    }

    fn ended(&mut self, pid: Pid, mut exit: Exit) {
        if Some(pid.as_raw()) == self.pid {
            let killed = exit.signal == Some(libc::SIGKILL);
            exit.oom = killed && self.container.as_ref().is_some_and(|c| oom_kills(c) > 0);
            self.exited(exit);
        } else if let Some(at) = self.execs.iter().position(|e| e.pid == pid.as_raw()) {
            let exec = self.execs.swap_remove(at);
            self.say(exec.by, &crate::wire::Reply::ExecExited(exit), Vec::new());
        } else {
            let how = match (exit.code, exit.signal) {
                (Some(code), _) => format!("code {code}"),
                (None, signal) => format!("signal {}", signal.unwrap_or(0)),
            };
            self.probe_ended(pid, &how);
        }
    }

    fn exited(&mut self, exit: Exit) {
        self.pid = None;
        self.kill_at = None;
        self.prove_at = None;
        if let Some(output) = &mut self.output {
            output.finish();
        }
        self.tell_drops(true);
        self.output = None;
        self.free();
        self.phase = Phase::Exited;
        self.exit = Some(exit);
        self.record(Some(exit), None);
        self.tell(&Event::Exited(exit));
        let how = match (exit.code, exit.signal) {
            (Some(code), _) => format!("ended with code {code}"),
            (None, Some(signal)) => format!("ended by signal {signal}"),
            (None, None) => "ended".to_owned(),
        };
        self.note(Entry::new("end", &self.request.id, how).detail(json!({"oom": exit.oom})));
        crate::harden::trim();
    }

    /// Frees everything the container had. Goes on after an error; all are told to the log.
    fn free(&mut self) {
        self.end_probe();
        self.give_interfaces_back();
        // It pins the network namespace.
        self.links = None;
        self.partitions = None;
        if self.request.cni.is_some() {
            // What fails stays on record, and is tried again when the launcher sweeps or starts.
            for e in crate::cni::detach(&self.paths, &self.request.id)
                .err()
                .into_iter()
                .flatten()
            {
                self.held(format!("network: {e}"));
            }
        }
        if let Some(mut container) = self.container.take() {
            self.pid = None;
            if let Err(errors) = container.delete() {
                for e in errors {
                    self.held(format!("freeing: {}", chain(&e)));
                }
            }
        }
        self.unhush();
        // Only now: while a process has a function open, its driver cannot change.
        for e in crate::vfio::give_back(&Default::default(), &self.paths, &self.request.id) {
            eprintln!("berth monitor of {}: vfio: {e}", self.request.id);
        }
        if self.request.udev {
            crate::uevent::forget(&self.paths, &self.request.id);
        }
        self.drift.clear();
        if let Err(e) = paths::remove_tree(&self.paths.storage(&self.request.id)) {
            self.held(format!("freeing: {e}"));
        }
    }

    fn record(&self, exit: Option<Exit>, failure: Option<Refusal>) {
        let record = Record {
            version: VERSION,
            id: self.request.id.clone(),
            workload: Some(self.request.workload.clone()),
            boot_id: self.boot_id.clone(),
            exit,
            failure,
            unwitnessed: false,
        };
        let folder = self.paths.container(&self.request.id);
        if let Err(e) = record.write(&folder) {
            eprintln!("berth monitor of {}: {}: {e}", self.request.id, folder.display());
        }
    }

    /// The agent knows: nothing of this container is kept but its log.
    pub(super) fn forget(&mut self) {
        self.listener = None;
        let id = &self.request.id;
        let socket = paths::remove_file(&self.paths.monitors().join(format!("{id}.sock")));
        for error in [socket, paths::remove_tree(&self.paths.container(id))]
            .into_iter()
            .filter_map(Result::err)
        {
            eprintln!("berth monitor of {id}: {error}");
        }
    }
}

/// How many of its processes the kernel killed for want of memory.
fn oom_kills(container: &Container) -> u64 {
    container
        .cgroup()
        .and_then(|c| c.stats().ok())
        .and_then(|s| s.oom_kills)
        .unwrap_or(0)
}

/// The lines of a proof that do not hold.
fn failures(proof: &Proof) -> String {
    let lines: Vec<String> = proof
        .failures()
        .map(|f| {
            format!(
                "{}: promised {}, is {} ({})",
                f.name, f.promised, f.actual, f.source
            )
        })
        .collect();
    lines.join("; ")
}
