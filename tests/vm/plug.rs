//! Devices that belong together, come back elsewhere, come twice, and come while nobody looks.

use anyhow::{Context, Result, ensure};
use berth_tests::vm::Vm;
use serde_json::{Value, json};

use crate::boots::Guest;
use crate::devices::LIMIT;
use crate::lanes::Trial;
use crate::on_guest;

pub(crate) fn tests(guest: &Guest) -> Vec<Trial> {
    vec![
        guest.test("plug: a hub with three devices is a bundle", hub),
        guest.test("plug: a second identical adapter is a second instance", twins),
        guest.test(
            "plug: replugged in another port it is the same instance",
            another_port,
        ),
        guest.test(
            "plug: kept over an unplug, given back to the running container",
            given_back,
        ),
        guest.test(
            "plug: the number is closed at once, while its container still stops",
            closed,
        ),
        guest.test("plug: while the agent is away", while_away),
        guest.test("plug: while the agent comes up", while_coming),
        guest.test(
            "plug: a stick is pulled out while its file system is mounted",
            stick,
        ),
        guest.test("plug: a hostile serial number is made safe or refused", hostile),
    ]
}

/// Rounds of a test that one CI run does `once` times.
pub(crate) fn rounds(once: usize) -> usize {
    let more = std::env::var("BERTH_ROUNDS")
        .ok()
        .and_then(|r| r.parse::<usize>().ok());
    once * more.unwrap_or(1)
}

pub(crate) fn workload(name: &str, cpus: &str) -> String {
    format!(
        "apiVersion: berth/v1\nkind: Workload\nmetadata: {{name: {name}}}\nspec:\n  image: berth-sample-busybox:latest\n  \
         command: [\"/bin/sleep\", \"100000\"]\n  run: onDevice\n  profile: device-worker\n  cpus: {cpus}\n  \
         stop: {{signal: SIGKILL, grace: 1s}}\n---\n"
    )
}

pub(crate) fn rule(name: &str, rest: &str) -> String {
    format!(
        "apiVersion: berth/v1\nkind: HotplugRule\nmetadata: {{name: {name}}}\nspec:\n  workload: {name}\n{rest}"
    )
}

const ADAPTER: &str = "  match: SUBSYSTEM==\"tty\", KERNEL==\"ttyUSB*\", SUBSYSTEMS==\"usb\", ATTRS{idVendor}==\"0403\"\n  device: {path: /dev/port}\n";

fn adapter(id: &str, chardev: &str, port: &str, serial: &str) -> Value {
    json!({"id": id, "bus": "xhci.0", "port": port, "chardev": chardev, "always-plugged": true, "serial": serial})
}

/// The one container of a workload that runs.
fn one(vm: &mut Vm, workload: &str) -> Result<Value> {
    on_guest::in_phase(vm, workload, "running")
}

fn hub(vm: &mut Vm) -> Result<()> {
    on_guest::agent(vm)?;
    let behind = r#"ATTRS{bDeviceClass}=="09", KERNELS=="*-*""#;
    let documents = workload("box", "shared")
        + &rule(
            "box",
            &format!(
                "  bundle:\n    by: $id\n    devices:\n\
                 \x20   - {{name: port, match: 'SUBSYSTEM==\"tty\", KERNEL==\"ttyUSB*\", {behind}', device: {{path: /dev/port}}}}\n\
                 \x20   - {{name: disk, match: 'SUBSYSTEM==\"block\", ENV{{DEVTYPE}}==\"disk\", {behind}', device: {{path: /dev/disk}}}}\n\
                 \x20   - {{name: sound, match: 'SUBSYSTEM==\"usb\", ENV{{DEVTYPE}}==\"usb_device\", ATTR{{idVendor}}==\"46f4\", ATTR{{idProduct}}==\"0002\", {behind}', device: {{path: /dev/sound}}}}\n"
            ),
        );
    on_guest::apply(vm, &documents)?;
    vm.plug("usb-hub", json!({"id": "hub", "bus": "xhci.0", "port": "4"}))?;
    vm.plug(
        "usb-audio",
        json!({"id": "sound", "bus": "xhci.0", "port": "4.3", "audiodev": "sound0"}),
    )?;
    for _ in 0..rounds(2) {
        vm.plug("usb-serial", adapter("port", "adapter0", "4.1", "HUB1"))?;
        let partial = on_guest::in_phase(vm, "box", "partial")?;
        ensure!(partial["reason"].to_string().contains("lacks"), "{partial}");
        vm.plug(
            "usb-storage",
            json!({"id": "disk", "bus": "xhci.0", "port": "4.2", "drive": "disk0"}),
        )?;
        let pid = one(vm, "box")?["pid"].as_i64().context("no pid")?;
        vm.sh(&format!(
            "cd /proc/{pid}/root/dev && test -c port && test -b disk && test -c sound"
        ))?;
        // A device is pulled out: what the three made together ends.
        vm.unplug("disk")?;
        on_guest::in_phase(vm, "box", "partial")?;
        vm.unplug("port")?;
        vm.until("the port has gone", "! ls /dev/ttyUSB* 2>/dev/null", LIMIT)?;
    }
    vm.unplug("sound")?;
    vm.unplug("hub")?;
    on_guest::gone(vm, "box")?;
    on_guest::delete(vm, &documents)
}

