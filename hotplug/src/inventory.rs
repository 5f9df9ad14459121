//! The devices berth knows, and what changed.
//!
//! ```text
//! event ──────> apply  ┐
//! enumeration ─> resync├─> Delta: Appeared · Changed · Moved · Gone
//! inside ──────> hold/…┘
//! ```
//! Pure ([`Interface::list`] apart): reads no file. Invariants: a device that appeared is gone exactly once; nothing is told twice (an
//! event for what the enumeration already found changes nothing); a `remove` is matched by path and number
//! from this table, never by its properties; an interface that was handed to a container is *held*: its
//! `remove` outside means nothing, only what is seen inside, or [`Inventory::release`], ends it.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::device::{Device, Key};
use crate::event::{Action, Event};

/// What changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Delta {
    /// A device is there that was not.
    Appeared {
        /// It.
        device: Arc<Device>,
    },
    /// A device said something (`change`, `bind`, `online` …), or its properties are not what they were.
    /// Starts its settle time anew.
    Changed {
        /// As it is now.
        device: Arc<Device>,
        /// As it was.
        before: Arc<Device>,
        /// The event; `Change` where a resync found it.
        action: Action,
    },
    /// The same device has another path (a renamed interface). Keys can differ.
    Moved {
        /// As it is now.
        device: Arc<Device>,
        /// As it was.
        before: Arc<Device>,
    },
    /// A device is gone.
    Gone {
        /// As it was known last, with all its properties.
        device: Arc<Device>,
    },
}

impl Delta {
    /// The device as it is now (for `Gone`: as it was).
    pub fn device(&self) -> &Arc<Device> {
        match self {
            Delta::Appeared { device }
            | Delta::Changed { device, .. }
            | Delta::Moved { device, .. }
            | Delta::Gone { device } => device,
        }
    }

    /// Its key.
    pub fn key(&self) -> Key {
        self.device().key()
    }
}

/// A network interface as seen inside another network namespace.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Interface {
    /// Index inside.
    pub index: u32,
    /// Name inside.
    pub name: String,
}

impl Interface {
    /// All interfaces of the calling thread's network namespace (RTM_GETLINK, by the C library).
    ///
    /// # Errors
    /// What the kernel said.
    pub fn list() -> std::io::Result<Vec<Interface>> {
        let all = nix::net::if_::if_nameindex()?;
        let one = |i: &nix::net::if_::Interface| Interface {
            index: i.index(),
            name: i.name().to_string_lossy().into_owned(),
        };
        Ok(all.iter().map(one).collect())
    }
}

/// Who has an interface.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Held {
    /// The container's id.
    pub owner: String,
    /// What it is called inside, once that is known.
    #[serde(default)]
    pub inside: Option<Interface>,
}

/// What was found in the network namespace of one container.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Inside {
    /// The container's id.
    pub owner: String,
    /// All interfaces there.
    pub interfaces: Vec<Interface>,
}

#[derive(Debug, Clone)]
struct Entry {
    device: Arc<Device>,
    held: Option<Held>,
    /// Seen in the host's namespace (always, but for held interfaces).
    outside: bool,
}

/// The table.
#[derive(Debug, Clone, Default)]
pub struct Inventory {
    entries: BTreeMap<Key, Entry>,
    /// devpath → key, of everything that is outside.
    paths: BTreeMap<String, Key>,
}

impl Inventory {
    /// An empty table.
    pub fn new() -> Inventory {
        Inventory::default()
    }

    /// Every device, held ones too, in the order of their keys.
    pub fn devices(&self) -> impl Iterator<Item = &Arc<Device>> {
        self.entries.values().map(|entry| &entry.device)
    }

    /// Number of devices.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Is there none?
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// One device.
    pub fn get(&self, key: &Key) -> Option<&Arc<Device>> {
        self.entries.get(key).map(|entry| &entry.device)
    }

    /// The device that has this path outside now.
    pub fn by_devpath(&self, devpath: &str) -> Option<&Arc<Device>> {
        self.paths.get(devpath).and_then(|key| self.get(key))
    }

    /// Who holds it.
    pub fn held(&self, key: &Key) -> Option<&Held> {
        self.entries.get(key).and_then(|entry| entry.held.as_ref())
    }

    /// Every held device: what an agent stores, and gives to [`Inventory::restore`] after its restart.
    pub fn all_held(&self) -> impl Iterator<Item = (&Arc<Device>, &Held)> {
        self.entries
            .values()
            .filter_map(|e| e.held.as_ref().map(|held| (&e.device, held)))
    }

