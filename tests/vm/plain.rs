//! A guest with nothing given away and no udevd: the journey on the kernel's own events.

use anyhow::{Result, ensure};
use berth_tests::vm::Vm;

use crate::boots::Guest;
use crate::lanes::Trial;
use crate::{devices, on_guest};

pub(crate) fn tests(guest: &Guest) -> Vec<Trial> {
    let mut tests = vec![guest.test("no udevd: device events are the kernel's", source)];
    tests.extend(devices::some(guest, &["usb-serial", "virtio-net"]));
    tests
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
