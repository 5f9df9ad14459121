//! The guests by name: one boot for each kernel command line, shared by its tests. A test joins a boot with
//! `guest.test(…)`; what is left plugged or applied by one that failed is taken away before the next.

use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex};

use anyhow::{Context, Result, ensure};
use berth_tests::agent::{binary, samples, workspace};
use berth_tests::skips;
use berth_tests::vm::needs::Machine;
use berth_tests::vm::{Config, Shape, Vm, broken_by_the_emulator, make_disk, out};
use libtest_mimic::Failed;

use crate::lanes::Trial;

/// Binaries above this many bytes carry symbols that no guest needs: their copy is stripped. What ships is below.
const SYMBOLS: u64 = 12 << 20;
/// Runs what the guest's own folder brings, installs berth and loads the sample images: what every guest but one begins with.
const INSTALL: &str = "[ ! -e /host/setup ] || sh /host/setup || exit 1; for p in berth berth-escape berth-fields berth-kill-at; do [ ! -e /host/$p ] || cp /host/$p /usr/bin/; done; mkdir -p /etc/berth && \
     for i in busybox worker; do berth image load /host/berth-sample-$i.tar; done && berth image ls && umount /host";

/// What a guest says of a test that failed; and the documents that it applied are taken away.
pub(crate) const LOG: &str = "dmesg; tail -n 200 /run/berth-agent.log 2>/dev/null; journalctl -q -n 200 -u 'berth*' 2>/dev/null; \
     if [ -e /tmp/documents.yaml ]; then berth delete /tmp/documents.yaml; fi";

/// What is printed of a guest that is given up for no fault of its own.
pub(crate) const BROKEN: &str =
    "its kernel met a breakpoint that the emulator had kept (Oops: int3); booted anew";

/// What a guest is.
#[derive(Clone)]
pub(crate) struct Spec {
    pub(crate) name: &'static str,
    pub(crate) arch: &'static str,
    pub(crate) kernel: &'static str,
    pub(crate) flavour: &'static str,
    pub(crate) isolcpus: &'static str,
    pub(crate) append: &'static str,
    pub(crate) qemu: &'static [&'static str],
    pub(crate) shape: Shape,
    /// The kernel has no 9p: what the guest sees as /host comes on a disk.
    pub(crate) host_disk: bool,
    /// A reset of the guest boots it again.
    pub(crate) reboot: bool,
    /// Puts more into the folder that the guest sees as /host until it is set up.
    pub(crate) share: fn(&Path) -> Result<()>,
    /// What is run in the guest before its tests: berth and its images, then what only this guest needs.
    pub(crate) setup: &'static str,
    pub(crate) more: &'static str,
}

/// PREEMPT_RT 6.12 with busybox init and udevd, nothing given away: the others differ from it by what they name.
pub(crate) const BASE: Spec = Spec {
    name: "base",
    arch: "amd64",
    kernel: "linux-image-6.12-rt-amd64",
    flavour: "busybox",
    isolcpus: "",
    append: "",
    qemu: &[],
    shape: Shape::Full,
    host_disk: false,
    reboot: false,
    share: |_| Ok(()),
    setup: INSTALL,
    more: "",
};

/// The same with two cores given away, and something behind every device that is plugged.
pub(crate) const RT_612: Spec = Spec {
    name: "rt-6.12",
    isolcpus: "2-3",
    qemu: crate::devices::BACKENDS,
    ..BASE
};

/// Nothing given away, busybox init and no udevd (who loads no driver either), a hardware watchdog.
pub(crate) const PLAIN: Spec = Spec {
    name: "rt-6.12-plain",
    append: "rig.udevd=off",
    qemu: &[
        "-device",
        "i6300esb",
        "-chardev",
        "null,id=adapter0",
        "-netdev",
        "user,id=net1,restrict=on",
    ],
    reboot: true,
    share: |share| {
        let escape = env!("CARGO_BIN_EXE_berth-escape");
        std::fs::copy(escape, share.join("berth-escape")).with_context(|| format!("copy {escape}"))?;
        let fields = env!("CARGO_BIN_EXE_berth-fields");
        std::fs::copy(fields, share.join("berth-fields")).with_context(|| format!("copy {fields}"))?;
        let kill_at = env!("CARGO_BIN_EXE_berth-kill-at");
        std::fs::copy(kill_at, share.join("berth-kill-at")).with_context(|| format!("copy {kill_at}"))?;
        Ok(())
    },
    // A reset must find on the disk what was written there.
    more: "modprobe -a xhci_pci ftdi_sio virtio_net && sync",
    ..BASE
};

/// A node as a cloud has it: no PREEMPT_RT, no USB; an IOMMU.
pub(crate) const CLOUD: Spec = Spec {
    name: "cloud-6.12",
    kernel: "linux-image-6.12-cloud-amd64",
    qemu: crate::vfio::BACKENDS,
    host_disk: true,
    share: crate::apparmor::share,
    ..BASE
};

