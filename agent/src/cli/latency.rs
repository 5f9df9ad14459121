//! `berth latency`: wake-up latency on the host's cores and inside a placement, measured by the same program.
//!
//! Each round is a process of its own: on the host this program started again with `--probe`, inside the same file in an
//! image made of it and the libraries it runs with ([`image`]). Rounds of the sides take turns, so that what else the
//! machine does falls on all of them; `host again` shows how far two equal sides differ. Meanwhile CPUs are kept out of idle states
//! ([`awake`]), as cyclictest does.

mod awake;
mod image;
mod report;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use berth_documents::WorkloadSpec;
use berth_rt::cpu::CpuSet;
use berth_rt::latency::probe::{self, Measured, Plan};
use berth_rt::sched::{self, Scheduler};
use clap::Args;
use serde_json::json;

use crate::api::{Container, Details, Op};
use crate::daemon::settings::Folders;

use super::client::Client;
use super::logs::Reader;
use super::table::with_hint;
use super::{DONE, Format, Outcome, OutputArgs, run, table};

/// How often a host round is tried whose cores a container has just left.
const TRIES: u32 = 20;
/// Between two of them.
const PAUSE: Duration = Duration::from_millis(100);
/// Longest a round may be.
const LONGEST: Duration = Duration::from_secs(24 * 3600);

#[derive(Debug, Args)]
pub(super) struct LatencyArgs {
    /// CPUs to measure on, such as 2-3; all that this command may use where absent
    #[arg(long, value_name = "LIST", conflicts_with = "container")]
    cpus: Option<CpuSet>,
    /// Measure inside a container too: on so many whole cores, or `shared`; the host is measured on the same CPUs
    #[arg(long, value_name = "CORES", num_args = 0..=1, default_missing_value = "1")]
    container: Option<String>,
    /// Security profile of the container
    #[arg(long, value_name = "NAME", default_value = "realtime", requires = "container")]
    profile: String,
    /// Keep the image of the container for the next time
    #[arg(long, requires = "container")]
    keep: bool,
    /// Measure under SCHED_FIFO with this priority, 1 to 99; SCHED_OTHER where absent
    #[arg(long, value_name = "PRIO", value_parser = clap::value_parser!(u32).range(1..=99))]
    fifo: Option<u32>,
    /// Timer slack, such as 1ns; the kernel's default where absent. FIFO has none
    #[arg(long, value_name = "TIME", value_parser = time, conflicts_with = "fifo")]
    slack: Option<Duration>,
    /// From one wake-up to the next, at least 20us
    #[arg(long, value_name = "TIME", value_parser = time, default_value = "1ms")]
    interval: Duration,
    /// Length of a round
    #[arg(long, value_name = "TIME", value_parser = time, default_value = "5s")]
    duration: Duration,
    /// Rounds of each side
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    rounds: u32,
    /// Leave idle states as they are; else /dev/cpu_dma_latency is held at 0 meanwhile
    #[arg(long)]
    idle: bool,
    /// Draw the histograms into this file
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
    /// As a container has it: under SCHED_OTHER with nice 0, whatever this command was started with
    #[arg(long, hide = true, conflicts_with = "fifo")]
    even: bool,
    /// Be one round: measure here, print what was measured
    #[arg(long, hide = true)]
    probe: bool,
    #[command(flatten)]
    output: OutputArgs,
}

/// A time with its unit, as in documents.
fn time(text: &str) -> Result<Duration, String> {
    let time: berth_documents::Duration = text.parse().map_err(|e| format!("{e}"))?;
    Ok(time.std())
}

pub(super) fn main(folders: &Folders, args: &LatencyArgs) -> Outcome {
    if args.probe {
        println!("{}", serde_json::to_string(&measure(args)?)?);
        return Ok(DONE);
    }
    check(args)?;
    let before = load();
    let awake = awake::Awake::hold(args.idle);
    let sides = match &args.container {
        None => vec![report::Side::new("host", rounds(args, || host(args, None))?)],
        Some(cores) => beside(folders, args, cores)?,
    };
    let first = sides.first().map_or(0, |side| side.rounds.len());
    ensure!(first > 0, "nothing was measured");
    let ratios = report::ratios(&sides);
    // Held until here: every round is over.
    let report = report::Report {
        interval_ns: nanos(args.interval),
        duration_ns: nanos(args.duration),
        load_before: before,
        load_after: load(),
        idle_states: awake.told(),
        sides,
        ratios,
    };
    if let Some(path) = &args.svg {
        fs::write(path, report.svg()).with_context(|| path.display().to_string())?;
    }
    match args.output.output {
        Format::Json => table::json(&report)?,
        Format::Text => report.print()?,
    }
    Ok(DONE)
}

