//! The attacker against the kernel's files: device nodes, /proc, /sys, cgroups, file handles, namespaces. What
//! would change the host is opened for writing and never written.
#![allow(unsafe_code)] // mount(2), unshare(2), open_by_handle_at(2)

use std::ffi::CString;
use std::fs::{self, OpenOptions};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sys::stat::{Mode, SFlag, makedev, mknod};

use crate::inside::{leak, read_some, say};

fn writable(path: &Path) -> bool {
    OpenOptions::new().write(true).open(path).is_ok()
}

/// Device nodes of the container's own making, on every file system it may write.
pub(crate) fn devices() {
    let _ = fs::create_dir("/dev/shm");
    let mut wanted = vec![
        (SFlag::S_IFCHR, 1, 1, "mem"),
        (SFlag::S_IFCHR, 1, 2, "kmem"),
        (SFlag::S_IFCHR, 1, 4, "port"),
        (SFlag::S_IFCHR, 1, 11, "kmsg"),
        (SFlag::S_IFCHR, 5, 1, "console"),
        (SFlag::S_IFCHR, 10, 237, "loop-control"),
        (SFlag::S_IFCHR, 10, 229, "fuse"),
        (SFlag::S_IFCHR, 10, 232, "kvm"),
        (SFlag::S_IFCHR, 10, 130, "watchdog"),
        (SFlag::S_IFCHR, 10, 203, "cuse"),
    ];
    // Block devices are listed after the second heading.
    let text = fs::read_to_string("/proc/devices").unwrap_or_default();
    let mut block = false;
    for line in text.lines() {
        block |= line.starts_with("Block");
        if let Some(major) = line
            .split_whitespace()
            .next()
            .and_then(|w| w.parse().ok())
            .filter(|_| block)
        {
            wanted.push((SFlag::S_IFBLK, major, 0, "block"));
        }
    }
    let mut tried = 0;
    for folder in ["/", "/tmp", "/dev"] {
        for (kind, major, minor, name) in &wanted {
            let path = format!("{folder}/node-{major}-{minor}");
            let mode = Mode::from_bits_truncate(0o600);
            if mknod(path.as_str(), *kind, mode, makedev(*major, *minor)).is_err() {
                continue;
            }
            tried += 1;
            match nix::fcntl::open(
                path.as_str(),
                nix::fcntl::OFlag::O_RDONLY | nix::fcntl::OFlag::O_NONBLOCK,
                Mode::empty(),
            ) {
                // Only a refusal is one: a device that is not there would have been opened.
                Err(Errno::EPERM | Errno::EACCES) => {}
                Ok(_) => leak(format!("{name} {major}:{minor} can be opened")),
                Err(e) => leak(format!("{name} {major}:{minor} is only refused with {e}")),
            }
            let _ = fs::remove_file(&path);
        }
    }
    say(&format!("{tried} nodes made"));
}

