//! `berth inspect`: containers in full.

use clap::Args;

use crate::api::{Details, Op};
use crate::core::report::{exit_words, words};
use crate::daemon::settings::Folders;

use super::client::ask;
use super::table::or_none;
use super::{DONE, Format, Outcome, OutputArgs, table};

#[derive(Debug, Args)]
pub(super) struct InspectArgs {
    /// Workload or container
    name: String,
    #[command(flatten)]
    output: OutputArgs,
}

pub(super) fn main(folders: &Folders, args: &InspectArgs) -> Outcome {
    let all: Vec<Details> = ask(
        folders,
        Op::Inspect {
            name: args.name.clone(),
        },
    )?;
    if args.output.output == Format::Json {
        table::json(&all)?;
        return Ok(DONE);
    }
    for details in &all {
        text(details);
    }
    Ok(DONE)
}

fn text(details: &Details) {
    let c = &details.container;
    let line = |name: &str, value: String| println!("{name:<12}{value}");
    line("name", c.name.clone());
    line("id", c.id.clone());
    line("workload", c.workload.clone());
    line("phase", c.phase.clone());
    line("reason", or_none(&c.reason));
    line("pid", or_none(&c.pid));
    line("rule", or_none(&details.rule));
    line("device", or_none(&details.syspath));
    line(
        "cpus",
        format!("{}{}", or_none(&c.cpus), if c.shared { " (shared)" } else { "" }),
    );
    line("isolation", or_none(&c.isolation));
    line("scheduler", c.scheduler.clone());
    line("restarts", c.restarts.to_string());
    line(
        "last end",
        c.exit.as_ref().map_or_else(|| "-".to_owned(), exit_words),
    );
    line(
        "failure",
        details.failure.as_ref().map_or_else(|| "-".to_owned(), words),
    );
    line(
        "drift",
        if c.drift.is_empty() {
            "-".to_owned()
        } else {
            c.drift.join("; ")
        },
    );
    line("dropped", format!("{} bytes of output", details.dropped_bytes));
    line("log", details.log.clone());
    line("socket", details.socket.clone());
    let steps: Vec<String> = details
        .timing
        .iter()
        .map(|(step, us)| format!("{step} {us} us"))
        .collect();
    line(
        "timing",
        if steps.is_empty() {
            "-".to_owned()
        } else {
            steps.join(", ")
        },
    );
    println!();
}
