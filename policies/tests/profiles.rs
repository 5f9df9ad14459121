//! Shipped profiles, `extends`, refusals by name, and that `apply` leaves nothing of what stood in a document.

use std::collections::BTreeMap;

use berth_policies::{
    OnDrift, Profile, ProfileError, ProfileSpec, Seccomp, is_loud, resolve, shipped, shipped_names,
};
use oci_spec::runtime::{Capability, LinuxSeccompAction, Spec};
use serde_json::json;

fn spec(value: serde_json::Value) -> ProfileSpec {
    serde_json::from_value(value).expect("profile")
}

fn custom(list: &[(&str, serde_json::Value)]) -> BTreeMap<String, ProfileSpec> {
    list.iter()
        .map(|(name, value)| ((*name).to_owned(), spec(value.clone())))
        .collect()
}

fn plain(name: &str) -> Profile {
    resolve(name, &BTreeMap::new()).expect(name)
}

#[test]
fn every_shipped_profile_reads_and_resolves() {
    for name in shipped_names() {
        let written = shipped(name).unwrap_or_else(|| panic!("{name} does not read"));
        assert_eq!(written.validate(), [], "{name}");
        let profile = plain(name);
        assert_eq!(profile.loud, name == "privileged", "{name}");
        assert_eq!(is_loud(name, &BTreeMap::new()), profile.loud, "{name}");
        assert_eq!(profile.no_new_privileges, name != "privileged", "{name}");
        assert_eq!(profile.chain.last().map(String::as_str), Some("strict"), "{name}");
        assert!(profile.namespaces.len() == 6, "{name}");
    }
}

#[test]
fn what_the_shipped_profiles_grant() {
    let table: [(&str, &[&str]); 4] = [
        ("strict", &[]),
        ("realtime", &["CAP_IPC_LOCK", "CAP_SYS_NICE"]),
        ("device-worker", &["CAP_NET_RAW"]),
        (
            "network-function",
            &[
                "CAP_IPC_LOCK",
                "CAP_NET_ADMIN",
                "CAP_NET_BIND_SERVICE",
                "CAP_NET_RAW",
                "CAP_SYS_NICE",
            ],
        ),
    ];
    for (name, expected) in table {
        assert_eq!(
            plain(name).capabilities.into_iter().collect::<Vec<_>>(),
            expected,
            "{name}"
        );
    }
    assert_eq!(plain("privileged").capabilities.len(), 41);
    assert_eq!(plain("privileged").seccomp, Seccomp::Unconfined);
    assert!(plain("strict").readonly_root && !plain("system").readonly_root);
}

/// The action for a name that has an entry without arguments; `None`: there is none.
fn whole(profile: &Profile, name: &str) -> Option<LinuxSeccompAction> {
    let section = profile.section().expect("section").expect("a filter");
    let mine =
        |c: &&oci_spec::runtime::LinuxSyscall| c.args().is_none() && c.names().iter().any(|n| n == name);
    section.syscalls().iter().flatten().find(mine).map(|c| c.action())
}

#[test]
fn system_calls_of_the_shipped_profiles() {
    use LinuxSeccompAction::{ScmpActAllow as Allow, ScmpActErrno as Errno};
    let table = [
        ("strict", "read", Some(Allow)),
        ("strict", "sched_setattr", Some(Allow)),
        ("strict", "mount", Some(Errno)),
        ("strict", "bpf", Some(Errno)),
        ("strict", "io_uring_setup", None),
        ("strict", "mbind", Some(Errno)),
        ("realtime", "mbind", Some(Allow)),
        ("strict", "chroot", Some(Errno)),
        ("system", "chroot", Some(Allow)),
        ("strict", "socket", None),
        ("network-function", "socket", None),
    ];
    for (profile, name, expected) in table {
        assert_eq!(whole(&plain(profile), name), expected, "{profile} {name}");
    }
    let section = plain("strict").section().expect("section").expect("a filter");
    assert_eq!(section.default_errno_ret(), Some(38));
    assert!(section.architectures().is_none(), "native only");
}

