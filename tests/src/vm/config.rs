//! What a guest is booted with, and QEMU's command line of it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use super::needs::Machine;

/// CPUs and memory nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// 4 CPUs (2 cores of 2 threads) on 2 memory nodes, with USB and PCI ports to plug into.
    Full,
    /// One CPU, one memory node, nothing to plug into: what boots fastest.
    Small,
}

/// What a guest is booted with.
#[derive(Debug, Clone)]
pub struct Config {
    /// Folder made by tests/vm/image/build.sh.
    pub image: PathBuf,
    /// `amd64` or `arm64`.
    pub arch: String,
    /// CPUs given away on the command line (`2-3`); empty for none.
    pub isolcpus: String,
    /// More kernel arguments.
    pub append: String,
    /// More QEMU arguments.
    pub qemu: Vec<String>,
    /// CPUs, memory nodes, ports.
    pub shape: Shape,
    /// Mebibytes.
    pub memory: u32,
    /// Folder the guest sees as /host.
    pub share: PathBuf,
    /// Keep what the guest writes: a disk image of its own, changed in place; none: written to nowhere.
    pub disk: Option<PathBuf>,
    /// What the guest sees as /host comes on a disk (made by [`make_disk`]), not by 9p.
    pub host: Option<PathBuf>,
    /// A second disk, changed in place: the guest mounts it as /var/lib/berth.
    pub data: Option<PathBuf>,
    /// A reset of the guest boots it again; else it ends QEMU.
    pub reboot: bool,
}

impl Config {
    /// A guest of 4 CPUs (2 cores of 2 threads) on 2 memory nodes. Builds its image where that is not there.
    ///
    /// # Errors
    /// What the machine lacks, or why the image could not be built, and that nothing was run.
    pub fn new(arch: &str, kernel: &str, flavour: &str) -> Result<Config> {
        let (out, memory) = (out(), 1536);
        let image = out.join(format!("{arch}-{kernel}-{flavour}"));
        let built = image.join("stamp").exists();
        let machine = Machine::read(arch, flavour, kernel, &out, built);
        if let Some(line) = machine.lacks(arch, flavour, kernel, memory.into(), built) {
            bail!("{line}; the {arch} guest with {kernel} was not run");
        }
        fs::create_dir_all(&out).with_context(|| format!("create {}", out.display()))?;
        let status = Command::new(crate::agent::workspace().join("tests/vm/image/build.sh"))
            .arg(&out)
            .args([arch, kernel, flavour])
            .status()
            .context("tests/vm/image/build.sh")?;
        ensure!(
            status.success(),
            "the {arch} guest with {kernel} could not be built; nothing of it was run"
        );
        Ok(Config {
            image,
            arch: arch.into(),
            isolcpus: String::new(),
            append: String::new(),
            qemu: Vec::new(),
            shape: Shape::Full,
            memory,
            share: crate::agent::workspace(),
            disk: None,
            host: None,
            data: None,
            reboot: false,
        })
    }
}

/// The rig's folder: `RIG_OUT`, else .rig of the workspace.
pub fn out() -> PathBuf {
    std::env::var_os("RIG_OUT").map_or_else(|| crate::agent::workspace().join(".rig"), PathBuf::from)
}

/// Make a file system of `mebibytes` in the new file `image`, with what is in `folder`. With a journal: what is not
/// kept over a power cut is then the writer's fault.
///
/// # Errors
/// mke2fs's.
pub fn make_disk(image: &Path, folder: &Path, mebibytes: u32) -> Result<()> {
    let done = Command::new("mke2fs")
        .args([
            "-q",
            "-F",
            "-t",
            "ext4",
            "-m",
            "0",
            "-E",
            "lazy_itable_init=0,root_owner=0:0",
            "-d",
        ])
        .args([folder, image])
        .arg(format!("{mebibytes}M"))
        .output()
        .context("mke2fs")?;
    ensure!(
        done.status.success(),
        "mke2fs {}: {}",
        image.display(),
        String::from_utf8_lossy(&done.stderr)
    );
    Ok(())
}

