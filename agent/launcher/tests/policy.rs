//! An agent that was taken over asks the launcher for what its policy does not allow: each is refused, and is in the
//! launcher's own audit log.

#![allow(clippy::unwrap_used)] // tests

mod rig;

use berth_launcher::wire::{Event, Reply};
use rig::{FOREVER, Rig, exited, next_event, refused, release};
use serde_json::{Value, json};

fn device(block: bool, major: u32, minor: u32) -> Value {
    json!([{"block": block, "major": major, "minor": minor, "path": "/dev/given", "access": "rw", "mode": 384, "uid": 0, "gid": 0}])
}

fn root_disk() -> Option<(u32, u32)> {
    let device = std::os::unix::fs::MetadataExt::dev(&std::fs::metadata("/").unwrap());
    let number = (
        nix::sys::stat::major(device) as u32,
        nix::sys::stat::minor(device) as u32,
    );
    (number.0 != 0).then_some(number)
}

#[test]
fn what_the_policy_does_not_allow_is_refused_and_recorded() {
    let rig = Rig::new();
    rig.policy(&json!({}));
    let profiles = rig.temp.path().join("etc/profiles");
    std::fs::create_dir_all(&profiles).unwrap();
    // What a taken-over agent can write: the node's own profiles.
    for (name, text) in [
        ("caps", r#"{"capabilities": {"set": ["ALL"]}}"#),
        ("open", r#"{"seccomp": {"unconfined": true}}"#),
        ("suid", r#"{"noNewPrivileges": false}"#),
        ("host", r#"{"namespaces": ["mount", "pid"]}"#),
        ("disk", r#"{"devices": {"add": ["b *:* rwm"]}}"#),
        ("loud", r#"{"loud": true, "capabilities": {"set": ["ALL"]}}"#),
        (
            "label",
            r#"{"selinuxLabel": "system_u:system_r:unconfined_t:s0"}"#,
        ),
    ] {
        std::fs::write(profiles.join(format!("{name}.json")), text).unwrap();
    }
    let mount = |source: &str, read_only: bool| json!({"mounts": [{"source": source, "destination": "/data", "read_only": read_only}]});
    let mut asked = vec![
        ("a profile", json!({"profile": "privileged"})),
        ("network", json!({"network": "host"})),
        (
            "priority",
            json!({"scheduler": {"policy": "fifo", "priority": 99}}),
        ),
        ("mem", json!({"devices": device(false, 1, 1)})),
        ("port", json!({"devices": device(false, 1, 4)})),
        ("loop-control", json!({"devices": device(false, 10, 237)})),
        ("etc", mount("/etc", true)),
        ("usr", mount("/usr", false)),
    ];
    for name in ["caps", "open", "suid", "host", "disk", "loud", "label"] {
        asked.push((name, json!({"profile": name})));
    }
    if let Some((major, minor)) = root_disk() {
        asked.push(("root disk", json!({"devices": device(true, major, minor)})));
    }
    for (n, (what, change)) in asked.iter().enumerate() {
        let id = format!("bad-{n}");
        let mut client = rig.send(&rig.request(&id, "true", change.clone()));
        let refusal = refused(&mut client);
        assert_eq!(refusal.stage, "policy", "{what}: {refusal:?}");
        assert!(
            refusal.hint.as_ref().unwrap().contains("policy.yaml"),
            "{refusal:?}"
        );
        rig.assert_gone(&id);
        let records = rig.audit();
        let record = records.iter().rfind(|r| r.subject == id).unwrap();
        assert_eq!(
            (record.kind.as_str(), record.result.as_str()),
            ("request", "refused"),
            "{what}"
        );
        assert_eq!(record.text, refusal.message);
        let who = record.who.as_ref().unwrap();
        assert_eq!((who.uid, who.pid), (0, std::process::id() as i32));
    }
    // The same with a policy that allows it.
    rig.policy(&json!({"mounts": [{"path": "/usr"}]}));
    assert_eq!(
        rig.launch("good", "test -d /data/lib", mount("/usr", true))
            .finish()
            .code,
        Some(0)
    );
    rig.assert_gone("good");
}

#[test]
fn an_armed_container_gets_nothing_with_start_that_a_launch_would_not() {
    let rig = Rig::new();
    rig.policy(&json!({"interfaces": ["eth*"]}));
    let mut client = rig.send(&rig.request("a", FOREVER, json!({"armed": true})));
    assert!(matches!(next_event(&mut client), Event::Created { .. }));
    for start in [
        json!({"op": "start", "devices": device(false, 1, 1)}),
        json!({"op": "start", "interfaces": [{"name": "wan0", "index": 7}]}),
    ] {
        client.send(&start, &[]).unwrap();
        let refusal = refused(&mut client);
        assert_eq!(refusal.stage, "start", "{refusal:?}");
        let record = rig.audit().pop().unwrap();
        assert_eq!(
            (record.kind.as_str(), record.result.as_str(), record.text),
            ("start", "refused", refusal.message)
        );
    }
    client.send(&json!({"op": "start"}), &[]).unwrap();
    assert!(matches!(next_event(&mut client), Event::Started { .. }));
    client.send(&json!({"op": "stop"}), &[]).unwrap();
    exited(&mut client);
    release(&mut client);
    rig.assert_gone("a");
}

#[test]
fn a_policy_that_cannot_be_believed_stops_every_launch_and_no_container() {
    let rig = Rig::new();
    let running = rig.launch("kept", FOREVER, json!({}));
    rig.policy(&json!({"privilegd": true}));
    let refusal = refused(&mut rig.send(&rig.request("a", "true", json!({}))));
    assert!(
        refusal.stage == "policy" && refusal.message.contains("privilegd"),
        "{refusal:?}"
    );
    rig.policy(&json!({}));
    let file = rig.temp.path().join("etc/launcher/policy.yaml");
    std::fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o646)).unwrap();
    let refusal = refused(&mut rig.send(&rig.request("a", "true", json!({}))));
    assert!(refusal.message.contains("others than root"), "{refusal:?}");
    running.end();
    rig.assert_gone("a");
}

#[test]
fn each_launch_is_recorded_with_its_proof_and_no_secret_of_its_command_line() {
    let rig = Rig::new();
    let change = json!({"process": {"command": ["/bin/sh", "-c", FOREVER, "argument-word"], "env": [["TOKEN", "env-word"]]}});
    let mut running = rig.launch("a", "", change);
    running.ask(json!({"op": "signal", "signal": 28}));
    running.end();
    let records = rig.audit();
    let kinds: Vec<&str> = records
        .iter()
        .filter(|r| r.subject == "a")
        .map(|r| r.kind.as_str())
        .collect();
    // Each in its order, though what need not be recorded first is put off.
    let mut armed = rig.send(&rig.request("c", FOREVER, json!({"armed": true})));
    assert!(matches!(next_event(&mut armed), Event::Created { .. }));
    armed.send(&json!({"op": "start"}), &[]).unwrap();
    assert!(matches!(next_event(&mut armed), Event::Started { .. }));
    let of_c = || -> Vec<String> {
        let records = rig.audit().into_iter().filter(|r| r.subject == "c");
        records.map(|r| r.kind).filter(|k| k != "request").collect()
    };
    rig.until("it is recorded", || of_c().len() == 2);
    assert_eq!(of_c(), ["start", "launch"]);
    armed.send(&json!({"op": "signal", "signal": 9}), &[]).unwrap();
    assert!(matches!(armed.receive().unwrap().unwrap().reply, Reply::Done));
    exited(&mut armed);
    release(&mut armed);
    for kind in ["request", "launch", "order", "end"] {
        assert!(kinds.contains(&kind), "{kind}: {kinds:?}");
    }
    let launch = records.iter().find(|r| r.kind == "launch").unwrap();
    let proof = &launch.detail["proof"];
    assert!(
        proof["digest"].as_str().unwrap().starts_with("sha256:") && proof["holds"] == true,
        "{proof}"
    );
    assert!(proof["facts"].as_u64().unwrap() > 20);
    assert_eq!(launch.detail["request"]["profile"], "strict");
    let all = std::fs::read_to_string(rig.state().join("audit/launcher/current.log")).unwrap();
    assert!(!all.contains("argument-word") && !all.contains("env-word"));
    // A launch that fails is recorded with what failed.
    let program = json!({"process": {"command": ["/no/such/program"]}});
    let mut client = rig.send(&rig.request("b", "", program));
    while !matches!(next_event(&mut client), Event::Failed { .. }) {}
    release(&mut client);
    let failed = rig.audit().into_iter().rfind(|r| r.kind == "launch").unwrap();
    assert_eq!((failed.subject.as_str(), failed.result.as_str()), ("b", "failed"));
}

#[test]
fn with_required_records_nothing_runs_unrecorded() {
    let rig = Rig::new();
    rig.policy(&json!({"audit": {"required": true}}));
    assert_eq!(rig.launch("a", "true", json!({})).finish().code, Some(0));
    let current = rig.state().join("audit/launcher/current.log");
    std::fs::rename(&current, rig.temp.path().join("aside")).unwrap();
    std::os::unix::fs::symlink("/dev/full", &current).unwrap();
    let refusal = refused(&mut rig.send(&rig.request("b", "true", json!({}))));
    assert_eq!(refusal.stage, "audit", "{refusal:?}");
    rig.assert_gone("b");
    // Nor is what was armed while it could be recorded let go.
    std::fs::remove_file(&current).unwrap();
    std::fs::rename(rig.temp.path().join("aside"), &current).unwrap();
    let mut armed = rig.send(&rig.request("d", "echo ran", json!({"armed": true})));
    assert!(matches!(next_event(&mut armed), Event::Created { .. }));
    std::fs::rename(&current, rig.temp.path().join("aside")).unwrap();
    std::os::unix::fs::symlink("/dev/full", &current).unwrap();
    armed.send(&json!({"op": "start"}), &[]).unwrap();
    assert_eq!(refused(&mut armed).stage, "start");
    assert_eq!(rig.log("d"), "");
    armed.send(&json!({"op": "stop"}), &[]).unwrap();
    exited(&mut armed);
    release(&mut armed);
    rig.assert_gone("d");
    // Without it the launch goes on, and the log is mended at the next record.
    rig.policy(&json!({}));
    assert_eq!(rig.launch("c", "true", json!({})).finish().code, Some(0));
    std::fs::remove_file(&current).unwrap();
    std::fs::rename(rig.temp.path().join("aside"), &current).unwrap();
    rig.assert_gone("c");
}
