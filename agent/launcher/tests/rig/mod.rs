//! A launcher of the test's own: temporary folders, a cgroup parent of its own, a busybox image made by hand.
//! Dropping it ends everything it started and says when something is left.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used)] // each test file uses its part

use std::fs;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use berth_images::{Digest, Mode, Store};
use berth_launcher::client::Client;
use berth_launcher::wire::{self, Event, LaunchRequest, Reply, Status};
use serde_json::{Value, json};

/// Nothing here takes so long unless it hangs.
pub const LONG: Duration = Duration::from_secs(20);

/// Runs until it is told to stop, and says when it is ready for that.
pub const FOREVER: &str = "trap 'exit 0' TERM; echo up; while :; do sleep 0.05; done";

static COUNT: AtomicU32 = AtomicU32::new(0);

pub struct Rig {
    pub temp: tempfile::TempDir,
    pub parent: String,
    pub image: String,
    launcher: Option<Child>,
    interval: u64,
}

impl Rig {
    pub fn new() -> Rig {
        Rig::with_interval(2000)
    }

    pub fn with_interval(interval: u64) -> Rig {
        let temp = tempfile::tempdir().unwrap();
        let n = COUNT.fetch_add(1, Ordering::Relaxed);
        let parent = format!("berth-launcher-test-{}-{n}", std::process::id());
        let image = load_busybox(temp.path());
        let mut rig = Rig {
            temp,
            parent,
            image,
            launcher: None,
            interval,
        };
        rig.start();
        rig
    }

    pub fn run(&self) -> PathBuf {
        self.temp.path().join("run")
    }

    pub fn state(&self) -> PathBuf {
        self.temp.path().join("state")
    }

    /// Starts the launcher and waits until it answers.
    pub fn start(&mut self) {
        let exe = std::env::current_exe().unwrap();
        let built = exe.parent().unwrap().parent().unwrap().join("examples/launcher");
        fresh(&built);
        // Another build, to measure it.
        let binary = std::env::var_os("BERTH_TEST_LAUNCHER").map_or(built, PathBuf::from);
        let etc = self.temp.path().join("etc");
        if !etc.join("launcher").exists() {
            // What the policy refuses is tested where it is: tests/policy.rs.
            self.policy(&json!({
                "privileged": true, "hostNetwork": true, "mounts": [{"path": "/", "write": true}], "realtimePriority": 99,
                "limits": {
                    "capabilities": ["ALL"], "newPrivileges": true, "unfiltered": true, "looserThanStrict": true, "labels": ["*"]
                },
                "devices": {"deny": [], "hostDisks": true},
            }));
        }
        let child = Command::new(binary)
            .args([self.run(), self.state(), etc])
            .arg(&self.parent)
            .arg(self.interval.to_string())
            .stdin(Stdio::null())
            .spawn()
            .expect("the launcher: a whole `cargo test -p berth-launcher` builds it");
        self.launcher = Some(child);
        self.until("the launcher answers", || self.ping().is_some());
    }

