//! Two tenants of one node: neither sees the other's files, processes, IPC or network, and neither reaches the agent, the
//! launcher or a monitor, with ids of its own (`strict`) and with the host's (`network-function`).

use std::collections::BTreeSet;
use std::fs;

use anyhow::{Context, Result, ensure};
use berth_tests::agent::Agent;
use libtest_mimic::Trial;

use crate::journey::{pid, wait_running};
use crate::test;

pub(crate) fn tests() -> Vec<Trial> {
    vec![
        test("tenants::neither sees what is the other's", apart),
        test("tenants::root inside reaches nothing of berth", berth),
    ]
}

/// Leaves a file, a queue and a listener, each with a name that nobody else has.
const RIGHT: &str = "echo word-of-right > /dev/shm/file-of-right; : > /dev/mqueue/queue-of-right; \
                     nc -l -p 7000 & echo ready; while :; do sleep 0.2; done";

fn workload(name: &str, profile: &str, script: &str) -> String {
    format!(
        "apiVersion: berth/v1\nkind: Workload\nmetadata: {{name: {name}}}\nspec:\n  image: berth-sample-busybox:latest\n  \
         profile: {profile}\n  command: [\"/bin/sh\", \"-c\", \"{script}\"]\n  cpus: shared\n  stop: {{signal: SIGKILL, grace: 1s}}\n---\n"
    )
}

/// What a command inside answers, whatever its exit code.
fn inside(agent: &Agent, name: &str, script: &str) -> Result<String> {
    let done = agent.try_run(&["exec", name, "sh", "-c", script])?;
    Ok(String::from_utf8_lossy(&done.stdout).into_owned() + &String::from_utf8_lossy(&done.stderr))
}

fn apart() -> Result<()> {
    let mut agent = Agent::start("tenants")?;
    let idle = "while :; do sleep 0.2; done";
    agent.apply(&(workload("left", "strict", idle) + &workload("right", "strict", RIGHT)))?;
    wait_running(&mut agent, "left", 1)?;
    wait_running(&mut agent, "right", 1)?;
    agent.wait_for("it has left its traces", |a| {
        Ok(a.ok(&["logs", "right"])?.contains("ready"))
    })?;
    let (left, right) = (pid(&agent, "left")?, pid(&agent, "right")?);
    for kind in ["user", "mnt", "pid", "ipc", "net", "uts", "cgroup"] {
        let of = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/{kind}")).context(kind);
        let all = [of(&left.to_string())?, of(&right.to_string())?, of("self")?];
        let different: BTreeSet<_> = all.iter().collect();
        ensure!(different.len() == 3, "{kind}: {all:?}");
    }
    let map = |pid: i64| fs::read_to_string(format!("/proc/{pid}/uid_map"));
    ensure!(map(left)? != map(right)?, "the same ids: {}", map(left)?);
    // The tenant itself sees its own: what is not found next door is really looked for.
    let look = "find / -name '*-of-right' 2>/dev/null; grep -rs word-of-right /dev/shm";
    let own = inside(&agent, "right", look)?;
    for word in [
        "/dev/shm/file-of-right",
        "/dev/mqueue/queue-of-right",
        "word-of-right",
    ] {
        ensure!(own.contains(word), "{word}: {own}");
    }
    let listens = "cat /proc/net/tcp /proc/net/tcp6 | grep -c ':1B58 '";
    agent.wait_for("it listens", |a| Ok(inside(a, "right", listens)?.trim() != "0"))?;
    let other = inside(&agent, "left", look)?;
    ensure!(other.trim().is_empty(), "files or queues of the other: {other}");
    ensure!(
        inside(&agent, "left", listens)?.trim() == "0",
        "a listener of the other"
    );
    let called = inside(
        &agent,
        "left",
        "nc -w 1 127.0.0.1 7000 </dev/null && echo answered",
    )?;
    ensure!(!called.contains("answered"), "the other's port answers: {called}");
    // Processes: its own few, and the other's number means nobody.
    let seen = inside(&agent, "left", "cat /proc/[0-9]*/cmdline | tr '\\0' ' '")?;
    ensure!(seen.contains("sleep") && !seen.contains("of-right"), "{seen}");
    let reached = inside(
        &agent,
        "left",
        &format!("kill -0 {right} && echo reached; cat /proc/{right}/environ && echo reached"),
    )?;
    ensure!(!reached.contains("reached"), "{reached}");
    agent.finish()
}

fn berth() -> Result<()> {
    let mut agent = Agent::start("tenantsberth")?;
    let idle = "while :; do sleep 0.2; done";
    agent.apply(&(workload("own", "strict", idle) + &workload("hosts", "network-function", idle)))?;
    let mut of_berth = vec![agent.pid()?, agent.launcher()?];
    for name in ["own", "hosts"] {
        wait_running(&mut agent, name, 1)?;
    }
    of_berth.extend(agent.processes("berth-mon")?);
    ensure!(of_berth.len() >= 4, "no monitors: {of_berth:?}");
    let folders = ["run", "state", "config"].map(|sub| agent.path(sub));
    for name in ["own", "hosts"] {
        for folder in &folders {
            let shown = folder.display();
            let script =
                format!("ls -d {shown} {shown}/api.sock {shown}/launcher.sock 2>/dev/null; echo looked");
            ensure!(
                inside(&agent, name, &script)?.trim() == "looked",
                "{name} sees {shown}"
            );
        }
        for process in &of_berth {
            let script = format!(
                "kill -0 {process} 2>/dev/null && echo reached; for f in environ mem root cwd maps; do [ -e /proc/{process}/$f ] && echo reached; done; echo looked"
            );
            let said = inside(&agent, name, &script)?;
            ensure!(said.trim() == "looked", "{name}, process {process}: {said}");
        }
        // No group of another, and none of its own limits can be written.
        let script = "for f in $(find /sys/fs/cgroup -name 'cgroup.procs' 2>/dev/null) $(find /sys/fs/cgroup -name '*.max' -o -name '*limit_in_bytes' 2>/dev/null); \
                      do echo 1 2>/dev/null > $f && echo wrote $f; done; echo looked";
        let said = inside(&agent, name, script)?;
        ensure!(
            !said.contains("wrote") && said.contains("looked"),
            "{name}: {said}"
        );
        for memory in ["/dev/mem", "/dev/kmem", "/proc/kcore", "/dev/port"] {
            let said = inside(&agent, name, &format!("head -c 1 {memory} | wc -c"))?;
            ensure!(said.lines().any(|l| l.trim() == "0"), "{name}: {memory}: {said}");
        }
    }
    for process in of_berth {
        ensure!(berth_tests::agent::alive(process), "{process} is gone");
    }
    agent.finish()
}
