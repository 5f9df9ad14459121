//! The real kernel: a network namespace of the test's own with veth pairs, a loop device of its own, synthetic
//! events, overflow; and udevd's wire format, spoken by the test in that namespace.
//!
//! A thread that has left the namespaces of the process ends with them: nothing stays behind.

use std::ffi::CString;
use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

use nix::mount::{MsFlags, mount};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, unshare};

use super::*;
use crate::device::Device;
use crate::enumerate::{Filter, enumerate, enumerate_from};
use crate::event::Action;
use crate::inventory::{Delta, Inside, Interface, Inventory};

/// Runs `test` on a thread with a network and mount namespace of its own, sysfs mounted for it on `/sys`.
fn in_namespace<T: Send + 'static>(test: impl FnOnce() -> T + Send + 'static) -> T {
    let body = move || {
        unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).expect("root is needed");
        let none = None::<&str>;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
        mount(Some("sysfs"), "/sys", Some("sysfs"), MsFlags::empty(), none).unwrap();
        test()
    };
    std::thread::spawn(body).join().unwrap()
}

fn ip(arguments: &str) {
    let run = Command::new("ip")
        .args(arguments.split(' '))
        .output()
        .expect("ip (iproute2) is needed");
    assert!(
        run.status.success(),
        "ip {arguments}: {}",
        String::from_utf8_lossy(&run.stderr)
    );
}

/// The next event for which `wanted` holds, within five seconds.
fn wait(monitor: &mut Monitor, wanted: impl Fn(&Event) -> bool) -> Event {
    let end = Instant::now() + Duration::from_secs(5);
    while Instant::now() < end {
        while let Some(event) = monitor.next().unwrap() {
            if wanted(&event) {
                return event;
            }
        }
        let timeout = PollTimeout::from(100u8);
        poll(&mut [PollFd::new(monitor.as_fd(), PollFlags::POLLIN)], timeout).unwrap();
    }
    panic!("no such event in five seconds");
}

fn of(name: &'static str, action: Action) -> impl Fn(&Event) -> bool {
    move |event| event.device.sysname() == name && event.action == action
}

/// Applies everything that is waiting: `+a`, `>a>b`, `~a`, `-a` for `net` devices.
fn apply(monitor: &mut Monitor, inventory: &mut Inventory) -> Vec<String> {
    let mut told = Vec::new();
    while let Some(event) = monitor.next().unwrap() {
        for delta in inventory.apply(event) {
            if delta.device().subsystem() != Some("net") {
                continue;
            }
            told.push(match delta {
                Delta::Appeared { device } => format!("+{}", device.sysname()),
                Delta::Changed { device, .. } => format!("~{}", device.sysname()),
                Delta::Moved { device, before } => format!(">{}>{}", before.sysname(), device.sysname()),
                Delta::Gone { device } => format!("-{}", device.sysname()),
            });
        }
    }
    told
}

fn net() -> Vec<Device> {
    enumerate(Path::new("/sys"), &Filter::subsystems(["net"])).unwrap()
}

#[test]
fn auto_is_chosen_by_the_control_socket() {
    let want = if Path::new(UDEV_CONTROL).exists() {
        Source::Udev
    } else {
        Source::Kernel
    };
    assert_eq!(Source::Auto.resolve(), want);
    assert_eq!(
        ("udev".parse(), "kernel".parse(), "auto".parse()),
        (Ok(Source::Udev), Ok(Source::Kernel), Ok(Source::Auto))
    );
    assert!("systemd".parse::<Source>().is_err());
}

#[test]
fn veth_pairs_come_move_and_go() {
    in_namespace(|| {
        let mut monitor = Monitor::open(Source::Kernel, RECEIVE_BUFFER).unwrap();
        assert!(
            monitor.receive_buffer() >= RECEIVE_BUFFER,
            "forced: {}",
            monitor.receive_buffer()
        );
        let mut inventory = Inventory::new();
        // Plugged between the opening and the enumeration: seen by both, told once.
        ip("link add bh0 type veth peer name bh1");
        inventory.resync(net(), &[]);
        let before = inventory.len();
        assert!(inventory.by_devpath("/devices/virtual/net/bh0").is_some());
        assert_eq!(apply(&mut monitor, &mut inventory), Vec::<String>::new());
        ip("link set bh0 name wan0");
        assert_eq!(apply(&mut monitor, &mut inventory), [">bh0>wan0"]);
        let wan = inventory.by_devpath("/devices/virtual/net/wan0").unwrap().clone();
        assert_eq!((wan.interface(), inventory.len()), (Some("wan0"), before));
        ip("link del wan0");
        let mut told = apply(&mut monitor, &mut inventory);
        told.sort();
        assert_eq!(told, ["-bh1", "-wan0"]);
        assert_eq!(inventory.resync(net(), &[]), []);
        assert_eq!(
            (monitor.counters().malformed, monitor.counters().untrusted),
            (0, 0)
        );
    });
}

