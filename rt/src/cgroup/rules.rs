//! Device rules as values: what OCI, `devices.list` and the BPF program have in common. Pure.
//!
//! Invariants: a list never holds a rule that a later one overrules wholly ([`DeviceRules::push`]), so lists do not grow
//! with plugging and unplugging, and two lists with the same history are equal.

use std::fmt;

use oci_spec::runtime::{LinuxDeviceCgroup, LinuxDeviceType};
use serde::{Deserialize, Serialize};

use super::devices::DeviceError;

/// Kind of device node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum DeviceKind {
    /// Both kinds.
    #[serde(rename = "a")]
    All,
    /// Block devices.
    #[serde(rename = "b")]
    Block,
    /// Character devices.
    #[serde(rename = "c")]
    Char,
}

/// What may be done with a device: some of read, write and mknod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Access(u8);

impl Access {
    /// Make a device node.
    pub const MKNOD: Access = Access(1);
    /// Read.
    pub const READ: Access = Access(2);
    /// Write.
    pub const WRITE: Access = Access(4);
    /// All three.
    pub const ALL: Access = Access(7);

    /// The bits as BPF has them: mknod 1, read 2, write 4.
    #[must_use]
    pub fn bits(self) -> u8 {
        self.0
    }

    pub(crate) fn from_bits(bits: u8) -> Option<Access> {
        (1..=7).contains(&bits).then_some(Access(bits))
    }

    /// This access without `other`; `None` when nothing is left.
    #[must_use]
    pub fn without(self, other: Access) -> Option<Access> {
        Access::from_bits(self.0 & !other.0)
    }

    /// This access and `other`.
    #[must_use]
    pub fn with(self, other: Access) -> Access {
        Access(self.0 | other.0)
    }

    /// Whether the two share a kind of access.
    #[must_use]
    pub fn meets(self, other: Access) -> bool {
        self.0 & other.0 != 0
    }
}

impl fmt::Display for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (bit, letter) in [(Access::READ, "r"), (Access::WRITE, "w"), (Access::MKNOD, "m")] {
            if self.meets(bit) {
                f.write_str(letter)?;
            }
        }
        Ok(())
    }
}

impl std::str::FromStr for Access {
    type Err = String;

    fn from_str(text: &str) -> Result<Access, String> {
        let mut bits = 0;
        for letter in text.chars() {
            let bit = match letter {
                'r' => Access::READ,
                'w' => Access::WRITE,
                'm' => Access::MKNOD,
                _ => {
                    return Err(format!(
                        "`{letter}` in `{text}` is none of r (read), w (write), m (mknod)"
                    ));
                }
            };
            bits |= bit.0;
        }
        Access::from_bits(bits).ok_or_else(|| "no access is given, expected some of r, w, m".into())
    }
}

impl TryFrom<String> for Access {
    type Error = String;

    fn try_from(text: String) -> Result<Access, String> {
        text.parse()
    }
}

impl From<Access> for String {
    fn from(access: Access) -> String {
        access.to_string()
    }
}

/// One rule, as in `devices.allow`: `c 1:3 rwm`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct DeviceRule {
    /// Whether it allows or denies.
    pub allow: bool,
    /// Kind of device.
    pub kind: DeviceKind,
    /// Major number, below 4096; `None` for every one.
    pub major: Option<u32>,
    /// Minor number, below 1048576; `None` for every one.
    pub minor: Option<u32>,
    /// What it is about.
    pub access: Access,
}

impl DeviceRule {
    /// The rule for one device.
    #[must_use]
    pub fn device(allow: bool, kind: DeviceKind, major: u32, minor: u32, access: Access) -> DeviceRule {
        DeviceRule {
            allow,
            kind,
            major: Some(major),
            minor: Some(minor),
            access,
        }
    }

    /// The rule for everything.
    #[must_use]
    pub fn everything(allow: bool) -> DeviceRule {
        DeviceRule {
            allow,
            kind: DeviceKind::All,
            major: None,
            minor: None,
            access: Access::ALL,
        }
    }

    pub(crate) fn is_everything(&self) -> bool {
        *self == DeviceRule::everything(self.allow)
    }

