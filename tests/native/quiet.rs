//! What a workload's document asks of the node's knobs is so while it runs, on this machine's kernel: idle states by PM QoS
//! and interrupts of its core. Put back when it is gone, whoever was killed; drift is put right and named. This machine has
//! no cpufreq driver: that is the knob it lacks.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use berth_tests::agent::Agent;
use libtest_mimic::Trial;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::test;

const QOS: &str = "/sys/devices/system/cpu/cpu1/power/pm_qos_resume_latency_us";

pub(crate) fn tests() -> Vec<Trial> {
    vec![
        test("quiet::idle states and interrupts, and everything put back", life),
        test("quiet::drift is put right and named", drift),
        test(
            "quiet::put back after kill -9 of agent, launcher and monitor",
            killed,
        ),
        test("quiet::what the node lacks is refused, or said", lacks),
    ]
}

fn documents(realtime: &str) -> String {
    format!(
        r#"
apiVersion: berth/v1
kind: Node
metadata: {{name: test}}
spec:
  cpus: {{housekeeping: "0", isolated: "1"}}
---
apiVersion: berth/v1
kind: Workload
metadata: {{name: quiet}}
spec:
  image: berth-sample-busybox:latest
  command: ["/bin/sleep", "1000"]
  cpus: 1
  realtime: {realtime}
  restart: {{policy: never}}
  stop: {{signal: SIGKILL, grace: 1s}}
"#
    )
}

const HARD: &str = "{class: hard, latencyTarget: 20us, cStates: disable}";

/// Every knob that is touched here, as the kernel has it.
fn knobs() -> Result<BTreeMap<String, String>> {
    let mut all = BTreeMap::new();
    let mut put = |path: String| -> Result<()> {
        if Path::new(&path).exists() {
            all.insert(path.clone(), fs::read_to_string(&path)?);
        }
        Ok(())
    };
    put("/proc/irq/default_smp_affinity".into())?;
    put(QOS.into())?;
    for entry in fs::read_dir("/proc/irq")? {
        put(format!("{}/smp_affinity", entry?.path().display()))?;
    }
    ensure!(all.len() > 3, "this machine has no interrupts to move: {all:?}");
    Ok(all)
}

/// Interrupts that may go to CPU 1, and can be moved: the kernel keeps managed ones, whatever is written.
fn on_core() -> Result<Vec<String>> {
    let mut there = Vec::new();
    for (path, mask) in knobs()? {
        let set = path != QOS && u64::from_str_radix(mask.trim(), 16)? & 2 != 0;
        if set && fs::write(&path, mask.trim()).is_ok() {
            there.push(path);
        }
    }
    Ok(there)
}

/// Numbers of the interrupts that the kernel keeps where they are.
fn managed() -> Result<Vec<String>> {
    let mut kept = Vec::new();
    for (path, mask) in knobs()? {
        if path.ends_with("/smp_affinity") && fs::write(&path, mask.trim()).is_err() {
            kept.extend(path.split('/').nth(3).map(str::to_owned));
        }
    }
    Ok(kept)
}

fn run(name: &str, realtime: &str) -> Result<Agent> {
    let mut agent = Agent::start(name)?;
    agent.apply(&documents(realtime))?;
    agent.wait_for("it runs", |a| Ok(a.in_state("running")?.len() == 1))?;
    Ok(agent)
}

fn gone(agent: &mut Agent, before: &BTreeMap<String, String>) -> Result<()> {
    agent.ok(&["stop", "quiet"])?;
    agent.wait_for("it is gone", |a| Ok(a.in_state("running")?.is_empty()))?;
    let after = knobs()?;
    ensure!(after == *before, "not as before: {before:?}\n{after:?}");
    Ok(())
}

fn life() -> Result<()> {
    let before = knobs()?;
    let mut agent = run("quiet-life", HARD)?;
    ensure!(
        fs::read_to_string(QOS)?.trim() == "n/a",
        "idle states are as they were"
    );
    ensure!(on_core()?.is_empty(), "on the core: {:?}", on_core()?);
    let proof = agent.ok(&["prove", "quiet"])?;
    for words in [
        "idle states of CPU 1",
        "none of others on CPUs 1",
        "n/a",
        QOS,
        "timer_slack",
    ] {
        ensure!(proof.contains(words), "no {words} in {proof}");
    }
    for irq in managed()? {
        let said =
            proof.contains(&format!("the kernel keeps {irq} ")) || proof.contains(&format!(", {irq} "));
        ensure!(said, "interrupt {irq} is managed, and {proof} does not say so");
    }
    gone(&mut agent, &before)?;
    agent.finish()
}

