//! One uevent: its action, sequence number and device, parsed from the kernel's netlink message.
//!
//! Interface: lib/kobject_uevent.c: `ACTION@DEVPATH\0KEY=VALUE\0…` with ACTION, DEVPATH, SUBSYSTEM and SEQNUM
//! always there. Invariants: the parser takes any bytes without panicking; a message it cannot trust
//! (header and properties differ, a path that is not plain) is an error and never a device.

use std::path::Path;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::device::{Device, Key};
use crate::{safe, sysfs};

/// What happened (`enum kobject_action`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    /// The device is there. Also what a device found by enumeration is matched with.
    Add,
    /// The device is gone.
    Remove,
    /// Something about it changed (a medium, a connector …).
    Change,
    /// It has a new path, e.g. a renamed network interface.
    Move,
    /// It went online (CPUs, memory).
    Online,
    /// It went offline.
    Offline,
    /// A driver was bound to it.
    Bind,
    /// Its driver was taken away.
    Unbind,
}

impl Action {
    /// Every action, in the kernel's order.
    pub const ALL: [Action; 8] = [
        Action::Add,
        Action::Remove,
        Action::Change,
        Action::Move,
        Action::Online,
        Action::Offline,
        Action::Bind,
        Action::Unbind,
    ];

    /// The kernel's word.
    pub fn as_str(self) -> &'static str {
        match self {
            Action::Add => "add",
            Action::Remove => "remove",
            Action::Change => "change",
            Action::Move => "move",
            Action::Online => "online",
            Action::Offline => "offline",
            Action::Bind => "bind",
            Action::Unbind => "unbind",
        }
    }
}

impl std::fmt::Display for Action {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

impl std::str::FromStr for Action {
    type Err = EventError;

    fn from_str(text: &str) -> Result<Self, EventError> {
        Action::ALL
            .into_iter()
            .find(|a| a.as_str() == text)
            .ok_or_else(|| EventError::Action(safe::show(text, 32)))
    }
}

/// Why a message is no event.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum EventError {
    /// No `action@devpath` at the start.
    #[error("the message does not start with action@devpath")]
    Header,
    /// An action the kernel does not have.
    #[error("unknown action {0:?}")]
    Action(String),
    /// A required property is missing or differs from the header.
    #[error("property {0} is missing or contradicts the header")]
    Property(&'static str),
    /// A path with empty, `.` or `..` parts, control characters, or too long.
    #[error("the path {0:?} is not plain")]
    Path(String),
}

/// Something happened to a device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Event {
    /// What.
    pub action: Action,
    /// The kernel's running number (0 where the source has none).
    pub seqnum: u64,
    /// To which device, as the event described it. For `remove` this can lack most properties.
    pub device: Device,
    /// DEVPATH_OLD of a `move`.
    pub devpath_old: Option<String>,
}

impl Event {
    /// Key of the device as this event knows it.
    pub fn key(&self) -> Key {
        self.device.key()
    }

    /// An `add` for a device that enumeration found.
    pub fn added(device: Device) -> Event {
        Event {
            action: Action::Add,
            seqnum: 0,
            device,
            devpath_old: None,
        }
    }

    /// Parses one message of the kernel's multicast group.
    ///
    /// # Errors
    /// [`EventError`]: the message is not to be trusted and must be dropped (and counted).
    pub fn parse_kernel(message: &[u8], sys_root: &Arc<Path>) -> Result<Event, EventError> {
        let mut fields = message.split(|b| *b == 0).filter(|f| !f.is_empty());
        let header = fields.next().ok_or(EventError::Header)?;
        let at = header.iter().position(|b| *b == b'@').ok_or(EventError::Header)?;
        let (mut action, mut devpath) = (None, None);
        let (mut seqnum, mut devpath_old) = (None, None);
        let mut properties = Vec::with_capacity(16);
        for field in fields.take(safe::PROPERTIES_MAX) {
            let Some(eq) = field.iter().position(|b| *b == b'=') else {
                continue;
            };
            let (name, value) = (&field[..eq], &field[eq + 1..]);
            match name {
                b"ACTION" => action = Some(value),
                b"DEVPATH" => devpath = Some(value),
                b"SEQNUM" => seqnum = std::str::from_utf8(value).ok().and_then(|v| v.parse().ok()),
                b"DEVPATH_OLD" => devpath_old = Some(plain(value)?),
                _ => properties.push((sysfs::into_text(name.to_vec()), sysfs::into_text(value.to_vec()))),
            }
        }
        if action != Some(&header[..at]) {
            return Err(EventError::Property("ACTION"));
        }
        if devpath != Some(&header[at + 1..]) {
            return Err(EventError::Property("DEVPATH"));
        }
        let action = String::from_utf8_lossy(&header[..at]).parse()?;
        let devpath = plain(&header[at + 1..])?;
        let seqnum = seqnum.ok_or(EventError::Property("SEQNUM"))?;
        if !properties.iter().any(|(name, _)| name == "SUBSYSTEM") {
            return Err(EventError::Property("SUBSYSTEM"));
        }
        Ok(Event {
            action,
            seqnum,
            device: Device::build(sys_root, devpath, properties),
            devpath_old,
        })
    }
}

fn plain(path: &[u8]) -> Result<String, EventError> {
    let text = String::from_utf8_lossy(path);
    match std::str::from_utf8(path) {
        Ok(path) if safe::is_plain_path(path) => Ok(path.to_owned()),
        _ => Err(EventError::Path(safe::show(&text, 128))),
    }
}

#[cfg(test)]
#[path = "event_tests.rs"]
mod tests;
