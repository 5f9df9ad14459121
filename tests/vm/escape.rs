//! Published escapes against `berth oci` on cgroup v2 and PREEMPT_RT: the suite that runs natively, in a guest.

use anyhow::{Result, ensure};
use berth_tests::vm::Vm;

use crate::boots::Guest;
use crate::lanes::Trial;

pub(crate) fn tests(guest: &Guest) -> Vec<Trial> {
    vec![guest.test("every published escape is held", held)]
}

fn held(vm: &mut Vm) -> Result<()> {
    let (code, table) = vm.run("BERTH=/usr/bin/berth BERTH_ESCAPE_SECONDS=0 berth-escape all berth 2>&1")?;
    println!("{table}");
    ensure!(code == 0, "{table}");
    let held = table
        .lines()
        .filter(|l| l.ends_with("| held |") || l.contains("refused |"))
        .count();
    ensure!(held > 25, "only {held} were tried:\n{table}");
    Ok(())
}
