//! One QEMU guest: boot it, run scripts in it, plug and unplug hardware over QMP.
//!
//! Emulation (TCG) is the rule: nothing here needs KVM, and latency in a guest means nothing. Nothing asserts
//! wall-clock times; the limits below are there so that a dead guest ends a test, generous enough for a machine
//! on which everything takes five times as long.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::{Value, json};

/// How long a guest may take to come up.
const BOOT: Duration = Duration::from_secs(300);

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
    /// Mebibytes.
    pub memory: u32,
    /// Folder the guest sees as /host.
    pub share: PathBuf,
    /// Keep what the guest writes: a disk image of its own, changed in place; none: written to nowhere.
    pub disk: Option<PathBuf>,
}

impl Config {
    /// A guest of 4 CPUs (2 cores of 2 threads) on 2 memory nodes.
    ///
    /// # Errors
    /// The image could not be built: what is missing, and that nothing was run.
    pub fn new(arch: &str, kernel: &str, flavour: &str) -> Result<Config> {
        let out = out();
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
            image: out.join(format!("{arch}-{kernel}-{flavour}")),
            arch: arch.into(),
            isolcpus: String::new(),
            append: String::new(),
            qemu: Vec::new(),
            memory: 1536,
            share: crate::agent::workspace(),
            disk: None,
        })
    }
}

/// The rig's folder: `RIG_OUT`, else .rig of the workspace.
pub fn out() -> PathBuf {
    std::env::var_os("RIG_OUT").map_or_else(|| crate::agent::workspace().join(".rig"), PathBuf::from)
}

/// A running guest. Dropping it ends QEMU; its folder (console, log) is kept when [`Vm::keep`] was called.
pub struct Vm {
    dir: PathBuf,
    qemu: Child,
    qmp: BufReader<UnixStream>,
    shell: BufReader<UnixStream>,
    keep: bool,
    /// Seconds from the start of QEMU to a ready shell.
    pub boot_seconds: f64,
}

