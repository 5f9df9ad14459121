//! Where a case happens: a folder with a bundle, a root file system of busybox, and a runtime by its command line.
//!
//! Invariant: what a case made on the host is gone when its [`Lab`] is dropped.
#![allow(unsafe_code)] // a descriptor that came over a socket is taken over

use std::fs;
use std::io::{IoSliceMut, Read};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use berth_tests::runtime::{Runtime, within};
use nix::poll::{PollFd, PollFlags, poll};
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
use nix::unistd::Pid;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::case::{Case, Change, Mode, fill, set};

static NEXT: AtomicU32 = AtomicU32::new(0);
/// The cgroup above the containers'.
const PARENT: &str = "berth-test-fields";

/// What was said, blanks and tabs as one blank, and whether the runtime ended with 0.
#[derive(Debug)]
pub(crate) struct Seen {
    pub(crate) good: bool,
    pub(crate) text: String,
}

/// One container of one case.
pub(crate) struct Lab<'a> {
    dir: TempDir,
    runtime: &'a Runtime,
    id: String,
    number: u32,
}

/// A copy of busybox on the file system of the labs, made before anything is run.
static PROGRAM: OnceLock<PathBuf> = OnceLock::new();

/// Make what the labs share; gone when dropped.
pub(crate) fn shared() -> Result<TempDir> {
    let dir = tempfile::Builder::new().prefix("berth-test-fields-").tempdir()?;
    let program = dir.path().join("busybox");
    fs::copy("/bin/busybox", &program).context("install busybox-static")?;
    let _ = PROGRAM.set(program);
    Ok(dir)
}

