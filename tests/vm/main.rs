//! The guests. One boot for each kernel command line, shared by its tests; the guest runs the binary that ships.
//!
//! `RIG_OUT` moves the rig's folder (default `.rig`). A failing test keeps console and log and says where.

mod devices;
mod journey;
mod on_guest;
mod realtime;
mod selinux;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::{Arc, Mutex};

use anyhow::{Context, Result};
use berth_tests::agent::{binary, samples};
use berth_tests::skips;
use berth_tests::vm::{Config, Vm, out};
use libtest_mimic::{Arguments, Failed, Trial};

/// What a guest is.
pub(crate) struct Spec {
    pub(crate) name: &'static str,
    pub(crate) arch: &'static str,
    pub(crate) kernel: &'static str,
    pub(crate) flavour: &'static str,
    pub(crate) isolcpus: &'static str,
    pub(crate) append: &'static str,
    pub(crate) qemu: &'static [&'static str],
}

/// A guest that boots when the first of its tests runs and ends with the last.
#[derive(Clone)]
pub(crate) struct Guest {
    spec: Arc<Spec>,
    vm: Arc<Mutex<Option<Vm>>>,
}

impl Guest {
    fn new(spec: Spec) -> Guest {
        Guest {
            spec: Arc::new(spec),
            vm: Arc::default(),
        }
    }

    /// A test in this guest; a failure keeps console and log.
    pub(crate) fn test(&self, name: &str, body: impl Fn(&mut Vm) -> Result<()> + Send + 'static) -> Trial {
        let guest = self.clone();
        Trial::test(format!("{}::{name}", self.spec.name), move || {
            let mut slot = guest
                .vm
                .lock()
                .map_err(|_| Failed::from("an earlier test of this guest panicked"))?;
            if slot.is_none() {
                *slot = Some(guest.spec.boot().map_err(|e| Failed::from(format!("{e:#}")))?);
            }
            let vm = slot.as_mut().ok_or("no guest")?;
            body(vm).map_err(|e| {
                let log = vm
                    .run("tail -n 40 /run/berth-agent.log 2>/dev/null; dmesg | tail -n 15")
                    .map(|r| r.1);
                let dir = vm.keep().display().to_string();
                let log = log.unwrap_or_default();
                format!("{e:#}\n--- in the guest:\n{log}\n--- console and log are kept in {dir}").into()
            })
        })
    }

    /// The last test of a guest: its end.
    fn end(&self) -> Trial {
        let guest = self.clone();
        Trial::test(format!("{}::shuts down", self.spec.name), move || {
            guest
                .vm
                .lock()
                .map_err(|_| Failed::from("an earlier test of this guest panicked"))?
                .take();
            Ok(())
        })
    }
}

impl Spec {
    fn boot(&self) -> Result<Vm> {
        let mut config = Config::new(self.arch, self.kernel, self.flavour)?;
        let share = tempfile::Builder::new().prefix("share.").tempdir_in(out())?;
        std::fs::copy(binary(), share.path().join("berth"))
            .context("copy the built binary: run make build")?;
        for image in ["berth-sample-busybox.tar", "berth-sample-worker.tar"] {
            std::fs::copy(samples().join(image), share.path().join(image))
                .context("copy a sample: run make samples")?;
        }
        let version = std::fs::read_to_string(config.image.join("kernel-version"))?;
        config.isolcpus = self.isolcpus.into();
        config.append = self.append.into();
        config.qemu = self.qemu.iter().map(|s| (*s).to_string()).collect();
        config.share = share.path().into();
        let dir = out().join(format!("guest-{}-{}", self.name, std::process::id()));
        let mut vm =
            Vm::boot(&config, &dir).with_context(|| format!("boot {}; see {}", self.name, dir.display()))?;
        println!(
            "guest {}: kernel {} ready after {:.0} s",
            self.name,
            version.trim(),
            vm.boot_seconds
        );
        vm.sh(
            "cp /host/berth /usr/bin/berth && mkdir -p /etc/berth && \
             for i in busybox worker; do berth image load /host/berth-sample-$i.tar; done && berth image ls && umount /host",
        )?;
        Ok(vm)
    }
}

fn missing() -> Option<String> {
    for (program, package) in [
        ("qemu-system-x86_64", "qemu-system-x86"),
        ("cpio", "cpio"),
        ("mke2fs", "e2fsprogs"),
        ("zstd", "zstd"),
        ("secilc", "secilc"),
        ("setfiles", "policycoreutils"),
    ] {
        let found = std::env::var_os("PATH")
            .is_some_and(|path| std::env::split_paths(&path).any(|dir: PathBuf| dir.join(program).exists()));
        if !found {
            return Some(format!(
                "{program} is missing (apt-get install {package}); no guest was run"
            ));
        }
    }
    None
}

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    arguments.test_threads = Some(1);
    let mut tests = Vec::new();
    match missing() {
        Some(reason) => skips::skip("guests", &reason),
        None => {
            let rt612 = Guest::new(Spec {
                name: "rt-6.12",
                arch: "amd64",
                kernel: "linux-image-6.12-rt-amd64",
                flavour: "busybox",
                isolcpus: "2-3",
                append: "",
                qemu: devices::BACKENDS,
            });
            tests.extend(journey::tests(&rt612));
            tests.extend(devices::tests(&rt612));
            tests.push(rt612.end());
            let plain = Guest::new(Spec {
                name: "rt-6.12-plain",
                arch: "amd64",
                kernel: "linux-image-6.12-rt-amd64",
                flavour: "busybox",
                isolcpus: "",
                append: "",
                qemu: &[],
            });
            tests.extend(realtime::partitions(&plain));
            tests.push(plain.end());
            let rt61 = Guest::new(Spec {
                name: "rt-6.1",
                arch: "amd64",
                kernel: "linux-image-rt-amd64",
                flavour: "busybox",
                isolcpus: "2-3",
                append: "",
                qemu: &[],
            });
            tests.extend(realtime::before_remote(&rt61));
            tests.push(rt61.end());
            let selinux = Guest::new(Spec {
                name: "selinux",
                arch: "amd64",
                kernel: "linux-image-6.12-rt-amd64",
                flavour: "busybox-selinux",
                isolcpus: "2-3",
                append: "security=selinux enforcing=1",
                qemu: &[],
            });
            tests.extend(selinux::tests(&selinux));
            tests.push(selinux.end());
        }
    }
    let listing = arguments.list;
    let conclusion = libtest_mimic::run(&arguments, tests);
    // What was skipped is a failure unless the committed list has it.
    if !listing && let Err(wrong) = skips::check("vm", include_str!("../skips.txt")) {
        wrong.iter().for_each(|line| eprintln!("{line}"));
        return ExitCode::from(101);
    }
    conclusion.exit_code()
}
