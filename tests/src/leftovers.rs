//! The machine's state before and after a test: whatever a test leaves behind is a failure of that test.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// What every folder, cgroup and container of a test has in its name.
const OURS: [&str; 2] = ["berth-test-", "berth-oci-"];

fn ours(text: &str) -> bool {
    OURS.iter().any(|mark| text.contains(mark))
}

/// Everything a container could leave.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    cgroups: BTreeSet<String>,
    mounts: BTreeSet<String>,
    namespaces: BTreeSet<String>,
    processes: BTreeSet<String>,
    files: BTreeSet<String>,
}

impl Snapshot {
    /// Look at the machine.
    pub fn take() -> Result<Snapshot> {
        let mut cgroups = BTreeSet::new();
        folders(Path::new("/sys/fs/cgroup"), &mut cgroups);
        cgroups.retain(|c| ours(c));
        let mounts = fs::read_to_string("/proc/self/mounts")?
            .lines()
            .filter(|line| ours(line))
            .map(String::from)
            .collect();
        let (mut processes, mut namespaces) = (BTreeSet::new(), BTreeSet::new());
        for entry in fs::read_dir("/proc")?.flatten() {
            let name = entry.file_name();
            let Some(pid) = name.to_str().filter(|n| n.bytes().all(|b| b.is_ascii_digit())) else {
                continue;
            };
            let read = |file: &str| fs::read(entry.path().join(file)).unwrap_or_default();
            let words = String::from_utf8_lossy(&read("cmdline")).replace('\0', " ");
            if !ours(&words) && !ours(&String::from_utf8_lossy(&read("cgroup"))) {
                continue;
            }
            processes.insert(format!("{pid} {words}"));
            for ns in ["mnt", "net", "pid", "ipc", "uts", "cgroup"] {
                if let Ok(link) = fs::read_link(entry.path().join("ns").join(ns)) {
                    namespaces.insert(link.display().to_string());
                }
            }
        }
        let files = ["/run", "/dev/shm", "/tmp"]
            .iter()
            .filter_map(|dir| fs::read_dir(dir).ok())
            .flatten()
            .flatten()
            .map(|entry| entry.path().display().to_string())
            .filter(|path| ours(path))
            .collect();
        Ok(Snapshot {
            cgroups,
            mounts,
            namespaces,
            processes,
            files,
        })
    }

    /// What is there now that was not there then.
    pub fn left_behind(&self) -> Result<Vec<String>> {
        let now = Snapshot::take()?;
        let mut left = Vec::new();
        for (kind, before, after) in [
            ("cgroup", &self.cgroups, &now.cgroups),
            ("mount", &self.mounts, &now.mounts),
            ("namespace", &self.namespaces, &now.namespaces),
            ("process", &self.processes, &now.processes),
            ("file", &self.files, &now.files),
        ] {
            left.extend(after.difference(before).map(|item| format!("{kind} {item}")));
        }
        Ok(left)
    }

    /// Fail unless all is as it was. The kernel frees some things a little later, so this waits a while.
    pub fn nothing_left(&self) -> Result<()> {
        let begin = Instant::now();
        loop {
            let left = self.left_behind()?;
            if left.is_empty() {
                return Ok(());
            }
            if begin.elapsed() > Duration::from_secs(20) {
                bail!("left behind:\n  {}", left.join("\n  "));
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

fn folders(dir: &Path, found: &mut BTreeSet<String>) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|t| t.is_dir()) {
            found.insert(entry.path().display().to_string());
            folders(&entry.path(), found);
        }
    }
}
