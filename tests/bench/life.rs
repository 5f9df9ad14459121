//! What a running container is asked: one more process inside, beside crun's exec; a stop that is obeyed; and a thousand
//! launches in a row, after which nothing may have grown.
//!
//! exec: `berth exec` and `crun exec`, each by the container's id (`berth exec` asks its monitor), are whole processes, from
//! posix_spawn to their exit, each running `/bin/true` of the same static busybox in a container of its own.
//! stop: from the SIGTERM that the bench sends to the container's first process, which obeys, until no cgroup of the
//! container is left in any hierarchy and its runtime record is gone.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use berth_tests::agent::Agent;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::bundles;
use crate::oci;
use crate::stats::{Sample, Table};

fn document(command: &str) -> String {
    format!(
        "apiVersion: berth/v1\nkind: Workload\nmetadata: {{name: bench}}\nspec:\n  image: berth-sample-busybox:latest\n  \
         command: {command}\n  cpus: shared\n  restart: {{policy: never}}\n  stop: {{signal: SIGKILL, grace: 1s}}\n"
    )
}

const SLEEPS: &str = r#"["/bin/sleep", "100000"]"#;
const OBEYS: &str = r#"["/bin/sh", "-c", "trap 'exit 0' TERM; sleep 100000 & wait"]"#;

/// Pid and id of the one running container.
fn running(agent: &mut Agent) -> Result<(Pid, String)> {
    let mut found = None;
    agent.wait_for("it runs", |a| {
        found = a.in_state("running")?.first().cloned();
        Ok(found.is_some())
    })?;
    let found = found.context("nothing runs")?;
    let pid = found["pid"].as_i64().context("no pid")?;
    let id = found["id"].as_str().context("no id")?;
    Ok((Pid::from_raw(i32::try_from(pid)?), id.to_owned()))
}

fn timed(command: &mut Command) -> Result<f64> {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let begin = Instant::now();
    let status = command.status()?;
    let millis = begin.elapsed().as_secs_f64() * 1e3;
    ensure!(status.success(), "{command:?}: {status}");
    Ok(millis)
}

/// crun's container, deleted at the end.
struct Peer {
    state: PathBuf,
}

impl Peer {
    const ID: &str = "berth-bench-exec";

    fn command(&self) -> Command {
        let mut command = Command::new("crun");
        command.arg("--root").arg(&self.state);
        command
    }

    fn start(dir: &Path) -> Result<Peer> {
        let native: &[&str] = if cfg!(target_arch = "x86_64") {
            &["SCMP_ARCH_X86_64"]
        } else {
            &["SCMP_ARCH_AARCH64"]
        };
        let bundle = bundles::write(dir, "exec", native, &["/bin/sleep", "100000"])?;
        let peer = Peer {
            state: dir.join("crun"),
        };
        let mut command = peer.command();
        command
            .args(["run", "--detach", "--bundle"])
            .arg(&bundle.dir)
            .arg(Peer::ID);
        timed(&mut command).context("crun run --detach")?;
        Ok(peer)
    }

    fn exec(&self) -> Command {
        let mut command = self.command();
        command.args(["exec", Peer::ID, "/bin/true"]);
        command
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.command().args(["delete", "--force", Peer::ID]).status();
    }
}

pub(crate) fn exec(table: &mut Table, rounds: usize) -> Result<()> {
    oci::own_mounts()?;
    let dir = tempfile::Builder::new().prefix("berth-bench-").tempdir()?;
    let peer = match Command::new("crun")
        .arg("--version")
        .stdout(Stdio::null())
        .status()
    {
        Ok(_) => Some(Peer::start(dir.path())?),
        Err(e) => {
            println!("SKIP peer crun: {e} (apt-get install crun)");
            None
        }
    };
    let mut agent = Agent::start("bench-exec")?;
    agent.apply(&document(SLEEPS))?;
    let (_, id) = running(&mut agent)?;
    let (mut ours, mut theirs) = (Sample::default(), Sample::default());
    for round in 0..rounds + 3 {
        let mut command = agent.command();
        command.args(["exec", &id, "--", "/bin/true"]);
        let millis = timed(&mut command)?;
        let other = peer.as_ref().map(|peer| timed(&mut peer.exec())).transpose()?;
        if round >= 3 {
            ours.push(millis);
            other.into_iter().for_each(|millis| theirs.push(millis));
        }
    }
    match peer {
        Some(_) => table.beside(
            "exec: berth exec, whole command",
            "ms",
            &ours,
            ("crun", &theirs),
            Some(0.5),
        ),
        None => table.alone("exec: berth exec, whole command", "ms", &ours, None),
    }
    agent.finish()
}

/// The directories named `id` below `cgroup` in every hierarchy.
fn cgroups(cgroup: &str, id: &str) -> Vec<PathBuf> {
    let root = Path::new("/sys/fs/cgroup");
    let trees = fs::read_dir(root)
        .into_iter()
        .flatten()
        .flatten()
        .map(|e| e.path());
    trees
        .chain([root.to_owned()])
        .map(|tree| tree.join(cgroup).join(id))
        .filter(|dir| dir.is_dir())
        .collect()
}

