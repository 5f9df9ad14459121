//! Devices: plug, settle, unplug, replug, interfaces inside containers, armed pools.

use super::*;

const TTY: &str = "/devices/x/ttyUSB0";

fn serial(more: &str) -> String {
    workload("pump", "run: onDevice, cpus: 1, args: [a]")
        + &rule(
            "serial",
            &format!("workload: pump, device: {{path: /dev/port}}, {more}"),
        )
}

fn card(more: &str) -> String {
    workload("net", &format!("run: onDevice{more}")) + &rule("card", "workload: net, interface: {name: eth0}")
}

#[test]
fn plug_unplug_replug() {
    let (mut w, out) = World::ready(2, &serial(""));
    assert_eq!(out, Vec::<String>::new());
    for incarnation in ["1", "2"] {
        assert_eq!(w.plug(TTY, "serial", incarnation), ["launch pump-ttyusb0"]);
        let request = &w.requests["pump-ttyusb0"];
        assert_eq!(request.devices[0].path, "/dev/port");
        assert_eq!(request.process.args, ["a", "--rule"]);
        assert_eq!(request.process.env, [("DEV".to_owned(), "x".to_owned())]);
        w.up("pump-ttyusb0");
        // Denied at once, whatever time it takes to stop.
        assert_eq!(
            w.unplug(TTY),
            ["eject pump-ttyusb0 /dev/port", "stop pump-ttyusb0"]
        );
        assert_eq!(w.down("pump-ttyusb0", 0), Vec::<String>::new());
        assert_eq!(w.phase("pump-ttyusb0"), "absent");
        assert!(w.state.held().is_empty());
    }
}

#[test]
fn replugged_while_it_still_stops() {
    let (mut w, _) = World::ready(2, &serial(""));
    w.plug(TTY, "serial", "1");
    w.up("pump-ttyusb0");
    w.unplug(TTY);
    assert_eq!(w.plug(TTY, "serial", "2"), Vec::<String>::new());
    assert_eq!(w.down("pump-ttyusb0", 0), ["launch pump-ttyusb0"]);
}

#[test]
fn replugged_elsewhere_with_the_same_name_while_it_still_stops() {
    let (mut w, _) = World::ready(3, &serial(""));
    w.plug("/devices/port1/ttyUSB0", "serial", "1");
    w.up("pump-ttyusb0");
    w.unplug("/devices/port1/ttyUSB0");
    assert_eq!(
        w.plug("/devices/port2/ttyUSB0", "serial", "2"),
        Vec::<String>::new()
    );
    assert_eq!(w.down("pump-ttyusb0", 0), ["launch pump-ttyusb0"]);
}

#[test]
fn a_lost_remove_is_seen_by_the_incarnation() {
    let (mut w, _) = World::ready(2, &serial(""));
    w.plug(TTY, "serial", "1");
    w.up("pump-ttyusb0");
    // A resync tells the same again: nothing happens. Another inode: it was unplugged meanwhile.
    assert_eq!(w.plug(TTY, "serial", "1"), Vec::<String>::new());
    assert_eq!(
        w.plug(TTY, "serial", "2"),
        ["eject pump-ttyusb0 /dev/port", "stop pump-ttyusb0"]
    );
    assert_eq!(w.down("pump-ttyusb0", 0), ["launch pump-ttyusb0"]);
}

#[test]
fn unplugged_while_launching() {
    let (mut w, _) = World::ready(2, &serial(""));
    w.plug(TTY, "serial", "1");
    assert_eq!(w.unplug(TTY), ["stop pump-ttyusb0"]);
    // The launch fails because the device is gone: no restart, nothing left.
    assert_eq!(
        w.report("pump-ttyusb0", Report::Failed(refusal("create"))),
        ["release pump-ttyusb0"]
    );
    w.report("pump-ttyusb0", Report::Closed);
    assert_eq!(w.phase("pump-ttyusb0"), "absent");
    assert_eq!(w.state.deadline(), None);
}

