//! The commands an operator uses, each by its effect.

use anyhow::{Context, Result, ensure};
use berth_tests::agent::Agent;
use libtest_mimic::Trial;
use std::io::{Read, Write};
use std::net::TcpStream;

use crate::journey::{name, pid, wait_running};
use crate::test;

const SLEEPER: &str = r#"
apiVersion: berth/v1
kind: Workload
metadata: {name: sleeper}
spec:
  image: berth-sample-busybox:latest
  command: ["/bin/sh", "-c", "echo up; echo oops >&2; trap 'echo bye; exit 7' TERM; while :; do sleep 0.1; done"]
  cpus: shared
  restart: {policy: always, delay: 100ms}
"#;

pub(crate) fn tests() -> Vec<Trial> {
    vec![
        test("commands::logs, exec, inspect", logs_exec),
        test("commands::inspect --timing, and a span for each step", timing),
        test("commands::stop, start, restart", stop_start),
        test("commands::kill, and the restart policy", kill),
        test("commands::freeze and thaw", freeze),
        test("commands::run: output, exit code, nothing kept", run),
        test("commands::restart limit", restart_limit),
        test("commands::plan, apply, apply again, delete", plan),
        test("commands::metrics", metrics),
        test("commands::image load, ls, inspect, rm", images),
        test("commands::completions and man pages", generated),
        test("commands::profile generate: checked, or refused", policy),
    ]
}

fn sleeper(agent_name: &str) -> Result<Agent> {
    let mut agent = Agent::start(agent_name)?;
    agent.apply(SLEEPER)?;
    wait_running(&mut agent, "sleeper", 1)?;
    Ok(agent)
}

fn logs_exec() -> Result<()> {
    let mut agent = sleeper("logs")?;
    agent.wait_for("both streams are logged", |a| {
        let log = a.ok(&["logs", "sleeper"])?;
        Ok(log.contains("up") && log.contains("oops"))
    })?;
    let inside = agent.ok(&[
        "exec",
        "sleeper",
        "--",
        "/bin/sh",
        "-c",
        "grep -E 'NoNewPrivs|Seccomp:|CapEff' /proc/self/status; readlink /proc/self/ns/pid",
    ])?;
    for expected in ["NoNewPrivs:\t1", "Seccomp:\t2", "CapEff:\t0000000000000000"] {
        ensure!(
            inside.contains(expected),
            "an exec'd process without {expected:?}:\n{inside}"
        );
    }
    let output = agent.try_run(&["exec", "sleeper", "--", "/bin/sh", "-c", "exit 9"])?;
    ensure!(
        output.status.code() == Some(9),
        "exit code of exec: {}",
        output.status
    );
    ensure!(agent.ok(&["inspect", "sleeper"])?.contains("sleeper"), "inspect");
    agent.refused(&["logs", "nobody"])?;
    agent.refused(&["inspect", "nobody"])?;
    agent.finish()
}

/// Every step of the launch is kept with the container, an agent that comes later has it too, and the log has its span.
fn timing() -> Result<()> {
    let mut agent = Agent::prepare("timing")?;
    agent.spawn(&["--log", "debug"])?;
    agent.apply(SLEEPER)?;
    wait_running(&mut agent, "sleeper", 1)?;
    let profile = |agent: &Agent| agent.json(&["inspect", "--timing", "sleeper"]);
    let told = profile(&agent)?;
    let steps = told[0]["steps"].as_array().context("no steps")?.clone();
    for expected in [
        "check", "plan", "fork", "clone", "ready", "exec", "proof", "detach",
    ] {
        ensure!(
            steps
                .iter()
                .any(|s| s["step"] == expected && s["inside"] == false),
            "no step {expected}: {told}"
        );
    }
    ensure!(
        steps.iter().any(|s| s["step"] == "mounts" && s["inside"] == true),
        "{told}"
    );
    let sum: u64 = steps
        .iter()
        .filter(|s| s["inside"] == false)
        .filter_map(|s| s["us"].as_u64())
        .sum();
    ensure!(
        sum > 0 && told[0]["totalUs"] == sum,
        "{sum} is not the total of {told}"
    );
    let text = agent.ok(&["inspect", "--timing", "sleeper"])?;
    ensure!(
        text.contains("request to release") && text.contains("inside: mounts"),
        "{text}"
    );
    let log = agent.log();
    for step in &steps {
        let name = step["step"].as_str().unwrap_or_default();
        ensure!(
            log.lines()
                .any(|l| l.contains("launch{container=") && l.contains(&format!("{name}\""))),
            "no span of {name} in the log"
        );
    }
    let first = agent.pid()?;
    agent.kill9(first)?;
    agent.spawn(&["--log", "debug"])?;
    wait_running(&mut agent, "sleeper", 1)?;
    ensure!(profile(&agent)? == told, "another agent tells another profile");
    agent.finish()
}