fn drift() -> Result<()> {
    let before = knobs()?;
    let mut agent = run("quiet-drift", "{class: soft, cStates: {maxLatency: 5us}}")?;
    ensure!(
        fs::read_to_string(QOS)?.trim() == "5",
        "idle states are as they were"
    );
    let irq = before
        .keys()
        .find(|path| path.ends_with("/smp_affinity"))
        .context("an interrupt")?;
    fs::write(irq, "2").with_context(|| format!("moving {irq}"))?;
    agent.wait_for("the interrupt is put back and named", |a| {
        let events = a.ok(&["events"])?;
        let told = |l: &str| l.to_lowercase().contains("drift") && l.contains("interrupts");
        Ok(events.lines().any(told) && on_core()?.is_empty())
    })?;
    fs::write(QOS, "0")?;
    agent.wait_for("the idle states are put back and named", |a| {
        let events = a.ok(&["events"])?;
        let told = |l: &str| l.to_lowercase().contains("drift") && l.contains("idle states of CPU 1");
        Ok(events.lines().any(told) && fs::read_to_string(QOS)?.trim() == "5")
    })?;
    let drifts = agent.metrics()?;
    ensure!(
        drifts
            .lines()
            .any(|l| l.starts_with("berth_drift") && !l.ends_with(" 0")),
        "not counted: {drifts}"
    );
    agent.wait_for("all holds again", |a| Ok(a.ok(&["prove", "quiet"]).is_ok()))?;
    gone(&mut agent, &before)?;
    agent.finish()
}

fn killed() -> Result<()> {
    let before = knobs()?;
    let mut agent = run("quiet-killed", HARD)?;
    let pid = agent.in_state("running")?[0]["pid"].as_i64().context("pid")?;
    let monitor: i32 = fs::read_to_string(format!("/proc/{pid}/status"))?
        .lines()
        .find_map(|line| line.strip_prefix("PPid:"))
        .context("PPid")?
        .trim()
        .parse()?;
    // The agent's death is nobody's business.
    let old = agent.pid()?;
    agent.kill9(old)?;
    ensure!(on_core()?.is_empty(), "the agent's death moved interrupts");
    let launcher = agent.launcher()?;
    // The launcher sees nothing of the monitor's end: the next one must.
    kill(launcher, Signal::SIGSTOP)?;
    kill(Pid::from_raw(monitor), Signal::SIGKILL)?;
    agent.kill9(launcher)?;
    ensure!(
        fs::read_to_string(QOS)?.trim() == "n/a",
        "nobody was there to put it back"
    );
    // By itself, for an agent would launch the workload again at once.
    let mut alone = agent.launcher_alone()?;
    let back = agent.wait_for("the next launcher puts everything back", |_| {
        Ok(knobs()? == before)
    });
    alone.kill()?;
    alone.wait()?;
    back?;
    agent.spawn(&[])?;
    agent.wait_for("it runs again", |a| Ok(a.in_state("running")?.len() == 1))?;
    gone(&mut agent, &before)?;
    agent.finish()
}

fn lacks() -> Result<()> {
    ensure!(
        fs::read_dir("/sys/devices/system/cpu/cpufreq").map_or(0, Iterator::count) == 0,
        "this machine has a cpufreq driver: name another knob it lacks"
    );
    let before = knobs()?;
    let mut agent = Agent::start("quiet-lacks")?;
    agent.apply(&documents("{class: hard, frequency: {governor: performance}}"))?;
    agent.wait_for("it is refused by name", |a| {
        let said = a.ok(&["events"])?;
        Ok(said.contains("no cpufreq driver has CPUs 1") && said.contains("class: soft"))
    })?;
    ensure!(agent.in_state("running")?.is_empty(), "it runs");
    ensure!(knobs()? == before, "the refusal left something");
    agent.apply(&documents("{class: soft, frequency: {governor: performance}}"))?;
    agent.wait_for("it runs", |a| Ok(a.in_state("running")?.len() == 1))?;
    let proof = agent.ok(&["prove", "quiet"])?;
    ensure!(
        proof.contains("not here: no cpufreq driver has CPUs 1"),
        "{proof}"
    );
    ensure!(on_core()?.is_empty(), "on the core: {:?}", on_core()?);
    gone(&mut agent, &before)?;
    agent.finish()
}