#[test]
fn settle_waits_for_silence() {
    let (mut w, _) = World::ready(2, &serial("settle: 200ms"));
    assert_eq!(w.plug(TTY, "serial", "1"), Vec::<String>::new());
    assert_eq!(w.later(150), Vec::<String>::new());
    assert_eq!(w.plug(TTY, "serial", "1"), Vec::<String>::new());
    assert_eq!(w.later(150), Vec::<String>::new());
    assert_eq!(w.later(50), ["launch pump-ttyusb0"]);
    // Unplugged before it settled: nothing at all.
    w.unplug(TTY);
    w.up_or_not("pump-ttyusb0");
    assert_eq!(w.plug("/devices/x/ttyUSB1", "serial", "1"), Vec::<String>::new());
    assert_eq!(w.unplug("/devices/x/ttyUSB1"), Vec::<String>::new());
    assert_eq!(w.later(1000), Vec::<String>::new());
}

#[test]
fn two_devices_with_one_name_are_two() {
    let (mut w, _) = World::ready(4, &serial(""));
    assert_eq!(w.plug("/devices/a/dev", "serial", "1"), ["launch pump-dev"]);
    assert_eq!(w.plug("/devices/b/dev", "serial", "2"), ["launch pump-dev-2"]);
}

#[test]
fn a_rule_that_asks_for_what_the_device_lacks_fails_and_mends() {
    let (mut w, _) = World::ready(2, &serial(""));
    let mut bare = facts(TTY, "1");
    bare.devnum = None;
    let event = |facts: &Facts| Event::Device {
        facts: Arc::new(facts.clone()),
        matches: vec![matched("serial")],
        before: None,
    };
    assert_eq!(w.step(event(&bare)), Vec::<String>::new());
    assert_eq!(w.phase("pump-ttyusb0"), "failed");
    assert!(
        w.state.instances["pump-ttyusb0"]
            .failure
            .as_ref()
            .unwrap()
            .message
            .contains("no device node")
    );
    assert_eq!(w.step(event(&facts(TTY, "1"))), ["launch pump-ttyusb0"]);
}

#[test]
fn an_interface_inside_is_held_until_its_container_has_ended() {
    let (mut w, _) = World::ready(1, &card(""));
    assert_eq!(w.plug("n7", "card", ""), ["hold n7", "launch net-n7"]);
    assert_eq!(w.requests["net-n7"].interfaces[0].rename.as_deref(), Some("eth0"));
    w.up("net-n7");
    // Removed inside: gone, and the container with it.
    let out = w.report("net-n7", Report::InterfaceGone("eth0".into()));
    assert_eq!(out, ["unhold n7", "stop net-n7"]);
    assert_eq!(w.unplug("n7"), Vec::<String>::new());
    assert_eq!(w.down("net-n7", 0), Vec::<String>::new());
    assert_eq!(w.phase("net-n7"), "absent");
}

#[test]
fn both_crates_know_the_same_file_systems() {
    assert_eq!(berth_hotplug::rule::FILESYSTEMS, berth_runtime::FILESYSTEMS);
}

#[test]
fn a_vlan_leaves_its_trunk_outside() {
    let documents =
        workload("net", "run: onDevice") + &rule("card", "workload: net, interface: {name: wan, vlan: 7}");
    let (mut w, _) = World::ready(1, &documents);
    assert_eq!(w.plug("n7", "card", ""), ["launch net-n7"]);
    assert_eq!(w.requests["net-n7"].interfaces[0].vlan, Some(7));
    w.up("net-n7");
    // The trunk's going is told outside.
    assert_eq!(w.unplug("n7"), ["stop net-n7"]);
    w.down("net-n7", 0);
    assert_eq!(w.phase("net-n7"), "absent");
}