impl Lab<'_> {
    pub(crate) fn new(runtime: &Runtime) -> Result<Lab<'_>> {
        let dir = tempfile::Builder::new().prefix("berth-test-fields-").tempdir()?;
        // Users of other namespaces go through.
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755))?;
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let id = format!("berth-test-f{}-{number}", std::process::id());
        let lab = Lab {
            dir,
            runtime,
            id,
            number,
        };
        lab.root_file_system("rootfs")?;
        lab.root_file_system("other")?;
        fs::write(lab.path("other/etc/other"), "the other root\n")?;
        for folder in ["log", "data"] {
            fs::create_dir(lab.path(folder))?;
        }
        fs::set_permissions(lab.path("log"), fs::Permissions::from_mode(0o777))?;
        fs::write(lab.path("data/file"), "from outside\n")?;
        Ok(lab)
    }

    fn path(&self, sub: &str) -> PathBuf {
        self.dir.path().join(sub)
    }

    fn root_file_system(&self, name: &str) -> Result<()> {
        let root = self.path(name);
        for folder in [
            "bin", "proc", "sys", "dev", "tmp", "etc", "cg", "mnt", "log", "data",
        ] {
            fs::create_dir_all(root.join(folder))?;
        }
        // No copy: a process that is forked meanwhile would hold it open for writing, and nobody could run it.
        fs::hard_link(PROGRAM.get().context("no busybox")?, root.join("bin/busybox"))?;
        const APPLETS: [&str; 40] = [
            "sh",
            "true",
            "false",
            "sleep",
            "cat",
            "echo",
            "grep",
            "id",
            "ls",
            "mkdir",
            "touch",
            "stat",
            "cut",
            "head",
            "tail",
            "sed",
            "env",
            "pwd",
            "hostname",
            "dnsdomainname",
            "uname",
            "readlink",
            "ionice",
            "chrt",
            "taskset",
            "tty",
            "stty",
            "kill",
            "test",
            "ip",
            "mount",
            "dd",
            "printf",
            "tr",
            "wc",
            "ps",
            "nproc",
            "mknod",
            "setsid",
            "seq",
        ];
        for applet in APPLETS {
            symlink("busybox", root.join("bin").join(applet))?;
        }
        fs::write(root.join("etc/image"), "of the image\n")?;
        Ok(())
    }

    /// The words for the braces.
    fn words(&self, text: &str) -> String {
        text.replace("{dir}", &self.dir.path().display().to_string())
            .replace("{rootfs}", &self.path("rootfs").display().to_string())
            .replace("{id}", &self.id)
            .replace("{cgroup}", &format!("/{PARENT}/{}", self.id))
            .replace("{if}", &self.interface())
    }

    fn interface(&self) -> String {
        format!("bf{}x{}", std::process::id() % 100_000, self.number)
    }

    fn base(&self, script: &str) -> Value {
        let mount = |to: &str, kind: &str, options: &[&str]| json!({"destination": to, "type": kind, "source": kind, "options": options});
        let namespaces: Vec<Value> = ["pid", "mount", "uts", "ipc", "network"]
            .iter()
            .map(|t| json!({"type": t}))
            .collect();
        let caps = json!(["CAP_KILL", "CAP_DAC_OVERRIDE", "CAP_MKNOD"]);
        json!({
            "ociVersion": "1.0.2",
            "process": {
                "user": {"uid": 0, "gid": 0}, "args": ["/bin/sh", "-c", script],
                "env": ["PATH=/bin"], "cwd": "/",
                "capabilities": {"bounding": caps, "effective": caps, "permitted": caps},
            },
            "root": {"path": "rootfs", "readonly": true},
            "mounts": [
                mount("/proc", "proc", &["nosuid", "noexec", "nodev"]),
                mount("/dev", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
                mount("/dev/pts", "devpts", &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"]),
                mount("/tmp", "tmpfs", &["nosuid", "nodev", "mode=1777"]),
                {"destination": "/cg", "type": "bind", "source": "/sys/fs/cgroup", "options": ["rbind", "ro"]},
                {"destination": "/log", "type": "bind", "source": "{dir}/log", "options": ["bind"]},
            ],
            "linux": {
                "cgroupsPath": "{cgroup}", "namespaces": namespaces,
                "resources": {"devices": [{"allow": false, "access": "rwm"}]},
            },
        })
    }

    /// The bundle of a case.
    fn write(&self, case: &Case, change: &Change) -> Result<Value> {
        let mut config = self.base(&case.script);
        for (pointer, value) in &case.set {
            ensure!(set(&mut config, pointer, value.clone()), "no place for {pointer}");
        }
        let mut update = case.update.clone();
        let changed = match &mut update {
            Some(update) => change.apply(update),
            None => change.apply(&mut config),
        };
        ensure!(changed, "the case does not set what it says: {change:?}");
        let words = |text: &str| self.words(text);
        fill(&mut config, &words);
        fs::write(self.path("config.json"), serde_json::to_vec_pretty(&config)?)?;
        if let Some(update) = &update {
            let resources = update.pointer("/linux/resources").unwrap_or(&Value::Null);
            fs::write(self.path("update.json"), serde_json::to_vec(resources)?)?;
        }
        Ok(config)
    }

    fn command(&self, args: &[&str]) -> Command {
        self.runtime.command(&self.path("state"), args)
    }

    /// A line of shell on the host; what it said.
    fn shell(&self, shell: &str, variables: &[(&str, String)]) -> Result<String> {
        if shell.is_empty() {
            return Ok(String::new());
        }
        let mut command = Command::new("/bin/sh");
        command
            .arg("-c")
            .arg(self.words(shell))
            .current_dir(self.dir.path());
        for (name, value) in variables {
            command.env(name, value);
        }
        Ok(within(&mut command, self.dir.path())?.text)
    }

    /// Run the case with one change, and say what was seen.
    pub(crate) fn see(&self, case: &Case, change: &Change) -> Result<Seen> {
        let config = self.write(case, change)?;
        self.shell(&case.before, &[])?;
        let bundle = self.dir.path().display().to_string();
        let mut args = vec!["run", "--bundle", &bundle];
        let console = self.path("tty.sock").display().to_string();
        let wanted = config.pointer("/process/terminal") == Some(&Value::Bool(true));
        match case.mode {
            Mode::Run | Mode::Listener => {}
            Mode::Stay => args.push("--detach"),
            Mode::Console => {
                args.push("--detach");
                if wanted {
                    args.extend(["--console-socket", &console]);
                }
            }
        }
        args.push(&self.id);
        let mut command = self.command(&args);
        let over = AtomicBool::new(false);
        let (good, mut text) = std::thread::scope(|scope| -> Result<(bool, String)> {
            let socket = match case.mode {
                Mode::Console => Some(console.clone()),
                Mode::Listener => Some(self.path("notify.sock").display().to_string()),
                Mode::Run | Mode::Stay => None,
            };
            let taker = socket.map(|path| -> Result<_> {
                let listener = UnixListener::bind(path)?;
                let over = &over;
                Ok(scope.spawn(move || taken(&listener, case.mode, over)))
            });
            let done = within(&mut command, self.dir.path());
            over.store(true, Ordering::Relaxed);
            let (done, mut text) = done.map(|d| (d.good && !d.hung, d.text))?;
            if let Some(taker) = taker.transpose()? {
                text += &taker.join().unwrap_or_else(|_| Ok("the taker panicked".into()))?;
            }
            Ok((done, text))
        })?;
        if case.mode == Mode::Stay && good {
            text += &self.up(case)?;
        }
        let _ = within(
            &mut self.command(&["delete", "--force", &self.id]),
            self.dir.path(),
        )?;
        text += &self.shell(&case.after, &[])?;
        let lines = text
            .lines()
            .map(|l| l.split_whitespace().collect::<Vec<_>>().join(" "));
        Ok(Seen {
            good,
            text: lines.collect::<Vec<_>>().join("\n"),
        })
    }

    /// Take away what a peer left of its container: processes and cgroups.
    fn sweep(&self) {
        for top in fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten() {
            let cgroup = top.path().join(PARENT).join(&self.id);
            for _ in 0..100 {
                let left = fs::read_to_string(cgroup.join("cgroup.procs")).unwrap_or_default();
                for pid in left.lines().filter_map(|l| l.parse().ok()) {
                    let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
                }
                if !cgroup.exists() || fs::remove_dir(&cgroup).is_ok() {
                    break;
                }
                std::thread::sleep(Duration::from_millis(5));
            }
        }
    }

    /// While it is up: what it said, and what the host's side says.
    fn up(&self, case: &Case) -> Result<String> {
        let said = || fs::read_to_string(self.path("words")).unwrap_or_default();
        let begun = Instant::now();
        while !said().contains("up\n") && begun.elapsed() < Duration::from_secs(5) {
            std::thread::sleep(Duration::from_millis(2));
        }
        let text = said();
        let folder = self.path("host");
        fs::create_dir_all(&folder)?;
        let state = within(&mut self.command(&["state", &self.id]), &folder)?.text;
        let pid = serde_json::from_str::<Value>(&state).map_or(Value::Null, |s| s["pid"].clone());
        let oci = self.command(&[]);
        let words: Vec<String> = std::iter::once(oci.get_program())
            .chain(oci.get_args())
            .map(|w| format!("'{}'", w.to_string_lossy()))
            .collect();
        let script = format!("oci() {{ {} \"$@\"; }}; {}", words.join(" "), case.host);
        let said = self.shell_in(&folder, &script, &pid.to_string(), &state)?;
        Ok(text + &said)
    }

    fn shell_in(&self, folder: &Path, script: &str, pid: &str, state: &str) -> Result<String> {
        let mut command = Command::new("/bin/sh");
        command
            .arg("-c")
            .arg(self.words(script))
            .current_dir(self.dir.path());
        command.env("PID", pid).env("STATE", state);
        Ok(within(&mut command, folder)?.text)
    }
}

impl Drop for Lab<'_> {
    fn drop(&mut self) {
        let _ = within(
            &mut self.command(&["delete", "--force", &self.id]),
            self.dir.path(),
        );
        if !self.runtime.is_berth() {
            self.sweep();
        }
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        let own = self.dir.path().display().to_string();
        for place in mounts
            .lines()
            .filter_map(|l| l.split(' ').nth(1))
            .filter(|p| p.starts_with(&own))
        {
            let _ = nix::mount::umount2(place, nix::mount::MntFlags::MNT_DETACH);
        }
        for name in [self.interface(), format!("{}p", self.interface())] {
            if Path::new("/sys/class/net").join(&name).exists() {
                let _ = Command::new("ip").args(["link", "del", &name]).status();
            }
        }
    }
}

