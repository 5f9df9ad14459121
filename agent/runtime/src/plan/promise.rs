//! What the container is promised, worked out from the same configuration as the recipe.
//!
//! Pure but for the reader's own filter count and the inode numbers of namespaces that are joined.

use std::collections::BTreeMap;

use berth_rt::cpu::CpuSet;
use oci_spec::runtime::{
    self as oci, LinuxDeviceCgroup, LinuxDeviceType, LinuxNamespaceType, LinuxResources, Spec,
};

use super::{Extensions, PlanError};
use crate::proof::{
    IdMap, IsolationPromise, MountPromise, NamespaceKind, NamespacePromise, Promise, Rlimit, SeccompPromise,
};
use crate::recipe::{Label, Mount, Recipe, outside};
use crate::sys::mount::attr;

/// Everything that is known before the container exists.
pub(super) fn write(
    spec: &Spec,
    process: &oci::Process,
    recipe: &Recipe,
    resources: &LinuxResources,
    extensions: &Extensions,
) -> Result<Promise, PlanError> {
    let linux = spec.linux().as_ref();
    let cpu = resources.cpu().as_ref();
    let list = |field: &str, text: Option<&String>| match text.filter(|t| !t.is_empty()) {
        None => Ok(None),
        Some(text) => text.parse::<CpuSet>().map(Some).map_err(|e| {
            PlanError::refused(format!("linux.resources.cpu.{field}"), format!("`{text}`: {e}"))
        }),
    };
    let cpus = list("cpus", cpu.and_then(|c| c.cpus().as_ref()))?;
    let uid_map = recipe.users.as_ref().map(|u| u.uids.clone());
    let gid_map = recipe.users.as_ref().map(|u| u.gids.clone());
    let words = &recipe.process;
    let host = |map: &Option<Vec<IdMap>>, id: u32, field: &str| match map {
        None => Ok(id),
        Some(map) => outside(map, id)
            .ok_or_else(|| PlanError::refused(field, format!("{id} is not mapped in the user namespace"))),
    };
    let groups: Result<Vec<u32>, PlanError> = words
        .groups
        .iter()
        .map(|g| host(&gid_map, *g, "process.user.additionalGids"))
        .collect();
    let inherited = own_filters();
    let filtered = u32::from(recipe.filtered);
    Ok(Promise {
        devices: resources.devices().as_ref().map(|rules| device_words(rules)),
        cpus: extensions.affinity.clone().or(cpus),
        mems: list("mems", cpu.and_then(|c| c.mems().as_ref()))?,
        isolation: match (extensions.require_isolated, extensions.report_isolation) {
            (true, _) => IsolationPromise::Isolated,
            (false, true) => IsolationPromise::Reported,
            (false, false) => IsolationPromise::None,
        },
        only_stdio: true,
        timer_slack_ns: extensions.timer_slack_ns,
        namespaces: namespaces(linux)?,
        capabilities: Some(words.capabilities.after_exec(words.uid == 0, words.no_new_privs)),
        no_new_privs: words.no_new_privs,
        seccomp: SeccompPromise {
            mode: if inherited + filtered > 0 { 2 } else { 0 },
            filters: inherited + filtered,
        },
        uid: Some(host(&uid_map, words.uid, "process.user.uid")?),
        gid: Some(host(&gid_map, words.gid, "process.user.gid")?),
        groups: Some(groups?),
        uid_map,
        gid_map,
        root_flags: flag_words(recipe.root_flags).collect(),
        mounts: mounts(&recipe.mounts),
        masked_paths: recipe
            .masked
            .iter()
            .map(|p| p.to_string_lossy().into_owned())
            .collect(),
        readonly_paths: recipe
            .readonly
            .iter()
            .map(|p| p.to_string_lossy().into_owned())
            .collect(),
        rlimits: words
            .rlimits
            .iter()
            .map(|l| {
                (
                    l.name.clone(),
                    Rlimit {
                        soft: l.soft,
                        hard: l.hard,
                    },
                )
            })
            .collect(),
        lsm_label: words.label.as_ref().map(Label::shown),
        core_cookie: words.core_cookie,
        undumpable: extensions.undumpable,
        oom_score_adj: process.oom_score_adj(),
        personality: words.personality.map(|p| p as u32),
        terminal: words.terminal.is_some(),
        foreign_executable: true,
        ..Promise::default()
    })
}

