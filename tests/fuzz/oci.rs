//! OCI configurations: whole documents with values exchanged, bytes, mount options. Each goes the way of a bundle, through
//! the file and the plan.

use std::fs;
use std::path::Path;

use anyhow::{Result, ensure};
use berth_rt::cgroup::Hierarchy;
use berth_runtime::{Context, Extensions, Plan};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::random::Random;

/// Words and numbers at which something may turn.
const WORDS: &[&str] = &[
    "",
    "/",
    "//",
    ".",
    "..",
    "../..",
    "/proc",
    "/proc/self/fd/3",
    "/dev",
    "/dev/../etc",
    "/sys/fs/cgroup",
    "a\u{0}b",
    "\u{202e}",
    "rootfs",
    "none",
    "bind",
    "proc",
    "tmpfs",
    "cgroup",
    "overlay",
    "pid",
    "network",
    "user",
    "time",
    "SCMP_ACT_ALLOW",
    "SCMP_ACT_ERRNO",
    "SCMP_ARCH_X86_64",
    "CAP_SYS_ADMIN",
    "CAP_NONE",
    "RLIMIT_NOFILE",
    "SCHED_FIFO",
    "SCHED_DEADLINE",
    "0-",
    "0-99999999",
    "1,,2",
    "rwm",
    "net.ipv4.ip_forward",
    "kernel/../x",
    "9999999999999999999999",
    "-1",
    "%s%n",
    "rbind",
    "size=1%",
    "mode=7777777",
];
const NUMBERS: &[i64] = &[
    0,
    1,
    -1,
    2,
    99,
    100,
    255,
    256,
    4095,
    65_535,
    65_536,
    1 << 31,
    (1 << 31) - 1,
    1 << 32,
    i64::MAX,
    i64::MIN,
    1_000_000_000,
];

struct Bench {
    dir: TempDir,
    hierarchy: Hierarchy,
}

impl Bench {
    fn new() -> Bench {
        let dir = tempfile::Builder::new()
            .prefix("berth-oci-fuzz-")
            .tempdir()
            .expect("a temporary folder");
        for sub in ["rootfs/proc", "rootfs/dev", "rootfs/sys"] {
            fs::create_dir_all(dir.path().join(sub)).expect("a folder");
        }
        let hierarchy = Hierarchy::discover(Path::new("/")).expect("cgroups");
        Bench { dir, hierarchy }
    }

    /// As a bundle: an answer in words, and nothing made.
    fn plan(&self, text: &[u8]) -> Result<bool> {
        let dir = self.dir.path();
        fs::write(dir.join("config.json"), text)?;
        let state = dir.join("state");
        let context = Context {
            state_root: &state,
            hierarchy: &self.hierarchy,
            cgroup_parent: "berth-test-fuzz",
            detached: true,
        };
        let said = match berth_runtime::load(dir) {
            Ok(bundle) => Plan::prepare("fuzz", dir, &bundle.spec, &Extensions::default(), &context).err(),
            Err(e) => Some(e),
        };
        if let Some(e) = &said {
            ensure!(!e.to_string().trim().is_empty(), "a refusal without words: {e:?}");
        }
        ensure!(!state.exists(), "a plan made {}", state.display());
        Ok(said.is_none())
    }
}

/// A document that has nearly everything.
fn seed() -> Value {
    let mount = |to: &str, kind: &str, options: &[&str]| json!({"destination": to, "type": kind, "source": kind, "options": options});
    json!({
        "ociVersion": "1.3.0",
        "process": {
            "terminal": false, "user": {"uid": 1, "gid": 1, "additionalGids": [2], "umask": 18}, "args": ["/bin/true", "a"], "env": ["A=b"], "cwd": "/",
            "capabilities": {"bounding": ["CAP_KILL"], "effective": ["CAP_KILL"], "permitted": ["CAP_KILL"], "inheritable": [], "ambient": []},
            "noNewPrivileges": true, "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 512, "soft": 512}], "oomScoreAdj": 5,
            "scheduler": {"policy": "SCHED_FIFO", "priority": 3}, "ioPriority": {"class": "IOPRIO_CLASS_BE", "priority": 4},
        },
        "root": {"path": "rootfs", "readonly": true}, "hostname": "h", "domainname": "d", "annotations": {"a": "b"},
        "hooks": {"prestart": [{"path": "/bin/true", "args": ["true"], "env": ["A=b"], "timeout": 3}], "poststop": [{"path": "/bin/true"}]},
        "mounts": [
            mount("/proc", "proc", &["nosuid", "noexec", "nodev"]), mount("/dev", "tmpfs", &["nosuid", "mode=755", "size=64k"]),
            mount("/sys", "sysfs", &["ro"]), {"destination": "/data", "type": "bind", "source": "/tmp", "options": ["rbind", "ro", "rprivate"]},
        ],
        "linux": {
            "cgroupsPath": "/berth-test-fuzz/x", "namespaces": [{"type": "pid"}, {"type": "mount"}, {"type": "network"}, {"type": "ipc"}, {"type": "uts"}, {"type": "cgroup"}],
            "sysctl": {"net.ipv4.ip_forward": "1"}, "rootfsPropagation": "private",
            "devices": [{"path": "/dev/x", "type": "c", "major": 1, "minor": 3, "fileMode": 438, "uid": 0, "gid": 0}],
            "resources": {
                "devices": [{"allow": false, "access": "rwm"}, {"allow": true, "type": "c", "major": 1, "minor": 3, "access": "r"}],
                "cpu": {"cpus": "0", "mems": "0", "shares": 5, "quota": 1000, "period": 10000}, "pids": {"limit": 3}, "memory": {"limit": 1048576, "swap": 1048576},
                "blockIO": {"weight": 10}, "unified": {"memory.high": "1"},
            },
            "uidMappings": [], "gidMappings": [],
            "seccomp": {"defaultAction": "SCMP_ACT_ERRNO", "architectures": ["SCMP_ARCH_X86_64"], "syscalls": [
                {"names": ["read", "write"], "action": "SCMP_ACT_ALLOW", "args": [{"index": 0, "value": 1, "valueTwo": 2, "op": "SCMP_CMP_MASKED_EQ"}]}]},
            "maskedPaths": ["/proc/kcore"], "readonlyPaths": ["/proc/sys"], "personality": {"domain": "LINUX"},
        },
    })
}

