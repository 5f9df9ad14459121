//! An agent of a test's own: folders, cgroup parent, sockets and processes that end with the test.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tempfile::TempDir;

/// The built binary: `BERTH`, else target/release/berth of this workspace.
pub fn binary() -> PathBuf {
    if let Some(path) = std::env::var_os("BERTH") {
        return path.into();
    }
    workspace().join("target/release/berth")
}

/// The workspace's folder.
pub fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .map(Path::to_path_buf)
        .unwrap_or_default()
}

/// The folder of the sample images' OCI archives: `BERTH_SAMPLES`, else target/samples.
pub fn samples() -> PathBuf {
    std::env::var_os("BERTH_SAMPLES").map_or_else(|| workspace().join("target/samples"), PathBuf::from)
}

/// A running agent with everything it owns.
pub struct Agent {
    dir: TempDir,
    /// Its cgroup parent.
    pub cgroup: String,
    agent: Option<Child>,
    args: Vec<String>,
    /// It was ended in order.
    left: bool,
    /// What every command is run by: `nsenter …`.
    enter: Vec<String>,
}

impl Agent {
    /// Folders and images, no process yet. `name` goes into the cgroup's name.
    pub fn prepare(name: &str) -> Result<Agent> {
        let dir = tempfile::Builder::new().prefix("berth-test-").tempdir()?;
        for sub in ["run", "state", "config"] {
            fs::create_dir(dir.path().join(sub))?;
        }
        // Most tests are not about the launcher's policy; those that are write their own.
        let policy = "mounts: [{path: /, write: true}]\nhostNetwork: true\nprivileged: true\nrealtimePriority: 99\n\
                      limits: {capabilities: [ALL], newPrivileges: true, unfiltered: true, looserThanStrict: true, labels: [\"*\"]}\n";
        fs::create_dir(dir.path().join("config/launcher"))?;
        fs::write(dir.path().join("config/launcher/policy.yaml"), policy)?;
        let cgroup = format!("berth-test-{name}-{}", std::process::id());
        let agent = Agent {
            dir,
            cgroup,
            agent: None,
            args: Vec::new(),
            left: false,
            enter: Vec::new(),
        };
        for image in ["berth-sample-busybox", "berth-sample-worker"] {
            let archive = samples().join(format!("{image}.tar"));
            agent
                .ok(&["image", "load", &archive.display().to_string()])
                .with_context(|| format!("load {}: run make samples", archive.display()))?;
        }
        Ok(agent)
    }

    /// Folders, images and a running agent.
    pub fn start(name: &str) -> Result<Agent> {
        let mut agent = Agent::prepare(name)?;
        agent.spawn(&[])?;
        Ok(agent)
    }

