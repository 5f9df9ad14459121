//! Fields of the OCI specification, and states of a container, that need cgroup v2: the cases of berth-fields, and a
//! container that was frozen behind berth's back.

use anyhow::{Context, Result, ensure};
use berth_tests::vm::Vm;

use crate::boots::Guest;
use crate::lanes::Trial;
use crate::on_guest;

const FROZEN: &str = "apiVersion: berth/v1\nkind: Workload\nmetadata: {name: frozen}\nspec:\n  image: berth-sample-busybox:latest\n  \
     command: [\"/bin/sleep\", \"1000\"]\n  cpus: shared\n  stop: {grace: 2s}\n";

pub(crate) fn tests(guest: &Guest) -> Vec<Trial> {
    vec![
        guest.test("fields: a key of cgroup v2 has its effect", unified),
        guest.test("a container that was frozen by hand is stopped and freed", frozen),
    ]
}

fn unified(vm: &mut Vm) -> Result<()> {
    let run = "BERTH=/usr/bin/berth TMPDIR=/run berth-fields one linux.resources.unified berth 2>&1";
    let (code, said) = vm.run(run)?;
    ensure!(code == 0 && said.contains("1 cases hold, 0 do not"), "{said}");
    Ok(())
}

fn frozen(vm: &mut Vm) -> Result<()> {
    on_guest::agent(vm)?;
    on_guest::apply(vm, FROZEN)?;
    on_guest::running(vm, "frozen")?;
    let list = on_guest::ps(vm)?;
    let container = list
        .iter()
        .find(|c| c["workload"] == "frozen")
        .context("no container")?;
    let pid = container["pid"].as_u64().context("no pid")?;
    let group = vm.sh(&format!("sed -n 's/^0:://p' /proc/{pid}/cgroup"))?;
    let group = format!("/sys/fs/cgroup{}", group.trim());
    vm.sh(&format!("echo 1 > {group}/cgroup.freeze"))?;
    vm.sh(&format!("for i in 1 2 3 4 5 6 7 8 9; do grep -q 'frozen 1' {group}/cgroup.events && exit 0; sleep 0.2; done; exit 1"))?;
    on_guest::delete(vm, FROZEN)?;
    on_guest::gone(vm, "frozen")?;
    let left = vm.sh(&format!(
        "[ ! -e {group} ] && [ ! -e /proc/{pid} ] && echo nothing"
    ))?;
    ensure!(left.trim() == "nothing", "{left}");
    Ok(())
}
