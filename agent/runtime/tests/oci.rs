//! The OCI command line on the real kernel, as root: what a container is, seen from inside and from outside.
#![allow(clippy::unwrap_used)] // helpers of tests

mod common;

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, symlink};
use std::path::Path;
use std::process::Command;

use common::Bundle;
use serde_json::json;

#[test]
fn a_container_is_what_its_configuration_says() {
    let mut b = Bundle::new(
        "hostname; pwd; echo $GREETING; id -u; id -G; umask; cat /proc/self/status; ls /dev; cat /proc/net/dev",
    );
    b.set(
        "/process/user",
        json!({"uid": 7, "gid": 8, "umask": 0o27, "additionalGids": [9, 10]}),
    );
    b.set("/process/cwd", json!("/tmp"));
    b.set(
        "/process/rlimits",
        json!([{"type": "RLIMIT_NOFILE", "soft": 99, "hard": 100}]),
    );
    let out = b.output();
    let mut lines = out.lines();
    for wanted in ["edge", "/tmp", "hello", "7", "8 9 10", "0027"] {
        assert_eq!(lines.next(), Some(wanted), "{out}");
    }
    for wanted in [
        "CapInh:\t0000000000000000",
        "CapPrm:\t0000000000000000", // not root: nothing without ambient capabilities
        "CapBnd:\t0000000000000420",
        "NoNewPrivs:\t1",
        "Seccomp:\t0",
    ] {
        assert!(out.contains(wanted), "{wanted} is not in\n{out}");
    }
    for name in [
        "null", "zero", "full", "random", "urandom", "tty", "fd", "stdin", "stdout", "stderr", "ptmx",
    ] {
        assert!(out.lines().any(|l| l == name), "/dev/{name} is not in\n{out}");
    }
}

#[test]
fn root_has_exactly_the_capabilities_it_was_given() {
    let mut b = Bundle::new("grep Cap /proc/self/status");
    let some = json!(["CAP_KILL", "CAP_NET_RAW"]);
    let sets = ["bounding", "effective", "permitted", "inheritable", "ambient"];
    b.set(
        "/process/capabilities",
        sets.iter().map(|s| (s.to_string(), some.clone())).collect(),
    );
    let out = b.output();
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert!(out.contains(&format!("{set}:\t0000000000002020")), "{out}");
    }
}

#[test]
fn mounts_have_their_types_and_flags() {
    let mut b = Bundle::new(
        "cat /proc/self/mountinfo; touch /x; touch /mnt/here/x; cat /mnt/file; ls /sys/firmware; cat /proc/keys; echo 1 > /proc/sys/kernel/msgmax",
    );
    let shared = b.dir.join("shared");
    fs::create_dir(&shared).unwrap();
    fs::write(shared.join("data"), "from outside").unwrap();
    b.set("/root/readonly", json!(false));
    b.set("/mounts/-", json!({"destination": "/mnt/here", "type": "bind", "source": "shared", "options": ["rbind", "ro", "nodev"]}));
    b.set(
        "/mounts/-",
        json!({"destination": "/mnt/file", "source": shared.join("data"), "options": ["bind"]}),
    );
    b.set(
        "/linux/maskedPaths",
        json!(["/sys/firmware", "/proc/keys", "/not/there"]),
    );
    b.set("/linux/readonlyPaths", json!(["/proc/sys", "/not/there"]));
    let out = b.run();
    let text = String::from_utf8(out.stdout).unwrap();
    let errors = String::from_utf8(out.stderr).unwrap();
    let line = |place: &str| {
        text.lines()
            .find(|l| l.split(' ').nth(4) == Some(place))
            .unwrap_or_default()
            .to_owned()
    };
    assert!(
        line("/sys").contains(" ro,nosuid,nodev,noexec,relatime") && line("/sys").contains("- sysfs"),
        "{text}"
    );
    assert!(line("/tmp").contains("- tmpfs"), "{text}");
    assert!(line("/mnt/here").contains(" ro,nodev"), "{text}");
    assert!(
        line("/proc/keys").contains("/null") && line("/sys/firmware").contains("tmpfs"),
        "{text}"
    );
    assert!(line("/proc/sys").contains(" ro,"), "{text}");
    assert!(text.contains("from outside"), "{text}{errors}");
    assert!(
        errors.contains("/mnt/here/x") && errors.contains("/proc/sys/kernel/msgmax"),
        "{errors}"
    );
    assert!(b.rootfs().join("x").exists(), "the root was asked to be writable");
    assert!(!shared.join("x").exists());
    b.assert_nothing_left();
}

