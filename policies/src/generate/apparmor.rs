//! The AppArmor profile of one workload (apparmor.d(5)).
//!
//! Everything inside can be read and executed, as from a read-only image; what may be written is named. No rule of
//! mount, umount, pivot_root, ptrace or change_profile stands in it, so each of them is denied.

use std::fmt::Write as _;

use super::{Wanted, names, short};

pub(super) fn profile(wanted: &Wanted<'_>) -> String {
    let (name, _) = names(wanted.workload);
    let profile = wanted.profile;
    let mut text = format!(
        "# Workload {}, profile {}. Load it with `apparmor_parser -r` and name it in a SecurityProfile:\n\
         #   apparmorProfile: {name}\n\
         abi <abi/3.0>,\n\n\
         profile {name} flags=(attach_disconnected,mediate_deleted) {{\n  \
         signal peer={name},\n  signal (receive) peer=unconfined,\n  \
         unix peer=(label={name}),\n  unix (create,getattr,setattr,getopt,setopt,bind,listen,shutdown),\n  \
         network inet stream,\n  network inet dgram,\n  network inet6 stream,\n  network inet6 dgram,\n  \
         network netlink raw,\n",
        wanted.workload, profile.name
    );
    let mut line = |words: &str| {
        let _ = writeln!(text, "  {words},");
    };
    for capability in &profile.capabilities {
        line(&format!("capability {}", short(capability)));
    }
    if profile.capabilities.contains("CAP_NET_RAW") {
        for family in ["inet", "inet6", "packet"] {
            line(&format!("network {family} raw"));
        }
        line("network packet dgram");
    }
    line("/ r");
    line("/** rmix");
    let writable = if profile.readonly_root {
        // Its own file systems: devices, shared memory, queues; and the files of its own processes.
        vec!["/dev/**".to_owned(), "/proc/[0-9]*/**".to_owned()]
    } else {
        vec!["/**".to_owned()]
    };
    for path in writable {
        line(&format!("{path} wkl"));
    }
    for mount in wanted.mounts.iter().filter(|m| !m.read_only) {
        let path = quoted(&mount.destination);
        line(&format!("\"{path}\" wk"));
        line(&format!("\"{path}/**\" wkl"));
    }
    // What is the node's, whatever the lines above say.
    for denied in [
        "/proc/sys/** wkl",
        "/proc/sysrq-trigger rwkl",
        "/proc/kcore rwkl",
        "/proc/{fs,irq,bus,scsi,acpi}/** wkl",
        "/sys/** wkl",
        "/sys/kernel/security/** rwkl",
        "/sys/firmware/** rwkl",
    ] {
        line(&format!("deny {denied}"));
    }
    text.push_str("}\n");
    text
}

/// A path in quotes: what AppArmor's own patterns are made of stands for itself.
fn quoted(path: &str) -> String {
    let mut out = String::with_capacity(path.len());
    for c in path.chars() {
        if matches!(c, '"' | '\\' | '[' | ']' | '{' | '}' | '?' | '^' | '@' | '*') {
            out.push('\\');
        }
        out.push(c);
    }
    out
}