#[test]
fn an_interface_that_was_refused_is_held_no_longer() {
    let rule = rule(
        "card",
        "workload: net, interface: {name: wan}, unplug: {then: handOver}",
    );
    let (mut w, _) = World::ready(1, &(workload("net", "run: onDevice") + &rule));
    let plug = |w: &mut World, key: &str| {
        w.plug_as(
            key,
            "",
            RuleMatch {
                slot: "rule".into(),
                ..matched("card")
            },
        )
    };
    assert_eq!(plug(&mut w, "n7"), ["hold n7", "launch net-n7"]);
    w.up("net-n7");
    plug(&mut w, "n8");
    let gone = w.report("net-n7", Report::InterfaceGone("wan".into()));
    assert_eq!(gone, ["unhold n7", "hold n8", "inject net-n7 n8"]);
    let refusal = berth_launcher::wire::Refusal {
        stage: "inject".into(),
        message: "the name is taken there".into(),
        hint: None,
    };
    let report = Report::NotGiven {
        refusal,
        interfaces: vec![8],
    };
    assert_eq!(w.report("net-n7", report), ["unhold n8"]);
}

#[test]
fn a_crash_loop_is_seen_through_the_interface_coming_and_going() {
    let (mut w, _) = World::ready(1, &card(", restart: {delay: 1s, limit: 2}"));
    w.plug("n7", "card", "");
    for _ in 0..2 {
        w.up("net-n7");
        assert_eq!(w.down("net-n7", 1), ["unhold n7"]);
        // The inventory answers that it is not outside yet; then the kernel gives it back.
        w.unplug("n7");
        assert_eq!(w.phase("net-n7"), "absent");
        assert_eq!(w.plug("n7", "card", ""), Vec::<String>::new());
        assert_eq!(w.phase("net-n7"), "backoff");
        assert_eq!(w.later(1000), ["hold n7", "launch net-n7"]);
    }
    w.up("net-n7");
    w.down("net-n7", 1);
    assert_eq!(w.phase("net-n7"), "failed");
    // Given up is given up: the interface that comes back late is no new device.
    w.unplug("n7");
    assert_eq!(w.plug("n7", "card", ""), Vec::<String>::new());
    assert_eq!(w.phase("net-n7"), "backoff");
    assert_eq!(w.later(5_000), Vec::<String>::new());
}

#[test]
fn a_restarted_agent_knows_the_interface_it_cannot_see() {
    let (mut before, _) = World::ready(1, &card(""));
    before.plug("n7", "card", "");
    let mut w = World::new(1, &card(""));
    w.requests = before.requests.clone();
    let status = w.status("net-n7", wire::Phase::Running);
    assert_eq!(
        w.step(Event::Adopt {
            status: Box::new(status)
        }),
        ["hold n7"]
    );
    assert_eq!(w.step(Event::Ready), Vec::<String>::new());
    assert_eq!(w.phase("net-n7"), "running");
}

#[test]
fn unplugged_while_the_agent_was_away() {
    let (mut before, _) = World::ready(2, &serial(""));
    before.plug(TTY, "serial", "1");
    for (there, out) in [
        (Some("1"), &[][..]),
        (
            Some("2"),
            &["eject pump-ttyusb0 /dev/port", "stop pump-ttyusb0"][..],
        ),
        (None, &["eject pump-ttyusb0 /dev/port", "stop pump-ttyusb0"]),
    ] {
        let mut w = World::new(2, &serial(""));
        w.requests = before.requests.clone();
        let status = w.status("pump-ttyusb0", wire::Phase::Running);
        w.step(Event::Adopt {
            status: Box::new(status),
        });
        if let Some(incarnation) = there {
            assert_eq!(w.plug(TTY, "serial", incarnation), Vec::<String>::new());
        }
        assert_eq!(w.step(Event::Ready), out, "{there:?}");
    }
}

