//! Placement: which cores, memory nodes and real-time budget a workload gets. Pure: the pool and what is held go in, a
//! placement or a refusal comes out, and nothing is touched.
//!
//! Invariants: whole cores come from the isolated CPUs, are given with all their hardware threads, and to one owner only;
//! shared workloads run on the housekeeping CPUs; the real-time budgets of all owners together stay within the pool's,
//! whatever their CPUs (the kernel's budget is one for the node). The same input gives the same placement.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::cgroup::RtBudget;
use crate::cpu::CpuSet;
use crate::node::NumaPolicy;

/// One core with its hardware threads.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Core {
    /// Its hardware threads that are online.
    pub cpus: CpuSet,
    /// Its memory node.
    pub node: u32,
}

/// What there is to give.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Pool {
    /// Every CPU that is online.
    pub online: CpuSet,
    /// Where everything runs that is not given a core.
    pub housekeeping: CpuSet,
    /// The CPUs that are given away as whole cores.
    pub isolated: CpuSet,
    /// Every core of the node.
    pub cores: Vec<Core>,
    /// The memory nodes that have memory.
    pub memory_nodes: CpuSet,
    /// Real-time budget for all workloads together, in microseconds of each second.
    pub rt_budget_us: u64,
    /// How strictly cores and device come from one memory node; they do where that can be, whatever it says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub numa: Option<NumaPolicy>,
}

impl Pool {
    /// The cores that can be given away: all their threads are isolated.
    pub fn whole_cores(&self) -> impl Iterator<Item = &Core> {
        self.cores
            .iter()
            .filter(|core| !core.cpus.is_empty() && core.cpus.is_subset(&self.isolated))
    }
}

/// What an owner holds already.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Held {
    /// Who holds it.
    pub owner: String,
    /// Its CPUs; those of a shared workload are the housekeeping ones.
    pub cpus: CpuSet,
    /// Its real-time budget, in microseconds of each second.
    pub rt_runtime_us: u64,
}

/// The CPUs that a workload asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Cpus {
    /// So many whole cores, for itself alone; at least 1.
    Whole(u32),
    /// The housekeeping CPUs, with everybody else.
    Shared,
}

/// What a workload asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// Who asks.
    pub owner: String,
    /// Which CPUs.
    pub cpus: Cpus,
    /// The memory node to be near to, such as that of a device: a wish, not a condition.
    pub near_node: Option<u32>,
    /// Real-time budget.
    pub rt_budget: Option<RtBudget>,
}

/// What a workload gets.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Placement {
    /// Its CPUs.
    pub cpus: CpuSet,
    /// Its memory nodes: those of its CPUs that have memory, else all that have.
    pub mems: CpuSet,
    /// Whether others run on the CPUs too.
    pub shared: bool,
    /// Its real-time budget, in microseconds of each second.
    pub rt_runtime_us: u64,
}

impl Placement {
    /// The placement as something held.
    #[must_use]
    pub fn held_by(&self, owner: &str) -> Held {
        Held {
            owner: owner.into(),
            cpus: self.cpus.clone(),
            rt_runtime_us: self.rt_runtime_us,
        }
    }
}

/// Why a workload gets no place: what was asked, what is free, who has the rest.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum Refusal {
    /// The owner has a place already.
    #[error("{owner} has a place already: CPUs {cpus}")]
    Twice {
        /// Who asks.
        owner: String,
        /// What it has.
        cpus: CpuSet,
    },
    /// The request makes no sense.
    #[error("{owner} asks for {what}")]
    Invalid {
        /// Who asks.
        owner: String,
        /// What is wrong.
        what: String,
    },
    /// There are not enough whole cores.
    #[error("{owner} asks for {}: {} ({total} can be given away); held: {}", cores(*asked as usize), free_cores(free), list(held))]
    Cores {
        /// Who asks.
        owner: String,
        /// How many cores it asks for.
        asked: u32,
        /// The cores that are free.
        free: Vec<CpuSet>,
        /// How many cores the node gives away at all.
        total: usize,
        /// Who has the rest.
        held: Vec<(String, CpuSet)>,
    },
    /// There are enough whole cores, but not on the memory nodes that the node's policy wants.
    #[error("{owner} asks for {}: they would come from memory nodes {nodes}{}, and spec.numa.policy is {policy}",
        cores(*asked as usize), near.map(|node| format!(", its device is on node {node}")).unwrap_or_default())]
    Numa {
        /// Who asks.
        owner: String,
        /// How many cores it asks for.
        asked: u32,
        /// Where they are free.
        nodes: CpuSet,
        /// The node of its device.
        near: Option<u32>,
        /// `restricted` or `single-numa-node`.
        policy: &'static str,
    },
    /// There is no shared CPU.
    #[error(
        "{owner} asks for the shared CPUs, but the node keeps none of its CPUs {online} for housekeeping"
    )]
    NoHousekeeping {
        /// Who asks.
        owner: String,
        /// The CPUs that are online.
        online: CpuSet,
    },
    /// There is not enough real-time budget.
    #[error(
        "{owner} asks for a real-time budget of {asked_us} us a second: {free_us} us of the node's {total_us} us are free; \
         held: {}",
        list(held)
    )]
    Budget {
        /// Who asks.
        owner: String,
        /// What it asks for, in microseconds of each second.
        asked_us: u64,
        /// What is free.
        free_us: u64,
        /// What the node has.
        total_us: u64,
        /// Who has the rest, in microseconds of each second.
        held: Vec<(String, u64)>,
    },
}

