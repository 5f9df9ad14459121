//! `kind: SecurityProfile` as written. Every field may be absent: it is the base profile's then.

mod landlock;

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::Problem;
use crate::filter::Filter;
use crate::names::{self, CAPABILITIES, MOUNT_FLAGS, NAMESPACES, RLIMITS};
use crate::profile::{DeviceRule, OnDrift};

pub use landlock::{LandlockPath, LandlockSpec};

/// The `spec` of a `kind: SecurityProfile` document.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct ProfileSpec {
    /// The profile this one starts from; `strict` where absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub extends: Option<String>,
    /// For people.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// Said aloud wherever the profile is used. Once true in a chain it stays true.
    pub loud: bool,
    /// Capabilities.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub capabilities: Option<CapabilitiesSpec>,
    /// PR_SET_NO_NEW_PRIVS.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub no_new_privileges: Option<bool>,
    /// Root file system mounted read-only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub readonly_root: Option<bool>,
    /// Kernel parameters of the container's own namespaces, by name (`net.ipv4.ip_forward`); those of the base
    /// profile stay unless named.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub sysctls: BTreeMap<String, String>,
    /// A Landlock domain for every process of the container, in the place of the base profile's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub landlock: Option<LandlockSpec>,
    /// A core scheduling cookie of the container's own: no thread of another runs on a core's second thread while one
    /// of its own runs on the first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub core_scheduling: Option<bool>,
    /// False: the program is not dumpable (PR_SET_DUMPABLE 0): no core of it is written or piped to the node's handler, and nobody
    /// without CAP_SYS_PTRACE looks into it. It holds for what the container starts with and for each `exec`, and for what
    /// they fork; what those execute can be dumped again (exec(2)).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dumpable: Option<bool>,
    /// What happens where the node lacks a mechanism: `refuse` unless written otherwise; those of the base profile stay
    /// unless named.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub on_missing: BTreeMap<Mechanism, OnMissing>,
    /// What happens when a proven fact no longer holds: `report`, `freeze` or `stop`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub on_drift: Option<OnDrift>,
    /// User namespace: `own` maps root and every other id to a range of the host's that no other container has;
    /// `host`: container ids are the host's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user_namespace: Option<UserNamespace>,
    /// With a user namespace of its own: files of mounts from the host show the owners they have on the host, by an
    /// idmapped mount. False: they belong to nobody inside.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub idmap_mounts: Option<bool>,
    /// Namespaces of its own: cgroup, ipc, mount, network, pid, uts. `mount` and `pid` must be among them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespaces: Option<Vec<String>>,
    /// Flags laid on every mount: nosuid, nodev (not on /dev and /dev/pts, which hold devices), noexec.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mount_flags: Option<Vec<String>>,
    /// Devices allowed, in the words of cgroup v1's devices.allow: `c 1:3 rwm`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub devices: Option<ListSpec>,
    /// Paths that show nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub masked_paths: Option<ListSpec>,
    /// Paths that cannot be written.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub readonly_paths: Option<ListSpec>,
    /// Resource limits by name (RLIMIT_NOFILE); those of the base profile stay unless named.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub rlimits: BTreeMap<String, LimitSpec>,
    /// System calls: an OCI seccomp object, a change of the base profile's, or none at all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seccomp: Option<SeccompSpec>,
    /// SELinux context of the process.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub selinux_label: Option<String>,
    /// SELinux context of its mounts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mount_label: Option<String>,
    /// AppArmor profile of the process.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub apparmor_profile: Option<String>,
}

/// Which user namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum UserNamespace {
    /// The host's: root inside is root outside, held by capabilities and the rest of the profile alone.
    Host,
    /// One of its own: root inside is an unprivileged id outside.
    Own,
}

/// What a node may lack.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Mechanism {
    /// The `landlock` of a profile.
    Landlock,
    /// The `coreScheduling` of a profile.
    CoreScheduling,
    /// The `selinuxLabel` and `mountLabel` of a profile.
    Selinux,
    /// The `apparmorProfile` of a profile.
    Apparmor,
}

/// What happens where the node lacks a mechanism.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum OnMissing {
    /// The launch is refused.
    #[default]
    Refuse,
    /// It is left out, and the launcher's log says so.
    Skip,
}