#[test]
fn an_armed_container_takes_the_device_and_the_pool_fills_again() {
    let (mut w, out) = World::ready(3, &serial("armed: 1"));
    assert_eq!(out, ["launch pump-armed-0"]);
    assert!(w.requests["pump-armed-0"].armed);
    assert!(w.requests["pump-armed-0"].devices.is_empty());
    w.report(
        "pump-armed-0",
        Report::Created {
            pid: 5,
            start_time: 1,
            takes: true,
        },
    );
    assert_eq!(w.phase("pump-armed-0"), "armed");
    // The next member is not made beside the one that is let go.
    assert_eq!(w.plug(TTY, "serial", "1"), ["start pump-armed-0"]);
    assert_eq!(w.later(1), Vec::<String>::new());
    assert_eq!(w.report("pump-armed-0", started()), ["launch pump-armed-0-2"]);
    assert_eq!(w.phase("pump-armed-0"), "running");
    assert_eq!(w.state.instances["pump-armed-0"].name, "pump-ttyusb0");
    assert_eq!(
        w.unplug(TTY),
        ["eject pump-armed-0 /dev/port", "stop pump-armed-0"]
    );
    w.down("pump-armed-0", 0);
    assert_eq!(w.phase("pump-armed-0"), "absent");
    assert_eq!(w.state.held().len(), 1, "the pool's own");
}

#[test]
fn a_pool_is_filled_again_too_where_its_member_came_to_nothing() {
    let ends: [fn(&mut World) -> Vec<String>; 3] = [
        |w| w.report("pump-armed-0", Report::Failed(refusal("prove"))),
        |w| w.report("pump-armed-0", Report::Closed),
        |w| w.unplug(TTY),
    ];
    for (n, end) in ends.into_iter().enumerate() {
        let (mut w, _) = World::ready(3, &serial("armed: 1"));
        w.report(
            "pump-armed-0",
            Report::Created {
                pid: 5,
                start_time: 1,
                takes: true,
            },
        );
        assert_eq!(w.plug(TTY, "serial", "1"), ["start pump-armed-0"]);
        let out = end(&mut w);
        assert!(out.iter().any(|e| e == "launch pump-armed-0-2"), "{n}: {out:?}");
    }
}

#[test]
fn a_crashed_container_that_was_armed_is_launched_cold() {
    let (mut w, _) = World::ready(2, &serial("armed: 1, settle: 0"));
    w.report(
        "pump-armed-0",
        Report::Created {
            pid: 5,
            start_time: 1,
            takes: true,
        },
    );
    assert_eq!(w.plug(TTY, "serial", "1"), ["start pump-armed-0"]);
    w.report("pump-armed-0", started());
    w.down("pump-armed-0", 1);
    assert_eq!(w.phase("pump-armed-0"), "absent");
    assert_eq!(w.phase("pump-ttyusb0"), "backoff");
    assert_eq!(w.later(1000), ["launch pump-ttyusb0"]);
}

#[test]
fn armed_containers_yield_their_cores_where_that_helps() {
    let yaml = serial("armed: 1");
    let (mut w, _) = World::ready(2, &yaml);
    w.report(
        "pump-armed-0",
        Report::Created {
            pid: 5,
            start_time: 1,
            takes: true,
        },
    );
    // Two cores are not to be had whatever yields; one is.
    assert_eq!(
        w.apply(&(yaml.clone() + &workload("b", "cpus: 2"))),
        Vec::<String>::new()
    );
    assert_eq!(
        w.apply(&(yaml + &workload("b", "cpus: 1"))),
        ["stop pump-armed-0"]
    );
    assert_eq!(w.down("pump-armed-0", 0), ["launch b"]);
    assert_eq!(w.phase("pump-armed-0"), "waiting");
}

impl World {
    /// Runs the instance to its end whatever its phase.
    fn up_or_not(&mut self, id: &str) {
        self.report(id, exit(0));
        self.report(id, Report::Closed);
    }
}

