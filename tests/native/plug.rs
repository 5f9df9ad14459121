//! Devices and containers that go on together: given and taken while they run, bundles, what is forbidden, what runs
//! when a device has gone, and what is refused.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use berth_tests::agent::Agent;
use berth_tests::node::{Loop, Veth, ip};
use libtest_mimic::Trial;

use crate::journey::{name, pid, wait_gone, wait_running};
use crate::test;

pub(crate) fn tests() -> Vec<Trial> {
    vec![
        test("plug::taken at once, given back within its grace", grace),
        test("plug::kept without its device", keep),
        test("plug::handed over to the next", hand_over),
        test("plug::a bundle waits for all of its devices", bundle),
        test(
            "plug::forbidden, and what runs when a device has gone",
            forbid_and_remove,
        ),
        test("plug::two rules of one priority start nothing", tie),
        test("plug::links, owner and templates inside", inside),
        test("plug::renamed, it is the same device", renamed),
        test("plug::recorded, and simulated without root", simulated),
        test("plug::a burst of 10,000 events while the agent is stopped", burst),
    ]
}

fn documents(rule: &str) -> String {
    format!(
        "apiVersion: berth/v1\nkind: Workload\nmetadata: {{name: hot}}\nspec:\n  image: berth-sample-busybox:latest\n  \
         command: [\"/bin/sleep\", \"1000\"]\n  run: onDevice\n  profile: device-worker\n  cpus: shared\n  \
         stop: {{signal: SIGKILL, grace: 1s}}\n---\n\
         apiVersion: berth/v1\nkind: HotplugRule\nmetadata: {{name: hot}}\nspec:\n  workload: hot\n{rule}"
    )
}

const DISKS: &str =
    "  match: SUBSYSTEM==\"block\", KERNEL==\"loop31[0-9]\"\n  device: {path: /dev/disk, access: r}\n";

/// The node inside, seen from outside.
fn node(agent: &Agent) -> Result<PathBuf> {
    Ok(format!("/proc/{}/root/dev/disk", pid(agent, "hot")?).into())
}

/// What the kernel lets the container do, where it says so (cgroup v1).
fn allowed(agent: &Agent) -> Result<Option<String>> {
    let pid = pid(agent, "hot")?;
    let groups = fs::read_to_string(format!("/proc/{pid}/cgroup"))?;
    let path = groups
        .lines()
        .find_map(|line| line.split_once(":devices:").map(|(_, path)| path.to_string()));
    let Some(path) = path else { return Ok(None) };
    let list = Path::new("/sys/fs/cgroup/devices")
        .join(&path[1..])
        .join("devices.list");
    Ok(Some(
        fs::read_to_string(&list).with_context(|| list.display().to_string())?,
    ))
}

/// Waits until the container has the device, or has it no longer: the node and the permission.
fn wait_device(agent: &mut Agent, number: u32, there: bool) -> Result<()> {
    agent.wait_for(&format!("device 7:{number} inside is {there}"), |a| {
        let permitted = allowed(a)?.is_none_or(|list| list.contains(&format!("b 7:{number} r")) == there);
        Ok(permitted && node(a)?.exists() == there)
    })
}

fn grace() -> Result<()> {
    let mut agent = Agent::start("grace")?;
    agent.apply(&documents(&format!("{DISKS}  unplug: {{grace: 4s}}\n")))?;
    let mut disk = Loop::number(310);
    disk.plug()?;
    wait_running(&mut agent, "hot", 1)?;
    wait_device(&mut agent, 310, true)?;
    let (before, named) = (pid(&agent, "hot")?, name(&agent, "hot")?);
    for _ in 0..crate::rounds(3) {
        disk.unplug()?;
        wait_device(&mut agent, 310, false)?;
        ensure!(pid(&agent, "hot")? == before, "it was stopped");
        disk.plug()?;
        wait_device(&mut agent, 310, true)?;
        let read = agent.try_run(&[
            "exec",
            &named,
            "/bin/dd",
            "if=/dev/disk",
            "of=/dev/null",
            "count=1",
        ])?;
        let words = String::from_utf8_lossy(&read.stderr).into_owned();
        // An empty loop device gives no block, but it opens.
        ensure!(read.status.success(), "{words}");
        agent.ok(&["prove"])?;
    }
    ensure!(pid(&agent, "hot")? == before, "another process");
    disk.unplug()?;
    wait_gone(&mut agent, "hot")?;
    let events = agent.ok(&["events"])?;
    ensure!(
        events.contains("device-taken") && events.contains("device-given"),
        "{events}"
    );
    agent.finish()
}

