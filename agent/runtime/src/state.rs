//! The state of a container between processes: a folder of its own below the state root.
//!
//! ```text
//! STATE_ROOT/ID/cgroup        the cgroup path, written before the cgroup is made
//!               record.json   everything else, written when the container is created (renamed into place)
//!               start         FIFO: the start message of a detached container; gone once it was started
//!               failure       FIFO: why a detached container did not exec
//!               filter        the seccomp program of a detached container, for processes that join it
//! ```
//! Invariants: the folder is made first and removed last; its making is what reserves the id. A folder without a
//! record that nobody holds (claim.rs) belongs to a creation that was cut off: `delete --force` frees what it names. A
//! pid counts only together with its start time and the boot id.

pub(crate) mod claim;

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use berth_rt::cpu::CpuSet;
use berth_rt::sched::Scheduler;
use nix::fcntl::OFlag;
use nix::sys::stat::Mode;
use oci_spec::runtime::Spec;
use serde::{Deserialize, Serialize};

use crate::plan::Hooks;
use crate::proof::Promise;
use crate::recipe::Process;
use crate::seccomp::Listener;

/// Version of record.json.
pub const VERSION: u32 = 1;

pub(crate) const RECORD: &str = "record.json";
pub(crate) const CGROUP: &str = "cgroup";
pub(crate) const START: &str = "start";
pub(crate) const FAILURE: &str = "failure";
pub(crate) const FILTER: &str = "filter";

/// What hooks and `berth oci state` say of a container.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HookState {
    oci_version: String,
    id: String,
    bundle: PathBuf,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
}

impl HookState {
    pub(crate) fn new(id: &str, bundle: &Path, spec: &Spec) -> Self {
        Self {
            oci_version: spec.version().clone(),
            id: id.to_owned(),
            bundle: bundle.to_owned(),
            annotations: spec
                .annotations()
                .clone()
                .unwrap_or_default()
                .into_iter()
                .collect(),
        }
    }

    /// The OCI state as JSON, with this pid (0: none) and status.
    pub fn at(&self, pid: i32, status: &str) -> String {
        let mut state = serde_json::json!({
            "ociVersion": self.oci_version, "id": self.id, "status": status, "bundle": self.bundle,
        });
        if pid > 0 {
            state["pid"] = pid.into();
        }
        if !self.annotations.is_empty() {
            state["annotations"] = serde_json::json!(self.annotations);
        }
        state.to_string()
    }

    /// The bundle folder.
    pub fn bundle(&self) -> &Path {
        &self.bundle
    }
}

/// A created container as it is stored.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Record {
    /// [`VERSION`].
    pub version: u32,
    /// Container id.
    pub id: String,
    /// First process, host pid namespace.
    pub pid: i32,
    /// Field 22 of /proc/PID/stat.
    pub start_time: u64,
    /// /proc/sys/kernel/random/boot_id.
    pub boot_id: String,
    /// Nanoseconds since the epoch.
    pub created_at: u64,
    /// Path below the cgroup mounts.
    pub cgroup: String,
    /// It waits at a FIFO.
    pub detached: bool,
    /// What it is promised.
    pub promise: Promise,
    /// Hooks still to come.
    pub hooks: Hooks,
    /// The words of its state.
    pub state: HookState,
    /// Policy to be set at start, with its flags.
    pub scheduler: Option<(Scheduler, u64)>,
    /// ioprio class and level to be set at start.
    pub io_priority: Option<(u32, u32)>,
    /// CPUs to be confined to at start.
    pub affinity: Option<CpuSet>,
    /// Credentials and limits, for processes that join it.
    #[serde(default)]
    pub(crate) process: Option<Process>,
    /// Its filter, for processes that join it.
    #[serde(default)]
    pub(crate) filter: Option<StoredFilter>,
    /// Nothing but its exec is left for it to do once it is told to start: no hook runs inside before.
    #[serde(default)]
    pub(crate) ready_to_exec: bool,
}

/// What is stored of a seccomp filter. The program is in a file of its own where the container is detached, else it
/// is compiled again from the bundle, whose section must still give the same program.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct StoredFilter {
    pub(crate) flags: u32,
    pub(crate) hash: u64,
    pub(crate) listener: Option<Listener>,
}

/// Where a container stands, in OCI's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// Being made, or its making was cut off.
    Creating,
    /// Waits for start.
    Created,
    /// Its program runs.
    Running,
    /// Its first process has ended.
    Stopped,
    /// Its program runs and is frozen.
    Paused,
}

impl Status {
    /// OCI's word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Creating => "creating",
            Self::Created => "created",
            Self::Running => "running",
            Self::Stopped => "stopped",
            Self::Paused => "paused",
        }
    }
}

