//! The system calls of a profile: checks, and changes of a base profile's list.

use oci_spec::runtime::LinuxSeccompAction;

use crate::error::Problem;
use crate::filter::{Condition, Entry};
use crate::names::{is_syscall, nearest_syscall};
use crate::profile::Seccomp;
use crate::spec::{SeccompEdit, SeccompSpec, both, problem, words};

const EPERM: u32 = 1;

pub(crate) fn validate(spec: &SeccompSpec, found: &mut Vec<Problem>) {
    match spec {
        SeccompSpec::Edit(edit) => {
            for (field, list) in [("allow", &edit.allow), ("deny", &edit.deny)] {
                let path = format!("spec.seccomp.{field}");
                words(
                    found,
                    &path,
                    Some(list),
                    "system call",
                    is_syscall,
                    nearest_syscall,
                );
            }
            both(
                found,
                "spec.seccomp",
                ("allow", &edit.allow),
                ("deny", &edit.deny),
            );
            if edit.unconfined && !(edit.allow.is_empty() && edit.deny.is_empty()) {
                let message = "`unconfined` leaves nothing to allow or deny".to_owned();
                found.push(problem(
                    "spec.seccomp.unconfined",
                    message,
                    Some("remove it, or the lists".into()),
                ));
            }
        }
        SeccompSpec::Filter(filter) => filter.validate("spec.seccomp", found),
        SeccompSpec::File(_) => {}
    }
}

/// The base's filter with the change made. `Err`: the base has none to change.
pub(crate) fn edit(base: &Seccomp, edit: &SeccompEdit) -> Result<Seccomp, Problem> {
    if edit.unconfined {
        return Ok(Seccomp::Unconfined);
    }
    if edit.allow.is_empty() && edit.deny.is_empty() {
        return Ok(base.clone());
    }
    let Seccomp::Filter(filter) = base else {
        let message = "the base profile has no system call filter to change".to_owned();
        return Err(problem(
            "spec.seccomp",
            message,
            Some("extend another profile, or write a whole filter".into()),
        ));
    };
    let mut filter = (**filter).clone();
    let named = |name: &String| edit.allow.contains(name) || edit.deny.contains(name);
    for entry in &mut filter.syscalls {
        entry.name = entry.name.take().filter(|n| !named(n));
        entry.names.retain(|n| !named(n));
    }
    filter.syscalls.retain(|e| e.all_names().next().is_some());
    let lists = [
        (&edit.allow, LinuxSeccompAction::ScmpActAllow, None),
        (&edit.deny, LinuxSeccompAction::ScmpActErrno, Some(EPERM)),
    ];
    for (names, action, errno_ret) in lists.into_iter().filter(|(names, ..)| !names.is_empty()) {
        filter.syscalls.push(Entry {
            name: None,
            names: names.clone(),
            action,
            errno_ret,
            errno: None,
            args: Vec::new(),
            comment: None,
            includes: Condition::default(),
            excludes: Condition::default(),
        });
    }
    Ok(Seccomp::Filter(Box::new(filter)))
}