fn keep() -> Result<()> {
    let mut agent = Agent::start("keep")?;
    agent.apply(&documents(&format!("{DISKS}  unplug: {{then: keep}}\n")))?;
    let mut disk = Loop::number(311);
    disk.plug()?;
    wait_running(&mut agent, "hot", 1)?;
    let before = pid(&agent, "hot")?;
    disk.unplug()?;
    wait_device(&mut agent, 311, false)?;
    // An agent that comes later knows that it has none.
    let agent_pid = agent.pid()?;
    agent.kill9(agent_pid)?;
    agent.spawn(&[])?;
    disk.plug()?;
    wait_running(&mut agent, "hot", 1)?;
    agent.wait_for("it has a device again", |a| {
        Ok(a.in_state("running")?.len() == 1 && node(a)?.exists())
    })?;
    disk.unplug()?;
    let _ = before;
    agent.finish()
}

fn hand_over() -> Result<()> {
    let mut agent = Agent::start("handover")?;
    agent.apply(&documents(&format!("{DISKS}  unplug: {{then: handOver}}\n")))?;
    let (mut one, mut two) = (Loop::number(312), Loop::number(313));
    one.plug()?;
    wait_running(&mut agent, "hot", 1)?;
    wait_device(&mut agent, 312, true)?;
    let before = pid(&agent, "hot")?;
    two.plug()?;
    one.unplug()?;
    wait_device(&mut agent, 313, true)?;
    ensure!(pid(&agent, "hot")? == before, "it was started anew");
    two.unplug()?;
    wait_gone(&mut agent, "hot")?;
    agent.finish()
}

fn bundle() -> Result<()> {
    let mut agent = Agent::start("bundle")?;
    let member = |name: &str, number: u32| {
        format!(
            "    - {{name: {name}, match: 'SUBSYSTEM==\"block\", KERNEL==\"loop{number}\"', \
             device: {{path: /dev/{name}, access: r}}, env: [{{name: D_{}, value: $kernel}}]}}\n",
            name.to_uppercase()
        )
    };
    let rule = format!(
        "  bundle:\n    need: all\n    devices:\n{}{}",
        member("left", 314),
        member("right", 315)
    );
    agent.apply(&documents(&rule))?;
    let (mut left, mut right) = (Loop::number(314), Loop::number(315));
    for _ in 0..crate::rounds(2) {
        left.plug()?;
        agent.wait_for("it is partial", |a| Ok(a.in_state("partial")?.len() == 1))?;
        let reason = agent.in_state("partial")?[0]["reason"].to_string();
        ensure!(reason.contains("has left; lacks right"), "{reason}");
        right.plug()?;
        wait_running(&mut agent, "hot", 1)?;
        let pid = pid(&agent, "hot")?;
        for name in ["left", "right"] {
            ensure!(
                Path::new(&format!("/proc/{pid}/root/dev/{name}")).exists(),
                "no {name}"
            );
        }
        let env = fs::read_to_string(format!("/proc/{pid}/environ"))?;
        ensure!(
            env.contains("D_LEFT=loop314") && env.contains("D_RIGHT=loop315"),
            "{env}"
        );
        left.unplug()?;
        agent.wait_for("it is partial again", |a| Ok(a.in_state("partial")?.len() == 1))?;
        right.unplug()?;
        wait_gone(&mut agent, "hot")?;
    }
    agent.finish()
}

