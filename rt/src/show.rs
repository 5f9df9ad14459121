//! What a node is, for `berth node show`: kernel, processor, caches, clocks, power, isolation, interrupts by core, memory.
//!
//! Read from `/sys` and `/proc` below the machine's root; what is absent is `None` or empty, never a guess.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::cmdline::{Platform, split};
use crate::cpu::CpuSet;
use crate::machine::{Machine, selected};
use crate::topology::Topology;

/// All of it.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Shown {
    /// The kernel.
    pub kernel: Kernel,
    /// The processors' maker and architecture.
    pub platform: Platform,
    /// `virtual machine: NAME`, the hypervisor's type; `None` where none shows itself.
    pub hypervisor: Option<String>,
    /// `on`, `off`, `notsupported`, …: SMT as `/sys/devices/system/cpu/smt/control` has it.
    pub smt: Option<String>,
    /// Each online CPU.
    pub cpus: Vec<CpuShown>,
    /// Each cache once, with the CPUs that share it.
    pub caches: Vec<Cache>,
    /// Each memory node.
    pub memory: Vec<Memory>,
    /// `tsc`, and what else could be chosen.
    pub clock_source: Option<String>,
    /// Other clock sources.
    pub clock_sources: Vec<String>,
    /// `intel_pstate`, `acpi-cpufreq`, …
    pub frequency_driver: Option<String>,
    /// `intel_idle`, `acpi_idle`, …, and its governor.
    pub idle_driver: Option<String>,
    /// The governor of idle states.
    pub idle_governor: Option<String>,
    /// Isolation.
    pub isolation: Isolation,
    /// Resources of `resctrl` (`L3`, `MB`, …); empty without it.
    pub resctrl: Vec<String>,
}

/// The kernel.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Kernel {
    /// `uname -r`.
    pub release: String,
    /// PREEMPT_RT.
    pub realtime: bool,
    /// The model in force: `PREEMPT_RT`, `full`, `voluntary`, …; `None` where nothing tells.
    pub preemption: Option<String>,
    /// Ticks a second of an awake CPU, from the configuration.
    pub hz: Option<String>,
    /// Lockdown; `None` without it.
    pub lockdown: Option<String>,
    /// How it was booted.
    pub command_line: String,
    /// The clock in which a timer can be set (`hres_active` of /proc/timer_list).
    pub high_resolution: Option<bool>,
}

/// One CPU.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct CpuShown {
    /// Its number.
    pub cpu: u32,
    /// Of 1024; differs between big and LITTLE cores.
    pub capacity: Option<u32>,
    /// The governor of its frequency.
    pub governor: Option<String>,
    /// kHz that it may have at least and at most.
    pub frequency_khz: Option<(u64, u64)>,
    /// Idle states with their exit latency in us; those that are disabled have a `!` in front.
    pub idle_states: Vec<String>,
    /// Interrupts (numbers) whose effective affinity has it.
    pub interrupts: Vec<u32>,
    /// How many interrupts it has had since boot, timers and others of its own included.
    pub interrupts_handled: Option<u64>,
}

/// One cache.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Cache {
    /// 1 is nearest.
    pub level: u32,
    /// `Data`, `Instruction` or `Unified`.
    pub kind: String,
    /// As the kernel writes it, `48K`.
    pub size: String,
    /// Who shares it.
    pub cpus: String,
}

/// One memory node.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Memory {
    /// Its number.
    pub node: u32,
    /// Its CPUs.
    pub cpus: String,
    /// KiB.
    pub total_kib: Option<u64>,
    /// KiB.
    pub free_kib: Option<u64>,
    /// Distance to each node.
    pub distance: String,
    /// Huge pages by size: how many there are, and how many are free.
    pub hugepages: BTreeMap<String, (u64, u64)>,
}

