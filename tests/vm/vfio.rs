//! A PCI function given whole to a container, behind QEMU's IOMMU, and given back to its driver.

use anyhow::{Context, Result, ensure};
use berth_tests::vm::Vm;
use serde_json::json;

use crate::boots::Guest;
use crate::devices::LIMIT;
use crate::lanes::Trial;
use crate::on_guest;

/// [`crate::devices::BACKENDS`] behind an IOMMU: this kernel uses one wherever there is one.
pub(crate) const BACKENDS: &[&str] = &[
    "-device",
    "intel-iommu",
    "-netdev",
    "user,id=net1,restrict=on",
    "-blockdev",
    "driver=null-co,node-name=disk1,size=16777216,read-zeroes=on",
];

pub(crate) fn tests(guest: &Guest) -> Vec<Trial> {
    vec![
        guest.test("vfio: a function is bound, used, given back to its driver", bound),
        guest.test(
            "vfio: a group of two functions is refused by name, given whole, or as a bundle",
            group,
        ),
        guest.test(
            "vfio: what the policy does not name, and a disk of the host's, are refused",
            refused,
        ),
    ]
}

const POLICY: &str = "mkdir -p /etc/berth/launcher && echo 'vfio: [\"*\"]' >/etc/berth/launcher/policy.yaml";
const FORGET: &str = "rm -f /etc/berth/launcher/policy.yaml";

fn documents(matches: &str) -> String {
    format!(
        "apiVersion: berth/v1\nkind: Workload\nmetadata: {{name: whole}}\nspec:\n  image: berth-sample-busybox:latest\n  \
         command: [\"/bin/sleep\", \"1000\"]\n  run: onDevice\n  profile: device-worker\n  cpus: shared\n  \
         stop: {{signal: SIGKILL, grace: 1s}}\n---\n\
         apiVersion: berth/v1\nkind: HotplugRule\nmetadata: {{name: whole}}\nspec:\n  workload: whole\n  \
         match: {matches}\n  vfio: {{}}\n  env: [{{name: FUNCTION, value: $kernel}}]\n"
    )
}

/// The driver of the only NVMe function.
const DRIVER: &str = "for d in /sys/bus/pci/devices/*; do case $(cat $d/class) in 0x010802) basename $(readlink $d/driver);; esac; done";

fn bound(vm: &mut Vm) -> Result<()> {
    vm.sh("modprobe -a vfio-pci vfio_iommu_type1")?;
    ensure!(
        vm.sh("ls /sys/kernel/iommu_groups")?.lines().count() > 1,
        "the guest has no IOMMU"
    );
    vm.sh(POLICY)?;
    on_guest::agent(vm)?;
    let documents = documents("SUBSYSTEM==\"pci\", ATTR{class}==\"0x010802\"");
    on_guest::apply(vm, &documents)?;
    for round in 0..crate::plug::rounds(1) {
        vm.plug(
            "nvme",
            json!({"id": "whole", "bus": "rp2", "drive": "disk1", "serial": "BERTHVFIO"}),
        )?;
        let name = on_guest::running(vm, "whole")?;
        ensure!(
            vm.sh(DRIVER)?.trim() == "vfio-pci",
            "round {round}: another driver"
        );
        // The group opens inside: the kernel admits it with its whole group bound.
        let opened = vm.sh(&format!(
            "berth exec {name} /bin/sh -c 'set -e; echo $FUNCTION; test -c /dev/vfio/vfio; : <>/dev/vfio/vfio; \
             for g in /dev/vfio/[0-9]*; do : <>$g; echo opened $g; done'"
        ))?;
        ensure!(opened.contains("opened /dev/vfio/"), "round {round}: {opened}");
        vm.sh(&format!("berth prove {name}"))?;
        if round == 0 {
            // A killed monitor gives nothing back: the launcher does.
            let pid = on_guest::in_phase(vm, "whole", "running")?["pid"]
                .as_i64()
                .context("no pid")?;
            vm.sh(&format!(
                "kill -9 $(sed -n 's/^PPid:[[:space:]]*//p' /proc/{pid}/status)"
            ))?;
            vm.until(
                "it runs again",
                "berth events | grep -q monitor-lost && berth ps | grep whole | grep running",
                LIMIT,
            )?;
            ensure!(
                vm.sh(DRIVER)?.trim() == "vfio-pci",
                "another driver after its monitor was killed"
            );
        }
        on_guest::delete(vm, &documents)?;
        on_guest::gone(vm, "whole")?;
        vm.until(
            "its driver has it again",
            &format!("test \"$({DRIVER})\" = nvme && ls /dev/nvme*n1"),
            LIMIT,
        )?;
        ensure!(vm.sh("ls /run/berth/vfio")?.trim().is_empty(), "a record is left");
        on_guest::apply(vm, &documents)?;
        on_guest::running(vm, "whole")?;
        vm.unplug("whole")?;
        on_guest::gone(vm, "whole")?;
    }
    on_guest::delete(vm, &documents)?;
    vm.sh(FORGET).map(drop)
}

