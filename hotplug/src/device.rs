//! One device: what the kernel and udevd say of it, and its attributes read from sysfs when asked for.
//!
//! Interface: a device is a folder below `/sys/devices` with a `uevent` file; its properties come from that
//! file, from a netlink event, or from udevd's database. Attributes are never copied: they are read below
//! `sys_root` at the moment of the question. Invariants: `devpath` is an absolute, normalised path below the
//! root; DEVNAME is a normalised path below /dev; INTERFACE is a name the kernel takes; no name or value is
//! longer than [`crate::safe`] allows. What breaks them is left out and listed in [`Device::refused`].

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use thiserror::Error;

pub use crate::event::Action;
use crate::{safe, sysfs};

/// Where sysfs is mounted.
pub const SYS_ROOT: &str = "/sys";

/// Why a device cannot be taken.
#[derive(Debug, Error)]
pub enum DeviceError {
    /// The path is not absolute and normalised, or leads out of the root.
    #[error("{path:?} is not the path of a device below {root}", root = root.display())]
    Path {
        /// The path as given, made safe to print.
        path: String,
        /// The sysfs root.
        root: PathBuf,
    },
    /// There is no such device (any more).
    #[error("{path}: no device there (no readable uevent file)", path = path.display())]
    Gone {
        /// Its folder.
        path: PathBuf,
        /// What the kernel said.
        source: std::io::Error,
    },
}

/// Block or character device number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Devnum {
    /// Block device (else character device).
    pub block: bool,
    /// Major number.
    pub major: u32,
    /// Minor number.
    pub minor: u32,
}

impl fmt::Display for Devnum {
    /// As in OCI and cgroup device rules: `b 7:200`, `c 188:0`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} {}:{}",
            if self.block { 'b' } else { 'c' },
            self.major,
            self.minor
        )
    }
}

/// Key of a device in the inventory. A network interface keeps its index through renames and is `n12`
/// (udev's notation); any other device is its devpath.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Key(pub String);

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A device as an event or the enumeration saw it.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Record", into = "Record")]
pub struct Device {
    sys_root: Arc<Path>,
    devpath: String,
    properties: BTreeMap<String, String>,
    tags: BTreeSet<String>,
    refused: Vec<String>,
}

/// The stored form of a [`Device`] (state file, `-o json`): no attributes.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Record {
    /// Where sysfs was read.
    #[serde(default = "default_root")]
    pub sys_root: PathBuf,
    /// Path below it.
    pub devpath: String,
    /// Properties, SUBSYSTEM, DEVNAME, MAJOR, MINOR, IFINDEX … among them.
    #[serde(default)]
    pub properties: BTreeMap<String, String>,
    /// udev's current tags.
    #[serde(default)]
    pub tags: BTreeSet<String>,
}

fn default_root() -> PathBuf {
    PathBuf::from(SYS_ROOT)
}

impl From<Record> for Device {
    fn from(record: Record) -> Self {
        let mut device = Device::build(&record.sys_root.into(), record.devpath, record.properties);
        device.tags.extend(record.tags);
        device
    }
}

impl From<Device> for Record {
    fn from(device: Device) -> Self {
        Record {
            sys_root: device.sys_root.to_path_buf(),
            devpath: device.devpath,
            properties: device.properties,
            tags: device.tags,
        }
    }
}

impl fmt::Debug for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Device")
            .field("devpath", &self.devpath)
            .field("properties", &self.properties)
            .finish()
    }
}

impl fmt::Display for Device {
    /// `loop200 (block, /dev/loop200)`, `veth0 (net, index 12)`; safe to print.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} ({}",
            safe::show(&self.sysname(), 64),
            safe::show(self.subsystem().unwrap_or("-"), 64)
        )?;
        if let Some(node) = self.devnode() {
            write!(f, ", {}", safe::show(node, 256))?;
        } else if let Some(index) = self.ifindex() {
            write!(f, ", index {index}")?;
        }
        f.write_str(")")
    }
}

impl Device {
    /// Reads the device at `path`, either below `sys_root` (`/sys/class/net/eth0`, links are followed) or a
    /// devpath (`/devices/…`).
    ///
    /// # Errors
    /// [`DeviceError::Path`] for a path that is no device path, [`DeviceError::Gone`] where nothing is there.
    pub fn from_sysfs(sys_root: &Path, path: &Path) -> Result<Device, DeviceError> {
        let refuse = || DeviceError::Path {
            path: safe::show(&path.to_string_lossy(), 256),
            root: sys_root.to_path_buf(),
        };
        let devpath = if path.starts_with("/devices") {
            path.to_str().map(str::to_owned)
        } else {
            let real = |p: &Path| {
                std::fs::canonicalize(p).map_err(|source| DeviceError::Gone {
                    path: p.to_path_buf(),
                    source,
                })
            };
            let root = real(sys_root)?;
            let found = real(path)?;
            found
                .strip_prefix(&root)
                .ok()
                .and_then(Path::to_str)
                .map(|p| format!("/{p}"))
        };
        let devpath = devpath.filter(|p| safe::is_plain_path(p)).ok_or_else(refuse)?;
        Device::read(&sys_root.into(), devpath)
    }