fn twins(vm: &mut Vm) -> Result<()> {
    on_guest::agent(vm)?;
    let documents = workload("twin", "shared") + &rule("twin", ADAPTER);
    on_guest::apply(vm, &documents)?;
    vm.plug("usb-serial", adapter("a", "adapter0", "1", "SAME"))?;
    one(vm, "twin")?;
    vm.plug("usb-serial", adapter("b", "adapter1", "2", "SAME"))?;
    vm.until("two run", "test $(berth ps | grep -c 'twin.*running') = 2", LIMIT)?;
    vm.unplug("a")?;
    vm.until("one runs", "test $(berth ps | grep -c 'twin') = 1", LIMIT)?;
    vm.unplug("b")?;
    on_guest::gone(vm, "twin")?;
    on_guest::delete(vm, &documents)
}

fn another_port(vm: &mut Vm) -> Result<()> {
    on_guest::agent(vm)?;
    let documents = workload("moved", "1") + &rule("moved", &format!("{ADAPTER}  identity: serial\n"));
    on_guest::apply(vm, &documents)?;
    let mut before: Option<(String, String)> = None;
    for port in ["1", "2", "3"].into_iter().cycle().take(rounds(3)) {
        vm.plug("usb-serial", adapter("a", "adapter0", port, "BERTHA1"))?;
        let found = one(vm, "moved")?;
        let is = (found["name"].to_string(), found["cpus"].to_string());
        ensure!(is.0.contains("bertha1"), "{found}");
        ensure!(
            before.as_ref().is_none_or(|before| *before == is),
            "{before:?}, then {is:?}"
        );
        before = Some(is);
        vm.unplug("a")?;
        on_guest::gone(vm, "moved")?;
    }
    on_guest::delete(vm, &documents)
}

fn given_back(vm: &mut Vm) -> Result<()> {
    on_guest::agent(vm)?;
    let documents = workload("kept", "shared")
        + &rule(
            "kept",
            &format!("{ADAPTER}  identity: serial\n  unplug: {{then: keep}}\n"),
        );
    on_guest::apply(vm, &documents)?;
    vm.plug("usb-serial", adapter("a", "adapter0", "1", "BERTHA2"))?;
    let found = one(vm, "kept")?;
    let (pid, name) = (
        found["pid"].as_i64().context("no pid")?,
        found["name"].as_str().unwrap_or_default().to_owned(),
    );
    for port in ["2", "3"] {
        // Opened before it goes: what is open stays open, and nothing can be opened any more.
        vm.unplug("a")?;
        vm.until(
            "the node inside has gone",
            &format!("test ! -e /proc/{pid}/root/dev/port"),
            LIMIT,
        )?;
        vm.plug("usb-serial", adapter("a", "adapter0", port, "BERTHA2"))?;
        vm.until(
            "the node inside is back",
            &format!("test -c /proc/{pid}/root/dev/port"),
            LIMIT,
        )?;
        // The program of the device filter lets it in: opening needs no modem line on a null back end.
        vm.until(
            "it opens inside",
            &format!("berth exec {name} /bin/sh -c ': <>/dev/port'"),
            LIMIT,
        )?;
        vm.sh(&format!("berth prove {name}"))?;
        ensure!(
            one(vm, "kept")?["pid"].as_i64() == Some(pid),
            "it was started anew"
        );
    }
    on_guest::delete(vm, &documents)?;
    vm.unplug("a")?;
    on_guest::gone(vm, "kept")
}

