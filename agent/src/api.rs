//! What travels on RUN/api.sock: one JSON object a line, a request answered by one line (`events`, `run` and
//! `wait` by more). The shapes of the answers are those of `-o json`, and stable: fields are only added.
//!
//! Invariants: every request carries `version`; another one is refused with a text. The socket is root's alone
//! (0600, and the peer's uid is checked); a line has at most [`MAX_LINE`] bytes.

use std::collections::BTreeMap;

use berth_documents::{Change, Kind, Set, WorkloadSpec};
use berth_launcher::wire::{Exit, Refusal};
use berth_runtime::proof::Proof;
use serde::{Deserialize, Serialize};

pub(crate) use crate::core::NoticeKind;

/// Version of the protocol.
pub(crate) const VERSION: u32 = 1;
/// Longest line.
pub(crate) const MAX_LINE: usize = 8 << 20;
/// The socket in the run folder.
pub(crate) const SOCKET: &str = "api.sock";

/// A request.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Request {
    /// [`VERSION`].
    pub version: u32,
    /// What is asked.
    #[serde(flatten)]
    pub op: Op,
}

/// What is asked.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "kebab-case")]
pub(crate) enum Op {
    /// Is anybody there? [`Hello`].
    Hello,
    /// Every container. `Vec<Container>`.
    Ps,
    /// Some containers in full. `Vec<Details>`.
    Inspect {
        /// Workload or container.
        name: String,
    },
    /// The ids of the containers that a name means. `Vec<String>`.
    Resolve {
        /// Workload or container.
        name: String,
    },
    /// The documents in force. [`Documents`].
    Documents,
    /// What would change. [`Outcome`].
    Plan(Box<Changes>),
    /// Change it. [`Outcome`].
    Apply(Box<Changes>),
    /// Stop, and stay stopped. `Vec<Container>` when they have stopped.
    Stop {
        /// Workloads or containers.
        names: Vec<String>,
        /// Everything.
        all: bool,
    },
    /// Start what was stopped or failed. `Vec<Container>` when they run or have failed.
    Start {
        /// Workloads or containers.
        names: Vec<String>,
    },
    /// New containers. As `start`.
    Restart {
        /// Workloads or containers.
        names: Vec<String>,
    },
    /// A signal. `Vec<Container>`.
    Kill {
        /// Workloads or containers.
        names: Vec<String>,
        /// Signal number.
        signal: i32,
    },
    /// Freeze. `Vec<Container>`.
    Freeze {
        /// Workloads or containers.
        names: Vec<String>,
    },
    /// Thaw. `Vec<Container>`.
    Thaw {
        /// Workloads or containers.
        names: Vec<String>,
    },
    /// Take the proof now. `Vec<Proved>`.
    Prove {
        /// Workload or container; all where absent.
        name: Option<String>,
    },
    /// What happened: `Vec<Happening>`, then, where followed, one [`Happening`] a line.
    Events {
        /// Go on with what happens.
        follow: bool,
        /// Those with a greater number.
        since: u64,
    },
    /// One workload in the foreground: a [`Container`] when it is known, then as `wait`.
    Run {
        /// Its name.
        name: String,
        /// What runs.
        spec: Box<WorkloadSpec>,
    },
    /// The end of a `run`: one [`Details`]; the workload is forgotten then.
    Wait {
        /// Its name.
        name: String,
    },
    /// The agent's own sandbox. [`crate::daemon::sandbox::Sandbox`].
    Sandbox,
    /// What the node has and who holds it. [`NodeView`].
    Node,
}

/// Documents to put in, and documents to take away.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Changes {
    /// Put in, or in the place of those with the same kind and name.
    #[serde(default)]
    pub set: Set,
    /// Taken away.
    #[serde(default)]
    pub delete: Vec<(Kind, String)>,
}

/// An answer.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Answer<T> {
    /// Done.
    Ok(T),
    /// Not done.
    Error(Fault),
}

/// Why not.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Fault {
    /// What happened.
    pub message: String,
    /// The setting to change.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

/// The agent.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Hello {
    /// Version of the protocol.
    pub version: u32,
    /// Of berth.
    pub berth: String,
    /// Its process.
    pub pid: u32,
    /// Where device events come from: `udev` or `kernel`.
    pub device_source: String,
    /// Address of the metrics, where they are served.
    pub metrics: Option<String>,
}

