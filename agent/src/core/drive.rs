//! One slot: what is wanted there, compared with what is there.

use std::sync::Arc;

use berth_documents::Run;
use berth_hotplug::rule::UnplugPolicy;

use super::bundle::{self, Used};
use super::desired::{Rule, Workload};
use super::device::{Facts, Present, RuleMatch};
use super::event::{Effect, NoticeKind};
use super::instance::{Instance, Phase, Slot};
use super::{State, launch, names};

/// What a slot wants.
#[derive(Debug, Clone)]
pub(super) struct Want {
    /// Nothing runs, by order; the instance is shown.
    pub rest: bool,
    pub workload: Arc<Workload>,
    pub rule: Option<Arc<Rule>>,
    pub device: Option<Arc<Facts>>,
    pub matched: Option<RuleMatch>,
    /// The devices in their places; none for a container that runs on without.
    pub used: Vec<Used>,
    /// Too few devices of a bundle: which.
    pub partial: Option<String>,
    /// See [`Instance::made_of`].
    pub made_of: String,
    /// Milliseconds before which it does not start (settle).
    pub ready_at: u64,
}

/// See [`Instance::made_of`].
pub(super) fn made_of(workload: &Workload, rule: Option<&Rule>, device: &str) -> String {
    let rule = rule.map_or("", |r| r.digest.as_str());
    format!("{}+{rule}+{device}", workload.digest)
}

impl State {
    /// What `slot` wants; `None`: nobody wants it.
    pub(super) fn want(&self, slot: &Slot) -> Option<Want> {
        let by_name = |name: &str| self.stopped.contains(name);
        let by_hand = self
            .slots
            .get(slot)
            .and_then(|id| self.instances.get(id))
            .is_some_and(|i| by_name(&i.name));
        let plain = |workload: &Arc<Workload>| Want {
            rest: by_hand || by_name(&workload.name),
            workload: workload.clone(),
            rule: None,
            device: None,
            matched: None,
            used: Vec::new(),
            partial: None,
            made_of: made_of(workload, None, ""),
            ready_at: 0,
        };
        match slot {
            Slot::Workload(name) => {
                let workload = self
                    .desired
                    .workloads
                    .get(name)
                    .filter(|w| w.spec.run == Run::Always)?;
                Some(plain(workload))
            }
            Slot::Once(name) => self.once.get(name).map(plain),
            Slot::Adopted(id) => {
                let instance = self.instances.get(id).filter(|i| i.phase.has_monitor())?;
                Some(Want {
                    made_of: instance.made_of.clone(),
                    ..plain(&instance.workload)
                })
            }
            Slot::Device { rule, .. } => {
                let rule = self.desired.rules.get(rule)?;
                let workload = self.desired.workloads.get(&rule.workload)?;
                self.want_devices(slot, rule, plain(workload))
            }
            Slot::Pool { rule, n } => {
                let rule = self.desired.rules.get(rule).filter(|r| r.armed > *n)?;
                let workload = self
                    .desired
                    .workloads
                    .get(&rule.workload)
                    .filter(|w| !by_name(&w.name))?;
                Some(Want {
                    made_of: made_of(workload, Some(rule), ""),
                    rule: Some(rule.clone()),
                    ..plain(workload)
                })
            }
        }
    }

