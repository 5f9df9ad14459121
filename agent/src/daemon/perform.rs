//! The core's effects, carried out; and what monitors say, as the core's events.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::time::Instant;

use berth_launcher::client::connect_monitor;
use berth_launcher::frame::encode;
use berth_launcher::wire::{self, Command, LaunchRequest, Refusal, Reply};
use berth_runtime::proof::{Fact, Proof};

use crate::core::{Effect, Event, NoticeKind, Report};

use super::link::{self, Said};
use super::{Agent, Input, launcher};

/// Launch requests under way at once that nobody has answered yet: half of what the launcher's queue takes.
const IN_FLIGHT: usize = 32;

/// The connection to one monitor.
pub(crate) struct Link {
    serial: u64,
    orders: link::Orders,
    /// The container; for the day that its monitor dies.
    pub pidfd: Option<OwnedFd>,
    /// Nothing was said on it yet: a refusal is the launcher's, and there is no monitor.
    fresh: bool,
    /// When the launch request or the start was sent.
    begun: Option<Instant>,
    pub expect: VecDeque<Expect>,
}

/// An order whose answer is still to come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Expect {
    Hello,
    Signal,
    /// With the indexes of the interfaces moved.
    Inject(Vec<u32>),
    Eject,
    Uevent,
    Freeze,
    Thaw,
    Release,
    /// For the waiter with this number.
    Prove(u64),
}

/// No waiter has this number.
const NOBODY: u64 = 0;

impl Agent {
    /// First what is to be done, then what is to be told of it: log and audit are files, and nobody waits for them.
    pub(super) fn perform_all(&mut self, effects: Vec<Effect>, events: &mut VecDeque<Event>) {
        let (notes, deeds): (Vec<Effect>, Vec<Effect>) = effects
            .into_iter()
            .partition(|effect| matches!(effect, Effect::Note(_)));
        for effect in deeds.into_iter().chain(notes) {
            self.perform(effect, events);
        }
    }

    fn perform(&mut self, effect: Effect, events: &mut VecDeque<Event>) {
        match effect {
            Effect::Launch { request, image } => {
                if self.in_flight < IN_FLIGHT {
                    self.launch(request, &image, events);
                } else {
                    self.launches.push_back((request, image));
                }
            }
            Effect::Start {
                id,
                args,
                env,
                devices,
                interfaces,
                labels,
                notes,
            } => {
                if let Some(link) = self.links.get_mut(&id) {
                    link.begun = Some(Instant::now());
                }
                self.order(
                    &id,
                    &Command::Start {
                        args,
                        env,
                        devices,
                        interfaces,
                        labels,
                        notes,
                    },
                    None,
                );
                self.plug_done();
            }
            Effect::Inject {
                id,
                devices,
                interfaces,
                notes,
            } => {
                let moved = interfaces.iter().filter(|i| i.vlan.is_none()).map(|i| i.index);
                let moved = moved.collect();
                let command = Command::Inject {
                    devices,
                    interfaces,
                    notes,
                };
                self.order(&id, &command, Some(Expect::Inject(moved)));
                self.plug_done();
            }
            Effect::Eject {
                id,
                devices,
                interfaces,
            } => {
                let command = Command::Eject { devices, interfaces };
                self.order(&id, &command, Some(Expect::Eject));
            }
            Effect::Uevent {
                id,
                device: (block, major, minor),
                action,
                properties,
            } => {
                let command = Command::Uevent {
                    block,
                    major,
                    minor,
                    action: action.to_owned(),
                    properties,
                };
                self.order(&id, &command, Some(Expect::Uevent));
            }
            Effect::Stop(id) => self.stop(&id, events),
            Effect::Signal(id, signal) => self.order(&id, &Command::Signal { signal }, Some(Expect::Signal)),
            Effect::Freeze(id) => self.order(&id, &Command::Freeze, Some(Expect::Freeze)),
            Effect::Thaw(id) => self.order(&id, &Command::Thaw, Some(Expect::Thaw)),
            Effect::Release(id) => self.order(&id, &Command::Release, Some(Expect::Release)),
            Effect::Sweep(id) => {
                let (run, queue) = (self.settings.folders.run.clone(), self.queue.clone());
                tokio::spawn(async move {
                    let result = launcher::sweep(&run, &id).await;
                    // The agent may be ending.
                    let _ = queue.send(Input::Swept { id, result });
                });
            }
            Effect::Hold { device, owner } => self.devices.matcher().hold(&device, &owner),
            Effect::Unhold(key) => {
                let found = self.devices.matcher().release(&key);
                events.extend(found.events);
                for notice in found.notices {
                    self.notice(notice);
                }
            }
            Effect::Note(notice) => self.notice(notice),
        }
    }

    /// A launch that waits in this process's own queue was never sent: it ends here.
    fn stop(&mut self, id: &str, events: &mut VecDeque<Event>) {
        let before = self.launches.len();
        self.launches.retain(|(request, _)| request.id != id);
        if self.launches.len() < before {
            let refusal = Refusal {
                stage: "launch".into(),
                message: "stopped before it was sent".into(),
                hint: None,
            };
            let report = Report::NotLaunched {
                refusal,
                reached: false,
            };
            events.push_back(Event::Report {
                id: id.to_owned(),
                report,
            });
            return;
        }
        self.order(id, &Command::Stop, None);
    }

