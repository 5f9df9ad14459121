//! Networks of the node's CNI plug-ins: Debian's bridge, macvlan, ptp, host-local and portmap, on interfaces of the test's own.
//!
//! Needs containernetworking-plugins and iptables. The test's networks are named in its own configuration folder, on
//! addresses of TEST-NET-2 and TEST-NET-3.

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use berth_tests::agent::Agent;
use libtest_mimic::Trial;

use crate::test;

pub(crate) fn tests() -> Vec<Trial> {
    vec![
        test(
            "network::bridge and portmap: reached from outside, gone after it",
            reached,
        ),
        test(
            "network::kill -9 of monitor, agent and launcher leaves no address and no rule",
            crashed,
        ),
        test(
            "network::macvlan: reached at its own address, gone after it",
            macvlan,
        ),
        test(
            "network::ptp and portmap: reached by its port, gone after it",
            ptp,
        ),
        test(
            "network::a network that the launcher's policy does not name",
            not_allowed,
        ),
        test("network::a network that cannot be is refused by name", refused),
    ]
}

/// A bridge and its files, which end with the test.
struct Bridge(String);

impl Bridge {
    fn new(agent: &Agent, name: &str, net: u8) -> Result<Bridge> {
        let plugins = format!(
            r#"{{"type": "bridge", "bridge": "{name}", "isGateway": true, "ipMasq": true, "dns": {{"nameservers": ["198.51.{net}.9"]}},
                  "ipam": {{"type": "host-local", "ranges": [[{{"subnet": "198.51.{net}.0/24"}}]], "routes": [{{"dst": "0.0.0.0/0"}}]}}}},
                {{"type": "portmap", "capabilities": {{"portMappings": true}}, "snat": true}}"#
        );
        Bridge::of(agent, name, &plugins)
    }

    /// A network of these plug-ins.
    fn of(agent: &Agent, name: &str, plugins: &str) -> Result<Bridge> {
        ensure!(
            Path::new("/usr/lib/cni/bridge").exists(),
            "no CNI plug-ins: apt-get install containernetworking-plugins iptables"
        );
        let folder = agent.path("config/cni");
        fs::create_dir_all(&folder)?;
        let list = format!(r#"{{"cniVersion": "1.0.0", "name": "{name}", "plugins": [{plugins}]}}"#);
        fs::write(folder.join("10-test.conflist"), list)?;
        Ok(Bridge(name.to_owned()))
    }

    /// What is left of it in iptables, in the address store and among the mounts.
    fn left(&self, run: &Path) -> Vec<String> {
        let rules = Command::new("iptables-save")
            .output()
            .map(|o| o.stdout)
            .unwrap_or_default();
        let rules = String::from_utf8_lossy(&rules).into_owned();
        let mut left: Vec<String> = rules
            .lines()
            .filter(|l| l.contains(&self.0))
            .map(str::to_owned)
            .collect();
        for entry in fs::read_dir(Path::new("/var/lib/cni/networks").join(&self.0))
            .into_iter()
            .flatten()
            .flatten()
        {
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.parse::<std::net::IpAddr>().is_ok() {
                left.push(format!("address {name}"));
            }
        }
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        left.extend(
            mounts
                .lines()
                .filter(|l| l.contains(&run.display().to_string()) && l.contains("nsfs"))
                .map(str::to_owned),
        );
        left
    }
}

impl Drop for Bridge {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["link", "delete", &self.0]).output();
        let _ = fs::remove_dir_all(Path::new("/var/lib/cni/networks").join(&self.0));
    }
}

fn document(network: &str, port: u16) -> String {
    format!(
        "apiVersion: berth/v1\nkind: Workload\nmetadata: {{name: web}}\nspec:\n  image: berth-sample-busybox:latest\n  \
         command: [\"/bin/sh\", \"-c\", \"cat /etc/hosts /etc/hostname /etc/resolv.conf; while :; do echo from inside | nc -l -p 8000; done\"]\n  \
         cpus: shared\n  restart: {{delay: 100ms}}\n  stop: {{grace: 1s}}\n  network:\n    cni:\n      network: {network}\n      ports: [{{host: {port}, container: 8000}}]\n"
    )
}

/// What the workload says to whoever connects to the node's port.
fn ask(port: u16) -> Result<String> {
    let address = own_address()?;
    let mut stream =
        TcpStream::connect_timeout(&format!("{address}:{port}").parse()?, Duration::from_millis(500))?;
    stream.set_read_timeout(Some(Duration::from_secs(2)))?;
    let _ = stream.write_all(b"\n");
    let mut text = String::new();
    let mut chunk = [0; 64];
    let n = stream.read(&mut chunk)?;
    text.push_str(&String::from_utf8_lossy(&chunk[..n]));
    Ok(text)
}

/// An address of the node that is not its loopback.
fn own_address() -> Result<String> {
    let output = Command::new("ip")
        .args(["-4", "-o", "addr", "show", "scope", "global"])
        .output()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let address = text
        .lines()
        .find_map(|l| l.split_whitespace().nth(3)?.split('/').next().map(str::to_owned));
    address.context("the node has no address")
}

