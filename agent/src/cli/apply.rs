//! `berth plan`, `apply`, `delete`: documents are read and checked here, against what is in force; the agent
//! checks them again.

use std::path::PathBuf;
use std::process::ExitCode;

use berth_documents::{Action, Kind, Set, check};
use clap::Args;

use crate::api::{Changes, Documents, Op, Outcome as Changed};
use crate::daemon::settings::Folders;

use super::client::ask;
use super::{DONE, Format, Outcome, OutputArgs, no, table};

#[derive(Debug, Args)]
pub(super) struct PlanArgs {
    /// Files, or folders with *.yaml
    #[arg(required = true)]
    paths: Vec<PathBuf>,
    /// Plan to take them away
    #[arg(long)]
    delete: bool,
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Debug, Args)]
pub(super) struct ApplyArgs {
    /// Files, or folders with *.yaml
    #[arg(required = true)]
    paths: Vec<PathBuf>,
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Debug, Args)]
pub(super) struct DeleteArgs {
    /// Files, or folders with *.yaml: the documents with the same kind and name go
    #[arg(required = true)]
    paths: Vec<PathBuf>,
    #[command(flatten)]
    output: OutputArgs,
}

pub(super) fn plan(folders: &Folders, args: &PlanArgs) -> Outcome {
    let Some(set) = read(folders, &args.paths)? else {
        return Ok(no());
    };
    let changes = if args.delete { taking(&set) } else { putting(set) };
    let outcome: Changed = ask(folders, Op::Plan(Box::new(changes)))?;
    show(&outcome, args.output.output, "would ")
}

pub(super) fn apply(folders: &Folders, args: &ApplyArgs) -> Outcome {
    let Some(set) = read(folders, &args.paths)? else {
        return Ok(no());
    };
    let outcome: Changed = ask(folders, Op::Apply(Box::new(putting(set))))?;
    show(&outcome, args.output.output, "")
}

pub(super) fn delete(folders: &Folders, args: &DeleteArgs) -> Outcome {
    let Some(set) = read(folders, &args.paths)? else {
        return Ok(no());
    };
    let outcome: Changed = ask(folders, Op::Apply(Box::new(taking(&set))))?;
    show(&outcome, args.output.output, "")
}

fn putting(set: Set) -> Changes {
    Changes {
        set,
        delete: Vec::new(),
    }
}

fn taking(set: &Set) -> Changes {
    let keys: Vec<(Kind, String)> = set.keys();
    Changes {
        set: Set::default(),
        delete: keys,
    }
}

/// Reads the documents onto those in force; `None` where there are faults, which are told.
fn read(folders: &Folders, paths: &[PathBuf]) -> anyhow::Result<Option<Set>> {
    let base: Documents = ask(folders, Op::Documents)?;
    let report = check(paths, &base.set);
    for fault in report.warnings.iter().chain(&report.faults) {
        eprintln!("{fault}");
    }
    if report.faults.is_empty() {
        return Ok(Some(report.set));
    }
    eprintln!("nothing was changed");
    Ok(None)
}

fn show(outcome: &Changed, format: Format, would: &str) -> anyhow::Result<ExitCode> {
    if format == Format::Json {
        table::json(outcome)?;
        return Ok(DONE);
    }
    for change in &outcome.documents {
        println!("{would}{} {} {}", change.action, change.kind, change.name);
        for field in &change.fields {
            println!("    {field}");
        }
    }
    for step in &outcome.containers {
        let text = if step.text.is_empty() {
            String::new()
        } else {
            format!(": {}", step.text)
        };
        println!("{would}{} container {}{text}", step.action, step.name);
    }
    if outcome.documents.is_empty() && outcome.containers.is_empty() {
        println!("nothing to change");
    } else if would.is_empty() {
        let count = |action| outcome.documents.iter().filter(|c| c.action == action).count();
        let (added, changed, removed) = (count(Action::Add), count(Action::Change), count(Action::Remove));
        println!("{added} added, {changed} changed, {removed} removed");
    }
    Ok(DONE)
}
