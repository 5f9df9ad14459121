//! `berth node show`: what this node is, as berth-rt reads it, and who holds what, where an agent runs.

use std::path::Path;

use berth_rt::cgroup::{Hierarchy, Support};
use berth_rt::topology::Topology;
use clap::{Args, Subcommand};
use serde::Serialize;

use crate::api::{NodeView, Op};
use crate::daemon::settings::Folders;

use super::client::ask;
use super::table::{NONE, with_hint};
use super::{DONE, Format, Outcome, OutputArgs, table};

#[derive(Debug, Subcommand)]
pub(super) enum NodeCommand {
    /// Show topology, cgroup hierarchy, isolation and real-time budget
    Show(ShowArgs),
    /// List every knob of a node: where it is, when it can be turned, how to verify it
    Knobs(ShowArgs),
}

#[derive(Debug, Args)]
pub(super) struct ShowArgs {
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Shown {
    online: String,
    cpus: Vec<CpuView>,
    memory_nodes: String,
    boot_isolated: String,
    nohz_full: String,
    hierarchy: String,
    controllers: Vec<ControllerView>,
    rt_budget: String,
    /// Absent: no agent answers.
    agent: Option<NodeView>,
}

#[derive(Serialize)]
struct CpuView {
    cpu: u32,
    core: i64,
    package: i64,
    node: u32,
    siblings: String,
    online: bool,
}

#[derive(Serialize)]
struct ControllerView {
    mount: String,
    controllers: Vec<String>,
}

pub(super) fn main(folders: &Folders, command: NodeCommand) -> Outcome {
    let args = match command {
        NodeCommand::Show(args) => args,
        NodeCommand::Knobs(args) => return knobs(&args),
    };
    let topology = Topology::read(Path::new("/sys"))?;
    let hierarchy = Hierarchy::discover(Path::new("/")).map_err(|e| with_hint(&e, e.hint()))?;
    let support = Support::detect(&hierarchy)?;
    let shown = Shown {
        online: topology.online().to_string(),
        cpus: topology
            .cpus
            .iter()
            .map(|c| CpuView {
                cpu: c.id,
                core: c.core,
                package: c.package,
                node: c.node,
                siblings: c.siblings.to_string(),
                online: c.online,
            })
            .collect(),
        memory_nodes: topology.memory_nodes().to_string(),
        boot_isolated: topology.isolated.to_string(),
        nohz_full: topology.nohz_full.to_string(),
        hierarchy: format!("{:?}", hierarchy.mode()).to_lowercase(),
        controllers: hierarchy
            .trees()
            .iter()
            .map(|tree| ControllerView {
                mount: tree.mount.display().to_string(),
                controllers: tree.controllers.iter().map(|c| c.v1_name().to_owned()).collect(),
            })
            .collect(),
        rt_budget: budget(&support),
        agent: ask(folders, Op::Node).ok(),
    };
    if args.output.output == Format::Json {
        table::json(&shown)?;
    } else {
        text(&shown)?;
    }
    Ok(DONE)
}

fn knobs(args: &ShowArgs) -> Outcome {
    if args.output.output == Format::Json {
        table::json(&berth_rt::knob::TABLE)?;
    } else {
        print!("{}", berth_rt::knob::page());
    }
    Ok(DONE)
}

fn budget(support: &Support) -> String {
    match support {
        Support::PerGroup(b) => format!("{} us in {} us, shared by all cgroups", b.runtime_us, b.period_us),
        Support::NodeOnly(Some(b)) => format!(
            "{} us in {} us for the node, none for cgroups",
            b.runtime_us, b.period_us
        ),
        Support::NodeOnly(None) => "not limited".to_owned(),
    }
}

fn text(shown: &Shown) -> anyhow::Result<()> {
    let or_dash = |text: &str| {
        if text.is_empty() {
            NONE.to_owned()
        } else {
            text.to_owned()
        }
    };
    let line = |name: &str, value: String| println!("{name:<20}{value}");
    line("online CPUs", shown.online.clone());
    line("memory nodes", shown.memory_nodes.clone());
    line("isolated at boot", or_dash(&shown.boot_isolated));
    line("nohz_full", or_dash(&shown.nohz_full));
    line("cgroup hierarchy", shown.hierarchy.clone());
    line("real-time budget", shown.rt_budget.clone());
    match &shown.agent {
        None => line("agent", "does not answer".to_owned()),
        Some(agent) => {
            line("housekeeping", agent.housekeeping.clone());
            line("given away", or_dash(&agent.given_away));
            line("of these free", or_dash(&agent.free));
            if let (Some(all), Some(free)) = (agent.rt_budget_us, agent.rt_free_us) {
                line("budget free", format!("{free} of {all} us a second"));
            }
        }
    }
    println!();
    let cpus: Vec<Vec<String>> = shown
        .cpus
        .iter()
        .map(|c| {
            let online = if c.online { "yes" } else { "no" };
            vec![
                c.cpu.to_string(),
                c.core.to_string(),
                c.package.to_string(),
                c.node.to_string(),
                c.siblings.clone(),
                online.to_owned(),
            ]
        })
        .collect();
    table::print(&["CPU", "CORE", "PACKAGE", "NODE", "SIBLINGS", "ONLINE"], &cpus)?;
    println!();
    let trees: Vec<Vec<String>> = shown
        .controllers
        .iter()
        .map(|c| vec![c.mount.clone(), or_dash(&c.controllers.join(", "))])
        .collect();
    table::print(&["CGROUP", "CONTROLLERS"], &trees)?;
    if let Some(agent) = &shown.agent {
        println!();
        let held: Vec<Vec<String>> = agent
            .held
            .iter()
            .map(|(owner, held)| {
                vec![
                    owner.clone(),
                    or_dash(&held.cpus),
                    format!("{} us", held.rt_budget_us),
                ]
            })
            .collect();
        table::print(&["CONTAINER", "CORES", "BUDGET"], &held)?;
    }
    Ok(())
}
