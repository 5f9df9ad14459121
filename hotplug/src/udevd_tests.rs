//! udevd's formats, case by case; what a real udevd and libudev say of the same devices is compared in the tests of the
//! monitor and of the enumeration.

use super::*;
use crate::event::Action;

fn message(prefix: &[u8], magic: u32, offset: u32, length: u32, body: &[u8]) -> Vec<u8> {
    let mut message = prefix.to_vec();
    message.extend(magic.to_be_bytes());
    for number in [40, offset, length, 0, 0, 0, 0] {
        message.extend(number.to_ne_bytes());
    }
    message.extend(body);
    message
}

#[test]
fn messages_and_what_is_none() {
    let root: Arc<Path> = Path::new("/sys").into();
    let good = b"ACTION=add\0DEVPATH=/devices/x/y\0SUBSYSTEM=tty\0SEQNUM=12\0ID_A=a=b\0novalue\0";
    let whole = |body: &[u8]| message(PREFIX, MAGIC, 40, body.len() as u32, body);
    let event = parse(&whole(good), &root).unwrap();
    assert_eq!(
        (event.action, event.seqnum, event.device.devpath()),
        (Action::Add, 12, "/devices/x/y")
    );
    assert_eq!(event.device.property("ID_A"), Some("a=b"));
    assert_eq!(event.device.property("ACTION"), None);
    let length = good.len() as u32;
    for (what, bytes) in [
        ("nothing", Vec::new()),
        ("another prefix", message(b"libudex\0", MAGIC, 40, length, good)),
        (
            "another magic",
            message(PREFIX, MAGIC.swap_bytes(), 40, length, good),
        ),
        ("longer than it is", message(PREFIX, MAGIC, 40, length + 1, good)),
        (
            "an end past all numbers",
            message(PREFIX, MAGIC, u32::MAX, u32::MAX, good),
        ),
        ("properties in the header", message(PREFIX, MAGIC, 8, 8, good)),
        ("a header cut short", PREFIX.to_vec()),
    ] {
        assert_eq!(parse(&bytes, &root), Err(EventError::Header), "{what}");
    }
    for (what, body) in [
        ("no action", &b"DEVPATH=/devices/x\0"[..]),
        ("no path", b"ACTION=add\0"),
        ("a path that leads out", b"ACTION=add\0DEVPATH=/devices/../etc\0"),
        ("an unknown action", b"ACTION=explode\0DEVPATH=/devices/x\0"),
        (
            "a number that is none",
            b"ACTION=add\0DEVPATH=/devices/x\0SEQNUM=-1\0",
        ),
        (
            "an old path that leads out",
            b"ACTION=move\0DEVPATH=/devices/x\0DEVPATH_OLD=../y\0",
        ),
    ] {
        assert!(parse(&whole(body), &root).is_err(), "{what}");
    }
}

#[test]
fn names_of_the_database() {
    for (devpath, properties, want) in [
        (
            "/devices/a/sda",
            &[("SUBSYSTEM", "block"), ("MAJOR", "8"), ("MINOR", "0")][..],
            Some("b8:0"),
        ),
        (
            "/devices/a/ttyUSB0",
            &[("SUBSYSTEM", "tty"), ("MAJOR", "188"), ("MINOR", "1")],
            Some("c188:1"),
        ),
        (
            "/devices/a/eth0",
            &[("SUBSYSTEM", "net"), ("IFINDEX", "12")],
            Some("n12"),
        ),
        (
            "/devices/a/1-1:1.0",
            &[("SUBSYSTEM", "usb")],
            Some("+usb:1-1:1.0"),
        ),
        (
            "/devices/a/cciss!c0d0",
            &[("SUBSYSTEM", "x")],
            Some("+x:cciss!c0d0"),
        ),
        ("/devices/a/b", &[("SUBSYSTEM", "../../etc")], None),
        ("/devices/a/b", &[], None),
    ] {
        let map = properties.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
        assert_eq!(file_of(devpath, &map.collect()).as_deref(), want, "{devpath}");
    }
}

#[test]
fn a_file_of_the_database() {
    let mut all = BTreeMap::from([("ID_A".to_owned(), "sysfs".to_owned())]);
    merge(
        b"S:disk/by-id/z\nS:disk/by-id/a\nL:10\nI:7\nE:ID_A=udevd\nE:ID_B=a=b\nE:broken\nG:old\nG:now\nQ:now\nV:1\nW:3\n?\n",
        &mut all,
    );
    let get = |name: &str| all.get(name).map(String::as_str);
    for (name, want) in [
        ("ID_A", Some("udevd")),
        ("ID_B", Some("a=b")),
        ("DEVLINKS", Some("/dev/disk/by-id/a /dev/disk/by-id/z")),
        ("TAGS", Some(":old:now:")),
        ("CURRENT_TAGS", Some(":now:")),
        ("USEC_INITIALIZED", Some("7")),
        ("broken", None),
    ] {
        assert_eq!(get(name), want, "{name}");
    }
    // Before systemd 247 all were current.
    let mut old = BTreeMap::new();
    merge(b"G:a\n", &mut old);
    assert_eq!(old.get("CURRENT_TAGS").map(String::as_str), Some(":a:"));
    let mut none = BTreeMap::new();
    merge(b"\xff\n", &mut none);
    assert!(none.is_empty());
}