/// A container that does not obey its stop signal: what it was given is taken long before it ends. A process that is put
/// into its cgroup asks the kernel: what is allowed and has gone is "No such device", what is not allowed is not permitted.
fn closed(vm: &mut Vm) -> Result<()> {
    on_guest::agent(vm)?;
    let documents = workload("deaf", "shared")
        .replace(
            "\"/bin/sleep\", \"100000\"",
            "\"/bin/sh\", \"-c\", \"trap : TERM; while :; do sleep 1; done\"",
        )
        .replace("SIGKILL, grace: 1s", "SIGTERM, grace: 60s")
        + &rule("deaf", ADAPTER);
    on_guest::apply(vm, &documents)?;
    vm.plug("usb-serial", adapter("a", "adapter0", "1", "BERTHA6"))?;
    let pid = one(vm, "deaf")?["pid"].as_i64().context("no pid")?;
    let number = vm.sh(&format!("stat -c '%t %T' /proc/{pid}/root/dev/port"))?;
    ensure!(number.trim() == "bc 0", "{number}");
    let opens = format!(
        "rm -f /run/port; mknod /run/port c 188 0; g=$(sed -n 's/^0:://p' /proc/{pid}/cgroup); \
         sh -c \"echo \\$\\$ >/sys/fs/cgroup$g/cgroup.procs; : <>/run/port\" 2>&1; true"
    );
    let open = vm.sh(&opens)?;
    ensure!(!open.contains("not permitted"), "while it is there: {open}");
    vm.unplug("a")?;
    on_guest::in_phase(vm, "deaf", "stopping")?;
    vm.until(
        "the node inside has gone",
        &format!("test ! -e /proc/{pid}/root/dev/port"),
        LIMIT,
    )?;
    let shut = vm.sh(&opens)?;
    ensure!(shut.contains("not permitted"), "it can still be opened: {shut}");
    // It lives on; another number of the same driver was never open.
    vm.sh(&format!("kill -0 {pid} && kill -9 {pid}; rm /run/port"))?;
    on_guest::gone(vm, "deaf")?;
    on_guest::delete(vm, &documents)
}

/// The whole disk is a file system; what the container has of it is the mount alone.
fn stick(vm: &mut Vm) -> Result<()> {
    on_guest::agent(vm)?;
    let dir = tempfile::Builder::new()
        .prefix("stick.")
        .tempdir_in(berth_tests::vm::out())?;
    let (tree, image) = (dir.path().join("tree"), dir.path().join("image"));
    std::fs::create_dir(&tree)?;
    std::fs::write(tree.join("word"), "on the stick")?;
    berth_tests::vm::make_disk(&image, &tree, 8)?;
    let file = json!({"driver": "file", "filename": image});
    vm.qmp(
        "blockdev-add",
        json!({"driver": "raw", "node-name": "stick0", "file": file}),
    )?;
    let documents = workload("stick", "shared")
        + &rule(
            "stick",
            "  match: SUBSYSTEM==\"block\", ENV{DEVTYPE}==\"disk\", SUBSYSTEMS==\"usb\", ATTRS{serial}==\"STICK1\"\n  \
             filesystem: {path: /home, types: [ext4]}\n  identity: serial\n  unplug: {then: keep}\n",
        );
    on_guest::apply(vm, &documents)?;
    let mut before = None;
    for _ in 0..rounds(2) {
        vm.plug(
            "usb-storage",
            json!({"id": "stick", "bus": "xhci.0", "port": "1", "drive": "stick0", "serial": "STICK1"}),
        )?;
        let found = one(vm, "stick")?;
        let pid = found["pid"].as_i64().context("no pid")?;
        ensure!(before.is_none_or(|before| before == pid), "it was started anew");
        before = Some(pid);
        vm.until(
            "it is mounted inside",
            &format!("grep ' /home ' /proc/{pid}/mountinfo | grep 'ro,nosuid,nodev,noexec' && grep 'on the stick' /proc/{pid}/root/home/word"),
            LIMIT,
        )?;
        vm.sh(&format!(
            "berth prove {}",
            found["name"].as_str().unwrap_or_default()
        ))?;
        vm.unplug("stick")?;
        vm.until(
            "it is unmounted inside",
            &format!("! grep ' /home ' /proc/{pid}/mountinfo"),
            LIMIT,
        )?;
    }
    on_guest::delete(vm, &documents)?;
    on_guest::gone(vm, "stick")?;
    // QEMU lets the image go when the device is out.
    let begin = std::time::Instant::now();
    while let Err(e) = vm.qmp("blockdev-del", json!({"node-name": "stick0"})) {
        ensure!(begin.elapsed() < LIMIT, "{e:#}");
        std::thread::sleep(std::time::Duration::from_millis(200));
    }
    Ok(())
}

