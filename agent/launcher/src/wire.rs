//! What travels between agent, launcher and monitors: one JSON object a line over a Unix stream socket,
//! descriptors beside it by SCM_RIGHTS.
//!
//! Invariants: every first message of a connection carries `version`; a peer that gets a version it does not
//! know answers [`Reply::Refused`] and closes. Fields are only ever added, with a default: old monitors live
//! under a new agent and the other way round, so nothing here uses `deny_unknown_fields`.
//!
//! The connection on which the agent sends a [`LaunchRequest`] becomes the connection to the monitor: the
//! launcher checks the request, forks the monitor, and the monitor answers on the very same socket. Later
//! (after a restart of the agent) the agent connects to `RUN/monitors/ID.sock` and sends [`Command::Hello`].

use std::collections::BTreeMap;
use std::path::PathBuf;

use berth_policies::OnDrift;
use berth_rt::quiet::{Huge, Irqs, Resume};
use berth_rt::sched::Scheduler;
use berth_runtime::proof::{Fact, Proof};
use serde::{Deserialize, Serialize};

/// Version of every message and of the monitor's files.
pub const VERSION: u32 = 1;

/// The first line on the launcher's socket.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "kebab-case")]
pub enum LauncherRequest {
    /// Fork a monitor and create one container; the connection is the monitor's from then on.
    Launch(Box<LaunchRequest>),
    /// Kill and free what a dead monitor left behind (cgroup, state). Answered by [`Reply::Done`].
    Sweep {
        /// [`VERSION`].
        version: u32,
        /// The container whose monitor is gone.
        id: String,
    },
    /// Is anybody there? Answered by [`Reply::Done`].
    Ping {
        /// [`VERSION`].
        version: u32,
    },
}

/// Everything the launcher needs to know of one container. No security setting travels here: the launcher
/// resolves `profile` itself and writes the OCI document itself, so that an agent that lies cannot weaken a profile. Which profile, devices and
/// mount sources it asks for is not limited yet.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct LaunchRequest {
    /// [`VERSION`].
    pub version: u32,
    /// Container id, `[a-z0-9][a-z0-9._-]{0,127}`.
    pub id: String,
    /// Name of the workload it is an instance of.
    pub workload: String,
    /// Manifest digest (`sha256:…`) of an image in the launcher's store.
    pub image: String,
    /// Name of the security profile.
    pub profile: String,
    /// What runs.
    pub process: ProcessRequest,
    /// Host name inside; the container id where absent.
    #[serde(default)]
    pub hostname: Option<String>,
    /// The cores and memory nodes reserved for it.
    pub placement: PlacementRequest,
    /// Scheduling policy of its first thread, inherited by the others.
    #[serde(default)]
    pub scheduler: Option<Scheduler>,
    /// Timer slack in nanoseconds (`PR_SET_TIMERSLACK`), set in the parent before the clone.
    #[serde(default)]
    pub timer_slack_ns: Option<u64>,
    /// Share of the real-time budget, where the node has RT_GROUP_SCHED on v1.
    #[serde(default)]
    pub rt_budget: Option<RtBudget>,
    /// Knobs of the node that are set for it while it runs; needs whole cores, but for huge pages.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quiet: Option<QuietRequest>,
    /// Memory limit in bytes.
    #[serde(default)]
    pub memory_bytes: Option<u64>,
    /// Most tasks it may have; [`crate::compose::DEFAULT_TASKS`] where absent.
    #[serde(default)]
    pub pids: Option<u64>,
    /// Host devices it gets at once (an armed container gets them with [`Command::Start`]).
    #[serde(default)]
    pub devices: Vec<DeviceGrant>,
    /// It has a /run/udev, for the records of devices whose events it hears, now or later.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub udev: bool,
    /// Network interfaces moved into it.
    #[serde(default)]
    pub interfaces: Vec<InterfaceGrant>,
    /// PCI functions bound to vfio-pci for it, given back when it has ended.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub vfio: Vec<VfioGrant>,
    /// Its network namespace.
    #[serde(default)]
    pub network: Network,
    /// A network of the node's CNI plug-ins, added to a namespace of its own.
    #[serde(default)]
    pub cni: Option<CniRequest>,
    /// Bind mounts.
    #[serde(default)]
    pub mounts: Vec<BindMount>,
    /// Files put into /run/secrets: their names and places, never their content.
    #[serde(default)]
    pub secrets: Vec<SecretGrant>,
    /// How it is stopped.
    pub stop: StopRequest,
    /// Most bytes of log kept (two files of half of it).
    pub log_max_bytes: u64,
    /// Free labels, kept for the agent.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// What the monitor does when a proven fact no longer holds; the profile's answer where that is stricter.
    #[serde(default)]
    pub on_drift: OnDrift,
    /// True: create and pre-prove, then wait for [`Command::Start`]. False: start at once.
    #[serde(default)]
    pub armed: bool,
    /// Its monitor samples wake-ups on its CPUs, by a process of its own.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub probe: bool,
    /// Opaque words of the agent's (device syspath, rule, generation, …), given back in [`Status`].
    #[serde(default)]
    pub notes: BTreeMap<String, String>,
}