/// systemd as PID 1; berth comes as a package.
pub(crate) const SYSTEMD: Spec = Spec {
    name: "systemd",
    flavour: "systemd",
    share: crate::systemd::packages,
    setup: "cp /host/*.deb /host/*.tar /root && umount /host",
    ..BASE
};

/// A node as meta-berth's image makes it: no udevd, images in a sealed read-only store.
pub(crate) const FIRMWARE: Spec = Spec {
    name: "firmware",
    append: "rig.udevd=off",
    qemu: crate::devices::BACKENDS,
    share: crate::firmware::amd64,
    setup: crate::firmware::SETUP,
    ..BASE
};

/// The same on arm64, with two cores given away.
pub(crate) const ARM64: Spec = Spec {
    name: "arm64",
    arch: "arm64",
    kernel: "linux-image-6.12-rt-arm64",
    isolcpus: "2-3",
    share: crate::firmware::arm64,
    ..FIRMWARE
};

/// PREEMPT_RT 6.1: partitions below partitions alone, no overlayfs with a parameter for each layer.
pub(crate) const RT_61: Spec = Spec {
    name: "rt-6.1",
    kernel: "linux-image-rt-amd64",
    isolcpus: "2-3",
    ..BASE
};

/// SELinux enforcing, with the policy of policies/selinux.
pub(crate) const SELINUX: Spec = Spec {
    name: "selinux",
    flavour: "busybox-selinux",
    isolcpus: "2-3",
    append: "security=selinux enforcing=1",
    ..BASE
};

/// A guest that boots when the first of its tests runs and ends with the last.
#[derive(Clone)]
pub(crate) struct Guest {
    spec: Arc<Spec>,
    slot: Arc<Mutex<Slot>>,
}

enum Slot {
    NotYet,
    Up(Box<Vm>),
    /// It could not be built or booted, or it does not answer any more: which test said why.
    Down(String),
}

impl Guest {
    pub(crate) fn new(spec: Spec) -> Guest {
        Guest {
            spec: Arc::new(spec),
            slot: Arc::new(Mutex::new(Slot::NotYet)),
        }
    }

    /// Its name.
    pub(crate) fn name(&self) -> &'static str {
        self.spec.name
    }

    /// Its architecture.
    pub(crate) fn arch(&self) -> &'static str {
        self.spec.arch
    }

    /// A test in this guest.
    pub(crate) fn test(&self, name: &str, body: impl Fn(&mut Vm) -> Result<()> + Send + 'static) -> Trial {
        let (guest, name) = (self.clone(), name.to_owned());
        Trial::test(format!("{}::{name}", self.spec.name), move || {
            let done = guest.attempt(&name, &body);
            if let Err(text) = &done {
                // At once: the summary comes after the last guest.
                eprintln!("{}::{name}: {text}", guest.spec.name);
            }
            done.map_err(Failed::from)
        })
    }

    /// Run a test. A failure keeps console and log, takes away what the test plugged and applied, and says where. A
    /// guest that does not come up or does not answer any more fails one test with the reason and the others with
    /// that test's name.
    pub(crate) fn attempt(&self, name: &str, body: impl Fn(&mut Vm) -> Result<()>) -> Result<(), String> {
        let down = || Slot::Down(format!("{}::{name}", self.spec.name));
        let mut slot = self
            .slot
            .lock()
            .map_err(|_| "an earlier test of this guest panicked")?;
        if let Slot::NotYet = *slot {
            match self.spec.boot() {
                Ok(vm) => *slot = Slot::Up(Box::new(vm)),
                Err(e) => {
                    *slot = down();
                    return Err(format!("{e:#}"));
                }
            };
        }
        let mut done = match &mut *slot {
            Slot::Up(vm) => body(vm),
            Slot::Down(test) => return Err(format!("not run: {test} says why")),
            Slot::NotYet => return Err("not booted".into()),
        };
        for _ in 0..2 {
            let broken = matches!(&*slot, Slot::Up(vm) if vm.broken_by_the_emulator());
            if done.is_ok() || !broken {
                break;
            }
            println!("guest {}: {BROKEN}; {name} is run again", self.spec.name);
            // Its folder goes before the next has it.
            *slot = down();
            *slot = Slot::Up(Box::new(self.spec.boot().map_err(|e| format!("{e:#}"))?));
            if let Slot::Up(vm) = &mut *slot {
                done = body(vm);
            }
        }
        let Slot::Up(vm) = &mut *slot else {
            return Err("not booted".into());
        };
        let log = match (&done, vm.lost()) {
            (Ok(()), _) => None,
            (Err(_), true) => Some("the guest does not answer any more".to_owned()),
            // Before the hardware is taken away: what happens then is not the test's.
            (Err(_), false) => Some(vm.run(LOG).map(|answer| answer.1).unwrap_or_default()),
        };
        let left = if vm.lost() { Ok(()) } else { vm.unplug_all() };
        let (Err(e), Some(log)) = (done, log) else {
            return left.map_err(|e| format!("what is left plugged: {e:#}"));
        };
        let kept = vm.keep().to_owned();
        // The text below has it too.
        let _ = std::fs::write(kept.join("guest.log"), &log);
        if vm.lost() {
            *slot = down();
        }
        let end: Vec<&str> = log.lines().collect();
        let end = end[end.len().saturating_sub(60)..].join("\n");
        Err(format!(
            "{e:#}\n--- in the guest:\n{end}\n--- console and log are kept in {}",
            kept.display()
        ))
    }

    /// The last test of a guest: its end.
    pub(crate) fn end(&self) -> Trial {
        let guest = self.clone();
        Trial::test(format!("{}::shuts down", self.spec.name), move || {
            let mut slot = guest
                .slot
                .lock()
                .map_err(|_| Failed::from("an earlier test of this guest panicked"))?;
            if let Slot::Up(vm) = &*slot {
                println!(
                    "guest {}: QEMU had {:.0} s of CPU",
                    guest.spec.name,
                    vm.cpu_seconds()
                );
            }
            *slot = Slot::NotYet;
            Ok(())
        })
    }
}

