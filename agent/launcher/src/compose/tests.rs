//! The document for a request, without a launcher.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::*;
use crate::check::tests::request;

struct Case {
    request: LaunchRequest,
    image: Value,
    user: User,
    profile: Profile,
    network: Option<(PathBuf, PathBuf)>,
    secrets: Option<(PathBuf, PathBuf)>,
}

impl Case {
    fn new() -> Case {
        Case {
            request: request(),
            image: json!({}),
            user: User {
                uid: 1000,
                gid: 1001,
                groups: vec![20],
                home: Some("/home/app".into()),
            },
            profile: berth_policies::resolve("strict", &BTreeMap::new()).unwrap(),
            network: None,
            secrets: None,
        }
    }

    fn compose(&self) -> Result<Composed, Refusal> {
        let image = json!({"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": []},
            "config": self.image});
        compose(&Inputs {
            request: &self.request,
            image: &serde_json::from_value(image).unwrap(),
            layers: &["/store/top".into(), "/store/low".into()],
            user: &self.user,
            profile: &self.profile,
            cgroup_parent: "berth",
            storage: Path::new("/state/containers/pump-1"),
            sources: &self
                .request
                .mounts
                .iter()
                .map(|m| Path::new("/real").join(m.source.strip_prefix("/").unwrap()))
                .collect::<Vec<_>>(),
            network: self.network.as_ref(),
            secrets: self.secrets.as_ref(),
            udev: None,
            oom_score_adj: 0,
        })
    }

    fn json(&self) -> Value {
        serde_json::to_value(self.compose().unwrap().spec).unwrap()
    }
}

fn words(list: &[&str]) -> Vec<String> {
    list.iter().map(|w| (*w).to_owned()).collect()
}

#[test]
fn arguments_of_image_and_request() {
    let (entrypoint, cmd) = (["/entry"].as_slice(), ["a", "b"].as_slice());
    // entrypoint, cmd, command, args → arguments
    type Row<'a> = (
        &'a [&'a str],
        &'a [&'a str],
        &'a [&'a str],
        &'a [&'a str],
        &'a [&'a str],
    );
    let cases: [Row<'_>; 7] = [
        (entrypoint, cmd, &[], &[], &["/entry", "a", "b"]),
        (entrypoint, cmd, &[], &["x"], &["/entry", "x"]),
        (entrypoint, cmd, &["/cmd"], &[], &["/cmd"]),
        (entrypoint, cmd, &["/cmd"], &["x"], &["/cmd", "x"]),
        (&[], cmd, &[], &[], &["a", "b"]),
        (&[], cmd, &[], &["x"], &["x"]),
        (&[], &[], &["/cmd", "y"], &["x"], &["/cmd", "y", "x"]),
    ];
    for (entrypoint, cmd, command, args, expected) in cases {
        let mut case = Case::new();
        case.image = json!({"Entrypoint": entrypoint, "Cmd": cmd});
        case.request.process.command = words(command);
        case.request.process.args = words(args);
        assert_eq!(case.json()["process"]["args"], json!(expected));
    }
    let mut case = Case::new();
    case.request.process.command.clear();
    let refusal = case.compose().unwrap_err();
    assert!(refusal.message.contains("no program") && refusal.hint.is_some());
}

#[test]
fn environment_user_and_folder() {
    let mut case = Case::new();
    case.image = json!({"Env": ["A=image", "B=image", "PATH=/only"], "WorkingDir": "/srv"});
    case.request.process.env = vec![("B".into(), "mine".into()), ("C".into(), "x=y".into())];
    let process = &case.json()["process"];
    assert_eq!(
        process["env"],
        json!(["PATH=/only", "HOME=/home/app", "A=image", "B=mine", "C=x=y"])
    );
    assert_eq!(process["cwd"], "/srv");
    let user = &process["user"];
    assert_eq!(
        (&user["uid"], &user["gid"], &user["additionalGids"]),
        (&json!(1000), &json!(1001), &json!([20]))
    );
    case.request.process.cwd = Some("/else".into());
    assert_eq!(case.json()["process"]["cwd"], "/else");
    case.request.process.cwd = None;
    case.image = json!({"WorkingDir": "relative"});
    assert!(case.compose().unwrap_err().message.contains("not absolute"));
}

#[test]
fn every_security_field_is_the_profiles() {
    let case = Case::new();
    let composed = case.json();
    let mut applied = case.compose().unwrap().spec;
    case.profile.apply(&mut applied).unwrap();
    // Applied once more, nothing changes: nothing was written over the profile.
    assert_eq!(serde_json::to_value(applied).unwrap(), composed);
    assert_eq!(composed["process"]["noNewPrivileges"], true);
    assert_eq!(composed["root"]["readonly"], true);
    assert!(composed["linux"]["seccomp"].is_object());
    for set in ["bounding", "effective", "permitted", "inheritable", "ambient"] {
        assert_eq!(
            composed["process"]["capabilities"][set].as_array().map(Vec::len),
            Some(0),
            "{set}"
        );
    }
}

