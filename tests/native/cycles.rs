//! Many cycles and many devices: what is there has its container, what is gone has none, nothing leaks.

use anyhow::{Result, ensure};
use berth_tests::agent::Agent;
use berth_tests::node::Loop;
use libtest_mimic::Trial;

use crate::journey::{DOCUMENTS, wait_gone, wait_running};
use crate::{rounds, test};

/// The shared pool, for many at once.
const SHARED: &str = r#"
apiVersion: berth/v1
kind: Workload
metadata: {name: many}
spec:
  image: berth-sample-worker:latest
  args: ["--device", "/dev/disk", "--look-once", "--period", "200ms"]
  profile: device-worker
  run: onDevice
  cpus: shared
---
apiVersion: berth/v1
kind: HotplugRule
metadata: {name: many}
spec:
  match: |
    SUBSYSTEM=="block", KERNEL=="loop4[0-9][0-9]"
  workload: many
  device: {path: /dev/disk, access: r}
"#;

pub(crate) fn tests() -> Vec<Trial> {
    vec![
        test("cycles::500 plug and unplug cycles", cycles),
        test("cycles::50 devices at once", many),
    ]
}

fn open_files(agent: &Agent) -> Result<usize> {
    Ok(std::fs::read_dir(format!("/proc/{}/fd", agent.pid()?))?.count())
}

fn cycles() -> Result<()> {
    let mut agent = Agent::start("cycles")?;
    agent.apply(DOCUMENTS)?;
    let mut disk = Loop::number(304);
    let mut files = 0;
    for round in 0..rounds(500) {
        disk.plug()?;
        wait_running(&mut agent, "disk", 1)?;
        disk.unplug()?;
        wait_gone(&mut agent, "disk")?;
        if round == 10 {
            files = open_files(&agent)?;
        }
    }
    let now = open_files(&agent)?;
    ensure!(
        now <= files + 4,
        "{files} open files after 10 cycles, {now} at the end"
    );
    agent.finish()
}

fn many() -> Result<()> {
    let mut agent = Agent::start("many")?;
    agent.apply(SHARED)?;
    let mut disks: Vec<Loop> = (400..450).map(Loop::number).collect();
    for disk in &mut disks {
        disk.plug()?;
    }
    wait_running(&mut agent, "many", 50)?;
    // Half of them go: exactly those containers end.
    for disk in disks.iter_mut().step_by(2) {
        disk.unplug()?;
    }
    wait_running(&mut agent, "many", 25)?;
    let listed = agent.json(&["ps"])?.to_string();
    for (i, disk) in disks.iter().enumerate() {
        ensure!(
            listed.contains(&disk.name()) == (i % 2 == 1),
            "{} is wrong in {listed}",
            disk.name()
        );
    }
    for disk in disks.iter_mut().skip(1).step_by(2) {
        disk.unplug()?;
    }
    wait_gone(&mut agent, "many")?;
    agent.finish()
}
