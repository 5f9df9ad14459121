//! Answers that come later: when containers have stopped or are up, when proofs are in, as things happen.

use std::time::{Duration, Instant};

use berth_launcher::wire::{Command, Refusal};
use berth_runtime::proof::Proof;
use tokio::sync::mpsc::Sender;

use crate::api::{Answer, Fault, Happening, Proved};
use crate::core::instance::Phase;
use crate::core::report::words;
use crate::core::{Ask, State};

use super::Agent;
use super::perform::{Expect, isolation};

/// So long a proof may take.
const PROOFS: Duration = Duration::from_secs(15);
/// So long freezing and thawing may take.
const FREEZING: Duration = Duration::from_secs(10);

/// Somebody who waits.
pub(crate) struct Waiter {
    number: u64,
    conn: u64,
    reply: Sender<Vec<u8>>,
    what: What,
    pub deadline: Option<Instant>,
}

/// For what.
enum What {
    /// None of them has a monitor any more.
    Rest(Vec<String>),
    /// Each runs, is armed, or will not by itself.
    Up(Vec<String>),
    /// Each is frozen, or thawed, or will not be.
    Frozen(Vec<String>, bool),
    /// The end of a `berth run`; `gone`: its caller is, so it is stopped and forgotten.
    Once { name: String, gone: bool },
    /// Proofs: those in, and the ids still out.
    Proofs { done: Vec<Proved>, out: Vec<String> },
    /// What happens.
    Events,
}

/// One answer as a line.
pub(super) fn line<T: serde::Serialize>(answer: &Answer<T>) -> Vec<u8> {
    let mut line = serde_json::to_vec(answer).unwrap_or_else(|error| {
        format!("{{\"error\":{{\"message\":\"the answer cannot be written: {error}\"}}}}").into_bytes()
    });
    line.push(b'\n');
    line
}

/// Sends a line; false where nobody takes it (any more, or fast enough).
pub(super) fn say<T: serde::Serialize>(reply: &Sender<Vec<u8>>, answer: &Answer<T>) -> bool {
    reply.try_send(line(answer)).is_ok()
}

impl Agent {
    fn wait(&mut self, conn: u64, reply: Sender<Vec<u8>>, what: What, deadline: Option<Instant>) -> u64 {
        self.serial += 1;
        self.waiters.push(Waiter {
            number: self.serial,
            conn,
            reply,
            what,
            deadline,
        });
        self.look_at_waiters();
        self.serial
    }

    pub(super) fn wait_rest(&mut self, conn: u64, reply: Sender<Vec<u8>>, ids: Vec<String>) {
        self.wait(conn, reply, What::Rest(ids), None);
    }

    pub(super) fn wait_up(&mut self, conn: u64, reply: Sender<Vec<u8>>, ids: Vec<String>) {
        self.wait(conn, reply, What::Up(ids), None);
    }

    pub(super) fn wait_frozen(&mut self, conn: u64, reply: Sender<Vec<u8>>, ids: Vec<String>, frozen: bool) {
        self.wait(
            conn,
            reply,
            What::Frozen(ids, frozen),
            Some(Instant::now() + FREEZING),
        );
    }

    pub(super) fn wait_once(&mut self, conn: u64, reply: Sender<Vec<u8>>, name: String) {
        self.wait(conn, reply, What::Once { name, gone: false }, None);
    }

    pub(super) fn follow(&mut self, conn: u64, reply: Sender<Vec<u8>>) {
        self.wait(conn, reply, What::Events, None);
    }

    /// Asks the monitors of `ids` for proofs.
    pub(super) fn wait_proofs(&mut self, conn: u64, reply: Sender<Vec<u8>>, ids: Vec<String>) {
        let proves = |id: &String| self.state.instances.get(id).is_some_and(|i| i.phase.is_live());
        let (out, not): (Vec<String>, Vec<String>) = ids.into_iter().partition(proves);
        let done = not.iter().map(|id| self.unproved(id, None)).collect();
        let what = What::Proofs {
            done,
            out: out.clone(),
        };
        self.serial += 1;
        let number = self.serial;
        self.waiters.push(Waiter {
            number,
            conn,
            reply,
            what,
            deadline: Some(Instant::now() + PROOFS),
        });
        for id in out {
            self.order(&id, &Command::Prove, Some(Expect::Prove(number)));
        }
        self.look_at_waiters();
    }

    fn unproved(&self, id: &str, fault: Option<Fault>) -> Proved {
        let instance = self.state.instances.get(id);
        let name = instance.map_or(id, |i| i.name.as_str()).to_owned();
        let phase = instance.map_or("gone", |i| i.phase.as_str());
        let fault = fault.unwrap_or(Fault {
            message: format!("it is {phase}: nothing to prove"),
            hint: None,
        });
        Proved {
            name,
            id: id.to_owned(),
            proof: None,
            fault: Some(fault),
        }
    }

    /// A proof came in, or a refusal.
    pub(super) fn proved(&mut self, number: u64, id: &str, result: Result<Proof, Refusal>) {
        let proved = match result {
            Ok(proof) => {
                let found = isolation(&proof);
                if let Some(instance) = self.state.instances.get_mut(id) {
                    instance.isolation = found.or(instance.isolation.take());
                }
                let name = self
                    .state
                    .instances
                    .get(id)
                    .map_or(id, |i| i.name.as_str())
                    .to_owned();
                Proved {
                    name,
                    id: id.to_owned(),
                    proof: Some(proof),
                    fault: None,
                }
            }
            Err(refusal) => {
                let fault = Fault {
                    message: words(&refusal),
                    hint: refusal.hint,
                };
                self.unproved(id, Some(fault))
            }
        };
        if let Some(waiter) = self.waiters.iter_mut().find(|w| w.number == number)
            && let What::Proofs { done, out } = &mut waiter.what
        {
            out.retain(|other| other != id);
            done.push(proved);
        }
        self.look_at_waiters();
    }

