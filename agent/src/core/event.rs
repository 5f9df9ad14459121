//! What comes into the core and what goes out of it.

use std::collections::BTreeMap;
use std::sync::Arc;

use berth_launcher::wire::{DeviceGrant, Exit, InterfaceGrant, LaunchRequest, Refusal, Status};
use berth_policies::OnDrift;
use berth_rt::starved::Starved;
use serde::{Deserialize, Serialize};

use super::desired::{Desired, Workload};
use super::device::{Facts, RuleMatch};
use super::place::Node;

/// One input.
#[derive(Debug, Clone)]
pub(crate) enum Event {
    /// The documents, whole.
    Desired {
        /// Workloads and rules.
        desired: Desired,
        /// The node's cores and budget.
        node: Node,
    },
    /// Monitors and devices have been found: start and stop from now on.
    Ready,
    /// A device is there or changed.
    Device {
        /// What is known of it.
        facts: Arc<Facts>,
        /// The rules that match.
        matches: Vec<RuleMatch>,
        /// The key it had before, where it is the same device under another one.
        before: Option<String>,
    },
    /// Something happened to a device that is there; after its [`Event::Device`].
    Happened {
        /// Its key.
        key: String,
        /// `change`, `bind`, ….
        action: &'static str,
        /// The event's properties.
        properties: Vec<(String, String)>,
    },
    /// A device has gone for which a rule says what runs then, once.
    Removed {
        /// As it was known last.
        facts: Arc<Facts>,
        /// The rule.
        matched: Box<RuleMatch>,
    },
    /// A device is gone, from the host and from every container.
    DeviceGone {
        /// Its key.
        key: String,
    },
    /// A monitor that was found.
    Adopt {
        /// Its account.
        status: Box<Status>,
    },
    /// News of one container.
    Report {
        /// Its id.
        id: String,
        /// The news.
        report: Report,
    },
    /// A `berth run`.
    Once {
        /// What runs.
        workload: Arc<Workload>,
    },
    /// The launcher answers again.
    LauncherBack,
    /// [`super::State::deadline`] has come.
    Tick,
}

/// News of one container.
#[derive(Debug, Clone)]
pub(crate) enum Report {
    /// Made; an armed one stays here.
    Created {
        /// First process.
        pid: i32,
        /// Field 22 of its stat.
        start_time: u64,
        /// The monitor gives and takes devices while the container runs.
        takes: bool,
    },
    /// Proven and running.
    Started {
        /// Nanoseconds since the epoch.
        at: u64,
        /// What the proof says of its cores.
        isolation: Option<String>,
        /// Microseconds of each step.
        timing: Vec<(String, u64)>,
    },
    /// It never ran; the monitor waits for its release.
    Failed(Refusal),
    /// There is no monitor: refused by the launcher, or never reached it (`reached` false, not counted).
    NotLaunched {
        /// Why.
        refusal: Refusal,
        /// Did the request reach the launcher?
        reached: bool,
    },
    /// It ended; the monitor waits for its release.
    Exited(Exit),
    /// Proven facts no longer hold.
    Drift(Vec<String>, OnDrift),
    /// They hold again.
    Restored,
    /// It does not end, or cannot be freed: what holds it.
    Held(String),
    /// Kernel threads bound to its CPUs that do not get them, while it may run at a real-time priority.
    Starved(Vec<Starved>),
    /// Output was lost.
    Dropped(u64),
    /// An interface that was moved in is gone.
    InterfaceGone(String),
    /// Frozen or thawed, by order.
    Frozen(bool),
    /// An order was refused by the monitor.
    Refused(Refusal),
    /// What was to be given to it while it runs was refused: all of it stays outside.
    NotGiven {
        /// Why.
        refusal: Refusal,
        /// Indexes of the interfaces that are not inside.
        interfaces: Vec<u32>,
    },
    /// The connection to the monitor ended: after a release as it should, else the monitor is dead.
    Closed,
    /// The launcher has freed what a dead monitor left.
    Swept(Result<(), Refusal>),
}

