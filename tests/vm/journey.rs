//! The main journey in a guest with PREEMPT_RT, cgroup v2, isolcpus and udevd.

use anyhow::{Context, Result, ensure};
use berth_tests::vm::Vm;
use serde_json::json;

use crate::boots::Guest;
use crate::devices::LIMIT;
use crate::lanes::Trial;
use crate::on_guest;

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

/// The journey's tests, in order.
pub(crate) fn tests(guest: &Guest) -> Vec<Trial> {
    vec![
        guest.test("the guest is what it should be", node),
        guest.test("journey: usb serial adapter on an isolated core", serial),
        guest.test("journey: virtio network card, resync and restart inside", network),
        guest.test("journey: nothing is left", nothing_left),
    ]
}

fn node(vm: &mut Vm) -> Result<()> {
    let facts = vm.sh(
        "uname -r; cat /sys/kernel/realtime /sys/devices/system/cpu/isolated /sys/fs/cgroup/cgroup.controllers; pidof systemd-udevd",
    )?;
    ensure!(facts.contains("-rt-"), "not a PREEMPT_RT kernel: {facts}");
    ensure!(facts.contains("2-3"), "no isolated CPUs: {facts}");
    // 4 CPUs are 2 cores of 2 threads, each core on a memory node of its own, and two of them have no tick.
    let shape = vm.sh(
        "cd /sys/devices/system; cat cpu/online cpu/nohz_full node/online cpu/cpu0/topology/thread_siblings_list \
         cpu/cpu3/topology/thread_siblings_list node/node0/cpulist node/node1/cpulist",
    )?;
    ensure!(
        shape == "0-3\n2-3\n0-1\n0-1\n2-3\n0-1\n2-3\n",
        "CPUs online, nohz_full, memory nodes, siblings, CPUs of each node are\n{shape}"
    );
    on_guest::agent(vm)?;
    vm.sh(&format!(
        "cat >/tmp/journey.yaml <<'EOF'\n{DOCUMENTS}\nEOF\nberth check /tmp/journey.yaml"
    ))?;
    on_guest::apply(vm, DOCUMENTS).map(drop)
}

/// Policy and rt_priority of a process as the kernel has them.
fn policy(vm: &mut Vm, pid: i64) -> Result<String> {
    vm.sh(&format!("sed 's/.*) //' /proc/{pid}/stat | cut -d' ' -f38,39"))
}

fn isolated(vm: &mut Vm, pid: i64) -> Result<()> {
    let group = vm.sh(&format!("sed -n 's/^0:://p' /proc/{pid}/cgroup"))?;
    let group = group.trim();
    let partition = vm.sh(&format!("cat /sys/fs/cgroup{group}/cpuset.cpus.partition"))?;
    ensure!(
        partition.trim() == "isolated",
        "the partition of {group} is {partition}"
    );
    let cpus = vm.sh(&format!(
        "sed -n 's/^Cpus_allowed_list:\\t//p' /proc/{pid}/status"
    ))?;
    ensure!(cpus.trim() == "2-3", "allowed CPUs are {cpus}");
    Ok(())
}

fn serial(vm: &mut Vm) -> Result<()> {
    for round in 0..2 {
        vm.plug(
            "usb-serial",
            json!({"id": "serial0", "bus": "xhci.0", "chardev": "adapter0", "always-plugged": true}),
        )?;
        let name = on_guest::running(vm, "tty")?;
        let pid = on_guest::in_phase(vm, "tty", "running")?["pid"]
            .as_i64()
            .context("no pid")?;
        ensure!(
            policy(vm, pid)?.trim() == "50 1",
            "round {round}: rt_priority and policy are {}",
            policy(vm, pid)?
        );
        isolated(vm, pid)?;
        let proof = vm.sh(&format!("berth prove {name}"))?;
        ensure!(
            proof.to_lowercase().contains("fifo"),
            "round {round}: no word of FIFO in\n{proof}"
        );
        vm.until(
            "the worker opened the tty",
            &format!("berth logs {name} | grep -q '\"open\":true'"),
            LIMIT,
        )?;
        vm.unplug("serial0")?;
        on_guest::gone(vm, "tty")?;
    }
    Ok(())
}

fn network(vm: &mut Vm) -> Result<()> {
    for round in 0..2 {
        vm.plug(
            "virtio-net-pci",
            json!({"id": "net0", "bus": "rp0", "netdev": "net1", "mac": "52:54:00:be:27:01"}),
        )?;
        let name = on_guest::running(vm, "nic")?;
        let pid = on_guest::in_phase(vm, "nic", "running")?["pid"]
            .as_i64()
            .context("no pid")?;
        ensure!(
            policy(vm, pid)?.trim() == "20 2",
            "round {round}: rt_priority and policy are {}",
            policy(vm, pid)?
        );
        isolated(vm, pid)?;
        let inside = vm.sh(&format!("berth exec {name} -- /bin/ip link show eth0"))?;
        ensure!(
            inside.to_lowercase().contains("52:54:00:be:27:01"),
            "round {round}: eth0 inside is {inside}"
        );
        // A resync and a restart of the agent while the interface is inside: nothing is killed.
        vm.sh("for p in $(pidof berth); do case $(tr '\\0' ' ' </proc/$p/cmdline) in *'berth agent'*) kill -HUP $p;; esac; done; sleep 1")?;
        on_guest::kill_agent(vm)?;
        on_guest::agent(vm)?;
        vm.sh("sleep 3")?;
        on_guest::running(vm, "nic")?;
        let after = on_guest::in_phase(vm, "nic", "running")?["pid"]
            .as_i64()
            .context("no pid")?;
        ensure!(after == pid, "round {round}: pid {pid} became {after}");
        vm.unplug("net0")?;
        on_guest::gone(vm, "nic")?;
    }
    Ok(())
}

fn nothing_left(vm: &mut Vm) -> Result<()> {
    on_guest::delete(vm, DOCUMENTS)?;
    let left = vm.sh(
        "find /sys/fs/cgroup/berth -mindepth 1 -type d 2>/dev/null; grep berth/containers /proc/mounts; \
         ls /run/berth/containers /run/berth/monitors 2>/dev/null | grep -v : ; pidof device-worker; true",
    )?;
    ensure!(left.trim().is_empty(), "left in the guest:\n{left}");
    Ok(())
}