fn forbid_and_remove() -> Result<()> {
    let mut agent = Agent::start("forbid")?;
    let more = "---\napiVersion: berth/v1\nkind: HotplugRule\nmetadata: {name: never}\nspec:\n  forbid: true\n  priority: 9\n  \
                match: {all: ['SUBSYSTEM==\"block\"', {not: 'KERNEL==\"loop317\"'}]}\n\
                ---\napiVersion: berth/v1\nkind: Workload\nmetadata: {name: after}\nspec:\n  image: berth-sample-busybox:latest\n  \
                command: [\"/bin/echo\", \"gone\"]\n  run: onDevice\n  profile: device-worker\n\
                ---\napiVersion: berth/v1\nkind: HotplugRule\nmetadata: {name: after}\nspec:\n  workload: after\n  trigger: [remove]\n  \
                match: KERNEL==\"loop317\"\n  args: [\"$kernel\"]\n";
    agent.apply(&(documents(DISKS) + more))?;
    let (mut bad, mut good) = (Loop::number(316), Loop::number(317));
    bad.plug()?;
    good.plug()?;
    wait_running(&mut agent, "hot", 1)?;
    ensure!(name(&agent, "hot")?.ends_with("loop317"), "the wrong one");
    let events = agent.ok(&["events"])?;
    ensure!(events.contains("forbidden by rule never"), "{events}");
    let told = agent.ok(&["device", "explain", &bad.syspath().display().to_string()])?;
    ensure!(told.contains("not: KERNEL") && told.contains("forbid"), "{told}");
    bad.unplug()?;
    good.unplug()?;
    agent.wait_for("it ran once", |a| {
        let all = a.in_state("completed")?;
        Ok(all.len() == 1 && all[0]["name"] == "after-loop317")
    })?;
    ensure!(
        agent.ok(&["logs", "after-loop317"])?.contains("gone loop317"),
        "its argument"
    );
    wait_gone(&mut agent, "hot")?;
    agent.finish()
}

fn tie() -> Result<()> {
    let mut agent = Agent::start("tie")?;
    let second = "---\napiVersion: berth/v1\nkind: HotplugRule\nmetadata: {name: other}\nspec:\n  workload: hot\n  \
                  match: KERNEL==\"loop323\"\n";
    let first = documents(&DISKS.replace("loop31[0-9]", "loop323"));
    agent.apply(&(first.clone() + second))?;
    let mut disk = Loop::number(323);
    disk.plug()?;
    agent.wait_for("it is told", |a| {
        let events = a.ok(&["events"])?;
        Ok(events
            .lines()
            .any(|l| l.contains("hot") && l.contains("other") && l.contains("priority")))
    })?;
    ensure!(agent.in_state("running")?.is_empty(), "one of them was taken");
    // One of them goes first: it decides.
    agent.apply(&(first + second + "  priority: 1\n"))?;
    wait_running(&mut agent, "hot", 1)?;
    disk.unplug()?;
    wait_gone(&mut agent, "hot")?;
    agent.finish()
}

fn inside() -> Result<()> {
    let mut agent = Agent::start("inside")?;
    let data = agent.path("data");
    fs::create_dir_all(data.join("loop318"))?;
    let rule = format!(
        "  match: SUBSYSTEM==\"block\", KERNEL==\"loop318\"\n  name: \"of-$kernel\"\n  \
         device: {{path: /dev/d/$kernel, access: r, mode: \"0640\", uid: 7, gid: 9, links: true}}\n  \
         mounts: [{{source: {}/$kernel, destination: /tmp}}]\n",
        data.display()
    );
    agent.apply(&documents(&rule))?;
    let mut disk = Loop::number(318);
    disk.plug()?;
    wait_running(&mut agent, "hot", 1)?;
    ensure!(
        name(&agent, "hot")? == "hot-of-loop318",
        "{}",
        name(&agent, "hot")?
    );
    let root = format!("/proc/{}/root", pid(&agent, "hot")?);
    let meta = fs::metadata(format!("{root}/dev/d/loop318"))?;
    use std::os::unix::fs::MetadataExt;
    // Its owner is one of the container's own users, whose ids begin elsewhere on the node.
    let first = |map: &str| -> Result<u32> {
        let text = fs::read_to_string(format!("/proc/{}/{map}", pid(&agent, "hot")?))?;
        Ok(text.split_whitespace().nth(1).context("an empty map")?.parse()?)
    };
    let (uid, gid) = (first("uid_map")? + 7, first("gid_map")? + 9);
    ensure!(
        (meta.uid(), meta.gid(), meta.mode() & 0o777) == (uid, gid, 0o640),
        "{}:{} {:o}",
        meta.uid(),
        meta.gid(),
        meta.mode()
    );
    fs::write(data.join("loop318/word"), "kept")?;
    ensure!(
        fs::read_to_string(format!("{root}/tmp/word"))? == "kept",
        "another folder"
    );
    disk.unplug()?;
    wait_gone(&mut agent, "hot")?;
    agent.finish()
}

