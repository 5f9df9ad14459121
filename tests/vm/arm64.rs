//! PREEMPT_RT 6.12 on arm64 with the cross-built binary: the journey with a network card and a serial adapter, FIFO on
//! a core, and its proof. Unplugging a PCI card is polled there (see tests/src/vm/config.rs).

use anyhow::{Result, ensure};
use berth_tests::vm::Vm;
use libtest_mimic::Trial;

use crate::boots::Guest;
use crate::{cloud, devices, on_guest};

pub(crate) fn tests(guest: &Guest) -> Vec<Trial> {
    let mut tests = vec![
        guest.test("the guest is what it should be", node),
        guest.test("fifo on a whole core", cloud::fifo),
    ];
    tests.extend(devices::some(guest, &["usb-serial", "virtio-net"]));
    tests
}

fn node(vm: &mut Vm) -> Result<()> {
    let facts = vm.sh("uname -rm; cat /sys/kernel/realtime /sys/devices/system/cpu/isolated")?;
    for word in ["aarch64", "-rt-", "2-3"] {
        ensure!(facts.contains(word), "no {word}: {facts}");
    }
    on_guest::agent(vm)?;
    let version = vm.sh("berth --version; berth image ls")?;
    ensure!(version.contains("arm64"), "no arm64 image:\n{version}");
    Ok(())
}
