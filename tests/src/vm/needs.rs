//! What a guest needs of the machine: programs, memory, disk. A machine that lacks something is told so in one line,
//! and what was not run for it.

use std::path::{Path, PathBuf};

use nix::sys::statvfs::statvfs;

/// Mebibytes that QEMU itself takes beside the guest's memory.
const OVERHEAD: u64 = 512;
/// Mebibytes that an image, its packages and what is unpacked on the way take.
const DISK: u64 = 1500;

/// What the machine has.
#[derive(Debug, Clone)]
pub struct Machine {
    /// Programs that are there, of those asked for.
    pub programs: Vec<&'static str>,
    /// Mebibytes of memory to be had.
    pub memory: u64,
    /// Mebibytes free where the images lie.
    pub disk: u64,
    /// Are there packages of this architecture in the archive's lists?
    pub packages: bool,
}

/// Programs and the Debian packages that have them, for a guest of this architecture and flavour.
fn programs(arch: &str, flavour: &str) -> Vec<(&'static str, &'static str)> {
    let mut all = vec![
        match arch {
            "arm64" => ("qemu-system-aarch64", "qemu-system-arm"),
            _ => ("qemu-system-x86_64", "qemu-system-x86"),
        },
        ("cpio", "cpio"),
        ("mke2fs", "e2fsprogs"),
        ("modprobe", "kmod"),
        ("zstd", "zstd"),
        ("python3", "python3-minimal"),
    ];
    if flavour.ends_with("selinux") {
        all.extend([("secilc", "secilc"), ("setfiles", "policycoreutils")]);
    }
    all
}

impl Machine {
    /// Reads what this machine has for a guest of this architecture, flavour and kernel; images lie below `out`. The
    /// archive is asked only where the image is not `built` and nothing that is looked at before is missing.
    pub fn read(arch: &str, flavour: &str, kernel: &str, out: &Path, built: bool) -> Machine {
        let found = |program: &str| {
            std::env::var_os("PATH").is_some_and(|path| {
                std::env::split_paths(&path).any(|dir: PathBuf| dir.join(program).exists())
            })
        };
        let needed = programs(arch, flavour).into_iter().map(|(program, _)| program);
        let (programs, missing): (Vec<&str>, Vec<&str>) = needed.partition(|program| found(program));
        let memory = std::fs::read_to_string("/proc/meminfo")
            .ok()
            .and_then(|text| {
                let line = text.lines().find(|line| line.starts_with("MemAvailable:"))?;
                line.split_whitespace().nth(1)?.parse::<u64>().ok()
            })
            .map_or(0, |kib| kib / 1024);
        // The nearest folder that is there: the rig's own may be made later.
        let there = out.ancestors().find(|dir| dir.exists()).unwrap_or(Path::new("/"));
        let disk = statvfs(there).map_or(0, |fs| (fs.fragment_size() * fs.blocks_available()) >> 20);
        let packages = built
            || !missing.is_empty()
            || disk < DISK
            || std::process::Command::new("apt-cache")
                .args(["show", "--no-all-versions", &format!("{kernel}:{arch}")])
                .stdin(std::process::Stdio::null())
                .output()
                .is_ok_and(|out| out.status.success() && !out.stdout.is_empty());
        Machine {
            programs,
            memory,
            disk,
            packages,
        }
    }

    /// The first thing that is missing for a guest of `memory` mebibytes; `built`: is its image there already?
    pub fn lacks(&self, arch: &str, flavour: &str, kernel: &str, memory: u64, built: bool) -> Option<String> {
        for (program, package) in programs(arch, flavour) {
            if !self.programs.contains(&program) {
                return Some(format!("{program} is missing (apt-get install {package})"));
            }
        }
        if self.memory < memory + OVERHEAD {
            return Some(format!(
                "{} MiB of memory are to be had, the guest needs {}",
                self.memory,
                memory + OVERHEAD
            ));
        }
        if !built && self.disk < DISK {
            return Some(format!(
                "{} MiB are free for the guest's image, it needs {DISK} (RIG_OUT names another folder)",
                self.disk
            ));
        }
        if !built && !self.packages {
            return Some(format!(
                "no package {kernel}:{arch} in the archive (dpkg --add-architecture {arch} && apt-get update)"
            ));
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KERNEL: &str = "linux-image-6.12-rt-arm64";

    fn whole() -> Machine {
        Machine {
            programs: programs("arm64", "busybox-selinux")
                .into_iter()
                .map(|(program, _)| program)
                .collect(),
            memory: 4096,
            disk: 4096,
            packages: true,
        }
    }

    fn lacks(machine: &Machine, built: bool) -> Option<String> {
        machine.lacks("arm64", "busybox", KERNEL, 1536, built)
    }

    #[test]
    fn what_is_missing_is_named() {
        assert_eq!(lacks(&whole(), false), None);
        let without = |program| {
            let mut machine = whole();
            machine.programs.retain(|there| *there != program);
            machine
        };
        for (machine, word) in [
            (
                without("qemu-system-aarch64"),
                "qemu-system-aarch64 is missing (apt-get install qemu-system-arm)",
            ),
            (without("mke2fs"), "apt-get install e2fsprogs"),
            (
                Machine {
                    memory: 2000,
                    ..whole()
                },
                "2000 MiB of memory are to be had, the guest needs 2048",
            ),
            (Machine { disk: 100, ..whole() }, "100 MiB are free"),
            (
                Machine {
                    packages: false,
                    ..whole()
                },
                "dpkg --add-architecture arm64",
            ),
        ] {
            let line = lacks(&machine, false).unwrap();
            assert!(line.contains(word), "{line}");
            assert!(!line.contains('\n'), "{line}");
        }
        // What only the building of an image needs is not asked for where one is built.
        assert_eq!(
            lacks(
                &Machine {
                    disk: 100,
                    packages: false,
                    ..whole()
                },
                true
            ),
            None
        );
    }

    #[test]
    fn an_empty_path_has_no_program() {
        let machine = Machine {
            programs: vec![],
            ..whole()
        };
        assert!(
            machine
                .lacks("amd64", "busybox", "linux-image-6.12-rt-amd64", 1, true)
                .unwrap()
                .starts_with("qemu-system-x86_64 is missing")
        );
    }
}
