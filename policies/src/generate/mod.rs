//! LSM policy for one workload, from its own document: a CIL module beside policies/selinux, or an AppArmor profile.
//!
//! Both are the smallest that the document asks for: what every container may do (policies/selinux/container.cil, or
//! the same in AppArmor's words), and for each thing that profile or document give beyond it one line with its reason.
//! Invariants: pure text; nothing that never.cil forbids is left out to please it, so that secilc refuses what cannot
//! be; a profile that confines nothing is refused.

mod apparmor;
mod selinux;

use crate::Profile;

/// berth's own policy, in the order secilc wants it: (file name, text).
pub const SELINUX_SOURCES: [(&str, &str); 6] = [
    ("classes.cil", include_str!("../../selinux/classes.cil")),
    ("base.cil", include_str!("../../selinux/base.cil")),
    ("berth.cil", include_str!("../../selinux/berth.cil")),
    ("container.cil", include_str!("../../selinux/container.cil")),
    ("mcs.cil", include_str!("../../selinux/mcs.cil")),
    ("never.cil", include_str!("../../selinux/never.cil")),
];

/// The categories that the policy names; CIL has no loops.
pub fn selinux_categories() -> String {
    use std::fmt::Write as _;
    let mut text = String::new();
    let mut order = String::new();
    for n in 0..1024 {
        let _ = writeln!(text, "(category c{n})");
        let _ = write!(order, " c{n}");
    }
    let _ = writeln!(text, "(categoryorder ({order}))");
    text
}

/// A host path that the workload sees.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mounted {
    /// Where inside.
    pub destination: String,
    /// It cannot be written.
    pub read_only: bool,
    /// SELinux type of the source, where the node knows one.
    pub label: Option<String>,
}

/// What a policy is made for.
#[derive(Debug)]
pub struct Wanted<'a> {
    /// The workload's name: a-z, 0-9 and `-`.
    pub workload: &'a str,
    /// Its profile, resolved.
    pub profile: &'a Profile,
    /// Host paths that it sees.
    pub mounts: &'a [Mounted],
}

/// Why there is no such policy.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GenerateError {
    /// Nothing to confine.
    #[error("profile {0} confines nothing: a policy for it would say that everything is allowed")]
    Privileged(String),
    /// A mount whose files' label is not known.
    #[error("mount at {0}: the SELinux type of its files is not known")]
    Unlabelled(String),
    /// A writable mount of files that no container may write.
    #[error("mount at {destination}: no container may write files of the type {label}")]
    NotShared {
        /// Where inside.
        destination: String,
        /// The type.
        label: String,
    },
}

impl GenerateError {
    /// What to change.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Privileged(_) => Some("name a profile that is not loud".into()),
            Self::Unlabelled(_) => {
                Some("run this on the node, with SELinux in force, or give --label DESTINATION=TYPE".into())
            }
            Self::NotShared { .. } => {
                Some("label its files berth_shared_file_t (chcon -R -t), or mount it readOnly".into())
            }
        }
    }
}

/// The name of the AppArmor profile, and of the SELinux type, of a workload.
pub fn names(workload: &str) -> (String, String) {
    (
        format!("berth-{workload}"),
        format!("berth_{}_t", workload.replace('-', "_")),
    )
}

/// The CIL module.
///
/// # Errors
/// [`GenerateError`].
pub fn selinux(wanted: &Wanted<'_>) -> Result<String, GenerateError> {
    confines(wanted.profile)?;
    selinux::module(wanted)
}

/// The AppArmor profile.
///
/// # Errors
/// [`GenerateError::Privileged`].
pub fn apparmor(wanted: &Wanted<'_>) -> Result<String, GenerateError> {
    confines(wanted.profile)?;
    Ok(apparmor::profile(wanted))
}

fn confines(profile: &Profile) -> Result<(), GenerateError> {
    if profile.loud {
        return Err(GenerateError::Privileged(profile.name.clone()));
    }
    Ok(())
}

/// `CAP_NET_RAW` → `net_raw`.
fn short(capability: &str) -> String {
    capability.trim_start_matches("CAP_").to_lowercase()
}

#[cfg(test)]
mod tests;
