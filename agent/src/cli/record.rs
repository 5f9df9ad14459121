//! `berth profile record` and `berth profile try`: a program of an image run here, traced, without agent and launcher.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, bail};
use berth_documents::{Set, load};
use berth_launcher::paths::Paths;
use berth_launcher::recording::{Recorder, Settings, Trace};
use berth_launcher::wire::{LaunchRequest, Refusal};
use berth_policies::{ProfileSpec, resolve};
use clap::Args;
use serde_json::json;

use crate::daemon::settings::Folders;

use super::table::with_hint;
use super::{DONE, Outcome, exec, no, profile};

#[derive(Debug, Args)]
struct WhatArgs {
    /// Seconds until it is told to end (SIGTERM, 5 s later SIGKILL); Ctrl-C does the same
    #[arg(long, value_name = "N", default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    seconds: u64,
    /// Environment added
    #[arg(short, long = "env", value_name = "NAME=VALUE", value_parser = exec::variable)]
    env: Vec<(String, String)>,
    /// Documents with profiles that are to be known
    #[arg(short, long, value_name = "PATH")]
    file: Vec<PathBuf>,
    /// Image in the node's store
    image: String,
    /// Program and arguments in the place of the image's own
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
}

#[derive(Debug, Args)]
pub(super) struct RecordArgs {
    /// Name of the new profile
    name: String,
    /// The profile it starts from: nothing beyond it is granted while it is recorded
    #[arg(long, value_name = "PROFILE", default_value = "strict")]
    under: String,
    /// With a Landlock domain of the files that were used
    #[arg(long)]
    files: bool,
    #[command(flatten)]
    what: WhatArgs,
}

#[derive(Debug, Args)]
pub(super) struct TryArgs {
    /// Name of the profile
    profile: String,
    #[command(flatten)]
    what: WhatArgs,
}

fn refused(refusal: &Refusal) -> anyhow::Error {
    with_hint(
        std::io::Error::other(format!("{}: {}", refusal.stage, refusal.message)),
        refusal.hint.clone(),
    )
}

fn known(folders: &Folders, what: &WhatArgs) -> anyhow::Result<BTreeMap<String, ProfileSpec>> {
    let mut custom = profile::own(folders);
    if !what.file.is_empty() {
        let set: Set = load(&what.file).map_err(|report| anyhow::anyhow!("{report:?}"))?;
        custom.extend(
            set.profiles
                .into_iter()
                .map(|(name, document)| (name, document.spec)),
        );
    }
    Ok(custom)
}

fn recorder(
    folders: &Folders,
    what: &WhatArgs,
    custom: BTreeMap<String, ProfileSpec>,
) -> anyhow::Result<Recorder> {
    if !nix::unistd::geteuid().is_root() {
        bail!("recording runs containers by itself: run it as root");
    }
    let online = "/sys/devices/system/cpu/online";
    let cpus = std::fs::read_to_string(online).context(online)?;
    let request: LaunchRequest = serde_json::from_value(json!({
        "op": "launch", "version": 1, "id": format!("record-{}", std::process::id()), "workload": "record",
        "image": what.image, "profile": "strict",
        "process": {"command": what.command, "env": what.env},
        "placement": {"cpus": cpus.trim(), "shared": true},
        "stop": {"signal": 15, "grace_ms": 5000}, "log_max_bytes": 1 << 20,
    }))?;
    let settings = Settings {
        paths: Paths {
            run: folders.run.clone(),
            state: folders.state.clone(),
            config: folders.config.clone(),
        },
        preloaded: folders.preloaded.clone(),
        request,
        limit: Duration::from_secs(what.seconds),
        id_base: berth_launcher::ranges::BASE,
    };
    Recorder::new(settings, custom).map_err(|e| refused(&e))
}

pub(super) fn record(folders: &Folders, args: RecordArgs) -> Outcome {
    let custom = known(folders, &args.what)?;
    let base = resolve(&args.under, &custom).map_err(|e| with_hint(&e, e.hint()))?;
    let mut recorder = recorder(folders, &args.what, custom)?;
    let recording = recorder.record(&base, args.files).map_err(|e| refused(&e))?;
    let trace = &recording.trace;
    eprintln!(
        "berth: {} runs: {} system calls, {} files, {} devices; the last one under the profile itself",
        recording.runs,
        trace.calls.len(),
        trace.files.len(),
        trace.devices.len()
    );
    for line in trace.beyond(&Trace {
        refused: BTreeMap::new(),
        ..trace.clone()
    }) {
        eprintln!("berth: refused in every run: {line}");
    }
    let document = json!({
        "apiVersion": "berth/v1", "kind": "SecurityProfile", "metadata": {"name": args.name}, "spec": recording.spec,
    });
    // JSON is YAML: one form for `berth apply` and for people with jq.
    println!("{}", serde_json::to_string_pretty(&document)?);
    Ok(DONE)
}

pub(super) fn attempt(folders: &Folders, args: TryArgs) -> Outcome {
    let custom = known(folders, &args.what)?;
    let profile = resolve(&args.profile, &custom).map_err(|e| with_hint(&e, e.hint()))?;
    let mut recorder = recorder(folders, &args.what, custom)?;
    let trace = recorder.run(&profile).map_err(|e| refused(&e))?;
    let nothing = Trace {
        refused: BTreeMap::new(),
        ended: berth_runtime::trace::Ended::Code(0),
        ..trace.clone()
    };
    let lines = trace.beyond(&nothing);
    lines.iter().for_each(|line| println!("{line}"));
    Ok(if lines.is_empty() { DONE } else { no() })
}
