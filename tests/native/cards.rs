//! Network interfaces in and out of containers: name, MTU, addresses; kept, handed over, given back; what is refused.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use berth_tests::agent::Agent;
use berth_tests::node::{Veth, ip};
use libtest_mimic::Trial;

use crate::journey::{name, pid, wait_gone, wait_running};
use crate::test;

pub(crate) fn tests() -> Vec<Trial> {
    vec![
        test("card::MTU and addresses, proven from inside, given back", given),
        test("card::given back when the launch fails", failed),
        test("card::kept over an unplug, handed over to the next", hot),
        test("card::a name taken inside is refused", taken),
        test("card::a VLAN where the kernel has none is refused", no_vlan),
    ]
}

fn documents(rule: &str) -> String {
    format!(
        "apiVersion: berth/v1\nkind: Workload\nmetadata: {{name: card}}\nspec:\n  image: berth-sample-busybox:latest\n  \
         command: [\"/bin/sleep\", \"1000\"]\n  run: onDevice\n  profile: device-worker\n  cpus: shared\n  \
         stop: {{signal: SIGKILL, grace: 1s}}\n---\n\
         apiVersion: berth/v1\nkind: HotplugRule\nmetadata: {{name: card}}\nspec:\n  workload: card\n{rule}"
    )
}

/// What `ip` shows inside the container.
fn inside(agent: &Agent, words: &[&str]) -> Result<String> {
    let pid = pid(agent, "card")?.to_string();
    let out = Command::new("nsenter")
        .args(["--net", "--target", &pid, "ip", "-o"])
        .args(words)
        .output()
        .context("nsenter")?;
    ensure!(
        out.status.success(),
        "ip {words:?}: {}",
        String::from_utf8_lossy(&out.stderr)
    );
    Ok(String::from_utf8_lossy(&out.stdout).into_owned())
}

fn outside(card: &str) -> bool {
    Path::new("/sys/class/net").join(card).exists()
}

/// A pair whose first end has a hardware address of its own.
fn plug(name: &str, address: &str) -> Result<()> {
    let peer = format!("{name}p");
    ip(&[
        "link", "add", name, "address", address, "type", "veth", "peer", "name", &peer,
    ])
}

fn given() -> Result<()> {
    let mut agent = Agent::start("card")?;
    let documents = documents(
        "  match: SUBSYSTEM==\"net\", KERNEL==\"bt5\"\n  \
         interface: {name: wan, mtu: 1400, addresses: [10.9.8.7/24, 'fd00:9::7/64']}\n",
    );
    agent.apply(&documents)?;
    let mut veth = Veth::plug("bt5")?;
    wait_running(&mut agent, "card", 1)?;
    let addresses = inside(&agent, &["address", "show", "wan"])?;
    for word in ["10.9.8.7/24", "fd00:9::7/64"] {
        ensure!(addresses.contains(word), "no {word} in:\n{addresses}");
    }
    let link = inside(&agent, &["link", "show", "wan"])?;
    ensure!(link.contains("mtu 1400") && link.contains(",UP"), "{link}");
    let named = name(&agent, "card")?;
    let proof = agent.ok(&["prove", &named])?;
    let line = proof
        .lines()
        .find(|l| l.contains("interface.wan"))
        .context("no such fact")?;
    ensure!(
        line.contains("10.9.8.7/24") && line.contains("mtu 1400"),
        "{line}"
    );
    // The proof asks the kernel: what is changed inside is seen.
    inside(&agent, &["address", "delete", "10.9.8.7/24", "dev", "wan"])?;
    let broken = agent.try_run(&["prove", &named])?;
    let said = String::from_utf8_lossy(&broken.stdout).into_owned();
    ensure!(
        !broken.status.success() && said.contains("interface.wan"),
        "{said}"
    );
    // It goes back as it was.
    let file = agent.path("card.yaml");
    fs::write(&file, &documents)?;
    agent.ok(&["delete", &file.display().to_string()])?;
    wait_gone(&mut agent, "card")?;
    let mtu = fs::read_to_string("/sys/class/net/bt5/mtu").context("bt5 is not outside again")?;
    ensure!(mtu.trim() == "1500", "MTU {mtu}");
    veth.unplug()?;
    agent.finish()
}

fn failed() -> Result<()> {
    let mut agent = Agent::start("cardfail")?;
    let broken =
        documents("  match: SUBSYSTEM==\"net\", KERNEL==\"bt6\"\n  interface: {name: wan, mtu: 1400}\n")
            .replace("\"/bin/sleep\", \"1000\"", "\"/nowhere\"")
            .replace("  run: onDevice", "  run: onDevice\n  restart: {policy: never}");
    agent.apply(&broken)?;
    let mut veth = Veth::plug("bt6")?;
    agent.wait_for("it has failed", |a| Ok(a.in_state("failed")?.len() == 1))?;
    agent.wait_for("the card is outside under its name", |_| Ok(outside("bt6")))?;
    let mtu = fs::read_to_string("/sys/class/net/bt6/mtu")?;
    ensure!(mtu.trim() == "1500", "MTU {mtu}");
    veth.unplug()?;
    wait_gone(&mut agent, "card")?;
    agent.finish()
}