/// What runs. Empty fields mean the image's own configuration.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct ProcessRequest {
    /// Replaces the image's entrypoint (and its cmd) when not empty.
    #[serde(default)]
    pub command: Vec<String>,
    /// Replaces the image's cmd when not empty.
    #[serde(default)]
    pub args: Vec<String>,
    /// Added to the image's environment, in order; later wins.
    #[serde(default)]
    pub env: Vec<(String, String)>,
    /// Working directory, absolute.
    #[serde(default)]
    pub cwd: Option<String>,
}

/// Cores and memory nodes.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct PlacementRequest {
    /// CPU list in the kernel's form (`2-3,8`).
    pub cpus: String,
    /// Memory nodes in the same form; empty: those of the parent.
    #[serde(default)]
    pub mems: String,
    /// True for `cpus: shared`: the housekeeping pool.
    pub shared: bool,
    /// True: refuse unless the kernel says the cores are isolated.
    #[serde(default)]
    pub require_isolated: bool,
}

/// What is set for a container's cores while it runs.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct QuietRequest {
    /// True: what the node lacks refuses the launch; false: the proof says so.
    pub strict: bool,
    /// Idle states.
    pub resume: Option<Resume>,
    /// `scaling_governor`.
    pub governor: Option<String>,
    /// `scaling_min_freq`, kHz.
    pub min_khz: Option<u64>,
    /// `scaling_max_freq`, kHz.
    pub max_khz: Option<u64>,
    /// Interrupts.
    pub irqs: Irqs,
    /// Huge pages that no other claims.
    pub hugepages: Vec<Huge>,
    /// Percent of each core that fifo or rr must be able to have.
    pub share: Option<u8>,
}

/// `cpu.rt_runtime_us` and `cpu.rt_period_us` of cgroup v1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct RtBudget {
    /// Microseconds of each period.
    pub runtime_us: u64,
    /// Period in microseconds.
    pub period_us: u64,
}

/// One device node and the permission to use it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceGrant {
    /// True for a block device, false for a character device.
    pub block: bool,
    /// Major number.
    pub major: u32,
    /// Minor number.
    pub minor: u32,
    /// Path inside, absolute and below /dev.
    pub path: String,
    /// Any of `r`, `w`, `m`.
    pub access: String,
    /// File mode of the node.
    pub mode: u32,
    /// Owner inside.
    pub uid: u32,
    /// Group inside.
    pub gid: u32,
    /// Links to it, each a path below /dev; one whose name is taken inside is left out.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub links: Vec<String>,
    /// Its events are told inside, and udev's records of it are there; [`LaunchRequest::udev`] is needed.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub uevents: bool,
    /// Of a block device: its file system is mounted at `path`, nosuid, nodev and noexec, read-only unless `access`
    /// has `w`; it gets no node and no permission.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mount: Option<FilesystemGrant>,
}

