//! What a program that uses libudev needs in a container: device events in the container's network namespace, and
//! udev's records of the devices it was given.
//!
//! Interfaces: `NETLINK_KOBJECT_UEVENT`. A message sent to the kernel by who has CAP_SYS_ADMIN over the namespace is
//! given out there as the kernel's own (group 1, lib/kobject_uevent.c, since Linux 4.18; at most 2048 bytes with its header
//! and number); group 2 is udevd's, with libudev's header. libudev believes root alone, the container's: the sender's
//! ids are those that are 0 inside. /run/udev/data/ID are udevd's records: `E:` properties, `G:` and `Q:` tags, `S:` links,
//! `I:` since when. libudev listens to group 2 only where /run/udev/control is there.
//!
//! ```text
//! RUN/udev/ID/control     empty; the folder is /run/udev inside, read-only
//! RUN/udev/ID/data/…      records of the devices it has and of those they hang on
//! ```
//! Invariants: what is told of a device is read from sysfs and udevd's records here, so that no request can invent a
//! device; of an event's own words only those are passed on that say nothing of that. The parsers take any bytes.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::paths::{self, Paths};

/// Where it is inside.
pub(crate) const INSIDE: &str = "/run/udev";
/// udevd's records on the host.
const RECORDS: &str = "/run/udev/data";
/// `UEVENT_BUFFER_SIZE` without the netlink header and `SEQNUM=`.
const KERNEL_MAX: usize = 2048 - 16 - 32;
/// Most bytes of an event's own words.
pub(crate) const WORDS_MAX: usize = 16 * 1024;
/// Most bytes of a record or a `uevent` file.
const FILE_MAX: u64 = 64 * 1024;
/// Actions there are (`enum kobject_action`).
pub(crate) const ACTIONS: [&str; 8] = [
    "add", "remove", "change", "move", "online", "offline", "bind", "unbind",
];

/// A device as it is told of inside.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Device {
    devpath: String,
    /// Of the `uevent` file, SUBSYSTEM beside them.
    kernel: BTreeMap<String, String>,
    /// Of udevd's record.
    udev: BTreeMap<String, String>,
    tags: Vec<String>,
    /// Its records inside: names and contents, its own first.
    pub(crate) records: Vec<(String, String)>,
}

/// The two folders of a container that hears events: its own, and the layer with a place for it.
///
/// # Errors
/// The kernel's.
pub(crate) fn folders(paths: &Paths, id: &str) -> io::Result<(PathBuf, PathBuf)> {
    let (own, layer) = (paths.udev(id), paths.state.join("places-udev"));
    paths::remove_tree(&own)?;
    let open = |folder: &Path| {
        paths::make_dir(folder, 0o755)?;
        // Read by the container's users, whatever this process's mask says.
        fs::set_permissions(folder, fs::Permissions::from_mode(0o755))
    };
    open(&own)?;
    open(&own.join("data"))?;
    write(&own.join("control"), "")?;
    for folder in ["", "run", INSIDE.trim_start_matches('/')] {
        open(&layer.join(folder))?;
    }
    Ok((fs::canonicalize(own)?, fs::canonicalize(layer)?))
}

/// Gives the folder the label of the container's own files; what is written there later takes its type.
///
/// # Errors
/// The kernel's.
pub(crate) fn label(folder: &Path, label: &str) -> io::Result<()> {
    let value = format!("{label}\0");
    for path in [folder.to_owned(), folder.join("data"), folder.join("control")] {
        xattr::set(path, "security.selinux", value.as_bytes())?;
    }
    Ok(())
}

/// Takes the container's folder away.
pub(crate) fn forget(paths: &Paths, id: &str) {
    if let Err(e) = paths::remove_tree(&paths.udev(id)) {
        eprintln!("berth launcher: {e}");
    }
}

/// Writes a file that everybody may read.
pub(crate) fn write(path: &Path, text: &str) -> io::Result<()> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let new = path.with_file_name(format!(".{name}"));
    fs::write(&new, text)?;
    fs::set_permissions(&new, fs::Permissions::from_mode(0o444))?;
    fs::rename(&new, path)
}

