//! The benchmarks behind docs/SPECIFICATION.md: each figure beside its peer, in one run, as a ratio.
//!
//! `berth-bench [oci|exec|agent|enforcement|stop|hotplug|memory|thousand|latency]… [--rounds N]`. Rounds of the competitors are interleaved, so that what
//! else the machine does falls on all of them. The table gives medians, minima, the ratio of the medians with its
//! 95 % bootstrap interval, and the bound where the specification has one; a bound that is missed is shown and makes the
//! exit code 1, which no test depends on: these machines are shared. Folders of the agents lie on the tmpfs of /dev/shm
//! where there is one, as /run does; nothing that is timed waits for a disk.

mod agent;
mod bundles;
mod enforcement;
mod hotplug;
mod latency;
mod life;
mod memory;
mod oci;
mod stats;

use std::process::ExitCode;

use anyhow::{Result, bail};

use crate::stats::Table;

fn main() -> Result<ExitCode> {
    let (mut groups, mut rounds) = (Vec::new(), 40);
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--rounds" => rounds = args.next().and_then(|n| n.parse().ok()).unwrap_or(rounds),
            "oci" | "exec" | "agent" | "enforcement" | "stop" | "hotplug" | "memory" | "thousand"
            | "latency" => groups.push(arg),
            other => bail!(
                "usage: berth-bench [oci|exec|agent|enforcement|stop|hotplug|memory|thousand|latency]… [--rounds N]; what is {other:?}?"
            ),
        }
    }
    if groups.is_empty() {
        groups = [
            "oci",
            "exec",
            "agent",
            "enforcement",
            "stop",
            "hotplug",
            "memory",
            "thousand",
            "latency",
        ]
        .map(String::from)
        .to_vec();
    }
    if std::path::Path::new("/dev/shm").is_dir() {
        let _ = tempfile::env::override_temp_dir(std::path::Path::new("/dev/shm")); // only a second call is refused
    }
    let mut table = Table::default();
    for group in groups {
        match group.as_str() {
            "oci" => oci::run(&mut table, rounds)?,
            "exec" => life::exec(&mut table, rounds)?,
            "agent" => agent::run(&mut table, rounds)?,
            "enforcement" => enforcement::run(&mut table, rounds)?,
            "stop" => life::stop(&mut table, rounds)?,
            "thousand" => life::thousand(&mut table, 25 * rounds)?,
            "latency" => latency::run(&mut table, rounds)?,
            "hotplug" => hotplug::run(&mut table, rounds)?,
            _ => memory::run(&mut table)?,
        }
    }
    println!("\n{table}");
    Ok(if table.bounds_hold() {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(1)
    })
}
