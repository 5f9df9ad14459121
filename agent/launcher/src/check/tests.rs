//! A table of bad requests, each with what the refusal must say.

use super::*;
use berth_rt::sched::Scheduler;

pub(crate) fn request() -> LaunchRequest {
    let image = format!("sha256:{}", "a".repeat(64));
    let text = serde_json::json!({
        "version": 1, "id": "pump-1", "workload": "pump", "image": image, "profile": "strict",
        "process": {"command": ["/bin/worker"]}, "placement": {"cpus": "0", "shared": true},
        "stop": {"signal": 15, "grace_ms": 5000}, "log_max_bytes": 1 << 20,
    });
    serde_json::from_value(text).unwrap()
}

fn device(path: &str) -> DeviceGrant {
    DeviceGrant {
        block: false,
        major: 4,
        minor: 64,
        path: path.into(),
        access: "rw".into(),
        mode: 0o660,
        uid: 0,
        gid: 0,
        links: Vec::new(),
        uevents: false,
        mount: None,
    }
}

fn function(address: &str) -> crate::wire::VfioGrant {
    crate::wire::VfioGrant {
        address: address.into(),
        whole_group: false,
    }
}

fn disk(path: &str, fs: &str, label: Option<&str>) -> DeviceGrant {
    DeviceGrant {
        block: true,
        mount: Some(crate::wire::FilesystemGrant {
            types: vec![fs.into()],
            label: label.map(Into::into),
        }),
        ..device(path)
    }
}

fn interface(name: &str, index: u32) -> InterfaceGrant {
    InterfaceGrant {
        name: name.into(),
        index,
        rename: None,
        mtu: None,
        addresses: Vec::new(),
        vlan: None,
    }
}

fn bind(source: &str, destination: &str) -> BindMount {
    BindMount {
        source: source.into(),
        destination: destination.into(),
        read_only: true,
        relabel: None,
    }
}

