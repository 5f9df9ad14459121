//! Every kind of hardware in one cycle, side by side: all are plugged at once, each starts its own container, which uses
//! its device; all are pulled out at once, and each container ends. Twenty cycles of each without udevd (`BERTH_ROUNDS`
//! times as many), two with it.
//!
//! Under emulation a process costs more than a launch, so nothing is asked for in a loop: one `berth events -f` writes
//! into a pipe, and the shell that reads it sleeps until the agent has something to say.

use std::time::Instant;

use anyhow::{Context, Result, ensure};
use berth_tests::vm::Vm;
use serde_json::{Value, json};

use crate::boots::Guest;
use crate::lanes::Trial;
use crate::on_guest;
use crate::plug::{rounds, rule};

/// One kind of hardware. `name` is its workload's, and QEMU's id of the device.
struct Kind {
    name: &'static str,
    driver: &'static str,
    properties: fn(port: usize) -> Value,
    /// Of its rule.
    matches: &'static str,
    interface: bool,
    /// What the worker's line says when it uses the device.
    sign: &'static str,
}

const OPENED: &str = "\"kind\":\"char\"";
const READ: &str = "\"bytes\":[1-9]";
const SENT: &str = "\"sent\":[1-9]";

/// Three stand in a USB port of their own and in another one each time; the hub has the fourth.
const KINDS: &[Kind] = &[
    Kind {
        name: "serial",
        driver: "usb-serial",
        properties: |port| json!({"bus": "xhci.0", "port": turn(port, 0), "chardev": "adapter0", "always-plugged": true, "serial": "CYCLE1"}),
        matches: r#"SUBSYSTEM=="tty", KERNEL=="ttyUSB*", SUBSYSTEMS=="usb", ATTRS{serial}=="CYCLE1""#,
        interface: false,
        sign: OPENED,
    },
    Kind {
        name: "storage",
        driver: "usb-storage",
        properties: |port| json!({"bus": "xhci.0", "port": turn(port, 1), "drive": "disk0", "serial": "CYCLE2"}),
        matches: r#"SUBSYSTEM=="block", ENV{DEVTYPE}=="disk", SUBSYSTEMS=="usb", ATTRS{serial}=="CYCLE2""#,
        interface: false,
        sign: READ,
    },
    Kind {
        name: "audio",
        driver: "usb-audio",
        properties: |port| json!({"bus": "xhci.0", "port": turn(port, 2), "audiodev": "sound0"}),
        matches: r#"SUBSYSTEM=="sound", KERNEL=="controlC*", SUBSYSTEMS=="usb", ATTRS{idVendor}=="46f4""#,
        interface: false,
        sign: OPENED,
    },
    Kind {
        name: "usbnet",
        driver: "usb-net",
        properties: |_| json!({"bus": "xhci.0", "port": "4.4", "netdev": "net0", "mac": "52:54:00:be:27:30"}),
        matches: r#"SUBSYSTEM=="net", SUBSYSTEMS=="usb""#,
        interface: true,
        sign: SENT,
    },
    Kind {
        name: "virtio",
        driver: "virtio-net-pci",
        properties: |_| json!({"bus": "rp0", "netdev": "net1", "mac": "52:54:00:be:27:31"}),
        matches: r#"SUBSYSTEM=="net", DRIVERS=="virtio_net""#,
        interface: true,
        sign: SENT,
    },
    Kind {
        name: "e1000e",
        driver: "e1000e",
        properties: |_| json!({"bus": "rp1", "netdev": "net2", "mac": "52:54:00:be:27:32"}),
        matches: r#"SUBSYSTEM=="net", DRIVERS=="e1000e", ATTRS{vendor}=="0x8086""#,
        interface: true,
        sign: SENT,
    },
    Kind {
        name: "nvme",
        driver: "nvme",
        properties: |_| json!({"bus": "rp2", "drive": "disk1", "serial": "CYCLENVME"}),
        matches: r#"SUBSYSTEM=="block", KERNEL=="nvme*n*", ENV{DEVTYPE}=="disk""#,
        interface: false,
        sign: READ,
    },
    // It is put into its reader: no device of QEMU's own.
    Kind {
        name: "card",
        driver: "",
        properties: |_| Value::Null,
        matches: r#"SUBSYSTEM=="block", KERNEL=="mmcblk*", ENV{DEVTYPE}=="disk", SUBSYSTEMS=="mmc", ATTRS{type}=="SD""#,
        interface: false,
        sign: READ,
    },
];

/// A port that is another one each round.
fn turn(round: usize, n: usize) -> String {
    ((round + n) % 3 + 1).to_string()
}

/// QEMU's id of a device, its driver, its properties.
type Part = (&'static str, &'static str, fn() -> Value);

