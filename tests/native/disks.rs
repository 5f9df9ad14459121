//! File systems of block devices mounted in containers: type and label, flags, ids, unmounted when the device goes.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use berth_tests::agent::Agent;
use berth_tests::node::Loop;
use libtest_mimic::Trial;

use crate::journey::{name, pid, wait_gone, wait_running};
use crate::test;

pub(crate) fn tests() -> Vec<Trial> {
    vec![
        test(
            "disk::mounted by its label, read-only, unmounted when it goes",
            mounted,
        ),
        test("disk::written through the container's own ids", written),
        test("disk::another label or type is refused by name", refused),
    ]
}

fn run(program: &str, args: &[&str]) -> Result<()> {
    let out = Command::new(program)
        .args(args)
        .output()
        .with_context(|| program.to_owned())?;
    ensure!(
        out.status.success(),
        "{program} {args:?}: {}",
        String::from_utf8_lossy(&out.stderr)
    );
    Ok(())
}

/// A loop device with an ext4 file system of that label behind it, a file in it.
struct Disk {
    device: Loop,
    file: PathBuf,
}

impl Disk {
    fn plug(agent: &Agent, number: i32, label: &str) -> Result<Disk> {
        let folder = agent.path(&format!("tree{number}"));
        fs::create_dir_all(&folder)?;
        fs::write(folder.join("word"), "on the disk")?;
        let file = agent.path(&format!("disk{number}"));
        fs::File::create(&file)?.set_len(8 << 20)?;
        let words = [&folder, &file].map(|p| p.display().to_string());
        run("mkfs.ext4", &["-q", "-L", label, "-d", &words[0], &words[1]])?;
        let mut device = Loop::number(number);
        device.plug()?;
        run("losetup", &[&format!("/dev/loop{number}"), &words[1]])?;
        Ok(Disk { device, file })
    }

    fn sys(&self, file: &str) -> PathBuf {
        self.device.syspath().join(file)
    }

    /// Gone whole: nobody may have it mounted.
    fn unplug(&mut self) -> Result<()> {
        run("losetup", &["-d", &format!("/dev/{}", self.device.name())])?;
        self.device.unplug()
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("losetup")
            .args(["-d", &format!("/dev/{}", self.device.name())])
            .output();
    }
}

fn documents(number: u32, filesystem: &str, more: &str) -> String {
    format!(
        "apiVersion: berth/v1\nkind: Workload\nmetadata: {{name: store}}\nspec:\n  image: berth-sample-busybox:latest\n  \
         command: [\"/bin/sleep\", \"1000\"]\n  run: onDevice\n  profile: device-worker\n  cpus: shared\n{more}  \
         stop: {{signal: SIGKILL, grace: 1s}}\n---\n\
         apiVersion: berth/v1\nkind: HotplugRule\nmetadata: {{name: store}}\nspec:\n  workload: store\n  \
         match: SUBSYSTEM==\"block\", KERNEL==\"loop{number}\", ATTR{{size}}!=\"0\", ATTR{{queue/read_ahead_kb}}!=\"64\"\n  \
         filesystem: {filesystem}\n"
    )
}

/// The line of mountinfo for /home inside.
fn mount(agent: &Agent) -> Result<Option<String>> {
    let mounts = fs::read_to_string(format!("/proc/{}/mountinfo", pid(agent, "store")?))?;
    Ok(mounts
        .lines()
        .find(|line| line.split(' ').nth(4) == Some("/home"))
        .map(str::to_owned))
}

