//! Choosing the image for this node from an index. Pure.

use std::fmt;

use oci_spec::image::{Arch, Os};

/// An operating system and architecture, as images name them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Platform {
    pub(crate) os: String,
    pub(crate) architecture: String,
    pub(crate) variant: Option<String>,
}

impl Platform {
    pub(crate) fn new(os: &Os, architecture: &Arch, variant: Option<&String>) -> Self {
        Self {
            os: os.to_string(),
            architecture: architecture.to_string(),
            variant: variant.cloned(),
        }
    }

    /// This node, in the names images use: `amd64`, `arm64`, ….
    pub(crate) fn of_node(architecture: &str) -> Self {
        Self {
            os: "linux".into(),
            architecture: architecture.into(),
            variant: None,
        }
    }

    /// Whether an image for `self` runs on `node`. Every 64-bit node has the baseline variant and is not known to
    /// have more: amd64 is v1, arm64 is v8.
    pub(crate) fn runs_on(&self, node: &Self) -> bool {
        let baseline = match (self.architecture.as_str(), self.variant.as_deref()) {
            (_, None | Some("")) => true,
            ("amd64", variant) => variant == Some("v1"),
            ("arm64", variant) => variant == Some("v8"),
            _ => self.variant == node.variant,
        };
        self.os == node.os && self.architecture == node.architecture && baseline
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}/{}", self.os, self.architecture)?;
        match self.variant.as_deref() {
            None | Some("") => Ok(()),
            Some(variant) => write!(out, "/{variant}"),
        }
    }
}

/// This program's architecture in the names images use.
pub(crate) fn node_architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "x86" => "386",
        "riscv64" => "riscv64",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_runs_on_the_node_is_chosen() {
        let table = [
            ("linux", "amd64", None, "amd64", true),
            ("linux", "amd64", Some("v1"), "amd64", true),
            ("linux", "amd64", Some("v3"), "amd64", false),
            ("linux", "arm64", Some("v8"), "arm64", true),
            ("linux", "arm64", Some("v9"), "arm64", false),
            ("linux", "arm", Some("v7"), "arm64", false),
            ("windows", "amd64", None, "amd64", false),
            ("unknown", "unknown", None, "amd64", false),
        ];
        for (os, architecture, variant, node, expected) in table {
            let platform = Platform {
                os: os.into(),
                architecture: architecture.into(),
                variant: variant.map(str::to_string),
            };
            assert_eq!(
                platform.runs_on(&Platform::of_node(node)),
                expected,
                "{platform} on {node}"
            );
        }
    }
}