/// What comes over a socket, and, from a terminal, what is written to it.
fn taken(listener: &UnixListener, mode: Mode, over: &AtomicBool) -> Result<String> {
    let mut after = 0;
    loop {
        let mut fds = [PollFd::new(listener.as_fd(), PollFlags::POLLIN)];
        if poll(&mut fds, 50u16)? == 1 {
            break;
        }
        if over.load(Ordering::Relaxed) {
            after += 1;
            if after > 1 {
                return Ok(String::new());
            }
        }
    }
    let (stream, _) = listener.accept()?;
    let mut bytes = [0u8; 8192];
    let mut space = nix::cmsg_space!([i32; 4]);
    let mut parts = [IoSliceMut::new(&mut bytes)];
    let message = recvmsg::<()>(
        stream.as_raw_fd(),
        &mut parts,
        Some(&mut space),
        MsgFlags::empty(),
    )?;
    let length = message.bytes;
    let fd = message.cmsgs()?.find_map(|m| match m {
        ControlMessageOwned::ScmRights(fds) => fds.first().copied(),
        _ => None,
    });
    let fd = fd.context("no descriptor came")?;
    // SAFETY: received just now; nobody else owns it.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    if mode == Mode::Listener {
        // Closed: every call that waits for an answer is ENOSYS from here on.
        return Ok(String::from_utf8_lossy(&bytes[..length]).into_owned());
    }
    let mut terminal = fs::File::from(fd);
    let mut said = Vec::new();
    let mut part = [0u8; 4096];
    // EIO when the last of them has closed it.
    while let Ok(n) = terminal.read(&mut part) {
        if n == 0 {
            break;
        }
        said.extend_from_slice(&part[..n]);
    }
    Ok(String::from_utf8_lossy(&said).replace('\r', ""))
}