fn mounted() -> Result<()> {
    let mut agent = Agent::start("mounted")?;
    let rule = documents(
        320,
        "{path: /home, types: [squashfs, ext4], label: BERTHDATA}",
        "",
    ) + "  unplug: {then: keep}\n";
    agent.apply(&rule)?;
    let mut disk = Disk::plug(&agent, 320, "BERTHDATA")?;
    wait_running(&mut agent, "store", 1)?;
    let (before, named) = (pid(&agent, "store")?, name(&agent, "store")?);
    let word = PathBuf::from(format!("/proc/{before}/root/home/word"));
    for _ in 0..crate::rounds(2) {
        let line = mount(&agent)?.context("/home is no mount inside")?;
        let options = line.split(' ').nth(5).unwrap_or_default().to_owned();
        for flag in ["ro", "nosuid", "nodev", "noexec"] {
            ensure!(options.split(',').any(|o| o == flag), "no {flag}: {line}");
        }
        ensure!(line.contains(" ext4 "), "{line}");
        ensure!(fs::read_to_string(&word)? == "on the disk", "another disk");
        let write = agent.try_run(&["exec", &named, "/bin/touch", "/home/x"])?;
        ensure!(!write.status.success(), "it was written");
        let proof = agent.ok(&["prove", &named])?;
        ensure!(
            proof.lines().any(|l| l.contains("/home") && l.contains("noexec")),
            "{proof}"
        );
        // It matches no longer: taken from the running container.
        fs::write(disk.sys("queue/read_ahead_kb"), "64")?;
        fs::write(disk.sys("uevent"), "change")?;
        agent.wait_for("it is unmounted inside", |a| Ok(mount(a)?.is_none()))?;
        ensure!(!word.exists(), "still there");
        agent.ok(&["prove", &named])?;
        fs::write(disk.sys("queue/read_ahead_kb"), "128")?;
        fs::write(disk.sys("uevent"), "change")?;
        agent.wait_for("it is mounted again", |a| Ok(mount(a)?.is_some()))?;
        ensure!(pid(&agent, "store")? == before, "it was started anew");
    }
    let file = agent.path("store.yaml");
    fs::write(&file, &rule)?;
    agent.ok(&["delete", &file.display().to_string()])?;
    wait_gone(&mut agent, "store")?;
    // Nobody has it mounted: a loop device in use cannot be removed.
    disk.unplug()?;
    agent.finish()
}

fn written() -> Result<()> {
    let mut agent = Agent::start("written")?;
    let rule = documents(321, "{path: /home, types: [ext4], readOnly: false}", "").replace(
        "\"/bin/sleep\", \"1000\"",
        "\"/bin/sh\", \"-c\", \"echo new >/home/new; exec sleep 1000\"",
    );
    agent.apply(&rule)?;
    let mut disk = Disk::plug(&agent, 321, "ANY")?;
    wait_running(&mut agent, "store", 1)?;
    let new = PathBuf::from(format!("/proc/{}/root/home/new", pid(&agent, "store")?));
    agent.wait_for("it is written", |_| {
        Ok(fs::read_to_string(&new).is_ok_and(|t| t == "new\n"))
    })?;
    let file = agent.path("store.yaml");
    fs::write(&file, &rule)?;
    agent.ok(&["delete", &file.display().to_string()])?;
    wait_gone(&mut agent, "store")?;
    disk.unplug()?;
    // On the disk it is root's, whose id on the node is another: user 0 in the inode that debugfs shows.
    let out = Command::new("debugfs")
        .args(["-R", "stat /new", &disk.file.display().to_string()])
        .output()
        .context("debugfs")?;
    let said = String::from_utf8_lossy(&out.stdout).into_owned();
    let user = said
        .lines()
        .find(|l| l.starts_with("User:"))
        .context(said.clone())?;
    let words: Vec<&str> = user.split_whitespace().collect();
    ensure!(words.get(1) == Some(&"0") && words.get(3) == Some(&"0"), "{user}");
    agent.finish()
}

fn refused() -> Result<()> {
    let mut agent = Agent::start("refused")?;
    let never = "  restart: {policy: never}\n";
    for (filesystem, words) in [
        (
            "{path: /home, types: [ext4], label: OTHER}",
            "its label is \"BERTHDATA\", not \"OTHER\"",
        ),
        (
            "{path: /home, types: [squashfs]}",
            "has no file system of these types: squashfs",
        ),
        (
            "{path: /nowhere, types: [ext4]}",
            "the folder is not in the image",
        ),
    ] {
        let rule = documents(322, filesystem, never);
        agent.apply(&rule)?;
        let mut disk = Disk::plug(&agent, 322, "BERTHDATA")?;
        agent.wait_for("it has failed", |a| Ok(a.in_state("failed")?.len() == 1))?;
        let reason = agent.in_state("failed")?[0]["reason"]
            .to_string()
            .replace("\\\"", "\"");
        ensure!(reason.contains(words), "{filesystem}: {reason}");
        disk.unplug()?;
        wait_gone(&mut agent, "store")?;
    }
    ensure!(!Path::new("/dev/loop322").exists(), "the device is left");
    agent.finish()
}
