//! The launch request of one instance, and what a restarted agent will find in its notes. Pure.

use std::collections::BTreeMap;

use berth_documents::{
    self as documents, CStates, Class, Duration, Isolation, Network, Policy, Relabel, Scheduling, Wakeups,
    WorkloadSpec,
};
use berth_hotplug::rule::parse_address;
use berth_launcher::wire::{
    self, BindMount, DeviceGrant, FilesystemGrant, InterfaceGrant, LaunchRequest, PlacementRequest,
    ProcessRequest, Refusal, StopRequest,
};
use berth_rt::node::KiloHertz;
use berth_rt::placement::Placement;
use berth_rt::quiet::{Huge, Irqs, Resume};
use berth_rt::sched::Scheduler;

use super::bundle::Used;
use super::desired::Rule;
use super::device::Facts;
use super::drive::Want;
use super::instance::{Given, Instance, Slot};
use super::place::{self, Node};

/// Most bytes of log kept for a container.
const LOG_MAX: u64 = 8 << 20;

/// Keys of [`LaunchRequest::notes`]. They outlive the agent: names are only added, never changed.
pub(crate) mod notes {
    /// The slot as JSON.
    pub(crate) const SLOT: &str = "slot";
    /// [`Instance::name`](super::Instance).
    pub(crate) const NAME: &str = "name";
    /// [`Instance::made_of`](super::Instance).
    pub(crate) const MADE_OF: &str = "madeOf";
    /// [`Facts`](super::super::device::Facts) as JSON.
    pub(crate) const DEVICE: &str = "device";
    /// Every device it has as JSON: `[[member, facts], …]`, where it has not exactly one.
    pub(crate) const DEVICES: &str = "devices";
    /// The workload document as canonical JSON.
    pub(crate) const WORKLOAD: &str = "workload";
    /// The rule document as canonical JSON.
    pub(crate) const RULE: &str = "rule";
}

/// [`Refusal::stage`] of what the rule itself is at fault for.
pub(super) const RULE_STAGE: &str = "rule";

fn refusal(message: String, hint: &str) -> Refusal {
    Refusal {
        stage: RULE_STAGE.to_owned(),
        message,
        hint: Some(hint.to_owned()),
    }
}

/// What the rule gives of its devices.
pub(super) fn grants(want: &Want) -> Result<Vec<Given>, Refusal> {
    let Some(rule) = &want.rule else {
        return Ok(Vec::new());
    };
    if let Some(fault) = want.matched.as_ref().and_then(|m| m.fault.as_ref()) {
        let hint = "`berth device explain` lists the device's own properties and attributes";
        return Err(refusal(format!("rule {}: {fault}", rule.name), hint));
    }
    let given = want.used.iter().map(|used| given(rule, used));
    let given: Vec<Given> = given.collect::<Result<_, _>>()?;
    let mut paths: Vec<&str> = given
        .iter()
        .flat_map(|g| &g.devices)
        .map(|d| d.path.as_str())
        .collect();
    paths.sort_unstable();
    if let Some(twice) = paths.windows(2).find(|two| two[0] == two[1]) {
        let text = format!("rule {}: two devices would be {} inside", rule.name, twice[0]);
        return Err(refusal(
            text,
            "give each device of the bundle a `device.path` of its own",
        ));
    }
    Ok(given)
}

