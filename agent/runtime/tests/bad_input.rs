//! Bundles, ids and paths that cannot be, on the OCI command line, as root: each is refused with its file or field, in
//! bounded time, and nothing is left. Concurrent commands on one id and hooks are in `oci_life`.
#![allow(clippy::unwrap_used)] // helpers of tests

mod common;

use std::fs;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Output, Stdio};

use common::Bundle;
use serde_json::json;

fn message(out: &Output) -> String {
    String::from_utf8_lossy(&out.stderr).into_owned()
}

/// `run` of a bundle whose config.json was replaced behind its back.
fn run_with(b: &Bundle, place: impl FnOnce(&Path)) -> String {
    let mut command = b.command(&["run", &b.id]);
    let file = b.dir.join("config.json");
    fs::remove_file(&file).unwrap();
    place(&file);
    let out = command.output().unwrap();
    assert_eq!(out.status.code(), Some(1), "{out:?}");
    b.assert_nothing_left();
    let _ = fs::remove_file(&file);
    let _ = fs::remove_dir(&file);
    message(&out)
}

#[test]
fn a_configuration_that_is_huge_or_no_file_is_not_read() {
    let b = Bundle::new("true");
    let huge = run_with(&b, |file| {
        fs::File::create(file).unwrap().set_len(1 << 40).unwrap()
    });
    assert!(
        huge.contains("config.json") && huge.contains("1099511627776 bytes"),
        "{huge}"
    );
    let endless = run_with(&b, |file| symlink("/dev/zero", file).unwrap());
    assert!(
        endless.contains("config.json") && endless.contains("not a regular file"),
        "{endless}"
    );
    let mode = nix::sys::stat::Mode::from_bits_truncate(0o600);
    let fifo = run_with(&b, |file| nix::unistd::mkfifo(file, mode).unwrap());
    assert!(fifo.contains("not a regular file"), "{fifo}");
    let folder = run_with(&b, |file| fs::create_dir(file).unwrap());
    assert!(folder.contains("config.json"), "{folder}");
    let deep = run_with(&b, |file| {
        fs::write(file, format!("{}1{}", "[".repeat(100_000), "]".repeat(100_000))).unwrap()
    });
    assert!(deep.contains("config.json") && deep.contains("line 1"), "{deep}");
    let broken = run_with(&b, |file| {
        fs::write(file, b"{\"ociVersion\": \"1.2.0\xff\"}").unwrap()
    });
    assert!(
        broken.contains("config.json") && broken.contains("line 1"),
        "{broken}"
    );
}

#[test]
fn a_configuration_of_another_version_is_refused() {
    for version in ["2.0.0", "0.9.0", "9.1", "", "one"] {
        let mut b = Bundle::new("true");
        b.set("/ociVersion", json!(version));
        let text = b.refusal();
        assert!(
            text.contains("ociVersion") && text.contains(&format!("`{version}`")),
            "{text}"
        );
    }
}

#[test]
fn ids_that_are_no_names_are_refused_by_every_command() {
    let b = Bundle::new("true");
    let long = "a".repeat(4096);
    for id in [
        "a/b",
        "../x",
        "/etc",
        ".",
        "..",
        ".hidden",
        "",
        "a b",
        "a\nb",
        "ü",
        long.as_str(),
    ] {
        for command in ["run", "state", "start", "delete", "pause"] {
            let out = b.oci(&[command, "--", id]);
            let out = match out.status.code() {
                Some(2) => b.oci(&[command, id]),
                _ => out,
            };
            assert_eq!(out.status.code(), Some(1), "{command} {id:?}: {out:?}");
            let text = message(&out);
            assert!(
                text.contains("not valid") || text.contains("does not exist"),
                "{command} {id:?}: {text}"
            );
        }
        let out = b.oci(&["kill", id, "KILL"]);
        assert!(message(&out).contains("does not exist"), "{id:?}: {out:?}");
    }
    assert!(
        fs::read_dir(b.root()).into_iter().flatten().next().is_none(),
        "something was made"
    );
}

