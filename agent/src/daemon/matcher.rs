//! Devices against rules: the inventory, the choice of the rule, and the core's events that follow.
//!
//! No socket and no clock: the daemon feeds it what its event socket says, `berth device simulate` what a recording
//! says. Invariants: the core hears of devices that match a rule (or did); a device is offered once for each change;
//! ties and refusals are told once for each device.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;

use berth_documents::Set;
use berth_hotplug::device::{Action, Device, Key};
use berth_hotplug::event::Event as DeviceEvent;
use berth_hotplug::inventory::{Delta, Held, Inventory};
use berth_hotplug::rule::{Matched, Rule, Rules, View};

use crate::core::device::{Facts, RuleMatch};
use crate::core::{Event, Notice, NoticeKind};

/// What one reading gave: events for the core, and notices.
#[derive(Debug, Default)]
pub(crate) struct Found {
    /// For the core, in order.
    pub events: Vec<Event>,
    /// For people.
    pub notices: Vec<Notice>,
    /// There may be more: come back at once.
    pub more: bool,
    /// The key that the device offered next had before.
    moved: Option<String>,
}

impl Found {
    pub(super) fn note(&mut self, kind: NoticeKind, subject: &str, text: String) {
        self.notices.push(Notice {
            kind,
            subject: subject.to_owned(),
            text,
        });
    }
}

/// Inventory and rules.
pub(crate) struct Matcher {
    inventory: Inventory,
    rules: Rules,
    /// `None`: all.
    subsystems: Option<BTreeSet<String>>,
    numa: bool,
    /// Keys the core knows.
    known: BTreeSet<Key>,
    /// Ties and refusals already told.
    told: BTreeMap<Key, String>,
    /// Events seen of a device since it is there, where some rule asks for them.
    seen: BTreeMap<Key, BTreeSet<Action>>,
    /// Does some rule ask for them?
    triggers: bool,
    /// Does some rule pass events on?
    uevents: bool,
}

impl Matcher {
    /// Knows neither devices nor rules. `numa`: memory nodes of devices are looked up.
    pub(crate) fn new(numa: bool) -> Matcher {
        Matcher {
            inventory: Inventory::new(),
            rules: Rules::new(Vec::new()),
            subsystems: Some(BTreeSet::new()),
            numa,
            known: BTreeSet::new(),
            told: BTreeMap::new(),
            seen: BTreeMap::new(),
            triggers: false,
            uevents: false,
        }
    }

    /// The subsystems that rules name; `None`: all.
    pub(crate) fn subsystems(&self) -> Option<&BTreeSet<String>> {
        self.subsystems.as_ref()
    }

    /// Devices in the inventory.
    pub(crate) fn len(&self) -> usize {
        self.inventory.len()
    }

    /// Takes new rules; a resync must follow.
    pub(crate) fn set_rules(&mut self, set: &Set) -> Vec<Notice> {
        let mut rules = Vec::new();
        let mut notices = Vec::new();
        for (name, document) in &set.rules {
            match document.spec.compile(name) {
                Ok(rule) => rules.push(rule),
                Err(problems) => {
                    let text = problems
                        .iter()
                        .map(ToString::to_string)
                        .collect::<Vec<_>>()
                        .join("; ");
                    notices.push(Notice {
                        kind: NoticeKind::DocumentsRefused,
                        subject: name.clone(),
                        text,
                    });
                }
            }
        }
        self.rules = Rules::new(rules);
        self.triggers = self.rules.iter().any(|rule| !rule.spec.trigger.is_empty());
        self.uevents = self.rules.iter().any(|rule| rule.spec.passes_events());
        if !self.triggers {
            self.seen.clear();
        }
        self.subsystems = self.rules.subsystems().map(|names| names.into_iter().collect());
        self.told.clear();
        notices
    }

    /// Takes in one event.
    pub(crate) fn apply(&mut self, event: DeviceEvent, found: &mut Found) {
        if self.wants(&event.device) {
            for delta in self.inventory.apply(event) {
                self.delta(delta, found);
            }
        }
    }

    /// Makes the inventory equal to an enumeration.
    pub(crate) fn resync(&mut self, devices: Vec<Device>, found: &mut Found) {
        for delta in self.inventory.resync(devices, &[]) {
            self.delta(delta, found);
        }
    }

    /// Matches every device anew: the rules have changed.
    pub(crate) fn rematch(&mut self, found: &mut Found) {
        let devices: Vec<Arc<Device>> = self.inventory.devices().cloned().collect();
        for device in devices {
            self.offer(&device, Action::Add, found);
        }
    }

    /// The interface is going into the container `owner`.
    pub(crate) fn hold(&mut self, facts: &Facts, owner: &str) {
        let key = Key(facts.key.clone());
        if !self.inventory.hold(&key, owner)
            && let Ok(device) = serde_json::from_str::<Device>(&facts.record)
        {
            self.inventory.restore(
                device,
                Held {
                    owner: owner.to_owned(),
                    inside: None,
                },
            );
            self.known.insert(key);
        }
    }