/// The hub's three, which make one workload together.
const HUB: [Part; 3] = [
    (
        "hubport",
        "usb-serial",
        || json!({"bus": "xhci.0", "port": "4.1", "chardev": "adapter1", "always-plugged": true, "serial": "HUB1"}),
    ),
    (
        "hubdisk",
        "usb-storage",
        || json!({"bus": "xhci.0", "port": "4.2", "drive": "cycles0", "serial": "HUB2"}),
    ),
    (
        "hubpad",
        "usb-tablet",
        || json!({"bus": "xhci.0", "port": "4.3", "serial": "HUB3"}),
    ),
];

/// Without udevd a cycle is cheapest: nobody runs a program for each event.
pub(crate) fn twenty(guest: &Guest) -> Vec<Trial> {
    let name = "cycles: every kind of hardware, side by side, 20 times each";
    vec![guest.test(name, |vm| cycles(vm, rounds(20)))]
}

/// The same on udevd's events.
pub(crate) fn two(guest: &Guest) -> Vec<Trial> {
    let name = "cycles: every kind of hardware, side by side, on udevd's events";
    vec![guest.test(name, |vm| cycles(vm, 2))]
}

fn documents() -> String {
    let mut all = String::new();
    for kind in KINDS {
        let (args, given) = if kind.interface {
            ("\"--interface\", \"eth0\"", "  interface: {name: eth0}\n")
        } else {
            (
                "\"--device\", \"/dev/device\"",
                "  device: {path: /dev/device, access: rw}\n",
            )
        };
        all += &format!(
            "apiVersion: berth/v1\nkind: Workload\nmetadata: {{name: {0}}}\nspec:\n  image: berth-sample-worker:latest\n  \
             args: [{args}, \"--period\", \"500ms\"]\n  run: onDevice\n  profile: device-worker\n  cpus: shared\n---\n{1}---\n",
            kind.name,
            rule(kind.name, &format!("  match: |\n    {}\n{given}", kind.matches)),
        );
    }
    let device = |name: &str, matches: &str| {
        // Behind a hub, and by it they know that they belong together.
        let hub = r#"ATTRS{bDeviceClass}=="09", KERNELS=="*-*""#;
        format!("    - {{name: {name}, match: '{matches}, {hub}', device: {{path: /dev/{name}}}}}\n")
    };
    all + "apiVersion: berth/v1\nkind: Workload\nmetadata: {name: hub}\nspec:\n  image: berth-sample-busybox:latest\n  \
           command: [\"/bin/sleep\", \"100000\"]\n  run: onDevice\n  profile: device-worker\n  cpus: shared\n  \
           stop: {signal: SIGKILL, grace: 1s}\n---\n"
        + &rule(
            "hub",
            &format!(
                "  bundle:\n    by: $id\n    devices:\n{}{}{}",
                device("port", "SUBSYSTEM==\"tty\", KERNEL==\"ttyUSB*\""),
                device("disk", "SUBSYSTEM==\"block\", ENV{DEVTYPE}==\"disk\""),
                device(
                    "pad",
                    "SUBSYSTEM==\"usb\", ENV{DEVTYPE}==\"usb_device\", ATTR{serial}==\"HUB3\""
                ),
            ),
        )
}

/// Every driver, as without udevd nobody loads one; and the agent's events, read by nobody yet.
const BEGIN: &str = "modprobe usb_storage delay_use=0; modprobe -a xhci_pci sd_mod ftdi_sio snd_usb_audio cdc_ether virtio_net e1000e \
     nvme sdhci_pci mmc_block; rm -f /run/happened; mkfifo /run/happened && { sleep 100000 <>/run/happened & echo $! >/run/pids; } && \
     { berth events -f --since $(berth events | tail -n 1 | cut -d' ' -f2) >/run/happened 2>/dev/null & echo $! >>/run/pids; }";

const END: &str = "kill $(cat /run/pids); rm -f /run/happened /run/pids";

/// Waits in the guest until each of `names` had the event `word`, and for each line of `signs` (a workload and what its
/// log must have) until it is there. Says what else happened.
fn wait(word: &str, names: &str, signs: &str) -> String {
    format!(
        "exec 4</run/happened\nleft=' {names} '\n\
         while [ \"$left\" != ' ' ]; do\n  \
           read -r -t 120 time number event name text <&4 || {{ echo \"no {word} of:$left\"; berth ps; exit 1; }}\n  \
           case $event in\n    \
             {word}) n=${{name%%-*}}; left=\"${{left%% $n *}} ${{left#* $n }}\";;\n    \
             launch-failed|gave-up|refused|drift|monitor-lost|sweep-failed|overflow) echo \"$event $name $text\"; exit 1;;\n  \
           esac\ndone\n\
         cd /var/lib/berth/logs\n\
         while read -r n sign; do\n  i=0\n  \
           until grep -q \"$sign\" $n-*.log; do i=$((i+1)); [ $i -lt 300 ] || {{ echo \"$n: no $sign in\"; cat $n-*.log; exit 1; }}; usleep 100000; done\n\
         done <<'EOF'\n{signs}EOF\n"
    )
}

