//! From the plug to the released exec stop: a loop device (kernel events, settle 0) launched cold and from an armed
//! container, and a virtual Ethernet interface beyond the kernel's own move of it.
//!
//! The beginning is the clock before the ioctl (or `ip link add`) that makes the device; the end is the moment the
//! monitor notes when it lets the first instruction run. Both are CLOCK_REALTIME of one machine. The kernel sends its
//! event at the end of the ioctl: what that took is measured within each plug, and what is beyond it has a row of its
//! own. Nobody asks the agent anything meanwhile: on two CPUs the question would run beside what is measured.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use berth_tests::agent::Agent;
use berth_tests::node::{Loop, Veth};
use serde_json::Value;

use crate::stats::{Sample, Table};

const DOCUMENTS: &str = r#"
apiVersion: berth/v1
kind: Workload
metadata: {name: bench}
spec:
  image: berth-sample-busybox:latest
  command: ["/bin/sleep", "1000"]
  run: onDevice
  cpus: shared
  stop: {signal: SIGKILL, grace: 1s}
---
apiVersion: berth/v1
kind: HotplugRule
metadata: {name: bench-disk}
spec:
  match: |
    SUBSYSTEM=="block", KERNEL=="loop500"
  workload: bench
  device: {path: /dev/disk, access: r}
  settle: 0s
  armed: ARMED
---
apiVersion: berth/v1
kind: Workload
metadata: {name: bench-nic}
spec:
  image: berth-sample-busybox:latest
  command: ["/bin/sleep", "1000"]
  run: onDevice
  cpus: shared
  stop: {signal: SIGKILL, grace: 1s}
---
apiVersion: berth/v1
kind: HotplugRule
metadata: {name: bench-nic}
spec:
  match: |
    SUBSYSTEM=="net", KERNEL=="bb0"
  workload: bench-nic
  interface: {name: eth0}
  settle: 0s
"#;

/// Nanoseconds since the epoch.
fn now() -> f64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0.0, |d| d.as_nanos() as f64)
}

/// Longer than a launch takes.
const QUIET: Duration = Duration::from_millis(40);

/// Wait for the running instance of `workload`; its `startedAt` in nanoseconds since the epoch.
fn started(agent: &mut Agent, workload: &str) -> Result<f64> {
    let mut at = None;
    std::thread::sleep(QUIET);
    agent.wait_for("it runs", |a| {
        at = a
            .in_state("running")?
            .iter()
            .find(|i| i["workload"] == workload)
            .and_then(|i| i["startedAt"].as_f64());
        Ok(at.is_some())
    })?;
    at.context("no startedAt")
}

fn gone(agent: &mut Agent, workload: &str) -> Result<()> {
    agent.wait_for("it is gone", |a| {
        let list: Value = a.json(&["ps"])?;
        Ok(!list.as_array().is_some_and(|l| {
            l.iter()
                .any(|i| i["workload"] == workload && i["phase"] != "armed")
        }))
    })
}

pub(crate) fn run(table: &mut Table, rounds: usize) -> Result<()> {
    // The peer is crun, which refuses a hybrid node.
    crate::oci::own_mounts()?;
    for (name, armed, bound) in [("cold", "0", 10.0), ("armed", "1", 2.0)] {
        let mut agent = Agent::start("bench-plug")?;
        agent.apply(&DOCUMENTS.replace("ARMED", armed))?;
        let (mut sample, mut beyond) = (Sample::default(), Sample::default());
        let mut disk = Loop::number(500);
        for round in 0..rounds + 2 {
            if armed == "1" {
                agent.wait_for("one is armed", |a| Ok(a.in_state("armed")?.len() == 1))?;
            }
            let begin = now();
            disk.plug()?;
            let made = (now() - begin) / 1e6;
            let millis = (started(&mut agent, "bench")? - begin) / 1e6;
            if round == 2 {
                let running = agent.in_state("running")?;
                let name = running.first().and_then(|i| i["name"].as_str());
                let details = agent.json(&["inspect", name.context("no instance")?])?;
                let details = details.get(0).cloned().unwrap_or(details);
                println!(
                    "loop device, {name:?}, armed {armed}: steps of one: {}",
                    details["timing"]
                );
            }
            disk.unplug()?;
            gone(&mut agent, "bench")?;
            if round >= 2 {
                sample.push(millis);
                beyond.push(millis - made);
            }
        }
        table.alone(
            format!("loop device, {name}: plug → exec stop released"),
            "ms",
            &sample,
            Some(bound),
        );
        table.alone(
            format!("loop device, {name}: beyond the kernel's making of the device"),
            "ms",
            &beyond,
            None,
        );
        let mut tail = Sample::default();
        tail.push(sample.quantile(0.99) / sample.median());
        table.alone(
            format!("loop device, {name}: 99th percentile / median"),
            "×",
            &tail,
            Some(5.0),
        );
        agent.finish()?;
    }
    matching(table)?;
    do_it_yourself(table, rounds)?;
    published(table);
    interface(table, rounds)
}

