//! The daemon: one thread, one queue. Device events, monitors' words, the launcher's coming and going, requests
//! and timers become events of [`crate::core`]; its effects are carried out here.
//!
//! ```text
//! uevent socket ─┐                    ┌─> launcher: launch, sweep
//! links ─────────┤  Input   core::    ├─> links: start, stop, signal, release, …
//! launcher ──────┼────────> State ────┼─> inventory: hold, release
//! api.sock ──────┤          ::step    ├─> state file (only when documents or stops change)
//! timers ────────┘                    └─> events, log, metrics, answers
//! ```
//!
//! Invariants: nothing here waits between a device event and the launch request: no disk is written, no task is
//! switched. No thread but this one exists. SIGTERM ends the agent and no container.

mod answer;
mod audit;
mod change;
mod devices;
mod events;
mod fd;
mod harden;
mod http;
mod launcher;
mod link;
pub(crate) mod matcher;
mod metrics;
mod observe;
mod perform;
pub(crate) mod roles;
pub(crate) mod sandbox;
mod server;
pub(crate) mod settings;
mod start;
mod starter;
mod starving;
mod store;
#[cfg(test)]
mod tests;
mod view;
mod wait;
mod wakeups;
pub(crate) mod watchdog;

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use berth_audit::Who;
use berth_launcher::wire::{LaunchRequest, Refusal};
use berth_rt::cgroup::Support;
use berth_rt::topology::Topology;
use sd_notify::NotifyState;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc::{self, UnboundedSender};
use tokio::sync::oneshot;

use crate::api::{Fault, Op};
use crate::core::{Event, Notice, NoticeKind, State};

use audit::Audit;
use devices::Devices;
use events::Events;
use fd::Readable;
use link::Said;
use matcher::Found;
use metrics::Metrics;
use perform::Link;
use roles::Role;
use sandbox::Sandbox;
use settings::{LauncherBy, Settings};
use starter::Starter;
use starving::Starving;
use wait::Waiter;
use watchdog::Watchdog;

/// One thing that came in.
#[derive(Debug)]
pub(crate) enum Input {
    /// From a monitor.
    Said { id: String, serial: u64, said: Said },
    /// Of the launcher.
    Launcher(LauncherNews),
    /// A sweep was done.
    Swept { id: String, result: Result<(), Refusal> },
    /// A request on api.sock.
    Asked {
        op: Box<Op>,
        who: Who,
        role: Role,
        conn: u64,
        reply: mpsc::Sender<Vec<u8>>,
    },
    /// A connection of api.sock came, went, or was refused.
    Api(server::News),
    /// Somebody reads the metrics.
    Metrics {
        status: &'static str,
        reply: oneshot::Sender<Vec<u8>>,
    },
}

/// Of the launcher.
#[derive(Debug)]
pub(crate) enum LauncherNews {
    /// It answers; its pid.
    There(i32),
    /// It ended.
    Gone(i32),
    /// The agent started one.
    Started(u32),
    /// Something is wrong.
    Trouble(String),
    /// It answered a ping.
    Answered,
}

/// Manifest digest of an image reference.
type Resolve = Box<dyn Fn(&str) -> Result<String, Refusal>>;

/// Everything the daemon has.
pub(crate) struct Agent {
    settings: Settings,
    state: State,
    desired: store::Desired,
    /// The state file was unreadable: what monitors know is put together instead.
    rebuild: bool,
    devices: Devices,
    links: BTreeMap<String, Link>,
    serial: u64,
    resolve: Resolve,
    /// Launch requests sent whose connection has not said anything yet.
    in_flight: usize,
    launches: VecDeque<(Box<LaunchRequest>, String)>,
    events: Events,
    audit: Audit,
    sandbox: Option<Sandbox>,
    launcher_pid: Option<i32>,
    /// Why the request in work was refused.
    refused: Option<Fault>,
    metrics: Metrics,
    metrics_at: Option<SocketAddr>,
    waiters: Vec<Waiter>,
    /// Requests that came before the start was done; `None` afterwards.
    early: Option<Vec<Input>>,
    topology: Topology,
    support: Support,
    queue: UnboundedSender<Input>,
    begun: Instant,
    /// When the device events now in work were read.
    plugged: Option<Instant>,
    launcher_there: bool,
    /// When the devices are enumerated next.
    resync_at: Instant,
    /// Kernel threads on the CPUs of real-time containers.
    starving: Starving,
}

