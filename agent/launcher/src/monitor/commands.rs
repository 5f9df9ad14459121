//! What a monitor is asked to do.
//!
//! Invariants: a connection that was not handed over by the launcher begins with `hello` or `exec`, with a
//! version this build speaks; each command is answered once (`start` and `stop` by events).

use std::os::fd::OwnedFd;

use berth_audit::Entry;
use serde_json::json;

use super::{Exec, Monitor};
use crate::check;
use crate::compose::chain;
use crate::frame::{decode, decode_first};
use crate::record;
use crate::wire::{Command, Event, Phase, ProcessRequest, Refusal, Reply};

impl Monitor<'_> {
    pub(super) fn on_line(&mut self, number: u64, line: &[u8]) {
        let greeted = self.conns.iter().any(|k| k.number == number && k.greeted);
        let command = if greeted {
            decode::<Command>(line)
        } else {
            decode_first::<Command>(line)
        };
        let command = match command {
            Ok(command) => command,
            Err(e) => return self.refuse_frame(number, &e),
        };
        if let Some(keeper) = self.conns.iter_mut().find(|k| k.number == number) {
            keeper.greeted = true;
        }
        match command {
            Command::Hello { version } | Command::Exec { version, .. } if version != crate::wire::VERSION => {
                self.refuse_frame(number, &crate::frame::FrameError::Version(u64::from(version)));
            }
            Command::Hello { .. } => {
                if let Some(conn) = self.conn(number) {
                    conn.subscribed = true;
                }
                self.say_status(number);
            }
            Command::Status => self.say_status(number),
            Command::Start {
                args,
                env,
                devices,
                interfaces,
                labels,
                notes,
            } => {
                if self.phase != Phase::Armed {
                    return self.refuse(number, "start", format!("it is {}, not armed", self.phase_name()));
                }
                let words = labels
                    .iter()
                    .chain(&notes)
                    .chain(&self.request.labels)
                    .chain(&self.request.notes);
                let process = ProcessRequest {
                    args: args.clone(),
                    env: env.clone(),
                    ..ProcessRequest::default()
                };
                let checked = check::process(&process)
                    .and_then(|()| check::devices(&devices))
                    .and_then(|()| check::interfaces(&interfaces, self.request.network))
                    .and_then(|()| check::words(words))
                    .and_then(|()| self.policy.devices(&devices))
                    .and_then(|()| self.policy.interfaces(&interfaces));
                match checked {
                    Err(refusal) => {
                        self.note(record::refused(
                            "start",
                            &self.request.id,
                            &refusal,
                            self.who(number),
                        ));
                        // Answered as what was asked for, whoever refused it.
                        let refusal = Refusal {
                            stage: "start".into(),
                            ..refusal
                        };
                        self.say(number, &Reply::Refused(refusal), Vec::new());
                    }
                    Ok(()) => {
                        let text = format!(
                            "let go with {} devices and {} interfaces",
                            devices.len(),
                            interfaces.len()
                        );
                        let interfaces_named: Vec<&String> = interfaces.iter().map(|i| &i.name).collect();
                        let entry = Entry::new("start", &self.request.id, text)
                            .who(self.who(number))
                            .detail(
                                json!({"devices": record::devices(&devices), "interfaces": interfaces_named}),
                            );
                        // What need not be recorded first is recorded once it runs.
                        if self.policy.audit.required {
                            if let Err(refusal) = self.recorder.note(entry) {
                                let refusal = Refusal {
                                    stage: "start".into(),
                                    ..refusal
                                };
                                return self.say(number, &Reply::Refused(refusal), Vec::new());
                            }
                        } else {
                            self.owed.set(Some(entry));
                        }
                        self.begun = std::time::Instant::now();
                        self.timing.clear();
                        self.request.labels.extend(labels);
                        self.request.notes.extend(notes);
                        self.start(args, env, devices, interfaces);
                        self.pay();
                    }
                }
            }
            Command::Inject {
                devices,
                interfaces,
                notes,
            } => {
                let words = notes
                    .iter()
                    .chain(&self.request.labels)
                    .chain(&self.request.notes);
                let told = json!({"devices": record::devices(&devices)});
                let text = format!(
                    "given {} devices and {} interfaces",
                    devices.len(),
                    interfaces.len()
                );
                let done = check::devices(&devices)
                    .and_then(|()| check::interfaces(&interfaces, self.request.network))
                    .and_then(|()| check::words(words))
                    .and_then(|()| self.policy.devices(&devices))
                    .and_then(|()| self.policy.interfaces(&interfaces))
                    .map_err(|refusal| Refusal {
                        stage: "inject".into(),
                        ..refusal
                    })
                    .and_then(|()| self.give(devices, interfaces));
                if done.is_ok() {
                    self.request.notes.extend(notes);
                }
                let entry = match &done {
                    Ok(()) => Entry::new("inject", &self.request.id, text).detail(told),
                    Err(refusal) => record::refused("inject", &self.request.id, refusal, None),
                };
                self.note(entry.who(self.who(number)));
                self.answer(number, done);
            }
            Command::Eject { devices, interfaces } => {
                let done = check::devices(&devices)
                    .and_then(|()| check::interfaces(&interfaces, self.request.network))
                    .and_then(|()| self.take(&devices, &interfaces));
                let entry = match &done {
                    Ok(()) => Entry::new(
                        "eject",
                        &self.request.id,
                        format!(
                            "{} devices and {} interfaces taken",
                            devices.len(),
                            interfaces.len()
                        ),
                    )
                    .detail(json!({"devices": record::devices(&devices)})),
                    Err(refusal) => record::refused("eject", &self.request.id, refusal, None),
                };
                self.note(entry.who(self.who(number)));
                self.answer(number, done);
            }
            Command::Uevent {
                block,
                major,
                minor,
                action,
                properties,
            } => {
                let done = self.pass_on((block, major, minor), &action, &properties);
                self.answer(number, done);
            }
            Command::Stop => {
                self.on_stop(number);
                self.ordered(number, "stop", Ok(()));
            }
            Command::Signal { signal } => {
                let done = check::signal(signal).and_then(|()| self.signal(signal));
                self.ordered(number, &format!("signal {signal}"), done.as_ref().copied());
                self.answer(number, done);
            }
            Command::Freeze => {
                let done = self.freeze();
                self.ordered(number, "freeze", done.as_ref().copied());
                self.answer(number, done);
            }
            Command::Thaw => {
                let done = self.thaw();
                self.ordered(number, "thaw", done.as_ref().copied());
                self.answer(number, done);
            }
            Command::Prove => self.on_prove(number),
            Command::Exec {
                args,
                env,
                cwd,
                terminal,
                ..
            } => {
                let stdio = match terminal {
                    Some(_) => null_thrice(),
                    None => self.conn(number).and_then(|c| c.take_fds(3)),
                };
                let wanted = berth_runtime::ExecRequest {
                    args,
                    env: env.iter().map(|(k, v)| format!("{k}={v}")).collect(),
                    cwd,
                    terminal,
                    ..berth_runtime::ExecRequest::default()
                };
                let program = wanted.args.first().cloned().unwrap_or_default();
                let done = self.exec(number, wanted, &env, stdio);
                let entry = match &done {
                    Ok((pid, _)) => {
                        Entry::new("exec", &self.request.id, format!("{program} as process {pid}"))
                            .who(self.who(number))
                    }
                    Err(refusal) => record::refused("exec", &self.request.id, refusal, self.who(number)),
                };
                match done {
                    Ok((pid, console)) => {
                        let terminal = console.is_some();
                        let reply = Reply::ExecStarted { pid, terminal };
                        self.say(number, &reply, console.into_iter().collect());
                    }
                    Err(refusal) => self.say(number, &Reply::Refused(refusal), Vec::new()),
                }
                self.recorder.note_safely(entry);
            }
            Command::Release => self.on_release(number),
        }
    }

    /// Records an order and who gave it.
    fn ordered(&self, number: u64, what: &str, done: Result<(), &Refusal>) {
        let entry = match done {
            Ok(()) => Entry::new("order", &self.request.id, what).who(self.who(number)),
            Err(refusal) => record::refused("order", &self.request.id, refusal, self.who(number)),
        };
        self.note(entry);
    }

    fn answer(&mut self, number: u64, done: Result<(), Refusal>) {
        let reply = match done {
            Ok(()) => Reply::Done,
            Err(refusal) => Reply::Refused(refusal),
        };
        self.say(number, &reply, Vec::new());
    }

    fn say_status(&mut self, number: u64) {
        let (status, fds) = self.status();
        self.say(number, &Reply::Status(Box::new(status)), fds);
    }

    pub(super) fn phase_name(&self) -> &'static str {
        match self.phase {
            Phase::Creating => "being made",
            Phase::Armed => "armed",
            Phase::Running => "running",
            Phase::Frozen => "frozen",
            Phase::Stopping => "stopping",
            Phase::Exited => "exited",
            Phase::Failed => "failed",
        }
    }

    /// Refuses what needs a container that lives.
    pub(super) fn living(&self, stage: &str, phases: &[Phase]) -> Result<(), Refusal> {
        if phases.contains(&self.phase) {
            return Ok(());
        }
        Err(Refusal {
            stage: stage.into(),
            message: format!("it is {}", self.phase_name()),
            hint: None,
        })
    }

    fn on_stop(&mut self, number: u64) {
        match (self.phase, self.exit) {
            // It is too late to ask: the answer is there.
            (Phase::Exited, Some(exit)) => {
                self.say(number, &Reply::Event(Box::new(Event::Exited(exit))), Vec::new());
            }
            (Phase::Creating | Phase::Failed | Phase::Exited, _) => {
                self.refuse(number, "stop", format!("it is {}", self.phase_name()));
            }
            _ => self.stop(),
        }
    }

    fn on_prove(&mut self, number: u64) {
        let reply = match self.prove() {
            Ok(proof) => {
                self.proof = Some(proof.clone());
                Reply::Proof(proof)
            }
            Err(refusal) => Reply::Refused(refusal),
        };
        self.say(number, &reply, Vec::new());
    }

    fn exec(
        &mut self,
        number: u64,
        wanted: berth_runtime::ExecRequest,
        env: &[(String, String)],
        stdio: Option<Vec<OwnedFd>>,
    ) -> Result<(i32, Option<OwnedFd>), Refusal> {
        self.living("exec", &[Phase::Running])?;
        let refuse = |message: String| Refusal {
            stage: "exec".into(),
            message,
            hint: None,
        };
        if wanted.args.first().is_none_or(String::is_empty) {
            return Err(refuse("no program is named".into()));
        }
        let process = ProcessRequest {
            command: wanted.args.clone(),
            env: env.to_vec(),
            cwd: wanted.cwd.clone(),
            ..ProcessRequest::default()
        };
        check::process(&process)?;
        let Some(Ok([stdin, stdout, stderr])) = stdio.map(<[OwnedFd; 3]>::try_from) else {
            return Err(refuse(
                "exec comes with three descriptors: stdin, stdout, stderr".into(),
            ));
        };
        let Some(container) = &self.container else {
            return Err(refuse("there is no container".into()));
        };
        let stdio = berth_runtime::Stdio {
            stdin,
            stdout,
            stderr,
        };
        let exec = container.exec(wanted, stdio).map_err(|e| Refusal {
            stage: "exec".into(),
            message: chain(&e),
            hint: e.hint(),
        })?;
        let pid = exec.pid;
        self.execs.push(Exec {
            pid,
            pidfd: exec.pidfd,
            by: number,
        });
        Ok((pid, exec.console))
    }

    fn on_release(&mut self, number: u64) {
        if !matches!(self.phase, Phase::Exited | Phase::Failed) {
            return self.refuse(
                number,
                "release",
                format!("it is {}: stop it first", self.phase_name()),
            );
        }
        self.forget();
        self.say(number, &Reply::Done, Vec::new());
        self.released = true;
        for keeper in &mut self.conns {
            keeper.conn.closing = true;
        }
    }
}

/// Standard streams of a process until it has its terminal.
fn null_thrice() -> Option<Vec<OwnedFd>> {
    let null = std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/null")
        .ok()?;
    let copies = [null.try_clone().ok()?, null.try_clone().ok()?, null];
    Some(copies.into_iter().map(OwnedFd::from).collect())
}