#[test]
fn a_readonly_root_is_one() {
    let b = Bundle::new("touch /x");
    assert_eq!(b.run().status.code(), Some(1));
    assert!(!b.rootfs().join("x").exists());
    b.assert_nothing_left();
}

#[test]
fn images_with_symlinked_dev_proc_or_sys_are_refused() {
    for name in ["dev", "proc", "sys"] {
        let b = Bundle::new("true");
        let outside = b.dir.join("outside");
        fs::create_dir(&outside).unwrap();
        fs::remove_dir(b.rootfs().join(name)).unwrap();
        symlink(&outside, b.rootfs().join(name)).unwrap();
        let message = b.refusal();
        assert!(
            message.contains(&format!("`/{name}`")) && message.contains("symbolic link"),
            "{message}"
        );
        assert_eq!(
            fs::read_dir(&outside).unwrap().count(),
            0,
            "something was made on the host"
        );
    }
}

#[test]
fn a_mount_point_that_links_out_of_the_root_stays_inside() {
    let mut b = Bundle::new("ls -d /outside/berth-oci-escape");
    let outside = Path::new("/tmp/berth-oci-escape");
    symlink("/outside", b.rootfs().join("link")).unwrap();
    fs::create_dir(b.rootfs().join("outside")).unwrap();
    b.set(
        "/mounts/-",
        json!({"destination": "/link/berth-oci-escape", "type": "tmpfs", "source": "tmpfs"}),
    );
    b.output();
    assert!(!outside.exists() && !Path::new("/outside").exists());
}

#[test]
fn nothing_may_be_mounted_on_or_in_proc() {
    for destination in ["/proc", "/proc/sys", "/proc/self/attr"] {
        let mut b = Bundle::new("true");
        let fake = b.dir.join("fake");
        fs::create_dir(&fake).unwrap();
        b.set(
            "/mounts/-",
            json!({"destination": destination, "source": fake, "options": ["bind"]}),
        );
        let message = b.refusal();
        assert!(message.contains("/proc"), "{message}");
    }
}

#[test]
fn descriptors_do_not_leak() {
    let b = Bundle::new("ls /proc/self/fd");
    let secret = fs::File::open("/etc/passwd").unwrap();
    let mut command = b.command(&["run", &b.id]);
    // As a careless caller would: many descriptors without close-on-exec.
    let numbers = nix_fds(&secret);
    let out = command.output().unwrap();
    drop(numbers);
    let text = String::from_utf8(out.stdout).unwrap();
    // 3 is the folder that ls itself reads.
    assert_eq!(text.lines().collect::<Vec<_>>(), ["0", "1", "2", "3"], "{text}");
}

fn nix_fds(file: &fs::File) -> Vec<std::os::fd::OwnedFd> {
    use std::os::fd::AsFd;
    (0..5)
        .map(|_| {
            let copy = nix::unistd::dup(file.as_fd()).unwrap();
            nix::fcntl::fcntl(&copy, nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::empty())).unwrap();
            copy
        })
        .collect()
}

#[test]
fn a_working_directory_outside_is_refused() {
    for cwd in ["/proc/self/fd/7", "/proc/self/fd/9/../../.."] {
        let mut b = Bundle::new("true");
        b.set("/process/cwd", json!(cwd));
        let message = b.refusal();
        assert!(
            message.contains("cwd") || message.contains("chdir") || message.contains("create mount point"),
            "{message}"
        );
    }
}

#[test]
fn a_filter_may_deny_the_working_directorys_name() {
    for no_new_privileges in [true, false] {
        let mut b = Bundle::new("ls -d /proc/self/cwd/file");
        b.set("/process/cwd", json!("/etc"));
        b.set("/process/noNewPrivileges", json!(no_new_privileges));
        fs::write(b.rootfs().join("etc/file"), "").unwrap();
        let rule = json!({"names": ["getcwd"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1});
        b.set(
            "/linux/seccomp",
            json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule]}),
        );
        assert_eq!(b.output(), "/proc/self/cwd/file\n");
        // Root may go there, this user may not.
        fs::set_permissions(
            b.rootfs().join("etc"),
            std::os::unix::fs::PermissionsExt::from_mode(0o700),
        )
        .unwrap();
        b.set("/process/user", json!({"uid": 7, "gid": 7}));
        assert!(b.refusal().contains("chdir"));
    }
}