fn hostile(vm: &mut Vm) -> Result<()> {
    on_guest::agent(vm)?;
    let safe = workload("odd", "shared") + &rule("odd", &format!("{ADAPTER}  identity: serial\n"));
    let documents = safe.clone() + "  env: [{name: SERIAL, value: \"$attr{serial}\"}]\n";
    on_guest::apply(vm, &documents)?;
    vm.plug(
        "usb-serial",
        adapter("a", "adapter0", "1", "../../etc/x\n\u{1b}[31mred"),
    )?;
    let failed = on_guest::in_phase(vm, "odd", "failed")?;
    ensure!(failed["reason"].to_string().contains("env[0].value"), "{failed}");
    on_guest::apply(vm, &safe)?;
    let name = on_guest::running(vm, "odd")?;
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-_".contains(&b);
    ensure!(name.bytes().all(plain), "{name:?}");
    let shown = vm.sh("berth device ls; berth ps; berth events; cat /run/berth-agent.log")?;
    ensure!(!shown.contains("\u{1b}[31m"), "it reaches the terminal");
    vm.unplug("a")?;
    on_guest::gone(vm, "odd")?;
    on_guest::delete(vm, &safe)
}

fn while_away(vm: &mut Vm) -> Result<()> {
    on_guest::agent(vm)?;
    let documents = workload("away", "shared") + &rule("away", ADAPTER);
    on_guest::apply(vm, &documents)?;
    on_guest::kill_agent(vm)?;
    vm.plug("usb-serial", adapter("a", "adapter0", "1", "BERTHA3"))?;
    vm.until("the kernel has it", "ls /dev/ttyUSB0", LIMIT)?;
    on_guest::agent(vm)?;
    let name = on_guest::running(vm, "away")?;
    let starts = vm.sh(&format!("berth events | grep -c 'started.*{name}'; true"))?;
    ensure!(starts.trim() == "1", "{starts} starts");
    on_guest::kill_agent(vm)?;
    vm.unplug("a")?;
    vm.until(
        "the kernel has it no more",
        "! ls /dev/ttyUSB0 2>/dev/null",
        LIMIT,
    )?;
    on_guest::agent(vm)?;
    on_guest::gone(vm, "away")?;
    on_guest::delete(vm, &documents)
}

/// How often a container was started.
fn starts(vm: &mut Vm, name: &str) -> Result<usize> {
    let count = vm.sh(&format!("berth events | grep -c 'started.*{name}'; true"))?;
    Ok(count.trim().parse()?)
}

fn while_coming(vm: &mut Vm) -> Result<()> {
    on_guest::agent(vm)?;
    let documents = workload("coming", "shared") + &rule("coming", ADAPTER);
    on_guest::apply(vm, &documents)?;
    for round in 0..rounds(2) {
        on_guest::kill_agent(vm)?;
        // Sometimes it is enumerated, sometimes its event comes, sometimes both.
        vm.sh("setsid berth agent >>/run/berth-agent.log 2>&1 </dev/null & true")?;
        vm.plug("usb-serial", adapter("a", "adapter0", "1", "BERTHA4"))?;
        vm.until("the agent answers", "berth ps", LIMIT)?;
        let name = on_guest::running(vm, "coming")?;
        vm.sh("sleep 2")?;
        let count = starts(vm, &name)?;
        ensure!(count == 1, "round {round}: {count} starts");
        one(vm, "coming")?;
        vm.unplug("a")?;
        on_guest::gone(vm, "coming")?;
    }
    on_guest::delete(vm, &documents)
}

/// Before a reset of the node: a device is plugged and its rule stands in the configuration folder.
pub(crate) fn put_in_place(vm: &mut Vm) -> Result<()> {
    let documents = workload("place", "shared") + &rule("place", &format!("{ADAPTER}  identity: serial\n"));
    vm.sh(&format!(
        "cat >/etc/berth/place.yaml <<'EOF'\n{documents}\nEOF\nmodprobe -a xhci_pci ftdi_sio"
    ))?;
    vm.plug("usb-serial", adapter("a", "adapter0", "1", "BERTHA5"))
}

/// After it, without udevd: the device is there before the agent is, and its workload is started once.
pub(crate) fn still_in_place(vm: &mut Vm) -> Result<()> {
    vm.sh("modprobe -a xhci_pci ftdi_sio")?;
    vm.until("the kernel has it", "ls /dev/ttyUSB0", LIMIT)?;
    on_guest::agent(vm)?;
    let name = on_guest::running(vm, "place")?;
    vm.sh("sleep 3")?;
    let count = starts(vm, &name)?;
    ensure!(count == 1, "{count} starts after the reset");
    one(vm, "place")?;
    vm.sh("rm /etc/berth/place.yaml")?;
    vm.unplug("a")?;
    on_guest::gone(vm, "place")
}
