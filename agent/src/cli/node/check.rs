//! `berth node check`: wanted beside actual, with how to mend it.

use berth_rt::survey::{Context, Finding, State, survey};
use berth_rt::tune::Journal;
use clap::Args;
use serde::Serialize;

use crate::daemon::settings::Folders;

use super::super::table::{self, NONE};
use super::super::{DONE, Format, Outcome, OutputArgs, no};
use super::{FromArgs, boot_id, journal};

#[derive(Debug, Args)]
pub(in crate::cli) struct CheckArgs {
    #[command(flatten)]
    from: FromArgs,
    /// Tell what is as wanted too
    #[arg(short, long)]
    all: bool,
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Checked<'a> {
    node: &'a str,
    kernel: String,
    /// Whether nothing is amiss.
    ok: bool,
    /// Changes of `tune` that are in force.
    tuned: usize,
    /// Whether a `tune` was interrupted: half of it is in force.
    interrupted: bool,
    findings: &'a [Finding],
}

pub(super) fn main(folders: &Folders, args: &CheckArgs) -> Outcome {
    let machine = args.from.machine();
    let topology = machine.topology()?;
    let wanted = args.from.wanted(folders, Some(&topology))?;
    let spec = wanted.spec.effective();
    let (journal, boot_id) = (journal(folders), boot_id(&machine));
    let kept = if machine.live() {
        Journal::kept(&journal, &boot_id)
    } else {
        Vec::new()
    };
    let findings = survey(&Context {
        machine: &machine,
        topology: &topology,
        spec: &spec,
        kept: &kept,
        cpuset: args.from.cpuset.clone(),
    });
    let status = Journal::status(&journal, &boot_id).filter(|_| machine.live());
    let (tuned, interrupted) = status.unwrap_or((0, false));
    let ok = !interrupted && !findings.iter().any(|finding| finding.state.is_fault());
    if args.output.output == Format::Json {
        table::json(&Checked {
            node: &wanted.name,
            kernel: machine.release(),
            ok,
            tuned,
            interrupted,
            findings: &findings,
        })?;
    } else {
        text(&findings, args.all)?;
        if interrupted {
            println!("a tuning was interrupted: berth node tune --undo puts back what it did");
        }
    }
    Ok(if ok { DONE } else { no() })
}

fn text(findings: &[Finding], all: bool) -> anyhow::Result<()> {
    let rows: Vec<Vec<String>> = findings
        .iter()
        .filter(|finding| all || finding.state != State::Ok)
        .map(|finding| {
            let help = match (&finding.reason, &finding.mend) {
                (Some(reason), Some(mend)) => format!("{reason}; {mend}"),
                (Some(text), None) | (None, Some(text)) => text.clone(),
                (None, None) => NONE.to_owned(),
            };
            vec![
                finding.state.as_str().to_owned(),
                finding.weight.as_str().to_owned(),
                finding.when.as_str().to_owned(),
                finding.knob.to_owned(),
                finding.interface.clone(),
                finding.wanted.clone(),
                finding.actual.clone().unwrap_or_else(|| NONE.to_owned()),
                help,
            ]
        })
        .collect();
    if !rows.is_empty() {
        table::print(
            &[
                "STATE",
                "WEIGHT",
                "WHEN",
                "KNOB",
                "INTERFACE",
                "WANTED",
                "ACTUAL",
                "WHY AND WHAT HELPS",
            ],
            &rows,
        )?;
    }
    println!("{}", summary(findings));
    Ok(())
}

/// `43 ok, 5 differ, …`.
pub(super) fn summary(findings: &[Finding]) -> String {
    let states = [
        State::Ok,
        State::Differs,
        State::PendingBoot,
        State::Missing,
        State::Refused,
        State::UntilBoot,
        State::Kept,
        State::Absent,
    ];
    let counts = states.into_iter().filter_map(|state| {
        let count = findings.iter().filter(|finding| finding.state == state).count();
        (count > 0 || state == State::Ok).then(|| format!("{count} {}", state.as_str()))
    });
    counts.collect::<Vec<_>>().join(", ")
}
