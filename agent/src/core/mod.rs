//! The agent's decisions: `step(state, event) -> effects`. Pure: no I/O, no clock, no kernel.
//!
//! Events trigger, levels decide. An event changes what is known (documents, devices, reports of monitors) and
//! marks *slots* for another look; [`drive`](State::drive) then compares what each marked slot wants with what
//! its instance is, and emits the next effect. A slot is one place for one container: a workload that always
//! runs, a device under a rule, a member of an armed pool, a `berth run`.
//!
//! ```text
//!            wanted                          placed, request sent
//!  (absent) ───────> pending ──────────────────────────> launching ──────> armed   (pool: waits for a device)
//!                    │  ^  ^ settle, place, start again      │ started       │ device: Start
//!        no cores or │  │  │ freed                           v               v
//!        no budget   v  │  │                              running <────── starting
//!                 waiting ─┘                                 │ │ freeze/thaw: frozen
//!                       │                     unwanted, told │ │ ended by itself
//!       backoff <───────┤              to stop, replaced     v │
//!          │ delay      │                               stopping
//!          v            │ policy                             │ exited, failed
//!       pending         │                                    v │
//!                       └────────────────────────────── releasing <── sweeping (monitor lost: the launcher
//!       failed (limit)  completed (policy)  stopped (by hand)   │               frees what is left)
//!                                                               v
//!                                                           (absent)
//! ```
//!
//! Invariants (held by a property test): an instance's cores and budget are reserved from before the request is
//! sent until its monitor is gone, and no core is reserved twice; an instance whose device is gone is told to
//! stop at once and disappears; every `Hold` of an interface is followed by one `Unhold`; an id is not used
//! again before its monitor is gone.

mod adopt;
mod ask;
mod bundle;
pub(crate) mod desired;
pub(crate) mod device;
mod drive;
mod ended;
pub(crate) mod event;
mod give;
pub(crate) mod instance;
pub(crate) mod launch;
pub(crate) mod names;
mod place;
mod pool;
pub(crate) mod report;
mod storm;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

pub(crate) use adopt::slot_of;
pub(crate) use ask::{Ask, AskError};
use desired::{Desired, Workload};
use device::Present;
pub(crate) use event::{Effect, Event, Notice, NoticeKind, Report};
use instance::{History, Instance, Phase, Slot};
pub(crate) use place::Node;

/// Most places remembered for devices that are not there.
const KEPT_PLACES: usize = 1024;

/// Everything the agent knows and wants.
#[derive(Debug, Clone)]
pub(crate) struct State {
    /// Milliseconds of the last event.
    pub now: u64,
    /// What the documents say.
    pub desired: Desired,
    /// What the node has to give.
    pub node: Node,
    /// Workloads of `berth run`, by name.
    pub once: BTreeMap<String, Arc<Workload>>,
    /// Workloads and instances stopped by hand.
    pub stopped: BTreeSet<String>,
    /// Devices that are there, by key.
    pub devices: BTreeMap<String, Present>,
    /// Keys of the devices of each slot.
    members: BTreeMap<Slot, BTreeSet<String>>,
    /// Instances by container id.
    pub instances: BTreeMap<String, Instance>,
    /// The instance of each slot.
    pub slots: BTreeMap<Slot, String>,
    /// Past ends, kept beyond the instance so that a crash loop is seen through an interface's coming and going.
    pub history: BTreeMap<Slot, History>,
    /// Slots to look at.
    dirty: BTreeSet<Slot>,
    /// Slots to look at later, by time.
    timers: BTreeSet<(u64, Slot)>,
    /// Events that are not passed on as fast as they come.
    storms: storm::Storms,
    /// Members of pools to be made again, once what took their place has been let go: on a node of few housekeeping
    /// CPUs the making of the next would delay it.
    refills: BTreeSet<Slot>,
    /// Reserved cores or budget were given back: those that wait may try.
    freed: bool,
    /// Nothing is started or stopped before monitors and devices have been found.
    ready: bool,
}

impl State {
    /// Has it a security profile that is said aloud wherever it is used?
    pub(crate) fn is_loud(&self, instance: &instance::Instance) -> bool {
        let profile: &str = &instance.workload.spec.profile;
        self.desired.loud.contains(profile)
    }