/// The cgroups that cases look for files in; gone when dropped.
pub(crate) struct Cgroups(Vec<PathBuf>);

impl Cgroups {
    /// A parent for the containers with a probe in it, in every hierarchy.
    pub(crate) fn make() -> Result<Cgroups> {
        let top = Path::new("/sys/fs/cgroup");
        let mut made = Cgroups(Vec::new());
        let mut tops: Vec<PathBuf> = vec![top.to_owned()];
        tops.extend(fs::read_dir(top)?.flatten().map(|e| e.path()));
        for top in tops.iter().filter(|t| t.join("cgroup.procs").exists()) {
            if top != Path::new("/sys/fs/cgroup") && top.join("cgroup.type").exists() {
                continue; // a cgroup below v2's root
            }
            if tops[0].join("cgroup.procs").exists() && top != &tops[0] {
                continue;
            }
            let parent = top.join(PARENT);
            let controllers = fs::read_to_string(top.join("cgroup.controllers")).unwrap_or_default();
            fs::create_dir_all(&parent)?;
            made.0.push(parent.clone());
            for folder in [top.as_path(), &parent] {
                for name in controllers.split_whitespace() {
                    let _ = fs::write(folder.join("cgroup.subtree_control"), format!("+{name}"));
                }
            }
            fs::create_dir_all(parent.join("probe"))?;
            made.0.push(parent.join("probe"));
            if top.join("cpuset.cpus").exists() && !top.join("cgroup.controllers").exists() {
                for file in ["cpuset.cpus", "cpuset.mems"] {
                    let all = fs::read_to_string(top.join(file))?;
                    fs::write(parent.join(file), all.trim())?;
                }
            }
        }
        Ok(made)
    }

    /// A path of [`Need`](crate::case::Need) as it stands here.
    pub(crate) fn path(text: &str) -> String {
        text.replace("{probe}", &format!("{PARENT}/probe"))
    }
}

impl Drop for Cgroups {
    fn drop(&mut self) {
        for folder in self.0.iter().rev() {
            let _ = fs::remove_dir(folder);
        }
    }
}
