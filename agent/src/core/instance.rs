//! One container as the core keeps it, the slot it fills, and what is remembered of its past.

use std::collections::VecDeque;
use std::sync::Arc;

use berth_launcher::wire::{DeviceGrant, Exit, InterfaceGrant, Refusal, VfioGrant};
use berth_rt::placement::Placement;
use berth_rt::starved::Starved;
use serde::{Deserialize, Serialize};

use super::desired::Workload;
use super::device::Facts;

/// One place for one container. The order is that in which waiting ones are placed: what always runs, then
/// devices, then `berth run`, then armed pools.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum Slot {
    /// A workload that runs as long as it is declared.
    Workload(String),
    /// A device under a rule.
    #[serde(rename_all = "camelCase")]
    Device {
        /// The rule.
        rule: String,
        /// The device's key.
        key: String,
    },
    /// A `berth run`.
    Once(String),
    /// A container found at start whose origin nobody knows; left alone until it ends.
    Adopted(String),
    /// Member `n` of a rule's armed pool.
    #[serde(rename_all = "camelCase")]
    Pool {
        /// The rule.
        rule: String,
        /// Counted from 0.
        n: u32,
    },
}

impl Slot {
    pub(crate) fn device(rule: &str, key: &str) -> Slot {
        Slot::Device {
            rule: rule.to_owned(),
            key: key.to_owned(),
        }
    }

    /// The rule it belongs to.
    pub(crate) fn rule(&self) -> Option<&str> {
        match self {
            Slot::Device { rule, .. } | Slot::Pool { rule, .. } => Some(rule),
            _ => None,
        }
    }
}

/// Where an instance stands. The picture is in the module's head.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Wanted; its turn comes when its device has settled.
    Pending,
    /// No place for it: why.
    Waiting {
        /// What was asked, what is free, who has the rest.
        why: String,
    },
    /// Too few devices of its bundle are there: which, and which not.
    Partial {
        /// In words.
        why: String,
    },
    /// The request is with the launcher.
    Launching,
    /// Made, pre-proved, and waits for a device.
    Armed,
    /// Armed, and told to start.
    Starting,
    /// Proven and running.
    Running,
    /// Frozen by hand.
    Frozen,
    /// Told to stop.
    Stopping,
    /// Ended; its monitor was told to go.
    Releasing,
    /// Its monitor is gone without a word; the launcher frees what is left.
    Sweeping {
        /// When to ask again.
        again: u64,
    },
    /// Started again at `until`.
    Backoff {
        /// Milliseconds.
        until: u64,
        /// False where the launcher could not be reached, which is not the workload's fault.
        counted: bool,
    },
    /// Given up: the restart limit, or the policy after a failure.
    Failed,
    /// Ended, and the policy does not start it again.
    Completed,
    /// Stopped by hand.
    Stopped,
}

impl Phase {
    /// The word for people and JSON.
    pub(crate) fn as_str(&self) -> &'static str {
        match self {
            Phase::Pending => "pending",
            Phase::Waiting { .. } => "waiting",
            Phase::Partial { .. } => "partial",
            Phase::Launching => "launching",
            Phase::Armed => "armed",
            Phase::Starting => "starting",
            Phase::Running => "running",
            Phase::Frozen => "frozen",
            Phase::Stopping => "stopping",
            Phase::Releasing => "releasing",
            Phase::Sweeping { .. } => "sweeping",
            Phase::Backoff { .. } => "backoff",
            Phase::Failed => "failed",
            Phase::Completed => "completed",
            Phase::Stopped => "stopped",
        }
    }

    /// Every word, for gauges.
    pub(crate) const WORDS: [&'static str; 15] = [
        "pending",
        "waiting",
        "partial",
        "launching",
        "armed",
        "starting",
        "running",
        "frozen",
        "stopping",
        "releasing",
        "sweeping",
        "backoff",
        "failed",
        "completed",
        "stopped",
    ];

    /// Is there a monitor, or may there be one?
    pub(crate) fn has_monitor(&self) -> bool {
        matches!(
            self,
            Phase::Launching
                | Phase::Armed
                | Phase::Starting
                | Phase::Running
                | Phase::Frozen
                | Phase::Stopping
                | Phase::Releasing
                | Phase::Sweeping { .. }
        )
    }

    /// Does a container run or come up, so that it can be told to stop?
    pub(crate) fn is_live(&self) -> bool {
        matches!(
            self,
            Phase::Launching | Phase::Armed | Phase::Starting | Phase::Running | Phase::Frozen
        )
    }
}

