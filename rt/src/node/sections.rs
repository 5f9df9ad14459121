//! The parts of a `Node` document's `spec`, as they are written. A field that is not given is left alone, unless one of
//! the [`Hints`] fills it ([`super::NodeSpec::effective`]).

use serde::{Deserialize, Serialize};

use super::values::{
    CpuChoice, KiloHertz, PageSize, PerSecond, Priority, Queues, ResumeLatency, Seconds, Share,
};
use crate::cpu::CpuSet;

/// A struct of a document: strict, camelCase, every field optional and left out where it says nothing.
macro_rules! section {
    ($(#[$about:meta])* $name:ident { $($(#[$field_about:meta])* $field:ident: $type:ty,)* }) => {
        $(#[$about])*
        #[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
        #[serde(rename_all = "camelCase", default, deny_unknown_fields)]
        pub struct $name {
            $(
                $(#[$field_about])*
                #[serde(skip_serializing_if = "Option::is_none")]
                pub $field: Option<$type>,
            )*
        }

        impl $name {
            /// Whether nothing is said.
            #[must_use]
            pub fn is_empty(&self) -> bool {
                *self == $name::default()
            }

            /// What is not given here is `other`'s.
            #[must_use]
            pub fn or(self, other: $name) -> $name {
                $name { $($field: self.$field.or(other.$field),)* }
            }
        }
    };
}

/// `spec.cpus` of a node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct NodeCpus {
    /// Where everything runs that is not given a core; `reserved` is another name for it.
    #[serde(skip_serializing_if = "Option::is_none", alias = "reserved")]
    pub housekeeping: Option<CpuSet>,
    /// The CPUs that are given away as whole cores.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub isolated: Option<CpuSet>,
    /// CPUs that workloads with cores of their own share for their work without real time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shared: Option<CpuSet>,
    /// CPUs that are taken off line.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub offlined: Option<CpuSet>,
    /// False: `isolcpus=domain`, the scheduler never balances over the isolated CPUs, from boot to the end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub balance: Option<bool>,
    /// False: consent that `tune` takes `cpuset.sched_load_balance` off the root cpuset of cgroup v1 and moves every process
    /// that is in it into a cpuset of the CPUs that are not isolated.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sched_load_balance: Option<bool>,
}

/// `spec.realtime` of a node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct NodeRealtime {
    /// Real-time budget of all workloads together; what the kernel has when not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub budget: Option<PerSecond>,
    /// Of each second, what real-time threads of a CPU may have (`kernel.sched_rt_runtime_us`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub throttling: Option<Share>,
    /// Of each second, what threads without a real-time policy are guaranteed on an isolated CPU (6.12 and later).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fair_server: Option<Share>,
    /// The preemption model of a kernel that can choose.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub preemption: Option<Preemption>,
    /// Whether timers may move to other CPUs (`kernel.timer_migration`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timer_migration: Option<bool>,
    /// Priorities of the kernel's own threads.
    #[serde(skip_serializing_if = "Priorities::is_empty")]
    pub priorities: Priorities,
    /// True: the kernel must be PREEMPT_RT.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kernel: Option<bool>,
}

/// `preempt=` of a kernel with PREEMPT_DYNAMIC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Preemption {
    /// At explicit points only.
    None,
    /// At more explicit points.
    Voluntary,
    /// Almost everywhere, threads without real time later (6.13 and later).
    Lazy,
    /// Almost everywhere.
    Full,
}

impl Preemption {
    /// As the kernel writes it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Preemption::None => "none",
            Preemption::Voluntary => "voluntary",
            Preemption::Lazy => "lazy",
            Preemption::Full => "full",
        }
    }
}

section! {
    /// `spec.realtime.priorities`: SCHED_FIFO priorities of kernel threads.
    Priorities {
        /// `ksoftirqd/N`.
        ksoftirqd: Priority,
        /// `rcuc/N`, at run time.
        rcuc: Priority,
        /// `ktimers/N` (PREEMPT_RT).
        ktimers: Priority,
        /// `irq/N-…`.
        irq_threads: Priority,
        /// `rcutree.kthread_prio`: RCU's own threads from boot on.
        rcu: Priority,
    }
}

section! {
    /// `spec.hints`: each fills the fields that are not given.
    Hints {
        /// The isolated CPUs are for real time.
        real_time: bool,
        /// Latency before power: no deep idle state.
        high_power_consumption: bool,
        /// Workloads choose governor and idle states themselves: the node sets neither.
        per_pod_power_management: bool,
        /// Workloads with cores of their own may use `cpus.shared` too.
        mixed_cpus: bool,
    }
}

/// `spec.hugepages`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct Hugepages {
    /// The size that is used where none is asked for (`default_hugepagesz=`, boot only).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub default_size: Option<PageSize>,
    /// How many of which size.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub pages: Vec<Hugepage>,
}

impl Hugepages {
    /// Whether nothing is said.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Hugepages::default()
    }
}

/// One entry of `spec.hugepages.pages`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Hugepage {
    /// Their size.
    pub size: PageSize,
    /// How many; exactly so many, no more.
    pub count: u64,
    /// The memory node; without it the kernel spreads them over all nodes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<u32>,
    /// False: at run time only, not on the kernel's command line.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boot: Option<bool>,
}

/// `spec.frequency`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct Frequencies {
    /// Of the isolated CPUs.
    #[serde(skip_serializing_if = "FrequencyOf::is_empty")]
    pub isolated: FrequencyOf,
    /// Of the housekeeping CPUs, and of the shared ones; `reserved` is another name for it.
    #[serde(skip_serializing_if = "FrequencyOf::is_empty", alias = "reserved")]
    pub housekeeping: FrequencyOf,
    /// The mode of the frequency driver (`intel_pstate=`, `amd_pstate=`; boot only).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub driver: Option<Pstate>,
}

