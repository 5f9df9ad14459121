//! Reading sysfs below a root path: attributes, links, parents.
//!
//! Interface: Documentation/admin-guide/sysfs-rules.rst of the kernel. Semantics of attributes follow
//! libsystemd's `sd_device_get_sysattr_value`: trailing newlines go, a directory or an unreadable file is no
//! attribute, of the links only `driver`, `subsystem` and `module` have a value (the last part of the target).
//! Invariants: every read is bounded ([`crate::safe::VALUE_MAX`]); no name leads out of the root lexically.

use std::fs::{self, OpenOptions};
use std::io::Read;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Component, Path, PathBuf};

use crate::safe::VALUE_MAX;

/// The last part of the link `name` in the folder of `devpath`, e.g. the driver's name.
pub fn link_name(sys_root: &Path, devpath: &str, name: &str) -> Option<String> {
    let target = fs::read_link(device_dir(sys_root, devpath).join(name)).ok()?;
    target.file_name().map(|n| n.to_string_lossy().into_owned())
}

/// The folder of a device.
pub fn device_dir(sys_root: &Path, devpath: &str) -> PathBuf {
    sys_root.join(devpath.trim_start_matches('/'))
}

/// Is there a device at `devpath` (libudev's own test: the folder has a `uevent` file).
pub fn is_device(sys_root: &Path, devpath: &str) -> bool {
    device_dir(sys_root, devpath)
        .join("uevent")
        .symlink_metadata()
        .is_ok()
}

/// The nearest device above `devpath`; `None` at the top.
pub fn parent(sys_root: &Path, devpath: &str) -> Option<String> {
    let mut path = devpath;
    while let Some((above, _)) = path.rsplit_once('/') {
        // "/devices" itself is no device, and nothing outside it has parents.
        if !above.starts_with("/devices/") {
            return None;
        }
        if is_device(sys_root, above) {
            return Some(above.to_owned());
        }
        path = above;
    }
    None
}

/// The value of attribute `name` of the device at `devpath`; `None` where there is no such attribute, where
/// it cannot be read, or where it is longer than [`VALUE_MAX`].
pub fn attribute(sys_root: &Path, devpath: &str, name: &str) -> Option<String> {
    if name.is_empty() || !stays_below(devpath, name) {
        return None;
    }
    let path = device_dir(sys_root, devpath).join(name);
    let meta = fs::symlink_metadata(&path).ok()?;
    if meta.file_type().is_symlink() {
        if !matches!(name, "driver" | "subsystem" | "module") {
            return None;
        }
        let target = fs::read_link(&path).ok()?;
        return target.file_name().map(|n| n.to_string_lossy().into_owned());
    }
    if !meta.is_file() || meta.mode() & 0o400 == 0 {
        return None;
    }
    let mut value = read_bounded(&path)?;
    while value.last() == Some(&b'\n') {
        value.pop();
    }
    Some(into_text(value))
}

/// The names of the attributes of a device, sorted: what [`attribute`] could answer for, its folder only.
pub fn attribute_names(sys_root: &Path, devpath: &str) -> Vec<String> {
    let Ok(dir) = fs::read_dir(device_dir(sys_root, devpath)) else {
        return Vec::new();
    };
    let mut names: Vec<String> = dir
        .filter_map(Result::ok)
        .filter(|entry| entry.file_type().is_ok_and(|t| t.is_file()))
        .filter(|entry| entry.metadata().is_ok_and(|m| m.mode() & 0o400 != 0))
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect();
    names.sort();
    names
}

/// `[subsystem/name]rest` as its three parts; a `/` in front of the rest is left out.
pub(crate) fn other_device(text: &str) -> Option<(&str, &str, &str)> {
    let (device, rest) = text.strip_prefix('[')?.split_once(']')?;
    let (subsystem, name) = device.split_once('/')?;
    let plain = |part: &str| !part.is_empty() && !part.contains('/') && part != "." && part != "..";
    (plain(subsystem) && plain(name)).then(|| (subsystem, name, rest.strip_prefix('/').unwrap_or(rest)))
}

/// The folder of the device `name` of a subsystem, as a path below `sys_root`: libsystemd's
/// `sd_device_new_from_subsystem_sysname`.
pub(crate) fn find_device(sys_root: &Path, subsystem: &str, name: &str) -> Option<String> {
    // A slash in a name is a `!` in sysfs.
    let name = name.replace('/', "!");
    let candidates = match subsystem {
        "subsystem" => vec![format!("/bus/{name}"), format!("/class/{name}")],
        "module" => vec![format!("/module/{name}")],
        "drivers" => match name.split_once(':') {
            Some((bus, driver)) => vec![format!("/bus/{bus}/drivers/{driver}")],
            None => Vec::new(),
        },
        _ => vec![
            format!("/bus/{subsystem}/devices/{name}"),
            format!("/class/{subsystem}/{name}"),
            format!("/firmware/{subsystem}/{name}"),
        ],
    };
    candidates.into_iter().find_map(|path| {
        let at = device_dir(sys_root, &path);
        match fs::read_link(&at) {
            Ok(target) => {
                join_link(path.rsplit_once('/')?.0, &target).filter(|p| device_dir(sys_root, p).is_dir())
            }
            Err(_) => at.is_dir().then_some(path),
        }
    })
}