/// Drivers of the two functions behind the port, by address.
const BOTH: &str = "for d in /sys/bus/pci/devices/*; do case $(cat $d/class) in 0x010802) p=${d%.*};; esac; done; \
     for d in $p.*; do basename $(readlink $d/driver); done; cd /sys/kernel/iommu_groups/$(basename $(readlink $p.0/iommu_group))/devices && ls";

/// A disk and a network card as two functions of one device without access control between them: one IOMMU group.
fn group(vm: &mut Vm) -> Result<()> {
    vm.sh("modprobe -a vfio-pci vfio_iommu_type1")?;
    vm.sh(POLICY)?;
    on_guest::agent(vm)?;
    // The guest looks at the device when its first function comes.
    vm.plug(
        "virtio-net-pci",
        json!({"id": "second", "bus": "rp3", "addr": "0x0.1", "multifunction": true, "netdev": "net1", "mac": "52:54:00:be:27:40"}),
    )?;
    vm.plug(
        "nvme",
        json!({"id": "first", "bus": "rp3", "addr": "0x0.0", "multifunction": true, "drive": "disk1", "serial": "GROUP"}),
    )?;
    vm.until(
        "both have their drivers",
        &format!("{BOTH} && ls /dev/nvme*n1"),
        LIMIT,
    )?;
    let there = vm.sh(BOTH)?;
    ensure!(
        there.starts_with("nvme\nvirtio-pci\n") && there.lines().count() == 4,
        "not two functions in one group:\n{there}"
    );
    let disk = "SUBSYSTEM==\"pci\", ATTR{class}==\"0x010802\"";
    let alone = documents(disk);
    on_guest::apply(vm, &alone)?;
    let failed = on_guest::in_phase(vm, "whole", "failed")?;
    let why = failed["reason"].to_string();
    ensure!(
        why.contains(".1 (virtio-pci)") && why.contains("others that drivers of the host have"),
        "{why}"
    );
    ensure!(vm.sh(BOTH)? == there, "something was bound");
    // Whole, and then each function by a rule of its own place in a bundle.
    let whole = alone.replace("vfio: {}", "vfio: {wholeGroup: true}");
    let (head, _) = alone.split_once("  match: ").context("no match")?;
    let member =
        |name: &str, matches: &str| format!("    - {{name: {name}, match: '{matches}', vfio: {{}}}}\n");
    let card = "SUBSYSTEM==\"pci\", ATTR{class}==\"0x020000\", KERNEL==\"*.1\"";
    let bundle = format!(
        "{head}  bundle:\n    devices:\n{}{}",
        member("disk", disk),
        member("card", card)
    );
    for documents in [whole, bundle] {
        on_guest::apply(vm, &documents)?;
        let name = on_guest::running(vm, "whole")?;
        let bound = vm.sh(BOTH)?;
        ensure!(bound.starts_with("vfio-pci\nvfio-pci\n"), "{documents}\n{bound}");
        let opened = vm.sh(&format!(
            "berth exec {name} /bin/sh -c 'for g in /dev/vfio/[0-9]*; do : <>$g && echo opened; done'"
        ))?;
        ensure!(opened.lines().count() == 1, "one group: {opened}");
        on_guest::delete(vm, &documents)?;
        on_guest::gone(vm, "whole")?;
        vm.until(
            "both have their drivers again",
            &format!("[ \"$({BOTH})\" = '{}' ]", there.trim_end()),
            LIMIT,
        )?;
    }
    vm.unplug("first")?;
    vm.unplug("second").ok();
    vm.sh(FORGET).map(drop)
}

fn refused(vm: &mut Vm) -> Result<()> {
    on_guest::agent(vm)?;
    let nvme = documents("SUBSYSTEM==\"pci\", ATTR{class}==\"0x010802\"");
    on_guest::apply(vm, &nvme)?;
    vm.plug(
        "nvme",
        json!({"id": "whole", "bus": "rp2", "drive": "disk1", "serial": "BERTHVFIO"}),
    )?;
    let failed = on_guest::in_phase(vm, "whole", "failed")?;
    ensure!(
        failed["reason"].to_string().contains("may not be asked for"),
        "{failed}"
    );
    ensure!(vm.sh(DRIVER)?.trim() == "nvme", "another driver");
    on_guest::delete(vm, &nvme)?;
    vm.unplug("whole")?;
    // The root disk's function.
    vm.sh(POLICY)?;
    let root = vm.sh("readlink -f /sys/dev/block/$(mountpoint -d /) | grep -o '[0-9a-f]*:[0-9a-f]*:[0-9a-f]*\\.[0-7]' | tail -n 1")?;
    let disk = documents(&format!("SUBSYSTEM==\"pci\", KERNEL==\"{}\"", root.trim()));
    on_guest::apply(vm, &disk)?;
    let failed = on_guest::in_phase(vm, "whole", "failed")?;
    ensure!(
        failed["reason"]
            .to_string()
            .contains("a disk that the host itself uses"),
        "{failed}"
    );
    on_guest::delete(vm, &disk)?;
    vm.sh(FORGET).map(drop)
}
