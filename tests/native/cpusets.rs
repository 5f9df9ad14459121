//! cgroup v1: with consent `berth node tune` takes load balancing off the root cpuset and every process into one of the
//! housekeeping CPUs; `--undo` puts it back, whenever it was killed. A cpuset of this test's own stands for the root.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use anyhow::{Context, Result, ensure};
use berth_tests::agent::binary;
use libtest_mimic::Trial;

use crate::{rounds, test};

const MOUNT: &str = "/sys/fs/cgroup/cpuset";

pub(crate) fn tests() -> Vec<Trial> {
    vec![test(
        "cpusets::balancing is given up with consent, and put back",
        life,
    )]
}

/// A cpuset below the hierarchy's root; what is in it goes back there, and it is removed when dropped.
struct Lab {
    root: PathBuf,
    dir: tempfile::TempDir,
    sleepers: Vec<Child>,
}

impl Lab {
    fn make() -> Result<Lab> {
        let root = Path::new(MOUNT).join(format!("berth-test-cpusets-{}", std::process::id()));
        let lab = Lab {
            root,
            dir: tempfile::Builder::new().prefix("berth-test-").tempdir()?,
            sleepers: Vec::new(),
        };
        lab.cpuset("", "0-1")?;
        // A container manager's folder, as of docker: nobody in it, all CPUs.
        lab.cpuset("manager", "0-1")?;
        Ok(lab)
    }

    fn cpuset(&self, name: &str, cpus: &str) -> Result<()> {
        let path = self.root.join(name);
        fs::create_dir(&path).with_context(|| path.display().to_string())?;
        fs::write(path.join("cpuset.mems"), "0")?;
        Ok(fs::write(path.join("cpuset.cpus"), cpus)?)
    }

