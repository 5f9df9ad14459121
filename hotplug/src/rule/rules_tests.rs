//! The document of a rule and its faults, the choice between rules, combined matches, identity, what is rendered.

use std::time::Duration;

use super::tests::{tree, tty};
use super::*;
use crate::event::Action;

pub(super) fn rule(name: &str, text: &str, priority: i32) -> Rule {
    let spec = serde_json::json!({"match": text, "workload": "pump", "priority": priority});
    serde_json::from_value::<RuleSpec>(spec)
        .unwrap()
        .compile(name)
        .unwrap()
}

#[test]
fn at_most_one_rule_for_a_device() {
    let dir = tree();
    let device = tty(dir.path());
    let view = View::new(&device);
    let (tty, any, net) = (
        r#"SUBSYSTEM=="tty|tty""#,
        r#"KERNEL=="tty*""#,
        r#"SUBSYSTEM=="net""#,
    );
    let choose = |rules: Vec<Rule>| {
        let rules = Rules::new(rules);
        let chosen = rules.choose(&view, Action::Add);
        chosen.map(|c| c.map(|c| c.rule.name.clone()))
    };
    assert_eq!(choose(vec![]), Ok(None));
    assert_eq!(choose(vec![rule("net", net, 9)]), Ok(None));
    assert_eq!(
        choose(vec![rule("a", tty, 0), rule("net", net, 9)]),
        Ok(Some("a".into()))
    );
    assert_eq!(
        choose(vec![rule("a", tty, 0), rule("b", any, 1)]),
        Ok(Some("b".into()))
    );
    assert_eq!(
        choose(vec![rule("a", tty, 2), rule("b", any, 1)]),
        Ok(Some("a".into()))
    );
    let tie = choose(vec![
        rule("c", any, 1),
        rule("b", any, 1),
        rule("a", tty, 1),
        rule("d", tty, 0),
    ])
    .unwrap_err();
    assert_eq!(tie.rules, ["a", "b", "c"]);
    assert!(tie.to_string().contains("ttyUSB0") && tie.hint().unwrap().contains("priority"));
    // A tie below the highest is none.
    assert_eq!(
        choose(vec![rule("a", tty, 1), rule("b", any, 1), rule("c", tty, 2)]),
        Ok(Some("c".into()))
    );
    let rules = Rules::new(vec![rule("a", tty, 0), rule("n", net, 0)]);
    assert_eq!(rules.subsystems(), Some(vec!["net".into(), "tty".into()]));
    assert_eq!(Rules::new(vec![rule("a", any, 0)]).subsystems(), None);
}

