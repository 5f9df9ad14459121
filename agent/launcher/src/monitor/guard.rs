//! Word of the kernel that a partition has changed: `cpuset.cpus.partition` of the container's cgroup, and of those above
//! it, polled for POLLPRI (Documentation/admin-guide/cgroup-v2.rst). The running proof then comes at once.
//!
//! A container without cores of its own, and one on cgroup v1, has none. What is read is judged by the proof, not here.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use super::Monitor;

/// From the kernel's word to the proof: one change of a partition is told in several files.
const SETTLE: Duration = Duration::from_millis(20);

/// The files that tell.
pub(super) struct Partitions {
    files: Vec<File>,
}

impl Partitions {
    /// They tell of what changes from now on.
    fn heard(&self) {
        for file in &self.files {
            // The kernel compares with what was read last. The cgroup may be gone.
            let _ = file.read_at(&mut [0; 256], 0);
        }
    }

    pub(super) fn fds(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.files.iter().map(AsFd::as_fd)
    }
}

impl Monitor<'_> {
    /// From now on a change of its partition is told.
    pub(super) fn watch_partitions(&mut self) {
        if self.request.placement.shared {
            return;
        }
        let Some(cgroup) = self.container.as_ref().and_then(|c| c.cgroup()) else {
            return;
        };
        let files = berth_rt::partition::telling_files(cgroup);
        let files: Vec<File> = files.iter().filter_map(|path| File::open(path).ok()).collect();
        if !files.is_empty() {
            let partitions = Partitions { files };
            partitions.heard();
            self.partitions = Some(partitions);
        }
    }

    /// A partition has changed: is everything as it was promised?
    pub(super) fn on_partitions(&mut self) {
        if let Some(partitions) = &self.partitions {
            partitions.heard();
        }
        let soon = Instant::now() + SETTLE;
        self.prove_at = self.prove_at.map(|at| at.min(soon));
    }
}