    /// Whether every device of `other` is one of this rule's.
    fn covers(&self, other: &DeviceRule) -> bool {
        let within = |outer: Option<u32>, inner: Option<u32>| outer.is_none() || outer == inner;
        (self.kind == DeviceKind::All || self.kind == other.kind)
            && within(self.major, other.major)
            && within(self.minor, other.minor)
    }

    /// Whether some device is in both rules.
    fn meets(&self, other: &DeviceRule) -> bool {
        let common = |a: Option<u32>, b: Option<u32>| a.is_none() || b.is_none() || a == b;
        let kinds = self.kind == other.kind || self.kind == DeviceKind::All || other.kind == DeviceKind::All;
        kinds
            && common(self.major, other.major)
            && common(self.minor, other.minor)
            && self.access.meets(other.access)
    }

    /// This rule in the words it was asked for in, where they mean the same: what a wider rule of `list` allows anyway
    /// (`c *:* m`) is left out of it, and others look for what they asked for in devices.list.
    pub(crate) fn as_asked(&self, list: &[DeviceRule], words: &[DeviceRule]) -> DeviceRule {
        let means_the_same = |asked: &&DeviceRule| {
            let more = asked.access.without(self.access);
            let wider = |w: &DeviceRule| w != self && w.allow && w.covers(self);
            let given = |more: Access| list.iter().any(|w| wider(w) && more.without(w.access).is_none());
            asked.access.with(self.access) == asked.access && more.is_none_or(given)
        };
        let same = |asked: &&DeviceRule| {
            DeviceRule {
                access: self.access,
                ..**asked
            } == *self
        };
        match words.iter().filter(same).rfind(means_the_same) {
            Some(asked) if self.allow => *asked,
            _ => *self,
        }
    }

    /// The line for `devices.allow` and `devices.deny`.
    pub(crate) fn line(&self) -> String {
        let kind = match self.kind {
            DeviceKind::All => "a",
            DeviceKind::Block => "b",
            DeviceKind::Char => "c",
        };
        let number = |number: Option<u32>| number.map_or("*".to_owned(), |number| number.to_string());
        format!(
            "{kind} {}:{} {}",
            number(self.major),
            number(self.minor),
            self.access
        )
    }

    /// Reads a line of `devices.list`.
    pub(crate) fn parse_line(line: &str) -> Option<DeviceRule> {
        let (kind, rest) = line.split_once(' ')?;
        let (numbers, access) = rest.split_once(' ')?;
        let (major, minor) = numbers.split_once(':')?;
        let number = |text: &str| {
            if text == "*" {
                Some(None)
            } else {
                text.parse().ok().map(Some)
            }
        };
        let kind = match kind {
            "a" => DeviceKind::All,
            "b" => DeviceKind::Block,
            "c" => DeviceKind::Char,
            _ => return None,
        };
        Some(DeviceRule {
            allow: true,
            kind,
            major: number(major)?,
            minor: number(minor)?,
            access: access.parse().ok()?,
        })
    }
}

impl fmt::Display for DeviceRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", if self.allow { "allow" } else { "deny" }, self.line())
    }
}

impl TryFrom<&LinuxDeviceCgroup> for DeviceRule {
    type Error = DeviceError;

    fn try_from(rule: &LinuxDeviceCgroup) -> Result<DeviceRule, DeviceError> {
        let wrong = |reason: String| DeviceError::Invalid {
            rule: rule.to_string(),
            reason,
        };
        let kind = match rule.typ().unwrap_or_default() {
            LinuxDeviceType::A => DeviceKind::All,
            LinuxDeviceType::B => DeviceKind::Block,
            LinuxDeviceType::C | LinuxDeviceType::U => DeviceKind::Char,
            LinuxDeviceType::P => return Err(wrong("a FIFO has no device number".into())),
        };
        let number = |number: Option<i64>, limit: u32, name: &str| match number {
            None | Some(-1) => Ok(None),
            Some(value) => match u32::try_from(value) {
                Ok(value) if value < limit => Ok(Some(value)),
                _ => Err(wrong(format!(
                    "{name} {value} is not between 0 and {}",
                    limit - 1
                ))),
            },
        };
        let major = number(rule.major(), 1 << 12, "major")?;
        let minor = number(rule.minor(), 1 << 20, "minor")?;
        let access = match rule.access().as_deref() {
            None | Some("") if !rule.allow() => Access::ALL,
            text => text.unwrap_or_default().parse().map_err(wrong)?,
        };
        Ok(DeviceRule {
            allow: rule.allow(),
            kind,
            major,
            minor,
            access,
        })
    }
}