fn read(path: &Path) -> io::Result<String> {
    use std::io::Read;
    let mut bytes = Vec::new();
    fs::File::open(path)?.take(FILE_MAX).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

impl Device {
    /// Reads it. `links`: udev's links to its node are there inside; `since`: microseconds since boot, where no udevd
    /// runs that knows.
    ///
    /// # Errors
    /// There is no such device (any more).
    pub(crate) fn read(block: bool, major: u32, minor: u32, links: bool, since: u64) -> io::Result<Device> {
        let kind = if block { "block" } else { "char" };
        let path = fs::canonicalize(format!("/sys/dev/{kind}/{major}:{minor}"))?;
        let mut device = Device {
            devpath: devpath(&path).ok_or(io::ErrorKind::InvalidData)?,
            kernel: properties(&path)?,
            ..Device::default()
        };
        let mut folder = Some(path.as_path());
        while let Some(at) = folder.filter(|at| devpath(at).is_some()) {
            if let Some(name) = record_name(at) {
                let of_udevd = read(&Path::new(RECORDS).join(&name)).ok();
                let own = device.records.is_empty();
                let text = record(of_udevd.as_deref(), own && links, own.then_some(since));
                if own {
                    device.learn(&text);
                }
                if !text.is_empty() {
                    device.records.push((name, text));
                }
            }
            folder = at.parent();
        }
        Ok(device)
    }

    /// Takes in its own record.
    fn learn(&mut self, record: &str) {
        let mut links = Vec::new();
        for line in record.lines() {
            match line.split_at_checked(2) {
                Some(("E:", rest)) => {
                    if let Some((name, value)) = rest.split_once('=') {
                        self.udev.insert(name.to_owned(), value.to_owned());
                    }
                }
                Some(("I:", rest)) => {
                    self.udev.insert("USEC_INITIALIZED".to_owned(), rest.to_owned());
                }
                Some(("S:", rest)) => links.push(format!("/dev/{rest}")),
                Some(("G:" | "Q:", rest)) if !self.tags.iter().any(|tag| tag == rest) => {
                    self.tags.push(rest.to_owned());
                }
                _ => {}
            }
        }
        if !links.is_empty() {
            self.udev.insert("DEVLINKS".to_owned(), links.join(" "));
        }
        if !self.tags.is_empty() {
            let text = format!(":{}:", self.tags.join(":"));
            self.udev.insert("CURRENT_TAGS".to_owned(), text.clone());
            self.udev.insert("TAGS".to_owned(), text);
        }
    }

    /// What an event says beside the device: words that neither the kernel nor udevd's record has.
    pub(crate) fn own_words(&self, words: &[(String, String)]) -> Vec<(String, String)> {
        const OF_THE_DEVICE: [&str; 12] = [
            "ACTION",
            "DEVPATH",
            "SUBSYSTEM",
            "SEQNUM",
            "DEVNAME",
            "MAJOR",
            "MINOR",
            "DEVLINKS",
            "TAGS",
            "CURRENT_TAGS",
            "USEC_INITIALIZED",
            "DEVTYPE",
        ];
        let plain = |name: &str| {
            !name.is_empty() && name.len() < 256 && name.bytes().all(|b| b.is_ascii_graphic() && b != b'=')
        };
        let mut left = WORDS_MAX;
        words
            .iter()
            .filter(|(name, value)| {
                let new = !OF_THE_DEVICE.contains(&name.as_str())
                    && !self.kernel.contains_key(name)
                    && !self.udev.contains_key(name);
                let fits = name.len() + value.len() < left && !value.contains(['\0', '\n']);
                if new && plain(name) && fits {
                    left -= name.len() + value.len();
                    return true;
                }
                false
            })
            .cloned()
            .collect()
    }

    /// The event as the kernel writes it, without its number. Words that find no room are left out.
    pub(crate) fn kernel_message(&self, action: &str, words: &[(String, String)]) -> Vec<u8> {
        let mut message = format!("{action}@{}\0", self.devpath).into_bytes();
        let mut put = |name: &str, value: &str| {
            if message.len() + name.len() + value.len() + 2 <= KERNEL_MAX {
                message.extend_from_slice(format!("{name}={value}\0").as_bytes());
            }
        };
        put("ACTION", action);
        put("DEVPATH", &self.devpath);
        for (name, value) in &self.kernel {
            put(name, value);
        }
        for (name, value) in words {
            put(name, value);
        }
        message
    }

    /// The event as udevd writes it.
    pub(crate) fn udev_message(&self, action: &str, words: &[(String, String)], seqnum: u64) -> Vec<u8> {
        let mut body = Vec::new();
        let mut put = |name: &str, value: &str| {
            body.extend_from_slice(format!("{name}={value}\0").as_bytes());
        };
        put("ACTION", action);
        put("DEVPATH", &self.devpath);
        put("SEQNUM", &seqnum.to_string());
        for (name, value) in self.kernel.iter().chain(&self.udev) {
            // udevd has the node's whole path.
            match name.as_str() {
                "DEVNAME" if !value.starts_with('/') => put(name, &format!("/dev/{value}")),
                _ => put(name, value),
            }
        }
        for (name, value) in words {
            put(name, value);
        }
        let word = |name: &str| self.kernel.get(name).map_or(0, |value| hash(value.as_bytes()));
        let bloom = self
            .tags
            .iter()
            .fold(0, |bits, tag| bits | bloom(hash(tag.as_bytes())));
        const HEADER: u32 = 40;
        let mut message = b"libudev\0".to_vec();
        message.extend(0xfeed_cafe_u32.to_be_bytes());
        message.extend(HEADER.to_ne_bytes());
        message.extend(HEADER.to_ne_bytes());
        message.extend(u32::try_from(body.len()).unwrap_or(u32::MAX).to_ne_bytes());
        message.extend(word("SUBSYSTEM").to_be_bytes());
        message.extend(word("DEVTYPE").to_be_bytes());
        message.extend(bloom.to_be_bytes());
        message.extend(body);
        message
    }
}

/// A record as it is inside: without links that are not there. `since`: what stands for a record that udevd does not
/// have.
fn record(of_udevd: Option<&str>, links: bool, since: Option<u64>) -> String {
    let Some(text) = of_udevd else {
        return since.map_or_else(String::new, |since| format!("I:{since}\n"));
    };
    let mut kept = String::with_capacity(text.len());
    for line in text.lines() {
        if links || !(line.starts_with("S:") || line.starts_with("L:")) {
            kept.push_str(line);
            kept.push('\n');
        }
    }
    kept
}

/// Its path without /sys; `None`: not below /sys/devices.
fn devpath(folder: &Path) -> Option<String> {
    let path = folder.to_str()?.strip_prefix("/sys")?;
    path.strip_prefix("/devices/")
        .filter(|rest| !rest.is_empty())
        .map(|_| path.to_owned())
}

fn subsystem(folder: &Path) -> Option<String> {
    let link = fs::read_link(folder.join("subsystem")).ok()?;
    Some(link.file_name()?.to_str()?.to_owned())
}

fn properties(folder: &Path) -> io::Result<BTreeMap<String, String>> {
    let text = read(&folder.join("uevent"))?;
    let pairs = text.lines().filter_map(|line| line.split_once('='));
    let mut found: BTreeMap<String, String> = pairs
        .filter(|(name, _)| !matches!(*name, "ACTION" | "DEVPATH" | "SEQNUM"))
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect();
    if let Some(subsystem) = subsystem(folder) {
        found.insert("SUBSYSTEM".to_owned(), subsystem);
    }
    Ok(found)
}

/// The name of its record: `b7:1`, `c188:0`, `n3`, `+usb:1-1`.
fn record_name(folder: &Path) -> Option<String> {
    let subsystem = subsystem(folder)?;
    let own = properties(folder).ok()?;
    let number = |name: &str| own.get(name).and_then(|v| v.parse::<u32>().ok());
    if let (Some(major), Some(minor)) = (number("MAJOR"), number("MINOR")) {
        let kind = if subsystem == "block" { 'b' } else { 'c' };
        return Some(format!("{kind}{major}:{minor}"));
    }
    if let Some(index) = number("IFINDEX") {
        return Some(format!("n{index}"));
    }
    Some(format!("+{subsystem}:{}", folder.file_name()?.to_str()?))
}

/// MurmurHash2 with seed 0: by what libudev's socket filter knows subsystems and tags.
fn hash(bytes: &[u8]) -> u32 {
    const M: u32 = 0x5bd1_e995;
    let mut h = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
    let mut chunks = bytes.chunks_exact(4);
    for chunk in &mut chunks {
        let mut k = u32::from_le_bytes([chunk[0], chunk[1], chunk[2], chunk[3]]).wrapping_mul(M);
        k ^= k >> 24;
        h = h.wrapping_mul(M) ^ k.wrapping_mul(M);
    }
    let rest = chunks.remainder();
    if !rest.is_empty() {
        let tail = rest.iter().rev().fold(0, |sum, byte| sum << 8 | u32::from(*byte));
        h = (h ^ tail).wrapping_mul(M);
    }
    h ^= h >> 13;
    h = h.wrapping_mul(M);
    h ^ h >> 15
}

/// The bits of one tag in the filter.
fn bloom(hash: u32) -> u64 {
    [0, 6, 12, 18]
        .into_iter()
        .fold(0, |bits, shift| bits | 1 << (hash >> shift & 63))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn device(record: &str) -> Device {
        let pair = |(a, b): (&str, &str)| (a.to_owned(), b.to_owned());
        let kernel = [
            ("DEVNAME", "sdb"),
            ("DEVTYPE", "disk"),
            ("MAJOR", "8"),
            ("MINOR", "16"),
            ("SUBSYSTEM", "block"),
        ];
        let mut device = Device {
            devpath: "/devices/pci0/usb1/block/sdb".into(),
            kernel: kernel.map(pair).into(),
            ..Device::default()
        };
        device.learn(record);
        device
    }

    #[test]
    fn messages_are_what_libudev_reads() {
        let device = device("S:disk/by-id/x\nI:77\nE:ID_BUS=usb\nG:systemd\nQ:systemd\nV:1\nbroken");
        let words = vec![("DISK_MEDIA_CHANGE".to_owned(), "1".to_owned())];
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).replace('\0', " ");
        assert_eq!(
            text(&device.kernel_message("change", &words)),
            "change@/devices/pci0/usb1/block/sdb ACTION=change DEVPATH=/devices/pci0/usb1/block/sdb DEVNAME=sdb \
             DEVTYPE=disk MAJOR=8 MINOR=16 SUBSYSTEM=block DISK_MEDIA_CHANGE=1 "
        );
        let message = device.udev_message("change", &words, 9);
        assert_eq!(&message[..12], b"libudev\0\xfe\xed\xca\xfe");
        let length = u32::from_ne_bytes(message[20..24].try_into().unwrap()) as usize;
        assert_eq!(40 + length, message.len());
        assert_eq!(
            text(&message[40..]),
            "ACTION=change DEVPATH=/devices/pci0/usb1/block/sdb SEQNUM=9 DEVNAME=/dev/sdb DEVTYPE=disk MAJOR=8 MINOR=16 \
             SUBSYSTEM=block CURRENT_TAGS=:systemd: DEVLINKS=/dev/disk/by-id/x ID_BUS=usb TAGS=:systemd: \
             USEC_INITIALIZED=77 DISK_MEDIA_CHANGE=1 "
        );
    }

    #[test]
    fn an_event_says_nothing_of_the_device_itself() {
        let device = device("E:ID_BUS=usb");
        let words: Vec<(String, String)> = [
            ("DEVNAME", "/dev/sda"),
            ("DEVPATH", "/devices/other"),
            ("ID_BUS", "pci"),
            ("A=B", "x"),
            ("LINES", "a\nb"),
            ("RESIZE", "1"),
        ]
        .map(|(a, b)| (a.to_owned(), b.to_owned()))
        .into();
        assert_eq!(device.own_words(&words), [("RESIZE".to_owned(), "1".to_owned())]);
        let long = vec![("LONG".to_owned(), "x".repeat(WORDS_MAX))];
        assert!(device.own_words(&long).is_empty());
    }

    /// The values are those of the reference implementation of MurmurHash2 with seed 0.
    #[test]
    fn hashes_are_libudevs() {
        for (text, want) in [
            ("block", 0xf003_1db7),
            ("tty", 0x8afa_90c8),
            ("usb_device", 0x27f8_f50c),
            ("systemd", 0xa75f_972a),
        ] {
            assert_eq!(hash(text.as_bytes()), want, "{text}");
        }
    }

    #[test]
    fn records_lose_links_that_are_not_inside() {
        let text = "S:disk/by-id/x\nL:0\nI:5\nE:A=b\n";
        assert_eq!(record(Some(text), false, Some(1)), "I:5\nE:A=b\n");
        assert_eq!(record(Some(text), true, None), text);
        assert_eq!(record(None, true, Some(3)), "I:3\n");
        assert_eq!(record(None, true, None), "");
    }

    proptest! {
        #[test]
        fn any_record_makes_a_message(text in "\\PC{0,300}", action in 0usize..8) {
            let device = device(&text);
            prop_assert!(device.kernel_message(ACTIONS[action], &[]).len() <= KERNEL_MAX);
            device.udev_message(ACTIONS[action], &[], 1);
        }
    }
}
