//! Enumeration of a recorded tree, of this machine, and with libudev over umockdev.

use super::*;
use std::fs;
use std::os::unix::fs::symlink;
use std::process::Command;

#[test]
fn a_recorded_tree() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path();
    let put = |devpath: &str, subsystem: &str| {
        let path = root.join(&devpath[1..]);
        fs::create_dir_all(&path).unwrap();
        fs::write(path.join("uevent"), "A=1\n").unwrap();
        symlink(format!("../../{subsystem}"), path.join("subsystem")).unwrap();
    };
    put("/devices/virtual/net/lo", "net");
    put("/devices/usb1", "usb");
    put("/devices/usb1/tty/ttyUSB0", "tty");
    for folder in ["class/net", "class/tty", "class/evil", "bus/usb/devices"] {
        fs::create_dir_all(root.join(folder)).unwrap();
    }
    symlink("../../devices/virtual/net/lo", root.join("class/net/lo")).unwrap();
    symlink("../../devices/usb1/tty/ttyUSB0", root.join("class/tty/ttyUSB0")).unwrap();
    symlink("../../../devices/usb1", root.join("bus/usb/devices/usb1")).unwrap();
    // Not devices: a file, a link out of the tree, an absolute link, a device that has just gone.
    fs::write(root.join("class/net/bonding_masters"), "").unwrap();
    symlink("../../../../../../etc", root.join("class/evil/a")).unwrap();
    symlink("/sys/devices/virtual/net/lo", root.join("class/evil/b")).unwrap();
    symlink("../../devices/gone", root.join("class/evil/c")).unwrap();
    let names = |filter: &Filter| {
        let found = enumerate(root, filter).unwrap();
        found.iter().map(|d| d.sysname()).collect::<Vec<_>>()
    };
    assert_eq!(names(&Filter::default()), ["usb1", "ttyUSB0", "lo"]);
    assert_eq!(names(&Filter::subsystems(["net", "tty"])), ["ttyUSB0", "lo"]);
    assert!(names(&Filter::subsystems(["block"])).is_empty());
    assert!(names(&Filter::subsystems(Vec::<String>::new())).is_empty());
    let error = enumerate(&root.join("nope"), &Filter::default()).unwrap_err();
    assert!(error.hint().is_some(), "{error}");
}

/// The same devices as libudev itself sees them.
fn libudevs(filter: &Filter) -> Vec<Device> {
    let mut scan = udev::Enumerator::new().unwrap();
    for subsystem in filter.subsystems.iter().flatten() {
        scan.match_subsystem(subsystem).unwrap();
    }
    let root: Arc<Path> = Path::new("/sys").into();
    let text = |s: &std::ffi::OsStr| s.to_string_lossy().into_owned();
    let device = |d: udev::Device| {
        let properties = d.properties().map(|p| (text(p.name()), text(p.value())));
        Device::build(&root, text(d.devpath()), properties)
    };
    let mut found: Vec<Device> = scan.scan_devices().unwrap().map(device).collect();
    found.sort_by(|a, b| a.devpath().cmp(b.devpath()));
    found
}

/// Its properties, links and tags as sets: libudev has them in no order.
fn all_of(device: &Device) -> Vec<(&str, BTreeSet<&str>)> {
    let mut all = Vec::new();
    for (name, value) in device.properties() {
        let words = match name.as_str() {
            "DEVLINKS" => value.split(' ').collect(),
            "TAGS" => value.split(':').collect(),
            _ => BTreeSet::from([value.as_str()]),
        };
        all.push((name.as_str(), words));
    }
    all
}