/// What keeps others off cores.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Isolation {
    /// `/sys/devices/system/cpu/isolated`.
    pub isolated: String,
    /// `/sys/devices/system/cpu/nohz_full`.
    pub nohz_full: String,
    /// `rcu_nocbs=` of the command line.
    pub rcu_nocbs: Option<String>,
    /// Isolated partitions of cgroup v2 (`cpuset.cpus.isolated` of the root).
    pub partitions: Option<String>,
    /// Where interrupts of new devices go.
    pub default_interrupts: Option<String>,
    /// Where unbound work runs.
    pub workqueues: Option<String>,
    /// `-1` is no throttling.
    pub rt_runtime_us: Option<String>,
}

const CPU: &str = "/sys/devices/system/cpu";

/// Reads all of it.
#[must_use]
pub fn show(machine: &Machine, topology: &Topology) -> Shown {
    let clock = "/sys/devices/system/clocksource/clocksource0";
    let words = |path: &str| -> Vec<String> {
        let text = machine.read(path).unwrap_or_default();
        text.split_whitespace().map(str::to_owned).collect()
    };
    Shown {
        kernel: kernel(machine),
        platform: machine.platform(),
        hypervisor: hypervisor(machine),
        smt: machine.read(&format!("{CPU}/smt/control")),
        cpus: cpus(machine, &topology.online()),
        caches: caches(machine, &topology.online()),
        memory: topology
            .nodes
            .iter()
            .map(|node| memory(machine, node.id, &node.cpus))
            .collect(),
        clock_source: machine.read(&format!("{clock}/current_clocksource")),
        clock_sources: words(&format!("{clock}/available_clocksource")),
        frequency_driver: machine
            .numbers(&format!("{CPU}/cpufreq"), "policy")
            .first()
            .and_then(|policy| machine.read(&format!("{CPU}/cpufreq/policy{policy}/scaling_driver"))),
        idle_driver: machine.read(&format!("{CPU}/cpuidle/current_driver")),
        idle_governor: machine
            .read(&format!("{CPU}/cpuidle/current_governor"))
            .or_else(|| machine.read(&format!("{CPU}/cpuidle/current_governor_ro"))),
        isolation: isolation(machine, topology),
        resctrl: {
            let mut names = machine.names("/sys/fs/resctrl/info");
            names.retain(|name| name != "last_cmd_status");
            names.sort();
            names
        },
    }
}

fn kernel(machine: &Machine) -> Kernel {
    let realtime = machine.realtime();
    let debug = machine
        .read("/sys/kernel/debug/sched/preempt")
        .and_then(|text| selected(&text));
    let built = || {
        ["PREEMPT_NONE", "PREEMPT_VOLUNTARY", "PREEMPT_LAZY", "PREEMPT"]
            .into_iter()
            .find(|name| machine.option(&format!("CONFIG_{name}")) == Some("y"))
            .map(|name| format!("{name} (as built)"))
    };
    let timers = machine.read("/proc/timer_list");
    Kernel {
        release: machine.release(),
        realtime,
        preemption: match (realtime, debug) {
            (true, Some(mode)) => Some(format!("PREEMPT_RT, {mode}")),
            (true, None) => Some("PREEMPT_RT".into()),
            (false, Some(mode)) => Some(mode),
            (false, None) => built(),
        },
        hz: machine
            .option("CONFIG_HZ")
            .filter(|hz| *hz != "n")
            .map(str::to_owned),
        lockdown: machine.lockdown(),
        command_line: machine.command_line(),
        high_resolution: timers.and_then(|text| {
            let line = text
                .lines()
                .find(|line| line.trim_start().starts_with(".hres_active"))?;
            Some(line.contains(": 1"))
        }),
    }
}

