//! Images that came with the firmware: a read-only store below the node's own, believed only as it was sealed.

use anyhow::{Context, Result, ensure};
use berth_tests::agent::{Agent, binary, samples};
use libtest_mimic::Trial;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::journey::{name, wait_running};
use crate::test;

const PRELOADED: &str = r#"
apiVersion: berth/v1
kind: Workload
metadata: {name: preloaded}
spec:
  image: firmware-busybox:1
  command: ["/bin/sh", "-c", "while :; do sleep 1; done"]
  cpus: shared
  restart: {policy: never}
"#;

pub(crate) fn tests() -> Vec<Trial> {
    vec![
        test(
            "preloaded::an image of the firmware runs with no image loaded",
            runs,
        ),
        test("preloaded::one that was tampered with is refused", tampered),
    ]
}

/// Makes a store as a firmware build does: load, seal; the seal lies beside it.
fn firmware(agent: &Agent) -> Result<PathBuf> {
    let build = agent.path("build");
    let berth = |args: &[&str]| -> Result<String> {
        let output = Command::new(binary())
            .arg("--state-dir")
            .arg(&build)
            .args(args)
            .output();
        let output = output.context("berth")?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(output.status.success(), "berth {}: {said}", args.join(" "));
        Ok(String::from_utf8(output.stdout)?)
    };
    // The same image in the node's own store would be used, whatever the name it was asked for by.
    agent.ok(&["image", "rm", "berth-sample-busybox:latest"])?;
    let archive = samples().join("berth-sample-busybox.tar").display().to_string();
    berth(&["image", "load", &archive, "--name", "firmware-busybox:1"])?;
    let seal = berth(&["image", "seal"])?;
    let dir = agent.path("preloaded");
    fs::rename(build.join("images"), &dir)?;
    fs::write(agent.path("preloaded.seal"), seal)?;
    Ok(dir)
}

/// The store as a file system that nobody can write: what squashfs or a read-only root gives.
struct ReadOnly(PathBuf);

impl ReadOnly {
    fn mount(dir: &Path) -> Result<ReadOnly> {
        for options in ["bind", "remount,bind,ro"] {
            let status = Command::new("mount")
                .args(["-o", options])
                .arg(dir)
                .arg(dir)
                .status()?;
            ensure!(status.success(), "mount -o {options} {}", dir.display());
        }
        Ok(ReadOnly(dir.to_owned()))
    }
}

impl Drop for ReadOnly {
    fn drop(&mut self) {
        // What is left mounted fails the look at the machine that follows every test.
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

fn runs() -> Result<()> {
    let mut agent = Agent::prepare("preloaded")?;
    let store = firmware(&agent)?;
    let read_only = ReadOnly::mount(&store)?;
    agent.spawn(&[])?;
    let listed = agent.json(&["image", "ls"])?;
    let entry = |list: &serde_json::Value| {
        let all = list.as_array().cloned().unwrap_or_default();
        all.into_iter()
            .find(|one| one["reference"] == "firmware-busybox:1")
    };
    let found = entry(&listed).with_context(|| format!("not listed: {listed}"))?;
    ensure!(
        found["preloaded"] == true && found["problem"].is_null(),
        "{found}"
    );
    agent.apply(PRELOADED)?;
    wait_running(&mut agent, "preloaded", 1)?;
    agent.ok(&["prove", &name(&agent, "preloaded")?])?;
    ensure!(
        fs::read_dir(agent.path("run/verified"))?.count() == 1,
        "the image was not hashed before it was launched"
    );
    // An update: the same name in the node's own store goes first.
    let archive = samples().join("berth-sample-worker.tar").display().to_string();
    agent.ok(&["image", "load", &archive, "--name", "firmware-busybox:1"])?;
    let found = entry(&agent.json(&["image", "ls"])?).context("gone from the listing")?;
    ensure!(found["preloaded"] == false, "{found}");
    agent.ok(&["image", "verify"])?;
    drop(read_only);
    agent.finish()
}

fn tampered() -> Result<()> {
    let mut agent = Agent::prepare("tampered-fw")?;
    let store = firmware(&agent)?;
    let layer = fs::read_dir(store.join("layers"))?
        .flatten()
        .next()
        .context("no layer")?;
    let victim = layer.path().join("fs/bin/busybox");
    let mut bytes = fs::read(&victim)?;
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    fs::write(&victim, bytes)?;
    agent.spawn(&[])?;
    let file = agent.path("w.yaml");
    fs::write(&file, PRELOADED)?;
    let output = agent.try_run(&["apply", &file.display().to_string()])?;
    ensure!(output.status.success(), "{output:?}");
    agent.wait_for("the refusal names the layer and what to do", |a| {
        let told = a.ok(&["inspect", "preloaded"])?;
        Ok(told.contains("altered: the tree is") && told.contains("berth image load"))
    })?;
    let verified = agent.refused(&["image", "verify"])?;
    ensure!(verified.contains("altered"), "{verified}");
    agent.finish()
}