/// What is mounted of a block device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FilesystemGrant {
    /// Types it may have, of [`berth_runtime::FILESYSTEMS`], tried in order.
    pub types: Vec<String>,
    /// The label it must have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
}

/// One PCI function through VFIO: it gets /dev/vfio/GROUP and /dev/vfio/vfio.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VfioGrant {
    /// `0000:03:00.0`.
    pub address: String,
    /// The others of its IOMMU group are bound too; else it is refused while drivers of the host have them.
    #[serde(default)]
    pub whole_group: bool,
}

/// One network interface.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InterfaceGrant {
    /// Name in the host's namespace.
    pub name: String,
    /// Index in the host's namespace: the move is refused when name and index disagree.
    pub index: u32,
    /// New name inside.
    #[serde(default)]
    pub rename: Option<String>,
    /// Its MTU inside, 68 to 65535.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
    /// Addresses with the length of their network.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<(std::net::IpAddr, u8)>,
    /// It stays outside; its 802.1Q VLAN of this id, 1 to 4094, goes inside.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vlan: Option<u16>,
}

impl InterfaceGrant {
    /// Its name inside.
    pub fn inside(&self) -> &String {
        self.rename.as_ref().unwrap_or(&self.name)
    }
}

/// Network namespace.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Network {
    /// One of its own, with the loopback interface only.
    #[default]
    None,
    /// The host's.
    Host,
}

/// A network by its name, and the ports by which it is reached.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CniRequest {
    /// Name in a .conflist of the node.
    pub network: String,
    /// Ports of the node that lead to ports inside.
    #[serde(default)]
    pub ports: Vec<PortRequest>,
}

/// One port.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortRequest {
    /// Port of the node, 1 to 65535.
    pub host: u16,
    /// Port inside, 1 to 65535.
    pub container: u16,
    /// `tcp`, `udp` or `sctp`.
    pub protocol: String,
    /// Address of the node it is bound to; all where absent.
    #[serde(default)]
    pub address: Option<std::net::IpAddr>,
}

/// One bind mount, always nosuid and nodev.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BindMount {
    /// On the host, absolute.
    pub source: PathBuf,
    /// Inside, absolute.
    pub destination: PathBuf,
    /// Read-only, recursively.
    pub read_only: bool,
    /// Files and folders of the source get an SELinux label.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub relabel: Option<Relabel>,
}

/// Whose the files of a mount are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Relabel {
    /// The container's own, with its pair of categories.
    Private,
    /// Those of several containers.
    Shared,
}

/// One secret: where the launcher reads it, and what its file inside is like.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SecretGrant {
    /// File name in /run/secrets.
    pub name: String,
    /// A file of the node.
    #[serde(default)]
    pub file: Option<PathBuf>,
    /// A systemd credential of the launcher's unit.
    #[serde(default)]
    pub credential: Option<String>,
    /// File mode inside.
    pub mode: u32,
    /// Owner inside.
    pub uid: u32,
    /// Group inside.
    pub gid: u32,
}

/// How a container is stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct StopRequest {
    /// Signal number sent first.
    pub signal: i32,
    /// Milliseconds until SIGKILL.
    pub grace_ms: u64,
}

