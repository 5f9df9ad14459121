//! What a container is promised: one field for each fact the kernel can be asked about.
//!
//! Invariants: a field holds the value *expected at the exec stop*, in the kernel's own terms (host ids, bit
//! masks, mountinfo words), so that reading back is a comparison and never an interpretation. An absent
//! (`None`, empty) field is not promised and gives no fact. The whole type is serialisable: a monitor or a
//! later `berth oci` process proves from the file.

use std::collections::BTreeMap;
use std::path::PathBuf;

use berth_rt::cpu::CpuSet;
use berth_rt::sched::Scheduler;
use serde::{Deserialize, Serialize};

/// Everything one container is promised.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Promise {
    /// Controller (`cpu`, `memory`, …; `unified` for version 2) to the path that /proc/PID/cgroup shows for it,
    /// as seen from the host's cgroup namespace.
    pub cgroups: BTreeMap<String, String>,
    /// Files of the cgroup and the value each must hold: limits, budgets, cpusets.
    pub cgroup_files: Vec<CgroupFile>,
    /// Device access rules in the words of cgroup v1's devices.list (`c 1:3 rwm`, `b *:* m`, `a *:* rwm`), in
    /// any order; `None`: no device controller was asked for.
    pub devices: Option<Vec<String>>,
    /// `Cpus_allowed_list` of every thread.
    pub cpus: Option<CpuSet>,
    /// `Mems_allowed_list` of every thread.
    pub mems: Option<CpuSet>,
    /// Whether the kernel must keep others off those CPUs.
    pub isolation: IsolationPromise,
    /// Policy, priority and deadline parameters of every thread.
    pub scheduler: Option<Scheduler>,
    /// /proc/PID/timerslack_ns in nanoseconds. A task under a real-time policy reads 0 there whatever was set.
    pub timer_slack_ns: Option<u64>,
    /// Namespaces, by kind; a kind that is absent is not promised.
    pub namespaces: BTreeMap<NamespaceKind, NamespacePromise>,
    /// The five capability sets as they are after exec: see [`CapabilitySets::after_exec`].
    pub capabilities: Option<CapabilitySets>,
    /// `NoNewPrivs`.
    pub no_new_privs: bool,
    /// `Seccomp` and `Seccomp_filters`.
    pub seccomp: SeccompPromise,
    /// Real, effective, saved and file-system user id, as the host's user namespace sees it.
    pub uid: Option<u32>,
    /// Real, effective, saved and file-system group id, as the host's user namespace sees it.
    pub gid: Option<u32>,
    /// Supplementary groups, in any order.
    pub groups: Option<Vec<u32>>,
    /// /proc/PID/uid_map, in any order.
    pub uid_map: Option<Vec<IdMap>>,
    /// /proc/PID/gid_map, in any order.
    pub gid_map: Option<Vec<IdMap>>,
    /// Words that must be among the per-mount options of the root mount (`ro`, `nosuid`, `nodev`, …).
    pub root_flags: Vec<String>,
    /// Mounts that must be there.
    pub mounts: Vec<MountPromise>,
    /// Paths that must show nothing: the null device, an empty read-only tmpfs, or absent.
    pub masked_paths: Vec<String>,
    /// Paths that must lie on a read-only mount, or be absent.
    pub readonly_paths: Vec<String>,
    /// Network interfaces that were moved or made inside.
    pub interfaces: Vec<InterfacePromise>,
    /// Resource limits by OCI name (`RLIMIT_NOFILE`).
    pub rlimits: BTreeMap<String, Rlimit>,
    /// /proc/PID/attr/current: the SELinux context, or the AppArmor profile with its mode (`name (enforce)`).
    pub lsm_label: Option<String>,
    /// A core scheduling cookie that is not the reader's.
    pub core_cookie: bool,
    /// True: PR_GET_DUMPABLE answers 0, asked by the program at its exec stop; later by the owner of /proc/PID/mem, where the
    /// program's user is another than root of its user namespace.
    pub undumpable: bool,
    /// /proc/PID/oom_score_adj.
    pub oom_score_adj: Option<i32>,
    /// /proc/PID/personality, bits of personality(2).
    pub personality: Option<u32>,
    /// True: the process has a controlling terminal on a devpts.
    pub terminal: bool,
    /// True: at the exec stop the process has no open descriptor but 0, 1, 2 (CVE-2024-21626) and [`Self::preserved`].
    pub only_stdio: bool,
    /// So many descriptors from 3 on were given in by who called.
    #[serde(default)]
    pub preserved: u32,
    /// Field 22 of /proc/PID/stat: the pid still means the same process.
    pub start_time: Option<u64>,
    /// True: /proc/PID/exe must be another file than the reader's own executable (checked after exec).
    pub foreign_executable: bool,
}

/// A file below a cgroup mount and its promised content.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CgroupFile {
    /// Absolute path.
    pub path: PathBuf,
    /// The content, white space at the end ignored; CPU lists in the kernel's own form.
    pub value: String,
}

/// How far the CPUs are the container's own.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum IsolationPromise {
    /// Nothing is promised.
    #[default]
    None,
    /// Nothing is promised, and every full running proof says what is true.
    Reported,
    /// The kernel must say they are isolated.
    Isolated,
}

