//! The launcher's own policy: what an agent may ask for, whoever speaks through it.
//!
//! ETC/launcher/policy.yaml, read by the launcher alone. The agent decides what runs; this says what it may decide.
//! An agent that was taken over gets nothing that is not allowed here: the file is root's, the agent's own sandbox
//! cannot write it, and no request changes it.
//!
//! Invariants: without a file the defaults below are in force, and they are strict; a file that anybody but root
//! can write, or that holds anything unknown, stops every launch (it is never passed over); the profile is judged
//! as it was resolved, not by its name alone, because the agent writes the node's own profiles.

mod device;
mod file;
mod judge;
mod port;
mod profile;
#[cfg(test)]
mod tests;

pub use device::DeviceWord;
pub(crate) use device::Disks;
pub use file::{Parse, PolicyError, PolicyFile, from_json};
pub use port::PortWord;

use std::path::PathBuf;

use berth_rt::cpu::CpuSet;
use serde::{Deserialize, Serialize};

/// What may be asked for. Every field may be absent: its default is given with it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Policy {
    /// Profiles by name. Default: every shipped one that is not loud, and every one of the node's own that keeps
    /// within `limits`.
    pub profiles: Option<Vec<String>>,
    /// Loud profiles (`privileged`, and any of the node's own that is marked so) may be asked for. Default: no.
    pub privileged: bool,
    /// What a profile of the node's own may give; loud ones, where they are allowed, are not held to it.
    pub limits: Limits,
    /// Images by manifest digest. Default: every image in the node's store.
    pub images: Option<Vec<String>>,
    /// Host devices.
    pub devices: Devices,
    /// Network interfaces by name; `*` at the end stands for the rest. Default: `*`.
    pub interfaces: Vec<String>,
    /// Networks of the node's CNI plug-ins by name; `*` at the end stands for the rest. Default: `*` (each is a file of root's).
    pub networks: Vec<String>,
    /// Ports of the node that may lead into a container: `8080`, `8000-8099/tcp`, `192.0.2.1:53/udp`. Default: `1024-65535`
    /// (below them are the node's own services).
    pub ports: Vec<PortWord>,
    /// PCI functions that may be bound to vfio-pci, by address; `*` at the end stands for the rest. Default: none.
    pub vfio: Vec<String>,
    /// Host files and folders, and all below them. Default: none.
    pub mounts: Vec<MountRule>,
    /// Folders whose files may be asked for as secrets, besides ETC/secrets and the launcher's own systemd
    /// credentials. Default: none.
    pub secrets: Vec<PathBuf>,
    /// CPUs, kernel list form. Default: every one.
    pub cpus: Option<String>,
    /// Greatest priority under fifo and rr, 0 to 99. Default: 98 (99 is the kernel's own watchdogs').
    pub realtime_priority: u32,
    /// SCHED_DEADLINE may be asked for. Default: yes.
    pub deadline: bool,
    /// The host's network namespace may be asked for. Default: no.
    pub host_network: bool,
    /// The audit log.
    pub audit: AuditRule,
}

impl Default for Policy {
    fn default() -> Policy {
        Policy {
            profiles: None,
            privileged: false,
            limits: Limits::default(),
            images: None,
            devices: Devices::default(),
            interfaces: vec!["*".into()],
            networks: vec!["*".into()],
            ports: vec![PortWord::range(1024..=u16::MAX)],
            vfio: Vec::new(),
            mounts: Vec::new(),
            secrets: Vec::new(),
            cpus: None,
            realtime_priority: 98,
            deadline: true,
            host_network: false,
            audit: AuditRule::default(),
        }
    }
}

/// What a profile of the node's own may give.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Limits {
    /// Capabilities; `ALL` stands for every one. Default: those of the shipped profiles that are not loud.
    pub capabilities: Option<Vec<String>>,
    /// It may keep no_new_privs off. Default: no.
    pub new_privileges: bool,
    /// It may have no system call filter, or one that allows what it does not name. Default: no.
    pub unfiltered: bool,
    /// It may leave namespaces, masked or read-only paths, or mount flags of `strict` out. Default: no.
    pub looser_than_strict: bool,
    /// SELinux and AppArmor labels it may name; `*` stands for every one. Default: none (berth's own container type).
    pub labels: Vec<String>,
}

/// Host devices.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Devices {
    /// May be asked for: `c 188:* rw`, `b *:* rwm`. Default: every one that is not denied.
    pub allow: Vec<DeviceWord>,
    /// May not, whatever `allow` says. Default: memory, ports, model-specific registers, the kernel's log, and the control nodes of loop
    /// devices, device mapper, btrfs, snapshots, watchdog and nvram.
    pub deny: Vec<DeviceWord>,
    /// Disks that the host has mounted or swaps on, with their partitions and what lies below them. Default: no.
    pub host_disks: bool,
}

impl Default for Devices {
    fn default() -> Devices {
        let words = |list: &[&str]| list.iter().filter_map(|text| text.parse().ok()).collect();
        Devices {
            allow: words(&["b *:* rwm", "c *:* rwm"]),
            deny: words(&[
                "c 1:1 rwm",
                "c 1:2 rwm",
                "c 1:4 rwm",
                "c 1:11 rwm",
                "c 202:* rwm",
                "c 10:130 rwm",
                "c 10:144 rwm",
                "c 10:231 rwm",
                "c 10:234 rwm",
                "c 10:236 rwm",
                "c 10:237 rwm",
            ]),
            host_disks: false,
        }
    }
}

/// A host path that may be mounted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct MountRule {
    /// Absolute; all below it too.
    pub path: PathBuf,
    /// Writable mounts too. Default: read-only ones alone.
    #[serde(default)]
    pub write: bool,
}

/// The audit log.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct AuditRule {
    /// Nothing is launched that cannot be recorded first. Default: no (it is launched, and the launcher's log says
    /// what was not recorded).
    pub required: bool,
}

impl Policy {
    /// What contradicts itself or means nothing: the field and why.
    ///
    /// # Errors
    /// The first such field.
    pub fn validate(&self) -> Result<(), String> {
        if self.realtime_priority > 99 {
            return Err(format!("realtimePriority: {}: 0 to 99", self.realtime_priority));
        }
        if let Some(cpus) = &self.cpus {
            let set: CpuSet = cpus.parse().map_err(|e| format!("cpus: {e}"))?;
            if set.is_empty() {
                return Err("cpus: the empty list allows nothing to run".into());
            }
        }
        for (n, image) in self.images.iter().flatten().enumerate() {
            if image.parse::<berth_images::Digest>().is_err() {
                return Err(format!(
                    "images[{n}]: {image:?}: a manifest digest, sha256: and 64 of 0-9a-f"
                ));
            }
        }
        let paths = self
            .mounts
            .iter()
            .map(|m| ("mounts", &m.path))
            .chain(self.secrets.iter().map(|p| ("secrets", p)));
        for (field, path) in paths {
            let plain = path
                .components()
                .all(|c| matches!(c, std::path::Component::RootDir | std::path::Component::Normal(_)));
            if !path.is_absolute() || !plain {
                return Err(format!(
                    "{field}: {}: an absolute path without '..'",
                    path.display()
                ));
            }
        }
        profile::known_capabilities(&self.limits)?;
        Ok(())
    }
}
