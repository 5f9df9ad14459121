//! Plug a device, its container runs, proven; unplug it, and it is gone.

use anyhow::{Context, Result, ensure};
use berth_tests::agent::Agent;
use berth_tests::node::{Loop, Veth, ip};
use libtest_mimic::Trial;
use serde_json::Value;
use std::fs;

use crate::test;

/// Documents of most tests: one whole core under SCHED_FIFO for a disk, the shared pool for everything else.
pub(crate) const DOCUMENTS: &str = r#"
apiVersion: berth/v1
kind: Node
metadata: {name: test}
spec:
  cpus: {housekeeping: "0", isolated: "1"}
---
apiVersion: berth/v1
kind: Workload
metadata: {name: disk}
spec:
  image: berth-sample-worker:latest
  args: ["--device", "/dev/disk", "--look-once", "--period", "20ms"]
  profile: realtime
  run: onDevice
  cpus: 1
  realtime:
    scheduler: {policy: fifo, priority: 50}
    timerSlack: 1ns
    budget: {runtime: 50ms, period: 1s}
  memory: 32Mi
  pids: 16
  stop: {signal: SIGTERM, grace: 5s}
---
apiVersion: berth/v1
kind: HotplugRule
metadata: {name: disk}
spec:
  match: |
    SUBSYSTEM=="block", KERNEL=="loop30[0-9]"
  workload: disk
  device: {path: /dev/disk, access: r}
  env: [{name: DISK, value: "$kernel"}]
  labels: {device: "$kernel"}
---
apiVersion: berth/v1
kind: Workload
metadata: {name: nic}
spec:
  image: berth-sample-worker:latest
  args: ["--interface", "eth0", "--period", "50ms"]
  profile: device-worker
  run: onDevice
  cpus: shared
---
apiVersion: berth/v1
kind: HotplugRule
metadata: {name: nic}
spec:
  match: |
    SUBSYSTEM=="net", KERNEL=="bt0"
  workload: nic
  interface: {name: eth0}
"#;

pub(crate) fn tests() -> Vec<Trial> {
    vec![
        test("journey::a disk: plugged, proven, unplugged, plugged again", disk),
        test(
            "journey::an interface: plugged, proven, unplugged, plugged again",
            interface,
        ),
        test(
            "journey::a device that was there before the agent",
            before_the_agent,
        ),
        test(
            "journey::an interface inside survives a resync and a restart of the agent",
            interface_survives,
        ),
        test("journey::an armed rule starts what was prepared", armed),
        test("journey::explain is the matcher", explain),
    ]
}

/// Wait until exactly `n` instances of a workload run.
pub(crate) fn wait_running(agent: &mut Agent, workload: &str, n: usize) -> Result<()> {
    agent.wait_for(&format!("{n} of {workload} run"), |a| {
        Ok(a.in_state("running")?
            .iter()
            .filter(|i| i["workload"] == workload)
            .count()
            == n)
    })
}

/// Wait until no instance of a workload is listed that is not merely armed.
pub(crate) fn wait_gone(agent: &mut Agent, workload: &str) -> Result<()> {
    agent.wait_for(&format!("{workload} is gone"), |a| {
        let list = a.json(&["ps"])?;
        let list = list
            .as_array()
            .or_else(|| list["instances"].as_array())
            .context("no list")?;
        Ok(!list
            .iter()
            .any(|i| i["workload"] == workload && i["phase"] != "armed"))
    })
}

/// Wait until the worker of a workload has looked at its device. (To open the node of a loop device that has just gone
/// makes a new one, and a signal that comes before its handler does nothing to a pid 1.)
pub(crate) fn wait_words(agent: &mut Agent, workload: &str) -> Result<()> {
    let name = name(agent, workload)?;
    agent.wait_for(&format!("{workload} speaks"), |a| {
        Ok(a.ok(&["logs", &name])?.contains("\"event\""))
    })
}

/// The one running instance of a workload.
pub(crate) fn instance(agent: &Agent, workload: &str) -> Result<Value> {
    agent
        .in_state("running")?
        .into_iter()
        .find(|i| i["workload"] == workload)
        .with_context(|| format!("no {workload}"))
}

/// Its pid on the host.
pub(crate) fn pid(agent: &Agent, workload: &str) -> Result<i64> {
    instance(agent, workload)?["pid"].as_i64().context("no pid in ps")
}

/// Its name.
pub(crate) fn name(agent: &Agent, workload: &str) -> Result<String> {
    Ok(instance(agent, workload)?["name"]
        .as_str()
        .context("no name in ps")?
        .to_string())
}

