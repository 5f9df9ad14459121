//! The canonical JSON form of a set: what the state file holds and the API carries.
//!
//! Invariants: one set has one text (keys sorted, values in their canonical text, defaults written out);
//! reading refuses an unknown version, an unknown or duplicate field and a set that is not consistent.

use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;

use serde::de::{self, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

use crate::fault::Problem;
use crate::set::Set;

/// Version of the format. A reader refuses any other.
pub const STATE_VERSION: u32 = 1;

/// A state text that is refused.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// Not JSON, or not of this shape.
    #[error("not a berth document set: {0}")]
    Syntax(#[from] serde_json::Error),
    /// Written by another version.
    #[error("a document set of version {found}: this berth reads version {STATE_VERSION}")]
    Version {
        /// The version found.
        found: u64,
    },
    /// Well-formed, but the documents are faulty: which document, and what of it.
    #[error("the document set is not consistent: {}", list(.0))]
    Inconsistent(Vec<(String, Problem)>),
}

fn list(problems: &[(String, Problem)]) -> String {
    let lines: Vec<String> = problems
        .iter()
        .map(|(what, problem)| format!("{what}: {}: {}", problem.path, problem.message))
        .collect();
    lines.join("; ")
}

impl StateError {
    /// What to do about it, where something can be done.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Syntax(_) => None,
            Self::Version { .. } => {
                Some("run the berth that wrote it, or apply the documents again".to_owned())
            }
            Self::Inconsistent(_) => Some("apply the documents again with `berth apply`".to_owned()),
        }
    }
}

#[derive(Serialize)]
struct Written<'a> {
    version: u32,
    documents: &'a Set,
}

#[derive(Deserialize)]
struct Version {
    version: u64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Read {
    #[serde(rename = "version")]
    _version: u32,
    documents: Set,
}

impl Set {
    /// The canonical JSON text.
    ///
    /// # Errors
    /// Only where a spec holds what JSON cannot (none does).
    pub fn to_json(&self) -> Result<String, serde_json::Error> {
        serde_json::to_string_pretty(&Written {
            version: STATE_VERSION,
            documents: self,
        })
    }

    /// Reads [`Set::to_json`]'s text, and checks all of it again.
    ///
    /// # Errors
    /// Another version, another shape, or documents that are refused today.
    pub fn from_json(text: &str) -> Result<Self, StateError> {
        let Version { version } = serde_json::from_str(text)?;
        if version != u64::from(STATE_VERSION) {
            return Err(StateError::Version { found: version });
        }
        let set = serde_json::from_str::<Read>(text)?.documents;
        let problems = set.validate();
        if problems.is_empty() {
            Ok(set)
        } else {
            Err(StateError::Inconsistent(problems))
        }
    }
}

/// A map whose keys must be different: serde's own would keep the last of two in silence.
pub(crate) fn unique<'de, D: Deserializer<'de>, T: Deserialize<'de>>(
    deserializer: D,
) -> Result<BTreeMap<String, T>, D::Error> {
    struct Unique<T>(PhantomData<T>);
    impl<'de, T: Deserialize<'de>> Visitor<'de> for Unique<T> {
        type Value = BTreeMap<String, T>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a map")
        }

        fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Self::Value, A::Error> {
            let mut map = BTreeMap::new();
            while let Some((key, value)) = access.next_entry::<String, T>()? {
                if map.contains_key(&key) {
                    return Err(de::Error::custom(format_args!("`{key}` is there twice")));
                }
                map.insert(key, value);
            }
            Ok(map)
        }
    }
    deserializer.deserialize_map(Unique(PhantomData))
}
