//! What enforcement and proof add to a launch: a workload under `strict` beside the same one under a profile that enforces nothing
//! beyond the namespaces a container has anyway, launched in turn by one agent.
//!
//! A proof is always taken. So "without" is the other launch less its own step `proof`, as the monitor timed it (`berth inspect
//! -o json`: `timing`); the row is the difference within each round.

use anyhow::{Context, Result, ensure};
use berth_tests::agent::Agent;

use crate::stats::{Sample, Table};

/// No filter, no user namespace, no no_new_privs, no masked or read-only path, no mount flag, every device.
const PROFILE: &str = r#"
apiVersion: berth/v1
kind: SecurityProfile
metadata: {name: unenforced}
spec:
  userNamespace: host
  noNewPrivileges: false
  mountFlags: []
  devices: {set: ["a *:* rwm"]}
  maskedPaths: {set: []}
  readonlyPaths: {set: []}
  seccomp: {unconfined: true}
"#;

fn workload(name: &str, profile: &str) -> String {
    format!(
        "---\napiVersion: berth/v1\nkind: Workload\nmetadata: {{name: {name}}}\nspec:\n  image: berth-sample-busybox:latest\n  \
         profile: {profile}\n  command: [\"/bin/sleep\", \"1000\"]\n  cpus: shared\n  stop: {{signal: SIGKILL, grace: 1s}}\n"
    )
}

/// Milliseconds of a launch, and of its proof: what is read beside exec is counted as if it took time of its own.
fn steps(agent: &Agent, name: &str) -> Result<(f64, f64)> {
    let details = agent.json(&["inspect", name])?;
    let details = details.get(0).cloned().unwrap_or(details);
    let (mut all, mut proof) = (0.0, 0.0);
    for step in details["timing"].as_array().context("no timing in inspect")? {
        let title = step[0].as_str().context("a step without a name")?;
        let millis = step[1].as_f64().context("a step without a time")? / 1e3;
        // What the new process did meanwhile is told besides.
        if !title.starts_with("inside: ") {
            all += millis;
            proof += if title.starts_with("proof") { millis } else { 0.0 };
        }
    }
    Ok((all, proof))
}

/// The pid of a workload's container.
fn first(agent: &Agent, name: &str) -> Result<i64> {
    let running = agent.in_state("running")?;
    let mine = running.iter().find(|i| i["workload"] == name);
    Ok(mine.and_then(|i| i["pid"].as_i64()).unwrap_or(0))
}

/// What is compared is really in force, and really not.
fn effect(agent: &Agent, name: &str, enforced: bool) -> Result<()> {
    let status = agent.ok(&[
        "exec",
        name,
        "--",
        "cat",
        "/proc/self/status",
        "/proc/self/uid_map",
    ])?;
    let own_users = status.lines().last().is_some_and(|l| !l.contains("4294967295"));
    ensure!(
        status.contains("NoNewPrivs:\t1") == enforced && own_users == enforced,
        "{name}: {status}"
    );
    Ok(())
}

pub(crate) fn run(table: &mut Table, rounds: usize) -> Result<()> {
    let mut agent = Agent::prepare("bench-enforcement")?;
    // Every device is more than a launcher gives of itself.
    let policy = agent.path("config/launcher/policy.yaml");
    let more = std::fs::read_to_string(&policy)? + "devices: {deny: [], hostDisks: true}\n";
    std::fs::write(&policy, more)?;
    agent.spawn(&[])?;
    let sides = [("enforced", "strict"), ("unenforced", "unenforced")];
    agent.apply(&format!(
        "{PROFILE}{}{}",
        workload(sides[0].0, sides[0].1),
        workload(sides[1].0, sides[1].1)
    ))?;
    let both = |a: &mut Agent| -> Result<bool> { Ok(a.in_state("running")?.len() == 2) };
    agent.wait_for("both run", both)?;
    effect(&agent, "enforced", true)?;
    effect(&agent, "unenforced", false)?;
    let (mut with, mut without, mut added, mut proofs) = Default::default();
    let push = |sample: &mut Sample, value| sample.push(value);
    for round in 0..rounds + 3 {
        for turn in 0..2 {
            let name = sides[(round + turn) % 2].0;
            let before = first(&agent, name)?;
            agent.ok(&["restart", name])?;
            agent.wait_for("it runs anew", |a| Ok(both(a)? && first(a, name)? != before))?;
        }
        let (whole, proof) = steps(&agent, "enforced")?;
        let (other, its_proof) = steps(&agent, "unenforced")?;
        if round == 3 {
            for (name, _) in sides {
                let details = agent.json(&["inspect", name])?;
                let details = details.get(0).cloned().unwrap_or(details);
                println!("steps of a launch, {name}: {}", details["timing"]);
            }
        }
        if round >= 3 {
            push(&mut with, whole);
            push(&mut without, other - its_proof);
            push(&mut added, whole - (other - its_proof));
            push(&mut proofs, proof);
        }
    }
    table.beside(
        "enforcement: launch under strict, proven",
        "ms",
        &with,
        ("neither enforced nor proven", &without),
        None,
    );
    table.alone("enforcement: added, proof included", "ms", &added, Some(1.5));
    // What else the machine does falls on single launches; the least of each side had the least of it.
    let mut least = Sample::default();
    least.push(with.min() - without.min());
    table.alone("enforcement: added, of the minima", "ms", &least, None);
    table.alone("enforcement: the proof alone", "ms", &proofs, None);
    agent.finish()
}