/// What would only fail in the first round, and there less clearly.
fn check(args: &LatencyArgs) -> anyhow::Result<()> {
    ensure!(
        args.interval >= probe::LEAST_INTERVAL,
        "--interval {:?}: the least is {:?}",
        args.interval,
        probe::LEAST_INTERVAL
    );
    ensure!(
        (args.interval..=LONGEST).contains(&args.duration),
        "--duration {:?}: from one interval ({:?}) to {LONGEST:?}",
        args.duration,
        args.interval
    );
    ensure!(
        args.slack.is_none_or(|slack| !slack.is_zero()),
        "--slack 0: the least is 1ns"
    );
    if let Some(cpus) = &args.cpus {
        let may = sched::affinity(0)?;
        ensure!(
            !cpus.is_empty() && cpus.is_subset(&may),
            "--cpus {cpus}: this command may use CPUs {may}"
        );
    }
    Ok(())
}

/// One round, here and now.
fn measure(args: &LatencyArgs) -> anyhow::Result<Measured> {
    let cpus = match &args.cpus {
        Some(cpus) => cpus.clone(),
        None => sched::affinity(0)?,
    };
    let plan = Plan {
        cpus,
        scheduler: match args.fifo {
            Some(priority) => Some(Scheduler::Fifo { priority }),
            None => args.even.then_some(Scheduler::Other { nice: 0 }),
        },
        slack_ns: args.slack.map(nanos),
        interval: args.interval,
        duration: args.duration,
    };
    probe::run(&plan).map_err(|error| {
        let hint = error.hint();
        with_hint(error, hint)
    })
}

fn rounds(
    args: &LatencyArgs,
    mut one: impl FnMut() -> anyhow::Result<Measured>,
) -> anyhow::Result<Vec<Measured>> {
    (0..args.rounds).map(|_| one()).collect()
}

/// A round on the host, on `cpus` where given.
fn host(args: &LatencyArgs, cpus: Option<&CpuSet>) -> anyhow::Result<Measured> {
    let mut command = Command::new("/proc/self/exe");
    command.arg0("berth").args(probe_args(args));
    if let Some(cpus) = cpus.or(args.cpus.as_ref()) {
        command.args(["--cpus", &cpus.to_string()]);
    }
    if let Some(priority) = args.fifo {
        command.args(["--fifo", &priority.to_string()]);
    } else if cpus.is_some() {
        // Beside a container: the same nice on both sides.
        command.arg("--even");
    }
    if let Some(slack) = args.slack {
        command.args(["--slack", &written(slack)]);
    }
    let output = command.output().context("start this program again")?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("{}", said.trim().trim_start_matches("berth: "));
    }
    serde_json::from_slice(&output.stdout).context("what the probe printed")
}

/// The arguments of a round wherever it runs.
fn probe_args(args: &LatencyArgs) -> Vec<String> {
    let words = ["latency", "--probe", "--interval"];
    let mut all: Vec<String> = words.map(str::to_owned).to_vec();
    all.extend([
        written(args.interval),
        "--duration".into(),
        written(args.duration),
    ]);
    all
}