/// What the agent (or `berth exec`) asks of a monitor.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "kebab-case")]
pub enum Command {
    /// First line on a monitor's own socket; answered by [`Reply::Status`], with the container's pidfd beside
    /// it where it lives. From then on events come to this connection too.
    Hello {
        /// [`VERSION`].
        version: u32,
    },
    /// Let an armed container go, with the device it waited for. Answered by events.
    Start {
        /// Replaces the process's args where not empty.
        #[serde(default)]
        args: Vec<String>,
        /// Added to the environment.
        #[serde(default)]
        env: Vec<(String, String)>,
        /// Devices injected before exec.
        #[serde(default)]
        devices: Vec<DeviceGrant>,
        /// Interfaces moved in before exec.
        #[serde(default)]
        interfaces: Vec<InterfaceGrant>,
        /// Labels added.
        #[serde(default)]
        labels: BTreeMap<String, String>,
        /// Notes added.
        #[serde(default)]
        notes: BTreeMap<String, String>,
    },
    /// Give a running container devices; all of them or none. [`Reply::Done`]. Only where [`Status::takes`] or
    /// [`Event::Created`] says so: monitors that do not know it end the connection.
    Inject {
        /// Nodes and permissions.
        #[serde(default)]
        devices: Vec<DeviceGrant>,
        /// Interfaces moved in.
        #[serde(default)]
        interfaces: Vec<InterfaceGrant>,
        /// Notes replaced.
        #[serde(default)]
        notes: BTreeMap<String, String>,
    },
    /// Take devices back: the permission first, then the node; interfaces go back outside. [`Reply::Done`]; what it
    /// does not have is none.
    Eject {
        /// As they were granted; what counts is the device number and the path.
        #[serde(default)]
        devices: Vec<DeviceGrant>,
        /// As they were granted; what counts is index and name outside.
        #[serde(default)]
        interfaces: Vec<InterfaceGrant>,
    },
    /// Something happened to a device that the container has and whose events it hears: they are told inside.
    /// [`Reply::Done`]. Only for devices granted with [`DeviceGrant::uevents`]: who knows that knows this.
    Uevent {
        /// Block, or character.
        block: bool,
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
        /// `change`, `move`, `online`, `offline`, `bind` or `unbind`.
        action: String,
        /// The event's own properties; those of the device itself are read by the monitor.
        #[serde(default)]
        properties: Vec<(String, String)>,
    },
    /// Stop signal, grace, SIGKILL. Answered by [`Event::Exited`] in time.
    Stop,
    /// Send a signal to the container's first process. [`Reply::Done`].
    Signal {
        /// Signal number.
        signal: i32,
    },
    /// Freeze every task (cgroup freezer). [`Reply::Done`].
    Freeze,
    /// Thaw. [`Reply::Done`].
    Thaw,
    /// Take the whole proof now. [`Reply::Proof`].
    Prove,
    /// How is it? [`Reply::Status`].
    Status,
    /// Run one more process inside; stdin, stdout, stderr come by SCM_RIGHTS with this line (three
    /// descriptors), or none with a `terminal`: then the master of a new terminal, in the container's own devpts,
    /// comes by SCM_RIGHTS with [`Reply::ExecStarted`] (`berth_runtime::console` relays and resizes it). Later
    /// [`Reply::ExecExited`].
    Exec {
        /// [`VERSION`]: may be the first line of a connection of its own.
        version: u32,
        /// Program and arguments.
        args: Vec<String>,
        /// Added to the container's environment.
        #[serde(default)]
        env: Vec<(String, String)>,
        /// Working directory.
        #[serde(default)]
        cwd: Option<String>,
        /// A terminal of this size.
        #[serde(default)]
        terminal: Option<berth_runtime::console::Size>,
    },
    /// The agent has noted the exit: forget the container and end. [`Reply::Done`] is the last word.
    Release,
}

/// What comes back: answers and events share the connection; each line is one of these.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "reply", rename_all = "kebab-case")]
pub enum Reply {
    /// Done, nothing more to say.
    Done,
    /// Refused or failed.
    Refused(Refusal),
    /// The container's state.
    Status(Box<Status>),
    /// A proof taken on request.
    Proof(Proof),
    /// An exec'd process runs.
    ExecStarted {
        /// In the host's pid namespace.
        pid: i32,
        /// The master of its terminal comes with this line.
        #[serde(default)]
        terminal: bool,
    },
    /// An exec'd process ended.
    ExecExited(Exit),
    /// Something happened.
    Event(Box<Event>),
}

/// Why something did not happen; the three parts of every message to an operator.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// The step that failed: `request`, `image`, `profile`, `create`, `prove`, `start`, `exec`, ….
    pub stage: String,
    /// What happened and where, the whole chain of causes.
    pub message: String,
    /// The setting to change, where there is one.
    #[serde(default)]
    pub hint: Option<String>,
}

