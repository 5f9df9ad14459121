//! Where an attack happens: a temporary folder with a bundle, a canary beside it, and nothing else.
//!
//! The bundle's root file system holds this program and the libraries it runs with, found in /proc/self/maps, so
//! that the same attacker runs natively and in a guest.
#![allow(unsafe_code)] // unshare(2) and mount(2) of the program's own namespace

use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use serde_json::{Value, json};
use tempfile::TempDir;

use berth_tests::runtime::{Done, Runtime, within};

/// What the canary file says.
pub(crate) const SECRET: &str = "berth-escape-canary";

/// How an attack went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It was carried out and gained nothing.
    Held,
    /// The runtime would not run it, in these words.
    Refused(String),
    /// It gained something.
    Broken(String),
    /// It cannot be tried here.
    NotHere(String),
    /// It could not be carried out: nothing is known.
    Failed(String),
}

impl Verdict {
    /// Nothing was gained.
    pub(crate) fn held(&self) -> bool {
        matches!(self, Verdict::Held | Verdict::Refused(_) | Verdict::NotHere(_))
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let short = |text: &str| -> String {
            let line = text.lines().rfind(|l| !l.trim().is_empty()).unwrap_or_default();
            line.chars().take(160).collect()
        };
        match self {
            Verdict::Held => f.write_str("held"),
            Verdict::Refused(_) => f.write_str("held: the launch is refused"),
            Verdict::Broken(what) => write!(f, "**broken**: {}", short(what)),
            Verdict::NotHere(why) => write!(f, "not tried: {}", short(why)),
            Verdict::Failed(why) => write!(f, "no verdict: {}", short(why)),
        }
    }
}

/// How long a helper races.
pub(crate) fn race_time() -> Duration {
    let seconds = std::env::var("BERTH_ESCAPE_SECONDS")
        .ok()
        .and_then(|s| s.parse().ok());
    Duration::from_secs(seconds.unwrap_or(2))
}

/// How often something is tried at least; in a hurry (no time to race) seldom.
pub(crate) fn at_least(often: usize) -> usize {
    if race_time().is_zero() {
        often.div_ceil(4)
    } else {
        often
    }
}

/// A mount namespace of our own, from which nothing travels out.
pub(crate) fn alone() -> Result<()> {
    ensure!(nix::unistd::Uid::effective().is_root(), "run as root");
    unshare(CloneFlags::CLONE_NEWNS).context("unshare the mount namespace")?;
    let flags = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount(None::<&str>, "/", None::<&str>, flags, None::<&str>).context("make / private")
}

/// A bundle without any attack runs, or a refusal would say nothing.
pub(crate) fn baseline(runtime: &Runtime) -> Result<()> {
    let lab = Lab::new(runtime, "nothing", &[])?;
    let done = lab.run()?;
    ensure!(
        lab.judge(&done)? == Verdict::Held,
        "a plain bundle does not run: {}",
        done.text
    );
    Ok(())
}

/// A bundle, its canary and its runtime.
pub(crate) struct Lab {
    dir: TempDir,
    pub(crate) runtime: Runtime,
    /// config.json.
    pub(crate) config: Value,
    /// The container's id.
    pub(crate) id: String,
}

impl Lab {
    /// A bundle that runs `inside ATTACK WORDS`.
    pub(crate) fn new(runtime: &Runtime, attack: &str, words: &[&str]) -> Result<Lab> {
        let dir = tempfile::Builder::new().prefix("berth-oci-escape-").tempdir()?;
        let root = dir.path().join("rootfs");
        for sub in ["proc", "sys", "dev", "tmp", "etc", "vol", "result"] {
            fs::create_dir_all(root.join(sub))?;
        }
        fs::create_dir(dir.path().join("canary"))?;
        fs::write(dir.path().join("canary/secret"), SECRET)?;
        fs::write(root.join("etc/masked"), "what is masked")?;
        let own = std::env::current_exe()?;
        fs::copy(&own, root.join("attacker"))?;
        for library in libraries()? {
            let to = root.join(library.strip_prefix("/")?);
            fs::create_dir_all(to.parent().context("a library has a folder")?)?;
            fs::copy(&library, &to).with_context(|| library.display().to_string())?;
        }
        if let Some((loader, file)) = loader(&own)? {
            let to = root.join(loader.strip_prefix("/")?);
            fs::create_dir_all(to.parent().context("a loader has a folder")?)?;
            if !to.exists() {
                fs::copy(file, &to)?;
            }
        }
        for controller in fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten() {
            let hidden = runtime.hybrid_is_refused() && controller.file_name() == "unified";
            if !hidden && controller.path().join("cgroup.procs").exists() {
                // Seen from inside, it tells that the host's hierarchy is.
                fs::create_dir_all(controller.path().join("berth-test-oci"))?;
            }
        }
        let id = format!("berth-test-escape-{attack}-{}", std::process::id());
        let args: Vec<&str> = ["/attacker", "inside", attack]
            .into_iter()
            .chain(words.iter().copied())
            .collect();
        let config = config(&args, &format!("/berth-test-oci/{id}"));
        Ok(Lab {
            dir,
            runtime: runtime.clone(),
            config,
            id,
        })
    }