/// `Seccomp_filters` of the calling process; a new process inherits them.
fn own_filters() -> u32 {
    let status = crate::state::read_small("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("Seccomp_filters:"));
    line.and_then(|v| v.trim().parse().ok()).unwrap_or(0)
}

fn namespaces(linux: Option<&oci::Linux>) -> Result<BTreeMap<NamespaceKind, NamespacePromise>, PlanError> {
    use std::os::unix::fs::MetadataExt;
    let kinds = [
        (LinuxNamespaceType::Cgroup, NamespaceKind::Cgroup),
        (LinuxNamespaceType::Ipc, NamespaceKind::Ipc),
        (LinuxNamespaceType::Mount, NamespaceKind::Mnt),
        (LinuxNamespaceType::Network, NamespaceKind::Net),
        (LinuxNamespaceType::Pid, NamespaceKind::Pid),
        (LinuxNamespaceType::User, NamespaceKind::User),
        (LinuxNamespaceType::Uts, NamespaceKind::Uts),
    ];
    let time = (LinuxNamespaceType::Time, NamespaceKind::Time);
    let listed = linux.and_then(|l| l.namespaces().as_deref()).unwrap_or_default();
    let mut all = BTreeMap::new();
    let timed = listed
        .iter()
        .any(|n| n.typ() == LinuxNamespaceType::Time)
        .then_some(time);
    for (oci, kind) in kinds.into_iter().chain(timed) {
        let promise = match listed.iter().find(|n| n.typ() == oci) {
            None => NamespacePromise::Host,
            Some(ns) => match ns.path() {
                None => NamespacePromise::New,
                Some(path) => {
                    let meta = std::fs::metadata(path).map_err(|source| PlanError::Path {
                        field: "linux.namespaces",
                        path: path.clone(),
                        source,
                    })?;
                    NamespacePromise::Joined { inode: meta.ino() }
                }
            },
        };
        all.insert(kind, promise);
    }
    Ok(all)
}

/// `MOUNT_ATTR_*` bits in the words of mountinfo.
fn flag_words(bits: u64) -> impl Iterator<Item = String> {
    [
        (attr::RDONLY, "ro"),
        (attr::NOSUID, "nosuid"),
        (attr::NODEV, "nodev"),
        (attr::NOEXEC, "noexec"),
    ]
    .into_iter()
    .filter(move |(bit, _)| bits & bit != 0)
    .map(|(_, word)| word.to_owned())
}

fn mounts(mounts: &[Mount]) -> Vec<MountPromise> {
    mounts
        .iter()
        .map(|m| MountPromise {
            destination: m.destination.to_string_lossy().into_owned(),
            fs_type: (m.options.bind.is_none() && m.fs != "cgroup").then(|| m.fs.clone()),
            flags: flag_words(m.options.set | m.options.set_below)
                .chain(m.idmap.iter().map(|_| "idmapped".to_owned()))
                .collect(),
        })
        .collect()
}

/// OCI rules, in order, in the words of devices.list.
pub(crate) fn device_words(rules: &[LinuxDeviceCgroup]) -> Vec<String> {
    let mut list: Vec<(char, String, String)> = Vec::new();
    let mut all = false;
    for rule in rules {
        let number = |n: Option<i64>| n.filter(|n| *n >= 0).map_or("*".to_owned(), |n| n.to_string());
        let access = rule
            .access()
            .clone()
            .filter(|a| !a.is_empty())
            .unwrap_or_else(|| "rwm".to_owned());
        let kind = match rule.typ().unwrap_or_default() {
            LinuxDeviceType::A => {
                list.clear();
                all = rule.allow();
                continue;
            }
            LinuxDeviceType::B => 'b',
            _ => 'c',
        };
        let numbers = format!("{}:{}", number(rule.major()), number(rule.minor()));
        let found = list.iter().position(|(k, n, _)| *k == kind && *n == numbers);
        // On a group that allows all, the kernel lists what is denied.
        let adds = rule.allow() != all;
        match (adds, found) {
            (true, Some(at)) => list[at].2.push_str(&access),
            (true, None) => list.push((kind, numbers, access)),
            (false, Some(at)) => {
                list[at].2.retain(|c| !access.contains(c));
                if list[at].2.is_empty() {
                    list.remove(at);
                }
            }
            (false, None) => {}
        }
    }
    if all {
        return vec!["a *:* rwm".to_owned()];
    }
    let ordered = |access: &str| "rwm".chars().filter(|c| access.contains(*c)).collect::<String>();
    list.into_iter()
        .map(|(kind, numbers, access)| format!("{kind} {numbers} {}", ordered(&access)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_in_order() {
        let rules: Vec<LinuxDeviceCgroup> = serde_json::from_str(
            r#"[{"allow": true, "type": "c", "major": 9, "minor": 9, "access": "r"},
                {"allow": false, "access": "rwm"},
                {"allow": true, "type": "c", "major": 1, "minor": 3, "access": "w"},
                {"allow": true, "type": "c", "major": 1, "minor": 3, "access": "r"},
                {"allow": true, "type": "b", "access": "m"},
                {"allow": true, "type": "c", "major": 5, "minor": 1},
                {"allow": false, "type": "c", "major": 5, "minor": 1, "access": "wm"}]"#,
        )
        .unwrap();
        assert_eq!(device_words(&rules), ["c 1:3 rw", "b *:* m", "c 5:1 r"]);
        let open: Vec<LinuxDeviceCgroup> =
            serde_json::from_str(r#"[{"allow": true, "access": "rwm"}]"#).unwrap();
        assert_eq!(device_words(&open), ["a *:* rwm"]);
    }
}
