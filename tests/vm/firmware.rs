//! A node as meta-berth's image makes it, without bitbake: busybox init, no udevd, the layer's init script, and images in a
//! read-only store that was sealed on the machine that built it. Nothing was loaded by hand.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use berth_tests::agent::{binary, samples, workspace};
use berth_tests::vm::Vm;

use crate::boots::Guest;
use crate::devices::{self, LIMIT};
use crate::lanes::Trial;

/// Sets the node up as berth_0.1.0.bb and berth-preloaded.bbclass lay it out.
pub(crate) const SETUP: &str = "cp /host/berth /usr/bin/berth && mkdir -p /etc/berth /etc/init.d /usr/share/berth/images && \
     cp /host/berth.init /etc/init.d/berth && cp /host/images.squashfs /root && cp /host/images.seal /usr/share/berth/ && \
     cp /host/node.yaml /etc/berth/ && umount /host && modprobe -a loop squashfs xhci_pci ftdi_sio virtio_net && \
     mount -t squashfs -o loop,ro,nodev,nosuid /root/images.squashfs /usr/share/berth/images";

/// What the guest's folder holds more, for amd64.
pub(crate) fn amd64(share: &Path) -> Result<()> {
    store(share, "amd64", &samples())
}

/// For arm64: the store is made by the build machine's own binary.
pub(crate) fn arm64(share: &Path) -> Result<()> {
    store(share, "arm64", &workspace().join("target/samples-arm64"))
}

fn store(share: &Path, architecture: &str, archives: &Path) -> Result<()> {
    let work = tempfile::tempdir()?;
    let berth = |args: &[&str]| -> Result<String> {
        let mut command = Command::new(binary());
        let output = command.arg("--state-dir").arg(work.path()).args(args).output()?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(output.status.success(), "berth {}: {said}", args.join(" "));
        Ok(String::from_utf8(output.stdout)?)
    };
    for name in ["berth-sample-busybox", "berth-sample-worker"] {
        let archive = archives.join(format!("{name}.tar")).display().to_string();
        berth(&["image", "load", "--architecture", architecture, &archive])?;
    }
    std::fs::write(share.join("images.seal"), berth(&["image", "seal"])?)?;
    let made = Command::new("mksquashfs")
        .arg(work.path().join("images"))
        .arg(share.join("images.squashfs"))
        .args(["-quiet", "-no-progress", "-comp", "gzip"])
        .output()
        .context("mksquashfs (apt-get install squashfs-tools)")?;
    ensure!(
        made.status.success(),
        "mksquashfs: {}",
        String::from_utf8_lossy(&made.stderr)
    );
    let files = workspace().join("yocto/meta-berth/recipes-berth/berth/files");
    for name in ["berth.init", "node.yaml"] {
        std::fs::copy(files.join(name), share.join(name))
            .with_context(|| files.join(name).display().to_string())?;
    }
    Ok(())
}

/// In order: each finds what the one before it left.
pub(crate) fn tests(guest: &Guest) -> Vec<Trial> {
    let mut tests = vec![
        guest.test(
            "the init script starts launcher and agent, and they are kept",
            init,
        ),
        guest.test(
            "the images are the firmware's, on a file system nobody can write",
            images,
        ),
    ];
    if guest.arch() == "arm64" {
        tests.push(guest.test("the guest is what it should be", arm64_node));
        tests.push(guest.test("fifo on a whole core", crate::cloud::fifo));
        tests.extend(crate::profiles::tests(guest));
    }
    if guest.arch() == "arm64" {
        tests.extend(devices::some(guest, &["usb-serial", "virtio-net"]));
    } else {
        tests.extend(crate::cycles::twenty(guest));
    }
    tests.push(guest.test("the script stops both and leaves the workload alone", stop));
    tests.push(guest.test("a store that was tampered with gives nothing", tampered));
    tests
}

fn init(vm: &mut Vm) -> Result<()> {
    let facts =
        vm.sh("tr '\\0' ' ' </proc/1/cmdline; pidof systemd-udevd systemd; ls /run/udev 2>/dev/null; true")?;
    ensure!(
        facts.contains("init") && !facts.contains("systemd") && facts.lines().count() == 1,
        "{facts}"
    );
    ensure!(
        vm.run("/etc/init.d/berth status")?.0 == 3,
        "it runs before it was started"
    );
    vm.sh("/etc/init.d/berth start")?;
    vm.until("the agent answers", "berth ps", LIMIT)?;
    vm.sh("/etc/init.d/berth status")?;
    let log = vm.sh("cat /var/log/berth-agent.log")?;
    ensure!(log.contains("device events from kernel"), "{log}");
    // Either that dies is there again, as another process.
    for name in ["launcher", "agent"] {
        let pid = |vm: &mut Vm| vm.sh(&format!("cat /run/berth/{name}.child"));
        let before = pid(vm)?;
        vm.sh(&format!("kill -9 {}", before.trim()))?;
        vm.until(
            &format!("the {name} is started again"),
            &format!(
                "now=$(cat /run/berth/{name}.child) && [ \"$now\" != {} ] && kill -0 \"$now\"",
                before.trim()
            ),
            LIMIT,
        )?;
    }
    vm.until("the agent answers again", "berth ps", LIMIT).map(drop)
}