#[test]
fn grants_are_lines_behind_the_profiles_own() {
    let mut case = Case::new();
    let before = case.json();
    case.request.devices = vec![DeviceGrant {
        block: false,
        major: 188,
        minor: 0,
        path: "/dev/port".into(),
        access: "rw".into(),
        mode: 0o660,
        uid: 0,
        gid: 20,
        links: Vec::new(),
        uevents: false,
        mount: None,
    }];
    let after = case.json();
    let node = json!({"path": "/dev/port", "type": "c", "major": 188, "minor": 0, "fileMode": 0o660, "uid": 0, "gid": 20});
    assert_eq!(after["linux"]["devices"], json!([node]));
    let (old, new) = (
        &before["linux"]["resources"]["devices"],
        &after["linux"]["resources"]["devices"],
    );
    let (old, new) = (old.as_array().unwrap(), new.as_array().unwrap());
    assert_eq!(new[..old.len()], old[..]);
    assert_eq!(
        new[old.len()..],
        [json!({"allow": true, "type": "c", "major": 188, "minor": 0, "access": "rw"})]
    );
    assert_eq!(new[0]["allow"], false, "and everything else is denied first");
}

#[test]
fn resources_mounts_and_extensions() {
    let mut case = Case::new();
    case.request.placement = serde_json::from_value(json!({"cpus": "1", "mems": "0", "shared": false,
        "require_isolated": true}))
    .unwrap();
    case.request.memory_bytes = Some(64 << 20);
    case.request.pids = Some(32);
    case.request.rt_budget = Some(crate::wire::RtBudget {
        runtime_us: 100_000,
        period_us: 1_000_000,
    });
    case.request.timer_slack_ns = Some(1);
    case.request.mounts = serde_json::from_value(json!([
        {"source": "/srv/x", "destination": "/data", "read_only": true},
        {"source": "/srv/y", "destination": "/spool", "read_only": false},
    ]))
    .unwrap();
    case.image = json!({"Volumes": {"/data": {}, "/cache": {}}});
    let spec = case.json();
    let resources = &spec["linux"]["resources"];
    assert_eq!(
        resources["cpu"],
        json!({"cpus": "1", "mems": "0", "realtimeRuntime": 100_000, "realtimePeriod": 1_000_000})
    );
    assert_eq!(resources["memory"], json!({"limit": 64 << 20, "swap": 64 << 20}));
    assert_eq!(resources["pids"], json!({"limit": 32}));
    assert_eq!(spec["linux"]["cgroupsPath"], "/berth/pump-1");
    assert_eq!(spec["hostname"], "pump-1");
    let mounts = spec["mounts"].as_array().unwrap();
    let find = |path: &str| {
        mounts
            .iter()
            .filter(|m| m["destination"] == path)
            .collect::<Vec<_>>()
    };
    let [data] = find("/data")[..] else {
        panic!("one mount at /data")
    };
    assert_eq!(
        (&data["source"], &data["type"]),
        (&json!("/real/srv/x"), &json!("bind"))
    );
    for option in ["rbind", "rro", "rnosuid", "rnodev"] {
        assert!(
            data["options"].as_array().unwrap().contains(&json!(option)),
            "{option} in {data}"
        );
    }
    assert!(
        !find("/spool")[0]["options"]
            .as_array()
            .unwrap()
            .contains(&json!("rro"))
    );
    assert_eq!(find("/cache")[0]["type"], "tmpfs");
    let extensions = case.compose().unwrap().extensions;
    assert_eq!(extensions.lower, ["/store/top", "/store/low"].map(PathBuf::from));
    assert_eq!(
        (extensions.upper, extensions.work),
        (None, None),
        "the profile's root is read-only"
    );
    assert!(extensions.die_with_parent && extensions.require_isolated && extensions.report_isolation);
    assert_eq!(extensions.cgroup.isolate, berth_rt::cgroup::Isolate::Must);
    assert_eq!(extensions.timer_slack_ns, Some(1));
}

#[test]
fn a_writable_root_and_the_hosts_network_are_said() {
    let mut case = Case::new();
    case.profile.readonly_root = false;
    let extensions = case.compose().unwrap().extensions;
    assert_eq!(extensions.upper, Some("/state/containers/pump-1/upper".into()));
    assert_eq!(extensions.work, Some("/state/containers/pump-1/work".into()));
    let kinds = |case: &Case| -> Vec<String> {
        let spec = case.json();
        spec["linux"]["namespaces"]
            .as_array()
            .unwrap()
            .iter()
            .map(|n| n["type"].as_str().unwrap().to_owned())
            .collect()
    };
    assert!(kinds(&case).contains(&"network".into()));
    case.request.network = Network::Host;
    let host = kinds(&case);
    assert!(!host.contains(&"network".into()) && host.len() + 1 == kinds(&Case::new()).len());
}

