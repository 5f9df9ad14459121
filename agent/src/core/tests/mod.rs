//! Journeys through `step`, as tables of what comes in and what must go out; and a property test over any order
//! of events. `World` plays the monitors and the launcher.

mod devices;
mod identity;
mod invariants;
mod journeys;
mod users;

use std::sync::Arc;

use berth_documents::{Set, Source, check_sources};
use berth_launcher::wire::{self, Exit, LaunchRequest, Refusal, Status};
use berth_rt::placement::{Core, Pool};

use super::desired::Desired;
use super::device::{Facts, RuleMatch};
use super::*;

/// A node of `cpus` single-thread cores, the first for housekeeping, with 950 ms of budget.
pub(super) fn node(cpus: u32) -> Node {
    let core = |cpu: u32| Core {
        cpus: [cpu].into_iter().collect(),
        node: 0,
    };
    Node {
        pool: Pool {
            online: (0..cpus).collect(),
            housekeeping: [0].into_iter().collect(),
            isolated: (1..cpus).collect(),
            cores: (0..cpus).map(core).collect(),
            memory_nodes: [0].into_iter().collect(),
            rt_budget_us: 950_000,
            numa: None,
        },
        rt_groups: true,
        schedstat: true,
    }
}

pub(super) fn documents(yaml: &str) -> Desired {
    let report = check_sources(
        &[Source {
            name: "t.yaml".into(),
            text: yaml.into(),
        }],
        &Set::default(),
    );
    assert!(report.faults.is_empty(), "{:?}", report.faults);
    Desired::of(&report.set)
}

pub(super) fn workload(name: &str, spec: &str) -> String {
    format!(
        "apiVersion: berth/v1\nkind: Workload\nmetadata: {{name: {name}}}\nspec: {{image: img, {spec}}}\n---\n"
    )
}

pub(super) fn rule(name: &str, spec: &str) -> String {
    format!(
        "apiVersion: berth/v1\nkind: HotplugRule\nmetadata: {{name: {name}}}\nspec: {{match: 'SUBSYSTEM==\"tty\"', {spec}}}\n---\n"
    )
}

pub(super) fn exit(code: i32) -> Report {
    Report::Exited(Exit {
        code: Some(code),
        signal: None,
        oom: false,
        at: 1,
    })
}

pub(super) fn started() -> Report {
    Report::Started {
        at: 1,
        isolation: None,
        timing: Vec::new(),
    }
}

pub(super) fn refusal(stage: &str) -> Refusal {
    Refusal {
        stage: stage.into(),
        message: "no".into(),
        hint: None,
    }
}

/// A state, its clock, and the last effects in short words.
pub(super) struct World {
    pub state: State,
    pub now: u64,
    /// Requests sent, by id, the last one.
    pub requests: BTreeMap<String, LaunchRequest>,
}

/// `launch ID`, `start ID`, `stop ID`, `release ID`, `sweep ID`, `hold KEY`, `unhold KEY`, `signal ID N`, ….
pub(super) fn short(effect: &Effect) -> Option<String> {
    Some(match effect {
        Effect::Launch { request, .. } => format!("launch {}", request.id),
        Effect::Start { id, .. } => format!("start {id}"),
        Effect::Inject {
            id,
            devices,
            interfaces,
            ..
        } => {
            let devices: Vec<&str> = devices.iter().map(|d| d.path.as_str()).collect();
            let interfaces: Vec<&str> = interfaces.iter().map(|i| i.name.as_str()).collect();
            format!("inject {id} {}", [devices, interfaces].concat().join(" "))
        }
        Effect::Eject {
            id,
            devices,
            interfaces,
        } => {
            let devices: Vec<&str> = devices.iter().map(|d| d.path.as_str()).collect();
            let interfaces: Vec<&str> = interfaces.iter().map(|i| i.name.as_str()).collect();
            format!("eject {id} {}", [devices, interfaces].concat().join(" "))
        }
        Effect::Uevent { id, action, .. } => format!("uevent {id} {action}"),
        Effect::Stop(id) => format!("stop {id}"),
        Effect::Signal(id, signal) => format!("signal {id} {signal}"),
        Effect::Freeze(id) => format!("freeze {id}"),
        Effect::Thaw(id) => format!("thaw {id}"),
        Effect::Release(id) => format!("release {id}"),
        Effect::Sweep(id) => format!("sweep {id}"),
        Effect::Hold { device, .. } => format!("hold {}", device.key),
        Effect::Unhold(key) => format!("unhold {key}"),
        Effect::Note(_) => return None,
    })
}

impl World {
    pub(super) fn new(cpus: u32, yaml: &str) -> World {
        let mut world = World {
            state: State::new(node(cpus)),
            now: 1000,
            requests: BTreeMap::new(),
        };
        world.apply(yaml);
        world
    }