/// Exchange, take away or double something in a document.
fn change(value: &mut Value, random: &mut Random, depth: usize) {
    let deeper = depth < 8 && random.below(4) > 0;
    match value {
        Value::Object(map) if !map.is_empty() && deeper => {
            let key = map
                .keys()
                .nth(random.below(map.len()))
                .cloned()
                .unwrap_or_default();
            match random.below(12) {
                0 => drop(map.remove(&key)),
                1 => drop(map.insert((*random.pick(WORDS)).to_owned(), json!(1))),
                _ => change(&mut map[&key], random, depth + 1),
            }
        }
        Value::Array(list) if !list.is_empty() && deeper => {
            let at = random.below(list.len());
            match random.below(8) {
                0 => drop(list.remove(at)),
                1 => {
                    let copy = list[at].clone();
                    list.insert(at, copy);
                }
                _ => change(&mut list[at], random, depth + 1),
            }
        }
        other => {
            *other = match random.below(7) {
                0 => Value::Null,
                1 => json!(random.below(2) == 0),
                2 | 3 => json!(random.pick(NUMBERS)),
                4 => json!([]),
                5 => json!({}),
                _ => json!(random.pick(WORDS)),
            };
        }
    }
}

pub(crate) fn configuration() -> impl FnMut(&mut Random) -> Result<bool> + Send {
    let bench = Bench::new();
    move |random| {
        let mut document = seed();
        for _ in 0..=random.below(4) {
            change(&mut document, random, 0);
        }
        bench.plan(&serde_json::to_vec(&document)?)
    }
}

pub(crate) fn bytes() -> impl FnMut(&mut Random) -> Result<bool> + Send {
    let bench = Bench::new();
    let text = seed().to_string().into_bytes();
    move |random| {
        let mut bytes = text.clone();
        random.mutate(&mut bytes);
        bench.plan(&bytes)
    }
}

/// Words of mount(8), and mutations of them, in any order on any kind of mount.
pub(crate) fn mount_options() -> impl FnMut(&mut Random) -> Result<bool> + Send {
    const OPTIONS: &[&str] = &[
        "ro",
        "rw",
        "rro",
        "rrw",
        "bind",
        "rbind",
        "nosuid",
        "suid",
        "rnosuid",
        "nodev",
        "noexec",
        "private",
        "rprivate",
        "shared",
        "rshared",
        "slave",
        "rslave",
        "unbindable",
        "idmap",
        "ridmap",
        "tmpcopyup",
        "size=64k",
        "mode=755",
        "uid=0",
        "gid=x",
        "nr_inodes=-1",
        "sync",
        "async",
        "dirsync",
        "remount",
        "mand",
        "nomand",
        "atime",
        "noatime",
        "relatime",
        "norelatime",
        "strictatime",
        "nostrictatime",
        "lazytime",
        "nodiratime",
        "diratime",
        "symfollow",
        "nosymfollow",
        "defaults",
        "loop",
        "=",
        "size=",
        "=1",
        ",",
        "context=x",
    ];
    let bench = Bench::new();
    move |random| {
        let mut document = seed();
        let options: Vec<String> = (0..random.below(7))
            .map(|_| {
                let mut word = random.pick(OPTIONS).as_bytes().to_vec();
                if random.below(5) == 0 {
                    random.mutate(&mut word);
                }
                String::from_utf8_lossy(&word).into_owned()
            })
            .collect();
        let kind = *random.pick(&[
            "bind", "tmpfs", "proc", "sysfs", "devpts", "mqueue", "cgroup", "none", "ext4", "",
        ]);
        let destination = *random.pick(&[
            "/data",
            "/dev",
            "/dev/shm",
            "/proc",
            "/sys",
            "/",
            "data",
            "/a/../b",
            "/proc/self",
        ]);
        let mount = json!({"destination": destination, "type": kind, "source": *random.pick(WORDS), "options": options});
        if let Some(mounts) = document["mounts"].as_array_mut() {
            mounts.push(mount);
        }
        bench.plan(&serde_json::to_vec(&document)?)
    }
}
