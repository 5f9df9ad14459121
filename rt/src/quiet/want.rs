//! What each knob should be, from claims and first values; and what was promised beside what is. Reads, never writes.

use std::collections::BTreeMap;

use super::irq;
use super::share;
use super::{Base, Claim, Irqs, Reading, Wish};
use crate::cpu::CpuSet;
use crate::machine::Machine;

pub(super) const CPU: &str = "/sys/devices/system/cpu";
const DEFAULT_AFFINITY: &str = "/proc/irq/default_smp_affinity";

/// A file and the value it should have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Knob {
    pub(super) path: String,
    pub(super) value: String,
    /// Of its reading.
    pub(super) name: String,
    /// Who claims it; empty: nobody any more.
    pub(super) owner: String,
    /// Others whose claim has a part in it.
    others: Vec<String>,
}

impl Knob {
    /// The first value again.
    pub(super) fn back(path: &str, first: &str) -> Knob {
        Knob {
            path: path.into(),
            value: first.into(),
            name: String::new(),
            owner: String::new(),
            others: Vec::new(),
        }
    }

    pub(super) fn touches(&self, id: &str) -> bool {
        self.owner == id || self.others.iter().any(|other| other == id)
    }
}

/// The frequency domains that CPUs of `cpus` are in: folder and CPUs.
pub(super) fn domains(machine: &Machine, cpus: &CpuSet) -> Vec<(String, CpuSet)> {
    let policies = machine.numbers(&format!("{CPU}/cpufreq"), "policy").into_iter();
    let domains = policies.filter_map(|number| {
        let folder = format!("{CPU}/cpufreq/policy{number}");
        let list = |name: &str| machine.read(&format!("{folder}/{name}"));
        // Separated by blanks, unlike every other list.
        let text = list("related_cpus").or_else(|| list("affected_cpus"))?;
        let of: CpuSet = text
            .split_whitespace()
            .filter_map(|cpu| cpu.parse().ok())
            .collect();
        (!of.is_disjoint(cpus)).then_some((folder, of))
    });
    domains.collect()
}

pub(super) fn resume_path(cpu: u32) -> String {
    format!("{CPU}/cpu{cpu}/power/pm_qos_resume_latency_us")
}

/// File and wanted value of each frequency setting of `wish` in a domain.
pub(super) fn clock(wish: &Wish, folder: &str) -> Vec<(String, String, &'static str)> {
    let khz = |value: Option<u64>| value.map(|khz| khz.to_string());
    let all = [
        ("scaling_governor", wish.governor.clone(), "governor"),
        ("scaling_max_freq", khz(wish.max_khz), "highest clock"),
        ("scaling_min_freq", khz(wish.min_khz), "lowest clock"),
    ];
    all.into_iter()
        .filter_map(|(file, value, name)| Some((format!("{folder}/{file}"), value?, name)))
        .collect()
}

/// Every knob that a claim has a part in.
pub(super) fn knobs(
    machine: &Machine,
    claims: &BTreeMap<String, Claim>,
    first: &BTreeMap<String, String>,
) -> Vec<Knob> {
    let mut knobs = Vec::new();
    for (id, claim) in claims {
        let wish = &claim.wish;
        let mut push = |path: String, value: String, name: String| {
            knobs.push(Knob {
                path,
                value,
                name,
                owner: id.clone(),
                others: Vec::new(),
            });
        };
        if let Some(resume) = wish.resume {
            for cpu in wish.cpus.iter() {
                push(
                    resume_path(cpu),
                    resume.text(),
                    format!("idle states of CPU {cpu}"),
                );
            }
        }
        for (folder, of) in domains(machine, &wish.cpus) {
            for (path, value, name) in clock(wish, &folder) {
                push(path, value, format!("{name} of CPUs {of}"));
            }
        }
    }
    interrupts(machine, claims, first, &mut knobs);
    knobs
}

