//! Which profile of a chain a line comes from.
//!
//! Pure. A resolved profile is written as lines before and after each profile of the chain is laid on it; a line that
//! was not there before is that profile's.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::filter::Entry;
use crate::profile::{Profile, Seccomp};

/// One line of a resolved profile.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Line {
    /// The field.
    pub field: String,
    /// One value of it.
    pub value: String,
    /// The profile that says so.
    pub origin: String,
}

/// How an entry of a filter is shown: action, errno, comparisons and conditions.
fn action(entry: &Entry) -> String {
    let mut text = word(entry.action);
    match (&entry.errno, entry.errno_ret) {
        (Some(name), _) if !name.is_empty() => text.push_str(&format!(" {name}")),
        (_, Some(number)) => text.push_str(&format!(" {number}")),
        _ => {}
    }
    for a in &entry.args {
        let op = word(a.op);
        text.push_str(&match op.as_str() {
            "masked_eq" => format!(" arg{} & {:#x} == {:#x}", a.index, a.value, a.value_two),
            op => format!(" arg{} {op} {:#x}", a.index, a.value),
        });
    }
    for (word, condition) in [("if", &entry.includes), ("unless", &entry.excludes)] {
        let kernel = condition.min_kernel.iter().map(|k| format!("kernel {k}"));
        let all: Vec<String> = condition
            .caps
            .iter()
            .chain(&condition.arches)
            .cloned()
            .chain(kernel)
            .collect();
        if !all.is_empty() {
            text.push_str(&format!(" {word} {}", all.join(", ")));
        }
    }
    text
}

/// `SCMP_ACT_ERRNO` as `errno`.
fn word(value: impl Serialize) -> String {
    let text = serde_json::to_value(value)
        .ok()
        .and_then(|v| v.as_str().map(str::to_owned))
        .unwrap_or_default();
    let short = text
        .trim_start_matches("SCMP_ACT_")
        .trim_start_matches("SCMP_CMP_");
    short.to_lowercase()
}

/// Every line, without its origin.
fn all(profile: &Profile) -> Vec<(String, String)> {
    let mut out: Vec<(String, String)> = Vec::new();
    let mut line = |field: &str, value: String| out.push((field.to_owned(), value));
    let yes = |b: bool| if b { "true" } else { "false" }.to_owned();
    line("loud", yes(profile.loud));
    profile
        .capabilities
        .iter()
        .for_each(|c| line("capabilities", (*c).to_owned()));
    profile
        .ambient
        .iter()
        .for_each(|c| line("capabilities.ambient", (*c).to_owned()));
    let sets = [
        ("bounding", &profile.sets.bounding),
        ("permitted", &profile.sets.permitted),
        ("effective", &profile.sets.effective),
        ("inheritable", &profile.sets.inheritable),
    ];
    for (name, set) in sets {
        if let Some(set) = set {
            line(
                &format!("capabilities.{name}"),
                set.iter().copied().collect::<Vec<_>>().join(" "),
            );
        }
    }
    line("noNewPrivileges", yes(profile.no_new_privileges));
    line("readonlyRoot", yes(profile.readonly_root));
    line(
        "userNamespace",
        if profile.own_users { "own" } else { "host" }.to_owned(),
    );
    line("idmapMounts", yes(profile.idmap_mounts));
    profile
        .namespaces
        .iter()
        .for_each(|n| line("namespaces", n.clone()));
    profile
        .mount_flags
        .iter()
        .for_each(|f| line("mountFlags", f.clone()));
    profile.devices.iter().for_each(|d| line("devices", d.to_text()));
    profile
        .masked_paths
        .iter()
        .for_each(|p| line("maskedPaths", p.clone()));
    profile
        .readonly_paths
        .iter()
        .for_each(|p| line("readonlyPaths", p.clone()));
    for (name, limit) in &profile.rlimits {
        let number = |n: u64| {
            if n == u64::MAX {
                "unlimited".to_owned()
            } else {
                n.to_string()
            }
        };
        let more = if limit.up_to { " upTo" } else { "" };
        line(
            &format!("rlimits.{name}"),
            format!("{}:{}{more}", number(limit.soft), number(limit.hard)),
        );
    }
    for (name, value) in &profile.sysctls {
        line(&format!("sysctls.{name}"), value.clone());
    }
    if let Some(landlock) = &profile.landlock {
        for rule in &landlock.paths {
            let more = if rule.optional { " optional" } else { "" };
            line(
                "landlock.paths",
                format!("{} {}{more}", rule.path, rule.access.join(",")),
            );
        }
        for (name, ports) in [
            ("bindTcp", &landlock.bind_tcp),
            ("connectTcp", &landlock.connect_tcp),
        ] {
            if let Some(ports) = ports {
                let ports: Vec<String> = ports.iter().map(u16::to_string).collect();
                line(&format!("landlock.{name}"), ports.join(" "));
            }
        }
        landlock
            .scope
            .iter()
            .for_each(|s| line("landlock.scope", s.clone()));
    }
    line("coreScheduling", yes(profile.core_scheduling));
    line("dumpable", yes(profile.dumpable));
    line("onDrift", word(profile.on_drift));
    for mechanism in &profile.skip {
        line("onMissing", format!("{}: skip", word(mechanism)));
    }
    match &profile.seccomp {
        Seccomp::Unconfined => line("seccomp", "unconfined".into()),
        Seccomp::Filter(filter) => {
            let errno = filter
                .default_errno
                .clone()
                .or(filter.default_errno_ret.map(|n| n.to_string()));
            line(
                "seccomp.default",
                format!("{} {}", word(filter.default_action), errno.unwrap_or_default())
                    .trim_end()
                    .into(),
            );
            for entry in &filter.syscalls {
                let field = format!("seccomp.{}", action(entry));
                entry.all_names().for_each(|name| line(&field, name.clone()));
            }
        }
    }
    for (field, value) in [
        ("selinuxLabel", &profile.selinux_label),
        ("mountLabel", &profile.mount_label),
        ("apparmorProfile", &profile.apparmor_profile),
    ] {
        if let Some(value) = value {
            line(field, value.clone());
        }
    }
    out
}

/// `profile` after `name` was laid on it: what is new is its.
pub(crate) fn mark(profile: &mut Profile, name: &str) {
    let mut before: BTreeMap<(String, String), String> = std::mem::take(&mut profile.lines)
        .into_iter()
        .map(|line| ((line.field, line.value), line.origin))
        .collect();
    profile.lines = all(profile)
        .into_iter()
        .map(|(field, value)| {
            let key = (field, value);
            let origin = before.remove(&key).unwrap_or_else(|| name.to_owned());
            Line {
                field: key.0,
                value: key.1,
                origin,
            }
        })
        .collect();
}
