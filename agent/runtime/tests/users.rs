//! User namespaces and idmapped mounts on the real kernel, as root. No test harness: the library's callers have one
//! thread.
#![allow(clippy::unwrap_used)] // helpers of tests

mod common;
mod made;

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::PathBuf;

use berth_rt::sched::Scheduler;
use berth_runtime::{Device, Extensions};
use common::Bundle;
use made::make;
use serde_json::json;

const FIRST: u32 = 100_000;

/// A bundle with users of its own, 65536 from [`FIRST`].
fn with_users(script: &str) -> Bundle {
    let mut b = Bundle::new(script);
    let map = json!([{"containerID": 0, "hostID": FIRST, "size": 65536}]);
    b.set("/linux/namespaces/-", json!({"type": "user"}));
    b.set("/linux/uidMappings", map.clone());
    b.set("/linux/gidMappings", map);
    b
}

fn folder(b: &Bundle, name: &str) -> PathBuf {
    let dir = b.dir.join(name);
    fs::create_dir(&dir).unwrap();
    dir
}

fn an_images_root_is_root_inside_and_its_writable_layer_is_the_containers() {
    let mut b = with_users(
        "stat -c %u:%g /etc/rooted /etc/other; echo x >> /etc/rooted; touch /made; stat -c %u /made",
    );
    b.set("/root/readonly", json!(false));
    // A place that the container's users could not reach by its path.
    fs::set_permissions(&b.dir, fs::Permissions::from_mode(0o700)).unwrap();
    for (name, owner) in [("rooted", 0), ("other", 7)] {
        let file = b.rootfs().join("etc").join(name);
        fs::write(&file, "").unwrap();
        chown(&file, Some(owner), Some(owner)).unwrap();
    }
    let (top, upper, work) = (folder(&b, "top"), folder(&b, "upper"), folder(&b, "work"));
    let extensions = Extensions {
        lower: vec![top, b.rootfs()],
        upper: Some(upper.clone()),
        work: Some(work),
        idmap_root: true,
        ..Extensions::default()
    };
    let mut made = make(&b, &extensions);
    let proof = made.container.start(None).unwrap();
    for name in ["uid_map", "gid_map"] {
        let fact = proof.facts.iter().find(|f| f.name == name).unwrap();
        assert!(fact.holds && fact.actual == "0:100000:65536", "{fact:?}");
    }
    assert_eq!(made.finish(&b), "0:0\n7:7\n0\n");
    assert_eq!(fs::metadata(upper.join("made")).unwrap().uid(), FIRST);
    assert_eq!(fs::metadata(upper.join("etc/rooted")).unwrap().uid(), FIRST);
    assert_eq!(fs::metadata(b.rootfs().join("etc/rooted")).unwrap().uid(), 0);
    assert_eq!(fs::read(b.rootfs().join("etc/rooted")).unwrap(), b"");
}

fn one_layer_alone_is_mapped_too() {
    let b = with_users("stat -c %u /bin/busybox; touch /x || echo read-only");
    for lower in [vec![b.rootfs()], Vec::new()] {
        let extensions = Extensions {
            lower,
            idmap_root: true,
            ..Extensions::default()
        };
        let mut made = make(&b, &extensions);
        made.container.start(None).unwrap();
        let out = made.finish(&b);
        assert!(out.starts_with("0\n") && out.ends_with("read-only\n"), "{out}");
    }
    // Without the map the image's root is nobody inside.
    let mut made = make(&b, &Extensions::default());
    made.container.start(None).unwrap();
    assert!(made.finish(&b).starts_with("65534\n"));
}

fn a_writable_layer_of_others_is_refused() {
    let mut b = with_users("true");
    b.set("/root/readonly", json!(false));
    let (upper, work) = (folder(&b, "upper"), folder(&b, "work"));
    fs::write(upper.join("old"), "").unwrap();
    let extensions = Extensions {
        lower: vec![b.rootfs()],
        upper: Some(upper),
        work: Some(work),
        idmap_root: true,
        ..Extensions::default()
    };
    let (_read, write) = made::pipe();
    let error = made::plan(&b, &extensions)
        .create(made::stdio(write))
        .unwrap_err();
    assert!(
        error.to_string().contains("upper` : it belongs")
            || error.to_string().contains("it was written under other maps"),
        "{error}"
    );
    assert!(error.hint().is_some());
    b.assert_nothing_left();
}

