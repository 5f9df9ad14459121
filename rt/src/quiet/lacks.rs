//! What of a wish this node cannot give, and why. Reads, never writes.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::want::{CPU, clock, domains, resume_path};
use super::{Claim, Huge, Irqs, Reading, Wish, irq, share};
use crate::cpu::CpuSet;
use crate::machine::Machine;

/// Something this node lacks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Lack {
    /// What.
    pub name: String,
    /// What is there instead.
    pub why: String,
    /// What helps.
    pub hint: String,
    /// Where it was looked for.
    pub source: String,
}

fn lack(name: &str, source: &str, why: String, hint: &str) -> Lack {
    Lack {
        name: name.into(),
        why,
        hint: hint.into(),
        source: source.into(),
    }
}

/// The wish without what this node lacks, and that.
pub(super) fn split(machine: &Machine, wish: &Wish, others: &BTreeMap<String, Claim>) -> (Wish, Vec<Lack>) {
    let mut kept = wish.clone();
    let mut lacks = Vec::new();
    if wish.resume.is_some()
        && let Some(cpu) = wish.cpus.iter().find(|cpu| !machine.there(&resume_path(*cpu)))
    {
        let why = format!("CPU {cpu} has no power/pm_qos_resume_latency_us");
        let hint = "take a kernel with CONFIG_PM and CONFIG_CPU_IDLE";
        lacks.push(lack("idle states", &resume_path(cpu), why, hint));
        kept.resume = None;
    }
    if let Some(missing) = frequency(machine, wish) {
        lacks.push(missing);
        (kept.governor, kept.min_khz, kept.max_khz) = (None, None, None);
    }
    if wish.irqs != Irqs::Leave {
        if !machine.there("/proc/irq") {
            let why = "this kernel has no /proc/irq".to_owned();
            lacks.push(lack(
                "interrupts",
                "/proc/irq",
                why,
                "take a kernel with CONFIG_SMP",
            ));
            kept.irqs = Irqs::Leave;
        } else if let Some(pid) = irq::balancer(machine, &wish.spared(machine)) {
            let why = format!(
                "irqbalance (process {pid}) moves interrupts back onto CPUs {}",
                wish.spared(machine)
            );
            let hint = "stop irqbalance, or name these CPUs in its IRQBALANCE_BANNED_CPULIST";
            lacks.push(lack("irqbalance", &format!("/proc/{pid}/environ"), why, hint));
        }
    }
    kept.hugepages.retain(|huge| {
        let reading = pages(machine, "", wish, *huge, others);
        if !reading.holds {
            lacks.push(lack(
                &reading.name,
                &reading.source,
                format!("{} asked for, {}", huge.count, reading.actual),
                "raise spec.hugepages.pages of the Node document and run berth node tune, or ask for fewer",
            ));
        }
        reading.holds
    });
    if let Some(missing) = share::lack(machine, wish) {
        lacks.push(missing);
        kept.share = None;
    }
    (kept, lacks)
}

fn frequency(machine: &Machine, wish: &Wish) -> Option<Lack> {
    if wish.governor.is_none() && wish.min_khz.is_none() && wish.max_khz.is_none() {
        return None;
    }
    let no = |source: &str, why: String, hint: &str| Some(lack("frequency", source, why, hint));
    let domains = domains(machine, &wish.cpus);
    let covered = domains
        .iter()
        .fold(CpuSet::new(), |sum, (_, cpus)| sum.union(cpus));
    if !wish.cpus.is_subset(&covered) {
        let why = format!("no cpufreq driver has CPUs {}", wish.cpus.difference(&covered));
        let hint = "firmware or hypervisor decides the clock: leave `frequency` out";
        return no(&format!("{CPU}/cpufreq"), why, hint);
    }
    for (folder, cpus) in &domains {
        if !cpus.is_subset(&wish.cpus) {
            let why = format!("CPUs {cpus} have one clock, and the workload's are {}", wish.cpus);
            let hint = "set the clock for all of them by spec.frequency of the Node document";
            return no(&format!("{folder}/related_cpus"), why, hint);
        }
        let read = |name: &str| machine.read(&format!("{folder}/{name}"));
        if let (Some(governor), Some(there)) = (&wish.governor, read("scaling_available_governors"))
            && !there.split_whitespace().any(|name| name == governor)
        {
            let why = format!("there is no governor {governor}: {there}");
            return no(
                &format!("{folder}/scaling_available_governors"),
                why,
                "name one of those",
            );
        }
        let bound = |name: &str| read(name).and_then(|text| text.parse::<u64>().ok());
        let (least, most) = (bound("cpuinfo_min_freq"), bound("cpuinfo_max_freq"));
        for khz in [wish.min_khz, wish.max_khz].into_iter().flatten() {
            if least.is_some_and(|least| khz < least) || most.is_some_and(|most| khz > most) {
                let (least, most) = (least.unwrap_or(0), most.unwrap_or(u64::MAX));
                let why = format!("{khz} kHz is not within {least} and {most} kHz");
                return no(
                    &format!("{folder}/cpuinfo_max_freq"),
                    why,
                    "ask for a clock within these",
                );
            }
        }
        if let Some((path, ..)) = clock(wish, folder)
            .into_iter()
            .find(|(path, ..)| !machine.there(path))
        {
            let why = format!("{path} is not there");
            return no(&path, why, "this driver does not let it be set: leave it out");
        }
    }
    None
}

/// Pages of a size on the nodes of `wish` that no other claims.
pub(super) fn pages(
    machine: &Machine,
    id: &str,
    wish: &Wish,
    huge: Huge,
    claims: &BTreeMap<String, Claim>,
) -> Reading {
    let name = format!("hugepages-{}kB", huge.size_kib);
    let nodes = machine.numbers("/sys/devices/system/node", "node").into_iter();
    let near: Vec<u32> = nodes
        .filter(|node| wish.mems.is_empty() || wish.mems.contains(*node))
        .collect();
    let count = |node: &u32, file: &str| -> u64 {
        let path = format!("/sys/devices/system/node/node{node}/hugepages/{name}/{file}");
        let text = machine.read(&path).unwrap_or_default();
        text.parse().unwrap_or(0)
    };
    let all: u64 = near.iter().map(|node| count(node, "nr_hugepages")).sum();
    let free: u64 = near.iter().map(|node| count(node, "free_hugepages")).sum();
    let taken: u64 = claims
        .iter()
        .filter(|(other, _)| *other != id)
        .map(|(_, claim)| &claim.wish)
        .filter(|other| other.mems.is_empty() || wish.mems.is_empty() || !other.mems.is_disjoint(&wish.mems))
        .flat_map(|other| &other.hugepages)
        .filter(|other| other.size_kib == huge.size_kib)
        .map(|other| other.count)
        .sum();
    let left = all.saturating_sub(taken);
    // Before it runs they must be free; later it may have taken them.
    let there = if id.is_empty() { left.min(free) } else { left };
    Reading {
        promised: format!("{} for it alone", huge.count),
        actual: format!("{there} left of {all}, {taken} claimed by others, {free} free"),
        source: format!("/sys/devices/system/node/nodeN/hugepages/{name}"),
        holds: there >= huge.count,
        name,
    }
}