/// Capabilities; `ALL` stands for every one of them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct CapabilitiesSpec {
    /// Instead of the base profile's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub set: Option<Vec<String>>,
    /// Besides them.
    pub add: Vec<String>,
    /// Without these.
    pub drop: Vec<String>,
    /// Also in the ambient (and inheritable) set: they survive exec for a user that is not root. Instead of the base
    /// profile's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ambient: Option<Vec<String>>,
    /// The bounding set, where it shall not be what `set`, `add` and `drop` give.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bounding: Option<Vec<String>>,
    /// The permitted set, the same.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub permitted: Option<Vec<String>>,
    /// The effective set, the same.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub effective: Option<Vec<String>>,
    /// The inheritable set, where it shall not be the ambient one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub inheritable: Option<Vec<String>>,
}

/// A list, or a change of the base profile's.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct ListSpec {
    /// Instead of the base profile's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub set: Option<Vec<String>>,
    /// Besides them.
    pub add: Vec<String>,
    /// Without these.
    pub drop: Vec<String>,
}

/// One resource limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct LimitSpec {
    /// Soft limit.
    pub soft: LimitValue,
    /// Hard limit, at least the soft one.
    pub hard: LimitValue,
    /// True: cut to the node's own hard limit where berth may not raise it. False: the launch fails then.
    #[serde(default)]
    pub up_to: bool,
}

/// A number or `unlimited`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum LimitValue {
    /// In the limit's own unit.
    Number(u64),
    /// RLIM_INFINITY.
    Word(Unlimited),
}

/// The word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Unlimited {
    /// `unlimited`.
    Unlimited,
}

impl LimitValue {
    /// The number the kernel uses; `u64::MAX` is unlimited.
    pub fn value(self) -> u64 {
        match self {
            Self::Number(n) => n,
            Self::Word(Unlimited::Unlimited) => u64::MAX,
        }
    }
}

/// System calls. What has a `defaultAction` is a whole filter, what has a `file` one that lies elsewhere, everything
/// else a change.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(untagged)]
pub enum SeccompSpec {
    /// No filter, or a change of the base profile's.
    Edit(SeccompEdit),
    /// A whole filter: an OCI seccomp object, or a default profile of Docker, containers-common or Kubernetes.
    Filter(Box<Filter>),
    /// The file that holds one.
    File(SeccompFile),
}

/// A filter in a file of its own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SeccompFile {
    /// JSON; a relative path begins where the document lies.
    pub file: PathBuf,
}

impl<'de> Deserialize<'de> for SeccompSpec {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = serde_json::Value::deserialize(deserializer)?;
        // A misspelt key that is passed over would weaken a deny list in silence: each form refuses what it does not know.
        if value.get("defaultAction").is_some() {
            let filter = crate::filter::read(value).map_err(serde::de::Error::custom)?;
            return Ok(Self::Filter(Box::new(filter)));
        }
        let read = if value.get("file").is_some() {
            serde_json::from_value(value).map(Self::File)
        } else {
            serde_json::from_value(value).map(Self::Edit)
        };
        read.map_err(serde::de::Error::custom)
    }
}

impl ProfileSpec {
    /// Puts the filter of `seccomp: {file: …}` in its place; `read` gets the path as written.
    ///
    /// # Errors
    /// The file cannot be read, or is no filter.
    pub fn inline(&mut self, read: impl FnOnce(&Path) -> io::Result<Vec<u8>>) -> Result<(), Problem> {
        let Some(SeccompSpec::File(SeccompFile { file })) = &self.seccomp else {
            return Ok(());
        };
        let at = "spec.seccomp.file";
        let wrong = |message: String, hint: &str| {
            problem(
                at,
                format!("{}: {message}", file.display()),
                Some(hint.to_owned()),
            )
        };
        let bytes = read(file).map_err(|e| wrong(e.to_string(), "name a file that can be read"))?;
        let form = "write a filter with `defaultAction` and `syscalls`, as Docker's default profile";
        let value = serde_json::from_slice(&bytes).map_err(|e| wrong(e.to_string(), form))?;
        let filter = crate::filter::read(value).map_err(|e| wrong(e, form))?;
        let mut found = Vec::new();
        filter.validate(at, &mut found);
        if let Some(first) = found.into_iter().next() {
            return Err(first);
        }
        self.seccomp = Some(SeccompSpec::Filter(Box::new(filter)));
        Ok(())
    }
}

