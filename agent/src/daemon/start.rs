//! The agent's start: what was wanted, who is still there, which devices there are; then everything begins.
//!
//! Order: folders and sockets; documents; the device socket (before anything is enumerated); monitors; devices;
//! the launcher; [`Event::Ready`]. A container is touched only after all of it is known.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Context;
use berth_audit::Sink;
use berth_documents::{Document, RuleSpec, Set, WorkloadSpec};
use berth_images::{Mode, Stores as Images};
use berth_launcher::paths::make_dir;
use berth_launcher::wire::{Refusal, Reply, Status};
use berth_rt::cgroup::{Hierarchy, Support};
use berth_rt::topology::Topology;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender};
use tokio::time::timeout;

use crate::core::launch::notes;
use crate::core::{Event, Node, NoticeKind, State};

use super::audit::Audit;
use super::link::Said;
use super::settings::Settings;
use super::starter::Starter;
use super::{Agent, Devices, Events, Input, Metrics, http, launcher, server, store};

/// So long monitors may take to answer, all together.
const MONITORS: Duration = Duration::from_secs(5);
/// So long the first start waits for the launcher.
const LAUNCHER: Duration = Duration::from_secs(5);

impl Agent {
    pub(super) async fn start(
        settings: Settings,
        starter: Option<Starter>,
        queue: UnboundedSender<Input>,
        inputs: &mut UnboundedReceiver<Input>,
    ) -> anyhow::Result<Agent> {
        let folders = &settings.folders;
        for (folder, mode) in [
            (&folders.run, 0o755),
            (&folders.state, 0o755),
            (&folders.state.join("state"), 0o700),
            (&folders.state.join("audit"), 0o700),
        ] {
            make_dir(folder, mode)?;
        }
        let images = Images::open(folders.images(), Mode::Write, &folders.preloaded, None)?;
        let groups = super::roles::Groups::find(&settings.groups).context("groups of roles")?;
        server::listen(folders, groups, queue.clone())
            .with_context(|| folders.api().display().to_string())?;
        let sink =
            Sink::named(&settings.audit_to).with_context(|| format!("--audit-to {}", settings.audit_to))?;
        let mut audit = Audit::open(&folders.audit("agent"), settings.audit_bytes, sink)?;
        let metrics = Metrics::new(&settings.folders.run)?;
        audit.agent(
            &format!("starts as process {}", std::process::id()),
            &metrics.audit,
        );
        let metrics_at = match settings.metrics {
            Some(address) => Some(http::serve(address, queue.clone()).await.context("metrics")?),
            None => None,
        };
        let topology = Topology::read(Path::new("/sys"))?;
        let hierarchy = Hierarchy::discover(Path::new("/"))?;
        let support = Support::detect(&hierarchy)?;
        let devices = Devices::open(settings.devices, settings.device_buffer, topology.nodes.len() > 1)?;
        // What it may write must be there before the rules are made. A configuration folder that cannot be written stays so.
        make_dir(&folders.state.join("logs"), 0o750)?;
        if let Err(error) = make_dir(&folders.config.join("profiles"), 0o755) {
            tracing::warn!(%error, "security profiles of the node's own cannot be applied");
        }
        let sandbox = super::sandbox::enter(&settings)?;
        audit.agent("its sandbox is in force", &metrics.audit);
        let node = node(&Set::default(), &topology, &support).map_err(anyhow::Error::msg)?;
        let mut agent = Agent {
            resync_at: Instant::now() + settings.resync,
            starving: super::starving::Starving::new(),
            settings,
            state: State::new(node),
            desired: store::Desired::default(),
            rebuild: false,
            devices,
            links: BTreeMap::new(),
            serial: 0,
            resolve: Box::new(move |reference| match images.resolve(reference) {
                Ok(digest) => Ok(digest.to_string()),
                Err(error) => Err(Refusal {
                    stage: "image".to_owned(),
                    message: super::perform::chain(&error),
                    hint: error
                        .hint()
                        .or_else(|| Some("load it with `berth image load PATH`".to_owned())),
                }),
            }),
            in_flight: 0,
            launches: VecDeque::new(),
            events: Events::default(),
            audit,
            sandbox: Some(sandbox),
            launcher_pid: None,
            refused: None,
            metrics,
            metrics_at,
            waiters: Vec::new(),
            early: Some(Vec::new()),
            topology,
            support,
            queue,
            begun: Instant::now(),
            plugged: None,
            launcher_there: false,
        };
        tokio::spawn(launcher::keep(
            agent.settings.clone(),
            starter,
            agent.queue.clone(),
        ));
        agent.load_state();
        let (mut later, mut stale) = (Vec::new(), Vec::new());
        let found = agent.find_monitors(inputs, &mut later, &mut stale).await;
        if agent.rebuild {
            agent.rebuild_from(&found);
        }
        agent.load_files();
        agent.take_over();
        for status in found {
            agent.on_status(status);
        }
        let mut devices = super::Found::default();
        agent.devices.resync(&agent.metrics.devices, &mut devices);
        agent.devices.matcher().rematch(&mut devices);
        agent.take_found(devices);
        for input in later {
            agent.on_input(input);
        }
        agent.await_launcher(inputs).await;
        for id in stale {
            agent.sweep_stale(&id).await;
        }
        if let Some(address) = agent.metrics_at {
            tracing::info!(%address, "metrics");
        }
        let text = format!(
            "started, device events from {}, {}",
            agent.devices.source(),
            agent.devices.buffer()
        );
        agent.note(NoticeKind::Agent, "agent", text);
        agent.feed(Event::Ready);
        for input in agent.early.take().unwrap_or_default() {
            agent.on_input(input);
        }
        Ok(agent)
    }