/// What a monitor tells unasked.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum Event {
    /// Created; an armed container stays here. The container's pidfd comes beside this line by SCM_RIGHTS.
    Created {
        /// First process, host pid namespace.
        pid: i32,
        /// Field 22 of /proc/PID/stat, clock ticks since boot.
        start_time: u64,
        /// The pre-proof of an armed container.
        proof: Option<Proof>,
        /// It knows [`Command::Inject`] and [`Command::Eject`].
        #[serde(default)]
        takes: bool,
    },
    /// Proof at the exec stop held, and the first instruction runs.
    Started {
        /// The proof.
        proof: Proof,
        /// Microseconds of each step, in order.
        timing: Vec<(String, u64)>,
        /// When it was let go, nanoseconds since the epoch; 0 from a monitor that does not say.
        #[serde(default)]
        started_at: u64,
    },
    /// The launch did not happen; all is freed. The monitor ends after [`Command::Release`].
    Failed {
        /// Why.
        refusal: Refusal,
        /// The proof, where one was taken.
        proof: Option<Proof>,
    },
    /// The container ended; its cgroup, mounts and devices are freed.
    Exited(Exit),
    /// A proven fact no longer holds; sent once when it begins.
    Drift {
        /// The facts that do not hold.
        facts: Vec<Fact>,
        /// What was done about it.
        #[serde(default)]
        answer: OnDrift,
    },
    /// What had drifted holds again.
    Restored,
    /// It was killed and does not end, or something of it cannot be freed; sent once for each cause.
    Held {
        /// What holds it: processes, cgroup, mount.
        by: String,
    },
    /// Log output was dropped because the disk was slower than the container.
    Dropped {
        /// Bytes since the last such event.
        bytes: u64,
    },
    /// An interface that had been moved in is gone from the container's namespace.
    InterfaceGone {
        /// Its name inside.
        name: String,
    },
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// Exit status, where it exited.
    pub code: Option<i32>,
    /// Signal, where it was killed.
    pub signal: Option<i32>,
    /// True where the kernel's memory killer ended it.
    #[serde(default)]
    pub oom: bool,
    /// Nanoseconds since the epoch.
    pub at: u64,
}

/// Where a container stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// Being made.
    Creating,
    /// Made and pre-proved; waits for its device.
    Armed,
    /// Proven and running.
    Running,
    /// Frozen by request.
    Frozen,
    /// Told to stop.
    Stopping,
    /// Ended; the monitor waits for [`Command::Release`].
    Exited,
    /// Never ran; the monitor waits for [`Command::Release`].
    Failed,
}

/// A monitor's account of its container: enough for an agent without any state of its own.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Status {
    /// [`VERSION`] of the monitor.
    pub version: u32,
    /// The request as launched, with what [`Command::Start`] added.
    pub request: LaunchRequest,
    /// Where it stands.
    pub phase: Phase,
    /// The monitor itself.
    pub monitor_pid: i32,
    /// First process, where it lives.
    pub pid: Option<i32>,
    /// Field 22 of /proc/PID/stat.
    pub start_time: Option<u64>,
    /// `/proc/sys/kernel/random/boot_id`.
    pub boot_id: String,
    /// Nanoseconds since the epoch: created, started.
    pub created_at: u64,
    /// Absent until started.
    pub started_at: Option<u64>,
    /// How it ended.
    pub exit: Option<Exit>,
    /// Why it never ran.
    pub failure: Option<Refusal>,
    /// The last whole proof.
    pub proof: Option<Proof>,
    /// Facts that do not hold now.
    pub drift: Vec<Fact>,
    /// The log file written now.
    pub log: PathBuf,
    /// Bytes of output dropped so far.
    pub dropped_bytes: u64,
    /// Microseconds of each step of the launch.
    pub timing: Vec<(String, u64)>,
    /// The monitor knows [`Command::Inject`] and [`Command::Eject`].
    #[serde(default)]
    pub takes: bool,
}