#[test]
fn a_veth_in_another_namespace_is_held_until_it_is_gone_there() {
    in_namespace(|| {
        let mut monitor = Monitor::open(Source::Kernel, RECEIVE_BUFFER).unwrap();
        let mut inventory = Inventory::new();
        ip("link add bh0 type veth peer name bh1");
        inventory.resync(net(), &[]);
        apply(&mut monitor, &mut inventory);
        let key = inventory.by_devpath("/devices/virtual/net/bh1").unwrap().key();
        // Another namespace: a thread that waits for orders.
        let (orders, inbox) = std::sync::mpsc::channel::<()>();
        let (answers, outbox) = std::sync::mpsc::channel();
        let container = std::thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            let inner = Monitor::open(Source::Kernel, 1 << 20).unwrap();
            answers.send((nix::unistd::gettid(), None, None)).unwrap();
            inbox.recv().unwrap();
            ip("link set bh1 name eth0");
            answers
                .send((nix::unistd::gettid(), Some(Interface::list().unwrap()), None))
                .unwrap();
            inbox.recv().unwrap();
            answers
                .send((
                    nix::unistd::gettid(),
                    Some(Interface::list().unwrap()),
                    Some(inner),
                ))
                .unwrap();
        });
        let (tid, ..) = outbox.recv().unwrap();
        assert!(inventory.hold(&key, "c1"));
        ip(&format!("link set bh1 netns {tid}"));
        assert_eq!(
            apply(&mut monitor, &mut inventory),
            Vec::<String>::new(),
            "moved is not gone"
        );
        orders.send(()).unwrap();
        let interfaces = outbox.recv().unwrap().1.unwrap();
        let eth0 = interfaces.iter().find(|i| i.name == "eth0").unwrap().clone();
        assert!(inventory.held_as(&key, eth0.clone()));
        let found = |interfaces| {
            [Inside {
                owner: "c1".into(),
                interfaces,
            }]
        };
        assert_eq!(inventory.resync(net(), &found(interfaces)), []);
        // Really gone: outside only the peer tells, inside there is a remove.
        ip("link del bh0");
        assert_eq!(apply(&mut monitor, &mut inventory), ["-bh0"]);
        orders.send(()).unwrap();
        let (_, interfaces, inner) = outbox.recv().unwrap();
        let mut inner = inner.unwrap();
        let event = wait(&mut inner, of("eth0", Action::Remove));
        let gone = Interface {
            index: event.device.ifindex().unwrap(),
            name: "eth0".into(),
        };
        let mut copy = inventory.clone();
        assert!(
            matches!(inventory.gone_inside("c1", &gone), Some(Delta::Gone { device }) if device.key() == key)
        );
        assert_eq!(
            copy.resync(net(), &found(interfaces.unwrap())).len(),
            1,
            "a resync finds it too"
        );
        container.join().unwrap();
    });
}

#[test]
fn a_small_buffer_overflows_and_a_resync_heals() {
    in_namespace(|| {
        let mut monitor = Monitor::open(Source::Kernel, 4096).unwrap();
        let mut inventory = Inventory::new();
        inventory.resync(net(), &[]);
        let base = inventory.len();
        for n in 0..30 {
            ip(&format!("link add bo{n} type veth peer name bp{n}"));
        }
        for n in 0..10 {
            ip(&format!("link del bo{n}"));
        }
        let mut overflows = 0;
        loop {
            match monitor.next() {
                Ok(Some(event)) => drop(inventory.apply(event)),
                Ok(None) => break,
                Err(MonitorError::Overflow) => {
                    overflows += 1;
                    monitor.drain(usize::MAX).unwrap();
                    inventory.resync(net(), &[]);
                }
                Err(error) => panic!("{error}"),
            }
        }
        assert!(overflows > 0, "the loss was not noticed");
        assert_eq!(monitor.counters().overflows, overflows);
        assert_eq!(inventory.len(), base + 40);
        assert_eq!(inventory.resync(net(), &[]), []);
        // Afterwards it works as before.
        ip("link del bo20");
        let mut told = apply(&mut monitor, &mut inventory);
        told.sort();
        assert_eq!(told, ["-bo20", "-bp20"]);
    });
}

