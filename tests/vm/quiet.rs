//! Interrupts and guarding: what is plugged keeps off the given-away cores before the first instruction of its workload,
//! and what a running one loses behind its back is told.

use anyhow::{Context, Result, ensure};
use berth_rt::cpu::CpuSet;
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
        guest.test("interrupts of a plugged NVMe disk keep off its cores", own_disk),
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

/// A program whose first act is to look where each interrupt goes and may go, with no process beside it.
const LOOKS: &str = r#"["/bin/sh", "-c", "for f in /proc/irq/[0-9]*; do read -r goes <$f/effective_affinity_list; read -r may <$f/smp_affinity_list; echo first: ${f##*/} ${goes:-none} $may; done; echo looked; exec sleep 1000"]"#;

/// An interrupt as the program saw it.
struct Seen {
    irq: u32,
    goes: CpuSet,
    may: CpuSet,
}

/// The node's interrupts, by number.
fn interrupts(vm: &mut Vm) -> Result<Vec<u32>> {
    let all = vm.sh("cd /proc/irq; echo [0-9]*")?;
    Ok(all
        .split_ascii_whitespace()
        .filter_map(|n| n.parse().ok())
        .collect())
}

/// What the program of [`LOOKS`] saw when it began: of those not in `known`, which came with its device. None may go to its
/// cores but what the kernel refuses to move. On x86 without interrupt remapping one that was moved still goes where it
/// went until it is raised: its proof names it, as it names what is kept.
fn looked(vm: &mut Vm, name: &str, known: &[u32]) -> Result<Vec<Seen>> {
    let log = vm.until(
        "it has looked",
        &format!("berth logs {name} >/tmp/log && grep -q looked /tmp/log && cat /tmp/log"),
        LIMIT,
    )?;
    let mut all = Vec::new();
    for (_, words) in log.lines().filter_map(|line| line.split_once("first: ")) {
        let [irq, goes, may] = words.split_ascii_whitespace().collect::<Vec<_>>()[..] else {
            anyhow::bail!("{words:?} in {log}");
        };
        all.push(Seen {
            irq: irq.parse()?,
            goes: if goes == "none" {
                CpuSet::new()
            } else {
                goes.parse()?
            },
            may: may.parse()?,
        });
    }
    ensure!(all.len() > 5, "only {} interrupts in {log}", all.len());
    let cores: CpuSet = "2-3".parse()?;
    let proof = vm.sh(&format!("berth prove {name}"))?;
    let line = proof
        .lines()
        .find(|line| line.contains("none of others on CPUs 2-3"));
    let line = line.with_context(|| proof.clone())?.to_owned();
    for Seen { irq, goes, may } in &all {
        if may.is_disjoint(&cores) && goes.is_disjoint(&cores) {
            continue;
        }
        let there = format!("{irq} went to {goes} and may go to {may} when it began");
        let (moved, _) = vm.run(&format!(
            "echo 0-1 2>/dev/null >/proc/irq/{irq}/smp_affinity_list"
        ))?;
        ensure!(may.is_disjoint(&cores) || moved != 0, "{there}, and can be moved");
        let now: CpuSet = vm
            .sh(&format!("cat /proc/irq/{irq}/effective_affinity_list"))?
            .trim()
            .parse()?;
        let told = line.split([' ', ',', ';']).any(|word| word == irq.to_string());
        ensure!(
            now.is_disjoint(&cores) || told,
            "{there}, which is not in: {line}"
        );
    }
    all.retain(|seen| !known.contains(&seen.irq));
    ensure!(!all.is_empty(), "the device has no interrupts: {log}");
    let on = all.iter().filter(|seen| !seen.goes.is_disjoint(&cores)).count();
    println!(
        "{on} of {} interrupts of the device went to its cores when {name} began",
        all.len()
    );
    Ok(all)
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
        .replace("[\"/bin/sleep\", \"1000\"]", LOOKS)
    );
    on_guest::apply(vm, &documents)?;
    let known = interrupts(vm)?;
    vm.plug(
        "virtio-net-pci",
        json!({"id": "net0", "bus": "rp0", "netdev": "net1", "mac": "52:54:00:be:27:09"}),
    )?;
    let name = on_guest::running(vm, "nic")?;
    // The kernel spreads a card's interrupts over all CPUs: they were moved before the program began, as it saw itself.
    let own = looked(vm, &name, &known)?;
    let cores: CpuSet = "2-3".parse()?;
    ensure!(
        own.iter().all(|seen| seen.may.is_disjoint(&cores)),
        "the card's own may go to its cores"
    );
    off_cores(vm)?;
    let proof = vm.sh(&format!("berth prove {name}"))?;
    ensure!(
        proof.contains("none of others on CPUs 2-3") && proof.contains("idle states"),
        "{proof}"
    );
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

/// The interrupts of a disk's queues are managed: the kernel refuses to move them. When the program begins, none but those may
/// go to its cores, and its proof names each.
fn own_disk(vm: &mut Vm) -> Result<()> {
    on_guest::agent(vm)?;
    let documents = format!(
        "{NODE}{}---\napiVersion: berth/v1\nkind: HotplugRule\nmetadata: {{name: disk}}\nspec:\n  match: |\n    \
         SUBSYSTEM==\"block\", KERNEL==\"nvme*n*\", ENV{{DEVTYPE}}==\"disk\"\n  workload: disk\n  device: {{path: /dev/device}}\n",
        workload("disk", "onDevice", "required", "  realtime: {irqs: away}\n")
            .replace("[\"/bin/sleep\", \"1000\"]", LOOKS)
    );
    on_guest::apply(vm, &documents)?;
    let known = interrupts(vm)?;
    vm.plug(
        "nvme",
        json!({"id": "nvme0", "bus": "rp2", "drive": "disk1", "serial": "BERTHFIRST"}),
    )?;
    let name = on_guest::running(vm, "disk")?;
    let own = looked(vm, &name, &known)?;
    let cores: CpuSet = "2-3".parse()?;
    ensure!(
        own.iter().any(|seen| seen.may.is_disjoint(&cores)),
        "none of the disk's was moved"
    );
    vm.unplug("nvme0")?;
    on_guest::gone(vm, "disk")?;
    on_guest::delete(vm, &documents)
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
