//! A cgroup of the test's own below `berth-rt-test-PID`, and child processes to put into it. Both are gone after the test,
//! whatever its outcome.

#![allow(dead_code, unreachable_pub, missing_docs)] // each test binary uses a part of it

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use berth_rt::cgroup::{Cgroup, Controller, CreateError, Hierarchy, Mode, Version, Wanted, prune};

static NEXT: AtomicU32 = AtomicU32::new(0);

/// The parent of every cgroup of this test run, one for each test so that pruning one leaves the others alone.
pub fn path(name: &str) -> String {
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    format!("berth-rt-test-{}-{number}-{name}/one", std::process::id())
}

/// The node's own hierarchies.
pub fn hierarchy() -> Hierarchy {
    Hierarchy::discover(Path::new("/")).unwrap()
}

/// Whether this is root on a node whose `controller` is a v1 one; prints why a test does nothing otherwise.
pub fn on_v1(controller: Controller) -> Option<Hierarchy> {
    let hierarchy = hierarchy();
    let v1 = hierarchy
        .tree(controller)
        .is_some_and(|tree| tree.version == Version::V1);
    if !nix::unistd::geteuid().is_root() || !v1 {
        eprintln!("skipped: needs root and the v1 {controller} controller");
        return None;
    }
    Some(hierarchy)
}

/// A hierarchy that is the node's v2 mount alone, seen through a folder of the test: what a v2 node looks like.
pub struct V2 {
    _folder: tempfile::TempDir,
    pub hierarchy: Hierarchy,
}

pub fn on_v2() -> Option<V2> {
    let node = hierarchy();
    let Some(tree) = node.v2().filter(|_| nix::unistd::geteuid().is_root()) else {
        eprintln!("skipped: needs root and a mounted cgroup v2 hierarchy");
        return None;
    };
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(folder.path().join("proc/self")).unwrap();
    let line = format!("1 0 0:1 / {} rw - cgroup2 cgroup2 rw\n", tree.mount.display());
    std::fs::write(folder.path().join("proc/self/mountinfo"), line).unwrap();
    std::os::unix::fs::symlink("/sys", folder.path().join("sys")).unwrap();
    let hierarchy = Hierarchy::discover(folder.path()).unwrap();
    assert_eq!(hierarchy.mode(), Mode::V2);
    Some(V2 {
        _folder: folder,
        hierarchy,
    })
}

/// A cgroup that goes away with its processes.
pub struct Own {
    pub cgroup: Cgroup,
}

impl Own {
    pub fn new(hierarchy: &Hierarchy, name: &str, wanted: &Wanted) -> Own {
        Own::try_new(hierarchy, name, wanted).unwrap()
    }

    pub fn try_new(hierarchy: &Hierarchy, name: &str, wanted: &Wanted) -> Result<Own, CreateError> {
        Ok(Own {
            cgroup: Cgroup::create(hierarchy, &path(name), wanted)?,
        })
    }

    pub fn dir(&self, controller: Controller) -> PathBuf {
        self.cgroup.dir(controller).unwrap().to_path_buf()
    }

    pub fn read(&self, controller: Controller, name: &str) -> String {
        std::fs::read_to_string(self.dir(controller).join(name))
            .unwrap()
            .trim()
            .to_owned()
    }

    pub fn parent(&self) -> &str {
        self.cgroup.path().rsplit_once('/').unwrap().0
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        let _ = self.cgroup.kill();
        let _ = self.cgroup.remove();
        let _ = prune(self.cgroup.hierarchy(), self.parent());
    }
}

/// A process that sleeps, and is killed and waited for at the end.
pub struct Sleeper(pub Child);

impl Sleeper {
    pub fn new() -> Sleeper {
        Sleeper(
            Command::new("sleep")
                .arg("600")
                .stdin(Stdio::null())
                .spawn()
                .unwrap(),
        )
    }

    pub fn pid(&self) -> i32 {
        self.0.id() as i32
    }
}

impl Drop for Sleeper {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Runs `script` in a shell that enters `cgroup` first, and gives back whether it succeeded.
pub fn succeeds_in(cgroup: &Cgroup, script: &str) -> bool {
    let entries: String = cgroup
        .paths()
        .iter()
        .map(|(_, dir)| format!("echo $$ > {}/cgroup.procs && ", dir.display()))
        .collect();
    let script = format!("{entries} {{ {script}; }}");
    Command::new("sh")
        .arg("-c")
        .arg(script)
        .stdin(Stdio::null())
        .status()
        .unwrap()
        .success()
}
