//! `berth profile`: a security profile with all it extends, resolved; the commands that record and try one.

use std::collections::BTreeMap;

use berth_policies::{Line, Profile, ProfileSpec, Seccomp, resolve, shipped_names};
use clap::{Args, Subcommand};
use serde_json::{Value, json};

use crate::api::{Documents, Op};
use crate::daemon::settings::Folders;

use super::client::ask;
use super::generate_policy::{self, GenerateArgs};
use super::record::{self, RecordArgs, TryArgs};
use super::table::with_hint;
use super::{DONE, Format, Outcome, OutputArgs, table};

#[derive(Debug, Subcommand)]
pub(super) enum ProfileCommand {
    /// Show a profile resolved; all names where none is given
    Show(ShowArgs),
    /// Watch a run and write the smallest profile for it
    Record(RecordArgs),
    /// Run under a profile and say what it refuses
    Try(TryArgs),
    /// Write the smallest SELinux module or AppArmor profile for a workload's document
    Generate(GenerateArgs),
}

#[derive(Debug, Args)]
pub(super) struct ShowArgs {
    /// Name of a shipped profile or of a SecurityProfile document
    name: Option<String>,
    #[command(flatten)]
    output: OutputArgs,
}

pub(super) fn main(folders: &Folders, command: ProfileCommand) -> Outcome {
    let args = match command {
        ProfileCommand::Show(args) => args,
        ProfileCommand::Record(args) => return record::record(folders, args),
        ProfileCommand::Try(args) => return record::attempt(folders, args),
        ProfileCommand::Generate(args) => return generate_policy::main(&args),
    };
    let custom = own(folders);
    let Some(name) = args.name else {
        let names: Vec<String> = shipped_names()
            .map(str::to_owned)
            .chain(custom.into_keys())
            .collect();
        if args.output.output == Format::Json {
            table::json(&names)?;
        } else {
            names.iter().for_each(|name| println!("{name}"));
        }
        return Ok(DONE);
    };
    let profile = resolve(&name, &custom).map_err(|e| with_hint(&e, e.hint()))?;
    if args.output.output == Format::Json {
        table::json(&view(&profile))?;
    } else {
        println!("{}", profile.chain.join(" extends "));
        for (field, origin, values) in grouped(&profile.lines) {
            println!("{field}  ({origin})");
            values.iter().for_each(|line| println!("  {line}"));
        }
        if let Seccomp::Filter(filter) = &profile.seccomp {
            for (name, near) in filter.passed_over() {
                let near = near.map(|n| format!(" (nearest: {n})")).unwrap_or_default();
                println!(
                    "note: system call `{name}` is known on no architecture here and is passed over{near}"
                );
            }
        }
    }
    Ok(DONE)
}

/// The node's own profiles, where an agent can be asked for them.
pub(super) fn own(folders: &Folders) -> BTreeMap<String, ProfileSpec> {
    let documents = ask::<Documents>(folders, Op::Documents);
    let profiles = documents.map(|d| d.set.profiles).unwrap_or_default();
    profiles
        .into_iter()
        .map(|(name, document)| (name, document.spec))
        .collect()
}

/// Lines of one field and one origin together, their values folded into lines of at most 100 characters.
fn grouped(lines: &[Line]) -> Vec<(&str, &str, Vec<String>)> {
    let mut groups: Vec<(&str, &str, Vec<String>)> = Vec::new();
    for line in lines {
        let at = groups
            .iter()
            .position(|g| (g.0, g.1) == (line.field.as_str(), line.origin.as_str()));
        let at = at.unwrap_or_else(|| {
            groups.push((&line.field, &line.origin, vec![String::new()]));
            groups.len() - 1
        });
        let folded = &mut groups[at].2;
        match folded.last_mut() {
            Some(last) if last.is_empty() => last.push_str(&line.value),
            Some(last) if last.len() + line.value.len() < 98 => {
                last.push_str(", ");
                last.push_str(&line.value);
            }
            _ => folded.push(line.value.clone()),
        }
    }
    groups
}

fn view(profile: &Profile) -> Value {
    let seccomp = match &profile.seccomp {
        Seccomp::Unconfined => json!("unconfined"),
        Seccomp::Filter(filter) => json!(filter),
    };
    let limits: BTreeMap<&String, Value> = profile
        .rlimits
        .iter()
        .map(|(name, limit)| {
            (
                name,
                json!({"soft": limit.soft, "hard": limit.hard, "upTo": limit.up_to}),
            )
        })
        .collect();
    let devices: Vec<Value> = profile
        .devices
        .iter()
        .filter_map(|d| Some(json!(d.to_oci().ok()?)))
        .collect();
    json!({
        "name": profile.name,
        "chain": profile.chain,
        "loud": profile.loud,
        "capabilities": profile.capabilities,
        "ambient": profile.ambient,
        "noNewPrivileges": profile.no_new_privileges,
        "readonlyRoot": profile.readonly_root,
        "userNamespace": if profile.own_users { "own" } else { "host" },
        "idmapMounts": profile.idmap_mounts,
        "namespaces": profile.namespaces,
        "mountFlags": profile.mount_flags,
        "devices": devices,
        "maskedPaths": profile.masked_paths,
        "readonlyPaths": profile.readonly_paths,
        "rlimits": limits,
        "seccomp": seccomp,
        "selinuxLabel": profile.selinux_label,
        "mountLabel": profile.mount_label,
        "apparmorProfile": profile.apparmor_profile,
        "sysctls": profile.sysctls,
        "landlock": profile.landlock,
        "coreScheduling": profile.core_scheduling,
        "dumpable": profile.dumpable,
        "skipWhereMissing": profile.skip,
        "bounding": profile.bounding(),
        "permitted": profile.permitted(),
        "effective": profile.effective(),
        "inheritable": profile.inheritable(),
        "lines": profile.lines,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_one_origin_stand_together() {
        let line = |field: &str, value: &str, origin: &str| Line {
            field: field.into(),
            value: value.into(),
            origin: origin.into(),
        };
        let long = "x".repeat(97);
        let lines = [
            line("capabilities", "CAP_A", "strict"),
            line("capabilities", "CAP_B", "mine"),
            line("capabilities", "CAP_C", "strict"),
            line("capabilities", &long, "strict"),
        ];
        let shown = grouped(&lines);
        assert_eq!(shown.len(), 2);
        assert_eq!(
            shown[0],
            ("capabilities", "strict", vec!["CAP_A, CAP_C".to_owned(), long])
        );
        assert_eq!(shown[1], ("capabilities", "mine", vec!["CAP_B".to_owned()]));
    }
}