fn stop_start() -> Result<()> {
    let mut agent = sleeper("stop")?;
    let first = pid(&agent, "sleeper")?;
    agent.ok(&["stop", "sleeper"])?;
    agent.wait_for("it is stopped and stays so", |a| {
        Ok(a.in_state("running")?.is_empty() && a.in_state("stopped")?.len() == 1)
    })?;
    std::thread::sleep(std::time::Duration::from_millis(500));
    ensure!(
        agent.in_state("running")?.is_empty(),
        "a stopped workload was restarted"
    );
    ensure!(
        agent.ok(&["logs", "sleeper"])?.contains("bye"),
        "it was not given its grace"
    );
    agent.ok(&["start", "sleeper"])?;
    wait_running(&mut agent, "sleeper", 1)?;
    let second = pid(&agent, "sleeper")?;
    ensure!(first != second, "the same pid");
    agent.ok(&["restart", "sleeper"])?;
    agent.wait_for("it is another one", |a| {
        Ok(a.in_state("running")?.len() == 1 && pid(a, "sleeper")? != second)
    })?;
    agent.finish()
}

fn kill() -> Result<()> {
    let mut agent = sleeper("kill")?;
    let first = pid(&agent, "sleeper")?;
    agent
        .ok(&["kill", "sleeper", "SIGKILL"])
        .or_else(|_| agent.ok(&["kill", "--signal", "SIGKILL", "sleeper"]))?;
    agent.wait_for("policy brings it back", |a| {
        Ok(a.in_state("running")?.len() == 1 && pid(a, "sleeper").is_ok_and(|p| p != first))
    })?;
    agent.finish()
}

fn freeze() -> Result<()> {
    let mut agent = sleeper("freeze")?;
    let pid = pid(&agent, "sleeper")?;
    agent.ok(&["freeze", "sleeper"])?;
    agent.wait_for("it is frozen", |a| Ok(a.in_state("frozen")?.len() == 1))?;
    let ticks = || -> Result<String> { Ok(std::fs::read_to_string(format!("/proc/{pid}/schedstat"))?) };
    let before = ticks()?;
    std::thread::sleep(std::time::Duration::from_millis(500));
    ensure!(ticks()? == before, "it ran while frozen");
    agent.ok(&["thaw", "sleeper"])?;
    wait_running(&mut agent, "sleeper", 1)?;
    agent.wait_for("it runs again", |_| Ok(ticks()? != before))?;
    agent.finish()
}