    pub(crate) fn path(&self, sub: &str) -> PathBuf {
        self.dir.path().join(sub)
    }

    pub(crate) fn root(&self, sub: &str) -> PathBuf {
        self.dir.path().join("rootfs").join(sub)
    }

    /// The canary file's path on the host.
    pub(crate) fn canary(&self) -> String {
        self.path("canary/secret").display().to_string()
    }

    /// Write config.json; a command of the runtime.
    pub(crate) fn command(&self, args: &[&str]) -> Result<std::process::Command> {
        fs::write(self.path("config.json"), serde_json::to_vec_pretty(&self.config)?)?;
        Ok(self.runtime.command(&self.path("state"), args))
    }

    /// One command with a time limit.
    pub(crate) fn call(&self, args: &[&str]) -> Result<Done> {
        within(&mut self.command(args)?, self.dir.path())
    }

    /// `run`, and everything taken away after it.
    pub(crate) fn run(&self) -> Result<Done> {
        let bundle = self.dir.path().display().to_string();
        let done = self.call(&["run", "--bundle", &bundle, &self.id]);
        let _ = self.call(&["delete", "--force", &self.id]);
        done
    }

    /// `create`.
    pub(crate) fn create(&self) -> Result<Done> {
        let bundle = self.dir.path().display().to_string();
        self.call(&["create", "--bundle", &bundle, &self.id])
    }

    /// The first process, host pid namespace.
    pub(crate) fn pid(&self) -> Result<i32> {
        let state = self.call(&["state", &self.id])?;
        let json: Value = serde_json::from_str(&state.text).with_context(|| state.text.clone())?;
        let pid = json["pid"].as_i64().context("state has no pid")?;
        Ok(i32::try_from(pid)?)
    }

    /// What the container said, and what became of the canary.
    pub(crate) fn judge(&self, done: &Done) -> Result<Verdict> {
        let result = fs::read_to_string(self.path("result/out")).unwrap_or_default();
        let text = format!("{}{result}", done.text);
        if let Some(gained) = self.canary_harmed()? {
            return Ok(Verdict::Broken(gained));
        }
        Ok(verdict(&text, done))
    }

    /// The canary's folder must hold its one file as it was, and nothing mounted on it.
    pub(crate) fn canary_harmed(&self) -> Result<Option<String>> {
        let names: BTreeSet<String> = fs::read_dir(self.path("canary"))?
            .flatten()
            .map(|e| e.file_name().to_string_lossy().into_owned())
            .collect();
        if names != BTreeSet::from(["secret".to_owned()]) {
            return Ok(Some(format!(
                "on the host there is now: {}",
                names.into_iter().collect::<Vec<_>>().join(" ")
            )));
        }
        let text = fs::read_to_string(self.canary()).unwrap_or_default();
        if text != SECRET {
            return Ok(Some("a file of the host was written".into()));
        }
        use std::os::unix::fs::MetadataExt;
        let meta = fs::metadata(self.canary())?;
        Ok((meta.uid() != 0).then(|| format!("a file of the host now belongs to uid {}", meta.uid())))
    }

    /// A folder of the host that the container sees at `destination` and may write.
    pub(crate) fn volume(&mut self, name: &str, destination: &str) -> Result<PathBuf> {
        let folder = self.path(name);
        fs::create_dir_all(&folder)?;
        let mount =
            json!({"destination": destination, "type": "bind", "source": folder, "options": ["rbind", "rw"]});
        let mounts = self.config["mounts"].as_array_mut().context("mounts")?;
        mounts.retain(|m| m["destination"] != destination);
        mounts.push(mount);
        // What lies below it comes after it.
        mounts.sort_by_key(|m| m["destination"].as_str().map(|d| d.matches('/').count()));
        Ok(folder)
    }