    /// Reads the device at a devpath that is known to be normalised.
    pub(crate) fn read(sys_root: &Arc<Path>, devpath: String) -> Result<Device, DeviceError> {
        let properties = Device::read_properties(sys_root, &devpath)?;
        Ok(Device::build(sys_root, devpath, properties))
    }

    /// What sysfs says of the device there: its `uevent` file and its subsystem.
    pub(crate) fn read_properties(
        sys_root: &Path,
        devpath: &str,
    ) -> Result<BTreeMap<String, String>, DeviceError> {
        let dir = sysfs::device_dir(sys_root, devpath);
        let text =
            std::fs::read(dir.join("uevent")).map_err(|source| DeviceError::Gone { path: dir, source })?;
        let mut properties: BTreeMap<String, String> = text
            .split(|b| *b == b'\n')
            .filter_map(|line| {
                let at = line.iter().position(|b| *b == b'=')?;
                Some((
                    sysfs::into_text(line[..at].to_vec()),
                    sysfs::into_text(line[at + 1..].to_vec()),
                ))
            })
            .collect();
        if let Some(subsystem) = sysfs::link_name(sys_root, devpath, "subsystem") {
            properties.insert("SUBSYSTEM".to_owned(), subsystem);
        }
        Ok(properties)
    }

    /// A device from the properties of an event or a database; checks and bounds every one of them.
    /// A `devpath` that is not plain gives a device without attributes or parents (nothing is ever read
    /// through it).
    pub(crate) fn build(
        sys_root: &Arc<Path>,
        devpath: String,
        properties: impl IntoIterator<Item = (String, String)>,
    ) -> Device {
        let mut device = Device {
            sys_root: sys_root.clone(),
            devpath,
            properties: BTreeMap::new(),
            tags: BTreeSet::new(),
            refused: Vec::new(),
        };
        if !safe::is_plain_path(&device.devpath) {
            device
                .refused
                .push(format!("DEVPATH={}", safe::show(&device.devpath, 64)));
            device.devpath = format!("/invalid/{}", safe::component(&device.devpath));
        }
        for (name, value) in properties {
            match name.as_str() {
                // Of the event, not of the device.
                "ACTION" | "SEQNUM" | "SYNTH_UUID" | "DEVPATH_OLD" => {}
                "CURRENT_TAGS" => device.tags.extend(split_tags(&value)),
                "DEVPATH" => {}
                _ => device.put(name, value),
            }
        }
        if device.tags.is_empty()
            && let Some(tags) = device.properties.get("TAGS")
        {
            device.tags = split_tags(tags).collect();
        }
        device
            .properties
            .insert("DEVPATH".to_owned(), device.devpath.clone());
        device
    }

    fn put(&mut self, name: String, mut value: String) {
        if name == "DEVNAME" && !value.starts_with('/') {
            value.insert_str(0, "/dev/");
        }
        let fits = match name.as_str() {
            "DEVNAME" => value.starts_with("/dev/") && safe::is_plain_path(&value),
            "INTERFACE" => safe::is_interface_name(&value),
            "MAJOR" | "MINOR" | "IFINDEX" => value.parse::<u32>().is_ok(),
            _ => true,
        };
        let named = !name.is_empty()
            && name.len() <= safe::NAME_MAX
            && name.bytes().all(|b| b.is_ascii_graphic() && b != b'=');
        if fits && named && value.len() <= safe::VALUE_MAX && self.properties.len() < safe::PROPERTIES_MAX {
            self.properties.insert(name, value);
        } else if self.refused.len() < 16 {
            self.refused
                .push(format!("{}={}", safe::show(&name, 64), safe::show(&value, 64)));
        }
    }

    /// The sysfs root it was seen below.
    pub fn sys_root(&self) -> &Path {
        &self.sys_root
    }

    /// Path below the root: `/devices/virtual/block/loop200`.
    pub fn devpath(&self) -> &str {
        &self.devpath
    }

    /// Full path: `/sys/devices/virtual/block/loop200`.
    pub fn syspath(&self) -> PathBuf {
        sysfs::device_dir(&self.sys_root, &self.devpath)
    }

    /// Last part of the path with `!` as `/`, as libudev has it: `loop200`, `cciss/c0d0`. May hold any
    /// character but NUL and control characters.
    pub fn sysname(&self) -> String {
        sysname(&self.devpath)
    }

    /// Trailing digits of the name: `200` of `loop200`.
    pub fn sysnum(&self) -> Option<String> {
        let name = self.sysname();
        let digits = name.trim_end_matches(|c: char| c.is_ascii_digit());
        (digits.len() < name.len()).then(|| name[digits.len()..].to_owned())
    }

    /// SUBSYSTEM: `block`, `net`, `tty` …
    pub fn subsystem(&self) -> Option<&str> {
        self.property("SUBSYSTEM")
    }

    /// DEVTYPE: `disk`, `usb_device` …
    pub fn devtype(&self) -> Option<&str> {
        self.property("DEVTYPE")
    }