    fn launch(&mut self, mut request: Box<LaunchRequest>, image: &str, events: &mut VecDeque<Event>) {
        let id = request.id.clone();
        let sent = match (self.resolve)(image) {
            Ok(digest) => {
                request.image = digest;
                launcher::launch(&self.settings.folders.run, *request).map_err(|refusal| (refusal, false))
            }
            Err(refusal) => Err((refusal, true)),
        };
        let linked = sent.and_then(|(stream, rest)| {
            self.link(&id, stream, rest, true).map_err(|error| {
                (
                    Refusal {
                        stage: "launcher".into(),
                        message: error.to_string(),
                        hint: None,
                    },
                    false,
                )
            })
        });
        match linked {
            Ok(()) => {
                self.in_flight += 1;
                self.plug_done();
            }
            Err((refusal, reached)) => {
                let report = Report::NotLaunched { refusal, reached };
                events.push_back(Event::Report { id, report });
            }
        }
    }

    fn plug_done(&mut self) {
        if let Some(read) = self.plugged {
            self.metrics
                .containers
                .plug_seconds
                .observe(read.elapsed().as_secs_f64());
        }
    }

    /// Serves a connection to the monitor of `id`.
    pub(super) fn link(
        &mut self,
        id: &str,
        stream: std::os::unix::net::UnixStream,
        rest: Vec<u8>,
        fresh: bool,
    ) -> std::io::Result<()> {
        self.serial += 1;
        let orders = link::spawn(id.to_owned(), self.serial, stream, rest, self.queue.clone())?;
        let begun = fresh.then(Instant::now);
        let link = Link {
            serial: self.serial,
            orders,
            pidfd: None,
            fresh,
            begun,
            expect: VecDeque::new(),
        };
        self.links.insert(id.to_owned(), link);
        Ok(())
    }

    /// Connects to a monitor that was there before this agent.
    pub(super) fn greet(&mut self, id: &str) -> Result<(), String> {
        let stream = connect_monitor(&self.settings.folders.run, id).map_err(|e| e.to_string())?;
        self.link(id, stream, Vec::new(), false)
            .map_err(|e| e.to_string())?;
        self.order(
            id,
            &Command::Hello {
                version: wire::VERSION,
            },
            Some(Expect::Hello),
        );
        Ok(())
    }

    /// Sends an order to a monitor. One that is gone says so by itself.
    pub(super) fn order(&mut self, id: &str, command: &Command, expect: Option<Expect>) {
        let Some(link) = self.links.get_mut(id) else {
            return;
        };
        match encode(command) {
            Ok(line) => {
                link.orders.send(&line);
                link.expect.extend(expect);
            }
            Err(error) => tracing::error!(id, %error, "an order cannot be sent"),
        }
    }

    fn report(&mut self, id: &str, report: Report) {
        self.feed(Event::Report {
            id: id.to_owned(),
            report,
        });
    }

    pub(super) fn on_said(&mut self, id: &str, serial: u64, said: Said) {
        let Some(link) = self.links.get_mut(id).filter(|link| link.serial == serial) else {
            return;
        };
        let fresh = std::mem::replace(&mut link.fresh, false);
        if fresh {
            self.in_flight = self.in_flight.saturating_sub(1);
        }
        match said {
            Said::Closed => {
                self.links.remove(id);
                self.give_up_proofs(id);
                self.report(id, Report::Closed);
            }
            Said::Reply(reply, fd) => self.on_reply(id, *reply, fd, fresh),
        }
        if fresh {
            self.next_launches();
        }
    }

    fn next_launches(&mut self) {
        while self.in_flight < IN_FLIGHT {
            let Some((request, image)) = self.launches.pop_front() else {
                return;
            };
            let mut events = VecDeque::new();
            self.launch(request, &image, &mut events);
            for event in events {
                self.feed(event);
            }
        }
    }

