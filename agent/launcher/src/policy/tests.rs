//! What the policy says to each thing an agent can ask for.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use berth_policies::{Profile, ProfileSpec, resolve};
use serde_json::{Value, json};

use super::{DeviceWord, Disks, Policy, PolicyFile, from_json};
use crate::check::tests::request;
use crate::wire::LaunchRequest;

fn profile(spec: Value) -> Profile {
    let spec: ProfileSpec = serde_json::from_value(spec).unwrap();
    resolve("own", &BTreeMap::from([("own".to_owned(), spec)])).unwrap()
}

fn shipped(name: &str) -> Profile {
    resolve(name, &BTreeMap::new()).unwrap()
}

fn policy(text: Value) -> Policy {
    let policy: Policy = serde_json::from_value(text).unwrap();
    policy.validate().unwrap();
    policy
}

fn asks(change: Value) -> LaunchRequest {
    let mut value = serde_json::to_value(request()).unwrap();
    // What it has is what others test.
    for list in ["mounts", "devices", "interfaces"] {
        value[list] = json!([]);
    }
    value["network"] = json!("none");
    value
        .as_object_mut()
        .unwrap()
        .extend(change.as_object().unwrap().clone());
    serde_json::from_value(value).unwrap()
}

fn device(kind: &str, major: u32, minor: u32) -> Value {
    json!({"devices": [{"block": kind == "b", "major": major, "minor": minor, "path": "/dev/x", "access": "rw", "mode": 384, "uid": 0, "gid": 0}]})
}

#[test]
fn the_defaults_are_strict() {
    let default = Policy::default();
    for name in [
        "strict",
        "realtime",
        "device-worker",
        "network-function",
        "system",
    ] {
        default.judge(&asks(json!({})), &shipped(name)).unwrap();
    }
    let refused = |request: Value, setting: &str| {
        let no = default
            .judge(&asks(request.clone()), &shipped("strict"))
            .unwrap_err();
        assert_eq!(no.stage, "policy");
        assert!(
            no.hint.as_ref().unwrap().contains(&format!("`{setting}`")),
            "{request}: {no:?}"
        );
    };
    for (kind, major, minor) in [
        ("c", 1, 1),
        ("c", 1, 2),
        ("c", 1, 4),
        ("c", 202, 3),
        ("c", 10, 237),
    ] {
        refused(device(kind, major, minor), "devices.deny");
    }
    for mount in ["/", "/etc", "/root/.ssh", "/var/lib", "/home"] {
        refused(
            json!({"mounts": [{"source": mount, "destination": "/data", "read_only": true}]}),
            "mounts",
        );
    }
    refused(json!({"network": "host"}), "hostNetwork");
    refused(json!({"vfio": [{"address": "0000:03:00.0"}]}), "vfio");
    refused(
        json!({"scheduler": {"policy": "fifo", "priority": 99}}),
        "realtimePriority",
    );
    let no = default
        .judge(&asks(json!({})), &shipped("privileged"))
        .unwrap_err();
    assert!(no.message.contains("privileged"), "{no:?}");
    // What a plugged device needs goes through.
    default
        .judge(&asks(device("c", 188, 0)), &shipped("device-worker"))
        .unwrap();
    default
        .judge(
            &asks(json!({"interfaces": [{"name": "eth7", "index": 9}]})),
            &shipped("network-function"),
        )
        .unwrap();
}

