//! A plain node: Debian's cloud kernel of the same version, without PREEMPT_RT. What it lacks is told; what it can do
//! it does.

use anyhow::{Context, Result, ensure};
use berth_tests::vm::Vm;
use serde_json::Value;

use crate::boots::Guest;
use crate::lanes::Trial;
use crate::{devices, on_guest};

pub(crate) fn tests(guest: &Guest) -> Vec<Trial> {
    let mut tests = vec![
        guest.test("a node without PREEMPT_RT", node),
        guest.test(
            "the option it lacks is a finding with its cost, not a failure",
            findings,
        ),
        guest.test("fifo on a whole core", fifo),
    ];
    tests.extend(devices::some(guest, &["virtio-net", "nvme"]));
    tests.extend(crate::vfio::tests(guest));
    tests
}

fn node(vm: &mut Vm) -> Result<()> {
    let facts = vm.sh("uname -r; cat /sys/kernel/realtime 2>/dev/null; true")?;
    ensure!(
        facts.contains("cloud") && !facts.contains("-rt-") && facts.lines().count() == 1,
        "not the kernel this test is about: {facts}"
    );
    on_guest::agent(vm)?;
    vm.sh("berth node show && berth ps").map(drop)
}

fn findings(vm: &mut Vm) -> Result<()> {
    let yaml =
        "apiVersion: berth/v1\nkind: Node\nmetadata: {name: guest}\nspec:\n  realtime: {kernel: true}\n";
    let (code, text) = vm.run(&format!(
        "cat >/tmp/node.yaml <<'EOF'\n{yaml}\nEOF\nberth node check --from /tmp/node.yaml -o json"
    ))?;
    let checked: Value = serde_json::from_str(&text).with_context(|| text.clone())?;
    ensure!(code == 1, "exit {code}: {text}");
    let found = checked["findings"].as_array().context("no findings")?;
    let kernel = found
        .iter()
        .find(|finding| finding["knob"] == "realtime-kernel")
        .with_context(|| format!("no word of the kernel: {text}"))?;
    let says = |field: &str, words: &str| kernel[field].as_str().is_some_and(|text| text.contains(words));
    ensure!(
        kernel["state"] == "missing"
            && says("reason", "built without CONFIG_PREEMPT_RT")
            && says("mend", "boot a kernel with CONFIG_PREEMPT_RT")
            && says("mend", "else interrupt handlers and critical sections delay"),
        "the option and what its lack costs are not in {kernel}"
    );
    // The document holds all the same, and the agent goes on with it.
    on_guest::agent(vm)?;
    on_guest::apply(vm, yaml)?;
    vm.sh("berth ps")?;
    on_guest::delete(vm, yaml)
}

pub(crate) fn fifo(vm: &mut Vm) -> Result<()> {
    let yaml = "apiVersion: berth/v1\nkind: Workload\nmetadata: {name: loop}\nspec:\n  image: berth-sample-worker:latest\n  \
                args: [\"--period\", \"20ms\"]\n  profile: realtime\n  cpus: 1\n  isolation: any\n  \
                realtime: {scheduler: {policy: fifo, priority: 50}}\n";
    on_guest::apply(vm, yaml)?;
    let container = on_guest::in_phase(vm, "loop", "running")?;
    let pid = container["pid"].as_i64().context("no pid")?;
    let actual = vm.sh(&format!("sed 's/.*) //' /proc/{pid}/stat | cut -d' ' -f38,39"))?;
    ensure!(actual.trim() == "50 1", "rt_priority and policy are {actual}");
    let proof = vm.sh("berth prove loop")?;
    ensure!(
        proof.to_lowercase().contains("fifo"),
        "no word of FIFO in\n{proof}"
    );
    on_guest::delete(vm, yaml)?;
    on_guest::gone(vm, "loop")
}
