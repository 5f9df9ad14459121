//! Which devices a cgroup may open and make: `devices.allow`, `devices.deny`, `devices.list` in v1, a BPF program on
//! the cgroup in v2.
//!
//! A list of rules starts from "nothing is allowed"; for each kind of access the last rule that matches decides. v2
//! does exactly that. v1 keeps a default and exceptions to it and drops, without a word, a denial inside a wider
//! permission, so a list that v1 cannot hold is refused. What is in force is read from the kernel alone.

use std::path::Path;

use oci_spec::runtime::LinuxDeviceCgroup;
use thiserror::Error;

use super::bpf::{self, BpfError};
use super::file::{self, FileError};
use super::rules::{DeviceKind, DeviceRule, DeviceRules};
use super::{Cgroup, Controller, Missing, Version, program};

/// Why device rules could not be set or read.
#[derive(Debug, Error)]
pub enum DeviceError {
    /// The devices controller is not there.
    #[error(transparent)]
    Missing(#[from] Missing),
    /// A rule makes no sense.
    #[error("linux.resources.devices: `{rule}`: {reason}")]
    Invalid {
        /// The rule.
        rule: String,
        /// What is wrong with it.
        reason: String,
    },
    /// cgroup v1 cannot hold the rule.
    #[error("linux.resources.devices: `{rule}` inside `{wider}`: cgroup v1 would ignore it without a word")]
    NotInV1 {
        /// The rule.
        rule: DeviceRule,
        /// The wider rule that it is an exception to.
        wider: DeviceRule,
    },
    /// A file refused.
    #[error("device rules: {0}")]
    File(#[from] FileError),
    /// bpf(2) refused.
    #[error("device rules of {}: {error}", path.display())]
    Bpf {
        /// The cgroup's directory.
        path: std::path::PathBuf,
        /// What refused.
        #[source]
        error: BpfError,
    },
    /// The attached programs are not the one that was attached here.
    #[error("device rules of {}: {found}", path.display())]
    Foreign {
        /// The cgroup's directory.
        path: std::path::PathBuf,
        /// What is there instead.
        found: String,
    },
}

impl DeviceError {
    /// The setting to change, where the environment is at fault.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            DeviceError::Missing(missing) => missing.hint(),
            DeviceError::NotInV1 { .. } => Some("name the devices that are allowed one by one, or use cgroup v2".into()),
            DeviceError::File(error) if error.errno() == Some(libc::EPERM) => {
                Some("a parent cgroup (or the lack of CAP_SYS_ADMIN) does not permit these devices: see its devices.list".into())
            }
            DeviceError::Bpf { error, .. } => error.hint(),
            _ => None,
        }
    }
}

impl Cgroup {
    /// Sets the rules of the cgroup, from "nothing is allowed" on, in the given order.
    ///
    /// # Errors
    /// [`DeviceError`].
    pub fn set_devices(&self, rules: &[LinuxDeviceCgroup]) -> Result<(), DeviceError> {
        let rules: Vec<DeviceRule> = rules.iter().map(DeviceRule::try_from).collect::<Result<_, _>>()?;
        self.put_rules(&DeviceRules::of(&rules), &rules)
    }

    /// Sets the rules of the cgroup. With v1 a process that runs there is for a moment allowed nothing.
    ///
    /// # Errors
    /// [`DeviceError`].
    pub fn set_device_rules(&self, rules: &DeviceRules) -> Result<(), DeviceError> {
        self.put_rules(rules, &[])
    }

    /// `words`: the rules as they were asked for.
    fn put_rules(&self, rules: &DeviceRules, words: &[DeviceRule]) -> Result<(), DeviceError> {
        match self.need("linux.resources.devices", Controller::Devices)? {
            (Version::V1, dir) => {
                let exceptions = rules.exceptions()?;
                file::write(
                    &dir.join(if rules.default_allow {
                        "devices.allow"
                    } else {
                        "devices.deny"
                    }),
                    "a",
                )?;
                let name = if rules.default_allow {
                    "devices.deny"
                } else {
                    "devices.allow"
                };
                let lines = exceptions.iter().map(|e| e.as_asked(&exceptions, words).line());
                file::write_each(&dir.join(name), lines)?;
                Ok(())
            }
            (Version::V2, dir) => attach(dir, rules),
        }
    }

