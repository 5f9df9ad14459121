//! The table, step by step, without a kernel.

use super::*;
use crate::event::Event;

fn device(devpath: &str, properties: &[(&str, &str)]) -> Device {
    let record = serde_json::json!({
        "sysRoot": "/nonexistent",
        "devpath": devpath,
        "properties": properties.iter().copied().collect::<BTreeMap<_, _>>(),
    });
    serde_json::from_value(record).unwrap()
}

fn net(name: &str, index: u32) -> Device {
    let index = index.to_string();
    device(
        &format!("/devices/virtual/net/{name}"),
        &[("SUBSYSTEM", "net"), ("INTERFACE", name), ("IFINDEX", &index)],
    )
}

fn disk(name: &str, seq: &str) -> Device {
    device(
        &format!("/devices/virtual/block/{name}"),
        &[
            ("SUBSYSTEM", "block"),
            ("DEVNAME", name),
            ("DISKSEQ", seq),
            ("MAJOR", "7"),
            ("MINOR", "1"),
        ],
    )
}

fn event(action: Action, device: Device) -> Event {
    Event {
        action,
        seqnum: 1,
        device,
        devpath_old: None,
    }
}

/// `+name`, `~name`, `>old>new`, `-name`.
fn short(deltas: &[Delta]) -> String {
    let one = |delta: &Delta| match delta {
        Delta::Appeared { device } => format!("+{}", device.sysname()),
        Delta::Changed { device, .. } => format!("~{}", device.sysname()),
        Delta::Moved { device, before } => format!(">{}>{}", before.sysname(), device.sysname()),
        Delta::Gone { device } => format!("-{}", device.sysname()),
    };
    deltas.iter().map(one).collect::<Vec<_>>().join(" ")
}

#[test]
fn a_changed_medium_is_the_same_disk() {
    let mut inventory = Inventory::new();
    inventory.apply(event(Action::Add, disk("loop1", "7")));
    let deltas = inventory.apply(event(Action::Change, disk("loop1", "8")));
    assert_eq!(short(&deltas), "~loop1");
    // Its `remove` carries the number it has now.
    assert_eq!(
        short(&inventory.apply(event(Action::Remove, disk("loop1", "7")))),
        ""
    );
    assert_eq!(
        short(&inventory.apply(event(Action::Remove, disk("loop1", "8")))),
        "-loop1"
    );
    // An `add` with another number is another disk.
    inventory.apply(event(Action::Add, disk("loop1", "9")));
    let deltas = inventory.apply(event(Action::Add, disk("loop1", "10")));
    assert_eq!(short(&deltas), "-loop1 +loop1");
}

#[test]
fn events_one_after_the_other() {
    use Action::*;
    let bare = device("/devices/virtual/block/loop1", &[("SUBSYSTEM", "block")]);
    let mut inventory = Inventory::new();
    for (n, (action, device, want)) in [
        (Add, disk("loop1", "5"), "+loop1"),
        (Add, disk("loop1", "5"), ""),
        (Bind, disk("loop1", "5"), "~loop1"),
        (Change, disk("loop1", "5"), "~loop1"),
        // A remove without properties is matched by its path, once.
        (Remove, bare.clone(), "-loop1"),
        (Remove, bare.clone(), ""),
        // Replugged, the remove lost.
        (Change, disk("loop1", "6"), "+loop1"),
        (Add, disk("loop1", "7"), "-loop1 +loop1"),
        // A late remove of the one before.
        (Remove, disk("loop1", "6"), ""),
        (Remove, disk("loop1", "7"), "-loop1"),
        (Add, net("eth1", 4), "+eth1"),
        // Another interface has taken the name: the first is gone.
        (Add, net("eth1", 5), "-eth1 +eth1"),
        (Remove, net("eth1", 4), ""),
        (Remove, net("eth1", 5), "-eth1"),
    ]
    .into_iter()
    .enumerate()
    {
        assert_eq!(short(&inventory.apply(event(action, device))), want, "step {n}");
    }
    assert!(inventory.is_empty() && inventory.paths.is_empty());
}

#[test]
fn what_is_gone_is_told_with_all_it_had() {
    let mut inventory = Inventory::new();
    inventory.apply(event(Action::Add, disk("loop1", "5")));
    let bare = device("/devices/virtual/block/loop1", &[]);
    let deltas = inventory.apply(event(Action::Remove, bare));
    assert_eq!(deltas[0].device().devnode(), Some("/dev/loop1"));
}

