//! The module of one workload for berth's policy (policies/selinux), in CIL.

use std::fmt::Write as _;

use super::{GenerateError, Wanted, names, short};

/// Capabilities that container.cil gives every domain of a container.
const EVERYBODYS: [&str; 12] = [
    "chown",
    "dac_override",
    "fowner",
    "fsetid",
    "kill",
    "setgid",
    "setuid",
    "setpcap",
    "net_bind_service",
    "sys_chroot",
    "sys_nice",
    "ipc_lock",
];
/// Capabilities of the class `capability2`.
const SECOND: [&str; 9] = [
    "mac_override",
    "mac_admin",
    "syslog",
    "wake_alarm",
    "block_suspend",
    "audit_read",
    "perfmon",
    "bpf",
    "checkpoint_restore",
];
/// The type of volumes that containers may write.
const SHARED: &str = "berth_shared_file_t";
const SOCKET: &str = "create ioctl read write getattr setattr lock bind connect getopt setopt shutdown";

/// What a capability is of no use without: (capability, class, permissions).
const SOCKETS: [(&str, &str, &str); 4] = [
    ("net_raw", "rawip_socket", " node_bind"),
    ("net_raw", "packet_socket", " map"),
    ("net_admin", "netlink_route_socket", " nlmsg_read nlmsg_write"),
    ("audit_write", "netlink_audit_socket", " nlmsg_relay"),
];

pub(super) fn module(wanted: &Wanted<'_>) -> Result<String, GenerateError> {
    let (_, domain) = names(wanted.workload);
    let mut text = format!(
        ";; Workload {}, profile {}: what container.cil gives every container, and what follows.\n\
         ;; Build it into the policy (make EXTRA=THIS.cil) and name it in a SecurityProfile:\n\
         ;;   selinuxLabel: system_u:system_r:{domain}\n\
         (type {domain})\n(roletype system_r {domain})\n(typeattributeset domain ({domain}))\n\
         (typeattributeset berth_container ({domain}))\n",
        wanted.workload, wanted.profile.name
    );
    let mut capabilities = |class: &str, list: &[String]| {
        if !list.is_empty() {
            let _ = writeln!(
                text,
                ";; capabilities of the profile\n(allow {domain} self ({class} ({})))",
                list.join(" ")
            );
        }
    };
    let more: Vec<String> = wanted
        .profile
        .capabilities
        .iter()
        .map(|name| short(name))
        .filter(|name| !EVERYBODYS.contains(&name.as_str()))
        .collect();
    let (second, first): (Vec<String>, Vec<String>) = more
        .iter()
        .cloned()
        .partition(|name| SECOND.contains(&name.as_str()));
    // In a user namespace of its own a capability is asked for in another class.
    let classes = if wanted.profile.own_users {
        ["cap_userns", "cap2_userns"]
    } else {
        ["capability", "capability2"]
    };
    capabilities(classes[0], &first);
    capabilities(classes[1], &second);
    for (capability, class, permissions) in SOCKETS {
        if more.iter().any(|name| name == capability) {
            let _ = writeln!(
                text,
                ";; CAP_{}\n(allow {domain} self ({class} ({SOCKET}{permissions})))",
                capability.to_uppercase()
            );
        }
    }
    for mount in wanted.mounts {
        let destination = &mount.destination;
        let label = mount
            .label
            .as_deref()
            .ok_or_else(|| GenerateError::Unlabelled(destination.clone()))?;
        if label == SHARED {
            continue;
        }
        if !mount.read_only {
            return Err(GenerateError::NotShared {
                destination: destination.clone(),
                label: label.to_owned(),
            });
        }
        let _ = writeln!(
            text,
            ";; the mount at {destination}\n(allow {domain} {label} look_dir)\n(allow {domain} {label} look_file)\n\
             (allow {domain} {label} look_link)"
        );
    }
    Ok(text)
}