#[test]
fn a_program_that_is_not_there_is_named() {
    for (program, wanted) in [
        ("/no/such", "No such file"),
        ("nothing", "not found in $PATH"),
        ("/etc", "Permission denied"),
    ] {
        let mut b = Bundle::new("");
        b.set("/process/args", json!([program]));
        let message = b.refusal();
        assert!(
            message.contains(&format!("`{program}`")) && message.contains(wanted),
            "{message}"
        );
        assert!(message.contains("hint: "), "{message}");
    }
    let b = Bundle::new("");
    fs::write(b.rootfs().join("bin/true2"), "not a program").unwrap();
    let mut b = b;
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(b.rootfs().join("bin/true2"), fs::Permissions::from_mode(0o755)).unwrap();
    b.set("/process/args", json!(["true2"]));
    let message = b.refusal();
    assert!(
        message.contains("exec `true2`") && message.contains("Exec format error"),
        "{message}"
    );
}

/// An ELF file that passes every check the kernel makes before the old program is gone, and none after.
fn program_that_cannot_be_loaded() -> Vec<u8> {
    let machine: u16 = if cfg!(target_arch = "x86_64") { 62 } else { 183 };
    let mut file = b"\x7fELF\x02\x01\x01".to_vec();
    file.resize(16, 0);
    for half in [2, machine] {
        file.extend(half.to_le_bytes()); // ET_EXEC, machine
    }
    file.extend(1u32.to_le_bytes());
    for word in [0x40_0000u64, 64, 0] {
        file.extend(word.to_le_bytes()); // entry, program headers, section headers
    }
    file.extend(0u32.to_le_bytes());
    for half in [64u16, 56, 1, 64, 0, 0] {
        file.extend(half.to_le_bytes());
    }
    for word in [1u32, 5] {
        file.extend(word.to_le_bytes()); // PT_LOAD, readable and executable
    }
    let kernel = 0xffff_8000_0000_0000u64; // no address of user space
    for word in [0, kernel, kernel, 120, 120, 0x1000] {
        file.extend(word.to_le_bytes());
    }
    file
}

#[test]
fn a_program_that_cannot_be_loaded_is_an_error_and_not_a_hang() {
    let mut b = Bundle::new("");
    let file = b.rootfs().join("broken");
    fs::write(&file, program_that_cannot_be_loaded()).unwrap();
    fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    b.set("/process/args", json!(["/broken"]));
    let text = b.refusal();
    assert!(text.contains("SIGSEGV") && text.contains("load"), "{text}");
    b.assert_nothing_left();
}

#[test]
fn a_realtime_policy_is_set_and_only_on_the_program() {
    let mut b = Bundle::new("cut -d' ' -f40,41 /proc/self/stat; cat /proc/self/stat");
    symlink("busybox", b.rootfs().join("bin/cut")).unwrap();
    b.set(
        "/process/scheduler",
        json!({"policy": "SCHED_FIFO", "priority": 50}),
    );
    b.set(
        "/linux/resources/cpu",
        json!({"realtimeRuntime": 20000, "realtimePeriod": 1000000}),
    );
    let out = b.output();
    assert_eq!(out.lines().next(), Some("50 1"), "{out}");
    b.set(
        "/process/scheduler",
        json!({"policy": "SCHED_FIFO", "priority": 100}),
    );
    assert!(b.refusal().contains("priority 100"));
}

#[test]
fn a_realtime_policy_without_a_budget_is_refused_with_the_setting_to_change() {
    if !Path::new("/sys/fs/cgroup/cpu/cpu.rt_runtime_us").exists() {
        return; // only where RT_GROUP_SCHED is on
    }
    let mut b = Bundle::new("true");
    b.set("/process/scheduler", json!({"policy": "SCHED_RR", "priority": 1}));
    b.set("/linux/resources/cpu", json!({"shares": 512}));
    let message = b.refusal();
    assert!(
        message.contains("SCHED_RR") || message.contains("scheduling"),
        "{message}"
    );
    assert!(message.contains("hint"), "{message}");
}

#[test]
fn devices_are_there_and_others_are_denied() {
    // The tun device: nothing but the device rules stands between root and it.
    let script = "cat /dev/null && echo ok; (exec 3</dev/mine) 2>&1; mknod /dev/x c 10 200; (exec 3</dev/x) 2>&1; \
                  stat -c '%a %u %g %t:%T' /dev/mine";
    let mut b = Bundle::new(script);
    for set in ["permitted", "bounding", "effective"] {
        b.set(
            &format!("/process/capabilities/{set}"),
            json!(["CAP_MKNOD", "CAP_DAC_OVERRIDE"]),
        );
    }
    let node = json!({"path": "/dev/mine", "type": "c", "major": 10, "minor": 200, "fileMode": 0o640, "uid": 3, "gid": 4});
    b.set("/linux/devices", json!([node]));
    let text = b.output();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(
        (lines.len(), lines[0], lines[3]),
        (4, "ok", "640 3 4 a:c8"),
        "{text}"
    );
    for line in &lines[1..3] {
        assert!(line.contains("Operation not permitted"), "{text}");
    }
}

