//! Bad input is refused with what, where and how to mend, and changes nothing.

use anyhow::{Result, ensure};
use berth_tests::agent::{Agent, samples};
use libtest_mimic::Trial;
use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use crate::journey::DOCUMENTS;
use crate::test;

pub(crate) fn tests() -> Vec<Trial> {
    vec![
        test("refusals::every fault of every file in one run", every_fault),
        test("refusals::a bad document changes nothing", nothing_changes),
        test(
            "refusals::SIGHUP with a bad file keeps the last good configuration",
            sighup,
        ),
        test("refusals::a placement that is full names who has the cores", full),
        test(
            "refusals::real-time budget that is spent names who has it",
            budget,
        ),
        test("refusals::an image that is not there", no_image),
        test("refusals::an archive with a tampered blob", tampered),
        test("refusals::malformed requests to the API", api),
        test(
            "refusals::a workload that insists on isolated cores on a v1 node",
            isolated,
        ),
        test(
            "refusals::a node's CPUs that this machine lacks are a warning of check",
            elsewhere,
        ),
        test("refusals::wrong usage is 2", usage),
    ]
}

/// `check` may look at documents of another machine: they are no fault, and are told.
fn elsewhere() -> Result<()> {
    let agent = Agent::prepare("elsewhere")?;
    let file = agent.path("node.yaml");
    let path = file.display().to_string();
    let node = |isolated: &str| {
        let text = format!(
            "apiVersion: berth/v1\nkind: Node\nmetadata: {{name: n}}\nspec: {{cpus: {{housekeeping: \"0\", isolated: \"{isolated}\"}}}}\n"
        );
        fs::write(&file, text)
    };
    node("1,4000")?;
    let output = agent.try_run(&["check", &path])?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(
        output.status.success()
            && said.contains(&format!("{path}:4:"))
            && said.contains("on this machine CPUs 4000 are not online"),
        "{}: {said}",
        output.status
    );
    node("1")?;
    let output = agent.try_run(&["check", &path])?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(
        output.status.success() && !said.contains("this machine"),
        "{said}"
    );
    agent.finish()
}

fn every_fault() -> Result<()> {
    let agent = Agent::prepare("faults")?;
    let (one, two) = (agent.path("one.yaml"), agent.path("two.yaml"));
    fs::write(
        &one,
        "apiVersion: berth/v1\nkind: Workload\nmetadata: {name: a}\nspec:\n  imgae: x\n  cpus: many\n  realtime: {scheduler: {policy: fifo, priority: 100}}\n",
    )?;
    fs::write(
        &two,
        "apiVersion: berth/v1\nkind: HotplugRule\nmetadata: {name: r}\nspec:\n  match: |\n    KERNELL==\"x\"\n  workload: nobody\n",
    )?;
    let text = agent.refused(&["check", &one.display().to_string(), &two.display().to_string()])?;
    for expected in [
        "one.yaml:5:",
        "imgae",
        "image",
        "one.yaml:6:",
        "one.yaml:7:",
        "99",
        "two.yaml:6:",
        "KERNELL",
        "KERNEL",
    ] {
        ensure!(text.contains(expected), "{expected:?} is not in:\n{text}");
    }
    Ok(())
}

fn nothing_changes() -> Result<()> {
    let agent = Agent::start("nothing")?;
    agent.apply(DOCUMENTS)?;
    let before = agent.json(&["ps"])?;
    let file = agent.path("bad.yaml");
    fs::write(
        &file,
        format!(
            "{DOCUMENTS}\n---\napiVersion: berth/v1\nkind: Workload\nmetadata: {{name: bad}}\nspec: {{image: x, cpus: -1}}\n"
        ),
    )?;
    agent.refused(&["apply", &file.display().to_string()])?;
    agent.refused(&["plan", &file.display().to_string()])?;
    ensure!(agent.json(&["ps"])? == before, "something changed");
    agent.finish()
}

fn sighup() -> Result<()> {
    let mut agent = Agent::prepare("sighup")?;
    let file = agent.path("config/node.yaml");
    let good = "apiVersion: berth/v1\nkind: Workload\nmetadata: {name: kept}\nspec:\n  image: berth-sample-busybox:latest\n  command: [\"/bin/sleep\", \"1000\"]\n  cpus: shared\n";
    fs::write(&file, good)?;
    agent.spawn(&[])?;
    agent.wait_for("it runs", |a| Ok(a.in_state("running")?.len() == 1))?;
    fs::write(&file, good.replace("cpus", "cpuss"))?;
    nix::sys::signal::kill(agent.pid()?, nix::sys::signal::Signal::SIGHUP)?;
    agent.wait_for("the fault is logged with its place", |a| {
        Ok(a.log().contains("node.yaml:7:"))
    })?;
    ensure!(agent.in_state("running")?.len() == 1, "the workload is gone");
    fs::write(&file, format!("{good}---\n{}", good.replace("kept", "second")))?;
    nix::sys::signal::kill(agent.pid()?, nix::sys::signal::Signal::SIGHUP)?;
    agent.wait_for("the mended file is taken", |a| {
        Ok(a.in_state("running")?.len() == 2)
    })?;
    agent.finish()
}

fn whole_core(name: &str, extra: &str) -> String {
    format!(
        "---\napiVersion: berth/v1\nkind: Workload\nmetadata: {{name: {name}}}\nspec:\n  image: berth-sample-busybox:latest\n  \
         command: [\"/bin/sleep\", \"1000\"]\n  restart: {{policy: never}}\n{extra}"
    )
}

fn node() -> &'static str {
    "apiVersion: berth/v1\nkind: Node\nmetadata: {name: test}\nspec:\n  cpus: {housekeeping: \"0\", isolated: \"1\"}\n"
}

