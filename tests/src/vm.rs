//! One QEMU guest: boot it, run scripts in it, plug and unplug hardware over QMP.
//!
//! Emulation (TCG) is the rule: nothing here needs KVM, and latency in a guest means nothing. Nothing asserts
//! wall-clock times; the limits below are there so that a dead guest ends a test, generous enough for a machine
//! on which everything takes five times as long.

use std::collections::VecDeque;
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

mod config;
pub mod needs;

use config::command_line;
pub use config::{Config, Shape, make_disk, out};

/// How long a guest may take to come up.
const BOOT: Duration = Duration::from_secs(300);
/// How long QEMU itself may take to answer.
const QMP: Duration = Duration::from_secs(60);

/// A running guest. Dropping it ends QEMU; its folder (console, log) is kept when [`Vm::keep`] was called.
pub struct Vm {
    dir: PathBuf,
    qemu: Child,
    qmp: BufReader<UnixStream>,
    shell: BufReader<UnixStream>,
    keep: bool,
    /// Ids of what was plugged and not unplugged.
    plugged: Vec<String>,
    /// Ids of what was unplugged, until QEMU says that it is out.
    leaving: Vec<String>,
    /// QMP events that arrived while something else was waited for.
    events: VecDeque<Value>,
    /// The guest does not answer any more.
    lost: bool,
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
            .with_context(|| format!("start {program}"))?;
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
            plugged: Vec::new(),
            leaving: Vec::new(),
            events: VecDeque::new(),
            lost: false,
            boot_seconds: 0.0,
        };
        let mut greeting = String::new();
        vm.qmp.read_line(&mut greeting)?;
        vm.qmp("qmp_capabilities", json!({}))?;
        vm.keep = true;
        vm.ready()?;
        vm.keep = false;
        vm.boot_seconds = begin.elapsed().as_secs_f64();
        Ok(vm)
    }

    /// Wait until the guest's shell says that it is ready: at boot, and when the guest was reset.
    pub fn ready(&mut self) -> Result<()> {
        let ready = self.line(BOOT)?;
        ensure!(
            ready.starts_with("ready"),
            "the guest said {ready:?} instead of ready"
        );
        Ok(())
    }

    /// Run a shell script in the guest; its exit code with stdout and stderr.
    pub fn run(&mut self, script: &str) -> Result<(i32, String)> {
        let line = BASE64.encode(script) + "\n";
        self.shell.get_mut().write_all(line.as_bytes())?;
        let answer = self
            .line(Duration::from_secs(300))
            .with_context(|| format!("in: {script}"))?;
        ensure!(
            !answer.starts_with("ready"),
            "the guest was booted anew, in: {script}"
        );
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

    /// One QMP command. Events that arrive meanwhile are kept for [`Vm::event`].
    pub fn qmp(&mut self, execute: &str, arguments: Value) -> Result<Value> {
        let line = json!({"execute": execute, "arguments": arguments}).to_string() + "\n";
        self.qmp.get_mut().write_all(line.as_bytes())?;
        self.qmp_answer(execute)
    }

    /// The answer to the command `execute`.
    fn qmp_answer(&mut self, execute: &str) -> Result<Value> {
        self.qmp.get_ref().set_read_timeout(Some(QMP))?;
        loop {
            let mut answer = self.word_of_qemu()?;
            if let Some(error) = answer.get("error") {
                bail!("QMP {execute}: {}", error["desc"].as_str().unwrap_or("?"));
            }
            if let Some(result) = answer.get_mut("return") {
                return Ok(result.take());
            }
            self.events.push_back(answer);
        }
    }

    /// Wait for a QMP event of this name and take it; `None` where none came within `limit`.
    pub fn event(&mut self, name: &str, limit: Duration) -> Result<Option<Value>> {
        let end = Instant::now() + limit;
        loop {
            if let Some(at) = self.events.iter().position(|event| event["event"] == name) {
                return Ok(self.events.remove(at));
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            self.qmp.get_ref().set_read_timeout(Some(left))?;
            match self.word_of_qemu() {
                Ok(word) => self.events.push_back(word),
                Err(e)
                    if e.downcast_ref::<std::io::Error>()
                        .is_some_and(|e| e.kind() == std::io::ErrorKind::WouldBlock) => {}
                Err(e) => return Err(e),
            }
        }
    }

    /// One line of QMP. A time-out in the midst of a line would lose its beginning: QEMU writes whole lines.
    fn word_of_qemu(&mut self) -> Result<Value> {
        let mut line = String::new();
        if self.qmp.read_line(&mut line)? == 0 {
            self.lost = true;
            bail!("QEMU is gone; console ends:\n{}", self.console_end());
        }
        Ok(serde_json::from_str(&line)?)
    }

    /// Plug a device: `driver` and its properties, `id` among them.
    pub fn plug(&mut self, driver: &str, mut properties: Value) -> Result<()> {
        properties["driver"] = json!(driver);
        let id = properties["id"].as_str().unwrap_or_default().to_owned();
        if self.leaving.contains(&id) {
            // The guest has let it go; the slot's power may go off seconds later.
            self.wait_deleted(&id)?;
        }
        self.qmp("device_add", properties)?;
        self.plugged.push(id);
        Ok(())
    }

    /// Plug several at once: all orders are sent before the first answer is read.
    pub fn plug_all(&mut self, devices: Vec<(&str, Value)>) -> Result<()> {
        let mut orders = Vec::new();
        for (driver, mut properties) in devices {
            properties["driver"] = json!(driver);
            let id = properties["id"].as_str().unwrap_or_default().to_owned();
            if self.leaving.contains(&id) {
                self.wait_deleted(&id)?;
            }
            self.plugged.push(id);
            orders.push(("device_add", properties));
        }
        self.qmp_all(orders)
    }

    /// Unplug several at once.
    pub fn unplug_all_of(&mut self, ids: &[&str]) -> Result<()> {
        self.plugged.retain(|there| !ids.contains(&there.as_str()));
        self.leaving.extend(ids.iter().map(|id| (*id).to_owned()));
        self.qmp_all(ids.iter().map(|id| ("device_del", json!({"id": id}))).collect())
    }

    /// QMP commands, one behind the other without waiting between them. The first that is refused is told.
    fn qmp_all(&mut self, commands: Vec<(&str, Value)>) -> Result<()> {
        let line = |(execute, arguments): &(&str, Value)| {
            json!({"execute": execute, "arguments": arguments}).to_string() + "\n"
        };
        let lines: String = commands.iter().map(line).collect();
        self.qmp.get_mut().write_all(lines.as_bytes())?;
        let mut refused = None;
        for (execute, arguments) in &commands {
            if let Err(e) = self.qmp_answer(execute) {
                refused.get_or_insert(e.context(arguments.to_string()));
            }
        }
        refused.map_or(Ok(()), Err)
    }

    /// Unplug a device by its id.
    pub fn unplug(&mut self, id: &str) -> Result<()> {
        self.qmp("device_del", json!({"id": id}))?;
        self.plugged.retain(|there| there != id);
        self.leaving.push(id.to_owned());
        Ok(())
    }

    /// Unplug whatever is still plugged, and wait until it is out: what a test that failed left behind.
    pub fn unplug_all(&mut self) -> Result<()> {
        for id in std::mem::take(&mut self.plugged) {
            self.unplug(&id)?;
            self.wait_deleted(&id)?;
        }
        Ok(())
    }

    fn wait_deleted(&mut self, id: &str) -> Result<()> {
        loop {
            match self.event("DEVICE_DELETED", QMP)? {
                // An event of a port of the device has its path alone.
                Some(event) => {
                    let gone = event["data"]["device"].as_str().unwrap_or_default();
                    self.leaving.retain(|there| there != gone);
                    if gone == id {
                        return Ok(());
                    }
                }
                None => bail!("{id} stays plugged"),
            }
        }
    }

    /// Has the guest stopped answering? Nothing more can be run in it.
    pub fn lost(&self) -> bool {
        self.lost
    }

    /// The guest's power fails: QEMU is killed at once. The console as far as it was written.
    pub fn cut(mut self) -> Result<String> {
        self.qemu.kill()?;
        self.qemu.wait()?;
        Ok(String::from_utf8_lossy(&fs::read(self.dir.join("console.log"))?).into_owned())
    }

    /// Seconds of CPU that QEMU has had so far; 0 where it is gone.
    pub fn cpu_seconds(&self) -> f64 {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.qemu.id())).unwrap_or_default();
        let after = stat.rsplit(") ").next().unwrap_or_default();
        let ticks = after.split(' ').skip(11).take(2);
        // In hundredths of a second, proc_pid_stat(5) with the kernel's USER_HZ.
        ticks.filter_map(|ticks| ticks.parse::<f64>().ok()).sum::<f64>() / 100.0
    }

    /// Keep console and log of this guest, and say where they are.
    pub fn keep(&mut self) -> &Path {
        self.keep = true;
        &self.dir
    }

    /// Do not keep them after all.
    pub fn forget(&mut self) {
        self.keep = false;
    }

    /// What the guest has said on its console so far.
    pub fn console(&self) -> String {
        String::from_utf8_lossy(&fs::read(self.dir.join("console.log")).unwrap_or_default()).into_owned()
    }

    fn console_end(&self) -> String {
        let text = fs::read(self.dir.join("console.log")).unwrap_or_default();
        String::from_utf8_lossy(&text[text.len().saturating_sub(3000)..]).into_owned()
    }

    /// See [`broken_by_the_emulator`].
    pub fn broken_by_the_emulator(&self) -> bool {
        broken_by_the_emulator(&self.dir)
    }

    fn line(&mut self, limit: Duration) -> Result<String> {
        self.shell.get_ref().set_read_timeout(Some(limit))?;
        let mut line = String::new();
        match self.shell.read_line(&mut line) {
            Ok(0) => {
                self.lost = true;
                Err(anyhow!(
                    "the guest is gone; console ends:\n{}",
                    self.console_end()
                ))
            }
            Ok(_) => Ok(line),
            Err(e) => {
                self.lost = true;
                Err(anyhow!(
                    "the guest is silent for {limit:?} ({e}); console ends:\n{}",
                    self.console_end()
                ))
            }
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

/// Did the emulator break the guest with this folder? A kernel patches its own code under a breakpoint; TCG now and then
/// executes it after the kernel has taken it away and forgotten it, and the kernel panics. No program of the guest can do that.
pub fn broken_by_the_emulator(dir: &Path) -> bool {
    let console = fs::read(dir.join("console.log")).unwrap_or_default();
    String::from_utf8_lossy(&console).contains("Oops: int3: 0000")
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
