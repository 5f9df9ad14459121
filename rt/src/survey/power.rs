//! Frequencies and idle states.
//!
//! Sources: Documentation/admin-guide/pm/{cpufreq,cpuidle,intel_pstate,intel_epb}.rst, and
//! Documentation/ABI/testing/sysfs-devices-power for `pm_qos_resume_latency_us`.

use super::{As, Finding, State, Survey};
use crate::cpu::CpuSet;
use crate::node::FrequencyOf;

const CPUFREQ: &str = "/sys/devices/system/cpu/cpufreq";

impl Survey<'_> {
    pub(super) fn power(&mut self) {
        let (isolated, housekeeping) = (self.parts.isolated.clone(), self.parts.housekeeping.clone());
        let frequency = self.spec.frequency.clone();
        self.side(&isolated, &frequency.isolated);
        self.side(&housekeeping, &frequency.housekeeping);
        if let Some(percent) = self.spec.power.min_performance {
            let path = "/sys/devices/system/cpu/intel_pstate/min_perf_pct";
            // It follows the governor in active mode: nothing to hold against a higher one.
            self.file("min-performance", path, &percent.to_string(), As::Text);
        }
        if let Some(latency) = self.spec.power.resume_latency {
            for cpu in self.of(&isolated) {
                let path = format!("/sys/devices/system/cpu/cpu{cpu}/power/pm_qos_resume_latency_us");
                self.file("resume-latency", &path, &latency.as_kernel(), As::Text);
            }
        }
    }

    fn side(&mut self, cpus: &CpuSet, of: &FrequencyOf) {
        let policies: Vec<u32> = self
            .machine
            .numbers(CPUFREQ, "policy")
            .into_iter()
            .filter(|policy| {
                let list = self
                    .machine
                    .read(&format!("{CPUFREQ}/policy{policy}/affected_cpus"));
                let members: Vec<u32> = match list {
                    Some(list) => list.split(' ').filter_map(|cpu| cpu.parse().ok()).collect(),
                    None => vec![*policy],
                };
                members.iter().any(|cpu| cpus.contains(*cpu))
            })
            .collect();
        let khz = |frequency: Option<crate::node::KiloHertz>| frequency.map(|f| f.get().to_string());
        // A higher limit first, so that no minimum is ever above its maximum on the way.
        for (name, file, value, choices) in [
            (
                "governor",
                "scaling_governor",
                of.governor.clone(),
                "scaling_available_governors",
            ),
            ("frequency-max", "scaling_max_freq", khz(of.max), ""),
            ("frequency-min", "scaling_min_freq", khz(of.min), ""),
            (
                "energy-preference",
                "energy_performance_preference",
                of.energy_preference.clone(),
                "energy_performance_available_preferences",
            ),
        ] {
            let Some(value) = value else { continue };
            if policies.is_empty() && !cpus.is_empty() {
                let why = match self.machine.names(CPUFREQ).is_empty() {
                    true => "no frequency driver is loaded: the clock is not the kernel's to set",
                    false => "no frequency policy has these CPUs",
                };
                self.absent(
                    name,
                    &format!("{CPUFREQ}/policyN/{file}"),
                    &value,
                    Some(why.into()),
                );
                continue;
            }
            for policy in &policies {
                self.file(
                    name,
                    &format!("{CPUFREQ}/policy{policy}/{file}"),
                    &value,
                    As::Text,
                );
                self.possible(*policy, choices);
            }
        }
        if let Some(bias) = of.energy_bias {
            for cpu in self.of(cpus) {
                let path = format!("/sys/devices/system/cpu/cpu{cpu}/power/energy_perf_bias");
                self.file("energy-bias", &path, &bias.to_string(), As::Text);
            }
        }
    }

    /// The last finding, where the hardware or the driver does not offer what is wanted.
    fn possible(&mut self, policy: u32, choices: &str) {
        let of = |file: &str| self.machine.read(&format!("{CPUFREQ}/policy{policy}/{file}"));
        let (offered, least, most) = (of(choices), of("cpuinfo_min_freq"), of("cpuinfo_max_freq"));
        let Some(last) = self
            .findings
            .last_mut()
            .filter(|last| last.state == State::Differs)
        else {
            return;
        };
        let refuse = |last: &mut Finding, reason: String| {
            last.state = State::Missing;
            last.change = None;
            last.reason = Some(reason);
            last.mend = Some(format!("change {}", last.field));
        };
        if !choices.is_empty() {
            if let Some(offered) = offered
                && !offered.split_whitespace().any(|word| word == last.wanted)
            {
                refuse(last, format!("the driver offers {offered}"));
            }
            return;
        }
        let number = |text: Option<String>| text.and_then(|text| text.parse::<u64>().ok());
        let wanted: u64 = last.wanted.parse().unwrap_or(0);
        if let (Some(least), Some(most)) = (number(least), number(most))
            && !(least..=most).contains(&wanted)
        {
            refuse(last, format!("the hardware has {least} to {most} kHz"));
        }
    }
}
