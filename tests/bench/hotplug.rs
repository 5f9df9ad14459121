//! From the plug to the released exec stop: a loop device (kernel events, settle 0) launched cold and from an armed
//! container, and a virtual Ethernet interface beyond the kernel's own move of it.
//!
//! The beginning is the clock before the ioctl (or `ip link add`) that makes the device; the end is the moment the
//! monitor notes when it lets the first instruction run. Both are CLOCK_REALTIME of one machine.

use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use berth_tests::agent::Agent;
use berth_tests::node::{Loop, Veth};
use serde_json::Value;

use crate::stats::{Sample, Table};

const DOCUMENTS: &str = r#"
apiVersion: berth/v1
kind: Workload
metadata: {name: bench}
spec:
  image: berth-sample-busybox:latest
  command: ["/bin/sleep", "1000"]
  run: onDevice
  cpus: shared
  stop: {signal: SIGKILL, grace: 1s}
---
apiVersion: berth/v1
kind: HotplugRule
metadata: {name: bench-disk}
spec:
  match: |
    SUBSYSTEM=="block", KERNEL=="loop500"
  workload: bench
  device: {path: /dev/disk, access: r}
  settle: 0s
  armed: ARMED
---
apiVersion: berth/v1
kind: Workload
metadata: {name: bench-nic}
spec:
  image: berth-sample-busybox:latest
  command: ["/bin/sleep", "1000"]
  run: onDevice
  cpus: shared
  stop: {signal: SIGKILL, grace: 1s}
---
apiVersion: berth/v1
kind: HotplugRule
metadata: {name: bench-nic}
spec:
  match: |
    SUBSYSTEM=="net", KERNEL=="bb0"
  workload: bench-nic
  interface: {name: eth0}
  settle: 0s
"#;

/// Nanoseconds since the epoch.
fn now() -> f64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0.0, |d| d.as_nanos() as f64)
}

/// Wait for the running instance of `workload`; its `startedAt` in nanoseconds since the epoch.
fn started(agent: &mut Agent, workload: &str) -> Result<f64> {
    let mut at = None;
    agent.wait_for("it runs", |a| {
        at = a
            .in_state("running")?
            .iter()
            .find(|i| i["workload"] == workload)
            .and_then(|i| i["startedAt"].as_f64());
        Ok(at.is_some())
    })?;
    at.context("no startedAt")
}

fn gone(agent: &mut Agent, workload: &str) -> Result<()> {
    agent.wait_for("it is gone", |a| {
        let list: Value = a.json(&["ps"])?;
        Ok(!list.as_array().is_some_and(|l| {
            l.iter()
                .any(|i| i["workload"] == workload && i["phase"] != "armed")
        }))
    })
}

pub(crate) fn run(table: &mut Table, rounds: usize) -> Result<()> {
    for (name, armed, bound) in [("cold", "0", 15.0), ("armed", "1", 4.0)] {
        let mut agent = Agent::start("bench-plug")?;
        agent.apply(&DOCUMENTS.replace("ARMED", armed))?;
        let mut sample = Sample::default();
        let mut disk = Loop::number(500);
        for round in 0..rounds + 2 {
            if armed == "1" {
                agent.wait_for("one is armed", |a| Ok(a.in_state("armed")?.len() == 1))?;
            }
            let begin = now();
            disk.plug()?;
            let millis = (started(&mut agent, "bench")? - begin) / 1e6;
            disk.unplug()?;
            gone(&mut agent, "bench")?;
            if round >= 2 {
                sample.push(millis);
            }
        }
        table.alone(
            format!("loop device, {name}: plug → exec stop released"),
            "ms",
            &sample,
            Some(bound),
        );
        agent.finish()?;
    }
    interface(table, rounds)
}

/// The interface. Making the pair and moving one end are the kernel's work, tens of milliseconds under its one lock
/// and different each time; so both are measured within the very plug that is judged: until `ip link add` has returned,
/// and the monitor's own step `interfaces` (the netlink request that moves and renames it). What is left is berth's.
fn interface(table: &mut Table, rounds: usize) -> Result<()> {
    let mut agent = Agent::start("bench-nic")?;
    agent.apply(&DOCUMENTS.replace("ARMED", "0"))?;
    let (mut whole, mut kernel, mut beyond) = (Sample::default(), Sample::default(), Sample::default());
    for round in 0..rounds.min(20) + 2 {
        let begin = now();
        let mut veth = Veth::plug("bb0")?;
        let made = (now() - begin) / 1e6;
        let millis = (started(&mut agent, "bench-nic")? - begin) / 1e6;
        let details = agent.json(&["inspect", "bench-nic-bb0"])?;
        let details = details.get(0).cloned().unwrap_or(details);
        let steps = details["timing"].as_array().context("no timing in inspect")?;
        let moved = steps
            .iter()
            .find(|step| step[0] == "interfaces")
            .and_then(|step| step[1].as_f64());
        let share = made + moved.context("no step `interfaces` in the timing")? / 1e3;
        veth.unplug()?;
        gone(&mut agent, "bench-nic")?;
        if round >= 2 {
            whole.push(millis);
            kernel.push(share);
            beyond.push(millis - share);
        }
    }
    table.beside(
        "veth: plug → exec stop released",
        "ms",
        &whole,
        ("the kernel's add and move", &kernel),
        None,
    );
    table.alone(
        "veth: berth's own time beyond the measured move",
        "ms",
        &beyond,
        Some(4.0),
    );
    agent.finish()
}