    fn on_reply(&mut self, id: &str, reply: Reply, fd: Option<OwnedFd>, fresh: bool) {
        let Some(link) = self.links.get_mut(id) else {
            return;
        };
        match reply {
            Reply::Done => match link.expect.pop_front() {
                Some(Expect::Freeze) => self.report(id, Report::Frozen(true)),
                Some(Expect::Thaw) => self.report(id, Report::Frozen(false)),
                _ => {}
            },
            Reply::Refused(refusal) if fresh => {
                self.links.remove(id);
                self.report(
                    id,
                    Report::NotLaunched {
                        refusal,
                        reached: true,
                    },
                );
            }
            // Orders that are answered by events only have no entry in `expect`.
            Reply::Refused(refusal) if matches!(refusal.stage.as_str(), "start" | "stop") => {
                self.report(id, Report::Refused(refusal));
            }
            Reply::Refused(refusal) => match link.expect.pop_front() {
                Some(Expect::Prove(waiter)) => self.proved(waiter, id, Err(refusal)),
                Some(Expect::Inject(interfaces)) => {
                    self.report(id, Report::NotGiven { refusal, interfaces });
                }
                _ => self.report(id, Report::Refused(refusal)),
            },
            Reply::Status(status) => {
                if link.expect.front() == Some(&Expect::Hello) {
                    link.expect.pop_front();
                }
                if fd.is_some() {
                    link.pidfd = fd;
                }
                self.on_status(*status);
            }
            Reply::Proof(proof) => {
                if let Some(Expect::Prove(waiter)) = link.expect.pop_front() {
                    self.proved(waiter, id, Ok(proof));
                }
            }
            Reply::Event(event) => {
                if fd.is_some() {
                    link.pidfd = fd;
                }
                let begun = link.begun;
                if matches!(*event, wire::Event::Started { .. })
                    && let Some(begun) = begun
                {
                    self.metrics
                        .containers
                        .launch_seconds
                        .observe(begun.elapsed().as_secs_f64());
                }
                let started = matches!(*event, wire::Event::Started { .. });
                if let wire::Event::Started { timing, .. } = &*event {
                    spans(id, timing);
                }
                self.report(id, report_of(*event));
                if started {
                    self.ask_isolation(id);
                }
            }
            Reply::ExecStarted { .. } | Reply::ExecExited(_) => {}
        }
    }

    /// Who may run on its cores is no promise of the exec stop's: it is asked for when the container runs.
    pub(super) fn ask_isolation(&mut self, id: &str) {
        let whole = |i: &crate::core::instance::Instance| i.place.as_ref().is_some_and(|p| !p.shared);
        if self
            .state
            .instances
            .get(id)
            .is_some_and(|i| whole(i) && i.isolation.is_none())
        {
            self.order(id, &Command::Prove, Some(Expect::Prove(NOBODY)));
        }
    }

    /// A monitor that was there before this agent.
    pub(super) fn on_status(&mut self, status: wire::Status) {
        if self.state.instances.contains_key(&status.request.id) {
            return;
        }
        if status.version > wire::VERSION {
            let text = format!(
                "its monitor speaks version {}, this agent {}",
                status.version,
                wire::VERSION
            );
            self.note(NoticeKind::Adopted, &status.request.id, text);
        }
        let id = status.request.id.clone();
        let known = status.proof.as_ref().and_then(isolation);
        let runs = matches!(status.phase, wire::Phase::Running | wire::Phase::Armed);
        self.feed(Event::Adopt {
            status: Box::new(status),
        });
        if let Some(instance) = self.state.instances.get_mut(&id) {
            instance.isolation = known;
        }
        if runs {
            self.ask_isolation(&id);
        }
    }
}

/// One span for a launch, and in it one for each step that was timed, told in retrospect by the monitor (`--log debug`).
fn spans(container: &str, timing: &[(String, u64)]) {
    if !tracing::enabled!(tracing::Level::DEBUG) {
        return;
    }
    let _launch = tracing::debug_span!("launch", container).entered();
    for (step, us) in timing {
        let _step = tracing::debug_span!("step", step, us).entered();
        tracing::debug!("done");
    }
}

fn report_of(event: wire::Event) -> Report {
    match event {
        wire::Event::Created {
            pid,
            start_time,
            takes,
            ..
        } => Report::Created {
            pid,
            start_time,
            takes,
        },
        wire::Event::Started {
            proof,
            timing,
            started_at,
        } => Report::Started {
            at: match started_at {
                0 => super::events::now_ns(),
                at => at,
            },
            isolation: isolation(&proof),
            timing,
        },
        wire::Event::Failed { refusal, proof } => {
            // The refusal names the fact; the others that failed are told too.
            let mut refusal = refusal;
            for fact in proof.iter().flat_map(Proof::failures) {
                let line = drifted(fact);
                if !refusal.message.contains(&fact.name) {
                    refusal.message = format!("{}; {line}", refusal.message);
                }
            }
            Report::Failed(refusal)
        }
        wire::Event::Exited(exit) => Report::Exited(exit),
        wire::Event::Drift { facts, answer } => Report::Drift(facts.iter().map(drifted).collect(), answer),
        wire::Event::Restored => Report::Restored,
        wire::Event::Held { by } => Report::Held(by),
        wire::Event::Dropped { bytes } => Report::Dropped(bytes),
        wire::Event::InterfaceGone { name } => Report::InterfaceGone(name),
    }
}

/// A fact that does not hold, in one line.
fn drifted(fact: &Fact) -> String {
    format!(
        "{}: promised {}, actual {} ({})",
        fact.name, fact.promised, fact.actual, fact.source
    )
}

/// What a proof says of the cores.
pub(super) fn isolation(proof: &Proof) -> Option<String> {
    let named = proof.facts.iter().find(|f| f.name.contains("isolation"));
    named.map(|fact| fact.actual.clone())
}

/// An error with all its causes.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.ends_with(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}