/// One container as `berth ps` shows it.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Container {
    /// What it is called.
    pub name: String,
    /// Container id: that of files, cgroups and the monitor's socket.
    pub id: String,
    /// Its workload.
    pub workload: String,
    /// Image reference.
    pub image: String,
    /// pending, waiting, launching, armed, starting, running, frozen, stopping, releasing, sweeping, backoff,
    /// failed, completed, stopped.
    pub phase: String,
    /// First process.
    pub pid: Option<i32>,
    /// The device it has.
    pub device: Option<String>,
    /// Its cores, kernel list form; absent: none reserved.
    pub cpus: Option<String>,
    /// True: the housekeeping pool.
    pub shared: bool,
    /// `isolated (…)`, `pinned, not isolated: N foreign threads may run here`, `shared`.
    pub isolation: Option<String>,
    /// `fifo 50`, `other`, ….
    pub scheduler: String,
    /// Security profile.
    pub profile: String,
    /// The profile is one that is said aloud, such as `privileged`.
    pub loud: bool,
    /// Restarts so far.
    pub restarts: u64,
    /// Started, nanoseconds since the epoch.
    pub started_at: Option<u64>,
    /// Facts that do not hold.
    pub drift: Vec<String>,
    /// Kernel threads that do not get its CPUs.
    #[serde(default)]
    pub starved: Vec<String>,
    /// Interfaces (their names inside) and devices that it was given and that have gone.
    #[serde(default)]
    pub lacks: Vec<String>,
    /// Where its waits for a CPU are counted: `schedstat`, `probe, SCHED_FIFO 49`, `none: …`; absent before it runs.
    #[serde(default)]
    pub wakeups: Option<String>,
    /// How it, or the one before it, ended.
    pub exit: Option<Exit>,
    /// Why it does not run.
    pub reason: Option<String>,
}

/// One container in full.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Details {
    /// As in `ps`.
    #[serde(flatten)]
    pub container: Container,
    /// The rule it belongs to.
    pub rule: Option<String>,
    /// Full path of its device below /sys.
    pub syspath: Option<String>,
    /// The workload's document.
    pub document: serde_json::Value,
    /// Log file in CRI format.
    pub log: String,
    /// Its monitor's socket.
    pub socket: String,
    /// Why it never ran.
    pub failure: Option<Refusal>,
    /// Bytes of output lost.
    pub dropped_bytes: u64,
    /// Microseconds of each step of its launch.
    pub timing: Vec<(String, u64)>,
    /// Field 22 of /proc/PID/stat.
    pub start_time: Option<u64>,
}

/// The documents in force.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Documents {
    /// All of them.
    pub set: Set,
    /// Those that stand in the configuration folder and can only be changed there.
    pub files: Vec<(Kind, String)>,
}

/// What an apply changed or would change.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Outcome {
    /// By document.
    pub documents: Vec<Change>,
    /// By container: `launch`, `stop`, `start`, `wait`.
    pub containers: Vec<Step>,
}

/// What happens to one container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Step {
    /// `launch`, `start`, `stop`, `wait`, `refuse`.
    pub action: String,
    /// Its name.
    pub name: String,
    /// Cores, budget, or why it must wait.
    pub text: String,
}

/// The proof of one container.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Proved {
    /// Its name.
    pub name: String,
    /// Its id.
    pub id: String,
    /// Taken now.
    pub proof: Option<Proof>,
    /// Why there is none.
    pub fault: Option<Fault>,
}

/// Something that happened.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Happening {
    /// Counted from 1 since the agent started.
    pub seq: u64,
    /// Nanoseconds since the epoch.
    pub at: u64,
    /// What.
    pub event: NoticeKind,
    /// Of whom.
    pub subject: String,
    /// In words.
    pub text: String,
}

/// What the node has to give.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct NodeView {
    /// Housekeeping cores.
    pub housekeeping: String,
    /// Cores that can be given away.
    pub given_away: String,
    /// Of those, free.
    pub free: String,
    /// Real-time budget, microseconds of each second; absent where the kernel has none.
    pub rt_budget_us: Option<u64>,
    /// Of that, free.
    pub rt_free_us: Option<u64>,
    /// Who holds cores or budget.
    pub held: BTreeMap<String, HeldView>,
}

/// What one container holds.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct HeldView {
    /// Whole cores.
    pub cpus: String,
    /// Microseconds of each second.
    pub rt_budget_us: u64,
}
