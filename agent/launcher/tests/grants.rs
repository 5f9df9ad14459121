//! What a container is granted beyond its profile: interfaces, a scheduling policy, memory, the host's network,
//! mounts, a writable root.

#![allow(clippy::unwrap_used)] // tests

mod rig;

use std::process::Command;

use berth_launcher::wire::{Event, Reply};
use rig::{FOREVER, Rig, event, exited, next_event, refused, release};
use serde_json::{Value, json};

fn ip(args: &str) -> String {
    let done = Command::new("ip").args(args.split(' ')).output().unwrap();
    assert!(
        done.status.success(),
        "ip {args}: {}",
        String::from_utf8_lossy(&done.stderr)
    );
    String::from_utf8(done.stdout).unwrap()
}

/// A veth pair of the test's own; removed when dropped.
struct Veth {
    outer: String,
    inner: String,
}

impl Veth {
    fn new(tag: &str) -> Veth {
        let n = std::process::id() % 100_000;
        let veth = Veth {
            outer: format!("bl{n}{tag}o"),
            inner: format!("bl{n}{tag}i"),
        };
        ip(&format!(
            "link add {} type veth peer name {}",
            veth.outer, veth.inner
        ));
        veth
    }

    fn grant(&self, rename: &str) -> Value {
        let index = nix::net::if_::if_nametoindex(self.inner.as_str()).unwrap();
        json!([{"name": self.inner, "index": index, "rename": rename}])
    }
}

impl Drop for Veth {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["link", "del", &self.outer]).output();
    }
}

const LIST: &str = "for i in /sys/class/net/*; do echo if ${i##*/}; done; ";

/// Its event was read, then it went: at the launch, and with the start of an armed container.
#[test]
fn a_device_that_has_gone_is_not_given() {
    let rig = Rig::new();
    let gone = json!([{"block": true, "major": 259, "minor": 1_048_000, "path": "/dev/port", "access": "rw",
        "mode": 432, "uid": 0, "gid": 0}]);
    let mut client = rig.send(&rig.request("a", FOREVER, json!({"devices": gone})));
    match next_event(&mut client) {
        Event::Failed { refusal, .. } => {
            assert!(refusal.message.contains("/dev/port has gone"), "{refusal:?}")
        }
        other => panic!("{other:?}"),
    }
    release(&mut client);
    let mut client = rig.send(&rig.request("b", FOREVER, json!({"armed": true})));
    assert!(matches!(next_event(&mut client), Event::Created { .. }));
    client
        .send(&json!({"op": "start", "devices": gone}), &[])
        .unwrap();
    match next_event(&mut client) {
        Event::Failed { refusal, .. } => {
            assert!(refusal.message.contains("/dev/port has gone"), "{refusal:?}")
        }
        other => panic!("{other:?}"),
    }
    release(&mut client);
    rig.assert_gone("b");
}

#[test]
fn an_interface_goes_in_and_its_removal_is_told() {
    let rig = Rig::new();
    let veth = Veth::new("a");
    let mut running = rig.launch(
        "a",
        &format!("{LIST}{FOREVER}"),
        json!({"interfaces": veth.grant("wan")}),
    );
    rig.until("it is up", || rig.log("a").contains(" up"));
    let log = rig.log("a");
    assert!(
        log.contains("if wan\n") && log.contains("if lo\n") && !log.contains(&veth.inner),
        "{log}"
    );
    assert!(!ip("-o link").contains(&veth.inner), "it is no longer outside");
    ip(&format!("link del {}", veth.outer));
    match next_event(&mut running.client) {
        Event::InterfaceGone { name } => assert_eq!(name, "wan"),
        other => panic!("{other:?}"),
    }
    running.end();
    rig.assert_gone("a");
}

#[test]
fn an_armed_container_gets_its_interface_with_start() {
    let rig = Rig::new();
    let veth = Veth::new("b");
    let mut client = rig.send(&rig.request("a", &format!("{LIST}{FOREVER}"), json!({"armed": true})));
    assert!(matches!(next_event(&mut client), Event::Created { .. }));
    let mut wrong = veth.grant("wan");
    wrong[0]["index"] = json!(1);
    client
        .send(
            &json!({"op": "start", "interfaces": [{"name": "lo", "index": 1}]}),
            &[],
        )
        .unwrap();
    assert!(refused(&mut client).message.contains("interface lo stays"));
    client
        .send(&json!({"op": "start", "interfaces": veth.grant("wan")}), &[])
        .unwrap();
    assert!(matches!(next_event(&mut client), Event::Started { .. }));
    rig.until("it is up", || rig.log("a").contains(" up"));
    assert!(rig.log("a").contains("if wan\n"));
    client.send(&json!({"op": "stop"}), &[]).unwrap();
    exited(&mut client);
    release(&mut client);

    // Another interface under that name: the launch fails, and the interface stays where it is.
    let veth = Veth::new("c");
    let mut wrong = veth.grant("wan");
    wrong[0]["index"] = json!(1);
    let mut client = rig.send(&rig.request("a", "true", json!({"interfaces": wrong})));
    match next_event(&mut client) {
        Event::Failed { refusal, .. } => assert!(refusal.message.contains(&veth.inner), "{refusal:?}"),
        other => panic!("{other:?}"),
    }
    assert!(ip("-o link").contains(&veth.inner));
    release(&mut client);
    rig.assert_gone("a");
}

