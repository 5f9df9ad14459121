//! The shipped profiles in guests that have every capability and cgroup v2: the table of tests/native/shipped.rs.

use anyhow::{Context, Result, ensure};
use berth_tests::vm::Vm;

use crate::boots::Guest;
use crate::lanes::Trial;
use crate::on_guest;
use crate::shipped::{self, Node, SHIPPED, Shipped};

/// A guest, as the table asks it.
struct There<'a> {
    vm: &'a mut Vm,
    arm: bool,
}

impl Node for There<'_> {
    fn shell(&mut self, script: &str) -> Result<String> {
        self.vm.sh(script)
    }

    fn inside(&mut self, container: &str, script: &str) -> Result<String> {
        self.vm.sh(&format!(
            "script=$(cat <<'END'\n{script}\nEND\n)\nberth exec {container} -- /bin/sh -c \"$script\""
        ))
    }

    fn arm(&self) -> bool {
        self.arm
    }
}

pub(crate) fn tests(guest: &Guest) -> Vec<Trial> {
    let arm = guest.arch() == "arm64";
    vec![guest.test(
        "each shipped profile: what is inside is what it says",
        move |vm| {
            on_guest::agent(vm)?;
            vm.sh("mkdir -p /etc/berth/launcher && \
                 echo 'privileged: true\nlimits: {unfiltered: true}' >/etc/berth/launcher/policy.yaml")?;
            let done = all(&mut There { vm, arm });
            vm.sh("rm /etc/berth/launcher/policy.yaml")?;
            done
        },
    )]
}

fn all(there: &mut There<'_>) -> Result<()> {
    let waiting = |name: &str, profile: &str| shipped::workload(name, profile);
    let free = format!("{}{}", shipped::UNFILTERED, waiting("unfiltered", "unfiltered"));
    on_guest::apply(there.vm, &free)?;
    on_guest::running(there.vm, "unfiltered")?;
    let lacking = shipped::lacking(there, "unfiltered")?;
    on_guest::delete(there.vm, &free)?;
    // Those that differ in what a guest alone shows: the system calls of arm64; devices by a program of cgroup v2.
    let left_out = if there.arm {
        ["device-worker", "network-function"]
    } else {
        ["device-worker", "realtime"]
    };
    for one in SHIPPED.iter().filter(|one| !left_out.contains(&one.name)) {
        let document = waiting(one.name, one.name);
        on_guest::apply(there.vm, &document)?;
        profile(there, one, &lacking).with_context(|| format!("profile {}", one.name))?;
        on_guest::delete(there.vm, &document)?;
        on_guest::gone(there.vm, one.name)?;
    }
    undumpable(there)
}

/// Made undumpable at its exec stop, a program is not looked into by its own user; one that is dumpable is.
fn undumpable(there: &mut There<'_>) -> Result<()> {
    for dumpable in [true, false] {
        let document = shipped::dumpable("closed", dumpable);
        on_guest::apply(there.vm, &document)?;
        on_guest::running(there.vm, "closed")?;
        let said = there.inside("closed", shipped::LOOK)?;
        ensure!(said.contains("looked") == dumpable, "dumpable {dumpable}: {said}");
        on_guest::delete(there.vm, &document)?;
        on_guest::gone(there.vm, "closed")?;
    }
    Ok(())
}

fn profile(there: &mut There<'_>, one: &Shipped, lacking: &std::collections::BTreeSet<u32>) -> Result<()> {
    let container = on_guest::in_phase(there.vm, one.name, "running")?;
    let pid = container["pid"].as_i64().context("no pid")?;
    shipped::check(there, one, one.name, pid, lacking)?;
    there.vm.sh(&format!("berth prove {}", one.name)).map(drop)
}