    /// Writes the launcher's policy (JSON is YAML).
    pub fn policy(&self, policy: &Value) {
        let folder = self.temp.path().join("etc/launcher");
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("policy.yaml"), policy.to_string()).unwrap();
    }

    /// The records of the launcher's audit log.
    pub fn audit(&self) -> Vec<berth_audit::Record> {
        let folder = self.state().join("audit/launcher");
        let found = berth_audit::verify(&folder, &[]).unwrap();
        assert!(found.faults.is_empty(), "{found:?}");
        berth_audit::records(&folder)
            .unwrap()
            .map(|r| r.unwrap().record.unwrap())
            .collect()
    }

    fn ping(&self) -> Option<()> {
        let mut client = Client::launcher(&self.run()).ok()?;
        client.set_timeout(Some(LONG)).ok()?;
        client.send(&json!({"op": "ping", "version": 1}), &[]).ok()?;
        matches!(client.receive().ok()??.reply, Reply::Done).then_some(())
    }

    pub fn launcher_pid(&self) -> i32 {
        self.launcher.as_ref().unwrap().id() as i32
    }

    /// Ends the launcher with a signal and waits for it.
    pub fn signal_launcher(&mut self, signal: i32) -> std::process::ExitStatus {
        let mut child = self.launcher.take().unwrap();
        kill(child.id() as i32, signal);
        child.wait().unwrap()
    }

    pub fn client(&self) -> Client {
        let client = Client::launcher(&self.run()).unwrap();
        client.set_timeout(Some(LONG)).unwrap();
        client
    }

    /// A request for `sh -c SCRIPT`; `change` is merged over it.
    pub fn request(&self, id: &str, script: &str, change: Value) -> Value {
        let mut request = json!({
            "op": "launch", "version": 1, "id": id, "workload": "test", "image": self.image, "profile": "strict",
            "process": {"command": ["/bin/sh", "-c", script]}, "placement": {"cpus": "0", "shared": true},
            "stop": {"signal": 15, "grace_ms": 10_000}, "log_max_bytes": 1 << 20,
        });
        for (key, value) in change.as_object().unwrap() {
            request[key] = value.clone();
        }
        serde_json::from_value::<LaunchRequest>(request.clone()).unwrap();
        request
    }

    pub fn send(&self, request: &Value) -> Client {
        let client = self.client();
        client.send(request, &[]).unwrap();
        client
    }

    /// Launches `sh -c SCRIPT` and waits until it runs.
    pub fn launch(&self, id: &str, script: &str, change: Value) -> Running {
        let mut client = self.send(&self.request(id, script, change));
        let created = client.receive().unwrap().unwrap();
        let (pid, fd) = match event(created.reply) {
            Event::Created { pid, .. } => (pid, created.fd.unwrap()),
            other => panic!("{other:#?}"),
        };
        match next_event(&mut client) {
            Event::Started { proof, timing, .. } => {
                assert!(proof.holds());
                Running {
                    client,
                    pid,
                    pidfd: fd,
                    proof,
                    timing,
                }
            }
            other => panic!("{other:#?}"),
        }
    }

    pub fn hello(&self, id: &str) -> (Client, Status, Option<OwnedFd>) {
        let mut client = Client::monitor(&self.run(), id).unwrap();
        client.set_timeout(Some(LONG)).unwrap();
        client.send(&wire::Command::Hello { version: 1 }, &[]).unwrap();
        let received = client.receive().unwrap().unwrap();
        match received.reply {
            Reply::Status(status) => (client, *status, received.fd),
            other => panic!("{other:?}"),
        }
    }

    pub fn sweep(&self, id: &str) -> Reply {
        let mut client = self.send(&json!({"op": "sweep", "version": 1, "id": id}));
        client.receive().unwrap().unwrap().reply
    }

    pub fn log(&self, id: &str) -> String {
        fs::read_to_string(self.state().join("logs").join(format!("{id}.log"))).unwrap_or_default()
    }

    /// The container's cgroup folders that are there.
    pub fn cgroups(&self, id: &str) -> Vec<PathBuf> {
        let root = Path::new("/sys/fs/cgroup");
        let trees = fs::read_dir(root)
            .unwrap()
            .flatten()
            .map(|e| e.path())
            .chain([root.to_owned()]);
        trees
            .map(|t| t.join(&self.parent).join(id))
            .filter(|p| p.is_dir())
            .collect()
    }

    /// Waits for something that must come true.
    pub fn until(&self, what: &str, mut holds: impl FnMut() -> bool) {
        let begun = Instant::now();
        while !holds() {
            assert!(begun.elapsed() < LONG, "in vain: {what}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Everything about a container is gone but its log.
    pub fn assert_gone(&self, id: &str) {
        assert_eq!(self.cgroups(id), Vec::<PathBuf>::new());
        assert!(!self.run().join("monitors").join(format!("{id}.sock")).exists());
        assert!(!self.state().join("containers").join(id).exists());
        assert!(!self.run().join("containers").join(id).exists());
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(!mounts.contains(self.temp.path().to_str().unwrap()), "{mounts}");
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        if let Some(mut child) = self.launcher.take() {
            kill(child.id() as i32, libc::SIGKILL);
            let _ = child.wait();
        }
        let mut left = Vec::new();
        for entry in fs::read_dir(self.run().join("monitors"))
            .into_iter()
            .flatten()
            .flatten()
        {
            let name = entry.file_name().into_string().unwrap();
            let id = name.trim_end_matches(".sock").to_owned();
            if let Ok(client) = Client::monitor(&self.run(), &id) {
                let peer =
                    nix::sys::socket::getsockopt(client.stream(), nix::sys::socket::sockopt::PeerCredentials);
                kill(peer.unwrap().pid(), libc::SIGKILL);
                left.push(id);
            }
        }
        let hierarchy = berth_rt::cgroup::Hierarchy::discover(Path::new("/")).unwrap();
        if let Ok(cgroup) = berth_rt::cgroup::Cgroup::open(&hierarchy, &self.parent) {
            let _ = cgroup.kill();
            let removed = cgroup.remove();
            if !std::thread::panicking() {
                removed.unwrap();
            }
        }
        let _ = berth_rt::cgroup::prune(&hierarchy, &self.parent);
        if !std::thread::panicking() {
            assert!(left.is_empty(), "monitors left behind: {left:?}");
        }
    }
}

pub struct Running {
    pub client: Client,
    pub pid: i32,
    pub pidfd: OwnedFd,
    pub proof: berth_runtime::proof::Proof,
    pub timing: Vec<(String, u64)>,
}

impl Running {
    pub fn ask(&mut self, command: Value) -> Reply {
        self.client.send(&command, &[]).unwrap();
        self.client.receive().unwrap().unwrap().reply
    }

    pub fn exited(&mut self) -> wire::Exit {
        exited(&mut self.client)
    }

    /// Stops it and lets the monitor go.
    pub fn end(mut self) -> wire::Exit {
        self.client.send(&json!({"op": "stop"}), &[]).unwrap();
        let exit = self.exited();
        release(&mut self.client);
        exit
    }

    /// Waits for its end and lets the monitor go.
    pub fn finish(mut self) -> wire::Exit {
        let exit = self.exited();
        release(&mut self.client);
        exit
    }
}

pub fn event(reply: Reply) -> Event {
    match reply {
        Reply::Event(event) => *event,
        other => panic!("{other:?}"),
    }
}

pub fn next_event(client: &mut Client) -> Event {
    event(
        client
            .receive()
            .unwrap()
            .expect("the connection was closed")
            .reply,
    )
}

pub fn exited(client: &mut Client) -> wire::Exit {
    loop {
        match next_event(client) {
            Event::Exited(exit) => return exit,
            Event::Drift { .. } | Event::Restored | Event::Dropped { .. } | Event::Held { .. } => {}
            other => panic!("{other:?}"),
        }
    }
}

pub fn refused(client: &mut Client) -> wire::Refusal {
    match client.receive().unwrap().unwrap().reply {
        Reply::Refused(refusal) => refusal,
        other => panic!("{other:?}"),
    }
}

/// Release is answered, then the connection ends.
pub fn release(client: &mut Client) {
    client.send(&json!({"op": "release"}), &[]).unwrap();
    assert!(matches!(client.receive().unwrap().unwrap().reply, Reply::Done));
    assert!(client.receive().unwrap().is_none());
}

pub fn kill(pid: i32, signal: i32) {
    let signal = nix::sys::signal::Signal::try_from(signal).unwrap();
    let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), signal);
}

