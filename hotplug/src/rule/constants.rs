//! What `CONST{…}` compares: the architecture and the kind of virtualization, in systemd's words.
//!
//! Interface: uname(2); /run/systemd/container, the `container=` of process 1's environment, /.dockerenv and
//! /run/.containerenv; cpuid leaf 0x40000000 as /proc/cpuinfo tells of it (flag `hypervisor`), the DMI strings
//! below /sys/class/dmi/id, /sys/hypervisor/type and /proc/device-tree. Invariant: read once for a process;
//! neither changes while the machine runs. A container is told before the machine below it, as
//! systemd-detect-virt(1) does.

use std::fs;
use std::path::Path;
use std::sync::OnceLock;

/// The names that `CONST{…}` takes.
pub(super) const CONSTANTS: &[&str] = &["arch", "virt"];

/// The value of a constant.
pub(super) fn value(name: &str) -> &'static str {
    static VIRT: OnceLock<String> = OnceLock::new();
    match name {
        "arch" => arch(),
        _ => VIRT.get_or_init(|| virt(Path::new("/"))),
    }
}

/// systemd's word for the architecture.
fn arch() -> &'static str {
    match (std::env::consts::ARCH, cfg!(target_endian = "big")) {
        ("x86_64", _) => "x86-64",
        ("aarch64", false) => "arm64",
        ("aarch64", true) => "arm64-be",
        ("arm", false) => "arm",
        ("arm", true) => "arm-be",
        ("riscv64", _) => "riscv64",
        ("powerpc64", false) => "ppc64-le",
        ("powerpc64", true) => "ppc64",
        (other, _) => other,
    }
}

/// systemd's word for what this machine runs in, read below `root`.
fn virt(root: &Path) -> String {
    container(root)
        .or_else(|| machine(root))
        .unwrap_or_else(|| "none".to_owned())
}

fn text(root: &Path, path: &str) -> Option<String> {
    let bytes = fs::read(root.join(path)).ok()?;
    Some(
        String::from_utf8_lossy(&bytes)
            .trim_end_matches(['\n', '\0'])
            .to_owned(),
    )
}

fn container(root: &Path) -> Option<String> {
    const KNOWN: &[&str] = &[
        "systemd-nspawn",
        "lxc-libvirt",
        "lxc",
        "openvz",
        "docker",
        "podman",
        "rkt",
        "wsl",
        "proot",
        "pouch",
    ];
    if root.join("proc/vz").exists() && !root.join("proc/bc").exists() {
        return Some("openvz".to_owned());
    }
    let named = text(root, "run/systemd/container").or_else(|| {
        let environ = fs::read(root.join("proc/1/environ")).ok()?;
        let found = environ
            .split(|b| *b == 0)
            .find_map(|variable| variable.strip_prefix(b"container="))?;
        Some(String::from_utf8_lossy(found).into_owned())
    });
    if let Some(name) = named.filter(|name| !name.is_empty()) {
        let known = KNOWN.iter().find(|known| **known == name);
        return Some(known.map_or("container-other", |known| known).to_owned());
    }
    if root.join("run/.containerenv").exists() {
        return Some("podman".to_owned());
    }
    root.join(".dockerenv").exists().then(|| "docker".to_owned())
}

