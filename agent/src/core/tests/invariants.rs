//! Any sequence of events keeps the invariants of `core`'s head.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

#[derive(Debug, Clone)]
enum Move {
    Plug(u8, u8),
    Unplug(u8),
    Documents(u8),
    Time(u16),
    Stop(u8),
    Start(u8),
    Restart(u8),
    /// The monitor of the n-th instance says its k-th possible word.
    Say(u8, u8),
    Tell(u8, u8),
}

fn moves() -> impl Strategy<Value = Vec<Move>> {
    let one = prop_oneof![
        (0..4u8, 0..3u8).prop_map(|(d, i)| Move::Plug(d, i)),
        (0..4u8).prop_map(Move::Unplug),
        (0..4u8).prop_map(Move::Documents),
        any::<u16>().prop_map(Move::Time),
        (0..3u8).prop_map(Move::Stop),
        (0..3u8).prop_map(Move::Start),
        (0..3u8).prop_map(Move::Restart),
        (any::<u8>(), 0..9u8).prop_map(|(n, k)| Move::Say(n, k)),
        (any::<u8>(), 0..9u8).prop_map(|(n, k)| Move::Tell(n, k)),
    ];
    proptest::collection::vec(one, 0..120)
}

fn yaml(n: u8) -> String {
    let restart = "restart: {delay: 1s, limit: 2, window: 20s}";
    let pump = workload("pump", &format!("run: onDevice, cpus: 1, {restart}"));
    let net = workload("net", &format!("run: onDevice, {restart}"));
    let card = rule("card", "workload: net, interface: {name: eth0}");
    let serial = |more: &str| rule("serial", &format!("workload: pump, {more}"));
    match n {
        0 => String::new(),
        1 => workload("a", &format!("cpus: 1, {restart}")) + &pump + &net + &serial("settle: 300ms") + &card,
        2 => workload("a", "cpus: 2") + &pump + &net + &serial("armed: 2") + &card,
        _ => {
            workload("a", "cpus: 1, memory: 64Mi")
                + &workload("b", "cpus: 1")
                + &pump
                + &serial("armed: 1, settle: 1s")
        }
    }
}

/// Which device: two ttys and two interfaces.
fn device(n: u8) -> (&'static str, &'static str) {
    [
        ("/d/tty0", "serial"),
        ("/d/tty1", "serial"),
        ("n7", "card"),
        ("n8", "card"),
    ][n as usize]
}

#[derive(Default)]
struct Watch {
    /// Containers between launch and the end of their monitor.
    monitors: BTreeSet<String>,
    /// Those told to stop or ended.
    ending: BTreeSet<String>,
    holds: BTreeSet<String>,
}

impl Watch {
    fn see(&mut self, effects: &[String]) {
        for effect in effects {
            let (word, of) = effect.split_once(' ').unwrap_or((effect, ""));
            match word {
                "launch" => {
                    assert!(
                        self.monitors.insert(of.to_owned()),
                        "{of} is launched while its monitor lives"
                    );
                    self.ending.remove(of);
                }
                "hold" => assert!(self.holds.insert(of.to_owned()), "{of} is held twice"),
                "unhold" => assert!(self.holds.remove(of), "{of} is released but not held"),
                _ => assert!(self.monitors.contains(of), "{effect}: it has no monitor"),
            }
        }
    }

    fn check(&self, state: &State) {
        let mut taken = BTreeSet::new();
        for held in state.held() {
            for cpu in held.cpus.iter().filter(|cpu| *cpu != 0) {
                assert!(taken.insert(cpu), "core {cpu} is given twice");
            }
        }
        assert!(state.held().iter().map(|h| h.rt_runtime_us).sum::<u64>() <= 950_000);
        for (id, instance) in &state.instances {
            assert_eq!(state.slots.get(&instance.slot), Some(id));
            assert_eq!(
                instance.phase.has_monitor(),
                self.monitors.contains(id),
                "{id} {:?}",
                instance.phase
            );
            if instance.phase.has_monitor() {
                assert!(instance.place.is_some(), "{id} runs without a place");
            }
            if let Slot::Device { key, .. } = &instance.slot
                && !state.devices.contains_key(key)
            {
                assert!(!instance.phase.is_live(), "{id} runs for an absent device");
            }
        }
        assert_eq!(state.slots.len(), state.instances.len());
    }
}

