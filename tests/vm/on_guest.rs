//! What the tests do with berth in a guest.

use anyhow::{Context, Result};
use berth_tests::vm::Vm;
use serde_json::Value;

use crate::devices::LIMIT;

/// Start the agent unless it runs.
pub(crate) fn agent(vm: &mut Vm) -> Result<()> {
    vm.sh(
        "berth ps >/dev/null 2>&1 || { setsid berth agent >>/run/berth-agent.log 2>&1 </dev/null & true; }",
    )?;
    vm.until("the agent answers", "berth ps", LIMIT).map(drop)
}

/// Kill the agent, and the agent alone, with SIGKILL.
pub(crate) fn kill_agent(vm: &mut Vm) -> Result<()> {
    vm.sh(
        "for p in $(pidof berth); do case $(tr '\\0' ' ' </proc/$p/cmdline) in *'berth agent'*) kill -9 $p;; esac; done; sleep 1",
    )
    .map(drop)
}

/// Apply documents.
pub(crate) fn apply(vm: &mut Vm, yaml: &str) -> Result<String> {
    vm.sh(&format!(
        "cat >/tmp/documents.yaml <<'EOF'\n{yaml}\nEOF\nberth apply /tmp/documents.yaml"
    ))
}

/// Delete documents.
pub(crate) fn delete(vm: &mut Vm, yaml: &str) -> Result<()> {
    vm.sh(&format!(
        "cat >/tmp/documents.yaml <<'EOF'\n{yaml}\nEOF\nberth delete /tmp/documents.yaml"
    ))
    .map(drop)
}

/// The containers of `ps`.
pub(crate) fn ps(vm: &mut Vm) -> Result<Vec<Value>> {
    let text = vm.sh("berth ps -o json")?;
    let list: Value = serde_json::from_str(&text).with_context(|| text.clone())?;
    list.as_array().cloned().context("ps is not a list")
}

/// Wait until a container of `workload` is in `phase`; its description.
pub(crate) fn in_phase(vm: &mut Vm, workload: &str, phase: &str) -> Result<Value> {
    let begin = std::time::Instant::now();
    loop {
        let list = ps(vm)?;
        if let Some(found) = list
            .iter()
            .find(|c| c["workload"] == workload && c["phase"] == phase)
        {
            return Ok(found.clone());
        }
        if begin.elapsed() > LIMIT {
            anyhow::bail!(
                "{workload} is not {phase} within {LIMIT:?}:\n{}",
                serde_json::to_string_pretty(&list)?
            );
        }
        std::thread::sleep(std::time::Duration::from_millis(200));
    }
}

/// Wait until a container of `workload` runs; its name.
pub(crate) fn running(vm: &mut Vm, workload: &str) -> Result<String> {
    Ok(in_phase(vm, workload, "running")?["name"]
        .as_str()
        .context("no name")?
        .to_string())
}

/// Wait until `workload` has no container.
pub(crate) fn gone(vm: &mut Vm, workload: &str) -> Result<()> {
    let begin = std::time::Instant::now();
    while ps(vm)?.iter().any(|c| c["workload"] == workload) {
        anyhow::ensure!(
            begin.elapsed() < LIMIT,
            "{workload} is not gone within {LIMIT:?}:\n{}",
            vm.sh("berth ps")?
        );
        std::thread::sleep(std::time::Duration::from_millis(200));
    }
    Ok(())
}