fn machine(root: &Path) -> Option<String> {
    // The start of a DMI string, and what it means.
    const VENDORS: &[(&str, &str)] = &[
        ("KVM", "kvm"),
        ("OpenStack", "kvm"),
        ("KubeVirt", "kvm"),
        ("Amazon EC2", "amazon"),
        ("QEMU", "qemu"),
        ("VMware", "vmware"),
        ("VMW", "vmware"),
        ("innotek GmbH", "oracle"),
        ("VirtualBox", "oracle"),
        ("Xen", "xen"),
        ("Bochs", "bochs"),
        ("Parallels", "parallels"),
        ("BHYVE", "bhyve"),
        ("Hyper-V", "microsoft"),
        ("Apple Virtualization", "apple"),
        ("Google Compute Engine", "google"),
    ];
    const FILES: &[&str] = &[
        "product_name",
        "sys_vendor",
        "board_vendor",
        "bios_vendor",
        "product_version",
    ];
    let dmi = FILES.iter().find_map(|file| {
        let value = text(root, &format!("sys/class/dmi/id/{file}"))?;
        VENDORS
            .iter()
            .find(|(start, _)| value.starts_with(start))
            .map(|(_, kind)| *kind)
    });
    // These are told by the firmware even where the hypervisor below calls itself KVM.
    if let Some(kind @ ("oracle" | "xen" | "amazon" | "parallels" | "google")) = dmi {
        return Some(kind.to_owned());
    }
    let below = text(root, "proc/cpuinfo").is_some_and(|cpuinfo| {
        cpuinfo
            .lines()
            .find(|line| line.starts_with("flags"))
            .is_some_and(|flags| flags.split_ascii_whitespace().any(|flag| flag == "hypervisor"))
    });
    if below && let Some(kind) = hypervisor() {
        return Some(kind.to_owned());
    }
    if let Some(kind) = dmi {
        return Some(kind.to_owned());
    }
    if text(root, "sys/hypervisor/type").as_deref() == Some("xen") {
        return Some("xen".to_owned());
    }
    match text(root, "proc/device-tree/hypervisor/compatible").as_deref() {
        Some("linux,kvm") => return Some("kvm".to_owned()),
        Some(found) if found.contains("xen") => return Some("xen".to_owned()),
        Some(found) if found.contains("vmware") => return Some("vmware".to_owned()),
        _ => {}
    }
    if root.join("proc/device-tree/fw-cfg").exists() {
        return Some("qemu".to_owned());
    }
    below.then(|| "vm-other".to_owned())
}

/// What the processor says of the hypervisor (cpuid leaf 0x40000000).
#[cfg(target_arch = "x86_64")]
fn hypervisor() -> Option<&'static str> {
    const NAMES: &[(&[u8; 12], &str)] = &[
        (b"XenVMMXenVMM", "xen"),
        (b"KVMKVMKVM\0\0\0", "kvm"),
        (b"Linux KVM Hv", "kvm"),
        (b"TCGTCGTCGTCG", "qemu"),
        (b"VMwareVMware", "vmware"),
        (b"Microsoft Hv", "microsoft"),
        (b"bhyve bhyve ", "bhyve"),
        (b"QNXQVMBSQG\0\0", "qnx"),
        (b"ACRNACRNACRN", "acrn"),
        (b"SRESRESRESRE", "sre"),
        (b"Apple VZ\0\0\0\0", "apple"),
    ];
    let leaf = core::arch::x86_64::__cpuid(0x4000_0000);
    let mut name = [0; 12];
    for (at, word) in [leaf.ebx, leaf.ecx, leaf.edx].into_iter().enumerate() {
        name[at * 4..at * 4 + 4].copy_from_slice(&word.to_le_bytes());
    }
    NAMES
        .iter()
        .find(|(known, _)| **known == name)
        .map(|(_, kind)| *kind)
}

#[cfg(not(target_arch = "x86_64"))]
fn hypervisor() -> Option<&'static str> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn root(files: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (path, value) in files {
            let path = dir.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, value).unwrap();
        }
        dir
    }

    #[test]
    fn a_container_is_told_before_the_machine() {
        let dmi = ("sys/class/dmi/id/sys_vendor", "QEMU\n");
        for (files, want) in [
            (&[][..], "none"),
            (&[dmi], "qemu"),
            (&[dmi, ("run/systemd/container", "lxc\n")], "lxc"),
            (&[("proc/1/environ", "A=1\0container=podman\0")], "podman"),
            (&[("proc/1/environ", "container=own\0")], "container-other"),
            (&[(".dockerenv", "")], "docker"),
            (&[("sys/hypervisor/type", "xen\n")], "xen"),
            (
                &[("sys/class/dmi/id/product_name", "Google Compute Engine\n")],
                "google",
            ),
        ] {
            assert_eq!(virt(root(files).path()), want, "{files:?}");
        }
    }
}
