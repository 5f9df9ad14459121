//! The specs that other crates own, under one name each, and how each kind is checked.
//!
//! The leaf crates know nothing of documents: what they call a problem is made one of ours here.

use std::path::Path;

use serde::de::DeserializeOwned;

use berth_rt::topology::Topology;

use crate::document::{Metadata, shown};
use crate::fault::Problem;
use crate::workload::WorkloadSpec;

pub use berth_hotplug::rule::RuleSpec;
pub use berth_policies::ProfileSpec;
pub use berth_rt::node::NodeSpec;

/// A kind's spec.
pub(crate) trait Spec: DeserializeOwned {
    /// What is wrong with it by itself, and on the node of this topology where one is given; paths start with
    /// `spec`.
    fn problems(&self, topology: Option<&Topology>) -> Vec<Problem>;

    /// Takes what the document says in other words into its own fields.
    fn fold(&mut self, metadata: &mut Metadata) -> Vec<Problem> {
        let of_none = |key: &String| {
            Problem::new(
                format!("metadata.annotations.{key}"),
                format!("annotation `{}`", shown(key)),
            )
            .expected("none: only a Workload has annotations that berth knows")
            .hint("what is for people belongs into metadata.labels")
        };
        metadata.annotations.keys().map(of_none).collect()
    }

    /// Puts what the document names by file in its place; `folder` is the document's own.
    fn inline(&mut self, _folder: &Path) -> Option<Problem> {
        None
    }
}

impl Spec for WorkloadSpec {
    fn fold(&mut self, metadata: &mut Metadata) -> Vec<Problem> {
        WorkloadSpec::fold(self, metadata)
    }

    fn problems(&self, _: Option<&Topology>) -> Vec<Problem> {
        self.validate()
    }
}

impl Spec for ProfileSpec {
    fn inline(&mut self, folder: &Path) -> Option<Problem> {
        let wrong = ProfileSpec::inline(self, |file| std::fs::read(folder.join(file))).err()?;
        // The document is refused: what else is wrong with it is told beside this.
        self.seccomp = None;
        Some(Problem {
            hint: wrong.hint,
            ..Problem::new(wrong.path, wrong.message)
        })
    }

    fn problems(&self, _: Option<&Topology>) -> Vec<Problem> {
        let found = self.validate().into_iter();
        found
            .map(|p| Problem {
                hint: p.hint,
                ..Problem::new(p.path, p.message)
            })
            .collect()
    }
}

impl Spec for NodeSpec {
    fn problems(&self, topology: Option<&Topology>) -> Vec<Problem> {
        let found = self.validate(topology).into_iter();
        found
            .map(|p| {
                let itself = self
                    .cpus
                    .housekeeping
                    .as_ref()
                    .is_some_and(|cpus| cpus.is_empty());
                let about_cpus =
                    p.path.starts_with("spec.cpus.") && !(itself && p.message.starts_with("no CPU is left"));
                let problem = Problem {
                    hint: p.hint,
                    ..Problem::new(p.path, p.message)
                };
                // What is wrong between lists is not told where one of them could not be read.
                if about_cpus {
                    problem.rests_on(&["spec.cpus.housekeeping", "spec.cpus.isolated"])
                } else {
                    problem
                }
            })
            .collect()
    }
}

impl Spec for RuleSpec {
    fn problems(&self, _: Option<&Topology>) -> Vec<Problem> {
        let found = self.validate().into_iter().map(|found| {
            let mut problem = Problem::new(format!("spec.{}", found.path), found.message);
            problem.hint = found.hint;
            problem.inside = found.at;
            problem
        });
        found.collect()
    }
}