    /// It is in no container any more.
    pub(crate) fn release(&mut self, key: &str) -> Found {
        let mut found = Found::default();
        let key = Key(key.to_owned());
        // Given back before its container's end was told: its own event may still be on the way, and must not make a
        // new device of it.
        let index = self.inventory.get(&key).and_then(|device| {
            let text = std::fs::read_to_string(device.syspath().join("ifindex")).ok()?;
            (text.trim().parse::<u32>().ok() == device.ifindex()).then_some(())
        });
        if index.is_some() {
            self.inventory.back_outside(&key);
        }
        if let Some(delta) = self.inventory.release(&key) {
            self.delta(delta, &mut found);
        }
        found
    }

    fn wants(&self, device: &Device) -> bool {
        let named = |names: &BTreeSet<String>| device.subsystem().is_some_and(|s| names.contains(s));
        self.subsystems.as_ref().is_none_or(named)
    }

    fn delta(&mut self, delta: Delta, found: &mut Found) {
        match delta {
            Delta::Appeared { device } => self.offer(&device, Action::Add, found),
            Delta::Changed {
                device,
                before,
                action,
            } => {
                self.other_key(&before, &device, action, found);
                self.offer(&device, action, found);
                self.happened(&device, action, found);
            }
            Delta::Moved { device, before } => {
                self.other_key(&before, &device, Action::Move, found);
                self.offer(&device, Action::Move, found);
                self.happened(&device, Action::Move, found);
            }
            Delta::Gone { device } => {
                self.gone(device.key(), found);
                self.offer_removed(&device, found);
            }
        }
    }

    /// The same device, perhaps under another key: what was seen of it stays.
    fn other_key(&mut self, before: &Device, now: &Device, action: Action, found: &mut Found) {
        let (old, key) = (before.key(), now.key());
        if old != key {
            self.told.remove(&old);
            if let Some(seen) = self.seen.remove(&old) {
                self.seen.insert(key.clone(), seen);
            }
            if self.known.remove(&old) {
                self.known.insert(key.clone());
                found.moved = Some(old.0);
            }
        }
        if self.triggers {
            self.seen.entry(key).or_default().insert(action);
        }
    }

    /// For the containers that hear of the device.
    fn happened(&self, device: &Device, action: Action, found: &mut Found) {
        let key = device.key();
        if !self.uevents || !self.known.contains(&key) {
            return;
        }
        let pairs = device.properties().iter();
        found.events.push(Event::Happened {
            key: key.0,
            action: action.as_str(),
            properties: pairs.map(|(name, value)| (name.clone(), value.clone())).collect(),
        });
    }

    fn gone(&mut self, key: Key, found: &mut Found) {
        self.told.remove(&key);
        self.seen.remove(&key);
        if self.known.remove(&key) {
            found.events.push(Event::DeviceGone { key: key.0 });
        }
    }

    /// The rule of one device, and the event that says so.
    fn offer(&mut self, device: &Device, action: Action, found: &mut Found) {
        let key = device.key();
        let view = View::new(device);
        // A device that is there is matched as if just added; a rule on another action counts while that is
        // the last thing that happened.
        let seen = self.seen.get(&key);
        let counts = |rule: &Rule| {
            let has = |action| seen.is_some_and(|seen| seen.contains(&action));
            rule.spec.trigger.is_empty() || rule.triggered(has, device.driver().is_some())
        };
        let chosen = match self.rules.choose_where(&view, Action::Add, counts) {
            Ok(None) if action != Action::Add => self.rules.choose_where(&view, action, counts),
            chosen => chosen,
        };
        let matches = match chosen {
            Ok(None) => Vec::new(),
            Ok(Some(chosen)) if chosen.rule.spec.forbid => {
                let text = format!(
                    "{}: forbidden by rule {}",
                    device.syspath().display(),
                    chosen.rule.name
                );
                self.tell_once(&key, device, text, found);
                Vec::new()
            }
            Ok(Some(chosen)) => vec![rendered(chosen.rule, &view, &chosen.matched)],
            Err(tie) => {
                let text = match tie.hint() {
                    Some(hint) => format!("{tie} ({hint})"),
                    None => tie.to_string(),
                };
                self.tell_once(&key, device, text, found);
                Vec::new()
            }
        };
        let before = found.moved.take();
        if matches.is_empty() && !self.known.contains(&key) {
            return;
        }
        self.known.insert(key);
        let facts = Arc::new(facts(device, self.numa));
        found.events.push(Event::Device {
            facts,
            matches,
            before,
        });
    }

    fn tell_once(&mut self, key: &Key, device: &Device, text: String, found: &mut Found) {
        if self.told.get(key) != Some(&text) {
            found.note(NoticeKind::Refused, &device.sysname(), text.clone());
            self.told.insert(key.clone(), text);
        }
    }