#[test]
fn a_document_and_its_faults() {
    let good = serde_json::json!({
        "match": "SUBSYSTEM==\"tty\", ATTRS{idVendor}==\"0403\"\n",
        "workload": "pump",
        "device": {"access": "rw", "path": "/dev/port", "mode": "0660"},
        "env": [{"name": "SERIAL", "value": "$env{ID_SERIAL}"}],
        "args": ["--device", "/dev/port", "--id=$id"],
        "labels": {"device": "$kernel"},
        "settle": "200ms", "armed": 1
    });
    let spec: RuleSpec = serde_json::from_value(good.clone()).unwrap();
    assert_eq!(
        (spec.validate(), spec.settle.0),
        (vec![], Duration::from_millis(200))
    );
    let again: RuleSpec = serde_json::from_value(serde_json::to_value(&spec).unwrap()).unwrap();
    assert_eq!(again, spec);

    let dir = tree();
    let device = tty(dir.path());
    let view = View::new(&device);
    let rules = Rules::new(vec![spec.compile("serial").unwrap()]);
    let chosen = rules.choose(&view, Action::Add).unwrap().unwrap();
    let rendered = chosen.rule.render(&view, &chosen.matched).unwrap();
    assert_eq!(rendered.env, [("SERIAL".to_owned(), "FTDI_A1".to_owned())]);
    assert_eq!(rendered.args, ["--device", "/dev/port", "--id=1-1"]);
    assert_eq!(rendered.labels["device"], "ttyUSB0");

    for (key, value, path) in [
        ("match", serde_json::json!("KERNL==\"x\""), "match"),
        ("workload", serde_json::json!(""), "workload"),
        ("interface", serde_json::json!({"name": "eth0"}), "interface"),
        ("device", serde_json::json!({"access": "rx"}), "device.access"),
        ("device", serde_json::json!({"access": "rr"}), "device.access"),
        ("device", serde_json::json!({"mode": "u+rw"}), "device.mode"),
        ("device", serde_json::json!({"mode": "4755"}), "device.mode"),
        (
            "device",
            serde_json::json!({"path": "/dev/../etc/x"}),
            "device.path",
        ),
        ("device", serde_json::json!({"path": "/etc/x"}), "device.path"),
        (
            "env",
            serde_json::json!([{"name": "1A", "value": ""}]),
            "env[0].name",
        ),
        (
            "env",
            serde_json::json!([{"name": "A", "value": ""}, {"name": "A", "value": ""}]),
            "env[1].name",
        ),
        (
            "env",
            serde_json::json!([{"name": "A", "value": "$nope"}]),
            "env[0].value",
        ),
        ("args", serde_json::json!(["a", "$env{"]), "args[1]"),
        ("labels", serde_json::json!({"a": "%q"}), "labels.a"),
        ("labels", serde_json::json!({"a b": "x"}), "labels"),
        ("settle", serde_json::json!("11m"), "settle"),
        ("armed", serde_json::json!(65), "armed"),
    ] {
        let mut bad = good.clone();
        bad[key] = value.clone();
        let spec: RuleSpec = serde_json::from_value(bad).unwrap();
        let faults = spec.validate();
        assert_eq!(
            faults.iter().map(|f| f.path.as_str()).collect::<Vec<_>>(),
            [path],
            "{key}: {value}"
        );
    }
    for (key, value) in [("nope", "x"), ("settle", "fast"), ("settle", "5")] {
        let mut bad = good.clone();
        bad[key] = value.into();
        assert!(serde_json::from_value::<RuleSpec>(bad).is_err(), "{key}: {value}");
    }
    let spec: RuleSpec = serde_json::from_value(serde_json::json!({
        "match": "A==\"x\"", "workload": "", "args": ["$x", "$y"]
    }))
    .unwrap();
    assert_eq!(
        spec.validate().len(),
        4,
        "every fault in one run: {:?}",
        spec.validate()
    );
    let name = |name: &str| {
        let spec =
            serde_json::json!({"match": "KERNEL==\"e\"", "workload": "w", "interface": {"name": name}});
        serde_json::from_value::<RuleSpec>(spec).unwrap().validate().len()
    };
    assert_eq!(
        ["eth0", "lo", "a/b", "eth%d", "", "sixteen-letters0"].map(name),
        [0, 1, 1, 1, 1, 1]
    );
    for (interface, paths) in [
        (
            serde_json::json!({"mtu": 68, "vlan": 4094, "addresses": ["10.0.0.2/24", "192.0.2.1/32"]}),
            vec![],
        ),
        (
            serde_json::json!({"mtu": 1280, "addresses": ["fd00::2/64"]}),
            vec![],
        ),
        (serde_json::json!({"mtu": 67}), vec!["interface.mtu"]),
        (
            serde_json::json!({"mtu": 1279, "addresses": ["fd00::2/64"]}),
            vec!["interface.mtu"],
        ),
        (serde_json::json!({"vlan": 0}), vec!["interface.vlan"]),
        (serde_json::json!({"vlan": 4095}), vec!["interface.vlan"]),
        (
            serde_json::json!({"addresses": ["10.0.0.2", "10.0.0.2/33", "10.0.0.2/+8", "fd00::1/0", "::/64", "224.0.0.1/4", "127.0.0.1/8"]}),
            (0..7).map(|_| "").collect(),
        ),
        (
            serde_json::json!({"addresses": ["10.0.0.2/24", "10.0.0.2/16"]}),
            vec!["interface.addresses[1]"],
        ),
    ] {
        let json = serde_json::json!({"match": "KERNEL==\"e\"", "workload": "w", "interface": interface});
        let faults = serde_json::from_value::<RuleSpec>(json).unwrap().validate();
        assert_eq!(faults.len(), paths.len(), "{interface}: {faults:?}");
        for (fault, path) in faults.iter().zip(paths) {
            assert!(path.is_empty() || fault.path == path, "{interface}: {fault}");
        }
    }
}

