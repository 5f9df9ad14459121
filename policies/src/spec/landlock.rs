//! The `landlock` part of a profile, and what can be wrong with it.

use serde::{Deserialize, Serialize};

use super::{problem, words};
use crate::error::Problem;
use crate::names;

/// A Landlock domain (landlock(7)): everything of the kinds it handles is refused but what a rule grants.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct LandlockSpec {
    /// What is granted below which paths; nothing here: files are not handled.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub paths: Vec<LandlockPath>,
    /// TCP ports that may be bound; absent: not handled.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bind_tcp: Option<Vec<u16>>,
    /// TCP ports that may be connected to; absent: not handled.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connect_tcp: Option<Vec<u16>>,
    /// `abstractSockets`, `signals`: kept inside the domain.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub scope: Vec<String>,
}

/// What is granted below one path.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct LandlockPath {
    /// A file, or a folder with everything below it, inside the container.
    pub path: String,
    /// Of `read`, `execute`, `write`, `make`, `makeDevices`, `ioctl`.
    pub access: Vec<String>,
    /// A path that is not there is passed over; else the launch fails.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub optional: bool,
}

impl LandlockSpec {
    pub(super) fn validate(&self, found: &mut Vec<Problem>) {
        const ACCESS: [&str; 6] = ["execute", "ioctl", "make", "makeDevices", "read", "write"];
        const SCOPE: [&str; 2] = ["abstractSockets", "signals"];
        let at = "spec.landlock";
        let nothing = *self == Self::default();
        if nothing {
            let hint = "write paths, bindTcp, connectTcp or scope, or take it out".to_owned();
            found.push(problem(at, "it handles nothing".into(), Some(hint)));
        }
        let mut executes = self.paths.is_empty();
        for (index, rule) in self.paths.iter().enumerate() {
            let path = format!("{at}.paths[{index}]");
            if !rule.path.starts_with('/') || rule.path.split('/').any(|part| part == "..") {
                let message = format!(
                    "`{}`: a path inside the container is absolute and has no `..`",
                    rule.path
                );
                found.push(problem(&format!("{path}.path"), message, None));
            }
            if self.paths[..index].iter().any(|other| other.path == rule.path) {
                found.push(problem(
                    &format!("{path}.path"),
                    format!("`{}` is given twice", rule.path),
                    Some("join the two".into()),
                ));
            }
            if rule.access.is_empty() {
                let hint = Some(format!("grant one of {}", ACCESS.join(", ")));
                found.push(problem(
                    &format!("{path}.access"),
                    "it grants nothing".into(),
                    hint,
                ));
            }
            executes |= rule.access.iter().any(|a| a == "execute");
            words(
                found,
                &format!("{path}.access"),
                Some(&rule.access),
                "access",
                |name| ACCESS.contains(&name),
                |name| names::nearest(name, ACCESS),
            );
        }
        if !executes {
            let hint = "grant `execute` (and `read`) where the program lies".to_owned();
            found.push(problem(
                &format!("{at}.paths"),
                "no path may be executed".into(),
                Some(hint),
            ));
        }
        words(
            found,
            &format!("{at}.scope"),
            Some(&self.scope),
            "scope",
            |name| SCOPE.contains(&name),
            |name| names::nearest(name, SCOPE),
        );
    }
}
