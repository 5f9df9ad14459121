//! `berth prove`: promised beside actual, one line for each fact.

use clap::Args;

use crate::api::{Op, Proved};
use crate::daemon::settings::Folders;

use crate::daemon::sandbox::Sandbox;
use berth_runtime::proof::Fact;

use super::client::ask;
use super::{DONE, Format, Outcome, OutputArgs, no, prove_self, table};

#[derive(Debug, Args)]
pub(super) struct ProveArgs {
    /// Workload or container, all that run where absent; or `agent`, `launcher`: berth's own processes
    name: Option<String>,
    #[command(flatten)]
    output: OutputArgs,
}

pub(super) fn main(folders: &Folders, args: ProveArgs) -> Outcome {
    if let Some(which @ ("agent" | "launcher")) = args.name.as_deref() {
        return own(folders, which, args.output.output);
    }
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
            let rows: Vec<Vec<String>> = proof.facts.iter().map(row).collect();
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

fn row(fact: &Fact) -> Vec<String> {
    let ok = if fact.holds { "yes" } else { "NO" };
    let cells = [&fact.name, &fact.promised, &fact.actual, &fact.source];
    cells.into_iter().cloned().chain([ok.to_owned()]).collect()
}

/// Agent or launcher; a workload of that name is shown by `berth prove` among all.
fn own(folders: &Folders, which: &str, format: Format) -> Outcome {
    let sandbox: Sandbox = ask(folders, Op::Sandbox)?;
    let facts = match (which, sandbox.launcher) {
        ("agent", _) => prove_self::agent(&sandbox)?,
        (_, Some(pid)) => prove_self::launcher(u32::try_from(pid)?)?,
        (_, None) => anyhow::bail!("no launcher answers the agent"),
    };
    if format == Format::Json {
        table::json(&facts)?;
    } else {
        let rows: Vec<Vec<String>> = facts.iter().map(row).collect();
        table::print(&["FACT", "PROMISED", "ACTUAL", "SOURCE", "OK"], &rows)?;
    }
    Ok(if facts.iter().all(|fact| fact.holds) {
        DONE
    } else {
        no()
    })
}