/// What the rule gives of one device.
pub(super) fn given(rule: &Rule, used: &Used) -> Result<Given, Refusal> {
    let device = &used.facts;
    let Some(member) = rule.members.get(used.offer.member) else {
        let text = format!("rule {}: it has no device {}", rule.name, used.offer.member);
        return Err(refusal(text, "apply the rule again"));
    };
    let mut given = Given {
        member: used.offer.member,
        facts: device.clone(),
        devices: Vec::new(),
        interfaces: Vec::new(),
        functions: Vec::new(),
        taken: false,
    };
    if let Some(whole_group) = member.vfio {
        if device.subsystem != "pci" {
            let text = format!("rule {}: {} is no PCI function", rule.name, device.syspath);
            return Err(refusal(
                text,
                "match SUBSYSTEM==\"pci\", or leave `vfio` out of the rule",
            ));
        }
        given.functions.push(wire::VfioGrant {
            address: device.sysname.clone(),
            whole_group,
        });
    }
    if let Some(into) = &member.node {
        let (Some((block, major, minor)), Some(node)) = (device.devnum, &device.devnode) else {
            let text = format!("rule {}: {} has no device node", rule.name, device.syspath);
            return Err(refusal(
                text,
                "leave `device` out of the rule, or match the device that has the node",
            ));
        };
        given.devices.push(DeviceGrant {
            block,
            major,
            minor,
            path: (used.offer.path.clone())
                .or_else(|| into.path.clone())
                .unwrap_or_else(|| node.clone()),
            access: into.access.clone(),
            mode: into.mode,
            uid: into.uid,
            gid: into.gid,
            links: if into.links {
                device.links.clone()
            } else {
                Vec::new()
            },
            uevents: into.uevents,
            mount: None,
        });
    }
    if let Some(into) = &member.filesystem {
        let Some((true, major, minor)) = device.devnum else {
            let text = format!("rule {}: {} is no block device", rule.name, device.syspath);
            return Err(refusal(
                text,
                "match SUBSYSTEM==\"block\", or leave `filesystem` out of the rule",
            ));
        };
        given.devices.push(DeviceGrant {
            block: true,
            major,
            minor,
            path: into.path.clone(),
            access: if into.read_only { "r" } else { "rw" }.to_owned(),
            mode: 0,
            uid: 0,
            gid: 0,
            links: Vec::new(),
            uevents: false,
            mount: Some(FilesystemGrant {
                types: into.types.clone(),
                label: into.label.clone(),
            }),
        });
    }
    if let Some(into) = &member.interface {
        let (Some(name), Some(index)) = (&device.interface, device.ifindex) else {
            let text = format!("rule {}: {} is no network interface", rule.name, device.syspath);
            return Err(refusal(
                text,
                "match SUBSYSTEM==\"net\", or leave `interface` out of the rule",
            ));
        };
        given.interfaces.push(InterfaceGrant {
            name: name.clone(),
            index,
            rename: used.offer.interface.clone().or_else(|| into.name.clone()),
            mtu: into.mtu,
            // They were checked with the document.
            addresses: into
                .addresses
                .iter()
                .filter_map(|text| parse_address(text))
                .collect(),
            vlan: into.vlan,
        });
    }
    Ok(given)
}

/// The workload's arguments with those of the rule behind them.
pub(super) fn args(want: &Want) -> Vec<String> {
    let mut args = want.workload.spec.args.clone().unwrap_or_default();
    args.extend(want.matched.iter().flat_map(|m| m.args.iter().cloned()));
    args
}

/// What the rule adds to the environment.
pub(super) fn rule_env(want: &Want) -> Vec<(String, String)> {
    want.matched.iter().flat_map(|m| m.env.iter().cloned()).collect()
}

/// Labels of workload and rule.
pub(super) fn labels(want: &Want) -> BTreeMap<String, String> {
    let mut labels = want.workload.labels.clone();
    labels.extend(want.matched.iter().flat_map(|m| m.labels.clone()));
    labels
}