fn hot() -> Result<()> {
    let mut agent = Agent::start("cardhot")?;
    let rule = "  match: SUBSYSTEM==\"net\", KERNEL==\"bt[78]\"\n  interface: {name: wan, addresses: [10.9.8.8/24]}\n";
    agent.apply(&documents(&format!(
        "{rule}  identity: mac\n  unplug: {{then: keep}}\n"
    )))?;
    plug("bt7", "02:be:27:00:00:07")?;
    let mut veth = Veth { name: "bt7".into() };
    wait_running(&mut agent, "card", 1)?;
    let (before, named) = (pid(&agent, "card")?, name(&agent, "card")?);
    for _ in 0..crate::rounds(2) {
        veth.unplug()?;
        agent.wait_for("it has no card", |a| Ok(!inside(a, &["link"])?.contains(" wan")))?;
        agent.ok(&["prove", &named])?;
        let running = agent.in_state("running")?;
        ensure!(running[0]["lacks"] == serde_json::json!(["wan"]), "{running:?}");
        ensure!(agent.ok(&["ps"])?.contains("lacks wan"), "not in the table");
        plug("bt7", "02:be:27:00:00:07")?;
        agent.wait_for("it has its card again", |a| {
            Ok(inside(a, &["address"])?.contains("10.9.8.8/24"))
        })?;
        agent.wait_for("it lacks nothing", |a| {
            Ok(a.in_state("running")?[0]["lacks"] == serde_json::json!([]))
        })?;
        agent.ok(&["prove", &named])?;
        ensure!(pid(&agent, "card")? == before, "it was started anew");
    }
    // An agent that comes later knows what it has.
    let agent_pid = agent.pid()?;
    agent.kill9(agent_pid)?;
    agent.spawn(&[])?;
    wait_running(&mut agent, "card", 1)?;
    ensure!(pid(&agent, "card")? == before, "the new agent started it anew");
    veth.unplug()?;
    agent.wait_for("it has none again", |a| {
        Ok(!inside(a, &["link"])?.contains(" wan"))
    })?;
    agent.apply(&documents(&format!("{rule}  unplug: {{then: handOver}}\n")))?;
    wait_gone(&mut agent, "card")?;
    let (mut one, mut two) = (Veth::plug("bt7")?, Veth::plug("bt8")?);
    wait_running(&mut agent, "card", 1)?;
    let before = pid(&agent, "card")?;
    let (first, other) = if outside("bt7") {
        (&mut two, "bt7")
    } else {
        (&mut one, "bt8")
    };
    ensure!(outside(other), "both went in");
    first.unplug()?;
    agent.wait_for("it has the other", |a| {
        Ok(!outside(other) && inside(a, &["address"])?.contains("10.9.8.8/24"))
    })?;
    ensure!(pid(&agent, "card")? == before, "it was started anew");
    one.unplug().or_else(|_| two.unplug())?;
    wait_gone(&mut agent, "card")?;
    agent.finish()
}

fn taken() -> Result<()> {
    let mut agent = Agent::start("cardname")?;
    let rule = "  bundle:\n    need: any\n    devices:\n    \
                - {name: one, match: 'SUBSYSTEM==\"net\", KERNEL==\"bt9\"', interface: {name: btwan}}\n    \
                - {name: two, match: 'SUBSYSTEM==\"net\", KERNEL==\"btwan\"', interface: {}}\n";
    agent.apply(&documents(rule))?;
    let mut one = Veth::plug("bt9")?;
    wait_running(&mut agent, "card", 1)?;
    let (before, named) = (pid(&agent, "card")?, name(&agent, "card")?);
    let mut two = Veth::plug("btwan")?;
    agent.wait_for("the second is refused by name", |a| {
        Ok(a.ok(&["events"])?
            .contains("cannot be `btwan` inside: the name is taken there"))
    })?;
    ensure!(outside("btwan"), "it went in");
    agent.ok(&["prove", &named])?;
    two.unplug()?;
    ensure!(pid(&agent, "card")? == before, "it was started anew");
    // Its going was told outside, where it stayed: plugged again it is tried again.
    let mut two = Veth::plug("btwan")?;
    agent.wait_for("the second is refused again", |a| {
        Ok(a.ok(&["events"])?.matches("the name is taken there").count() >= 2)
    })?;
    one.unplug()?;
    two.unplug()?;
    wait_gone(&mut agent, "card")?;
    agent.finish()
}

fn no_vlan() -> Result<()> {
    let mut probe = Veth::plug("btv0")?;
    let has = ip(&[
        "link", "add", "link", "btv0", "name", "btv0.9", "type", "vlan", "id", "9",
    ])
    .is_ok();
    probe.unplug()?;
    let mut agent = Agent::start("cardvlan")?;
    let broken =
        documents("  match: SUBSYSTEM==\"net\", KERNEL==\"btv1\"\n  interface: {name: wan, vlan: 9}\n")
            .replace("  run: onDevice", "  run: onDevice\n  restart: {policy: never}");
    agent.apply(&broken)?;
    let mut veth = Veth::plug("btv1")?;
    if has {
        wait_running(&mut agent, "card", 1)?;
        ensure!(
            inside(&agent, &["-d", "link", "show", "wan"])?.contains("id 9") && outside("btv1"),
            "no VLAN"
        );
    } else {
        agent.wait_for("it has failed", |a| Ok(a.in_state("failed")?.len() == 1))?;
        let reason = agent.in_state("failed")?[0].to_string();
        ensure!(
            reason.contains("cannot make VLAN 9") && reason.contains("8021q"),
            "{reason}"
        );
    }
    veth.unplug()?;
    wait_gone(&mut agent, "card")?;
    agent.finish()
}