impl Refusal {
    /// The setting to change.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            Refusal::Twice { .. } | Refusal::Invalid { .. } => None,
            Refusal::Cores { .. } => Some(
                "ask for fewer cores or `cpus: shared`, stop a holder, or give the node more isolated CPUs"
                    .into(),
            ),
            Refusal::Numa { .. } => Some(
                "stop a holder on the other node, ask for fewer cores, or set spec.numa.policy to best-effort".into(),
            ),
            Refusal::NoHousekeeping { .. } => Some("set spec.cpus.housekeeping of the Node document".into()),
            Refusal::Budget { .. } => {
                Some("ask for less, stop a holder, or raise spec.realtime.budget of the Node document".into())
            }
        }
    }
}

fn cores(count: usize) -> String {
    if count == 1 {
        "1 whole core".into()
    } else {
        format!("{count} whole cores")
    }
}

fn free_cores(free: &[CpuSet]) -> String {
    let list = free
        .iter()
        .map(|cpus| format!("CPUs {cpus}"))
        .collect::<Vec<_>>()
        .join(", ");
    if free.is_empty() {
        "none is free".into()
    } else {
        format!("{} free ({list})", free.len())
    }
}

fn list<T: fmt::Display>(held: &[(String, T)]) -> String {
    if held.is_empty() {
        return "nothing".into();
    }
    held.iter()
        .map(|(owner, what)| format!("{owner} has {what}"))
        .collect::<Vec<_>>()
        .join(", ")
}

/// Finds a place for `request`, or says why there is none.
///
/// # Errors
/// [`Refusal`].
pub fn reserve(pool: &Pool, held: &[Held], request: &Request) -> Result<Placement, Refusal> {
    let owner = || request.owner.clone();
    if let Some(has) = held.iter().find(|held| held.owner == request.owner) {
        return Err(Refusal::Twice {
            owner: owner(),
            cpus: has.cpus.clone(),
        });
    }
    let rt_runtime_us = budget(pool, held, request)?;
    let (cpus, shared) = match request.cpus {
        Cpus::Shared if pool.housekeeping.is_empty() => {
            return Err(Refusal::NoHousekeeping {
                owner: owner(),
                online: pool.online.clone(),
            });
        }
        Cpus::Shared => (pool.housekeeping.clone(), true),
        Cpus::Whole(0) => {
            return Err(Refusal::Invalid {
                owner: owner(),
                what: "0 whole cores: at least 1".into(),
            });
        }
        Cpus::Whole(count) => {
            let cpus = whole(pool, held, request, count)?;
            near_enough(pool, request, count, &cpus)?;
            (cpus, false)
        }
    };
    let near: CpuSet = pool
        .cores
        .iter()
        .filter(|core| !core.cpus.is_disjoint(&cpus))
        .map(|core| core.node)
        .collect();
    let mems = near.intersection(&pool.memory_nodes);
    let mems = if mems.is_empty() {
        pool.memory_nodes.clone()
    } else {
        mems
    };
    Ok(Placement {
        cpus,
        mems,
        shared,
        rt_runtime_us,
    })
}

/// The budget in microseconds of each second, rounded up, if there is so much left.
fn budget(pool: &Pool, held: &[Held], request: &Request) -> Result<u64, Refusal> {
    let Some(RtBudget {
        runtime_us,
        period_us,
    }) = request.rt_budget
    else {
        return Ok(0);
    };
    if runtime_us == 0 || runtime_us > period_us {
        let what = format!(
            "a real-time budget of {runtime_us} us in {period_us} us: 0 < runtime ≤ period is needed"
        );
        return Err(Refusal::Invalid {
            owner: request.owner.clone(),
            what,
        });
    }
    let asked = (u128::from(runtime_us) * 1_000_000).div_ceil(u128::from(period_us));
    let asked_us = u64::try_from(asked).unwrap_or(u64::MAX);
    let taken = held
        .iter()
        .fold(0u64, |sum, held| sum.saturating_add(held.rt_runtime_us));
    let free_us = pool.rt_budget_us.saturating_sub(taken);
    if asked_us <= free_us {
        return Ok(asked_us);
    }
    let holders = held.iter().filter(|held| held.rt_runtime_us > 0);
    Err(Refusal::Budget {
        owner: request.owner.clone(),
        asked_us,
        free_us,
        total_us: pool.rt_budget_us,
        held: holders
            .map(|held| (held.owner.clone(), held.rt_runtime_us))
            .collect(),
    })
}