fn interrupts(
    machine: &Machine,
    claims: &BTreeMap<String, Claim>,
    first: &BTreeMap<String, String>,
    knobs: &mut Vec<Knob>,
) {
    let holders: Vec<(&String, &Wish)> = claims
        .iter()
        .map(|(id, claim)| (id, &claim.wish))
        .filter(|(_, wish)| wish.irqs != Irqs::Leave)
        .collect();
    if holders.is_empty() {
        return;
    }
    let away = holders
        .iter()
        .fold(CpuSet::new(), |sum, (_, wish)| sum.union(&wish.spared(machine)));
    let online: CpuSet = machine
        .read(&format!("{CPU}/online"))
        .and_then(|list| list.parse().ok())
        .unwrap_or_default();
    let whose = own(machine, &holders);
    let mut rest = |path: String, was: CpuSet, form: fn(&CpuSet) -> String| {
        let touched: Vec<String> = holders
            .iter()
            .filter(|(_, wish)| !wish.spared(machine).is_disjoint(&was))
            .map(|(id, _)| (*id).clone())
            .collect();
        let Some((owner, others)) = touched.split_first() else {
            return;
        };
        let mut value = was.difference(&away);
        if value.is_empty() {
            value = online.difference(&away);
        }
        if value.is_empty() {
            return; // no CPU is left that could take it
        }
        knobs.push(Knob {
            path,
            value: form(&value),
            name: "interrupts".into(),
            owner: owner.clone(),
            others: others.to_vec(),
        });
    };
    let mask = first
        .get(DEFAULT_AFFINITY)
        .cloned()
        .or_else(|| machine.read(DEFAULT_AFFINITY));
    if let Some(was) = mask.and_then(|mask| CpuSet::from_mask(&mask)) {
        rest(
            DEFAULT_AFFINITY.into(),
            was.intersection(&online),
            CpuSet::to_mask,
        );
    }
    let mut theirs = Vec::new();
    for number in machine.numbers("/proc/irq", "") {
        let path = irq::path(number);
        if let Some((id, cpus)) = whose.get(&number) {
            theirs.push(Knob {
                path,
                value: cpus.to_string(),
                name: "own interrupts".into(),
                owner: (*id).clone(),
                others: Vec::new(),
            });
            continue;
        }
        let text = first.get(&path).cloned().or_else(|| machine.read(&path));
        if let Some(was) = text.and_then(|list| list.parse().ok()) {
            rest(path, was, CpuSet::to_string);
        }
    }
    knobs.extend(theirs);
}

/// The interrupts of the devices that their workloads want on their cores.
fn own<'a>(machine: &Machine, holders: &[(&'a String, &'a Wish)]) -> BTreeMap<u32, (&'a String, &'a CpuSet)> {
    let mut whose = BTreeMap::new();
    for (id, wish) in holders.iter().filter(|(_, wish)| wish.irqs == Irqs::Device) {
        for number in wish.devices.iter().flat_map(|folder| irq::of(machine, folder)) {
            whose.entry(number).or_insert((*id, &wish.cpus));
        }
    }
    whose
}

/// What `id` was promised beside what is.
pub(super) fn readings(
    machine: &Machine,
    id: &str,
    claims: &BTreeMap<String, Claim>,
    base: &Base,
) -> Vec<Reading> {
    let Some(claim) = claims.get(id) else {
        return Vec::new();
    };
    let mut all: Vec<Reading> = Vec::new();
    for knob in knobs(machine, claims, &base.values) {
        if knob.owner != id || knob.path.starts_with("/proc/irq/") {
            continue;
        }
        let actual = machine.read(&knob.path).unwrap_or_else(|| "absent".into());
        all.push(Reading {
            holds: crate::tune::agrees(&actual, &knob.value),
            name: knob.name,
            promised: knob.value,
            actual,
            source: knob.path,
        });
    }
    let wish = &claim.wish;
    if wish.irqs != Irqs::Leave {
        let asked = wish.irqs == Irqs::Device;
        let folders = wish.devices.iter().filter(|_| asked);
        let mine: Vec<u32> = folders.flat_map(|folder| irq::of(machine, folder)).collect();
        all.push(others(machine, wish, &mine, base));
        if asked {
            all.push(theirs(machine, wish, &mine, base));
        }
    }
    for huge in &wish.hugepages {
        all.push(super::lacks::pages(machine, id, wish, *huge, claims));
    }
    all.extend(share::reading(machine, wish));
    all.extend(claim.lacks.iter().map(|lack| Reading {
        name: lack.name.clone(),
        promised: "if this node has it (class soft)".into(),
        actual: format!("not here: {}", lack.why),
        source: lack.source.clone(),
        holds: true,
    }));
    all
}