fn disk() -> Result<()> {
    let mut agent = Agent::start("disk")?;
    agent.apply(DOCUMENTS)?;
    let mut disk = Loop::number(301);
    for round in 0..3 {
        disk.plug()?;
        wait_running(&mut agent, "disk", 1)?;
        wait_words(&mut agent, "disk")?;
        let pid = pid(&agent, "disk")?;
        // The kernel's own words, not berth's.
        let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
        for expected in ["Cpus_allowed_list:\t1\n", "NoNewPrivs:\t1", "Seccomp:\t2"] {
            ensure!(
                status.contains(expected),
                "round {round}: {expected:?} is not in:\n{status}"
            );
        }
        let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or("").split_whitespace().collect();
        ensure!(
            fields[37] == "50" && fields[38] == "1",
            "round {round}: rt_priority {} policy {}",
            fields[37],
            fields[38]
        );
        let device = fs::metadata(format!("/proc/{pid}/root/dev/disk"))?;
        ensure!(
            std::os::unix::fs::MetadataExt::rdev(&device) == nix::sys::stat::makedev(7, 301),
            "another device"
        );
        let proof = agent.ok(&["prove"])?;
        for fact in ["sched", "caps", "seccomp", "cgroup"] {
            ensure!(
                proof.contains(fact),
                "round {round}: no fact about {fact}:\n{proof}"
            );
        }
        let words = agent.ok(&["inspect", &name(&agent, "disk")?])?;
        ensure!(words.contains("loop301"), "the template is not in:\n{words}");
        disk.unplug()?;
        wait_gone(&mut agent, "disk")?;
        ensure!(
            !berth_tests::agent::alive(nix::unistd::Pid::from_raw(i32::try_from(pid)?)),
            "pid {pid} lives on"
        );
    }
    agent.finish()
}

fn interface() -> Result<()> {
    let mut agent = Agent::start("nic")?;
    agent.apply(DOCUMENTS)?;
    for round in 0..3 {
        let mut veth = Veth::plug("bt0")?;
        wait_running(&mut agent, "nic", 1)?;
        let pid = pid(&agent, "nic")?;
        let inside = fs::read_to_string(format!("/proc/{pid}/net/dev"))?;
        ensure!(
            inside.contains("eth0:"),
            "round {round}: no eth0 inside:\n{inside}"
        );
        ensure!(
            !std::path::Path::new("/sys/class/net/bt0").exists(),
            "round {round}: bt0 is still outside"
        );
        veth.unplug()?;
        wait_gone(&mut agent, "nic")?;
    }
    agent.finish()
}

fn before_the_agent() -> Result<()> {
    let mut disk = Loop::number(302);
    disk.plug()?;
    let mut agent = Agent::prepare("before")?;
    fs::write(agent.path("config/node.yaml"), DOCUMENTS)?;
    agent.spawn(&[])?;
    wait_running(&mut agent, "disk", 1)?;
    // One start, not two: the monitor was open before the enumeration, and both saw the device.
    let starts = agent
        .ok(&["events"])?
        .lines()
        .filter(|l| l.contains("disk") && l.contains("tarted"))
        .count();
    ensure!(starts == 1, "{starts} starts:\n{}", agent.ok(&["events"])?);
    wait_words(&mut agent, "disk")?;
    disk.unplug()?;
    wait_gone(&mut agent, "disk")?;
    agent.finish()
}

fn interface_survives() -> Result<()> {
    let mut agent = Agent::start("survive")?;
    agent.apply(DOCUMENTS)?;
    let mut veth = Veth::plug("bt0")?;
    wait_running(&mut agent, "nic", 1)?;
    let before = pid(&agent, "nic")?;
    nix::sys::signal::kill(agent.pid()?, nix::sys::signal::Signal::SIGHUP)?;
    std::thread::sleep(std::time::Duration::from_millis(500));
    ensure!(pid(&agent, "nic")? == before, "a resync restarted it");
    let agent_pid = agent.pid()?;
    agent.kill9(agent_pid)?;
    agent.spawn(&[])?;
    wait_running(&mut agent, "nic", 1)?;
    std::thread::sleep(std::time::Duration::from_secs(2));
    ensure!(
        pid(&agent, "nic")? == before,
        "a restart of the agent restarted it"
    );
    veth.unplug()?;
    wait_gone(&mut agent, "nic")?;
    agent.finish()
}

fn armed() -> Result<()> {
    let mut agent = Agent::start("armed")?;
    agent.apply(&DOCUMENTS.replace(
        "labels: {device: \"$kernel\"}",
        "labels: {device: \"$kernel\"}\n  armed: 1",
    ))?;
    agent.wait_for("one is armed", |a| Ok(a.in_state("armed")?.len() == 1))?;
    let prepared = agent.in_state("armed")?[0]["pid"]
        .as_i64()
        .context("an armed container has a pid")?;
    let mut disk = Loop::number(303);
    disk.plug()?;
    wait_running(&mut agent, "disk", 1)?;
    ensure!(
        pid(&agent, "disk")? == prepared,
        "another container than the armed one was started"
    );
    let log = name(&agent, "disk")?;
    agent.wait_for("it speaks", |a| Ok(a.ok(&["logs", &log])?.contains("policy")))?;
    disk.unplug()?;
    wait_gone(&mut agent, "disk")?;
    agent.finish()
}

fn explain() -> Result<()> {
    let agent = Agent::start("explain")?;
    agent.apply(DOCUMENTS)?;
    let other = agent.ok(&["device", "explain", "/sys/devices/virtual/block/loop0"])?;
    ensure!(
        other.contains("KERNEL") && other.contains("loop0"),
        "no clause with its actual value:\n{other}"
    );
    let list = agent.json(&["device", "ls"])?;
    ensure!(list.to_string().contains("loop0"), "loop0 is not listed");
    ip(&["link", "show", "lo"])?;
    agent.finish()
}