/// Runs the daemon until SIGTERM.
///
/// # Errors
/// What keeps it from starting.
pub(crate) fn main(settings: Settings) -> anyhow::Result<()> {
    // Before anything that a fork would take along.
    let starter = match settings.launcher {
        LauncherBy::Agent => Some(Starter::fork(&settings)?),
        LauncherBy::Others => None,
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .enable_time()
        .build()?;
    let outcome = runtime.block_on(run(settings, starter));
    // Tasks hold sockets only: nothing is lost with them.
    runtime.shutdown_background();
    outcome
}

async fn run(settings: Settings, starter: Option<Starter>) -> anyhow::Result<()> {
    let (queue, mut inputs) = mpsc::unbounded_channel();
    let mut hangup = signal(SignalKind::hangup())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hardware = settings.watchdog.as_ref().map(Watchdog::open).transpose()?;
    let asks = queue.clone();
    let mut agent = match Agent::start(settings, starter, queue, &mut inputs).await {
        Ok(agent) => agent,
        Err(error) => {
            if let Some(hardware) = hardware {
                hardware.start_failed();
            }
            return Err(error);
        }
    };
    let uevents = Readable::new(agent.devices.socket())?;
    notify(&[NotifyState::Ready, NotifyState::Status("containers are kept")]);
    let watchdog = sd_notify::watchdog_enabled().map(|period| period / 2);
    let mut alive = Instant::now();
    loop {
        if let Some(period) = watchdog
            && alive.elapsed() >= period
        {
            notify(&[NotifyState::Watchdog]);
            alive = Instant::now();
        }
        if let Some(hardware) = &mut hardware
            && hardware.tend(&agent.metrics.watchdog)
        {
            launcher::ask(&agent.settings.folders.run, &asks);
        }
        let tend = hardware.as_ref().map(Watchdog::wake_at);
        let wake = agent.wake_at(
            watchdog
                .map(|period| alive + period)
                .into_iter()
                .chain(tend)
                .min(),
        );
        tokio::select! {
            biased;
            ready = uevents.ready() => {
                ready?;
                agent.on_uevents();
            }
            input = inputs.recv() => {
                if let (Some(Input::Launcher(LauncherNews::Answered)), Some(hardware)) = (&input, &mut hardware) {
                    hardware.launcher_answered();
                }
                if let Some(input) = input {
                    agent.on_input(input);
                }
            }
            () = tokio::time::sleep_until(wake.into()) => agent.on_time(),
            _ = hangup.recv() => {
                notify(&[NotifyState::Reloading, monotonic()]);
                agent.reload();
                notify(&[NotifyState::Ready]);
            }
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
        }
    }
    notify(&[NotifyState::Stopping]);
    if let Some(hardware) = hardware {
        hardware.disarm();
    }
    agent.audit.agent("ends", &agent.metrics.audit);
    let left = agent
        .state
        .instances
        .values()
        .filter(|i| i.phase.has_monitor())
        .count();
    tracing::info!(
        containers = left,
        "the agent ends; containers go on under their monitors"
    );
    Ok(())
}

fn monotonic() -> NotifyState<'static> {
    NotifyState::monotonic_usec_now().unwrap_or(NotifyState::Status("reloading"))
}

/// Tells systemd; without one nothing happens.
fn notify(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!(%error, "sd_notify");
    }
}