fn written(time: Duration) -> String {
    format!("{}ns", time.as_nanos())
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// Host, container and host again, in turns on the same CPUs.
fn beside(folders: &Folders, args: &LatencyArgs, cores: &str) -> anyhow::Result<Vec<report::Side>> {
    let image = image::Loaded::make(folders, args.keep)?;
    let outcome = turns(folders, args, cores, image.reference());
    let removed = image.remove();
    let sides = outcome?;
    removed?;
    Ok(sides)
}

fn turns(
    folders: &Folders,
    args: &LatencyArgs,
    cores: &str,
    image: &str,
) -> anyhow::Result<Vec<report::Side>> {
    let spec = spec(args, cores, image)?;
    // The agent decides on which CPUs: the first container says so, and is not counted.
    let cpus: CpuSet = container(folders, &spec, 0)?
        .cpus
        .iter()
        .map(|cpu| cpu.cpu)
        .collect();
    let mut sides: BTreeMap<usize, Vec<Measured>> = BTreeMap::new();
    for round in 0..args.rounds {
        for turn in 0..3 {
            let which = (round as usize + turn) % 3;
            let measured = match which {
                1 => container(folders, &spec, round + 1)?,
                _ => retried(|| host(args, Some(&cpus)))?,
            };
            sides.entry(which).or_default().push(measured);
        }
    }
    let names = ["host", "container", "host again"];
    Ok(sides
        .into_iter()
        .map(|(which, rounds)| report::Side::new(names[which], rounds))
        .collect())
}

/// A partition ends a moment after its container: until then nobody else may run on its cores.
fn retried(mut one: impl FnMut() -> anyhow::Result<Measured>) -> anyhow::Result<Measured> {
    for _ in 1..TRIES {
        if let Ok(measured) = one() {
            return Ok(measured);
        }
        std::thread::sleep(PAUSE);
    }
    one()
}

fn spec(args: &LatencyArgs, cores: &str, image: &str) -> anyhow::Result<WorkloadSpec> {
    let cpus = cores.parse::<u32>().map_or_else(|_| json!(cores), |n| json!(n));
    let mut realtime = json!({});
    if let Some(priority) = args.fifo {
        realtime["scheduler"] = json!({"policy": "fifo", "priority": priority});
    }
    if let Some(slack) = args.slack {
        realtime["timerSlack"] = json!(written(slack));
    }
    let spec = json!({
        "image": image,
        "args": probe_args(args),
        "profile": args.profile,
        "cpus": cpus,
        "realtime": realtime,
        "restart": {"policy": "never"},
    });
    serde_json::from_value(spec).with_context(|| format!("--container {cores} makes no workload"))
}

/// A round in a container of its own.
fn container(folders: &Folders, spec: &WorkloadSpec, round: u32) -> anyhow::Result<Measured> {
    let mut client = Client::connect(folders)?;
    client.send(Op::Run {
        name: format!("latency-{}-{round}", std::process::id()),
        spec: Box::new(spec.clone()),
    })?;
    let container: Container = client.answer()?;
    if let Some(reason) = &container.reason {
        eprintln!("berth: {}: {reason}", container.phase);
    }
    let details: Details = client.answer()?;
    let mut said = Vec::new();
    let mut log = Reader::new(folders.log(&details.container.id), false);
    log.print(&mut said)?;
    log.finish(&mut said)?;
    run::remove_log(folders, &details.container.id);
    let ended = details.container.exit.as_ref();
    if ended.is_none_or(|exit| exit.code != Some(0)) {
        let reason = details.container.reason.unwrap_or_default();
        bail!(
            "the container did not measure: {reason} {}",
            String::from_utf8_lossy(&said).trim()
        );
    }
    serde_json::from_slice(&said).context("what the probe printed")
}

/// The three load averages.
fn load() -> String {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').take(3).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: LatencyArgs,
    }

    fn of(words: &[&str]) -> Result<LatencyArgs, clap::Error> {
        Line::try_parse_from([&["latency"], words].concat()).map(|line| line.args)
    }

    #[test]
    fn what_makes_no_sense_is_refused_before_the_first_round() {
        let refused = [
            &["--cpus", "0", "--container"][..],
            &["--fifo", "0"],
            &["--fifo", "100"],
            &["--fifo", "5", "--slack", "1ns"],
            &["--rounds", "0"],
            &["--interval", "1"],
            &["--keep"],
            &["--idle=no"],
        ];
        for words in refused {
            assert!(of(words).is_err(), "{words:?}");
        }
        for (words, told) in [
            (&["--interval", "19us"][..], "20µs"),
            (&["--duration", "500us"], "one interval"),
            (&["--slack", "0s"], "1ns"),
            (&["--cpus", "8191"], "may use"),
            (&["--cpus", ""], "may use"),
        ] {
            let error = check(&of(words).unwrap()).unwrap_err().to_string();
            assert!(error.contains(told), "{words:?}: {error}");
        }
        check(&of(&["--container"]).unwrap()).unwrap();
    }

    #[test]
    fn the_workload_is_what_was_asked() {
        let args = of(&["--container", "2", "--fifo", "50", "--interval", "250us"]).unwrap();
        let spec = spec(&args, "2", "berth-latency:x").unwrap();
        let value = serde_json::to_value(&spec).unwrap();
        assert_eq!(value["cpus"], 2);
        assert_eq!(
            value["realtime"]["scheduler"],
            json!({"policy": "fifo", "priority": 50})
        );
        assert!(value["args"].to_string().contains("250000ns"), "{value}");
        assert!(super::spec(&args, "none", "x").is_err());
    }

    #[test]
    fn one_round_here() {
        let args = of(&["--probe", "--duration", "30ms", "--slack", "1ns"]).unwrap();
        let measured = measure(&args).unwrap();
        assert!(measured.all().count() > 0 && measured.cpus.iter().all(|c| c.slack_ns == 1));
    }
}
