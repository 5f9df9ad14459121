//! The boot half: the kernel arguments that are wanted, beside those of the running kernel.

use super::{State, Survey};
use crate::cmdline::{Argument, Compared, InForce, Parts, Platform, arguments, compare};
use crate::cpu::CpuSet;
use crate::knob::When;
use crate::node::NodeSpec;
use crate::topology::Topology;

/// Which CPUs have which part. Without `cpus` in the document nothing is isolated from boot on.
#[must_use]
pub fn parts(spec: &NodeSpec, topology: &Topology) -> Parts {
    let (housekeeping, isolated) = spec.cpus(topology);
    let declared = spec.cpus.housekeeping.is_some() || spec.cpus.isolated.is_some();
    let shared = spec.cpus.shared.clone().unwrap_or_default();
    Parts {
        housekeeping: if declared {
            housekeeping.union(&shared)
        } else {
            topology.online()
        },
        isolated: if declared { isolated } else { CpuSet::new() },
    }
}

/// The wanted arguments beside a command line.
#[must_use]
pub fn boot(spec: &NodeSpec, parts: &Parts, platform: &Platform, line: &str) -> Vec<Compared> {
    compare(&arguments(spec, parts, platform), line)
}

impl Survey<'_> {
    pub(super) fn boot(&mut self) {
        let platform = self.machine.platform();
        let line = self.machine.command_line();
        self.unwanted(&line);
        for compared in boot(self.spec, &self.parts, &platform, &line) {
            let argument = &compared.argument;
            // What is in force at run time needs no argument: default_hugepagesz is told from /proc/meminfo, pages of a
            // count from nr_hugepages, and so on.
            let told = self.findings.iter().any(|finding| {
                finding.knob == argument.knob && finding.when == When::RunTime && finding.state == State::Ok
            });
            let by_meminfo = argument.knob == "hugepage-default";
            if by_meminfo {
                continue;
            }
            let mut finding = self.finding(
                argument.knob,
                format!("kernel argument {}", argument.text),
                &argument.text,
            );
            finding.when = When::Boot;
            finding.actual = match compared.in_force {
                InForce::Yes => Some(argument.text.clone()),
                _ => compared.now.clone(),
            };
            if compared.in_force != InForce::Yes {
                finding.state = State::PendingBoot;
                finding.mend = Some(format!("boot argument {} (berth node cmdline)", argument.text));
                if told || finding.knob == "hugepages" {
                    finding.state = State::UntilBoot;
                    finding.reason = Some(match told {
                        true => "in force at run time; with the argument it would be from boot on".into(),
                        false => "huge pages are taken at run time; at boot they are sure to be found".into(),
                    });
                }
            }
            self.needs(&mut finding);
            self.findings.push(finding);
        }
    }

    /// Arguments that must not be there: the document says the opposite.
    fn unwanted(&mut self, line: &str) {
        let spec = self.spec;
        for (said, knob, text) in [
            (
                spec.machine_check.enabled == Some(true),
                "machine-check",
                "mce=off",
            ),
            (spec.kernel.trust_tsc == Some(false), "trust-tsc", "tsc=reliable"),
            (
                spec.kernel.iommu_passthrough == Some(false),
                "iommu-passthrough",
                "iommu=pt",
            ),
            (spec.power.poll == Some(false), "idle-poll", "idle=poll"),
            (
                spec.interrupts.threaded == Some(false),
                "threaded-irqs",
                "threadirqs",
            ),
        ] {
            if !said {
                continue;
            }
            let argument = Argument {
                text: text.into(),
                knob,
            };
            let there = compare(&[argument], line)
                .iter()
                .any(|one| one.in_force == InForce::Yes);
            let mut finding = self.finding(knob, format!("kernel argument {text}"), "not given");
            finding.when = When::Boot;
            finding.actual = Some(if there { text } else { "not given" }.into());
            if there {
                finding.state = State::PendingBoot;
                finding.mend = Some(format!("take {text} off the kernel's command line"));
            }
            self.findings.push(finding);
        }
    }

    /// An argument that this kernel is not built to read.
    fn needs(&self, finding: &mut super::Finding) {
        let init = self.machine.read("/proc/1/comm");
        if finding.knob == "system-affinity"
            && finding.state == State::PendingBoot
            && init.as_deref() != Some("systemd")
        {
            finding.state = State::Absent;
            finding.reason = Some(format!(
                "process 1 is not systemd but {}",
                init.unwrap_or_else(|| "unknown".into())
            ));
            return;
        }
        let option = match finding.knob {
            "nohz-full" if finding.wanted.starts_with("nohz_full=") => "CONFIG_NO_HZ_FULL",
            "rcu-nocbs" => "CONFIG_RCU_NOCB_CPU",
            "isolcpus" => "CONFIG_CPU_ISOLATION",
            _ => return,
        };
        if self.machine.option(option) == Some("n") {
            let cost = crate::knob::find(finding.knob).map_or("", |knob| knob.cost);
            finding.state = State::Missing;
            finding.reason = Some(format!("this kernel is built without {option}: {cost}"));
            finding.mend = Some(format!("build or choose a kernel with {option}"));
            return;
        }
        // The kernel's own word counts for more than its command line.
        let path = match finding.knob {
            "nohz-full" if finding.wanted.starts_with("nohz_full=") => "/sys/devices/system/cpu/nohz_full",
            _ => return,
        };
        let Some(list) = self.machine.read(path) else {
            return;
        };
        let actual: CpuSet = list.trim().parse().unwrap_or_default();
        // The boot CPU keeps its tick, whatever is asked.
        let wanted: CpuSet = self.parts.isolated.iter().filter(|cpu| *cpu != 0).collect();
        if finding.state == State::Ok && !wanted.is_subset(&actual) {
            finding.state = State::Refused;
            finding.actual = Some(format!("{path}: {list}"));
            finding.reason = Some("the argument was given, and the kernel did not take it".into());
            finding.mend = Some("see the kernel's messages of the boot (dmesg)".into());
        }
    }
}
