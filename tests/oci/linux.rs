//! `mounts` and `linux`, but for its resources and its filter.

use serde_json::{Value, json};

use crate::case::{Case, case};

const LATER: &str = "the field is younger than its version";

pub(crate) fn cases() -> Vec<Case> {
    let mut all = mounts();
    all.extend(namespaces());
    all.extend([
        case("the cgroup's place", &["linux.cgroupsPath"])
            .set("/linux/cgroupsPath", json!("{cgroup}"))
            .sh("cat /proc/self/cgroup")
            .want("berth-test-fields/berth-test-f"),
        case(
            "a device node",
            &[
                "linux.devices",
                "linux.devices[].path",
                "linux.devices[].type",
                "linux.devices[].major",
                "linux.devices[].minor",
                "linux.devices[].fileMode",
                "linux.devices[].uid",
                "linux.devices[].gid",
            ],
        )
        .set(
            "/linux/devices",
            json!([{"path": "/dev/mine", "type": "c", "major": 10, "minor": 200, "fileMode": 0o640, "uid": 3, "gid": 4}]),
        )
        .sh("stat -c '%F %a %u %g %t:%T' /dev/mine 2>&1; true")
        .want("character special file 640 3 4 a:c8")
        .instead("linux.devices[].path", json!("/dev/yours"))
        .instead("linux.devices[].type", json!("b"))
        .instead("linux.devices[].major", json!(11))
        .instead("linux.devices[].minor", json!(201)),
        case("masked paths", &["linux.maskedPaths"])
            .set("/linux/maskedPaths", json!(["/proc/version", "/proc/bus"]))
            .sh("wc -c < /proc/version; ls /proc/bus | wc -l; grep -c /proc/version /proc/self/mountinfo; true")
            .want("0 0 1".replace(' ', "\n").as_str()),
        case("read-only paths", &["linux.readonlyPaths"])
            .set("/linux/readonlyPaths", json!(["/proc/sys"]))
            .sh("echo 4321 > /proc/sys/kernel/msgmax; grep /proc/sys /proc/self/mountinfo; true")
            .want("Read-only file system")
            .want("/proc/sys ro"),
        case("the root's propagation", &["linux.rootfsPropagation"])
            .set("/linux/rootfsPropagation", json!("shared"))
            .sh("grep ' / / ' /proc/self/mountinfo; cat /proc/self/mountinfo")
            .want("shared:")
            .not("runc", "1.1.5 leaves the root inside unshared"),
        case("a sysctl", &["linux.sysctl", "linux.sysctl.{}"])
            .set("/linux/sysctl", json!({"kernel.msgmax": "4321"}))
            .sh("cat /proc/sys/kernel/msgmax")
            .want("4321"),
        case("an SELinux label of the mounts", &["linux.mountLabel"])
            .set("/linux/mountLabel", json!("system_u:object_r:tmpfs_t:s0"))
            .need(&["/sys/fs/selinux/enforce"], "linux.mountLabel")
            .sh("cat /proc/self/mounts")
            .want("tmpfs_t"),
        case(
            "a network interface",
            &["linux.netDevices", "linux.netDevices.{}", "linux.netDevices.{}.name"],
        )
        .set("/linux/netDevices", json!({"{if}": {"name": "eth7"}}))
        .before("ip link add {if} type veth peer name {if}p")
        .sh("ls /proc/sys/net/ipv4/conf")
        .want("eth7")
        .instead("linux.netDevices.{}.name", json!("eth8"))
        .no_peer(LATER),
        case(
            "clocks that are ahead",
            &[
                "linux.timeOffsets",
                "linux.timeOffsets.boottime",
                "linux.timeOffsets.boottime.secs",
                "linux.timeOffsets.boottime.nanosecs",
                "linux.timeOffsets.monotonic",
                "linux.timeOffsets.monotonic.secs",
                "linux.timeOffsets.monotonic.nanosecs",
            ],
        )
        .set("/linux/namespaces/-", json!({"type": "time"}))
        .set(
            "/linux/timeOffsets",
            json!({"boottime": {"secs": 7, "nanosecs": 8}, "monotonic": {"secs": 5, "nanosecs": 6}}),
        )
        .sh("cat /proc/self/timens_offsets")
        .want("boottime 7 8")
        .want("monotonic 5 6")
        .not("crun", "1.8.1 gives up half way")
        .not("runc", LATER),
        case(
            "memory nodes",
            &[
                "linux.memoryPolicy",
                "linux.memoryPolicy.mode",
                "linux.memoryPolicy.nodes",
                "linux.memoryPolicy.flags",
            ],
        )
        .set(
            "/linux/memoryPolicy",
            json!({"mode": "MPOL_BIND", "nodes": "0", "flags": ["MPOL_F_STATIC_NODES"]}),
        )
        .sh("head -n 1 /proc/self/numa_maps")
        .want("bind=static:0")
        .instead("linux.memoryPolicy.mode", json!("MPOL_INTERLEAVE"))
        .no_peer(LATER),
    ]);
    if cfg!(target_arch = "x86_64") {
        all.push(
            case(
                "a personality",
                &["linux.personality", "linux.personality.domain"],
            )
            .set("/linux/personality", json!({"domain": "LINUX32"}))
            .sh("uname -m")
            .want("i686")
            .instead("linux.personality.domain", json!("LINUX"))
            .not("runc", LATER),
        );
    }
    all
}

