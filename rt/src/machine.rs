//! What a machine and its kernel are, as `/sys` and `/proc` below a root tell: the live ones, or a recorded tree.
//!
//! Nothing here writes. A file that is absent is an answer (`None`), never an error.

use std::fs;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::cgroup::file;
use crate::cmdline::{Arch, Platform, Vendor};
use crate::topology::{Topology, TopologyError};

/// `PF_KTHREAD` and `PF_NO_SETAFFINITY` in the flags of `/proc/PID/stat` (include/linux/sched.h).
const KTHREAD: u64 = 0x0020_0000;
const NO_SETAFFINITY: u64 = 0x0400_0000;

/// A machine below a root.
#[derive(Clone, Debug)]
pub struct Machine {
    root: PathBuf,
    config: Option<String>,
}

/// A thread of the kernel, or a process, from `/proc/PID/stat` and `/proc/PID/status`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Thread {
    /// Its id.
    pub pid: i32,
    /// Its name.
    pub name: String,
    /// Clock ticks after boot at which it began: with the id it means one thread.
    pub start: u64,
    /// Whether it is the kernel's.
    pub kernel: bool,
    /// Whether its CPUs can be changed.
    pub movable: bool,
    /// `rt_priority`; 0 without a real-time policy.
    pub priority: u32,
    /// The policy's number.
    pub policy: u32,
}

impl Machine {
    /// The machine whose `/proc` and `/sys` are below `root`.
    #[must_use]
    pub fn new(root: &Path) -> Machine {
        let mut machine = Machine {
            root: root.into(),
            config: None,
        };
        machine.config = machine.read_config();
        machine
    }

    /// The same without the kernel's configuration: [`Machine::option`] tells nothing.
    #[must_use]
    pub fn bare(root: &Path) -> Machine {
        Machine {
            root: root.into(),
            config: None,
        }
    }

    /// Whether this is the machine berth runs on.
    #[must_use]
    pub fn live(&self) -> bool {
        self.root == Path::new("/")
    }

    /// The host's path of an absolute one.
    #[must_use]
    pub fn path(&self, path: &str) -> PathBuf {
        self.root.join(path.trim_start_matches('/'))
    }

    /// A file's text without the newline at its end; `None` where it is absent or cannot be read.
    #[must_use]
    pub fn read(&self, path: &str) -> Option<String> {
        file::read(&self.path(path))
            .ok()
            .map(|text| text.trim_end().to_owned())
    }

    /// The names in a folder, sorted with numbers in their order; none where it is absent.
    #[must_use]
    pub fn names(&self, folder: &str) -> Vec<String> {
        let Ok(entries) = fs::read_dir(self.path(folder)) else {
            return Vec::new();
        };
        let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        let mut names: Vec<String> = names.collect();
        names.sort_by_cached_key(|name| {
            let digits: String = name.chars().filter(char::is_ascii_digit).collect();
            (digits.parse::<u64>().unwrap_or(0), name.clone())
        });
        names
    }

    /// The numbers behind `prefix` of the names in a folder, rising.
    #[must_use]
    pub fn numbers(&self, folder: &str, prefix: &str) -> Vec<u32> {
        let names = self.names(folder);
        let numbers = names
            .iter()
            .filter_map(|name| name.strip_prefix(prefix)?.parse().ok());
        numbers.collect()
    }

    /// The numbers between `prefix` and `suffix` of the names in a folder, rising.
    #[must_use]
    pub fn numbers_between(&self, folder: &str, prefix: &str, suffix: &str) -> Vec<u64> {
        let names = self.names(folder);
        let numbers = names
            .iter()
            .filter_map(|name| name.strip_prefix(prefix)?.strip_suffix(suffix)?.parse().ok());
        numbers.collect()
    }

    /// Whether a file or folder is there.
    #[must_use]
    pub fn there(&self, path: &str) -> bool {
        self.path(path).exists()
    }

    /// Whether the file's mode lets anybody write.
    #[must_use]
    pub fn writable(&self, path: &str) -> bool {
        fs::metadata(self.path(path)).is_ok_and(|meta| meta.permissions().mode() & 0o222 != 0)
    }

    /// The topology.
    ///
    /// # Errors
    /// [`TopologyError`].
    pub fn topology(&self) -> Result<Topology, TopologyError> {
        Topology::read(&self.path("/sys"))
    }

    /// The command line the kernel was booted with.
    #[must_use]
    pub fn command_line(&self) -> String {
        self.read("/proc/cmdline").unwrap_or_default()
    }

    /// `uname -r`.
    #[must_use]
    pub fn release(&self) -> String {
        self.read("/proc/sys/kernel/osrelease").unwrap_or_default()
    }

