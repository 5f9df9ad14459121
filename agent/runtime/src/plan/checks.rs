//! The refusals that depend on the configuration alone.

use std::path::{Path, PathBuf};

use oci_spec::runtime::{Linux, LinuxNamespaceType, LinuxSeccomp, LinuxSeccompAction, Spec};

use super::PlanError;
use crate::recipe::{Recipe, Root};

/// A container id is a folder name, and no hidden one: nobody could open it afterwards.
pub(crate) fn id(id: &str) -> Result<(), PlanError> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "_+-.".contains(c);
    if id.is_empty() || id.len() > 255 || id.starts_with('.') || !id.chars().all(allowed) {
        return Err(PlanError::Id(id.to_owned()));
    }
    Ok(())
}

/// No parts that lead elsewhere.
pub(super) fn cgroup_path(path: &str) -> Result<(), PlanError> {
    if path.split('/').any(|p| p == ".." || p == ".") || path.contains(['\0', '\n']) {
        return Err(PlanError::refused(
            "linux.cgroupsPath",
            format!("`{path}` is not a plain path"),
        ));
    }
    if path.contains(':') {
        return Err(PlanError::refused_hint(
            "linux.cgroupsPath",
            format!("`{path}` is a systemd slice"),
            "use the cgroupfs driver (no --systemd-cgroup)",
        ));
    }
    Ok(())
}

/// What the typed configuration can say and this runtime does not do: the same refusals as from the raw text.
pub(super) fn unsupported(spec: &Spec) -> Result<(), PlanError> {
    let refuse = |field: &str| match crate::fields::field(field) {
        Some(crate::fields::Field::Refused(reason)) => Err(PlanError::refused(field, reason)),
        _ => Err(PlanError::refused(field, "it is not supported")),
    };
    if spec.solaris().is_some() {
        return refuse("solaris");
    }
    if spec.windows().is_some() {
        return refuse("windows");
    }
    if spec.vm().is_some() {
        return refuse("vm");
    }
    if spec.zos().is_some() {
        return refuse("zos");
    }
    let version = spec.version();
    if !version.starts_with("1.") {
        return Err(PlanError::refused(
            "ociVersion",
            format!("`{version}` is not a version 1 of the specification"),
        ));
    }
    if let Some(process) = spec.process() {
        if process.command_line().is_some() {
            return refuse("process.commandLine");
        }
        if process.user().username().is_some() {
            return refuse("process.user.username");
        }
    }
    let Some(linux) = spec.linux() else { return Ok(()) };
    if linux.intel_rdt().is_some() {
        return refuse("linux.intelRdt");
    }
    if let Some(seccomp) = linux.seccomp() {
        notify(spec, seccomp)?;
    }
    if linux
        .personality()
        .as_ref()
        .is_some_and(|p| p.flags().as_ref().is_some_and(|f| !f.is_empty()))
    {
        return refuse("linux.personality.flags");
    }
    namespaces(linux)
}

/// What is needed between the filter and exec cannot wait for who answers notifications.
fn notify(spec: &Spec, seccomp: &LinuxSeccomp) -> Result<(), PlanError> {
    let notify = LinuxSeccompAction::ScmpActNotify;
    let field = "linux.seccomp";
    if seccomp.default_action() == notify {
        return Err(PlanError::refused(
            field,
            "SCMP_ACT_NOTIFY cannot be the default action",
        ));
    }
    let rules = seccomp.syscalls().iter().flatten();
    let mut notified = rules.filter(|s| s.action() == notify).flat_map(|s| s.names());
    if let Some(name) = notified.find(|n| matches!(n.as_str(), "read" | "write" | "execve" | "exit_group")) {
        let why = format!("SCMP_ACT_NOTIFY for {name}: the runtime itself needs it before the program runs");
        return Err(PlanError::refused(field, why));
    }
    let inside = spec.hooks().as_ref().and_then(|h| h.start_container().as_ref());
    if inside.is_some_and(|h| !h.is_empty()) && seccomp.listener_path().is_some() {
        return Err(PlanError::refused_hint(
            "linux.seccomp.listenerPath",
            "startContainer hooks run before the filter, when nobody is left to pass its listener on",
            "use createContainer hooks",
        ));
    }
    Ok(())
}