impl Frequencies {
    /// Whether nothing is said.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Frequencies::default()
    }
}

section! {
    /// `spec.frequency.isolated` and `.housekeeping`.
    FrequencyOf {
        /// `scaling_governor`.
        governor: String,
        /// `scaling_min_freq`.
        min: KiloHertz,
        /// `scaling_max_freq`.
        max: KiloHertz,
        /// `energy_performance_preference` of a policy.
        energy_preference: String,
        /// `power/energy_perf_bias` of a CPU, 0 (performance) to 15 (power saving).
        energy_bias: u8,
    }
}

/// Mode of intel_pstate and amd_pstate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Pstate {
    /// What the processor's maker recommends: Intel `active` since Ice Lake and `disable` before, AMD `guided`.
    Recommended,
    /// The hardware decides within limits.
    Active,
    /// A governor decides.
    Passive,
    /// A governor gives the limits (AMD).
    Guided,
    /// The driver is not used.
    Disable,
}

section! {
    /// `spec.power`.
    Power {
        /// Longest exit from idle of the isolated CPUs (`power/pm_qos_resume_latency_us`).
        resume_latency: ResumeLatency,
        /// The deepest idle state from boot on (`processor.max_cstate=`, `intel_idle.max_cstate=`).
        max_c_state: u8,
        /// Idle CPUs spin (`idle=poll`).
        poll: bool,
        /// Lowest performance in percent (`intel_pstate/min_perf_pct`).
        min_performance: u8,
    }
}

section! {
    /// `spec.interrupts`.
    Interrupts {
        /// The CPUs that interrupts may use.
        affinity: CpuChoice,
        /// `threadirqs` on a kernel without PREEMPT_RT.
        threaded: bool,
    }
}

section! {
    /// `spec.numa`.
    Numa {
        /// How strictly a workload's cores, memory and devices come from one node.
        policy: NumaPolicy,
    }
}

/// `spec.numa.policy`, named as Kubernetes' topology manager names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NumaPolicy {
    /// No preference.
    None,
    /// One node where that can be.
    BestEffort,
    /// As few nodes as can be, else refused.
    Restricted,
    /// One node, else refused.
    SingleNumaNode,
}

/// `spec.network`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct NodeNetwork {
    /// The CPUs that receive packet steering may use (`rps_cpus`, `net.core.rps_default_mask`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rps: Option<CpuChoice>,
    /// How many combined queues interfaces have.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub queues: Option<Queues>,
    /// The interfaces that `queues` means; without them all physical ones.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub devices: Vec<NetDevice>,
    /// Microseconds of `net.core.busy_read` and `net.core.busy_poll`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub busy_poll: Option<u32>,
}

impl NodeNetwork {
    /// Whether nothing is said.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == NodeNetwork::default()
    }
}

section! {
    /// One entry of `spec.network.devices`; all that is said must hold.
    NetDevice {
        /// A name with `*`; `!` in front: every other.
        interface: String,
        /// PCI vendor, `0x8086`.
        vendor: String,
        /// PCI device, `0x1572`.
        device: String,
    }
}

section! {
    /// `spec.memory`.
    MemoryNoise {
        /// `kernel.numa_balancing`.
        numa_balancing: bool,
        /// `transparent_hugepage/enabled`.
        transparent_hugepages: Transparent,
        /// `ksm/run`.
        ksm: bool,
        /// `vm.stat_interval`.
        stat_interval: Seconds,
        /// `vm.swappiness`, 0 to 200.
        swappiness: u8,
        /// `vm.dirty_ratio`, percent.
        dirty_ratio: u8,
        /// `vm.dirty_background_ratio`, percent.
        dirty_background_ratio: u8,
    }
}

/// `transparent_hugepage/enabled`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Transparent {
    /// Wherever it can be.
    Always,
    /// Where a program asks.
    Madvise,
    /// Nowhere.
    Never,
}

impl Transparent {
    /// As the kernel writes it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Transparent::Always => "always",
            Transparent::Madvise => "madvise",
            Transparent::Never => "never",
        }
    }
}

section! {
    /// `spec.watchdogs`: the kernel's own lockup detectors.
    Watchdogs {
        /// `kernel.nmi_watchdog`.
        nmi: bool,
        /// `kernel.soft_watchdog`.
        soft: bool,
        /// `kernel.watchdog_cpumask`.
        cpus: CpuChoice,
        /// `kernel.hung_task_timeout_secs`.
        hung_task: Seconds,
    }
}

section! {
    /// `spec.workqueues`.
    Workqueues {
        /// Where unbound work runs (`/sys/devices/virtual/workqueue/cpumask`).
        cpus: CpuChoice,
        /// Where dirty pages are written back (`/sys/bus/workqueue/devices/writeback/cpumask`).
        writeback: CpuChoice,
        /// Where the kernel's threads run that are not bound to a CPU.
        threads: CpuChoice,
    }
}

section! {
    /// `spec.machineCheck` (x86).
    MachineCheck {
        /// False: `mce=off`, no machine check is handled at all.
        enabled: bool,
        /// Corrected errors are not polled for (`machinecheckN/ignore_ce`).
        ignore_corrected: bool,
    }
}

/// `spec.kernel`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct KernelWants {
    /// More kernel arguments, one an entry, as they are.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub arguments: Vec<String>,
    /// Size of the kernel's base page (64k on arm64 only).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub page_size: Option<PageSize>,
    /// True: devices reach memory without translation (`iommu=pt`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub iommu_passthrough: Option<bool>,
    /// True: the kernel does not watch the TSC (`tsc=reliable`, x86).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trust_tsc: Option<bool>,
}

impl KernelWants {
    /// Whether nothing is said.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == KernelWants::default()
    }
}