/// `count` free cores: all on the near node, else all on the node that they fill best, else near ones first and then from
/// the nodes with the most free cores.
fn whole(pool: &Pool, held: &[Held], request: &Request, count: u32) -> Result<CpuSet, Refusal> {
    let taken = held.iter().fold(CpuSet::new(), |sum, held| sum.union(&held.cpus));
    let mut free: BTreeMap<u32, Vec<&CpuSet>> = BTreeMap::new();
    for core in pool.whole_cores().filter(|core| core.cpus.is_disjoint(&taken)) {
        free.entry(core.node).or_default().push(&core.cpus);
    }
    free.values_mut().for_each(|cores| cores.sort());
    let wanted = count as usize;
    let fits = |cores: &Vec<&CpuSet>| cores.len() >= wanted;
    let near = request.near_node.filter(|node| free.get(node).is_some_and(fits));
    let best = free
        .iter()
        .filter(|(_, cores)| fits(cores))
        .min_by_key(|(node, cores)| (cores.len(), **node));
    let mut order: Vec<(&u32, &Vec<&CpuSet>)> = match near.or(best.map(|(node, _)| *node)) {
        Some(node) => free.iter().filter(|(id, _)| **id == node).collect(),
        None => free.iter().collect(),
    };
    order.sort_by_key(|(node, cores)| {
        (
            Some(**node) != request.near_node,
            usize::MAX - cores.len(),
            **node,
        )
    });
    let chosen: Vec<&CpuSet> = order
        .into_iter()
        .flat_map(|(_, cores)| cores.iter().copied())
        .take(wanted)
        .collect();
    if chosen.len() == wanted {
        return Ok(chosen
            .into_iter()
            .fold(CpuSet::new(), |sum, cpus| sum.union(cpus)));
    }
    let holders = held.iter().filter(|held| !held.cpus.is_disjoint(&pool.isolated));
    Err(Refusal::Cores {
        owner: request.owner.clone(),
        asked: count,
        free: free.into_values().flatten().cloned().collect(),
        total: pool.whole_cores().count(),
        held: holders
            .map(|held| (held.owner.clone(), held.cpus.clone()))
            .collect(),
    })
}

/// Whether the policy takes the memory nodes of the chosen cores: `single-numa-node` one, the device's; `restricted` no more
/// than an empty node of this shape would need, and the device's where that has so many cores.
fn near_enough(pool: &Pool, request: &Request, count: u32, chosen: &CpuSet) -> Result<(), Refusal> {
    let nodes: CpuSet = pool
        .cores
        .iter()
        .filter(|core| !core.cpus.is_disjoint(chosen))
        .map(|core| core.node)
        .collect();
    let mut there: BTreeMap<u32, u32> = BTreeMap::new();
    for core in pool.whole_cores() {
        *there.entry(core.node).or_default() += 1;
    }
    let elsewhere = |node: u32| !nodes.contains(node) || nodes.len() > 1;
    let (policy, refused) = match pool.numa {
        Some(NumaPolicy::SingleNumaNode) => (
            "single-numa-node",
            nodes.len() > 1 || request.near_node.is_some_and(elsewhere),
        ),
        Some(NumaPolicy::Restricted) => {
            let mut counts: Vec<u32> = there.values().copied().collect();
            counts.sort_unstable_by(|a, b| b.cmp(a));
            let mut sum = 0;
            let least = 1 + counts
                .iter()
                .take_while(|here| {
                    sum += **here;
                    sum < count
                })
                .count();
            let could = request
                .near_node
                .filter(|node| there.get(node).is_some_and(|here| *here >= count));
            ("restricted", nodes.len() > least || could.is_some_and(elsewhere))
        }
        Some(NumaPolicy::None | NumaPolicy::BestEffort) | None => return Ok(()),
    };
    if !refused {
        return Ok(());
    }
    Err(Refusal::Numa {
        owner: request.owner.clone(),
        asked: count,
        nodes,
        near: request.near_node,
        policy,
    })
}

#[cfg(test)]
mod tests;
