//! What the documents ask for, in the form the core decides with.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use berth_documents::{Document, RuleSpec, Set, WorkloadSpec};
use berth_hotplug::rule::{DeviceSpec, FilesystemSpec, InterfaceSpec, Unplug, UnplugPolicy};
use sha2::{Digest, Sha256};

/// Every workload and rule.
#[derive(Debug, Clone, Default)]
pub(crate) struct Desired {
    /// By name.
    pub workloads: BTreeMap<String, Arc<Workload>>,
    /// By name.
    pub rules: BTreeMap<String, Arc<Rule>>,
    /// Names of the security profiles that are said aloud wherever they are used.
    pub loud: BTreeSet<String>,
}

/// One workload.
#[derive(Debug, Clone)]
pub(crate) struct Workload {
    /// `metadata.name`.
    pub name: String,
    /// `metadata.labels`.
    pub labels: BTreeMap<String, String>,
    /// `spec`.
    pub spec: WorkloadSpec,
    /// Differs when anything differs that needs a new container: restart policy and labels do not.
    pub digest: String,
    /// The document as canonical JSON, for the container's notes.
    pub document: String,
}

/// One hotplug rule.
#[derive(Debug, Clone, Default)]
pub(crate) struct Rule {
    /// `metadata.name`.
    pub name: String,
    /// The workload that runs for each device.
    pub workload: String,
    /// Its devices: one, or those of a bundle.
    pub members: Vec<Member>,
    /// How many of them must be there.
    pub need: usize,
    /// Several devices make one container.
    pub bundle: bool,
    /// Devices are given to and taken from a running container; else it is made anew.
    pub hot: bool,
    /// What happens when a device goes.
    pub unplug: UnplugPolicy,
    /// Milliseconds that a container runs on without its devices.
    pub grace: u64,
    /// Its devices are known by more than their place in /sys.
    pub identity: bool,
    /// Milliseconds without an event of the device before it is taken as ready.
    pub settle: u64,
    /// Armed containers kept ready.
    pub armed: u32,
    /// Differs when anything differs that needs a new container.
    pub digest: String,
    /// The document as canonical JSON.
    pub document: String,
}

/// One device of a rule.
#[derive(Debug, Clone, Default)]
pub(crate) struct Member {
    /// Its name in a bundle.
    pub name: String,
    /// Where the device node goes.
    pub node: Option<NodeInto>,
    /// It goes in as a network interface.
    pub interface: Option<InterfaceSpec>,
    /// Its file system is mounted.
    pub filesystem: Option<FilesystemSpec>,
    /// It goes in as a PCI function; true: with its whole IOMMU group.
    pub vfio: Option<bool>,
}

impl Member {
    fn of(
        name: &str,
        device: Option<&DeviceSpec>,
        interface: Option<&InterfaceSpec>,
        filesystem: Option<&FilesystemSpec>,
    ) -> Member {
        Member {
            name: name.to_owned(),
            node: device.map(|device| NodeInto {
                access: device.access.clone(),
                path: device.path.clone(),
                mode: device.mode_bits().unwrap_or(0o600),
                uid: device.uid,
                gid: device.gid,
                links: device.links,
                uevents: device.uevents,
            }),
            interface: interface.cloned(),
            filesystem: filesystem.cloned(),
            vfio: None,
        }
    }
}

/// A device node inside the container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NodeInto {
    /// Any of `r`, `w`, `m`.
    pub access: String,
    /// Path inside; that of the host where absent.
    pub path: Option<String>,
    /// File mode.
    pub mode: u32,
    /// Owner inside.
    pub uid: u32,
    /// Group inside.
    pub gid: u32,
    /// udev's links to it too.
    pub links: bool,
    /// Its events are told inside.
    pub uevents: bool,
}

impl fmt::Display for Desired {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} workloads, {} rules",
            self.workloads.len(),
            self.rules.len()
        )
    }
}

impl Desired {
    /// What the documents ask for. They were checked before: what cannot be read here is left out by nobody.
    pub(crate) fn of(set: &Set) -> Desired {
        let profile = |name: &str| set.profiles.get(name).map(json).unwrap_or_default();
        let workloads = set.workloads.iter().map(|(name, document)| {
            (
                name.clone(),
                Arc::new(Workload::of(document, &profile(&document.spec.profile))),
            )
        });
        let rules = set
            .rules
            .iter()
            .map(|(name, document)| (name.clone(), Arc::new(Rule::of(document))));
        let custom: BTreeMap<String, berth_policies::ProfileSpec> = set
            .profiles
            .iter()
            .map(|(name, document)| (name.clone(), document.spec.clone()))
            .collect();
        let shipped = berth_policies::shipped_names().map(str::to_owned);
        let loud = shipped
            .chain(custom.keys().cloned())
            .filter(|name| berth_policies::is_loud(name, &custom))
            .collect();
        Desired {
            workloads: workloads.collect(),
            rules: rules.collect(),
            loud,
        }
    }
}

