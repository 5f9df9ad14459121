//! kill -9 of agent, launcher, both, a monitor, among thirty containers: workloads live on, exit codes and logs
//! are not lost, a container without its keeper is never left running.

use anyhow::{Context, Result, ensure};
use berth_tests::agent::{Agent, alive};
use libtest_mimic::Trial;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::collections::BTreeMap;
use std::fs;

use crate::test;

const COUNT: usize = 30;

pub(crate) fn tests() -> Vec<Trial> {
    vec![
        test("crash::kill -9 of the agent among 30", || {
            survive("agent", &["agent"])
        }),
        test("crash::kill -9 of the launcher among 30", || {
            survive("launcher", &["launcher"])
        }),
        test("crash::kill -9 of both among 30", || {
            survive("both", &["agent", "launcher"])
        }),
        test(
            "crash::kill -9 of a monitor takes its container, and it is restarted",
            monitor,
        ),
        test(
            "crash::a container that ends while the agent is dead: exit code and log are kept",
            exit_while_dead,
        ),
        test(
            "crash::an unreadable state file is kept aside and rebuilt",
            corrupt_state,
        ),
    ]
}

fn documents(count: usize) -> String {
    (0..count)
        .map(|i| {
            format!(
                "---\napiVersion: berth/v1\nkind: Workload\nmetadata: {{name: w{i}}}\nspec:\n  image: berth-sample-busybox:latest\n  \
                 command: [\"/bin/sh\", \"-c\", \"echo hello from w{i}; trap 'exit 0' TERM; while :; do sleep 1; done\"]\n  \
                 cpus: shared\n  restart: {{policy: always, delay: 100ms}}\n  stop: {{signal: SIGKILL, grace: 1s}}\n"
            )
        })
        .collect()
}

fn pids(agent: &Agent) -> Result<BTreeMap<String, i64>> {
    agent
        .in_state("running")?
        .into_iter()
        .map(|i| {
            Ok((
                i["workload"].as_str().context("workload")?.to_string(),
                i["pid"].as_i64().context("pid")?,
            ))
        })
        .collect()
}

fn started(name: &str, count: usize) -> Result<Agent> {
    let mut agent = Agent::start(name)?;
    agent.apply(&documents(count))?;
    agent.wait_for("all run", |a| Ok(a.in_state("running")?.len() == count))?;
    Ok(agent)
}

fn survive(name: &str, victims: &[&str]) -> Result<()> {
    let mut agent = started(name, COUNT)?;
    let before = pids(&agent)?;
    let one = agent.in_state("running")?[0]["id"].clone();
    let one = one.as_str().context("id")?;
    for victim in victims {
        let pid = if *victim == "agent" {
            agent.pid()?
        } else {
            agent.launcher()?
        };
        agent.kill9(pid)?;
    }
    for (workload, pid) in &before {
        ensure!(
            alive(Pid::from_raw(i32::try_from(*pid)?)),
            "{workload} (pid {pid}) died with the {name}"
        );
    }
    if victims.contains(&"agent") {
        // By its id a container is reached without the agent.
        agent.ok(&["exec", one, "--", "/bin/sh", "-c", "exit 0"])?;
        agent.spawn(&[])?;
    }
    agent.wait_for("all are found again", |a| {
        Ok(a.in_state("running")?.len() == COUNT)
    })?;
    ensure!(pids(&agent)? == before, "some were restarted");
    ensure!(
        agent.ok(&["logs", "w7"])?.contains("hello from w7"),
        "the log is lost"
    );
    // The launcher works again: one more workload starts.
    agent.apply(&documents(COUNT + 1))?;
    agent.wait_for("one more runs", |a| Ok(a.in_state("running")?.len() == COUNT + 1))?;
    agent.finish()
}

fn monitor() -> Result<()> {
    let mut agent = started("monitor", COUNT)?;
    let before = pids(&agent)?;
    let victim = Pid::from_raw(i32::try_from(before["w3"])?);
    let keeper: i32 = fs::read_to_string(format!("/proc/{victim}/status"))?
        .lines()
        .find_map(|l| l.strip_prefix("PPid:"))
        .context("PPid")?
        .trim()
        .parse()?;
    kill(Pid::from_raw(keeper), Signal::SIGKILL)?;
    agent.wait_for("the container is gone with its monitor", |_| Ok(!alive(victim)))?;
    agent.wait_for("it is restarted by policy", |a| {
        let now = pids(a)?;
        Ok(now.len() == COUNT && now["w3"] != before["w3"])
    })?;
    let now = pids(&agent)?;
    ensure!(
        before.iter().all(|(w, pid)| w == "w3" || now[w] == *pid),
        "others were touched"
    );
    agent.finish()
}

fn exit_while_dead() -> Result<()> {
    let mut agent = Agent::start("exit")?;
    agent.apply(
        "apiVersion: berth/v1\nkind: Workload\nmetadata: {name: brief}\nspec:\n  image: berth-sample-busybox:latest\n  \
         command: [\"/bin/sh\", \"-c\", \"trap 'echo after all; exit 42' USR1; echo last words; while :; do sleep 0.1; done\"]\n  \
         cpus: shared\n  restart: {policy: never}\n",
    )?;
    agent.wait_for("it runs", |a| Ok(a.in_state("running")?.len() == 1))?;
    // Its trap is set by then.
    agent.wait_for("it says so", |a| {
        Ok(a.ok(&["logs", "brief"])?.contains("last words"))
    })?;
    let pid = pids(&agent)?["brief"];
    let agent_pid = agent.pid()?;
    agent.kill9(agent_pid)?;
    nix::sys::signal::kill(
        Pid::from_raw(i32::try_from(pid)?),
        nix::sys::signal::Signal::SIGUSR1,
    )?;
    agent.wait_for("it ends", |_| Ok(!alive(Pid::from_raw(i32::try_from(pid)?))))?;
    agent.spawn(&[])?;
    agent.wait_for("the exit code is known", |a| {
        Ok(a.ok(&["inspect", "brief"])?.contains("42"))
    })?;
    let log = agent.ok(&["logs", "brief"])?;
    ensure!(log.contains("last words") && log.contains("after all"), "{log}");
    agent.finish()
}

fn corrupt_state() -> Result<()> {
    let mut agent = started("corrupt", 5)?;
    let before = pids(&agent)?;
    let agent_pid = agent.pid()?;
    agent.kill9(agent_pid)?;
    let folder = agent.path("state/state");
    let file = folder.join("desired.json");
    ensure!(file.exists(), "no {}", file.display());
    fs::write(&file, "{\"version\": 1, \"work")?;
    agent.spawn(&[])?;
    agent.wait_for("all are found again", |a| Ok(a.in_state("running")?.len() == 5))?;
    ensure!(pids(&agent)? == before, "some were restarted");
    ensure!(
        agent.log().contains("desired.json"),
        "the log does not name the file"
    );
    let aside = fs::read_dir(&folder)?
        .flatten()
        .any(|e| e.file_name().to_string_lossy().contains("corrupt"));
    ensure!(aside, "the unreadable file was not kept aside");
    agent.finish()
}