    /// Version and patch level, such as (6, 12); (0, 0) where the release does not say.
    #[must_use]
    pub fn version(&self) -> (u32, u32) {
        let release = self.release();
        let mut numbers = release
            .split(|c: char| !c.is_ascii_digit())
            .map(|part| part.parse().unwrap_or(0));
        (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
    }

    /// Whether the kernel is PREEMPT_RT.
    #[must_use]
    pub fn realtime(&self) -> bool {
        self.read("/sys/kernel/realtime").as_deref() == Some("1")
            || self
                .read("/proc/version")
                .is_some_and(|version| version.contains("PREEMPT_RT"))
    }

    /// `none`, `integrity` or `confidentiality`; `None` without lockdown.
    #[must_use]
    pub fn lockdown(&self) -> Option<String> {
        selected(&self.read("/sys/kernel/security/lockdown")?)
    }

    /// Whether lockdown forbids writing the scheduler's debugfs files.
    #[must_use]
    pub fn locked(&self) -> bool {
        self.lockdown().is_some_and(|mode| mode != "none")
    }

    /// What decides which kernel arguments there are.
    #[must_use]
    pub fn platform(&self) -> Platform {
        let info = self.read("/proc/cpuinfo").unwrap_or_default();
        let x86_vendor = info
            .lines()
            .find_map(|line| line.strip_prefix("vendor_id")?.split(": ").nth(1));
        let arm = info.lines().any(|line| line.starts_with("CPU implementer"));
        Platform {
            arch: match (x86_vendor, arm) {
                (Some(_), _) => Arch::X86,
                (None, true) => Arch::Arm64,
                _ => Arch::Other,
            },
            vendor: match x86_vendor {
                Some("GenuineIntel") => Vendor::Intel,
                Some("AuthenticAMD" | "HygonGenuine") => Vendor::Amd,
                _ => Vendor::Other,
            },
            pmu_name: self.read("/sys/devices/cpu/caps/pmu_name"),
            realtime: self.realtime(),
        }
    }

    /// What the kernel was built with for an option: `y`, `m`, a value, `n` where it is not set; `None` where nothing tells.
    #[must_use]
    pub fn option(&self, name: &str) -> Option<&str> {
        let config = self.config.as_deref()?;
        let value = config
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
        Some(value.unwrap_or("n"))
    }

    /// `/proc/config.gz`, else `/boot/config-RELEASE`.
    fn read_config(&self) -> Option<String> {
        if let Ok(packed) = fs::File::open(self.path("/proc/config.gz")) {
            let mut text = String::new();
            // A kernel's configuration has some 300 kB; more is none.
            let unpacked = flate2::read::GzDecoder::new(packed)
                .take(4 << 20)
                .read_to_string(&mut text);
            if unpacked.is_ok() {
                return Some(text);
            }
        }
        self.read(&format!("/boot/config-{}", self.release()))
    }

    /// Every process and thread of the kernel, by id.
    #[must_use]
    pub fn threads(&self) -> Vec<Thread> {
        let pids = self.numbers("/proc", "");
        pids.into_iter()
            .filter_map(|pid| {
                thread(
                    i32::try_from(pid).ok()?,
                    &self.read(&format!("/proc/{pid}/stat"))?,
                )
            })
            .collect()
    }

    /// The thread with this id, if it is there.
    #[must_use]
    pub fn thread(&self, pid: i32) -> Option<Thread> {
        thread(pid, &self.read(&format!("/proc/{pid}/stat"))?)
    }

    /// The CPUs a thread may use.
    #[must_use]
    pub fn allowed(&self, pid: i32) -> Option<crate::cpu::CpuSet> {
        let status = self.read(&format!("/proc/{pid}/status"))?;
        let list = status
            .lines()
            .find_map(|line| line.strip_prefix("Cpus_allowed_list:"))?;
        list.trim().parse().ok()
    }
}

/// proc(5): the name stands between the first `(` and the last `)`; the fields behind it are counted from 3.
fn thread(pid: i32, stat: &str) -> Option<Thread> {
    let (before, rest) = stat.split_at(stat.rfind(')')?);
    let name = before.split_once('(')?.1.to_owned();
    let fields: Vec<&str> = rest.get(2..)?.split(' ').collect();
    let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
    let flags = field(9)?;
    Some(Thread {
        pid,
        name,
        start: field(22)?,
        kernel: flags & KTHREAD != 0,
        movable: flags & NO_SETAFFINITY == 0,
        priority: u32::try_from(field(40)?).ok()?,
        policy: u32::try_from(field(41)?).ok()?,
    })
}

/// The word between `[` and `]`, or between `(` and `)` as in `sched/preempt`.
#[must_use]
pub(crate) fn selected(text: &str) -> Option<String> {
    let between = |open, close| Some(text.split_once(open)?.1.split_once(close)?.0.to_owned());
    between('[', ']').or_else(|| between('(', ')'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_may_hold_anything() {
        let stat = "9 (a) b (c) S 2 0 0 0 -1 69238880 0 0 0 0 0 0 0 0 0 -20 1 0 103 0 0 1 0 0 0 0 0 0 0 0 0 0 0 0 17 0 50 1 0";
        let thread = thread(9, stat).unwrap();
        assert_eq!((thread.name.as_str(), thread.start), ("a) b (c", 103));
        assert_eq!((thread.priority, thread.policy), (50, 1));
        assert!(thread.kernel && !thread.movable);
        for bad in ["", "9 (a", "9 (a)", "9 (a) S 2"] {
            assert_eq!(super::thread(9, bad), None, "{bad}");
        }
    }

    #[test]
    fn the_selected_word() {
        assert_eq!(selected("always [madvise] never").as_deref(), Some("madvise"));
        assert_eq!(selected("none voluntary (full) lazy").as_deref(), Some("full"));
        assert_eq!(selected("0"), None);
    }

    #[test]
    fn this_machine() {
        let machine = Machine::new(Path::new("/"));
        assert!(machine.live() && machine.version() > (2, 6));
        assert!(machine.threads().iter().any(|thread| thread.pid == 1));
        assert_ne!(machine.platform().arch, Arch::Other);
    }
}