    /// Allows a device at run time; `rule.allow` is taken as true.
    ///
    /// # Errors
    /// [`DeviceError`].
    pub fn allow_device(&self, rule: &DeviceRule) -> Result<(), DeviceError> {
        self.change(DeviceRule { allow: true, ..*rule })
    }

    /// Denies a device at run time; `rule.allow` is taken as false. Files that are open already stay open.
    ///
    /// # Errors
    /// [`DeviceError`].
    pub fn deny_device(&self, rule: &DeviceRule) -> Result<(), DeviceError> {
        self.change(DeviceRule {
            allow: false,
            ..*rule
        })
    }

    fn change(&self, rule: DeviceRule) -> Result<(), DeviceError> {
        let (version, dir) = self.need("a device rule", Controller::Devices)?;
        let before = read(version, dir)?;
        let mut after = before.clone();
        after.push(rule);
        if version == Version::V2 {
            return if after == before {
                Ok(())
            } else {
                attach(dir, &after)
            };
        }
        if rule.is_everything() {
            return self.set_device_rules(&after);
        }
        let exceptions = after.exceptions()?;
        let name = if rule.allow {
            "devices.allow"
        } else {
            "devices.deny"
        };
        if rule.allow != before.default_allow || before.default_allow {
            let kinds = if rule.kind == DeviceKind::All {
                vec![DeviceKind::Block, DeviceKind::Char]
            } else {
                vec![rule.kind]
            };
            for kind in kinds {
                file::write(&dir.join(name), &DeviceRule { kind, ..rule }.line())?;
            }
            return Ok(());
        }
        // The kernel takes away only what has the very same numbers: go by the exceptions that are there.
        for earlier in before.exceptions()? {
            let kept = exceptions.iter().find(|kept| {
                DeviceRule {
                    access: earlier.access,
                    ..**kept
                } == earlier
            });
            let gone = kept.map_or(Some(earlier.access), |kept| earlier.access.without(kept.access));
            if let Some(access) = gone {
                file::write(&dir.join(name), &DeviceRule { access, ..earlier }.line())?;
            }
        }
        Ok(())
    }

    /// The rules in force, from the kernel: `devices.list`, or the instructions of the attached program. v1 does not tell
    /// the exceptions of a cgroup that allows by default.
    ///
    /// # Errors
    /// [`DeviceError`]; [`DeviceError::Foreign`] when a program of somebody else is attached.
    pub fn device_rules(&self) -> Result<DeviceRules, DeviceError> {
        let (version, dir) = self.need("the device rules", Controller::Devices)?;
        read(version, dir)
    }
}

fn read(version: Version, dir: &Path) -> Result<DeviceRules, DeviceError> {
    match version {
        Version::V1 => {
            let path = dir.join("devices.list");
            let mut rules = Vec::new();
            for line in file::read(&path)?.lines() {
                rules.push(DeviceRule::parse_line(line).ok_or_else(|| DeviceError::Foreign {
                    path: dir.into(),
                    found: format!("`{line}` in devices.list is not a rule"),
                })?);
            }
            Ok(DeviceRules::of(&rules))
        }
        Version::V2 => {
            let programs = bpf::attached(dir).map_err(|error| DeviceError::Bpf {
                path: dir.into(),
                error,
            })?;
            let foreign = |found: String| DeviceError::Foreign {
                path: dir.into(),
                found,
            };
            match programs.as_slice() {
                [] => Ok(DeviceRules {
                    default_allow: true,
                    rules: Vec::new(),
                }),
                [only] => program::decode(&only.instructions).ok_or_else(|| {
                    foreign(format!(
                        "program {} (tag {}) is not one of berth's",
                        only.id, only.tag
                    ))
                }),
                several => {
                    let ids = several
                        .iter()
                        .map(|p| p.id.to_string())
                        .collect::<Vec<_>>()
                        .join(", ");
                    Err(foreign(format!("{} programs are attached: {ids}", several.len())))
                }
            }
        }
    }
}

/// Attaches the program for `rules` in place of the one that is there.
fn attach(dir: &Path, rules: &DeviceRules) -> Result<(), DeviceError> {
    bpf::attach(dir, &program::assemble(rules)).map_err(|error| DeviceError::Bpf {
        path: dir.into(),
        error,
    })
}
