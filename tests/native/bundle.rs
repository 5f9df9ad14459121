//! OCI bundles made of busybox, for `berth oci`.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use anyhow::{Context, Result};
use berth_tests::agent::binary;
use serde_json::{Value, json};
use tempfile::TempDir;

const APPLETS: [&str; 24] = [
    "true", "false", "sh", "sleep", "cat", "grep", "id", "ls", "mount", "taskset", "chrt", "nproc", "cut",
    "echo", "kill", "touch", "mkdir", "stat", "test", "hostname", "ip", "readlink", "env", "dd",
];

/// A bundle in a folder of its own, with a state root and a cgroup of its own.
pub(crate) struct Bundle {
    dir: TempDir,
    /// config.json.
    pub(crate) config: Value,
    /// The container's id.
    pub(crate) id: String,
}

impl Bundle {
    /// The hardened bundle that runs a shell script.
    pub(crate) fn sh(name: &str, script: &str) -> Result<Bundle> {
        let dir = tempfile::Builder::new().prefix("berth-oci-").tempdir()?;
        let root = dir.path().join("rootfs");
        for sub in ["bin", "proc", "sys", "dev", "tmp", "etc", "run", "usr", "var"] {
            fs::create_dir_all(root.join(sub))?;
        }
        fs::copy("/bin/busybox", root.join("bin/busybox")).context("install busybox-static")?;
        for applet in APPLETS {
            symlink("busybox", root.join("bin").join(applet))?;
        }
        let id = format!("berth-test-{name}-{}", std::process::id());
        let config = hard(&["/bin/sh", "-c", script], &format!("/berth-test-oci/{id}"));
        Ok(Bundle { dir, config, id })
    }

    pub(crate) fn path(&self, sub: &str) -> PathBuf {
        self.dir.path().join(sub)
    }

    pub(crate) fn rootfs(&self) -> PathBuf {
        self.path("rootfs")
    }

    /// Write config.json; `berth oci ARGS` as a command.
    pub(crate) fn command(&self, program: &[&str], args: &[&str]) -> Result<Command> {
        fs::write(self.path("config.json"), serde_json::to_vec_pretty(&self.config)?)?;
        let berth = binary().display().to_string();
        let words: Vec<&str> = program
            .iter()
            .copied()
            .chain([berth.as_str(), "oci", "--root"])
            .collect();
        let mut command = Command::new(words[0]);
        command
            .args(&words[1..])
            .arg(self.path("state"))
            .args(args)
            .stdin(Stdio::null())
            .current_dir("/");
        Ok(command)
    }

    pub(crate) fn oci(&self, args: &[&str]) -> Result<Output> {
        Ok(self.command(&[], args)?.output()?)
    }

    /// `berth oci run`.
    pub(crate) fn run(&self) -> Result<Output> {
        let bundle = self.dir.path().display().to_string();
        let output = self.oci(&["run", "--bundle", &bundle, &self.id])?;
        self.sweep();
        Ok(output)
    }

    /// `berth oci run` behind another program (the saboteur).
    pub(crate) fn run_behind(&self, program: &[&str]) -> Result<Output> {
        let bundle = self.dir.path().display().to_string();
        let output = self
            .command(program, &["run", "--bundle", &bundle, &self.id])?
            .output()?;
        // What a sabotaged run could not take away (its own umount answered 0, say) an honest one can.
        let _ = self.oci(&["delete", "--force", &self.id])?;
        self.sweep();
        Ok(output)
    }

    /// Remove the tests' cgroup parent, which berth made on the way and rightly leaves alone.
    pub(crate) fn sweep(&self) {
        for controller in fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten() {
            let _ = fs::remove_dir(controller.path().join("berth-test-oci"));
        }
        let _ = fs::remove_dir(Path::new("/sys/fs/cgroup/berth-test-oci"));
    }
}

impl Drop for Bundle {
    fn drop(&mut self) {
        let _ = self.oci(&["delete", "--force", &self.id]);
        self.sweep();
    }
}

/// stdout and stderr together.
pub(crate) fn text(output: &Output) -> String {
    format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

fn hard(args: &[&str], cgroup: &str) -> Value {
    let mount = |to: &str, kind: &str, options: &[&str]| json!({"destination": to, "type": kind, "source": kind, "options": options});
    let namespaces: Vec<Value> = ["pid", "mount", "uts", "ipc", "network", "cgroup"]
        .iter()
        .map(|t| json!({"type": t}))
        .collect();
    let caps = json!(["CAP_NET_BIND_SERVICE", "CAP_KILL"]);
    json!({
        "ociVersion": "1.3.0",
        "process": {
            "terminal": false, "user": {"uid": 0, "gid": 0}, "args": args, "env": ["PATH=/bin"], "cwd": "/",
            "capabilities": {"bounding": caps, "effective": caps, "permitted": caps},
            "noNewPrivileges": true, "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 512, "soft": 512}],
        },
        "root": {"path": "rootfs", "readonly": true},
        "hostname": "edge",
        "mounts": [
            mount("/proc", "proc", &["nosuid", "noexec", "nodev"]),
            mount("/dev", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
            mount("/dev/pts", "devpts", &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"]),
            mount("/dev/shm", "tmpfs", &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]),
            mount("/sys", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
            mount("/tmp", "tmpfs", &["nosuid", "nodev", "size=16m"]),
        ],
        "linux": {
            "cgroupsPath": cgroup,
            "namespaces": namespaces,
            "resources": {
                "devices": [{"allow": false, "access": "rwm"}],
                "cpu": {"cpus": "1", "mems": "0"}, "pids": {"limit": 64}, "memory": {"limit": 67108864},
            },
            "seccomp": {
                "defaultAction": "SCMP_ACT_ALLOW", "architectures": [if cfg!(target_arch = "x86_64") { "SCMP_ARCH_X86_64" } else { "SCMP_ARCH_AARCH64" }],
                "syscalls": [{"names": ["kexec_load", "swapon", "reboot"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1}],
            },
            "maskedPaths": ["/proc/kcore", "/proc/keys", "/sys/firmware"],
            "readonlyPaths": ["/proc/bus", "/proc/sys"],
        },
    })
}