/// What a restarted agent needs to know again.
pub(super) fn notes(instance: &Instance, slot: &Slot, want: &Want) -> BTreeMap<String, String> {
    let json = |value: Result<String, serde_json::Error>| value.unwrap_or_default();
    let mut notes = BTreeMap::new();
    let mut put = |key: &str, value: String| notes.insert(key.to_owned(), value);
    put(notes::SLOT, json(serde_json::to_string(slot)));
    put(notes::NAME, instance.name.clone());
    put(notes::MADE_OF, want.made_of.clone());
    put(notes::WORKLOAD, want.workload.document.clone());
    if let Some(rule) = &want.rule {
        put(notes::RULE, rule.document.clone());
    }
    if let Some(device) = &want.device {
        put(notes::DEVICE, json(serde_json::to_string(&**device)));
    }
    let has: Vec<(usize, &Facts)> = (instance.given.iter())
        .filter(|given| !given.taken)
        .map(|given| (given.member, &*given.facts))
        .collect();
    if want.rule.as_ref().is_some_and(|rule| rule.bundle || rule.hot) {
        put(notes::DEVICES, json(serde_json::to_string(&has)));
    }
    notes
}

fn cni(spec: &WorkloadSpec) -> Option<wire::CniRequest> {
    let Network::Cni(cni) = &spec.network else {
        return None;
    };
    let port = |p: &berth_documents::Port| wire::PortRequest {
        host: p.host,
        container: p.container,
        protocol: p.protocol.as_str().into(),
        address: p.address,
    };
    Some(wire::CniRequest {
        network: cni.network.clone(),
        ports: cni.ports.iter().map(port).collect(),
    })
}

/// The request for `instance`, all but the image's digest.
pub(super) fn request(instance: &Instance, want: &Want, place: &Placement, node: &Node) -> LaunchRequest {
    let spec: &WorkloadSpec = &want.workload.spec;
    let mut env: Vec<(String, String)> = spec
        .env
        .iter()
        .map(|e| (e.name.clone(), e.value.clone()))
        .collect();
    env.extend(rule_env(want));
    LaunchRequest {
        version: wire::VERSION,
        id: instance.id.clone(),
        workload: want.workload.name.clone(),
        image: String::new(),
        profile: spec.profile.to_string(),
        process: ProcessRequest {
            command: spec.command.clone().unwrap_or_default(),
            args: args(want),
            env,
            cwd: spec.working_dir.as_ref().map(ToString::to_string),
        },
        hostname: None,
        placement: PlacementRequest {
            cpus: place.cpus.to_string(),
            mems: place.mems.to_string(),
            shared: place.shared,
            require_isolated: spec.isolation == Isolation::Required,
        },
        scheduler: scheduler(spec),
        timer_slack_ns: slack(spec),
        quiet: quiet(spec),
        rt_budget: place::budget(spec, node),
        memory_bytes: spec.memory.map(|size| size.bytes()),
        pids: spec.pids.map(u64::from),
        devices: instance.given.iter().flat_map(|g| g.devices.clone()).collect(),
        udev: want.rule.as_ref().is_some_and(|rule| rule.tells()),
        interfaces: instance.given.iter().flat_map(|g| g.interfaces.clone()).collect(),
        vfio: instance.given.iter().flat_map(|g| g.functions.clone()).collect(),
        network: match spec.network {
            Network::None | Network::Cni(_) => wire::Network::None,
            Network::Host => wire::Network::Host,
        },
        cni: cni(spec),
        mounts: spec
            .mounts
            .iter()
            .map(|m| BindMount {
                source: m.source.as_path().to_path_buf(),
                destination: m.destination.as_path().to_path_buf(),
                read_only: m.read_only,
                relabel: m.relabel.map(|relabel| match relabel {
                    Relabel::Private => wire::Relabel::Private,
                    Relabel::Shared => wire::Relabel::Shared,
                }),
            })
            .chain(
                want.matched
                    .iter()
                    .flat_map(|m| &m.mounts)
                    .map(|(source, destination, read_only)| BindMount {
                        source: source.into(),
                        destination: destination.into(),
                        read_only: *read_only,
                        relabel: None,
                    }),
            )
            .collect(),
        secrets: spec
            .secrets
            .iter()
            .map(|s| wire::SecretGrant {
                name: s.name.clone(),
                file: s.file.as_ref().map(|f| f.as_path().to_path_buf()),
                credential: s.credential.clone(),
                mode: s.mode_bits().unwrap_or(0o400),
                uid: s.uid,
                gid: s.gid,
            })
            .collect(),
        stop: StopRequest {
            signal: spec.stop.signal.number(),
            grace_ms: u64::try_from(spec.stop.grace.std().as_millis()).unwrap_or(u64::MAX),
        },
        log_max_bytes: LOG_MAX,
        labels: labels(want),
        on_drift: spec.on_drift,
        armed: matches!(instance.slot, Slot::Pool { .. }),
        probe: match spec.wakeups {
            Wakeups::Auto => !node.schedstat,
            Wakeups::Probe => true,
            Wakeups::Schedstat => false,
        },
        notes: notes(instance, &instance.slot, want),
    }
}

