//! systemd as PID 1, and berth as the package that agent/dist/deb.sh makes of the binary that ships: units, restart,
//! upgrade, stop, removal, while a container counts.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use berth_tests::agent::{binary, workspace};
use berth_tests::vm::Vm;

use crate::boots::Guest;
use crate::devices::LIMIT;
use crate::lanes::Trial;
use crate::on_guest;

/// Exposure levels of `systemd-analyze security` (0 to 10) that the units may have at most.
const EXPOSURE: [(&str, f64); 2] = [("berth.service", 3.0), ("berth-launcher.service", 9.2)];
/// The version that the first is upgraded to.
const NEXT: &str = "999.0.0";
/// busybox has a dpkg too.
const DPKG: &str = "/usr/bin/dpkg";

const DOCUMENTS: &str = r#"apiVersion: berth/v1
kind: Workload
metadata: {name: counter}
spec:
  image: berth-sample-busybox:latest
  command: ["/bin/sh", "-c", "n=0; while :; do n=$((n+1)); echo count $n; usleep 100000; done"]
  profile: system
  cpus: shared
"#;

/// Puts the package, and one of a higher version, into the folder that the guest sees.
pub(crate) fn packages(share: &Path) -> Result<()> {
    for (name, version) in [("first", None), ("next", Some(NEXT))] {
        let out = share.join(name);
        let mut deb = Command::new(workspace().join("agent/dist/deb.sh"));
        deb.arg("amd64").arg(share.join("berth")).arg(&out);
        deb.env("HOST_BERTH", binary());
        if let Some(version) = version {
            deb.env("DEB_VERSION", version);
        }
        let done = deb.output().context("agent/dist/deb.sh")?;
        ensure!(
            done.status.success(),
            "deb.sh: {}",
            String::from_utf8_lossy(&done.stderr)
        );
        let made = std::fs::read_dir(&out)?.next().context("no package")??.path();
        std::fs::rename(made, share.join(format!("{name}.deb")))?;
        std::fs::remove_dir(&out)?;
    }
    Ok(())
}

/// In order: each finds what the one before it left.
pub(crate) fn tests(guest: &Guest) -> Vec<Trial> {
    vec![
        guest.test("the package installs and its units start", install),
        guest.test("what systemd-analyze security says of the units", exposure),
        guest.test("a restart of the units touches no container", restart),
        guest.test("an upgrade of the package touches no container", upgrade),
        guest.test("an agent that hangs is started again", hangs),
        guest.test("a stop of the units does what their manual page says", stop),
        guest.test("the package is removed, and purged", remove),
    ]
}

fn units(vm: &mut Vm) -> Result<()> {
    for unit in ["berth-launcher", "berth"] {
        let state = vm.sh(&format!(
            "systemctl show -p Type,ActiveState,SubState,NotifyAccess,Result,KillMode,Delegate,User {unit}"
        ))?;
        for line in [
            "Type=notify",
            "ActiveState=active",
            "SubState=running",
            "KillMode=process",
        ] {
            ensure!(state.contains(line), "{unit} is not {line}:\n{state}");
        }
    }
    vm.until("the agent answers", "berth ps", LIMIT).map(drop)
}

fn install(vm: &mut Vm) -> Result<()> {
    ensure!(
        vm.sh("cat /proc/1/comm")?.trim() == "systemd",
        "PID 1 is not systemd"
    );
    let said = vm.sh(&format!("{DPKG} -i /root/first.deb"))?;
    units(vm).with_context(|| said)?;
    let there = vm.sh(
        "systemctl is-enabled berth berth-launcher; grep -o '^berth-[a-z]*' /etc/group; stat -c '%a %n' /run/berth /var/lib/berth /etc/berth
         ls /usr/share/man/man1/berth.1.gz /usr/share/man/man8/berth.service.8.gz; berth --version",
    )?;
    for line in [
        "enabled\nenabled\n",
        "berth-read\n",
        "berth-operate\n",
        "755 /run/berth",
        "755 /etc/berth",
    ] {
        ensure!(there.contains(line), "no {line:?} in\n{there}");
    }
    vm.sh("for i in busybox worker; do berth image load /root/berth-sample-$i.tar; done")?;
    on_guest::apply(vm, DOCUMENTS)?;
    on_guest::running(vm, "counter").map(drop)
}

fn exposure(vm: &mut Vm) -> Result<()> {
    for (unit, most) in EXPOSURE {
        let table = vm.sh(&format!(
            "SYSTEMD_COLORS=0 systemd-analyze security --no-pager {unit}"
        ))?;
        let line = table.lines().last().unwrap_or_default();
        println!("{line}");
        let level: f64 = line
            .split(": ")
            .nth(1)
            .and_then(|rest| rest.split_whitespace().next()?.parse().ok())
            .with_context(|| format!("no level in {line:?}"))?;
        ensure!(level <= most, "{unit}: {level} is above {most}:\n{table}");
    }
    Ok(())
}

/// Pid and start time of the container's first process.
fn process(vm: &mut Vm) -> Result<String> {
    let pid = on_guest::in_phase(vm, "counter", "running")?["pid"]
        .as_i64()
        .context("no pid")?;
    vm.sh(&format!(
        "echo {pid} $(sed 's/.*) //' /proc/{pid}/stat | cut -d' ' -f20)"
    ))
}