pub(crate) fn stop(table: &mut Table, rounds: usize) -> Result<()> {
    let mut agent = Agent::start("bench-stop")?;
    agent.apply(&document(OBEYS))?;
    let mut sample = Sample::default();
    for round in 0..rounds + 2 {
        let (pid, id) = running(&mut agent)?;
        // Its shell has set its trap once it has a child.
        let children = format!("/proc/{pid}/task/{pid}/children");
        agent.wait_for("it can obey", |_| {
            Ok(!fs::read_to_string(&children)?.trim().is_empty())
        })?;
        let mut left = cgroups(&agent.cgroup, &id);
        ensure!(!left.is_empty(), "{id} has no cgroup");
        left.push(agent.path("run/containers").join(&id).join("record.json"));
        let begin = Instant::now();
        kill(pid, Signal::SIGTERM)?;
        while left.iter().any(|path| path.exists()) {
            std::thread::sleep(Duration::from_micros(50));
            if begin.elapsed() > Duration::from_secs(10) {
                bail!("{id} is not freed in 10 s");
            }
        }
        let millis = begin.elapsed().as_secs_f64() * 1e3;
        if round >= 2 {
            sample.push(millis);
        }
        agent.wait_for("it has ended", |a| Ok(a.in_state("running")?.is_empty()))?;
        agent.ok(&["restart", "bench"])?;
    }
    table.alone("stop: SIGTERM obeyed → all freed", "ms", &sample, Some(5.0));
    agent.finish()
}

/// What a process has: resident KiB and open descriptors.
fn held(pid: Pid) -> Result<(f64, f64)> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let rss = status
        .lines()
        .find_map(|l| l.strip_prefix("VmRSS:"))
        .context("no VmRSS")?;
    let fds = fs::read_dir(format!("/proc/{pid}/fd"))?.count();
    Ok((rss.trim_end_matches("kB").trim().parse()?, fds as f64))
}

/// Files and folders below `dir`, or cgroups where it is one.
fn entries(dir: &Path) -> f64 {
    let below = fs::read_dir(dir).into_iter().flatten().flatten();
    below
        .map(|e| match e.file_type() {
            Ok(kind) if kind.is_dir() => 1.0 + entries(&e.path()),
            // The files of a cgroup come and go with it.
            _ if e.path().as_os_str().as_bytes().starts_with(b"/sys/fs/cgroup") => 0.0,
            _ => 1.0,
        })
        .sum()
}

/// Everything that could have grown, in the order of [`GROWS`].
fn all(agent: &Agent) -> Result<[f64; 6]> {
    let (agent_rss, agent_fds) = held(agent.pid()?)?;
    let (launcher_rss, launcher_fds) = held(agent.launcher()?)?;
    let files = ["run", "state", "config"]
        .map(|sub| entries(&agent.path(sub)))
        .iter()
        .sum();
    let trees = fs::read_dir("/sys/fs/cgroup")?.flatten().map(|e| e.path());
    let cgroups = trees.map(|tree| entries(&tree.join(&agent.cgroup))).sum();
    Ok([agent_rss, launcher_rss, agent_fds, launcher_fds, files, cgroups])
}

/// What is compared, its unit, and by how much it may have grown.
const GROWS: [(&str, &str, f64); 6] = [
    ("agent's memory", "KiB", 512.0),
    ("launcher's memory", "KiB", 512.0),
    ("agent's descriptors", "", 0.0),
    ("launcher's descriptors", "", 0.0),
    ("files", "", 0.0),
    ("cgroups", "", 0.0),
];

/// `count` launches and deletes in a row, after a tenth as many that fill what is kept.
pub(crate) fn thousand(table: &mut Table, count: usize) -> Result<()> {
    let mut agent = Agent::start("bench-thousand")?;
    agent.apply(&document(SLEEPS))?;
    let mut last = i64::from(running(&mut agent)?.0.as_raw());
    let mut launch = |agent: &mut Agent, count: usize| -> Result<()> {
        for _ in 0..count {
            agent.ok(&["restart", "bench"])?;
            agent.wait_for("the next runs", |a| {
                let now = a.in_state("running")?;
                // The id may be that of the one before: it is free again.
                let pid = now.first().and_then(|c| c["pid"].as_i64());
                let next = pid.filter(|pid| *pid != last);
                Ok(next.map(|pid| last = pid).is_some())
            })?;
        }
        Ok(())
    };
    // What is given back while nothing happens is given back before both looks.
    let rest = Duration::from_secs(3);
    launch(&mut agent, count / 10)?;
    std::thread::sleep(rest);
    let before = all(&agent)?;
    launch(&mut agent, count)?;
    std::thread::sleep(rest);
    let after = all(&agent)?;
    for (((what, unit, bound), before), after) in GROWS.into_iter().zip(before).zip(after) {
        let mut sample = Sample::default();
        sample.push(after - before);
        table.alone(
            format!("{count} launches and deletes: growth of the {what}"),
            unit,
            &sample,
            Some(bound),
        );
    }
    agent.finish()
}