impl Workload {
    /// From its document; `profile`: that of its security profile where it is not a shipped one.
    pub(crate) fn of(document: &Document<WorkloadSpec>, profile: &str) -> Workload {
        let spec = document.spec.clone();
        // What takes effect without a new container.
        let relevant = WorkloadSpec {
            restart: Default::default(),
            ..spec.clone()
        };
        Workload {
            name: document.name().to_owned(),
            labels: document.metadata.labels.clone(),
            digest: digest(&[&json(&relevant), profile]),
            document: json(document),
            spec,
        }
    }
}

impl Rule {
    /// Are events of its devices told inside?
    pub(crate) fn tells(&self) -> bool {
        (self.members.iter()).any(|member| member.node.as_ref().is_some_and(|node| node.uevents))
    }

    /// From its document.
    pub(crate) fn of(document: &Document<RuleSpec>) -> Rule {
        let spec = &document.spec;
        // When it starts, and whether it is kept ready, is no part of what runs.
        let relevant = RuleSpec {
            settle: Default::default(),
            armed: 0,
            priority: 0,
            trigger: Vec::new(),
            ..spec.clone()
        };
        let members: Vec<Member> = match &spec.bundle {
            Some(bundle) => (bundle.devices.iter())
                .map(|m| Member {
                    vfio: m.vfio.as_ref().map(|vfio| vfio.whole_group),
                    ..Member::of(
                        &m.name,
                        m.device.as_ref(),
                        m.interface.as_ref(),
                        m.filesystem.as_ref(),
                    )
                })
                .collect(),
            None => vec![Member {
                vfio: spec.vfio.as_ref().map(|vfio| vfio.whole_group),
                ..Member::of(
                    "",
                    spec.device.as_ref(),
                    spec.interface.as_ref(),
                    spec.filesystem.as_ref(),
                )
            }],
        };
        Rule {
            name: document.name().to_owned(),
            workload: spec.workload.to_string(),
            need: spec.bundle.as_ref().map_or(1, |b| b.need.of(members.len())),
            bundle: spec.bundle.is_some(),
            hot: spec.unplug != Unplug::default()
                || spec
                    .bundle
                    .as_ref()
                    .is_some_and(|b| b.need.of(members.len()) < members.len()),
            unplug: spec.unplug.then,
            grace: spec.unplug.grace.millis(),
            identity: spec.identity.is_some(),
            members,
            settle: spec.settle.millis(),
            armed: spec.armed,
            digest: digest(&[&json(&relevant)]),
            document: json(document),
        }
    }
}

impl Workload {
    /// The workload as it runs once for a device that has gone, under a name of its own.
    pub(crate) fn once(&self, name: &str, matched: &super::device::RuleMatch, now: u64) -> Workload {
        let mut once = self.clone();
        once.name = name.to_owned();
        once.labels.extend(matched.labels.clone());
        once.spec.restart.policy = berth_documents::RestartPolicy::Never;
        let env = matched.env.iter().map(|(name, value)| berth_documents::EnvVar {
            name: name.clone(),
            value: value.clone(),
        });
        once.spec.env.extend(env);
        if !matched.args.is_empty() {
            once.spec
                .args
                .get_or_insert_default()
                .extend(matched.args.clone());
        }
        // Each removal is a run of its own.
        once.digest = format!("{}@{now}", self.digest);
        once
    }

    /// Of a container about which nothing else is known.
    pub(crate) fn bare(name: &str, image: &str) -> Workload {
        let spec: Option<WorkloadSpec> = serde_json::from_value(serde_json::json!({ "image": image })).ok();
        Workload {
            name: name.to_owned(),
            labels: BTreeMap::new(),
            spec: spec.unwrap_or_else(|| unreachable!("an image is all that a workload needs")),
            digest: String::new(),
            document: String::new(),
        }
    }
}

/// The specs hold texts and numbers only: there is nothing JSON cannot hold.
fn json<T: serde::Serialize>(value: &T) -> String {
    serde_json::to_string(value).unwrap_or_default()
}

/// The first 16 hexadecimal digits of the SHA-256 of the parts.
fn digest(parts: &[&str]) -> String {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update(part.len().to_le_bytes());
        hash.update(part);
    }
    hash.finalize()
        .iter()
        .take(8)
        .map(|byte| format!("{byte:02x}"))
        .collect()
}
