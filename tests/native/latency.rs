//! Wake-up latency: the command measures where it says, under the policy it says, and the effects of slack and priority are
//! seen. Bounds are loose: the machine is shared. The figures are those of `make bench` (group latency).

use std::fs;
use std::io::Read;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, ensure};
use berth_tests::agent::{Agent, binary};
use libtest_mimic::Trial;
use serde_json::Value;

use crate::{rounds, test};

const NODE: &str = r#"
apiVersion: berth/v1
kind: Node
metadata: {name: test}
spec:
  cpus: {housekeeping: "0", isolated: "1"}
"#;

/// FIFO on the one core that is given away, and gone as fast as it can be.
const FIFO: &str = r#"
apiVersion: berth/v1
kind: Workload
metadata: {name: replaced}
spec:
  image: berth-sample-busybox:latest
  command: ["/bin/sleep", "1000"]
  profile: realtime
  cpus: 1
  realtime:
    scheduler: {policy: fifo, priority: 50}
    budget: {runtime: 500ms, period: 1s}
  stop: {signal: SIGKILL, grace: 5s}
"#;

pub(crate) fn tests() -> Vec<Trial> {
    vec![
        test("latency::container beside host, same program, same core", beside),
        test("latency::idle states are kept out while it measures", awake),
        test("latency::a timer slack of 1 ns is seen", slack),
        test("latency::pinned FIFO among spinners", spinners),
        test("latency::what cannot be measured is refused", refused),
        test(
            "latency::fast replacements of a FIFO container on the same core",
            replaced,
        ),
    ]
}

/// The quantile's name in no hurry: the median of a side's rounds, from its buckets, in nanoseconds.
fn median(side: &Value) -> Result<f64> {
    let mut buckets: Vec<(u64, u64)> = Vec::new();
    for round in side["rounds"].as_array().context("rounds")? {
        for cpu in round["cpus"].as_array().context("cpus")? {
            let list = cpu["latency"]["buckets"].as_array().context("buckets")?;
            buckets.extend(list.iter().filter_map(|b| Some((b[0].as_u64()?, b[1].as_u64()?))));
        }
    }
    buckets.sort_unstable();
    let total: u64 = buckets.iter().map(|(_, count)| count).sum();
    let mut seen = 0;
    for (low, count) in buckets {
        seen += count;
        if 2 * seen >= total {
            return Ok(low as f64);
        }
    }
    anyhow::bail!("nothing was measured: {side}")
}

fn beside() -> Result<()> {
    let agent = Agent::start("latency")?;
    agent.apply(NODE)?;
    let picture = agent.path("picture.svg");
    let words = [
        "latency",
        "--container",
        "--fifo",
        "50",
        "--duration",
        "400ms",
        "--rounds",
        "3",
        "--keep",
        "--svg",
    ];
    let told = agent.json(&[&words[..], &[&picture.display().to_string()]].concat())?;
    let sides = told["sides"].as_array().context("sides")?;
    let names: Vec<&str> = sides.iter().filter_map(|s| s["name"].as_str()).collect();
    ensure!(names == ["host", "container", "host again"], "{names:?}");
    for side in sides {
        let rounds = side["rounds"].as_array().context("rounds")?;
        ensure!(rounds.len() == 3, "{} rounds of {}", rounds.len(), side["name"]);
        for round in rounds {
            ensure!(
                round["notLocked"].is_null(),
                "memory of {}: {}",
                side["name"],
                round["notLocked"]
            );
            let cpu = &round["cpus"][0];
            ensure!(
                cpu["cpu"] == 1 && cpu["scheduler"]["policy"] == "fifo" && cpu["scheduler"]["priority"] == 50,
                "{}: {}",
                side["name"],
                cpu["scheduler"]
            );
            let counted = cpu["latency"]["count"].as_u64().unwrap_or(0) + cpu["missed"].as_u64().unwrap_or(0);
            ensure!(
                (390..=400).contains(&counted),
                "{counted} wake-ups of 400 in {}",
                side["name"]
            );
        }
    }
    let ratios = told["ratios"].as_array().context("ratios")?;
    ensure!(
        ratios.len() == 4 && ratios[0]["of"] == "container : host",
        "{ratios:?}"
    );
    let ratio = ratios[0]["ratio"].as_f64().context("a ratio")?;
    ensure!((0.2..5.0).contains(&ratio), "container : host is {ratio}");
    let drawn = fs::read_to_string(&picture)?;
    ensure!(
        drawn.contains("container: p50") && drawn.ends_with("</svg>\n"),
        "{drawn}"
    );

    // Kept once: it is there, and is not made again. Without --keep a made one goes.
    let image = || -> Result<bool> { Ok(agent.ok(&["image", "ls"])?.contains("berth-latency:")) };
    ensure!(image()?, "--keep kept nothing");
    let text = agent.ok(&["latency", "--container", "shared", "--duration", "50ms"])?;
    ensure!(
        text.contains("container : host") && text.contains("SCHED_OTHER"),
        "{text}"
    );
    ensure!(image()?, "an image that was there before was taken away");
    // What this command was started with is no part of it: both sides have the container's nice.
    let mut agent = agent;
    agent.enter(["nice", "-n", "5"].map(str::to_owned).to_vec());
    let told = agent.json(&["latency", "--container", "--duration", "50ms"])?;
    for side in told["sides"].as_array().context("sides")? {
        let scheduler = &side["rounds"][0]["cpus"][0]["scheduler"];
        ensure!(
            scheduler["policy"] == "other" && scheduler["nice"].as_i64().unwrap_or(0) == 0,
            "{}: {scheduler}",
            side["name"]
        );
    }
    ensure!(!agent.path("run").join("latency").exists(), "a layout is left");
    agent.finish()
}

