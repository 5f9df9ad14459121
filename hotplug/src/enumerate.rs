//! What is there now: the devices of sysfs, with udevd's database where udevd runs.
//!
//! Interface: `/sys/class/*/*` and `/sys/bus/*/devices/*` are links to the devices' folders
//! (sysfs-rules.rst). Invariants: links are followed as text and never out of the root, so that a recorded
//! tree works; a device that vanishes meanwhile is left out; the answer is sorted by path. sysfs shows the
//! interfaces of the namespace it was mounted in: those of other namespaces come from whoever looks there.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use thiserror::Error;

use crate::device::{Device, SYS_ROOT};
use crate::monitor::Source;
use crate::{safe, sysfs};

/// Which devices.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filter {
    /// Only these subsystems; `None`: all.
    pub subsystems: Option<BTreeSet<String>>,
}

impl Filter {
    /// Only these subsystems.
    pub fn subsystems<I: IntoIterator<Item = S>, S: Into<String>>(names: I) -> Filter {
        Filter {
            subsystems: Some(names.into_iter().map(Into::into).collect()),
        }
    }

    fn wants(&self, subsystem: &str) -> bool {
        self.subsystems
            .as_ref()
            .is_none_or(|names| names.contains(subsystem))
    }
}

/// Why there is no answer.
#[derive(Debug, Error)]
pub enum EnumerateError {
    /// A folder of sysfs cannot be read.
    #[error("cannot read {path}: {source}", path = path.display())]
    Read {
        /// The folder.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// libudev refuses.
    #[error("libudev cannot enumerate: {0}")]
    Udev(#[source] io::Error),
}

impl EnumerateError {
    /// What to change.
    pub fn hint(&self) -> Option<String> {
        matches!(self, EnumerateError::Read { .. }).then(|| "is sysfs mounted there?".to_owned())
    }
}

/// The devices below `sys_root`, from sysfs alone, sorted by path.
///
/// # Errors
/// [`EnumerateError::Read`] where there is neither `class` nor `bus`.
pub fn enumerate(sys_root: &Path, filter: &Filter) -> Result<Vec<Device>, EnumerateError> {
    let root: Arc<Path> = sys_root.into();
    let mut paths = BTreeSet::new();
    let class = subsystems(&root, "class", "", filter, &mut paths);
    let bus = subsystems(&root, "bus", "/devices", filter, &mut paths);
    if let (Err(error), Err(_)) = (class, bus) {
        return Err(error);
    }
    let read = paths
        .into_iter()
        .filter_map(|path| Device::read(&root, path).ok());
    Ok(read
        .filter(|d| d.subsystem().is_some_and(|s| filter.wants(s)))
        .collect())
}

/// The devices as `source` knows them: with [`Source::Udev`] and the real sysfs from udevd's database, else
/// from sysfs. A device with a node or an interface that udevd has not finished yet is left out: its `add` is
/// still to come.
///
/// # Errors
/// [`EnumerateError`].
pub fn enumerate_from(
    source: Source,
    sys_root: &Path,
    filter: &Filter,
) -> Result<Vec<Device>, EnumerateError> {
    if source.resolve() != Source::Udev || sys_root != Path::new(SYS_ROOT) {
        return enumerate(sys_root, filter);
    }
    let found = udev_database(&sys_root.into(), filter)?;
    let ready = |(device, initialized): (Device, bool)| {
        (initialized || device.devnode().is_none() && device.ifindex().is_none()).then_some(device)
    };
    Ok(found.into_iter().filter_map(ready).collect())
}

/// Every device libudev finds, and whether udevd has finished with it; sorted by path.
fn udev_database(root: &Arc<Path>, filter: &Filter) -> Result<Vec<(Device, bool)>, EnumerateError> {
    if filter.subsystems.as_ref().is_some_and(BTreeSet::is_empty) {
        return Ok(Vec::new());
    }
    let mut scan = udev::Enumerator::new().map_err(EnumerateError::Udev)?;
    for subsystem in filter.subsystems.iter().flatten() {
        scan.match_subsystem(subsystem).map_err(EnumerateError::Udev)?;
    }
    let found = scan.scan_devices().map_err(EnumerateError::Udev)?;
    let devices: BTreeMap<String, (Device, bool)> = found
        .map(|d| (Device::from_udev(&d, root), d.is_initialized()))
        .filter(|(d, _)| d.is_enumerable() && d.subsystem().is_some_and(|s| filter.wants(s)))
        .map(|found| (found.0.devpath().to_owned(), found))
        .collect();
    Ok(devices.into_values().collect())
}

/// Reads one device again, with udevd's properties where `source` is udevd; `None`: it is gone.
pub fn refresh(source: Source, device: &Device) -> Option<Device> {
    if source.resolve() == Source::Udev && device.sys_root() == Path::new(SYS_ROOT) {
        let found = udev::Device::from_syspath(&device.syspath()).ok()?;
        return Some(Device::from_udev(&found, device.root_arc()));
    }
    Device::read(device.root_arc(), device.devpath().to_owned()).ok()
}

/// udev's current tags of the device at `devpath`, a parent of `device`; empty where udevd has not seen it.
pub(crate) fn tags_of(device: &Device, devpath: &str) -> BTreeSet<String> {
    if !device.is_initialized() || device.sys_root() != Path::new(SYS_ROOT) {
        return BTreeSet::new();
    }
    let syspath = sysfs::device_dir(device.sys_root(), devpath);
    match udev::Device::from_syspath(&syspath) {
        Ok(found) => Device::from_udev(&found, device.root_arc()).tags().clone(),
        Err(_) => BTreeSet::new(),
    }
}

impl Device {
    /// Takes over what libudev knows of a device.
    pub(crate) fn from_udev(device: &udev::Device, sys_root: &Arc<Path>) -> Device {
        let text = |s: &std::ffi::OsStr| s.to_string_lossy().into_owned();
        let properties = device.properties().map(|p| (text(p.name()), text(p.value())));
        Device::build(sys_root, text(device.devpath()), properties)
    }
}

/// Collects the devpaths behind `KIND/*{below}/*`.
fn subsystems(
    root: &Arc<Path>,
    kind: &str,
    below: &str,
    filter: &Filter,
    paths: &mut BTreeSet<String>,
) -> Result<(), EnumerateError> {
    let top = root.join(kind);
    let entries = std::fs::read_dir(&top).map_err(|source| EnumerateError::Read { path: top, source })?;
    for entry in entries.filter_map(Result::ok) {
        let Ok(name) = entry.file_name().into_string() else {
            continue;
        };
        if !filter.wants(&name) {
            continue;
        }
        let base = format!("/{kind}/{name}{below}");
        let Ok(devices) = std::fs::read_dir(sysfs::device_dir(root, &base)) else {
            continue;
        };
        for device in devices.filter_map(Result::ok) {
            // Attributes of a class lie beside the devices: only links count.
            let Ok(target) = std::fs::read_link(device.path()) else {
                continue;
            };
            let devpath = sysfs::join_link(&base, &target);
            paths.extend(devpath.filter(|p| p.starts_with("/devices/") && safe::is_plain_path(p)));
        }
    }
    Ok(())
}

#[cfg(test)]
#[path = "enumerate_tests.rs"]
mod tests;