/// The rules of a cgroup: what no rule decides is `default_allow`; of several rules the last decides.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DeviceRules {
    /// What holds where no rule matches.
    pub default_allow: bool,
    /// The rules, the last one first in rank.
    pub rules: Vec<DeviceRule>,
}

impl DeviceRules {
    /// The shortest list with the same meaning: what a later rule decides anyway is dropped.
    #[must_use]
    pub fn of(rules: &[DeviceRule]) -> DeviceRules {
        let mut list = DeviceRules {
            default_allow: false,
            rules: Vec::new(),
        };
        for rule in rules {
            list.push(*rule);
        }
        list
    }

    /// Adds a rule that ranks above all others.
    pub fn push(&mut self, rule: DeviceRule) {
        if rule.is_everything() {
            self.default_allow = rule.allow;
            self.rules.clear();
            return;
        }
        self.rules.retain_mut(|earlier| {
            let left = if rule.covers(earlier) {
                earlier.access.without(rule.access)
            } else {
                Some(earlier.access)
            };
            left.inspect(|access| earlier.access = *access).is_some()
        });
        let opposed = self
            .rules
            .iter()
            .any(|earlier| earlier.allow != rule.allow && earlier.meets(&rule));
        if rule.allow == self.default_allow && !opposed {
            return;
        }
        let same = |earlier: &&mut DeviceRule| {
            DeviceRule {
                access: rule.access,
                ..**earlier
            } == rule
        };
        match self.rules.iter_mut().find(same) {
            Some(earlier) if !opposed => earlier.access = earlier.access.with(rule.access),
            _ => self.rules.push(rule),
        }
    }

    /// Whether one access to one device is allowed.
    #[must_use]
    pub fn allows(&self, kind: DeviceKind, major: u32, minor: u32, access: Access) -> bool {
        [Access::READ, Access::WRITE, Access::MKNOD]
            .into_iter()
            .filter(|bit| access.meets(*bit))
            .all(|bit| {
                let asked = DeviceRule::device(true, kind, major, minor, bit);
                let decides = |rule: &&DeviceRule| rule.covers(&asked) && rule.access.meets(bit);
                self.rules
                    .iter()
                    .rev()
                    .find(decides)
                    .map_or(self.default_allow, |rule| rule.allow)
            })
    }

    /// The exceptions to the default, as v1 holds them.
    pub(crate) fn exceptions(&self) -> Result<Vec<DeviceRule>, DeviceError> {
        let mut exceptions: Vec<DeviceRule> = Vec::new();
        for rule in &self.rules {
            // v1 takes `a` with numbers for everything: write both kinds.
            let kinds = match rule.kind {
                DeviceKind::All => vec![DeviceKind::Block, DeviceKind::Char],
                kind => vec![kind],
            };
            for rule in kinds.into_iter().map(|kind| DeviceRule { kind, ..*rule }) {
                if rule.allow == self.default_allow {
                    if let Some(wider) = exceptions
                        .iter()
                        .find(|wider| wider.meets(&rule) && !rule.covers(wider))
                    {
                        return Err(DeviceError::NotInV1 { rule, wider: *wider });
                    }
                    exceptions.retain_mut(|earlier| {
                        let left = if rule.covers(earlier) {
                            earlier.access.without(rule.access)
                        } else {
                            Some(earlier.access)
                        };
                        left.inspect(|access| earlier.access = *access).is_some()
                    });
                } else {
                    exceptions.push(rule);
                }
            }
        }
        Ok(exceptions)
    }
}

impl fmt::Display for DeviceRules {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", DeviceRule::everything(self.default_allow))?;
        self.rules.iter().try_for_each(|rule| write!(f, ", {rule}"))
    }
}
