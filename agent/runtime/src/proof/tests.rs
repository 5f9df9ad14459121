//! Facts against real processes: a child with known settings holds every promise, and each fact turns false when
//! its setting is left out or changed behind its back.
#![allow(unsafe_code)] // the child's settings are made between fork and exec

use std::collections::BTreeMap;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command};

use berth_rt::cgroup::{Access, Cgroup, Controller, DeviceKind, DeviceRule, Hierarchy, Wanted};
use berth_rt::sched::{self, Scheduler};
use nix::mount::{MsFlags, mount};
use nix::sched::CloneFlags;
use nix::sys::resource::{Resource, setrlimit};

use super::*;
use crate::seccomp;

const KILL: u64 = 1 << 5;
static PLACE: std::sync::LazyLock<Where<'static>> = std::sync::LazyLock::new(|| Where {
    proc_root: Path::new("/proc"),
    cgroup: None,
});

type Do<'a> = &'a dyn Fn();
type Change = fn(&mut Promise);

/// Killed and reaped at the end, whatever the test says.
struct Sleeper(Child);

impl Sleeper {
    fn pid(&self) -> i32 {
        self.0.id() as i32
    }
}

impl Drop for Sleeper {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// `sleep` with every setting of [`promise`] but `without`.
fn sleeper(without: &'static str) -> Sleeper {
    let section = serde_json::from_str(r#"{"defaultAction":"SCMP_ACT_ALLOW"}"#).expect("json");
    let filter = seccomp::compile(&section, &seccomp::Options::default()).expect("compile");
    let with = move |step: &str| step != without;
    let settings = move || {
        if with("namespaces") {
            nix::sched::unshare(
                CloneFlags::CLONE_NEWUTS | CloneFlags::CLONE_NEWIPC | CloneFlags::CLONE_NEWNET,
            )?;
        }
        nix::sched::unshare(CloneFlags::CLONE_NEWNS)?;
        let none: Option<&str> = None;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
        let flags = if with("mount") {
            MsFlags::MS_RDONLY | MsFlags::MS_NOSUID
        } else {
            MsFlags::MS_NOSUID
        };
        mount(Some("tmpfs"), "/mnt", Some("tmpfs"), flags, none)?;
        if with("masked") {
            mount(Some("/dev/null"), "/proc/kallsyms", none, MsFlags::MS_BIND, none)?;
        }
        if with("readonly") {
            mount(Some("/proc/sys"), "/proc/sys", none, MsFlags::MS_BIND, none)?;
            let flags = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
            mount(none, "/proc/sys", none, flags, none)?;
        }
        if with("rlimit") {
            setrlimit(Resource::RLIMIT_NOFILE, 77, 99)?;
        }
        if with("slack") {
            sched::set_timer_slack(12345).map_err(std::io::Error::other)?;
        }
        if with("sched") {
            sched::set(0, &Scheduler::Batch { nice: 3 }, 0).map_err(std::io::Error::other)?;
        }
        if with("groups") {
            // SAFETY: two group ids; std would drop them before this closure.
            if unsafe { libc::setgroups(2, [7, 9].as_ptr()) } != 0 {
                return Err(std::io::Error::last_os_error());
            }
        }
        let only: caps::CapsHashSet = [caps::Capability::CAP_KILL].into();
        if with("bounding") {
            for cap in caps::all()
                .into_iter()
                .filter(|c| *c != caps::Capability::CAP_KILL && *c != caps::Capability::CAP_SYS_ADMIN)
            {
                // A kernel or a parent may have taken it already.
                let _ = caps::drop(None, caps::CapSet::Bounding, cap);
            }
        }
        // SAFETY: plain prctl calls.
        unsafe {
            if with("no_new_privs") {
                libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
            }
            if with("seccomp") {
                seccomp::load(&filter).map_err(std::io::Error::other)?;
            }
            if with("bounding") {
                libc::prctl(libc::PR_CAPBSET_DROP, 21, 0, 0, 0);
            }
        }
        let none = caps::CapsHashSet::new();
        for (set, to) in [
            (caps::CapSet::Inheritable, &none),
            (caps::CapSet::Effective, &only),
            (caps::CapSet::Permitted, &only),
        ] {
            caps::set(None, set, to).map_err(std::io::Error::other)?;
        }
        Ok(())
    };
    let mut command = Command::new("sleep");
    command.arg("600");
    // SAFETY: the closure makes system calls; it allocates, which this test's child of fork may do with glibc.
    unsafe { command.pre_exec(settings) };
    Sleeper(command.spawn().expect("spawn"))
}

fn promise() -> Promise {
    let cgroups: BTreeMap<String, String> = std::fs::read_to_string("/proc/self/cgroup")
        .expect("cgroup")
        .lines()
        .map(|line| {
            let mut words = line.splitn(3, ':').skip(1);
            let names = words.next().expect("controllers");
            (
                names.split(',').next().expect("first").to_owned(),
                words.next().expect("path").to_owned(),
            )
        })
        .collect();
    let sets = CapabilitySets {
        permitted: KILL,
        effective: KILL,
        bounding: KILL,
        ..CapabilitySets::default()
    };
    let inherited = std::fs::read_to_string("/proc/self/status").expect("status");
    let filters: u32 = inherited
        .lines()
        .find_map(|l| l.strip_prefix("Seccomp_filters:"))
        .expect("filters")
        .trim()
        .parse()
        .expect("n");
    Promise {
        cgroups,
        cpus: Some(sched::affinity(0).expect("affinity")),
        scheduler: Some(Scheduler::Batch { nice: 3 }),
        timer_slack_ns: Some(12345),
        namespaces: [
            (NamespaceKind::Uts, NamespacePromise::New),
            (NamespaceKind::Ipc, NamespacePromise::New),
            (NamespaceKind::Net, NamespacePromise::New),
            (NamespaceKind::Mnt, NamespacePromise::New),
            (NamespaceKind::User, NamespacePromise::Host),
        ]
        .into(),
        capabilities: Some(sets.after_exec(true, true)),
        no_new_privs: true,
        seccomp: SeccompPromise {
            mode: 2,
            filters: filters + 1,
        },
        uid: Some(0),
        gid: Some(0),
        groups: Some(vec![9, 7]),
        uid_map: Some(vec![IdMap {
            inside: 0,
            outside: 0,
            count: u32::MAX,
        }]),
        mounts: vec![MountPromise {
            destination: "/mnt".into(),
            fs_type: Some("tmpfs".into()),
            flags: vec!["ro".into(), "nosuid".into()],
        }],
        masked_paths: vec!["/proc/kallsyms".into(), "/proc/there/is/none".into()],
        readonly_paths: vec!["/proc/sys".into()],
        rlimits: [("RLIMIT_NOFILE".to_owned(), Rlimit { soft: 77, hard: 99 })].into(),
        oom_score_adj: Some(0),
        foreign_executable: true,
        ..Promise::default()
    }
}

fn broken(promise: &Promise, pid: i32, stage: Stage) -> Vec<String> {
    let proof = read(promise, pid, stage, &PLACE).expect("proof");
    proof.failures().map(|f| f.name.clone()).collect()
}

#[test]
fn a_child_with_every_setting_holds() {
    let child = sleeper("");
    let promise = promise();
    for stage in [Stage::Armed, Stage::ExecStop, Stage::Running] {
        let proof = read(&promise, child.pid(), stage, &PLACE).expect("proof");
        assert!(
            proof.holds(),
            "{stage:?} {:#?}",
            proof.failures().collect::<Vec<_>>()
        );
        assert!(
            proof
                .facts
                .iter()
                .all(|f| !f.source.is_empty() && !f.actual.is_empty())
        );
    }
    assert!(read_cheap(&promise, child.pid(), &PLACE).expect("proof").holds());
}

#[test]
fn each_setting_left_out_is_found() {
    let table: [(&'static str, &[&str]); 11] = [
        ("namespaces", &["namespace.ipc", "namespace.net", "namespace.uts"]),
        ("mount", &["mount./mnt"]),
        ("masked", &["paths.masked"]),
        ("readonly", &["paths.readonly"]),
        ("rlimit", &["RLIMIT_NOFILE"]),
        ("slack", &["timer_slack"]),
        ("sched", &["sched"]),
        ("groups", &["groups"]),
        ("bounding", &["caps.bounding"]),
        ("no_new_privs", &["no_new_privs"]),
        ("seccomp", &["seccomp.mode", "seccomp.filters"]),
    ];
    for (without, expected) in table {
        let child = sleeper(without);
        let mut found = broken(&promise(), child.pid(), Stage::ExecStop);
        let mut expected: Vec<&str> = expected.to_vec();
        if without == "seccomp" && promise().seccomp.filters > 1 {
            expected = vec!["seccomp.filters"];
        }
        found.sort();
        expected.sort_unstable();
        assert_eq!(found, expected, "without {without}");
    }
}

#[test]
fn what_changes_behind_the_back_is_found() {
    let child = sleeper("");
    let pid = child.pid();
    let promise = promise();
    let limit = |soft| {
        let new = libc::rlimit {
            rlim_cur: soft,
            rlim_max: 99,
        };
        // SAFETY: one readable rlimit, no old value asked for.
        let answer = unsafe { libc::prlimit(pid, libc::RLIMIT_NOFILE, &new, std::ptr::null_mut()) };
        assert_eq!(answer, 0);
    };
    let file = |name: &str, text: &str| std::fs::write(format!("/proc/{pid}/{name}"), text).expect(name);
    let table: [(&str, Do<'_>, Do<'_>); 4] = [
        (
            "sched",
            &|| sched::set(pid, &Scheduler::Other { nice: 3 }, 0).expect("chrt"),
            &|| sched::set(pid, &Scheduler::Batch { nice: 3 }, 0).expect("chrt"),
        ),
        ("RLIMIT_NOFILE", &|| limit(50), &|| limit(77)),
        ("timer_slack", &|| file("timerslack_ns", "50000"), &|| {
            file("timerslack_ns", "12345")
        }),
        ("oom_score_adj", &|| file("oom_score_adj", "5"), &|| {
            file("oom_score_adj", "0")
        }),
    ];
    for (fact, change, restore) in table {
        change();
        assert_eq!(broken(&promise, pid, Stage::Running), [fact]);
        restore();
        assert_eq!(
            broken(&promise, pid, Stage::Running),
            [] as [String; 0],
            "{fact} restored"
        );
    }
    let cpus = sched::affinity(0).expect("affinity");
    let mut insisted = promise.clone();
    insisted.isolation = IsolationPromise::Isolated;
    let cheap = read_cheap(&insisted, pid, &PLACE).expect("proof");
    assert!(cheap.failures().any(|f| f.name == "cpus.isolation"));
    if cpus.len() > 1 {
        sched::set_affinity(pid, &cpus.iter().take(1).collect()).expect("taskset");
        assert_eq!(broken(&promise, pid, Stage::Running), ["cpus.allowed"]);
        let cheap = read_cheap(&promise, pid, &PLACE).expect("proof");
        assert!(cheap.failures().any(|f| f.name == "cpus.allowed"));
    }
}

#[test]
fn a_proof_in_two_halves_finds_what_a_whole_one_finds() {
    let child = sleeper("");
    let (pid, promise) = (child.pid(), promise());
    let names = |proof: &Proof| proof.facts.iter().map(|f| f.name.clone()).collect::<Vec<_>>();
    let whole = read(&promise, pid, Stage::ExecStop, &PLACE).expect("proof");
    let first = around(&promise, pid, Stage::ExecStop, &PLACE).expect("first half");
    // What exec(2) may change, and whatever else is the second half's, is read only then.
    sched::set(pid, &Scheduler::Other { nice: 3 }, 0).expect("chrt");
    std::fs::write(format!("/proc/{pid}/oom_score_adj"), "5").expect("oom_score_adj");
    let second = within(&promise, first, Stage::ExecStop, &PLACE).expect("second half");
    assert_eq!(names(&second), names(&whole), "no fact is dropped");
    let wrong: Vec<&str> = second.failures().map(|f| f.name.as_str()).collect();
    assert_eq!(wrong, ["sched", "oom_score_adj"]);
    // And what the first half found wrong stays wrong.
    let mut other = promise.clone();
    other.readonly_paths.push("/tmp".into());
    let first = around(&other, pid, Stage::ExecStop, &PLACE).expect("first half");
    let whole = within(&other, first, Stage::ExecStop, &PLACE).expect("second half");
    assert!(whole.failures().any(|f| f.name == "paths.readonly"));
}

#[test]
fn each_promise_that_differs_is_found() {
    let child = sleeper("");
    let table: [(&str, Change); 10] = [
        ("namespace.user", |p| {
            p.namespaces.insert(NamespaceKind::User, NamespacePromise::New);
        }),
        ("namespace.net", |p| {
            p.namespaces
                .insert(NamespaceKind::Net, NamespacePromise::Joined { inode: 1 });
        }),
        ("uid", |p| p.uid = Some(1)),
        ("gid", |p| p.gid = Some(1)),
        ("uid_map", |p| p.uid_map = Some(Vec::new())),
        ("no_new_privs", |p| p.no_new_privs = false),
        ("start_time", |p| p.start_time = Some(1)),
        ("mount.root", |p| {
            p.root_flags = vec!["nosuid".into(), "nosuchflag".into()]
        }),
        ("personality", |p| p.personality = Some(8)),
        ("mount./proc/none", |p| {
            p.mounts.push(MountPromise {
                destination: "/proc/none".into(),
                fs_type: None,
                flags: Vec::new(),
            });
        }),
    ];
    for (fact, change) in table {
        let mut promise = promise();
        change(&mut promise);
        assert_eq!(broken(&promise, child.pid(), Stage::ExecStop), [fact]);
    }
    for stage in [Stage::Armed, Stage::ExecStop] {
        let mut promise = promise();
        promise.cgroups.insert("nosuch".into(), "/".into());
        promise.devices = Some(Vec::new());
        promise.isolation = IsolationPromise::Isolated;
        promise.cgroup_files.push(CgroupFile {
            path: "/proc/none".into(),
            value: "1".into(),
        });
        let found = broken(&promise, child.pid(), stage);
        assert_eq!(found, ["cgroup.nosuch", "none", "devices", "cpus.isolation"]);
    }
}

#[test]
fn one_thread_of_many_is_found() {
    let (go, wait) = std::sync::mpsc::channel::<()>();
    let (ready, set) = std::sync::mpsc::channel();
    let thread = std::thread::spawn(move || {
        sched::set(0, &Scheduler::Batch { nice: 0 }, 0).expect("set");
        ready.send(()).expect("send");
        let _ = wait.recv();
    });
    set.recv().expect("ready");
    let status = std::fs::read_to_string("/proc/thread-self/status").expect("status");
    let text = procfs::status(&status).expect("parsed");
    let promise = Promise {
        scheduler: Some(Scheduler::Other { nice: 0 }),
        seccomp: SeccompPromise {
            mode: text.seccomp,
            filters: text.filters.unwrap_or(0),
        },
        no_new_privs: text.no_new_privs,
        ..Promise::default()
    };
    let proof = read(&promise, std::process::id() as i32, Stage::Running, &PLACE).expect("proof");
    drop(go);
    thread.join().expect("join");
    let failures: Vec<&Fact> = proof.failures().collect();
    assert_eq!(failures.len(), 1, "{failures:#?}");
    assert!(
        failures[0].name == "sched" && failures[0].actual.contains("thread "),
        "{failures:#?}"
    );
}

#[test]
fn the_own_executable_is_found_and_no_process_is_no_proof() {
    let promise = Promise {
        foreign_executable: true,
        ..Promise::default()
    };
    let proof = read(&promise, std::process::id() as i32, Stage::ExecStop, &PLACE).expect("proof");
    assert!(proof.failures().any(|f| f.name == "executable"));
    let gone = Command::new("true")
        .spawn()
        .and_then(|mut c| c.wait().map(|_| c.id()))
        .expect("true");
    assert!(matches!(
        read(&promise, gone as i32, Stage::Running, &PLACE),
        Err(ProofError::Process { .. })
    ));
}

#[test]
fn a_file_on_no_mount_of_the_process_is_no_executable() {
    use std::io::Write;
    use std::os::fd::AsRawFd;
    let promise = Promise {
        foreign_executable: true,
        ..Promise::default()
    };
    let memory = nix::sys::memfd::memfd_create("program", nix::sys::memfd::MFdFlags::empty()).expect("memfd");
    let mut file = std::fs::File::from(memory);
    file.write_all(&std::fs::read("/bin/sleep").expect("sleep"))
        .expect("write");
    for (program, wrong) in [
        ("/bin/sleep".to_owned(), vec![]),
        (
            format!("/proc/self/fd/{}", file.as_raw_fd()),
            vec!["executable.mount".to_owned()],
        ),
    ] {
        let mut child = Command::new(&program).arg("100").spawn().expect("spawn");
        let found = broken(&promise, child.id() as i32, Stage::ExecStop);
        let later = broken(&promise, child.id() as i32, Stage::Running);
        child.kill().and_then(|()| child.wait()).expect("end");
        assert_eq!(found, wrong, "{program}");
        assert_eq!(later, Vec::<String>::new(), "{program}");
    }
}

#[test]
fn device_rules_are_read_back() {
    let hierarchy = Hierarchy::discover(Path::new("/")).expect("hierarchy");
    let path = format!("berth-proof-{}", std::process::id());
    let wanted = Wanted::new().and(Controller::Devices, "test");
    let cgroup = Cgroup::create(&hierarchy, &path, &wanted).expect("create");
    let rules: Vec<oci_spec::runtime::LinuxDeviceCgroup> = serde_json::from_str(
        r#"[{"allow":false,"access":"rwm"},{"allow":true,"type":"c","major":1,"minor":3,"access":"rw"}]"#,
    )
    .expect("rules");
    let checked = cgroup.set_devices(&rules).map(|()| {
        let place = Where {
            proc_root: Path::new("/proc"),
            cgroup: Some(&cgroup),
        };
        let promise = Promise {
            devices: Some(vec!["c 1:3 wr".into()]),
            ..Promise::default()
        };
        let me = std::process::id() as i32;
        let ask = || {
            let proof = read(&promise, me, Stage::Armed, &place).expect("proof");
            proof
                .facts
                .into_iter()
                .find(|f| f.name == "devices")
                .expect("fact")
        };
        let before = ask();
        let added = cgroup.allow_device(&DeviceRule::device(true, DeviceKind::Char, 1, 5, Access::READ));
        (before, added, ask())
    });
    let removed = cgroup.remove();
    let (before, added, after) = checked.expect("set");
    assert!(removed.is_ok(), "{removed:?}");
    assert!(before.holds, "{before:?}");
    added.expect("allow");
    assert!(!after.holds, "{after:?}");
}

#[test]
fn cost() {
    let child = sleeper("");
    let promise = promise();
    let best = |work: &dyn Fn()| {
        let rounds = (0..100).map(|_| {
            let start = std::time::Instant::now();
            work();
            start.elapsed()
        });
        rounds.min().expect("rounds")
    };
    let whole = best(&|| drop(read(&promise, child.pid(), Stage::ExecStop, &PLACE)));
    let cheap = best(&|| drop(read_cheap(&promise, child.pid(), &PLACE)));
    println!("proof at the exec stop {whole:?}, cheap {cheap:?}");
}
