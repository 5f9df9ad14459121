//! The bundles that are launched: byte for byte the same for every runtime.
//!
//! `hard`: six namespaces, a seccomp allow list for three architectures, four capabilities, one CPU, limits on tasks,
//! memory and devices. `hard-1arch`: the same with the native architecture only.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::{Value, json};

const APPLETS: [&str; 12] = [
    "true", "sh", "sleep", "cat", "grep", "id", "ls", "mount", "taskset", "chrt", "nproc", "cut",
];

/// Calls that the allow list does not have (some come back under conditions).
const NOT_ALLOWED: &str = "kexec_load kexec_file_load init_module finit_module delete_module reboot swapon swapoff mount umount2 \
    pivot_root open_by_handle_at bpf perf_event_open ptrace process_vm_readv process_vm_writev setns unshare acct iopl \
    ioperm quotactl quotactl_fd add_key request_key keyctl lookup_dcookie nfsservctl personality settimeofday \
    clock_settime clock_adjtime adjtimex syslog userfaultfd move_pages mbind set_mempolicy get_mempolicy fsopen fsmount \
    fsconfig fspick move_mount open_tree mount_setattr io_uring_setup io_uring_enter io_uring_register vhangup \
    create_module query_module get_kernel_syms uselib ustat sysfs _sysctl clone clone3 chroot sethostname setdomainname \
    migrate_pages kcmp fanotify_init pidfd_getfd";

/// A bundle's folder and what it runs.
pub(crate) struct Bundle {
    pub(crate) dir: PathBuf,
}

/// Write the bundle `name` below `dir`, running `args`.
pub(crate) fn write(dir: &Path, name: &str, architectures: &[&str], args: &[&str]) -> Result<Bundle> {
    let bundle = dir.join(name);
    let root = bundle.join("rootfs");
    for sub in ["bin", "proc", "sys", "dev", "tmp", "etc", "run", "usr", "var"] {
        fs::create_dir_all(root.join(sub))?;
    }
    fs::copy("/bin/busybox", root.join("bin/busybox")).context("install busybox-static")?;
    for applet in APPLETS {
        symlink("busybox", root.join("bin").join(applet))?;
    }
    fs::write(
        bundle.join("config.json"),
        serde_json::to_vec_pretty(&config(architectures, args))?,
    )?;
    Ok(Bundle { dir: bundle })
}

fn config(architectures: &[&str], args: &[&str]) -> Value {
    let mount = |to: &str, kind: &str, options: &[&str]| json!({"destination": to, "type": kind, "source": kind, "options": options});
    let denied: Vec<&str> = NOT_ALLOWED.split_whitespace().collect();
    let allowed: Vec<&str> = include_str!("syscalls.txt")
        .split_whitespace()
        .filter(|name| !denied.contains(name))
        .collect();
    let caps = json!(["CAP_NET_BIND_SERVICE", "CAP_KILL", "CAP_SETUID", "CAP_SETGID"]);
    let namespaces: Vec<Value> = ["pid", "mount", "uts", "ipc", "network", "cgroup"]
        .iter()
        .map(|t| json!({"type": t}))
        .collect();
    json!({
        "ociVersion": "1.0.2",
        "process": {
            "terminal": false, "user": {"uid": 0, "gid": 0}, "args": args, "env": ["PATH=/bin"], "cwd": "/",
            "capabilities": {"bounding": caps, "effective": caps, "permitted": caps},
            "noNewPrivileges": true, "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1024}],
        },
        "root": {"path": "rootfs", "readonly": true},
        "hostname": "edge",
        "mounts": [
            mount("/proc", "proc", &[]),
            mount("/dev", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
            mount("/dev/pts", "devpts", &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"]),
            mount("/dev/shm", "tmpfs", &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]),
            mount("/dev/mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
            mount("/sys", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
            mount("/tmp", "tmpfs", &["nosuid", "nodev", "size=16m"]),
        ],
        "linux": {
            "namespaces": namespaces,
            "resources": {
                "devices": [{"allow": false, "access": "rwm"}],
                "cpu": {"cpus": "1", "mems": "0"}, "pids": {"limit": 64}, "memory": {"limit": 67108864},
            },
            "seccomp": {
                "defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 1, "architectures": architectures,
                "syscalls": [
                    {"names": allowed, "action": "SCMP_ACT_ALLOW"},
                    {"names": ["clone"], "action": "SCMP_ACT_ALLOW",
                     "args": [{"index": 0, "value": 2_114_060_288_u64, "op": "SCMP_CMP_MASKED_EQ", "valueTwo": 0}]},
                    {"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38},
                    {"names": ["personality"], "action": "SCMP_ACT_ALLOW",
                     "args": [{"index": 0, "value": 0, "op": "SCMP_CMP_EQ"}]},
                ],
            },
            "maskedPaths": ["/proc/asound", "/proc/acpi", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
                "/proc/timer_list", "/proc/timer_stats", "/proc/sched_debug", "/proc/scsi", "/sys/firmware"],
            "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"],
        },
    })
}
