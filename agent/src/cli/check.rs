//! `berth check`: every fault of every document in one run.

use std::path::{Path, PathBuf};

use berth_documents::{Against, Fault, Report, Set, Severity, check};
use berth_rt::topology::Topology;
use clap::Args;
use serde::Serialize;

use super::{DONE, Format, Outcome, OutputArgs, no, table};

#[derive(Debug, Args)]
pub(super) struct CheckArgs {
    /// Files, or folders with *.yaml
    #[arg(required = true)]
    paths: Vec<PathBuf>,
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Serialize)]
struct Checked<'a> {
    documents: usize,
    faults: &'a [Fault],
    warnings: &'a [Fault],
}

/// The report, and what does not fit this machine besides: a warning, for the documents may be another's.
fn checked(paths: &[PathBuf]) -> Report {
    let base = Set::default();
    let mut report = check(paths, &base);
    if report.set.node().is_none() && report.faults.is_empty() {
        return report;
    }
    let Ok(topology) = Topology::read(Path::new("/sys")) else {
        return report;
    };
    let here = check(
        paths,
        Against {
            base: &base,
            topology: Some(&topology),
        },
    );
    for mut fault in here.faults {
        if !report.faults.contains(&fault) {
            fault.severity = Severity::Warning;
            fault.message = format!("on this machine {}", fault.message);
            report.warnings.push(fault);
        }
    }
    report
}

pub(super) fn main(args: &CheckArgs) -> Outcome {
    let report = checked(&args.paths);
    if args.output.output == Format::Json {
        let (documents, faults, warnings) = (report.set.len(), &report.faults, &report.warnings);
        table::json(&Checked {
            documents,
            faults,
            warnings,
        })?;
    } else {
        for fault in report.warnings.iter().chain(&report.faults) {
            eprintln!("{fault}");
        }
        match report.faults.len() {
            0 => println!("{} documents, no faults", report.set.len()),
            1 => eprintln!("1 fault"),
            n => eprintln!("{n} faults"),
        }
    }
    Ok(if report.faults.is_empty() { DONE } else { no() })
}
