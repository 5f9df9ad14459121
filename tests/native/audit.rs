//! The audit logs of a running node: what is in them, and that a hand on them is found.

use std::fs;

use anyhow::{Context, Result, ensure};
use berth_tests::agent::Agent;
use libtest_mimic::Trial;
use nix::sys::signal::{Signal, kill};
use serde_json::Value;

use crate::test;

pub(crate) fn tests() -> Vec<Trial> {
    vec![
        test(
            "audit::who did what, each launch with its proof, each refusal, each change",
            whole,
        ),
        test("audit::a cut, a change and a swap are found by record", hands),
        test("audit::kill -9 of agent and launcher leaves whole chains", killed),
        test(
            "audit::a taken-over agent asks for what the policy forbids",
            forbidden,
        ),
    ]
}

fn workload(name: &str, extra: &str) -> String {
    format!(
        "---\napiVersion: berth/v1\nkind: Workload\nmetadata: {{name: {name}}}\nspec:\n  image: berth-sample-busybox:latest\n  \
         command: [\"/bin/sleep\", \"1000\"]\n  cpus: shared\n  stop: {{signal: SIGKILL}}\n  restart: {{policy: never}}\n{extra}"
    )
}

fn ls(agent: &Agent, args: &[&str]) -> Result<Vec<Value>> {
    let list = agent.json(&[&["audit", "ls"], args].concat())?;
    Ok(list.as_array().context("a list")?.clone())
}

fn whole() -> Result<()> {
    let mut agent = Agent::prepare("audit")?;
    let file = agent.path("config/documents.yaml");
    fs::write(&file, workload("filed", ""))?;
    agent.spawn(&[])?;
    agent.apply(&workload(
        "web",
        "  env: [{name: TOKEN, value: \"word-in-env\"}]\n",
    ))?;
    agent.wait_for("both run", |a| Ok(a.in_state("running")?.len() == 2))?;
    fs::write(&file, workload("filed", "  pids: 50\n"))?;
    kill(agent.pid()?, Signal::SIGHUP)?;
    agent.wait_for("the change is recorded", |a| {
        let list = ls(a, &["--kind", "configuration"])?;
        Ok(list.iter().any(|r| {
            r["text"]
                .as_str()
                .is_some_and(|t| t.contains("Workload/filed") && t.contains("pids"))
        }))
    })?;
    agent.refused(&["stop", "nobody\u{1b}[2J"])?;
    agent.ok(&["exec", "web", "true"])?;
    agent.ok(&["restart", "web"])?;
    let launches = ls(
        &agent,
        &["--chain", "launcher", "--kind", "launch", "--subject", "web"],
    )?;
    ensure!(launches.len() == 2, "{launches:#?}");
    for launch in &launches {
        let proof = &launch["detail"]["proof"];
        ensure!(
            proof["digest"].as_str().is_some_and(|d| d.starts_with("sha256:")) && proof["holds"] == true,
            "{proof}"
        );
    }
    let mine = i64::from(nix::unistd::getpid().as_raw());
    for (kind, text) in [("api", "apply"), ("api", "restart")] {
        let list = ls(&agent, &["--kind", kind, "--uid", "0"])?;
        let by = list
            .iter()
            .find(|r| r["text"] == text)
            .with_context(|| format!("{list:#?}"))?;
        // The command is a child of this test.
        ensure!(
            by["who"]["pid"]
                .as_i64()
                .is_some_and(|pid| pid > 1 && pid != mine)
                && by["who"]["role"] == "admin",
            "{by}"
        );
    }
    ensure!(
        !ls(&agent, &["--chain", "launcher", "--kind", "exec"])?.is_empty(),
        "exec is not recorded"
    );
    let refused = ls(&agent, &["--kind", "api", "--result", "refused"])?;
    ensure!(
        refused
            .iter()
            .any(|r| r["text"] == "stop" && r["subject"].as_str().is_some_and(|s| s.contains("\\u{1b}"))),
        "{refused:#?}"
    );
    let text = agent.ok(&["audit", "ls"])?;
    ensure!(
        !text.contains('\u{1b}') && !text.contains("word-in-env"),
        "{text}"
    );
    agent.ok(&["audit", "verify"])?;
    agent.finish()
}

/// Both chains of an agent that was stopped.
fn quiet(name: &str) -> Result<Agent> {
    let mut agent = Agent::start(name)?;
    agent.apply(&workload("web", ""))?;
    agent.wait_for("it runs", |a| Ok(a.in_state("running")?.len() == 1))?;
    agent.ok(&["stop", "--all"])?;
    agent.ok(&["audit", "verify"])?;
    Ok(agent)
}

