//! Interrupts and guarding: what is plugged keeps off the given-away cores before the first instruction of its workload,
//! and what a running one loses behind its back is told.

use anyhow::{Context, Result, ensure};
use berth_tests::vm::Vm;
use serde_json::json;

use crate::boots::Guest;
use crate::devices::LIMIT;
use crate::lanes::Trial;
use crate::on_guest;

const NODE: &str = "apiVersion: berth/v1\nkind: Node\nmetadata: {name: guest}\nspec:\n  cpus: {housekeeping: \"0-1\", isolated: \"2-3\"}\n";

/// A guest with something behind every device.
pub(crate) fn plugged(guest: &Guest) -> Vec<Trial> {
    vec![
        guest.test("interrupts of a plugged network card keep off its cores", network),
        guest.test(
            "interrupts of an NVMe disk plugged later keep off the cores",
            disk,
        ),
    ]
}

/// A guest booted without isolcpus.
pub(crate) fn guarding(guest: &Guest) -> Vec<Trial> {
    vec![
        guest.test(
            "a CPU that goes off line, and a partition that is none any more",
            guarded,
        ),
        guest.test(
            "throttled, visited, its CPUs taken: told, and put back where it can be",
            watched,
        ),
    ]
}

fn workload(name: &str, run: &str, isolation: &str, realtime: &str) -> String {
    format!(
        "---\napiVersion: berth/v1\nkind: Workload\nmetadata: {{name: {name}}}\nspec:\n  image: berth-sample-busybox:latest\n  \
         command: [\"/bin/sleep\", \"1000\"]\n  run: {run}\n  profile: realtime\n  cpus: 1\n  isolation: {isolation}\n{realtime}"
    )
}

/// Interrupts that may go to CPU 2 or 3, but for those that the kernel keeps.
const ON_CORES: &str = "for f in /proc/irq/[0-9]*/smp_affinity; do m=$(cat $f); [ $((0x$m & 12)) = 0 ] || ! echo $m 2>/dev/null >$f || echo ${f%/*}; done; true";

fn off_cores(vm: &mut Vm) -> Result<()> {
    let there = vm.sh(ON_CORES)?;
    ensure!(there.trim().is_empty(), "may go to the cores: {there}");
    let future = vm.sh("echo $((0x$(cat /proc/irq/default_smp_affinity) & 12))")?;
    ensure!(future.trim() == "0", "those to come may go to {future}");
    Ok(())
}

fn network(vm: &mut Vm) -> Result<()> {
    on_guest::agent(vm)?;
    let before = vm.sh("cat /proc/irq/default_smp_affinity")?;
    let documents = format!(
        "{NODE}{}---\napiVersion: berth/v1\nkind: HotplugRule\nmetadata: {{name: nic}}\nspec:\n  match: |\n    \
         SUBSYSTEM==\"net\", DRIVERS==\"virtio_net\"\n  workload: nic\n  interface: {{name: eth0}}\n",
        workload(
            "nic",
            "onDevice",
            "required",
            "  realtime: {class: soft, cStates: disable}\n"
        )
    );
    on_guest::apply(vm, &documents)?;
    vm.plug(
        "virtio-net-pci",
        json!({"id": "net0", "bus": "rp0", "netdev": "net1", "mac": "52:54:00:be:27:09"}),
    )?;
    let name = on_guest::running(vm, "nic")?;
    // Its driver spreads a card's queues over all CPUs: they were moved before the program began, as its proof says.
    off_cores(vm)?;
    let proof = vm.sh(&format!("berth prove {name}"))?;
    ensure!(
        proof.contains("none of others on CPUs 2-3") && proof.contains("idle states"),
        "{proof}"
    );
    let cards = vm.sh("grep -c virtio /proc/interrupts; true")?;
    ensure!(cards.trim() != "0", "the card has no interrupts");
    vm.unplug("net0")?;
    on_guest::gone(vm, "nic")?;
    on_guest::delete(vm, &documents)?;
    let after = vm.sh("cat /proc/irq/default_smp_affinity")?;
    ensure!(
        before == after,
        "the default affinity was {before}, and is {after}"
    );
    Ok(())
}

fn disk(vm: &mut Vm) -> Result<()> {
    on_guest::agent(vm)?;
    let documents = format!(
        "{NODE}{}",
        workload("still", "always", "any", "  realtime: {irqs: away}\n")
    );
    on_guest::apply(vm, &documents)?;
    let name = on_guest::running(vm, "still")?;
    off_cores(vm)?;
    vm.plug(
        "nvme",
        json!({"id": "nvme0", "bus": "rp2", "drive": "disk1", "serial": "BERTHQUIET"}),
    )?;
    vm.until("the disk has interrupts", "grep -q nvme /proc/interrupts", LIMIT)?;
    vm.until(
        "they are off the cores",
        &format!("[ -z \"$({ON_CORES})\" ] && berth prove {name} >/dev/null"),
        LIMIT,
    )?;
    // What the driver keeps for the queues of those CPUs is told.
    let kept = vm.sh(
        "for f in /proc/irq/[0-9]*/smp_affinity; do [ $((0x$(cat $f) & 12)) = 0 ] || echo $f; done; true",
    )?;
    let proof = vm.sh(&format!("berth prove {name}"))?;
    ensure!(
        kept.trim().is_empty() || proof.contains("the kernel keeps"),
        "{kept} is kept, and not told: {proof}"
    );
    vm.unplug("nvme0")?;
    on_guest::delete(vm, &documents)?;
    on_guest::gone(vm, "still")
}

