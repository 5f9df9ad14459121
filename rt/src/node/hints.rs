//! What the hints of a node fill in. A field that is given always stands; a hint only fills.
//!
//! The values are those of OpenShift's PerformanceProfile and of tuned's cpu-partitioning, network-latency and
//! latency-performance profiles, but for `timerMigration`: false, as tuned has it, because berth's cores are given away for
//! longer than a pod lives.

use super::sections::{
    Interrupts, MachineCheck, MemoryNoise, Power, Priorities, Transparent, Watchdogs, Workqueues,
};
use super::values::{CpuChoice, Priority, ResumeLatency, Seconds, Share};
use super::{FrequencyOf, NodeSpec, Pstate};

impl NodeSpec {
    /// The spec with the fields that its hints fill.
    #[must_use]
    pub fn effective(&self) -> NodeSpec {
        let mut spec = self.clone();
        let hint = |hint: Option<bool>| hint == Some(true);
        if hint(self.hints.real_time) {
            spec.fill_realtime();
        }
        if hint(self.hints.high_power_consumption) {
            let fill = Power {
                max_c_state: Some(1),
                poll: hint(self.hints.real_time).then_some(true),
                ..Power::default()
            };
            spec.power = spec.power.or(fill);
        }
        if hint(self.hints.per_pod_power_management) {
            spec.frequency.driver = spec.frequency.driver.or(Some(Pstate::Passive));
        } else if hint(self.hints.real_time) || hint(self.hints.high_power_consumption) {
            let fill = || FrequencyOf {
                governor: Some("performance".into()),
                energy_bias: Some(0),
                ..FrequencyOf::default()
            };
            spec.frequency.isolated = spec.frequency.isolated.or(fill());
            spec.frequency.housekeeping = spec.frequency.housekeeping.or(fill());
            let fill = Power {
                resume_latency: Some(ResumeLatency::Us(3)),
                min_performance: Some(100),
                ..Power::default()
            };
            spec.power = spec.power.or(fill);
        }
        spec
    }

    fn fill_realtime(&mut self) {
        let realtime = &mut self.realtime;
        realtime.throttling = realtime.throttling.or(Some(Share::Off));
        realtime.timer_migration = realtime.timer_migration.or(Some(false));
        let eleven = Some(Priority::of(11));
        realtime.priorities = std::mem::take(&mut realtime.priorities).or(Priorities {
            ksoftirqd: eleven,
            rcuc: eleven,
            ktimers: eleven,
            rcu: eleven,
            irq_threads: None,
        });
        self.interrupts = std::mem::take(&mut self.interrupts).or(Interrupts {
            affinity: Some(CpuChoice::Housekeeping),
            ..Interrupts::default()
        });
        self.network.rps = self.network.rps.take().or(Some(CpuChoice::Housekeeping));
        self.memory = std::mem::take(&mut self.memory).or(MemoryNoise {
            numa_balancing: Some(false),
            transparent_hugepages: Some(Transparent::Never),
            ksm: Some(false),
            stat_interval: Some(Seconds::of(10)),
            swappiness: Some(10),
            dirty_ratio: Some(10),
            dirty_background_ratio: Some(3),
        });
        self.watchdogs = std::mem::take(&mut self.watchdogs).or(Watchdogs {
            nmi: Some(false),
            soft: Some(false),
            cpus: Some(CpuChoice::Housekeeping),
            hung_task: Some(Seconds::of(600)),
        });
        self.workqueues = std::mem::take(&mut self.workqueues).or(Workqueues {
            cpus: Some(CpuChoice::Housekeeping),
            writeback: Some(CpuChoice::Housekeeping),
            threads: Some(CpuChoice::Housekeeping),
        });
        self.machine_check = std::mem::take(&mut self.machine_check).or(MachineCheck {
            enabled: Some(false),
            ignore_corrected: Some(true),
        });
        self.kernel.trust_tsc = self.kernel.trust_tsc.or(Some(true));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn effective(json: &str) -> NodeSpec {
        serde_json::from_str::<NodeSpec>(json).unwrap().effective()
    }

    #[test]
    fn what_is_given_stands() {
        let spec = effective(
            r#"{"hints":{"realTime":true},"realtime":{"throttling":"950ms","priorities":{"rcuc":4}},"memory":{"swappiness":60}}"#,
        );
        assert_eq!(
            spec.realtime.throttling.map(|t| t.to_string()).as_deref(),
            Some("950ms")
        );
        assert_eq!(spec.realtime.priorities.rcuc, Some(Priority::of(4)));
        assert_eq!(spec.realtime.priorities.ksoftirqd, Some(Priority::of(11)));
        assert_eq!(
            (spec.memory.swappiness, spec.memory.numa_balancing),
            (Some(60), Some(false))
        );
    }

    #[test]
    fn without_a_hint_nothing_is_filled() {
        for json in [
            "{}",
            r#"{"hints":{"realTime":false}}"#,
            r#"{"cpus":{"isolated":"1"}}"#,
        ] {
            let spec: NodeSpec = serde_json::from_str(json).unwrap();
            assert_eq!(spec.effective(), spec);
        }
    }

    #[test]
    fn power_hints() {
        let spec = effective(r#"{"hints":{"highPowerConsumption":true}}"#);
        assert_eq!((spec.power.max_c_state, spec.power.poll), (Some(1), None));
        let spec = effective(r#"{"hints":{"highPowerConsumption":true,"realTime":true}}"#);
        assert_eq!((spec.power.max_c_state, spec.power.poll), (Some(1), Some(true)));
        let spec = effective(r#"{"hints":{"perPodPowerManagement":true,"realTime":true}}"#);
        assert_eq!(spec.frequency.driver, Some(Pstate::Passive));
        assert!(spec.frequency.isolated.is_empty() && spec.power.resume_latency.is_none());
    }
}
