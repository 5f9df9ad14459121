//! `linux.resources`: each value as the kernel's file has it, on v1 and on v2.

use serde_json::{Value, json};

use crate::case::{Case, case};

const TUN: &str = "1.1.5 allows this device to every container";
const OLD: &str = "it knows no field that is younger than runtime-spec 1.0.2";

/// One value, one file.
fn file(
    name: &'static str,
    fields: &[&'static str],
    place: &str,
    value: Value,
    (v1, v2): (&[&str], &[&str]),
    want: &str,
) -> Case {
    let word = fields
        .first()
        .and_then(|f| f.rsplit('.').next())
        .unwrap_or_default();
    case(name, fields)
        .set(place, value)
        .cgroup(v1, v2, word)
        .want(want)
}

pub(crate) fn cases() -> Vec<Case> {
    let mut all = cpu();
    all.extend(memory());
    all.extend(block());
    all.extend(devices());
    all.extend([
        file(
            "number of tasks",
            &[
                "linux.resources",
                "linux.resources.pids",
                "linux.resources.pids.limit",
            ],
            "/linux/resources/pids",
            json!({"limit": 37}),
            (&["pids/pids.max"], &["pids.max"]),
            "37",
        ),
        file(
            "huge pages",
            &[
                "linux.resources.hugepageLimits",
                "linux.resources.hugepageLimits[].pageSize",
                "linux.resources.hugepageLimits[].limit",
            ],
            "/linux/resources/hugepageLimits",
            json!([{"pageSize": "2MB", "limit": 4_194_304}]),
            (
                &["hugetlb/hugetlb.2MB.limit_in_bytes", "unified/hugetlb.2MB.max"],
                &["hugetlb.2MB.max"],
            ),
            "4194304",
        )
        .no_peer("it does not use the v2 hierarchy beside v1's"),
        file(
            "the class of packets",
            &["linux.resources.network", "linux.resources.network.classID"],
            "/linux/resources/network",
            json!({"classID": 1_048_577}),
            (&["net_cls/net_cls.classid"], &[]),
            "1048577",
        ),
        file(
            "the priority of packets",
            &[
                "linux.resources.network.priorities",
                "linux.resources.network.priorities[].name",
                "linux.resources.network.priorities[].priority",
            ],
            "/linux/resources/network",
            json!({"priorities": [{"name": "lo", "priority": 5}]}),
            (&["net_prio/net_prio.ifpriomap"], &[]),
            "lo 5",
        ),
        file(
            "RDMA",
            &[
                "linux.resources.rdma",
                "linux.resources.rdma.{}",
                "linux.resources.rdma.{}.hcaHandles",
                "linux.resources.rdma.{}.hcaObjects",
            ],
            "/linux/resources/rdma",
            json!({"rxe0": {"hcaHandles": 3, "hcaObjects": 70}}),
            (&["rdma/rdma.max"], &["rdma.max"]),
            "rxe0 hca_handle=3 hca_object=70",
        ),
        file(
            "a key of cgroup v2",
            &["linux.resources.unified", "linux.resources.unified.{}"],
            "/linux/resources/unified",
            json!({"pids.max": "38"}),
            (&[], &["pids.max"]),
            "38",
        ),
    ]);
    all
}

fn cpu() -> Vec<Case> {
    let cpu = "/linux/resources/cpu";
    vec![
        file(
            "CPU shares",
            &["linux.resources.cpu", "linux.resources.cpu.shares"],
            cpu,
            json!({"shares": 512}),
            (&["cpu/cpu.shares"], &["cpu.weight"]),
            if v2() { "20" } else { "512" },
        )
        .not(
            "crun",
            if v2() {
                "it rounds the weight in another way"
            } else {
                ""
            },
        ),
        file(
            "CPU quota and period",
            &["linux.resources.cpu.quota", "linux.resources.cpu.period"],
            cpu,
            json!({"quota": 30_000, "period": 60_000}),
            (&["cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us"], &["cpu.max"]),
            if v2() { "30000 60000" } else { "30000\n60000" },
        ),
        file(
            "CPU burst",
            &["linux.resources.cpu.burst"],
            cpu,
            json!({"quota": 30_000, "period": 60_000, "burst": 10_000}),
            (&["cpu/cpu.cfs_burst_us"], &["cpu.max.burst"]),
            "10000",
        )
        .no_peer(OLD),
        file(
            "idle",
            &["linux.resources.cpu.idle"],
            cpu,
            json!({"idle": 1}),
            (&["cpu/cpu.idle"], &["cpu.idle"]),
            "1",
        )
        .not("runc", OLD),
        file(
            "real-time budget",
            &[
                "linux.resources.cpu.realtimeRuntime",
                "linux.resources.cpu.realtimePeriod",
            ],
            cpu,
            json!({"realtimeRuntime": 5_000, "realtimePeriod": 500_000}),
            (&["cpu/cpu.rt_runtime_us", "cpu/cpu.rt_period_us"], &[]),
            "5000\n500000",
        )
        .no_peer("it sets no budget on the way down"),
        file(
            "CPUs and memory nodes",
            &["linux.resources.cpu.cpus", "linux.resources.cpu.mems"],
            cpu,
            json!({"cpus": "0", "mems": "0"}),
            (
                &["cpuset/cpuset.cpus", "cpuset/cpuset.mems"],
                &["cpuset.cpus", "cpuset.mems"],
            ),
            "0\n0",
        )
        .instead("linux.resources.cpu.mems", json!("63")),
    ]
}

fn v2() -> bool {
    std::path::Path::new("/sys/fs/cgroup/cgroup.controllers").exists()
}

fn memory() -> Vec<Case> {
    let memory = "/linux/resources/memory";
    vec![
        file(
            "memory",
            &["linux.resources.memory", "linux.resources.memory.limit"],
            memory,
            json!({"limit": 67_108_864}),
            (&["memory/memory.limit_in_bytes"], &["memory.max"]),
            "67108864",
        ),
        file(
            "memory and swap",
            &["linux.resources.memory.swap"],
            memory,
            json!({"limit": 67_108_864, "swap": 134_217_728}),
            (&["memory/memory.memsw.limit_in_bytes"], &["memory.swap.max"]),
            if v2() { "67108864" } else { "134217728" },
        ),
        file(
            "memory reservation",
            &["linux.resources.memory.reservation"],
            memory,
            json!({"limit": 67_108_864, "reservation": 33_554_432}),
            (&["memory/memory.soft_limit_in_bytes"], &["memory.low"]),
            "33554432",
        ),
        // The kernel takes a limit of its own for kernel memory no more: its file never has what was written.
        case("kernel memory", &["linux.resources.memory.kernel"])
            .set(memory, json!({"kernel": 33_554_432}))
            .refused()
            .want("linux.resources.memory.kernel")
            .no_peer("it writes to a file without effect"),
        file(
            "memory of TCP",
            &["linux.resources.memory.kernelTCP"],
            memory,
            json!({"kernelTCP": 33_554_432}),
            (&["memory/memory.kmem.tcp.limit_in_bytes"], &[]),
            "33554432",
        )
        .not("runc", "1.1.5 passes the field over"),
        file(
            "swappiness",
            &["linux.resources.memory.swappiness"],
            memory,
            json!({"limit": 67_108_864, "swappiness": 7}),
            (&["memory/memory.swappiness"], &[]),
            "7",
        ),
        file(
            "no memory killer",
            &["linux.resources.memory.disableOOMKiller"],
            memory,
            json!({"limit": 67_108_864, "disableOOMKiller": true}),
            (&["memory/memory.oom_control"], &[]),
            "oom_kill_disable 1",
        ),
        case(
            "groups that are not hierarchical",
            &["linux.resources.memory.useHierarchy"],
        )
        .set(memory, json!({"useHierarchy": false}))
        .refused()
        .want("useHierarchy")
        .no_peer("it passes the field over"),
        case(
            "a limit below what is used",
            &["linux.resources.memory.checkBeforeUpdate"],
        )
        .set(memory, json!({"limit": 67_108_864}))
        .set(
            "/mounts/-",
            json!({"destination": "/mnt", "type": "tmpfs", "source": "x", "options": ["size=32m"]}),
        )
        .sh("head -c 16000000 /dev/zero > /mnt/x; echo up; exec sleep 100")
        .update(json!({"memory": {"limit": 8_388_608, "checkBeforeUpdate": true}}))
        .host("oci update --resources {dir}/update.json {id} || echo not updated")
        .want("not updated")
        .want("bytes are in use")
        .no_peer(OLD),
    ]
}

/// A whole block device of this machine, `major:minor`.
fn disk() -> Option<(i64, i64)> {
    let all = std::fs::read_dir("/sys/block").ok()?;
    let mut names: Vec<_> = all.flatten().map(|e| e.path()).collect();
    // The last in order: a disk rather than a loop device.
    names.sort_by_key(|p| {
        (
            p.file_name()
                .is_some_and(|n| !n.to_string_lossy().starts_with("loop")),
            p.clone(),
        )
    });
    let number = std::fs::read_to_string(names.last()?.join("dev")).ok()?;
    let (major, minor) = number.trim().split_once(':')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

/// The last loop device that has no file: `major`, `minor` and name.
fn loop_device() -> Option<(i64, i64, String)> {
    let free = |n: &i64| {
        let folder = format!("/sys/block/loop{n}");
        std::path::Path::new(&folder).exists()
            && !std::path::Path::new(&folder).join("loop/backing_file").exists()
    };
    let n = (0..16).rev().find(free)?;
    Some((7, n, format!("loop{n}")))
}

fn block() -> Vec<Case> {
    let place = "/linux/resources/blockIO";
    let (major, minor) = disk().unwrap_or((7, 0));
    let weighed = loop_device().unwrap_or((7, 7, "loop7".into()));
    let mut all = vec![
        file(
            "weight of disk accesses",
            &["linux.resources.blockIO", "linux.resources.blockIO.weight"],
            place,
            json!({"weight": 300}),
            (
                &["blkio/blkio.bfq.weight", "blkio/blkio.weight"],
                &["io.bfq.weight", "io.weight"],
            ),
            "300",
        )
        .not("crun", "1.8.1 writes to a file that this kernel does not have"),
        case("weight of leaves", &["linux.resources.blockIO.leafWeight"])
            .set(place, json!({"leafWeight": 300}))
            .refused()
            .want("leafWeight")
            .no_peer("the file that it writes to is in no kernel since 5.0"),
        case(
            "weight of leaves on a device",
            &["linux.resources.blockIO.weightDevice[].leafWeight"],
        )
        .set(
            place,
            json!({"weightDevice": [{"major": major, "minor": minor, "leafWeight": 300}]}),
        )
        .refused()
        .want("leafWeight")
        .no_peer("the file that it writes to is in no kernel since 5.0"),
        file(
            "weight on a device",
            &[
                "linux.resources.blockIO.weightDevice",
                "linux.resources.blockIO.weightDevice[].major",
                "linux.resources.blockIO.weightDevice[].minor",
                "linux.resources.blockIO.weightDevice[].weight",
            ],
            place,
            json!({"weightDevice": [{"major": weighed.0, "minor": weighed.1, "weight": 300}]}),
            (
                &["blkio/blkio.bfq.weight_device", "blkio/blkio.weight_device"],
                &["io.bfq.weight"],
            ),
            &format!("{}:{} 300", weighed.0, weighed.1),
        )
        // A weight is one device's with the BFQ scheduler: a loop device that nobody uses has it meanwhile.
        .before(&format!("echo bfq > /sys/block/{}/queue/scheduler", weighed.2))
        .after(&format!("echo none > /sys/block/{}/queue/scheduler", weighed.2))
        .not("crun", "1.8.1 writes to a file that this kernel does not have"),
    ];
    const LIMITS: [(&str, [&str; 4], &str, &str); 4] = [
        (
            "throttleReadBpsDevice",
            [
                "linux.resources.blockIO.throttleReadBpsDevice",
                "linux.resources.blockIO.throttleReadBpsDevice[].major",
                "linux.resources.blockIO.throttleReadBpsDevice[].minor",
                "linux.resources.blockIO.throttleReadBpsDevice[].rate",
            ],
            "blkio/blkio.throttle.read_bps_device",
            "rbps",
        ),
        (
            "throttleWriteBpsDevice",
            [
                "linux.resources.blockIO.throttleWriteBpsDevice",
                "linux.resources.blockIO.throttleWriteBpsDevice[].major",
                "linux.resources.blockIO.throttleWriteBpsDevice[].minor",
                "linux.resources.blockIO.throttleWriteBpsDevice[].rate",
            ],
            "blkio/blkio.throttle.write_bps_device",
            "wbps",
        ),
        (
            "throttleReadIOPSDevice",
            [
                "linux.resources.blockIO.throttleReadIOPSDevice",
                "linux.resources.blockIO.throttleReadIOPSDevice[].major",
                "linux.resources.blockIO.throttleReadIOPSDevice[].minor",
                "linux.resources.blockIO.throttleReadIOPSDevice[].rate",
            ],
            "blkio/blkio.throttle.read_iops_device",
            "riops",
        ),
        (
            "throttleWriteIOPSDevice",
            [
                "linux.resources.blockIO.throttleWriteIOPSDevice",
                "linux.resources.blockIO.throttleWriteIOPSDevice[].major",
                "linux.resources.blockIO.throttleWriteIOPSDevice[].minor",
                "linux.resources.blockIO.throttleWriteIOPSDevice[].rate",
            ],
            "blkio/blkio.throttle.write_iops_device",
            "wiops",
        ),
    ];
    for (key, fields, v1, word) in LIMITS {
        let want = if v2() {
            format!("{word}=1234567")
        } else {
            format!("{major}:{minor} 1234567")
        };
        all.push(
            file(
                "rate of disk accesses",
                &fields,
                place,
                json!({key: [{"major": major, "minor": minor, "rate": 1_234_567}]}),
                (&[v1], &["io.max"]),
                &want,
            )
            .instead(fields[1], json!(4095))
            .instead(fields[2], json!(4095)),
        );
    }
    all
}

fn devices() -> Vec<Case> {
    // The tun device: nothing but the rules stands between root and it.
    let node = json!([{"path": "/dev/mine", "type": "c", "major": 10, "minor": 200, "fileMode": 438, "uid": 0, "gid": 0}]);
    let rule = |allow: bool, access: &str| json!({"allow": allow, "type": "c", "major": 10, "minor": 200, "access": access});
    vec![
        case("a device that is denied", &["linux.resources.devices[].allow"])
            .set("/linux/devices", node.clone())
            .set("/linux/resources/devices/-", rule(true, "rwm"))
            .set("/linux/resources/devices/-", rule(false, "rwm"))
            .sh("(exec 3</dev/mine) 2>&1; true")
            .want("Operation not permitted")
            .instead("linux.resources.devices[].allow", json!(true))
            .not("runc", TUN),
        case(
            "a device that is allowed",
            &[
                "linux.resources.devices",
                "linux.resources.devices[].type",
                "linux.resources.devices[].major",
                "linux.resources.devices[].minor",
                "linux.resources.devices[].access",
            ],
        )
        .set("/linux/devices", node)
        .set("/linux/resources/devices/-", rule(true, "r"))
        .sh("(exec 3</dev/mine) && echo can be read; (exec 3>/dev/mine) 2>&1; true")
        .want("can be read")
        .want("Operation not permitted")
        .instead("linux.resources.devices[].type", json!("b"))
        .instead("linux.resources.devices[].major", json!(11))
        .instead("linux.resources.devices[].minor", json!(201))
        .instead("linux.resources.devices[].access", json!("rwm"))
        .not("runc", TUN),
    ]
}