/// A thousand rules against a thousand devices, as at the agent's start: `berth device simulate` over a recording, less
/// the same with one rule.
fn matching(table: &mut Table) -> Result<()> {
    let dir = tempfile::tempdir()?;
    let workload =
        "apiVersion: berth/v1\nkind: Workload\nmetadata: {name: w}\nspec: {image: x, run: onDevice}\n";
    let mut yaml = [workload.to_owned(), workload.to_owned()];
    for n in 0..1000 {
        let rule = format!(
            "---\napiVersion: berth/v1\nkind: HotplugRule\nmetadata: {{name: r{n}}}\nspec: {{workload: w, match: 'SUBSYSTEM==\"tty\", KERNEL==\"ttyS*\", ENV{{ID_SERIAL}}==\"S{n}x\"'}}\n"
        );
        yaml[0] += &rule;
        if n == 0 {
            yaml[1] += &rule;
        }
    }
    let mut recording = "{\"berthRecording\":1,\"source\":\"udev\"}\n".to_owned();
    for n in 0..1000 {
        recording += &format!(
            "{{\"there\":{{\"devpath\":\"/devices/platform/tty/ttyS{n}\",\"properties\":{{\"SUBSYSTEM\":\"tty\",\"ID_SERIAL\":\"S{n}\"}}}}}}\n"
        );
    }
    std::fs::write(dir.path().join("recording"), recording)?;
    let mut samples = [Sample::default(), Sample::default()];
    for _ in 0..10 {
        for (n, text) in yaml.iter().enumerate() {
            let file = dir.path().join(format!("{n}.yaml"));
            std::fs::write(&file, text)?;
            let begin = now();
            let out = std::process::Command::new(berth_tests::agent::binary())
                .args(["device", "simulate", "--rules"])
                .args([&file, &dir.path().join("recording")])
                .output()?;
            anyhow::ensure!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
            samples[n].push((now() - begin) / 1e6);
        }
    }
    let [many, one] = samples;
    let mut beyond = Sample::default();
    beyond.push(many.median() - one.median());
    table.alone(
        "1000 rules x 1000 devices: read and matched, beyond one rule's",
        "ms",
        &beyond,
        Some(100.0),
    );
    table.beside(
        "simulate: 1000 rules x 1000 devices, documents read",
        "ms",
        &many,
        ("one rule", &one),
        None,
    );
    Ok(())
}

/// Polling periods as their projects publish them (documentation of Akri's discovery handlers, README of
/// generic-device-plugin): nothing is measured here, and a plug waits half of one on average.
fn published(table: &mut Table) {
    for (name, seconds) in [("Akri", 10.0), ("generic-device-plugin", 5.0)] {
        let mut period = Sample::default();
        period.push(seconds * 1e3);
        table.alone(
            format!("published, not measured: {name} polls every"),
            "ms",
            &period,
            None,
        );
    }
}