/// The kinds of namespace, named as under /proc/PID/ns.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NamespaceKind {
    /// CLONE_NEWCGROUP.
    Cgroup,
    /// CLONE_NEWIPC.
    Ipc,
    /// CLONE_NEWNS.
    Mnt,
    /// CLONE_NEWNET.
    Net,
    /// CLONE_NEWPID.
    Pid,
    /// CLONE_NEWTIME.
    Time,
    /// CLONE_NEWUSER.
    User,
    /// CLONE_NEWUTS.
    Uts,
}

impl NamespaceKind {
    /// The name under /proc/PID/ns.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Cgroup => "cgroup",
            Self::Ipc => "ipc",
            Self::Mnt => "mnt",
            Self::Net => "net",
            Self::Pid => "pid",
            Self::Time => "time",
            Self::User => "user",
            Self::Uts => "uts",
        }
    }
}

/// What is promised of one namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum NamespacePromise {
    /// Another one than the reader's.
    New,
    /// The reader's own.
    Host,
    /// The one whose file was joined: its inode number on nsfs.
    Joined {
        /// `st_ino` of the namespace file.
        inode: u64,
    },
}

/// A file's identity.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileId {
    /// `st_dev`.
    pub dev: u64,
    /// `st_ino`.
    pub ino: u64,
}

/// The five capability sets as bit masks: bit N is capability N of capability.h.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CapabilitySets {
    /// CapInh.
    pub inheritable: u64,
    /// CapPrm.
    pub permitted: u64,
    /// CapEff.
    pub effective: u64,
    /// CapBnd.
    pub bounding: u64,
    /// CapAmb.
    pub ambient: u64,
}

impl CapabilitySets {
    /// The sets after execve(2) of a file without file capabilities by `self`, following capabilities(7).
    /// `root`: real or effective user id is 0 inside its user namespace (and SECBIT_NOROOT is not set).
    pub fn after_exec(self, root: bool, no_new_privs: bool) -> Self {
        let mut permitted = self.ambient;
        if root {
            permitted |= self.inheritable | self.bounding;
            if no_new_privs {
                permitted &= self.permitted;
            }
        }
        let effective = if root { permitted } else { self.ambient };
        Self {
            permitted,
            effective,
            ..self
        }
    }
}

/// What is promised of seccomp.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SeccompPromise {
    /// 0 none, 2 filter.
    pub mode: u32,
    /// Filters in force, those inherited from the reader included.
    pub filters: u32,
}

/// One line of uid_map or gid_map.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct IdMap {
    /// First id inside.
    pub inside: u32,
    /// First id outside, as the reader's user namespace sees it.
    pub outside: u32,
    /// How many.
    pub count: u32,
}

/// A mount that must be there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountPromise {
    /// Mount point, as seen inside.
    pub destination: String,
    /// Type of file system (`proc`, `tmpfs`); `None`: any, as for a bind mount.
    pub fs_type: Option<String>,
    /// Words that must be among its per-mount options: `ro`, `rw`, `nosuid`, `nodev`, `noexec`, ….
    pub flags: Vec<String>,
}

/// A network interface inside.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InterfacePromise {
    /// Its index inside.
    pub index: u32,
    /// Its name inside.
    pub name: String,
    /// Its name outside; of a VLAN that of the interface it lies on.
    pub outside: String,
    /// The MTU it was given.
    pub mtu: Option<u32>,
    /// The MTU it had, where it was given another one.
    pub mtu_before: Option<u32>,
    /// It is a VLAN of this id, made inside.
    pub vlan: Option<u16>,
    /// `ADDRESS/LENGTH`, each of which it must have.
    pub addresses: Vec<String>,
}

/// A resource limit; `u64::MAX` is unlimited.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rlimit {
    /// Soft limit.
    pub soft: u64,
    /// Hard limit.
    pub hard: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capability_rules_of_exec() {
        let sets = CapabilitySets {
            inheritable: 0b001,
            permitted: 0b0111,
            effective: 0b0111,
            bounding: 0b1111,
            ambient: 0,
        };
        // (root, no_new_privs, ambient) -> (permitted, effective)
        let table = [
            (true, true, 0, 0b0111, 0b0111),
            (true, false, 0, 0b1111, 0b1111),
            (false, true, 0, 0, 0),
            (false, false, 0b001, 0b001, 0b001),
            (true, true, 0b001, 0b0111, 0b0111),
        ];
        for (root, nnp, ambient, permitted, effective) in table {
            let after = CapabilitySets { ambient, ..sets }.after_exec(root, nnp);
            assert_eq!(
                (after.permitted, after.effective),
                (permitted, effective),
                "{root} {nnp} {ambient}"
            );
            assert_eq!(
                (after.inheritable, after.bounding, after.ambient),
                (0b001, 0b1111, ambient)
            );
        }
    }

    #[test]
    fn a_promise_survives_its_file() {
        let promise = Promise {
            namespaces: [(NamespaceKind::Net, NamespacePromise::Joined { inode: 7 })].into(),
            scheduler: Some(Scheduler::Fifo { priority: 50 }),
            cpus: Some([1].into_iter().collect()),
            ..Promise::default()
        };
        let text = serde_json::to_string(&promise).expect("json");
        assert_eq!(serde_json::from_str::<Promise>(&text).expect("back"), promise);
    }
}
