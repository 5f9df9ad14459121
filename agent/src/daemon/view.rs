//! The state in the shapes of the API.

use std::collections::BTreeMap;

use berth_documents::{Scheduling, WorkloadSpec};
use berth_rt::cpu::CpuSet;

use crate::api::{Container, Details, HeldView, Hello, NodeView};
use crate::core::instance::{Instance, Phase};
use crate::core::report::words;

use super::Agent;

impl Agent {
    /// Every container, by name.
    pub(super) fn containers(&self) -> Vec<Container> {
        let mut all: Vec<Container> = self.state.instances.values().map(|i| self.container(i)).collect();
        all.sort_by(|a, b| a.name.cmp(&b.name));
        all
    }

    /// Those with the given ids that are still there.
    pub(super) fn containers_of(&self, ids: &[String]) -> Vec<Container> {
        ids.iter()
            .filter_map(|id| self.state.instances.get(id))
            .map(|i| self.container(i))
            .collect()
    }

    pub(super) fn container(&self, instance: &Instance) -> Container {
        let past = self.state.history.get(&instance.slot);
        let place = instance.place.as_ref();
        let failure = instance
            .failure
            .as_ref()
            .or(past.and_then(|p| p.failure.as_ref()));
        let down = !instance.phase.is_live() && instance.phase != Phase::Stopping;
        Container {
            name: instance.name.clone(),
            id: instance.id.clone(),
            workload: instance.workload.name.clone(),
            image: instance.workload.spec.image.clone(),
            phase: instance.phase.as_str().to_owned(),
            pid: instance.pid,
            device: instance.device.as_ref().map(|d| d.sysname.clone()),
            cpus: place.map(|p| p.cpus.to_string()),
            shared: place.is_some_and(|p| p.shared),
            isolation: match place {
                Some(place) if place.shared => Some("shared".to_owned()),
                _ => instance.isolation.clone(),
            },
            scheduler: scheduler(&instance.workload.spec),
            profile: instance.workload.spec.profile.to_string(),
            loud: self.state.is_loud(instance),
            restarts: past.map_or(0, |p| p.total),
            started_at: instance.started_at,
            drift: instance.drift.clone(),
            starved: match instance.phase {
                Phase::Running => instance.starved.iter().map(ToString::to_string).collect(),
                _ => Vec::new(),
            },
            lacks: instance.lacks(),
            wakeups: super::wakeups::source(
                &self.settings.folders.run,
                self.state.node.schedstat,
                &instance.id,
                instance.workload.spec.wakeups,
                matches!(instance.phase, Phase::Running | Phase::Frozen),
            ),
            exit: instance.exit.or(past.and_then(|p| p.exit)),
            reason: match &instance.phase {
                Phase::Waiting { why } | Phase::Partial { why } => Some(why.clone()),
                Phase::Stopping => instance.held.clone(),
                _ if down => failure.map(words),
                _ => None,
            },
        }
    }

    pub(super) fn details(&self, instance: &Instance) -> Details {
        Details {
            container: self.container(instance),
            rule: instance.slot.rule().map(str::to_owned),
            syspath: instance.device.as_ref().map(|d| d.syspath.clone()),
            document: serde_json::from_str(&instance.workload.document).unwrap_or_default(),
            log: self.settings.folders.log(&instance.id).display().to_string(),
            socket: self.settings.folders.monitor(&instance.id).display().to_string(),
            failure: instance.failure.clone(),
            dropped_bytes: instance.dropped,
            timing: instance.timing.clone(),
            start_time: instance.start_time,
        }
    }

    pub(super) fn hello(&self) -> Hello {
        Hello {
            version: crate::api::VERSION,
            berth: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            device_source: self.devices.source().to_owned(),
            metrics: self.metrics_at.map(|address| address.to_string()),
        }
    }

    pub(super) fn node_view(&self) -> NodeView {
        let pool = &self.state.node.pool;
        let held = self.state.held();
        let taken = held.iter().fold(CpuSet::new(), |sum, h| sum.union(&h.cpus));
        let budget = self.state.node.rt_groups.then_some(pool.rt_budget_us);
        let used: u64 = held.iter().map(|h| h.rt_runtime_us).sum();
        let views: BTreeMap<String, HeldView> = held
            .iter()
            .map(|h| {
                let whole = h.cpus.intersection(&pool.isolated);
                (
                    h.owner.clone(),
                    HeldView {
                        cpus: whole.to_string(),
                        rt_budget_us: h.rt_runtime_us,
                    },
                )
            })
            .collect();
        NodeView {
            housekeeping: pool.housekeeping.to_string(),
            given_away: pool.isolated.to_string(),
            free: pool.isolated.difference(&taken).to_string(),
            rt_budget_us: budget,
            rt_free_us: budget.map(|all| all.saturating_sub(used)),
            held: views,
        }
    }
}

fn scheduler(spec: &WorkloadSpec) -> String {
    let Some(Scheduling {
        policy,
        priority,
        nice,
        ..
    }) = spec.realtime.as_ref().and_then(|r| r.scheduler.as_ref())
    else {
        return "other".to_owned();
    };
    let name = policy.as_str();
    match (priority, nice) {
        (Some(priority), _) => format!("{name} {priority}"),
        (None, Some(nice)) => format!("{name} nice {nice}"),
        _ => name.to_owned(),
    }
}
