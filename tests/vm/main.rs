//! The guests. One boot for each kernel command line, shared by its tests; the guest runs the binary that ships.
//!
//! `RIG_OUT` moves the rig's folder (default `.rig`). A failing boot keeps console and log and says where.

mod journey;

use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::sync::{Arc, Mutex};

use anyhow::{Context, Result, ensure};
use berth_tests::agent::{binary, samples, workspace};
use berth_tests::skips;
use berth_tests::vm::{Config, Vm};
use libtest_mimic::{Arguments, Failed, Trial};

/// A guest that boots when the first of its tests runs.
#[derive(Clone)]
pub(crate) struct Guest {
    name: &'static str,
    meta: &'static str,
    isolcpus: &'static str,
    qemu: &'static [&'static str],
    vm: Arc<Mutex<Option<Vm>>>,
}

impl Guest {
    fn new(
        name: &'static str,
        meta: &'static str,
        isolcpus: &'static str,
        qemu: &'static [&'static str],
    ) -> Guest {
        Guest {
            name,
            meta,
            isolcpus,
            qemu,
            vm: Arc::default(),
        }
    }

    /// Run a test in the guest; a failure keeps console and log.
    fn test(&self, name: &str, body: fn(&mut Vm) -> Result<()>) -> Trial {
        let guest = self.clone();
        Trial::test(format!("{}::{name}", self.name), move || {
            let mut slot = guest
                .vm
                .lock()
                .map_err(|_| Failed::from("an earlier test of this guest panicked"))?;
            if slot.is_none() {
                *slot = Some(guest.boot().map_err(|e| Failed::from(format!("{e:#}")))?);
            }
            let vm = slot.as_mut().ok_or("no guest")?;
            body(vm).map_err(|e| {
                let log = vm
                    .run("tail -n 40 /run/berth-agent.log 2>/dev/null; dmesg | tail -n 15")
                    .map(|r| r.1);
                let dir = vm.keep().display().to_string();
                format!(
                    "{e:#}\n--- in the guest:\n{}\n--- console and log are kept in {dir}",
                    log.unwrap_or_default()
                )
                .into()
            })
        })
    }

    fn boot(&self) -> Result<Vm> {
        let out = rig();
        std::fs::create_dir_all(&out)?;
        let status = Command::new(workspace().join("tests/vm/image/build.sh"))
            .arg(&out)
            .args(["amd64", self.meta])
            .status()
            .context("tests/vm/image/build.sh")?;
        ensure!(
            status.success(),
            "the guest image {} could not be built; nothing of {} was run",
            self.meta,
            self.name
        );
        let share = tempfile::Builder::new().prefix("share.").tempdir_in(&out)?.keep();
        std::fs::copy(binary(), share.join("berth")).context("copy the built binary: run make build")?;
        for image in ["berth-sample-busybox.tar", "berth-sample-worker.tar"] {
            std::fs::copy(samples().join(image), share.join(image))
                .context("copy a sample: run make samples")?;
        }
        let image = out.join(format!("amd64-{}", self.meta));
        let version = std::fs::read_to_string(image.join("kernel-version"))?;
        let config = Config {
            image,
            arch: "amd64".into(),
            isolcpus: self.isolcpus.into(),
            append: String::new(),
            qemu: self.qemu.iter().map(|s| (*s).to_string()).collect(),
            memory: 1536,
            share,
        };
        let dir = out.join(format!("guest-{}-{}", self.name, std::process::id()));
        let mut vm =
            Vm::boot(&config, &dir).with_context(|| format!("boot {}; see {}", self.name, dir.display()))?;
        println!(
            "guest {}: kernel {} ready after {:.0} s",
            self.name,
            version.trim(),
            vm.boot_seconds
        );
        vm.sh(
            "mkdir -p /usr/bin && cp /host/berth /usr/bin/berth && mkdir -p /etc/berth && \
             for i in busybox worker; do berth image load /host/berth-sample-$i.tar; done && berth image ls",
        )?;
        Ok(vm)
    }
}

fn rig() -> PathBuf {
    std::env::var_os("RIG_OUT").map_or_else(|| workspace().join(".rig"), PathBuf::from)
}

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    arguments.test_threads = Some(1);
    let rt612 = Guest::new(
        "rt-6.12",
        "linux-image-6.12-rt-amd64",
        "2-3",
        &[
            "-chardev",
            "null,id=serial0",
            "-netdev",
            "user,id=net0,restrict=on",
        ],
    );
    let mut tests = Vec::new();
    let mut missing = String::new();
    for (program, package) in [
        ("qemu-system-x86_64", "qemu-system-x86"),
        ("cpio", "cpio"),
        ("mke2fs", "e2fsprogs"),
        ("zstd", "zstd"),
    ] {
        if Command::new(program).arg("--version").output().is_err() {
            missing = format!("{program} is missing (apt-get install {package})");
        }
    }
    if missing.is_empty() {
        tests.extend(journey::tests(&rt612));
    } else {
        skips::skip("vm", &missing);
    }
    let conclusion = libtest_mimic::run(&arguments, tests);
    // End the guests before the process does.
    if let Ok(mut slot) = rt612.vm.lock() {
        slot.take();
    }
    if let Err(wrong) = skips::check("vm", include_str!("../skips.txt")) {
        wrong.iter().for_each(|line| eprintln!("{line}"));
        return ExitCode::from(101);
    }
    conclusion.exit_code()
}
