//! OpenShift's `PerformanceProfile` (`performance.openshift.io/v2`) as it is, and the [`NodeSpec`] that means the same.
//!
//! The rules are those of the cluster node tuning operator: its validation, its tuned profile (openshift-node-performance
//! with its parts for Intel, AMD and arm64) and what that inherits from tuned's cpu-partitioning. What concerns Kubernetes
//! alone (node selectors, machine config pools, status) is read and has no meaning here.

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::cpu::CpuSet;
use crate::node::{
    CpuChoice, Frequencies, FrequencyOf, Hints, Hugepage, Hugepages, Interrupts, KernelWants, KiloHertz,
    MachineCheck, MemoryNoise, NetDevice, NodeCpus, NodeNetwork, NodeRealtime, NodeSpec, Numa, NumaPolicy,
    PageSize, Power, Priorities, Priority, Problem, Pstate, Queues, ResumeLatency, Seconds, Share,
    Transparent, Watchdogs, Workqueues,
};

/// The annotation that turns receive packet steering on.
const ENABLE_RPS: &str = "performance.openshift.io/enable-rps";

macro_rules! part {
    ($(#[$about:meta])* $name:ident { $($(#[$attribute:meta])* $field:ident: $type:ty,)* }) => {
        $(#[$about])*
        #[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
        #[serde(rename_all = "camelCase", default, deny_unknown_fields)]
        pub struct $name {
            $(#[doc = concat!("`", stringify!($field), "`")] $(#[$attribute])* pub $field: Option<$type>,)*
        }
    };
}

part! {
    /// `spec`.
    PerformanceProfileSpec {
        cpu: Cpu,
        hardware_tuning: HardwareTuning,
        hugepages: HugePages,
        machine_config_label: BTreeMap<String, String>,
        machine_config_pool_selector: BTreeMap<String, String>,
        node_selector: BTreeMap<String, String>,
        real_time_kernel: RealTimeKernel,
        kernel_page_size: PageSize,
        additional_kernel_args: Vec<String>,
        numa: NumaPart,
        net: Net,
        globally_disable_irq_load_balancing: bool,
        workload_hints: WorkloadHints,
    }
}

part! {
    /// `spec.cpu`.
    Cpu {
        reserved: CpuSet,
        isolated: CpuSet,
        balance_isolated: bool,
        offlined: CpuSet,
        shared: CpuSet,
        ovs_dpdk: CpuSet,
    }
}

part! {
    /// `spec.hardwareTuning`, kHz.
    HardwareTuning {
        isolated_cpu_freq: u64,
        reserved_cpu_freq: u64,
    }
}

part! {
    /// `spec.hugepages`.
    HugePages {
        default_hugepages_size: PageSize,
        pages: Vec<HugePage>,
    }
}

/// One entry of `spec.hugepages.pages`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HugePage {
    /// `size`
    pub size: PageSize,
    /// `count`
    #[serde(default)]
    pub count: u32,
    /// `node`
    #[serde(default)]
    pub node: Option<u32>,
}

part! {
    /// `spec.realTimeKernel`.
    RealTimeKernel { enabled: bool, }
}

part! {
    /// `spec.numa`.
    NumaPart { topology_policy: NumaPolicy, }
}

part! {
    /// `spec.net`.
    Net {
        user_level_networking: bool,
        devices: Vec<Device>,
    }
}

part! {
    /// One entry of `spec.net.devices`.
    Device {
        interface_name: String,
        #[serde(rename = "vendorID")]
        vendor_id: String,
        #[serde(rename = "deviceID")]
        device_id: String,
    }
}

part! {
    /// `spec.workloadHints`.
    WorkloadHints {
        high_power_consumption: bool,
        real_time: bool,
        per_pod_power_management: bool,
        mixed_cpus: bool,
    }
}

/// What is wrong with a profile's field.
fn problem(path: &str, message: impl Into<String>, hint: impl Into<String>) -> Problem {
    Problem {
        path: path.into(),
        message: message.into(),
        hint: Some(hint.into()),
    }
}

fn when<T>(on: bool, value: T) -> Option<T> {
    on.then_some(value)
}

/// The field of a PerformanceProfile that became this field of a [`NodeSpec`], for messages.
#[must_use]
pub fn field_of(path: &str) -> String {
    for (node, profile) in [
        ("spec.cpus.housekeeping", "spec.cpu.reserved"),
        ("spec.cpus.balance", "spec.cpu.balanceIsolated"),
        ("spec.cpus", "spec.cpu"),
        (
            "spec.hugepages.defaultSize",
            "spec.hugepages.defaultHugepagesSize",
        ),
        ("spec.kernel.pageSize", "spec.kernelPageSize"),
        ("spec.kernel.arguments", "spec.additionalKernelArgs"),
        ("spec.hints", "spec.workloadHints"),
        ("spec.realtime.kernel", "spec.realTimeKernel.enabled"),
        ("spec.frequency", "spec.hardwareTuning"),
        ("spec.network", "spec.net"),
        ("spec.numa.policy", "spec.numa.topologyPolicy"),
    ] {
        if let Some(rest) = path.strip_prefix(node) {
            return format!("{profile}{rest}");
        }
    }
    path.to_owned()
}

impl PerformanceProfileSpec {
    fn hint(&self, hint: impl Fn(&WorkloadHints) -> Option<bool>) -> Option<bool> {
        self.workload_hints.as_ref().and_then(hint)
    }

    fn realtime(&self) -> bool {
        self.hint(|hints| hints.real_time) != Some(false)
    }

    fn realtime_kernel(&self) -> Option<bool> {
        self.real_time_kernel.as_ref().and_then(|kernel| kernel.enabled)
    }

    /// What the operator would refuse, with the profile's own fields; what depends on the node comes from
    /// [`NodeSpec::validate`] of what it becomes.
    #[must_use]
    pub fn validate(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        let empty = Cpu::default();
        let cpu = self.cpu.as_ref().unwrap_or(&empty);
        for (field, cpus) in [("reserved", &cpu.reserved), ("isolated", &cpu.isolated)] {
            if cpus.as_ref().is_none_or(CpuSet::is_empty) {
                let path = format!("spec.cpu.{field}");
                problems.push(problem(&path, "no CPUs", "give a list such as 0-1"));
            }
        }
        if let Some(dpdk) = &cpu.ovs_dpdk {
            for (field, cpus) in [
                ("reserved", &cpu.reserved),
                ("isolated", &cpu.isolated),
                ("offlined", &cpu.offlined),
                ("shared", &cpu.shared),
            ] {
                let both = cpus
                    .as_ref()
                    .map(|cpus| cpus.intersection(dpdk))
                    .unwrap_or_default();
                if !both.is_empty() {
                    let message = format!("CPUs {both} are in spec.cpu.{field} too");
                    problems.push(problem("spec.cpu.ovsDpdk", message, "each CPU on one side"));
                }
            }
        }
        if let Some(pages) = &self.hugepages {
            if pages.default_hugepages_size.is_none()
                && pages.pages.as_ref().is_some_and(|pages| !pages.is_empty())
            {
                let hint = "give defaultHugepagesSize: without it the kernel's own default stays";
                problems.push(problem("spec.hugepages", "pages without a default size", hint));
            }
            let sizes = pages
                .default_hugepages_size
                .iter()
                .map(|size| (String::from("defaultHugepagesSize"), *size));
            let listed = pages.pages.iter().flatten().enumerate();
            let sizes: Vec<_> = sizes
                .chain(listed.map(|(index, page)| (format!("pages[{index}].size"), page.size)))
                .collect();
            let (base, allowed) = match self.kernel_page_size.map(PageSize::kib) {
                Some(64) => ("64k", [2 << 10, 512 << 10, 16 << 20, 0]),
                _ => ("4k", [64, 2 << 10, 32 << 10, 1 << 20]),
            };
            for (field, size) in sizes.iter().filter(|(_, size)| !allowed.contains(&size.kib())) {
                let names: Vec<String> = allowed
                    .iter()
                    .filter_map(|kib| PageSize::of_kib(*kib))
                    .map(|size| size.to_string())
                    .collect();
                let message = format!("no kernel with base pages of {base} has huge pages of {size}");
                problems.push(problem(
                    &format!("spec.hugepages.{field}"),
                    message,
                    format!("expected {}", names.join(", ")),
                ));
            }
        }
        match self.kernel_page_size.map(PageSize::kib) {
            None | Some(4) => {}
            Some(64) if self.realtime_kernel() == Some(true) => problems.push(problem(
                "spec.kernelPageSize",
                "64k, and a real-time kernel",
                "there is no such kernel: 4k, or no real-time kernel",
            )),
            Some(64) => {}
            Some(_) => problems.push(problem(
                "spec.kernelPageSize",
                "no such kernel",
                "expected 4k, or 64k on arm64",
            )),
        }
        if let Some(tuning) = &self.hardware_tuning {
            for (field, frequency) in [
                ("isolatedCpuFreq", tuning.isolated_cpu_freq),
                ("reservedCpuFreq", tuning.reserved_cpu_freq),
            ] {
                if frequency.and_then(KiloHertz::new).is_none() {
                    let message =
                        frequency.map_or("it is missing".into(), |frequency| format!("found {frequency}"));
                    let hint = "give both frequencies, in kHz, above 0";
                    problems.push(problem(&format!("spec.hardwareTuning.{field}"), message, hint));
                }
            }
        }
        problems
    }

    /// The node that means the same; `annotations` are the profile's.
    #[must_use]
    pub fn to_node(&self, annotations: &BTreeMap<String, String>) -> NodeSpec {
        let empty = Cpu::default();
        let cpu = self.cpu.as_ref().unwrap_or(&empty);
        let realtime = self.realtime();
        let per_pod = self.hint(|hints| hints.per_pod_power_management) == Some(true);
        let high_power = self.hint(|hints| hints.high_power_consumption) == Some(true);
        let reserved = cpu.reserved.clone().unwrap_or_default();
        let shared = cpu.shared.clone().unwrap_or_default();
        let dpdk = cpu.ovs_dpdk.clone().unwrap_or_default();
        let isolated = cpu.isolated.clone().unwrap_or_default().union(&dpdk);
        let eleven = Priority::try_from(11).ok();
        let seconds = |text: &str| text.parse::<Seconds>().ok();
        NodeSpec {
            realtime: NodeRealtime {
                budget: None,
                throttling: when(realtime, Share::Off),
                fair_server: None,
                preemption: None,
                timer_migration: Some(true),
                priorities: Priorities {
                    ksoftirqd: eleven,
                    rcuc: eleven,
                    ktimers: eleven,
                    irq_threads: None,
                    rcu: eleven.filter(|_| realtime),
                },
                kernel: self.realtime_kernel(),
            },
            hints: Hints {
                mixed_cpus: self.hint(|hints| hints.mixed_cpus),
                // These two are carried for their contradictions alone: what they fill is given below.
                high_power_consumption: when(high_power && per_pod, true),
                per_pod_power_management: when(high_power && per_pod, true),
                real_time: self.hint(|hints| hints.real_time).filter(|on| !on),
            },
            hugepages: self.pages(),
            frequency: self.frequencies(per_pod),
            power: Power {
                resume_latency: when(!per_pod, ResumeLatency::Us(3)),
                max_c_state: when(high_power, 1),
                poll: when(high_power && realtime, true),
                min_performance: when(!per_pod, 100),
            },
            interrupts: Interrupts {
                affinity: if !dpdk.is_empty() {
                    Some(CpuChoice::These(
                        isolated.union(&reserved).union(&shared).difference(&dpdk),
                    ))
                } else if self.globally_disable_irq_load_balancing == Some(true) {
                    Some(CpuChoice::Housekeeping)
                } else {
                    None
                },
                threaded: None,
            },
            numa: Numa {
                policy: self.numa.as_ref().and_then(|numa| numa.topology_policy),
            },
            network: self.network(annotations),
            memory: MemoryNoise {
                numa_balancing: Some(false),
                transparent_hugepages: Some(Transparent::Never),
                ksm: None,
                stat_interval: seconds("10s").filter(|_| realtime),
                swappiness: Some(10),
                dirty_ratio: Some(10),
                dirty_background_ratio: Some(3),
            },
            watchdogs: Watchdogs {
                nmi: when(realtime, false),
                soft: when(realtime, false),
                cpus: None,
                hung_task: seconds("600s").filter(|_| realtime),
            },
            workqueues: Workqueues {
                cpus: Some(CpuChoice::Housekeeping),
                writeback: Some(CpuChoice::Housekeeping),
                threads: Some(CpuChoice::Housekeeping),
            },
            machine_check: MachineCheck {
                enabled: when(realtime, false),
                ignore_corrected: Some(true),
            },
            kernel: KernelWants {
                arguments: {
                    let mask = format!("tuned.non_isolcpus={}", reserved.union(&shared).to_mask());
                    let given = self.additional_kernel_args.clone().unwrap_or_default();
                    given.into_iter().chain([mask]).collect()
                },
                page_size: self.kernel_page_size,
                iommu_passthrough: Some(true),
                trust_tsc: when(realtime, true),
            },
            cpus: NodeCpus {
                housekeeping: cpu.reserved.clone(),
                isolated: Some(isolated),
                shared: cpu.shared.clone(),
                offlined: cpu.offlined.clone(),
                balance: cpu.balance_isolated,
                sched_load_balance: None,
            },
        }
    }

    /// Pages of a node cannot be asked for at boot the operator's way; where 2M ones are, and the default is 1G, the kernel
    /// is made to have files for them.
    fn pages(&self) -> Hugepages {
        let Some(wanted) = &self.hugepages else {
            return Hugepages::default();
        };
        let two = PageSize::of_kib(2 << 10);
        let one_gib = PageSize::of_kib(1 << 20);
        let listed = wanted.pages.iter().flatten();
        let mut pages: Vec<Hugepage> = listed
            .map(|page| Hugepage {
                size: page.size,
                count: u64::from(page.count),
                node: page.node,
                boot: page.node.map(|_| false),
            })
            .collect();
        let of_two = |page: &&Hugepage| Some(page.size) == two;
        let without_node = pages.iter().filter(of_two).any(|page| page.node.is_none());
        if pages.iter().any(|page| of_two(&page)) && !without_node && wanted.default_hugepages_size == one_gib
        {
            pages.extend(two.map(|size| Hugepage {
                size,
                count: 0,
                node: None,
                boot: None,
            }));
        }
        Hugepages {
            default_size: wanted.default_hugepages_size,
            pages,
        }
    }

    fn frequencies(&self, per_pod: bool) -> Frequencies {
        let tuning = self.hardware_tuning.as_ref();
        let of = |max: Option<u64>| FrequencyOf {
            governor: (!per_pod).then(|| "performance".into()),
            min: None,
            max: max.and_then(KiloHertz::new),
            energy_preference: None,
            energy_bias: (!per_pod).then_some(0),
        };
        Frequencies {
            isolated: of(tuning.and_then(|tuning| tuning.isolated_cpu_freq)),
            housekeeping: of(tuning.and_then(|tuning| tuning.reserved_cpu_freq)),
            driver: Some(match (per_pod, tuning) {
                (true, _) => Pstate::Passive,
                (false, Some(_)) => Pstate::Active,
                (false, None) => Pstate::Recommended,
            }),
        }
    }

    fn network(&self, annotations: &BTreeMap<String, String>) -> NodeNetwork {
        let net = self.net.as_ref();
        let user_level = net.and_then(|net| net.user_level_networking) == Some(true);
        let devices = net.and_then(|net| net.devices.as_ref()).into_iter().flatten();
        let rps = annotations
            .get(ENABLE_RPS)
            .is_some_and(|value| value == "true" || value == "enable");
        NodeNetwork {
            rps: rps.then_some(CpuChoice::Housekeeping),
            queues: user_level.then_some(Queues::Housekeeping),
            devices: devices
                .map(|device| NetDevice {
                    interface: device.interface_name.clone(),
                    vendor: device.vendor_id.clone(),
                    device: device.device_id.clone(),
                })
                .collect(),
            busy_poll: (self.realtime_kernel() != Some(true)).then_some(50),
        }
    }
}