#[test]
fn what_is_older_than_a_drain_is_not_told() {
    in_namespace(|| {
        let mut monitor = Monitor::open(Source::Kernel, RECEIVE_BUFFER).unwrap();
        ip("link add bs0 type veth peer name bs1");
        ip("link del bs0");
        assert_eq!(monitor.drain(1).unwrap(), 1);
        let mut inventory = Inventory::new();
        inventory.resync(net(), &[]);
        assert_eq!(
            apply(&mut monitor, &mut inventory),
            Vec::<String>::new(),
            "the rest is stale"
        );
        ip("link add bs2 type veth peer name bs3");
        let mut told = apply(&mut monitor, &mut inventory);
        told.sort();
        assert_eq!(told, ["+bs2", "+bs3"]);
    });
}

#[test]
fn a_loop_device_of_its_own() {
    const NUMBER: u32 = 911;
    let mut monitor = Monitor::open(Source::Kernel, RECEIVE_BUFFER).unwrap();
    let device = loop_device::Own::add(NUMBER);
    let event = wait(&mut monitor, of("loop911", Action::Add));
    let plugged = &event.device;
    assert_eq!(plugged.devnode(), Some("/dev/loop911"));
    assert_eq!(plugged.devnum().unwrap().to_string(), format!("b 7:{NUMBER}"));
    let read = Device::from_sysfs(Path::new("/sys"), Path::new("/sys/block/loop911")).unwrap();
    assert_eq!(
        read.properties(),
        plugged.properties(),
        "event and sysfs say the same"
    );
    let rule =
        crate::rule::Match::parse(r#"SUBSYSTEM=="block", KERNEL=="loop911", ATTR{size}=="0""#).unwrap();
    assert!(crate::rule::explain(&rule, plugged, event.action).holds);
    // A synthetic event carries its own variables; the inventory calls it a change.
    let mut inventory = Inventory::new();
    inventory.resync(vec![read], &[]);
    let uuid = "fe4d7c9d-b8c6-4a70-9ef1-3d8a58d18eed";
    fs::write("/sys/block/loop911/uevent", format!("change {uuid} BERTH=1")).unwrap();
    let event = wait(&mut monitor, of("loop911", Action::Change));
    assert_eq!(event.device.property("SYNTH_ARG_BERTH"), Some("1"));
    assert!(matches!(
        inventory.apply(event)[..],
        [Delta::Changed {
            action: Action::Change,
            ..
        }]
    ));
    fs::write("/sys/block/loop911/uevent", format!("add {uuid}")).unwrap();
    let again = wait(&mut monitor, of("loop911", Action::Add));
    assert_eq!(inventory.apply(again), [], "an add for what is there");
    drop(device);
    let event = wait(&mut monitor, of("loop911", Action::Remove));
    assert!(matches!(inventory.apply(event)[..], [Delta::Gone { .. }]));
}

/// A message as systemd-udevd sends it (`monitor_netlink_header` of libsystemd).
fn udevd_message(properties: &str) -> Vec<u8> {
    let mut message = b"libudev\0".to_vec();
    message.extend(0xfeed_cafe_u32.to_be_bytes());
    for number in [40, 40, properties.len() as u32, 0, 0, 0, 0] {
        message.extend(number.to_ne_bytes());
    }
    message.extend(properties.as_bytes());
    message
}

#[test]
fn udevd_events_and_their_loss() {
    in_namespace(|| {
        // libudev listens only where udevd seems to be there.
        let none = None::<&str>;
        mount(Some("tmpfs"), "/run", Some("tmpfs"), MsFlags::empty(), none).unwrap();
        fs::create_dir_all("/run/udev").unwrap();
        fs::write("/run/udev/control", "").unwrap();
        assert_eq!(Source::Auto.resolve(), Source::Udev);
        let mut monitor = Monitor::open(Source::Auto, 8192).unwrap();
        assert_eq!(monitor.source(), Source::Udev);
        assert!(monitor.next().unwrap().is_none());
        let udevd = socket::socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            SockProtocol::NetlinkKObjectUEvent,
        )
        .unwrap();
        let send = |action: &str, number: u32, more: &str| {
            let text = format!(
                "ACTION={action}\0DEVPATH=/devices/virtual/net/lo\0SUBSYSTEM=net\0INTERFACE=lo\0IFINDEX=1\0\
                 SEQNUM={number}\0USEC_INITIALIZED=7\0{more}"
            );
            let to = NetlinkAddr::new(0, 2);
            socket::sendto(udevd.as_raw_fd(), &udevd_message(&text), &to, MsgFlags::empty()).unwrap();
        };
        send(
            "add",
            5,
            "ID_SERIAL=a\x1bb\0TAGS=:systemd:\0CURRENT_TAGS=:systemd:\0",
        );
        let event = wait(&mut monitor, |e| e.seqnum == 5);
        assert_eq!((event.action, event.device.ifindex()), (Action::Add, Some(1)));
        assert!(event.device.is_initialized() && event.device.tags().contains("systemd"));
        assert_eq!(event.device.property("ID_SERIAL"), Some("a\x1bb"));
        // The crate knows no `move`; the property does.
        send("move", 6, "DEVPATH_OLD=/devices/virtual/net/old\0");
        let event = wait(&mut monitor, |e| e.seqnum == 6);
        assert_eq!(
            (event.action, event.devpath_old.as_deref()),
            (Action::Move, Some("/devices/virtual/net/old"))
        );
        // A burst into a small buffer.
        let filler = format!("FILLER={}\0", "x".repeat(1500));
        for number in 0..200 {
            send("change", 100 + number, &filler);
        }
        let mut results = Vec::new();
        loop {
            match monitor.next() {
                Ok(None) => break,
                other => results.push(other.map(|_| ())),
            }
        }
        assert!(
            results.len() < 200 && results.iter().any(Result::is_err),
            "the loss was not noticed"
        );
        assert!(monitor.counters().overflows > 0);
        send("add", 800, "");
        assert_eq!(monitor.drain(0).unwrap(), 1, "of udevd all is read");
        // Small numbers are not stale: udevd may have been busy.
        send("add", 1, "");
        assert_eq!(wait(&mut monitor, |_| true).seqnum, 1);
        send("add", 900, "");
        assert_eq!(wait(&mut monitor, |_| true).seqnum, 900);
        // Enumeration leaves out what udevd has not finished (it comes later), and has what its database has.
        let found = || enumerate_from(Source::Auto, Path::new("/sys"), &Filter::subsystems(["net"])).unwrap();
        assert_eq!(found(), []);
        fs::create_dir("/run/udev/data").unwrap();
        // Longer than any one value may be, as that of a disk with many links.
        let links: String = (0..1000).map(|n| format!("S:by-test/number-{n}\n")).collect();
        fs::write(
            "/run/udev/data/n1",
            format!("{links}I:7\nE:ID_MODEL=loop back\nG:berth\nQ:berth\nV:1\n"),
        )
        .unwrap();
        let lo = &found()[0];
        assert_eq!(
            (lo.sysname().as_str(), lo.property("ID_MODEL")),
            ("lo", Some("loop back"))
        );
        assert!(lo.is_initialized() && lo.tags().contains("berth"), "{lo:?}");
        let again = crate::enumerate::refresh(Source::Auto, &net()[0]).unwrap();
        assert_eq!(again.property("ID_MODEL"), Some("loop back"));
    });
}

