//! A set of documents: what a node is to be.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::diff::{Change, diff};
use crate::document::{Document, Kind};
use crate::specs::{NodeSpec, ProfileSpec, RuleSpec};
use crate::workload::WorkloadSpec;

/// Documents by kind and name. The key is always the document's own `metadata.name`.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Set {
    /// `kind: Node`; at most one in a consistent set.
    #[serde(default, deserialize_with = "crate::state::unique")]
    pub nodes: BTreeMap<String, Document<NodeSpec>>,
    /// `kind: Workload`.
    #[serde(default, deserialize_with = "crate::state::unique")]
    pub workloads: BTreeMap<String, Document<WorkloadSpec>>,
    /// `kind: HotplugRule`.
    #[serde(default, deserialize_with = "crate::state::unique")]
    pub rules: BTreeMap<String, Document<RuleSpec>>,
    /// `kind: SecurityProfile`.
    #[serde(default, deserialize_with = "crate::state::unique")]
    pub profiles: BTreeMap<String, Document<ProfileSpec>>,
}

/// A deletion that cannot be done.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SetError {
    /// Nothing of that kind and name is there.
    #[error("{kind} `{name}` is not there{}", near.as_ref().map(|n| format!("; did you mean `{n}`?")).unwrap_or_default())]
    Absent {
        /// The kind asked for.
        kind: Kind,
        /// The name asked for.
        name: String,
        /// A name that is there and looks like it.
        near: Option<String>,
    },
    /// Something else still needs it.
    #[error("{kind} `{name}` is used by {} and stays: delete those too, or change them first", users.join(", "))]
    Used {
        /// Its kind.
        kind: Kind,
        /// Its name.
        name: String,
        /// `Kind NAME` of each user.
        users: Vec<String>,
    },
}

impl Set {
    /// Whether there is no document at all.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many documents there are.
    pub fn len(&self) -> usize {
        self.nodes.len() + self.workloads.len() + self.rules.len() + self.profiles.len()
    }

    /// Kind and name of every document, in the order of [`Kind::ALL`], then by name.
    pub fn keys(&self) -> Vec<(Kind, String)> {
        Kind::ALL
            .into_iter()
            .flat_map(|kind| self.names(kind).map(move |name| (kind, name.to_owned())))
            .collect()
    }

    /// The names of one kind, sorted.
    pub fn names(&self, kind: Kind) -> Box<dyn Iterator<Item = &str> + '_> {
        match kind {
            Kind::Node => Box::new(self.nodes.keys().map(String::as_str)),
            Kind::Workload => Box::new(self.workloads.keys().map(String::as_str)),
            Kind::HotplugRule => Box::new(self.rules.keys().map(String::as_str)),
            Kind::SecurityProfile => Box::new(self.profiles.keys().map(String::as_str)),
        }
    }

    /// The node document, where there is one.
    pub fn node(&self) -> Option<&Document<NodeSpec>> {
        self.nodes.values().next()
    }

    /// The documents of one kind as canonical JSON values.
    pub(crate) fn values(&self, kind: Kind) -> BTreeMap<String, Value> {
        fn each<T: Serialize>(documents: &BTreeMap<String, Document<T>>) -> BTreeMap<String, Value> {
            // The specs hold maps with text keys, numbers and texts only: there is nothing JSON cannot hold.
            documents
                .iter()
                .map(|(name, document)| {
                    (
                        name.clone(),
                        serde_json::to_value(document).unwrap_or(Value::Null),
                    )
                })
                .collect()
        }
        match kind {
            Kind::Node => each(&self.nodes),
            Kind::Workload => each(&self.workloads),
            Kind::HotplugRule => each(&self.rules),
            Kind::SecurityProfile => each(&self.profiles),
        }
    }

    /// This set with the documents of `new` put in or put in place of those of the same kind and name, and
    /// what that changes. Whether the outcome is consistent was checked when `new` was read onto this set
    /// ([`crate::check`]); [`Set::validate`] checks it again.
    pub fn apply(&self, new: &Set) -> (Set, Vec<Change>) {
        let mut merged = self.clone();
        merged.nodes.extend(new.nodes.clone());
        merged.workloads.extend(new.workloads.clone());
        merged.rules.extend(new.rules.clone());
        merged.profiles.extend(new.profiles.clone());
        let changes = diff(self, &merged);
        (merged, changes)
    }

    /// This set without the documents named, and what that changes.
    ///
    /// # Errors
    /// All of them at once: a document that is not there, or that one which stays still uses.
    pub fn delete(&self, which: &[(Kind, String)]) -> Result<(Set, Vec<Change>), Vec<SetError>> {
        let mut rest = self.clone();
        let mut errors = Vec::new();
        let unique: BTreeSet<_> = which.iter().collect();
        for (kind, name) in &unique {
            let found = match kind {
                Kind::Node => rest.nodes.remove(name).is_some(),
                Kind::Workload => rest.workloads.remove(name).is_some(),
                Kind::HotplugRule => rest.rules.remove(name).is_some(),
                Kind::SecurityProfile => rest.profiles.remove(name).is_some(),
            };
            if !found {
                let near = crate::fault::nearest(name, self.names(*kind)).map(str::to_owned);
                errors.push(SetError::Absent {
                    kind: *kind,
                    name: name.clone(),
                    near,
                });
            }
        }
        for (kind, name) in unique {
            let users = rest.users(*kind, name);
            if !users.is_empty() {
                errors.push(SetError::Used {
                    kind: *kind,
                    name: name.clone(),
                    users,
                });
            }
        }
        if errors.is_empty() {
            let changes = diff(self, &rest);
            Ok((rest, changes))
        } else {
            Err(errors)
        }
    }

    /// `Kind NAME` of every document that names the one given.
    fn users(&self, kind: Kind, name: &str) -> Vec<String> {
        let mut users = Vec::new();
        match kind {
            Kind::Workload => {
                let rules = self
                    .rules
                    .iter()
                    .filter(|(_, rule)| crate::cross::workload_of(&rule.spec) == name);
                users.extend(rules.map(|(user, _)| format!("HotplugRule `{user}`")));
            }
            // A shipped profile is still there when a document of the same name goes.
            Kind::SecurityProfile if !crate::cross::is_shipped(name) => {
                let workloads = self
                    .workloads
                    .iter()
                    .filter(|(_, workload)| &*workload.spec.profile == name);
                users.extend(workloads.map(|(user, _)| format!("Workload `{user}`")));
                let profiles = self
                    .profiles
                    .iter()
                    .filter(|(_, profile)| crate::cross::base_of(&profile.spec) == Some(name));
                users.extend(profiles.map(|(user, _)| format!("SecurityProfile `{user}`")));
            }
            _ => {}
        }
        users
    }
}