#[test]
fn file_systems_that_are_mounted() {
    let all = FILESYSTEMS.to_vec();
    for (filesystem, paths) in [
        (
            serde_json::json!({"path": "/data", "types": all, "label": "DATA", "readOnly": false}),
            vec![],
        ),
        (
            serde_json::json!({"path": "/", "types": ["ext4"]}),
            vec!["filesystem.path"],
        ),
        (
            serde_json::json!({"path": "/dev/x", "types": ["ext4"]}),
            vec!["filesystem.path"],
        ),
        (
            serde_json::json!({"path": "data", "types": ["ext4"]}),
            vec!["filesystem.path"],
        ),
        (
            serde_json::json!({"path": "/a/../b", "types": ["ext4"]}),
            vec!["filesystem.path"],
        ),
        (
            serde_json::json!({"path": "/data", "types": []}),
            vec!["filesystem.types"],
        ),
        (
            serde_json::json!({"path": "/data", "types": ["nfs"]}),
            vec!["filesystem.types"],
        ),
        (
            serde_json::json!({"path": "/data", "types": ["ext4", "ext4"]}),
            vec!["filesystem.types"],
        ),
        (
            serde_json::json!({"path": "/data", "types": ["ext4"], "label": "a\nb"}),
            vec!["filesystem.label"],
        ),
    ] {
        let json = serde_json::json!({"match": "KERNEL==\"e\"", "workload": "w", "filesystem": filesystem});
        let faults = spec(json).validate();
        let found: Vec<&str> = faults.iter().map(|f| f.path.as_str()).collect();
        assert_eq!(found, paths, "{filesystem}");
    }
    let both = serde_json::json!({"match": "KERNEL==\"e\"", "workload": "w", "interface": {}, "filesystem": {"path": "/d", "types": ["ext4"]}});
    assert_eq!(spec(both).validate()[0].path, "filesystem");
}

pub(super) fn spec(json: serde_json::Value) -> RuleSpec {
    serde_json::from_value(json).unwrap()
}

#[test]
fn matches_combined() {
    let dir = tree();
    let device = tty(dir.path());
    let view = View::new(&device);
    let (yes, no) = ("SUBSYSTEM==\"tty\"", "SUBSYSTEM==\"net\"");
    let parent = "ATTRS{idVendor}==\"0403\"";
    for (json, want, subsystems) in [
        (serde_json::json!(yes), true, Some(vec!["tty"])),
        (serde_json::json!({"all": [yes, parent]}), true, Some(vec!["tty"])),
        (
            serde_json::json!({"all": [yes, "TAG==\"x\""]}),
            false,
            Some(vec!["tty"]),
        ),
        (
            serde_json::json!({"any": [no, yes]}),
            true,
            Some(vec!["net", "tty"]),
        ),
        (serde_json::json!({"any": [no, parent]}), true, None),
        (serde_json::json!({"any": [no, no]}), false, Some(vec!["net"])),
        (serde_json::json!({"not": no}), true, None),
        (serde_json::json!({"not": yes}), false, None),
        (
            serde_json::json!({"all": [yes, {"not": {"any": [no, "TAG==\"x\""]}}]}),
            true,
            Some(vec!["tty"]),
        ),
        (
            serde_json::json!({"not": {"not": {"all": [yes, parent]}}}),
            true,
            None,
        ),
    ] {
        let parsed: MatchSpec = serde_json::from_value(json.clone()).unwrap();
        assert_eq!(serde_json::to_value(&parsed).unwrap(), json);
        let tree = parsed.compile("match").unwrap();
        let told = tree.explain(&device, Action::Add);
        assert_eq!(tree.matches(&view, Action::Add).is_some(), want, "{json}");
        assert_eq!(told.holds, want, "{json}\n{told}");
        assert_eq!(tree.subsystems(), subsystems, "{json}");
        // Every leaf is explained, whatever was decided before it.
        let leaves = json.to_string().matches("==").count();
        assert_eq!(told.clauses.len(), leaves, "{json}\n{told}");
    }
    let deep = MatchSpec::All(vec![yes.into(), MatchSpec::Any(vec![no.into(), parent.into()])]);
    let told = deep.compile("match").unwrap().explain(&device, Action::Add);
    assert_eq!(told.clauses[2].of, "all[1].any[1]");
    assert_eq!(
        told.matched.parent.as_deref().and_then(|p| p.rsplit('/').next()),
        Some("1-1")
    );
}

