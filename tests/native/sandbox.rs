//! The agent's own sandbox: in force, proven from outside, and refused when a step of it does nothing.

use std::process::Command;

use anyhow::{Context, Result, ensure};
use berth_tests::agent::{Agent, binary};
use libtest_mimic::Trial;
use serde_json::Value;

use crate::test;

/// Each step of the agent's sandbox, and a word of what must be said when it does nothing.
const STEPS: [(&str, &str); 4] = [
    ("capset", "CapEff"),
    ("prctl:38", "no_new_privs"),
    ("seccomp:1", "system call filter"),
    ("landlock_restrict_self", "Landlock"),
];

pub(crate) fn tests() -> Vec<Trial> {
    vec![
        test(
            "sandbox::berth prove agent and launcher read it from the kernel",
            proven,
        ),
        test(
            "sandbox::a step that does nothing keeps the agent from serving",
            sabotaged,
        ),
        test(
            "sandbox::the starter starts launchers and ends with its agent",
            starter,
        ),
    ]
}

fn fact<'a>(facts: &'a [Value], name: &str) -> Result<&'a Value> {
    facts
        .iter()
        .find(|f| f["name"] == name)
        .with_context(|| format!("no {name} in {facts:#?}"))
}

fn proven() -> Result<()> {
    let mut agent = Agent::start("sandbox")?;
    agent.wait_for("the launcher is proven", |a| {
        Ok(a.try_run(&["prove", "launcher"])?.status.success())
    })?;
    let proof = agent.json(&["prove", "agent"])?;
    let facts = proof.as_array().context("facts")?;
    for (name, actual) in [
        ("caps.effective", "0000000000000000"),
        ("caps.bounding", "0000000000000000"),
        ("caps.inheritable", "0000000000000000"),
        ("no_new_privs", "1"),
        ("seccomp.mode", "2"),
        ("threads", "1"),
    ] {
        let fact = fact(facts, name)?;
        ensure!(fact["actual"] == actual && fact["holds"] == true, "{fact}");
    }
    let landlock = fact(facts, "landlock")?;
    ensure!(
        landlock["actual"]
            .as_str()
            .is_some_and(|a| a.starts_with("EACCES")),
        "{landlock}"
    );
    ensure!(fact(facts, "cpus.allowed")?["holds"] == true, "{facts:#?}");
    // Not by its word: the kernel's own file says the same.
    let status = std::fs::read_to_string(format!("/proc/{}/status", agent.pid()?))?;
    for line in ["Seccomp:\t2", "NoNewPrivs:\t1", "CapBnd:\t0000000000000000"] {
        ensure!(status.contains(line), "{line}: {status}");
    }
    agent.finish()
}

fn sabotaged() -> Result<()> {
    let agent = Agent::prepare("saboteur")?;
    for (call, word) in STEPS {
        let folders = [
            ("--run-dir", "run"),
            ("--state-dir", "state"),
            ("--config-dir", "config"),
        ];
        let mut command = Command::new("timeout");
        command
            .args(["20", env!("CARGO_BIN_EXE_berth-sabotage"), call, "--"])
            .arg(binary());
        for (flag, folder) in folders {
            command.arg(flag).arg(agent.path(folder));
        }
        let output = command
            .args(["agent", "--launcher", "external", "--metrics", "off"])
            .output()?;
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(
            output.status.code() == Some(1),
            "{call}: {}: {text}",
            output.status
        );
        ensure!(text.contains(word), "{call}: {word} is not in: {text}");
    }
    Ok(())
}

fn starter() -> Result<()> {
    let mut agent = Agent::start("starter")?;
    agent.wait_for("the launcher is there", |a| Ok(a.launcher().is_ok()))?;
    ensure!(agent.processes("berth-starter")?.len() == 1, "no starter");
    let (launcher, pid) = (agent.launcher()?, agent.pid()?);
    agent.kill9(launcher)?;
    agent.wait_for("another one is started", |a| {
        Ok(a.launcher().is_ok_and(|l| l != launcher))
    })?;
    agent.kill9(pid)?;
    agent.wait_for("the starter ends with its agent", |a| {
        Ok(a.processes("berth-starter")?.is_empty())
    })?;
    ensure!(agent.launcher().is_ok(), "the launcher ended too");
    agent.spawn(&[])?;
    agent.finish()
}
