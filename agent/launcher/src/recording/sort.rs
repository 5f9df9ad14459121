//! What was seen, sorted into the lists of a profile. Pure.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use super::Trace;

/// Calls that the launch itself makes between the filter and the program: reading the start message, telling a
/// failure, exec, and the end after a failure.
pub(super) const LAUNCH: [&str; 4] = ["execve", "exit_group", "read", "write"];
/// Calls that the kernel makes of others, or for a signal handler: which run makes them is chance.
const CHANCE: [&str; 2] = ["restart_syscall", "rt_sigreturn"];
/// Flags of clone(2) that make namespaces.
const NAMESPACES: u64 = 0x7e02_0000;

/// The argument that decides what a call is.
pub(super) fn deciding(name: &str) -> Option<usize> {
    match name {
        "socket" | "personality" => Some(0),
        "ioctl" => Some(1),
        _ => None,
    }
}

/// The filter: everything is refused with EPERM but what was called.
pub(super) fn filter(trace: &Trace) -> Value {
    let by_argument = |name: &&str| deciding(name).is_some() || matches!(*name, "clone" | "clone3");
    let plain: BTreeSet<&str> = trace
        .calls
        .iter()
        .copied()
        .filter(|name| !by_argument(name))
        .chain(LAUNCH)
        .chain(CHANCE)
        .collect();
    let mut entries = vec![json!({"names": plain, "action": "SCMP_ACT_ALLOW"})];
    for (name, values) in &trace.values {
        let Some(index) = deciding(name) else { continue };
        for value in values {
            // The kernel looks at 32 bits of each of them.
            entries.push(json!({"names": [name], "action": "SCMP_ACT_ALLOW",
                "args": [{"index": index, "value": 0xffff_ffffu64, "valueTwo": value, "op": "SCMP_CMP_MASKED_EQ"}]}));
        }
    }
    if trace.calls.contains("clone") || trace.calls.contains("clone3") {
        entries.push(json!({"names": ["clone"], "action": "SCMP_ACT_ALLOW",
            "args": [{"index": 0, "value": NAMESPACES, "valueTwo": 0, "op": "SCMP_CMP_MASKED_EQ"}]}));
    }
    if trace.calls.contains("clone3") {
        // Its flags lie in memory, where no filter can look: libraries take clone where this one is not there.
        entries.push(json!({"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38}));
    }
    json!({"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 1, "syscalls": entries})
}

/// A domain of the files that were used: what was made is granted by its folder.
pub(super) fn landlock(trace: &Trace) -> Value {
    let mut rules: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for (path, how) in &trace.files {
        // /proc/PID is another folder each time.
        let process = path
            .strip_prefix("/proc/")
            .is_some_and(|p| p.starts_with(|c: char| c.is_ascii_digit()));
        let path = if process { "/proc" } else { path.as_str() };
        let made = how.contains(&'c');
        let folder = path
            .rsplit_once('/')
            .map_or("/", |(folder, _)| if folder.is_empty() { "/" } else { folder });
        let rule = rules.entry(if made { folder } else { path }).or_default();
        if made {
            rule.extend(["make", "write", "read"]);
        }
        for letter in how {
            match letter {
                'r' => drop(rule.insert("read")),
                'w' => drop(rule.insert("write")),
                'x' => rule.extend(["execute", "read"]),
                _ => {}
            }
        }
    }
    let rules: Vec<Value> = rules
        .into_iter()
        .filter(|(_, access)| !access.is_empty())
        .map(|(path, access)| json!({"path": path, "access": access, "optional": true}))
        .collect();
    json!({"paths": rules})
}

/// The argument that is a path, of a call that has one.
pub(super) fn path_argument(name: &str) -> Option<usize> {
    const FIRST: [&str; 22] = [
        "access", "chdir", "chmod", "chown", "chroot", "creat", "execve", "lchown", "link", "lstat", "mkdir",
        "mknod", "open", "readlink", "rename", "rmdir", "stat", "statfs", "swapon", "symlink", "truncate",
        "unlink",
    ];
    if FIRST.contains(&name) {
        Some(0)
    } else if name == "mount" || name.ends_with("at") || name.ends_with("at2") {
        Some(1)
    } else {
        None
    }
}

/// The capability that a refused call most often lacks: a hint, not a finding.
pub(super) fn capability_of(name: &str) -> Option<&'static str> {
    Some(match name {
        "chown" | "fchown" | "lchown" | "fchownat" => "CAP_CHOWN",
        "chmod" | "fchmod" | "fchmodat" | "fchmodat2" | "utimensat" => "CAP_FOWNER",
        "open" | "openat" | "openat2" | "mkdir" | "mkdirat" | "unlink" | "unlinkat" | "rename"
        | "renameat2" => "CAP_DAC_OVERRIDE",
        "setuid" | "setresuid" | "setreuid" | "setfsuid" => "CAP_SETUID",
        "setgid" | "setresgid" | "setregid" | "setgroups" | "setfsgid" => "CAP_SETGID",
        "bind" => "CAP_NET_BIND_SERVICE",
        "socket" => "CAP_NET_RAW",
        "setsockopt" | "ioctl" => "CAP_NET_ADMIN",
        "chroot" => "CAP_SYS_CHROOT",
        "kill" | "tkill" | "tgkill" => "CAP_KILL",
        "mknod" | "mknodat" => "CAP_MKNOD",
        "sched_setscheduler" | "sched_setattr" | "sched_setaffinity" | "setpriority" => "CAP_SYS_NICE",
        "mlock" | "mlock2" | "mlockall" => "CAP_IPC_LOCK",
        "setrlimit" | "prlimit64" => "CAP_SYS_RESOURCE",
        "clock_settime" | "settimeofday" | "adjtimex" | "clock_adjtime" => "CAP_SYS_TIME",
        "ptrace" | "process_vm_readv" => "CAP_SYS_PTRACE",
        "syslog" => "CAP_SYSLOG",
        "bpf" => "CAP_BPF",
        "prctl" => "CAP_SETPCAP",
        "mount" | "umount2" | "sethostname" | "setns" | "unshare" | "pivot_root" => "CAP_SYS_ADMIN",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use berth_policies::ProfileSpec;
    use berth_runtime::trace::Ended;

    use super::*;

    fn trace() -> Trace {
        Trace {
            ended: Ended::Code(0),
            calls: ["openat", "socket", "clone3", "ioctl", "getpid"].into(),
            values: [("socket", [1].into()), ("ioctl", [0x5401, 0x5413].into())].into(),
            refused: [(("openat", libc::EACCES), "/etc/shadow".to_owned())].into(),
            filtered: BTreeMap::new(),
            files: [
                ("/bin/sh".to_owned(), ['x'].into()),
                ("/tmp/new".to_owned(), ['c', 'w'].into()),
                ("/proc/17/stat".to_owned(), ['r'].into()),
                ("/etc/passwd".to_owned(), ['r'].into()),
            ]
            .into(),
            devices: ["c 1:3 rw".to_owned()].into(),
            foreign: false,
        }
    }

    #[test]
    fn the_profile_has_what_was_seen_and_no_more() {
        let spec = super::super::spec("strict", &["CAP_CHOWN"].into(), &trace(), true);
        let rules = &spec["landlock"]["paths"];
        let paths: Vec<&str> = rules
            .as_array()
            .unwrap()
            .iter()
            .map(|r| r["path"].as_str().unwrap())
            .collect();
        assert_eq!(paths, ["/bin/sh", "/etc/passwd", "/proc", "/tmp"]);
        assert_eq!(rules[3]["access"], json!(["make", "read", "write"]));
        let profile: ProfileSpec = serde_json::from_value(spec.clone()).unwrap();
        assert_eq!(profile.validate(), []);
        let calls = spec["seccomp"]["syscalls"].as_array().unwrap();
        let names = calls[0]["names"].as_array().unwrap();
        for (name, there) in [
            ("getpid", true),
            ("openat", true),
            ("execve", true),
            ("socket", false),
            ("mount", false),
        ] {
            assert_eq!(names.contains(&json!(name)), there, "{name}");
        }
        assert_eq!(calls.iter().filter(|c| c["names"] == json!(["ioctl"])).count(), 2);
        assert_eq!(calls.last().unwrap()["errnoRet"], 38);
    }

    #[test]
    fn runs_that_differ() {
        let first = trace();
        let mut other = trace();
        assert!(other.same_as(&first) && other.beyond(&first).is_empty());
        other.refused.insert(("chown", libc::EPERM), "/x".into());
        assert!(!other.same_as(&first) && first.same_as(&other));
        assert_eq!(other.beyond(&first), ["chown (/x): EPERM; it may need CAP_CHOWN"]);
        let mut other = trace();
        other.filtered.insert("socket", "errno 1".into());
        assert_eq!(
            other.beyond(&first),
            ["system call socket: the filter answers errno 1"]
        );
        let mut other = trace();
        other.ended = Ended::Code(3);
        assert_eq!(other.beyond(&first), ["it ended with code 3, before with code 0"]);
    }
}
