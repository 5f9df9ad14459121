//! A guest with nothing given away and no udevd: the agent listens to the kernel. What it does then: `cycles.rs`, `firmware.rs`.

use anyhow::{Result, ensure};
use berth_tests::vm::Vm;

use crate::boots::Guest;
use crate::lanes::Trial;
use crate::on_guest;

pub(crate) fn tests(guest: &Guest) -> Vec<Trial> {
    vec![guest.test("no udevd: device events are the kernel's", source)]
}

fn source(vm: &mut Vm) -> Result<()> {
    let udevd = vm.sh("pidof systemd-udevd; ls /run/udev 2>/dev/null; true")?;
    ensure!(udevd.trim().is_empty(), "udevd is there: {udevd}");
    on_guest::agent(vm)?;
    let log = vm.sh("cat /run/berth-agent.log")?;
    ensure!(
        log.contains("device events from kernel"),
        "the agent does not say that it listens to the kernel:\n{log}"
    );
    Ok(())
}
