//! Agent, launcher and monitors in their own domains, and the categories the launcher gives.

use anyhow::{Context, Result, ensure};
use berth_tests::vm::Vm;

use super::bundle::denials;
use crate::devices::LIMIT;
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
metadata: {name: shared}
spec:
  image: berth-sample-busybox:latest
  command: ["/bin/sh", "-c", "trap 'exit 0' TERM; echo up; while :; do sleep 0.2; done"]
  cpus: shared
---
apiVersion: berth/v1
kind: Workload
metadata: {name: fifo}
spec:
  image: berth-sample-worker:latest
  args: ["--period", "20ms"]
  profile: realtime
  cpus: 1
  realtime: {scheduler: {policy: fifo, priority: 50}}
---
apiVersion: berth/v1
kind: Workload
metadata: {name: writable}
spec:
  image: berth-sample-busybox:latest
  command: ["/bin/sh", "-c", "trap 'exit 0' TERM; cp /bin/busybox /echo && /echo ran; while :; do sleep 0.2; done"]
  profile: system
  cpus: shared
"#;

/// Start one of berth's daemons in its domain.
fn daemon(vm: &mut Vm, command: &str) -> Result<()> {
    let domain = if command.starts_with("launcher") {
        "berth_launcher_t"
    } else {
        "berth_agent_t"
    };
    vm.sh(&format!(
        "(setsid runcon system_u:system_r:{domain}:s0-s0:c0.c1023 /usr/bin/berth {command} </dev/null 2>&1 | cat >>/run/berth-agent.log) &"
    ))
    .map(drop)
}

/// Pids of the launcher (not of its monitors).
const LAUNCHERS: &str = "for p in /proc/[0-9]*; do [ \"$(cat $p/comm 2>/dev/null)\" = berth-launcher ] && echo ${p#/proc/}; done; true";

pub(super) fn daemons(vm: &mut Vm) -> Result<()> {
    vm.sh("dmesg -c >/dev/null")?;
    daemon(vm, "launcher")?;
    vm.until("the launcher listens", "[ -S /run/berth/launcher.sock ]", LIMIT)?;
    daemon(vm, "agent --launcher external")?;
    vm.until("the agent answers", "berth ps", LIMIT)?;
    on_guest::apply(vm, DOCUMENTS)?;
    let mut contexts = Vec::new();
    for workload in ["shared", "fifo", "writable"] {
        let name = on_guest::running(vm, workload)?;
        let pid = on_guest::in_phase(vm, workload, "running")?["pid"]
            .as_i64()
            .context("no pid")?;
        let context = vm.sh(&format!("tr -d '\\0' </proc/{pid}/attr/current"))?;
        let pair = context
            .strip_prefix("system_u:system_r:berth_container_t:s0:")
            .with_context(|| format!("{workload} is {context}"))?;
        ensure!(pair.split(',').count() == 2, "{workload} is {context}");
        let owner = vm.sh(&format!("readlink /run/berth/selinux/{pair}"))?;
        ensure!(owner.trim() == name, "{pair} belongs to {owner}, not to {name}");
        let proof = vm.sh(&format!("berth prove {name}"))?;
        ensure!(proof.contains("lsm.label") && proof.contains(&context), "{proof}");
        let shm = vm.sh(&format!("grep ' /dev/shm ' /proc/{pid}/mountinfo"))?;
        ensure!(
            shm.contains(&format!("berth_container_file_t:s0:{pair}")),
            "no mount label: {shm}"
        );
        let inside = vm.sh(&format!(
            "berth exec {name} cat /proc/self/attr/current 2>&1 | cat"
        ));
        if workload != "fifo" {
            let inside = inside?;
            ensure!(
                inside.contains(pair),
                "exec in {workload} is not {pair}: {inside}"
            );
        }
        contexts.push(context);
    }
    vm.until(
        "a program in the writable layer ran",
        "berth logs writable | grep -q ran",
        LIMIT,
    )?;
    contexts.sort();
    contexts.dedup();
    ensure!(
        contexts.len() == 3,
        "two containers have the same pair: {contexts:?}"
    );

    // A new launcher knows the pairs that are taken; an ended container's is free.
    let before = vm.sh("ls /run/berth/selinux")?;
    vm.sh(&format!("kill -9 $({LAUNCHERS})"))?;
    daemon(vm, "launcher")?;
    vm.until(
        "the launcher is back",
        "[ -S /run/berth/launcher.sock ] && berth ps",
        LIMIT,
    )?;
    let after = vm.sh("ls /run/berth/selinux")?;
    ensure!(before == after, "before:\n{before}after:\n{after}");
    on_guest::delete(vm, DOCUMENTS)?;
    for workload in ["shared", "fifo", "writable"] {
        on_guest::gone(vm, workload)?;
    }
    vm.until("every pair is free", "[ -z \"$(ls /run/berth/selinux)\" ]", LIMIT)?;
    let denials = denials(vm)?;
    ensure!(
        denials.is_empty(),
        "berth was denied something it does:\n{denials}"
    );
    Ok(())
}

pub(super) fn unknown_to_the_policy(vm: &mut Vm) -> Result<()> {
    let document = "\
apiVersion: berth/v1
kind: SecurityProfile
metadata: {name: absent}
spec: {extends: strict, selinuxLabel: \"system_u:system_r:absent_t\"}
---
apiVersion: berth/v1
kind: Workload
metadata: {name: absent}
spec:
  image: berth-sample-busybox:latest
  profile: absent
  cpus: shared
";
    on_guest::apply(vm, document)?;
    vm.until(
        "the launch is refused, and says why",
        "berth ps | grep -q 'has no context system_u:system_r:absent_t:s0:c'",
        LIMIT,
    )?;
    on_guest::delete(vm, document)?;
    on_guest::gone(vm, "absent")?;
    let taken = vm.sh("ls /run/berth/selinux")?;
    ensure!(taken.is_empty(), "a refused container keeps its pair: {taken}");
    vm.sh(&format!("kill $(pidof berth) $({LAUNCHERS}); sleep 1"))
        .map(drop)
}
