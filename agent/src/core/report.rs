//! What monitors and launcher tell of one container.

use std::collections::BTreeSet;

use berth_launcher::wire::{InterfaceGrant, Refusal};
use berth_policies::OnDrift;
use berth_rt::starved::Starved;

use super::State;
use super::event::{Effect, NoticeKind, Report};
use super::instance::{Given, Phase, Slot};

/// Milliseconds until a failed sweep is tried again.
const SWEEP_AGAIN: u64 = 1_000;
/// Milliseconds until a refused stop is tried again.
const STOP_AGAIN: u64 = 100;

impl State {
    pub(super) fn report(&mut self, id: &str, report: Report, out: &mut Vec<Effect>) {
        let now = self.now;
        let Some(instance) = self.instances.get_mut(id) else {
            return;
        };
        let name = instance.name.clone();
        let slot = instance.slot.clone();
        match report {
            Report::Created {
                pid,
                start_time,
                takes,
            } => {
                instance.takes = takes;
                instance.pid = Some(pid);
                instance.start_time = Some(start_time);
                if instance.phase == Phase::Launching && matches!(slot, Slot::Pool { .. }) {
                    instance.phase = Phase::Armed;
                    out.push(Effect::note(NoticeKind::Armed, &name, ""));
                }
            }
            Report::Started {
                at,
                isolation,
                timing,
            } => {
                instance.started_at = Some(at);
                instance.isolation = isolation;
                instance.timing = timing;
                instance.failure = None;
                if matches!(instance.phase, Phase::Launching | Phase::Starting) {
                    instance.phase = Phase::Running;
                    out.push(Effect::note(
                        NoticeKind::Started,
                        &name,
                        format!("pid {}", instance.pid.unwrap_or(0)),
                    ));
                }
            }
            Report::Failed(refusal) if can_end(&instance.phase) => {
                out.push(Effect::note(NoticeKind::LaunchFailed, &name, words(&refusal)));
                instance.failure = Some(refusal);
                instance.phase = Phase::Releasing;
                out.push(Effect::Release(id.to_owned()));
            }
            Report::Exited(exit) if can_end(&instance.phase) => {
                out.push(Effect::note(NoticeKind::Exited, &name, exit_words(&exit)));
                instance.exit = Some(exit);
                instance.phase = Phase::Releasing;
                out.push(Effect::Release(id.to_owned()));
            }
            Report::Failed(_) | Report::Exited(_) => {}
            Report::NotLaunched { refusal, reached } => {
                if !(instance.phase.is_live() || instance.phase == Phase::Stopping) {
                    return;
                }
                out.push(Effect::note(NoticeKind::LaunchFailed, &name, words(&refusal)));
                instance.failure = Some(refusal);
                self.ended(id, reached, out);
            }
            Report::Closed => match instance.phase {
                Phase::Releasing => self.ended(id, true, out),
                ref phase if phase.has_monitor() && !matches!(phase, Phase::Sweeping { .. }) => {
                    instance.phase = Phase::Sweeping { again: u64::MAX };
                    instance.exit = None;
                    instance.failure = Some(Refusal {
                        stage: "monitor".to_owned(),
                        message: "the monitor died, and its container was killed with it".to_owned(),
                        hint: None,
                    });
                    out.push(Effect::note(
                        NoticeKind::MonitorLost,
                        &name,
                        "killed with its monitor",
                    ));
                    out.push(Effect::Sweep(id.to_owned()));
                }
                _ => {}
            },
            Report::Swept(result) => {
                if !matches!(instance.phase, Phase::Sweeping { .. }) {
                    return;
                }
                match result {
                    Ok(()) => {
                        out.push(Effect::note(NoticeKind::Swept, &name, ""));
                        self.ended(id, true, out);
                    }
                    Err(refusal) => {
                        out.push(Effect::note(NoticeKind::SweepFailed, &name, words(&refusal)));
                        instance.phase = Phase::Sweeping {
                            again: now + SWEEP_AGAIN,
                        };
                        self.wake(now + SWEEP_AGAIN, slot);
                        return;
                    }
                }
            }
            Report::Drift(facts, answer) => {
                let done = match answer {
                    OnDrift::Report | OnDrift::Repair => "",
                    OnDrift::Freeze => "; frozen",
                    OnDrift::Stop => "; stopped",
                };
                let text = format!("{}{done}", facts.join("; "));
                out.push(Effect::note(NoticeKind::Drift, &name, text));
                instance.drift = facts;
                if answer == OnDrift::Freeze && instance.phase == Phase::Running {
                    instance.phase = Phase::Frozen;
                }
            }
            Report::Restored => {
                out.push(Effect::note(NoticeKind::Restored, &name, ""));
                instance.drift.clear();
            }
            Report::Held(by) => {
                out.push(Effect::note(NoticeKind::Held, &name, by.clone()));
                instance.held = Some(by);
            }
            Report::Starved(starved) => {
                let pids = |all: &[Starved]| all.iter().map(|s| s.pid).collect::<BTreeSet<_>>();
                let (before, now) = (pids(&instance.starved), pids(&starved));
                if !now.is_subset(&before) {
                    let text: Vec<String> = starved.iter().map(ToString::to_string).collect();
                    out.push(Effect::note(NoticeKind::Starved, &name, text.join("; ")));
                } else if now.is_empty() && !before.is_empty() {
                    out.push(Effect::note(NoticeKind::NotStarved, &name, ""));
                }
                instance.starved = starved;
                // A look is no change: nothing has to be decided anew.
                return;
            }
            Report::Dropped(bytes) => {
                instance.dropped += bytes;
                out.push(Effect::note(NoticeKind::Dropped, &name, format!("{bytes} bytes")));
            }
            Report::InterfaceGone(interface) => {
                // The inventory is told first: it gives the device up; then it is gone for us too.
                let inside = |i: &InterfaceGrant| i.inside() == &interface;
                let named = |g: &&Given| !g.taken && g.interfaces.iter().any(inside);
                let of = instance.given.iter().find(named).map(|g| g.facts.key.clone());
                let key = of.or_else(|| instance.holds.first().cloned());
                if let Some(key) = key.filter(|key| instance.holds.contains(key)) {
                    instance.holds.retain(|held| *held != key);
                    out.push(Effect::note(
                        NoticeKind::DeviceGone,
                        &name,
                        format!("{interface}, inside"),
                    ));
                    out.push(Effect::Unhold(key.clone()));
                    self.device_gone(&key, out);
                }
            }
            Report::Frozen(frozen) => {
                let (from, to, kind) = match frozen {
                    true => (Phase::Running, Phase::Frozen, NoticeKind::Frozen),
                    false => (Phase::Frozen, Phase::Running, NoticeKind::Thawed),
                };
                if instance.phase == from {
                    instance.phase = to;
                    out.push(Effect::note(kind, &name, ""));
                }
            }
            Report::Refused(refusal) => {
                out.push(Effect::note(NoticeKind::Refused, &name, words(&refusal)));
                self.refused(id, refusal, out);
            }
            Report::NotGiven { refusal, interfaces } => {
                // What stays outside is held by nobody: its going is told there.
                let not =
                    |g: &&mut Given| !g.taken && g.interfaces.iter().any(|i| interfaces.contains(&i.index));
                for given in instance.given.iter_mut().filter(not) {
                    given.interfaces.clear();
                    instance.holds.retain(|held| *held != given.facts.key);
                    out.push(Effect::Unhold(given.facts.key.clone()));
                }
                out.push(Effect::note(NoticeKind::Refused, &name, words(&refusal)));
                self.refused(id, refusal, out);
            }
        }
        self.dirty.insert(slot);
    }
}

