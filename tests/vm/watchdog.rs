//! The hardware watchdog (QEMU's i6300esb): kept alive by a live agent and over its quick restart, and the guest is
//! reset when agent or launcher are stopped dead. QEMU's WATCHDOG event is the timer that ran out.

use std::time::Duration;

use anyhow::{Result, ensure};
use berth_tests::vm::Vm;
use serde_json::json;

use crate::boots::Guest;
use crate::devices::LIMIT;
use crate::lanes::Trial;

/// Seconds. An agent that is started again under emulation must be up within it.
const TIMEOUT: u64 = 8;
const AGENT: &str = "setsid berth agent --watchdog /dev/watchdog0 --watchdog-timeout 8 >>/run/berth-agent.log 2>&1 </dev/null &\n";
/// Prints the pids of agents (1: `agent`) or launchers.
const PIDS: &str = "pids() { for p in $(pidof berth berth-launcher); do case $(tr '\\0' ' ' </proc/$p/cmdline) in *\"berth $1\"*) echo $p;; esac; done; }\n";

/// In order; the last two end in a reset, and the very last leaves the guest behind.
pub(crate) fn tests(guest: &Guest) -> Vec<Trial> {
    vec![
        guest.test("watchdog: kept alive, over a quick restart too", kept),
        guest.test("watchdog: stopped by an orderly end, refusals", orderly),
        guest.test("watchdog: a launcher that does not answer", launcher),
        guest.test("watchdog: an agent that is stopped resets the node", stopped),
        guest.test("watchdog: an agent that is killed resets the node", killed),
    ]
}

fn start(vm: &mut Vm) -> Result<()> {
    vm.sh(&format!(
        "modprobe i6300esb; [ -c /dev/watchdog0 ] || exit 1\n{AGENT}true"
    ))?;
    vm.until("the agent answers", "berth ps", LIMIT).map(drop)
}

fn state(vm: &mut Vm) -> Result<String> {
    vm.sh("cd /sys/class/watchdog/watchdog0; cat identity state timeout")
}

fn fired(vm: &mut Vm, limit: Duration) -> Result<bool> {
    Ok(vm.event("WATCHDOG", limit)?.is_some())
}

fn kept(vm: &mut Vm) -> Result<()> {
    vm.sh(&format!("{PIDS}kill $(pids agent); sleep 1"))?;
    start(vm)?;
    let now = state(vm)?;
    ensure!(
        now.starts_with("i6300ESB") && now.ends_with("active\n8\n") && !now.contains("inactive"),
        "{now}"
    );
    ensure!(
        !fired(vm, Duration::from_secs(TIMEOUT + 4))?,
        "a live agent did not keep it alive"
    );
    vm.sh(&format!("{PIDS}kill -9 $(pids agent); sleep 1\n{AGENT}true"))?;
    vm.until("the agent answers", "berth ps", LIMIT)?;
    ensure!(
        !fired(vm, Duration::from_secs(TIMEOUT + 4))?,
        "a quick restart did not keep it alive"
    );
    let scrape = vm.sh("wget -qO- http://127.0.0.1:9464/metrics | grep ^berth_watchdog")?;
    ensure!(scrape.contains("berth_watchdog_timeout_seconds 8"), "{scrape}");
    Ok(())
}

fn orderly(vm: &mut Vm) -> Result<()> {
    let flags = "--run-dir /run/other --state-dir /run/other --config-dir /run/other --metrics off --watchdog /dev/watchdog0";
    let (code, said) = vm.run(&format!("berth agent {flags}"))?;
    ensure!(
        code == 1 && said.contains("somebody else has it"),
        "exit {code}: {said}"
    );
    vm.sh(&format!("{PIDS}kill $(pids agent); sleep 2"))?;
    ensure!(
        state(vm)?.contains("inactive"),
        "SIGTERM left it running: {}",
        state(vm)?
    );
    let (code, said) = vm.run(&format!("berth agent {flags} --watchdog-pretimeout 2"))?;
    ensure!(
        code == 1 && said.contains("pre-timeout"),
        "this driver has none; exit {code}: {said}"
    );
    ensure!(
        state(vm)?.contains("inactive"),
        "a refused start left it running: {}",
        state(vm)?
    );
    ensure!(!fired(vm, Duration::from_secs(1))?, "it ran out");
    Ok(())
}

fn launcher(vm: &mut Vm) -> Result<()> {
    start(vm)?;
    vm.qmp("watchdog-set-action", json!({"action": "none"}))?;
    vm.sh(&format!("{PIDS}kill -STOP $(pids launcher)"))?;
    ensure!(
        fired(vm, LIMIT)?,
        "it is kept alive although the launcher does not answer"
    );
    let log = vm.sh(&format!(
        "{PIDS}kill -CONT $(pids launcher); grep 'launcher does not answer' /run/berth-agent.log; kill $(pids agent); sleep 2"
    ))?;
    ensure!(
        log.contains("not kept alive"),
        "the agent does not say why:\n{log}"
    );
    // What fired while nothing was done counts no more.
    while fired(vm, Duration::from_secs(1))? {}
    vm.qmp("watchdog-set-action", json!({"action": "reset"}))
        .map(drop)
}

fn stopped(vm: &mut Vm) -> Result<()> {
    vm.sh("sync")?;
    start(vm)?;
    vm.sh(&format!("sync; {PIDS}kill -STOP $(pids agent)"))?;
    ensure!(fired(vm, LIMIT)?, "the agent is stopped and nothing happens");
    vm.ready()?;
    let up = vm.sh("cut -d. -f1 /proc/uptime")?;
    ensure!(up.trim().parse::<u64>()? < 300, "not booted again: up for {up}s");
    Ok(())
}

/// A device that is in place over the reset has its workload started once.
fn killed(vm: &mut Vm) -> Result<()> {
    crate::plug::put_in_place(vm)?;
    // What is to be there after the reset is on the disk before anything has to be kept alive: while much is written, the
    // agent's own files wait for it, longer than the watchdog does.
    vm.sh("sync")?;
    start(vm)?;
    vm.sh(&format!("sync; {PIDS}kill -9 $(pids agent)"))?;
    ensure!(fired(vm, LIMIT)?, "the agent is dead and nothing happens");
    vm.ready()?;
    crate::plug::still_in_place(vm)
}