#[test]
fn changes_are_made_in_order() {
    let custom = custom(&[
        (
            "a",
            json!({"extends": "realtime", "capabilities": {"add": ["CAP_KILL"], "drop": ["CAP_IPC_LOCK"], "ambient": ["CAP_KILL"]}}),
        ),
        (
            "b",
            json!({"extends": "a", "seccomp": {"deny": ["read"]}, "devices": {"add": ["c 10:1 r"], "drop": ["c 1:9 rwm"]},
                     "maskedPaths": {"set": ["/x"]}, "rlimits": {"RLIMIT_CORE": {"soft": 1, "hard": "unlimited"}}}),
        ),
    ]);
    let b = resolve("b", &custom).expect("b");
    assert_eq!(b.chain, ["b", "a", "realtime", "strict"]);
    assert_eq!(
        b.capabilities.iter().copied().collect::<Vec<_>>(),
        ["CAP_KILL", "CAP_SYS_NICE"]
    );
    assert_eq!(b.ambient.iter().copied().collect::<Vec<_>>(), ["CAP_KILL"]);
    assert_eq!(whole(&b, "read"), Some(LinuxSeccompAction::ScmpActErrno));
    assert_eq!(b.devices.len(), plain("strict").devices.len());
    assert_eq!(b.masked_paths, ["/x"]);
    assert_eq!(b.rlimits["RLIMIT_CORE"].hard, u64::MAX);
    let loud = custom_one(json!({"extends": "privileged", "loud": false}));
    assert!(resolve("p", &loud).expect("p").loud, "loud stays loud");
    assert!(is_loud("p", &loud) && !is_loud("b", &custom) && !is_loud("none", &custom));
}

fn custom_one(value: serde_json::Value) -> BTreeMap<String, ProfileSpec> {
    custom(&[("p", value)])
}

#[test]
fn what_is_wrong_is_refused_by_name() {
    let table = [
        (
            json!({"capabilities": {"add": ["CAP_SYS_NIEC"]}}),
            "spec.capabilities.add[0]",
            "CAP_SYS_NICE",
        ),
        (
            json!({"capabilities": {"add": ["SYS_NICE"]}}),
            "spec.capabilities.add[0]",
            "CAP_SYS_NICE",
        ),
        (
            json!({"capabilities": {"add": ["CAP_KILL"], "drop": ["CAP_KILL"]}}),
            "spec.capabilities",
            "CAP_KILL",
        ),
        (
            json!({"capabilities": {"drop": ["CAP_KILL"]}}),
            "spec.capabilities.drop",
            "not there",
        ),
        (
            json!({"capabilities": {"ambient": ["CAP_KILL"]}}),
            "spec.capabilities.ambient",
            "without being granted",
        ),
        (
            json!({"seccomp": {"allow": ["opneat"]}}),
            "spec.seccomp.allow[0]",
            "openat",
        ),
        (
            json!({"seccomp": {"allow": ["read"], "deny": ["read"]}}),
            "spec.seccomp",
            "read",
        ),
        (
            json!({"seccomp": {"unconfined": true, "deny": ["read"]}}),
            "spec.seccomp.unconfined",
            "nothing",
        ),
        (
            json!({"seccomp": {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["raed"], "action": "SCMP_ACT_KILL"}]}}),
            "spec.seccomp.syscalls[0].names[0]",
            "read",
        ),
        (
            json!({"extends": "privileged", "seccomp": {"deny": ["read"]}}),
            "spec.seccomp",
            "no system call filter",
        ),
        (
            json!({"namespaces": ["mount", "pid", "net"]}),
            "spec.namespaces[2]",
            "unknown namespace",
        ),
        (json!({"namespaces": ["mount"]}), "spec.namespaces", "pid"),
        (json!({"mountFlags": ["nosudi"]}), "spec.mountFlags[0]", "nosuid"),
        (
            json!({"devices": {"add": ["c 1 r"]}}),
            "spec.devices.add[0]",
            "expected",
        ),
        (
            json!({"maskedPaths": {"add": ["proc"]}}),
            "spec.maskedPaths.add[0]",
            "absolute",
        ),
        (
            json!({"readonlyPaths": {"drop": ["/none"]}}),
            "spec.readonlyPaths",
            "not there",
        ),
        (
            json!({"rlimits": {"RLIMIT_NOFLIE": {"soft": 1, "hard": 1}}}),
            "spec.rlimits.RLIMIT_NOFLIE",
            "RLIMIT_NOFILE",
        ),
        (
            json!({"rlimits": {"RLIMIT_CORE": {"soft": "unlimited", "hard": 1}}}),
            "spec.rlimits.RLIMIT_CORE",
            "above",
        ),
        (
            json!({"selinuxLabel": "x", "apparmorProfile": "y"}),
            "spec.apparmorProfile",
            "not both",
        ),
    ];
    let more = [
        (
            json!({"sysctls": {"kernel.core_pattern": "x"}}),
            "spec.sysctls.kernel.core_pattern",
            "no namespace",
        ),
        (
            json!({"sysctls": {"net..x": "1"}}),
            "spec.sysctls.net..x",
            "not the name",
        ),
        (json!({"sysctls": {"net.x": ""}}), "spec.sysctls.net.x", "empty"),
        (
            json!({"sysctls": {"net.ipv4.ip_forward": "1"}, "namespaces": ["mount", "pid"]}),
            "spec.sysctls.net.ipv4.ip_forward",
            "network namespace",
        ),
        (json!({"landlock": {}}), "spec.landlock", "handles nothing"),
        (
            json!({"landlock": {"paths": [{"path": "/a", "access": ["read"]}]}}),
            "spec.landlock.paths",
            "executed",
        ),
        (
            json!({"landlock": {"paths": [{"path": "/a", "access": ["execute", "wirte"]}]}}),
            "spec.landlock.paths[0].access[1]",
            "write",
        ),
        (
            json!({"landlock": {"scope": ["signal"]}}),
            "spec.landlock.scope[0]",
            "signals",
        ),
        (
            json!({"capabilities": {"effective": ["CAP_KILL"]}}),
            "spec.capabilities.effective",
            "permitted",
        ),
        (
            json!({"capabilities": {"permitted": ["CAP_KILL"]}}),
            "spec.capabilities.permitted",
            "bounding",
        ),
        (
            json!({"capabilities": {"add": ["CAP_KILL"], "ambient": ["CAP_KILL"], "inheritable": []}}),
            "spec.capabilities.ambient",
            "inheritable",
        ),
    ];
    for (value, path, word) in table.into_iter().chain(more) {
        match resolve("p", &custom_one(value.clone())) {
            Err(ProfileError::Field { name, problem }) => {
                assert_eq!((name.as_str(), problem.path.as_str()), ("p", path), "{value}");
                assert!(problem.message.contains(word), "{value}: {}", problem.message);
            }
            other => panic!("{value}: {other:?}"),
        }
    }
}

