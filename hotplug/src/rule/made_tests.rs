//! Tests of what a rule makes of a device: its identity, its instance, its triggers.

use std::path::Path;

use super::rules_tests::spec;
use super::tests::{tree, tty};
use super::*;
use crate::device::Device;
use crate::event::Action;

#[test]
fn a_device_is_known_by_what_the_rule_says() {
    let dir = tree();
    let device = tty(dir.path());
    for (identity, want) in [
        (Identity::Serial, Ok("serial:FTDI_A1:tty:i00")),
        (
            Identity::Path,
            Ok("path:tty:/devices/pci0000:00/0000:00:14.0/usb1/1-1/1-1:1.0:i00"),
        ),
        (Identity::Mac, Err("has no mac")),
    ] {
        match (identity.of(&device), want) {
            (Ok(text), Ok(want)) => assert_eq!(text, want),
            (Err(text), Err(want)) => assert!(
                text.contains(want) && text.contains("identity: mac is for"),
                "{text}"
            ),
            (found, _) => panic!("{identity}: {found:?}"),
        }
    }
    let nic = Device::from_sysfs(dir.path(), Path::new("/devices/pci0000:00/0000:00:03.0/net/eth7")).unwrap();
    assert_eq!(Identity::Mac.of(&nic).unwrap(), "mac:02:fc:00:00:00:01");
    assert_eq!(Identity::Slot.of(&nic).unwrap(), "slot:0000:00:03.0:net");
    assert!(Identity::Serial.of(&nic).unwrap_err().contains("identity: path"));
    // What a device says of itself is not trusted.
    let mut record = crate::device::Record::from(device);
    record.properties.insert("ID_SERIAL".into(), "a\nb".into());
    assert!(
        Identity::Serial
            .of(&record.into())
            .unwrap_err()
            .contains("control character")
    );
}

#[test]
fn what_a_rule_makes_of_a_device() {
    let dir = tree();
    let device = tty(dir.path());
    let view = View::new(&device);
    let render = |json: serde_json::Value| {
        let rule = spec(json).compile("r").unwrap();
        let matched = rule.matches.matches(&view, Action::Add).unwrap();
        rule.render(&view, &matched)
    };
    let base = |more: serde_json::Value| {
        let mut json = serde_json::json!({"match": "SUBSYSTEM==\"tty\"", "workload": "w", "device": {"path": "/dev/by/$kernel"}});
        json.as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        json
    };
    let plain = render(base(serde_json::json!({}))).unwrap();
    assert_eq!((plain.slot.as_str(), plain.label), (device.devpath(), None));
    assert_eq!(plain.offers[0].path.as_deref(), Some("/dev/by/ttyUSB0"));
    let known = render(base(serde_json::json!({"identity": "serial", "mounts": [
        {"source": "/data/$env{ID_SERIAL}", "destination": "/data", "readOnly": true}]})))
    .unwrap();
    assert_eq!(
        (known.slot.as_str(), known.label.as_deref()),
        ("serial:FTDI_A1:tty:i00", Some("FTDI_A1:tty:i00"))
    );
    assert_eq!(
        known.mounts,
        [("/data/FTDI_A1".to_owned(), "/data".to_owned(), true)]
    );
    let named = render(base(serde_json::json!({"name": "$env{ID_SERIAL}"}))).unwrap();
    assert_eq!(named.label.as_deref(), Some("FTDI_A1"));
    let any = render(base(serde_json::json!({"unplug": {"then": "handOver"}}))).unwrap();
    assert_eq!((any.slot.as_str(), any.label.as_deref()), ("any", Some("r")));
    // A value that would lead elsewhere.
    for (more, path, word) in [
        (
            serde_json::json!({"device": {"path": "/dev/$attr{../../../interface}"}}),
            "device.path",
            "control",
        ),
        (
            serde_json::json!({"mounts": [{"source": "/data$devpath", "destination": "/d"}]}),
            "mounts[0].source",
            "more parts",
        ),
        (
            serde_json::json!({"mounts": [{"source": "/data/$env{ID_NOT}", "destination": "/d"}]}),
            "mounts[0].source",
            "it has: ",
        ),
        (serde_json::json!({"identity": "mac"}), "identity", "no mac"),
    ] {
        let errors = render(base(more.clone())).unwrap_err();
        assert_eq!(errors[0].0, path, "{more}: {errors:?}");
        assert!(errors[0].1.to_string().contains(word), "{more}: {}", errors[0].1);
    }
    let bundle = spec(
        serde_json::json!({"workload": "w", "bundle": {"by": "$id", "devices": [
        {"name": "net", "match": "SUBSYSTEM==\"net\"", "interface": {"name": "eth0"}},
        {"name": "port", "match": "SUBSYSTEM==\"tty\", KERNELS==\"1-1\"", "device": {"path": "/dev/port"},
         "env": [{"name": "PORT", "value": "$kernel"}]},
        {"name": "spare", "match": "KERNEL==\"tty*\"", "device": {"path": "/dev/spare"}}]}}),
    )
    .compile("b")
    .unwrap();
    let matched = bundle.matches.matches(&view, Action::Add).unwrap();
    let rendered = bundle.render(&view, &matched).unwrap();
    assert_eq!((rendered.slot.as_str(), bundle.need()), ("bundle:1-1", 3));
    let members: Vec<usize> = rendered.offers.iter().map(|o| o.member).collect();
    assert_eq!(members, [1, 2]);
    assert_eq!(
        rendered.offers[0].env,
        [("PORT".to_owned(), "ttyUSB0".to_owned())]
    );
}

#[test]
fn triggers_and_forbidding() {
    let dir = tree();
    let device = tty(dir.path());
    let view = View::new(&device);
    let compile = |name: &str, json: serde_json::Value| spec(json).compile(name).unwrap();
    let tty = "SUBSYSTEM==\"tty\"";
    let bind = compile(
        "bind",
        serde_json::json!({"match": tty, "workload": "w", "trigger": ["bind"]}),
    );
    assert!(!bind.triggered(|_| false, false) && bind.triggered(|_| false, true));
    assert!(bind.triggered(|seen| seen == Action::Bind, false));
    let moved = compile(
        "m",
        serde_json::json!({"match": tty, "workload": "w", "trigger": ["move", "change"]}),
    );
    assert!(!moved.triggered(|_| false, true) && moved.triggered(|seen| seen == Action::Change, false));
    let rules = Rules::new(vec![
        compile(
            "gone",
            serde_json::json!({"match": tty, "workload": "w", "trigger": ["remove"]}),
        ),
        compile(
            "never",
            serde_json::json!({"match": tty, "forbid": true, "priority": 5}),
        ),
        compile("here", serde_json::json!({"match": tty, "workload": "w"})),
    ]);
    assert_eq!(
        rules.choose(&view, Action::Add).unwrap().unwrap().rule.name,
        "never"
    );
    assert_eq!(rules.choose_removed(&view).unwrap().unwrap().rule.name, "gone");
    let chosen = rules.choose_where(&view, Action::Add, |rule| !rule.spec.forbid);
    assert_eq!(chosen.unwrap().unwrap().rule.name, "here");
    assert_eq!(rules.subsystems(), Some(vec!["tty".into()]));
}