/// PREEMPT_RT on arm64 with two cores given away, and the cross-built binary. Unplugging a PCI card is polled there (see
/// tests/src/vm/config.rs).
fn arm64_node(vm: &mut Vm) -> Result<()> {
    let facts = vm.sh("uname -rm; cat /sys/kernel/realtime /sys/devices/system/cpu/isolated")?;
    for word in ["aarch64", "-rt-", "2-3"] {
        ensure!(facts.contains(word), "no {word}: {facts}");
    }
    let version = vm.sh("berth --version; berth image ls")?;
    ensure!(version.contains("arm64"), "no arm64 image:\n{version}");
    Ok(())
}

fn images(vm: &mut Vm) -> Result<()> {
    let listed = vm.sh("berth image ls -o json")?;
    let listed: serde_json::Value = serde_json::from_str(&listed).context(listed)?;
    let all = listed.as_array().context("no list")?;
    ensure!(
        all.len() == 2
            && all
                .iter()
                .all(|one| one["preloaded"] == true && one["problem"].is_null()),
        "{listed}"
    );
    let (code, said) = vm.run("touch /usr/share/berth/images/x")?;
    ensure!(code != 0 && said.contains("Read-only"), "{said}");
    Ok(())
}

const COUNTER: &str = "apiVersion: berth/v1\nkind: Workload\nmetadata: {name: counter}\nspec:\n  image: berth-sample-busybox:latest\n  \
     command: [\"/bin/sh\", \"-c\", \"while :; do sleep 1; done\"]\n  cpus: shared\n";

fn stop(vm: &mut Vm) -> Result<()> {
    crate::on_guest::apply(vm, COUNTER)?;
    let name = crate::on_guest::running(vm, "counter")?;
    let pid = |vm: &mut Vm| {
        vm.sh(&format!("berth inspect {name} -o json | tr ',' '\\n' | sed -n 's/.*\"pid\": *\\([0-9]*\\).*/\\1/p' | head -n 1"))
    };
    let before = pid(vm)?;
    ensure!(!before.trim().is_empty(), "no pid of {name}");
    vm.sh("/etc/init.d/berth stop")?;
    ensure!(vm.run("/etc/init.d/berth status")?.0 == 3, "it still runs");
    vm.sh(&format!("kill -0 {}", before.trim()))?;
    vm.sh("/etc/init.d/berth start")?;
    vm.until("the agent answers", "berth ps", LIMIT)?;
    crate::on_guest::running(vm, "counter")?;
    let after = pid(vm)?;
    ensure!(before == after, "the container is another: {before} {after}");
    crate::on_guest::delete(vm, COUNTER)?;
    crate::on_guest::gone(vm, "counter")
}

/// The seal of another store: in this boot the image was hashed already, so what was verified is forgotten first, as
/// a boot does.
fn tampered(vm: &mut Vm) -> Result<()> {
    vm.sh(
        "cp /usr/share/berth/images.seal /root/seal && rm -f /run/berth/verified/* && \
         sed -i 's/^sha256:..../sha256:0000/' /usr/share/berth/images.seal",
    )?;
    crate::on_guest::apply(vm, COUNTER)?;
    vm.until(
        "the refusal says what is wrong",
        "berth inspect counter | grep -q 'it was altered: its seal is'",
        LIMIT,
    )?;
    let (code, listed) = vm.run("berth image ls")?;
    ensure!(code == 0 && listed.contains("its seal is"), "{listed}");
    crate::on_guest::delete(vm, COUNTER)?;
    vm.sh("mv /root/seal /usr/share/berth/images.seal; /etc/init.d/berth stop")
        .map(drop)
}

/// The kernel options of meta-berth against the guests' own kernels: every guest that was built has its config.
pub(crate) fn options() -> Vec<Trial> {
    vec![Trial::test(
        "firmware::every kernel option of meta-berth is spelt as the kernels spell it",
        || spelling().map_err(|e| format!("{e:#}").into()),
    )]
}

fn spelling() -> Result<()> {
    let mut known = std::collections::BTreeSet::new();
    let mut kernels = 0;
    for entry in std::fs::read_dir(berth_tests::vm::out())?.flatten() {
        let Ok(text) = std::fs::read_to_string(entry.path().join("config")) else {
            continue;
        };
        kernels += 1;
        known.extend(text.lines().filter_map(option).map(str::to_owned));
    }
    ensure!(kernels > 0, "no guest was built: no kernel to compare with");
    let folder = workspace().join("yocto/meta-berth/recipes-kernel/linux/files/berth");
    let mut asked = 0;
    let mut unknown = Vec::new();
    for entry in std::fs::read_dir(&folder)?.flatten() {
        if entry.path().extension().is_none_or(|e| e != "cfg") {
            continue;
        }
        for name in std::fs::read_to_string(entry.path())?.lines().filter_map(option) {
            asked += 1;
            if !known.contains(name) {
                unknown.push(format!("{}: CONFIG_{name}", entry.file_name().display()));
            }
        }
    }
    ensure!(
        asked > 80,
        "only {asked} options were read in {}",
        folder.display()
    );
    ensure!(unknown.is_empty(), "none of {kernels} kernels knows {unknown:?}");
    Ok(())
}

/// The option that a line of a kernel configuration is about.
fn option(line: &str) -> Option<&str> {
    let set = || Some(line.strip_prefix("CONFIG_")?.split_once('=')?.0);
    set().or_else(|| line.strip_prefix("# CONFIG_")?.strip_suffix(" is not set"))
}