fn hands() -> Result<()> {
    let agent = quiet("hands")?;
    let head = agent.ok(&["audit", "head"])?;
    let noted = head
        .lines()
        .find(|l| l.starts_with("launcher:"))
        .context("a head")?
        .to_owned();
    let path = agent.path("state/audit/launcher/current.log");
    let good = fs::read_to_string(&path)?;
    let lines: Vec<String> = good.lines().map(|l| format!("{l}\n")).collect();
    ensure!(lines.len() > 4, "{good}");
    let found = |lines: &[String], word: &str| -> Result<()> {
        fs::write(&path, lines.concat())?;
        let text = agent.refused(&["audit", "verify"])?;
        ensure!(
            text.contains(word) && text.contains("audit/launcher"),
            "{word}: {text}"
        );
        fs::write(&path, &good)?;
        agent.ok(&["audit", "verify"]).map(drop)
    };
    let mut changed = lines.clone();
    changed[2] = changed[2]
        .replace("\"uid\":0", "\"uid\":7")
        .replace("\"kind\":\"", "\"kind\":\"x");
    found(&changed, "record 3 was changed")?;
    let mut swapped = lines.clone();
    swapped.swap(1, 2);
    found(&swapped, "record 2 stands where 4 should")?;
    found(
        &lines[..lines.len() - 1],
        &format!("records {0} to {0} were cut off", lines.len()),
    )?;
    let mut out = lines.clone();
    out.remove(1);
    found(&out, "records 2 to 2 are missing")?;
    // Somebody who may write everything cuts the chain and its head: the head that was noted elsewhere tells.
    agent.ok(&["audit", "verify", "--head", &noted])?;
    let shorter = lines[..lines.len() - 2].concat();
    let last: Value = serde_json::from_str(lines[lines.len() - 3].trim_end())?;
    let head_path = agent.path("state/audit/launcher/head");
    let mut head: Value = serde_json::from_str(fs::read_to_string(&head_path)?.trim())?;
    (head["seq"], head["hash"], head["bytes"]) =
        (last["seq"].clone(), last["hash"].clone(), shorter.len().into());
    fs::write(&path, shorter)?;
    fs::write(&head_path, format!("{head:<511}\n"))?;
    let text = agent.refused(&["audit", "verify", "--head", &noted])?;
    ensure!(text.contains("seal"), "{text}");
    agent.finish()
}

fn killed() -> Result<()> {
    let mut agent = Agent::start("auditkill")?;
    for round in 0..3 {
        agent.apply(&workload(&format!("w{round}"), ""))?;
        let (launcher, pid) = (agent.launcher()?, agent.pid()?);
        agent.kill9(launcher)?;
        agent.kill9(pid)?;
        agent.spawn(&[])?;
    }
    agent.wait_for("all run", |a| Ok(a.in_state("running")?.len() == 3))?;
    agent.ok(&["audit", "verify"])?;
    let starts = ls(&agent, &["--chain", "agent", "--kind", "agent"])?;
    let starts: Vec<&Value> = starts
        .iter()
        .filter(|r| r["text"].as_str().is_some_and(|t| t.starts_with("starts")))
        .collect();
    ensure!(starts.len() == 4, "{starts:#?}");
    agent.finish()
}

/// The agent's documents ask, the launcher's policy decides: with the shipped defaults.
fn forbidden() -> Result<()> {
    let mut agent = Agent::prepare("forbidden")?;
    fs::remove_dir_all(agent.path("config/launcher"))?;
    agent.spawn(&[])?;
    let cases = [
        (
            "mounts",
            "  mounts: [{source: /etc, destination: /data, readOnly: true}]\n",
            "/etc may not",
        ),
        ("network", "  network: host\n", "host's network"),
        ("privileged", "  profile: privileged\n", "privileged"),
    ];
    for (name, extra, word) in cases {
        agent.apply(&workload(name, extra))?;
        agent.wait_for("the launcher refuses it", |a| {
            let text = a.ok(&["inspect", name])?;
            Ok(text.contains(word) && text.contains("policy.yaml"))
        })?;
        let records = ls(
            &agent,
            &["--chain", "launcher", "--result", "refused", "--subject", name],
        )?;
        ensure!(!records.is_empty(), "{name} is not recorded");
    }
    ensure!(agent.in_state("running")?.is_empty(), "something runs");
    agent.finish()
}
