//! Tables for what is chosen and how a refusal reads; properties for the invariants of the module.

use super::*;
use proptest::prelude::*;

fn set(list: &str) -> CpuSet {
    list.parse().unwrap()
}

/// Two nodes with four cores each: one thread a core on node 0 (CPUs 0-3), two on node 1 (CPUs 4-11).
fn pool(isolated: &str) -> Pool {
    let online = set("0-11");
    let mut cores: Vec<Core> = (0..4)
        .map(|cpu| Core {
            cpus: [cpu].into_iter().collect(),
            node: 0,
        })
        .collect();
    cores.extend((0..4).map(|core| Core {
        cpus: [4 + core, 8 + core].into_iter().collect(),
        node: 1,
    }));
    let isolated = set(isolated);
    Pool {
        housekeeping: online.difference(&isolated),
        online,
        isolated,
        cores,
        memory_nodes: set("0-1"),
        rt_budget_us: 900_000,
        numa: None,
    }
}

fn request(owner: &str, cpus: Cpus) -> Request {
    Request {
        owner: owner.into(),
        cpus,
        near_node: None,
        rt_budget: None,
    }
}

fn held(owner: &str, cpus: &str, rt_runtime_us: u64) -> Held {
    Held {
        owner: owner.into(),
        cpus: set(cpus),
        rt_runtime_us,
    }
}

#[test]
fn whole_cores_come_with_all_their_threads_from_one_node() {
    let all = pool("1-11");
    for (count, near, cpus, mems) in [
        (1, None, "1", "0"),
        (3, None, "1-3", "0"),
        (4, None, "4-11", "1"),
        (1, Some(1), "4,8", "1"),
        (4, Some(0), "4-11", "1"),
        (5, None, "1,4-11", "0-1"),
        (5, Some(0), "1-5,8-9", "0-1"),
        (7, Some(1), "1-11", "0-1"),
    ] {
        let placement = reserve(
            &all,
            &[],
            &Request {
                near_node: near,
                ..request("pump", Cpus::Whole(count))
            },
        )
        .unwrap();
        assert_eq!(
            (
                placement.cpus.to_string().as_str(),
                placement.mems.to_string().as_str()
            ),
            (cpus, mems),
            "{count} near {near:?}"
        );
        assert!(!placement.shared);
    }
}

#[test]
fn the_policy_of_memory_nodes_refuses_what_is_too_far() {
    use crate::node::NumaPolicy::{BestEffort, None as Any, Restricted, SingleNumaNode};
    let all = "0-11";
    // Policy, what is held, cores, device's node; given?
    for (policy, taken, count, near, given) in [
        (SingleNumaNode, "", 4, None, true),
        (SingleNumaNode, "", 5, None, false),
        (SingleNumaNode, "", 4, Some(0), true),
        (SingleNumaNode, "0-1", 3, Some(0), false),
        (SingleNumaNode, "0-1", 3, None, true),
        (Restricted, "", 5, None, true),
        (Restricted, "0-1,4,8", 4, None, false),
        (Restricted, "0-1", 3, Some(0), false),
        // So many no node has.
        (Restricted, "", 6, Some(0), true),
        (BestEffort, "0-1,4,8", 4, None, true),
        (Any, "0-1", 3, Some(0), true),
    ] {
        let node = Pool {
            numa: Some(policy),
            ..pool(all)
        };
        let holders: Vec<Held> = (!taken.is_empty())
            .then(|| held("valve", taken, 0))
            .into_iter()
            .collect();
        let request = Request {
            near_node: near,
            ..request("pump", Cpus::Whole(count))
        };
        let answer = reserve(&node, &holders, &request);
        assert_eq!(
            answer.is_ok(),
            given,
            "{policy:?} {taken} {count} {near:?}: {answer:?}"
        );
    }
    let node = Pool {
        numa: Some(SingleNumaNode),
        ..pool(all)
    };
    let near = Request {
        near_node: Some(0),
        ..request("pump", Cpus::Whole(3))
    };
    let refusal = reserve(&node, &[held("valve", "0-1", 0)], &near).unwrap_err();
    assert_eq!(
        refusal.to_string(),
        "pump asks for 3 whole cores: they would come from memory nodes 1, its device is on node 0, and spec.numa.policy is single-numa-node"
    );
    assert!(refusal.hint().is_some_and(|hint| hint.contains("best-effort")));
}

#[test]
fn a_core_with_a_housekeeping_thread_is_not_given_away() {
    let split = pool("4,5,9");
    assert_eq!(
        reserve(&split, &[], &request("pump", Cpus::Whole(1)))
            .unwrap()
            .cpus,
        set("5,9")
    );
    let refusal = reserve(&split, &[], &request("pump", Cpus::Whole(2)))
        .unwrap_err()
        .to_string();
    assert_eq!(
        refusal,
        "pump asks for 2 whole cores: 1 free (CPUs 5,9) (1 can be given away); held: nothing"
    );
}

#[test]
fn shared_workloads_get_the_housekeeping_cpus_as_often_as_they_like() {
    let all = pool("4-11");
    let holders = [held("valve", "0-3", 0), held("mixer", "4,8", 0)];
    let placement = reserve(&all, &holders, &request("pump", Cpus::Shared)).unwrap();
    assert_eq!(
        placement,
        Placement {
            cpus: set("0-3"),
            mems: set("0"),
            shared: true,
            rt_runtime_us: 0
        }
    );
    let none = reserve(&pool("0-11"), &[], &request("pump", Cpus::Shared)).unwrap_err();
    assert!(
        matches!(none, Refusal::NoHousekeeping { .. }) && none.to_string().contains("0-11"),
        "{none}"
    );
}

