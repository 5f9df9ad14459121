//! A stick with a vfat file system, a VLAN of a trunk, libudev inside. A card in its reader: `cycles.rs`.

use std::time::Instant;

use anyhow::{Context, Result, ensure};
use berth_tests::vm::Vm;
use serde_json::json;

use crate::boots::Guest;
use crate::devices::LIMIT;
use crate::lanes::Trial;
use crate::on_guest;
use crate::plug::{rounds, rule, workload};

pub(crate) fn tests(guest: &Guest) -> Vec<Trial> {
    vec![
        guest.test(
            "media: a vfat file system is mounted, by the label that udev reads",
            vfat,
        ),
        guest.test("media: a VLAN goes inside, its trunk stays", vlan),
        guest.test(
            "media: libudev inside finds udevd's record and hears its events",
            libudev,
        ),
    ]
}

fn vfat(vm: &mut Vm) -> Result<()> {
    on_guest::agent(vm)?;
    let image = tempfile::Builder::new()
        .prefix("vfat.")
        .tempfile_in(berth_tests::vm::out())?;
    image.as_file().set_len(8 << 20)?;
    let file = json!({"driver": "file", "filename": image.path()});
    vm.qmp(
        "blockdev-add",
        json!({"driver": "raw", "node-name": "vfat0", "file": file}),
    )?;
    let stick = || json!({"id": "vfat", "bus": "xhci.0", "port": "1", "drive": "vfat0", "serial": "VFAT1"});
    vm.plug("usb-storage", stick())?;
    let disk = vm.until("the disk is there", "ls /dev/disk/by-id/usb-*VFAT1*", LIMIT)?;
    let disk = disk.lines().next().context("no disk")?.to_owned();
    vm.sh(&format!(
        "modprobe -a vfat nls_cp437 nls_ascii; busybox mkdosfs -n BERTHFAT {disk} && mkdir -p /run/vfat && mount -t vfat {disk} /run/vfat && \
         echo on the stick >/run/vfat/word && umount /run/vfat && rmdir /run/vfat"
    ))?;
    vm.unplug("vfat")?;
    vm.until(
        "it has gone",
        "! ls /dev/disk/by-id/usb-*VFAT1* 2>/dev/null",
        LIMIT,
    )?;
    let by_label = |label: &str| {
        format!("  match: SUBSYSTEM==\"block\", ENV{{DEVTYPE}}==\"disk\", ENV{{ID_FS_LABEL}}==\"{label}\"\n")
    };
    let documents = workload("fat", "shared")
        + &rule(
            "fat",
            &(by_label("BERTHFAT") + "  filesystem: {path: /home, types: [vfat]}\n"),
        )
        + "---\n"
        + &workload("other", "shared")
        + &rule(
            "other",
            &(by_label("OTHER") + "  filesystem: {path: /home, types: [vfat]}\n"),
        );
    on_guest::apply(vm, &documents)?;
    for round in 0..rounds(1) {
        vm.plug("usb-storage", stick())?;
        let found = on_guest::in_phase(vm, "fat", "running")?;
        let pid = found["pid"].as_i64().context("no pid")?;
        let line = vm.sh(&format!(
            "grep -q 'on the stick' /proc/{pid}/root/home/word && grep ' /home ' /proc/{pid}/mountinfo"
        ))?;
        ensure!(
            line.contains(" vfat ") && line.contains("ro,nosuid,nodev,noexec"),
            "round {round}: {line}"
        );
        vm.sh(&format!(
            "berth prove {}",
            found["name"].as_str().unwrap_or_default()
        ))?;
        vm.unplug("vfat")?;
        on_guest::gone(vm, "fat")?;
    }
    ensure!(!vm.sh("berth events")?.contains("started other"), "another label");
    on_guest::delete(vm, &documents)?;
    // QEMU lets the image go when the device is out.
    let begin = Instant::now();
    while let Err(e) = vm.qmp("blockdev-del", json!({"node-name": "vfat0"})) {
        ensure!(begin.elapsed() < LIMIT, "{e:#}");
        std::thread::sleep(std::time::Duration::from_millis(200));
    }
    Ok(())
}