fn full() -> Result<()> {
    let mut agent = Agent::start("full")?;
    agent.apply(&format!("{}{}", node(), whole_core("first", "  cpus: 1\n")))?;
    agent.wait_for("the first runs", |a| Ok(a.in_state("running")?.len() == 1))?;
    agent.apply(&format!(
        "{}{}{}",
        node(),
        whole_core("first", "  cpus: 1\n"),
        whole_core("second", "  cpus: 1\n")
    ))?;
    agent.wait_for("the second is refused by name", |a| {
        let words = a.ok(&["inspect", "second"])?;
        Ok(words.contains("first") && words.to_lowercase().contains("cpu"))
    })?;
    ensure!(agent.in_state("running")?.len() == 1, "two on one core");
    // The core is freed: the second gets it without being asked again.
    agent.ok(&["delete", "workload/first"]).or_else(|_| {
        let file = agent.path("first.yaml");
        fs::write(&file, whole_core("first", "  cpus: 1\n"))?;
        agent.ok(&["delete", &file.display().to_string()])
    })?;
    agent.wait_for("the second runs", |a| {
        Ok(a.in_state("running")?.iter().any(|i| i["workload"] == "second"))
    })?;
    agent.finish()
}

fn budget() -> Result<()> {
    let mut agent = Agent::start("budget")?;
    let fifo = |share: &str| {
        format!(
            "  cpus: shared\n  profile: realtime\n  realtime:\n    scheduler: {{policy: fifo, priority: 5}}\n    budget: {{runtime: {share}, period: 1s}}\n"
        )
    };
    agent.apply(&whole_core("small", &fifo("50ms")))?;
    agent.wait_for("the small one runs", |a| Ok(a.in_state("running")?.len() == 1))?;
    agent.apply(&format!(
        "{}{}",
        whole_core("small", &fifo("50ms")),
        whole_core("greedy", &fifo("940ms"))
    ))?;
    agent.wait_for("the greedy one is refused by name", |a| {
        let words = a.ok(&["inspect", "greedy"])?;
        Ok(words.contains("small") && words.contains("budget"))
    })?;
    agent.finish()
}

fn no_image() -> Result<()> {
    let mut agent = Agent::start("noimage")?;
    let file = agent.path("w.yaml");
    fs::write(
        &file,
        "apiVersion: berth/v1\nkind: Workload\nmetadata: {name: ghost}\nspec: {image: \"ghost:1\", cpus: shared}\n",
    )?;
    // Either refused at once or reported by the instance: in both cases by name, with what to do.
    let output = agent.try_run(&["apply", &file.display().to_string()])?;
    if output.status.success() {
        agent.wait_for("the missing image is named", |a| {
            Ok(a.ok(&["inspect", "ghost"])?.contains("berth image load"))
        })?;
    } else {
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(
            text.contains("ghost:1") && text.contains("berth image load"),
            "{text}"
        );
    }
    agent.finish()
}

fn tampered() -> Result<()> {
    let agent = Agent::prepare("tampered")?;
    let mut bytes = fs::read(samples().join("berth-sample-busybox.tar"))?;
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    let file = agent.path("tampered.tar");
    fs::write(&file, bytes)?;
    let before = agent.ok(&["image", "ls"])?;
    let text = agent.refused(&["image", "load", &file.display().to_string()])?;
    ensure!(
        text.contains("sha256:") && text.contains("tampered.tar"),
        "{text}"
    );
    ensure!(agent.ok(&["image", "ls"])? == before, "the store changed");
    Ok(())
}

fn api() -> Result<()> {
    let agent = Agent::start("api")?;
    for bad in [
        "\n",
        "{}\n",
        "not json\n",
        "{\"version\": 99, \"op\": \"ps\"}\n",
        "{\"version\": 1, \"op\": \"no-such\"}\n",
        "[1,2,3]\n",
    ] {
        let mut socket = UnixStream::connect(agent.path("run/api.sock"))?;
        socket.set_read_timeout(Some(std::time::Duration::from_secs(20)))?;
        socket.write_all(bad.as_bytes())?;
        socket.shutdown(std::net::Shutdown::Write)?;
        let mut answer = String::new();
        socket.read_to_string(&mut answer)?;
        ensure!(!answer.contains("\"ok\":true"), "{bad:?} was answered {answer}");
    }
    // A line without an end: cut off, not swallowed.
    let mut socket = UnixStream::connect(agent.path("run/api.sock"))?;
    let chunk = vec![b'x'; 1 << 20];
    let refused = (0..64).any(|_| socket.write_all(&chunk).is_err());
    ensure!(refused, "64 MiB of one line were taken");
    agent.ok(&["ps"])?;
    agent.finish()
}

fn isolated() -> Result<()> {
    if fs::metadata("/sys/fs/cgroup/cgroup.controllers").is_ok() {
        // A v2 node: the guests show it.
        return Ok(());
    }
    let mut agent = Agent::start("isolated")?;
    agent.apply(&format!(
        "{}{}",
        node(),
        whole_core("strict", "  cpus: 1\n  isolation: required\n")
    ))?;
    agent.wait_for("it is refused, with the reason", |a| {
        let words = a.ok(&["inspect", "strict"])?.to_lowercase();
        Ok(words.contains("isolat") && (words.contains("v1") || words.contains("foreign")))
    })?;
    ensure!(agent.in_state("running")?.is_empty(), "it runs");
    agent.finish()
}

fn usage() -> Result<()> {
    let agent = Agent::prepare("usage")?;
    for args in [&["no-such-command"][..], &["ps", "--no-such-flag"], &["check"]] {
        let output = agent.try_run(args)?;
        ensure!(
            output.status.code() == Some(2),
            "berth {}: {}",
            args.join(" "),
            output.status
        );
    }
    Ok(())
}