fn namespaces(linux: &Linux) -> Result<(), PlanError> {
    let all = linux.namespaces().as_deref().unwrap_or_default();
    for (i, ns) in all.iter().enumerate() {
        let (kind, path) = (ns.typ(), ns.path());
        if all[..i].iter().any(|other| other.typ() == kind) {
            return Err(PlanError::refused(
                "linux.namespaces",
                format!("type {kind} is there twice"),
            ));
        }
        let why = match (kind, path) {
            (_, Some(path)) if !path.is_absolute() => "the path of a namespace must be absolute",
            _ => continue,
        };
        return Err(PlanError::refused(
            "linux.namespaces",
            format!("type {kind}: {why}"),
        ));
    }
    Ok(())
}

/// What cannot be done in a mount namespace that is there already.
pub(super) fn mount_namespace(path: &Path, recipe: &Recipe) -> Result<(), PlanError> {
    use std::os::unix::fs::MetadataExt;
    let bounding = recipe.process.capabilities.bounding;
    let inode = |path: &Path| std::fs::metadata(path).map(|m| m.ino()).ok();
    let own = inode(Path::new("/proc/self/ns/mnt"));
    let why = match &recipe.root {
        _ if own.is_none() || inode(path) == own => "it is the runtime's own, or cannot be told from it",
        _ if recipe.users.is_some() => "a user namespace has no rights in it",
        Root::Overlay { .. } => "layers are found by their paths, which mean something else there",
        _ if recipe.mounts.iter().any(|m| m.fs == "cgroup") => {
            "a mount of type cgroup needs the node's paths"
        }
        _ => match crate::over::refused(bounding, false) {
            Some(why) => why,
            None => return Ok(()),
        },
    };
    let why = format!("type mount, joined by its path: {why}");
    Err(PlanError::refused_hint(
        "linux.namespaces",
        why,
        "give the container a mount namespace of its own",
    ))
}

/// Does the container have such a namespace, new or joined?
pub(super) fn has_own(linux: Option<&Linux>, kind: LinuxNamespaceType) -> bool {
    linux
        .and_then(|l| l.namespaces().as_ref())
        .into_iter()
        .flatten()
        .any(|n| n.typ() == kind)
}

/// The path of a namespace that is joined.
pub(super) fn joined(linux: Option<&Linux>, kind: LinuxNamespaceType) -> Option<PathBuf> {
    let all = linux.and_then(|l| l.namespaces().as_ref()).into_iter().flatten();
    all.filter(|n| n.typ() == kind).find_map(|n| n.path().clone())
}

/// Which namespace isolates a sysctl; `None`: none does.
pub(super) fn sysctl_namespace(key: &str) -> Option<LinuxNamespaceType> {
    const IPC: [&str; 8] = [
        "kernel.msgmax",
        "kernel.msgmnb",
        "kernel.msgmni",
        "kernel.sem",
        "kernel.shmall",
        "kernel.shmmax",
        "kernel.shmmni",
        "kernel.shm_rmid_forced",
    ];
    if IPC.contains(&key) || key.starts_with("fs.mqueue.") {
        Some(LinuxNamespaceType::Ipc)
    } else if key.starts_with("net.") {
        Some(LinuxNamespaceType::Network)
    } else if key == "kernel.domainname" {
        Some(LinuxNamespaceType::Uts)
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids() {
        for good in ["a", "A.b_c+d-9", "a..."] {
            assert!(id(good).is_ok(), "{good}");
        }
        for bad in ["", ".", "..", ".a", "a/b", "a b", "ü", &"x".repeat(256)] {
            assert!(id(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn cgroup_paths() {
        assert!(cgroup_path("/berth/x").is_ok());
        for bad in ["/a/../b", "./a", "system.slice:cri:x", "a\nb"] {
            assert!(cgroup_path(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn whose_sysctl() {
        assert_eq!(
            sysctl_namespace("net.ipv4.ip_forward"),
            Some(LinuxNamespaceType::Network)
        );
        assert_eq!(sysctl_namespace("kernel.sem"), Some(LinuxNamespaceType::Ipc));
        assert_eq!(
            sysctl_namespace("fs.mqueue.msg_max"),
            Some(LinuxNamespaceType::Ipc)
        );
        for not in [
            "kernel.hostname",
            "kernel.core_pattern",
            "vm.swappiness",
            "fs.file-max",
            "network",
        ] {
            assert_eq!(sysctl_namespace(not), None, "{not}");
        }
    }
}
