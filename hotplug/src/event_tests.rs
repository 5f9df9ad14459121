//! Kernel messages, good and hostile.

use proptest::prelude::*;

use super::*;

fn root() -> Arc<Path> {
    Path::new("/nonexistent").into()
}

fn parse(text: &str) -> Result<Event, EventError> {
    Event::parse_kernel(text.as_bytes(), &root())
}

#[test]
fn a_kernel_message() {
    let event = parse(
        "add@/devices/virtual/block/loop200\0ACTION=add\0DEVPATH=/devices/virtual/block/loop200\0\
         SUBSYSTEM=block\0MAJOR=7\0MINOR=200\0DEVNAME=loop200\0DEVTYPE=disk\0DISKSEQ=9\0SEQNUM=1234\0",
    )
    .unwrap();
    let device = &event.device;
    assert_eq!((event.action, event.seqnum), (Action::Add, 1234));
    assert_eq!(device.devnode(), Some("/dev/loop200"));
    assert_eq!(device.devnum().unwrap().to_string(), "b 7:200");
    assert_eq!(device.sysnum().as_deref(), Some("200"));
    assert_eq!(device.devtype(), Some("disk"));
    assert_eq!(device.key().0, "/devices/virtual/block/loop200");
    assert_eq!(device.property("SEQNUM"), None, "of the event, not of the device");
}

#[test]
fn a_renamed_interface() {
    let event = parse(
        "move@/devices/virtual/net/wan0\0ACTION=move\0DEVPATH=/devices/virtual/net/wan0\0SUBSYSTEM=net\0\
         DEVPATH_OLD=/devices/virtual/net/veth0\0INTERFACE=wan0\0IFINDEX=12\0SEQNUM=5\0",
    )
    .unwrap();
    assert_eq!(event.devpath_old.as_deref(), Some("/devices/virtual/net/veth0"));
    assert_eq!(event.key().0, "n12");
}

#[test]
fn messages_that_are_refused() {
    let tail = "\0SUBSYSTEM=x\0SEQNUM=1\0";
    for (message, want) in [
        (String::new(), EventError::Header),
        ("libudev\0x".to_owned(), EventError::Header),
        (
            format!("add@/devices/a\0ACTION=remove\0DEVPATH=/devices/a{tail}"),
            EventError::Property("ACTION"),
        ),
        (
            format!("add@/devices/a\0ACTION=add\0DEVPATH=/devices/b{tail}"),
            EventError::Property("DEVPATH"),
        ),
        (
            format!("add@/devices/a\0DEVPATH=/devices/a{tail}"),
            EventError::Property("ACTION"),
        ),
        (
            "add@/devices/a\0ACTION=add\0DEVPATH=/devices/a\0SUBSYSTEM=x\0".into(),
            EventError::Property("SEQNUM"),
        ),
        (
            "add@/devices/a\0ACTION=add\0DEVPATH=/devices/a\0SEQNUM=1\0".into(),
            EventError::Property("SUBSYSTEM"),
        ),
        (
            format!("burn@/devices/a\0ACTION=burn\0DEVPATH=/devices/a{tail}"),
            EventError::Action("burn".into()),
        ),
        (
            format!("add@/devices/../etc\0ACTION=add\0DEVPATH=/devices/../etc{tail}"),
            EventError::Path("/devices/../etc".into()),
        ),
        (
            format!("add@/devices/a\nb\0ACTION=add\0DEVPATH=/devices/a\nb{tail}"),
            EventError::Path("/devices/a\\u{a}b".into()),
        ),
    ] {
        assert_eq!(parse(&message).unwrap_err(), want, "{message:?}");
    }
}

#[test]
fn hostile_properties_are_left_out_and_listed() {
    let long = "x".repeat(100_000);
    let event = parse(&format!(
        "add@/devices/a\0ACTION=add\0DEVPATH=/devices/a\0SUBSYSTEM=net\0SEQNUM=1\0DEVNAME=../../etc/shadow\0\
         INTERFACE=../eth0\0IFINDEX=-4\0MAJOR=x\0MINOR=99999999999\0BIG={long}\0{long}=1\0a b=1\0=1\0nothing\0\
         SERIAL=a\nb/../c\0",
    ))
    .unwrap();
    let device = &event.device;
    assert_eq!(
        (device.devnode(), device.interface(), device.ifindex()),
        (None, None, None)
    );
    assert_eq!((device.devnum(), device.property("BIG")), (None, None));
    assert_eq!(
        device.property("SERIAL"),
        Some("a\nb/../c"),
        "kept for matching, refused by templates"
    );
    assert_eq!(device.properties().len(), 3, "{device:?}");
    assert!(device.refused().len() >= 8, "{:?}", device.refused());
    assert!(
        device
            .refused()
            .iter()
            .all(|text| text.len() < 300 && !text.contains('\n'))
    );
    assert!(!device.to_string().contains('\n'));
}

proptest! {
    #[test]
    fn any_bytes(message: Vec<u8>) {
        let _ = Event::parse_kernel(&message, &root());
    }

    #[test]
    fn any_text_in_a_good_frame(name in "[A-Z_]{1,8}", value in "[^\0]{0,200}", path in "[^\0]{0,60}") {
        let message = format!(
            "add@/devices/{path}\0ACTION=add\0DEVPATH=/devices/{path}\0SUBSYSTEM=net\0SEQNUM=1\0{name}={value}\0");
        if let Ok(event) = parse(&message) {
            prop_assert!(crate::safe::is_plain_path(event.device.devpath()));
            prop_assert!(event.device.devnode().is_none_or(|n| n.starts_with("/dev/") && !n.contains("/../")));
            let again: Event = serde_json::from_str(&serde_json::to_string(&event).unwrap()).unwrap();
            prop_assert_eq!(again.device.properties(), event.device.properties());
        }
    }
}
