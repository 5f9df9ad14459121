//! `kind: Workload`: what the user declares of one thing to run.
//!
//! Types only; what one field says about another is checked in `workload_check.rs`. Every field is applied or
//! refused: no field is read and then forgotten.

use std::fmt;
use std::num::NonZeroU32;

use berth_policies::OnDrift;
use serde::de::{self, Unexpected, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::realtime::{CStates, Class, Clock, HugePages, Irqs};
use crate::signal::Signal;
use crate::values::{AbsolutePath, Duration, Name, Size};

/// The profile of a workload that names none.
pub const DEFAULT_PROFILE: &str = "strict";

/// The kernel's PID_MAX_LIMIT on 64 bits.
pub(crate) const PIDS_MAX: u32 = 4_194_304;

fn strict() -> Name {
    // DEFAULT_PROFILE is a valid label; a test holds it.
    DEFAULT_PROFILE
        .parse()
        .unwrap_or_else(|_| unreachable!("`strict` is a DNS-1123 label"))
}

/// The `spec` of a `Workload`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct WorkloadSpec {
    /// Reference in the node's image store: `name[:tag]` or `name@sha256:…`.
    pub image: String,
    /// Replaces the image's entrypoint. Never empty where it is there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub command: Option<Vec<String>>,
    /// Replaces the image's arguments.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub args: Option<Vec<String>>,
    /// Added to the image's environment, in this order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub env: Vec<EnvVar>,
    /// Working folder inside; the image's where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub working_dir: Option<AbsolutePath>,
    /// Security profile, shipped or a `SecurityProfile` document.
    #[serde(default = "strict")]
    pub profile: Name,
    /// When it runs.
    #[serde(default)]
    pub run: Run,
    /// Its cores.
    #[serde(default)]
    pub cpus: CpuRequest,
    /// Whether its cores must be isolated.
    #[serde(default)]
    pub isolation: Isolation,
    /// Scheduling policy, timers, real-time budget.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub realtime: Option<Realtime>,
    /// Where the metric of its waits is from.
    #[serde(default, skip_serializing_if = "is_default")]
    pub wakeups: Wakeups,
    /// Most memory, bytes, at least 1Mi; no limit where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<Size>,
    /// Most tasks, 1 to 4194304; 4096 where absent.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "pids")]
    pub pids: Option<u32>,
    /// What happens when it ends.
    #[serde(default)]
    pub restart: Restart,
    /// What happens when a proven fact no longer holds; the profile's answer where that is stricter.
    #[serde(default, skip_serializing_if = "is_default")]
    pub on_drift: OnDrift,
    /// How it is asked to end.
    #[serde(default)]
    pub stop: Stop,
    /// Its network.
    #[serde(default)]
    pub network: Network,
    /// Host files and folders that it sees.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub mounts: Vec<Mount>,
    /// Files of the node's owner in /run/secrets.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub secrets: Vec<Secret>,
}

/// One environment variable.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EnvVar {
    /// `[A-Za-z_][A-Za-z0-9_]*`.
    pub name: String,
    /// Any text without NUL.
    pub value: String,
}

/// When a workload runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Run {
    /// As long as it is declared.
    #[default]
    Always,
    /// Once for each device that a `HotplugRule` matches; never by itself.
    OnDevice,
}

/// The cores of a workload.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum CpuRequest {
    /// The housekeeping pool, together with others.
    #[default]
    Shared,
    /// So many whole cores for itself alone.
    Whole(NonZeroU32),
}

/// What `isolation` asks of whole cores.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Isolation {
    /// Pinned is enough where the node cannot isolate.
    #[default]
    Any,
    /// Refuse to run on cores where foreign threads may run.
    Required,
}

/// Where `berth_run_delay_seconds` of a workload is from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Wakeups {
    /// The scheduler's account where the kernel keeps one, else a probe.
    #[default]
    Auto,
    /// A probe of berth's own on its CPUs, whatever the kernel has.
    Probe,
    /// The scheduler's account or nothing: never a probe.
    Schedstat,
}