#[test]
fn the_hosts_network_is_the_hosts() {
    let rig = Rig::new();
    let veth = Veth::new("d");
    let running = rig.launch("a", &format!("{LIST}{FOREVER}"), json!({"network": "host"}));
    rig.until("it is up", || rig.log("a").contains(" up"));
    assert!(
        rig.log("a").contains(&format!("if {}\n", veth.outer)),
        "{}",
        rig.log("a")
    );
    running.end();
}

#[test]
fn a_real_time_policy_is_proven() {
    let rig = Rig::new();
    let change = json!({
        "scheduler": {"policy": "fifo", "priority": 7}, "timer_slack_ns": 1,
        "rt_budget": {"runtime_us": 20_000, "period_us": 1_000_000},
    });
    let running = rig.launch("a", FOREVER, change);
    let facts = &running.proof.facts;
    assert!(
        facts
            .iter()
            .any(|f| f.actual.contains("FIFO") && f.actual.contains('7')),
        "{facts:#?}"
    );
    let scheduler = berth_rt::sched::get(running.pid).unwrap().scheduler;
    assert_eq!(format!("{scheduler:?}"), "Fifo { priority: 7 }");
    running.end();
    rig.assert_gone("a");
}

#[test]
fn memory_beyond_the_limit_ends_it_and_is_told() {
    let rig = Rig::new();
    let exit = rig
        .launch("a", "exec tail /dev/zero", json!({"memory_bytes": 8 << 20}))
        .finish();
    assert_eq!((exit.signal, exit.oom), (Some(9), true));
    rig.assert_gone("a");
}

#[test]
fn mounts_are_what_they_say() {
    let rig = Rig::new();
    let (shared, spool) = (rig.temp.path().join("shared"), rig.temp.path().join("spool"));
    for folder in [&shared, &spool] {
        std::fs::create_dir(folder).unwrap();
    }
    std::fs::write(shared.join("file"), "content\n").unwrap();
    std::os::unix::fs::chown(&spool, Some(1000), Some(1000)).unwrap();
    let mounts = json!([
        {"source": shared, "destination": "/data", "read_only": true},
        {"source": spool, "destination": "/tmp", "read_only": false},
    ]);
    let script = "cat /data/file; echo x > /data/new && echo wrote-data; echo y > /tmp/new && echo wrote-tmp; \
                  echo z > /etc/new && echo wrote-root; true";
    assert_eq!(
        rig.launch("a", script, json!({"mounts": mounts})).finish().code,
        Some(0)
    );
    let log = rig.log("a");
    assert!(log.contains("content") && log.contains("wrote-tmp"), "{log}");
    assert!(
        !log.contains("wrote-data") && !log.contains("wrote-root"),
        "{log}"
    );
    assert_eq!(std::fs::read_to_string(spool.join("new")).unwrap(), "y\n");
    rig.assert_gone("a");
}

#[test]
fn a_profile_of_the_nodes_own_makes_the_root_writable_and_nothing_written_stays() {
    let rig = Rig::new();
    let profiles = rig.temp.path().join("etc/profiles");
    std::fs::create_dir_all(&profiles).unwrap();
    std::fs::write(
        profiles.join("writable.json"),
        r#"{"extends": "strict", "readonlyRoot": false}"#,
    )
    .unwrap();
    let script = "cat /tmp/new; echo z > /tmp/new && cat /tmp/new";
    let change = json!({"profile": "writable"});
    for _ in 0..2 {
        let mut running = rig.launch("a", script, change.clone());
        assert_eq!(running.exited().code, Some(0));
        assert!(
            !rig.state().join("containers/a").exists(),
            "freed before the exit is told"
        );
        release(&mut running.client);
    }
    let log = rig.log("a");
    assert_eq!(log.matches("stdout F z").count(), 2, "{log}");
    assert_eq!(
        log.matches("No such file").count(),
        2,
        "each began with the image: {log}"
    );
    std::fs::write(
        profiles.join("writable.json"),
        r#"{"extends": "strict", "readonlyRoot": "no"}"#,
    )
    .unwrap();
    let mut client = rig.send(&rig.request("a", script, change));
    let refusal = refused(&mut client);
    assert_eq!(refusal.stage, "profile");
    assert!(refusal.message.contains("writable.json"), "{refusal:?}");
    rig.assert_gone("a");
}

#[test]
fn a_log_that_cannot_be_written_is_said_before_anything_runs() {
    let rig = Rig::new();
    std::fs::create_dir(rig.state().join("logs/a.log")).unwrap();
    let mut client = rig.send(&rig.request("a", "true", json!({})));
    match event(client.receive().unwrap().unwrap().reply) {
        Event::Failed { refusal, .. } => {
            assert_eq!((refusal.stage.as_str(), refusal.hint.is_some()), ("log", true))
        }
        other => panic!("{other:?}"),
    }
    client.send(&json!({"op": "prove"}), &[]).unwrap();
    let Reply::Refused(refusal) = client.receive().unwrap().unwrap().reply else {
        panic!("not refused")
    };
    assert_eq!(refusal.message, "it is failed");
    release(&mut client);
    rig.assert_gone("a");
}
