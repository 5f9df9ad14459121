//! One kind of hardware after the other: plugged → its container runs with that very device and uses it → unplugged →
//! gone → plugged again. All kinds side by side: `cycles.rs`.

use std::time::Duration;

use anyhow::{Result, ensure};
use berth_tests::vm::Vm;
use serde_json::{Value, json};

use crate::boots::Guest;
use crate::lanes::Trial;
use crate::on_guest;

/// A guest on a busy machine needs its time.
pub(crate) const LIMIT: Duration = Duration::from_secs(150);

/// QEMU's back ends of the devices below; a guest that runs these tests is booted with them.
pub(crate) const BACKENDS: &[&str] = &[
    "-chardev",
    "null,id=adapter0",
    "-chardev",
    "null,id=adapter1",
    "-audiodev",
    "none,id=sound0",
    "-netdev",
    "user,id=net0,restrict=on",
    "-netdev",
    "user,id=net1,restrict=on",
    "-netdev",
    "user,id=net2,restrict=on",
    "-blockdev",
    "driver=null-co,node-name=disk0,size=16777216,read-zeroes=on",
    "-blockdev",
    "driver=null-co,node-name=disk1,size=16777216,read-zeroes=on",
    // A card reader, with a card in it.
    "-blockdev",
    "driver=null-co,node-name=card0,size=16777216,read-zeroes=on",
    "-device",
    "sdhci-pci,id=reader",
    "-device",
    "sd-card,id=card,drive=card0",
];

/// One kind of hardware.
struct Hardware {
    name: &'static str,
    /// QEMU's device model and its properties.
    driver: &'static str,
    properties: fn() -> Value,
    /// The rule's match line.
    rule: &'static str,
    /// What the device is in the container: a node or an interface.
    interface: bool,
}

const ALL: &[Hardware] = &[
    Hardware {
        name: "usb-serial",
        driver: "usb-serial",
        properties: || json!({"bus": "xhci.0", "chardev": "adapter0", "always-plugged": true}),
        rule: r#"SUBSYSTEM=="tty", KERNEL=="ttyUSB*", SUBSYSTEMS=="usb", ATTRS{idVendor}=="0403""#,
        interface: false,
    },
    Hardware {
        name: "virtio-net",
        driver: "virtio-net-pci",
        properties: || json!({"bus": "rp0", "netdev": "net1", "mac": "52:54:00:be:27:11"}),
        rule: r#"SUBSYSTEM=="net", DRIVERS=="virtio_net""#,
        interface: true,
    },
    Hardware {
        name: "nvme",
        driver: "nvme",
        properties: || json!({"bus": "rp2", "drive": "disk1", "serial": "BERTHNVME"}),
        rule: r#"SUBSYSTEM=="block", KERNEL=="nvme*n*", ENV{DEVTYPE}=="disk""#,
        interface: false,
    },
];

/// The tests of these kinds.
pub(crate) fn some(guest: &Guest, names: &[&str]) -> Vec<Trial> {
    ALL.iter()
        .filter(|hardware| names.contains(&hardware.name))
        .map(|hardware| {
            guest.test(&format!("device {}", hardware.name), move |vm| {
                plug_cycles(vm, hardware)
            })
        })
        .collect()
}

fn documents(hardware: &Hardware) -> String {
    let name = hardware.name;
    let (args, given) = if hardware.interface {
        ("\"--interface\", \"eth0\"", "interface: {name: eth0}")
    } else {
        (
            "\"--device\", \"/dev/device\"",
            "device: {path: /dev/device, access: rw}",
        )
    };
    format!(
        "apiVersion: berth/v1\nkind: Workload\nmetadata: {{name: {name}}}\nspec:\n  image: berth-sample-worker:latest\n  \
         args: [{args}, \"--period\", \"20ms\"]\n  run: onDevice\n  profile: device-worker\n  cpus: shared\n---\n\
         apiVersion: berth/v1\nkind: HotplugRule\nmetadata: {{name: {name}}}\nspec:\n  match: |\n    {}\n  \
         workload: {name}\n  {given}\n  labels: {{kernel: \"$kernel\"}}\n",
        hardware.rule
    )
}

fn plug_cycles(vm: &mut Vm, hardware: &Hardware) -> Result<()> {
    on_guest::agent(vm)?;
    on_guest::apply(vm, &documents(hardware))?;
    for round in 0..crate::plug::rounds(2) {
        let mut properties = (hardware.properties)();
        properties["id"] = json!(format!("d{}", hardware.name.replace('-', "")));
        vm.plug(hardware.driver, properties)?;
        let name = on_guest::running(vm, hardware.name)?;
        vm.until(
            &format!("round {round}: the worker has opened the device"),
            &format!("berth logs {name} | grep -q '\"open\":true'"),
            LIMIT,
        )?;
        let (what, sign) = match (hardware.interface, hardware.name) {
            (true, _) => ("sent a frame", "\"sent\":[1-9]"),
            (false, "usb-serial") => ("opened a character device", "\"kind\":\"char\""),
            (false, _) => ("read a block", "\"bytes\":[1-9]"),
        };
        vm.until(
            &format!("round {round}: the worker has {what}"),
            &format!("berth logs {name} | grep '{sign}'"),
            LIMIT,
        )?;
        let proof = vm.sh(&format!("berth prove {name}"))?;
        ensure!(proof.contains("seccomp"), "round {round}: {proof}");
        vm.unplug(&format!("d{}", hardware.name.replace('-', "")))?;
        on_guest::gone(vm, hardware.name)?;
    }
    on_guest::delete(vm, &documents(hardware))
}