#[test]
fn refusals_say_what_is_asked_what_is_free_and_who_has_the_rest() {
    let small = pool("2-3");
    let holders = [held("valve", "2", 400_000), held("mixer", "0-1", 300_000)];
    let cores = reserve(&small, &holders, &request("pump", Cpus::Whole(2))).unwrap_err();
    assert_eq!(
        cores.to_string(),
        "pump asks for 2 whole cores: 1 free (CPUs 3) (2 can be given away); held: valve has 2"
    );
    assert!(cores.hint().is_some());
    let budget = Some(RtBudget {
        runtime_us: 30_000,
        period_us: 100_000,
    });
    let asked = Request {
        rt_budget: budget,
        ..request("pump", Cpus::Whole(1))
    };
    assert_eq!(
        reserve(&small, &holders, &asked).unwrap_err().to_string(),
        "pump asks for a real-time budget of 300000 us a second: 200000 us of the node's 900000 us are free; held: valve \
         has 400000, mixer has 300000"
    );
    let twice = reserve(&small, &holders, &request("valve", Cpus::Whole(1))).unwrap_err();
    assert_eq!(twice.to_string(), "valve has a place already: CPUs 2");
    let full = [held("valve", "2", 0), held("mixer", "3", 0)];
    let none = reserve(&small, &full, &request("pump", Cpus::Whole(1))).unwrap_err();
    assert_eq!(
        none.to_string(),
        "pump asks for 1 whole core: none is free (2 can be given away); held: valve has 2, mixer has 3"
    );
}

#[test]
fn budgets_are_counted_in_each_second() {
    let small = pool("2-3");
    for (runtime_us, period_us, per_second) in [
        (100_000, 1_000_000, 100_000),
        (1, 3, 333_334),
        (450, 500, 900_000),
    ] {
        let rt_budget = Some(RtBudget {
            runtime_us,
            period_us,
        });
        let placement = reserve(
            &small,
            &[],
            &Request {
                rt_budget,
                ..request("pump", Cpus::Whole(1))
            },
        )
        .unwrap();
        assert_eq!(placement.rt_runtime_us, per_second);
    }
    for (runtime_us, period_us) in [(0, 10), (11, 10), (0, 0)] {
        let rt_budget = Some(RtBudget {
            runtime_us,
            period_us,
        });
        let refusal = reserve(
            &small,
            &[],
            &Request {
                rt_budget,
                ..request("pump", Cpus::Shared)
            },
        )
        .unwrap_err();
        assert!(matches!(refusal, Refusal::Invalid { .. }), "{refusal}");
    }
    assert!(matches!(
        reserve(&small, &[], &request("pump", Cpus::Whole(0))),
        Err(Refusal::Invalid { .. })
    ));
}

#[test]
fn a_node_without_memory_is_given_the_memory_of_the_others() {
    let mut all = pool("4-11");
    all.memory_nodes = set("0");
    assert_eq!(
        reserve(&all, &[], &request("pump", Cpus::Whole(1))).unwrap().mems,
        set("0")
    );
}

fn requests() -> impl Strategy<Value = Vec<Request>> {
    let cpus = prop_oneof![Just(Cpus::Shared), (0u32..5).prop_map(Cpus::Whole)];
    let budget = proptest::option::of((0u64..400_000, 1u64..1_000_000)).prop_map(|budget| {
        budget.map(|(runtime_us, period_us)| RtBudget {
            runtime_us,
            period_us,
        })
    });
    let one = (cpus, proptest::option::of(0u32..3), budget);
    proptest::collection::vec(one, 0..12).prop_map(|all| {
        let named = |(at, (cpus, near_node, rt_budget))| Request {
            owner: format!("w{at}"),
            cpus,
            near_node,
            rt_budget,
        };
        all.into_iter().enumerate().map(named).collect()
    })
}

proptest! {
    #[test]
    fn nobody_shares_a_core_and_the_budget_holds(isolated in proptest::collection::btree_set(0u32..12, 0..12), requests in requests()) {
        let isolated: CpuSet = isolated.into_iter().collect();
        let pool = pool(&isolated.to_string());
        let mut holders: Vec<Held> = Vec::new();
        for request in &requests {
            let taken = holders.iter().fold(CpuSet::new(), |sum, held| sum.union(&held.cpus));
            let free = pool.whole_cores().filter(|core| core.cpus.is_disjoint(&taken)).count();
            let outcome = reserve(&pool, &holders, request);
            prop_assert_eq!(&outcome, &reserve(&pool, &holders, request));
            match outcome {
                Ok(placement) => {
                    if let Cpus::Whole(count) = request.cpus {
                        prop_assert!(placement.cpus.is_disjoint(&taken) && placement.cpus.is_subset(&pool.isolated));
                        let given: Vec<_> = pool.cores.iter().filter(|core| !core.cpus.is_disjoint(&placement.cpus)).collect();
                        prop_assert_eq!(given.len(), count as usize);
                        prop_assert!(given.iter().all(|core| core.cpus.is_subset(&placement.cpus)));
                    } else {
                        prop_assert_eq!(&placement.cpus, &pool.housekeeping);
                    }
                    prop_assert!(!placement.mems.is_empty());
                    holders.push(placement.held_by(&request.owner));
                }
                Err(Refusal::Cores { asked, .. }) => prop_assert!((asked as usize) > free),
                Err(Refusal::Budget { asked_us, free_us, .. }) => prop_assert!(asked_us > free_us),
                Err(_) => {}
            }
            prop_assert!(holders.iter().map(|held| held.rt_runtime_us).sum::<u64>() <= pool.rt_budget_us);
        }
    }
}
