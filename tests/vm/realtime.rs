//! Scheduling policies as the kernel has them, and its refusals: on a node without isolcpus, and on PREEMPT_RT 6.1,
//! which has neither remote partitions nor overlayfs with a parameter for each layer.

use anyhow::{Context, Result, ensure};
use berth_tests::vm::Vm;

use crate::boots::Guest;
use crate::devices::LIMIT;
use crate::lanes::Trial;
use crate::on_guest;

/// A guest whose kernel makes remote partitions, booted without isolcpus.
pub(crate) fn partitions(guest: &Guest) -> Vec<Trial> {
    vec![
        guest.test("fifo, rr and deadline in a partition of their own", |vm| {
            on_guest::agent(vm)?;
            for (policy, kernel) in [
                ("policy: fifo, priority: 50", "50 1"),
                ("policy: rr, priority: 20", "20 2"),
                (DEADLINE, "0 6"),
            ] {
                policy_is(vm, policy, "required", kernel, Some("isolated"))?;
            }
            let after = vm.sh("cat /sys/fs/cgroup/cpuset.cpus.effective; sed -n 's/^Cpus_allowed_list:\\t//p' /proc/1/status")?;
            ensure!(after == "0-3\n0-3\n", "effective CPUs of the root and of PID 1 are {after}");
            Ok(())
        }),
        guest.test("deadline beyond what the root domain has is refused", refused_bandwidth),
    ]
}

/// A guest with PREEMPT_RT 6.1 and isolcpus.
pub(crate) fn before_remote(guest: &Guest) -> Vec<Trial> {
    vec![
        guest.test("fifo and rr on pinned cores", |vm| {
            on_guest::agent(vm)?;
            policy_is(vm, "policy: fifo, priority: 50", "any", "50 1", Some("member"))?;
            policy_is(vm, "policy: rr, priority: 20", "any", "20 2", Some("member"))
        }),
        guest.test("required isolation is refused where the kernel gives none", |vm| {
            let yaml = documents("policy: fifo, priority: 50", "required");
            on_guest::apply(vm, &yaml)?;
            let reason = failed(vm)?;
            ensure!(reason.contains("isolat"), "the reason is {reason}");
            on_guest::delete(vm, &yaml)?;
            on_guest::gone(vm, "loop")
        }),
        guest.test("a writable root file system", |vm| {
            let yaml = "apiVersion: berth/v1\nkind: Workload\nmetadata: {name: writes}\nspec:\n  image: berth-sample-busybox:latest\n  \
                        command: [\"/bin/sh\", \"-c\", \"echo x >/written && echo wrote && sleep 1000\"]\n  profile: system\n  cpus: shared\n";
            on_guest::apply(vm, yaml)?;
            let name = on_guest::running(vm, "writes")?;
            vm.until("it has written", &format!("berth logs {name} | grep wrote"), LIMIT)?;
            on_guest::delete(vm, yaml)?;
            on_guest::gone(vm, "writes")
        }),
    ]
}

const DEADLINE: &str = "policy: deadline, runtime: 10ms, deadline: 100ms, period: 100ms";

fn documents(scheduler: &str, isolation: &str) -> String {
    format!(
        "apiVersion: berth/v1\nkind: Node\nmetadata: {{name: guest}}\nspec:\n  cpus: {{housekeeping: \"0-1\", isolated: \"2-3\"}}\n---\n\
         apiVersion: berth/v1\nkind: Workload\nmetadata: {{name: loop}}\nspec:\n  image: berth-sample-worker:latest\n  \
         args: [\"--period\", \"20ms\"]\n  profile: realtime\n  cpus: 1\n  isolation: {isolation}\n  \
         realtime: {{scheduler: {{{scheduler}}}}}\n"
    )
}

/// Runs the loop under `scheduler`: its rt_priority and policy, its partition and its proof.
fn policy_is(
    vm: &mut Vm,
    scheduler: &str,
    isolation: &str,
    kernel: &str,
    partition: Option<&str>,
) -> Result<()> {
    let yaml = documents(scheduler, isolation);
    on_guest::apply(vm, &yaml)?;
    let container = on_guest::in_phase(vm, "loop", "running")?;
    let pid = container["pid"].as_i64().context("no pid")?;
    let name = container["name"].as_str().context("no name")?;
    let actual = vm.sh(&format!("sed 's/.*) //' /proc/{pid}/stat | cut -d' ' -f38,39"))?;
    ensure!(
        actual.trim() == kernel,
        "{scheduler}: rt_priority and policy are {actual}"
    );
    if let Some(partition) = partition {
        let there = vm.sh(&format!(
            "cat /sys/fs/cgroup$(sed -n 's/^0:://p' /proc/{pid}/cgroup)/cpuset.cpus.partition"
        ))?;
        ensure!(there.trim() == partition, "{scheduler}: the partition is {there}");
    }
    vm.sh(&format!("berth prove {name}"))?;
    on_guest::delete(vm, &yaml)?;
    on_guest::gone(vm, "loop")
}

/// Waits until the loop is given up; why.
fn failed(vm: &mut Vm) -> Result<String> {
    let container = on_guest::in_phase(vm, "loop", "failed")?;
    Ok(container["reason"].as_str().context("no reason")?.to_string())
}

/// The kernel admits 10 % of each CPU, and the loop asks for half of one of two. Isolated CPUs have a root domain of
/// their own, which keeps its limit over the life of a partition: so the limit is set while there is one.
fn refused_bandwidth(vm: &mut Vm) -> Result<()> {
    let first = documents("policy: fifo, priority: 50", "required");
    on_guest::apply(vm, &first)?;
    on_guest::running(vm, "loop")?;
    vm.sh("echo 100000 >/proc/sys/kernel/sched_rt_runtime_us")?;
    on_guest::delete(vm, &first)?;
    on_guest::gone(vm, "loop")?;
    let yaml = documents(
        "policy: deadline, runtime: 50ms, deadline: 100ms, period: 100ms",
        "required",
    );
    on_guest::apply(vm, &yaml)?;
    let reason = failed(vm)?;
    ensure!(reason.contains("busy"), "the kernel's EBUSY is not in {reason}");
    on_guest::delete(vm, &yaml)?;
    on_guest::gone(vm, "loop")?;
    let less = "policy: deadline, runtime: 5ms, deadline: 100ms, period: 100ms";
    policy_is(vm, less, "required", "0 6", Some("isolated"))
}
