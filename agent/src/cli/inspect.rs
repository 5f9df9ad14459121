//! `berth inspect`: containers in full.

use clap::Args;
use serde::Serialize;

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
    /// The profile of the launch: microseconds of each step
    #[arg(long)]
    timing: bool,
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
    if args.timing {
        return profile(&all, args.output.output);
    }
    if args.output.output == Format::Json {
        table::json(&all)?;
        return Ok(DONE);
    }
    for details in &all {
        text(details);
    }
    Ok(DONE)
}

/// A launch, step by step.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Profile<'a> {
    name: &'a str,
    id: &'a str,
    steps: Vec<Step<'a>>,
    total_us: u64,
}

#[derive(Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Step<'a> {
    step: &'a str,
    us: u64,
    /// Taken by the new process while its monitor did other steps, or waited in `ready`: not part of the total.
    inside: bool,
}

/// The steps, and the sum of those that follow each other.
fn steps(timing: &[(String, u64)]) -> (Vec<Step<'_>>, u64) {
    let steps: Vec<Step<'_>> = timing
        .iter()
        .map(|(name, us)| {
            let inside = name.strip_prefix("inside: ");
            Step {
                step: inside.unwrap_or(name),
                us: *us,
                inside: inside.is_some(),
            }
        })
        .collect();
    let total = steps.iter().filter(|s| !s.inside).map(|s| s.us).sum();
    (steps, total)
}

fn profile(all: &[Details], format: Format) -> Outcome {
    let profiles: Vec<Profile<'_>> = all
        .iter()
        .map(|details| {
            let (steps, total_us) = steps(&details.timing);
            Profile {
                name: &details.container.name,
                id: &details.container.id,
                steps,
                total_us,
            }
        })
        .collect();
    if format == Format::Json {
        table::json(&profiles)?;
        return Ok(DONE);
    }
    for profile in &profiles {
        println!("{} ({})", profile.name, profile.id);
        if profile.steps.is_empty() {
            println!("  not launched yet");
        }
        for step in &profile.steps {
            let place = if step.inside { "    inside: " } else { "  " };
            println!("{:>9} us{place}{}", step.us, step.step);
        }
        if !profile.steps.is_empty() {
            println!("{:>9} us  request to release", profile.total_us);
        }
        println!();
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
    line(
        "starves",
        if c.starved.is_empty() {
            "-".to_owned()
        } else {
            c.starved.join("; ")
        },
    );
    line("waits by", or_none(&c.wakeups));
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_new_process_did_meanwhile_is_not_counted_twice() {
        let timing = [("clone", 5), ("inside: mounts", 7), ("ready", 9)].map(|(s, us)| (s.to_owned(), us));
        let (steps, total) = steps(&timing);
        assert_eq!(total, 14);
        assert_eq!(
            steps[1],
            Step {
                step: "mounts",
                us: 7,
                inside: true
            }
        );
        assert!(!steps[0].inside && !steps[2].inside);
    }
}
