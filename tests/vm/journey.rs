//! The main journey in a guest with PREEMPT_RT, cgroup v2, isolcpus and udevd.

use std::time::Duration;

use anyhow::{Result, ensure};
use berth_tests::vm::Vm;
use libtest_mimic::Trial;
use serde_json::json;

use crate::Guest;

const LIMIT: Duration = Duration::from_secs(120);

const DOCUMENTS: &str = r#"
apiVersion: berth/v1
kind: Node
metadata: {name: guest}
spec:
  cpus: {housekeeping: "0-1", isolated: "2-3"}
---
apiVersion: berth/v1
kind: Workload
metadata: {name: tty}
spec:
  image: berth-sample-worker:latest
  args: ["--device", "/dev/port", "--period", "20ms"]
  run: onDevice
  profile: realtime
  cpus: 1
  isolation: required
  realtime: {scheduler: {policy: fifo, priority: 50}}
---
apiVersion: berth/v1
kind: HotplugRule
metadata: {name: serial}
spec:
  match: |
    SUBSYSTEM=="tty", KERNEL=="ttyUSB*", SUBSYSTEMS=="usb", ATTRS{idVendor}=="0403"
  workload: tty
  device: {path: /dev/port, access: rw}
---
apiVersion: berth/v1
kind: Workload
metadata: {name: nic}
spec:
  image: berth-sample-worker:latest
  args: ["--interface", "eth0", "--period", "20ms"]
  run: onDevice
  profile: device-worker
  cpus: 1
  isolation: required
  realtime: {scheduler: {policy: rr, priority: 20}}
---
apiVersion: berth/v1
kind: HotplugRule
metadata: {name: nic}
spec:
  match: |
    SUBSYSTEM=="net", DRIVERS=="virtio_net"
  workload: nic
  interface: {name: eth0}
"#;

/// The tests of this guest.
pub(crate) fn tests(guest: &Guest) -> Vec<Trial> {
    vec![
        guest.test("the guest is what it should be", node),
        guest.test("usb serial adapter", serial),
        guest.test("virtio network card", network),
        guest.test("nothing is left", nothing_left),
    ]
}

fn node(vm: &mut Vm) -> Result<()> {
    let facts = vm.sh("uname -r; cat /sys/kernel/realtime /sys/devices/system/cpu/isolated /sys/fs/cgroup/cgroup.controllers; pidof systemd-udevd")?;
    ensure!(facts.contains("-rt-"), "not a PREEMPT_RT kernel: {facts}");
    ensure!(facts.contains("2-3"), "no isolated CPUs: {facts}");
    vm.sh(&format!(
        "cat >/etc/berth/journey.yaml <<'EOF'\n{DOCUMENTS}\nEOF\nberth check /etc/berth/journey.yaml"
    ))?;
    vm.sh("setsid berth agent >/run/berth-agent.log 2>&1 </dev/null & exit 0")?;
    vm.until("the agent answers", "berth ps", LIMIT)?;
    Ok(())
}

fn running(vm: &mut Vm, workload: &str) -> Result<()> {
    vm.until(
        &format!("{workload} runs"),
        &format!("berth ps; berth ps -o json | grep -A40 '\"workload\": *\"{workload}\"' | grep -q '\"phase\": *\"running\"'"),
        LIMIT,
    )?;
    Ok(())
}

fn gone(vm: &mut Vm, workload: &str) -> Result<()> {
    vm.until(
        &format!("{workload} is gone"),
        &format!("berth ps; ! berth ps -o json | grep -q '\"workload\": *\"{workload}\"'"),
        LIMIT,
    )?;
    Ok(())
}

fn serial(vm: &mut Vm) -> Result<()> {
    let adapter = json!({"id": "serial0", "bus": "xhci.0", "chardev": "serial0", "always-plugged": true});
    for round in 0..2 {
        vm.plug("usb-serial", adapter.clone())?;
        running(vm, "tty")?;
        let proof = vm.sh("berth prove")?;
        ensure!(
            proof.to_lowercase().contains("fifo"),
            "round {round}: the proof does not say FIFO:\n{proof}"
        );
        let partition = vm.sh("cat /sys/fs/cgroup/berth/*/cpuset.cpus.partition")?;
        ensure!(
            partition.trim() == "isolated",
            "round {round}: partition is {partition}"
        );
        vm.until("the worker opened the tty", "berth logs $(berth ps -o json | sed -n 's/.*\"name\": *\"\\([^\"]*\\)\".*/\\1/p' | head -1) | grep -q '\"policy\"'", LIMIT)?;
        vm.unplug("serial0")?;
        gone(vm, "tty")?;
    }
    Ok(())
}

fn network(vm: &mut Vm) -> Result<()> {
    let card = json!({"id": "net0", "bus": "rp0", "netdev": "net0", "mac": "52:54:00:be:27:01"});
    for round in 0..2 {
        vm.plug("virtio-net-pci", card.clone())?;
        running(vm, "nic")?;
        let proof = vm.sh("berth prove")?;
        ensure!(
            proof.to_lowercase().contains("rr"),
            "round {round}: the proof does not say RR:\n{proof}"
        );
        let inside = vm.sh("berth exec $(berth ps -o json | sed -n 's/.*\"name\": *\"\\([^\"]*\\)\".*/\\1/p' | head -1) -- /bin/ip link show eth0")?;
        ensure!(
            inside.to_lowercase().contains("52:54:00:be:27:01"),
            "round {round}: eth0 inside is {inside}"
        );
        // A resync and a restart of the agent while the interface is inside: nothing is killed.
        let pid = vm.sh("pidof device-worker")?;
        vm.sh("kill -9 $(pidof berth | tr ' ' '\\n' | while read p; do tr '\\0' ' ' </proc/$p/cmdline | grep -q 'berth agent' && echo $p; done); sleep 1; setsid berth agent >>/run/berth-agent.log 2>&1 </dev/null & exit 0")?;
        vm.until("the agent answers again", "berth ps", LIMIT)?;
        vm.sh("sleep 3")?;
        running(vm, "nic")?;
        ensure!(
            vm.sh("pidof device-worker")? == pid,
            "round {round}: the workload was restarted"
        );
        vm.unplug("net0")?;
        gone(vm, "nic")?;
    }
    Ok(())
}

fn nothing_left(vm: &mut Vm) -> Result<()> {
    let left = vm.sh("berth stop --all; find /sys/fs/cgroup/berth -mindepth 1 -type d 2>/dev/null; grep -c berth/containers /proc/mounts; ls /run/berth/containers /run/berth/monitors; pidof device-worker; true")?;
    ensure!(!left.contains("/sys/fs/cgroup"), "left in the guest:\n{left}");
    ensure!(vm.run("pidof device-worker")?.0 != 0, "a worker is left");
    Ok(())
}