/// One output.
#[derive(Debug, Clone)]
pub(crate) enum Effect {
    /// Send to the launcher; `image` is to be resolved to its digest first.
    Launch {
        /// Everything but `image`.
        request: Box<LaunchRequest>,
        /// The reference as the workload has it.
        image: String,
    },
    /// Let an armed container go.
    Start {
        /// Which.
        id: String,
        /// Arguments, whole; empty: as it was made.
        args: Vec<String>,
        /// Environment added.
        env: Vec<(String, String)>,
        /// Its device.
        devices: Vec<DeviceGrant>,
        /// Its interface.
        interfaces: Vec<InterfaceGrant>,
        /// Labels added.
        labels: BTreeMap<String, String>,
        /// Notes added.
        notes: BTreeMap<String, String>,
    },
    /// Give a running container devices.
    Inject {
        /// Which.
        id: String,
        /// Nodes.
        devices: Vec<DeviceGrant>,
        /// Interfaces.
        interfaces: Vec<InterfaceGrant>,
        /// Notes replaced.
        notes: BTreeMap<String, String>,
    },
    /// Take devices from a container, at once.
    Eject {
        /// Which.
        id: String,
        /// Nodes.
        devices: Vec<DeviceGrant>,
        /// Interfaces.
        interfaces: Vec<InterfaceGrant>,
    },
    /// Tell the program that something happened to its device.
    Uevent {
        /// Which container.
        id: String,
        /// Block or not, major, minor.
        device: (bool, u32, u32),
        /// `change`, `bind`, ….
        action: &'static str,
        /// The event's properties.
        properties: Vec<(String, String)>,
    },
    /// Stop signal, grace, SIGKILL.
    Stop(String),
    /// A signal.
    Signal(String, i32),
    /// Freeze.
    Freeze(String),
    /// Thaw.
    Thaw(String),
    /// The end is noted: the monitor may go.
    Release(String),
    /// The launcher frees what a dead monitor left.
    Sweep(String),
    /// The interface goes into a container: its `remove` outside means nothing.
    Hold {
        /// The device.
        device: Arc<Facts>,
        /// The container.
        owner: String,
    },
    /// The interface with this key is no longer in one.
    Unhold(String),
    /// For events, log and metrics.
    Note(Notice),
}

/// Something that happened, for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Notice {
    /// What.
    pub kind: NoticeKind,
    /// Of whom: an instance's name, a device.
    pub subject: String,
    /// In words.
    pub text: String,
}

/// Kinds of happenings; the words of `berth events`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum NoticeKind {
    /// Documents were taken over.
    Documents,
    /// Documents were refused; the last good ones stay.
    DocumentsRefused,
    /// A matching device is there.
    DeviceAppeared,
    /// A matching device is gone.
    DeviceGone,
    /// Events were lost; the devices are enumerated again.
    Overflow,
    /// Enumerated again.
    Resync,
    /// A device was given to a running container.
    DeviceGiven,
    /// A device was taken from a container.
    DeviceTaken,
    /// Too few devices of a bundle.
    Partial,
    /// No place.
    Waiting,
    /// The request went to the launcher.
    Launching,
    /// Ready for a device.
    Armed,
    /// Proven and running.
    Started,
    /// Told to stop.
    Stopping,
    /// Ended.
    Exited,
    /// Never ran.
    LaunchFailed,
    /// Started again later.
    Backoff,
    /// Not started again.
    GaveUp,
    /// Frozen.
    Frozen,
    /// Thawed.
    Thawed,
    /// A proven fact does not hold.
    Drift,
    /// It holds again.
    Restored,
    /// It does not end, or cannot be freed.
    Held,
    /// Kernel threads do not get a CPU that a real-time container has.
    Starved,
    /// They run again.
    NotStarved,
    /// Output was lost.
    Dropped,
    /// Events of a device came too fast to be passed on inside.
    UeventsHeld,
    /// An order was refused.
    Refused,
    /// Found at start.
    Adopted,
    /// A monitor died, and its container with it.
    MonitorLost,
    /// What it left is freed.
    Swept,
    /// That could not be done; tried again.
    SweepFailed,
    /// The launcher was started (again).
    Launcher,
    /// The agent itself.
    Agent,
}

impl Effect {
    pub(crate) fn note(kind: NoticeKind, subject: &str, text: impl Into<String>) -> Effect {
        Effect::Note(Notice {
            kind,
            subject: subject.to_owned(),
            text: text.into(),
        })
    }
}