#[test]
fn a_renamed_interface_is_the_same_device() {
    let mut inventory = Inventory::new();
    inventory.apply(event(Action::Add, net("veth0", 12)));
    let renamed = Event {
        devpath_old: Some("/devices/virtual/net/veth0".into()),
        ..event(Action::Move, net("wan0", 12))
    };
    let deltas = inventory.apply(renamed.clone());
    assert_eq!(short(&deltas), ">veth0>wan0");
    assert_eq!(deltas[0].key().0, "n12");
    assert_eq!(short(&inventory.apply(renamed)), "", "told once");
    assert!(inventory.by_devpath("/devices/virtual/net/veth0").is_none());
    assert_eq!(
        short(&inventory.apply(event(Action::Remove, net("wan0", 12)))),
        "-wan0"
    );
    // In `add` of udev the new name is already there, `move` comes later; a resync finds it too.
    inventory.apply(event(Action::Add, net("a", 13)));
    assert_eq!(short(&inventory.resync(vec![net("b", 13)], &[])), ">a>b");
    // Swapped names.
    inventory.resync(vec![net("x", 1), net("y", 2)], &[]);
    let deltas = inventory.resync(vec![net("y", 1), net("x", 2)], &[]);
    assert_eq!(inventory.len(), 2, "{}", short(&deltas));
    assert_eq!(
        inventory.by_devpath("/devices/virtual/net/x").unwrap().ifindex(),
        Some(2)
    );
}

#[test]
fn a_moved_device_whose_key_is_its_path() {
    let mut inventory = Inventory::new();
    inventory.apply(event(
        Action::Add,
        device("/devices/a/rfcomm0", &[("SUBSYSTEM", "tty")]),
    ));
    let moved = Event {
        devpath_old: Some("/devices/a/rfcomm0".into()),
        ..event(
            Action::Move,
            device("/devices/b/rfcomm0", &[("SUBSYSTEM", "tty")]),
        )
    };
    let deltas = inventory.apply(moved);
    assert_eq!(short(&deltas), ">rfcomm0>rfcomm0");
    assert_eq!(
        (inventory.len(), deltas[0].key().0.as_str()),
        (1, "/devices/b/rfcomm0")
    );
}

#[test]
fn resync_tells_the_difference_and_only_that() {
    let mut inventory = Inventory::new();
    assert_eq!(
        short(&inventory.resync(vec![disk("loop1", "1"), net("lo", 1)], &[])),
        "+loop1 +lo"
    );
    // Events for what the enumeration already saw.
    assert_eq!(
        short(&inventory.apply(event(Action::Add, disk("loop1", "1")))),
        ""
    );
    assert_eq!(
        short(&inventory.resync(vec![disk("loop1", "1"), net("lo", 1)], &[])),
        ""
    );
    // A kernel event with more properties than the uevent file is no difference.
    let mut rich = disk("loop1", "1");
    rich = device(
        rich.devpath(),
        &rich
            .properties()
            .iter()
            .map(|(k, v)| (&**k, &**v))
            .chain([("DISK_MEDIA_CHANGE", "1")])
            .collect::<Vec<_>>(),
    );
    assert_eq!(short(&inventory.apply(event(Action::Change, rich))), "~loop1");
    assert_eq!(
        short(&inventory.resync(vec![disk("loop1", "1"), net("lo", 1)], &[])),
        ""
    );
    assert_eq!(
        short(&inventory.resync(vec![disk("loop1", "2"), disk("loop2", "3")], &[])),
        "-lo -loop1 +loop1 +loop2"
    );
}