fn hypervisor(machine: &Machine) -> Option<String> {
    let kind = machine.read("/sys/hypervisor/type");
    let info = machine.read("/proc/cpuinfo").unwrap_or_default();
    let flagged = info
        .lines()
        .find(|line| line.starts_with("flags"))
        .is_some_and(|line| line.split(' ').any(|flag| flag == "hypervisor"));
    let maker = machine.read("/sys/class/dmi/id/sys_vendor");
    let product = machine.read("/sys/class/dmi/id/product_name");
    let compatible = machine.read("/proc/device-tree/hypervisor/compatible");
    let known = [
        "QEMU",
        "VMware",
        "KVM",
        "Bochs",
        "VirtualBox",
        "Virtual Machine",
        "Amazon EC2",
        "Google",
    ];
    let named = [&maker, &product]
        .into_iter()
        .flatten()
        .find(|text| known.iter().any(|name| text.contains(name)));
    let device_tree = compatible.map(|text| text.trim_end_matches('\0').to_owned());
    match (kind.or(device_tree), named, flagged) {
        (Some(kind), _, _) => Some(kind),
        (None, Some(name), _) => Some(name.clone()),
        (None, None, true) => Some("unnamed".into()),
        (None, None, false) => None,
    }
}

fn cpus(machine: &Machine, online: &CpuSet) -> Vec<CpuShown> {
    let handled = handled(machine);
    let mut of: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
    for irq in machine.numbers("/proc/irq", "") {
        let list = machine.read(&format!("/proc/irq/{irq}/effective_affinity_list"));
        let list = list.or_else(|| machine.read(&format!("/proc/irq/{irq}/smp_affinity_list")));
        for cpu in list
            .and_then(|list| list.parse::<CpuSet>().ok())
            .unwrap_or_default()
            .iter()
        {
            of.entry(cpu).or_default().push(irq);
        }
    }
    let policies: BTreeMap<u32, u32> = machine
        .numbers(&format!("{CPU}/cpufreq"), "policy")
        .into_iter()
        .flat_map(|policy| {
            let list = machine.read(&format!("{CPU}/cpufreq/policy{policy}/affected_cpus"));
            let list = list.unwrap_or_else(|| policy.to_string());
            let members: Vec<u32> = list.split(' ').filter_map(|cpu| cpu.parse().ok()).collect();
            members.into_iter().map(move |cpu| (cpu, policy))
        })
        .collect();
    online
        .iter()
        .map(|cpu| {
            let base = format!("{CPU}/cpu{cpu}");
            let policy = policies
                .get(&cpu)
                .map(|policy| format!("{CPU}/cpufreq/policy{policy}"));
            let of_policy = |file: &str| machine.read(&format!("{}/{file}", policy.as_ref()?));
            let khz = |file: &str| of_policy(file)?.parse::<u64>().ok();
            CpuShown {
                cpu,
                capacity: machine
                    .read(&format!("{base}/cpu_capacity"))
                    .and_then(|text| text.parse().ok()),
                governor: of_policy("scaling_governor"),
                frequency_khz: khz("scaling_min_freq").zip(khz("scaling_max_freq")),
                idle_states: idle_states(machine, &base),
                interrupts: of.remove(&cpu).unwrap_or_default(),
                interrupts_handled: handled.get(&cpu).copied(),
            }
        })
        .collect()
}

fn idle_states(machine: &Machine, base: &str) -> Vec<String> {
    let states = machine.numbers(&format!("{base}/cpuidle"), "state").into_iter();
    states
        .filter_map(|state| {
            let of = |file: &str| machine.read(&format!("{base}/cpuidle/state{state}/{file}"));
            let off = if of("disable").as_deref() == Some("1") {
                "!"
            } else {
                ""
            };
            Some(format!("{off}{} {}us", of("name")?, of("latency")?))
        })
        .collect()
}

/// The sum of each column of /proc/interrupts.
fn handled(machine: &Machine) -> BTreeMap<u32, u64> {
    let text = machine.read("/proc/interrupts").unwrap_or_default();
    let mut lines = text.lines();
    let columns: Vec<u32> = lines
        .next()
        .unwrap_or_default()
        .split_whitespace()
        .filter_map(|name| name.strip_prefix("CPU")?.parse().ok())
        .collect();
    let mut sums: BTreeMap<u32, u64> = columns.iter().map(|cpu| (*cpu, 0)).collect();
    for line in lines {
        let Some((_, counts)) = line.split_once(':') else {
            continue;
        };
        for (cpu, count) in columns.iter().zip(counts.split_whitespace()) {
            // ERR and MIS have one number only, and no CPU.
            let Ok(count) = count.parse::<u64>() else { break };
            *sums.entry(*cpu).or_default() += count;
        }
    }
    sums
}

