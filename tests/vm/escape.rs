//! Published escapes against `berth oci` on cgroup v2 and PREEMPT_RT: the suite that runs natively, in a guest.

use anyhow::{Result, ensure};
use berth_tests::vm::Vm;

use crate::boots::Guest;
use crate::lanes::Trial;
use crate::on_guest;

/// A container that is there all the time. The first device program of a node has the kernel patch its own code, and so has the end
/// of the last one: without it every try would, and the emulator now and then breaks a kernel at that.
const STILL: &str = "apiVersion: berth/v1\nkind: Workload\nmetadata: {name: still}\nspec:\n  image: berth-sample-busybox:latest\n  \
     command: [\"/bin/sleep\", \"1000\"]\n  cpus: shared\n  stop: {signal: SIGKILL, grace: 1s}\n";

pub(crate) fn tests(guest: &Guest) -> Vec<Trial> {
    vec![guest.test("every published escape is held", held)]
}

fn held(vm: &mut Vm) -> Result<()> {
    on_guest::agent(vm)?;
    on_guest::apply(vm, STILL)?;
    on_guest::running(vm, "still")?;
    let (code, table) = vm.run("BERTH=/usr/bin/berth BERTH_ESCAPE_SECONDS=0 berth-escape all berth 2>&1")?;
    println!("{table}");
    ensure!(code == 0, "{table}");
    let held = table
        .lines()
        .filter(|l| l.ends_with("| held |") || l.contains("refused |"))
        .count();
    ensure!(held > 25, "only {held} were tried:\n{table}");
    on_guest::delete(vm, STILL)?;
    on_guest::gone(vm, "still")
}