#[test]
fn a_profile_of_the_nodes_own_is_judged_by_what_it_gives() {
    let default = Policy::default();
    let ask = asks(json!({}));
    default
        .judge(
            &ask,
            &profile(json!({"capabilities": {"add": ["CAP_NET_RAW"]}, "readonlyRoot": false})),
        )
        .unwrap();
    let table = [
        (
            json!({"capabilities": {"add": ["CAP_SYS_ADMIN"]}}),
            "limits.capabilities",
            json!({"capabilities": ["CAP_SYS_ADMIN"]}),
        ),
        (
            json!({"capabilities": {"bounding": ["CAP_SYS_MODULE"]}}),
            "limits.capabilities",
            json!({"capabilities": ["CAP_SYS_MODULE"]}),
        ),
        (
            json!({"noNewPrivileges": false}),
            "limits.newPrivileges",
            json!({"newPrivileges": true}),
        ),
        (
            json!({"seccomp": {"unconfined": true}}),
            "limits.unfiltered",
            json!({"unfiltered": true}),
        ),
        (
            json!({"seccomp": {"defaultAction": "SCMP_ACT_ALLOW"}}),
            "limits.unfiltered",
            json!({"unfiltered": true}),
        ),
        (
            json!({"seccomp": {"defaultAction": "SCMP_ACT_LOG"}}),
            "limits.unfiltered",
            json!({"unfiltered": true}),
        ),
        (
            json!({"namespaces": ["mount", "pid"]}),
            "limits.looserThanStrict",
            json!({"looserThanStrict": true}),
        ),
        (
            json!({"mountFlags": []}),
            "limits.looserThanStrict",
            json!({"looserThanStrict": true}),
        ),
        (
            json!({"maskedPaths": {"set": []}}),
            "limits.looserThanStrict",
            json!({"looserThanStrict": true}),
        ),
        (
            json!({"readonlyPaths": {"set": []}}),
            "limits.looserThanStrict",
            json!({"looserThanStrict": true}),
        ),
        (
            json!({"selinuxLabel": "u:r:unconfined_t:s0"}),
            "limits.labels",
            json!({"labels": ["u:r:unconfined_t:s0"]}),
        ),
        (
            json!({"apparmorProfile": "unconfined"}),
            "limits.labels",
            json!({"labels": ["unconfined"]}),
        ),
    ];
    for (spec, setting, limits) in table {
        let own = profile(spec.clone());
        let no = default.judge(&ask, &own).unwrap_err();
        assert!(
            no.hint.as_ref().unwrap().contains(&format!("`{setting}`")),
            "{spec}: {no:?}"
        );
        policy(json!({"limits": limits})).judge(&ask, &own).unwrap();
    }
    for devices in [json!(["a *:* rwm"]), json!(["b 8:0 r"]), json!(["c 1:* r"])] {
        let own = profile(json!({"devices": {"add": devices}}));
        assert!(default.judge(&ask, &own).is_err(), "{devices}");
    }
    default
        .judge(&ask, &profile(json!({"devices": {"add": ["c 10:200 rw"]}})))
        .unwrap();
    let loud = profile(json!({"loud": true, "capabilities": {"add": ["CAP_SYS_ADMIN"]}}));
    assert!(default.judge(&ask, &loud).is_err());
    policy(json!({"privileged": true})).judge(&ask, &loud).unwrap();
    let named = policy(json!({"profiles": ["strict"], "privileged": true}));
    named.judge(&ask, &shipped("strict")).unwrap();
    for other in [shipped("realtime"), shipped("privileged"), profile(json!({}))] {
        assert!(
            named
                .judge(&ask, &other)
                .unwrap_err()
                .hint
                .unwrap()
                .contains("`profiles`")
        );
    }
}

#[test]
fn each_list_decides() {
    let strict = shipped("strict");
    let refused = |rules: Value, ask: Value, word: &str| {
        let no = policy(rules.clone()).judge(&asks(ask), &strict).unwrap_err();
        assert!(no.message.contains(word), "{rules}: {no:?}");
    };
    let taken = |rules: Value, ask: Value| policy(rules).judge(&asks(ask), &strict).unwrap();
    refused(
        json!({"devices": {"allow": ["c 188:* rw"]}}),
        device("c", 189, 0),
        "c 189:0 rw",
    );
    taken(json!({"devices": {"allow": ["c 188:* rw"]}}), device("c", 188, 5));
    refused(
        json!({"devices": {"allow": ["c 188:* r"]}}),
        device("c", 188, 5),
        "may not",
    );
    refused(
        json!({"devices": {"deny": ["c 188:5 w"]}}),
        device("c", 188, 5),
        "denied",
    );
    let interface = |name: &str| json!({"interfaces": [{"name": name, "index": 4}]});
    refused(json!({"interfaces": ["eth*", "wan"]}), interface("wan0"), "wan0");
    taken(json!({"interfaces": ["eth*", "wan"]}), interface("eth12"));
    let network = |name: &str| json!({"cni": {"network": name}});
    refused(
        json!({"networks": ["edge-*", "wan"]}),
        network("office"),
        "network office",
    );
    refused(json!({"networks": []}), network("wan"), "network wan");
    taken(json!({"networks": ["edge-*", "wan"]}), network("edge-7"));
    taken(json!({}), network("office"));
    let port = |host: u16, protocol: &str| json!({"cni": {"network": "wan", "ports": [{"host": host, "container": 80, "protocol": protocol}]}});
    refused(json!({}), port(443, "tcp"), "port 443/tcp");
    taken(json!({}), port(8443, "tcp"));
    refused(
        json!({"ports": ["8000-8099/tcp"]}),
        port(8443, "tcp"),
        "port 8443/tcp",
    );
    refused(
        json!({"ports": ["8000-8099/tcp"]}),
        port(8080, "udp"),
        "port 8080/udp",
    );
    taken(json!({"ports": ["443", "8000-8099/tcp"]}), port(443, "udp"));
    refused(json!({"ports": []}), port(8080, "tcp"), "port 8080/tcp");
    let mount = |path: &str, read_only: bool| json!({"mounts": [{"source": path, "destination": "/d", "read_only": read_only}]});
    let mounts = json!({"mounts": [{"path": "/srv/a"}, {"path": "/srv/a/spool", "write": true}]});
    taken(mounts.clone(), mount("/srv/a/x", true));
    taken(mounts.clone(), mount("/srv/a/spool/y", false));
    refused(mounts.clone(), mount("/srv/a/x", false), "read-only");
    refused(mounts, mount("/srv/ab", true), "/srv/ab");
    refused(
        json!({"cpus": "1-3"}),
        json!({"placement": {"cpus": "0-1", "shared": true}}),
        "only 1-3",
    );
    taken(
        json!({"cpus": "0-3"}),
        json!({"placement": {"cpus": "0-1", "shared": true}}),
    );
    let zeros = format!("sha256:{}", "0".repeat(64));
    refused(json!({"images": [zeros]}), json!({}), "image sha256:");
    let deadline = json!({"scheduler": {"policy": "deadline", "runtime": 1_000_000, "deadline": 2_000_000, "period": 2_000_000}});
    refused(json!({"deadline": false}), deadline, "DEADLINE");
}

