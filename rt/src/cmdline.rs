//! The boot half of a node's tuning: which kernel arguments a [`NodeSpec`] means ([`arguments`]), which of them the running
//! kernel has ([`compare`], against `/proc/cmdline`), and how boot loaders take them ([mod@format]).
//!
//! The rules are those of OpenShift's node tuning operator and of the tuned profiles below it. Arguments that an
//! architecture does not read are left out there. Sources: Documentation/admin-guide/kernel-parameters.txt,
//! systemd(1), hugetlbpage.rst.

mod compare;
pub mod format;
#[cfg(test)]
mod tests;

use serde::Serialize;

use crate::cpu::CpuSet;
use crate::node::{NodeSpec, Pstate};

pub use compare::{Compared, InForce, compare, split};

/// What decides which arguments there are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Platform {
    /// Architecture of the kernel.
    pub arch: Arch,
    /// Maker of the processor.
    pub vendor: Vendor,
    /// `/sys/devices/cpu/caps/pmu_name`: the generation of an Intel processor.
    pub pmu_name: Option<String>,
    /// Whether the kernel is PREEMPT_RT.
    pub realtime: bool,
}

/// An architecture.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Arch {
    /// x86_64
    #[serde(rename = "x86_64")]
    X86,
    /// aarch64
    #[serde(rename = "aarch64")]
    Arm64,
    /// Any other.
    Other,
}

/// A maker of processors.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Vendor {
    /// GenuineIntel
    Intel,
    /// AuthenticAMD, HygonGenuine
    Amd,
    /// Any other.
    Other,
}

/// The CPUs of a node by their part.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Parts {
    /// Housekeeping and shared CPUs: where everything may run.
    pub housekeeping: CpuSet,
    /// Given away.
    pub isolated: CpuSet,
}

/// One kernel argument.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Argument {
    /// As it stands on the command line, without blanks.
    pub text: String,
    /// The knob it belongs to.
    pub knob: &'static str,
}

/// Intel generations before Ice Lake, for which tuned turns intel_pstate off: its active mode disturbs there.
const BEFORE_ICE_LAKE: [&str; 5] = ["sandybridge", "ivybridge", "haswell", "broadwell", "skylake"];

/// The arguments that `spec` means on this platform. `spec` is [effective](NodeSpec::effective); no CPU is isolated at boot
/// where `parts.isolated` is empty.
#[must_use]
pub fn arguments(spec: &NodeSpec, parts: &Parts, platform: &Platform) -> Vec<Argument> {
    let mut list = List(Vec::new());
    isolation(&mut list, spec, parts);
    let x86 = platform.arch == Arch::X86;
    if spec.kernel.iommu_passthrough == Some(true) && x86 {
        if platform.vendor == Vendor::Intel {
            list.add("iommu-passthrough", "intel_iommu=on");
        }
        list.add("iommu-passthrough", "iommu=pt");
    } else if spec.kernel.iommu_passthrough == Some(true) && platform.arch == Arch::Other {
        list.add("iommu-passthrough", "iommu=pt");
    }
    if spec.watchdogs.soft == Some(false) {
        list.add("soft-watchdog", "nosoftlockup");
    }
    if let Some(priority) = spec.realtime.priorities.rcu {
        list.add(
            "rcu-priority",
            &format!("rcutree.kthread_prio={}", priority.get()),
        );
    }
    if let Some(preemption) = spec.realtime.preemption.filter(|_| !platform.realtime) {
        list.add("preemption", &format!("preempt={}", preemption.as_str()));
    }
    if spec.interrupts.threaded == Some(true) && !platform.realtime {
        list.add("threaded-irqs", "threadirqs");
    }
    if x86 {
        only_x86(&mut list, spec, platform);
    }
    hugepages(&mut list, spec);
    for argument in &spec.kernel.arguments {
        list.add("kernel-arguments", argument);
    }
    list.0
}

struct List(Vec<Argument>);

impl List {
    /// One argument; given twice it stands once.
    fn add(&mut self, knob: &'static str, text: &str) {
        let repeats = text.starts_with("hugepages");
        if repeats || !self.0.iter().any(|argument| argument.text == text) {
            self.0.push(Argument {
                text: text.into(),
                knob,
            });
        }
    }
}

