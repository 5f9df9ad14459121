//! The system calls of a profile: checks, and changes of a base profile's list.

use oci_spec::runtime::{LinuxSeccomp, LinuxSeccompAction, LinuxSyscall, LinuxSyscallBuilder};
use serde_json::Value;

use crate::error::Problem;
use crate::names::{is_syscall, nearest, nearest_syscall};
use crate::profile::Seccomp;
use crate::spec::{SeccompEdit, SeccompSpec, both, problem, unknown, words};

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
        SeccompSpec::Section(section) => {
            for (entry, call) in section.syscalls().iter().flatten().enumerate() {
                for (index, name) in call.names().iter().enumerate().filter(|(_, n)| !is_syscall(n)) {
                    let path = format!("spec.seccomp.syscalls[{entry}].names[{index}]");
                    found.push(unknown(&path, "system call", name, nearest_syscall(name)));
                }
            }
        }
    }
}

/// Every key of an OCI seccomp object must be one the specification has. `Err`: the first that is not.
pub(crate) fn known_keys(section: &Value) -> Result<(), String> {
    const TOP: [&str; 7] = [
        "defaultAction",
        "defaultErrnoRet",
        "architectures",
        "flags",
        "listenerPath",
        "listenerMetadata",
        "syscalls",
    ];
    const ENTRY: [&str; 4] = ["names", "action", "errnoRet", "args"];
    const ARGUMENT: [&str; 4] = ["index", "value", "valueTwo", "op"];
    let check = |object: &Value, known: &[&str], what: &str| {
        let mut keys = object.as_object().into_iter().flat_map(|o| o.keys());
        match keys.find(|key| !known.contains(&key.as_str())) {
            None => Ok(()),
            Some(key) => {
                let near = nearest(key, known.iter().copied());
                let near = near.map(|n| format!(", did you mean `{n}`?")).unwrap_or_default();
                Err(format!("unknown field `{key}` in {what}{near}"))
            }
        }
    };
    let list = |object: &Value, key: &str| {
        object
            .get(key)
            .and_then(Value::as_array)
            .cloned()
            .unwrap_or_default()
    };
    check(section, &TOP, "seccomp")?;
    for entry in list(section, "syscalls") {
        check(&entry, &ENTRY, "seccomp.syscalls[]")?;
        for argument in list(&entry, "args") {
            check(&argument, &ARGUMENT, "seccomp.syscalls[].args[]")?;
        }
    }
    Ok(())
}

/// The base's filter with the change made. `Err`: the base has none to change.
pub(crate) fn edit(base: &Seccomp, edit: &SeccompEdit) -> Result<Seccomp, Problem> {
    if edit.unconfined {
        return Ok(Seccomp::Unconfined);
    }
    if edit.allow.is_empty() && edit.deny.is_empty() {
        return Ok(base.clone());
    }
    let Seccomp::Section(section) = base else {
        let message = "the base profile has no system call filter to change".to_owned();
        return Err(problem(
            "spec.seccomp",
            message,
            Some("extend another profile, or write a whole filter".into()),
        ));
    };
    let mut section: LinuxSeccomp = (**section).clone();
    let named = |name: &String| edit.allow.contains(name) || edit.deny.contains(name);
    let mut entries: Vec<LinuxSyscall> = Vec::new();
    for call in section.syscalls().iter().flatten() {
        let mut call = call.clone();
        let names: Vec<String> = call.names().iter().filter(|n| !named(n)).cloned().collect();
        if !names.is_empty() {
            call.set_names(names);
            entries.push(call);
        }
    }
    let lists = [
        (&edit.allow, LinuxSeccompAction::ScmpActAllow, None),
        (&edit.deny, LinuxSeccompAction::ScmpActErrno, Some(EPERM)),
    ];
    for (names, action, errno) in lists.into_iter().filter(|(names, ..)| !names.is_empty()) {
        let built = LinuxSyscallBuilder::default()
            .names(names.clone())
            .action(action)
            .build();
        let mut entry = built.map_err(|e| problem("spec.seccomp", e.to_string(), None))?;
        entry.set_errno_ret(errno);
        entries.push(entry);
    }
    section.set_syscalls(Some(entries));
    Ok(Seccomp::Section(Box::new(section)))
}
