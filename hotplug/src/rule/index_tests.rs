//! Rules looked up by a value: the same answer as if each were tried, and few are. Rules for PCI functions.

use std::time::Instant;

use super::rules_tests::rule;
use super::tests::{tree, tty};
use super::*;
use crate::device::Device;
use crate::event::Action;

#[test]
fn a_thousand_rules_and_a_thousand_devices() {
    let rules = (0..1000).map(|n| match n % 3 {
        0 => rule(
            &format!("r{n}"),
            &format!("SUBSYSTEM==\"tty\", KERNEL==\"ttyUSB{n}\""),
            n,
        ),
        1 => rule(
            &format!("r{n}"),
            &format!("SUBSYSTEM==\"net\", ENV{{ID_SERIAL}}==\"S{n}\""),
            n,
        ),
        _ => rule(
            &format!("r{n}"),
            &format!("SUBSYSTEM==\"block\", ENV{{ID_SERIAL}}==\"S{n}*\""),
            n,
        ),
    });
    let rules = Rules::new(rules.collect());
    let devices: Vec<Device> = (0..1000)
        .map(|n| {
            let subsystem = ["tty", "net", "block"][n % 3];
            let record = serde_json::json!({
                "sysRoot": "/nonexistent",
                "devpath": format!("/devices/{subsystem}/ttyUSB{n}"),
                "properties": {"SUBSYSTEM": subsystem, "ID_SERIAL": format!("S{n}")},
            });
            serde_json::from_value(record).unwrap()
        })
        .collect();
    // A device is held against few of them.
    let most = devices
        .iter()
        .map(|device| rules.candidates(&View::new(device)).count())
        .max();
    assert!(
        most.unwrap() <= 334,
        "{most:?}: only those without a literal are tried"
    );
    let start = Instant::now();
    for (n, device) in devices.iter().enumerate() {
        let chosen = rules.choose(&View::new(device), Action::Add).unwrap().unwrap();
        assert!(
            chosen.rule.name == format!("r{n}") || n % 3 == 2,
            "{n}: {}",
            chosen.rule.name
        );
    }
    println!("a million pairs in {:?}", start.elapsed());
}

/// A rule that is looked up is chosen where a rule that is tried would be.
#[test]
fn looked_up_as_if_tried() {
    let texts = [
        "KERNEL==\"ttyUSB0\"",
        "KERNEL==\"ttyUSB0|ttyS1|ttyUSB0\"",
        "KERNEL==i\"TTYUSB0\"",
        "KERNEL!=\"ttyUSB0\"",
        "ENV{ID_SERIAL}==\"FTDI_A1\"",
        "ENV{ID_SERIAL}==\"\"",
        "ENV{NOT_THERE}==\"\"",
        "ENV{ID_VENDOR_ID}==\"0x0403\"",
        "ENV{ID_SERIAL}==\"FTDI_A1\", KERNEL==\"ttyUSB*\", SUBSYSTEM==\"tty\"",
        "SUBSYSTEM==\"net\", KERNEL==\"ttyUSB0\"",
        "ENV{ACTION}==\"add\"",
        "SUBSYSTEM==\"tty\"",
    ];
    let dir = tree();
    let device = tty(dir.path());
    let view = View::new(&device);
    for (n, text) in texts.iter().enumerate() {
        for tree in [
            serde_json::json!(text),
            serde_json::json!({"all": [text, "KERNEL==\"ttyUSB0\""]}),
            serde_json::json!({"any": [text, "KERNEL==\"other\""]}),
            serde_json::json!({"not": text}),
        ] {
            let spec = serde_json::json!({"match": tree, "workload": "w", "priority": 1});
            let own: RuleSpec = serde_json::from_value(spec).unwrap();
            // What can never hold is refused before it is looked up.
            let Ok(own) = own.compile("own") else {
                assert!(tree.get("all").is_some(), "{tree}");
                continue;
            };
            let tried = own.matches.matches(&view, Action::Add).is_some();
            // Beside all the others, so that other clauses tell more of them apart.
            let mut all: Vec<Rule> = texts
                .iter()
                .enumerate()
                .map(|(m, t)| rule(&format!("r{m}"), t, -1))
                .collect();
            all.push(own);
            let rules = Rules::new(all);
            let chosen = rules.choose(&view, Action::Add);
            let found = chosen.is_ok_and(|c| c.is_some_and(|c| c.rule.name == "own"));
            assert_eq!(found, tried, "{n}: {tree}");
        }
    }
}

#[test]
fn a_function_is_given_alone_and_not_by_its_driver() {
    let faults = |more: &str, matches: serde_json::Value| {
        let mut value = serde_json::json!({"match": matches, "workload": "w", "vfio": {}});
        let more: serde_json::Value = serde_json::from_str(more).unwrap();
        value
            .as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        let spec: RuleSpec = serde_json::from_value(value).unwrap();
        let all = spec.validate();
        all.iter().map(|p| p.path.clone()).collect::<Vec<_>>().join(" ")
    };
    let class = || serde_json::json!("SUBSYSTEM==\"pci\", ATTR{class}==\"0x010802\"");
    assert_eq!(faults("{}", class()), "");
    assert_eq!(faults(r#"{"vfio": {"wholeGroup": true}}"#, class()), "");
    assert_eq!(faults(r#"{"device": {}}"#, class()), "device");
    assert_eq!(faults(r#"{"interface": {}}"#, class()), "interface");
    assert_eq!(faults(r#"{"armed": 1}"#, class()), "armed");
    assert_eq!(
        faults(r#"{"unplug": {"grace": "1s"}}"#, class())
            .split(' ')
            .next(),
        Some("unplug")
    );
    for of_driver in ["DRIVER==\"nvme\"", "DRIVERS==\"nvme\"", "ENV{DRIVER}==\"nvme\""] {
        let nested = serde_json::json!({"all": ["SUBSYSTEM==\"pci\"", {"not": of_driver}]});
        assert_eq!(faults("{}", nested), "match", "{of_driver}");
    }
}

#[test]
fn functions_in_a_bundle_are_all_there() {
    let faults = |need: &str, member: &str, more: serde_json::Value| {
        let mut spec = serde_json::json!({"workload": "w", "bundle": {"need": need, "devices": [
            {"name": "port", "match": "SUBSYSTEM==\"tty\"", "device": {}},
            {"name": "card", "match": "SUBSYSTEM==\"pci\", ATTR{class}==\"0x020000\"", "vfio": {"wholeGroup": true}},
        ]}});
        spec.as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        let member: serde_json::Value = serde_json::from_str(member).unwrap();
        let card = spec["bundle"]["devices"][1].as_object_mut().unwrap();
        card.extend(member.as_object().unwrap().clone());
        let spec: RuleSpec = serde_json::from_value(spec).unwrap();
        let all = spec.validate();
        all.iter().map(|p| p.path.clone()).collect::<Vec<_>>().join(" ")
    };
    let none = || serde_json::json!({});
    assert_eq!(faults("all", "{}", none()), "");
    assert_eq!(faults("any", "{}", none()), "bundle.need");
    let hot = serde_json::json!({"unplug": {"grace": "1s"}});
    assert_eq!(faults("all", "{}", hot), "unplug");
    assert_eq!(
        faults("all", r#"{"device": {}}"#, none()),
        "bundle.devices[1].device"
    );
    assert_eq!(
        faults(
            "all",
            r#"{"match": "SUBSYSTEM==\"pci\", DRIVER==\"nvme\""}"#,
            none()
        ),
        "bundle.devices[1].match"
    );
}