#[test]
fn what_means_nothing_is_refused() {
    for (text, word) in [
        (r#"{"profile": []}"#, "unknown field `profile`"),
        (r#"{"devices": {"allow": ["x 1:1 r"]}}"#, "a device such as"),
        (r#"{"devices": {"allow": ["c 1 r"]}}"#, "a device such as"),
        (r#"{"devices": {"allow": ["c 1:1 rr"]}}"#, "a device such as"),
    ] {
        assert!(
            from_json(Path::new("p"), text).unwrap_err().contains(word),
            "{text}"
        );
    }
    for (text, word) in [
        (r#"{"realtimePriority": 100}"#, "0 to 99"),
        (r#"{"cpus": "x"}"#, "cpus"),
        (r#"{"cpus": ""}"#, "cpus"),
        (r#"{"images": ["busybox"]}"#, "images[0]"),
        (r#"{"mounts": [{"path": "srv"}]}"#, "absolute"),
        (r#"{"mounts": [{"path": "/srv/../etc"}]}"#, "absolute"),
        (r#"{"limits": {"capabilities": ["CAP_FLY"]}}"#, "CAP_FLY"),
    ] {
        let why = from_json(Path::new("p"), text).unwrap().validate().unwrap_err();
        assert!(why.contains(word), "{text}: {why}");
    }
    assert_eq!("b 8:* rw".parse::<DeviceWord>().unwrap().to_string(), "b 8:* rw");
}

#[test]
fn a_file_that_others_can_write_stops_everything() {
    let temp = tempfile::tempdir().unwrap();
    let mut file = PolicyFile::new(temp.path(), from_json);
    assert_eq!(*file.read().unwrap(), Policy::default(), "no file: the defaults");
    std::fs::create_dir(temp.path().join("launcher")).unwrap();
    let path = temp.path().join("launcher/policy.yaml");
    std::fs::write(&path, r#"{"privileged": true}"#).unwrap();
    assert!(file.read().unwrap().privileged);
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o666)).unwrap();
    let error = file.read().unwrap_err();
    assert!(error.to_string().contains("others than root") && error.hint().is_some());
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o644)).unwrap();
    std::fs::write(&path, r#"{"privileged": true, "privilege": 1}"#).unwrap();
    assert!(file.read().unwrap_err().to_string().contains("privilege"));
    std::fs::remove_file(&path).unwrap();
    assert!(!file.read().unwrap().privileged);
}

#[test]
fn the_hosts_disks_are_told_with_all_they_lie_on() {
    let temp = tempfile::tempdir().unwrap();
    let root = temp.path();
    let put = |path: &str, text: &str| {
        let path = root.join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    };
    put(
        "proc/self/mountinfo",
        "1 0 253:0 / / rw - ext4 /dev/mapper/root rw\n2 1 0:25 / /proc rw - proc proc rw\n",
    );
    put(
        "proc/swaps",
        "Filename Type Size Used Priority\n/dev/sdb partition 1 0 -2\n",
    );
    put("dev/sdb", "");
    let block = |name: &str, number: &str, folder: &str| {
        put(&format!("sys/devices/{folder}/dev"), number);
        let link = root.join("sys/dev/block");
        std::fs::create_dir_all(&link).unwrap();
        std::os::unix::fs::symlink(format!("../../devices/{folder}"), link.join(number)).unwrap();
        let class = root.join("sys/class/block");
        std::fs::create_dir_all(&class).unwrap();
        std::os::unix::fs::symlink(format!("../../devices/{folder}"), class.join(name)).unwrap();
    };
    block("sda", "8:0", "sda");
    block("sda2", "8:2", "sda/sda2");
    put("sys/devices/sda/sda2/partition", "2");
    block("dm-0", "253:0", "dm-0");
    std::fs::create_dir_all(root.join("sys/devices/dm-0/slaves")).unwrap();
    std::os::unix::fs::symlink("../../sda/sda2", root.join("sys/devices/dm-0/slaves/sda2")).unwrap();
    block("sdb", "8:16", "sdb");
    block("sdc", "8:32", "sdc");
    let disks = Disks::of_host(root).unwrap();
    for (major, minor, used) in [
        (253, 0, true),
        (8, 2, true),
        (8, 0, true),
        (8, 16, true),
        (8, 32, false),
    ] {
        assert_eq!(disks.uses(major, minor), used, "{major}:{minor}");
    }
    // And the one under this machine's own root.
    let own = Disks::of_host(Path::new("/")).unwrap();
    let device = std::os::unix::fs::MetadataExt::dev(&std::fs::metadata("/").unwrap());
    let (major, minor) = (
        nix::sys::stat::major(device) as u32,
        nix::sys::stat::minor(device) as u32,
    );
    assert!(own.uses(major, minor) || major == 0, "{major}:{minor}");
}
