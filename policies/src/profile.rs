//! A resolved profile: every field has its final value.

use std::collections::{BTreeMap, BTreeSet};

use oci_spec::runtime::{LinuxDeviceCgroup, LinuxDeviceCgroupBuilder, LinuxDeviceType};

use serde::{Deserialize, Serialize};

use crate::filter::Filter;
use crate::origin::Line;
use crate::spec::{LandlockSpec, Mechanism};

/// What one container may do.
#[derive(Clone, Debug, PartialEq)]
pub struct Profile {
    /// Its name.
    pub name: String,
    /// Itself first, then what it extends, in order.
    pub chain: Vec<String>,
    /// To be said aloud wherever it is used.
    pub loud: bool,
    /// Effective, permitted and bounding set, by name.
    pub capabilities: BTreeSet<&'static str>,
    /// Ambient set; part of the permitted and the inheritable one.
    pub ambient: BTreeSet<&'static str>,
    /// Sets that are not what `capabilities` and `ambient` give: bounding, permitted, effective, inheritable.
    pub sets: Sets,
    /// PR_SET_NO_NEW_PRIVS.
    pub no_new_privileges: bool,
    /// Read-only root.
    pub readonly_root: bool,
    /// Namespaces of its own.
    pub namespaces: BTreeSet<String>,
    /// A user namespace of its own.
    pub own_users: bool,
    /// Mounts from the host show the host's owners inside.
    pub idmap_mounts: bool,
    /// Flags laid on every mount.
    pub mount_flags: BTreeSet<String>,
    /// Devices allowed; every other one is denied.
    pub devices: Vec<DeviceRule>,
    /// Paths that show nothing.
    pub masked_paths: Vec<String>,
    /// Paths that cannot be written.
    pub readonly_paths: Vec<String>,
    /// Resource limits by name.
    pub rlimits: BTreeMap<String, Limit>,
    /// System calls.
    pub seccomp: Seccomp,
    /// SELinux context of the process.
    pub selinux_label: Option<String>,
    /// SELinux context of its mounts.
    pub mount_label: Option<String>,
    /// AppArmor profile.
    pub apparmor_profile: Option<String>,
    /// Kernel parameters of its own namespaces.
    pub sysctls: BTreeMap<String, String>,
    /// Landlock domain.
    pub landlock: Option<LandlockSpec>,
    /// A core scheduling cookie of its own.
    pub core_scheduling: bool,
    /// The program may be dumped, and looked into by its own user. False: no core of it, whatever pattern the node has.
    pub dumpable: bool,
    /// What happens when a proven fact no longer holds; a workload may ask for a stricter answer, never a milder one.
    pub on_drift: OnDrift,
    /// Mechanisms that may be missing; every other one refuses the launch.
    pub skip: BTreeSet<Mechanism>,
    /// Each line of it with the profile it comes from.
    pub lines: Vec<Line>,
}

/// What happens when a proven fact of a running container no longer holds, from the mildest to the strictest. It is
/// told, counted and recorded in any case.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum OnDrift {
    /// Nothing more.
    #[default]
    Report,
    /// What can be set again from outside is: cgroup, partition, CPUs and policy. The rest is told.
    Repair,
    /// It is frozen, to be looked at: `berth thaw` lets it go on.
    Freeze,
    /// It is stopped; the restart policy decides what comes then.
    Stop,
}

/// Capability sets written out; `None`: what the granted capabilities give.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sets {
    /// CapBnd.
    pub bounding: Option<BTreeSet<&'static str>>,
    /// CapPrm.
    pub permitted: Option<BTreeSet<&'static str>>,
    /// CapEff.
    pub effective: Option<BTreeSet<&'static str>>,
    /// CapInh.
    pub inheritable: Option<BTreeSet<&'static str>>,
}

impl Profile {
    /// The bounding set.
    pub fn bounding(&self) -> &BTreeSet<&'static str> {
        self.sets.bounding.as_ref().unwrap_or(&self.capabilities)
    }

    /// The permitted set.
    pub fn permitted(&self) -> &BTreeSet<&'static str> {
        self.sets.permitted.as_ref().unwrap_or(&self.capabilities)
    }

    /// The effective set.
    pub fn effective(&self) -> &BTreeSet<&'static str> {
        self.sets.effective.as_ref().unwrap_or_else(|| self.permitted())
    }

    /// The inheritable set.
    pub fn inheritable(&self) -> &BTreeSet<&'static str> {
        self.sets.inheritable.as_ref().unwrap_or(&self.ambient)
    }
}

