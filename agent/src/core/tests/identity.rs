//! Devices that are the same again elsewhere, bundles, containers that outlive their device, moves, removals.

use berth_hotplug::rule::Offer;

use super::*;

const PORT1: &str = "/devices/port1/ttyUSB0";
const PORT2: &str = "/devices/port2/ttyUSB7";

fn pump(more: &str) -> String {
    workload("pump", "run: onDevice, cpus: 1, stop: {grace: 1s}")
        + &rule(
            "serial",
            &format!("workload: pump, device: {{path: /dev/port}}, {more}"),
        )
}

/// What a rule with `identity: serial` makes of a device.
fn known(serial: &str) -> RuleMatch {
    RuleMatch {
        rule: "serial".into(),
        slot: format!("serial:{serial}"),
        label: Some(serial.into()),
        ..RuleMatch::default()
    }
}

fn any() -> RuleMatch {
    RuleMatch {
        slot: "any".into(),
        label: Some("serial".into()),
        ..known("")
    }
}

#[test]
fn the_same_device_elsewhere_is_the_same_instance() {
    let (mut w, _) = World::ready(3, &pump("identity: serial"));
    assert_eq!(w.plug_as(PORT1, "1", known("A1")), ["launch pump-a1"]);
    w.up("pump-a1");
    let place = w.state.instances["pump-a1"].place.clone();
    // Another adapter is another instance, on other cores.
    assert_eq!(
        w.plug_as("/devices/port3/ttyUSB1", "9", known("B2")),
        ["launch pump-b2"]
    );
    w.up("pump-b2");
    w.unplug(PORT1);
    w.down("pump-a1", 0);
    assert_eq!(w.phase("pump-a1"), "absent");
    // Replugged in another port, under another name: the same name, the same cores.
    assert_eq!(w.plug_as(PORT2, "2", known("A1")), ["launch pump-a1"]);
    assert_eq!(w.state.instances["pump-a1"].place, place);
    assert_eq!(w.requests["pump-a1"].devices[0].path, "/dev/port");
}

#[test]
fn replugged_elsewhere_while_it_still_stops() {
    let (mut w, _) = World::ready(2, &pump("identity: serial"));
    w.plug_as(PORT1, "1", known("A1"));
    w.up("pump-a1");
    assert_eq!(w.unplug(PORT1), ["eject pump-a1 /dev/port", "stop pump-a1"]);
    assert_eq!(w.plug_as(PORT2, "2", known("A1")), Vec::<String>::new());
    assert_eq!(w.down("pump-a1", 0), ["launch pump-a1"]);
}

#[test]
fn two_devices_of_one_identity_are_one_instance_and_a_spare() {
    let (mut w, _) = World::ready(3, &pump("identity: serial"));
    w.plug_as(PORT2, "1", known("A1"));
    w.up("pump-a1");
    // Plugged later, first by its path: what runs is left alone.
    assert_eq!(w.plug_as(PORT1, "2", known("A1")), Vec::<String>::new());
    assert_eq!(w.unplug(PORT1), Vec::<String>::new());
    assert_eq!(w.phase("pump-a1"), "running");
}

#[test]
fn grace_gives_it_back() {
    let (mut w, _) = World::ready(2, &pump("identity: serial, unplug: {grace: 5s}"));
    w.plug_as(PORT1, "1", known("A1"));
    w.up("pump-a1");
    assert_eq!(w.unplug(PORT1), ["eject pump-a1 /dev/port"]);
    assert_eq!(w.phase("pump-a1"), "running");
    assert_eq!(w.later(4_000), Vec::<String>::new());
    assert_eq!(w.plug_as(PORT2, "2", known("A1")), ["inject pump-a1 /dev/port"]);
    assert_eq!(w.later(10_000), Vec::<String>::new());
    assert_eq!(w.phase("pump-a1"), "running");
    // This time it does not come back.
    assert_eq!(w.unplug(PORT2), ["eject pump-a1 /dev/port"]);
    assert_eq!(w.later(4_999), Vec::<String>::new());
    assert_eq!(w.later(2), ["stop pump-a1"]);
    w.down("pump-a1", 0);
    assert_eq!(w.phase("pump-a1"), "absent");
    assert_eq!(w.state.deadline(), None);
}

#[test]
fn kept_without_its_device() {
    let (mut w, _) = World::ready(2, &pump("unplug: {then: keep}"));
    w.plug(PORT1, "serial", "1");
    w.up("pump-ttyusb0");
    assert_eq!(w.unplug(PORT1), ["eject pump-ttyusb0 /dev/port"]);
    assert_eq!(w.later(1_000_000), Vec::<String>::new());
    assert_eq!(w.plug(PORT1, "serial", "2"), ["inject pump-ttyusb0 /dev/port"]);
    assert_eq!(w.unplug(PORT1), ["eject pump-ttyusb0 /dev/port"]);
    // Ended by itself while nothing is there: nothing starts it.
    w.down("pump-ttyusb0", 1);
    assert_eq!(w.phase("pump-ttyusb0"), "absent");
    assert_eq!(w.plug(PORT1, "serial", "3"), ["launch pump-ttyusb0"]);
}

