//! The `HotplugRule` document: its `spec` and its validation.
//!
//! Invariants: unknown keys are refused; [`RuleSpec::validate`] finds every fault in one run; a
//! [`Rule`](super::Rule) exists only for a spec without faults.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Identity, MatchSpec};
use crate::event::Action;
use crate::safe;

/// Longest `settle`.
pub(super) const SETTLE_MAX: Duration = Duration::from_secs(600);
/// Longest `unplug.grace`.
pub(super) const GRACE_MAX: Duration = Duration::from_secs(3600);
/// Most armed containers of one rule.
pub(super) const ARMED_MAX: u32 = 64;
/// Most addresses of one interface.
pub(super) const ADDRESSES_MAX: usize = 16;
/// Most devices of a bundle, and most mounts of a rule.
pub(super) const LIST_MAX: usize = 32;

/// `spec` of a `HotplugRule`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RuleSpec {
    /// Lines of udev's match grammar, all of which must hold, or `all:`, `any:`, `not:` of such. Not with `bundle`,
    /// whose devices have a match each.
    #[serde(rename = "match", default, skip_serializing_if = "Option::is_none")]
    pub matches: Option<MatchSpec>,
    /// Name of the workload that runs for the device. Not with `forbid`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub workload: String,
    /// Nothing runs for the devices that match, whatever rules of lower priority say.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub forbid: bool,
    /// What must have happened to the device; `[add]` by default: it is there. `bind`: a driver has it; `change`,
    /// `move`, `online`, `offline`, `unbind`: that event was seen since it is there; `remove` (alone): it has gone,
    /// and the workload runs once.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub trigger: Vec<Action>,
    /// The device's node goes into the container.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<DeviceSpec>,
    /// The device, a network interface, goes into the container.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interface: Option<InterfaceSpec>,
    /// The file system of the device, a disk or a partition, is mounted in the container.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub filesystem: Option<FilesystemSpec>,
    /// The device, a PCI function, is bound to vfio-pci and given through its IOMMU group.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vfio: Option<VfioSpec>,
    /// Several devices make one workload.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bundle: Option<BundleSpec>,
    /// By what a device is the same again after it was unplugged; by its place in /sys where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub identity: Option<Identity>,
    /// What happens to the workload when its device goes.
    #[serde(default, skip_serializing_if = "Unplug::is_default")]
    pub unplug: Unplug,
    /// What follows the workload's name in the name of the container, a template; what the device is known by where
    /// absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Environment variables beside the workload's own; values are templates.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub env: Vec<EnvSpec>,
    /// Arguments behind the workload's own; templates.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub args: Vec<String>,
    /// Labels of the container; values are templates.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Host folders and files beside the workload's own; both paths are templates.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub mounts: Vec<RuleMount>,
    /// How long nothing may happen to the device before it counts as there; 0 to 10 minutes, 0 by default.
    #[serde(default)]
    pub settle: Settle,
    /// Containers kept created and waiting for a device, 0 to 64.
    #[serde(default)]
    pub armed: u32,
    /// Of several rules that match a device the highest counts; 0 by default.
    #[serde(default)]
    pub priority: i32,
}

/// Several devices that make one workload.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct BundleSpec {
    /// How many of the devices must be there; all by default.
    #[serde(default)]
    pub need: Need,
    /// One bundle for each value of this template (all ports of one adapter, all cards of one hub); one for the rule
    /// where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<String>,
    /// The devices.
    pub devices: Vec<MemberSpec>,
}

/// One device of a bundle.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct MemberSpec {
    /// What it is called in states and messages: `[a-z0-9-]`.
    pub name: String,
    /// As of a rule.
    #[serde(rename = "match")]
    pub matches: MatchSpec,
    /// As of a rule.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<DeviceSpec>,
    /// As of a rule.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interface: Option<InterfaceSpec>,
    /// As of a rule.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub filesystem: Option<FilesystemSpec>,
    /// As of a rule; then all devices of the bundle must be there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vfio: Option<VfioSpec>,
    /// As of a rule; set where the device is there when the container is made.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub env: Vec<EnvSpec>,
}