#[test]
fn faults_of_combined_matches() {
    let deep = (0..20).fold(MatchSpec::from("KERNEL==\"x\""), |inner, _| {
        MatchSpec::Not(Box::new(inner))
    });
    for (matches, path, message) in [
        (MatchSpec::All(vec![]), "match.all", "is empty"),
        (
            MatchSpec::Any(vec!["KERNEL==\"x\"".into(), "KERNL==\"x\"".into()]),
            "match.any[1]",
            "KERNL",
        ),
        (
            MatchSpec::Not(Box::new("SUBSYSTEM==\"a\", SUBSYSTEM==\"b\"".into())),
            "match.not",
            "never hold",
        ),
        (deep, "match", "nested deeper"),
    ] {
        let faults = matches.compile("match").unwrap_err();
        assert!(faults[0].path.starts_with(path), "{faults:?}");
        assert!(faults[0].message.contains(message), "{faults:?}");
    }
    for bad in [
        serde_json::json!({"all": ["a"], "any": ["b"]}),
        serde_json::json!({"some": ["a"]}),
        serde_json::json!({}),
        serde_json::json!(7),
    ] {
        assert!(serde_json::from_value::<MatchSpec>(bad.clone()).is_err(), "{bad}");
    }
}

#[test]
fn kinds_of_rules_and_what_they_may_not_have() {
    let device = serde_json::json!({"path": "/dev/port"});
    let member = |name: &str| serde_json::json!({"name": name, "match": "KERNEL==\"x\"", "device": device});
    let bundle =
        |need: serde_json::Value| serde_json::json!({"need": need, "devices": [member("a"), member("b")]});
    for (json, paths) in [
        (
            serde_json::json!({"match": "KERNEL==\"x\"", "forbid": true}),
            vec![],
        ),
        (
            serde_json::json!({"match": "KERNEL==\"x\"", "forbid": true, "workload": "w"}),
            vec!["forbid"],
        ),
        (serde_json::json!({"workload": "w"}), vec!["match"]),
        (
            serde_json::json!({"match": "KERNEL==\"x\"", "workload": "w", "trigger": ["remove"]}),
            vec![],
        ),
        (
            serde_json::json!({"match": "KERNEL==\"x\"", "workload": "w", "trigger": ["remove", "add"]}),
            vec!["trigger"],
        ),
        (
            serde_json::json!({"match": "KERNEL==\"x\"", "workload": "w", "trigger": ["add", "add"]}),
            vec!["trigger"],
        ),
        (
            serde_json::json!({"match": "KERNEL==\"x\"", "workload": "w", "trigger": ["remove"], "device": device}),
            vec!["trigger"],
        ),
        (
            serde_json::json!({"bundle": bundle("all".into()), "workload": "w"}),
            vec![],
        ),
        (
            serde_json::json!({"bundle": bundle(1.into()), "workload": "w", "unplug": {"then": "keep"}}),
            vec![],
        ),
        (
            serde_json::json!({"bundle": bundle(3.into()), "workload": "w"}),
            vec!["bundle.need"],
        ),
        (
            serde_json::json!({"bundle": bundle(0.into()), "workload": "w"}),
            vec!["bundle.need"],
        ),
        (
            serde_json::json!({"bundle": {"devices": []}, "workload": "w"}),
            vec!["bundle.devices"],
        ),
        (
            serde_json::json!({"bundle": {"devices": [member("a"), member("a")]}, "workload": "w"}),
            vec!["bundle.devices[1].name"],
        ),
        (
            serde_json::json!({"bundle": {"devices": [member("A/B")]}, "workload": "w"}),
            vec!["bundle.devices[0].name"],
        ),
        (
            serde_json::json!({"bundle": bundle("all".into()), "workload": "w", "armed": 1}),
            vec!["armed"],
        ),
        (
            serde_json::json!({"bundle": bundle("all".into()), "workload": "w", "args": ["$kernel"]}),
            vec!["bundle"],
        ),
        (
            serde_json::json!({"match": "KERNEL==\"x\"", "workload": "w", "unplug": {"then": "keep"}}),
            vec!["unplug"],
        ),
        (
            serde_json::json!({"match": "KERNEL==\"x\"", "workload": "w", "device": device, "unplug": {"grace": "61m"}}),
            vec!["unplug.grace"],
        ),
        (
            serde_json::json!({"match": "KERNEL==\"x\"", "workload": "w", "device": device, "unplug": {"then": "keep", "grace": "1s"}}),
            vec!["unplug.grace"],
        ),
        (
            serde_json::json!({"match": "KERNEL==\"x\"", "workload": "w", "interface": {}, "unplug": {"grace": "1s"}}),
            vec!["unplug"],
        ),
        (
            serde_json::json!({"match": "KERNEL==\"x\"", "workload": "w", "interface": {}, "identity": "mac", "unplug": {"then": "keep"}}),
            vec![],
        ),
        (
            serde_json::json!({"match": "KERNEL==\"x\"", "workload": "w", "interface": {}, "unplug": {"then": "handOver"}}),
            vec![],
        ),
        (
            serde_json::json!({"workload": "w", "bundle": {"devices": [
                {"name": "a", "match": "KERNEL==\"a\"", "interface": {"name": "wan"}},
                {"name": "b", "match": "KERNEL==\"b\"", "interface": {"name": "wan"}}]}}),
            vec!["bundle.devices[1].interface.name"],
        ),
        (
            serde_json::json!({"match": "KERNEL==\"x\"", "workload": "w", "device": {"path": "/dev/$kernel"}}),
            vec![],
        ),
        (
            serde_json::json!({"match": "KERNEL==\"x\"", "workload": "w", "device": {"path": "/dev/$kernel"}, "armed": 1}),
            vec!["device.path"],
        ),
        (
            serde_json::json!({"match": "KERNEL==\"x\"", "workload": "w", "mounts": [{"source": "/a/$kernel", "destination": "/b"}]}),
            vec![],
        ),
        (
            serde_json::json!({"match": "KERNEL==\"x\"", "workload": "w", "mounts": [{"source": "a", "destination": "/../b"}]}),
            vec!["mounts[0].source", "mounts[0].destination"],
        ),
        (
            serde_json::json!({"match": "KERNEL==\"x\"", "workload": "w", "name": "$nope"}),
            vec!["name"],
        ),
    ] {
        let faults = spec(json.clone()).validate();
        let found: Vec<&str> = faults.iter().map(|f| f.path.as_str()).collect();
        assert_eq!(found, paths, "{json}: {faults:?}");
    }
    assert!(serde_json::from_value::<Need>("any".into()).is_ok_and(|need| need == Need::Count(1)));
    assert!(serde_json::from_value::<Need>("most".into()).is_err());
}