/// What one does without berth: a rule of udev whose RUN starts a container with crun. udevd's own events and workers,
/// the same bundle as of the runtimes' rows; the end is the container's own first instruction (it writes the time).
fn do_it_yourself(table: &mut Table, rounds: usize) -> Result<()> {
    let udevd = ["/lib/systemd/systemd-udevd", "/usr/lib/systemd/systemd-udevd"]
        .into_iter()
        .find(|path| std::path::Path::new(path).exists());
    let crun = std::process::Command::new("crun").arg("--version").output();
    let (Some(udevd), Ok(_)) = (udevd, crun) else {
        println!("no row for udev's RUN: it needs systemd-udevd and crun");
        return Ok(());
    };
    let dir = tempfile::tempdir()?;
    let bundle = crate::bundles::write(
        dir.path(),
        "run",
        &["SCMP_ARCH_X86_64"],
        &["/bin/sh", "-c", "exec /bin/cat /proc/uptime"],
    )?;
    let out = dir.path().join("out");
    let script = dir.path().join("start.sh");
    std::fs::write(
        &script,
        format!(
            "#!/bin/sh\ncrun --root {0}/state run --bundle {1} berth-bench-run-$1 >{0}/new </dev/null 2>&1; mv {0}/new {2}\n",
            dir.path().display(),
            bundle.dir.display(),
            out.display()
        ),
    )?;
    let rule = dir.path().join("99-berth-bench.rules");
    std::fs::write(
        &rule,
        format!(
            "ACTION==\"add\", KERNEL==\"loop501\", RUN+=\"/bin/sh {} $number\"\n",
            script.display()
        ),
    )?;
    // In namespaces of its own: nobody else sees a udevd, and it knows this one rule.
    let ready = dir.path().join("ready");
    let room = format!(
        "for d in /run /etc/udev /usr/lib/udev; do mkdir -p $d; mount -t tmpfs tmpfs $d; done; mkdir -p /run/udev/rules.d && \
         cp {} /run/udev/rules.d/ && touch {} && exec {udevd}",
        rule.display(),
        ready.display()
    );
    let mut daemon = std::process::Command::new("unshare")
        .args(["--net", "--mount", "sh", "-c", &room])
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .spawn()?;
    let measured = (|| -> Result<Sample> {
        let begin = std::time::Instant::now();
        while !ready.exists() {
            anyhow::ensure!(begin.elapsed().as_secs() < 10, "udevd does not come up");
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        // From there to listening.
        std::thread::sleep(std::time::Duration::from_secs(2));
        let mut sample = Sample::default();
        let mut disk = Loop::number(501);
        for round in 0..rounds + 2 {
            let begin = uptime();
            disk.plug()?;
            let wait = std::time::Instant::now();
            while !out.exists() {
                anyhow::ensure!(wait.elapsed().as_secs() < 20, "RUN did not start the container");
                std::thread::sleep(std::time::Duration::from_millis(2));
            }
            let said = std::fs::read_to_string(&out)?;
            std::fs::remove_file(&out)?;
            let at: f64 = said
                .split_whitespace()
                .next()
                .and_then(|t| t.parse().ok())
                .with_context(|| format!("the container said {said:?}"))?;
            disk.unplug()?;
            if round >= 2 {
                // /proc/uptime counts in hundredths: half of one is added on average.
                sample.push((at - begin) * 1e3 + 5.0);
            }
        }
        Ok(sample)
    })();
    let ended = nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(i32::try_from(daemon.id())?),
        nix::sys::signal::Signal::SIGTERM,
    );
    daemon.wait()?;
    ended?;
    table.alone(
        "do it yourself: udev RUN → crun run → first output",
        "ms",
        &measured?,
        None,
    );
    Ok(())
}

/// Seconds since boot, CLOCK_BOOTTIME.
fn uptime() -> f64 {
    nix::time::clock_gettime(nix::time::ClockId::CLOCK_BOOTTIME)
        .map_or(0.0, |t| t.tv_sec() as f64 + t.tv_nsec() as f64 / 1e9)
}

/// The interface. Making the pair and moving one end are the kernel's work, tens of milliseconds under its one lock
/// and different each time; so both are measured within the very plug that is judged: until `ip link add` has returned,
/// and the monitor's own step `interfaces` (the netlink request that moves and renames it). What is left is berth's.
fn interface(table: &mut Table, rounds: usize) -> Result<()> {
    let mut agent = Agent::start("bench-nic")?;
    agent.apply(&DOCUMENTS.replace("ARMED", "0"))?;
    let (mut whole, mut kernel, mut beyond) = (Sample::default(), Sample::default(), Sample::default());
    for round in 0..rounds.min(20) + 2 {
        let begin = now();
        let mut veth = Veth::plug("bb0")?;
        let made = (now() - begin) / 1e6;
        let millis = (started(&mut agent, "bench-nic")? - begin) / 1e6;
        let details = agent.json(&["inspect", "bench-nic-bb0"])?;
        let details = details.get(0).cloned().unwrap_or(details);
        let steps = details["timing"].as_array().context("no timing in inspect")?;
        let moved = steps
            .iter()
            .find(|step| step[0] == "interfaces")
            .and_then(|step| step[1].as_f64());
        let share = made + moved.context("no step `interfaces` in the timing")? / 1e3;
        veth.unplug()?;
        gone(&mut agent, "bench-nic")?;
        if round >= 2 {
            whole.push(millis);
            kernel.push(share);
            beyond.push(millis - share);
        }
    }
    table.beside(
        "veth: plug → exec stop released",
        "ms",
        &whole,
        ("the kernel's add and move", &kernel),
        None,
    );
    table.alone(
        "veth: berth's own time beyond the measured move",
        "ms",
        &beyond,
        Some(4.0),
    );
    agent.finish()
}