    /// A world that is ready; what that caused.
    pub(super) fn ready(cpus: u32, yaml: &str) -> (World, Vec<String>) {
        let mut world = World::new(cpus, yaml);
        let out = world.step(Event::Ready);
        (world, out)
    }

    pub(super) fn step(&mut self, event: Event) -> Vec<String> {
        let effects = self.state.step(self.now, event);
        self.keep(effects)
    }

    pub(super) fn ask(&mut self, ask: Ask) -> (Result<Vec<String>, AskError>, Vec<String>) {
        let (answer, effects) = self.state.ask(self.now, ask);
        (answer, self.keep(effects))
    }

    fn keep(&mut self, effects: Vec<Effect>) -> Vec<String> {
        for effect in &effects {
            if let Effect::Launch { request, .. } = effect {
                self.requests.insert(request.id.clone(), (**request).clone());
            }
        }
        effects.iter().filter_map(short).collect()
    }

    pub(super) fn apply(&mut self, yaml: &str) -> Vec<String> {
        let node = self.state.node.clone();
        self.step(Event::Desired {
            desired: documents(yaml),
            node,
        })
    }

    pub(super) fn report(&mut self, id: &str, report: Report) -> Vec<String> {
        self.step(Event::Report {
            id: id.to_owned(),
            report,
        })
    }

    /// Created and started.
    pub(super) fn up(&mut self, id: &str) {
        self.report(
            id,
            Report::Created {
                pid: 100,
                start_time: 1,
                takes: true,
            },
        );
        let out = self.report(id, started());
        assert_eq!(out, Vec::<String>::new());
        assert_eq!(self.phase(id), "running");
    }

    /// Exit, release, gone.
    pub(super) fn down(&mut self, id: &str, code: i32) -> Vec<String> {
        assert_eq!(self.report(id, exit(code)), [format!("release {id}")]);
        self.report(id, Report::Closed)
    }

    pub(super) fn later(&mut self, ms: u64) -> Vec<String> {
        self.now += ms;
        self.step(Event::Tick)
    }

    pub(super) fn phase(&self, id: &str) -> &'static str {
        self.state
            .instances
            .get(id)
            .map_or("absent", |i| i.phase.as_str())
    }

    pub(super) fn plug(&mut self, key: &str, rule: &str, incarnation: &str) -> Vec<String> {
        self.step(Event::Device {
            facts: Arc::new(facts(key, incarnation)),
            matches: vec![matched(rule)],
            before: None,
        })
    }

    /// Plugs a device for which the rule makes `matched` of it.
    pub(super) fn plug_as(&mut self, key: &str, incarnation: &str, matched: RuleMatch) -> Vec<String> {
        self.step(Event::Device {
            facts: Arc::new(facts(key, incarnation)),
            matches: vec![matched],
            before: None,
        })
    }

    pub(super) fn unplug(&mut self, key: &str) -> Vec<String> {
        self.step(Event::DeviceGone { key: key.to_owned() })
    }

    /// What the monitor of `id` would answer to a restarted agent.
    pub(super) fn status(&self, id: &str, phase: wire::Phase) -> Status {
        Status {
            version: wire::VERSION,
            request: self.requests[id].clone(),
            phase,
            monitor_pid: 99,
            pid: Some(100),
            start_time: Some(1),
            boot_id: String::new(),
            created_at: 1,
            started_at: Some(1),
            exit: None,
            failure: None,
            proof: None,
            drift: Vec::new(),
            log: Default::default(),
            dropped_bytes: 0,
            timing: Vec::new(),
            takes: true,
        }
    }
}

/// A tty with a node, or (keys that begin with `n`) an interface.
pub(super) fn facts(key: &str, incarnation: &str) -> Facts {
    let net = key.starts_with('n');
    let sysname = key.rsplit('/').next().unwrap_or(key).to_owned();
    Facts {
        key: key.to_owned(),
        subsystem: if net { "net" } else { "tty" }.to_owned(),
        syspath: format!("/sys/devices/{sysname}"),
        devnode: (!net).then(|| format!("/dev/{sysname}")),
        devnum: (!net).then_some((false, 188, 0)),
        interface: net.then(|| sysname.clone()),
        ifindex: net.then(|| sysname[1..].parse().unwrap_or(7)),
        node: None,
        links: Vec::new(),
        incarnation: incarnation.to_owned(),
        record: String::new(),
        sysname,
    }
}

pub(super) fn matched(rule: &str) -> RuleMatch {
    RuleMatch {
        rule: rule.to_owned(),
        env: vec![("DEV".to_owned(), "x".to_owned())],
        args: vec!["--rule".to_owned()],
        ..RuleMatch::default()
    }
}