fn word(world: &World, id: &str, k: u8) -> Option<Report> {
    let phase = &world.state.instances.get(id)?.phase;
    Some(match k {
        0 => Report::Created {
            pid: 1,
            start_time: 1,
            takes: true,
        },
        1 => started(),
        2 if phase.is_live() || *phase == Phase::Stopping => exit(1),
        3 if phase.is_live() || *phase == Phase::Stopping => exit(0),
        4 if *phase == Phase::Launching => Report::NotLaunched {
            refusal: refusal("x"),
            reached: true,
        },
        5 if *phase == Phase::Launching => Report::NotLaunched {
            refusal: refusal("x"),
            reached: false,
        },
        6 => Report::Closed,
        7 => Report::InterfaceGone("eth0".into()),
        8 => Report::Swept(Ok(())),
        _ => Report::Failed(refusal("prove")),
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_order_of_events(moves in moves()) {
        let (mut w, out) = World::ready(3, &yaml(1));
        let mut watch = Watch::default();
        watch.see(&out);
        for step in moves.iter().cloned().chain([Move::Documents(0)]) {
            let gone = |w: &World, watch: &mut Watch| {
                watch.monitors.retain(|id| w.state.instances.get(id).is_some_and(|i| i.phase.has_monitor()));
            };
            let out = match step {
                Move::Plug(d, i) => {
                    let (key, rule) = device(d);
                    w.plug(key, rule, &i.to_string())
                }
                Move::Unplug(d) if watch.holds.contains(device(d).0) => Vec::new(),
                Move::Unplug(d) => w.unplug(device(d).0),
                Move::Documents(n) => w.apply(&yaml(n)),
                Move::Time(ms) => w.later(u64::from(ms)),
                Move::Stop(n) => w.ask(Ask::Stop(vec![["a", "pump", "net"][n as usize].to_owned()])).1,
                Move::Start(n) => w.ask(Ask::Start(vec![["a", "pump", "net"][n as usize].to_owned()])).1,
                Move::Restart(n) => w.ask(Ask::Restart(vec![["a", "pump", "net"][n as usize].to_owned()])).1,
                Move::Say(n, k) | Move::Tell(n, k) => {
                    let ids: Vec<String> = w.state.instances.keys().cloned().collect();
                    let Some(id) = ids.get(usize::from(n) % ids.len().max(1)) else { continue };
                    let Some(report) = word(&w, id, k) else { continue };
                    // The end of a monitor is in the same step as what follows from it: look between.
                    let ends = matches!(
                        (&report, &w.state.instances[id].phase),
                        (Report::Closed, Phase::Releasing)
                            | (Report::NotLaunched { .. }, _)
                            | (Report::Swept(Ok(())), Phase::Sweeping { .. })
                    );
                    if ends {
                        watch.monitors.remove(id);
                    }
                    w.report(id, report)
                }
            };
            watch.see(&out);
            gone(&w, &mut watch);
            watch.check(&w.state);
        }
        // Without documents, and with every monitor answering, everything goes.
        for _ in 0..64 {
            let ids: Vec<String> = w.state.instances.keys().cloned().collect();
            for id in ids {
                let phase = w.state.instances.get(&id).map(|i| i.phase.clone());
                let report = match phase {
                    Some(Phase::Releasing) => Report::Closed,
                    Some(Phase::Sweeping { .. }) => Report::Swept(Ok(())),
                    Some(phase) if phase.has_monitor() => exit(0),
                    _ => continue,
                };
                if !matches!(report, Report::Exited(_)) {
                    watch.monitors.remove(&id);
                }
                let out = w.report(&id, report);
                watch.see(&out);
            }
            w.later(60_000);
        }
        prop_assert!(w.state.instances.is_empty(), "{:?}", w.state.instances);
        prop_assert!(w.state.held().is_empty());
        prop_assert!(watch.holds.is_empty(), "{:?}", watch.holds);
    }
}
