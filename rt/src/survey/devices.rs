//! Interrupts and network queues.
//!
//! Sources: Documentation/core-api/irq/irq-affinity.rst, Documentation/networking/scaling.rst. A managed interrupt, or one
//! of a CPU, refuses an affinity with EPERM or EIO; kernels since 6.12 show that in the file's mode.

use super::{As, Change, State, Survey, Target};
use crate::cpu::CpuSet;
use crate::ethtool;
use crate::node::{NetDevice, Queues};

const IRQ: &str = "/proc/irq";
const NET: &str = "/sys/class/net";

impl Survey<'_> {
    pub(super) fn devices(&mut self) {
        if let Some(choice) = self.spec.interrupts.affinity.clone() {
            let wanted = self.chosen(&choice);
            self.file(
                "irq-default-affinity",
                &format!("{IRQ}/default_smp_affinity"),
                &wanted.to_mask(),
                As::Mask,
            );
            self.interrupts(&wanted);
            self.irqbalance(&wanted);
        }
        if let Some(choice) = self.spec.network.rps.clone() {
            let mask = self.chosen(&choice).to_mask();
            self.file(
                "rps-default",
                "/proc/sys/net/core/rps_default_mask",
                &mask,
                As::Mask,
            );
            for name in self.machine.names(NET) {
                let queues = format!("{NET}/{name}/queues");
                for queue in self
                    .machine
                    .names(&queues)
                    .iter()
                    .filter(|queue| queue.starts_with("rx-"))
                {
                    let path = format!("{queues}/{queue}/rps_cpus");
                    // Before the first write of a mask it may not be there at all (no CONFIG_RPS).
                    self.file("rps", &path, &mask, As::Mask);
                }
            }
        }
        if let Some(queues) = self.spec.network.queues {
            self.queues(queues);
        }
    }

    fn interrupts(&mut self, wanted: &CpuSet) {
        for irq in self.machine.numbers(IRQ, "") {
            let path = format!("{IRQ}/{irq}/smp_affinity");
            let Some(mask) = self.machine.read(&path) else {
                continue;
            };
            let list = |file: &str| {
                self.machine
                    .read(&format!("{IRQ}/{irq}/{file}"))?
                    .parse::<CpuSet>()
                    .ok()
            };
            let allowed = CpuSet::from_mask(&mask).unwrap_or_default();
            let effective = list("effective_affinity_list").filter(|cpus| !cpus.is_empty());
            // What has no handler never comes; its folder holds files alone.
            let handlers: Vec<String> = self
                .machine
                .names(&format!("{IRQ}/{irq}"))
                .into_iter()
                .filter(|name| self.machine.path(&format!("{IRQ}/{irq}/{name}")).is_dir())
                .collect();
            let within = |cpus: &CpuSet| cpus.is_subset(wanted);
            let mut finding = self.finding("irq-affinity", path.clone(), wanted.to_string());
            let who = if handlers.is_empty() {
                "no handler".to_owned()
            } else {
                handlers.join(", ")
            };
            finding.actual = Some(match &effective {
                Some(effective) if *effective != allowed => {
                    format!("{allowed}, in effect {effective} ({who})")
                }
                _ => format!("{allowed} ({who})"),
            });
            if within(&allowed) && effective.as_ref().is_none_or(within) {
                self.findings.push(finding);
                continue;
            }
            if within(&allowed) {
                finding.state = State::Kept;
                finding.reason = Some("set; the kernel moves it when it comes next".into());
            } else if !self.machine.writable(&path) || self.context.kept.contains(&irq) {
                finding.state = State::Kept;
                finding.reason =
                    Some("managed by the kernel or bound to a CPU: it refuses an affinity".into());
                if effective.as_ref().is_some_and(|cpus| !within(cpus)) && !handlers.is_empty() {
                    finding.mend = Some(format!(
                        "boot argument isolcpus=managed_irq,{} keeps it quiet unless an isolated core does I/O itself",
                        self.parts.isolated
                    ));
                }
            } else {
                let target = Target::File { path };
                finding.state = State::Differs;
                finding.mend = Some("berth node tune".into());
                finding.change = Some(Change {
                    knob: "irq-affinity".into(),
                    target: target.clone(),
                    value: wanted.to_mask(),
                    restore: vec![(target, mask)],
                });
            }
            self.findings.push(finding);
        }
    }

    fn irqbalance(&mut self, wanted: &CpuSet) {
        let running = self
            .machine
            .threads()
            .into_iter()
            .find(|thread| thread.name == "irqbalance");
        let mut finding = self.finding(
            "irqbalance",
            "process irqbalance",
            "none, or banned from isolated cores",
        );
        match running {
            None => finding.actual = Some("none".into()),
            Some(process) => {
                finding.actual = Some(format!("pid {}", process.pid));
                finding.state = State::Refused;
                finding.reason = Some("berth does not end the node's services".into());
                let banned = self.parts.isolated.difference(wanted);
                finding.mend = Some(format!(
                    "systemctl disable --now irqbalance, or IRQBALANCE_BANNED_CPULIST={banned} in /etc/default/irqbalance"
                ));
            }
        }
        self.findings.push(finding);
    }

    fn queues(&mut self, wanted: Queues) {
        let number = match wanted {
            Queues::Number(number) => number,
            Queues::Housekeeping => u32::try_from(self.parts.housekeeping.len()).unwrap_or(u32::MAX),
        };
        let devices = self.spec.network.devices.clone();
        let names: Vec<String> = self
            .machine
            .names(NET)
            .into_iter()
            .filter(|name| self.machine.there(&format!("{NET}/{name}/device")))
            .filter(|name| devices.is_empty() || devices.iter().any(|device| self.matches(device, name)))
            .collect();
        if names.is_empty() {
            let why = "no physical interface is meant".to_owned();
            let mut finding = self.finding("nic-queues", NET, number.to_string());
            finding.state = State::Absent;
            finding.reason = Some(why);
            self.findings.push(finding);
        }
        for name in names {
            let interface = format!("combined channels of {name}");
            if !self.machine.live() {
                let why = "a recorded tree has no ioctl".to_owned();
                self.absent("nic-queues", &interface, &number.to_string(), Some(why));
                continue;
            }
            match ethtool::channels(&name) {
                Err(error) => {
                    let why = format!("its driver does not tell: {error}");
                    self.absent("nic-queues", &interface, &number.to_string(), Some(why));
                }
                Ok(channels) => {
                    let mut finding = self.finding("nic-queues", interface, number.to_string());
                    finding.actual = Some(format!(
                        "{} of at most {}",
                        channels.combined, channels.max_combined
                    ));
                    if channels.max_combined < number {
                        // Fewer queues than asked for is as few interrupts as can be.
                        finding.reason = Some("the device has no more".into());
                    }
                    let reachable = number.min(channels.max_combined);
                    if channels.max_combined == 0 {
                        finding.state = State::Absent;
                        finding.reason = Some("it has no combined channels".into());
                    } else if channels.combined != reachable {
                        let target = Target::Channels { interface: name };
                        finding.state = State::Differs;
                        finding.mend = Some("berth node tune".into());
                        finding.change = Some(Change {
                            knob: "nic-queues".into(),
                            target: target.clone(),
                            value: reachable.to_string(),
                            restore: vec![(target, channels.combined.to_string())],
                        });
                    }
                    self.findings.push(finding);
                }
            }
        }
    }

    /// Whether an interface is meant by an entry of spec.network.devices.
    fn matches(&self, device: &NetDevice, name: &str) -> bool {
        let number = |file: &str| self.machine.read(&format!("{NET}/{name}/device/{file}"));
        let same = |wanted: &Option<String>, file: &str| {
            let value = |text: &str| u16::from_str_radix(text.trim_start_matches("0x"), 16).ok();
            wanted.as_deref().is_none_or(|wanted| {
                value(wanted).is_some() && value(wanted) == number(file).as_deref().and_then(value)
            })
        };
        let named = device
            .interface
            .as_deref()
            .is_none_or(|pattern| match pattern.strip_prefix('!') {
                Some(pattern) => !glob(pattern.as_bytes(), name.as_bytes()),
                None => glob(pattern.as_bytes(), name.as_bytes()),
            });
        named && same(&device.vendor, "vendor") && same(&device.device, "device")
    }
}

/// `*` stands for any text.
fn glob(pattern: &[u8], text: &[u8]) -> bool {
    let Some((first, rest)) = pattern.split_first() else {
        return text.is_empty();
    };
    if *first == b'*' {
        return (0..=text.len()).any(|at| glob(rest, &text[at..]));
    }
    text.split_first()
        .is_some_and(|(head, tail)| head == first && glob(rest, tail))
}