fn run() -> Result<()> {
    let agent = Agent::start("run")?;
    let output = agent.try_run(&[
        "run",
        "berth-sample-busybox:latest",
        "/bin/sh",
        "-c",
        "echo from inside; exit 5",
    ])?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(
        output.status.code() == Some(5),
        "{}: {text}{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    ensure!(text.contains("from inside"), "{text}");
    let list = agent.json(&["ps"])?;
    let list = list
        .as_array()
        .or_else(|| list["instances"].as_array())
        .context("list")?;
    ensure!(list.is_empty(), "kept: {list:?}");
    let said = agent.refused(&["run", "no-such-image:1"])?;
    ensure!(
        said.matches("no image no-such-image:1").count() == 1,
        "told twice: {said}"
    );
    agent.finish()
}

fn restart_limit() -> Result<()> {
    let mut agent = Agent::start("limit")?;
    agent.apply(
        "apiVersion: berth/v1\nkind: Workload\nmetadata: {name: crasher}\nspec:\n  image: berth-sample-busybox:latest\n  \
         command: [\"/bin/false\"]\n  cpus: shared\n  restart: {policy: always, delay: 10ms, limit: 3, window: 1m}\n",
    )?;
    agent.wait_for("the limit ends it", |a| Ok(a.in_state("failed")?.len() == 1))?;
    let starts = agent
        .ok(&["events"])?
        .lines()
        .filter(|l| l.contains("crasher") && l.contains("tarted"))
        .count();
    ensure!(
        starts == 4,
        "{starts} starts instead of one and three more:\n{}",
        agent.ok(&["events"])?
    );
    ensure!(
        agent.ok(&["inspect", "crasher"])?.contains("limit"),
        "inspect does not say why"
    );
    agent.finish()
}

fn plan() -> Result<()> {
    let mut agent = sleeper("plan")?;
    let before = pid(&agent, "sleeper")?;
    let file = agent.path("documents.yaml").display().to_string();
    agent.ok(&["apply", &file])?;
    std::thread::sleep(std::time::Duration::from_millis(300));
    ensure!(
        pid(&agent, "sleeper")? == before,
        "applying the same again restarted it"
    );
    std::fs::write(&file, SLEEPER.replace("echo up", "echo second version"))?;
    let plan = agent.ok(&["plan", &file])?;
    ensure!(plan.contains("sleeper"), "{plan}");
    ensure!(pid(&agent, "sleeper")? == before, "plan changed something");
    agent.ok(&["apply", &file])?;
    agent.wait_for("the new version runs", |a| {
        Ok(a.ok(&["logs", "sleeper"])?.contains("second version"))
    })?;
    agent.ok(&["delete", &file])?;
    agent.wait_for("it is gone", |a| {
        Ok(name(a, "sleeper").is_err() && a.in_state("stopped")?.is_empty())
    })?;
    agent.finish()
}

fn metrics() -> Result<()> {
    let agent = sleeper("metrics")?;
    let log = agent.log();
    let address = log
        .split("127.0.0.1:")
        .nth(1)
        .map(|rest| rest.chars().take_while(char::is_ascii_digit).collect::<String>())
        .filter(|port| !port.is_empty())
        .with_context(|| format!("the log does not name the port of the metrics:\n{log}"))?;
    let mut socket = TcpStream::connect(format!("127.0.0.1:{address}"))?;
    socket.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")?;
    let mut text = String::new();
    socket.read_to_string(&mut text)?;
    ensure!(
        text.starts_with("HTTP/1.1 200") && text.contains("# TYPE berth_"),
        "{text}"
    );
    // Its shell has been given the CPU, and that is counted where the kernel keeps an account.
    let counted = text
        .lines()
        .find_map(|l| {
            l.strip_prefix("berth_run_delay_seconds_count{source=\"schedstat\",workload=\"sleeper\"} ")
        })
        .and_then(|count| count.trim().parse::<u64>().ok());
    let kept = std::path::Path::new("/proc/self/schedstat").exists();
    ensure!(
        kept == counted.is_some_and(|n| n > 0),
        "an account: {kept}, counted: {counted:?}\n{text}"
    );
    agent.finish()
}

fn images() -> Result<()> {
    let agent = Agent::prepare("images")?;
    let list = agent.ok(&["image", "ls"])?;
    ensure!(
        list.contains("berth-sample-busybox") && list.contains("berth-sample-worker"),
        "{list}"
    );
    ensure!(
        agent
            .ok(&["image", "inspect", "berth-sample-busybox:latest"])?
            .contains("sha256:"),
        "inspect"
    );
    agent.ok(&["image", "verify", "berth-sample-busybox:latest"])?;
    agent.ok(&["image", "rm", "berth-sample-busybox:latest"])?;
    ensure!(
        !agent.ok(&["image", "ls"])?.contains("berth-sample-busybox"),
        "it is still listed"
    );
    agent.refused(&["image", "inspect", "berth-sample-busybox:latest"])?;
    Ok(())
}

fn generated() -> Result<()> {
    let agent = Agent::prepare("generated")?;
    ensure!(
        agent.ok(&["completions", "bash"])?.contains("berth"),
        "completions"
    );
    ensure!(agent.ok(&["man"])?.contains(".TH"), "man");
    Ok(())
}

/// With the tools that this machine has; without them it is refused, and says which package has them.
fn policy() -> Result<()> {
    let file = tempfile::NamedTempFile::with_suffix(".yaml")?;
    let yaml = "apiVersion: berth/v1\nkind: Workload\nmetadata: {name: pump}\nspec:\n  image: a:1\n  profile: device-worker\n  \
                mounts: [{source: /srv, destination: /data}]\n";
    std::fs::write(file.path(), yaml)?;
    let run = |path: &str, more: &[&str]| -> Result<(bool, String, String)> {
        let mut command = std::process::Command::new(berth_tests::agent::binary());
        command
            .args(["profile", "generate", "pump", "-f"])
            .arg(file.path());
        let done = command.args(more).env("PATH", path).output()?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Ok((done.status.success(), text(&done.stdout), text(&done.stderr)))
    };
    let there = std::env::var("PATH")?;
    for (lsm, word, tool) in [
        (
            "selinux",
            "(typeattributeset berth_container (berth_pump_t))",
            "secilc",
        ),
        ("apparmor", "profile berth-pump ", "apparmor_parser"),
    ] {
        let given: &[&str] = &["--lsm", lsm, "--label", "/data=berth_shared_file_t"];
        let (done, text, said) = run("/nonexistent", given)?;
        ensure!(!done && text.is_empty() && said.contains(tool), "{text}{said}");
        let unchecked = [given, &["--unchecked"]].concat();
        let (done, text, said) = run("/nonexistent", &unchecked)?;
        ensure!(
            done && text.contains(word) && said.contains("not checked"),
            "{text}{said}"
        );
        let (done, text, said) = run(&there, given)?;
        ensure!(
            (done && text.contains(word)) || (!done && said.contains("is not here")),
            "{text}{said}"
        );
    }
    let (done, text, said) = run(&there, &["--lsm", "selinux", "--label", "/data=host_file_t"])?;
    ensure!(
        !done && text.is_empty() && said.contains("no container may write"),
        "{text}{said}"
    );
    // A pipe that is closed at once.
    let mut command = std::process::Command::new(berth_tests::agent::binary());
    command
        .args(["completions", "bash"])
        .stdout(std::process::Stdio::piped());
    let mut child = command.stderr(std::process::Stdio::piped()).spawn()?;
    drop(child.stdout.take());
    let done = child.wait_with_output()?;
    ensure!(done.status.success() && done.stderr.is_empty(), "{done:?}");
    Ok(())
}