/// A change of the base profile's filter.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct SeccompEdit {
    /// True: no filter at all, and nothing else may be said.
    pub unconfined: bool,
    /// Allowed, whatever the arguments.
    pub allow: Vec<String>,
    /// Refused with EPERM, whatever the arguments.
    pub deny: Vec<String>,
}

impl ProfileSpec {
    /// What is wrong with it by itself; paths start with `spec`. The base profile is looked for by
    /// [`crate::resolve`].
    pub fn validate(&self) -> Vec<Problem> {
        let mut found = Vec::new();
        if let Some(caps) = &self.capabilities {
            let all = |name: &str| name == "ALL" || CAPABILITIES.contains(&name);
            let known: Vec<&str> = CAPABILITIES.iter().copied().chain(["ALL"]).collect();
            let lists = [
                ("set", caps.set.as_deref()),
                ("add", Some(&caps.add)),
                ("drop", Some(&caps.drop)),
                ("bounding", caps.bounding.as_deref()),
                ("permitted", caps.permitted.as_deref()),
                ("effective", caps.effective.as_deref()),
                ("inheritable", caps.inheritable.as_deref()),
            ];
            for (field, list) in lists {
                let path = format!("spec.capabilities.{field}");
                words(&mut found, &path, list, "capability", all, |n| {
                    names::nearest(n, known.iter().copied())
                });
            }
            let path = "spec.capabilities.ambient";
            let named = |name: &str| CAPABILITIES.contains(&name);
            words(
                &mut found,
                path,
                caps.ambient.as_deref(),
                "capability",
                named,
                |n| names::nearest(n, CAPABILITIES.iter().copied()),
            );
            both(
                &mut found,
                "spec.capabilities",
                ("add", &caps.add),
                ("drop", &caps.drop),
            );
        }
        let namespace = |name: &str| NAMESPACES.contains(&name);
        words(
            &mut found,
            "spec.namespaces",
            self.namespaces.as_deref(),
            "namespace",
            namespace,
            |n| names::nearest(n, NAMESPACES.iter().copied()),
        );
        for needed in ["mount", "pid"] {
            if self
                .namespaces
                .as_ref()
                .is_some_and(|list| !list.iter().any(|n| n == needed))
            {
                let message = format!("a container needs a {needed} namespace of its own");
                found.push(problem(
                    "spec.namespaces",
                    message,
                    Some(format!("add `{needed}`")),
                ));
            }
        }
        let flag = |name: &str| MOUNT_FLAGS.contains(&name);
        words(
            &mut found,
            "spec.mountFlags",
            self.mount_flags.as_deref(),
            "mount flag",
            flag,
            |n| names::nearest(n, MOUNT_FLAGS.iter().copied()),
        );
        for (field, list) in [
            ("maskedPaths", &self.masked_paths),
            ("readonlyPaths", &self.readonly_paths),
        ] {
            each(&mut found, &format!("spec.{field}"), list.as_ref(), |text| {
                let plain = text.starts_with('/') && !text.split('/').any(|part| part == "..");
                (!plain).then(|| "a path inside the container is absolute and has no `..`".to_owned())
            });
        }
        each(&mut found, "spec.devices", self.devices.as_ref(), |text| {
            DeviceRule::parse(text).err()
        });
        self.limits(&mut found);
        self.sysctls(&mut found);
        if let Some(landlock) = &self.landlock {
            landlock.validate(&mut found);
        }
        if let Some(seccomp) = &self.seccomp {
            crate::seccomp::validate(seccomp, &mut found);
        }
        if self.selinux_label.is_some() && self.apparmor_profile.is_some() {
            let message = "a process has an SELinux label or an AppArmor profile, not both".to_owned();
            found.push(problem(
                "spec.apparmorProfile",
                message,
                Some("remove one of the two".into()),
            ));
        }
        found
    }

