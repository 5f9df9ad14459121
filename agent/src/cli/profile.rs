//! `berth profile show`: a security profile with all it extends, resolved.

use std::collections::BTreeMap;

use berth_policies::{Profile, ProfileSpec, Seccomp, resolve, shipped_names};
use clap::{Args, Subcommand};
use serde_json::{Value, json};

use crate::api::{Documents, Op};
use crate::daemon::settings::Folders;

use super::client::ask;
use super::table::with_hint;
use super::{DONE, Format, Outcome, OutputArgs, table};

#[derive(Debug, Subcommand)]
pub(super) enum ProfileCommand {
    /// Show a profile resolved; all names where none is given
    Show(ShowArgs),
}

#[derive(Debug, Args)]
pub(super) struct ShowArgs {
    /// Name of a shipped profile or of a SecurityProfile document
    name: Option<String>,
    #[command(flatten)]
    output: OutputArgs,
}

pub(super) fn main(folders: &Folders, command: ProfileCommand) -> Outcome {
    let ProfileCommand::Show(args) = command;
    let custom: BTreeMap<String, ProfileSpec> = ask::<Documents>(folders, Op::Documents)
        .map(|d| {
            d.set
                .profiles
                .into_iter()
                .map(|(name, document)| (name, document.spec))
                .collect()
        })
        .unwrap_or_default();
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
    let shown = view(&profile);
    if args.output.output == Format::Json {
        table::json(&shown)?;
    } else if let Value::Object(fields) = shown {
        for (field, value) in fields {
            println!("{field:<18}{}", text(&value));
        }
    }
    Ok(DONE)
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
    })
}

fn text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => "-".to_owned(),
        Value::Array(all) if all.is_empty() => "-".to_owned(),
        Value::Array(all) => all.iter().map(text).collect::<Vec<_>>().join(", "),
        other => other.to_string(),
    }
}
