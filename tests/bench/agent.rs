//! A launch in the agent, from the request to the released exec stop, beside posix_spawn + exec of the same static
//! binary. The launch is what the monitor timed (`berth inspect -o json`: `timing`, microseconds of each step); the peer
//! is timed here, in turn with it.

use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result};
use berth_tests::agent::Agent;

use crate::stats::{Sample, Table};

const DOCUMENT: &str = r#"
apiVersion: berth/v1
kind: Workload
metadata: {name: bench}
spec:
  image: berth-sample-busybox:latest
  command: ["/bin/sleep", "1000"]
  cpus: shared
  stop: {signal: SIGKILL, grace: 1s}
"#;

pub(crate) fn run(table: &mut Table, rounds: usize) -> Result<()> {
    let mut agent = Agent::start("bench-agent")?;
    agent.apply(DOCUMENT)?;
    let (mut launch, mut spawn) = (Sample::default(), Sample::default());
    for round in 0..rounds + 2 {
        agent.wait_for("it runs", |a| Ok(a.in_state("running")?.len() == 1))?;
        let details = agent.json(&["inspect", "bench"])?;
        let details = details.get(0).cloned().unwrap_or(details);
        let steps = details["timing"].as_array().context("no timing in inspect")?;
        // What the new process did meanwhile ("inside: …") is told besides.
        let micros: f64 = steps
            .iter()
            .filter(|step| !step[0].as_str().is_some_and(|name| name.starts_with("inside: ")))
            .filter_map(|step| step[1].as_f64())
            .sum();
        let begin = Instant::now();
        Command::new("/bin/busybox")
            .arg("true")
            .stdin(Stdio::null())
            .status()
            .context("install busybox-static")?;
        let millis = begin.elapsed().as_secs_f64() * 1e3;
        if round >= 2 {
            launch.push(micros / 1e3);
            spawn.push(millis);
        }
        if round == 2 {
            println!("steps of one launch: {}", serde_json::to_string(steps)?);
        }
        agent.ok(&["restart", "bench"])?;
    }
    table.beside(
        "agent: request → exec stop released",
        "ms",
        &launch,
        ("posix_spawn + exec", &spawn),
        Some(4.0),
    );
    agent.finish()
}