#[test]
fn events_are_told_to_who_has_the_device() {
    let rules =
        workload("pump", "run: onDevice") + &rule("serial", "workload: pump, device: {uevents: true}");
    let (mut w, _) = World::ready(2, &rules);
    let change = |key: &str| Event::Happened {
        key: key.to_owned(),
        action: "change",
        properties: vec![("A".to_owned(), "b".to_owned())],
    };
    w.plug(TTY, "serial", "1");
    assert!(w.requests["pump-ttyusb0"].udev && w.requests["pump-ttyusb0"].devices[0].uevents);
    assert_eq!(w.step(change(TTY)), Vec::<String>::new(), "nobody is there yet");
    w.up("pump-ttyusb0");
    assert_eq!(w.step(change(TTY)), ["uevent pump-ttyusb0 change"]);
    assert_eq!(w.step(change("/devices/x/ttyUSB1")), Vec::<String>::new());
    w.unplug(TTY);
    assert_eq!(w.step(change(TTY)), Vec::<String>::new(), "it was taken");
    // A rule that does not ask for it.
    let (mut w, _) = World::ready(2, &serial(""));
    w.plug(TTY, "serial", "1");
    w.up("pump-ttyusb0");
    assert!(!w.requests["pump-ttyusb0"].udev);
    assert_eq!(w.step(change(TTY)), Vec::<String>::new());
}

#[test]
fn a_device_that_storms_is_told_of_and_not_passed_on() {
    let rules =
        workload("pump", "run: onDevice") + &rule("serial", "workload: pump, device: {uevents: true}");
    let (mut w, _) = World::ready(2, &rules);
    w.plug(TTY, "serial", "1");
    w.up("pump-ttyusb0");
    let change = |n: usize| Event::Happened {
        key: TTY.to_owned(),
        action: "change",
        properties: vec![("N".to_owned(), n.to_string())],
    };
    let mut passed = 0;
    let mut notes = Vec::new();
    for n in 0..1000 {
        for effect in w.state.step(w.now, change(n)) {
            match effect {
                Effect::Uevent { .. } => passed += 1,
                Effect::Note(note) => notes.push(note),
                other => panic!("{other:?}"),
            }
        }
    }
    assert_eq!(passed, 64);
    assert!(
        notes.len() == 1 && notes[0].kind == NoticeKind::UeventsHeld && notes[0].subject == "ttyUSB0",
        "{notes:?}"
    );
    assert_eq!(w.state.uevents_left_out(), 935);
    // The last of them when its time has come; and then all that were left out are told.
    let due = w.state.deadline().unwrap();
    assert!(due <= w.now + 40, "{due}");
    let last = w.state.step(due, Event::Tick);
    assert!(
        matches!(&last[..], [Effect::Uevent { properties, .. }] if properties[0].1 == "999"),
        "{last:?}"
    );
    let told = w.state.deadline().unwrap();
    let told = w.state.step(told, Event::Tick);
    assert!(
        matches!(&told[..], [Effect::Note(note)] if note.text.contains("934 of its events were not passed on")),
        "{told:?}"
    );
    // One that nobody hears of costs nothing.
    let (mut w, _) = World::ready(2, &serial(""));
    w.plug(TTY, "serial", "1");
    w.up("pump-ttyusb0");
    for n in 0..1000 {
        w.step(change(n));
    }
    assert_eq!((w.state.uevents_left_out(), w.state.deadline()), (0, None));
}

#[test]
fn a_function_is_asked_for_by_its_address() {
    let rules = workload("dpdk", "run: onDevice") + &rule("card", "workload: dpdk, vfio: {wholeGroup: true}");
    let (mut w, _) = World::ready(2, &rules);
    let key = "/devices/pci0000:00/0000:03:00.0";
    let event = |subsystem: &str| Event::Device {
        facts: Arc::new(Facts {
            subsystem: subsystem.into(),
            devnum: None,
            ..facts(key, "1")
        }),
        matches: vec![matched("card")],
        before: None,
    };
    w.step(event("net"));
    let why = w.state.instances.values().next().and_then(|i| i.failure.clone());
    assert!(why.unwrap().message.contains("is no PCI function"));
    let out = w.step(event("pci"));
    let id = out[0].strip_prefix("launch ").unwrap().to_owned();
    let function = &w.requests[&id].vfio[0];
    assert_eq!(
        (function.address.as_str(), function.whole_group),
        ("0000:03:00.0", true)
    );
    w.up(&id);
    assert_eq!(w.unplug(key), [format!("stop {id}")]);
}
