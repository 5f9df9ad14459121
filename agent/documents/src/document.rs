//! The envelope every document has: `apiVersion`, `kind`, `metadata`, `spec`.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::fault::Problem;
use crate::values::Name;

/// The only value of `apiVersion`.
pub const API_VERSION: &str = "berth/v1";

/// What a document declares.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Kind {
    /// The node's own cores and real-time budget.
    Node,
    /// Something to run.
    Workload,
    /// Device → workload.
    HotplugRule,
    /// Rights of workloads.
    SecurityProfile,
}

impl Kind {
    /// Every kind, in the order in which documents are listed and written.
    pub const ALL: [Self; 4] = [
        Self::Node,
        Self::SecurityProfile,
        Self::Workload,
        Self::HotplugRule,
    ];

    /// As it is written in `kind:`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Node => "Node",
            Self::Workload => "Workload",
            Self::HotplugRule => "HotplugRule",
            Self::SecurityProfile => "SecurityProfile",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// `apiVersion`; there is one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum ApiVersion {
    #[serde(rename = "berth/v1")]
    V1,
}

/// Name and labels.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Metadata {
    /// A DNS-1123 label, one of its kind.
    pub name: Name,
    /// For people and metrics; berth reads nothing into them.
    #[serde(
        default,
        skip_serializing_if = "BTreeMap::is_empty",
        deserialize_with = "crate::state::unique"
    )]
    pub labels: BTreeMap<String, String>,
    /// CRI-O's words for fields of a Workload; gone once the document is read.
    #[serde(
        default,
        skip_serializing_if = "BTreeMap::is_empty",
        deserialize_with = "crate::state::unique"
    )]
    pub annotations: BTreeMap<String, String>,
}

/// Most characters of a label's key or value.
const LABEL_MAX: usize = 253;

impl Metadata {
    pub(crate) fn validate(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        for (key, value) in &self.labels {
            let path = format!("metadata.labels.{key}");
            let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '/');
            let ends = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
            if key.len() > LABEL_MAX
                || !key.chars().all(plain)
                || !ends(key.chars().next())
                || !ends(key.chars().last())
            {
                problems.push(Problem::new(&path, format!("label key `{}`", shown(key))).expected(
                    "at most 253 letters, digits, `-`, `_`, `.` and `/`, with a letter or digit at both ends",
                ));
            }
            if value.chars().count() > LABEL_MAX || value.chars().any(char::is_control) {
                problems.push(
                    Problem::new(&path, format!("label value `{}`", shown(value)))
                        .expected("at most 253 characters without control characters"),
                );
            }
        }
        problems
    }
}

/// A text for a message: cut, and without control characters.
pub(crate) fn shown(text: &str) -> String {
    let mut out: String = text.chars().take(64).flat_map(char::escape_debug).collect();
    if text.chars().nth(64).is_some() {
        out.push('…');
    }
    out
}

/// Where a document was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    /// The file as it was named to berth.
    pub file: PathBuf,
    /// Line of its first key, from 1.
    pub line: usize,
    /// Column of its first key, from 1.
    pub column: usize,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.file.display(), self.line, self.column)
    }
}

/// A document without its `apiVersion` and `kind`, which [`crate::Set`] says by where it keeps it.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Document<T> {
    /// Name and labels.
    pub metadata: Metadata,
    /// What is declared.
    pub spec: T,
    /// Where it was read; not part of the document, and `None` out of the state file.
    #[serde(skip)]
    pub origin: Option<Origin>,
}

impl<T> Document<T> {
    /// A document that was read nowhere.
    pub fn new(metadata: Metadata, spec: T) -> Self {
        Self {
            metadata,
            spec,
            origin: None,
        }
    }

    /// `metadata.name`.
    pub fn name(&self) -> &str {
        &self.metadata.name
    }
}