    /// Knows nothing; starts nothing before [`Event::Ready`].
    pub(crate) fn new(node: Node) -> State {
        State {
            now: 0,
            desired: Desired::default(),
            node,
            once: BTreeMap::new(),
            stopped: BTreeSet::new(),
            devices: BTreeMap::new(),
            members: BTreeMap::new(),
            instances: BTreeMap::new(),
            slots: BTreeMap::new(),
            history: BTreeMap::new(),
            dirty: BTreeSet::new(),
            timers: BTreeSet::new(),
            storms: storm::Storms::default(),
            refills: BTreeSet::new(),
            freed: false,
            ready: false,
        }
    }

    /// Takes one event in at `now` (milliseconds of a clock that never goes back); what is to be done about it.
    pub(crate) fn step(&mut self, now: u64, event: Event) -> Vec<Effect> {
        let mut out = Vec::new();
        self.now = self.now.max(now);
        self.take(event, &mut out);
        self.settle(&mut out);
        out
    }

    /// A user's order; the ids it concerns.
    pub(crate) fn ask(&mut self, now: u64, ask: Ask) -> (Result<Vec<String>, AskError>, Vec<Effect>) {
        let mut out = Vec::new();
        self.now = self.now.max(now);
        let answer = self.obey(ask, &mut out);
        self.settle(&mut out);
        (answer, out)
    }

    /// When [`Event::Tick`] is due next, in the milliseconds of [`State::step`].
    pub(crate) fn deadline(&self) -> Option<u64> {
        let timers = self.timers.first().map(|(at, _)| *at);
        timers.into_iter().chain(self.storms.next()).min()
    }

    /// Events of devices that were not passed on, as too many came.
    pub(crate) fn uevents_left_out(&self) -> u64 {
        self.storms.left_out
    }

    /// As if one had been left out.
    #[cfg(test)]
    pub(crate) fn pretend_a_storm(&mut self) {
        self.storms.left_out += 1;
    }

    fn take(&mut self, event: Event, out: &mut Vec<Effect>) {
        match event {
            Event::Desired { desired, node } => self.redesire(desired, node, out),
            Event::Ready => {
                self.ready = true;
                self.mark_all();
            }
            Event::Device {
                facts,
                matches,
                before,
            } => {
                if let Some(before) = before.filter(|before| *before != facts.key) {
                    self.moved(&before, &facts, &matches, out);
                }
                self.device(facts, matches, out);
            }
            Event::Happened {
                key,
                action,
                properties,
            } => self.happened(&key, action, &properties, out),
            Event::Removed { facts, matched } => self.removed(&facts, &matched, out),
            Event::DeviceGone { key } => self.device_gone(&key, out),
            Event::Adopt { status } => self.adopt(*status, out),
            Event::Report { id, report } => self.report(&id, report, out),
            Event::Once { workload } => {
                let slot = Slot::Once(workload.name.clone());
                self.once.insert(workload.name.clone(), workload);
                self.dirty.insert(slot);
            }
            Event::LauncherBack => self.launcher_back(),
            Event::Tick => {}
        }
        self.pass_on_due(out);
        while let Some((at, _)) = self.timers.first() {
            if *at > self.now {
                break;
            }
            if let Some((_, slot)) = self.timers.pop_first() {
                self.dirty.insert(slot);
            }
        }
    }

    /// Looks at every marked slot until nothing is marked, then lets those that wait try for what was freed.
    fn settle(&mut self, out: &mut Vec<Effect>) {
        if !self.ready {
            return;
        }
        self.refill();
        loop {
            while let Some(slot) = self.dirty.pop_first() {
                self.drive(&slot, out);
                if self.dirty.is_empty() {
                    self.refill();
                }
            }
            if !std::mem::take(&mut self.freed) {
                break;
            }
            // Real instances before members of armed pools: slots sort that way.
            let waiting = self
                .instances
                .values()
                .filter(|i| matches!(i.phase, Phase::Waiting { .. }));
            self.dirty.extend(waiting.map(|i| i.slot.clone()));
            if self.dirty.is_empty() {
                break;
            }
        }
        let now = self.now;
        let rules = &self.desired.rules;
        let known = |slot: &Slot| slot.rule().and_then(|r| rules.get(r)).is_some_and(|r| r.identity);
        let mut kept = 0;
        self.history.retain(|slot, past| {
            let place = past.place.is_some() && known(slot) && kept < KEPT_PLACES;
            kept += usize::from(place);
            place || self.slots.contains_key(slot) || past.recent(now)
        });
    }