/// The binary that ships for this architecture: `BERTH` (`BERTH_ARM64`), else what `make build` (`make cross`) wrote.
pub(crate) fn shipped(arch: &str) -> std::path::PathBuf {
    match arch {
        "arm64" => std::env::var_os("BERTH_ARM64")
            .map_or_else(|| workspace().join("target/dist/berth-aarch64"), Into::into),
        _ => binary(),
    }
}

impl Spec {
    /// What this machine lacks to run it; told and noted as skipped.
    pub(crate) fn is_missing(&self, tests: usize) -> bool {
        let built = out()
            .join(format!("{}-{}-{}", self.arch, self.kernel, self.flavour))
            .join("stamp")
            .exists();
        let machine = Machine::read(self.arch, self.flavour, self.kernel, &out(), built);
        match machine.lacks(self.arch, self.flavour, self.kernel, 1536, built) {
            None => false,
            Some(line) => {
                let reason = format!("{line}; {tests} tests were not run");
                skips::skip(&format!("guest {}", self.name), &reason);
                true
            }
        }
    }

    /// How it is booted. What it sees as /host is the caller's.
    pub(crate) fn config(&self) -> Result<Config> {
        let mut config = Config::new(self.arch, self.kernel, self.flavour)?;
        config.isolcpus = self.isolcpus.into();
        config.append = self.append.into();
        config.qemu = self.qemu.iter().map(|s| (*s).to_string()).collect();
        config.shape = self.shape;
        config.reboot = self.reboot;
        Ok(config)
    }

    /// Binary, sample images and what else the guest is given, in `share`.
    pub(crate) fn fill(&self, share: &Path) -> Result<()> {
        let (binary, make) = (
            shipped(self.arch),
            if self.arch == "arm64" { "cross" } else { "build" },
        );
        let copy = share.join("berth");
        std::fs::copy(&binary, &copy)
            .with_context(|| format!("copy {}: run make {make}", binary.display()))?;
        if std::fs::metadata(&copy)?.len() > SYMBOLS {
            let done = Command::new("strip").arg(&copy).status().context("strip")?;
            ensure!(done.success(), "strip {}: {done}", copy.display());
        }
        let samples = match self.arch {
            "arm64" => workspace().join("target/samples-arm64"),
            _ => samples(),
        };
        for image in ["berth-sample-busybox.tar", "berth-sample-worker.tar"] {
            std::fs::copy(samples.join(image), share.join(image))
                .with_context(|| format!("copy {image} of {}: run make samples", samples.display()))?;
        }
        (self.share)(share)
    }

    fn boot(&self) -> Result<Vm> {
        let mut config = self.config()?;
        let share = tempfile::Builder::new().prefix("share.").tempdir_in(out())?;
        self.fill(share.path())?;
        config.share = share.path().into();
        if self.host_disk {
            let disk = share.path().with_extension("ext4");
            make_disk(&disk, share.path(), 96)?;
            config.host = Some(disk);
        }
        let version = std::fs::read_to_string(config.image.join("kernel-version"))?;
        let dir = out().join(format!("guest-{}-{}", self.name, std::process::id()));
        let booted = Vm::boot(&config, &dir).or_else(|e| {
            if !broken_by_the_emulator(&dir) {
                return Err(e);
            }
            println!("guest {}: {BROKEN}", self.name);
            std::fs::remove_dir_all(&dir)?;
            Vm::boot(&config, &dir)
        });
        let mut vm = booted.with_context(|| format!("boot {}; see {}", self.name, dir.display()))?;
        println!(
            "guest {}: kernel {} ready after {:.0} s",
            self.name,
            version.trim(),
            vm.boot_seconds
        );
        if let Some(disk) = &config.host {
            // QEMU has it open for as long as the guest runs.
            std::fs::remove_file(disk)?;
        }
        let set_up = vm.sh(&format!("{{ {}; }} || exit 1\n{}\n", self.setup, self.more));
        if set_up.is_err() {
            vm.keep();
        }
        set_up.with_context(|| format!("set up {}; see {}", self.name, dir.display()))?;
        Ok(vm)
    }
}