#[test]
fn events_of_other_senders_are_dropped() {
    in_namespace(|| {
        let mut monitor = Monitor::open(Source::Kernel, RECEIVE_BUFFER).unwrap();
        let forger = open_group(GROUP_KERNEL).unwrap();
        let message = b"add@/devices/virtual/net/lo\0ACTION=add\0DEVPATH=/devices/virtual/net/lo\0SUBSYSTEM=net\0SEQNUM=1\0";
        // To the group, and straight to the socket.
        let address: NetlinkAddr = socket::getsockname(monitor.as_raw_fd()).unwrap();
        let mut sent = 0;
        for to in [
            NetlinkAddr::new(0, GROUP_KERNEL),
            NetlinkAddr::new(address.pid(), 0),
        ] {
            sent += socket::sendto(forger.as_raw_fd(), message, &to, MsgFlags::empty()).is_ok() as u64;
        }
        assert!(sent > 0);
        assert!(monitor.next().unwrap().is_none());
        assert_eq!(
            (monitor.counters().untrusted, monitor.counters().events),
            (sent, 0)
        );
    });
}

mod loop_device {
    #![allow(unsafe_code)] // LOOP_CTL_ADD and LOOP_CTL_REMOVE are ioctls.

    use super::*;

    nix::ioctl_write_int_bad!(ctl_add, 0x4C80);
    nix::ioctl_write_int_bad!(ctl_remove, 0x4C81);

    /// A loop device that is removed again, even when the test fails.
    pub(super) struct Own(fs::File, u32);

    impl Own {
        pub(super) fn add(number: u32) -> Own {
            let control = fs::File::options()
                .read(true)
                .write(true)
                .open("/dev/loop-control")
                .unwrap();
            // SAFETY: the argument of this request is a number.
            unsafe { ctl_add(control.as_raw_fd(), number as i32) }.expect("the loop device is taken");
            Own(control, number)
        }
    }

    impl Drop for Own {
        fn drop(&mut self) {
            // SAFETY: as above.
            let removed = unsafe { ctl_remove(self.0.as_raw_fd(), self.1 as i32) };
            let node = CString::new(format!("/dev/loop{}", self.1)).unwrap();
            assert!(
                removed.is_ok() || std::thread::panicking(),
                "{node:?}: {removed:?}"
            );
        }
    }
}
