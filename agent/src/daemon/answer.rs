//! Requests on api.sock, answered.

use std::collections::VecDeque;
use std::sync::Arc;

use berth_audit::Who;
use berth_documents::{Document, Metadata, WorkloadSpec};
use tokio::sync::mpsc::Sender;

use crate::api::{Answer, Documents, Fault, Op};
use crate::core::desired::Workload;
use crate::core::{Ask, AskError, Event};

use super::audit::Asked;
use super::roles::{self, Role};
use super::sandbox::{self, Sandbox};
use super::wait::{no_run, say};
use super::{Agent, server};

impl Agent {
    pub(super) fn on_api(&mut self, news: server::News) {
        let metrics = &self.metrics.api;
        match news {
            server::News::Opened => metrics.connections.inc(),
            server::News::Closed(conn) => {
                metrics.connections.dec();
                self.hung_up(conn);
            }
            server::News::Refused(who, why, text) => {
                metrics.refused.with_label_values(&[why]).inc();
                let text = if text.is_empty() { why } else { &text };
                self.audit.turned_away(Some(who), text, &self.metrics.audit);
            }
        }
    }

    /// A request: is there a right to it; then it is carried out, and recorded with its outcome.
    pub(super) fn on_request(&mut self, op: Op, who: &Who, role: Role, conn: u64, reply: Sender<Vec<u8>>) {
        let word = name(&op);
        let needed = roles::needed(&op);
        if role < needed {
            self.metrics.api.refused.with_label_values(&["role"]).inc();
            let message = format!(
                "`{word}` needs the role {}, uid {} has {}",
                needed.as_str(),
                who.uid,
                role.as_str()
            );
            self.audit
                .turned_away(Some(who.clone()), &message, &self.metrics.audit);
            let hint = format!(
                "the group of that role; see --{}-group of `berth agent`",
                needed.as_str()
            );
            return self.fail(
                &reply,
                Fault {
                    message,
                    hint: Some(hint),
                },
            );
        }
        let asked = Asked::of(&op, word, who);
        self.refused = None;
        self.on_asked(op, conn, reply);
        if let Some(asked) = asked {
            self.audit
                .request(asked, self.refused.take().as_ref(), &self.metrics.audit);
        }
    }

    fn on_asked(&mut self, op: Op, conn: u64, reply: Sender<Vec<u8>>) {
        self.metrics.api.requests.with_label_values(&[name(&op)]).inc();
        match op {
            Op::Hello => self.ok(&reply, &self.hello()),
            Op::Ps => self.ok(&reply, &self.containers()),
            Op::Node => self.ok(&reply, &self.node_view()),
            Op::Sandbox => match &self.sandbox {
                Some(sandbox) => {
                    let now = Sandbox {
                        launcher: self.launcher_pid,
                        probe: sandbox::probe(),
                        housekeeping: self.state.node.pool.housekeeping.to_string(),
                        ..sandbox.clone()
                    };
                    self.ok(&reply, &now);
                }
                None => self.fail(
                    &reply,
                    Fault {
                        message: "this agent has no sandbox".to_owned(),
                        hint: None,
                    },
                ),
            },
            Op::Documents => {
                let documents = Documents {
                    set: self.desired.effective(),
                    files: self.desired.file_keys(),
                };
                self.ok(&reply, &documents);
            }
            Op::Inspect { name } => match self.state.resolve(&name) {
                Ok(ids) => {
                    let found = ids.iter().filter_map(|id| self.state.instances.get(id));
                    let details: Vec<_> = found.map(|i| self.details(i)).collect();
                    self.ok(&reply, &details);
                }
                Err(error) => self.fail(&reply, refused(&error)),
            },
            Op::Resolve { name } => match self.state.resolve(&name) {
                Ok(ids) => self.ok(&reply, &ids),
                Err(error) => self.fail(&reply, refused(&error)),
            },
            Op::Plan(changes) => match self.plan(&changes) {
                Ok(outcome) => self.ok(&reply, &outcome),
                Err(fault) => self.fail(&reply, fault),
            },
            Op::Apply(changes) => match self.apply(&changes) {
                Ok(outcome) => self.ok(&reply, &outcome),
                Err(fault) => self.fail(&reply, fault),
            },
            Op::Stop { names, all } => {
                let ask = if all { Ask::StopAll } else { Ask::Stop(names) };
                match self.ask(ask) {
                    Ok(ids) => {
                        self.save();
                        self.wait_rest(conn, reply, ids);
                    }
                    Err(error) => self.fail(&reply, refused(&error)),
                }
            }
            Op::Start { names } => self.start_again(Ask::Start(names), conn, reply),
            Op::Restart { names } => self.start_again(Ask::Restart(names), conn, reply),
            Op::Kill { names, signal } => self.order_all(Ask::Kill(names, signal), &reply),
            Op::Freeze { names } => match self.ask(Ask::Freeze(names)) {
                Ok(ids) => self.wait_frozen(conn, reply, ids, true),
                Err(error) => self.fail(&reply, refused(&error)),
            },
            Op::Thaw { names } => match self.ask(Ask::Thaw(names)) {
                Ok(ids) => self.wait_frozen(conn, reply, ids, false),
                Err(error) => self.fail(&reply, refused(&error)),
            },
            Op::Prove { name } => {
                let ids = match name {
                    Some(name) => self.state.resolve(&name),
                    None => {
                        let live = self.state.instances.values().filter(|i| i.phase.is_live());
                        Ok(live.map(|i| i.id.clone()).collect())
                    }
                };
                match ids {
                    Ok(ids) => self.wait_proofs(conn, reply, ids),
                    Err(error) => self.fail(&reply, refused(&error)),
                }
            }
            Op::Events { follow, since } => {
                let past: Vec<_> = self.events.after(since).collect();
                self.ok(&reply, &past);
                if follow {
                    self.follow(conn, reply);
                }
            }
            Op::Run { name, spec } => self.run_once(name, *spec, conn, reply),
            Op::Wait { name } => {
                if self.state.once.contains_key(&name) {
                    self.wait_once(conn, reply, name);
                } else {
                    self.fail(&reply, no_run(&name));
                }
            }
        }
    }

