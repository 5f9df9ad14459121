//! What is wrong with a node's spec: by itself, and on the node of a given topology.

use super::values::CpuChoice;
use super::{NodeSpec, Problem};
use crate::cpu::CpuSet;
use crate::topology::Topology;

/// The lists of `spec.cpus` that exclude each other.
const LISTS: [&str; 4] = [
    "spec.cpus.housekeeping",
    "spec.cpus.isolated",
    "spec.cpus.shared",
    "spec.cpus.offlined",
];

/// Most huge pages of one entry: more than any machine has memory for.
const MAX_PAGES: u64 = 1 << 32;

impl NodeSpec {
    /// Everything that is wrong with the document, and on a node of this topology where one is given; empty when it is
    /// good.
    #[must_use]
    pub fn validate(&self, topology: Option<&Topology>) -> Vec<Problem> {
        let mut found = Found(Vec::new());
        let overlap = self.lists(&mut found);
        if let Some(topology) = topology {
            self.on(topology, overlap, &mut found);
        }
        self.choices(topology, &mut found);
        self.hugepages(topology, &mut found);
        self.ranges(&mut found);
        self.arguments(&mut found);
        found.0
    }

    fn given(&self) -> [(&'static str, Option<&CpuSet>); 4] {
        let cpus = &self.cpus;
        [
            (LISTS[0], cpus.housekeeping.as_ref()),
            (LISTS[1], cpus.isolated.as_ref()),
            (LISTS[2], cpus.shared.as_ref()),
            (LISTS[3], cpus.offlined.as_ref()),
        ]
    }

    /// The lists beside each other; whether two overlap.
    fn lists(&self, found: &mut Found) -> bool {
        let given = self.given();
        let mut overlap = false;
        for (index, (path, cpus)) in given.iter().enumerate() {
            for (other, others) in &given[..index] {
                let (Some(cpus), Some(others)) = (cpus, others) else {
                    continue;
                };
                let both = cpus.intersection(others);
                if !both.is_empty() {
                    overlap = true;
                    let field = path.rsplit('.').next().unwrap_or_default();
                    let hint = format!(
                        "each CPU on one side: {field} could be {}",
                        Shown(&cpus.difference(&both))
                    );
                    found.add(path, format!("CPUs {both} are in {other} too"), Some(hint));
                }
            }
        }
        if self.cpus.housekeeping.as_ref().is_some_and(CpuSet::is_empty) {
            let hint = "give one CPU or more: the system and berth itself run there";
            found.add(
                LISTS[0],
                "no CPU is left for housekeeping".into(),
                Some(hint.into()),
            );
        }
        if self.hints.mixed_cpus == Some(true) && self.cpus.shared.as_ref().is_none_or(CpuSet::is_empty) {
            let hint = "give the CPUs that workloads share in spec.cpus.shared";
            found.add(
                "spec.hints.mixedCpus",
                "there are no shared CPUs".into(),
                Some(hint.into()),
            );
        }
        overlap
    }

    fn on(&self, topology: &Topology, overlap: bool, found: &mut Found) {
        let online = topology.online();
        let present: CpuSet = topology.cpus.iter().map(|cpu| cpu.id).collect();
        for (path, cpus) in self.given() {
            let Some(cpus) = cpus else { continue };
            if path == LISTS[3] {
                let absent = cpus.difference(&present);
                if !absent.is_empty() {
                    found.add(
                        path,
                        format!("there are no CPUs {absent}"),
                        Some(format!("the node's CPUs are {present}")),
                    );
                }
                continue;
            }
            let absent = cpus.difference(&online);
            if !absent.is_empty() {
                let hint = format!("the node's online CPUs are {online}");
                found.add(path, format!("CPUs {absent} are not online"), Some(hint));
            }
        }
        let (housekeeping, isolated) = self.cpus(topology);
        let offlined = self.cpus.offlined.clone().unwrap_or_default();
        let left = online.difference(&offlined);
        if housekeeping.intersection(&left).is_empty()
            && self
                .cpus
                .housekeeping
                .as_ref()
                .is_none_or(|cpus| !cpus.is_empty())
        {
            let hint = "leave at least one core of the online CPUs for the system and for berth itself";
            found.add(
                LISTS[0],
                "no CPU is left for housekeeping".into(),
                Some(hint.into()),
            );
        }
        for cpu in topology
            .cpus
            .iter()
            .filter(|cpu| cpu.online && cpu.siblings.first() == Some(cpu.id))
        {
            let threads = cpu.siblings.intersection(&left);
            let inside = threads.intersection(&isolated);
            if !inside.is_empty() && inside != threads && !overlap {
                let message =
                    format!("CPUs {threads} are threads of one core, but only {inside} are isolated");
                let hint = format!("put all of {threads} on one side: a neighbour on the same core disturbs");
                found.add(LISTS[1], message, Some(hint));
            }
        }
        // What booted with isolcpus=domain can only be in isolated partitions.
        let wrong = topology.isolated.intersection(&housekeeping);
        if !wrong.is_empty() && self.cpus.housekeeping.is_some() {
            let hint = format!(
                "nothing is balanced there: take {wrong} out of it, or out of isolcpus= at the next boot"
            );
            let message = format!(
                "CPUs {wrong} are isolated already ({} as a whole)",
                topology.isolated
            );
            found.add(LISTS[0], message, Some(hint));
        }
    }

    fn choices(&self, topology: Option<&Topology>, found: &mut Found) {
        for (path, choice) in [
            ("spec.interrupts.affinity", &self.interrupts.affinity),
            ("spec.network.rps", &self.network.rps),
            ("spec.watchdogs.cpus", &self.watchdogs.cpus),
            ("spec.workqueues.cpus", &self.workqueues.cpus),
            ("spec.workqueues.writeback", &self.workqueues.writeback),
            ("spec.workqueues.threads", &self.workqueues.threads),
        ] {
            let (Some(CpuChoice::These(cpus)), Some(topology)) = (choice, topology) else {
                continue;
            };
            let online = topology.online();
            let absent = cpus.difference(&online);
            if !absent.is_empty() {
                let hint = format!("the node's online CPUs are {online}");
                found.add(path, format!("CPUs {absent} are not online"), Some(hint));
            }
        }
    }

    fn hugepages(&self, topology: Option<&Topology>, found: &mut Found) {
        for (index, page) in self.hugepages.pages.iter().enumerate() {
            let path = |field: &str| format!("spec.hugepages.pages[{index}].{field}");
            if page.count > MAX_PAGES {
                found.add(
                    &path("count"),
                    format!("{} pages of {}", page.count, page.size),
                    Some(format!("at most {MAX_PAGES}")),
                );
            }
            let earlier = self.hugepages.pages[..index]
                .iter()
                .any(|other| (other.size, other.node) == (page.size, page.node));
            if earlier {
                let place = page.node.map_or("no node".into(), |node| format!("node {node}"));
                let message = format!("a second entry of {} pages with {place}", page.size);
                found.add(&path("size"), message, Some("give one count".into()));
            }
            if let (Some(node), Some(topology)) = (page.node, topology)
                && !topology.memory_nodes().contains(node)
            {
                let hint = format!("the nodes with memory are {}", topology.memory_nodes());
                found.add(
                    &path("node"),
                    format!("there is no memory on node {node}"),
                    Some(hint),
                );
            }
        }
    }

    fn ranges(&self, found: &mut Found) {
        let mut most = |path: &str, value: Option<u8>, least: u8, most: u8| {
            if let Some(value) = value.filter(|value| !(least..=most).contains(value)) {
                found.add(
                    path,
                    format!("found {value}"),
                    Some(format!("expected {least} to {most}")),
                );
            }
        };
        most("spec.memory.swappiness", self.memory.swappiness, 0, 200);
        most("spec.memory.dirtyRatio", self.memory.dirty_ratio, 1, 100);
        most(
            "spec.memory.dirtyBackgroundRatio",
            self.memory.dirty_background_ratio,
            1,
            100,
        );
        most("spec.power.minPerformance", self.power.min_performance, 1, 100);
        most("spec.power.maxCState", self.power.max_c_state, 0, 10);
        most(
            "spec.frequency.isolated.energyBias",
            self.frequency.isolated.energy_bias,
            0,
            15,
        );
        most(
            "spec.frequency.housekeeping.energyBias",
            self.frequency.housekeeping.energy_bias,
            0,
            15,
        );
        if let (Some(background), Some(ratio)) = (self.memory.dirty_background_ratio, self.memory.dirty_ratio)
            && background >= ratio
        {
            let hint = "the kernel would use half of dirtyRatio then";
            found.add(
                "spec.memory.dirtyBackgroundRatio",
                format!("{background} is not below dirtyRatio, {ratio}"),
                Some(hint.into()),
            );
        }
        if self
            .memory
            .stat_interval
            .is_some_and(|interval| interval.get() == 0)
        {
            found.add(
                "spec.memory.statInterval",
                "found `off`".into(),
                Some("expected 1s to 24h".into()),
            );
        }
        if self.network.busy_poll.is_some_and(|us| us > 1_000_000) {
            found.add(
                "spec.network.busyPoll",
                "more than a second".into(),
                Some("expected 0 to 1000000 us".into()),
            );
        }
        for (side, of) in [
            ("isolated", &self.frequency.isolated),
            ("housekeeping", &self.frequency.housekeeping),
        ] {
            if let (Some(min), Some(max)) = (of.min, of.max)
                && min > max
            {
                found.add(
                    &format!("spec.frequency.{side}.min"),
                    format!("{min} is more than max, {max}"),
                    Some("lower min, or raise max".into()),
                );
            }
            for (field, text) in [
                ("governor", &of.governor),
                ("energyPreference", &of.energy_preference),
            ] {
                let plain = |text: &String| {
                    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_')
                };
                if text.as_ref().is_some_and(|text| !plain(text)) {
                    found.add(
                        &format!("spec.frequency.{side}.{field}"),
                        "not a name of the kernel's".into(),
                        Some("expected such as performance or schedutil".into()),
                    );
                }
            }
        }
        let hints = &self.hints;
        if hints.high_power_consumption == Some(true) && hints.per_pod_power_management == Some(true) {
            found.add(
                "spec.hints.perPodPowerManagement",
                "true, and so is highPowerConsumption".into(),
                Some("the one keeps every CPU awake, the other leaves that to workloads: choose one".into()),
            );
        }
        if hints.real_time == Some(false) && self.realtime.kernel == Some(true) {
            found.add(
                "spec.hints.realTime",
                "false, and spec.realtime.kernel asks for a real-time kernel".into(),
                Some("leave one of the two out".into()),
            );
        }
        for (index, device) in self.network.devices.iter().enumerate() {
            for (field, text) in [("vendor", &device.vendor), ("device", &device.device)] {
                let hex = |text: &String| {
                    text.strip_prefix("0x").is_some_and(|digits| {
                        (1..=4).contains(&digits.len()) && digits.bytes().all(|byte| byte.is_ascii_hexdigit())
                    })
                };
                if text.as_ref().is_some_and(|text| !hex(text)) {
                    found.add(
                        &format!("spec.network.devices[{index}].{field}"),
                        "not a PCI number".into(),
                        Some("expected 0x and four hexadecimal digits, such as 0x8086".into()),
                    );
                }
            }
            if device.device.is_some() && device.vendor.is_none() {
                found.add(
                    &format!("spec.network.devices[{index}].device"),
                    "a device number without a vendor".into(),
                    Some("give vendor too: numbers are a vendor's own".into()),
                );
            }
            if device.is_empty() || device.interface.as_deref() == Some("") {
                found.add(
                    &format!("spec.network.devices[{index}]"),
                    "it names no interface".into(),
                    Some("give interface, or vendor".into()),
                );
            }
        }
    }

    fn arguments(&self, found: &mut Found) {
        for (index, argument) in self.kernel.arguments.iter().enumerate() {
            let quotes = argument.bytes().filter(|byte| *byte == b'"').count();
            let blank = argument.contains(|c: char| c.is_whitespace() || c.is_control());
            if argument.is_empty() || quotes % 2 == 1 || (blank && quotes == 0) || argument.contains('\n') {
                found.add(
                    &format!("spec.kernel.arguments[{index}]"),
                    "not one kernel argument".into(),
                    Some("one an entry; a blank only between double quotes".into()),
                );
            }
        }
    }
}

/// Problems so far.
struct Found(Vec<Problem>);

impl Found {
    fn add(&mut self, path: &str, message: String, hint: Option<String>) {
        self.0.push(Problem {
            path: path.into(),
            message,
            hint,
        });
    }
}

/// A list for people: `none` where it is empty.
struct Shown<'a>(&'a CpuSet);

impl std::fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.0.is_empty() {
            return f.write_str("none");
        }
        self.0.fmt(f)
    }
}
