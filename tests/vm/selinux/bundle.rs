//! Bundles for `berth oci` in the guest, and the kernel's denials.

use anyhow::{Result, ensure};
use berth_tests::vm::Vm;
use serde_json::{Value, json};

/// A bundle in the guest.
pub(super) struct Bundle {
    pub(super) id: String,
    pub(super) dir: String,
    pub(super) level: String,
    pub(super) config: Value,
}

impl Bundle {
    /// busybox in a root file system labelled for `level`, running `script` as `berth_container_t` at it.
    pub(super) fn new(id: &str, level: &str, script: &str) -> Bundle {
        let mount = |to: &str, kind: &str, options: &[&str]| json!({"destination": to, "type": kind, "source": kind, "options": options});
        let namespaces: Vec<Value> = ["mount", "uts", "ipc", "network", "cgroup"]
            .iter()
            .map(|t| json!({"type": t}))
            .collect();
        let caps = json!(["CAP_KILL", "CAP_SYS_ADMIN", "CAP_SYS_PTRACE", "CAP_DAC_OVERRIDE"]);
        let config = json!({
            "ociVersion": "1.3.0",
            "process": {
                "terminal": false, "user": {"uid": 0, "gid": 0}, "args": ["/bin/sh", "-c", script],
                "env": ["PATH=/bin"], "cwd": "/", "noNewPrivileges": true,
                "capabilities": {"bounding": caps, "effective": caps, "permitted": caps},
                "selinuxLabel": format!("system_u:system_r:berth_container_t:{level}"),
            },
            "root": {"path": "rootfs", "readonly": false},
            "mounts": [
                mount("/proc", "proc", &["nosuid", "noexec", "nodev"]),
                mount("/dev", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=1m"]),
                mount("/dev/shm", "tmpfs", &["nosuid", "nodev", "mode=1777", "size=1m"]),
                mount("/sys", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
            ],
            "linux": {
                "cgroupsPath": format!("/berth-selinux/{id}"), "namespaces": namespaces,
                "mountLabel": format!("system_u:object_r:berth_container_file_t:{level}"),
                "resources": {"devices": [{"allow": false, "access": "rwm"}], "pids": {"limit": 64}},
            },
        });
        Bundle {
            id: id.into(),
            dir: format!("/srv/{id}"),
            level: level.into(),
            config,
        }
    }

    pub(super) fn bind(mut self, source: &str, to: &str) -> Bundle {
        let bind = json!({"destination": to, "type": "bind", "source": source, "options": ["rbind", "rw"]});
        if let Some(mounts) = self.config["mounts"].as_array_mut() {
            mounts.push(bind);
        }
        self
    }

    pub(super) fn below(mut self, dir: &str) -> Bundle {
        self.dir = format!("{dir}/{}", self.id);
        self
    }

    /// Write it into the guest.
    pub(super) fn install(&self, vm: &mut Vm) -> Result<()> {
        let (dir, level, config) = (&self.dir, &self.level, &self.config);
        vm.sh(&format!(
            "mkdir -p {dir}/rootfs/bin && cd {dir}/rootfs && mkdir -p proc sys dev tmp mnt && cp /bin/busybox bin/ &&
             for n in sh cat ls id mount kill echo sleep touch unshare grep; do ln -sf busybox bin/$n; done
             chcon -R system_u:object_r:berth_container_file_t:{level} {dir}/rootfs
             cat >{dir}/config.json <<'EOF'\n{config}\nEOF"
        ))
        .map(drop)
    }

    /// `berth oci run`, behind `prefix`: exit code and output. The bundle is removed.
    pub(super) fn run_behind(&self, vm: &mut Vm, prefix: &str) -> Result<(i32, String)> {
        self.install(vm)?;
        let (dir, id) = (&self.dir, &self.id);
        // A pipe: the label has no right to the file that the guest's shell writes to.
        vm.run(&format!(
            "dmesg -c >/dev/null; set -o pipefail; {prefix} /usr/bin/berth oci --root /run/berth/oci run --bundle {dir} {id} 2>&1 </dev/null | cat
             rc=$?; rm -rf {dir}; exit $rc"
        ))
    }

    pub(super) fn run(&self, vm: &mut Vm) -> Result<(i32, String)> {
        self.run_behind(vm, "")
    }

    /// Run it to a good end.
    pub(super) fn good(&self, vm: &mut Vm) -> Result<String> {
        let (code, output) = self.run(vm)?;
        ensure!(code == 0, "{}: exit {code}:\n{output}\n{}", self.id, denials(vm)?);
        Ok(output)
    }
}

/// The denials since the last run, one a line.
pub(super) fn denials(vm: &mut Vm) -> Result<String> {
    Ok(vm.run("dmesg | grep 'avc: *denied'")?.1)
}

/// A denial of `permission` on `class`, by a context that holds `source`, on one that holds `target`.
pub(super) fn denied(vm: &mut Vm, permission: &str, class: &str, source: &str, target: &str) -> Result<()> {
    let all = denials(vm)?;
    let found = all.lines().any(|line| {
        let word = |key: &str| {
            line.split(' ')
                .find_map(|w| w.strip_prefix(key))
                .unwrap_or_default()
        };
        line.contains(&format!(" {permission} "))
            && word("tclass=") == class
            && word("scontext=").contains(source)
            && word("tcontext=").contains(target)
            && word("permissive=") == "0"
    });
    ensure!(
        found,
        "no denial of {permission} on {class} by {source} on {target} in\n{all}"
    );
    Ok(())
}
