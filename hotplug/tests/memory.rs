//! Memory of a thousand rules against a thousand devices: matching keeps nothing, and neither does looking again.
//!
//! The resident set is the process's (statm, proc_pid_statm(5)), so that this test stands alone in its program.

#![allow(clippy::unwrap_used)]

use berth_hotplug::device::Device;
use berth_hotplug::event::Action;
use berth_hotplug::inventory::Inventory;
use berth_hotplug::rule::{Rule, RuleSpec, Rules, View};

const MANY: usize = 1000;
/// Rounds of enumerating and matching. Of each device a round would keep some hundred bytes, if it kept something.
const ROUNDS: usize = 10;
/// What the allocator may keep for itself.
const SLACK_KIB: usize = 512;

fn resident_kib() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: usize = statm.split(' ').nth(1).unwrap().parse().unwrap();
    pages * 4
}

fn rules() -> Rules {
    let rule = |n: usize| -> Rule {
        let text = match n % 3 {
            0 => format!("SUBSYSTEM==\"tty\", KERNEL==\"ttyUSB{n}\""),
            1 => format!("SUBSYSTEM==\"net\", ENV{{ID_SERIAL}}==\"S{n}\""),
            _ => format!("SUBSYSTEM==\"block\", ENV{{ID_SERIAL}}==\"S{n}*\""),
        };
        let spec = serde_json::json!({"match": text, "workload": "w", "priority": n,
            "env": [{"name": "SERIAL", "value": "$env{ID_SERIAL}"}]});
        let spec: RuleSpec = serde_json::from_value(spec).unwrap();
        spec.compile(&format!("r{n}")).unwrap()
    };
    Rules::new((0..MANY).map(rule).collect())
}

/// As an enumeration finds them; something differs each round.
fn devices(round: usize) -> Vec<Device> {
    let device = |n: usize| {
        let subsystem = ["tty", "net", "block"][n % 3];
        let record = serde_json::json!({
            "sysRoot": "/nonexistent",
            "devpath": format!("/devices/{subsystem}/ttyUSB{n}"),
            "properties": {"SUBSYSTEM": subsystem, "ID_SERIAL": format!("S{n}"), "ROUND": (n * round % 7).to_string(),
                "ID_PATH": format!("pci-0000:00:14.0-usb-0:{n}:1.0"), "ID_MODEL": "An adapter of some length"},
        });
        serde_json::from_value(record).unwrap()
    };
    (0..MANY).map(device).collect()
}

/// Every device of the inventory against every rule, and what the rule makes of it.
fn matched(rules: &Rules, inventory: &Inventory) -> usize {
    let count = inventory.devices().filter(|device| {
        let view = View::new(device);
        let chosen = rules.choose(&view, Action::Add).unwrap();
        chosen.is_some_and(|chosen| !chosen.rule.render(&view, &chosen.matched).unwrap().env.is_empty())
    });
    count.count()
}

#[test]
fn a_thousand_rules_and_devices_are_matched_again_and_again_in_the_same_memory() {
    let rules = rules();
    let mut inventory = Inventory::new();
    inventory.resync(devices(0), &[]);
    let there = resident_kib();
    assert_eq!(matched(&rules, &inventory), MANY);
    let first = resident_kib();
    assert!(
        first <= there + SLACK_KIB,
        "matching took {} KiB of its own",
        first - there
    );
    // The first enumeration that replaces another one needs the room of both.
    inventory.resync(devices(1), &[]);
    matched(&rules, &inventory);
    let before = resident_kib();
    for round in 2..2 + ROUNDS {
        inventory.resync(devices(round), &[]);
        assert_eq!((inventory.len(), matched(&rules, &inventory)), (MANY, MANY));
    }
    let after = resident_kib();
    println!(
        "{there} KiB with {MANY} rules and devices, {first} matched, {before} looked again, {after} after {ROUNDS} rounds"
    );
    assert!(
        after <= before + SLACK_KIB,
        "{ROUNDS} rounds kept {} KiB",
        after - before
    );
}
