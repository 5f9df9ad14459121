//! `berth ps`: every container.

use clap::Args;

use crate::api::{Container, Op};
use crate::core::report::exit_words;
use crate::daemon::settings::Folders;

use super::client::ask;
use super::table::{NONE, ago, or_none};
use super::{DONE, Format, Outcome, OutputArgs, table};

#[derive(Debug, Args)]
pub(super) struct PsArgs {
    #[command(flatten)]
    output: OutputArgs,
}

pub(super) fn main(folders: &Folders, args: &PsArgs) -> Outcome {
    let containers: Vec<Container> = ask(folders, Op::Ps)?;
    if args.output.output == Format::Json {
        table::json(&containers)?;
    } else {
        print(&containers)?;
    }
    Ok(DONE)
}

/// The table of `ps`, and of the orders that answer with containers.
pub(super) fn print(containers: &[Container]) -> std::io::Result<()> {
    let rows: Vec<Vec<String>> = containers
        .iter()
        .map(|c| {
            let note = match (&c.reason, c.drift.is_empty(), &c.exit) {
                (Some(reason), ..) => reason.clone(),
                (None, false, _) => format!("drift: {}", c.drift.join("; ")),
                (None, true, _) if !c.lacks.is_empty() => format!("lacks {}", c.lacks.join(", ")),
                (None, true, Some(exit)) if c.phase != "running" => exit_words(exit),
                _ => String::new(),
            };
            let note = match (c.starved.is_empty(), note.is_empty()) {
                (true, _) => note,
                (false, true) => format!("starves: {}", c.starved.join("; ")),
                (false, false) => format!("{note}; starves: {}", c.starved.join("; ")),
            };
            let note = match (c.loud, note.is_empty()) {
                (false, _) => note,
                (true, true) => format!("LOUD: {}", c.profile),
                (true, false) => format!("LOUD: {}; {note}", c.profile),
            };
            vec![
                c.name.clone(),
                c.phase.clone(),
                or_none(&c.pid),
                or_none(&c.cpus),
                c.scheduler.clone(),
                or_none(&c.isolation),
                or_none(&c.device),
                c.restarts.to_string(),
                c.started_at.map_or_else(|| NONE.to_owned(), ago),
                note,
            ]
        })
        .collect();
    let head = [
        "NAME",
        "PHASE",
        "PID",
        "CPUS",
        "SCHEDULER",
        "ISOLATION",
        "DEVICE",
        "RESTARTS",
        "AGE",
        "NOTE",
    ];
    table::print(&head, &rows)
}