/// A rule for what has no node: its container is given nothing, and stays while the interface has another name.
fn renamed() -> Result<()> {
    let mut agent = Agent::start("renamed")?;
    agent.apply(&documents("  match: SUBSYSTEM==\"net\", KERNEL==\"btr[0-9]\"\n"))?;
    let mut veth = Veth::plug("btr1")?;
    wait_running(&mut agent, "hot", 1)?;
    let before = pid(&agent, "hot")?;
    ip(&["link", "set", "btr1", "name", "btr2"])?;
    agent.wait_for("the new name is known", |a| {
        let list = a.in_state("running")?;
        Ok(list.len() == 1 && list[0]["device"] == "btr2" && list[0]["pid"].as_i64() == Some(before))
    })?;
    // A name that the rule does not have: it matches no longer.
    ip(&["link", "set", "btr2", "name", "other0"])?;
    wait_gone(&mut agent, "hot")?;
    ip(&["link", "set", "other0", "name", "btr3"])?;
    wait_running(&mut agent, "hot", 1)?;
    veth.unplug()?;
    wait_gone(&mut agent, "hot")?;
    let starts = agent
        .ok(&["events"])?
        .lines()
        .filter(|l| l.contains(" started ") && l.contains("hot-"))
        .count();
    ensure!(starts == 2, "{starts} starts");
    agent.finish()
}

fn simulated() -> Result<()> {
    use std::os::unix::process::CommandExt;
    let agent = Agent::prepare("simulated")?;
    let rules = documents(&format!(
        "{DISKS}  env: [{{name: DISK, value: $kernel}}]\n  settle: 50ms\n"
    ));
    let (recording, file) = (agent.path("recording.jsonl"), agent.path("rules.yaml"));
    fs::write(&file, rules)?;
    let mut disk = Loop::number(319);
    let mut record = agent
        .command()
        .args(["device", "record", "--subsystem", "block", "--seconds", "4"])
        .arg(&recording)
        .spawn()?;
    std::thread::sleep(std::time::Duration::from_secs(1));
    disk.plug()?;
    std::thread::sleep(std::time::Duration::from_millis(500));
    disk.unplug()?;
    ensure!(record.wait()?.success(), "record failed");
    let lines = fs::read_to_string(&recording)?;
    ensure!(
        lines.contains("\"action\":\"add\"") && lines.contains("loop319"),
        "{lines}"
    );
    // As nobody, from files that nobody can read, by a binary that nobody can run: each is handed over open.
    let shared = tempfile::Builder::new().prefix("berth-sim-").tempdir()?;
    let open = |path: &Path| -> Result<PathBuf> {
        let to = shared.path().join(path.file_name().context("no name")?);
        fs::copy(path, &to)?;
        Ok(to)
    };
    let (recording, file, binary) = (
        open(&recording)?,
        open(&file)?,
        open(&berth_tests::agent::binary())?,
    );
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(shared.path(), fs::Permissions::from_mode(0o755))?;
    let simulate = || -> Result<String> {
        let out = std::process::Command::new(&binary)
            .args(["device", "simulate", "--rules"])
            .arg(&file)
            .arg(&recording)
            .uid(65534)
            .gid(65534)
            .output()?;
        let said = String::from_utf8_lossy(&out.stdout).into_owned();
        ensure!(
            out.status.success(),
            "{said}{}",
            String::from_utf8_lossy(&out.stderr)
        );
        Ok(said)
    };
    let said = simulate()?;
    for word in [
        "launch hot-loop319: berth-sample-busybox:latest",
        "b 7:319 r as /dev/disk",
        "DISK=loop319",
        "eject hot-loop319",
        "stop hot-loop319",
    ] {
        ensure!(said.contains(word), "no {word:?} in:\n{said}");
    }
    ensure!(simulate()? == said, "another answer the second time");
    agent.finish()
}

/// A network and a mount namespace of the test's own: its /sys shows only what is in there. Processes in it live as long
/// as `keeper`.
struct Rooms {
    keeper: std::process::Child,
}

