//! Folders of fake kernel files: v1, hybrid and v2 nodes, covered and partial mounts.

use super::*;
use std::fs;

fn node(
    mountinfo: &str,
    cgroups: &str,
    v2: &[(&str, &str)],
) -> (tempfile::TempDir, Result<Hierarchy, DiscoverError>) {
    let root = tempfile::tempdir().unwrap();
    fs::create_dir_all(root.path().join("proc/self")).unwrap();
    fs::write(root.path().join("proc/self/mountinfo"), mountinfo).unwrap();
    fs::write(root.path().join("proc/cgroups"), cgroups).unwrap();
    for (folder, controllers) in v2 {
        fs::create_dir_all(root.path().join(folder)).unwrap();
        fs::write(root.path().join(folder).join("cgroup.controllers"), controllers).unwrap();
    }
    let found = Hierarchy::discover(root.path());
    (root, found)
}

const V1: &str = "\
25 1 0:22 / / rw - ext4 /dev/sda rw
31 25 0:28 / /sys/fs/cgroup rw,relatime shared:1 - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct
33 31 0:30 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory
34 31 0:31 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd
35 31 0:32 / /sys/fs/cgroup/a\\040b rw - cgroup cgroup rw,freezer
";
const CGROUPS: &str = "#subsys_name\thierarchy\tnum_cgroups\tenabled\ncpu\t1\t1\t1\nmemory\t2\t1\t1\nrdma\t0\t1\t1\npids\t0\t1\t0\n";

#[test]
fn a_v1_node() {
    let (root, found) = node(V1, CGROUPS, &[]);
    let found = found.unwrap();
    assert_eq!(found.mode(), Mode::V1);
    assert_eq!(
        found.trees().len(),
        4,
        "the systemd hierarchy is one without a controller"
    );
    let cpu = found.tree(Controller::Cpu).unwrap();
    assert_eq!(cpu, found.tree(Controller::Cpuacct).unwrap());
    assert_eq!(cpu.mount, root.path().join("sys/fs/cgroup/cpu,cpuacct"));
    assert!(found.tree(Controller::Freezer).unwrap().mount.ends_with("a b"));
    for (controller, why) in [
        (Controller::Rdma, Absence::NotMounted),
        (Controller::Pids, Absence::Disabled),
        (Controller::Hugetlb, Absence::NotInKernel),
    ] {
        assert!(found.tree(controller).is_none());
        let missing = found.missing("linux.resources.x", controller);
        assert_eq!(missing.why, why);
        assert!(
            missing.hint().unwrap().contains(controller.v1_name()),
            "{missing}"
        );
    }
}

#[test]
fn a_hybrid_node_uses_v2_for_what_v1_has_not() {
    let text = format!("{V1}41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n");
    let (_root, found) = node(
        &text,
        CGROUPS,
        &[("sys/fs/cgroup/unified", "hugetlb memory misc\n")],
    );
    let found = found.unwrap();
    assert_eq!(found.mode(), Mode::Hybrid);
    assert_eq!(found.tree(Controller::Hugetlb).unwrap().version, Version::V2);
    assert_eq!(found.tree(Controller::Memory).unwrap().version, Version::V1);
    assert!(
        found.tree(Controller::Devices).is_none(),
        "the processes are not in the v2 hierarchy"
    );
}

#[test]
fn a_v2_node() {
    let text = "25 1 0:22 / / rw - ext4 /dev/sda rw\n31 25 0:28 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw,nsdelegate\n";
    let (_root, found) = node(text, CGROUPS, &[("sys/fs/cgroup", "cpuset cpu io memory pids\n")]);
    let found = found.unwrap();
    assert_eq!(found.mode(), Mode::V2);
    for controller in [
        Controller::Cpu,
        Controller::Io,
        Controller::Devices,
        Controller::Freezer,
    ] {
        assert_eq!(
            found.tree(controller).unwrap().version,
            Version::V2,
            "{controller}"
        );
    }
    assert_eq!(found.missing("x", Controller::NetCls).why, Absence::OnlyV1);
}

#[test]
fn covered_mounts_are_not_used_and_moved_ones_are() {
    let over = format!("{V1}50 33 0:40 / /sys/fs/cgroup/memory rw - tmpfs tmpfs rw\n");
    assert!(
        node(&over, CGROUPS, &[])
            .1
            .unwrap()
            .tree(Controller::Memory)
            .is_none()
    );
    let above = format!("{V1}50 31 0:40 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n");
    assert!(matches!(node(&above, CGROUPS, &[]).1, Err(DiscoverError::None)));
    // switch_root: the root file system is mounted last and moved beneath what was there before it.
    let moved = "20 60 0:20 / /sys rw - sysfs sysfs rw\n25 20 0:25 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n60 1 8:1 / / rw - ext4 /dev/sda rw\n";
    assert_eq!(
        node(moved, CGROUPS, &[("sys/fs/cgroup", "cpu")])
            .1
            .unwrap()
            .mode(),
        Mode::V2
    );
}

#[test]
fn of_two_mounts_the_one_that_shows_more_is_used() {
    let text =
        "33 1 0:30 /docker/x /a rw - cgroup cgroup rw,memory\n34 1 0:30 / /b rw - cgroup cgroup rw,memory\n";
    let found = node(text, CGROUPS, &[]).1.unwrap();
    assert_eq!(found.trees().len(), 1);
    assert_eq!(found.tree(Controller::Memory).unwrap().mount_root, "/");
}

#[test]
fn what_is_not_mountinfo_is_told_with_its_line() {
    let error = node("25 1 0:22 / / rw - ext4 /dev/sda rw\nnonsense\n", "", &[])
        .1
        .unwrap_err();
    assert!(
        error.to_string().contains("line 2") && error.to_string().contains("nonsense"),
        "{error}"
    );
    let none = node("25 1 0:22 / / rw - ext4 /dev/sda rw\n", "", &[])
        .1
        .unwrap_err();
    assert!(none.hint().unwrap().contains("mount"), "{none}");
}