/// QEMU's program and arguments; sockets, console and log stand in `dir`.
pub(super) fn command_line(config: &Config, dir: &Path) -> Result<(String, Vec<String>)> {
    let amd64 = match config.arch.as_str() {
        "amd64" => true,
        "arm64" => false,
        other => bail!("no guest for architecture {other}"),
    };
    let at = |name: &str| dir.join(name).display().to_string();
    let image = |name: &str| config.image.join(name).display().to_string();
    let mut kernel = format!(
        "console={} panic=-1 quiet {}",
        if amd64 { "ttyS0" } else { "ttyAMA0" },
        config.append
    );
    // An emulated, loaded host fails the kernel's boot-time comparison of PIT and TSC at random; and pciehp's
    // threaded interrupt never ends a removal on PREEMPT_RT 6.1, so arm64 polls.
    kernel += if amd64 {
        " no_timer_check"
    } else {
        " pciehp.pciehp_poll_mode=1 pciehp.pciehp_poll_time=1"
    };
    if !config.isolcpus.is_empty() {
        let cpus = &config.isolcpus;
        kernel += &format!(" isolcpus=managed_irq,domain,{cpus} nohz_full={cpus} rcu_nocbs={cpus}");
    }
    // snapshot: the built image is never written
    let drive = match &config.disk {
        Some(disk) => format!(
            "file={},if=none,id=root,format=raw,cache=writethrough",
            disk.display()
        ),
        None => format!(
            "file={},if=none,id=root,format=raw,snapshot=on",
            image("root.ext4")
        ),
    };
    let mut args: Vec<String> = Vec::new();
    let mut add = |line: &str| args.extend(line.split(' ').map(String::from));
    add(if amd64 {
        "-M q35 -cpu max"
    } else {
        "-M virt,gic-version=3 -cpu cortex-a72"
    });
    add("-accel tcg,thread=multi -display none -nodefaults");
    add(&format!("-m {}", config.memory));
    if !config.reboot {
        add("-no-reboot");
    }
    add("-device virtio-blk-pci,drive=root -device virtio-serial-pci");
    if config.shape == Shape::Full {
        add("-smp 4,sockets=1,cores=2,threads=2");
        for (node, cpus) in [(0, "0-1"), (1, "2-3")] {
            add(&format!(
                "-object memory-backend-ram,id=mem{node},size={}M",
                config.memory / 2
            ));
            add(&format!("-numa node,nodeid={node},memdev=mem{node},cpus={cpus}"));
        }
        for port in 0..6 {
            add(&format!(
                "-device pcie-root-port,id=rp{port},chassis={},bus=pcie.0",
                port + 1
            ));
        }
        add("-device qemu-xhci,id=xhci");
    }
    add("-device virtserialport,chardev=cmd,name=rig.cmd");
    add("-object rng-random,filename=/dev/urandom,id=rng -device virtio-rng-pci,rng=rng");
    for (name, disk, how) in [
        ("host", &config.host, "readonly=on"),
        ("data", &config.data, "cache=writeback"),
    ] {
        if let Some(disk) = disk {
            args.push("-device".into());
            args.push(format!("virtio-blk-pci,drive={name},serial=berth-{name}"));
            args.push("-drive".into());
            args.push(format!(
                "file={},if=none,id={name},format=raw,{how}",
                disk.display()
            ));
        }
    }
    if config.host.is_none() {
        args.push("-device".into());
        args.push("virtio-9p-pci,fsdev=host,mount_tag=host".into());
        args.push("-fsdev".into());
        args.push(format!(
            "local,id=host,path={},security_model=none,readonly=on",
            config.share.display()
        ));
    }
    for (flag, value) in [
        ("-kernel", image("vmlinuz")),
        ("-initrd", image("initrd.gz")),
        ("-append", kernel),
        ("-serial", format!("file:{}", at("console.log"))),
        ("-drive", drive),
        (
            "-chardev",
            format!("socket,id=cmd,path={},server=on,wait=off", at("cmd")),
        ),
        ("-qmp", format!("unix:{},server=on,wait=off", at("qmp"))),
    ] {
        args.push(flag.into());
        args.push(value);
    }
    args.extend(config.qemu.iter().cloned());
    let program = if amd64 {
        "qemu-system-x86_64"
    } else {
        "qemu-system-aarch64"
    };
    Ok((program.into(), args))
}
