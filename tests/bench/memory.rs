//! Resident memory of the idle agent and launcher, and what each container with its monitor costs beyond the workload.
//!
//! Source: VmRSS of /proc/PID/status; Pss of /proc/PID/smaps_rollup of the monitors, with 50 containers running.

use std::fs;

use anyhow::{Context, Result};
use berth_tests::agent::Agent;
use nix::unistd::Pid;

use crate::stats::{Sample, Table};

const CONTAINERS: usize = 50;

fn field(pid: Pid, file: &str, key: &str) -> Result<f64> {
    let path = format!("/proc/{pid}/{file}");
    let text = fs::read_to_string(&path)?;
    let value = text
        .lines()
        .find_map(|l| l.strip_prefix(key))
        .with_context(|| format!("no {key} in {path}"))?;
    Ok(value.trim_end_matches("kB").trim().parse()?)
}

pub(crate) fn run(table: &mut Table) -> Result<()> {
    let mut agent = Agent::start("bench-memory")?;
    let (mut idle, mut launcher) = (Sample::default(), Sample::default());
    std::thread::sleep(std::time::Duration::from_secs(3));
    idle.push(field(agent.pid()?, "status", "VmRSS:")? / 1024.0);
    launcher.push(field(agent.launcher()?, "status", "VmRSS:")? / 1024.0);
    table.alone("agent, idle: resident", "MiB", &idle, Some(12.0));
    table.alone("launcher, idle: resident", "MiB", &launcher, Some(3.0));
    let documents: String = (0..CONTAINERS)
        .map(|i| {
            format!(
                "---\napiVersion: berth/v1\nkind: Workload\nmetadata: {{name: m{i}}}\nspec:\n  \
                 image: berth-sample-busybox:latest\n  command: [\"/bin/sleep\", \"1000\"]\n  cpus: shared\n  \
                 stop: {{signal: SIGKILL, grace: 1s}}\n"
            )
        })
        .collect();
    agent.apply(&documents)?;
    agent.wait_for("all run", |a| Ok(a.in_state("running")?.len() == CONTAINERS))?;
    std::thread::sleep(std::time::Duration::from_secs(3));
    let mut monitors = Sample::default();
    for instance in agent.in_state("running")? {
        let pid = Pid::from_raw(i32::try_from(instance["pid"].as_i64().context("pid")?)?);
        let keeper = Pid::from_raw(field(pid, "status", "PPid:")? as i32);
        monitors.push(field(keeper, "smaps_rollup", "Pss:")?);
    }
    table.alone(
        format!("monitor, {CONTAINERS} containers: PSS each"),
        "KiB",
        &monitors,
        Some(600.0),
    );
    let mut loaded = Sample::default();
    loaded.push(field(agent.pid()?, "status", "VmRSS:")? / 1024.0);
    table.alone(
        format!("agent, {CONTAINERS} containers: resident"),
        "MiB",
        &loaded,
        None,
    );
    agent.finish()
}
