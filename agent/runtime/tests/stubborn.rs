//! Containers that do not want to end, on the real kernel, as root: frozen behind the runtime's back, forking without
//! end, at a real-time priority, with their mounts held by others. Deletion works, or names what holds it.
#![allow(clippy::unwrap_used)] // helpers of tests

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use common::Bundle;
use serde_json::json;

/// The container's cgroup in the hierarchy that has the freezer, and that freezer's file.
fn freezer(b: &Bundle) -> (PathBuf, &'static str, [&'static str; 2]) {
    for group in b.cgroups() {
        if group.join("freezer.state").exists() {
            return (group, "freezer.state", ["THAWED", "FROZEN"]);
        }
    }
    let group = b.cgroups().into_iter().find(|g| g.join("cgroup.freeze").exists());
    (group.unwrap(), "cgroup.freeze", ["0", "1"])
}

fn started(b: &Bundle) {
    let (ok, err) = b.create();
    assert!(ok, "{err}");
    let out = b.oci(&["start", &b.id]);
    assert!(out.status.success(), "{out:?}");
}

fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !holds() {
        assert!(begin.elapsed() < Duration::from_secs(20), "in vain: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn frozen_by_hand(b: &Bundle) {
    let (group, file, words) = freezer(b);
    fs::write(group.join(file), words[1]).unwrap();
    eventually("it is frozen", || b.state()["status"] == "paused");
}

#[test]
fn frozen_by_hand_it_is_killed_and_deleted_all_the_same() {
    let b = Bundle::new("trap '' TERM; sleep 1000 & sleep 1000");
    started(&b);
    frozen_by_hand(&b);
    let out = b.oci(&["kill", &b.id, "KILL"]);
    assert!(out.status.success(), "{out:?}");
    b.wait_for_status("stopped");
    assert!(b.oci(&["delete", &b.id]).status.success());
    b.assert_nothing_left();
    let b = Bundle::new("trap '' TERM; sleep 1000 & sleep 1000");
    started(&b);
    frozen_by_hand(&b);
    let out = b.oci(&["kill", "--all", &b.id, "KILL"]);
    assert!(out.status.success(), "{out:?}");
    b.wait_for_status("stopped");
    assert!(b.oci(&["delete", &b.id]).status.success());
    b.assert_nothing_left();
    let b = Bundle::new("sleep 1000 & sleep 1000");
    started(&b);
    frozen_by_hand(&b);
    let out = b.oci(&["delete", "--force", &b.id]);
    assert!(out.status.success(), "{out:?}");
    b.assert_nothing_left();
}

/// v2 kills what is frozen, so this is about v1 alone.
#[test]
fn a_frozen_cgroup_above_it_is_named_with_the_processes_it_holds() {
    let mut b = Bundle::new("exec sleep 1000");
    let parent = format!("berth-above-{}", std::process::id());
    b.set("/linux/cgroupsPath", json!(format!("/{parent}/{}", b.id)));
    started(&b);
    let above = Path::new("/sys/fs/cgroup/freezer").join(&parent);
    if above.exists() {
        let pid = b.state()["pid"].to_string();
        fs::write(above.join("freezer.state"), "FROZEN").unwrap();
        eventually("it is frozen", || b.state()["status"] == "paused");
        let begin = Instant::now();
        let out = b.oci(&["delete", "--force", &b.id]);
        let message = String::from_utf8_lossy(&out.stderr);
        assert!(!out.status.success(), "{message}");
        assert!(message.contains(&format!("`{}`", above.display())), "{message}");
        // The shell, or already its sleep.
        assert!(message.contains(&format!("{pid} (s")), "{message}");
        assert!(begin.elapsed() < Duration::from_secs(10), "{:?}", begin.elapsed());
        fs::write(above.join("freezer.state"), "THAWED").unwrap();
    }
    let out = b.oci(&["delete", "--force", &b.id]);
    assert!(out.status.success(), "{out:?}");
    b.assert_nothing_left();
    for tree in fs::read_dir("/sys/fs/cgroup").unwrap().flatten() {
        let group = tree.path().join(&parent);
        if group.exists() {
            fs::remove_dir(group).unwrap();
        }
    }
}

#[test]
fn a_fork_bomb_ends_with_its_container() {
    // A shell that cannot fork ends: what it made before stays, so that the peak is there to be seen.
    let mut b =
        Bundle::new("fill() { while :; do sleep 1000 & done; }; trap '' TERM; fill & fill & exec sleep 1000");
    b.set("/linux/resources/pids", json!({"limit": 256}));
    started(&b);
    let count = || {
        b.cgroups()
            .iter()
            .find_map(|g| fs::read_to_string(g.join("pids.current")).ok())
    };
    eventually("it has exploded", || {
        count()
            .and_then(|c| c.trim().parse::<u32>().ok())
            .is_some_and(|c| c > 200)
    });
    let out = b.oci(&["delete", "--force", &b.id]);
    assert!(out.status.success(), "{out:?}");
    b.assert_nothing_left();
}

#[test]
fn a_fifo_hog_is_deleted() {
    let mut b = Bundle::new("trap '' TERM; echo up; while :; do :; done");
    b.set(
        "/process/scheduler",
        json!({"policy": "SCHED_FIFO", "priority": 90}),
    );
    b.set("/process/noNewPrivileges", json!(true));
    // Groups have no real time of their own unless it is given (RT_GROUP_SCHED on v1).
    b.set(
        "/linux/resources/cpu",
        json!({"realtimePeriod": 1_000_000, "realtimeRuntime": 300_000}),
    );
    started(&b);
    eventually("it hogs", || {
        fs::read_to_string(b.dir.join("out")).unwrap().contains("up")
    });
    let out = b.oci(&["kill", &b.id, "TERM"]);
    assert!(out.status.success(), "{out:?}");
    assert_eq!(b.state()["status"], "running", "it does not listen");
    let out = b.oci(&["delete", "--force", &b.id]);
    assert!(out.status.success(), "{out:?}");
    b.assert_nothing_left();
}

/// Somebody on the host sits in its mount namespace, and on a file of its root.
#[test]
fn mounts_that_others_hold_keep_nothing() {
    let b = Bundle::new("exec sleep 1000");
    started(&b);
    let pid = b.state()["pid"].to_string();
    let mut holder = Command::new("nsenter")
        .args(["--mount", "--target", &pid, "/bin/sleep", "1000"])
        .stdin(Stdio::null())
        .spawn()
        .unwrap();
    let inside = fs::read_link(format!("/proc/{pid}/ns/mnt")).unwrap();
    let there = || fs::read_link(format!("/proc/{}/ns/mnt", holder.id())).ok();
    eventually("it is inside", || there().as_ref() == Some(&inside));
    let out = b.oci(&["delete", "--force", &b.id]);
    assert!(out.status.success(), "{out:?}");
    assert!(!b.root().join(&b.id).exists());
    assert_eq!(b.cgroups(), Vec::<PathBuf>::new());
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!mounts.contains(b.dir.to_str().unwrap()), "{mounts}");
    holder.kill().unwrap();
    holder.wait().unwrap();
    b.assert_nothing_left();
}