    fn sysctls(&self, found: &mut Vec<Problem>) {
        for (name, value) in &self.sysctls {
            let path = format!("spec.sysctls.{name}");
            let plain = |c: char| c.is_ascii_alphanumeric() || "._-/".contains(c);
            if namespace_of(name).is_none() {
                let message = "no namespace keeps it from the rest of the node".to_owned();
                let hint = "net.*, fs.mqueue.*, kernel.msg*, kernel.sem, kernel.shm* are a container's own";
                found.push(problem(&path, message, Some(hint.into())));
            } else if !name.chars().all(plain) || name.split(['.', '/']).any(|p| p.is_empty() || p == "..") {
                found.push(problem(&path, "it is not the name of a sysctl".into(), None));
            } else if value.is_empty() || value.contains('\n') {
                found.push(problem(
                    &path,
                    "its value is empty or has a line break".into(),
                    None,
                ));
            }
        }
    }

    fn limits(&self, found: &mut Vec<Problem>) {
        for (name, limit) in &self.rlimits {
            let path = format!("spec.rlimits.{name}");
            if !RLIMITS.contains(&name.as_str()) {
                let near = names::nearest(name, RLIMITS.iter().copied());
                found.push(unknown(&path, "resource limit", name, near));
            } else if limit.soft.value() > limit.hard.value() {
                let message = "the soft limit is above the hard one".to_owned();
                found.push(problem(
                    &path,
                    message,
                    Some("lower `soft` or raise `hard`".into()),
                ));
            }
        }
    }
}

/// The namespace that keeps a sysctl from the rest of the node; `None`: none does. Host and domain name have fields of
/// their own.
pub(crate) fn namespace_of(name: &str) -> Option<&'static str> {
    const IPC: [&str; 10] = [
        "kernel.msgmax",
        "kernel.msgmnb",
        "kernel.msgmni",
        "kernel.sem",
        "kernel.shmall",
        "kernel.shmmax",
        "kernel.shmmni",
        "kernel.shm_rmid_forced",
        "kernel.msg_next_id",
        "kernel.sem_next_id",
    ];
    if name.starts_with("net.") || name.starts_with("net/") {
        Some("network")
    } else if name.starts_with("fs.mqueue.") || IPC.contains(&name) {
        Some("ipc")
    } else {
        None
    }
}

pub(crate) fn problem(path: &str, message: String, hint: Option<String>) -> Problem {
    Problem {
        path: path.into(),
        message,
        hint,
    }
}

pub(crate) fn unknown(path: &str, what: &str, name: &str, nearest: Option<&str>) -> Problem {
    let near = nearest
        .map(|n| format!(", did you mean `{n}`?"))
        .unwrap_or_default();
    let hint = nearest.map(|n| format!("write `{n}`"));
    problem(path, format!("unknown {what} `{name}`{near}"), hint)
}

pub(crate) fn words<'a>(
    found: &mut Vec<Problem>,
    path: &str,
    list: Option<&[String]>,
    what: &str,
    known: impl Fn(&str) -> bool,
    nearest: impl Fn(&str) -> Option<&'a str>,
) {
    for (index, name) in list.unwrap_or_default().iter().enumerate() {
        let path = format!("{path}[{index}]");
        if !known(name) {
            found.push(unknown(&path, what, name, nearest(name)));
        } else if list.unwrap_or_default()[..index].contains(name) {
            found.push(problem(
                &path,
                format!("`{name}` is given twice"),
                Some("remove one".into()),
            ));
        }
    }
}

pub(crate) fn both(found: &mut Vec<Problem>, path: &str, one: (&str, &[String]), other: (&str, &[String])) {
    for name in one.1.iter().filter(|n| other.1.contains(n)) {
        let message = format!("`{name}` is in `{}` and in `{}`", one.0, other.0);
        found.push(problem(
            path,
            message,
            Some("remove it from one of the two".into()),
        ));
    }
}

fn each(
    found: &mut Vec<Problem>,
    path: &str,
    list: Option<&ListSpec>,
    wrong: impl Fn(&str) -> Option<String>,
) {
    let Some(list) = list else { return };
    for (field, items) in [
        ("set", list.set.as_deref()),
        ("add", Some(&list.add[..])),
        ("drop", Some(&list.drop)),
    ] {
        for (index, item) in items.unwrap_or_default().iter().enumerate() {
            if let Some(message) = wrong(item) {
                let message = format!("`{item}`: {message}");
                found.push(problem(&format!("{path}.{field}[{index}]"), message, None));
            }
        }
    }
    both(found, path, ("add", &list.add), ("drop", &list.drop));
}
