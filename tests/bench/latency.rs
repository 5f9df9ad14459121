//! Wake-up latency of containers: beside the host's own on the same core, with and without timer slack, among spinners,
//! and the same loop in crun without a placement.
//!
//! A round is one process of each kind that measures (`berth latency`), one after the other, so that what else the machine
//! does falls on all of them. A sample is the median, or the 99th percentile, of one such process, in microseconds. Ratios are
//! taken round by round, of neighbours in time, and their median is resampled: what slows a whole round down is in both
//! of its sides. container : host is held by the upper end of the 95 % interval, beside host again : host, which shows how far
//! two equal sides differ; the other bounds are on the median of the ratios.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use berth_tests::agent::{Agent, binary};
use serde_json::{Value, json};

use crate::stats::{Sample, Table};

const NODE: &str = "apiVersion: berth/v1\nkind: Node\nmetadata: {name: bench}\nspec:\n  cpus: {housekeeping: \"0\", isolated: \"1\"}\n";
/// Of one round.
const DURATION: &str = "400ms";

/// Medians and 99th percentiles of rounds.
#[derive(Default)]
struct Kind {
    p50: Sample,
    p99: Sample,
}

impl Kind {
    fn p50(&self) -> &Sample {
        &self.p50
    }

    fn p99(&self) -> &Sample {
        &self.p99
    }

    fn push(&mut self, round: &Value) -> Result<()> {
        // The given-away core; without a placement a thread ran on every core, and this is the same one.
        let last = round["cpus"].as_array().and_then(|cpus| cpus.last());
        let latency = &last.context("no CPU was measured")?["latency"];
        self.p50.push(quantile(latency, 0.5)?);
        self.p99.push(quantile(latency, 0.99)?);
        Ok(())
    }
}

/// A quantile from the buckets, in microseconds.
fn quantile(latency: &Value, q: f64) -> Result<f64> {
    let count = latency["count"].as_u64().context("count")?;
    let rank = (q * count as f64).ceil() as u64;
    let mut seen = 0;
    for bucket in latency["buckets"].as_array().context("buckets")? {
        seen += bucket[1].as_u64().context("bucket")?;
        if seen >= rank.max(1) {
            return Ok(bucket[0].as_f64().context("bucket")? / 1000.0);
        }
    }
    bail!("nothing was measured: {latency}")
}

pub(crate) fn run(table: &mut Table, rounds: usize) -> Result<()> {
    crate::oci::own_mounts()?;
    let agent = Agent::start("bench-latency")?;
    agent.apply(NODE)?;
    let crun = Crun::make(&agent.path("crun"))?;
    // As `berth latency` does for its own rounds: the same for those of crun.
    let mut awake = fs::File::options().write(true).open("/dev/cpu_dma_latency")?;
    awake.write_all(&0_i32.to_ne_bytes())?;
    let mut kinds: Vec<Kind> = (0..10).map(|_| Kind::default()).collect();
    // The image is made once, outside of what is measured.
    agent.ok(&["latency", "--container", "--duration", "20ms", "--keep"])?;
    for _ in 0..rounds {
        for (at, words) in [(0, &["--fifo", "50"][..]), (3, &["--slack", "1ns"])] {
            let three = sides(&agent, words)?;
            three
                .iter()
                .enumerate()
                .try_for_each(|(i, side)| kinds[at + i].push(side))?;
        }
        kinds[6].push(&sides(&agent, &[])?[1])?;
        if let Some(crun) = &crun {
            kinds[7].push(&crun.round()?)?;
        }
        let spinners = Spinners::start()?;
        kinds[8].push(&sides(&agent, &["--fifo", "50"])?[1])?;
        if let Some(crun) = &crun {
            kinds[9].push(&crun.round()?)?;
        }
        drop(spinners);
    }
    agent.finish()?;
    drop(awake);
    for (name, at) in [("fifo", 0), ("other, slack 1 ns", 3)] {
        let [host, container, again] = [&kinds[at], &kinds[at + 1], &kinds[at + 2]];
        for (what, of, bound) in [
            ("p50", Kind::p50 as fn(&Kind) -> &Sample, Some(1.1)),
            ("p99", Kind::p99, None),
        ] {
            let host = ("host", of(host));
            table.paired_upper(
                format!("latency {name}: container, {what}"),
                "µs",
                of(container),
                host,
                bound,
            );
            table.paired_upper(
                format!("latency {name}: host again, {what}"),
                "µs",
                of(again),
                host,
                None,
            );
        }
    }
    let (fine, coarse) = (&kinds[4], &kinds[6]);
    table.paired(
        "latency other: slack 1 ns, p50",
        "µs",
        &fine.p50,
        ("default slack", &coarse.p50),
        Some(0.5),
    );
    let mut among = |name: &str, loaded: &Kind, idle: &Kind, bound| {
        table.paired(
            format!("latency {name}: among spinners, p50"),
            "µs",
            &loaded.p50,
            ("without", &idle.p50),
            bound,
        );
        table.paired(
            format!("latency {name}: among spinners, p99"),
            "µs",
            &loaded.p99,
            ("without", &idle.p99),
            None,
        );
    };
    among("fifo, container", &kinds[8], &kinds[1], Some(1.3));
    if crun.is_some() {
        among("crun, no placement", &kinds[9], &kinds[7], None);
    }
    Ok(())
}