#[test]
fn roots_that_are_not_there_or_no_folder() {
    let mut b = Bundle::new("true");
    fs::write(b.dir.join("file"), "x").unwrap();
    for root in ["nowhere", "/no/such/root", "file", "rootfs/bin/busybox", ""] {
        b.set("/root/path", json!(root));
        let text = b.refusal();
        assert!(text.contains("root.path"), "{root}: {text}");
    }
    // A relative one is the bundle's, wherever the command runs.
    let b = Bundle::new("exit 5");
    let mut command = b.command(&["run", "--bundle", b.dir.to_str().unwrap(), &b.id]);
    assert_eq!(command.current_dir("/").output().unwrap().status.code(), Some(5));
    b.assert_nothing_left();
}

#[test]
fn a_root_and_a_bundle_that_vanish_on_the_way() {
    let b = Bundle::new("exec sleep 1000");
    let (ok, err) = b.create();
    assert!(ok, "{err}");
    fs::remove_dir_all(b.rootfs()).unwrap();
    let out = b.oci(&["start", &b.id]);
    assert!(
        !out.status.success() && message(&out).contains("exec `/bin/sh`"),
        "{out:?}"
    );
    let _ = b.oci(&["delete", "--force", &b.id]);
    b.assert_nothing_left();
    // What was started runs on without its bundle, and is deleted.
    let b = Bundle::new("exec sleep 1000");
    assert!(b.create().0);
    assert!(b.oci(&["start", &b.id]).status.success());
    let mut delete = b.command(&["delete", "--force", &b.id]);
    fs::remove_dir_all(b.rootfs()).unwrap();
    fs::remove_file(b.dir.join("config.json")).unwrap();
    let out = delete.output().unwrap();
    assert!(out.status.success(), "{out:?}");
    b.assert_nothing_left();
}

#[test]
fn namespaces_that_contradict_each_other_or_the_rest() {
    let own = |kind: &str| json!({"type": kind});
    let all = || {
        ["pid", "mount", "uts", "ipc", "network", "cgroup"]
            .map(own)
            .to_vec()
    };
    let without = |kind: &str| {
        all()
            .into_iter()
            .filter(|n| n["type"] != kind)
            .collect::<Vec<_>>()
    };
    let with = |kind: &str, path: &str| {
        let mut list = without(kind);
        list.push(json!({"type": kind, "path": path}));
        list
    };
    let table = [
        (with("network", "/proc/self/ns/uts"), "/proc/self/ns/uts"),
        (with("network", "/etc/passwd"), "/etc/passwd"),
        (with("ipc", "/no/such/namespace"), "/no/such/namespace"),
        (with("ipc", "relative"), "linux.namespaces"),
        (with("mount", "/proc/self/ns/mnt"), "the runtime's own"),
        (without("mount"), "mount"),
        (without("uts"), "hostname"),
        ([all(), vec![own("network")]].concat(), "is there twice"),
        ([all(), vec![own("user")]].concat(), "linux.uidMappings"),
        (vec![own("nonsense")], "nonsense"),
    ];
    for (namespaces, wanted) in table {
        let mut b = Bundle::new("true");
        b.set("/linux/namespaces", json!(namespaces));
        let text = b.refusal();
        assert!(text.contains(wanted), "{namespaces:?}: {text}");
    }
    let mut b = Bundle::new("true");
    b.set("/linux/namespaces", json!(without("network")));
    b.set("/linux/sysctl", json!({"net.ipv4.ip_forward": "1"}));
    let text = b.refusal();
    assert!(text.contains("linux.sysctl.net.ipv4.ip_forward"), "{text}");
}

#[test]
fn a_console_socket_that_is_not_there_or_none() {
    let mut b = Bundle::new("true");
    b.set(
        "/mounts/-",
        json!({"destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": ["newinstance", "ptmxmode=0666"]}),
    );
    b.set("/process/terminal", json!(true));
    fs::write(b.dir.join("file"), "x").unwrap();
    let gone = b.dir.join("gone");
    drop(UnixListener::bind(&gone).unwrap()); // the socket stays, and nobody listens
    let long = "x".repeat(300);
    for socket in [
        "/no/such/socket",
        b.dir.join("file").to_str().unwrap(),
        gone.to_str().unwrap(),
        &long,
    ] {
        let mut command = b.command(&["create", "--console-socket", socket, &b.id]);
        let out = command.stdout(Stdio::null()).output().unwrap();
        let text = message(&out);
        assert!(
            out.status.code() == Some(1) && text.contains("--console-socket") && text.contains(socket),
            "{socket}: {text}"
        );
        b.assert_nothing_left();
    }
}