/// How many devices of a bundle must be there.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "NeedText", into = "NeedText")]
pub enum Need {
    /// Every one.
    #[default]
    All,
    /// So many, at least 1. `any` is 1.
    Count(u32),
}

#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum NeedText {
    Count(u32),
    Word(String),
}

impl TryFrom<NeedText> for Need {
    type Error = String;

    fn try_from(text: NeedText) -> Result<Need, String> {
        match text {
            NeedText::Count(count) => Ok(Need::Count(count)),
            NeedText::Word(word) if word == "all" => Ok(Need::All),
            NeedText::Word(word) if word == "any" => Ok(Need::Count(1)),
            NeedText::Word(word) => Err(format!(
                "{:?} is neither all, any nor a number",
                safe::show(&word, 32)
            )),
        }
    }
}

impl From<Need> for NeedText {
    fn from(need: Need) -> NeedText {
        match need {
            Need::All => NeedText::Word("all".to_owned()),
            Need::Count(count) => NeedText::Count(count),
        }
    }
}

impl Need {
    /// As a number, of `count` devices.
    pub fn of(self, count: usize) -> usize {
        match self {
            Need::All => count,
            Need::Count(need) => need as usize,
        }
    }
}

/// What happens to a workload whose device goes. Its permission is taken back at once whatever is said here.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Unplug {
    /// What happens.
    pub then: UnplugPolicy,
    /// How long it runs on without its device before it is stopped; given the device again within that time, it goes
    /// on. 0 to 1 hour, 0 by default.
    pub grace: Settle,
}

impl Unplug {
    fn is_default(&self) -> bool {
        *self == Unplug::default()
    }
}

/// See [`Unplug`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum UnplugPolicy {
    /// It is stopped.
    #[default]
    Stop,
    /// It runs on without, and is given the device when it comes back.
    Keep,
    /// It is given another device that matches; stopped where there is none. One workload for the whole rule.
    HandOver,
}

/// A host folder or file for the container of a device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RuleMount {
    /// On the host, a template: absolute, and what a device says of itself fills one part of the path at most.
    pub source: String,
    /// Inside, a template.
    pub destination: String,
    /// Whether writing is refused.
    #[serde(default)]
    pub read_only: bool,
}

/// How the device's node gets into the container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct DeviceSpec {
    /// `r`, `w`, `m` (mknod) in any order; `rw` by default.
    #[serde(default = "access_default")]
    pub access: String,
    /// Path inside, below /dev; the host's path by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// Mode of the node inside, octal; `0660` by default.
    #[serde(default = "mode_default")]
    pub mode: String,
    /// Owner of the node inside; 0 by default.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub uid: u32,
    /// Group of the node inside; 0 by default.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub gid: u32,
    /// udev's links to the node (`/dev/disk/by-id/…`, `/dev/serial/by-id/…`) are there inside too.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub links: bool,
    /// Programs that use libudev work inside: the device's events are told there, and udev's record of it is there.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub uevents: bool,
}

fn is_zero(n: &u32) -> bool {
    *n == 0
}

fn access_default() -> String {
    "rw".to_owned()
}

fn mode_default() -> String {
    "0660".to_owned()
}

impl DeviceSpec {
    /// `mode` as a number; `None` where it is not three or four octal digits up to 0777.
    pub fn mode_bits(&self) -> Option<u32> {
        let plain = (3..=4).contains(&self.mode.len()) && self.mode.bytes().all(|b| b.is_ascii_digit());
        u32::from_str_radix(&self.mode, 8)
            .ok()
            .filter(|mode| plain && *mode <= 0o777)
    }
}

/// Types of file systems that a rule may mount.
pub const FILESYSTEMS: [&str; 10] = [
    "erofs", "exfat", "ext2", "ext3", "ext4", "f2fs", "iso9660", "squashfs", "vfat", "xfs",
];

