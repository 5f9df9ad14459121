//! Devices by number, and which disks are the host's own.

use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// `c 188:* rw`: kind, numbers (`*`: any), accesses.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct DeviceWord {
    block: bool,
    major: Option<u32>,
    minor: Option<u32>,
    access: String,
}

impl FromStr for DeviceWord {
    type Err = String;

    fn from_str(text: &str) -> Result<DeviceWord, String> {
        let wrong = || format!("{text:?}: a device such as `c 188:* rw` or `b 8:16 r`");
        let words: Vec<&str> = text.split(' ').collect();
        let [kind, numbers, access] = words[..] else {
            return Err(wrong());
        };
        let (major, minor) = numbers.split_once(':').ok_or_else(wrong)?;
        let number = |word: &str, limit: u32| match word {
            "*" => Ok(None),
            _ => word
                .parse()
                .ok()
                .filter(|n| *n < limit)
                .map(Some)
                .ok_or_else(wrong),
        };
        let ordered: String = "rwm".chars().filter(|c| access.contains(*c)).collect();
        if ordered.is_empty() || ordered.len() != access.len() || !matches!(kind, "b" | "c") {
            return Err(wrong());
        }
        Ok(DeviceWord {
            block: kind == "b",
            major: number(major, 1 << 12)?,
            minor: number(minor, 1 << 20)?,
            access: ordered,
        })
    }
}

impl TryFrom<String> for DeviceWord {
    type Error = String;

    fn try_from(text: String) -> Result<DeviceWord, String> {
        text.parse()
    }
}

impl From<DeviceWord> for String {
    fn from(word: DeviceWord) -> String {
        word.to_string()
    }
}

impl fmt::Display for DeviceWord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = if self.block { 'b' } else { 'c' };
        let number = |n: Option<u32>| n.map_or_else(|| "*".to_owned(), |n| n.to_string());
        write!(
            f,
            "{kind} {}:{} {}",
            number(self.major),
            number(self.minor),
            self.access
        )
    }
}

/// What somebody wants: `None` stands for every number.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Wanted<'a> {
    pub(crate) block: bool,
    pub(crate) major: Option<u32>,
    pub(crate) minor: Option<u32>,
    pub(crate) access: &'a str,
}

impl DeviceWord {
    /// Does it cover all of `wanted`?
    pub(crate) fn covers(&self, wanted: &Wanted<'_>) -> bool {
        let number = |own: Option<u32>, other: Option<u32>| own.is_none() || own == other;
        self.block == wanted.block
            && number(self.major, wanted.major)
            && number(self.minor, wanted.minor)
            && wanted.access.chars().all(|c| self.access.contains(c))
    }

    /// Is any of `wanted` among its own?
    pub(crate) fn touches(&self, wanted: &Wanted<'_>) -> bool {
        let number = |own: Option<u32>, other: Option<u32>| own.is_none() || other.is_none() || own == other;
        self.block == wanted.block
            && number(self.major, wanted.major)
            && number(self.minor, wanted.minor)
            && wanted.access.chars().any(|c| self.access.contains(c))
    }
}

/// The block devices that the host itself uses.
#[derive(Debug, Default)]
pub(crate) struct Disks {
    used: BTreeSet<(u32, u32)>,
}

impl Disks {
    /// Mounted file systems and swap of this mount namespace, and all that they lie on.
    ///
    /// # Errors
    /// What could not be read: nothing may be taken for free then.
    pub(crate) fn of_host(root: &Path) -> std::io::Result<Disks> {
        let mut disks = Disks::default();
        let mounts = read_long(&root.join("proc/self/mountinfo"))?;
        // A node has dozens of mounts of a few file systems, and an armed container waits for this.
        let (mut numbers, mut sources) = (BTreeSet::new(), BTreeSet::new());
        for line in mounts.lines() {
            numbers.extend(line.split(' ').nth(2).and_then(number));
            // A file system over several disks (btrfs) has a number of its own: its source is one of them.
            let source = line.split(" - ").nth(1).and_then(|rest| rest.split(' ').nth(1));
            sources.extend(source.filter(|s| s.starts_with("/dev/")));
        }
        numbers.extend(sources.into_iter().filter_map(|source| of_node(root, source)));
        for number in numbers {
            disks.add(root, number);
        }
        match fs::read_to_string(root.join("proc/swaps")) {
            Ok(swaps) => {
                for line in swaps.lines().skip(1) {
                    let name = line.split_ascii_whitespace().next().unwrap_or_default();
                    if let Some(number) = of_node(root, name) {
                        disks.add(root, number);
                    }
                }
            }
            // A kernel without swap.
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
            Err(e) => return Err(e),
        }
        Ok(disks)
    }

    pub(crate) fn uses(&self, major: u32, minor: u32) -> bool {
        self.used.contains(&(major, minor))
    }

    /// Does one of them hang on the device whose folder in sysfs this is?
    pub(crate) fn any_below(&self, root: &Path, folder: &Path) -> bool {
        let Ok(folder) = fs::canonicalize(folder) else {
            return false;
        };
        self.used.iter().any(|(major, minor)| {
            let disk = fs::canonicalize(root.join(format!("sys/dev/block/{major}:{minor}")));
            disk.is_ok_and(|disk| disk.starts_with(&folder))
        })
    }

    /// With the disk a partition is part of, and the disks below (device mapper, RAID).
    fn add(&mut self, root: &Path, number: (u32, u32)) {
        let folder = root.join(format!("sys/dev/block/{}:{}", number.0, number.1));
        if number.0 == 0 || !folder.exists() || !self.used.insert(number) {
            return;
        }
        if folder.join("partition").exists()
            && let Some(whole) = dev(&folder.join("../dev"))
        {
            self.add(root, whole);
        }
        for below in fs::read_dir(folder.join("slaves"))
            .into_iter()
            .flatten()
            .flatten()
        {
            if let Some(number) = dev(&below.path().join("dev")) {
                self.add(root, number);
            }
        }
    }
}

/// A file of the kernel's that does not say how long it is, in few calls.
fn read_long(path: &Path) -> std::io::Result<String> {
    let mut text = String::with_capacity(32 << 10);
    fs::File::open(path)?.read_to_string(&mut text)?;
    Ok(text)
}

fn number(text: &str) -> Option<(u32, u32)> {
    let (major, minor) = text.trim().split_once(':')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

fn dev(file: &Path) -> Option<(u32, u32)> {
    // `..` after a link is that of the link's end: the kernel follows it.
    fs::read_to_string(file).ok().as_deref().and_then(number)
}

/// The number of a device node by its name in sysfs; nodes may be links.
fn of_node(root: &Path, path: &str) -> Option<(u32, u32)> {
    let inside = root.join(path.trim_start_matches('/'));
    let real: PathBuf = fs::canonicalize(inside).ok()?;
    dev(&root.join("sys/class/block").join(real.file_name()?).join("dev"))
}