    /// A process in a cpuset, bound to some of its CPUs.
    fn sleeper(&mut self, name: &str, cpus: &str) -> Result<()> {
        let enter = format!(
            "echo 0 > {}/tasks && exec taskset -c {cpus} sleep 1000",
            self.root.join(name).display()
        );
        let child = Command::new("sh")
            .args(["-c", &enter])
            .stdin(Stdio::null())
            .spawn()?;
        let pid = child.id();
        self.sleepers.push(child);
        for _ in 0..500 {
            if fs::read_to_string(format!("/proc/{pid}/comm"))?.trim() == "sleep" {
                return Ok(());
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        anyhow::bail!("no sleeper in {name}")
    }

    fn document(&self, cpus: &str) -> Result<()> {
        let text = format!(
            "apiVersion: berth/v1\nkind: Node\nmetadata: {{name: test}}\nspec: {{cpus: {{housekeeping: \"0\", isolated: \"1\"{cpus}}}}}\n"
        );
        Ok(fs::write(self.dir.path().join("node.yaml"), text)?)
    }

    fn node(&self, by: &[&str], words: &[&str]) -> Result<Output> {
        let berth = binary().display().to_string();
        let all: Vec<&str> = by.iter().copied().chain([berth.as_str()]).collect();
        let output = Command::new(all[0])
            .args(&all[1..])
            .arg("--run-dir")
            .arg(self.dir.path())
            .arg("node")
            .args(words)
            .arg("--from")
            .arg(self.dir.path().join("node.yaml"))
            .arg("--cpuset")
            .arg(&self.root)
            .stdin(Stdio::null())
            .output()?;
        Ok(output)
    }

    /// Told on standard output; the command must end with `code`.
    fn told(&self, words: &[&str], code: i32) -> Result<String> {
        let output = self.node(&[], words)?;
        let text = format!(
            "{}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        ensure!(
            output.status.code() == Some(code),
            "{words:?}: {}\n{text}",
            output.status
        );
        Ok(text)
    }

    /// Every cpuset's files and threads, and every thread's CPUs.
    fn all(&self) -> Result<BTreeMap<String, String>> {
        let mut all = BTreeMap::new();
        let mut folders = vec![self.root.clone()];
        while let Some(folder) = folders.pop() {
            for file in ["cpuset.cpus", "cpuset.mems", "cpuset.sched_load_balance", "tasks"] {
                let path = folder.join(file);
                let mut lines: Vec<String> = fs::read_to_string(&path)?.lines().map(str::to_owned).collect();
                lines.sort();
                if file == "tasks" {
                    for tid in &lines {
                        let status = fs::read_to_string(format!("/proc/{tid}/status"))?;
                        let cpus = status.lines().find(|l| l.starts_with("Cpus_allowed_list"));
                        all.insert(format!("CPUs of {tid}"), cpus.unwrap_or_default().to_owned());
                    }
                }
                all.insert(path.display().to_string(), lines.join(" "));
            }
            let entries = fs::read_dir(&folder)?.flatten();
            folders.extend(entries.map(|e| e.path()).filter(|p| p.is_dir()));
        }
        Ok(all)
    }

    fn value(&self, path: &str) -> Result<String> {
        Ok(fs::read_to_string(self.root.join(path))?.trim().to_owned())
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        for child in &mut self.sleepers {
            let _ = child.kill();
            let _ = child.wait();
        }
        for below in ["manager", "busy", "berth-housekeeping", ""] {
            let _ = fs::remove_dir(self.root.join(below));
        }
    }
}

const CONSENT: &str = ", schedLoadBalance: false";

fn life() -> Result<()> {
    if !Path::new(MOUNT).join("cpuset.sched_load_balance").exists() {
        // Nothing to give up: cgroup v2 has partitions.
        return Ok(());
    }
    let mut lab = Lab::make()?;
    lab.sleeper("", "0-1")?;
    lab.sleeper("", "1")?;
    let before = lab.all()?;
    // Without consent it is not even looked at.
    lab.document("")?;
    let told = lab.told(&["tune"], 0)?;
    ensure!(!told.contains("cpuset"), "{told}");
    ensure!(lab.all()? == before, "changed without consent");
    lab.document(CONSENT)?;
    let told = lab.told(&["tune", "--dry-run"], 0)?;
    for part in [
        "berth-housekeeping",
        "cpuset of sleep",
        "manager/cpuset.sched_load_balance",
        "would be changed",
    ] {
        ensure!(told.contains(part), "no {part}:\n{told}");
    }
    ensure!(lab.all()? == before, "changed by --dry-run");
    // What only a boot mends is there before and after.
    let told = lab.told(&["check"], 1)?;
    ensure!(told.contains("\ndiffers "), "{told}");
    lab.told(&["tune"], 0)?;
    let told = lab.told(&["check", "--all"], 1)?;
    ensure!(
        !told.contains("\ndiffers ") && told.contains("\nok  ") && told.contains("sched-load-balance"),
        "{told}"
    );
    for (path, value) in [
        ("cpuset.sched_load_balance", "0"),
        ("manager/cpuset.sched_load_balance", "0"),
        ("tasks", ""),
        ("berth-housekeeping/cpuset.cpus", "0"),
        ("berth-housekeeping/cpuset.sched_load_balance", "1"),
    ] {
        ensure!(lab.value(path)? == value, "{path}: {:?}", lab.value(path)?);
    }
    let now = lab.all()?;
    for child in &lab.sleepers {
        let cpus = &now[&format!("CPUs of {}", child.id())];
        ensure!(cpus.ends_with("\t0"), "{cpus}");
    }
    // What came into it later goes to the root with the others.
    lab.sleeper("berth-housekeeping", "0")?;
    lab.told(&["tune", "--undo"], 0)?;
    let mut late = lab.sleepers.pop().context("no sleeper")?;
    ensure!(
        lab.value("tasks")?.lines().any(|l| l == late.id().to_string()),
        "{}",
        lab.value("tasks")?
    );
    late.kill()?;
    late.wait()?;
    ensure!(
        lab.all()? == before,
        "not as before:\n{before:#?}\n{:#?}",
        lab.all()?
    );
    // Killed before each write of the way there, and of the way back.
    let kill_at = env!("CARGO_BIN_EXE_berth-kill-at");
    let step = if rounds(1) > 1 { 1 } else { 3 };
    for (set, killed) in [(false, &["tune"][..]), (true, &["tune", "--undo"])] {
        let (mut at, mut died) = (1, 0);
        loop {
            if set {
                lab.told(&["tune"], 0)?;
            }
            let ended = lab.node(&[kill_at, &at.to_string()], killed)?.status.code();
            let unfinished = lab.dir.path().join("node-tune.journal").exists();
            lab.told(&["tune", "--undo"], 0)?;
            let after = lab.all()?;
            ensure!(
                after == before,
                "{killed:?} killed at {at}:\n{before:#?}\n{after:#?}"
            );
            if ended != Some(137) {
                ensure!(ended == Some(0), "{killed:?} at {at}: {ended:?}");
                break;
            }
            died += usize::from(unfinished);
            // The way back has few writes.
            at += if set { 1 } else { step };
        }
        ensure!(
            died > 3,
            "{killed:?} was killed {died} times with a journal there"
        );
    }
    // A cpuset with processes of its own on both kinds of CPUs is told, and left alone.
    lab.cpuset("busy", "0-1")?;
    lab.sleeper("busy", "0-1")?;
    let told = lab.told(&["tune"], 0)?;
    ensure!(told.contains("busy/cpuset.sched_load_balance"), "{told}");
    let told = lab.told(&["check"], 1)?;
    ensure!(told.contains("its 1 threads may run on CPUs 0-1"), "{told}");
    ensure!(lab.value("busy/cpuset.sched_load_balance")? == "1", "changed");
    lab.told(&["tune", "--undo"], 0)?;
    Ok(())
}
