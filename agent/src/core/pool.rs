//! Armed pools: containers made and proved before their device comes.
//!
//! A member holds its cores. It yields them: to a real instance that finds no place, as many members as are
//! needed and no more, and only where that helps; the pool is filled again when cores are free.

use super::drive::{Want, made_of};
use super::event::Effect;
use super::instance::{Given, Phase, Slot};
use super::launch;
use super::{State, place};

impl State {
    /// The id of an armed container that `slot` can take.
    pub(super) fn armed_for(&self, slot: &Slot, want: &Want) -> Option<String> {
        let Slot::Device { rule, .. } = slot else {
            return None;
        };
        let armed = made_of(&want.workload, want.rule.as_deref(), "");
        self.instances
            .values()
            .find(|i| {
                i.phase == Phase::Armed
                    && matches!(&i.slot, Slot::Pool { rule: of, .. } if of == rule)
                    && i.made_of == armed
            })
            .map(|i| i.id.clone())
    }

    /// The armed container takes the place of `id`, which has nothing yet, and its name.
    pub(super) fn hand_over(
        &mut self,
        id: &str,
        armed: &str,
        want: &Want,
        given: Vec<Given>,
        out: &mut Vec<Effect>,
    ) {
        self.give_back(id);
        let Some(old) = self.instances.remove(id) else {
            return;
        };
        let now = self.now;
        let Some(instance) = self.instances.get_mut(armed) else {
            return;
        };
        let pool = std::mem::replace(&mut instance.slot, old.slot.clone());
        instance.name = old.name;
        instance.device.clone_from(&want.device);
        instance.made_of.clone_from(&want.made_of);
        instance.phase = Phase::Starting;
        instance.launched = now;
        instance.given = given;
        for given in instance.given.iter().filter(|given| given.moves()) {
            instance.holds.push(given.facts.key.clone());
            out.push(Effect::Hold {
                device: given.facts.clone(),
                owner: armed.to_owned(),
            });
        }
        let args = match &want.matched {
            Some(matched) if !matched.args.is_empty() => launch::args(want),
            _ => Vec::new(),
        };
        out.push(Effect::Start {
            id: armed.to_owned(),
            args,
            env: launch::rule_env(want),
            devices: instance.given.iter().flat_map(|g| g.devices.clone()).collect(),
            interfaces: instance.given.iter().flat_map(|g| g.interfaces.clone()).collect(),
            labels: launch::labels(want),
            notes: launch::notes(instance, &instance.slot, want),
        });
        let name = instance.name.clone();
        out.push(Effect::note(
            super::NoticeKind::Launching,
            &name,
            format!("armed container {armed}"),
        ));
        self.slots.remove(&pool);
        self.slots.insert(old.slot, armed.to_owned());
        self.refills.insert(pool);
    }

    /// Fills pools again whose members have been let go, or came to nothing.
    pub(super) fn refill(&mut self) {
        let starting = |slot: &Slot| {
            let mut all = self.instances.values();
            all.any(|i| i.phase == Phase::Starting && i.slot.rule() == slot.rule())
        };
        let due: Vec<Slot> = self
            .refills
            .iter()
            .filter(|slot| !starting(slot))
            .cloned()
            .collect();
        for slot in due {
            self.refills.remove(&slot);
            self.dirty.insert(slot);
        }
    }

    /// `id` found no place: tells members of pools to go where that makes room.
    pub(super) fn ask_armed_to_yield(&mut self, id: &str, want: &Want, out: &mut Vec<Effect>) {
        let Some(instance) = self.instances.get(id) else {
            return;
        };
        if matches!(instance.slot, Slot::Pool { .. }) {
            return;
        }
        let member =
            |i: &&super::instance::Instance| matches!(i.slot, Slot::Pool { .. }) && i.place.is_some();
        let going: Vec<String> = self
            .instances
            .values()
            .filter(|i| i.place.is_some() && i.phase.has_monitor() && !i.phase.is_live())
            .map(|i| i.id.clone())
            .collect();
        let mut yielding: Vec<String> = Vec::new();
        let mut members: Vec<String> = self
            .instances
            .values()
            .filter(member)
            .map(|i| i.id.clone())
            .collect();
        members.retain(|member| !going.contains(member));
        loop {
            let without = |i: &str| going.iter().chain(&yielding).any(|gone| gone == i);
            if place::fits(self, id, want, without) {
                break;
            }
            match members.pop() {
                Some(member) => yielding.push(member),
                None => return,
            }
        }
        for member in yielding {
            self.tell_stop(&member, out);
            // Created but without a monitor (waiting for another try): free at once.
            if self
                .instances
                .get(&member)
                .is_some_and(|i| !i.phase.has_monitor())
            {
                self.give_back(&member);
            }
        }
    }
}
