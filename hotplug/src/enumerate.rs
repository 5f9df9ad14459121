//! What is there now: the devices of sysfs, with udevd's database where udevd runs.
//!
//! Interface: `/sys/class/*/*` and `/sys/bus/*/devices/*` are links to the devices' folders
//! (sysfs-rules.rst). Invariants: links are followed as text and never out of the root, so that a recorded
//! tree works; a device that vanishes meanwhile is left out; the answer is sorted by path. sysfs shows the
//! interfaces of the namespace it was mounted in: those of other namespaces come from whoever looks there.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use thiserror::Error;

use crate::device::{Device, SYS_ROOT};
use crate::monitor::Source;
use crate::{safe, sysfs, udevd};

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
}

impl EnumerateError {
    /// What to change.
    pub fn hint(&self) -> Option<String> {
        let EnumerateError::Read { .. } = self;
        Some("is sysfs mounted there?".to_owned())
    }
}

/// The devices below `sys_root`, from sysfs alone, sorted by path.
///
/// # Errors
/// [`EnumerateError::Read`] where there is neither `class` nor `bus`.
pub fn enumerate(sys_root: &Path, filter: &Filter) -> Result<Vec<Device>, EnumerateError> {
    read_all(sys_root, filter, |root, path| Device::read(root, path).ok())
}

/// Every device, sorted by path, as `read` finds it.
fn read_all(
    sys_root: &Path,
    filter: &Filter,
    read: impl Fn(&Arc<Path>, String) -> Option<Device>,
) -> Result<Vec<Device>, EnumerateError> {
    let root: Arc<Path> = sys_root.into();
    let mut paths = BTreeSet::new();
    let class = subsystems(&root, "class", "", filter, &mut paths);
    let bus = subsystems(&root, "bus", "/devices", filter, &mut paths);
    if let (Err(error), Err(_)) = (class, bus) {
        return Err(error);
    }
    let found = paths.into_iter().filter_map(|path| read(&root, path));
    Ok(found
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
    let found = udev_database(sys_root, filter)?;
    let ready = |d: &Device| d.is_initialized() || d.devnode().is_none() && d.ifindex().is_none();
    Ok(found.into_iter().filter(ready).collect())
}

/// Every device, with what udevd's database has of it; sorted by path.
fn udev_database(sys_root: &Path, filter: &Filter) -> Result<Vec<Device>, EnumerateError> {
    let mut found = read_all(sys_root, filter, udevd::read)?;
    found.retain(Device::is_enumerable);
    Ok(found)
}

/// Reads one device again, with udevd's properties where `source` is udevd; `None`: it is gone.
pub fn refresh(source: Source, device: &Device) -> Option<Device> {
    if source.resolve() == Source::Udev && device.sys_root() == Path::new(SYS_ROOT) {
        return udevd::read(device.root_arc(), device.devpath().to_owned());
    }
    Device::read(device.root_arc(), device.devpath().to_owned()).ok()
}

/// udev's current tags of the device at `devpath`, a parent of `device`; empty where udevd has not seen it.
pub(crate) fn tags_of(device: &Device, devpath: &str) -> BTreeSet<String> {
    if !device.is_initialized() || device.sys_root() != Path::new(SYS_ROOT) {
        return BTreeSet::new();
    }
    udevd::read(device.root_arc(), devpath.to_owned()).map_or_else(BTreeSet::new, |d| d.tags().clone())
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