/// The files by which a host is taken over, and those that tell of it.
pub(crate) fn kernel_files() {
    for path in [
        "/proc/sys/kernel/core_pattern",
        "/proc/sys/kernel/modprobe",
        "/proc/sys/kernel/hotplug",
        "/proc/sys/kernel/poweroff_cmd",
        "/proc/sys/kernel/panic",
        "/proc/sys/vm/panic_on_oom",
        "/proc/sys/vm/overcommit_memory",
        "/proc/sys/fs/binfmt_misc/register",
        "/proc/sysrq-trigger",
        "/proc/irq/default_smp_affinity",
        "/proc/bus/pci/devices",
        "/sys/kernel/uevent_helper",
        "/sys/kernel/mm/transparent_hugepage/enabled",
        "/sys/power/state",
        "/sys/module/kernel/parameters/panic",
        "/sys/class/net/lo/mtu",
    ] {
        if writable(Path::new(path)) {
            leak(format!("{path} can be written"));
        }
    }
    for path in [
        "/proc/kcore",
        "/proc/keys",
        "/proc/timer_list",
        "/proc/sched_debug",
        "/proc/latency_stats",
        "/etc/masked",
    ] {
        if read_some(path).is_some_and(|bytes| !bytes.is_empty()) {
            leak(format!("{path} can be read"));
        }
    }
    for folder in ["/sys/firmware", "/proc/acpi", "/proc/scsi", "/proc/asound"] {
        if fs::read_dir(folder).is_ok_and(|mut d| d.next().is_some()) {
            leak(format!("{folder} can be listed"));
        }
    }
    // What hides and protects them cannot be taken away.
    for path in ["/proc/kcore", "/proc/sys", "/sys/firmware", "/sys", "/proc"] {
        let c = CString::new(path).unwrap_or_default();
        // SAFETY: the string outlives both calls.
        let (off, again) = unsafe {
            (
                libc::umount2(c.as_ptr(), libc::MNT_DETACH),
                libc::mount(
                    std::ptr::null(),
                    c.as_ptr(),
                    std::ptr::null(),
                    libc::MS_REMOUNT | libc::MS_BIND,
                    std::ptr::null(),
                ),
            )
        };
        if off == 0 || again == 0 {
            leak(format!("the mount at {path} can be changed"));
        }
    }
}

/// Every file of /proc (but those of processes) and /sys that says it can be written.
pub(crate) fn proc_sys() {
    use std::os::unix::fs::PermissionsExt;
    let mut folders = vec![PathBuf::from("/sys")];
    let mut tried = 0;
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let process = name.bytes().all(|b| b.is_ascii_digit()) || name.contains("self");
        // Pressure files take triggers from anybody, and keep them to the one who wrote.
        if !process && name != "pressure" && name != "mounts" && name != "net" {
            folders.push(entry.path());
        }
    }
    while let Some(path) = folders.pop() {
        let Ok(meta) = fs::symlink_metadata(&path) else {
            continue;
        };
        if meta.is_dir() {
            folders.extend(
                fs::read_dir(&path)
                    .into_iter()
                    .flatten()
                    .flatten()
                    .map(|e| e.path()),
            );
        } else if meta.is_file() && meta.permissions().mode() & 0o222 != 0 {
            tried += 1;
            if writable(&path) {
                leak(format!("{} can be written", path.display()));
            }
        }
    }
    say(&format!("{tried} files tried"));
    if tried < 100 {
        leak(format!("only {tried} files were found: the walk is wrong"));
    }
}

fn mount(fs: &str, at: &str, data: &str) -> bool {
    let _ = std::fs::create_dir_all(at);
    let words = [fs, at, data].map(|w| CString::new(w).unwrap_or_default());
    // SAFETY: the strings outlive the call.
    unsafe {
        libc::mount(
            words[0].as_ptr(),
            words[1].as_ptr(),
            words[0].as_ptr(),
            0,
            words[2].as_ptr().cast(),
        ) == 0
    }
}

/// Mount a cgroup hierarchy, plainly and from new namespaces, and look for its release_agent.
pub(crate) fn release_agent() {
    let mut mounted = Vec::new();
    let mut attempt = |step: &str| {
        for controller in [
            "memory",
            "rdma",
            "cpu",
            "devices",
            "freezer",
            "pids",
            "none,name=systemd",
        ] {
            let at = format!("/tmp/{step}-{}", controller.replace([',', '='], "-"));
            if mount("cgroup", &at, controller) {
                mounted.push(at);
            }
        }
        let at = format!("/tmp/{step}-v2");
        if mount("cgroup2", &at, "") {
            mounted.push(at);
        }
    };
    attempt("plain");
    let flags = libc::CLONE_NEWUSER | libc::CLONE_NEWNS | libc::CLONE_NEWCGROUP;
    // SAFETY: unshare(2) changes this process alone, and it has one thread.
    if unsafe { libc::unshare(flags) } == 0 {
        attempt("nested");
    } else {
        say("no nested namespaces");
    }
    for at in mounted {
        find_agents(Path::new(&at));
        others(Path::new(&at));
    }
}