#[test]
fn what_a_profile_asks_of_landlock_and_core_scheduling() {
    let with = |spec: Value| {
        let custom = BTreeMap::from([("p".to_owned(), serde_json::from_value(spec).unwrap())]);
        let mut case = Case::new();
        case.profile = berth_policies::resolve("p", &custom).unwrap();
        let composed = case.compose().unwrap();
        (composed.extensions, composed.spec)
    };
    let (extensions, _) = with(json!({"landlock": {
        "paths": [{"path": "/bin", "access": ["read", "execute"]}, {"path": "/v", "access": ["make", "makeDevices", "ioctl", "write"], "optional": true}],
        "bindTcp": [80], "scope": ["signals", "abstractSockets"]}}));
    let landlock = extensions.landlock.unwrap();
    assert_eq!(landlock.paths[0].access, [Access::Read, Access::Execute]);
    let all = [Access::Make, Access::MakeDevices, Access::Ioctl, Access::Write];
    assert_eq!(
        (landlock.paths[1].access.as_slice(), landlock.paths[1].optional),
        (&all[..], true)
    );
    assert_eq!(
        (landlock.bind_tcp, landlock.connect_tcp, landlock.skip),
        (Some(vec![80]), None, false)
    );
    assert_eq!(landlock.scope, [Scope::Signals, Scope::AbstractSockets]);
    // Refused by the plan where the kernel lacks it, unless the profile says it may be missing.
    assert!(with(json!({"coreScheduling": true})).0.core_cookie);
    assert!(with(json!({"dumpable": false})).0.undumpable);
    assert!(!with(json!({})).0.undumpable);
    let (extensions, _) = with(json!({"coreScheduling": true, "onMissing": {"coreScheduling": "skip"}}));
    assert_eq!(extensions.core_cookie, berth_runtime::core_scheduling());
    let label = |spec: Value| with(spec).1.process().as_ref().unwrap().selinux_label().clone();
    assert_eq!(label(json!({"selinuxLabel": "u:r:t"})).as_deref(), Some("u:r:t"));
    let here = Path::new("/sys/fs/selinux/enforce").exists();
    assert_eq!(
        label(json!({"selinuxLabel": "u:r:t", "onMissing": {"selinux": "skip"}})).is_some(),
        here
    );
}

#[test]
fn what_nobody_bounds_is_bounded() {
    let mut case = Case::new();
    case.request.pids = None;
    case.image = json!({"Volumes": {"/data": {}}});
    let spec = case.json();
    assert_eq!(spec["linux"]["resources"]["pids"], json!({"limit": 4096}));
    let volume = spec["mounts"]
        .as_array()
        .unwrap()
        .iter()
        .find(|m| m["destination"] == "/data");
    let options = volume.unwrap()["options"].as_array().unwrap();
    assert!(options.contains(&json!("size=64m")) && options.contains(&json!("nr_inodes=16384")));
}

#[test]
fn a_network_brings_its_files() {
    let mut case = Case::new();
    case.network = Some(("/run/x/network/a".into(), "/run/x/network/layer".into()));
    let composed = case.compose().unwrap();
    let lower = composed.extensions.lower;
    assert_eq!(lower[0], Path::new("/run/x/network/layer"));
    assert_eq!(lower.len(), 3);
    let spec = serde_json::to_value(composed.spec).unwrap();
    for name in ["hosts", "hostname", "resolv.conf"] {
        let mount = spec["mounts"]
            .as_array()
            .unwrap()
            .iter()
            .find(|m| m["destination"] == format!("/etc/{name}"));
        let mount = mount.unwrap();
        assert_eq!(mount["source"], format!("/run/x/network/a/{name}"));
        assert!(mount["options"].as_array().unwrap().contains(&json!("ro")));
    }
}

#[test]
fn secrets_are_a_read_only_mount_over_a_place_below_the_image() {
    let mut case = Case::new();
    let plain = case.compose().unwrap();
    let none = |m: &Mount| m.destination() != Path::new("/run/secrets");
    assert!(plain.spec.mounts().iter().flatten().all(none));
    case.secrets = Some(("/run/berth/secrets/x".into(), "/var/lib/berth/places".into()));
    let composed = case.compose().unwrap();
    let mounts = composed.spec.mounts().clone().unwrap();
    let secrets = mounts
        .iter()
        .find(|m| m.destination() == Path::new("/run/secrets"))
        .unwrap();
    assert_eq!(
        secrets.source().as_deref(),
        Some(Path::new("/run/berth/secrets/x"))
    );
    for option in ["ro", "nosuid", "nodev", "noexec", "rprivate"] {
        assert!(
            secrets.options().iter().flatten().any(|o| o == option),
            "{option}"
        );
    }
    // Below every layer of the image: what it says of /run stands.
    assert_eq!(
        composed.extensions.lower.last().unwrap(),
        Path::new("/var/lib/berth/places")
    );
}
