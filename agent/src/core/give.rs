//! Devices given to and taken from containers that run.
//!
//! Invariants: what has gone is taken from every container at once, whatever its rule says of the container itself,
//! before anything else is decided; what was refused once is not tried again for the same plug-in; a container's notes
//! say what it has, so that a restarted agent takes back the same.

use std::sync::Arc;

use super::State;
use super::bundle::Used;
use super::device::{Facts, RuleMatch};
use super::drive::Want;
use super::event::{Effect, NoticeKind};
use super::instance::{Given, Instance, Phase, Slot};
use super::launch;

impl State {
    /// Takes back what has gone.
    pub(super) fn take_back(&mut self, slot: &Slot, out: &mut Vec<Effect>) {
        let now = self.now;
        let Some(instance) = self.slots.get(slot).and_then(|id| self.instances.get_mut(id)) else {
            return;
        };
        // What is still being made is looked at again when it runs; what has ended has nothing to give back.
        let living = matches!(
            instance.phase,
            Phase::Starting | Phase::Running | Phase::Frozen | Phase::Stopping
        );
        if !living {
            return;
        }
        let devices = &self.devices;
        let there = |facts: &Facts| {
            devices
                .get(&facts.key)
                .is_some_and(|present| present.facts.incarnation == facts.incarnation)
        };
        let mut grants = Vec::new();
        let mut names = Vec::new();
        for given in instance.given.iter_mut().filter(|g| !g.taken && !there(&g.facts)) {
            given.taken = true;
            instance.lost_at = Some(now);
            names.push(given.facts.sysname.clone());
            grants.append(&mut given.devices);
        }
        if names.is_empty() || !instance.takes {
            return;
        }
        // An interface that has gone is inside no longer either.
        if !grants.is_empty() {
            out.push(Effect::Eject {
                id: instance.id.clone(),
                devices: grants,
                interfaces: Vec::new(),
            });
        }
        let text = format!("{}: it has gone", names.join(", "));
        out.push(Effect::note(NoticeKind::DeviceTaken, &instance.name, text));
    }

    /// Gives a running container what is there and takes what is another's.
    pub(super) fn reconcile(&mut self, id: &str, want: &Want, out: &mut Vec<Effect>) {
        let Some(rule) = want.rule.as_ref().filter(|rule| rule.hot) else {
            return;
        };
        let Some(instance) = self.instances.get_mut(id) else {
            return;
        };
        if !matches!(instance.phase, Phase::Running | Phase::Frozen) || !instance.takes {
            return;
        }
        let used = |facts: &Facts| {
            want.used
                .iter()
                .any(|u| u.facts.key == facts.key && u.facts.incarnation == facts.incarnation)
        };
        for given in instance.given.iter_mut().filter(|g| !g.taken && !used(&g.facts)) {
            given.taken = true;
            let devices = std::mem::take(&mut given.devices);
            let held = given.moves();
            let interfaces = std::mem::take(&mut given.interfaces);
            if !devices.is_empty() || !interfaces.is_empty() {
                out.push(Effect::Eject {
                    id: id.to_owned(),
                    devices,
                    interfaces,
                });
            }
            if held {
                instance.holds.retain(|key| *key != given.facts.key);
                out.push(Effect::Unhold(given.facts.key.clone()));
            }
            out.push(Effect::note(
                NoticeKind::DeviceTaken,
                &instance.name,
                format!("{}: it matches no longer", given.facts.sysname),
            ));
        }
        let missing: Vec<&Used> = (want.used.iter())
            .filter(|one| !has(instance, &one.facts))
            .collect();
        if missing.is_empty() {
            return;
        }
        if want.ready_at > self.now {
            let slot = instance.slot.clone();
            self.wake(want.ready_at, slot);
            return;
        }
        for one in missing {
            let given = match launch::given(rule, one) {
                Ok(given) => given,
                Err(refusal) => {
                    if instance.failure.as_ref() != Some(&refusal) {
                        out.push(Effect::note(
                            NoticeKind::Refused,
                            &instance.name,
                            refusal.message.clone(),
                        ));
                        instance.failure = Some(refusal);
                    }
                    continue;
                }
            };
            if given.moves() {
                instance.holds.push(one.facts.key.clone());
                out.push(Effect::Hold {
                    device: one.facts.clone(),
                    owner: id.to_owned(),
                });
            }
            instance.given.retain(|g| !g.taken || g.member != given.member);
            let (devices, interfaces) = (given.devices.clone(), given.interfaces.clone());
            instance.device = Some(one.facts.clone());
            instance.given.push(given);
            let notes = launch::notes(instance, &instance.slot, want);
            out.push(Effect::Inject {
                id: id.to_owned(),
                devices,
                interfaces,
                notes,
            });
            out.push(Effect::note(
                NoticeKind::DeviceGiven,
                &instance.name,
                one.facts.sysname.clone(),
            ));
            instance.lost_at = None;
        }
    }

    /// The same device under another name: who has it knows.
    pub(super) fn learn(&mut self, facts: &Arc<Facts>) {
        let same = |had: &Facts| had.key == facts.key && had.incarnation == facts.incarnation;
        for instance in self.instances.values_mut() {
            for given in instance.given.iter_mut().filter(|g| !g.taken && same(&g.facts)) {
                given.facts = facts.clone();
            }
            if instance.device.as_ref().is_some_and(|device| same(device)) {
                instance.device = Some(facts.clone());
            }
        }
    }