#[test]
fn unknown_fields_and_values_do_not_read() {
    for value in [
        json!({"capabilites": {}}),
        json!({"onMissing": {"landlok": "skip"}}),
        json!({"onMissing": {"landlock": "ignore"}}),
        json!({"landlock": {"path": []}}),
        json!({"capabilities": {"plus": []}}),
        json!({"userNamespace": "mine"}),
        json!({"seccomp": {"alow": []}}),
        json!({"seccomp": {"defaultAction": "SCMP_ACT_ALLOW", "syscals": []}}),
        json!({"seccomp": {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["read"], "action": "SCMP_ACT_KILL", "arg": []}]}}),
        json!({"seccomp": {"defaultAction": "SCMP_ACT_ALOW"}}),
        json!({"rlimits": {"RLIMIT_CORE": {"soft": -1, "hard": 1}}}),
        json!({"devices": ["c 1:3 r"]}),
    ] {
        assert!(
            serde_json::from_value::<ProfileSpec>(value.clone()).is_err(),
            "{value}"
        );
    }
}

#[test]
fn names_circles_and_shipped_ones() {
    let circle = custom(&[
        ("a", json!({"extends": "b"})),
        ("b", json!({"extends": "c"})),
        ("c", json!({"extends": "b"})),
    ]);
    let chain = ["b", "c", "b"].map(String::from).to_vec();
    assert_eq!(resolve("a", &circle), Err(ProfileError::Circle { chain }));
    let own = custom(&[("a", json!({"extends": "a"}))]);
    assert!(matches!(resolve("a", &own), Err(ProfileError::Circle { .. })));
    let missing = resolve("stirct", &BTreeMap::new()).expect_err("unknown");
    assert_eq!(
        missing,
        ProfileError::Unknown {
            name: "stirct".into(),
            nearest: Some("strict".into())
        }
    );
    assert!(missing.hint().is_some());
    let again = custom(&[("strict", json!({}))]);
    assert_eq!(
        resolve("strict", &again),
        Err(ProfileError::Shipped {
            name: "strict".into()
        })
    );
}