#[test]
fn bad_requests_are_refused_by_name() {
    type Change = fn(&mut LaunchRequest);
    let cases: &[(&str, Change)] = &[
        ("version 2 is not spoken here", |r| r.version = 2),
        ("id \"\"", |r| r.id = String::new()),
        ("id \"../x\"", |r| r.id = "../x".into()),
        ("id \".x\"", |r| r.id = ".x".into()),
        ("id \"Pump\"", |r| r.id = "Pump".into()),
        ("80 characters at most", |r| r.id = "x".repeat(81)),
        ("workload \"\"", |r| r.workload = String::new()),
        ("workload \"a\\nb\"", |r| r.workload = "a\nb".into()),
        ("image \"busybox:latest\": a manifest digest", |r| {
            r.image = "busybox:latest".into()
        }),
        ("a manifest digest", |r| {
            r.image = format!("sha256:{}", "A".repeat(64))
        }),
        ("a manifest digest", |r| {
            r.image = format!("sha256:{}", "a".repeat(63))
        }),
        ("profile \"../strict\"", |r| r.profile = "../strict".into()),
        ("process.args[0] holds a NUL", |r| {
            r.process.args = vec!["a\0".into()]
        }),
        ("process.command[0] is empty", |r| {
            r.process.command = vec![String::new()]
        }),
        ("environment name \"A=B\"", |r| {
            r.process.env = vec![("A=B".into(), String::new())]
        }),
        ("the value of A", |r| {
            r.process.env = vec![("A".into(), "\0".into())]
        }),
        ("arguments and environment of", |r| {
            r.process.args = vec!["x".repeat(ARGS_MAX)]
        }),
        ("process.cwd \"tmp\"", |r| r.process.cwd = Some("tmp".into())),
        ("process.cwd \"/a/../b\"", |r| {
            r.process.cwd = Some("/a/../b".into())
        }),
        ("process.cwd \"/a//b\"", |r| r.process.cwd = Some("/a//b".into())),
        ("hostname \"a b\"", |r| r.hostname = Some("a b".into())),
        ("placement.cpus", |r| r.placement.cpus = "3-1".into()),
        ("placement.cpus is empty", |r| r.placement.cpus = String::new()),
        ("placement.cpus 7: this node has 0-1 online", |r| {
            r.placement.cpus = "7".into()
        }),
        ("placement.mems", |r| r.placement.mems = "x".into()),
        ("the shared pool is never isolated", |r| {
            r.placement.require_isolated = true
        }),
        ("priority 0 is not between 1 and 99", |r| {
            r.scheduler = Some(Scheduler::Fifo { priority: 0 })
        }),
        ("priority 100", |r| {
            r.scheduler = Some(Scheduler::Rr { priority: 100 })
        }),
        ("nice 20", |r| r.scheduler = Some(Scheduler::Other { nice: 20 })),
        ("SCHED_DEADLINE: runtime", |r| {
            r.scheduler = Some(Scheduler::Deadline {
                runtime: 2_000_000,
                deadline: 1_000_000,
                period: 1_000_000,
            });
        }),
        ("timer_slack_ns 0", |r| r.timer_slack_ns = Some(0)),
        ("rt_budget of 2 µs every 1 µs", |r| {
            r.rt_budget = Some(crate::wire::RtBudget {
                runtime_us: 2,
                period_us: 1,
            });
        }),
        ("quiet: idle states, clock", |r| {
            r.quiet = Some(crate::wire::QuietRequest {
                irqs: berth_rt::quiet::Irqs::Away,
                ..Default::default()
            });
        }),
        ("quiet.governor \"../a\"", |r| {
            r.placement.shared = false;
            r.quiet = Some(crate::wire::QuietRequest {
                governor: Some("../a".into()),
                ..Default::default()
            });
        }),
        ("quiet.share 101", |r| {
            r.placement.shared = false;
            r.quiet = Some(crate::wire::QuietRequest {
                share: Some(101),
                ..Default::default()
            });
        }),
        ("memory_bytes 4096: at least", |r| r.memory_bytes = Some(4096)),
        ("pids 0", |r| r.pids = Some(0)),
        ("device path \"/dev/../etc/x\"", |r| {
            r.devices = vec![device("/dev/../etc/x")]
        }),
        ("below /dev", |r| r.devices = vec![device("/etc/x")]),
        ("below /dev", |r| r.devices = vec![device("/dev")]),
        ("below /dev", |r| r.devices = vec![device("/device/x")]),
        ("/dev/shm is the container's own", |r| {
            r.devices = vec![device("/dev/shm/x")]
        }),
        ("device path /dev/a is given twice", |r| {
            r.devices = vec![device("/dev/a"), device("/dev/a")]
        }),
        ("vfio \"0000:03:00.9\": a PCI address", |r| {
            r.vfio = vec![function("0000:03:00.9")]
        }),
        ("vfio 0000:03:00.0 is given twice", |r| {
            r.vfio = vec![function("0000:03:00.0"), function("0000:03:00.0")]
        }),
        ("vfio of an armed container", |r| {
            (r.armed, r.vfio) = (true, vec![function("0000:03:00.0")])
        }),
        ("uevents of a device without udev", |r| {
            r.devices = vec![DeviceGrant {
                uevents: true,
                ..device("/dev/a")
            }]
        }),
        ("mount at /run/udev/data: it has the records", |r| {
            r.udev = true;
            r.mounts = vec![crate::wire::BindMount {
                source: "/srv".into(),
                destination: "/run/udev/data".into(),
                read_only: true,
                relabel: None,
            }]
        }),
        ("access \"\"", |r| {
            r.devices = vec![DeviceGrant {
                access: String::new(),
                ..device("/dev/a")
            }]
        }),
        ("access \"rr\"", |r| {
            r.devices = vec![DeviceGrant {
                access: "rr".into(),
                ..device("/dev/a")
            }]
        }),
        ("access \"x\"", |r| {
            r.devices = vec![DeviceGrant {
                access: "x".into(),
                ..device("/dev/a")
            }]
        }),
        ("mode 4755", |r| {
            r.devices = vec![DeviceGrant {
                mode: 0o4755,
                ..device("/dev/a")
            }]
        }),
        ("no device has number 4096:", |r| {
            r.devices = vec![DeviceGrant {
                major: 4096,
                ..device("/dev/a")
            }]
        }),
        ("interface \"a/b\"", |r| r.interfaces = vec![interface("a/b", 3)]),
        ("interface \"0123456789abcdef\"", |r| {
            r.interfaces = vec![interface("0123456789abcdef", 3)]
        }),
        ("interface lo stays", |r| r.interfaces = vec![interface("lo", 1)]),
        ("index 0 is none", |r| r.interfaces = vec![interface("eth0", 0)]),
        ("of a block device, not at /", |r| {
            r.devices = vec![disk("/dev/x", "ext4", None)]
        }),
        ("some of erofs", |r| r.devices = vec![disk("/data", "nfs", None)]),
        ("a label of 1 to 255 bytes", |r| {
            r.devices = vec![disk("/data", "ext4", Some("a\nb"))]
        }),
        ("has a mount already", |r| {
            r.devices = vec![disk("/data", "ext4", None)];
            r.mounts = vec![bind("/srv/x", "/data")];
        }),
        ("MTU 68 to 65535", |r| {
            r.interfaces = vec![InterfaceGrant {
                mtu: Some(67),
                ..interface("eth0", 3)
            }]
        }),
        ("VLAN 1 to 4094", |r| {
            r.interfaces = vec![InterfaceGrant {
                vlan: Some(4095),
                ..interface("eth0", 3)
            }]
        }),
        ("a length that none has", |r| {
            r.interfaces = vec![InterfaceGrant {
                addresses: vec![([10, 0, 0, 1].into(), 33)],
                ..interface("eth0", 3)
            }]
        }),
        ("is given twice", |r| {
            r.interfaces = vec![interface("eth0", 2), interface("eth0", 3)]
        }),
        ("the host's network", |r| {
            r.network = Network::Host;
            r.interfaces = vec![interface("eth0", 2)];
        }),
        ("mount source \"srv\"", |r| r.mounts = vec![bind("srv", "/data")]),
        ("mount destination \"/data/\"", |r| {
            r.mounts = vec![bind("/srv", "/data/")]
        }),
        ("mount destination /: ", |r| r.mounts = vec![bind("/srv", "/")]),
        ("/proc is the container's own", |r| {
            r.mounts = vec![bind("/srv", "/proc/sys")]
        }),
        ("is given twice", |r| {
            r.mounts = vec![bind("/srv", "/d"), bind("/srv2", "/d")]
        }),
        ("65 mounts", |r| {
            r.mounts = (0..65).map(|n| bind("/srv", &format!("/d{n}"))).collect()
        }),
        ("signal 0", |r| r.stop.signal = 0),
        ("signal 65", |r| r.stop.signal = 65),
        ("stop.grace_ms", |r| r.stop.grace_ms = GRACE_MAX_MS + 1),
        ("log_max_bytes 100", |r| r.log_max_bytes = 100),
        ("labels and notes of", |r| {
            r.notes.insert("a".into(), "x".repeat(WORDS_MAX));
        }),
    ];
    let online = "0-1".parse().unwrap();
    check(&request(), &online).unwrap();
    for (text, change) in cases {
        let mut bad = request();
        change(&mut bad);
        let refusal = check(&bad, &online).expect_err(text);
        assert!(
            refusal.message.contains(text),
            "expected {text:?} in {:?}",
            refusal.message
        );
        assert_eq!(refusal.stage, "request");
    }
}