#[test]
fn gone_while_it_was_launched_is_taken_when_it_runs() {
    let (mut w, _) = World::ready(2, &pump("unplug: {then: keep}"));
    w.plug(PORT1, "serial", "1");
    assert_eq!(w.unplug(PORT1), Vec::<String>::new());
    w.report(
        "pump-ttyusb0",
        Report::Created {
            pid: 5,
            start_time: 1,
            takes: true,
        },
    );
    assert_eq!(
        w.report("pump-ttyusb0", started()),
        ["eject pump-ttyusb0 /dev/port"]
    );
}

#[test]
fn an_injection_that_is_refused_is_told_and_not_repeated() {
    let (mut w, _) = World::ready(2, &pump("unplug: {then: keep}"));
    w.plug(PORT1, "serial", "1");
    w.up("pump-ttyusb0");
    w.unplug(PORT1);
    w.plug(PORT1, "serial", "2");
    assert_eq!(
        w.report("pump-ttyusb0", Report::Refused(refusal("inject"))),
        Vec::<String>::new()
    );
    assert_eq!(w.plug(PORT1, "serial", "2"), Vec::<String>::new());
    assert!(w.state.instances["pump-ttyusb0"].failure.is_some());
    assert_eq!(w.phase("pump-ttyusb0"), "running");
}

#[test]
fn handed_over_to_another() {
    let (mut w, _) = World::ready(2, &pump("unplug: {then: handOver}"));
    assert_eq!(w.plug_as(PORT1, "1", any()), ["launch pump-serial"]);
    w.up("pump-serial");
    assert_eq!(w.plug_as(PORT2, "1", any()), Vec::<String>::new());
    // One is there all the time.
    assert_eq!(
        w.unplug(PORT1),
        ["eject pump-serial /dev/port", "inject pump-serial /dev/port"]
    );
    assert_eq!(w.phase("pump-serial"), "running");
    assert_eq!(
        w.unplug(PORT2),
        ["eject pump-serial /dev/port", "stop pump-serial"]
    );
}

fn box_of_three(need: &str) -> String {
    let member =
        |name: &str| format!("{{name: {name}, match: 'KERNEL==\"{name}\"', device: {{path: /dev/{name}}}}}");
    workload("box", "run: onDevice, cpus: 1")
        + &format!(
            "apiVersion: berth/v1\nkind: HotplugRule\nmetadata: {{name: box}}\nspec: {{workload: box, bundle: {{need: {need}, \
             devices: [{}, {}, {}]}}}}\n---\n",
            member("a"),
            member("b"),
            member("c")
        )
}

fn member(n: usize) -> RuleMatch {
    RuleMatch {
        rule: "box".into(),
        slot: "bundle".into(),
        label: Some("box".into()),
        offers: vec![Offer {
            member: n,
            path: None,
            interface: None,
            env: vec![(format!("DEV{n}"), "x".into())],
        }],
        ..RuleMatch::default()
    }
}

#[test]
fn a_bundle_waits_for_all_and_ends_with_the_first_that_goes() {
    let (mut w, _) = World::ready(2, &box_of_three("all"));
    assert_eq!(w.plug_as("/devices/a", "1", member(0)), Vec::<String>::new());
    assert_eq!(w.phase("box-box"), "partial");
    w.plug_as("/devices/c", "1", member(2));
    let Phase::Partial { why } = &w.state.instances["box-box"].phase else {
        panic!("{:?}", w.state.instances["box-box"].phase);
    };
    assert_eq!(why, "2 of 3 devices, 3 needed: has a, c; lacks b");
    assert!(w.state.held().is_empty(), "it holds no cores");
    assert_eq!(w.plug_as("/devices/b", "1", member(1)), ["launch box-box"]);
    let request = &w.requests["box-box"];
    let paths: Vec<&str> = request.devices.iter().map(|d| d.path.as_str()).collect();
    assert_eq!(paths, ["/dev/a", "/dev/b", "/dev/c"]);
    assert_eq!(request.process.env.len(), 3);
    w.up("box-box");
    assert_eq!(w.unplug("/devices/b"), ["eject box-box /dev/b", "stop box-box"]);
    w.down("box-box", 0);
    assert_eq!(w.phase("box-box"), "partial");
    assert_eq!(w.plug_as("/devices/b", "2", member(1)), ["launch box-box"]);
    w.up("box-box");
    for key in ["/devices/a", "/devices/b", "/devices/c"] {
        w.unplug(key);
    }
    w.down("box-box", 0);
    assert_eq!(w.phase("box-box"), "absent");
}