/// The real-time half of a workload.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Realtime {
    /// Whether what the node lacks of the rest refuses the launch; it does where this is absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub class: Option<Class>,
    /// Another word for `spec.cpus`; gone once the document is read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpus: Option<CpuRequest>,
    /// Policy of the first thread, inherited by the others; `other` with nice 0 where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scheduler: Option<Scheduling>,
    /// Timer slack of threads without a real-time policy, at least 1ns.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timer_slack: Option<Duration>,
    /// Most time under fifo and rr, where the kernel has RT_GROUP_SCHED.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub budget: Option<Budget>,
    /// How soon it is to be woken, 1ns to 2000s: idle states that take longer are kept out, and timer slack is 1ns.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub latency_target: Option<Duration>,
    /// Interrupts and its cores; `away` where `class` is given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub irqs: Option<Irqs>,
    /// Idle states of its cores.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub c_states: Option<CStates>,
    /// The clock of its cores.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub frequency: Option<Clock>,
    /// Huge pages that no other workload claims.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hugepages: Vec<HugePages>,
    /// Percent of each of its cores that fifo or rr must be able to have, 1 to 100.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub share: Option<u8>,
}

/// A scheduling policy as it is written. [`Scheduling::to_kernel`] gives the kernel's view of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scheduling {
    /// The policy.
    pub policy: Policy,
    /// fifo, rr: 1 to 99, required.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub priority: Option<i64>,
    /// other, batch: -20 to 19; 0 where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nice: Option<i64>,
    /// deadline: time it may run in each period, at least 1024 ns, required.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub runtime: Option<Duration>,
    /// deadline: when that time must have been had, from the start of the period; the period where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline: Option<Duration>,
    /// deadline: how often, required.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub period: Option<Duration>,
}

/// The kernel's scheduling policies, sched(7).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Policy {
    /// SCHED_OTHER.
    Other,
    /// SCHED_BATCH.
    Batch,
    /// SCHED_IDLE.
    Idle,
    /// SCHED_FIFO.
    Fifo,
    /// SCHED_RR.
    Rr,
    /// SCHED_DEADLINE.
    Deadline,
}

/// Time under a real-time policy in each period, of all threads of the workload together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Budget {
    /// Whole microseconds, at least 1us, at most the period.
    pub runtime: Duration,
    /// Whole microseconds, at least 1us.
    pub period: Duration,
}

/// What happens when a workload's process ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Restart {
    /// Whether it is started again.
    pub policy: RestartPolicy,
    /// Wait before that.
    pub delay: Duration,
    /// So many restarts in `window` before it is given up, at least 1.
    pub limit: u32,
    /// The time in which restarts are counted, more than 0.
    pub window: Duration,
}

impl Default for Restart {
    fn default() -> Self {
        Self {
            policy: RestartPolicy::Always,
            delay: Duration::from_secs(1),
            limit: 5,
            window: Duration::from_secs(60),
        }
    }
}

/// Whether a workload is started again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum RestartPolicy {
    /// However it ended.
    #[default]
    Always,
    /// When it ended with a code other than 0 or by a signal.
    OnFailure,
    /// Not at all.
    Never,
}

/// How a workload is asked to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Stop {
    /// Sent first.
    pub signal: Signal,
    /// Then so long until SIGKILL, at most 1h.
    pub grace: Duration,
}

impl Default for Stop {
    fn default() -> Self {
        Self {
            signal: Signal::TERM,
            grace: Duration::from_secs(10),
        }
    }
}

/// A workload's network.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Network {
    /// A namespace of its own with loopback only.
    #[default]
    None,
    /// The node's own.
    Host,
    /// A namespace of its own, with an interface of a network of the node's CNI plug-ins.
    Cni(Cni),
}

/// A network that the node's CNI plug-ins make.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cni {
    /// `name` in a .conflist of /etc/berth/cni or /etc/cni/net.d.
    pub network: String,
    /// Ports of the node that lead inside.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<Port>,
}