    /// The monitor of `id` is gone: no proof of it comes any more.
    pub(super) fn give_up_proofs(&mut self, id: &str) {
        let fault = Fault {
            message: "its monitor is gone".to_owned(),
            hint: None,
        };
        let proved = self.unproved(id, Some(fault));
        for waiter in &mut self.waiters {
            if let What::Proofs { done, out } = &mut waiter.what
                && out.iter().any(|other| other == id)
            {
                out.retain(|other| other != id);
                done.push(Proved {
                    fault: proved.fault.clone(),
                    name: proved.name.clone(),
                    id: id.to_owned(),
                    proof: None,
                });
            }
        }
    }

    /// Those whose time is over get what there is.
    pub(super) fn give_up_waiters(&mut self) {
        let now = Instant::now();
        let mut late: Vec<(u64, Vec<String>)> = Vec::new();
        self.waiters.retain(|waiter| match &waiter.what {
            What::Frozen(ids, _) if waiter.deadline.is_some_and(|at| at <= now) => {
                let message = format!("not within {} s: {}", FREEZING.as_secs(), ids.join(", "));
                say::<()>(&waiter.reply, &Answer::Error(Fault { message, hint: None }));
                false
            }
            _ => true,
        });
        for waiter in &self.waiters {
            if let What::Proofs { out, .. } = &waiter.what
                && waiter.deadline.is_some_and(|at| at <= now)
            {
                late.push((waiter.number, out.clone()));
            }
        }
        for (number, ids) in late {
            for id in ids {
                let seconds = PROOFS.as_secs();
                let message = format!("its monitor gave no proof within {seconds} s");
                self.proved(
                    number,
                    &id,
                    Err(Refusal {
                        stage: "prove".into(),
                        message,
                        hint: None,
                    }),
                );
            }
        }
    }

    /// Answers whom can be answered now.
    pub(super) fn look_at_waiters(&mut self) {
        if self.waiters.is_empty() {
            return;
        }
        let (ready, rest): (Vec<Waiter>, Vec<Waiter>) = std::mem::take(&mut self.waiters)
            .into_iter()
            .partition(|w| is_ready(&w.what, &self.state));
        self.waiters = rest;
        for waiter in ready {
            let heard = match waiter.what {
                What::Rest(ids) | What::Up(ids) | What::Frozen(ids, _) => {
                    say(&waiter.reply, &Answer::Ok(self.containers_of(&ids)))
                }
                What::Proofs { mut done, .. } => {
                    done.sort_by(|a, b| a.name.cmp(&b.name));
                    say(&waiter.reply, &Answer::Ok(done))
                }
                What::Once { name, gone } => {
                    let details = self
                        .state
                        .instances
                        .values()
                        .find(|i| i.name == name)
                        .map(|i| self.details(i));
                    let heard = gone
                        || match details {
                            Some(details) => say(&waiter.reply, &Answer::Ok(details)),
                            None => say::<()>(&waiter.reply, &Answer::Error(no_run(&name))),
                        };
                    let _ = self.ask(Ask::Forget(name));
                    heard
                }
                What::Events => true,
            };
            if !heard {
                tracing::debug!(conn = waiter.conn, "an answer found nobody");
            }
        }
    }

    pub(super) fn tell_followers(&mut self, happening: &Happening) {
        self.waiters.retain(|w| match w.what {
            // Who does not read loses the connection, and asks again from the last number it has.
            What::Events => say(&w.reply, &Answer::Ok(happening)),
            _ => true,
        });
    }

    /// The connection is gone: nobody waits on it any more; a `berth run` without its caller is stopped.
    pub(super) fn hung_up(&mut self, conn: u64) {
        let mut orphans = Vec::new();
        self.waiters.retain_mut(|w| match &mut w.what {
            _ if w.conn != conn => true,
            What::Once { name, gone } => {
                *gone = true;
                orphans.push(name.clone());
                true
            }
            _ => false,
        });
        for name in orphans {
            // It may have ended meanwhile.
            let _ = self.ask(Ask::Stop(vec![name]));
        }
    }
}

pub(super) fn no_run(name: &str) -> Fault {
    Fault {
        message: format!("there is no run `{name}`"),
        hint: None,
    }
}

fn is_ready(what: &What, state: &State) -> bool {
    let phase = |id: &String| state.instances.get(id).map(|i| &i.phase);
    match what {
        What::Rest(ids) => ids.iter().all(|id| phase(id).is_none_or(|p| !p.has_monitor())),
        What::Up(ids) => ids.iter().all(|id| {
            !matches!(
                phase(id),
                Some(
                    Phase::Pending
                        | Phase::Launching
                        | Phase::Starting
                        | Phase::Stopping
                        | Phase::Releasing
                        | Phase::Sweeping { .. }
                )
            )
        }),
        What::Once { name, .. } => {
            let instance = state.instances.values().find(|i| i.name == *name);
            instance.is_none_or(|i| matches!(i.phase, Phase::Failed | Phase::Completed | Phase::Stopped))
        }
        What::Frozen(ids, true) => !ids.iter().any(|id| phase(id) == Some(&Phase::Running)),
        What::Frozen(ids, false) => !ids.iter().any(|id| phase(id) == Some(&Phase::Frozen)),
        What::Proofs { out, .. } => out.is_empty(),
        What::Events => false,
    }
}
