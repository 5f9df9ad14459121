//! What would change between two sets, field by field. Pure.

use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::document::Kind;
use crate::set::Set;

/// What happens to a document.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    /// It is new.
    Add,
    /// It is there and becomes different.
    Change,
    /// It goes.
    Remove,
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Add => "add",
            Self::Change => "change",
            Self::Remove => "remove",
        })
    }
}

/// One document's change.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Change {
    /// Its kind.
    pub kind: Kind,
    /// Its name.
    pub name: String,
    /// What happens to it.
    pub action: Action,
    /// The fields that become different; empty for `add` and `remove`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub fields: Vec<FieldChange>,
}

/// One field's change.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FieldChange {
    /// As `spec.cpus` or `metadata.labels.site`.
    pub path: String,
    /// `None` where it was not there.
    pub from: Option<Value>,
    /// `None` where it goes.
    pub to: Option<Value>,
}

impl fmt::Display for FieldChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = |value: &Option<Value>| {
            value
                .as_ref()
                .map_or_else(|| "(absent)".to_owned(), Value::to_string)
        };
        write!(f, "{}: {} → {}", self.path, text(&self.from), text(&self.to))
    }
}

/// What turns `from` into `to`: removals last, otherwise in the order of [`Kind::ALL`] and by name.
pub fn diff(from: &Set, to: &Set) -> Vec<Change> {
    let mut changes = Vec::new();
    let mut removals = Vec::new();
    for kind in Kind::ALL {
        let (old, new) = (from.values(kind), to.values(kind));
        for (name, value) in &new {
            match old.get(name) {
                None => changes.push(change(kind, name, Action::Add, Vec::new())),
                Some(before) if before == value => {}
                Some(before) => {
                    let mut fields = Vec::new();
                    compare("", Some(before), Some(value), &mut fields);
                    changes.push(change(kind, name, Action::Change, fields));
                }
            }
        }
        for name in old.keys().filter(|name| !new.contains_key(*name)) {
            removals.push(change(kind, name, Action::Remove, Vec::new()));
        }
    }
    // A rule goes before the workload it uses, that before its profile.
    removals.reverse();
    changes.append(&mut removals);
    changes
}

fn change(kind: Kind, name: &str, action: Action, fields: Vec<FieldChange>) -> Change {
    Change {
        kind,
        name: name.to_owned(),
        action,
        fields,
    }
}

fn compare(path: &str, from: Option<&Value>, to: Option<&Value>, fields: &mut Vec<FieldChange>) {
    if from == to {
        return;
    }
    if let (Some(Value::Object(old)), Some(Value::Object(new))) = (from, to) {
        let added = new.keys().filter(|key| !old.contains_key(*key));
        for key in old.keys().chain(added) {
            let below = if path.is_empty() {
                key.clone()
            } else {
                format!("{path}.{key}")
            };
            compare(&below, old.get(key), new.get(key), fields);
        }
        return;
    }
    fields.push(FieldChange {
        path: path.to_owned(),
        from: from.cloned(),
        to: to.cloned(),
    });
}