    fn want_devices(&self, slot: &Slot, rule: &Arc<Rule>, base: Want) -> Option<Want> {
        let keys = self.members.get(slot);
        let present: Vec<(&Present, &RuleMatch)> = (keys.into_iter().flatten())
            .filter_map(|key| {
                let present = self.devices.get(key)?;
                Some((present, present.matched(&rule.name)?))
            })
            .collect();
        let instance = self.slots.get(slot).and_then(|id| self.instances.get(id));
        let given = instance.map_or(&[][..], |i| &i.given);
        let used = bundle::assign(rule, &present, given);
        let live = instance.filter(|i| i.phase.is_live());
        // It runs on for a while, or for ever.
        let stays = live.filter(|i| {
            let within = || {
                i.lost_at
                    .is_some_and(|at| self.now < at.saturating_add(rule.grace))
            };
            rule.unplug == UnplugPolicy::Keep || rule.grace > 0 && within()
        });
        let Some(first) = used.first() else {
            let instance = stays?;
            return Some(Want {
                rule: Some(rule.clone()),
                device: instance.device.clone(),
                made_of: made_of(&base.workload, Some(rule), ""),
                ..base
            });
        };
        let of = |one: &Used| present.iter().find(|(p, _)| p.facts.key == one.facts.key);
        let mut matched = of(first).map(|(_, m)| (*m).clone()).unwrap_or_default();
        matched
            .env
            .extend(used.iter().flat_map(|one| one.offer.env.clone()));
        let faults = used.iter().filter_map(|one| of(one)?.1.fault.clone());
        matched.fault = faults.reduce(|all, one| format!("{all}; {one}"));
        let ready_at = used
            .iter()
            .filter_map(|one| Some(ready_at(of(one)?.0, rule)))
            .max();
        let incarnations: Vec<&str> = used.iter().map(|one| one.facts.incarnation.as_str()).collect();
        let incarnations = if rule.hot {
            String::new()
        } else {
            incarnations.join(",")
        };
        let name = instance_name(&base.workload, &first.facts, &matched);
        // A device of which the rule cannot be filled in belongs to no bundle: that is told, and not what it lacks.
        let told = stays.is_some() || matched.fault.is_some();
        Some(Want {
            rest: base.rest || self.stopped.contains(&name),
            made_of: made_of(&base.workload, Some(rule), &incarnations),
            rule: Some(rule.clone()),
            device: Some(first.facts.clone()),
            partial: bundle::partial(rule, &used).filter(|_| !told),
            matched: Some(matched),
            ready_at: ready_at.unwrap_or(0),
            used,
            ..base
        })
    }

    /// Brings one slot a step nearer to what it wants.
    pub(super) fn drive(&mut self, slot: &Slot, out: &mut Vec<Effect>) {
        self.take_back(slot, out);
        let want = self.want(slot);
        match (self.slots.get(slot).cloned(), want) {
            (None, None) => {}
            (None, Some(want)) => self.enter(slot, want, out),
            (Some(id), None) => self.leave(&id, out),
            (Some(id), Some(want)) => self.advance(&id, want, out),
        }
    }

    /// A new instance.
    fn enter(&mut self, slot: &Slot, want: Want, out: &mut Vec<Effect>) {
        let wanted = match (slot, &want.device) {
            (Slot::Device { .. }, Some(device)) => {
                instance_name(&want.workload, device, &want.matched.clone().unwrap_or_default())
            }
            (Slot::Pool { n, .. }, _) => names::of_device(&want.workload.name, &format!("armed-{n}")),
            _ => names::plain(&want.workload.name),
        };
        let namesake = self
            .instances
            .values()
            .find(|i| i.id == wanted || i.name == wanted);
        if let Some(namesake) = namesake
            && !matches!(slot, Slot::Pool { .. })
            && namesake.slot.rule() == slot.rule()
            && self.want(&namesake.slot).is_none()
        {
            // The same device plugged again while its last container still ends: `remove` marks this slot.
            return;
        }
        let taken = |name: &str| self.instances.values().any(|i| i.id == name || i.name == name);
        let id = names::unique(&wanted, taken);
        let past = self.history.get(slot);
        let until = past.map_or(0, |past| past.until);
        let phase = match (want.rest, until > self.now) {
            (true, _) => Phase::Stopped,
            (false, true) => Phase::Backoff { until, counted: true },
            (false, false) => Phase::Pending,
        };
        let mut instance = Instance::new(&id, slot.clone(), want.workload.clone(), phase);
        instance.device = want.device.clone();
        instance.made_of.clone_from(&want.made_of);
        self.slots.insert(slot.clone(), id.clone());
        self.instances.insert(id.clone(), instance);
        self.advance(&id, want, out);
    }