fn slack() -> Result<()> {
    let agent = Agent::prepare("slack")?;
    let of = |words: &[&str]| -> Result<f64> {
        let told = agent.json(&[&["latency", "--cpus", "1", "--duration", "1s"], words].concat())?;
        median(&told["sides"][0])
    };
    // In turns; the better of each, as the neighbours only ever add.
    let (mut coarse, mut fine) = (f64::MAX, f64::MAX);
    for _ in 0..3 {
        coarse = coarse.min(of(&["--slack", "50us"])?);
        fine = fine.min(of(&["--slack", "1ns"])?);
    }
    ensure!(fine < 0.8 * coarse, "1 ns: {fine} ns, 50 us: {coarse} ns");
    agent.finish()
}

/// A loop on every CPU that takes all it gets; ended when dropped.
pub(crate) struct Spinners(Vec<Child>);

impl Spinners {
    pub(crate) fn start() -> Result<Spinners> {
        let cpus = std::thread::available_parallelism()?.get();
        let mut all = Spinners(Vec::new());
        for cpu in 0..cpus {
            let mut command = Command::new("taskset");
            command.args(["-c", &cpu.to_string(), "sh", "-c", "while :; do :; done"]);
            all.0.push(
                command
                    .stdin(Stdio::null())
                    .spawn()
                    .context("taskset: install util-linux")?,
            );
        }
        Ok(all)
    }
}

impl Drop for Spinners {
    fn drop(&mut self) {
        for child in &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn spinners() -> Result<()> {
    let agent = Agent::start("spinners")?;
    agent.apply(NODE)?;
    let spinners = Spinners::start()?;
    let words = [
        "latency",
        "--container",
        "--duration",
        "500ms",
        "--rounds",
        "2",
        "--keep",
    ];
    let fifo = agent.json(&[&words[..], &["--fifo", "60"]].concat())?;
    let other = agent.json(&words)?;
    drop(spinners);
    let (fifo, other) = (median(&fifo["sides"][1])?, median(&other["sides"][1])?);
    ensure!(fifo < other, "among spinners: fifo {fifo} ns, other {other} ns");
    agent.finish()
}

/// The bound on idle states that is in force, microseconds (reading the device gives it).
fn bound() -> Result<i32> {
    let mut four = [0; 4];
    fs::File::open("/dev/cpu_dma_latency")?.read_exact(&mut four)?;
    Ok(i32::from_ne_bytes(four))
}

fn awake() -> Result<()> {
    let before = bound()?;
    for (words, held) in [(&[][..], true), (&["--idle"], false)] {
        let mut command = Command::new(binary());
        command
            .args(["latency", "--cpus", "0", "--duration", "1s", "-o", "json"])
            .args(words);
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
        let mut lowest = before;
        while child.try_wait()?.is_none() {
            lowest = lowest.min(bound()?);
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        let told: Value = serde_json::from_slice(&child.wait_with_output()?.stdout)?;
        ensure!(
            told["idleStates"]["held"] == held,
            "{words:?}: {}",
            told["idleStates"]
        );
        let expected = if held { 0 } else { before };
        ensure!(
            lowest == expected,
            "{words:?}: the bound was {lowest}, not {expected}"
        );
    }
    ensure!(bound()? == before, "the bound is left at {}", bound()?);
    Ok(())
}

fn refused() -> Result<()> {
    let agent = Agent::prepare("refused-latency")?;
    for (words, told) in [
        (&["--cpus", "4000"][..], "may use"),
        (&["--interval", "1us"], "the least is"),
        (&["--duration", "1us"], "one interval"),
        (&["--container"], "is `berth agent` running"),
    ] {
        let said = agent.refused(&[&["latency"], words].concat())?;
        ensure!(said.contains(told), "{words:?}: {said}");
    }
    ensure!(
        !agent.ok(&["image", "ls"])?.contains("berth-latency"),
        "an image is left"
    );
    agent.finish()
}

fn replaced() -> Result<()> {
    let mut agent = Agent::start("replaced")?;
    agent.apply(&format!("{NODE}---{FIFO}"))?;
    let running = |agent: &Agent| -> Result<(i64, String)> {
        let list = agent.in_state("running")?;
        let [one] = &list[..] else {
            anyhow::bail!("{} containers run: {list:?}\n{}", list.len(), agent.log())
        };
        let text = |key: &str| one[key].as_str().unwrap_or_default().to_owned();
        ensure!(one["drift"].as_array().is_none_or(Vec::is_empty), "{one}");
        Ok((one["pid"].as_i64().unwrap_or(0), text("cpus")))
    };
    agent.wait_for("it runs", |a| Ok(!a.in_state("running")?.is_empty()))?;
    let (mut before, cpus) = running(&agent)?;
    ensure!(cpus == "1", "on CPUs {cpus}");
    for round in 0..rounds(40) {
        // Answers when the new one runs; the old one's core and budget must be free by then.
        agent
            .ok(&["restart", "replaced"])
            .with_context(|| format!("replacement {round}"))?;
        let (pid, now) = running(&agent).with_context(|| format!("replacement {round}"))?;
        ensure!(
            pid > 0 && pid != before && now == cpus,
            "replacement {round}: {before} on {cpus}, {pid} on {now}"
        );
        before = pid;
    }
    let proved = agent.json(&["prove", "replaced"])?;
    ensure!(
        proved[0]["proof"]["facts"]
            .as_array()
            .is_some_and(|f| f.len() > 10),
        "{proved}"
    );
    agent.finish()
}
