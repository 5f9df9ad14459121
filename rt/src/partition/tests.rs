//! What the files say, over trees made by hand; that the kernel takes what is written, guests show.

#![allow(clippy::unwrap_used)] // a test may end at the first surprise

use std::fs;
use std::path::Path;

use super::*;

/// The cgroup files of `dir`: its partition's state and, where the kernel has them, its exclusive CPUs.
fn put(mount: &Path, dir: &str, state: &str, exclusive: Option<&str>) {
    let dir = mount.join(dir);
    fs::create_dir_all(&dir).unwrap();
    fs::write(dir.join(PARTITION), format!("{state}\n")).unwrap();
    if let Some(cpus) = exclusive {
        fs::write(dir.join(EXCLUSIVE), format!("{cpus}\n")).unwrap();
    }
}

#[test]
fn a_partition_stands_only_on_what_is_above_it() {
    let local = Some(How::Local);
    let invalid = "isolated invalid (Cpu list in cpuset.cpus not exclusive)";
    // The parent's state; its own and its exclusive CPUs; what it is.
    for (parent, own, exclusive, expected) in [
        ("isolated", "isolated", None, local),
        ("root", "isolated", None, local),
        // The kernel leaves the word of the child alone.
        (invalid, "isolated", None, None),
        ("root invalid", "isolated", Some("3"), None),
        ("member", "isolated", Some("3"), Some(How::Remote)),
        ("member", "isolated", Some(""), None),
        ("member", "isolated", None, None),
        ("isolated", invalid, None, None),
        ("isolated", "member", None, None),
    ] {
        let mount = tempfile::tempdir().unwrap();
        put(mount.path(), "a", parent, exclusive);
        put(mount.path(), "a/b", own, exclusive);
        let found = stands(mount.path(), &mount.path().join("a/b")).unwrap();
        assert_eq!(found, expected, "{parent} above {own} {exclusive:?}");
    }
    let mount = tempfile::tempdir().unwrap();
    put(mount.path(), "a", "isolated", None);
    assert_eq!(stands(mount.path(), &mount.path().join("a")).unwrap(), local);
    assert_eq!(stands(mount.path(), &mount.path().join("none")).unwrap(), None);
}

#[test]
fn a_partition_of_partitions_keeps_the_cpus_of_those_that_are_left() {
    let mount = tempfile::tempdir().unwrap();
    let parent = mount.path().join("berth.isolated");
    let child = |name: &str, state: &str, cpus: &str| {
        put(mount.path(), &format!("berth.isolated/{name}"), state, None);
        fs::write(parent.join(name).join("cpuset.cpus"), format!("{cpus}\n")).unwrap();
    };
    put(mount.path(), "berth.isolated", "isolated", None);
    fs::write(parent.join("cpuset.cpus"), "2-5\n").unwrap();
    child("goes", "member", "2");
    child("stays", "isolated", "3");
    child(
        "claimed",
        "isolated invalid (Cpu list in cpuset.cpus not exclusive)",
        "4",
    );
    child("pinned", "member", "5");
    let now = |file: &str| fs::read_to_string(parent.join(file)).unwrap();
    shrink_parents(mount.path(), &parent.join("goes")).unwrap();
    // A write to a plain file leaves what is behind it.
    assert!(now("cpuset.cpus").starts_with("3-4"), "{}", now("cpuset.cpus"));
    assert_eq!(now(PARTITION), "isolated\n");
    for gone in ["stays", "claimed"] {
        fs::remove_dir_all(parent.join(gone)).unwrap();
    }
    shrink_parents(mount.path(), &parent.join("stays")).unwrap();
    assert!(now(PARTITION).starts_with("member"), "{}", now(PARTITION));
    assert!(now("cpuset.cpus").starts_with('\n'), "{}", now("cpuset.cpus"));
    // A kernel with remote partitions builds none of them.
    fs::write(mount.path().join(SINCE_REMOTE), "\n").unwrap();
    assert_eq!(chain_of(mount.path(), &parent.join("goes")), None);
    assert_eq!(chain_of(mount.path(), &mount.path().join("berth/x")), None);
}