    /// Nobody wants it any more.
    fn leave(&mut self, id: &str, out: &mut Vec<Effect>) {
        let Some(phase) = self.instances.get(id).map(|i| i.phase.clone()) else {
            return;
        };
        if phase.is_live() {
            self.tell_stop(id, out);
        } else if phase.has_monitor() {
            self.try_again(id, out);
        } else {
            self.remove(id);
        }
    }

    /// Wanted and there.
    fn advance(&mut self, id: &str, want: Want, out: &mut Vec<Effect>) {
        let now = self.now;
        let Some(instance) = self.instances.get_mut(id) else {
            return;
        };
        let changed = instance.made_of != want.made_of;
        if !matches!(instance.slot, Slot::Adopted(_)) && !changed {
            instance.workload = want.workload.clone();
        }
        match instance.phase.clone() {
            phase if phase.is_live() => {
                if want.rest || changed || want.partial.is_some() {
                    self.tell_stop(id, out);
                } else {
                    self.reconcile(id, &want, out);
                    self.wake_for_grace(id, &want);
                }
            }
            Phase::Stopping | Phase::Releasing | Phase::Sweeping { .. } => self.try_again(id, out),
            _ if want.rest => {
                instance.phase = Phase::Stopped;
                self.give_back(id);
            }
            _ if want.partial.is_some() => {
                let why = want.partial.unwrap_or_default();
                let phase = Phase::Partial { why: why.clone() };
                if instance.phase != phase {
                    out.push(Effect::note(NoticeKind::Partial, &instance.name, why));
                    instance.phase = phase;
                }
                self.give_back(id);
            }
            Phase::Backoff { until, .. } if until > now && !changed => {
                let slot = instance.slot.clone();
                self.wake(until, slot);
            }
            Phase::Failed | Phase::Completed if !changed && !instance.mended(&want) => {}
            phase => {
                if changed {
                    self.give_back(id);
                    self.forgive(id);
                } else if matches!(phase, Phase::Failed) {
                    self.forgive(id);
                }
                self.begin(id, want, out);
            }
        }
    }

    /// Settled → armed container or a place → launch.
    fn begin(&mut self, id: &str, want: Want, out: &mut Vec<Effect>) {
        let (now, freed) = (self.now, self.freed);
        let Some(instance) = self.instances.get_mut(id) else {
            return;
        };
        instance.workload = want.workload.clone();
        instance.device.clone_from(&want.device);
        instance.made_of.clone_from(&want.made_of);
        let slot = instance.slot.clone();
        if want.ready_at > now {
            instance.phase = Phase::Pending;
            self.wake(want.ready_at, slot);
            return;
        }
        let given = match launch::grants(&want) {
            Ok(given) => given,
            Err(refusal) => {
                out.push(Effect::note(
                    NoticeKind::LaunchFailed,
                    &instance.name,
                    refusal.message.clone(),
                ));
                instance.failure = Some(refusal);
                instance.phase = Phase::Failed;
                self.give_back(id);
                return;
            }
        };
        if let Some(armed) = self.armed_for(&slot, &want) {
            self.hand_over(id, &armed, &want, given, out);
            return;
        }
        if freed && matches!(slot, Slot::Pool { .. }) {
            // What was just freed goes to those that wait for it first.
            if let Some(instance) = self.instances.get_mut(id) {
                let why = "those that wait for cores go first".to_owned();
                instance.phase = Phase::Waiting { why };
            }
            return;
        }
        let place = match self.reserve(id, &want) {
            Ok(place) => place,
            Err(why) => {
                self.wait(id, why, out);
                self.ask_armed_to_yield(id, &want, out);
                return;
            }
        };
        let Some(instance) = self.instances.get_mut(id) else {
            return;
        };
        instance.begin_life(now);
        instance.given = given;
        let request = launch::request(instance, &want, &place, &self.node);
        instance.place = Some(place);
        for given in instance.given.iter().filter(|given| given.moves()) {
            instance.holds.push(given.facts.key.clone());
            out.push(Effect::Hold {
                device: given.facts.clone(),
                owner: id.to_owned(),
            });
        }
        let mut text = format!("{} on cores {}", want.workload.spec.image, request.placement.cpus);
        let profile: &str = &want.workload.spec.profile;
        if self.desired.loud.contains(profile) {
            text.push_str(&format!(", LOUD: with security profile {profile}"));
        }
        let name = instance.name.clone();
        out.push(Effect::Launch {
            request: Box::new(request),
            image: want.workload.spec.image.clone(),
        });
        out.push(Effect::note(NoticeKind::Launching, &name, text));
    }