fn reached() -> Result<()> {
    let mut agent = Agent::start("network")?;
    let bridge = Bridge::new(&agent, "berthtest0", 100)?;
    agent.apply(&document(&bridge.0, 18_081))?;
    agent.wait_for("it runs", |a| Ok(a.in_state("running")?.len() == 1))?;
    agent.wait_for("it is reached", |_| {
        Ok(ask(18_081).is_ok_and(|t| t.contains("from inside")))
    })?;
    let log = agent.ok(&["logs", "web"])?;
    for expected in [
        "198.51.100.2 web",
        "127.0.0.1 localhost",
        "nameserver 198.51.100.9",
        "\nweb",
    ] {
        ensure!(log.contains(expected), "{expected:?} is not in:\n{log}");
    }
    let proof = agent.ok(&["prove", "web"])?;
    ensure!(proof.contains("198.51.100.2"), "{proof}");
    let run = agent.path("run");
    ensure!(!bridge.left(&run).is_empty(), "nothing was added");
    // Behind the agent's back its way out is taken away.
    let pid = agent.in_state("running")?[0]["pid"].to_string();
    let taken = Command::new("nsenter")
        .args(["--net", "--target", &pid, "ip", "route", "delete", "default"])
        .status()?;
    ensure!(taken.success(), "{taken}");
    ensure!(
        !agent.try_run(&["prove", "web"])?.status.success(),
        "CHECK saw nothing"
    );
    agent.ok(&["restart", "web"])?;
    agent.wait_for("it is reached again", |_| {
        Ok(ask(18_081).is_ok_and(|t| t.contains("from inside")))
    })?;
    agent.ok(&["stop", "web"])?;
    agent.wait_for("all is taken away", |_| Ok(bridge.left(&run).is_empty()))?;
    agent.finish()
}

/// The interfaces of the node.
fn links() -> Result<BTreeSet<String>> {
    let names = fs::read_dir("/sys/class/net")?.flatten();
    Ok(names
        .map(|e| e.file_name().to_string_lossy().into_owned())
        .collect())
}

/// What somebody at this address says.
fn says(address: &str) -> Result<String> {
    let mut stream = TcpStream::connect_timeout(&address.parse()?, Duration::from_millis(500))?;
    stream.set_read_timeout(Some(Duration::from_secs(2)))?;
    let _ = stream.write_all(b"\n");
    let mut chunk = [0; 64];
    let n = stream.read(&mut chunk)?;
    Ok(String::from_utf8_lossy(&chunk[..n]).into_owned())
}

fn ip(words: &str) -> Result<()> {
    let done = Command::new("ip").args(words.split(' ')).output()?;
    let text = String::from_utf8_lossy(&done.stderr).into_owned();
    ensure!(done.status.success(), "ip {words}: {text}");
    Ok(())
}

/// The container's interface hangs on one end of a veth pair, the node listens at the other: beside a macvlan's own
/// parent nobody hears it.
fn macvlan() -> Result<()> {
    let before = links()?;
    let mut agent = Agent::start("macvlan")?;
    ip("link add berthmv0 type veth peer name berthmv1")?;
    // Ends with the test, and the other end with it.
    let host = Bridge("berthmv0".into());
    ip("address add 198.51.103.1/24 dev berthmv0")?;
    ip("link set berthmv0 up")?;
    ip("link set berthmv1 up")?;
    let network = Bridge::of(
        &agent,
        "berthtest3",
        r#"{"type": "macvlan", "master": "berthmv1", "mode": "bridge",
            "ipam": {"type": "host-local", "ranges": [[{"subnet": "198.51.103.0/24"}]]}}"#,
    )?;
    let document = document(&network.0, 18_084);
    let without = document
        .lines()
        .filter(|l| !l.contains("ports:"))
        .collect::<Vec<_>>()
        .join("\n");
    agent.apply(&format!("{without}\n"))?;
    agent.wait_for("it runs", |a| Ok(a.in_state("running")?.len() == 1))?;
    agent.wait_for("it is reached", |_| {
        Ok(says("198.51.103.2:8000").is_ok_and(|t| t.contains("from inside")))
    })?;
    let proof = agent.ok(&["prove", "web"])?;
    ensure!(proof.contains("198.51.103.2"), "{proof}");
    let run = agent.path("run");
    ensure!(!network.left(&run).is_empty(), "nothing was added");
    agent.ok(&["stop", "web"])?;
    agent.wait_for("all is taken away", |_| Ok(network.left(&run).is_empty()))?;
    agent.finish()?;
    drop((network, host));
    ensure!(links()? == before, "interfaces are left: {:?}", links()?);
    Ok(())
}

