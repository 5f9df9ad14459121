//! `berth node tune`: the run-time half, now; `--undo` puts it back.

use anyhow::bail;
use berth_rt::knob::When;
use berth_rt::survey::{Change, Context, Finding, State, Target, survey};
use berth_rt::tune::{Applied, Journal, apply, settle, undo};
use clap::Args;
use serde::Serialize;

use crate::daemon::settings::Folders;

use super::super::table::{self, with_hint};
use super::super::{DONE, Format, Outcome, OutputArgs, no};
use super::{FromArgs, boot_id, journal};

/// Most times that processes are moved which came meanwhile.
const PASSES: usize = 5;

#[derive(Debug, Args)]
pub(in crate::cli) struct TuneArgs {
    #[command(flatten)]
    from: FromArgs,
    /// Say what would be written, and write nothing
    #[arg(long, conflicts_with = "undo")]
    dry_run: bool,
    /// Put everything back that tune has changed since boot
    #[arg(long)]
    undo: bool,
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Tuned<'a> {
    /// What was (or would be) written.
    changes: Vec<ChangeView>,
    /// What the kernel keeps as it is.
    kept: Vec<String>,
    /// Changes of an interrupted run that were put back first.
    put_back: usize,
    /// What this cannot mend.
    left: Vec<&'a Finding>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ChangeView {
    knob: String,
    target: String,
    from: Option<String>,
    to: String,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct UndoneView {
    put_back: usize,
    untouched: usize,
    gone: usize,
    other_boot: bool,
}

impl From<&Change> for ChangeView {
    fn from(change: &Change) -> ChangeView {
        ChangeView {
            knob: change.knob.clone(),
            target: change.target.to_string(),
            from: change.restore.first().map(|(_, old)| old.clone()),
            to: change.value.clone(),
        }
    }
}

pub(super) fn main(folders: &Folders, args: &TuneArgs) -> Outcome {
    let machine = args.from.machine();
    if !machine.live() && !args.dry_run {
        bail!("--root is for --dry-run: only the node itself is tuned");
    }
    let journal = journal(folders);
    let json = args.output.output == Format::Json;
    if args.undo {
        let undone = undo(&machine, &journal).map_err(|error| with_hint(&error, error.hint()))?;
        if json {
            table::json(&UndoneView {
                put_back: undone.put_back,
                untouched: undone.untouched,
                gone: undone.gone,
                other_boot: undone.other_boot,
            })?;
        } else if undone.other_boot {
            println!("nothing to put back: the node was booted since, which reset all of it");
        } else {
            println!(
                "{} put back, {} as before already, {} gone",
                undone.put_back, undone.untouched, undone.gone
            );
        }
        return Ok(DONE);
    }
    let topology = machine.topology()?;
    let wanted = args.from.wanted(folders, Some(&topology))?;
    let spec = wanted.spec.effective();
    let look = || {
        let kept = if machine.live() {
            Journal::kept(&journal, &boot_id(&machine))
        } else {
            Vec::new()
        };
        survey(&Context {
            machine: &machine,
            topology: &topology,
            spec: &spec,
            kept: &kept,
            cpuset: args.from.cpuset.clone(),
        })
    };
    let findings = look();
    let impossible: Vec<&Finding> = findings
        .iter()
        .filter(|finding| finding.state == State::Missing && finding.when == When::RunTime)
        .collect();
    if !impossible.is_empty() {
        for finding in &impossible {
            let reason = finding.reason.as_deref().unwrap_or_default();
            eprintln!(
                "berth: {}: wanted {}: {reason}",
                finding.interface, finding.wanted
            );
            eprintln!(
                "  hint: {} ({})",
                finding.mend.as_deref().unwrap_or("leave the field out"),
                finding.field
            );
        }
        bail!(
            "{} of what is wanted cannot be: nothing was changed",
            impossible.len()
        );
    }
    let settled = if args.dry_run {
        0
    } else {
        settle(&machine, &journal).map_err(|error| with_hint(&error, error.hint()))?
    };
    // What was half done is undone now: the node is another.
    let findings = if settled > 0 { look() } else { findings };
    let changes: Vec<Change> = findings
        .iter()
        .filter_map(|finding| finding.change.clone())
        .collect();
    let applied = if args.dry_run {
        Applied {
            made: changes,
            ..Applied::default()
        }
    } else {
        let mut applied =
            apply(&machine, &journal, &changes).map_err(|error| with_hint(&error, error.hint()))?;
        // Who was forked by a process that was moved later is where its parent was.
        for _ in 0..PASSES {
            let members = |change: &Change| matches!(change.target, Target::Member { .. });
            let more: Vec<Change> = (look().into_iter())
                .filter_map(|finding| finding.change)
                .filter(members)
                .collect();
            if more.is_empty() || !changes.iter().any(members) {
                break;
            }
            let again = apply(&machine, &journal, &more).map_err(|error| with_hint(&error, error.hint()))?;
            applied.made.extend(again.made);
            applied.kept.extend(again.kept);
        }
        Applied {
            put_back: settled + applied.put_back,
            ..applied
        }
    };
    let after = if args.dry_run { findings } else { look() };
    let left: Vec<&Finding> = after
        .iter()
        .filter(|finding| finding.state.is_fault() && (!args.dry_run || finding.state != State::Differs))
        .collect();
    if json {
        table::json(&Tuned {
            changes: applied.made.iter().map(ChangeView::from).collect(),
            kept: applied.kept.clone(),
            put_back: applied.put_back,
            left: left.clone(),
        })?;
    } else {
        if applied.put_back > 0 {
            println!(
                "{} changes of an interrupted tuning were put back first",
                applied.put_back
            );
        }
        let rows: Vec<Vec<String>> = applied
            .made
            .iter()
            .map(|change| {
                let view = ChangeView::from(change);
                vec![view.knob, view.target, view.from.unwrap_or_default(), view.to]
            })
            .collect();
        if !rows.is_empty() {
            table::print(&["KNOB", "INTERFACE", "FROM", "TO"], &rows)?;
        }
        for kept in &applied.kept {
            println!("kept: {kept}");
        }
        let would = if args.dry_run { "would be " } else { "" };
        println!("{} {would}changed", rows.len());
        for finding in &left {
            let help = finding
                .mend
                .as_deref()
                .or(finding.reason.as_deref())
                .unwrap_or_default();
            println!("{}: {}: {help}", finding.state.as_str(), finding.interface);
        }
    }
    // What only a boot mends is no failure of tuning now.
    let failed = left.iter().any(|finding| finding.state == State::Differs);
    Ok(if failed { no() } else { DONE })
}