fn mounts() -> Vec<Case> {
    let maps = |host: u32| json!([{"containerID": 0, "hostID": host, "size": 10}]);
    let mut all = vec![
        case(
            "a mount",
            &["mounts", "mounts[].destination", "mounts[].source", "mounts[].options"],
        )
        .set(
            "/mounts/-",
            json!({"destination": "/mnt", "type": "bind", "source": "{dir}/data", "options": ["bind", "ro", "nosuid"]}),
        )
        .sh("cat /mnt/file; grep ' /mnt ' /proc/self/mountinfo; true")
        .want("from outside")
        .want("/mnt ro,nosuid")
        .instead("mounts[].destination", json!("/data"))
        .instead("mounts[].source", json!("{dir}/log"))
        .instead("mounts[].options", json!(["bind"])),
        case("the type of a mount", &["mounts[].type"])
            .set("/mounts/-", json!({"destination": "/mnt", "type": "tmpfs", "source": "x", "options": ["size=1m"]}))
            .sh("grep ' /mnt ' /proc/self/mountinfo; true")
            .want("- tmpfs")
            .instead("mounts[].type", json!("ramfs")),
    ];
    for (kind, fields, number) in [
        (
            "users",
            [
                "mounts[].uidMappings",
                "mounts[].uidMappings[].containerID",
                "mounts[].uidMappings[].hostID",
                "mounts[].uidMappings[].size",
            ],
            "%u",
        ),
        (
            "groups",
            [
                "mounts[].gidMappings",
                "mounts[].gidMappings[].containerID",
                "mounts[].gidMappings[].hostID",
                "mounts[].gidMappings[].size",
            ],
            "%g",
        ),
    ] {
        let name = if kind == "users" {
            "the users of a mount"
        } else {
            "the groups of a mount"
        };
        all.push(
            case(name, &fields)
                .set(
                    "/mounts/-",
                    json!({"destination": "/mnt", "type": "bind", "source": "{dir}/data", "options": ["bind"],
                        "uidMappings": maps(7000), "gidMappings": maps(7000)}),
                )
                .before("chown 1:1 {dir}/data/file")
                .sh(&format!("stat -c id={number} /mnt/file"))
                .want("id=7001")
                .instead(fields[1], json!(1))
                .instead(fields[2], json!(8000))
                .instead(fields[3], json!(1))
                .not("runc", LATER),
        );
    }
    all
}

fn namespaces() -> Vec<Case> {
    let user = |case: Case| {
        case.set("/linux/namespaces/-", json!({"type": "user"}))
            .set(
                "/linux/uidMappings",
                json!([{"containerID": 0, "hostID": 100_000, "size": 65_536}]),
            )
            .set(
                "/linux/gidMappings",
                json!([{"containerID": 0, "hostID": 200_000, "size": 65_535}]),
            )
    };
    let mapped = |name: &'static str, file: &str, fields: [&'static str; 4], line: &str| -> Case {
        let other: [Value; 3] = [json!(1), json!(300_000), json!(65_500)];
        let mut case = user(case(name, &fields))
            .sh(&format!("cat /proc/self/{file}"))
            .want(line);
        for (field, value) in fields[1..].iter().zip(other) {
            case = case.instead(field, value);
        }
        case
    };
    vec![
        case("new namespaces", &["linux", "linux.namespaces", "linux.namespaces[].type"])
            .set("/linux/namespaces/-", json!({"type": "cgroup"}))
            .sh("readlink /proc/self/ns/cgroup; echo up; sleep 100")
            .host("a=$(readlink /proc/self/ns/cgroup) b=$(readlink /proc/$PID/ns/cgroup); [ -n \"$b\" ] && [ $a != $b ] && echo apart")
            .want("apart")
            .instead("linux.namespaces[].type", json!("time")),
        case("a namespace by its path", &["linux.namespaces[].path"])
            .set("/hostname", json!(null))
            .set(
                "/linux/namespaces",
                json!([{"type": "pid"}, {"type": "mount"}, {"type": "ipc"}, {"type": "uts", "path": "{dir}/uts"}]),
            )
            .before("touch uts; unshare --uts=$PWD/uts hostname berth-elsewhere")
            .sh("hostname")
            .want("berth-elsewhere"),
        mapped(
            "users mapped",
            "uid_map",
            [
                "linux.uidMappings",
                "linux.uidMappings[].containerID",
                "linux.uidMappings[].hostID",
                "linux.uidMappings[].size",
            ],
            "0 100000 65536",
        ),
        mapped(
            "groups mapped",
            "gid_map",
            [
                "linux.gidMappings",
                "linux.gidMappings[].containerID",
                "linux.gidMappings[].hostID",
                "linux.gidMappings[].size",
            ],
            "0 200000 65535",
        ),
    ]
}