    /// An order of the user's, through the core.
    pub(super) fn ask(&mut self, ask: Ask) -> Result<Vec<String>, AskError> {
        let (answer, effects) = self.state.ask(self.now(), ask);
        let mut events = VecDeque::new();
        self.perform_all(effects, &mut events);
        for event in events {
            self.feed(event);
        }
        answer
    }

    fn start_again(&mut self, ask: Ask, conn: u64, reply: Sender<Vec<u8>>) {
        match self.ask(ask) {
            Ok(ids) => {
                self.save();
                self.wait_up(conn, reply, ids);
            }
            Err(error) => self.fail(&reply, refused(&error)),
        }
    }

    fn order_all(&mut self, ask: Ask, reply: &Sender<Vec<u8>>) {
        match self.ask(ask) {
            Ok(ids) => self.ok(reply, &self.containers_of(&ids)),
            Err(error) => self.fail(reply, refused(&error)),
        }
    }

    fn run_once(&mut self, name: String, spec: WorkloadSpec, conn: u64, reply: Sender<Vec<u8>>) {
        let taken = self
            .state
            .instances
            .values()
            .any(|i| i.name == name || i.id == name);
        if taken || self.state.desired.workloads.contains_key(&name) || self.state.once.contains_key(&name) {
            let hint = Some("give another one with --name".to_owned());
            return self.fail(
                &reply,
                Fault {
                    message: format!("the name `{name}` is taken"),
                    hint,
                },
            );
        }
        let Ok(label) = name.parse() else {
            let hint = Some("1 to 63 of a-z, 0-9 and `-`".to_owned());
            return self.fail(
                &reply,
                Fault {
                    message: format!("`{name}` is no name"),
                    hint,
                },
            );
        };
        let problems = spec.validate();
        if let Some(problem) = problems.first() {
            let message = format!("{}: {}", problem.path, problem.message);
            return self.fail(
                &reply,
                Fault {
                    message,
                    hint: problem.hint.clone(),
                },
            );
        }
        let document = Document::new(
            Metadata {
                name: label,
                labels: Default::default(),
                annotations: Default::default(),
            },
            spec,
        );
        let workload = Arc::new(Workload::of(&document, ""));
        self.feed(Event::Once { workload });
        let known = self
            .state
            .instances
            .values()
            .find(|i| i.name == name)
            .map(|i| self.container(i));
        match known {
            Some(container) => self.ok(&reply, &container),
            None => return self.fail(&reply, no_run(&name)),
        }
        self.wait_once(conn, reply, name);
    }

    fn ok<T: serde::Serialize>(&self, reply: &Sender<Vec<u8>>, value: &T) {
        // Who asked may have gone.
        let _ = say(reply, &Answer::Ok(value));
    }

    fn fail(&mut self, reply: &Sender<Vec<u8>>, fault: Fault) {
        self.refused = Some(fault.clone());
        let _ = say::<()>(reply, &Answer::Error(fault));
    }
}

fn refused(error: &AskError) -> Fault {
    Fault {
        message: error.to_string(),
        hint: error.hint(),
    }
}

fn name(op: &Op) -> &'static str {
    match op {
        Op::Hello => "hello",
        Op::Ps => "ps",
        Op::Inspect { .. } => "inspect",
        Op::Resolve { .. } => "resolve",
        Op::Documents => "documents",
        Op::Plan(_) => "plan",
        Op::Apply(_) => "apply",
        Op::Stop { .. } => "stop",
        Op::Start { .. } => "start",
        Op::Restart { .. } => "restart",
        Op::Kill { .. } => "kill",
        Op::Freeze { .. } => "freeze",
        Op::Thaw { .. } => "thaw",
        Op::Prove { .. } => "prove",
        Op::Events { .. } => "events",
        Op::Run { .. } => "run",
        Op::Wait { .. } => "wait",
        Op::Node => "node",
        Op::Sandbox => "sandbox",
    }
}