/// That none but `mine` goes to the cores.
fn others(machine: &Machine, wish: &Wish, mine: &[u32], base: &Base) -> Reading {
    let spared = wish.spared(machine);
    let (mut there, mut kept, mut later) = (Vec::new(), Vec::new(), Vec::new());
    for number in machine.numbers("/proc/irq", "") {
        let goes = irq::goes(machine, number).unwrap_or_default();
        if mine.contains(&number) || goes.is_disjoint(&spared) {
            continue;
        }
        let path = irq::path(number);
        let may: CpuSet = machine
            .read(&path)
            .and_then(|list| list.parse().ok())
            .unwrap_or_default();
        let name = irq::named(machine, number);
        match base.kept.get(&path) {
            Some(answer) => kept.push(format!("{name} ({answer})")),
            None if may.is_disjoint(&spared) => later.push(name),
            None => there.push(name),
        }
    }
    let mut words = vec![match &there[..] {
        [] => "none".to_owned(),
        there => format!("on them: {}", there.join(", ")),
    }];
    if !kept.is_empty() {
        words.push(format!("the kernel keeps {}", kept.join(", ")));
    }
    if !later.is_empty() {
        words.push(format!("moved when raised next: {}", later.join(", ")));
    }
    if let Some(pid) = irq::balancer(machine, &spared) {
        words.push(format!("irqbalance (process {pid}) moves them back"));
    }
    Reading {
        name: "interrupts".into(),
        promised: format!("none of others on CPUs {}", spared),
        actual: words.join("; "),
        source: "/proc/irq/N/effective_affinity_list".into(),
        holds: there.is_empty(),
    }
}

/// That `mine` go to the cores.
fn theirs(machine: &Machine, wish: &Wish, mine: &[u32], base: &Base) -> Reading {
    let mut astray = Vec::new();
    let mut kept = Vec::new();
    for number in mine {
        let path = irq::path(*number);
        let may: CpuSet = machine
            .read(&path)
            .and_then(|list| list.parse().ok())
            .unwrap_or_default();
        let goes = irq::goes(machine, *number).unwrap_or_default();
        if may.is_subset(&wish.cpus) || (!goes.is_empty() && goes.is_subset(&wish.cpus)) {
            continue;
        }
        let name = format!("{} on CPUs {goes}", irq::named(machine, *number));
        match base.kept.get(&path) {
            Some(answer) => kept.push(format!("{name} ({answer})")),
            None => astray.push(name),
        }
    }
    let mut words = vec![match (mine.len(), &astray[..]) {
        (0, _) => "its devices have none of their own".to_owned(),
        (count, []) => format!("{} of {count}", count - kept.len()),
        (_, astray) => format!("elsewhere: {}", astray.join(", ")),
    }];
    if !kept.is_empty() {
        words.push(format!("the kernel keeps {}", kept.join(", ")));
    }
    Reading {
        name: "own interrupts".into(),
        promised: format!("those of its devices on CPUs {}", wish.cpus),
        actual: words.join("; "),
        source: "/proc/irq/N/effective_affinity_list".into(),
        holds: astray.is_empty() && (kept.is_empty() || !wish.strict),
    }
}