/// A resource limit; `u64::MAX` is unlimited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit {
    /// Soft limit.
    pub soft: u64,
    /// Hard limit.
    pub hard: u64,
    /// Cut to the node's own hard limit where it may not be raised.
    pub up_to: bool,
}

/// System calls.
#[derive(Clone, Debug, PartialEq)]
pub enum Seccomp {
    /// No filter.
    Unconfined,
    /// This one; its conditions are judged when it is applied.
    Filter(Box<Filter>),
}

/// One allowed device, in the words of devices.allow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceRule {
    kind: LinuxDeviceType,
    major: Option<u32>,
    minor: Option<u32>,
    access: String,
}

impl DeviceRule {
    /// From `c 1:3 rwm`, `b *:* r`, `a *:* rwm`.
    ///
    /// # Errors
    /// What is wrong with the text.
    pub fn parse(text: &str) -> Result<Self, String> {
        let expected = "expected a device such as `c 1:3 rwm`, `b *:* r` or `a *:* rwm`";
        let words: Vec<&str> = text.split(' ').collect();
        let [kind, numbers, access] = words[..] else {
            return Err(expected.into());
        };
        let kind = match kind {
            "a" => LinuxDeviceType::A,
            "b" => LinuxDeviceType::B,
            "c" => LinuxDeviceType::C,
            _ => return Err(expected.into()),
        };
        let (major, minor) = numbers.split_once(':').ok_or(expected)?;
        let number = |word: &str, limit: u32| match word {
            "*" => Ok(None),
            _ if !word.bytes().all(|b| b.is_ascii_digit()) => Err(expected.to_owned()),
            _ => match word.parse::<u32>() {
                Ok(n) if n < limit => Ok(Some(n)),
                _ => Err(format!("{word} is not below {limit}")),
            },
        };
        let (major, minor) = (number(major, 1 << 12)?, number(minor, 1 << 20)?);
        let ordered: String = "rwm".chars().filter(|c| access.contains(*c)).collect();
        if access.is_empty() || ordered.len() != access.len() {
            return Err(format!("`{access}` is not some of r, w, m"));
        }
        if kind == LinuxDeviceType::A && (major.is_some() || minor.is_some() || ordered != "rwm") {
            return Err("`a` means every device and every access: `a *:* rwm`".into());
        }
        Ok(Self {
            kind,
            major,
            minor,
            access: ordered,
        })
    }

    /// As it was written.
    pub fn to_text(&self) -> String {
        let number = |n: Option<u32>| n.map_or("*".to_owned(), |n| n.to_string());
        let kind = match self.kind {
            LinuxDeviceType::A => 'a',
            LinuxDeviceType::B => 'b',
            _ => 'c',
        };
        format!(
            "{kind} {}:{} {}",
            number(self.major),
            number(self.minor),
            self.access
        )
    }

    /// The OCI rule that allows it.
    pub fn to_oci(&self) -> Result<LinuxDeviceCgroup, oci_spec::OciSpecError> {
        let mut rule = LinuxDeviceCgroupBuilder::default()
            .allow(true)
            .typ(self.kind)
            .access(self.access.clone());
        if let Some(major) = self.major {
            rule = rule.major(i64::from(major));
        }
        if let Some(minor) = self.minor {
            rule = rule.minor(i64::from(minor));
        }
        rule.build()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn device_words() {
        let table = [
            ("c 1:3 rwm", true),
            ("b *:* m", true),
            ("c 136:* wr", true),
            ("a *:* rwm", true),
            ("a 1:* rwm", false),
            ("c 1:3", false),
            ("c 1:3 x", false),
            ("c 1:3 rr", false),
            ("c 4096:0 r", false),
            ("c +1:0 r", false),
            ("p 1:3 r", false),
            ("", false),
        ];
        for (text, good) in table {
            let parsed = DeviceRule::parse(text);
            assert_eq!(parsed.is_ok(), good, "{text}");
            if let Ok(rule) = parsed {
                assert_eq!(DeviceRule::parse(&rule.to_text()), Ok(rule));
            }
        }
    }
}