/// One round on the host, in a container, on the host again.
fn sides(agent: &Agent, words: &[&str]) -> Result<Vec<Value>> {
    let all = [&["latency", "--container", "--duration", DURATION], words].concat();
    let told = agent.json(&all)?;
    let sides = told["sides"].as_array().context("sides")?;
    ensure!(sides.len() == 3, "{} sides", sides.len());
    Ok(sides.iter().map(|side| side["rounds"][0].clone()).collect())
}

/// The same program in a crun container: what a runtime gives that was told of no cores and no policy.
struct Crun {
    bundle: PathBuf,
}

impl Crun {
    /// `None` where there is no crun.
    fn make(dir: &Path) -> Result<Option<Crun>> {
        if Command::new("crun")
            .arg("--version")
            .stdout(Stdio::null())
            .status()
            .is_err()
        {
            eprintln!("bench: no crun: its rows are left out");
            return Ok(None);
        }
        let rootfs = dir.join("rootfs");
        for sub in ["proc", "dev", "usr", "lib", "lib64"] {
            fs::create_dir_all(rootfs.join(sub))?;
        }
        fs::copy(binary(), rootfs.join("berth"))?;
        let mut mounts = vec![json!({"destination": "/proc", "type": "proc", "source": "proc"})];
        mounts.push(json!({"destination": "/dev", "type": "tmpfs", "source": "tmpfs"}));
        for host in ["/usr", "/lib", "/lib64"]
            .iter()
            .filter(|path| Path::new(path).is_dir())
        {
            mounts.push(
                json!({"destination": host, "type": "bind", "source": host, "options": ["rbind", "ro"]}),
            );
        }
        let namespaces = ["pid", "mount", "uts", "ipc", "network"].map(|t| json!({"type": t}));
        let caps = json!(["CAP_IPC_LOCK", "CAP_SYS_NICE"]);
        let config = json!({
            "ociVersion": "1.0.2",
            "process": {
                "terminal": false, "user": {"uid": 0, "gid": 0}, "cwd": "/", "env": ["PATH=/bin"],
                "args": ["/berth", "latency", "--probe", "--duration", DURATION],
                "capabilities": {"bounding": caps, "effective": caps, "permitted": caps},
                "noNewPrivileges": true,
            },
            "root": {"path": "rootfs", "readonly": true},
            "mounts": mounts,
            "linux": {"namespaces": namespaces},
        });
        fs::write(dir.join("config.json"), serde_json::to_vec_pretty(&config)?)?;
        Ok(Some(Crun {
            bundle: dir.to_path_buf(),
        }))
    }

    fn round(&self) -> Result<Value> {
        let output = Command::new("crun")
            .arg("--root")
            .arg(self.bundle.join("state"))
            .args(["run", "--bundle"])
            .arg(&self.bundle)
            .arg(format!("berth-bench-latency-{}", std::process::id()))
            .stdin(Stdio::null())
            .output()?;
        ensure!(
            output.status.success(),
            "crun: {}\n{}",
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(serde_json::from_slice(&output.stdout)?)
    }
}

/// A loop on every CPU that takes all it gets; ended when dropped.
struct Spinners(Vec<Child>);

impl Spinners {
    fn start() -> Result<Spinners> {
        let mut all = Spinners(Vec::new());
        for cpu in 0..std::thread::available_parallelism()?.get() {
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