    fn wait(&mut self, id: &str, why: String, out: &mut Vec<Effect>) {
        let Some(instance) = self.instances.get_mut(id) else {
            return;
        };
        let phase = Phase::Waiting { why };
        if instance.phase != phase {
            if let Phase::Waiting { why } = &phase {
                out.push(Effect::note(NoticeKind::Waiting, &instance.name, why.clone()));
            }
            instance.phase = phase;
        }
    }

    /// Asks a live container to stop.
    pub(super) fn tell_stop(&mut self, id: &str, out: &mut Vec<Effect>) {
        let Some(instance) = self.instances.get_mut(id).filter(|i| i.phase.is_live()) else {
            return;
        };
        if instance.phase == Phase::Frozen {
            out.push(Effect::Thaw(id.to_owned()));
        }
        instance.phase = Phase::Stopping;
        instance.told = true;
        out.push(Effect::Stop(id.to_owned()));
        out.push(Effect::note(NoticeKind::Stopping, &instance.name, ""));
    }

    /// A sweep or a stop that did not work is tried again when its time has come.
    fn try_again(&mut self, id: &str, out: &mut Vec<Effect>) {
        let now = self.now;
        let Some(instance) = self.instances.get_mut(id) else {
            return;
        };
        if instance.phase == Phase::Stopping && instance.stop_again != 0 && instance.stop_again <= now {
            instance.stop_again = 0;
            out.push(Effect::Stop(id.to_owned()));
        }
        if let Phase::Sweeping { again } = &mut instance.phase
            && *again <= now
        {
            *again = u64::MAX;
            out.push(Effect::Sweep(id.to_owned()));
        }
    }

    /// Its cores and budget are free again.
    pub(super) fn give_back(&mut self, id: &str) {
        if self.instances.get_mut(id).and_then(|i| i.place.take()).is_some() {
            self.freed = true;
        }
    }

    /// A fresh start: past failures do not count.
    pub(super) fn forgive(&mut self, id: &str) {
        let Some(instance) = self.instances.get_mut(id) else {
            return;
        };
        instance.failure = None;
        if let Some(past) = self.history.get_mut(&instance.slot) {
            past.restarts.clear();
            past.until = 0;
        }
    }

    /// The instance is no more; devices that had to wait for its name get their turn.
    pub(super) fn remove(&mut self, id: &str) {
        self.give_back(id);
        let Some(instance) = self.instances.remove(id) else {
            return;
        };
        self.slots.remove(&instance.slot);
        self.dirty.insert(instance.slot.clone());
        let Some(rule) = instance.slot.rule() else { return };
        let of_rule = |slot: &&Slot| slot.rule() == Some(rule) && !self.slots.contains_key(slot);
        let waiting: Vec<Slot> = self.members.keys().filter(of_rule).cloned().collect();
        self.dirty.extend(waiting);
    }

    /// Looks again when the grace of a container without its device is over.
    fn wake_for_grace(&mut self, id: &str, want: &Want) {
        let Some(instance) = self.instances.get(id) else {
            return;
        };
        let grace = want.rule.as_ref().map_or(0, |rule| rule.grace);
        if let Some(lost) = instance.lost_at.filter(|_| grace > 0) {
            let slot = instance.slot.clone();
            self.wake(lost.saturating_add(grace), slot);
        }
    }
}

/// `workload-LABEL`, or `workload-DEVICE`.
fn instance_name(workload: &Workload, device: &Facts, matched: &RuleMatch) -> String {
    let label = matched.label.as_deref().unwrap_or(&device.sysname);
    names::of_device(&workload.name, label)
}

fn ready_at(present: &Present, rule: &Rule) -> u64 {
    match rule.settle {
        0 => 0,
        settle => present.heard.saturating_add(settle),
    }
}
