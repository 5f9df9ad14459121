//! Each proven fact changed behind the agent's back is reported by the running proof.

use anyhow::{Context, Result, ensure};
use berth_tests::agent::Agent;
use berth_tests::node::Loop;
use libtest_mimic::Trial;
use std::fs;
use std::process::Command;

use crate::journey::{DOCUMENTS, pid, wait_running, wait_words};
use crate::test;

pub(crate) fn tests() -> Vec<Trial> {
    vec![
        test("drift::taskset", || {
            // Within its cpuset a thread may narrow its own affinity: with one core only there is nothing to narrow.
            let shared = DOCUMENTS
                .replace("housekeeping: \"0\", isolated: \"1\"", "housekeeping: \"0-1\"")
                .replace("  cpus: 1\n", "  cpus: shared\n");
            drift_of(&shared, "taskset", "cpus", |pid, _| {
                run("taskset", &["-a", "-p", "-c", "0", &pid.to_string()])
            })
        }),
        test("drift::chrt", || {
            drift("chrt", "sched", |pid, _| {
                run("chrt", &["-f", "-p", "3", &pid.to_string()])
            })
        }),
        test("drift::a cgroup's limit", || {
            drift("limit", "pids", |pid, agent| {
                write(agent, pid, "pids", "pids.max", "5")
            })
        }),
        test("drift::another cgroup", || {
            drift("cgroup", "cgroup", |pid, _| {
                Ok(fs::write("/sys/fs/cgroup/pids/cgroup.procs", pid.to_string())?)
            })
        }),
        test("drift::a device rule", || {
            drift("device", "device", |pid, agent| {
                write(agent, pid, "devices", "devices.allow", "b 7:* rwm")
            })
        }),
        test("drift::the policy taken away", || {
            drift("policy", "sched", |pid, _| {
                run("chrt", &["-o", "-p", "0", &pid.to_string()])
            })
        }),
    ]
}

fn run(program: &str, args: &[&str]) -> Result<()> {
    let output = Command::new(program).args(args).output()?;
    ensure!(
        output.status.success(),
        "{program}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

fn write(_: &Agent, pid: i64, controller: &str, file: &str, value: &str) -> Result<()> {
    let groups = fs::read_to_string(format!("/proc/{pid}/cgroup"))?;
    let path = groups
        .lines()
        .find_map(|line| line.split_once(&format!(":{controller}:")).map(|(_, path)| path))
        .with_context(|| format!("no {controller} in {groups}"))?;
    Ok(fs::write(
        format!("/sys/fs/cgroup/{controller}{path}/{file}"),
        value,
    )?)
}

fn drift(name: &str, fact: &str, change: fn(i64, &Agent) -> Result<()>) -> Result<()> {
    drift_of(DOCUMENTS, name, fact, change)
}

fn drift_of(documents: &str, name: &str, fact: &str, change: fn(i64, &Agent) -> Result<()>) -> Result<()> {
    let mut agent = Agent::start(name)?;
    agent.apply(documents)?;
    let mut disk = Loop::number(305);
    disk.plug()?;
    wait_running(&mut agent, "disk", 1)?;
    wait_words(&mut agent, "disk")?;
    agent.ok(&["prove"])?;
    change(pid(&agent, "disk")?, &agent)?;
    let fact = fact.to_string();
    agent.wait_for("the running proof reports it", |a| {
        let events = a.ok(&["events"])?;
        Ok(events
            .lines()
            .any(|l| l.to_lowercase().contains("drift") && l.contains(&fact)))
    })?;
    let proof = agent.refused(&["prove"])?;
    ensure!(proof.contains(&fact), "{proof}");
    disk.unplug()?;
    agent.finish()
}