/// A small file of procfs in one read (the standard library begins with 32 bytes).
pub(crate) fn read_small(path: &str) -> io::Result<String> {
    let mut buffer = [0u8; 4096];
    let n = io::Read::read(&mut fs::File::open(path)?, &mut buffer)?;
    Ok(String::from_utf8_lossy(&buffer[..n]).into_owned())
}

/// `boot_id` of this boot.
pub(crate) fn boot_id() -> io::Result<String> {
    Ok(read_small("/proc/sys/kernel/random/boot_id")?.trim().to_owned())
}

/// Start time in clock ticks since boot and the state letter of a process; `None` when there is none.
pub(crate) fn process(pid: i32) -> Option<(u64, char)> {
    let stat = read_small(&format!("/proc/{pid}/stat")).ok()?;
    parse_stat(&stat)
}

/// Fields 22 and 3; the command in parentheses may hold anything.
fn parse_stat(stat: &str) -> Option<(u64, char)> {
    let mut rest = stat.rsplit_once(')')?.1.split_ascii_whitespace();
    let state = rest.next()?.chars().next()?;
    Some((rest.nth(18)?.parse().ok()?, state))
}

/// Write a file by renaming it into place.
pub(crate) fn write_file(dir: &Path, name: &str, bytes: &[u8]) -> io::Result<()> {
    prepare_file(dir, name, bytes)?;
    put_file(dir, name)
}

/// The first half of [`write_file`]: nobody sees it yet.
pub(crate) fn prepare_file(dir: &Path, name: &str, bytes: &[u8]) -> io::Result<()> {
    fs::write(dir.join(format!(".{name}")), bytes)
}

/// The second half: it is there, whole.
pub(crate) fn put_file(dir: &Path, name: &str) -> io::Result<()> {
    fs::rename(dir.join(format!(".{name}")), dir.join(name))
}

impl Record {
    /// Store it.
    ///
    /// # Errors
    /// The folder cannot be written.
    pub fn store(&self, dir: &Path) -> io::Result<()> {
        write_file(dir, RECORD, &serde_json::to_vec(self)?)
    }

    /// Read it; `None` where the folder has no record yet.
    ///
    /// # Errors
    /// Unreadable, not a record, or of a later version.
    pub fn load(dir: &Path) -> io::Result<Option<Self>> {
        Self::parse(fs::read(dir.join(RECORD)))
    }

    /// As [`Record::load`], from a folder that is open.
    pub(crate) fn load_from(folder: &OwnedFd) -> io::Result<Option<Self>> {
        let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC;
        let file = nix::fcntl::openat(folder, RECORD, flags, Mode::empty());
        Self::parse(file.map_err(io::Error::from).and_then(|file| {
            let mut bytes = Vec::new();
            io::Read::read_to_end(&mut fs::File::from(file), &mut bytes)?;
            Ok(bytes)
        }))
    }

    fn parse(read: io::Result<Vec<u8>>) -> io::Result<Option<Self>> {
        let bytes = match read {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other?,
        };
        let record: Self = serde_json::from_slice(&bytes)?;
        if record.version != VERSION {
            let text = format!("record version {} is not {VERSION}", record.version);
            return Err(io::Error::new(io::ErrorKind::InvalidData, text));
        }
        Ok(Some(record))
    }

    /// Is the first process still there?
    pub fn alive(&self) -> bool {
        let same_boot = boot_id().is_ok_and(|b| b == self.boot_id);
        same_boot
            && process(self.pid)
                .is_some_and(|(start, state)| start == self.start_time && !"ZX".contains(state))
    }

    /// Where it stands.
    pub fn status(&self, dir: &Path) -> Status {
        self.status_if(self.alive(), dir)
    }

    pub(crate) fn status_if(&self, alive: bool, dir: &Path) -> Status {
        if !alive {
            Status::Stopped
        } else if self.detached && dir.join(START).exists() {
            Status::Created
        } else {
            Status::Running
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stat_with_a_hostile_command() {
        let stat = "42 (a) R 9) S 1 42 42 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 777 0 0";
        assert_eq!(parse_stat(stat), Some((777, 'S')));
        assert_eq!(parse_stat("nonsense"), None);
        let me = std::process::id() as i32;
        assert!(process(me).is_some());
    }

    #[test]
    fn hook_state_is_the_oci_state() {
        let spec: Spec =
            serde_json::from_str(r#"{"ociVersion": "1.2.0", "annotations": {"a": "b"}}"#).unwrap();
        let state = HookState::new("x", Path::new("/b"), &spec);
        let json: serde_json::Value = serde_json::from_str(&state.at(7, "created")).unwrap();
        assert_eq!(json["status"], "created");
        assert_eq!(
            (json["pid"].as_i64(), json["bundle"].as_str()),
            (Some(7), Some("/b"))
        );
        assert_eq!(json["annotations"]["a"], "b");
        assert!(serde_json::from_str::<serde_json::Value>(&state.at(0, "stopped")).unwrap()["pid"].is_null());
    }
}
