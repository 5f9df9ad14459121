//! What udevd says of devices: its messages and its database, read without libudev.
//!
//! Interfaces, as libsystemd 252 and later have them: a message of multicast group 2 of `NETLINK_KOBJECT_UEVENT` is a
//! header (prefix `libudev`, a magic number in network order, then in this machine's order the length of the header,
//! the offset and the length of the properties) and properties, each `KEY=VALUE` and a NUL; the database is a file for
//! each device in /run/udev/data, its lines a letter, a colon and a value. Both are udevd's own business between its
//! versions only: what libudev of a container reads is the same. Invariants: any bytes are taken without panicking; what
//! does not fit is an error and never half a device; `Device::build` checks and bounds each property.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use crate::device::{Device, Devnum};
use crate::event::{Event, EventError};
use crate::{safe, sysfs};

/// udevd's database.
const DATABASE: &str = "/run/udev/data";
/// Longest record read, in bytes: root writes them, and a disk of many paths has links in plenty.
const RECORD_MAX: usize = 1024 * 1024;
/// With the terminating NUL.
const PREFIX: &[u8] = b"libudev\0";
/// In network order.
const MAGIC: u32 = 0xfeed_cafe;
/// Length of the header up to and with the length of the properties, which is all that is read of it.
const HEADER: usize = 24;

/// The event in a message of udevd's group.
///
/// # Errors
/// [`EventError`]: the message makes no sense and must be dropped (and counted).
pub(crate) fn parse(message: &[u8], sys_root: &Arc<Path>) -> Result<Event, EventError> {
    let (mut action, mut devpath, mut old, mut seqnum) = (None, None, None, 0);
    let mut properties = Vec::with_capacity(32);
    let fields = body(message).ok_or(EventError::Header)?.split(|b| *b == 0);
    for field in fields.filter(|f| !f.is_empty()).take(safe::PROPERTIES_MAX) {
        let Some(at) = field.iter().position(|b| *b == b'=') else {
            continue;
        };
        let value = sysfs::into_text(field[at + 1..].to_vec());
        match &field[..at] {
            b"ACTION" => action = Some(value),
            b"DEVPATH" => devpath = Some(value),
            b"DEVPATH_OLD" => old = Some(value),
            b"SEQNUM" => seqnum = value.parse().map_err(|_| EventError::Property("SEQNUM"))?,
            name => properties.push((sysfs::into_text(name.to_vec()), value)),
        }
    }
    let plain = |path: String| {
        if safe::is_plain_path(&path) {
            Ok(path)
        } else {
            Err(EventError::Path(safe::show(&path, 128)))
        }
    };
    let devpath = plain(devpath.ok_or(EventError::Property("DEVPATH"))?)?;
    Ok(Event {
        action: action.ok_or(EventError::Property("ACTION"))?.parse()?,
        seqnum,
        device: Device::build(sys_root, devpath, properties),
        devpath_old: old.map(plain).transpose()?,
    })
}

/// The properties of a message, where its header is udevd's.
fn body(message: &[u8]) -> Option<&[u8]> {
    let number = |at: usize| Some(u32::from_ne_bytes(message.get(at..at + 4)?.try_into().ok()?));
    if message.len() < HEADER || !message.starts_with(PREFIX) || number(8)?.to_be() != MAGIC {
        return None;
    }
    let (offset, length) = (number(16)? as usize, number(20)? as usize);
    if offset < HEADER {
        return None;
    }
    message.get(offset..offset.checked_add(length)?)
}

/// The device at a devpath that is known to be normalised: sysfs and udevd's database. `None`: it is gone.
pub(crate) fn read(sys_root: &Arc<Path>, devpath: String) -> Option<Device> {
    let mut properties = Device::read_properties(sys_root, &devpath).ok()?;
    let file = Path::new(DATABASE).join(file_of(&devpath, &properties)?);
    if let Some(text) = sysfs::read_at_most(&file, RECORD_MAX) {
        merge(&text, &mut properties);
    }
    Some(Device::build(sys_root, devpath, properties))
}

/// The name of a device's file in the database: by its number, its interface index, else its subsystem and name.
fn file_of(devpath: &str, properties: &BTreeMap<String, String>) -> Option<String> {
    let number = |name: &str| properties.get(name).and_then(|v| v.parse::<u32>().ok());
    let subsystem = properties.get("SUBSYSTEM");
    if let (Some(major), Some(minor)) = (number("MAJOR"), number("MINOR")) {
        let kind = Devnum {
            block: subsystem.is_some_and(|s| s == "block"),
            major,
            minor,
        };
        let letter = if kind.block { 'b' } else { 'c' };
        return Some(format!("{letter}{major}:{minor}"));
    }
    if let Some(index) = number("IFINDEX") {
        return Some(format!("n{index}"));
    }
    let (subsystem, (_, name)) = (subsystem?, devpath.rsplit_once('/')?);
    // Neither may name another folder's file.
    (!subsystem.contains('/')).then(|| format!("+{subsystem}:{name}"))
}

/// A file of the database on top of what sysfs says.
fn merge(text: &[u8], properties: &mut BTreeMap<String, String>) {
    let (mut links, mut tags, mut current) = (Vec::new(), Vec::new(), Vec::new());
    let mut current_known = false;
    for line in text.split(|b| *b == b'\n') {
        let [letter, b':', value @ ..] = line else {
            continue;
        };
        let value = sysfs::into_text(value.to_vec());
        match letter {
            b'E' => {
                if let Some((name, value)) = value.split_once('=') {
                    properties.insert(name.to_owned(), value.to_owned());
                }
            }
            b'S' => links.push(format!("/dev/{value}")),
            b'G' => tags.push(value),
            b'Q' => current.push(value),
            // Since systemd 247 tags are never dropped, and those of the last event are listed beside them.
            b'V' => current_known = true,
            b'I' => {
                properties.insert("USEC_INITIALIZED".to_owned(), value);
            }
            _ => {} // priority of the links, watch: udevd's own
        }
    }
    let mut put = |name: &str, value: Option<String>| {
        if let Some(value) = value {
            properties.insert(name.to_owned(), value);
        }
    };
    links.sort();
    let joined = |tags: &[String]| (!tags.is_empty()).then(|| format!(":{}:", tags.join(":")));
    put("DEVLINKS", (!links.is_empty()).then(|| links.join(" ")));
    put("TAGS", joined(&tags));
    put(
        "CURRENT_TAGS",
        joined(if current_known { &current } else { &tags }),
    );
}

#[cfg(test)]
#[path = "udevd_tests.rs"]
mod tests;