fn find_agents(at: &Path) {
    let mut folders = vec![at.to_path_buf()];
    while let Some(path) = folders.pop() {
        for entry in fs::read_dir(&path).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|t| t.is_dir()) {
                folders.push(entry.path());
            } else if entry.file_name() == "release_agent" {
                say("release_agent is there");
                // What it says already: nothing changes, and the kernel decides all the same.
                let text = fs::read_to_string(entry.path()).unwrap_or_default();
                if fs::write(entry.path(), format!("{}\n", text.trim_end())).is_ok() {
                    leak(format!("{} can be written", entry.path().display()));
                }
            }
        }
    }
}

/// The container's own part of the hierarchy, and nothing above it.
pub(crate) fn cgroups() {
    let text = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    for line in text.lines() {
        if line.contains("berth-test-oci") {
            leak(format!("the cgroup namespace shows {line}"));
        }
    }
    let base = Path::new("/sys/fs/cgroup");
    find_agents(base);
    others(base);
    for entry in fs::read_dir(base).into_iter().flatten().flatten() {
        others(&entry.path());
    }
}

/// Groups of others: what is mounted here is the host's hierarchy.
fn others(top: &Path) {
    for name in [
        "berth-test-oci",
        "init.scope",
        "system.slice",
        "user.slice",
        "canary",
    ] {
        if top.join(name).exists() {
            leak(format!("{} is the host's", top.join(name).display()));
        }
    }
}

/// open_by_handle_at with the handle of the root folder of whatever file system holds /.
pub(crate) fn handles() {
    #[repr(C)]
    struct Handle {
        bytes: u32,
        kind: i32,
        data: [u8; 128],
    }
    let Ok(root) = fs::File::open("/attacker") else {
        return;
    };
    for inode in [2u32, 128, 256] {
        let mut handle = Handle {
            bytes: 8,
            kind: 1,
            data: [0; 128],
        };
        handle.data[..4].copy_from_slice(&inode.to_ne_bytes());
        // SAFETY: the handle outlives the call and says how many of its bytes count.
        let fd = unsafe {
            libc::syscall(
                libc::SYS_open_by_handle_at,
                root.as_raw_fd(),
                &raw mut handle,
                libc::O_RDONLY,
            )
        };
        if fd >= 0 {
            leak(format!(
                "open_by_handle_at gives inode {inode} of the host's file system"
            ));
        } else if Errno::last() != Errno::EPERM {
            leak(format!(
                "open_by_handle_at is only refused with {}",
                Errno::last()
            ));
        }
    }
}

/// A nested user namespace has all capabilities: what it mounts must not uncover what is masked.
pub(crate) fn user_namespace() {
    let flags = libc::CLONE_NEWUSER | libc::CLONE_NEWNS;
    // SAFETY: unshare(2) changes this process alone, and it has one thread.
    if unsafe { libc::unshare(flags) } != 0 {
        return say("no nested user namespace");
    }
    if mount("proc", "/tmp/proc", "") {
        if writable(Path::new("/tmp/proc/sys/kernel/core_pattern")) {
            leak("core_pattern can be written through a new procfs");
        }
        if read_some("/tmp/proc/kcore").is_some_and(|b| !b.is_empty()) {
            leak("a new procfs shows kcore");
        }
    }
    if mount("sysfs", "/tmp/sys", "")
        && fs::read_dir("/tmp/sys/firmware").is_ok_and(|mut d| d.next().is_some())
    {
        leak("a new sysfs shows firmware");
    }
    let c = CString::new("/proc/kcore").unwrap_or_default();
    // SAFETY: the string outlives the call.
    if unsafe { libc::umount2(c.as_ptr(), libc::MNT_DETACH) } == 0 {
        leak("what masks kcore can be taken away");
    }
    if read_some("/etc/masked").is_some_and(|b| !b.is_empty()) {
        leak("a masked file can be read");
    }
}
