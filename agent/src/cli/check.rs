//! `berth check`: every fault of every document in one run.

use std::path::PathBuf;

use berth_documents::{Fault, Set, check};
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

pub(super) fn main(args: &CheckArgs) -> Outcome {
    let report = check(&args.paths, &Set::default());
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
