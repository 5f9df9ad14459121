//! `berth launcher`: checks requests and forks monitors. No thread is started before or in it.

use std::path::Path;
use std::time::Duration;

use berth_documents::Size;
use berth_launcher::client::MONITORS;
use berth_launcher::launcher::{LauncherConfig, main as serve};
use berth_launcher::policy::{Policy, PolicyFile};
use berth_rt::cgroup::{Cgroup, Hierarchy};
use clap::Args;

use crate::daemon::settings::Folders;

use super::table::with_hint;
use super::{DONE, Outcome};

#[derive(Debug, Args)]
pub(super) struct LauncherArgs {
    /// Parent of the containers' cgroups
    #[arg(long, value_name = "PATH", default_value = "berth")]
    cgroup_parent: String,
    /// Milliseconds between two running proofs
    #[arg(long, value_name = "MS", default_value_t = 2000, value_parser = clap::value_parser!(u64).range(100..=3_600_000))]
    proof_interval: u64,
    /// Where audit records go besides the audit log: none, journald or syslog
    #[arg(long, value_name = "WHERE", default_value = "none", value_parser = ["none", "journald", "syslog"])]
    audit_to: String,
    /// Most bytes of the launcher's audit log
    #[arg(long, value_name = "SIZE", default_value = "16Mi")]
    audit_max: Size,
    /// Print the policy in force and end
    #[arg(long)]
    show_policy: bool,
    /// First host id of the ranges that containers with a user namespace of their own get (a multiple of 65536)
    #[arg(long, value_name = "ID", default_value_t = berth_launcher::ranges::BASE)]
    id_base: u32,
    /// Take a session of its own (the agent starts its launcher so)
    #[arg(long, hide = true)]
    own_session: bool,
}

pub(super) fn main(folders: Folders, args: LauncherArgs) -> Outcome {
    if args.show_policy {
        let mut file = PolicyFile::new(&folders.config, parse_policy);
        let policy = file.read().map_err(|error| with_hint(&error, error.hint()))?;
        println!("{}", serde_json::to_string_pretty(&*policy)?);
        return Ok(DONE);
    }
    if args.own_session {
        // A signal to the agent's terminal or process group is not meant for it.
        // It starts itself anew while it makes itself hard: then it leads its session already.
        let own = nix::unistd::getpid();
        if nix::unistd::getsid(None)? != own {
            nix::unistd::setsid()?;
        }
    }
    let parent = args.cgroup_parent.clone();
    let monitors = folders.run.join(MONITORS);
    serve(LauncherConfig {
        run_dir: folders.run,
        state_dir: folders.state,
        config_dir: folders.config,
        preloaded_dir: folders.preloaded,
        cgroup_parent: args.cgroup_parent,
        proof_interval: Duration::from_millis(args.proof_interval),
        parse_policy,
        audit_to: args.audit_to,
        audit_bytes: args.audit_max.bytes(),
        id_base: args.id_base,
    })
    .map_err(|error| with_hint(&error, error.hint()))?;
    remove_parent(&monitors, &parent);
    Ok(DONE)
}

/// The launcher's policy as YAML; every fault with its place.
fn parse_policy(file: &Path, text: &str) -> Result<Policy, String> {
    berth_documents::read_single(file, text).map_err(|faults| {
        let lines: Vec<String> = faults.iter().map(ToString::to_string).collect();
        lines.join("\n")
    })
}

/// Told to end, with no container left: the cgroup they all were in goes too (the agent may not do it: it has no
/// capability). One that others use stays.
fn remove_parent(monitors: &Path, parent: &str) {
    let kept = |entry: std::fs::DirEntry| entry.path().extension().is_some_and(|e| e == "sock");
    if std::fs::read_dir(monitors).is_ok_and(|entries| entries.flatten().any(kept)) {
        return;
    }
    let Ok(hierarchy) = Hierarchy::discover(Path::new("/")) else {
        return;
    };
    if let Ok(cgroup) = Cgroup::open(&hierarchy, parent)
        && let Err(error) = cgroup.remove()
    {
        eprintln!("berth launcher: {error}");
    }
}