/// The timer slack: as it is given, else the least where a latency is asked for.
fn slack(spec: &WorkloadSpec) -> Option<u64> {
    let realtime = spec.realtime.as_ref()?;
    let target = realtime.latency_target.map(|_| 1);
    realtime.timer_slack.map(|slack| slack.as_nanos()).or(target)
}

/// What of the node's knobs is set while it runs.
fn quiet(spec: &WorkloadSpec) -> Option<wire::QuietRequest> {
    let realtime = spec.realtime.as_ref().filter(|realtime| realtime.wishes())?;
    let micros = |time: Duration| u32::try_from(time.as_micros()).unwrap_or(u32::MAX);
    let states = match realtime.c_states {
        None => None,
        Some(CStates::Enable) => Some(Resume::Any),
        Some(CStates::Disable) => Some(Resume::Within(0)),
        Some(CStates::MaxLatency(most)) => Some(Resume::Within(micros(most))),
    };
    let target = realtime
        .latency_target
        .map(|target| Resume::Within(micros(target)));
    let clock = realtime.frequency.clone().unwrap_or_default();
    let pages = realtime.hugepages.iter().map(|pages| Huge {
        size_kib: pages.size.kib(),
        count: u64::from(pages.count),
    });
    Some(wire::QuietRequest {
        strict: realtime.class != Some(Class::Soft),
        resume: match (states, target) {
            (Some(Resume::Within(a)), Some(Resume::Within(b))) => Some(Resume::Within(a.min(b))),
            (states, target) => states.or(target),
        },
        governor: clock.governor,
        min_khz: clock.min.map(KiloHertz::get),
        max_khz: clock.max.map(KiloHertz::get),
        irqs: match (realtime.irqs, realtime.class) {
            (Some(documents::Irqs::Leave), _) | (None, None) => Irqs::Leave,
            (Some(documents::Irqs::Away), _) | (None, Some(_)) => Irqs::Away,
            (Some(documents::Irqs::First), _) => Irqs::First,
            (Some(documents::Irqs::Device), _) => Irqs::Device,
        },
        hugepages: pages.collect(),
        share: realtime.share,
    })
}

/// The scheduling policy as the kernel takes it.
pub(super) fn scheduler(spec: &WorkloadSpec) -> Option<Scheduler> {
    let Scheduling {
        policy,
        priority,
        nice,
        runtime,
        deadline,
        period,
    } = spec.realtime.as_ref()?.scheduler.as_ref()?;
    let priority = priority.and_then(|p| u32::try_from(p).ok()).unwrap_or(0);
    let nice = nice.and_then(|n| i32::try_from(n).ok()).unwrap_or(0);
    let ns = |duration: &Option<Duration>| duration.map_or(0, Duration::as_nanos);
    Some(match policy {
        Policy::Other => Scheduler::Other { nice },
        Policy::Batch => Scheduler::Batch { nice },
        Policy::Idle => Scheduler::Idle,
        Policy::Fifo => Scheduler::Fifo { priority },
        Policy::Rr => Scheduler::Rr { priority },
        Policy::Deadline => {
            let deadline = deadline.or(*period);
            Scheduler::Deadline {
                runtime: ns(runtime),
                deadline: ns(&deadline),
                period: ns(period),
            }
        }
    })
}