impl Agent {
    /// Milliseconds of the core's clock.
    fn now(&self) -> u64 {
        u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// One event through the core, and all that follows from it.
    fn feed(&mut self, event: Event) {
        let mut events = VecDeque::from([event]);
        while let Some(event) = events.pop_front() {
            self.metrics.containers.event(&event);
            let effects = self.state.step(self.now(), event);
            self.perform_all(effects, &mut events);
        }
        self.look_at_waiters();
    }

    fn note(&mut self, kind: NoticeKind, subject: &str, text: impl Into<String>) {
        self.notice(Notice {
            kind,
            subject: subject.to_owned(),
            text: text.into(),
        });
    }

    fn notice(&mut self, notice: Notice) {
        self.metrics.containers.notice(notice.kind);
        self.audit.notice(&notice, &self.metrics.audit);
        let happening = self.events.push(notice, &self.metrics.events).clone();
        self.tell_followers(&happening);
    }

    fn on_uevents(&mut self) {
        self.plugged = Some(Instant::now());
        let found = self.devices.read(&self.metrics.devices);
        self.take_found(found);
        self.plugged = None;
    }

    fn take_found(&mut self, found: Found) {
        for event in found.events {
            self.feed(event);
        }
        for notice in found.notices {
            self.notice(notice);
        }
    }

    fn resync(&mut self, why: &str) {
        let mut found = Found::default();
        self.devices.resync(&self.metrics.devices, &mut found);
        self.resync_at = Instant::now() + self.settings.resync;
        let changes = found.events.len();
        self.take_found(found);
        if changes > 0 {
            self.note(
                NoticeKind::Resync,
                "devices",
                format!("{why}: {changes} devices differ"),
            );
        }
    }

    fn on_input(&mut self, input: Input) {
        match input {
            Input::Said { id, serial, said } => self.on_said(&id, serial, said),
            Input::Launcher(news) => self.on_launcher(news),
            Input::Swept { id, result } => {
                self.feed(Event::Report {
                    id,
                    report: crate::core::Report::Swept(result),
                });
            }
            // Nobody is answered before it is known what runs.
            asked @ Input::Asked { .. } if self.early.is_some() => {
                self.early.get_or_insert_default().push(asked)
            }
            Input::Asked {
                op,
                who,
                role,
                conn,
                reply,
            } => self.on_request(*op, &who, role, conn, reply),
            Input::Api(news) => self.on_api(news),
            Input::Metrics { status, reply } => {
                self.metrics.http.requests.with_label_values(&[status]).inc();
                self.metrics.containers.levels(&self.state);
                self.metrics.wakeups.look(&self.state);
                // The reader may have gone.
                let _ = reply.send(self.metrics.text());
            }
        }
    }

    fn on_launcher(&mut self, news: LauncherNews) {
        match news {
            LauncherNews::There(pid) => {
                self.launcher_there = true;
                self.launcher_pid = Some(pid);
                self.note(NoticeKind::Launcher, "launcher", format!("answers, pid {pid}"));
                self.feed(Event::LauncherBack);
            }
            LauncherNews::Gone(pid) => {
                self.launcher_there = false;
                self.launcher_pid = None;
                self.metrics.launcher.deaths.inc();
                self.note(
                    NoticeKind::Launcher,
                    "launcher",
                    format!("pid {pid} ended; monitors go on"),
                );
            }
            LauncherNews::Started(pid) => {
                self.metrics.launcher.starts.inc();
                self.note(
                    NoticeKind::Launcher,
                    "launcher",
                    format!("started by the agent, pid {pid}"),
                );
            }
            // The hardware watchdog's, and nobody else's.
            LauncherNews::Answered => {}
            LauncherNews::Trouble(text) => self.note(NoticeKind::Refused, "launcher", text),
        }
    }

    fn wake_at(&self, watchdog: Option<Instant>) -> Instant {
        let core = self
            .state
            .deadline()
            .map(|at| self.begun + Duration::from_millis(at));
        let waiters = self.waiters.iter().filter_map(|w| w.deadline).min();
        let all = [
            core,
            waiters,
            watchdog,
            self.audit.due(),
            Some(self.resync_at),
            self.starving_at(),
        ];
        all.into_iter().flatten().min().unwrap_or(self.resync_at)
    }

    fn on_time(&mut self) {
        if self.state.deadline().is_some_and(|at| at <= self.now()) {
            self.feed(Event::Tick);
        }
        if self.resync_at <= Instant::now() {
            self.resync("periodic check");
            let launchers = self.settings.folders.audit("launcher");
            self.audit.seal(&launchers, &self.metrics.audit);
        }
        self.look_for_starved();
        self.audit.sync();
        self.give_up_waiters();
    }
}
