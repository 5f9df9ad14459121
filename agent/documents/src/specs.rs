//! The specs that other crates own, under one name each, and how each kind is checked.
//!
//! The leaf crates know nothing of documents: what they call a problem is made one of ours here.

use serde::de::DeserializeOwned;

use crate::fault::Problem;
use crate::workload::WorkloadSpec;

pub use berth_hotplug::rule::RuleSpec;

/// `kind: Node`.
pub type NodeSpec = serde_json::Value;
/// `kind: SecurityProfile`.
pub type ProfileSpec = serde_json::Value;

/// A kind's spec.
pub(crate) trait Spec: DeserializeOwned {
    /// What is wrong with it by itself; paths start with `spec`.
    fn problems(&self) -> Vec<Problem>;
}

impl Spec for WorkloadSpec {
    fn problems(&self) -> Vec<Problem> {
        self.validate()
    }
}

impl Spec for serde_json::Value {
    fn problems(&self) -> Vec<Problem> {
        Vec::new()
    }
}

impl Spec for RuleSpec {
    fn problems(&self) -> Vec<Problem> {
        let mut problems: Vec<Problem> = self
            .validate()
            .into_iter()
            .map(|found| {
                let mut problem = Problem::new(format!("spec.{}", found.path), found.message);
                problem.hint = found.hint;
                problem.inside = found.at;
                problem
            })
            .collect();
        // Only these three are made for each device; the rest is fixed before it comes, armed or not.
        let device = self.device.as_ref().and_then(|device| device.path.as_deref());
        let interface = self
            .interface
            .as_ref()
            .and_then(|interface| interface.name.as_deref());
        for (path, text) in [("spec.device.path", device), ("spec.interface.name", interface)] {
            if text.is_some_and(|text| text.contains(['$', '%'])) {
                problems.retain(|problem| problem.path != path);
                problems.push(
                    Problem::new(
                        path,
                        format!(
                            "a template: `{}`",
                            crate::document::shown(text.unwrap_or_default())
                        ),
                    )
                    .expected("fixed text")
                    .hint("templates may stand in env, args and labels only"),
                );
            }
        }
        problems
    }
}