    /// The driver bound to it, read from sysfs, else the DRIVER property.
    pub fn driver(&self) -> Option<String> {
        sysfs::link_name(&self.sys_root, &self.devpath, "driver")
            .or_else(|| self.property("DRIVER").map(str::to_owned))
    }

    /// Path of the device node, always normalised and below /dev: `/dev/loop200`.
    pub fn devnode(&self) -> Option<&str> {
        self.property("DEVNAME")
    }

    /// Device number, for devices that have a node.
    pub fn devnum(&self) -> Option<Devnum> {
        let number = |name| self.property(name).and_then(|v| v.parse().ok());
        Some(Devnum {
            block: self.subsystem() == Some("block"),
            major: number("MAJOR")?,
            minor: number("MINOR")?,
        })
    }

    /// Index of a network interface in the namespace it was seen in.
    pub fn ifindex(&self) -> Option<u32> {
        if self.subsystem() != Some("net") {
            return None;
        }
        self.property("IFINDEX")
            .and_then(|v| v.parse().ok())
            .filter(|n| *n > 0)
    }

    /// Name of a network interface.
    pub fn interface(&self) -> Option<&str> {
        self.property("INTERFACE")
    }

    /// One property (ENV{…} in rules).
    pub fn property(&self, name: &str) -> Option<&str> {
        self.properties.get(name).map(String::as_str)
    }

    /// All properties.
    pub fn properties(&self) -> &BTreeMap<String, String> {
        &self.properties
    }

    /// udev's current tags; empty with the kernel as the source.
    pub fn tags(&self) -> &BTreeSet<String> {
        &self.tags
    }

    /// Properties that were left out because they break an invariant, `NAME=value`, made safe to print (at
    /// most 16).
    pub fn refused(&self) -> &[String] {
        &self.refused
    }

    /// Links to its node (DEVLINKS), without /dev/; empty with the kernel as the source.
    pub fn links(&self) -> Vec<&str> {
        let links = self.property("DEVLINKS").unwrap_or_default();
        links
            .split(' ')
            .filter_map(|link| link.strip_prefix("/dev/"))
            .filter(|link| !link.is_empty() && safe::is_plain_path(&format!("/{link}")))
            .collect()
    }

    /// Has udevd finished with it (its database knows it)?
    pub fn is_initialized(&self) -> bool {
        self.properties.contains_key("USEC_INITIALIZED")
    }

    /// One attribute, read now; `None` where it is not there, not readable or too long. `name` is relative
    /// to the device's folder.
    pub fn attribute(&self, name: &str) -> Option<String> {
        sysfs::attribute(&self.sys_root, &self.devpath, name)
    }

    /// Is it in sysfs at this moment?
    pub fn exists(&self) -> bool {
        sysfs::is_device(&self.sys_root, &self.devpath)
    }

    /// The devices above it, nearest first, without itself.
    pub fn parents(&self) -> Vec<Device> {
        let mut found = Vec::new();
        let mut path = self.devpath.clone();
        while let Some(above) = sysfs::parent(&self.sys_root, &path) {
            if let Ok(device) = Device::read(&self.sys_root, above.clone()) {
                found.push(device);
            }
            path = above;
        }
        found
    }

    /// Is it a device that enumeration finds too: below `/devices` and of a bus or class? Modules, drivers
    /// and the `queues` of network interfaces send events as well; those are no devices.
    pub fn is_enumerable(&self) -> bool {
        self.devpath.starts_with("/devices/") && self.subsystem().is_none_or(|s| s != "queues")
    }

    /// Key in the inventory.
    pub fn key(&self) -> Key {
        match self.ifindex() {
            Some(index) => Key(format!("n{index}")),
            None => Key(self.devpath.clone()),
        }
    }

    /// What stays the same when the same device is plugged into the same place again: the permanent address
    /// of a network interface (`addr_assign_type` 0), else udev's ID_PATH, else the devpath; the subsystem
    /// before it. Text of the device: for a file or container name use [`safe::component`].
    pub fn identity(&self) -> String {
        let subsystem = self.subsystem().unwrap_or("unknown");
        if subsystem == "net"
            && self.attribute("addr_assign_type").as_deref() == Some("0")
            && let Some(address) = self
                .attribute("address")
                .filter(|a| a.bytes().any(|b| b != b'0' && b != b':'))
        {
            return format!("net:address:{address}");
        }
        if let Some(path) = self.property("ID_PATH") {
            return format!("{subsystem}:path:{path}");
        }
        format!("{subsystem}:devpath:{}", self.devpath)
    }

    pub(crate) fn root_arc(&self) -> &Arc<Path> {
        &self.sys_root
    }
}

/// Last part of a devpath with `!` as `/`.
pub(crate) fn sysname(devpath: &str) -> String {
    devpath.rsplit('/').next().unwrap_or_default().replace('!', "/")
}

fn split_tags(value: &str) -> impl Iterator<Item = String> + '_ {
    value.split(':').filter(|t| !t.is_empty()).map(str::to_owned)
}

#[cfg(test)]
#[path = "device_tests.rs"]
mod tests;
