//! The words a profile may use, and the nearest one to a word that is none of them.

use oci_spec::runtime::{Capability, LinuxNamespaceType, PosixRlimitType};

use crate::syscalls;

/// Bit N of a capability mask has the name at index N (capability.h).
pub(crate) static CAPABILITIES: [&str; 41] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_LINUX_IMMUTABLE",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_BROADCAST",
    "CAP_NET_ADMIN",
    "CAP_NET_RAW",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_SYS_MODULE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_CHROOT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_PACCT",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_NICE",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_MKNOD",
    "CAP_LEASE",
    "CAP_AUDIT_WRITE",
    "CAP_AUDIT_CONTROL",
    "CAP_SETFCAP",
    "CAP_MAC_OVERRIDE",
    "CAP_MAC_ADMIN",
    "CAP_SYSLOG",
    "CAP_WAKE_ALARM",
    "CAP_BLOCK_SUSPEND",
    "CAP_AUDIT_READ",
    "CAP_PERFMON",
    "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
];

pub(crate) static NAMESPACES: [&str; 6] = ["cgroup", "ipc", "mount", "network", "pid", "uts"];

pub(crate) static MOUNT_FLAGS: [&str; 3] = ["nodev", "noexec", "nosuid"];

pub(crate) static RLIMITS: [&str; 16] = [
    "RLIMIT_AS",
    "RLIMIT_CORE",
    "RLIMIT_CPU",
    "RLIMIT_DATA",
    "RLIMIT_FSIZE",
    "RLIMIT_LOCKS",
    "RLIMIT_MEMLOCK",
    "RLIMIT_MSGQUEUE",
    "RLIMIT_NICE",
    "RLIMIT_NOFILE",
    "RLIMIT_NPROC",
    "RLIMIT_RSS",
    "RLIMIT_RTPRIO",
    "RLIMIT_RTTIME",
    "RLIMIT_SIGPENDING",
    "RLIMIT_STACK",
];

pub(crate) fn is_syscall(name: &str) -> bool {
    syscalls::NAMES.binary_search(&name).is_ok()
}

/// The capability of a name; every name of [`CAPABILITIES`] has one.
pub(crate) fn capability(name: &str) -> Option<Capability> {
    name.strip_prefix("CAP_")?.parse().ok()
}

/// As [`capability`], for [`RLIMITS`].
pub(crate) fn rlimit(name: &str) -> Option<PosixRlimitType> {
    serde_json::from_value(serde_json::Value::String(name.to_owned())).ok()
}

/// As [`capability`], for [`NAMESPACES`].
pub(crate) fn namespace(name: &str) -> Option<LinuxNamespaceType> {
    serde_json::from_value(serde_json::Value::String(name.to_owned())).ok()
}

/// The word nearest to `name`, when it is near enough to be a slip.
pub(crate) fn nearest<'a>(name: &str, words: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let upper = name.to_uppercase();
    words
        .into_iter()
        .map(|word| {
            // A capability without its prefix, or in small letters, is a slip too.
            let bare = word.strip_prefix("CAP_").or_else(|| word.strip_prefix("RLIMIT_"));
            let cased = if bare.is_some() { upper.as_str() } else { name };
            let whole = strsim::damerau_levenshtein(cased, word);
            (
                bare.map_or(whole, |b| whole.min(strsim::damerau_levenshtein(cased, b))),
                word,
            )
        })
        .min()
        .filter(|(distance, word)| *distance <= 1 + word.len() / 4)
        .map(|(_, word)| word)
}

/// The nearest system call.
pub(crate) fn nearest_syscall(name: &str) -> Option<&'static str> {
    nearest(name, syscalls::NAMES.iter().copied())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_has_its_oci_word() {
        for name in CAPABILITIES {
            assert_eq!(
                capability(name).map(|c| format!("CAP_{c}")).as_deref(),
                Some(name)
            );
        }
        assert!(RLIMITS.iter().all(|n| rlimit(n).is_some()));
        assert!(NAMESPACES.iter().all(|n| namespace(n).is_some()));
    }

    #[test]
    fn slips_are_understood() {
        let caps = || CAPABILITIES.iter().copied();
        assert_eq!(nearest("SYS_NICE", caps()), Some("CAP_SYS_NICE"));
        assert_eq!(nearest("cap_net_raw", caps()), Some("CAP_NET_RAW"));
        assert_eq!(nearest("CAP_SYS_NIEC", caps()), Some("CAP_SYS_NICE"));
        assert_eq!(nearest("CAP_FLY", caps()), None);
        assert_eq!(nearest_syscall("opneat"), Some("openat"));
    }

    #[test]
    fn the_names_are_the_compilers() {
        let table = include_str!("../../agent/runtime/src/seccomp/table.rs");
        let rows = table.split("static TABLE").nth(1).expect("table");
        let names: Vec<&str> = rows
            .split("(\"")
            .skip(1)
            .map(|row| row.split('"').next().expect("name"))
            .collect();
        assert_eq!(names, syscalls::NAMES);
        assert!(syscalls::NAMES.windows(2).all(|w| w[0] < w[1]));
    }
}