    /// Takes in one event. Events of what is no device ([`Device::is_enumerable`]) change nothing.
    pub fn apply(&mut self, event: Event) -> Vec<Delta> {
        if !event.device.is_enumerable() {
            return Vec::new();
        }
        match event.action {
            Action::Remove => self.removed(&event.device),
            Action::Move => {
                let old = event
                    .devpath_old
                    .as_deref()
                    .and_then(|path| self.paths.get(path))
                    .cloned();
                self.seen(event.device, event.action, old)
            }
            action => self.seen(event.device, action, None),
        }
    }

    /// Makes the table equal to an enumeration. `inside`: the interfaces of each container's network
    /// namespace that could be looked into; a held interface whose owner is not among them stays. Deltas:
    /// what is gone first, then what moved or changed, then what is new.
    pub fn resync(&mut self, devices: Vec<Device>, inside: &[Inside]) -> Vec<Delta> {
        let found: BTreeMap<Key, Device> = devices
            .into_iter()
            .filter(Device::is_enumerable)
            .map(|d| (d.key(), d))
            .collect();
        let mut deltas = Vec::new();
        let lost: Vec<Key> = (self.entries.iter())
            .filter(|(key, entry)| !found.contains_key(*key) && !entry.may_be_inside(inside))
            .map(|(key, _)| key.clone())
            .collect();
        deltas.extend(lost.iter().filter_map(|key| self.drop_entry(key)));
        for (key, entry) in &mut self.entries {
            if !found.contains_key(key) && entry.outside {
                entry.outside = false;
                self.paths.remove(entry.device.devpath());
            }
        }
        let (known, new): (Vec<_>, Vec<_>) =
            found.into_iter().partition(|(k, _)| self.entries.contains_key(k));
        for (_, device) in known.into_iter().chain(new) {
            let same = self
                .entries
                .get(&device.key())
                .is_some_and(|e| !differs(&e.device, &device));
            if same {
                self.place(device.key(), None);
            } else {
                deltas.extend(self.seen(device, Action::Add, None));
            }
        }
        deltas
    }

    /// From now on the interface may be inside the container `owner`: call it *before* it is moved. Returns
    /// false where there is no such device.
    pub fn hold(&mut self, key: &Key, owner: &str) -> bool {
        let entry = self.entries.get_mut(key);
        entry
            .map(|e| {
                e.held = Some(Held {
                    owner: owner.to_owned(),
                    inside: None,
                })
            })
            .is_some()
    }

    /// What the held interface is called inside.
    pub fn held_as(&mut self, key: &Key, inside: Interface) -> bool {
        let held = self.entries.get_mut(key).and_then(|entry| entry.held.as_mut());
        held.map(|held| held.inside = Some(inside)).is_some()
    }

    /// Puts back a held interface after a restart, before the first [`Inventory::resync`].
    pub fn restore(&mut self, device: Device, held: Held) {
        let key = device.key();
        self.entries.insert(
            key,
            Entry {
                device: Arc::new(device),
                held: Some(held),
                outside: false,
            },
        );
    }

    /// A held interface was removed inside its container: the kernel's `remove` there, by index or name.
    pub fn gone_inside(&mut self, owner: &str, interface: &Interface) -> Option<Delta> {
        let (key, _) = self.entries.iter().find(|(key, entry)| {
            entry.held.as_ref().is_some_and(|held| {
                held.owner == owner
                    && match &held.inside {
                        Some(inside) => inside.index == interface.index,
                        None => key.0 == format!("n{}", interface.index),
                    }
            })
        })?;
        let key = key.clone();
        // Pulled back out and seen again outside: it is not gone.
        if self.entries.get(&key)?.outside {
            self.entries.get_mut(&key)?.held = None;
            return None;
        }
        self.drop_entry(&key)
    }

    /// The container does not hold the interface any more: its namespace is gone (the kernel then gives
    /// physical interfaces back and destroys virtual ones), or it was never moved. `Gone` where it is not
    /// outside; should it come back later, it appears again.
    pub fn release(&mut self, key: &Key) -> Option<Delta> {
        let entry = self.entries.get_mut(key)?;
        entry.held.take()?;
        if entry.outside { None } else { self.drop_entry(key) }
    }

    /// The held interface is outside again, where it was: seen there before its event came.
    pub fn back_outside(&mut self, key: &Key) {
        if self
            .entries
            .get(key)
            .is_some_and(|e| e.held.is_some() && !e.outside)
        {
            self.place(key.clone(), None);
        }
    }

