//! What the new process does, worked out beforehand: plain data, no lookups left.
//!
//! Written by [`crate::plan`], read by [`crate::child`] after the clone from its copy of the memory.

use std::ffi::CString;
use std::path::PathBuf;

use berth_rt::cpu::CpuSet;
use serde::{Deserialize, Serialize};

use crate::console::Size;
use crate::options::Options;
use crate::proof::{CapabilitySets, IdMap};

/// The whole set-up of one container.
#[derive(Debug, Clone, Default)]
pub(crate) struct Recipe {
    pub(crate) id: String,
    pub(crate) root: Root,
    /// `MOUNT_ATTR_*` bits of the root.
    pub(crate) root_flags: u64,
    /// `MS_SHARED`, … and whether recursively.
    pub(crate) propagation: Option<(u64, bool)>,
    pub(crate) mounts: Vec<Mount>,
    /// No link is followed on the way to the source of a bind mount.
    pub(crate) plain_sources: bool,
    pub(crate) devices: Vec<Node>,
    /// The users of a user namespace.
    pub(crate) users: Option<Users>,
    pub(crate) masked: Vec<PathBuf>,
    pub(crate) readonly: Vec<PathBuf>,
    /// `CLONE_NEW*` of the namespaces to be made.
    pub(crate) new: u64,
    /// Namespaces to be joined by path: `CLONE_NEW*`, path.
    pub(crate) joined: Vec<(u64, PathBuf)>,
    pub(crate) hostname: Option<String>,
    pub(crate) domainname: Option<String>,
    /// Path below /proc/sys, value.
    pub(crate) sysctl: Vec<(String, String)>,
    pub(crate) process: Process,
    /// Label of new files on file systems made for the container (SELinux `context=`).
    pub(crate) mount_label: Option<String>,
    pub(crate) oom_score_adj: Option<i32>,
    /// Descriptors from 3 on that go in: how many.
    pub(crate) preserved: u32,
    /// Bind mounts stand in mountinfo where the configuration has them.
    pub(crate) in_order: bool,
    /// No pivot_root: the root lies over that of the mount namespace and is entered with chroot.
    pub(crate) over: bool,
    /// What clocks inside are ahead, in the words of timens_offsets, in its order.
    pub(crate) clocks: Option<String>,
    /// SIGKILL when the caller ends.
    pub(crate) die_with_parent: bool,
    /// createContainer hooks are there.
    pub(crate) hooks_before_pivot: bool,
    /// prestart or createRuntime hooks are there.
    pub(crate) hooks_outside: bool,
    /// startContainer hooks.
    pub(crate) hooks_inside: Vec<crate::hooks::Hook>,
    pub(crate) create_container_hooks: Vec<crate::hooks::Hook>,
    /// A seccomp filter will come.
    pub(crate) filtered: bool,
    /// cgroup directories for mounts of type cgroup: controller names, host path.
    pub(crate) cgroups: Vec<(String, PathBuf)>,
    pub(crate) cgroup_v2: bool,
}

/// Credentials, limits and words of one process inside.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Process {
    #[serde(skip)]
    pub(crate) args: Vec<CString>,
    #[serde(with = "strings")]
    pub(crate) env: Vec<CString>,
    pub(crate) cwd: PathBuf,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) groups: Vec<u32>,
    pub(crate) umask: u32,
    pub(crate) capabilities: CapabilitySets,
    pub(crate) no_new_privs: bool,
    /// `RLIMIT_*` number, name, soft, hard.
    pub(crate) rlimits: Vec<Limit>,
    pub(crate) label: Option<Label>,
    pub(crate) landlock: Option<crate::landlock::Landlock>,
    /// Threads of others never share a core with its own at the same time.
    pub(crate) core_cookie: bool,
    /// PER_* domain of personality(2).
    pub(crate) personality: Option<u64>,
    /// From which memory nodes it gets its memory.
    #[serde(default)]
    pub(crate) memory: Option<crate::numa::MemoryPolicy>,
    /// Its session keyring is its caller's.
    #[serde(default)]
    pub(crate) callers_keyring: bool,
    /// CPUs of processes that join: on the way, and of their programs.
    pub(crate) exec_cpus: (Option<CpuSet>, Option<CpuSet>),
    /// It has a terminal of its own, of this size.
    pub(crate) terminal: Option<Size>,
}

/// Words as text: they come from a document, which is text.
mod strings {
    use std::ffi::CString;

    use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};

    pub(super) fn serialize<S: Serializer>(words: &[CString], out: S) -> Result<S::Ok, S::Error> {
        let words: Vec<_> = words.iter().map(|w| w.to_string_lossy()).collect();
        words.serialize(out)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<CString>, D::Error> {
        let words = Vec::<String>::deserialize(from)?;
        let words = words
            .into_iter()
            .map(|w| CString::new(w).map_err(D::Error::custom));
        words.collect()
    }
}

/// One resource limit.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Limit {
    pub(crate) name: String,
    pub(crate) resource: u32,
    pub(crate) soft: u64,
    pub(crate) hard: u64,
}

/// The label a process gets at exec.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Label {
    Selinux(String),
    Apparmor(String),
}

impl Label {
    /// What /proc/PID/attr/current says of a process that has it.
    pub(crate) fn shown(&self) -> String {
        match self {
            Self::Selinux(label) => label.clone(),
            Self::Apparmor(profile) => format!("{profile} (enforce)"),
        }
    }
}

/// Where the root file system comes from.
#[derive(Debug, Clone)]
pub(crate) enum Root {
    Dir(PathBuf),
    /// Layers, topmost first; read-only without `upper` and `work`.
    Overlay {
        lower: Vec<PathBuf>,
        upper: Option<(PathBuf, PathBuf)>,
        /// An existing directory that the overlay is mounted on, in the container's mount namespace alone.
        at: PathBuf,
    },
}

impl Default for Root {
    fn default() -> Self {
        Self::Dir(PathBuf::new())
    }
}

/// The ids of a user namespace, and what of the container is prepared outside it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Users {
    pub(crate) uids: Vec<IdMap>,
    pub(crate) gids: Vec<IdMap>,
    /// The root's files are stored with the ids that they have inside.
    pub(crate) idmap_root: bool,
}

/// The host's id for an id inside.
pub(crate) fn outside(maps: &[IdMap], id: u32) -> Option<u32> {
    let map = maps
        .iter()
        .find(|m| id.checked_sub(m.inside).is_some_and(|d| d < m.count))?;
    map.outside.checked_add(id - map.inside)
}

/// One mount.
#[derive(Debug, Clone)]
pub(crate) struct Mount {
    pub(crate) destination: PathBuf,
    pub(crate) source: PathBuf,
    pub(crate) fs: String,
    pub(crate) options: Options,
    /// Ids shown through maps.
    pub(crate) idmap: Option<IdMapping>,
}

/// Ids of a mount shown through maps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct IdMapping {
    /// Everything below too.
    pub(crate) recursive: bool,
    /// uid_map and gid_map as text; `None`: those of the container's user namespace.
    pub(crate) maps: Option<(String, String)>,
}

/// One device node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Node {
    pub(crate) path: PathBuf,
    pub(crate) kind: NodeKind,
    pub(crate) major: u32,
    pub(crate) minor: u32,
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
}

/// Kind of a device node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NodeKind {
    Char,
    Block,
    Fifo,
}
