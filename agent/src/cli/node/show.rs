//! `berth node show`: what this node is, as berth-rt reads it, and who holds what, where an agent runs.

use std::path::PathBuf;

use berth_rt::cgroup::{Hierarchy, Support};
use berth_rt::machine::Machine;
use berth_rt::show::{self, Shown as MachineShown};
use clap::Args;
use serde::Serialize;

use crate::api::{NodeView, Op};
use crate::daemon::settings::Folders;

use super::super::client::ask;
use super::super::table::{self, NONE, with_hint};
use super::super::{DONE, Format, Outcome, OutputArgs};

#[derive(Debug, Args)]
pub(in crate::cli) struct ShowArgs {
    /// The folder that has the node's proc and sys: a recorded tree
    #[arg(long, value_name = "DIR", default_value = "/")]
    root: PathBuf,
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
    machine: MachineShown,
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

pub(super) fn main(folders: &Folders, args: &ShowArgs) -> Outcome {
    let machine = Machine::new(&args.root);
    let topology = machine.topology()?;
    // A recorded tree has no mounts of its own to look through.
    let (mode, controllers, rt_budget) = if machine.live() {
        let hierarchy = Hierarchy::discover(&args.root).map_err(|e| with_hint(&e, e.hint()))?;
        let support = Support::detect(&hierarchy)?;
        let controllers = hierarchy.trees().iter().map(|tree| ControllerView {
            mount: tree.mount.display().to_string(),
            controllers: tree.controllers.iter().map(|c| c.v1_name().to_owned()).collect(),
        });
        let mode = format!("{:?}", hierarchy.mode()).to_lowercase();
        (mode, controllers.collect(), budget(&support))
    } else {
        ("not recorded".to_owned(), Vec::new(), "not recorded".to_owned())
    };
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
        hierarchy: mode,
        controllers,
        rt_budget,
        machine: show::show(&machine, &topology),
        agent: ask(folders, Op::Node).ok().filter(|_| machine.live()),
    };
    if args.output.output == Format::Json {
        table::json(&shown)?;
    } else {
        text(&shown)?;
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
    let kernel = &shown.machine.kernel;
    let or_none = |text: &Option<String>| text.clone().unwrap_or_else(|| NONE.to_owned());
    line("kernel", kernel.release.clone());
    line("preemption", or_none(&kernel.preemption));
    line("lockdown", or_none(&kernel.lockdown));
    line("hypervisor", or_none(&shown.machine.hypervisor));
    line("clock source", or_none(&shown.machine.clock_source));
    line("frequency driver", or_none(&shown.machine.frequency_driver));
    line("idle driver", or_none(&shown.machine.idle_driver));
    line("SMT", or_none(&shown.machine.smt));
    if !shown.machine.resctrl.is_empty() {
        line("resctrl", shown.machine.resctrl.join(", "));
    }
    line("online CPUs", shown.online.clone());
    line("memory nodes", shown.memory_nodes.clone());
    line("isolated at boot", or_dash(&shown.boot_isolated));
    line("nohz_full", or_dash(&shown.nohz_full));
    let isolation = &shown.machine.isolation;
    line("rcu_nocbs", or_none(&isolation.rcu_nocbs));
    line(
        "isolated now",
        isolation
            .partitions
            .as_deref()
            .map_or_else(|| NONE.to_owned(), or_dash),
    );
    line("new interrupts on", or_none(&isolation.default_interrupts));
    line("workqueues on", or_none(&isolation.workqueues));
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
    let more = |cpu: u32| shown.machine.cpus.iter().find(|c| c.cpu == cpu);
    let cpus: Vec<Vec<String>> = shown
        .cpus
        .iter()
        .map(|c| {
            let online = if c.online { "yes" } else { "no" };
            let own = more(c.cpu);
            let text = |value: Option<String>| value.unwrap_or_else(|| NONE.to_owned());
            vec![
                c.cpu.to_string(),
                c.core.to_string(),
                c.package.to_string(),
                c.node.to_string(),
                c.siblings.clone(),
                online.to_owned(),
                text(own.and_then(|c| c.capacity).map(|capacity| capacity.to_string())),
                text(own.and_then(|c| c.governor.clone())),
                text(
                    own.and_then(|c| c.frequency_khz)
                        .map(|(min, max)| format!("{}-{}", min / 1000, max / 1000)),
                ),
                text(own.map(|c| c.interrupts.len().to_string())),
                text(
                    own.and_then(|c| c.interrupts_handled)
                        .map(|count| count.to_string()),
                ),
                text(
                    own.map(|c| c.idle_states.join(", "))
                        .filter(|states| !states.is_empty()),
                ),
            ]
        })
        .collect();
    table::print(
        &[
            "CPU",
            "CORE",
            "PACKAGE",
            "NODE",
            "SIBLINGS",
            "ONLINE",
            "CAPACITY",
            "GOVERNOR",
            "MHZ",
            "IRQS",
            "HANDLED",
            "IDLE STATES",
        ],
        &cpus,
    )?;
    println!();
    let caches: Vec<Vec<String>> = shown
        .machine
        .caches
        .iter()
        .map(|c| vec![format!("L{} {}", c.level, c.kind), c.size.clone(), c.cpus.clone()])
        .collect();
    table::print(&["CACHE", "SIZE", "SHARED BY"], &caches)?;
    println!();
    let memory: Vec<Vec<String>> = shown
        .machine
        .memory
        .iter()
        .map(|m| {
            let mib =
                |kib: Option<u64>| kib.map_or_else(|| NONE.to_owned(), |kib| format!("{} MiB", kib / 1024));
            let pages: Vec<String> = m
                .hugepages
                .iter()
                .map(|(size, (all, free))| format!("{all} of {size} ({free} free)"))
                .collect();
            let (total, free) = (mib(m.total_kib), mib(m.free_kib));
            vec![
                m.node.to_string(),
                or_dash(&m.cpus),
                total,
                free,
                or_dash(&m.distance),
                or_dash(&pages.join(", ")),
            ]
        })
        .collect();
    table::print(
        &["NODE", "CPUS", "MEMORY", "FREE", "DISTANCE", "HUGE PAGES"],
        &memory,
    )?;
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