/// How the file system of a block device gets into the container: nosuid, nodev and noexec whatever is said here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct FilesystemSpec {
    /// The folder inside, absolute; it must be in the image.
    pub path: String,
    /// The types it may have, of [`FILESYSTEMS`], each once; the kernel tries them in this order.
    pub types: Vec<String>,
    /// The label it must have, as the kernel reads it of the mounted file system; 1 to 255 bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
    /// Writing is refused; true by default.
    #[serde(default = "yes", skip_serializing_if = "Clone::clone")]
    pub read_only: bool,
}

fn yes() -> bool {
    true
}

/// How the interface gets into the container.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct InterfaceSpec {
    /// Its name inside; the host's by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Its MTU inside, 68 to 65535 (1280 at least with an IPv6 address); as it is by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
    /// Addresses with the length of their network (`10.0.0.2/24`, `fd00::2/64`), at most 16.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<String>,
    /// The device stays outside as the trunk; what goes inside is its 802.1Q VLAN of this id, 1 to 4094.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vlan: Option<u16>,
}

/// An address of one host and the length of its network.
pub fn parse_address(text: &str) -> Option<(std::net::IpAddr, u8)> {
    let (address, length) = text.split_once('/')?;
    let address: std::net::IpAddr = address.parse().ok()?;
    let most = if address.is_ipv4() { 32 } else { 128 };
    let digits = !length.is_empty() && length.bytes().all(|b| b.is_ascii_digit());
    let length: u8 = length
        .parse()
        .ok()
        .filter(|length| digits && (1..=most).contains(length))?;
    let broadcast = matches!(address, std::net::IpAddr::V4(a) if a.is_broadcast());
    let one = !address.is_unspecified() && !address.is_multicast() && !address.is_loopback() && !broadcast;
    one.then_some((address, length))
}

/// How a PCI function gets into the container.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct VfioSpec {
    /// The other functions of its IOMMU group are bound too; by default it is refused while drivers of the host have
    /// them.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub whole_group: bool,
}

/// One environment variable.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct EnvSpec {
    /// Name.
    pub name: String,
    /// Value, a template.
    pub value: String,
}

/// A duration as text: `200ms`, `2s`, `1m`, `0`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Settle(pub Duration);

impl TryFrom<String> for Settle {
    type Error = String;

    fn try_from(text: String) -> Result<Settle, String> {
        let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        let number: Option<u64> = text[..digits].parse().ok();
        let milliseconds = match (number, &text[digits..]) {
            (Some(0), "") => Some(0),
            (Some(n), "ms") => Some(n),
            (Some(n), "s") => n.checked_mul(1000),
            (Some(n), "m") => n.checked_mul(60_000),
            _ => None,
        };
        match milliseconds {
            Some(n) => Ok(Settle(Duration::from_millis(n))),
            None => Err(format!(
                "{:?} is no duration, e.g. 200ms, 2s, 1m",
                safe::show(&text, 32)
            )),
        }
    }
}

impl From<Settle> for String {
    fn from(settle: Settle) -> String {
        settle.to_string()
    }
}

impl Settle {
    /// Milliseconds.
    pub fn millis(self) -> u64 {
        u64::try_from(self.0.as_millis()).unwrap_or(u64::MAX)
    }
}

impl fmt::Display for Settle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}ms", self.0.as_millis())
    }
}

/// One fault of a spec.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Where in the spec: `match`, `env[1].value`, `device.mode`.
    pub path: String,
    /// Line and column inside that text, from 1, where it has its own grammar.
    pub at: Option<(u32, u32)>,
    /// What is wrong.
    pub message: String,
    /// How to mend it.
    pub hint: Option<String>,
}

impl Problem {
    pub(super) fn new(path: impl Into<String>, message: impl Into<String>, hint: Option<&str>) -> Problem {
        Problem {
            path: path.into(),
            at: None,
            message: message.into(),
            hint: hint.map(str::to_owned),
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.path)?;
        if let Some((line, column)) = self.at {
            write!(f, ":{line}:{column}")?;
        }
        write!(f, ": {}", self.message)?;
        self.hint.as_ref().map_or(Ok(()), |hint| write!(f, " ({hint})"))
    }
}