    /// The rule for the removal of a device.
    fn offer_removed(&mut self, device: &Device, found: &mut Found) {
        let view = View::new(device);
        match self.rules.choose_removed(&view) {
            Ok(None) => {}
            Ok(Some(chosen)) => found.events.push(Event::Removed {
                facts: Arc::new(facts(device, false)),
                matched: Box::new(rendered(chosen.rule, &view, &chosen.matched)),
            }),
            Err(tie) => found.note(NoticeKind::Refused, &device.sysname(), tie.to_string()),
        }
    }
}

/// What the rule makes of the device, or why it cannot.
fn rendered(rule: &Rule, view: &View<'_>, matched: &Matched) -> RuleMatch {
    match rule.render(view, matched) {
        Ok(done) => RuleMatch {
            rule: rule.name.clone(),
            env: done.env,
            args: done.args,
            labels: done.labels,
            mounts: done.mounts,
            slot: if done.slot == view.device().key().0 {
                String::new()
            } else {
                done.slot
            },
            label: done.label,
            offers: done.offers,
            fault: None,
        },
        Err(errors) => {
            let texts: Vec<String> = errors.iter().map(|(path, e)| format!("{path}: {e}")).collect();
            RuleMatch {
                rule: rule.name.clone(),
                fault: Some(texts.join("; ")),
                ..RuleMatch::default()
            }
        }
    }
}

/// What the core needs to know of a device.
pub(crate) fn facts(device: &Device, numa: bool) -> Facts {
    let net = device.subsystem() == Some("net");
    let incarnation = match net {
        // Its index is in its key.
        true => String::new(),
        // A folder of sysfs made anew has another inode, also where path and numbers are the same.
        false => std::fs::metadata(device.syspath())
            .map(|m| m.ino().to_string())
            .unwrap_or_default(),
    };
    Facts {
        key: device.key().0,
        sysname: device.sysname(),
        subsystem: device.subsystem().unwrap_or_default().to_owned(),
        syspath: device.syspath().display().to_string(),
        devnode: device.devnode().map(str::to_owned),
        devnum: device.devnum().map(|n| (n.block, n.major, n.minor)),
        interface: device.interface().map(str::to_owned).filter(|_| net),
        ifindex: device.ifindex(),
        links: device.links().iter().map(|link| (*link).to_owned()).collect(),
        node: if numa { memory_node(device) } else { None },
        incarnation,
        record: if net {
            serde_json::to_string(device).unwrap_or_default()
        } else {
            String::new()
        },
    }
}

/// `numa_node` of the device or the nearest one above it that has one.
fn memory_node(device: &Device) -> Option<u32> {
    let root = device.sys_root().join("devices");
    let mut folder: &Path = &device.syspath();
    loop {
        if let Ok(text) = std::fs::read_to_string(folder.join("numa_node")) {
            return text.trim().parse().ok();
        }
        folder = folder.parent().filter(|above| above.starts_with(&root))?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use berth_documents::{Source, check_sources};

    /// A connector is there all the time; what is plugged into it shows in an attribute, at its `change`.
    #[test]
    fn a_connector_matches_while_something_is_plugged_into_it() {
        let sys = tempfile::tempdir().unwrap();
        let folder = sys.path().join("devices/card0/card0-HDMI-A-1");
        std::fs::create_dir_all(&folder).unwrap();
        let status = |text: &str| std::fs::write(folder.join("status"), format!("{text}\n")).unwrap();
        let event = |action: Action| DeviceEvent {
            device: serde_json::from_value(serde_json::json!({
                "sysRoot": sys.path(), "devpath": "/devices/card0/card0-HDMI-A-1",
                "properties": {"SUBSYSTEM": "drm", "DEVTYPE": "drm_connector"},
            }))
            .unwrap(),
            action,
            seqnum: 0,
            devpath_old: None,
        };
        let yaml = "apiVersion: berth/v1\nkind: Workload\nmetadata: {name: screen}\nspec: {image: x, run: onDevice}\n---\n\
                    apiVersion: berth/v1\nkind: HotplugRule\nmetadata: {name: screen}\n\
                    spec: {workload: screen, match: 'SUBSYSTEM==\"drm\", ATTR{status}==\"connected\"'}\n";
        let mut matcher = Matcher::new(false);
        let source = Source {
            name: "t.yaml".into(),
            text: yaml.into(),
        };
        let report = check_sources(&[source], &Set::default());
        assert!(report.faults.is_empty(), "{:?}", report.faults);
        assert!(matcher.set_rules(&report.set).is_empty());
        let mut matches = |action: Action| {
            let mut found = Found::default();
            matcher.apply(event(action), &mut found);
            let of = |event: Event| match event {
                Event::Device { matches, .. } => Some(matches.len()),
                _ => None,
            };
            found.events.into_iter().filter_map(of).collect::<Vec<_>>()
        };
        status("disconnected");
        assert!(matches(Action::Add).is_empty());
        status("connected");
        assert_eq!(matches(Action::Change), [1]);
        status("disconnected");
        assert_eq!(matches(Action::Change), [0], "it matches no longer");
    }
}
