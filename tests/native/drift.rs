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
        test("drift::a forked process that left its cgroup", forked),
        test("drift::starved on its own core by others", starved),
        test(
            "drift::onDrift repair: CPUs, policy and cgroup are put back",
            repaired,
        ),
        test("drift::onDrift freeze: frozen until it is thawed", frozen),
        test(
            "drift::onDrift stop: stopped, and a proven one in its place",
            stopped,
        ),
        test("drift::the policy taken away", || {
            drift("policy", "sched", |pid, _| {
                run("chrt", &["-o", "-p", "0", &pid.to_string()])
            })
        }),
    ]
}

fn plain(name: &str, command: &str, extra: &str) -> String {
    format!(
        "apiVersion: berth/v1\nkind: Workload\nmetadata: {{name: {name}}}\nspec:\n  image: berth-sample-busybox:latest\n  \
         command: [\"/bin/sh\", \"-c\", \"{command}\"]\n  cpus: shared\n  pids: 20\n  stop: {{signal: SIGKILL}}\n{extra}"
    )
}

/// The record of a drift in the launcher's own log.
fn recorded(agent: &Agent, fact: &str, answer: &str) -> Result<bool> {
    let list = agent.json(&["audit", "ls", "--chain", "launcher", "--kind", "drift"])?;
    let list = list.as_array().context("a list")?;
    Ok(list
        .iter()
        .any(|r| r["detail"]["answer"] == answer && r["detail"]["facts"].to_string().contains(fact)))
}

/// The first process is what it was; the one it forked is not.
fn forked() -> Result<()> {
    let mut agent = Agent::start("forked")?;
    agent.apply(&plain("pair", "sleep 1000 & sleep 1001", ""))?;
    wait_running(&mut agent, "pair", 1)?;
    agent.ok(&["prove", "pair"])?;
    let first = pid(&agent, "pair")?;
    let mut child = 0;
    agent.wait_for("it has forked", |_| {
        let list = fs::read_to_string(format!("/proc/{first}/task/{first}/children"))?;
        child = list
            .split_ascii_whitespace()
            .next()
            .and_then(|c| c.parse::<i64>().ok())
            .unwrap_or(0);
        Ok(child != 0)
    })?;
    fs::write("/sys/fs/cgroup/pids/cgroup.procs", child.to_string())?;
    agent.wait_for("it is told and recorded", |a| {
        recorded(a, "processes.cgroup", "report")
    })?;
    let proof = agent.refused(&["prove", "pair"])?;
    ensure!(
        proof.contains("processes.cgroup") && proof.contains(&child.to_string()),
        "{proof}"
    );
    ensure!(agent.in_state("running")?.len() == 1, "report alone does nothing");
    agent.finish()
}

/// The profile's answer, which the workload's milder one does not undo.
fn frozen() -> Result<()> {
    let mut agent = Agent::start("driftfreeze")?;
    let profile = "apiVersion: berth/v1\nkind: SecurityProfile\nmetadata: {name: careful}\nspec: {onDrift: freeze}\n---\n";
    let workload = plain("cold", "sleep 1000", "  profile: careful\n  onDrift: report\n");
    agent.apply(&format!("{profile}{workload}"))?;
    wait_running(&mut agent, "cold", 1)?;
    let main = pid(&agent, "cold")?;
    write(&agent, main, "pids", "pids.max", "5")?;
    agent.wait_for("it is frozen", |a| Ok(a.in_state("frozen")?.len() == 1))?;
    let stat = fs::read_to_string(format!(
        "/sys/fs/cgroup/freezer{}/freezer.state",
        group(main, "freezer")?
    ))?;
    ensure!(stat.trim() == "FROZEN", "{stat}");
    agent.wait_for("it is recorded", |a| recorded(a, "pids.max", "freeze"))?;
    let events = agent.ok(&["events"])?;
    ensure!(events.contains("; frozen"), "{events}");
    write(&agent, main, "pids", "pids.max", "20")?;
    agent.ok(&["thaw", "cold"])?;
    wait_running(&mut agent, "cold", 1)?;
    agent.wait_for("it holds again", |a| {
        Ok(a.try_run(&["prove", "cold"])?.status.success())
    })?;
    ensure!(pid(&agent, "cold")? == main, "another one");
    agent.finish()
}