/// One container.
#[derive(Debug, Clone)]
pub(crate) struct Instance {
    /// Container id.
    pub id: String,
    /// What people call it; differs from the id where an armed container took a device.
    pub name: String,
    /// The place it fills.
    pub slot: Slot,
    /// The workload it was made from.
    pub workload: Arc<Workload>,
    /// The device it has.
    pub device: Option<Arc<Facts>>,
    /// Where it stands.
    pub phase: Phase,
    /// What was launched: digests of workload and rule, and the device's incarnation. Another one is wanted → a
    /// new container.
    pub made_of: String,
    /// Reserved cores and budget.
    pub place: Option<Placement>,
    /// Its interfaces may be inside it: the inventory was told to hold them.
    pub holds: Vec<String>,
    /// The devices it was given.
    pub given: Vec<Given>,
    /// Milliseconds when a device of it went and was not given back since.
    pub lost_at: Option<u64>,
    /// Its monitor can give and take devices while it runs.
    pub takes: bool,
    /// Told to stop by us: its end is no crash.
    pub told: bool,
    /// Milliseconds when a stop that was refused is to be tried again; 0: not.
    pub stop_again: u64,
    /// First process.
    pub pid: Option<i32>,
    /// Field 22 of its stat.
    pub start_time: Option<u64>,
    /// Nanoseconds since the epoch.
    pub started_at: Option<u64>,
    /// How it ended.
    pub exit: Option<Exit>,
    /// Why it did not run.
    pub failure: Option<Refusal>,
    /// `name: promised P, actual A` of facts that do not hold.
    pub drift: Vec<String>,
    /// Kernel threads that do not get its CPUs.
    pub starved: Vec<Starved>,
    /// What keeps it from ending.
    pub held: Option<String>,
    /// What its proof says of its cores.
    pub isolation: Option<String>,
    /// Bytes of output dropped.
    pub dropped: u64,
    /// Milliseconds when the launch request was sent.
    pub launched: u64,
    /// Microseconds of each step of the launch.
    pub timing: Vec<(String, u64)>,
}

/// A device that a container was given.
#[derive(Debug, Clone)]
pub(crate) struct Given {
    /// Which of the rule's devices it is.
    pub member: usize,
    /// The device.
    pub facts: Arc<Facts>,
    /// Its node, and the permission.
    pub devices: Vec<DeviceGrant>,
    /// Its interface.
    pub interfaces: Vec<InterfaceGrant>,
    /// The PCI function.
    pub functions: Vec<VfioGrant>,
    /// Both were taken back: it is gone.
    pub taken: bool,
}

impl Given {
    /// An interface of it is no longer to be seen on the host (a VLAN's trunk is).
    pub(crate) fn moves(&self) -> bool {
        self.interfaces.iter().any(|i| i.vlan.is_none())
    }
}

/// What is remembered of a slot's past containers.
#[derive(Debug, Clone, Default)]
pub(crate) struct History {
    /// Milliseconds of restarts within the window.
    pub restarts: VecDeque<u64>,
    /// All restarts.
    pub total: u64,
    /// The window, milliseconds.
    pub window: u64,
    /// How the last one ended.
    pub exit: Option<Exit>,
    /// Why the last one did not run.
    pub failure: Option<Refusal>,
    /// Backoff that an instance which went away left behind.
    pub until: u64,
    /// The cores that a device known by its identity had, and gets again where they are free.
    pub place: Option<Placement>,
}

impl History {
    /// Still of use when the slot is empty?
    pub(crate) fn recent(&self, now: u64) -> bool {
        self.until > now || self.restarts.back().is_some_and(|last| last + self.window > now)
    }

    /// Counts one restart at `now`; false where that is more than `limit` within `window`.
    pub(crate) fn count(&mut self, now: u64, limit: u32, window: u64) -> bool {
        self.window = window;
        while self.restarts.front().is_some_and(|first| first + window <= now) {
            self.restarts.pop_front();
        }
        if self.restarts.len() >= limit as usize {
            return false;
        }
        self.restarts.push_back(now);
        self.total += 1;
        true
    }
}

impl Instance {
    /// An instance without a container yet.
    pub(crate) fn new(id: &str, slot: Slot, workload: Arc<Workload>, phase: Phase) -> Instance {
        Instance {
            id: id.to_owned(),
            name: id.to_owned(),
            slot,
            workload,
            device: None,
            phase,
            made_of: String::new(),
            place: None,
            holds: Vec::new(),
            given: Vec::new(),
            lost_at: None,
            takes: false,
            told: false,
            stop_again: 0,
            pid: None,
            start_time: None,
            started_at: None,
            exit: None,
            failure: None,
            drift: Vec::new(),
            starved: Vec::new(),
            held: None,
            isolation: None,
            dropped: 0,
            launched: 0,
            timing: Vec::new(),
        }
    }

    /// What it was given and has no longer: names inside of interfaces, names of other devices.
    pub(crate) fn lacks(&self) -> Vec<String> {
        let name = |given: &Given| match given.interfaces.first() {
            Some(interface) => interface.inside().clone(),
            None => given.facts.sysname.clone(),
        };
        let gone = self
            .given
            .iter()
            .filter(|given| given.taken && self.pid.is_some());
        gone.map(name).collect()
    }

    /// The request for a new container goes out at `now`.
    pub(crate) fn begin_life(&mut self, now: u64) {
        self.phase = Phase::Launching;
        self.launched = now;
        self.given.clear();
        self.lost_at = None;
        self.takes = false;
        self.told = false;
        self.stop_again = 0;
        self.pid = None;
        self.start_time = None;
        self.started_at = None;
        self.exit = None;
        self.failure = None;
        self.isolation = None;
        self.dropped = 0;
        self.timing.clear();
    }

    /// It had failed because of its rule, and the device's properties are good now.
    pub(super) fn mended(&self, want: &super::drive::Want) -> bool {
        self.failure
            .as_ref()
            .is_some_and(|f| f.stage == super::launch::RULE_STAGE)
            && super::launch::grants(want).is_ok()
    }
}
