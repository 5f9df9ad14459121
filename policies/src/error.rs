//! Why a profile was refused: where, what, and what to change.

use serde::Serialize;
use thiserror::Error;

/// One thing wrong with one field of a profile.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Error)]
#[serde(rename_all = "camelCase")]
#[error("{path}: {message}")]
pub struct Problem {
    /// The field, such as `spec.capabilities.add[0]`.
    pub path: String,
    /// What is wrong.
    pub message: String,
    /// What to change.
    pub hint: Option<String>,
}

/// Why a profile cannot be resolved or applied.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ProfileError {
    /// Neither shipped nor defined.
    #[error("there is no security profile `{name}`{}", nearest.as_ref().map(|n| format!(", did you mean `{n}`?")).unwrap_or_default())]
    Unknown {
        /// As written.
        name: String,
        /// The name nearest to it.
        nearest: Option<String>,
    },
    /// A shipped profile cannot be replaced.
    #[error("security profile `{name}` is shipped with berth and cannot be defined again")]
    Shipped {
        /// The name.
        name: String,
    },
    /// A profile builds on itself.
    #[error("security profiles extend in a circle: {}", chain.join(" -> "))]
    Circle {
        /// The names in order, the first one again at the end.
        chain: Vec<String>,
    },
    /// A field is wrong.
    #[error("security profile `{name}`: {problem}")]
    Field {
        /// The profile.
        name: String,
        /// The field and what is wrong with it.
        problem: Problem,
    },
    /// A node's own limit could not be read.
    #[error("{path}: {message}")]
    Node {
        /// The file.
        path: String,
        /// What is wrong.
        message: String,
    },
    /// The OCI document has no section to write to.
    #[error("the OCI document has no `{section}`")]
    Document {
        /// `process`, `linux` or `root`.
        section: &'static str,
    },
}

impl ProfileError {
    /// The setting to change.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Unknown {
                nearest: Some(near), ..
            } => Some(format!("write `{near}`")),
            Self::Unknown { nearest: None, .. } => {
                Some("define it with a document of kind SecurityProfile".into())
            }
            Self::Shipped { .. } => Some("give it another name and `extends` the shipped one".into()),
            Self::Circle { .. } => Some("remove one `extends` of the circle".into()),
            Self::Field { problem, .. } => problem.hint.clone(),
            Self::Node { .. } => Some("mount /proc".into()),
            Self::Document { .. } => None,
        }
    }
}