    /// The state file.
    fn load_state(&mut self) {
        let path = self.settings.folders.desired();
        match store::Desired::load(&path) {
            Ok(Some(desired)) => {
                self.state.stopped.clone_from(&desired.stopped);
                self.desired = desired;
            }
            Ok(None) => {}
            Err(error) => {
                self.rebuild = true;
                let kept = match store::keep_aside(&path) {
                    Ok(aside) => format!("kept as {}", aside.display()),
                    Err(error) => format!("cannot be kept aside: {error}"),
                };
                let text = format!("{error}; {kept}; what runs is taken from the monitors");
                self.note(NoticeKind::DocumentsRefused, "state", text);
            }
        }
    }

    /// Says hello to every monitor there is; what they answered. Other inputs wait in `later`.
    async fn find_monitors(
        &mut self,
        inputs: &mut UnboundedReceiver<Input>,
        later: &mut Vec<Input>,
        stale: &mut Vec<String>,
    ) -> Vec<Status> {
        let mut awaited = BTreeSet::new();
        for id in monitor_ids(&self.settings.folders.run.join(berth_launcher::client::MONITORS)) {
            match self.greet(&id) {
                Ok(()) => drop(awaited.insert(id)),
                // Nobody listens: its monitor died while nobody watched.
                Err(error) => {
                    self.note(NoticeKind::MonitorLost, &id, error);
                    stale.push(id);
                }
            }
        }
        // A launcher that started before this agent has taken the socket of a dead monitor away, and kept the record.
        for id in berth_launcher::client::left_behind(&self.settings.folders.run) {
            if !awaited.contains(&id) && !stale.contains(&id) {
                self.note(
                    NoticeKind::MonitorLost,
                    &id,
                    "its end is recorded, its monitor is gone",
                );
                stale.push(id);
            }
        }
        let mut found = Vec::new();
        let deadline = Instant::now() + MONITORS;
        while !awaited.is_empty() {
            let left = deadline.saturating_duration_since(Instant::now());
            let Ok(Some(input)) = timeout(left, inputs.recv()).await else {
                break;
            };
            match input {
                Input::Said {
                    id,
                    serial,
                    said: Said::Reply(reply, fd),
                } if awaited.contains(&id) => match *reply {
                    Reply::Status(status) => {
                        awaited.remove(&id);
                        if let Some(wrong) = another_process(&status.boot_id, status.pid, status.start_time) {
                            self.links.remove(&id);
                            self.note(NoticeKind::Refused, &id, wrong);
                            stale.push(id);
                            continue;
                        }
                        if let Some(link) = self.links.get_mut(&id) {
                            link.pidfd = fd;
                            link.expect.pop_front();
                        }
                        found.push(*status);
                    }
                    other => later.push(Input::Said {
                        id,
                        serial,
                        said: Said::Reply(Box::new(other), fd),
                    }),
                },
                Input::Said {
                    id,
                    said: Said::Closed,
                    ..
                } if awaited.remove(&id) => {
                    self.links.remove(&id);
                    self.note(NoticeKind::MonitorLost, &id, "ended while it was asked how it is");
                    stale.push(id);
                }
                other => later.push(other),
            }
        }
        for id in awaited {
            self.note(
                NoticeKind::Refused,
                &id,
                "its monitor does not answer; taken over when it does",
            );
        }
        found
    }

