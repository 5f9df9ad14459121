//! Devices from sysfs and from stored records.

use super::*;
use std::fs;

#[test]
fn the_machines_own_devices() {
    let lo = Device::from_sysfs(Path::new("/sys"), Path::new("/sys/class/net/lo")).unwrap();
    assert_eq!(
        (lo.devpath(), lo.subsystem()),
        ("/devices/virtual/net/lo", Some("net"))
    );
    assert_eq!(
        (lo.ifindex(), lo.interface(), lo.key().0.as_str()),
        (Some(1), Some("lo"), "n1")
    );
    assert!(lo.exists() && lo.parents().is_empty());
    assert_eq!(lo.attribute("address").as_deref(), Some("00:00:00:00:00:00"));
    assert_eq!(lo.identity(), "net:devpath:/devices/virtual/net/lo");
    assert_eq!(lo.to_string(), "lo (net, index 1)");
}

#[test]
fn paths_that_are_no_device() {
    let sys = Path::new("/sys");
    for path in ["/devices/../../etc", "/devices//x", "/etc/passwd"] {
        let error = Device::from_sysfs(sys, Path::new(path)).unwrap_err();
        assert!(matches!(error, DeviceError::Path { .. }), "{path}: {error}");
    }
    for path in ["/devices/nope", "/sys/class/net/nope", "/sys/devices"] {
        let error = Device::from_sysfs(sys, Path::new(path)).unwrap_err();
        assert!(matches!(error, DeviceError::Gone { .. }), "{path}: {error}");
    }
}

#[test]
fn a_record_is_checked_like_an_event() {
    let device: Device = serde_json::from_value(serde_json::json!({
        "devpath": "/devices/../etc",
        "properties": {"DEVNAME": "/etc/shadow", "INTERFACE": "a/b", "SUBSYSTEM": "net", "TAGS": ":a:b:"},
        "tags": ["c"],
    }))
    .unwrap();
    assert!(device.devpath().starts_with("/invalid/") && !device.exists());
    assert_eq!((device.devnode(), device.interface()), (None, None));
    assert_eq!(device.refused().len(), 3);
    assert_eq!(
        device.tags().iter().map(String::as_str).collect::<Vec<_>>(),
        ["a", "b", "c"]
    );
    let again: Device = serde_json::from_str(&serde_json::to_string(&device).unwrap()).unwrap();
    assert_eq!(again.properties(), device.properties());
}

#[test]
fn names_numbers_and_identity() {
    let root = tempfile::tempdir().unwrap();
    let make = |devpath: &str, uevent: &str, files: &[(&str, &str)]| {
        let dir = root.path().join(&devpath[1..]);
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join("uevent"), uevent).unwrap();
        files
            .iter()
            .for_each(|(name, value)| fs::write(dir.join(name), value).unwrap());
        Device::from_sysfs(root.path(), Path::new(devpath)).unwrap()
    };
    let raid = make(
        "/devices/a/cciss!c0d0",
        "DEVNAME=cciss/c0d0\nMAJOR=104\nMINOR=0\nSUBSYSTEM=block\n",
        &[],
    );
    assert_eq!(
        (raid.sysname().as_str(), raid.devnode()),
        ("cciss/c0d0", Some("/dev/cciss/c0d0"))
    );
    assert_eq!(
        (raid.sysnum().as_deref(), raid.devnum().unwrap().block),
        (Some("0"), true)
    );
    let address = [("address", "02:00:00:00:00:07\n"), ("addr_assign_type", "0\n")];
    let nic = make(
        "/devices/b/net/eth1",
        "SUBSYSTEM=net\nIFINDEX=5\nINTERFACE=eth1\n",
        &address,
    );
    assert_eq!(nic.identity(), "net:address:02:00:00:00:00:07");
    let disk = make("/devices/c/sda", "SUBSYSTEM=block\nID_PATH=pci-0:1\n", &[]);
    assert_eq!(disk.identity(), "block:path:pci-0:1");
}