/// Is there such a process, and not only its zombie?
pub fn lives(pid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ")
        .is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
}

/// `cargo test --test NAME` does not build examples: an old launcher would be tested.
fn fresh(built: &Path) {
    let time = |path: &Path| fs::metadata(path).and_then(|m| m.modified()).ok();
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    for folder in [sources.clone(), sources.join("monitor"), sources.join("launcher")] {
        for source in fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()) {
            let old = time(built) < time(&source) && source.is_file();
            assert!(
                !old,
                "{} is newer than the launcher: `cargo build -p berth-launcher --examples`",
                source.display()
            );
        }
    }
}

fn load_busybox(temp: &Path) -> String {
    let (root, layout) = (temp.join("rootfs"), temp.join("layout"));
    for folder in ["bin", "dev", "proc", "sys", "etc", "tmp", "data"] {
        fs::create_dir_all(root.join(folder)).unwrap();
    }
    fs::copy("/usr/bin/busybox", root.join("bin/busybox")).unwrap();
    for applet in [
        "sh", "echo", "sleep", "cat", "ls", "id", "kill", "test", "trap", "seq", "head", "tail", "true",
    ] {
        std::os::unix::fs::symlink("busybox", root.join("bin").join(applet)).unwrap();
    }
    fs::write(
        root.join("etc/passwd"),
        "root:x:0:0:root:/root:/bin/sh\napp:x:1000:1000::/home/app:/bin/sh\n",
    )
    .unwrap();
    fs::set_permissions(
        root.join("tmp"),
        std::os::unix::fs::PermissionsExt::from_mode(0o1777),
    )
    .unwrap();
    let layer = temp.join("layer.tar");
    let made = Command::new("tar")
        .arg("-C")
        .arg(&root)
        .args(["--owner=0", "--group=0", "-cf"])
        .arg(&layer)
        .arg(".")
        .status();
    assert!(made.unwrap().success());
    fs::create_dir_all(layout.join("blobs/sha256")).unwrap();
    let blob = |bytes: &[u8]| {
        let digest = Digest::of(bytes);
        fs::write(layout.join("blobs/sha256").join(digest.hex()), bytes).unwrap();
        (digest, bytes.len())
    };
    let (layer, layer_size) = blob(&fs::read(layer).unwrap());
    let arch = if cfg!(target_arch = "aarch64") {
        "arm64"
    } else {
        "amd64"
    };
    let config = json!({
        "architecture": arch, "os": "linux", "rootfs": {"type": "layers", "diff_ids": [layer.to_string()]},
        "config": {"Env": ["FROM_IMAGE=yes"], "Cmd": ["/bin/sh"], "User": "app"},
    });
    let (config, config_size) = blob(config.to_string().as_bytes());
    let manifest = json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": config.to_string(), "size": config_size},
        "layers": [{"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": layer.to_string(), "size": layer_size}],
    });
    let (manifest, manifest_size) = blob(manifest.to_string().as_bytes());
    let index = json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [{"mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": manifest.to_string(),
            "size": manifest_size, "platform": {"os": "linux", "architecture": arch}}],
    });
    fs::write(layout.join("index.json"), index.to_string()).unwrap();
    let mut marker = fs::File::create(layout.join("oci-layout")).unwrap();
    marker.write_all(br#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
    let store = Store::open(temp.join("state/images"), Mode::Write).unwrap();
    let loaded = store.load(&layout, Some("busybox")).unwrap();
    fs::remove_dir_all(&root).unwrap();
    fs::remove_dir_all(&layout).unwrap();
    loaded.digest.to_string()
}