/// Three loops of nobody's on the core of a container that always wants it: pinned is not isolated.
fn starved() -> Result<()> {
    let mut agent = Agent::start("starved")?;
    let (node, _) = DOCUMENTS.split_once("---\n").context("one document")?;
    let busy = plain("busy", "while :; do :; done", "").replace("cpus: shared", "cpus: 1");
    agent.apply(&format!("{node}---\n{busy}"))?;
    wait_running(&mut agent, "busy", 1)?;
    let mut hogs = Vec::new();
    for _ in 0..3 {
        hogs.push(
            // Each in a session of its own: what shares one gets one share (sched_autogroup).
            Command::new("setsid")
                .args(["taskset", "-c", "1", "sh", "-c", "while :; do :; done"])
                .spawn()?,
        );
    }
    let told = agent.wait_for("it is told", |a| {
        let events = a.ok(&["events"])?;
        Ok(events
            .lines()
            .any(|l| l.contains("cpus.starved") && l.contains("waited for")))
    });
    for hog in &mut hogs {
        hog.kill()?;
        hog.wait()?;
    }
    told?;
    agent.wait_for("its end too", |a| Ok(a.ok(&["events"])?.contains("restored")))?;
    let metrics = agent.metrics()?;
    ensure!(
        metrics.contains("berth_drift_facts_total{fact=\"cpus.starved\"}"),
        "{metrics}"
    );
    agent.finish()
}

/// Each is told as it was found, and set again; the container runs on.
fn repaired() -> Result<()> {
    let mut agent = Agent::start("driftrepair")?;
    let shared = DOCUMENTS
        .replace("housekeeping: \"0\", isolated: \"1\"", "housekeeping: \"0-1\"")
        .replace("  cpus: 1\n", "  cpus: shared\n  onDrift: repair\n");
    ensure!(shared.contains("onDrift: repair"), "{shared}");
    agent.apply(&shared)?;
    let mut disk = Loop::number(306);
    disk.plug()?;
    wait_running(&mut agent, "disk", 1)?;
    wait_words(&mut agent, "disk")?;
    let main = pid(&agent, "disk")?;
    let steps: [(&str, &dyn Fn() -> Result<()>); 3] = [
        ("cpus.allowed", &|| {
            run("taskset", &["-a", "-p", "-c", "0", &main.to_string()])
        }),
        ("sched", &|| run("chrt", &["-f", "-p", "3", &main.to_string()])),
        ("cgroup", &|| {
            Ok(fs::write("/sys/fs/cgroup/pids/cgroup.procs", main.to_string())?)
        }),
    ];
    for (fact, change) in steps {
        change()?;
        agent.wait_for("it is told and put back", |a| {
            let events = a.ok(&["events"])?;
            Ok(events
                .lines()
                .any(|l| l.contains(fact) && l.contains("and put back"))
                && recorded(a, fact, "repair")?)
        })?;
        agent.wait_for("it holds again", |a| Ok(a.try_run(&["prove"])?.status.success()))?;
    }
    ensure!(pid(&agent, "disk")? == main, "another one");
    disk.unplug()?;
    agent.finish()
}

fn stopped() -> Result<()> {
    let mut agent = Agent::start("driftstop")?;
    agent.apply(&plain(
        "hot",
        "sleep 1000",
        "  onDrift: stop\n  restart: {policy: always, delay: 10ms}\n",
    ))?;
    wait_running(&mut agent, "hot", 1)?;
    let first = pid(&agent, "hot")?;
    write(&agent, first, "pids", "pids.max", "5")?;
    agent.wait_for("another one runs in its place", |a| {
        Ok(pid(a, "hot").is_ok_and(|now| now != first))
    })?;
    agent.wait_for("it is recorded", |a| recorded(a, "pids.max", "stop"))?;
    agent.ok(&["prove", "hot"])?;
    agent.finish()
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

fn group(pid: i64, controller: &str) -> Result<String> {
    let groups = fs::read_to_string(format!("/proc/{pid}/cgroup"))?;
    let path = groups
        .lines()
        .find_map(|line| line.split_once(&format!(":{controller}:")).map(|(_, path)| path));
    Ok(path
        .with_context(|| format!("no {controller} in {groups}"))?
        .to_owned())
}

fn write(_: &Agent, pid: i64, controller: &str, file: &str, value: &str) -> Result<()> {
    let path = group(pid, controller)?;
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