#[test]
fn a_bundle_of_some_gives_and_takes_while_it_runs() {
    let (mut w, _) = World::ready(2, &box_of_three("2"));
    w.plug_as("/devices/a", "1", member(0));
    assert_eq!(w.plug_as("/devices/b", "1", member(1)), ["launch box-box"]);
    w.up("box-box");
    assert_eq!(w.plug_as("/devices/c", "1", member(2)), ["inject box-box /dev/c"]);
    assert_eq!(w.unplug("/devices/a"), ["eject box-box /dev/a"]);
    assert_eq!(w.phase("box-box"), "running");
    assert_eq!(w.unplug("/devices/b"), ["eject box-box /dev/b", "stop box-box"]);
}

#[test]
fn a_restarted_agent_knows_a_bundle() {
    let (mut before, _) = World::ready(2, &box_of_three("all"));
    for (n, key) in ["/devices/a", "/devices/b", "/devices/c"].into_iter().enumerate() {
        before.plug_as(key, "1", member(n));
    }
    for (gone, out) in [
        (None, &[][..]),
        (Some("/devices/b"), &["eject box-box /dev/b", "stop box-box"]),
    ] {
        let mut w = World::new(2, &box_of_three("all"));
        w.requests = before.requests.clone();
        // The three differ by number on a real node; here they are told apart by it too.
        let mut status = w.status("box-box", wire::Phase::Running);
        status.request.devices.iter_mut().for_each(|d| d.minor = 0);
        w.step(Event::Adopt {
            status: Box::new(status),
        });
        let ids = w.state.instances["box-box"].given.len();
        assert_eq!(ids, 3);
        for given in &mut w.state.instances.get_mut("box-box").unwrap().given {
            let own = format!("/dev/{}", given.facts.sysname);
            given.devices.retain(|d| d.path == own);
        }
        for (n, key) in ["/devices/a", "/devices/b", "/devices/c"].into_iter().enumerate() {
            if gone != Some(key) {
                w.plug_as(key, "1", member(n));
            }
        }
        assert_eq!(w.step(Event::Ready), out);
    }
}

#[test]
fn a_device_that_moves_is_followed() {
    let (mut w, _) = World::ready(2, &pump(""));
    w.plug(PORT1, "serial", "1");
    w.up("pump-ttyusb0");
    let out = w.step(Event::Device {
        facts: Arc::new(facts(PORT2, "1")),
        matches: vec![matched("serial")],
        before: Some(PORT1.into()),
    });
    assert_eq!(out, Vec::<String>::new());
    assert_eq!(w.phase("pump-ttyusb0"), "running");
    assert_eq!(
        w.unplug(PORT2),
        ["eject pump-ttyusb0 /dev/port", "stop pump-ttyusb0"]
    );
}

#[test]
fn a_removal_runs_its_workload_once() {
    let yaml =
        workload("sweep", "run: onDevice, args: [a]") + &rule("gone", "workload: sweep, trigger: [remove]");
    let (mut w, _) = World::ready(1, &yaml);
    for round in 0..2 {
        let out = w.step(Event::Removed {
            facts: Arc::new(facts(PORT1, "1")),
            matched: Box::new(matched("gone")),
        });
        assert_eq!(out, ["launch sweep-ttyusb0"], "round {round}");
        assert_eq!(w.requests["sweep-ttyusb0"].process.args, ["a", "--rule"]);
        w.up("sweep-ttyusb0");
        w.down("sweep-ttyusb0", 0);
        assert_eq!(w.phase("sweep-ttyusb0"), "completed");
        w.now += 1_000;
    }
}

/// What the rule cannot say of one of its devices is told; it does not stand among those that are there.
#[test]
fn a_bundle_tells_what_it_cannot_fill_in() {
    let documents = box_of_three("all");
    let (mut w, _) = World::ready(2, &documents);
    let broken = RuleMatch {
        rule: "box".into(),
        fault: Some("bundle.by: no parent was matched".into()),
        ..RuleMatch::default()
    };
    w.plug_as(PORT1, "1", broken);
    let failed = w.state.instances.values().next().unwrap();
    assert_eq!(failed.phase.as_str(), "failed");
    let why = failed.failure.as_ref().unwrap();
    assert!(
        why.message.contains("bundle.by: no parent was matched"),
        "{why:?}"
    );
    // Mended: it waits for the other.
    w.plug_as(PORT1, "1", member(0));
    let partial = w.state.instances.values().any(|i| i.phase.as_str() == "partial");
    assert!(partial, "{:?}", w.state.instances);
}