#[test]
fn good_requests_pass() {
    let mut good = request();
    good.devices = vec![device("/dev/port"), device("/dev/bus/usb/001")];
    good.interfaces = vec![interface("eth0", 2)];
    good.devices = vec![disk("/disk", "vfat", Some("DATA"))];
    good.mounts = vec![bind("/srv/x", "/data")];
    good.process.cwd = Some("/".into());
    good.scheduler = Some(Scheduler::Deadline {
        runtime: 1024,
        deadline: 4096,
        period: 4096,
    });
    good.id = "x".repeat(MAX_ID);
    check(&good, &"0".parse().unwrap()).unwrap();
}

#[test]
fn sources_that_no_container_may_see() {
    let own = [Path::new("/run/berth"), Path::new("/var/lib/berth")];
    let cases = [
        ("/srv/x", None),
        ("/", Some("root")),
        ("/proc/1", Some("/proc")),
        ("/sys", Some("/sys")),
        ("/dev/sda", Some("/dev")),
        ("/run/berth/launcher.sock", Some("/run/berth")),
        ("/run", Some("/run/berth")),
        ("/var/lib", Some("/var/lib/berth")),
        ("/var/lib/berthing", None),
    ];
    for (source, reason) in cases {
        let found = forbidden_source(Path::new(source), &own);
        match reason {
            None => assert_eq!(found, None, "{source}"),
            Some(reason) => assert!(found.is_some_and(|f| f.contains(reason)), "{source}"),
        }
    }
}
