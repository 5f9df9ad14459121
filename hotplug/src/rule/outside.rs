//! What a clause asks for beyond the device's own folder: attributes whose name is filled in, attributes of another
//! device, files, kernel settings.
//!
//! Semantics of systemd's `udev-rules.c` (`token_match_attr`, `TK_M_TEST`, `TK_M_SYSCTL`). Invariant: with a recorded
//! /sys (a `sys_root` other than /sys) nothing of this machine is looked at: absolute paths are looked for beside the
//! recording, `/proc/sys/…` below `ROOT/../proc/sys`.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::View;
use crate::device::SYS_ROOT;
use crate::sysfs;
use crate::template::Template;

/// An attribute of the device at `devpath`; `name` may hold substitutions or begin with `[subsystem/name]`.
pub(super) fn attribute(view: &View<'_>, devpath: &str, name: &str) -> Option<String> {
    let root = view.device().sys_root();
    if let Some((subsystem, sysname, attribute)) = sysfs::other_device(name) {
        let other = sysfs::find_device(root, subsystem, sysname)?;
        // As systemd has it: the device is there, the attribute is not: the empty text.
        return Some(sysfs::attribute(root, &other, attribute).unwrap_or_default());
    }
    if name.contains(['$', '%']) {
        let name = Template::parse(name).ok()?.render_or_empty(view);
        return sysfs::attribute(root, devpath, &name);
    }
    sysfs::attribute(root, devpath, name)
}

/// Is the file there, with one of the mode bits where they are given?
pub(super) fn there(view: &View<'_>, path: &str, mode: Option<u32>) -> bool {
    let Ok(template) = Template::parse(path) else {
        return false;
    };
    let path = template.render_or_empty(view);
    let device = view.device();
    let whole = match sysfs::other_device(&path) {
        Some((subsystem, name, rest)) => match sysfs::find_device(device.sys_root(), subsystem, name) {
            Some(found) => sysfs::device_dir(device.sys_root(), &found).join(rest),
            None => return false,
        },
        None if path.starts_with('/') => beside(device.sys_root(), &path),
        None => device.syspath().join(&path),
    };
    let Some(found) = whole.to_str().and_then(sysfs::first_wildcard) else {
        return false;
    };
    match std::fs::metadata(found) {
        Ok(meta) => mode.is_none_or(|mode| meta.mode() & mode > 0),
        Err(_) => false,
    }
}

/// The value of a kernel setting; `Err`: it is there but cannot be read, or the name is none.
pub(super) fn sysctl(view: &View<'_>, name: &str) -> Result<Option<String>, ()> {
    let name = Template::parse(name).map_err(drop)?.render_or_empty(view);
    let name = normal_sysctl(&name);
    if name.split('/').any(|part| part == ".." || part.is_empty()) {
        return Err(());
    }
    let path = beside(view.device().sys_root(), "/proc/sys").join(name);
    match std::fs::read(path) {
        Ok(value) => Ok(Some(String::from_utf8_lossy(&value).trim().to_owned())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(_) => Err(()),
    }
}

/// `kernel.ostype` as `kernel/ostype`: where the first separator is a dot, dots and slashes change places.
fn normal_sysctl(name: &str) -> String {
    let swapped: String = match name.find(['/', '.']).map(|at| name.as_bytes()[at]) {
        Some(b'.') => name
            .chars()
            .map(|c| match c {
                '.' => '/',
                '/' => '.',
                c => c,
            })
            .collect(),
        _ => name.to_owned(),
    };
    let parts: Vec<&str> = swapped
        .split('/')
        .filter(|part| !part.is_empty() && *part != ".")
        .collect();
    parts.join("/")
}

/// An absolute path of this machine, or of the recording that `sys_root` belongs to.
fn beside(sys_root: &Path, path: &str) -> PathBuf {
    // `$sys` in a path has become the root already.
    if sys_root == Path::new(SYS_ROOT) || Path::new(path).starts_with(sys_root) {
        return PathBuf::from(path);
    }
    match path.strip_prefix("/sys/") {
        Some(below) => sys_root.join(below),
        None => sys_root.join("..").join(path.trim_start_matches('/')),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_settings() {
        for (name, want) in [
            ("kernel/ostype", "kernel/ostype"),
            ("kernel.ostype", "kernel/ostype"),
            (
                "net.ipv4.conf.eth0/1.forwarding",
                "net/ipv4/conf/eth0.1/forwarding",
            ),
            (
                "net/ipv4/conf/eth0.1/forwarding",
                "net/ipv4/conf/eth0.1/forwarding",
            ),
            ("/kernel//ostype", "kernel/ostype"),
        ] {
            assert_eq!(normal_sysctl(name), want);
        }
    }
}
