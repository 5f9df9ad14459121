//! Many containers of the shared class at once, and what each costs the node.
//!
//! `BERTH_DENSITY` is how many (default 60; 1000 by `make test-density`).

use std::fs;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use berth_tests::agent::Agent;
use libtest_mimic::Trial;

use crate::test;

pub(crate) fn tests() -> Vec<Trial> {
    vec![test("density::shared-class containers at once", at_once)]
}

/// A line of /proc/meminfo, KiB.
fn meminfo(key: &str) -> Result<i64> {
    let text = fs::read_to_string("/proc/meminfo")?;
    let line = text
        .lines()
        .find_map(|l| l.strip_prefix(key))
        .context("meminfo")?;
    Ok(line
        .trim_start_matches(':')
        .trim()
        .trim_end_matches(" kB")
        .parse()?)
}

fn documents(count: usize) -> String {
    (0..count)
        .map(|i| {
            format!(
                "---\napiVersion: berth/v1\nkind: Workload\nmetadata: {{name: d{i}}}\nspec:\n  image: berth-sample-busybox:latest\n  \
                 command: [\"/bin/sleep\", \"100000\"]\n  cpus: shared\n  restart: {{policy: never}}\n  stop: {{signal: SIGKILL, grace: 1s}}\n"
            )
        })
        .collect()
}

fn at_once() -> Result<()> {
    let count: usize = std::env::var("BERTH_DENSITY")
        .ok()
        .and_then(|n| n.parse().ok())
        .unwrap_or(60);
    let mut agent = Agent::start("density")?;
    let before = meminfo("MemAvailable")?;
    let begun = Instant::now();
    agent.apply(&documents(count))?;
    let mut last = usize::MAX;
    // A loaded machine may take its time, as long as it goes on.
    loop {
        let running = agent.in_state("running")?.len();
        if running == count {
            break;
        }
        ensure!(
            running != last,
            "it stays at {running} of {count}:\n{}",
            berth_tests::agent::tail(&agent.log(), 20)
        );
        last = running;
        let _ = agent.wait_for("more run", |a| Ok(a.in_state("running")?.len() > running));
    }
    let took = begun.elapsed();
    let (mut monitors, mut seen) = (0, 0);
    for pid in agent.processes("berth-mon")? {
        let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
        if let Some(line) = text.lines().find_map(|l| l.strip_prefix("Pss:")) {
            monitors += line.trim().trim_end_matches(" kB").parse::<i64>()?;
            seen += 1;
        }
    }
    let used = before - meminfo("MemAvailable")?;
    println!(
        "density: {count} containers in {:.1} s; {} KiB of the node's memory each, of which {} KiB PSS are its monitor's ({seen} read)",
        took.as_secs_f64(),
        used / i64::try_from(count)?,
        monitors / i64::from(seen.max(1)),
    );
    ensure!(seen == i32::try_from(count)?, "{seen} monitors of {count}");
    // One more thing still works while all run.
    ensure!(agent.ok(&["inspect", "d0"])?.contains("d0"), "inspect");
    agent.finish()
}
