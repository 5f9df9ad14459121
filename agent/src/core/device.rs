//! Devices as the core sees them: facts the driver has read, and the rules that match. Nothing here touches /sys.

use std::collections::BTreeMap;
use std::sync::Arc;

use berth_hotplug::rule::Offer;
use serde::{Deserialize, Serialize};

use super::instance::Slot;

/// What is known of one device. Travels in a container's notes, so that a restarted agent has it again for an
/// interface that is no longer to be seen on the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Facts {
    /// The inventory's key: `n12` for an interface, else the devpath.
    pub key: String,
    /// Last part of the path: `ttyUSB0`.
    pub sysname: String,
    /// `tty`, `net`, `block`, ….
    pub subsystem: String,
    /// Full path below /sys.
    pub syspath: String,
    /// Path of its node below /dev.
    #[serde(default)]
    pub devnode: Option<String>,
    /// Block device?, major, minor.
    #[serde(default)]
    pub devnum: Option<(bool, u32, u32)>,
    /// Name of a network interface on the host.
    #[serde(default)]
    pub interface: Option<String>,
    /// Its index there.
    #[serde(default)]
    pub ifindex: Option<u32>,
    /// udev's links to its node, below /dev.
    #[serde(default)]
    pub links: Vec<String>,
    /// Memory node it hangs on.
    #[serde(default)]
    pub node: Option<u32>,
    /// Differs between two plug-ins of what looks like the same device (the inode of its folder in sysfs).
    #[serde(default)]
    pub incarnation: String,
    /// The inventory's own record as JSON, of network interfaces: what puts a held one back after a restart.
    #[serde(default)]
    pub record: String,
}

/// One rule that matches, with its templates filled in.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct RuleMatch {
    /// Name of the rule.
    pub rule: String,
    /// Environment added.
    pub env: Vec<(String, String)>,
    /// Arguments added.
    pub args: Vec<String>,
    /// Labels added.
    pub labels: BTreeMap<String, String>,
    /// Host paths added: source, destination, read-only.
    pub mounts: Vec<(String, String, bool)>,
    /// Which of the rule's containers it is for; the device's own where empty.
    pub slot: String,
    /// What follows the workload's name in the container's; the device's name where absent.
    pub label: Option<String>,
    /// What of the rule it can be; the only device where empty.
    pub offers: Vec<Offer>,
    /// A template that could not be filled in: the match cannot be launched, and this says why.
    pub fault: Option<String>,
}

/// A device that is there: on the host, or inside a container that holds it.
#[derive(Debug, Clone)]
pub(crate) struct Present {
    /// The facts.
    pub facts: Arc<Facts>,
    /// The rules that match it.
    pub matches: Vec<RuleMatch>,
    /// Milliseconds: when something was last heard of it, for `settle`.
    pub heard: u64,
}

impl Present {
    pub(crate) fn matched(&self, rule: &str) -> Option<&RuleMatch> {
        self.matches.iter().find(|m| m.rule == rule)
    }

    /// The slots it belongs to.
    pub(crate) fn slots(&self) -> impl Iterator<Item = Slot> {
        self.matches
            .iter()
            .map(|m| Slot::device(&m.rule, m.slot_key(&self.facts.key)))
    }
}

impl RuleMatch {
    /// The key of its slot, for the device `key`.
    pub(crate) fn slot_key<'k>(&'k self, key: &'k str) -> &'k str {
        if self.slot.is_empty() { key } else { &self.slot }
    }

    /// What it can be of the rule.
    pub(crate) fn offers(&self) -> Vec<Offer> {
        if self.offers.is_empty() {
            return vec![Offer::default()];
        }
        self.offers.clone()
    }
}
