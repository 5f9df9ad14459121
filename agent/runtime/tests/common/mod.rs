//! Bundles in temporary folders, the OCI command line as a process, and a look at what stays behind.
#![allow(dead_code)] // each test program uses its part
#![allow(clippy::unwrap_used)] // helpers of tests

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use serde_json::{Value, json};

static NEXT: AtomicU32 = AtomicU32::new(0);

/// One bundle, one state root, one id; all of it goes with the value.
pub(crate) struct Bundle {
    pub(crate) dir: PathBuf,
    pub(crate) id: String,
    pub(crate) config: Value,
}

/// busybox applets that are linked into every root file system.
const APPLETS: [&str; 24] = [
    "true", "false", "sh", "sleep", "cat", "grep", "id", "ls", "mount", "env", "pwd", "hostname", "mkdir",
    "mknod", "touch", "readlink", "ip", "kill", "stat", "echo", "tty", "stty", "ps", "date",
];

/// The OCI command line as a program; cargo builds it for every test.
pub(crate) fn program() -> PathBuf {
    env!("CARGO_BIN_EXE_berth-oci").into()
}

impl Bundle {
    pub(crate) fn new(script: &str) -> Self {
        let id = format!("t{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let dir = std::env::temp_dir().join(format!("berth-oci-{id}"));
        for name in ["bin", "proc", "sys", "dev", "tmp", "etc"] {
            fs::create_dir_all(dir.join("rootfs").join(name)).unwrap();
        }
        fs::copy("/bin/busybox", dir.join("rootfs/bin/busybox")).unwrap();
        for applet in APPLETS {
            symlink("busybox", dir.join("rootfs/bin").join(applet)).unwrap();
        }
        let namespaces: Vec<Value> = ["pid", "mount", "uts", "ipc", "network", "cgroup"]
            .iter()
            .map(|t| json!({"type": t}))
            .collect();
        let caps = json!(["CAP_KILL", "CAP_NET_BIND_SERVICE"]);
        let config = json!({
            "ociVersion": "1.2.0",
            "process": {
                "terminal": false, "user": {"uid": 0, "gid": 0}, "args": ["/bin/sh", "-c", script],
                "env": ["PATH=/bin", "GREETING=hello"], "cwd": "/", "noNewPrivileges": true,
                "capabilities": {"bounding": caps, "effective": caps, "permitted": caps}
            },
            "root": {"path": "rootfs", "readonly": true},
            "hostname": "edge",
            "mounts": [
                {"destination": "/proc", "type": "proc", "source": "proc"},
                {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755", "size=64k"]},
                {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "noexec", "nodev", "ro"]},
                {"destination": "/tmp", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "nodev", "noexec"]}
            ],
            "linux": {
                "namespaces": namespaces,
                "resources": {"devices": [{"allow": false, "access": "rwm"}], "pids": {"limit": 32}}
            }
        });
        Self { dir, id, config }
    }

    pub(crate) fn rootfs(&self) -> PathBuf {
        self.dir.join("rootfs")
    }

    pub(crate) fn root(&self) -> PathBuf {
        self.dir.join("state")
    }

    /// Change the configuration at a JSON pointer; `null` takes the field away.
    pub(crate) fn set(&mut self, pointer: &str, value: Value) -> &mut Self {
        let (parent, key) = pointer.rsplit_once('/').unwrap();
        let parent = self
            .config
            .pointer_mut(parent)
            .unwrap_or_else(|| panic!("{pointer}"));
        match (parent, value) {
            (Value::Object(map), Value::Null) => drop(map.remove(key)),
            (Value::Object(map), value) => drop(map.insert(key.to_owned(), value)),
            (Value::Array(list), value) if key == "-" => list.push(value),
            (other, _) => panic!("{pointer}: {other}"),
        }
        self
    }

    pub(crate) fn command(&self, args: &[&str]) -> Command {
        fs::write(
            self.dir.join("config.json"),
            serde_json::to_vec_pretty(&self.config).unwrap(),
        )
        .unwrap();
        let mut command = Command::new(program());
        command
            .arg("--root")
            .arg(self.root())
            .args(args)
            .current_dir(&self.dir)
            .stdin(Stdio::null());
        command
    }

    pub(crate) fn oci(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    pub(crate) fn run(&self) -> Output {
        self.oci(&["run", &self.id])
    }

    /// Run, demand success, give the output.
    pub(crate) fn output(&self) -> String {
        let out = self.run();
        assert!(out.status.success(), "{out:?}");
        self.assert_nothing_left();
        String::from_utf8(out.stdout).unwrap()
    }

    /// Run, demand refusal, give the message.
    pub(crate) fn refusal(&self) -> String {
        let out = self.run();
        assert_eq!(out.status.code(), Some(1), "{out:?}");
        self.assert_nothing_left();
        String::from_utf8(out.stderr).unwrap()
    }

    pub(crate) fn state(&self) -> Value {
        let out = self.oci(&["state", &self.id]);
        assert!(out.status.success(), "{out:?}");
        serde_json::from_slice(&out.stdout).unwrap()
    }

    /// create: the container keeps the streams, so they go to files.
    pub(crate) fn create(&self) -> (bool, String) {
        let out = fs::File::create(self.dir.join("out")).unwrap();
        let err = fs::File::create(self.dir.join("err")).unwrap();
        let status = self
            .command(&["create", &self.id])
            .stdout(out)
            .stderr(err)
            .status()
            .unwrap();
        (
            status.success(),
            fs::read_to_string(self.dir.join("err")).unwrap(),
        )
    }

    pub(crate) fn wait_for_status(&self, wanted: &str) {
        for _ in 0..500 {
            if self.state()["status"] == wanted {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        panic!("{} never was {wanted}: {}", self.id, self.state());
    }

    /// Where the container's cgroups would be.
    pub(crate) fn cgroups(&self) -> Vec<PathBuf> {
        let name = format!("berth-{}", self.id);
        let mut found = Vec::new();
        for tree in fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten() {
            found.extend(Some(tree.path().join(&name)).filter(|p| p.exists()));
        }
        found.extend(Some(Path::new("/sys/fs/cgroup").join(&name)).filter(|p| p.exists()));
        found
    }

    /// No state, no cgroup, no mount, no process of this container.
    pub(crate) fn assert_nothing_left(&self) {
        assert!(
            !self.root().join(&self.id).exists(),
            "state of {} is left",
            self.id
        );
        assert_eq!(self.cgroups(), Vec::<PathBuf>::new(), "cgroups are left");
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(
            !mounts.contains(self.dir.to_str().unwrap()),
            "mounts are left:\n{mounts}"
        );
        let marker = format!("{}/", self.dir.display());
        for process in fs::read_dir("/proc").unwrap().flatten() {
            let root = fs::read_link(process.path().join("root"));
            assert!(
                !root.is_ok_and(|r| r.starts_with(&marker)),
                "process {:?} is left",
                process.path()
            );
        }
    }
}

impl Drop for Bundle {
    fn drop(&mut self) {
        let _ = self.oci(&["delete", "--force", &self.id]);
        let _ = fs::remove_dir_all(&self.dir);
    }
}