/// A document with everything a profile must not leave as it is.
fn hostile() -> Spec {
    serde_json::from_value(json!({
        "ociVersion": "1.3.0",
        "root": {"path": "rootfs", "readonly": false},
        "mounts": [
            {"destination": "/data", "type": "bind", "source": "/srv", "options": ["rbind", "suid", "rdev"]},
            {"destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": ["newinstance"]}],
        "process": {"user": {"uid": 0, "gid": 0}, "cwd": "/", "args": ["x"], "noNewPrivileges": false,
            "capabilities": {"bounding": ["CAP_SYS_ADMIN"], "effective": ["CAP_SYS_ADMIN"], "permitted": ["CAP_SYS_ADMIN"],
                             "inheritable": ["CAP_SYS_ADMIN"], "ambient": ["CAP_SYS_ADMIN"]},
            "rlimits": [{"type": "RLIMIT_NPROC", "soft": 7, "hard": 7}],
            "selinuxLabel": "a:b:c:s0", "apparmorProfile": "unconfined"},
        "linux": {
            "namespaces": [{"type": "network", "path": "/proc/1/ns/net"}, {"type": "user"}],
            "uidMappings": [{"containerID": 0, "hostID": 0, "size": 1}],
            "gidMappings": [{"containerID": 0, "hostID": 0, "size": 1}],
            "sysctl": {"kernel.core_pattern": "|/x"}, "rootfsPropagation": "shared", "mountLabel": "x",
            "devices": [{"path": "/dev/sda", "type": "b", "major": 8, "minor": 0}],
            "resources": {"devices": [{"allow": true, "access": "rwm"}], "memory": {"limit": 1024}},
            "personality": {"domain": "LINUX32"}, "maskedPaths": [], "readonlyPaths": []}
    }))
    .expect("document")
}

#[test]
fn apply_leaves_nothing_of_what_stood_there() {
    let mut document = hostile();
    plain("strict").apply(&mut document).expect("apply");
    let value = serde_json::to_value(&document).expect("json");
    let text = value.to_string();
    for word in [
        "SYS_ADMIN",
        "RLIMIT_NPROC",
        "a:b:c",
        "unconfined",
        "/proc/1/ns",
        "core_pattern",
        "shared",
        "mountLabel",
        "sda",
        "LINUX32",
        "uidMappings",
        "gidMappings",
        "\"suid\"",
        "\"rdev\"",
    ] {
        assert!(!text.contains(word), "{word} survived: {text}");
    }
    assert_eq!(value["root"]["readonly"], true);
    assert_eq!(value["process"]["noNewPrivileges"], true);
    assert_eq!(
        value["linux"]["namespaces"].as_array().map(Vec::len),
        Some(7),
        "the user namespace too"
    );
    assert_eq!(value["linux"]["resources"]["devices"][0]["allow"], false);
    assert_eq!(
        value["linux"]["resources"]["memory"]["limit"], 1024,
        "limits are not the profile's"
    );
    assert_eq!(value["mounts"][0]["options"], json!(["rbind", "nodev", "nosuid"]));
    assert_eq!(value["mounts"][1]["options"], json!(["newinstance", "nosuid"]));
    let caps = document
        .process()
        .as_ref()
        .and_then(|p| p.capabilities().clone())
        .expect("capabilities");
    for set in [
        caps.bounding(),
        caps.effective(),
        caps.permitted(),
        caps.inheritable(),
        caps.ambient(),
    ] {
        assert_eq!(set.as_ref().map(|s| s.len()), Some(0));
    }
}

#[test]
fn apply_grants_what_the_profile_grants() {
    let custom = custom_one(json!({"extends": "realtime", "capabilities": {"ambient": ["CAP_SYS_NICE"]}}));
    let mut document = hostile();
    resolve("p", &custom)
        .expect("p")
        .apply(&mut document)
        .expect("apply");
    let caps = document
        .process()
        .as_ref()
        .and_then(|p| p.capabilities().clone())
        .expect("capabilities");
    let both = [Capability::SysNice, Capability::IpcLock].into_iter().collect();
    assert_eq!(caps.bounding(), &Some(both));
    assert_eq!(caps.ambient(), &Some([Capability::SysNice].into_iter().collect()));
    assert_eq!(caps.inheritable(), caps.ambient());
    let mut document = hostile();
    plain("privileged").apply(&mut document).expect("apply");
    let value = serde_json::to_value(&document).expect("json");
    assert!(value["linux"].get("seccomp").is_none());
    assert_eq!(
        value["linux"]["resources"]["devices"][1],
        json!({"allow": true, "type": "a", "access": "rwm"})
    );
    let mut empty = Spec::default();
    empty.set_linux(None);
    assert!(plain("strict").apply(&mut empty).is_err());
}