#[test]
fn this_machine() {
    let sys = Path::new("/sys");
    let all = enumerate(sys, &Filter::default()).unwrap();
    assert!(all.iter().any(|d| d.sysname() == "lo") && all.iter().any(|d| d.subsystem() == Some("mem")));
    assert!(all.iter().all(|d| d.exists() && d.subsystem().is_some()));
    // libudev sees the same. Others may plug loop devices and interfaces meanwhile: `mem` stays, and of the rest
    // what both have is compared.
    let filter = Filter::subsystems(["net", "block", "mem"]);
    let own = enumerate(sys, &filter).unwrap();
    let udev = libudevs(&filter);
    let mem = |devices: &[Device]| {
        let mem = devices.iter().filter(|d| d.subsystem() == Some("mem"));
        mem.map(|d| d.devpath().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(mem(&udev), mem(&own));
    assert!(mem(&own).len() > 3 && own.iter().all(|d| filter.wants(d.subsystem().unwrap())));
    let mut both = 0;
    for a in &own {
        let Some(b) = udev
            .iter()
            .find(|b| b.devpath() == a.devpath() && b.ifindex() == a.ifindex())
        else {
            continue;
        };
        assert_eq!(
            (a.devnode(), a.devnum(), a.subsystem()),
            (b.devnode(), b.devnum(), b.subsystem())
        );
        // With what udevd has written, where one runs.
        let whole = udevd::read(a.root_arc(), a.devpath().to_owned()).unwrap();
        assert_eq!(all_of(&whole), all_of(b), "{}", a.devpath());
        both += 1;
    }
    assert!(both > 4);
    let null = own.iter().find(|d| d.sysname() == "null").unwrap();
    assert!(refresh(Source::Udev, null).is_some() && refresh(Source::Kernel, null).is_some());
}

const MOCK: &str = "\
P: /devices/pci0000:00/usb1
E: DEVTYPE=usb_device
E: SUBSYSTEM=usb
A: idVendor=0403\\n
A: serial=A1\\n

P: /devices/pci0000:00/usb1/ttyUSB0/tty/ttyUSB0
N: ttyUSB0
E: DEVNAME=/dev/ttyUSB0
E: ID_SERIAL=FTDI_A1
E: ID_VENDOR_ID=0403
E: MAJOR=188
E: MINOR=0
E: SUBSYSTEM=tty
E: TAGS=:systemd:
E: USEC_INITIALIZED=1
";

/// The half that runs under umockdev (the environment variable says so) looks at the mocked devices; the other
/// half starts it.
#[test]
fn udev_database_over_umockdev() {
    const INSIDE: &str = "BERTH_TEST_UMOCKDEV";
    if std::env::var_os(INSIDE).is_none() {
        let dir = tempfile::tempdir().unwrap();
        let dump = dir.path().join("devices.umockdev");
        fs::write(&dump, MOCK).unwrap();
        let run = Command::new("umockdev-run")
            .arg("-d")
            .arg(&dump)
            .arg("--")
            .arg(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "enumerate::tests::udev_database_over_umockdev",
                "--nocapture",
            ])
            .env(INSIDE, "1")
            .output()
            .expect("umockdev-run (Debian package umockdev) is needed");
        let text = String::from_utf8_lossy(&run.stdout);
        assert!(
            run.status.success() && text.contains("1 passed"),
            "{text}{}",
            String::from_utf8_lossy(&run.stderr)
        );
        return;
    }
    let found = udev_database(Path::new("/sys"), &Filter::subsystems(["tty"])).unwrap();
    assert_eq!(found.len(), 1, "{found:?}");
    let device = &found[0];
    assert_eq!(
        (device.property("ID_SERIAL"), device.devnode()),
        (Some("FTDI_A1"), Some("/dev/ttyUSB0"))
    );
    let rule = r#"SUBSYSTEM=="tty", ATTRS{idVendor}=="0x0403", SUBSYSTEMS=="usb", ENV{ID_VENDOR_ID}=="0403", TAG=="systemd""#;
    let rule = crate::rule::Match::parse(rule).unwrap();
    let explanation = crate::rule::explain(&rule, device, crate::event::Action::Add);
    assert!(explanation.holds, "{explanation}");
    assert_eq!(
        explanation.matched.parent.as_deref(),
        Some("/devices/pci0000:00/usb1")
    );
}