impl Rooms {
    fn make() -> Result<Rooms> {
        // The cgroups lie below /sys: they move with it.
        let script = "mount --make-rprivate / && mkdir -p /tmp/berth-rooms.$$ && mount --rbind /sys/fs/cgroup /tmp/berth-rooms.$$ && \
             mount -t sysfs sysfs /sys && mount --rbind /tmp/berth-rooms.$$ /sys/fs/cgroup && umount -l /tmp/berth-rooms.$$ && \
             rmdir /tmp/berth-rooms.$$ && ip link set lo up && echo ready && exec sleep 600";
        let mut keeper = std::process::Command::new("unshare")
            .args(["--net", "--mount", "sh", "-c", script])
            .stdout(std::process::Stdio::piped())
            .spawn()?;
        let mut line = String::new();
        let out = keeper.stdout.take().context("no output")?;
        std::io::BufRead::read_line(&mut std::io::BufReader::new(out), &mut line)?;
        let rooms = Rooms { keeper };
        ensure!(line.trim() == "ready", "the namespaces cannot be made: {line}");
        Ok(rooms)
    }

    fn enter(&self) -> Vec<String> {
        let pid = self.keeper.id().to_string();
        ["nsenter", "--net", "--mount", "--target", &pid, "--"]
            .map(String::from)
            .to_vec()
    }

    fn sh(&self, script: &str) -> Result<()> {
        let enter = self.enter();
        let out = std::process::Command::new(&enter[0])
            .args(&enter[1..])
            .args(["sh", "-c", script])
            .output()?;
        ensure!(
            out.status.success(),
            "{script}: {}",
            String::from_utf8_lossy(&out.stderr)
        );
        Ok(())
    }
}

impl Drop for Rooms {
    fn drop(&mut self) {
        let _ = self.keeper.kill();
        let _ = self.keeper.wait();
    }
}

/// Clock ticks of processor time that a process has used.
fn ticks(pid: nix::unistd::Pid) -> Result<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let rest = stat.rsplit(')').next().context("no stat")?;
    let fields: Vec<&str> = rest.split_whitespace().collect();
    Ok(fields[11].parse::<u64>()? + fields[12].parse::<u64>()?)
}

fn burst() -> Result<()> {
    use nix::sys::signal::{Signal, kill};
    let rooms = Rooms::make()?;
    let mut agent = Agent::prepare("burst")?;
    agent.enter(rooms.enter());
    // What is to be lost must not fit.
    agent.spawn(&["--device-buffer", "65536", "--devices", "kernel"])?;
    let documents = "apiVersion: berth/v1\nkind: Workload\nmetadata: {name: card}\nspec:\n  image: berth-sample-busybox:latest\n  \
         command: [\"/bin/sleep\", \"1000\"]\n  run: onDevice\n  profile: device-worker\n  stop: {signal: SIGKILL, grace: 1s}\n---\n\
         apiVersion: berth/v1\nkind: HotplugRule\nmetadata: {name: card}\nspec:\n  workload: card\n  match: SUBSYSTEM==\"net\", KERNEL==\"bv[0-9]\"\n";
    agent.apply(documents)?;
    rooms.sh("ip link add bv0 type veth peer name bp0 && ip link add bv1 type veth peer name bp1")?;
    wait_running(&mut agent, "card", 2)?;
    let pid = agent.pid()?;
    kill(pid, Signal::SIGSTOP)?;
    rooms.sh("i=0; while [ $i -lt 5000 ]; do echo change >/sys/class/net/bv0/uevent; echo change >/sys/class/net/bp0/uevent; i=$((i+1)); done")?;
    rooms.sh("ip link delete bp0 && ip link add bv2 type veth peer name bp2 && ip link set bp1 name bp9")?;
    kill(pid, Signal::SIGCONT)?;
    agent.wait_for("what is there runs, and nothing else", |a| {
        let mut names: Vec<String> = a
            .in_state("running")?
            .iter()
            .map(|c| c["device"].as_str().unwrap_or_default().to_owned())
            .collect();
        names.sort();
        Ok(names == ["bv1", "bv2"])
    })?;
    let events = agent.ok(&["events"])?;
    ensure!(events.contains("overflow"), "nobody noticed:\n{events}");
    let metrics = agent.metrics()?;
    let lost = metrics
        .lines()
        .find_map(|line| line.strip_prefix("berth_uevent_overflows_total "))
        .context("no such metric")?;
    ensure!(lost.trim().parse::<f64>()? >= 1.0, "{lost}");
    // Idle again: of two seconds at most a tenth.
    let before = ticks(pid)?;
    std::thread::sleep(std::time::Duration::from_secs(2));
    let used = ticks(pid)? - before;
    ensure!(used <= 20, "{used} clock ticks in two seconds of idleness");
    rooms.sh("ip link delete bv1; ip link delete bv2")?;
    wait_gone(&mut agent, "card")?;
    agent.finish()
}