#[test]
fn each_line_has_the_profile_it_comes_from() {
    let custom = custom(&[
        (
            "a",
            json!({"extends": "realtime", "capabilities": {"add": ["CAP_KILL"]}, "sysctls": {"net.core.somaxconn": "9"},
                     "onMissing": {"landlock": "skip"}, "seccomp": {"deny": ["read"]}}),
        ),
        (
            "b",
            json!({"extends": "a", "capabilities": {"drop": ["CAP_IPC_LOCK"]}, "sysctls": {"net.core.somaxconn": "10"},
                     "onMissing": {"landlock": "refuse"}, "rlimits": {"RLIMIT_CORE": {"soft": 0, "hard": 0}}}),
        ),
    ]);
    let b = resolve("b", &custom).expect("b");
    let origin = |field: &str, value: &str| {
        let line = b.lines.iter().find(|l| l.field == field && l.value == value);
        line.map(|l| l.origin.as_str())
    };
    let table = [
        ("capabilities", "CAP_KILL", Some("a")),
        ("capabilities", "CAP_SYS_NICE", Some("realtime")),
        ("capabilities", "CAP_IPC_LOCK", None),
        ("sysctls.net.core.somaxconn", "10", Some("b")),
        ("sysctls.net.core.somaxconn", "9", None),
        ("rlimits.RLIMIT_CORE", "0:0", Some("strict")),
        ("seccomp.allow", "write", Some("strict")),
        ("seccomp.allow", "mbind", Some("realtime")),
        ("seccomp.errno 1", "read", Some("a")),
        ("noNewPrivileges", "true", Some("strict")),
        ("onMissing", "landlock: skip", None),
        ("devices", "c 1:3 rwm", Some("strict")),
    ];
    for (field, value, expected) in table {
        assert_eq!(origin(field, value), expected, "{field} {value}");
    }
    assert!(b.skip.is_empty());
}

#[test]
fn five_sets_as_written() {
    let custom = custom_one(
        json!({"capabilities": {"add": ["CAP_KILL", "CAP_CHOWN"], "permitted": ["CAP_KILL"], "effective": [],
                                                   "inheritable": ["CAP_KILL"], "ambient": ["CAP_KILL"]}}),
    );
    let mut document = hostile();
    resolve("p", &custom)
        .expect("p")
        .apply(&mut document)
        .expect("apply");
    let value = serde_json::to_value(&document).expect("json");
    let sets = &value["process"]["capabilities"];
    let kill = json!(["CAP_KILL"]);
    for (name, expected) in [
        ("permitted", &kill),
        ("effective", &json!([])),
        ("inheritable", &kill),
        ("ambient", &kill),
    ] {
        assert_eq!(&sets[name], expected, "{name}");
    }
    assert_eq!(sets["bounding"].as_array().map(Vec::len), Some(2));
}

#[test]
fn the_answer_to_drift_is_the_profiles() {
    for name in shipped_names() {
        assert_eq!(plain(name).on_drift, OnDrift::Report, "{name}");
    }
    let list = custom(&[
        ("careful", json!({"onDrift": "freeze"})),
        ("heir", json!({"extends": "careful"})),
        ("strictest", json!({"extends": "careful", "onDrift": "stop"})),
    ]);
    let answer = |name: &str| resolve(name, &list).unwrap().on_drift;
    assert_eq!(answer("heir"), OnDrift::Freeze);
    assert_eq!(answer("strictest"), OnDrift::Stop);
    // Of a profile's and a workload's the greater one counts.
    assert!(OnDrift::Report < OnDrift::Freeze && OnDrift::Freeze < OnDrift::Stop);
    let line = resolve("heir", &list)
        .unwrap()
        .lines
        .into_iter()
        .find(|l| l.field == "onDrift")
        .unwrap();
    assert_eq!((line.value.as_str(), line.origin.as_str()), ("freeze", "careful"));
    assert!(serde_json::from_value::<ProfileSpec>(json!({"onDrift": "ignore"})).is_err());
}
