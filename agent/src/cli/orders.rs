//! `berth stop`, `start`, `restart`, `kill`, `freeze`, `thaw`.

use clap::Args;

use crate::api::{Container, Op};
use crate::daemon::settings::Folders;

use super::client::ask;
use super::{DONE, Format, Outcome, OutputArgs, no, ps, table};

#[derive(Debug, Args)]
pub(super) struct NamesArgs {
    /// Workloads or containers
    #[arg(required = true)]
    names: Vec<String>,
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Debug, Args)]
pub(super) struct StopArgs {
    /// Workloads or containers
    #[arg(required_unless_present = "all", conflicts_with = "all")]
    names: Vec<String>,
    /// Everything
    #[arg(long)]
    all: bool,
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Debug, Args)]
pub(super) struct KillArgs {
    /// Workload or container
    name: String,
    /// Name or number
    #[arg(default_value = "SIGKILL", value_parser = signal)]
    signal: i32,
    /// The same, as an option
    #[arg(short = 's', long = "signal", value_name = "SIGNAL", conflicts_with = "signal", value_parser = signal)]
    by_option: Option<i32>,
    #[command(flatten)]
    output: OutputArgs,
}

fn signal(text: &str) -> Result<i32, String> {
    if let Ok(number) = text.parse::<i32>() {
        return if (1..=64).contains(&number) {
            Ok(number)
        } else {
            Err("1 to 64".to_owned())
        };
    }
    let upper = text.to_ascii_uppercase();
    let named = |name: &str| berth_documents::Signal::from_name(name).map(|signal| signal.number());
    named(&upper)
        .or_else(|| named(&format!("SIG{upper}")))
        .ok_or_else(|| "a signal such as SIGTERM or 15".to_owned())
}

fn show(containers: &[Container], format: Format) -> anyhow::Result<()> {
    match format {
        Format::Json => table::json(&containers)?,
        Format::Text if containers.is_empty() => {}
        Format::Text => ps::print(containers)?,
    }
    Ok(())
}

fn order(folders: &Folders, op: Op, format: Format) -> anyhow::Result<Vec<Container>> {
    let containers: Vec<Container> = ask(folders, op)?;
    show(&containers, format)?;
    Ok(containers)
}

pub(super) fn stop(folders: &Folders, args: StopArgs) -> Outcome {
    order(
        folders,
        Op::Stop {
            names: args.names,
            all: args.all,
        },
        args.output.output,
    )?;
    Ok(DONE)
}

/// 0 only if all of them run.
fn came_up(containers: &[Container]) -> std::process::ExitCode {
    let up = |c: &Container| matches!(c.phase.as_str(), "running" | "armed" | "completed");
    if containers.iter().all(up) { DONE } else { no() }
}

pub(super) fn start(folders: &Folders, args: NamesArgs) -> Outcome {
    let containers = order(folders, Op::Start { names: args.names }, args.output.output)?;
    Ok(came_up(&containers))
}

pub(super) fn restart(folders: &Folders, args: NamesArgs) -> Outcome {
    let containers = order(folders, Op::Restart { names: args.names }, args.output.output)?;
    Ok(came_up(&containers))
}

pub(super) fn kill(folders: &Folders, args: KillArgs) -> Outcome {
    let signal = args.by_option.unwrap_or(args.signal);
    order(
        folders,
        Op::Kill {
            names: vec![args.name],
            signal,
        },
        args.output.output,
    )?;
    Ok(DONE)
}

pub(super) fn freeze(folders: &Folders, args: NamesArgs) -> Outcome {
    order(folders, Op::Freeze { names: args.names }, args.output.output)?;
    Ok(DONE)
}

pub(super) fn thaw(folders: &Folders, args: NamesArgs) -> Outcome {
    order(folders, Op::Thaw { names: args.names }, args.output.output)?;
    Ok(DONE)
}
