//! `berth prove`: promised beside actual, one line for each fact.

use clap::Args;

use crate::api::{Op, Proved};
use crate::daemon::settings::Folders;

use super::client::ask;
use super::{DONE, Format, Outcome, OutputArgs, no, table};

#[derive(Debug, Args)]
pub(super) struct ProveArgs {
    /// Workload or container; all that run where absent
    name: Option<String>,
    #[command(flatten)]
    output: OutputArgs,
}

pub(super) fn main(folders: &Folders, args: ProveArgs) -> Outcome {
    let proved: Vec<Proved> = ask(folders, Op::Prove { name: args.name })?;
    let holds = |p: &Proved| p.proof.as_ref().is_some_and(berth_runtime::proof::Proof::holds);
    let all = proved.iter().all(holds);
    if args.output.output == Format::Json {
        table::json(&proved)?;
        return Ok(if all { DONE } else { no() });
    }
    for one in &proved {
        println!("{}", one.name);
        if let Some(fault) = &one.fault {
            println!("  no proof: {}", fault.message);
        }
        if let Some(proof) = &one.proof {
            let rows: Vec<Vec<String>> = proof
                .facts
                .iter()
                .map(|fact| {
                    let ok = if fact.holds { "yes" } else { "NO" };
                    let cells = [&fact.name, &fact.promised, &fact.actual, &fact.source];
                    cells.into_iter().cloned().chain([ok.to_owned()]).collect()
                })
                .collect();
            table::print(&["FACT", "PROMISED", "ACTUAL", "SOURCE", "OK"], &rows)?;
        }
        println!();
    }
    let failed = proved.iter().filter(|p| !holds(p)).count();
    match failed {
        0 => println!("{} containers, every fact holds", proved.len()),
        n => println!("{n} of {} containers without a proof that holds", proved.len()),
    }
    Ok(if all { DONE } else { no() })
}