fn cycles(vm: &mut Vm, cycles: usize) -> Result<()> {
    on_guest::agent(vm)?;
    vm.qmp(
        "blockdev-add",
        json!({"driver": "null-co", "node-name": "cycles0", "size": 16_777_216, "read-zeroes": true}),
    )?;
    vm.sh(BEGIN)?;
    // The card is in the reader from the boot on.
    vm.qmp("blockdev-remove-medium", json!({"id": "card"}))?;
    vm.until(
        "the card is out",
        "! ls -d /sys/block/mmcblk* 2>/dev/null",
        crate::devices::LIMIT,
    )?;
    on_guest::apply(vm, &documents())?;
    vm.plug("usb-hub", json!({"id": "hub", "bus": "xhci.0", "port": "4"}))?;
    let mut names: Vec<&str> = KINDS.iter().map(|kind| kind.name).collect();
    names.push("hub");
    let names = names.join(" ");
    let signs: String = KINDS
        .iter()
        .map(|kind| format!("{} {}\n", kind.name, kind.sign))
        .collect();
    let begin = Instant::now();
    let cpu = vm.cpu_seconds();
    let mut spent = [0.0; 2];
    for round in 0..cycles {
        let one = Instant::now();
        let kinds = KINDS.iter().filter(|kind| !kind.driver.is_empty());
        let mut all: Vec<(&str, Value)> = Vec::new();
        for kind in kinds {
            let mut properties = (kind.properties)(round);
            properties["id"] = json!(kind.name);
            all.push((kind.driver, properties));
        }
        for (id, driver, properties) in HUB {
            let mut properties = properties();
            properties["id"] = json!(id);
            all.push((driver, properties));
        }
        vm.plug_all(all)?;
        vm.qmp(
            "blockdev-insert-medium",
            json!({"id": "card", "node-name": "card0"}),
        )?;
        vm.sh(&wait("started", &names, &signs))
            .with_context(|| format!("round {round}"))?;
        if round == 0 || round + 1 == cycles {
            inside(vm).with_context(|| format!("round {round}"))?;
        }
        spent[0] += one.elapsed().as_secs_f64();
        let one = Instant::now();
        let ids: Vec<&str> = KINDS
            .iter()
            .filter(|kind| !kind.driver.is_empty())
            .map(|kind| kind.name)
            .chain(HUB.map(|(id, ..)| id))
            .collect();
        vm.unplug_all_of(&ids)?;
        vm.qmp("blockdev-remove-medium", json!({"id": "card"}))?;
        let done = wait("exited", &names, "") + "rm -f *.log\n";
        vm.sh(&done).with_context(|| format!("round {round}"))?;
        spent[1] += one.elapsed().as_secs_f64();
    }
    println!(
        "guest: {cycles} cycles of {} kinds in {:.0} s, {:.0} s of them CPU: {:.1} s plugged, {:.1} s unplugged each",
        KINDS.len() + 1,
        begin.elapsed().as_secs_f64(),
        vm.cpu_seconds() - cpu,
        spent[0] / cycles as f64,
        spent[1] / cycles as f64
    );
    for name in names.split(' ') {
        on_guest::gone(vm, name)?;
    }
    vm.sh(END)?;
    vm.unplug("hub")?;
    vm.qmp(
        "blockdev-insert-medium",
        json!({"id": "card", "node-name": "card0"}),
    )?;
    on_guest::delete(vm, &documents())?;
    Ok(())
}

/// Each container has its own device and no other, proven; the bundle has three.
fn inside(vm: &mut Vm) -> Result<()> {
    let list = on_guest::ps(vm)?;
    for name in KINDS.iter().map(|kind| kind.name).chain(["hub"]) {
        let of: Vec<&Value> = list.iter().filter(|c| c["workload"] == name).collect();
        ensure!(of.len() == 1 && of[0]["phase"] == "running", "{name}: {of:?}");
    }
    let hub = list.iter().find(|c| c["workload"] == "hub").context("no hub")?;
    let pid = hub["pid"].as_i64().context("no pid")?;
    vm.sh(&format!(
        "cd /proc/{pid}/root/dev && test -c port && test -b disk && test -c pad && berth prove >/dev/null"
    ))
    .map(drop)
}
