//! A resolved profile beside the policy. The agent writes the node's own profiles, so their names say nothing: what
//! they give is looked at.

use std::collections::BTreeSet;
use std::sync::OnceLock;

use berth_policies::{Profile, Seccomp, shipped_names};
use oci_spec::runtime::{LinuxDeviceType, LinuxSeccompAction};

use super::device::Wanted;
use super::judge::no;
use super::{Limits, Policy};
use crate::wire::Refusal;

/// Stands for every capability.
const ALL: &str = "ALL";
/// Stands for every label.
const ANY: &str = "*";

/// A shipped profile, resolved. (berth-policies' own tests resolve each of them.)
fn shipped(name: &str) -> Option<Profile> {
    berth_policies::resolve(name, &Default::default()).ok()
}

/// `strict`, and every capability of a shipped profile that is not loud. They are the program's own: resolved once.
fn shipped_ones() -> &'static (Option<Profile>, BTreeSet<String>) {
    static ONES: OnceLock<(Option<Profile>, BTreeSet<String>)> = OnceLock::new();
    ONES.get_or_init(|| {
        let quiet = shipped_names().filter_map(shipped).filter(|p| !p.loud);
        let usual = quiet
            .flat_map(|p| p.capabilities.into_iter().map(str::to_owned))
            .collect();
        (shipped(berth_policies::DEFAULT), usual)
    })
}

/// Refuses names that no capability has.
pub(super) fn known_capabilities(limits: &Limits) -> Result<(), String> {
    let all = shipped("privileged").map(|p| p.capabilities).unwrap_or_default();
    for (n, name) in limits.capabilities.iter().flatten().enumerate() {
        if name != ALL && !all.contains(name.as_str()) {
            return Err(format!("limits.capabilities[{n}]: {name:?} is no capability"));
        }
    }
    Ok(())
}

pub(super) fn judge(policy: &Policy, profile: &Profile) -> Result<(), Refusal> {
    let name = &profile.name;
    if let Some(allowed) = &policy.profiles
        && !allowed.contains(name)
    {
        return Err(no(format!("profile {name} may not be asked for"), "profiles"));
    }
    if profile.loud {
        return match policy.privileged {
            true => Ok(()),
            false => Err(no(format!("profile {name} is a privileged one"), "privileged")),
        };
    }
    if shipped_names().any(|shipped| shipped == name) {
        return Ok(());
    }
    own(policy, profile)
}

/// One of the node's own.
fn own(policy: &Policy, profile: &Profile) -> Result<(), Refusal> {
    let (name, limits) = (&profile.name, &policy.limits);
    let (strict, usual) = shipped_ones();
    let allowed = limits
        .capabilities
        .as_ref()
        .map_or_else(|| usual.clone(), |list| list.iter().cloned().collect());
    let every = allowed.contains(ALL);
    let sets = &profile.sets;
    let written = [
        &sets.bounding,
        &sets.permitted,
        &sets.effective,
        &sets.inheritable,
    ];
    if let Some(more) = profile
        .capabilities
        .iter()
        .chain(&profile.ambient)
        .chain(written.into_iter().flatten().flatten())
        .find(|c| !every && !allowed.contains(**c))
    {
        return Err(no(format!("profile {name} gives {more}"), "limits.capabilities"));
    }
    if !profile.no_new_privileges && !limits.new_privileges {
        return Err(no(
            format!("profile {name} keeps no_new_privs off"),
            "limits.newPrivileges",
        ));
    }
    let filtered = match &profile.seccomp {
        Seccomp::Unconfined => false,
        Seccomp::Filter(filter) => denies(filter.default_action),
    };
    if !filtered && !limits.unfiltered {
        let text = format!("profile {name} has no system call filter that denies what it does not name");
        return Err(no(text, "limits.unfiltered"));
    }
    let labels = [
        &profile.selinux_label,
        &profile.mount_label,
        &profile.apparmor_profile,
    ];
    if let Some(label) = labels
        .into_iter()
        .flatten()
        .find(|label| !limits.labels.iter().any(|l| l == ANY || l == *label))
    {
        return Err(no(
            format!("profile {name} names the label {label}"),
            "limits.labels",
        ));
    }
    let Some(strict) = strict else {
        return Err(no("the shipped profile `strict` cannot be read", "profiles"));
    };
    if !limits.looser_than_strict {
        looser(profile, strict)?;
    }
    for rule in profile
        .devices
        .iter()
        .filter(|rule| !strict.devices.contains(rule))
    {
        let rule = rule
            .to_oci()
            .map_err(|e| no(format!("profile {name}: {e}"), "devices"))?;
        let number = |n: Option<i64>| n.and_then(|n| u32::try_from(n).ok());
        let access = rule.access().clone().unwrap_or_else(|| "rwm".into());
        let kinds: &[bool] = match rule.typ() {
            Some(LinuxDeviceType::B) => &[true],
            Some(LinuxDeviceType::C) => &[false],
            _ => &[true, false],
        };
        for block in kinds {
            policy.numbers(&Wanted {
                block: *block,
                major: number(rule.major()),
                minor: number(rule.minor()),
                access: &access,
            })?;
            // A disk by number may be the host's own, now or after the next plug.
            if *block && !policy.devices.host_disks {
                return Err(no(
                    format!("profile {name} gives disks by their number"),
                    "devices.hostDisks",
                ));
            }
        }
    }
    Ok(())
}

fn denies(action: LinuxSeccompAction) -> bool {
    matches!(
        action,
        LinuxSeccompAction::ScmpActErrno
            | LinuxSeccompAction::ScmpActKill
            | LinuxSeccompAction::ScmpActKillProcess
            | LinuxSeccompAction::ScmpActKillThread
            | LinuxSeccompAction::ScmpActTrap
    )
}

fn looser(profile: &Profile, strict: &Profile) -> Result<(), Refusal> {
    let words = |list: &[String]| list.iter().cloned().collect::<BTreeSet<String>>();
    let own = [
        ("namespace", &profile.namespaces, &strict.namespaces),
        ("mount flag", &profile.mount_flags, &strict.mount_flags),
        (
            "masked path",
            &words(&profile.masked_paths),
            &words(&strict.masked_paths),
        ),
    ];
    // What is masked need not be read-only besides.
    let closed: BTreeSet<String> = profile
        .readonly_paths
        .iter()
        .chain(&profile.masked_paths)
        .cloned()
        .collect();
    let wanted = words(&strict.readonly_paths);
    for (what, has, must) in own.into_iter().chain([("read-only path", &closed, &wanted)]) {
        if let Some(missing) = must.difference(has).next() {
            let text = format!(
                "profile {} leaves the {what} {missing} of `strict` out",
                profile.name
            );
            return Err(no(text, "limits.looserThanStrict"));
        }
    }
    Ok(())
}