fn vlan(vm: &mut Vm) -> Result<()> {
    vm.sh("modprobe 8021q")?;
    on_guest::agent(vm)?;
    let documents = workload("tagged", "shared")
        + &rule(
            "tagged",
            "  match: SUBSYSTEM==\"net\", ATTR{address}==\"52:54:00:be:27:77\", DRIVERS==\"virtio_net\"\n  \
             interface: {name: wan, vlan: 77, mtu: 1400, addresses: [10.77.0.2/24]}\n",
        );
    on_guest::apply(vm, &documents)?;
    for round in 0..rounds(1) {
        vm.plug(
            "virtio-net-pci",
            json!({"id": "trunk", "bus": "rp0", "netdev": "net1", "mac": "52:54:00:be:27:77"}),
        )?;
        let name = on_guest::running(vm, "tagged")?;
        let pid = on_guest::in_phase(vm, "tagged", "running")?["pid"]
            .as_i64()
            .context("no pid")?;
        let inside = vm.sh(&format!(
            "nsenter -t {pid} -n cat /proc/net/vlan/config; nsenter -t {pid} -n ip addr show wan"
        ))?;
        for word in ["wan", "| 77", "mtu 1400", "10.77.0.2/24"] {
            ensure!(inside.contains(word), "round {round}: no {word} in\n{inside}");
        }
        let proof = vm.sh(&format!("berth prove {name}"))?;
        ensure!(
            proof
                .lines()
                .any(|line| line.contains("wan") && line.contains("77")),
            "round {round}: {proof}"
        );
        // The trunk is outside, and up.
        let trunk = vm.sh("ip -o link | grep -i 52:54:00:be:27:77")?;
        ensure!(trunk.contains("UP"), "round {round}: {trunk}");
        vm.unplug("trunk")?;
        on_guest::gone(vm, "tagged")?;
    }
    on_guest::delete(vm, &documents)
}

/// The guest's own udevadm in the container, its /usr at /home.
const UDEVADM: &str = "/home/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2 --library-path /home/lib/x86_64-linux-gnu /home/bin/udevadm";

fn libudev(vm: &mut Vm) -> Result<()> {
    vm.sh("mkdir -p /etc/berth/launcher && echo 'mounts: [{path: /usr}]' >/etc/berth/launcher/policy.yaml")?;
    on_guest::agent(vm)?;
    let documents = workload("hears", "shared").replace(
        "  run: onDevice\n",
        "  run: onDevice\n  mounts: [{source: /usr, destination: /home, readOnly: true}]\n",
    ) + &rule(
        "hears",
        "  match: SUBSYSTEM==\"block\", ENV{DEVTYPE}==\"disk\", SUBSYSTEMS==\"usb\", ATTRS{serial}==\"HEARS1\"\n  \
         device: {access: r, links: true, uevents: true}\n",
    );
    on_guest::apply(vm, &documents)?;
    vm.plug(
        "usb-storage",
        json!({"id": "hears", "bus": "xhci.0", "port": "1", "drive": "disk0", "serial": "HEARS1"}),
    )?;
    let found = on_guest::in_phase(vm, "hears", "running")?;
    let (name, disk) = (
        found["name"].as_str().context("no name")?.to_owned(),
        found["device"].as_str().context("no device")?.to_owned(),
    );
    let known = vm.sh(&format!(
        "berth exec {name} {UDEVADM} info --query=property /sys/class/block/{disk}"
    ))?;
    for word in [
        "ID_SERIAL_SHORT=HEARS1",
        "DEVLINKS=/dev/disk/",
        "USEC_INITIALIZED=",
    ] {
        ensure!(known.contains(word), "no {word} in\n{known}");
    }
    let link = known
        .lines()
        .find_map(|line| line.strip_prefix("DEVLINKS="))
        .and_then(|links| links.split(' ').next())
        .context("no link")?;
    vm.sh(&format!("berth exec {name} /bin/ls {link}"))?;
    // Of what it hangs on there is a record too.
    ensure!(
        vm.sh(&format!("berth exec {name} /bin/ls /run/udev/data"))?
            .lines()
            .any(|line| line.starts_with("c189:")),
        "no record of the USB device"
    );
    vm.sh(&format!(
        "setsid berth exec {name} {UDEVADM} monitor --udev --property --subsystem-match=block/disk >/run/heard 2>&1 </dev/null & sleep 3"
    ))?;
    vm.until(
        "udevd's change is heard",
        &format!("udevadm trigger --action=change /sys/class/block/{disk}; sleep 1; grep -A30 'UDEV.*change' /run/heard | grep ID_SERIAL_SHORT=HEARS1"),
        LIMIT,
    )?;
    on_guest::delete(vm, &documents)?;
    on_guest::gone(vm, "hears")?;
    vm.unplug("hears")?;
    vm.sh("rm /run/heard /etc/berth/launcher/policy.yaml").map(drop)
}