    /// The same device under another key: a container that has it keeps it.
    pub(super) fn moved(
        &mut self,
        before: &str,
        facts: &Arc<Facts>,
        matches: &[RuleMatch],
        out: &mut Vec<Effect>,
    ) {
        let Some(old) = self.devices.remove(before) else {
            return;
        };
        let slots: Vec<Slot> = old.slots().collect();
        for slot in &slots {
            self.forget_member(slot, before);
        }
        for slot in slots {
            let Some(id) = self.slots.get(&slot).cloned() else {
                continue;
            };
            let now = matches.iter().find(|m| Some(m.rule.as_str()) == slot.rule());
            let Some(instance) = self.instances.get_mut(&id) else {
                continue;
            };
            for given in instance.given.iter_mut().filter(|g| g.facts.key == before) {
                given.facts = facts.clone();
            }
            instance
                .holds
                .iter_mut()
                .filter(|held| *held == before)
                .for_each(|held| held.clone_from(&facts.key));
            if instance.device.as_ref().is_some_and(|d| d.key == before) {
                instance.device = Some(facts.clone());
            }
            let Some(now) = now.map(|m| Slot::device(&m.rule, m.slot_key(&facts.key))) else {
                continue;
            };
            if now != slot && !self.slots.contains_key(&now) {
                instance.slot = now.clone();
                self.slots.remove(&slot);
                if let Some(past) = self.history.remove(&slot) {
                    self.history.insert(now.clone(), past);
                }
                out.push(Effect::note(
                    NoticeKind::DeviceAppeared,
                    &instance.name,
                    format!("{before} is {} now", facts.syspath),
                ));
                self.slots.insert(now, id);
            }
        }
    }

    /// An event of a device: passed on to the containers that hear of it, at once or when its time has come.
    pub(super) fn happened(
        &mut self,
        key: &str,
        action: &'static str,
        properties: &[(String, String)],
        out: &mut Vec<Effect>,
    ) {
        if self.hears(key) && self.storms.admit(self.now, key, action, properties) {
            self.pass_on(key, action, properties, out);
        }
    }

    /// Does a container hear of the device?
    fn hears(&self, key: &str) -> bool {
        let given = self.instances.values().flat_map(|instance| &instance.given);
        let mut of_it = given.filter(|g| !g.taken && g.facts.key == key);
        of_it.any(|g| g.devices.iter().any(|d| d.uevents))
    }

    /// What had to wait and has its time.
    pub(super) fn pass_on_due(&mut self, out: &mut Vec<Effect>) {
        for due in self.storms.due(self.now) {
            if let Some((action, properties)) = due.event {
                self.pass_on(&due.key, action, &properties, out);
            }
            let present = self.devices.get(&due.key);
            if let (Some(count), Some(present)) = (due.left_out, present) {
                let text = format!(
                    "{}: {count} of its events were not passed on: more than {} a second come",
                    present.facts.syspath,
                    super::storm::RATE
                );
                out.push(Effect::note(
                    NoticeKind::UeventsHeld,
                    &present.facts.sysname,
                    text,
                ));
            }
        }
    }

    fn pass_on(
        &self,
        key: &str,
        action: &'static str,
        properties: &[(String, String)],
        out: &mut Vec<Effect>,
    ) {
        for instance in self.instances.values() {
            if !matches!(instance.phase, Phase::Starting | Phase::Running | Phase::Frozen) {
                continue;
            }
            let given = instance.given.iter().filter(|g| !g.taken && g.facts.key == key);
            for device in given.flat_map(|g| &g.devices).filter(|d| d.uevents) {
                out.push(Effect::Uevent {
                    id: instance.id.clone(),
                    device: (device.block, device.major, device.minor),
                    action,
                    properties: properties.to_vec(),
                });
            }
        }
    }

    /// A rule for removals: its workload runs once.
    pub(super) fn removed(&mut self, facts: &Facts, matched: &RuleMatch, out: &mut Vec<Effect>) {
        let Some(rule) = self.desired.rules.get(&matched.rule) else {
            return;
        };
        let Some(workload) = self.desired.workloads.get(&rule.workload) else {
            return;
        };
        let label = matched.label.as_deref().unwrap_or(&facts.sysname);
        let name = super::names::of_device(&workload.name, label);
        if let Some(fault) = &matched.fault {
            out.push(Effect::note(NoticeKind::LaunchFailed, &name, fault.clone()));
            return;
        }
        let once = workload.once(&name, matched, self.now);
        out.push(Effect::note(
            NoticeKind::DeviceGone,
            &facts.sysname,
            format!("{} matches {}", facts.syspath, matched.rule),
        ));
        self.dirty.insert(Slot::Once(name.clone()));
        self.once.insert(name, Arc::new(once));
    }
}

fn has(instance: &Instance, facts: &Facts) -> bool {
    let same = |g: &Given| g.facts.key == facts.key && g.facts.incarnation == facts.incarnation;
    instance.given.iter().any(|g| !g.taken && same(g))
}
