//! Interrupts: which there are, whose they are, where they go (Documentation/core-api/irq/irq-affinity.rst).
//!
//! The kernel keeps *managed* interrupts of multi-queue devices where it put them (`EIO`), and answers `EPERM` or `ENOSPC`
//! for others that cannot move. `smp_affinity_list` is what was asked, `effective_affinity_list` where they go now: some
//! controllers move an interrupt only when it is raised the next time.

use crate::cpu::CpuSet;
use crate::machine::Machine;

/// Entries of `/proc/irq/N` that are no handler's name.
const FILES: [&str; 7] = [
    "affinity_hint",
    "effective_affinity",
    "effective_affinity_list",
    "node",
    "smp_affinity",
    "smp_affinity_list",
    "spurious",
];

/// Where an interrupt may go.
pub(super) fn path(irq: u32) -> String {
    format!("/proc/irq/{irq}/smp_affinity_list")
}

/// Where it goes; where it may go on a kernel that does not say.
pub(super) fn goes(machine: &Machine, irq: u32) -> Option<CpuSet> {
    let list =
        |name: &str| -> Option<CpuSet> { machine.read(&format!("/proc/irq/{irq}/{name}"))?.parse().ok() };
    list("effective_affinity_list").or_else(|| list("smp_affinity_list"))
}

/// `36 virtio1-req.0`: its number and who handles it.
pub(super) fn named(machine: &Machine, irq: u32) -> String {
    let names = machine.names(&format!("/proc/irq/{irq}"));
    let handlers: Vec<String> = names
        .into_iter()
        .filter(|name| !FILES.contains(&name.as_str()))
        .collect();
    match &handlers[..] {
        [] => irq.to_string(),
        handlers => format!("{irq} {}", handlers.join(",")),
    }
}

/// The numbers of the interrupts that a folder of /sys lists as its own.
pub(super) fn of(machine: &Machine, folder: &str) -> Vec<u32> {
    let several = machine.numbers(&format!("{folder}/msi_irqs"), "");
    if !several.is_empty() {
        return several;
    }
    let one = machine
        .read(&format!("{folder}/irq"))
        .and_then(|text| text.parse().ok());
    one.filter(|irq| *irq > 0).into_iter().collect()
}

/// The folder in /sys of what raises the interrupts of the device at `syspath`: it, or the nearest above it that has
/// some. None for a device on USB: its interrupts are its controller's, with all others there.
#[must_use]
pub fn controller(machine: &Machine, syspath: &str) -> Option<String> {
    let usb = |part: &str| {
        part.strip_prefix("usb")
            .is_some_and(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()))
    };
    if !syspath.starts_with("/sys/devices/") || syspath.split('/').any(usb) {
        return None;
    }
    let mut folder = syspath;
    while folder.len() > "/sys/devices".len() {
        if !of(machine, folder).is_empty() {
            return Some(folder.to_owned());
        }
        folder = folder.rsplit_once('/')?.0;
    }
    None
}

/// The process of an irqbalance that may move interrupts onto `cpus`: not where it is told to keep off them, by its
/// environment or, as it does by itself, by `isolcpus=` and `nohz_full=`.
#[must_use]
pub fn balancer(machine: &Machine, cpus: &CpuSet) -> Option<i32> {
    let list = |path: &str| -> CpuSet {
        let text = machine.read(path).unwrap_or_default();
        text.parse().unwrap_or_default()
    };
    let spared = list("/sys/devices/system/cpu/isolated").union(&list("/sys/devices/system/cpu/nohz_full"));
    let pids = machine.numbers("/proc", "").into_iter();
    for pid in pids.filter_map(|pid| i32::try_from(pid).ok()) {
        if machine.read(&format!("/proc/{pid}/comm")).as_deref() != Some("irqbalance") {
            continue;
        }
        let environment = machine.read(&format!("/proc/{pid}/environ")).unwrap_or_default();
        let told = environment.split('\0').find_map(|variable| {
            let (name, value) = variable.split_once('=')?;
            match name {
                "IRQBALANCE_BANNED_CPULIST" => value.parse().ok(),
                "IRQBALANCE_BANNED_CPUS" => CpuSet::from_mask(value),
                _ => None,
            }
        });
        // What it is told takes the place of what it does by itself.
        if !cpus.is_subset(&told.unwrap_or_else(|| spared.clone())) {
            return Some(pid);
        }
    }
    None
}
