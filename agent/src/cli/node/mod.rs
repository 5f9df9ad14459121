//! `berth node …`: what the node is (`show`), whether it is tuned as its document says (`check`), the run-time half (`tune`),
//! the boot half (`cmdline`), and the list of knobs.

mod check;
mod cmdline;
mod show;
mod tune;

use std::path::PathBuf;

use anyhow::bail;
use berth_documents::{Against, Set, check as read};
use berth_rt::machine::Machine;
use berth_rt::node::NodeSpec;
use berth_rt::topology::Topology;
use clap::{Args, Subcommand};

use crate::daemon::settings::Folders;

use super::{DONE, Format, Outcome, OutputArgs, table};

#[derive(Debug, Subcommand)]
pub(super) enum NodeCommand {
    /// Show the node: topology, kernel, power, isolation, interrupts, who holds what
    Show(show::ShowArgs),
    /// Compare the node with its document, knob by knob; 0 only if nothing is amiss
    Check(check::CheckArgs),
    /// Turn what can be turned at run time, or put it back
    Tune(tune::TuneArgs),
    /// Print the kernel arguments that the document means, for a boot loader
    Cmdline(cmdline::CmdlineArgs),
    /// List every knob: where it is, when it can be turned, how to verify it
    Knobs(KnobsArgs),
}

#[derive(Debug, Args)]
pub(super) struct KnobsArgs {
    #[command(flatten)]
    output: OutputArgs,
}

/// Where the node and its document are.
#[derive(Debug, Args)]
struct FromArgs {
    /// A Node document, or a PerformanceProfile of OpenShift, in the place of the configuration folder's
    #[arg(long, value_name = "FILE")]
    from: Vec<PathBuf>,
    /// The folder that has the node's proc and sys: a recorded tree
    #[arg(long, value_name = "DIR", default_value = "/")]
    root: PathBuf,
    /// What stands for the root cpuset of cgroup v1
    #[arg(long, value_name = "DIR", hide = true)]
    cpuset: Option<PathBuf>,
}

/// A node's document.
struct Wanted {
    /// Its name.
    name: String,
    /// What it says.
    spec: NodeSpec,
}

impl FromArgs {
    /// The one Node document; every fault of what was read on standard error otherwise.
    fn wanted(&self, folders: &Folders, topology: Option<&Topology>) -> anyhow::Result<Wanted> {
        let paths = match self.from.as_slice() {
            [] => vec![folders.config.clone()],
            given => given.to_vec(),
        };
        let base = Set::default();
        let against = Against {
            base: &base,
            topology,
        };
        let report = read(&paths, against);
        if !report.faults.is_empty() {
            for fault in &report.faults {
                eprintln!("{fault}");
            }
            bail!("{} faults: nothing was done", report.faults.len());
        }
        let Some(document) = report.set.node() else {
            let places: Vec<String> = paths.iter().map(|path| path.display().to_string()).collect();
            bail!("no Node document in {}: give one with --from", places.join(", "));
        };
        Ok(Wanted {
            name: document.name().to_owned(),
            spec: document.spec.clone(),
        })
    }

    fn machine(&self) -> Machine {
        Machine::new(&self.root)
    }
}

/// The journal of `tune`: it does not outlive a boot, and neither does what it tells of.
fn journal(folders: &Folders) -> PathBuf {
    folders.run.join("node-tune.journal")
}

fn boot_id(machine: &Machine) -> String {
    machine
        .read("/proc/sys/kernel/random/boot_id")
        .unwrap_or_default()
}

pub(super) fn main(folders: &Folders, command: NodeCommand) -> Outcome {
    match command {
        NodeCommand::Show(args) => show::main(folders, &args),
        NodeCommand::Check(args) => check::main(folders, &args),
        NodeCommand::Tune(args) => tune::main(folders, &args),
        NodeCommand::Cmdline(args) => cmdline::main(folders, &args),
        NodeCommand::Knobs(args) => {
            if args.output.output == Format::Json {
                table::json(&berth_rt::knob::TABLE)?;
            } else {
                print!("{}", berth_rt::knob::page());
            }
            Ok(DONE)
        }
    }
}