impl State {
    /// The monitor did not take an order that is answered by events.
    fn refused(&mut self, id: &str, refusal: Refusal, out: &mut Vec<Effect>) {
        let now = self.now;
        let Some(instance) = self.instances.get_mut(id) else {
            return;
        };
        match instance.phase {
            // Nothing may hang: a container that cannot take its device is stopped, and counts as failed.
            Phase::Starting => {
                instance.failure = Some(refusal);
                instance.phase = Phase::Stopping;
                out.push(Effect::Stop(id.to_owned()));
            }
            // Without its device it is what it was after an unplug; the device's going is told by itself.
            Phase::Running | Phase::Frozen if refusal.stage == "inject" => {
                instance.failure = Some(refusal);
            }
            Phase::Stopping if refusal.stage == "stop" => {
                instance.stop_again = now + STOP_AGAIN;
                let slot = instance.slot.clone();
                self.wake(now + STOP_AGAIN, slot);
            }
            _ => {}
        }
    }
}

fn can_end(phase: &Phase) -> bool {
    phase.is_live() || *phase == Phase::Stopping
}

/// A refusal in one line.
pub(crate) fn words(refusal: &Refusal) -> String {
    match &refusal.hint {
        Some(hint) => format!("{}: {} ({hint})", refusal.stage, refusal.message),
        None => format!("{}: {}", refusal.stage, refusal.message),
    }
}

/// An end in words.
pub(crate) fn exit_words(exit: &berth_launcher::wire::Exit) -> String {
    let oom = if exit.oom { ", out of memory" } else { "" };
    match (exit.code, exit.signal) {
        (Some(code), _) => format!("code {code}{oom}"),
        (None, Some(signal)) => format!("signal {signal}{oom}"),
        (None, None) => format!("unknown{oom}"),
    }
}
