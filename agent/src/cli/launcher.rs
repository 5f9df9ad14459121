//! `berth launcher`: checks requests and forks monitors. No thread is started before or in it.

use std::time::Duration;

use berth_launcher::launcher::{LauncherConfig, main as serve};
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
    /// Take a session of its own (the agent starts its launcher so)
    #[arg(long, hide = true)]
    own_session: bool,
}

pub(super) fn main(folders: Folders, args: LauncherArgs) -> Outcome {
    if args.own_session {
        // A signal to the agent's terminal or process group is not meant for it.
        // It starts itself anew while it makes itself hard: then it leads its session already.
        let own = nix::unistd::getpid();
        if nix::unistd::getsid(None)? != own {
            nix::unistd::setsid()?;
        }
    }
    serve(LauncherConfig {
        run_dir: folders.run,
        state_dir: folders.state,
        config_dir: folders.config,
        cgroup_parent: args.cgroup_parent,
        proof_interval: Duration::from_millis(args.proof_interval),
    })
    .map_err(|error| with_hint(&error, error.hint()))?;
    Ok(DONE)
}
