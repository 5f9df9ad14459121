//! Cores and real-time budget of one instance: the request to `berth_rt::placement`, which decides.

use berth_documents::{CpuRequest, Policy, WorkloadSpec};
use berth_launcher::wire::RtBudget;
use berth_rt::placement::{self, Cpus, Held, Placement, Pool, Refusal, Request};

use super::State;
use super::drive::Want;

/// What the node has to give.
#[derive(Debug, Clone)]
pub(crate) struct Node {
    /// Cores, memory nodes, budget.
    pub pool: Pool,
    /// Has each cgroup a real-time budget of its own (RT_GROUP_SCHED with cgroup v1)?
    pub rt_groups: bool,
    /// Does the scheduler keep an account of each thread's waits (CONFIG_SCHED_INFO)?
    pub schedstat: bool,
}

/// Budget of a workload under fifo or rr that names none, on a node with [`Node::rt_groups`], where a group
/// without one cannot have such threads at all.
const BUDGET: RtBudget = RtBudget {
    runtime_us: 100_000,
    period_us: 1_000_000,
};

/// The budget that a workload needs on this node.
pub(super) fn budget(spec: &WorkloadSpec, node: &Node) -> Option<RtBudget> {
    if !node.rt_groups {
        return None;
    }
    let realtime = spec.realtime.as_ref()?;
    let given = realtime.budget.map(|b| RtBudget {
        runtime_us: b.runtime.as_micros(),
        period_us: b.period.as_micros(),
    });
    let policy = realtime.scheduler.as_ref().map(|s| s.policy);
    given.or_else(|| matches!(policy, Some(Policy::Fifo | Policy::Rr)).then_some(BUDGET))
}

impl State {
    /// A place for `id`: the one it still has, else a new one; else why not.
    pub(super) fn reserve(&self, id: &str, want: &Want) -> Result<Placement, String> {
        if let Some(place) = self.instances.get(id).and_then(|i| i.place.clone()) {
            return Ok(place);
        }
        if let Some(place) = self.same_place(id, want) {
            return Ok(place);
        }
        ask(self, id, want, |_| false).map_err(|refusal| match refusal.hint() {
            Some(hint) => format!("{refusal} ({hint})"),
            None => refusal.to_string(),
        })
    }

    /// The cores that the slot of `id` had before, where they are free and still fit.
    fn same_place(&self, id: &str, want: &Want) -> Option<Placement> {
        want.rule.as_ref().filter(|rule| rule.identity)?;
        let slot = &self.instances.get(id)?.slot;
        let before = self
            .history
            .get(slot)?
            .place
            .as_ref()
            .filter(|place| !place.shared)?;
        let mut narrow = self.node.pool.clone();
        narrow.isolated = narrow.isolated.intersection(&before.cpus);
        let request = request(id, want, &self.node);
        let place = placement::reserve(&narrow, &held(self, |other| other == id), &request).ok()?;
        (place.cpus == before.cpus).then_some(place)
    }

    /// Everything reserved, by container id.
    pub(crate) fn held(&self) -> Vec<Held> {
        held(self, |_| false)
    }
}

/// Would `id` find a place if those for whom `without` is true had none?
pub(super) fn fits(state: &State, id: &str, want: &Want, without: impl Fn(&str) -> bool) -> bool {
    ask(state, id, want, without).is_ok()
}

fn held(state: &State, without: impl Fn(&str) -> bool) -> Vec<Held> {
    let instances = state.instances.values().filter(|i| !without(&i.id));
    // Who shares the housekeeping cores without a budget keeps nobody off anything.
    let places = instances.filter_map(|i| Some((i, i.place.as_ref()?)));
    places
        .filter(|(_, place)| !place.shared || place.rt_runtime_us > 0)
        .map(|(i, place)| place.held_by(&i.id))
        .collect()
}

fn request(id: &str, want: &Want, node: &Node) -> Request {
    let spec = &want.workload.spec;
    let budget = budget(spec, node);
    Request {
        owner: id.to_owned(),
        cpus: match spec.cpus {
            CpuRequest::Shared => Cpus::Shared,
            CpuRequest::Whole(cores) => Cpus::Whole(cores.get()),
        },
        near_node: want.device.as_ref().and_then(|device| device.node),
        rt_budget: budget.map(|b| berth_rt::cgroup::RtBudget {
            runtime_us: b.runtime_us,
            period_us: b.period_us,
        }),
    }
}

fn ask(state: &State, id: &str, want: &Want, without: impl Fn(&str) -> bool) -> Result<Placement, Refusal> {
    placement::reserve(
        &state.node.pool,
        &held(state, |other| other == id || without(other)),
        &request(id, want, &state.node),
    )
}