fn devices_are_made_outside_and_cannot_be_made_inside() {
    let mut b = with_users(
        "ls -ln /dev/null /dev/sub/null /opt/null; echo x > /dev/null && echo x > /dev/sub/null && \
         echo x > /opt/null && echo written; mknod /dev/mine c 1 3 || echo refused; \
         stat -c %u /dev/sub /dev; read a; ls -ln /dev/late; echo x > /dev/late && echo late",
    );
    let caps = json!(["CAP_MKNOD", "CAP_SYS_ADMIN"]);
    for set in ["bounding", "effective", "permitted"] {
        b.set(&format!("/process/capabilities/{set}"), caps.clone());
    }
    fs::create_dir(b.rootfs().join("opt")).unwrap();
    fs::write(b.rootfs().join("opt/null"), "").unwrap();
    let node = |path: &str, uid: u32| json!({"path": path, "type": "c", "major": 1, "minor": 3, "fileMode": 0o666, "uid": uid, "gid": 3});
    b.set(
        "/linux/devices",
        json!([node("/dev/sub/null", 5), node("/opt/null", 6)]),
    );
    let (answer, say) = made::pipe();
    let (output, write) = made::pipe();
    let mut stdio = made::stdio(write);
    stdio.stdin = answer.into();
    let container = made::plan(&b, &Extensions::default()).create(stdio).unwrap();
    let mut made = made::Made { container, output };
    made.container.start(None).unwrap();
    let device = Device {
        block: false,
        major: 1,
        minor: 3,
        path: "/dev/late".into(),
        access: "rw".into(),
        mode: 0o600,
        uid: 0,
        gid: 9,
    };
    // Two lines of input: one for the copy of it, one to go on.
    let mut say = fs::File::from(say);
    made.container.inject_device(&device).unwrap();
    std::io::Write::write_all(&mut say, b"").unwrap();
    drop(say);
    let out = made.finish(&b);
    let owner = |path: &str| {
        let line = out
            .lines()
            .find(|l| l.ends_with(path))
            .unwrap_or_else(|| panic!("{path}: {out}"));
        let words: Vec<&str> = line.split_whitespace().collect();
        format!("{}:{}", words[2], words[3])
    };
    assert_eq!(owner("/dev/null"), "0:0", "{out}");
    assert_eq!(owner("/dev/sub/null"), "5:3", "{out}");
    assert_eq!(owner("/opt/null"), "6:3", "{out}");
    assert_eq!(owner("/dev/late"), "0:9", "{out}");
    for word in ["written", "refused", "late"] {
        assert!(out.lines().any(|l| l == word), "{word}: {out}");
    }
    assert!(
        out.contains("\n0\n0\n"),
        "the folders below /dev belong to root: {out}"
    );
}

fn the_policy_is_set_from_outside() {
    let b = with_users("grep -c . /proc/self/uid_map; cat /proc/self/oom_score_adj");
    let extensions = Extensions {
        scheduler: Some(Scheduler::Batch { nice: 5 }),
        ..Extensions::default()
    };
    let mut made = make(&b, &extensions);
    let proof = made.container.start(None).unwrap();
    assert!(
        proof
            .facts
            .iter()
            .any(|f| f.name.starts_with("sched") && f.actual.contains("SCHED_BATCH nice 5")),
        "{proof:?}"
    );
    made.finish(&b);
}

fn mounts_show_ids_through_maps() {
    let map = json!([{"containerID": 0, "hostID": 7000, "size": 10}]);
    // (users of its own, options, mappings, what is stored as 1, seen inside)
    let cases = [
        (false, json!(["bind", "idmap"]), Some(&map), "7001"),
        (false, json!(["rbind", "ridmap"]), Some(&map), "7001"),
        (false, json!(["bind"]), Some(&map), "7001"),
        (false, json!(["bind"]), None, "1"),
        (true, json!(["bind", "idmap"]), None, "1"),
        (true, json!(["bind"]), None, "65534"),
    ];
    for (users, options, maps, seen) in cases {
        let script = "stat -c %u /mnt/file; touch /mnt/new";
        let mut b = if users {
            with_users(script)
        } else {
            Bundle::new(script)
        };
        b.set("/root/readonly", json!(false));
        fs::create_dir(b.rootfs().join("mnt")).unwrap();
        let dir = folder(&b, "data");
        fs::write(dir.join("file"), "").unwrap();
        chown(dir.join("file"), Some(1), Some(1)).unwrap();
        let mut mount = json!({"destination": "/mnt", "source": dir, "options": options});
        if let Some(maps) = maps {
            mount["uidMappings"] = maps.clone();
            mount["gidMappings"] = maps.clone();
        }
        b.set("/mounts/-", mount);
        let out = String::from_utf8(b.run().stdout).unwrap();
        assert_eq!(out.lines().next(), Some(seen), "{users} {options} {maps:?}");
        if users && seen == "1" {
            assert_eq!(fs::metadata(dir.join("new")).unwrap().uid(), 0);
        }
        b.assert_nothing_left();
    }
    let mut b = Bundle::new("true");
    b.set(
        "/mounts/-",
        json!({"destination": "/tmp/m", "source": "/tmp", "options": ["bind", "idmap"]}),
    );
    assert!(b.refusal().contains("uidMappings"));
    let mut b = Bundle::new("true");
    b.set("/mounts/-", json!({"destination": "/tmp/m", "source": "/proc", "options": ["bind"], "uidMappings": map, "gidMappings": map}));
    let message = b.refusal();
    assert!(
        message.contains("idmap `/tmp/m`") && message.contains("hint"),
        "{message}"
    );
}

fn main() {
    made::run(&[
        (
            "an_images_root_is_root_inside",
            an_images_root_is_root_inside_and_its_writable_layer_is_the_containers,
        ),
        ("one_layer_alone_is_mapped_too", one_layer_alone_is_mapped_too),
        (
            "a_writable_layer_of_others_is_refused",
            a_writable_layer_of_others_is_refused,
        ),
        (
            "devices_are_made_outside",
            devices_are_made_outside_and_cannot_be_made_inside,
        ),
        ("the_policy_is_set_from_outside", the_policy_is_set_from_outside),
        ("mounts_show_ids_through_maps", mounts_show_ids_through_maps),
    ]);
}