    fn redesire(&mut self, desired: Desired, node: Node, out: &mut Vec<Effect>) {
        out.push(Effect::note(NoticeKind::Documents, "", format!("{desired}")));
        self.desired = desired;
        self.node = node;
        self.freed = true;
        self.mark_all();
    }

    fn device(&mut self, facts: Arc<device::Facts>, matches: Vec<device::RuleMatch>, out: &mut Vec<Effect>) {
        let before = self.devices.get(&facts.key);
        let known = before.is_some_and(|p| p.facts.incarnation == facts.incarnation);
        let other = known && before.is_some_and(|p| *p.facts != *facts);
        let slots: Vec<Slot> = before.into_iter().flat_map(Present::slots).collect();
        for slot in slots {
            self.forget_member(&slot, &facts.key);
        }
        if other {
            self.learn(&facts);
        }
        if !known && !matches.is_empty() {
            let rules: Vec<&str> = matches.iter().map(|m| m.rule.as_str()).collect();
            let text = format!("{} matches {}", facts.syspath, rules.join(", "));
            out.push(Effect::note(NoticeKind::DeviceAppeared, &facts.sysname, text));
        }
        self.put_device(facts, matches);
    }

    fn put_device(&mut self, facts: Arc<device::Facts>, matches: Vec<device::RuleMatch>) {
        let present = Present {
            facts: facts.clone(),
            matches,
            heard: self.now,
        };
        for slot in present.slots() {
            self.dirty.insert(slot.clone());
            self.members.entry(slot).or_default().insert(facts.key.clone());
        }
        self.devices.insert(facts.key.clone(), present);
    }

    /// The device `key` is none of the slot's any more.
    fn forget_member(&mut self, slot: &Slot, key: &str) {
        if let Some(keys) = self.members.get_mut(slot) {
            keys.remove(key);
            if keys.is_empty() {
                self.members.remove(slot);
            }
        }
        self.dirty.insert(slot.clone());
    }

    fn device_gone(&mut self, key: &str, out: &mut Vec<Effect>) {
        self.storms.forget(key);
        let Some(gone) = self.devices.remove(key) else {
            return;
        };
        for slot in gone.slots() {
            self.forget_member(&slot, key);
        }
        // An instance can outlive its rule's match; its slot is found by the key.
        let of_key = |slot: &&Slot| matches!(slot, Slot::Device { key: k, .. } if k == key);
        let slots: Vec<Slot> = self.slots.keys().filter(of_key).cloned().collect();
        if !gone.matches.is_empty() || !slots.is_empty() {
            out.push(Effect::note(
                NoticeKind::DeviceGone,
                &gone.facts.sysname,
                gone.facts.syspath.clone(),
            ));
        }
        self.dirty.extend(slots);
    }

    fn launcher_back(&mut self) {
        for instance in self.instances.values_mut() {
            if let Phase::Backoff {
                until,
                counted: false,
            } = &mut instance.phase
            {
                *until = self.now;
                self.dirty.insert(instance.slot.clone());
            }
            if matches!(instance.phase, Phase::Sweeping { .. }) {
                self.dirty.insert(instance.slot.clone());
            }
        }
    }

    fn mark_all(&mut self) {
        self.dirty.extend(self.slots.keys().cloned());
        self.dirty.extend(
            self.desired
                .workloads
                .keys()
                .map(|name| Slot::Workload(name.clone())),
        );
        self.dirty
            .extend(self.once.keys().map(|name| Slot::Once(name.clone())));
        self.dirty.extend(self.members.keys().cloned());
        for (name, rule) in &self.desired.rules {
            self.dirty.extend((0..rule.armed).map(|n| Slot::Pool {
                rule: name.clone(),
                n,
            }));
        }
    }

    /// Looks at `slot` again at `at`.
    fn wake(&mut self, at: u64, slot: Slot) {
        self.timers.insert((at.max(self.now + 1), slot));
    }
}