    /// Take a mount away.
    pub(crate) fn without_mount(&mut self, destination: &str) {
        if let Some(mounts) = self.config["mounts"].as_array_mut() {
            mounts.retain(|m| {
                m["destination"]
                    .as_str()
                    .is_none_or(|d| !d.starts_with(destination))
            });
        }
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        let _ = self.call(&["delete", "--force", &self.id]);
        for controller in fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten() {
            let _ = fs::remove_dir(controller.path().join("berth-test-oci"));
        }
        let _ = fs::remove_dir("/sys/fs/cgroup/berth-test-oci");
    }
}

/// What the attacker's words mean.
pub(crate) fn verdict(text: &str, done: &Done) -> Verdict {
    if let Some(gained) = text.lines().find(|l| l.starts_with("LEAK")) {
        Verdict::Broken(gained.trim_start_matches("LEAK ").to_owned())
    } else if text.lines().any(|l| l == "DONE") {
        Verdict::Held
    } else if done.hung {
        Verdict::Failed(format!("the runtime hangs: {text}"))
    } else if done.good {
        Verdict::Failed(format!("the attacker said nothing: {text}"))
    } else {
        Verdict::Refused(text.to_owned())
    }
}

/// The files this program has mapped.
fn libraries() -> Result<BTreeSet<PathBuf>> {
    let maps = fs::read_to_string("/proc/self/maps")?;
    let own = std::env::current_exe()?;
    let files = maps.lines().filter_map(|l| l.split_whitespace().nth(5));
    Ok(files
        .filter(|f| f.starts_with('/'))
        .map(PathBuf::from)
        .filter(|f| *f != own && f.is_file())
        .collect())
}

/// The path the kernel looks for the loader at, and the file that is there.
fn loader(program: &Path) -> Result<Option<(PathBuf, PathBuf)>> {
    let bytes = fs::read(program)?;
    let name: &[u8] = if cfg!(target_arch = "x86_64") {
        b"/lib64/ld-linux-x86-64.so.2"
    } else {
        b"/lib/ld-linux-aarch64.so.1"
    };
    if !bytes.windows(name.len()).any(|w| w == name) {
        return Ok(None);
    }
    let path = PathBuf::from(String::from_utf8_lossy(name).into_owned());
    let file = fs::canonicalize(&path)?;
    Ok(Some((path, file)))
}

/// What an engine gives a container that asks for nothing: fourteen capabilities, namespaces of its own, masked and
/// read-only paths. No filter: what is tried is the runtime.
fn config(args: &[&str], cgroup: &str) -> Value {
    let mount = |to: &str, kind: &str, options: &[&str]| json!({"destination": to, "type": kind, "source": kind, "options": options});
    let namespaces: Vec<Value> = ["pid", "mount", "uts", "ipc", "network", "cgroup"]
        .iter()
        .map(|t| json!({"type": t}))
        .collect();
    let caps = json!([
        "CAP_CHOWN",
        "CAP_DAC_OVERRIDE",
        "CAP_FSETID",
        "CAP_FOWNER",
        "CAP_MKNOD",
        "CAP_NET_RAW",
        "CAP_SETGID",
        "CAP_SETUID",
        "CAP_SETFCAP",
        "CAP_SETPCAP",
        "CAP_NET_BIND_SERVICE",
        "CAP_SYS_CHROOT",
        "CAP_KILL",
        "CAP_AUDIT_WRITE"
    ]);
    json!({
        "ociVersion": "1.0.2",
        "process": {
            "terminal": false, "user": {"uid": 0, "gid": 0}, "args": args, "env": ["PATH=/"], "cwd": "/",
            "capabilities": {"bounding": caps, "effective": caps, "permitted": caps},
            "noNewPrivileges": true, "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 512, "soft": 512}],
        },
        "root": {"path": "rootfs", "readonly": false},
        "hostname": "lab",
        "mounts": [
            mount("/proc", "proc", &["nosuid", "noexec", "nodev"]),
            mount("/dev", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
            mount("/sys", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
            mount("/dev/pts", "devpts", &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"]),
        ],
        "linux": {
            "cgroupsPath": cgroup,
            "namespaces": namespaces,
            "resources": {
                "devices": [{"allow": false, "access": "rwm"}],
                "pids": {"limit": 64}, "memory": {"limit": 134_217_728_u64},
            },
            "maskedPaths": [
                "/proc/acpi", "/proc/asound", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list",
                "/proc/timer_stats", "/proc/sched_debug", "/proc/scsi", "/sys/firmware", "/etc/masked"
            ],
            "readonlyPaths": ["/proc/bus", "/proc/dynamic_debug", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"],
        },
    })
}