    /// Frees what a monitor left that no instance knows of, before its id can be used again.
    async fn sweep_stale(&mut self, id: &str) {
        let run = self.settings.folders.run.clone();
        let result = launcher::sweep(&run, id).await;
        match result {
            Ok(()) => self.note(NoticeKind::Swept, id, ""),
            Err(refusal) => self.note(NoticeKind::SweepFailed, id, refusal.message),
        }
    }

    /// The documents as the notes of what runs have them.
    fn rebuild_from(&mut self, found: &[Status]) {
        let mut set = Set::default();
        for status in found {
            let note = |key: &str| status.request.notes.get(key);
            if let Some(document) = note(notes::WORKLOAD)
                .and_then(|text| serde_json::from_str::<Document<WorkloadSpec>>(text).ok())
                && !matches!(crate::core::slot_of(status), crate::core::instance::Slot::Once(_))
            {
                set.workloads.insert(document.name().to_owned(), document);
            }
            if let Some(document) =
                note(notes::RULE).and_then(|text| serde_json::from_str::<Document<RuleSpec>>(text).ok())
            {
                set.rules.insert(document.name().to_owned(), document);
            }
        }
        let text = format!("{} documents rebuilt from {} monitors", set.len(), found.len());
        self.note(NoticeKind::Documents, "state", text);
        self.desired.applied = set;
        self.save();
    }

    /// Waits for the launcher a while, taking inputs as they come.
    async fn await_launcher(&mut self, inputs: &mut UnboundedReceiver<Input>) {
        let deadline = Instant::now() + LAUNCHER;
        while !self.launcher_there {
            let left = deadline.saturating_duration_since(Instant::now());
            match timeout(left, inputs.recv()).await {
                Ok(Some(input)) => self.on_input(input),
                _ => return,
            }
        }
    }
}

/// What the node has to give, by its document.
pub(super) fn node(set: &Set, topology: &Topology, support: &Support) -> Result<Node, String> {
    let spec = set
        .node()
        .map(|document| document.spec.clone())
        .unwrap_or_default();
    let pool = spec.pool(topology, support).map_err(|problems| {
        let name = set.node().map_or("(none)", |document| document.name());
        let texts: Vec<String> = problems.iter().map(|p| format!("Node `{name}`: {p}")).collect();
        texts.join("; ")
    })?;
    Ok(Node {
        pool,
        rt_groups: matches!(support, Support::PerGroup(_)),
        schedstat: super::wakeups::kept(Path::new("/proc")),
    })
}

/// The ids of the sockets in RUN/monitors.
fn monitor_ids(folder: &Path) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(folder) else {
        return Vec::new();
    };
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    names
        .filter_map(|name| name.strip_suffix(".sock").map(str::to_owned))
        .collect()
}

/// Why a monitor's account is not of a process that lives: another boot, or a pid that means another process by now. A
/// process that has just ended is no contradiction: its end is reported next.
fn another_process(boot_id: &str, pid: Option<i32>, start_time: Option<u64>) -> Option<String> {
    let boot = berth_launcher::paths::boot_id().unwrap_or_default();
    if boot_id != boot {
        return Some(format!(
            "its monitor speaks of boot {boot_id}, this is {boot}; not taken over"
        ));
    }
    let (pid, told) = (pid?, start_time?);
    let actual = berth_launcher::paths::start_time(pid).ok()?;
    (actual != told)
        .then(|| format!("pid {pid} began at tick {actual}, its monitor says {told}; not taken over"))
}

#[cfg(test)]
mod tests {
    use super::another_process;
    use berth_launcher::paths;

    #[test]
    fn a_monitor_must_speak_of_the_process_that_lives() {
        let own = i32::try_from(std::process::id()).unwrap();
        let (boot, began) = (paths::boot_id().unwrap(), paths::start_time(own).unwrap());
        assert_eq!(another_process(&boot, Some(own), Some(began)), None);
        let wrong = another_process(&boot, Some(own), Some(began + 1));
        assert!(wrong.is_some_and(|w| w.contains("not taken over")));
        assert!(another_process("another", None, None).is_some());
    }
}
