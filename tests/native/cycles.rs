//! Many cycles and many devices: what is there has its container, what is gone has none, nothing leaks.

use anyhow::{Result, ensure};
use berth_tests::agent::Agent;
use berth_tests::node::Loop;
use libtest_mimic::Trial;

use crate::journey::{wait_gone, wait_running};
use crate::{rounds, test};

/// A whole core under SCHED_FIFO. The program neither opens the device (opening the node of a loop device that has
/// just gone makes a new one) nor minds how it is stopped: the cycles are the kernel's and berth's alone.
const WHOLE: &str = r#"
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
  image: berth-sample-busybox:latest
  command: ["/bin/sleep", "1000"]
  profile: realtime
  run: onDevice
  cpus: 1
  realtime:
    scheduler: {policy: fifo, priority: 50}
    budget: {runtime: 50ms, period: 1s}
  stop: {signal: SIGKILL, grace: 5s}
---
apiVersion: berth/v1
kind: HotplugRule
metadata: {name: disk}
spec:
  match: |
    SUBSYSTEM=="block", KERNEL=="loop304"
  workload: disk
  device: {path: /dev/disk, access: r}
"#;

/// The shared pool, for many at once.
const SHARED: &str = r#"
apiVersion: berth/v1
kind: Workload
metadata: {name: many}
spec:
  image: berth-sample-busybox:latest
  command: ["/bin/sleep", "1000"]
  profile: device-worker
  run: onDevice
  cpus: shared
  stop: {signal: SIGKILL, grace: 5s}
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
    agent.apply(WHOLE)?;
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