/// The container of before runs, and its output has every number up to now: those of before, and new ones.
fn untouched(vm: &mut Vm, before: &str, what: &str) -> Result<()> {
    let after = process(vm)?;
    ensure!(
        after == before,
        "{what}: pid and start time {before} became {after}"
    );
    vm.until(
        "the output goes on",
        "n=$(berth logs counter | sed -n 's/.*count //p' | tail -n 1); sleep 1; [ \"$(berth logs counter | sed -n 's/.*count //p' | tail -n 1)\" -gt \"$n\" ]",
        LIMIT,
    )?;
    let gaps = vm.sh("berth logs counter | sed -n 's/.*count //p' | awk '$1 != NR {print NR, $1; exit}'")?;
    ensure!(gaps.is_empty(), "{what}: output is lost at {gaps}");
    Ok(())
}

fn restart(vm: &mut Vm) -> Result<()> {
    let before = process(vm)?;
    for units_ in ["berth", "berth-launcher", "berth-launcher berth"] {
        vm.sh(&format!("systemctl restart {units_}"))?;
        units(vm)?;
        untouched(vm, &before, units_)?;
    }
    // The next launch works too.
    let yaml = DOCUMENTS.replace("counter", "second");
    on_guest::apply(vm, &yaml)?;
    on_guest::running(vm, "second")?;
    on_guest::delete(vm, &yaml)?;
    on_guest::gone(vm, "second")
}

fn upgrade(vm: &mut Vm) -> Result<()> {
    let before = process(vm)?;
    let pids = "systemctl show -p MainPID --value berth berth-launcher | tr '\\n' ' '";
    let old = vm.sh(pids)?;
    let said = vm.sh(&format!("{DPKG} -i /root/next.deb"))?;
    units(vm)?;
    let new = vm.sh(pids)?;
    for (old, new) in old.split_whitespace().zip(new.split_whitespace()) {
        ensure!(old != new, "{old} still runs after the upgrade:\n{said}");
    }
    let version = vm.sh(&format!("{DPKG} -s berth"))?;
    ensure!(version.contains(&format!("Version: {NEXT}")), "{version}");
    untouched(vm, &before, "upgrade")
}

fn hangs(vm: &mut Vm) -> Result<()> {
    let before = process(vm)?;
    let pid = vm.sh(
        "mkdir -p /run/systemd/system/berth.service.d; printf '[Service]\\nWatchdogSec=5s\\n' >/run/systemd/system/berth.service.d/short.conf
         systemctl daemon-reload && systemctl restart berth && systemctl show -p MainPID --value berth",
    )?;
    vm.sh(&format!("kill -STOP {}", pid.trim()))?;
    vm.until(
        "systemd starts it again",
        &format!(
            "p=$(systemctl show -p MainPID --value berth); [ $p != 0 ] && [ $p != {} ] && berth ps",
            pid.trim()
        ),
        LIMIT,
    )?;
    untouched(vm, &before, "watchdog of systemd")?;
    vm.sh("rm -r /run/systemd/system/berth.service.d; systemctl daemon-reload; systemctl restart berth")
        .map(drop)
}

fn stop(vm: &mut Vm) -> Result<()> {
    vm.until("the agent answers", "berth ps", LIMIT)?;
    let before = process(vm)?;
    let pid = before.split_whitespace().next().context("no pid")?;
    let page = vm.sh("zcat /usr/share/man/man8/berth.service.8.gz")?;
    for sentence in [
        "Monitors, containers and their output go on",
        "berth stop \\-\\-all",
    ] {
        ensure!(page.contains(sentence), "the page does not say {sentence:?}");
    }
    let stopped = vm.sh(&format!(
        "systemctl stop berth berth-launcher; systemctl is-active berth berth-launcher; [ -d /proc/{pid} ] && echo there
         berth ps; berth ps && echo answered; true"
    ))?;
    ensure!(
        stopped.starts_with("inactive\ninactive\nthere\n") && !stopped.contains("answered"),
        "{stopped}"
    );
    vm.sh("sleep 2; systemctl start berth")?;
    units(vm)?;
    untouched(vm, &before, "stop and start")?;
    vm.sh("berth stop --all")?;
    vm.until("the container has ended", &format!("[ ! -d /proc/{pid} ]"), LIMIT)?;
    vm.sh("berth start counter")?;
    on_guest::running(vm, "counter").map(drop)
}

fn remove(vm: &mut Vm) -> Result<()> {
    let pid = process(vm)?;
    let pid = pid.split_whitespace().next().context("no pid")?.to_owned();
    let said = vm.sh(&format!("{DPKG} -r berth"))?;
    let left = vm.sh(&format!(
        "ls -d /proc/{pid} /usr/bin/berth /lib/systemd/system/berth.service 2>/dev/null; systemctl is-active berth berth-launcher
         pidof berth berth-launcher; ls -d /etc/berth/node.yaml /var/lib/berth/images; find /sys/fs/cgroup -path '*berth/*' -type d"
    ))?;
    ensure!(
        left == "inactive\ninactive\n/etc/berth/node.yaml\n/var/lib/berth/images\n",
        "after removal:\n{left}\n{said}"
    );
    vm.sh(&format!("{DPKG} -P berth"))?;
    let left = vm.sh("ls -d /etc/berth/node.yaml /var/lib/berth /run/berth 2>/dev/null; find / -xdev -name '*berth*' -not -path '/proc/*' -not -path '/sys/*' -not -path '/root/*'; true")?;
    ensure!(left.is_empty(), "after purging:\n{left}");
    Ok(())
}