fn ptp() -> Result<()> {
    let before = links()?;
    let mut agent = Agent::start("ptp")?;
    let network = Bridge::of(
        &agent,
        "berthtest4",
        r#"{"type": "ptp", "ipMasq": true,
            "ipam": {"type": "host-local", "ranges": [[{"subnet": "198.51.104.0/24"}]], "routes": [{"dst": "0.0.0.0/0"}]}},
           {"type": "portmap", "capabilities": {"portMappings": true}, "snat": true}"#,
    )?;
    agent.apply(&document(&network.0, 18_085))?;
    agent.wait_for("it runs", |a| Ok(a.in_state("running")?.len() == 1))?;
    agent.wait_for("it is reached by the node's port", |_| {
        Ok(ask(18_085).is_ok_and(|t| t.contains("from inside")))
    })?;
    agent.wait_for("it is reached at its own address", |_| {
        Ok(says("198.51.104.2:8000").is_ok_and(|t| t.contains("from inside")))
    })?;
    ensure!(links()?.len() == before.len() + 1, "{:?}", links()?);
    let run = agent.path("run");
    agent.ok(&["stop", "web"])?;
    agent.wait_for("all is taken away", |_| {
        Ok(network.left(&run).is_empty() && links()? == before)
    })?;
    agent.finish()
}

fn not_allowed() -> Result<()> {
    let mut agent = Agent::start("netpolicy")?;
    let network = Bridge::new(&agent, "berthtest5", 105)?;
    let policy = agent.path("config/launcher/policy.yaml");
    let text = fs::read_to_string(&policy).unwrap_or_default();
    fs::write(&policy, format!("{text}networks: [\"office-*\"]\n"))?;
    agent.apply(&document(&network.0, 18_086).replace("{delay: 100ms}", "{policy: never}"))?;
    agent.wait_for("it is refused with the setting", |a| {
        let text = a.ok(&["inspect", "web"])?;
        Ok(text.contains("network berthtest5 may not be asked for") && text.contains("networks"))
    })?;
    fs::write(&policy, format!("{text}ports: [\"18090-18099/tcp\"]\n"))?;
    agent.apply(&document(&network.0, 18_087).replace("{delay: 100ms}", "{policy: never}"))?;
    agent.wait_for("its port is refused with the setting", |a| {
        let text = a.ok(&["inspect", "web"])?;
        Ok(text.contains("port 18087/tcp may not be asked for") && text.contains("`ports`"))
    })?;
    ensure!(network.left(&agent.path("run")).is_empty(), "something was added");
    agent.finish()
}

fn crashed() -> Result<()> {
    let mut agent = Agent::start("netcrash")?;
    let bridge = Bridge::new(&agent, "berthtest1", 101)?;
    agent.apply(&document(&bridge.0, 18_082).replace("{delay: 100ms}", "{policy: never}"))?;
    agent.wait_for("it runs", |a| Ok(a.in_state("running")?.len() == 1))?;
    let run = agent.path("run");
    ensure!(!bridge.left(&run).is_empty(), "nothing was added");
    let (own, launcher) = (agent.pid()?, agent.launcher()?);
    let monitors = agent.processes("berth-mon")?;
    for pid in [own, launcher].into_iter().chain(monitors) {
        agent.kill9(pid)?;
    }
    agent.spawn(&[])?;
    agent.wait_for("all is taken away", |_| Ok(bridge.left(&run).is_empty()))?;
    ensure!(
        fs::read_dir(agent.path("state/cni"))?.next().is_none(),
        "a record is left"
    );
    agent.finish()
}

fn refused() -> Result<()> {
    let mut agent = Agent::start("netbad")?;
    let bridge = Bridge::new(&agent, "berthtest2", 102)?;
    let plain = document("nowhere", 18_083).replace("web", "first");
    agent.apply(&plain.replace("{delay: 100ms}", "{policy: never}"))?;
    agent.wait_for("it is refused with where it was looked for", |a| {
        let text = a.ok(&["inspect", "first"])?;
        Ok(text.contains("no network `nowhere`") && text.contains("/etc/cni/net.d"))
    })?;
    // A plug-in that fails half-way leaves nothing of those before it.
    let list = agent.path("config/cni/10-test.conflist");
    let text = fs::read_to_string(&list)?;
    fs::write(
        &list,
        text.replace(r#""type": "portmap""#, r#""type": "no-such-plugin""#),
    )?;
    agent.apply(
        &document(&bridge.0, 18_083)
            .replace("web", "second")
            .replace("{delay: 100ms}", "{policy: never}"),
    )?;
    agent.wait_for("it is refused with the plug-in", |a| {
        Ok(a.ok(&["inspect", "second"])?.contains("no-such-plugin"))
    })?;
    ensure!(
        bridge.left(&agent.path("run")).is_empty(),
        "something is left: {:?}",
        bridge.left(&agent.path("run"))
    );
    let file = agent.path("bad.yaml");
    fs::write(&file, document("../etc", 0))?;
    let text = agent.refused(&["check", &file.display().to_string()])?;
    for expected in ["not a path", "1 to 65535", "bad.yaml:"] {
        ensure!(text.contains(expected), "{expected:?} is not in:\n{text}");
    }
    agent.finish()
}