    /// A device is there: new, moved, or changed.
    fn seen(&mut self, device: Device, action: Action, old: Option<Key>) -> Vec<Delta> {
        let key = device.key();
        let device = Arc::new(device);
        let mut deltas = Vec::new();
        // Another device had this path: its `remove` was lost.
        if let Some(other) = self
            .paths
            .get(device.devpath())
            .filter(|other| **other != key)
            .cloned()
        {
            deltas.extend(self.lose(&other));
        }
        // A move of something whose key is its path.
        if let Some(old) = old.filter(|old| *old != key)
            && let Some(entry) = self.entries.remove(&old)
        {
            self.paths.remove(entry.device.devpath());
            let before = entry.device.clone();
            self.entries.insert(key.clone(), entry);
            self.place(key, Some(device.clone()));
            deltas.push(Delta::Moved { device, before });
            return deltas;
        }
        match self
            .entries
            .get(&key)
            .map(|entry| (entry.device.clone(), entry.outside))
        {
            None => {
                let entry = Entry {
                    device: device.clone(),
                    held: None,
                    outside: true,
                };
                self.entries.insert(key.clone(), entry);
                self.place(key, None);
                deltas.push(Delta::Appeared { device });
            }
            // The same path with another number: unplugged and plugged, the `remove` was lost.
            Some((before, _)) if is_other(&before, &device, action == Action::Add) => {
                deltas.extend(self.drop_entry(&key));
                deltas.extend(self.seen((*device).clone(), action, None));
            }
            Some((before, outside)) => {
                let moved = before.devpath() != device.devpath();
                let told = match action {
                    Action::Add | Action::Move => differs(&before, &device) || !outside,
                    _ => true,
                };
                self.place(key, Some(device.clone()));
                if moved {
                    deltas.push(Delta::Moved { device, before });
                } else if told {
                    let action = if action == Action::Add {
                        Action::Change
                    } else {
                        action
                    };
                    deltas.push(Delta::Changed {
                        device,
                        before,
                        action,
                    });
                }
            }
        }
        deltas
    }

    fn removed(&mut self, device: &Device) -> Vec<Delta> {
        let Some(key) = self.paths.get(device.devpath()).cloned() else {
            return Vec::new();
        };
        // A late `remove` of what had the path before.
        if self
            .entries
            .get(&key)
            .is_some_and(|entry| is_other(&entry.device, device, true))
        {
            return Vec::new();
        }
        self.lose(&key).into_iter().collect()
    }

    /// It is not outside any more: gone, unless held.
    fn lose(&mut self, key: &Key) -> Option<Delta> {
        let entry = self.entries.get_mut(key)?;
        if entry.held.is_some() {
            entry.outside = false;
            self.paths.remove(entry.device.devpath());
            return None;
        }
        self.drop_entry(key)
    }

    fn drop_entry(&mut self, key: &Key) -> Option<Delta> {
        let entry = self.entries.remove(key)?;
        if self.paths.get(entry.device.devpath()) == Some(key) {
            self.paths.remove(entry.device.devpath());
        }
        Some(Delta::Gone { device: entry.device })
    }

    /// Notes that it is outside, at the path of `device` where given.
    fn place(&mut self, key: Key, device: Option<Arc<Device>>) {
        let Some(entry) = self.entries.get_mut(&key) else {
            return;
        };
        if self.paths.get(entry.device.devpath()) == Some(&key) {
            self.paths.remove(entry.device.devpath());
        }
        if let Some(device) = device {
            entry.device = device;
        }
        entry.outside = true;
        self.paths.insert(entry.device.devpath().to_owned(), key);
    }
}

impl Entry {
    /// Held, and not seen to be missing inside?
    fn may_be_inside(&self, inside: &[Inside]) -> bool {
        let Some(held) = &self.held else { return false };
        let Some(found) = inside.iter().find(|i| i.owner == held.owner) else {
            return true;
        };
        found.interfaces.iter().any(|interface| match &held.inside {
            Some(known) => known.index == interface.index,
            None => Some(interface.index) == self.device.ifindex(),
        })
    }
}

/// Two devices that only share a path: the number of an interface differs, or the sequence number of a disk. A disk gets
/// a new one with each medium too, and says so with `change`: that is the same device (`counted` false).
fn is_other(a: &Device, b: &Device, counted: bool) -> bool {
    let names: &[&str] = if counted {
        &["IFINDEX", "DISKSEQ"]
    } else {
        &["IFINDEX"]
    };
    names
        .iter()
        .any(|name| match (a.property(name), b.property(name)) {
            (Some(a), Some(b)) => a != b,
            _ => false,
        })
}

/// Is what is known now different from what was known? An event of the kernel can carry more properties than
/// the `uevent` file; those count only where udevd's database has both.
fn differs(before: &Device, now: &Device) -> bool {
    if before.devpath() != now.devpath() || before.is_initialized() != now.is_initialized() {
        return true;
    }
    if now.is_initialized() {
        return before.tags() != now.tags() || before.properties() != now.properties();
    }
    now.properties()
        .iter()
        .any(|(name, value)| before.property(name) != Some(value))
}

#[cfg(test)]
#[path = "inventory_tests.rs"]
mod tests;
