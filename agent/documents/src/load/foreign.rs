//! Documents of others that are taken as they are: OpenShift's `PerformanceProfile`
//! (`performance.openshift.io/v2`) becomes the `Node` that means the same. Its faults are told at its own fields.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use berth_rt::performance_profile::{PerformanceProfileSpec, field_of};
use serde::Deserialize;
use serde::de::IgnoredAny;

use super::Reading;
use crate::document::{Kind, Metadata};
use crate::fault::Problem;
use crate::recover::{self, Outcome};
use crate::tree::Node;
use crate::values::Name;

/// `kind:` of such a document.
pub(super) const KIND: &str = "PerformanceProfile";

#[derive(Deserialize)]
enum Version {
    #[serde(rename = "performance.openshift.io/v2")]
    V2,
}

#[derive(Deserialize)]
enum OnlyKind {
    PerformanceProfile,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Envelope {
    #[serde(rename = "apiVersion")]
    _api_version: Version,
    #[serde(rename = "kind")]
    _kind: OnlyKind,
    metadata: ObjectMeta,
    spec: PerformanceProfileSpec,
    #[serde(rename = "status", default)]
    _status: Option<IgnoredAny>,
}

/// Kubernetes' ObjectMeta; what a cluster writes there has no meaning here.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ObjectMeta {
    name: Name,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
    #[serde(flatten)]
    _others: HashMap<String, IgnoredAny>,
}

impl Reading<'_> {
    /// Reads a PerformanceProfile and keeps the node it means.
    pub(super) fn foreign(&mut self, file: &Path, root: Node) {
        let Outcome {
            value,
            faults,
            poisoned,
            dead,
        } = recover::read::<Envelope>(&root);
        self.placed(file, faults);
        let named = root
            .entry("metadata")
            .and_then(|metadata| metadata.value.entry("name"));
        let Some(name) = named.and_then(|entry| entry.value.text()).map(str::to_owned) else {
            self.lost = true;
            return;
        };
        let value = value.map(|envelope| {
            let node = envelope.spec.to_node(&envelope.metadata.annotations);
            let own = envelope.spec.validate();
            let (empty, left) = (
                |path: &str| own.iter().any(|problem| problem.path == path),
                node.validate(self.topology),
            );
            let left: Vec<_> = left
                .into_iter()
                .map(|mut problem| {
                    problem.path = field_of(&problem.path);
                    let named = problem
                        .message
                        .replace("spec.cpus.housekeeping", "spec.cpu.reserved");
                    problem.message = named.replace("spec.cpus.", "spec.cpu.");
                    problem
                })
                .filter(|problem| !empty(&problem.path))
                .collect();
            let problems = own.into_iter().chain(left).map(|found| Problem {
                hint: found.hint,
                ..Problem::new(found.path, found.message)
            });
            let problems = problems.collect();
            self.problems(file, &root, problems, &poisoned, &dead);
            let metadata = Metadata {
                name: envelope.metadata.name,
                labels: BTreeMap::new(),
                annotations: BTreeMap::new(),
            };
            (metadata, node)
        });
        self.keep(file, root, (Kind::Node, name), value, poisoned, |set| {
            &mut set.nodes
        });
    }
}
