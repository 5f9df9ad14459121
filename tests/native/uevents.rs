//! Programs that use libudev, in a container: they hear of the devices they were given and find udev's records.

use std::fs;
use std::process::{Child, Stdio};

use anyhow::{Context, Result, ensure};
use berth_tests::agent::Agent;
use berth_tests::node::Loop;
use libtest_mimic::Trial;

use crate::journey::{name, wait_gone, wait_running};
use crate::test;

pub(crate) fn tests() -> Vec<Trial> {
    vec![
        test("uevents::libudev inside hears of its own device alone", heard),
        test("uevents::refused beside a path of its own", refused),
    ]
}

/// The host's udevadm: libudev's own reader of events and records. /usr is mounted at /home.
const UDEVADM: [&str; 4] = [
    "/home/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2",
    "--library-path",
    "/home/lib/x86_64-linux-gnu:/home/lib/x86_64-linux-gnu/systemd",
    "/home/bin/udevadm",
];

fn documents(device: &str) -> String {
    format!(
        "apiVersion: berth/v1\nkind: Workload\nmetadata: {{name: hears}}\nspec:\n  image: berth-sample-busybox:latest\n  \
         command: [\"/bin/sleep\", \"1000\"]\n  run: onDevice\n  profile: device-worker\n  cpus: shared\n  \
         mounts: [{{source: /usr, destination: /home, readOnly: true}}]\n  stop: {{signal: SIGKILL, grace: 1s}}\n---\n\
         apiVersion: berth/v1\nkind: HotplugRule\nmetadata: {{name: hears}}\nspec:\n  workload: hears\n  \
         match: SUBSYSTEM==\"block\", KERNEL==\"loop324\"\n  device: {device}\n  unplug: {{then: keep}}\n"
    )
}

struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn heard() -> Result<()> {
    let mut agent = Agent::start("uevents")?;
    let documents = documents("{access: r, uevents: true}");
    agent.apply(&documents)?;
    let (mut disk, mut other) = (Loop::number(324), Loop::number(325));
    disk.plug()?;
    other.plug()?;
    wait_running(&mut agent, "hears", 1)?;
    let named = name(&agent, "hears")?;
    let syspath = disk.syspath().display().to_string();
    let info = |agent: &Agent| {
        let mut args = vec!["exec", &named];
        args.extend(UDEVADM);
        args.extend(["info", "--query=property", "--path", &syspath]);
        agent.try_run(&args)
    };
    let known = info(&agent)?;
    let words = String::from_utf8_lossy(&known.stdout).into_owned();
    ensure!(
        words.contains("DEVNAME=/dev/loop324") && words.contains("USEC_INITIALIZED="),
        "no record inside: {words}{}",
        String::from_utf8_lossy(&known.stderr)
    );
    let file = agent.path("heard");
    let monitor = agent
        .command()
        .args(["exec", &named])
        .args(UDEVADM)
        .args([
            "monitor",
            "--kernel",
            "--udev",
            "--property",
            "--subsystem-match=block",
        ])
        .stdout(fs::File::create(&file)?)
        .stderr(Stdio::inherit())
        .spawn()?;
    let monitor = Running(monitor);
    let heard = || fs::read_to_string(&file).context("what was heard");
    agent.wait_for("it listens", |_| {
        Ok(heard()?.contains("KERNEL - the kernel uevent"))
    })?;
    let both = |action: &str, word: &str| -> Result<bool> {
        let text = heard()?;
        let has = |source: &str| {
            text.split("\n\n").any(|event| {
                event.starts_with(source)
                    && event.contains(&format!("ACTION={action}\n"))
                    && event.contains(word)
            })
        };
        Ok(has("KERNEL[") && has("UDEV  ["))
    };
    // Its own words are passed on, the other device's event is not.
    let synthetic = |word: &str| format!("change fe4d7c9d-b8c6-4a70-9ef1-3d8a58d18eed WORD={word}");
    fs::write(other.syspath().join("uevent"), synthetic("other"))?;
    fs::write(disk.syspath().join("uevent"), synthetic("own"))?;
    agent.wait_for("the change is heard", |_| both("change", "SYNTH_ARG_WORD=own"))?;
    disk.unplug()?;
    agent.wait_for("the removal is heard", |_| both("remove", "DEVNAME=/dev/loop324"))?;
    let gone = info(&agent)?;
    ensure!(!gone.status.success(), "it is still known inside");
    disk.plug()?;
    agent.wait_for("its coming is heard", |_| both("add", "DEVNAME=/dev/loop324"))?;
    ensure!(
        String::from_utf8_lossy(&info(&agent)?.stdout).contains("USEC_INITIALIZED="),
        "no record of the device that came back"
    );
    let text = heard()?;
    ensure!(!text.contains("loop325"), "events of another's device: {text}");
    // What it can see it cannot change, and nothing of it stays.
    let write = agent.try_run(&["exec", &named, "/bin/touch", "/run/udev/data/x"])?;
    ensure!(!write.status.success(), "it writes records");
    agent.ok(&["prove", &named])?;
    drop(monitor);
    let file = agent.path("documents.yaml");
    fs::write(&file, &documents)?;
    agent.ok(&["delete", &file.display().to_string()])?;
    wait_gone(&mut agent, "hears")?;
    let left: Vec<_> = fs::read_dir(agent.path("run").join("udev"))?.flatten().collect();
    ensure!(left.is_empty(), "{left:?}");
    agent.finish()
}

fn refused() -> Result<()> {
    let agent = Agent::prepare("uevents-refused")?;
    let file = agent.path("rules.yaml");
    fs::write(&file, documents("{path: /dev/disk, uevents: true}"))?;
    let said = agent.try_run(&["check", &file.display().to_string()])?;
    let text = String::from_utf8_lossy(&said.stderr).into_owned() + &String::from_utf8_lossy(&said.stdout);
    ensure!(
        !said.status.success() && text.contains("device.uevents") && text.contains("device.path"),
        "{text}"
    );
    agent.finish()
}