fn caches(machine: &Machine, online: &CpuSet) -> Vec<Cache> {
    let mut caches = Vec::new();
    for cpu in online.iter() {
        let base = format!("{CPU}/cpu{cpu}/cache");
        for index in machine.numbers(&base, "index") {
            let of = |file: &str| machine.read(&format!("{base}/index{index}/{file}"));
            let (Some(level), Some(kind)) = (of("level").and_then(|text| text.parse().ok()), of("type"))
            else {
                continue;
            };
            let cache = Cache {
                level,
                kind,
                size: of("size").unwrap_or_default(),
                cpus: of("shared_cpu_list").unwrap_or_else(|| cpu.to_string()),
            };
            if !caches.contains(&cache) {
                caches.push(cache);
            }
        }
    }
    caches.sort();
    caches
}

fn memory(machine: &Machine, node: u32, cpus: &CpuSet) -> Memory {
    let base = format!("/sys/devices/system/node/node{node}");
    // Without NUMA there is no folder of nodes: then the whole machine is node 0.
    let info = machine
        .read(&format!("{base}/meminfo"))
        .or_else(|| machine.read("/proc/meminfo"));
    let info = info.unwrap_or_default();
    let kib = |key: &str| {
        let line = info.lines().find(|line| line.contains(key))?;
        line.split_whitespace().rev().nth(1)?.parse().ok()
    };
    let pages = match machine.there(&format!("{base}/hugepages")) {
        true => format!("{base}/hugepages"),
        false => "/sys/kernel/mm/hugepages".into(),
    };
    let hugepages = machine
        .numbers_between(&pages, "hugepages-", "kB")
        .into_iter()
        .filter_map(|size| {
            let of = |file: &str| {
                machine
                    .read(&format!("{pages}/hugepages-{size}kB/{file}"))?
                    .parse::<u64>()
                    .ok()
            };
            let name =
                crate::node::PageSize::of_kib(size).map_or(format!("{size}kB"), |size| size.to_string());
            Some((name, (of("nr_hugepages")?, of("free_hugepages").unwrap_or(0))))
        })
        .collect();
    Memory {
        node,
        cpus: cpus.to_string(),
        total_kib: kib("MemTotal:"),
        free_kib: kib("MemFree:"),
        distance: machine.read(&format!("{base}/distance")).unwrap_or_default(),
        hugepages,
    }
}

fn isolation(machine: &Machine, topology: &Topology) -> Isolation {
    let mask = |path: &str| Some(CpuSet::from_mask(&machine.read(path)?)?.to_string());
    Isolation {
        isolated: topology.isolated.to_string(),
        nohz_full: topology.nohz_full.to_string(),
        rcu_nocbs: split(&machine.command_line())
            .iter()
            .find_map(|word| word.strip_prefix("rcu_nocbs=").map(str::to_owned)),
        partitions: machine.read("/sys/fs/cgroup/cpuset.cpus.isolated"),
        default_interrupts: mask("/proc/irq/default_smp_affinity"),
        workqueues: mask("/sys/devices/virtual/workqueue/cpumask"),
        rt_runtime_us: machine.read("/proc/sys/kernel/sched_rt_runtime_us"),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn this_machine_is_shown() {
        let machine = Machine::new(Path::new("/"));
        let topology = machine.topology().unwrap();
        let shown = show(&machine, &topology);
        assert_eq!(shown.cpus.len(), topology.online().len());
        assert!(!shown.kernel.release.is_empty() && !shown.memory.is_empty());
        assert!(
            shown.cpus.iter().all(|cpu| cpu.interrupts_handled.is_some()),
            "{:?}",
            shown.cpus
        );
        assert!(shown.memory[0].total_kib.is_some_and(|kib| kib > 1000));
    }
}
