//! Where a workload's waits are counted: the scheduler's account, or berth's probe where the kernel keeps none. The account is
//! taken away from the agent alone, by a mount over its own /proc/PID/schedstat; in that mount namespace no user namespace may
//! mount /proc, so the containers have none.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use berth_tests::agent::{Agent, alive};
use libtest_mimic::Trial;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::test;

const DOCUMENTS: &str = r#"
apiVersion: berth/v1
kind: Node
metadata: {name: test}
spec:
  cpus: {housekeeping: "0", isolated: "1"}
---
apiVersion: berth/v1
kind: Workload
metadata: {name: probed}
spec:
  image: berth-sample-busybox:latest
  command: ["/bin/sleep", "1000"]
  profile: realtime
  cpus: 1
  realtime: {scheduler: {policy: fifo, priority: 50}}
  restart: {policy: never}
  stop: {signal: SIGKILL, grace: 1s}
---
apiVersion: berth/v1
kind: Workload
metadata: {name: account}
spec:
  image: berth-sample-busybox:latest
  command: ["/bin/sleep", "1000"]
  profile: realtime
  wakeups: schedstat
  stop: {signal: SIGKILL, grace: 1s}
"#;

const ASKED: &str = r#"
apiVersion: berth/v1
kind: Workload
metadata: {name: asked}
spec:
  image: berth-sample-busybox:latest
  command: ["/bin/sleep", "1000"]
  wakeups: probe
  stop: {signal: SIGKILL, grace: 1s}
"#;

pub(crate) fn tests() -> Vec<Trial> {
    vec![
        test(
            "wakeups::a kernel without schedstat: a probe counts, below the workload",
            probed,
        ),
        test(
            "wakeups::with schedstat there is no probe, unless the document asks",
            asked,
        ),
    ]
}

/// Where `name` is counted, as `berth ps` says.
fn by(agent: &Agent, name: &str) -> Result<String> {
    let list = agent.in_state("running")?;
    let of = list.iter().find(|c| c["workload"] == name);
    Ok(of
        .and_then(|c| c["wakeups"].as_str())
        .unwrap_or_default()
        .to_owned())
}

/// Probes in the containers of this agent.
fn probes(agent: &Agent) -> Result<Vec<Pid>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")?.flatten() {
        let read = |file: &str| fs::read_to_string(entry.path().join(file)).unwrap_or_default();
        let Some(pid) = entry.file_name().to_str().and_then(|n| n.parse().ok()) else {
            continue;
        };
        if read("comm").trim() == "berth-probe" && read("cgroup").contains(&agent.cgroup) {
            found.push(Pid::from_raw(pid));
        }
    }
    Ok(found)
}

fn counted(agent: &Agent, source: &str, workload: &str) -> Result<Option<u64>> {
    let head = format!("berth_run_delay_seconds_count{{source=\"{source}\",workload=\"{workload}\"}} ");
    let text = agent.metrics()?;
    Ok(text
        .lines()
        .find_map(|line| line.strip_prefix(&head)?.trim().parse().ok()))
}

fn probed() -> Result<()> {
    let mut agent = Agent::prepare("probed")?;
    let hide = "mount --bind /dev/null /proc/$$/schedstat && exec \"$@\"";
    let words = [
        "unshare",
        "-m",
        "--propagation",
        "private",
        "sh",
        "-c",
        hide,
        "sh",
    ];
    agent.enter(words.map(String::from).to_vec());
    agent.spawn(&[])?;
    agent.enter(Vec::new());
    agent.apply(DOCUMENTS)?;
    agent.wait_for("both run", |a| Ok(a.in_state("running")?.len() == 2))?;
    agent.wait_for("the probe is named", |a| {
        Ok(by(a, "probed")? == "probe, SCHED_FIFO 49")
    })?;
    let inspected = agent.ok(&["inspect", "probed"])?;
    ensure!(inspected.contains("probe, SCHED_FIFO 49"), "{inspected}");
    ensure!(
        by(&agent, "account")? == "none: the kernel keeps no account (CONFIG_SCHED_INFO)",
        "{}",
        by(&agent, "account")?
    );
    // One process, below the workload, on its core, without a right or a descriptor.
    let all = probes(&agent)?;
    let [probe] = all[..] else {
        anyhow::bail!("probes: {all:?}")
    };
    let folder = Path::new("/proc").join(probe.to_string());
    agent.wait_for("it samples", |_| {
        let status = fs::read_to_string(folder.join("status"))?;
        let has = |line: &str| status.lines().any(|l| l == line);
        Ok(has("Cpus_allowed_list:\t1")
            && has("Uid:\t65534\t65534\t65534\t65534")
            && has("CapPrm:\t0000000000000000")
            && has("NoNewPrivs:\t1")
            && has("Threads:\t1"))
    })?;
    let stat = fs::read_to_string(folder.join("stat"))?;
    let fields: Vec<&str> = stat.rsplit(") ").next().unwrap_or_default().split(' ').collect();
    // Fields 40 and 41 of proc(5), rt_priority and policy (1: SCHED_FIFO), counted from the third.
    ensure!((fields[37], fields[38]) == ("49", "1"), "{stat}");
    ensure!(
        fs::read_dir(folder.join("fd"))?.count() == 0,
        "it has descriptors"
    );
    agent.wait_for("it is counted", |a| {
        Ok(counted(a, "probe", "probed")?.is_some_and(|n| n > 10))
    })?;
    ensure!(
        counted(&agent, "schedstat", "probed")?.is_none(),
        "both are counted"
    );
    let text = agent.metrics()?;
    ensure!(
        text.contains("berth_run_delay_source{source=\"probe\"} 1"),
        "{text}"
    );
    // The running proof passes it over, and still holds.
    agent.ok(&["prove", "probed"])?;
    let drift = agent.json(&["ps"])?;
    ensure!(!drift.to_string().contains("\"drift\":[\""), "{drift}");
    // Whoever ends it is told.
    kill(probe, Signal::SIGKILL)?;
    agent.wait_for("its end is told", |a| {
        Ok(by(a, "probed")?.contains("none: the probe ended: signal 9"))
    })?;
    agent.finish()
}

fn asked() -> Result<()> {
    ensure!(
        Path::new("/proc/self/schedstat").exists(),
        "this kernel keeps no account: the test above is all there is"
    );
    let mut agent = Agent::start("asked")?;
    agent.apply(&DOCUMENTS.replace("name: account", "name: other"))?;
    agent.wait_for("both run", |a| Ok(a.in_state("running")?.len() == 2))?;
    ensure!(by(&agent, "probed")? == "schedstat", "{}", by(&agent, "probed")?);
    ensure!(
        probes(&agent)?.is_empty(),
        "a probe although the kernel keeps an account"
    );
    agent.apply(ASKED)?;
    agent.wait_for("the probe is named", |a| {
        Ok(by(a, "asked")? == "probe, SCHED_OTHER nice 1")
    })?;
    let probe = *probes(&agent)?.first().context("no probe")?;
    agent.wait_for("it is counted", |a| {
        Ok(counted(a, "probe", "asked")?.is_some_and(|n| n > 0))
    })?;
    ensure!(
        counted(&agent, "schedstat", "probed")?.is_some(),
        "{}",
        agent.metrics()?
    );
    agent.ok(&["stop", "asked"])?;
    agent.wait_for("its probe ended with it", |_| Ok(!alive(probe)))?;
    agent.finish()
}