fn isolation(list: &mut List, spec: &NodeSpec, parts: &Parts) {
    let isolated = &parts.isolated;
    if isolated.is_empty() {
        return;
    }
    // systemd takes ranges too; single numbers are what OpenShift writes.
    let singles: Vec<String> = parts.housekeeping.iter().map(|cpu| cpu.to_string()).collect();
    list.add("nohz-full", "nohz=on");
    list.add("rcu-nocbs", &format!("rcu_nocbs={isolated}"));
    list.add(
        "system-affinity",
        &format!("systemd.cpu_affinity={}", singles.join(",")),
    );
    list.add("nohz-full", &format!("nohz_full={isolated}"));
    list.add("skew-tick", "skew_tick=1");
    let domain = if spec.cpus.balance == Some(false) {
        "domain,"
    } else {
        ""
    };
    list.add("isolcpus", &format!("isolcpus={domain}managed_irq,{isolated}"));
    let affinity = spec
        .interrupts
        .affinity
        .as_ref()
        .and_then(|choice| choice.limited(parts));
    if let Some(cpus) = affinity {
        list.add("irq-default-affinity", &format!("irqaffinity={cpus}"));
    }
}

fn only_x86(list: &mut List, spec: &NodeSpec, platform: &Platform) {
    if spec.kernel.trust_tsc == Some(true) {
        list.add("trust-tsc", "tsc=reliable");
    }
    if spec.watchdogs.nmi == Some(false) {
        list.add("nmi-watchdog", "nmi_watchdog=0");
    }
    if spec.machine_check.enabled == Some(false) {
        list.add("machine-check", "mce=off");
    }
    if let Some(state) = spec.power.max_c_state {
        list.add("max-c-state", &format!("processor.max_cstate={state}"));
        if platform.vendor == Vendor::Intel {
            // intel_idle counts its own states; with 0 the driver is off and ACPI's limit counts.
            let own = if state <= 1 { 0 } else { state };
            list.add("max-c-state", &format!("intel_idle.max_cstate={own}"));
        }
    }
    if spec.power.poll == Some(true) {
        list.add("idle-poll", "idle=poll");
    }
    let mode = match spec.frequency.driver {
        None => None,
        Some(Pstate::Recommended) => match platform.vendor {
            Vendor::Intel => {
                let name = platform.pmu_name.as_deref().unwrap_or_default();
                Some(if name.is_empty() || BEFORE_ICE_LAKE.contains(&name) {
                    "disable"
                } else {
                    "active"
                })
            }
            Vendor::Amd => Some("guided"),
            Vendor::Other => None,
        },
        Some(Pstate::Active) => Some("active"),
        Some(Pstate::Passive) => Some("passive"),
        Some(Pstate::Guided) => Some("guided"),
        Some(Pstate::Disable) => Some("disable"),
    };
    match (mode, platform.vendor) {
        (Some(mode), Vendor::Intel) => list.add("pstate-driver", &format!("intel_pstate={mode}")),
        (Some(mode), Vendor::Amd) => list.add("pstate-driver", &format!("amd_pstate={mode}")),
        _ => {}
    }
}

fn hugepages(list: &mut List, spec: &NodeSpec) {
    if let Some(size) = spec.hugepages.default_size {
        list.add("hugepage-default", &format!("default_hugepagesz={size}"));
    }
    let pages = || {
        spec.hugepages
            .pages
            .iter()
            .filter(|page| page.boot != Some(false))
    };
    let mut done = Vec::new();
    for page in pages() {
        if done.contains(&page.size) {
            continue;
        }
        done.push(page.size);
        let same = || pages().filter(|other| other.size == page.size);
        list.add("hugepages", &format!("hugepagesz={}", page.size));
        // A count without a node cannot stand beside counts of nodes: then the nodes' counts are for run time.
        let count = match same().find(|page| page.node.is_none()) {
            Some(all) => all.count.to_string(),
            None => same()
                .map(|page| format!("{}:{}", page.node.unwrap_or_default(), page.count))
                .collect::<Vec<_>>()
                .join(","),
        };
        list.add("hugepages", &format!("hugepages={count}"));
    }
}