fn guarded(vm: &mut Vm) -> Result<()> {
    on_guest::agent(vm)?;
    let documents = format!("{NODE}{}", workload("kept", "always", "required", ""));
    on_guest::apply(vm, &documents)?;
    let name = on_guest::running(vm, "kept")?;
    let told = |vm: &mut Vm, fact: &str| {
        let seen = format!("berth events | grep -i drift | grep kept | grep -q '{fact}'");
        vm.until(&format!("{fact} is told"), &seen, LIMIT).map(drop)
    };
    vm.sh("echo 0 >/sys/devices/system/cpu/cpu3/online")?;
    told(vm, "cpus.isolation")?;
    vm.sh("echo 1 >/sys/devices/system/cpu/cpu3/online")?;
    // By the running proof: what it has not seen mended is no second drift.
    vm.until(
        "all holds again",
        r#"berth ps -o json | tr -d ' \n' | grep -q '"drift":\[\]'"#,
        LIMIT,
    )?;
    let group = on_guest::in_phase(vm, "kept", "running")?["pid"]
        .as_i64()
        .map(|pid| format!("/sys/fs/cgroup$(sed -n 's/^0:://p' /proc/{pid}/cgroup)"))
        .context("no pid")?;
    // What the kernel does to a partition when a CPU is claimed elsewhere: it is a member's again, or invalid.
    vm.sh(&format!("echo member >{group}/cpuset.cpus.partition"))?;
    vm.until(
        "it is told a second time",
        "[ $(berth events | grep -i drift | grep kept | grep -c cpus.isolation) -ge 2 ]",
        LIMIT,
    )?;
    vm.sh(&format!("echo isolated >{group}/cpuset.cpus.partition"))?;
    vm.until(
        "all holds again",
        &format!("berth prove {name} >/dev/null"),
        LIMIT,
    )?;
    on_guest::delete(vm, &documents)?;
    on_guest::gone(vm, "kept")
}

/// A container that always wants its core, `onDrift: repair`: a bandwidth limit stops it, an interrupt's thread comes to its core, and its exclusive CPUs are taken away above it.
fn watched(vm: &mut Vm) -> Result<()> {
    on_guest::agent(vm)?;
    let busy = workload("busy", "always", "required", "  onDrift: repair\n").replace(
        "[\"/bin/sleep\", \"1000\"]",
        "[\"/bin/sh\", \"-c\", \"while :; do :; done\"]",
    );
    let documents = format!("{NODE}{busy}");
    on_guest::apply(vm, &documents)?;
    let name = on_guest::running(vm, "busy")?;
    let pid = on_guest::in_phase(vm, "busy", "running")?["pid"]
        .as_i64()
        .context("no pid")?;
    let group = vm.sh(&format!(
        "echo /sys/fs/cgroup$(sed -n 's/^0:://p' /proc/{pid}/cgroup)"
    ))?;
    let group = group.trim();
    let cpu = vm.sh(&format!("cat {group}/cpuset.cpus"))?;
    let cpu = cpu.trim();
    let told = |vm: &mut Vm, fact: &str, words: &str| {
        let seen = format!("berth events | grep -i drift | grep busy | grep '{fact}' | grep -q '{words}'");
        vm.until(&format!("{fact}: {words}"), &seen, LIMIT).map(drop)
    };
    let holds = |vm: &mut Vm| {
        let all = r#"berth ps -o json | tr -d ' \n' | grep -q '"drift":\[\]'"#;
        vm.until("all holds again", all, LIMIT).map(drop)
    };
    // Nobody asked for the controller.
    vm.sh("for d in /sys/fs/cgroup /sys/fs/cgroup/berth; do echo +cpu >$d/cgroup.subtree_control; done")?;
    vm.sh(&format!("echo '20000 100000' >{group}/cpu.max"))?;
    told(vm, "cpus.throttled", "periods")?;
    vm.sh(&format!("echo 'max 100000' >{group}/cpu.max"))?;
    holds(vm)?;
    vm.sh(&format!(
        "for f in /proc/irq/[0-9]*/smp_affinity_list; do echo {cpu} 2>/dev/null >$f; done; sleep 1; grep . /proc/irq/*/effective_affinity_list"
    ))?;
    told(vm, "cpus.strangers", "irq/")?;
    vm.sh("for f in /proc/irq/[0-9]*/smp_affinity_list; do echo 0-1 2>/dev/null >$f; done; true")?;
    holds(vm)?;
    // From above: the partition has nothing to stand on.
    vm.sh("echo >/sys/fs/cgroup/berth/cpuset.cpus.exclusive; true")?;
    told(vm, "cpus.isolation", "put back")?;
    vm.until("proven again", &format!("berth prove {name} >/dev/null"), LIMIT)?;
    let metrics = vm.sh("wget -qO- http://127.0.0.1:9464/metrics | grep berth_drift_facts_total")?;
    for fact in [
        "cpus.starved",
        "cpus.throttled",
        "cpus.strangers",
        "cpus.isolation",
    ] {
        ensure!(metrics.contains(fact), "{fact} is not in {metrics}");
    }
    on_guest::delete(vm, &documents)?;
    on_guest::gone(vm, "busy")
}