#[test]
fn an_interface_in_a_container_is_not_unplugged() {
    let inside = |names: &[(&str, u32)]| {
        let one = |(name, index): &(&str, u32)| Interface {
            index: *index,
            name: (*name).into(),
        };
        vec![Inside {
            owner: "pump".into(),
            interfaces: names.iter().map(one).collect(),
        }]
    };
    let key = Key("n12".into());
    let held = || {
        let mut inventory = Inventory::new();
        inventory.apply(event(Action::Add, net("veth0", 12)));
        assert!(inventory.hold(&key, "pump"));
        assert_eq!(
            short(&inventory.apply(event(Action::Remove, net("veth0", 12)))),
            "",
            "moved, not gone"
        );
        assert!(inventory.held_as(
            &key,
            Interface {
                index: 2,
                name: "eth0".into()
            }
        ));
        inventory
    };
    // Resync with and without a look inside.
    let mut inventory = held();
    assert_eq!(short(&inventory.resync(vec![], &[])), "");
    assert_eq!(
        short(&inventory.resync(vec![], &inside(&[("lo", 1), ("eth0", 2)]))),
        ""
    );
    assert_eq!(short(&inventory.resync(vec![], &inside(&[("lo", 1)]))), "-veth0");
    // Another device takes its old name outside.
    let mut inventory = held();
    assert_eq!(
        short(&inventory.apply(event(Action::Add, net("veth0", 30)))),
        "+veth0"
    );
    assert_eq!(
        short(&inventory.apply(event(Action::Remove, net("veth0", 30)))),
        "-veth0"
    );
    assert_eq!(inventory.held(&key).unwrap().owner, "pump");
    // Really removed, seen inside: only by its own container and index.
    let other = Interface {
        index: 9,
        name: "eth9".into(),
    };
    let own = Interface {
        index: 2,
        name: "eth0".into(),
    };
    assert_eq!(inventory.gone_inside("pump", &other), None);
    assert_eq!(inventory.gone_inside("other", &own), None);
    assert!(matches!(
        inventory.gone_inside("pump", &own),
        Some(Delta::Gone { .. })
    ));
    // Given back when the namespace ends.
    let mut inventory = held();
    assert_eq!(
        short(&inventory.apply(event(Action::Add, net("eth0", 12)))),
        ">veth0>eth0"
    );
    assert_eq!(inventory.release(&key), None);
    assert_eq!(
        short(&inventory.apply(event(Action::Remove, net("eth0", 12)))),
        "-eth0"
    );
    // Destroyed with the namespace.
    let mut inventory = held();
    assert!(matches!(inventory.release(&key), Some(Delta::Gone { .. })));
    assert_eq!((inventory.release(&key), inventory.len()), (None, 0));
    // Pulled out again: the remove inside is no removal.
    let mut inventory = held();
    inventory.apply(event(Action::Add, net("veth0", 12)));
    assert_eq!(inventory.gone_inside("pump", &own), None);
    assert_eq!((inventory.len(), inventory.held(&key)), (1, None));
}

#[test]
fn held_interfaces_survive_a_restart() {
    let mut before = Inventory::new();
    before.apply(event(Action::Add, net("veth0", 12)));
    before.hold(&Key("n12".into()), "pump");
    before.apply(event(Action::Remove, net("veth0", 12)));
    let stored: Vec<_> = before
        .all_held()
        .map(|(device, held)| serde_json::to_string(&(&**device, held)).unwrap())
        .collect();
    let mut after = Inventory::new();
    for text in stored {
        let (device, held) = serde_json::from_str(&text).unwrap();
        after.restore(device, held);
    }
    assert_eq!(short(&after.resync(vec![net("lo", 1)], &[])), "+lo");
    let found = Inside {
        owner: "pump".into(),
        interfaces: vec![],
    };
    assert_eq!(short(&after.resync(vec![net("lo", 1)], &[found])), "-veth0");
}

#[test]
fn any_order_of_events_ends_where_the_enumeration_does() {
    // Small exhaustive walk: three devices, events in every order of length 3, then a resync.
    let pool = [disk("loop1", "1"), disk("loop1", "2"), net("a", 3), net("b", 3)];
    let steps: Vec<Event> = (pool.iter())
        .flat_map(|d| {
            [Action::Add, Action::Remove, Action::Change, Action::Move].map(|a| event(a, d.clone()))
        })
        .collect();
    let n = steps.len();
    for code in 0..n.pow(3) {
        let mut inventory = Inventory::new();
        let mut there = 0i32;
        let mut count = |deltas: &[Delta]| {
            for delta in deltas {
                there += match delta {
                    Delta::Appeared { .. } => 1,
                    Delta::Gone { .. } => -1,
                    _ => 0,
                };
            }
        };
        for digit in 0..3 {
            count(&inventory.apply(steps[code / n.pow(digit) % n].clone()));
        }
        count(&inventory.resync(vec![pool[1].clone(), pool[3].clone()], &[]));
        assert_eq!(inventory.resync(vec![pool[1].clone(), pool[3].clone()], &[]), []);
        assert_eq!(
            (inventory.len(), inventory.paths.len(), there),
            (2, 2, 2),
            "{code}"
        );
    }
}