/// The first folder that fits the first `/*/` of an absolute path; the path itself where it has none.
pub(crate) fn first_wildcard(path: &str) -> Option<String> {
    let Some((head, tail)) = path.split_once("/*/") else {
        return Some(path.to_owned());
    };
    let mut names: Vec<String> = fs::read_dir(head)
        .ok()?
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| !name.starts_with('.'))
        .collect();
    names.sort();
    let all = names.into_iter().map(|name| format!("{head}/{name}/{tail}"));
    all.into_iter().find(|path| Path::new(path).exists())
}

/// Joins a relative link target found at `base` (both below the root) lexically: `/class/net` +
/// `../../devices/x` = `/devices/x`. `None` for absolute targets and targets outside the root.
pub fn join_link(base: &str, target: &Path) -> Option<String> {
    let mut parts: Vec<&str> = base.split('/').filter(|p| !p.is_empty()).collect();
    for part in target.components() {
        match part {
            Component::ParentDir => {
                parts.pop()?;
            }
            Component::CurDir => {}
            Component::Normal(name) => parts.push(name.to_str()?),
            Component::RootDir | Component::Prefix(_) => return None,
        }
    }
    Some(format!("/{}", parts.join("/")))
}

/// Would `devpath/name` stay below the root?
fn stays_below(devpath: &str, name: &str) -> bool {
    join_link(devpath, Path::new(name)).is_some()
}

/// Reads a file of at most [`VALUE_MAX`] bytes; longer ones are no value.
pub(crate) fn read_bounded(path: &Path) -> Option<Vec<u8>> {
    read_at_most(path, VALUE_MAX)
}

/// Reads a file of at most `limit` bytes; `None` for a longer one.
pub(crate) fn read_at_most(path: &Path, limit: usize) -> Option<Vec<u8>> {
    // O_NONBLOCK: a recorded tree may hold anything, and opening must not wait.
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOFOLLOW | libc::O_CLOEXEC)
        .open(path)
        .ok()?;
    let mut value = Vec::with_capacity(128);
    file.take(limit as u64 + 1).read_to_end(&mut value).ok()?;
    (value.len() <= limit).then_some(value)
}

/// Bytes of a device as text; what is no UTF-8 becomes U+FFFD.
pub(crate) fn into_text(value: Vec<u8>) -> String {
    String::from_utf8(value).unwrap_or_else(|e| String::from_utf8_lossy(e.as_bytes()).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn links_are_joined_below_the_root_only() {
        for (base, target, want) in [
            (
                "/class/net",
                "../../devices/virtual/net/lo",
                Some("/devices/virtual/net/lo"),
            ),
            ("/bus/usb/devices", "../../../devices/a", Some("/devices/a")),
            ("/class/net", "../../../etc", None),
            ("/class/net", "/etc", None),
        ] {
            assert_eq!(
                join_link(base, Path::new(target)).as_deref(),
                want,
                "{base} {target}"
            );
        }
    }

    #[test]
    fn attributes_as_libudev_reads_them() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("devices/pci/usb1/1-1");
        fs::create_dir_all(dir.join("power")).unwrap();
        fs::write(root.path().join("outside"), "secret").unwrap();
        fs::write(root.path().join("devices/pci/uevent"), "").unwrap();
        fs::write(dir.join("uevent"), "").unwrap();
        fs::write(dir.join("serial"), "A 1 \n\n").unwrap();
        fs::write(dir.join("power/control"), "auto\n").unwrap();
        fs::write(dir.join("huge"), "x".repeat(100_000)).unwrap();
        fs::write(dir.join("raw"), b"a\xffb").unwrap();
        symlink("../../../../bus/usb/drivers/ftdi_sio", dir.join("driver")).unwrap();
        symlink("serial", dir.join("alias")).unwrap();
        let get = |name: &str| attribute(root.path(), "/devices/pci/usb1/1-1", name);
        for (name, want) in [
            ("serial", Some("A 1 ")),
            ("power/control", Some("auto")),
            ("power", None),
            ("absent", None),
            ("huge", None),
            ("raw", Some("a\u{fffd}b")),
            ("driver", Some("ftdi_sio")),
            ("alias", None),
            ("../1-1/serial", Some("A 1 ")),
            ("../../../../outside", Some("secret")),
            ("../../../../../../etc/hostname", None),
            ("/etc/hostname", None),
            ("", None),
        ] {
            assert_eq!(get(name).as_deref(), want, "{name:?}");
        }
        assert_eq!(
            parent(root.path(), "/devices/pci/usb1/1-1").as_deref(),
            Some("/devices/pci")
        );
        assert_eq!(parent(root.path(), "/devices/pci"), None);
        assert_eq!(parent(root.path(), "/module/x"), None);
        assert_eq!(
            attribute_names(root.path(), "/devices/pci/usb1/1-1"),
            ["huge", "raw", "serial", "uevent"]
        );
    }
}