#[test]
fn an_allowed_device_can_be_opened() {
    let mut b = Bundle::new("(exec 3</dev/deep/mine) && echo read; (exec 3>/dev/deep/mine) || echo no write");
    b.set(
        "/linux/devices",
        json!([{"path": "/dev/deep/mine", "type": "c", "major": 10, "minor": 200}]),
    );
    let rule = json!({"allow": true, "type": "c", "major": 10, "minor": 200, "access": "r"});
    b.set("/linux/resources/devices/-", rule);
    assert_eq!(b.output(), "read\nno write\n");
}

#[test]
fn seccomp_kills_and_denies() {
    let mut b = Bundle::new("hostname other; echo $?; mkdir /tmp/x");
    b.set(
        "/linux/seccomp",
        json!({
            "defaultAction": "SCMP_ACT_ALLOW",
            "syscalls": [
                {"names": ["sethostname"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1},
                {"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_KILL_PROCESS"}
            ]
        }),
    );
    b.set("/process/args", json!(["/bin/mkdir", "/tmp/x"]));
    let out = b.run();
    assert_eq!(out.status.code(), Some(128 + 31), "{out:?}");
    b.set(
        "/process/args",
        json!(["/bin/sh", "-c", "grep -E '^Seccomp' /proc/self/status"]),
    );
    assert_eq!(b.output(), "Seccomp:\t2\nSeccomp_filters:\t1\n");
    b.set(
        "/linux/seccomp/syscalls",
        json!([{"names": ["no_such_call"], "action": "SCMP_ACT_ERRNO"}]),
    );
    assert!(b.refusal().contains("no_such_call"));
}

#[test]
fn a_user_namespace_maps_its_users() {
    let mut b = Bundle::new("id -u; cat /proc/self/uid_map; cat /dev/null; ls -ln /dev/null; echo done");
    b.set("/root/readonly", json!(false));
    b.set("/linux/namespaces/-", json!({"type": "user"}));
    b.set(
        "/linux/uidMappings",
        json!([{"containerID": 0, "hostID": 100000, "size": 65536}]),
    );
    b.set(
        "/linux/gidMappings",
        json!([{"containerID": 0, "hostID": 100000, "size": 65536}]),
    );
    let out = b.output();
    let lines: Vec<&str> = out.lines().collect();
    assert_eq!(lines[0], "0", "{out}");
    assert_eq!(
        lines[1].split_whitespace().collect::<Vec<_>>(),
        ["0", "100000", "65536"],
        "{out}"
    );
    assert!(lines.contains(&"done"), "{out}");
}

#[test]
fn a_tmpfs_can_begin_with_what_the_image_has() {
    let script = "cat /etc/inner/file; readlink /etc/link; stat -c %u:%g:%a /etc/inner /etc/inner/file; \
                  echo new > /etc/inner/file && echo written";
    let mut b = Bundle::new(script);
    let etc = b.rootfs().join("etc");
    fs::create_dir(etc.join("inner")).unwrap();
    fs::write(etc.join("inner/file"), "of the image\n").unwrap();
    symlink("/no/where", etc.join("link")).unwrap();
    std::os::unix::fs::chown(etc.join("inner/file"), Some(3), Some(4)).unwrap();
    fs::set_permissions(
        etc.join("inner/file"),
        std::os::unix::fs::PermissionsExt::from_mode(0o4705),
    )
    .unwrap();
    let mut mount =
        json!({"destination": "/etc", "type": "tmpfs", "source": "tmpfs", "options": ["tmpcopyup"]});
    b.set("/mounts/-", mount.clone());
    for set in ["bounding", "effective", "permitted"] {
        b.set(
            &format!("/process/capabilities/{set}"),
            json!(["CAP_DAC_OVERRIDE"]),
        );
    }
    let wanted = "of the image\n/no/where\n0:0:755\n3:4:4705\n";
    assert_eq!(b.output(), format!("{wanted}written\n"));
    assert_eq!(
        fs::read_to_string(etc.join("inner/file")).unwrap(),
        "of the image\n"
    );
    mount["options"] = json!(["tmpcopyup", "ro"]);
    let last = b.config["mounts"].as_array().unwrap().len() - 1;
    b.config["mounts"][last] = mount;
    let out = b.run();
    assert_eq!(String::from_utf8(out.stdout).unwrap(), wanted);
    b.config["mounts"][last] =
        json!({"destination": "/etc", "source": "/etc", "options": ["bind", "tmpcopyup"]});
    assert!(b.refusal().contains("tmpcopyup"));
}

#[test]
fn who_shares_the_pid_namespace_never_gets_at_the_runtimes_program() {
    let look = "for p in /proc/[0-9]*; do echo $p $(readlink $p/exe); done; echo looked";
    let a = Bundle::new(&format!("while :; do {look}; sleep 0.05; done"));
    assert!(a.create().0);
    let pid = a.state()["pid"].as_i64().unwrap();
    assert!(a.oci(&["start", &a.id]).status.success());
    let mut b = Bundle::new("true");
    b.set("/hostname", json!(null));
    b.set(
        "/linux/namespaces",
        json!([{"type": "mount"}, {"type": "pid", "path": format!("/proc/{pid}/ns/pid")}]),
    );
    assert!(b.create().0);
    let log = a.dir.join("out");
    let looks = || fs::read_to_string(&log).unwrap().matches("looked").count();
    let (before, since) = (looks(), std::time::Instant::now());
    while looks() < before + 2 {
        assert!(since.elapsed().as_secs() < 30, "it does not look");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    let text = fs::read_to_string(&log).unwrap();
    let seen: Vec<&str> = text.lines().filter(|l| l.ends_with("/oci")).collect();
    assert!(
        seen.is_empty(),
        "/proc/PID/exe of a process before its exec: {seen:?}"
    );
}

#[test]
fn network_interfaces_move_in_under_their_new_name() {
    let name = format!("bv{}", std::process::id() % 100_000);
    let ip = |args: &[&str]| Command::new("ip").args(args).status().is_ok_and(|s| s.success());
    assert!(ip(&[
        "link",
        "add",
        &name,
        "type",
        "veth",
        "peer",
        "name",
        &format!("{name}p")
    ]));
    let mut b = Bundle::new("ip link; cat /sys/class/net/eth7/flags");
    b.set("/linux/netDevices", json!({&name: {"name": "eth7"}}));
    let out = b.run();
    let gone = !Path::new("/sys/class/net").join(&name).exists();
    ip(&["link", "del", &format!("{name}p")]);
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    assert!(out.status.success() && text.contains("eth7"), "{out:?}");
    assert!(gone, "it is still outside");
    let flags = text.lines().last().unwrap().trim_start_matches("0x");
    assert_eq!(
        i64::from_str_radix(flags, 16).unwrap() & 1,
        1,
        "it is not up: {text}"
    );
    b.set("/linux/netDevices", json!({"no-such-if": {}}));
    let message = b.refusal();
    assert!(message.contains("`no-such-if` does not exist"), "{message}");
}

#[test]
fn sysctl_of_its_own_namespaces() {
    let mut b = Bundle::new("cat /proc/sys/net/ipv4/ip_forward /proc/sys/kernel/msgmax");
    b.set(
        "/linux/sysctl",
        json!({"net.ipv4.ip_forward": "1", "kernel.msgmax": "4321"}),
    );
    assert_eq!(b.output(), "1\n4321\n");
}

#[test]
fn limits_and_scores() {
    let mut b = Bundle::new("ulimit -n; cat /proc/self/oom_score_adj");
    b.set(
        "/process/rlimits",
        json!([{"type": "RLIMIT_NOFILE", "soft": 77, "hard": 88}]),
    );
    b.set("/process/oomScoreAdj", json!(321));
    assert_eq!(b.output(), "77\n321\n");
    b.set(
        "/process/rlimits",
        json!([{"type": "RLIMIT_RTPRIO", "soft": 99, "hard": 99}]),
    );
    let out = b.run();
    if !out.status.success() {
        let message = String::from_utf8_lossy(&out.stderr).into_owned();
        assert!(
            message.contains("RLIMIT_RTPRIO") && message.contains("CAP_SYS_RESOURCE"),
            "{message}"
        );
    }
    b.assert_nothing_left();
}

#[test]
fn the_hosts_device_nodes_are_untouched() {
    let before = fs::metadata("/dev/null").unwrap();
    Bundle::new("true").output();
    let after = fs::metadata("/dev/null").unwrap();
    assert!(after.file_type().is_char_device());
    assert_eq!(
        (before.ino(), before.rdev(), before.mode()),
        (after.ino(), after.rdev(), after.mode())
    );
}