    /// Start the agent (again), with more arguments, and wait until it answers.
    pub fn spawn(&mut self, args: &[&str]) -> Result<()> {
        if !args.is_empty() {
            self.args = args.iter().map(|a| (*a).to_string()).collect();
        }
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.path("agent.log"))?;
        let child = self
            .command()
            .args([
                "agent",
                "--cgroup-parent",
                &self.cgroup,
                "--metrics",
                "127.0.0.1:0",
            ])
            .args(&self.args)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("start {}: run make build", binary().display()))?;
        self.agent = Some(child);
        self.wait_for("the agent answers", |a| {
            if let Some(status) = a.agent.as_mut().and_then(|c| c.try_wait().ok().flatten()) {
                bail!("the agent ended with {status}:\n{}", a.log());
            }
            Ok(a.try_run(&["ps", "-o", "json"])?.status.success())
        })
    }

    /// A launcher that no agent has started, with this test's folders and cgroups. Who starts it ends it.
    pub fn launcher_alone(&self) -> Result<Child> {
        let mut command = self.command();
        command.args(["launcher", "--cgroup-parent", &self.cgroup]);
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        command.spawn().context("start a launcher")
    }

    /// A path below the test's folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The agent's log.
    pub fn log(&self) -> String {
        fs::read_to_string(self.path("agent.log")).unwrap_or_default()
    }

    /// The agent's pid.
    pub fn pid(&self) -> Result<Pid> {
        let child = self.agent.as_ref().context("the agent is not running")?;
        Ok(Pid::from_raw(i32::try_from(child.id())?))
    }

    /// The launcher's pid: the process whose comm is `berth-launcher` and whose command line names our folder.
    pub fn launcher(&self) -> Result<Pid> {
        self.processes("launcher")?
            .first()
            .copied()
            .context("no launcher runs")
    }

    /// Pids of the processes of ours whose command line names this test's run folder and whose comm or second
    /// argument is `role`.
    pub fn processes(&self, role: &str) -> Result<Vec<Pid>> {
        let run = self.path("run").display().to_string();
        let mut found = Vec::new();
        for entry in fs::read_dir("/proc")?.flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|n| n.parse().ok()) else {
                continue;
            };
            let read = |file: &str| fs::read(entry.path().join(file)).unwrap_or_default();
            let words = String::from_utf8_lossy(&read("cmdline")).replace('\0', " ");
            let comm = String::from_utf8_lossy(&read("comm")).trim().to_string();
            if words.contains(&run) && (comm.contains(role) || words.contains(&format!(" {role} "))) {
                found.push(Pid::from_raw(pid));
            }
        }
        Ok(found)
    }

    /// From now on commands, the agent among them, are run by this one.
    pub fn enter(&mut self, by: Vec<String>) {
        self.enter = by;
    }

    /// The text of the metrics.
    pub fn metrics(&self) -> Result<String> {
        let told = self.log();
        let address = told
            .lines()
            .rev()
            .find_map(|line| {
                line.split_once("address=")
                    .map(|(_, rest)| rest.trim().to_owned())
            })
            .context("the log names no address of the metrics")?;
        let request = format!(
            "exec 3<>/dev/tcp/{}; printf 'GET /metrics HTTP/1.0\\r\\n\\r\\n' >&3; cat <&3",
            address.replace(':', "/")
        );
        let mut command = self.by("bash".into());
        let out = command.args(["-c", &request]).output()?;
        Ok(String::from_utf8_lossy(&out.stdout).into_owned())
    }

    /// A program, run by what [`Agent::enter`] says.
    fn by(&self, program: PathBuf) -> Command {
        match self.enter.split_first() {
            None => Command::new(program),
            Some((first, rest)) => {
                let mut command = Command::new(first);
                command.args(rest).arg(program);
                command
            }
        }
    }

    /// A berth command with this test's folders.
    pub fn command(&self) -> Command {
        let mut command = self.by(binary());
        for (flag, sub) in [
            ("--run-dir", "run"),
            ("--state-dir", "state"),
            ("--config-dir", "config"),
            ("--preloaded-dir", "preloaded"),
        ] {
            command.arg(flag).arg(self.path(sub));
        }
        command
    }

    /// Run a berth command, whatever its exit code.
    pub fn try_run(&self, args: &[&str]) -> Result<Output> {
        self.command()
            .args(args)
            .stdin(Stdio::null())
            .output()
            .with_context(|| format!("berth {}", args.join(" ")))
    }

    /// Run a berth command that must succeed; its stdout.
    pub fn ok(&self, args: &[&str]) -> Result<String> {
        let output = self.try_run(args)?;
        let out = String::from_utf8_lossy(&output.stdout).into_owned();
        ensure!(
            output.status.success(),
            "berth {}: {}\n{out}{}\n--- agent log ends:\n{}",
            args.join(" "),
            output.status,
            String::from_utf8_lossy(&output.stderr),
            tail(&self.log(), 30)
        );
        Ok(out)
    }

    /// Run a berth command that must fail with exit code 1; its stderr and stdout.
    pub fn refused(&self, args: &[&str]) -> Result<String> {
        let output = self.try_run(args)?;
        let text = format!(
            "{}{}",
            String::from_utf8_lossy(&output.stderr),
            String::from_utf8_lossy(&output.stdout)
        );
        ensure!(
            output.status.code() == Some(1),
            "berth {}: {} instead of 1\n{text}",
            args.join(" "),
            output.status
        );
        Ok(text)
    }

    /// `-o json` of a command.
    pub fn json(&self, args: &[&str]) -> Result<Value> {
        let out = self.ok(&[args, &["-o", "json"]].concat())?;
        serde_json::from_str(&out).with_context(|| format!("JSON of berth {}: {out}", args.join(" ")))
    }

    /// Write documents into a file of the test's folder and apply them.
    pub fn apply(&self, yaml: &str) -> Result<String> {
        let file = self.path("documents.yaml");
        fs::write(&file, yaml)?;
        self.ok(&["apply", &file.display().to_string()])
    }

    /// Try again until `holds` says true; an error from it ends the wait. Generous: a loaded machine is no failure.
    pub fn wait_for(&mut self, what: &str, mut holds: impl FnMut(&mut Agent) -> Result<bool>) -> Result<()> {
        let begin = Instant::now();
        while begin.elapsed() < Duration::from_secs(60) {
            if holds(self)? {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        bail!(
            "{what}: not within 60 s\n--- agent log ends:\n{}",
            tail(&self.log(), 40)
        )
    }

    /// The instances `ps` lists whose state is `state`.
    pub fn in_state(&self, state: &str) -> Result<Vec<Value>> {
        let list = self.json(&["ps"])?;
        let list = list
            .as_array()
            .or_else(|| list["instances"].as_array())
            .cloned()
            .unwrap_or_default();
        Ok(list.into_iter().filter(|i| i["phase"] == state).collect())
    }

    /// SIGKILL a process of ours and wait until it is gone.
    pub fn kill9(&mut self, pid: Pid) -> Result<()> {
        kill(pid, Signal::SIGKILL)?;
        if self
            .agent
            .as_ref()
            .is_some_and(|c| i32::try_from(c.id()) == Ok(pid.as_raw()))
            && let Some(mut child) = self.agent.take()
        {
            child.wait()?;
        }
        self.wait_for("the killed process is gone", |_| Ok(!alive(pid)))
    }

    /// Stop everything: workloads, agent, launcher. What is left afterwards is a defect the caller looks for.
    pub fn finish(mut self) -> Result<()> {
        self.leave()
    }

    fn leave(&mut self) -> Result<()> {
        self.left = true;
        let stopped = self.try_run(&["stop", "--all"]);
        if let Some(mut child) = self.agent.take() {
            kill(Pid::from_raw(i32::try_from(child.id())?), Signal::SIGTERM)?;
            child.wait()?;
        }
        for role in ["launcher", "berth-mon", "berth-launcher"] {
            for pid in self.processes(role)? {
                let _ = kill(pid, Signal::SIGTERM);
            }
        }
        stopped.map(drop)
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        // A test that failed while it had no agent: the next one finds its containers, and stops them.
        if !self.left && self.agent.is_none() && self.processes("berth-mon").is_ok_and(|all| !all.is_empty())
        {
            let _ = self.spawn(&[]);
        }
        if self.agent.is_some() {
            if std::thread::panicking() {
                eprintln!("--- agent log ends:\n{}", tail(&self.log(), 60));
            }
            let _ = self.leave();
        }
    }
}

/// Is there such a process, zombies not counted?
pub fn alive(pid: Pid) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat"))
        .ok()
        .and_then(|stat| {
            stat.rsplit(')')
                .next()
                .map(|rest| !rest.trim_start().starts_with('Z'))
        })
        .unwrap_or(false)
}

/// The last lines of a text.
pub fn tail(text: &str, lines: usize) -> String {
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}