impl Vm {
    /// Boot a guest. Its sockets, console and log stand in `dir`, which must not exist.
    pub fn boot(config: &Config, dir: &Path) -> Result<Vm> {
        fs::create_dir_all(dir).with_context(|| format!("create {}", dir.display()))?;
        let begin = Instant::now();
        let log = File::create(dir.join("qemu.log"))?;
        let (program, args) = command_line(config, dir)?;
        let qemu = Command::new(&program)
            .args(args)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("start {program}: install qemu-system-x86 / qemu-system-arm"))?;
        let mut guard = Guard(Some(qemu));
        let qmp = connect(dir, "qmp", &mut guard)?;
        let shell = connect(dir, "cmd", &mut guard)?;
        let qemu = guard.0.take().context("QEMU is gone")?;
        let mut vm = Vm {
            dir: dir.into(),
            qemu,
            qmp: BufReader::new(qmp),
            shell: BufReader::new(shell),
            keep: false,
            boot_seconds: 0.0,
        };
        let mut greeting = String::new();
        vm.qmp.read_line(&mut greeting)?;
        vm.qmp("qmp_capabilities", json!({}))?;
        let ready = vm.line(BOOT)?;
        ensure!(
            ready.starts_with("ready"),
            "the guest said {ready:?} instead of ready"
        );
        vm.boot_seconds = begin.elapsed().as_secs_f64();
        Ok(vm)
    }

    /// Run a shell script in the guest; its exit code with stdout and stderr.
    pub fn run(&mut self, script: &str) -> Result<(i32, String)> {
        let line = BASE64.encode(script) + "\n";
        self.shell.get_mut().write_all(line.as_bytes())?;
        let answer = self
            .line(Duration::from_secs(300))
            .with_context(|| format!("in: {script}"))?;
        let (code, output) = answer.trim().split_once(' ').unwrap_or((answer.trim(), ""));
        let output = String::from_utf8_lossy(&BASE64.decode(output.trim())?).into_owned();
        Ok((code.parse()?, output))
    }

    /// Run a script that must succeed; its output.
    pub fn sh(&mut self, script: &str) -> Result<String> {
        let (code, output) = self.run(script)?;
        ensure!(code == 0, "exit {code} in the guest: {script}\n{output}");
        Ok(output)
    }

    /// Run a script again until it succeeds.
    pub fn until(&mut self, what: &str, script: &str, limit: Duration) -> Result<String> {
        let begin = Instant::now();
        loop {
            let (code, output) = self.run(script)?;
            if code == 0 {
                return Ok(output);
            }
            if begin.elapsed() > limit {
                bail!("{what}: not within {limit:?}; the last try gave exit {code}:\n{output}");
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// One QMP command. Events that arrive meanwhile are passed over.
    pub fn qmp(&mut self, execute: &str, arguments: Value) -> Result<Value> {
        let line = json!({"execute": execute, "arguments": arguments}).to_string() + "\n";
        self.qmp.get_mut().write_all(line.as_bytes())?;
        loop {
            let mut line = String::new();
            ensure!(
                self.qmp.read_line(&mut line)? > 0,
                "QEMU is gone; console ends:\n{}",
                self.console_end()
            );
            let mut answer: Value = serde_json::from_str(&line)?;
            if let Some(error) = answer.get("error") {
                bail!("QMP {execute}: {}", error["desc"].as_str().unwrap_or("?"));
            }
            if let Some(result) = answer.get_mut("return") {
                return Ok(result.take());
            }
        }
    }

    /// Plug a device: `driver` and its properties, `id` among them.
    pub fn plug(&mut self, driver: &str, mut properties: Value) -> Result<()> {
        properties["driver"] = json!(driver);
        self.qmp("device_add", properties).map(drop)
    }

    /// Unplug a device by its id.
    pub fn unplug(&mut self, id: &str) -> Result<()> {
        self.qmp("device_del", json!({"id": id})).map(drop)
    }

    /// Keep console and log of this guest, and say where they are.
    pub fn keep(&mut self) -> &Path {
        self.keep = true;
        &self.dir
    }

    fn console_end(&self) -> String {
        let text = fs::read(self.dir.join("console.log")).unwrap_or_default();
        String::from_utf8_lossy(&text[text.len().saturating_sub(3000)..]).into_owned()
    }

    fn line(&mut self, limit: Duration) -> Result<String> {
        self.shell.get_ref().set_read_timeout(Some(limit))?;
        let mut line = String::new();
        match self.shell.read_line(&mut line) {
            Ok(0) => Err(anyhow!(
                "the guest is gone; console ends:\n{}",
                self.console_end()
            )),
            Ok(_) => Ok(line),
            Err(e) => Err(anyhow!(
                "the guest is silent for {limit:?} ({e}); console ends:\n{}",
                self.console_end()
            )),
        }
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
        if !self.keep {
            let _ = fs::remove_dir_all(&self.dir);
        }
    }
}

/// Ends QEMU when booting fails half-way.
struct Guard(Option<Child>);

impl Drop for Guard {
    fn drop(&mut self) {
        if let Some(qemu) = &mut self.0 {
            let _ = qemu.kill();
            let _ = qemu.wait();
        }
    }
}

fn connect(dir: &Path, name: &str, guard: &mut Guard) -> Result<UnixStream> {
    let path = dir.join(name);
    for _ in 0..600 {
        if let Ok(socket) = UnixStream::connect(&path) {
            return Ok(socket);
        }
        if let Some(qemu) = &mut guard.0
            && let Some(status) = qemu.try_wait()?
        {
            bail!(
                "QEMU ended with {status}: {}",
                fs::read_to_string(dir.join("qemu.log"))?
            );
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    bail!("QEMU did not open {}", path.display())
}

fn command_line(config: &Config, dir: &Path) -> Result<(String, Vec<String>)> {
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
    add("-accel tcg,thread=multi -smp 4,sockets=1,cores=2,threads=2 -display none -no-reboot -nodefaults");
    add(&format!("-m {}", config.memory));
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
    add("-device virtio-blk-pci,drive=root -device virtio-serial-pci -device qemu-xhci,id=xhci");
    add("-device virtserialport,chardev=cmd,name=rig.cmd -device virtio-9p-pci,fsdev=host,mount_tag=host");
    add("-object rng-random,filename=/dev/urandom,id=rng -device virtio-rng-pci,rng=rng");
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
        (
            "-fsdev",
            format!(
                "local,id=host,path={},security_model=none,readonly=on",
                config.share.display()
            ),
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