/// A port of the node that leads to one inside.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Port {
    /// Of the node, 1 to 65535.
    pub host: u16,
    /// Inside, 1 to 65535.
    pub container: u16,
    /// tcp where absent.
    #[serde(default)]
    pub protocol: Protocol,
    /// The node's address it is bound to; all where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<std::net::IpAddr>,
}

/// Of a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// TCP.
    #[default]
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

impl Protocol {
    /// As it is written.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
        }
    }
}

/// A host file or folder inside the container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Mount {
    /// On the host.
    pub source: AbsolutePath,
    /// Inside; not `/`, nor `/proc`, `/sys`, `/dev` or anything below them.
    pub destination: AbsolutePath,
    /// Whether writing is refused.
    #[serde(default)]
    pub read_only: bool,
    /// SELinux labels of the files: `private`, the container's own; `shared`, those that several containers write. Absent: they
    /// keep what they have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub relabel: Option<Relabel>,
}

/// Whose the files of a mount are, on a node with SELinux.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Relabel {
    /// The container's own, with its pair of categories; the next container of the workload labels them anew.
    Private,
    /// Those of several containers.
    Shared,
}

/// A secret: read by the launcher when a container is made, and by nobody else.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Secret {
    /// File name in /run/secrets: 1 to 64 letters, digits, `.`, `_` and `-`, no `.` first.
    pub name: String,
    /// A file of the node: of root's, readable by nobody else. This or `credential`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<AbsolutePath>,
    /// A systemd credential of the launcher's unit (LoadCredential=).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credential: Option<String>,
    /// File mode inside, octal; 0400 where absent.
    #[serde(default = "secret_mode")]
    pub mode: String,
    /// Owner inside; 0 where absent.
    #[serde(default)]
    pub uid: u32,
    /// Group inside; 0 where absent.
    #[serde(default)]
    pub gid: u32,
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

fn secret_mode() -> String {
    "0400".to_owned()
}

impl Secret {
    /// The mode as a number; `None`: the text is none from 0 to 0777.
    pub fn mode_bits(&self) -> Option<u32> {
        u32::from_str_radix(&self.mode, 8)
            .ok()
            .filter(|mode| *mode <= 0o777)
    }
}

fn pids<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u32>, D::Error> {
    const EXPECTED: &str = "a number of tasks, 1 to 4194304";
    struct PidsVisitor;
    impl Visitor<'_> for PidsVisitor {
        type Value = u32;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str(EXPECTED)
        }

        fn visit_u64<E: de::Error>(self, pids: u64) -> Result<u32, E> {
            let fits = u32::try_from(pids)
                .ok()
                .filter(|pids| (1..=PIDS_MAX).contains(pids));
            fits.ok_or_else(|| E::invalid_value(Unexpected::Unsigned(pids), &EXPECTED))
        }
    }
    deserializer.deserialize_u64(PidsVisitor).map(Some)
}

impl fmt::Display for CpuRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Shared => f.write_str("shared"),
            Self::Whole(cores) => write!(f, "{cores}"),
        }
    }
}

impl Serialize for CpuRequest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Shared => serializer.serialize_str("shared"),
            Self::Whole(cores) => serializer.serialize_u32(cores.get()),
        }
    }
}

impl<'de> Deserialize<'de> for CpuRequest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        const EXPECTED: &str = "a number of whole cores, 1 or more, or `shared`";
        struct CpuVisitor;
        impl Visitor<'_> for CpuVisitor {
            type Value = CpuRequest;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(EXPECTED)
            }

            fn visit_u64<E: de::Error>(self, cores: u64) -> Result<CpuRequest, E> {
                u32::try_from(cores)
                    .ok()
                    .and_then(NonZeroU32::new)
                    .map(CpuRequest::Whole)
                    .ok_or_else(|| E::invalid_value(Unexpected::Unsigned(cores), &EXPECTED))
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<CpuRequest, E> {
                match text {
                    "shared" => Ok(CpuRequest::Shared),
                    text => Err(E::invalid_value(Unexpected::Str(text), &EXPECTED)),
                }
            }
        }
        deserializer.deserialize_any(CpuVisitor)
    }
}
