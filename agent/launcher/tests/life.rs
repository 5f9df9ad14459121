//! A container's whole life under a real launcher and monitor, as root on this machine's kernel: launch, output,
//! exit, stop, exec, freeze, armed start, refusals.

mod rig;

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use berth_launcher::client::Client;
use berth_launcher::paths::Record;
use berth_launcher::wire::{Event, Phase, Reply};
use berth_rt::sched::Scheduler;
use rig::{FOREVER, LONG, Rig, event, exited, lives, next_event, refused, release};
use serde_json::json;

#[test]
fn output_and_exit_status_are_kept() {
    let rig = Rig::new();
    let script = "echo out; echo err >&2; echo FROM_IMAGE=$FROM_IMAGE ADDED=$ADDED HOME=$HOME; id -u; exit 3";
    let change = json!({"process": {"command": ["/bin/sh", "-c", script], "env": [["ADDED", "yes"]]}});
    let mut running = rig.launch("a", "", change);
    let exit = running.exited();
    assert_eq!((exit.code, exit.signal, exit.oom), (Some(3), None, false));
    // Told only when all is freed and the record is written.
    assert_eq!(rig.cgroups("a"), Vec::<std::path::PathBuf>::new());
    let record = Record::read(&rig.run().join("containers/a")).unwrap().unwrap();
    assert_eq!(record.exit.unwrap().code, Some(3));
    let log = rig.log("a");
    let lines: Vec<&str> = log.lines().map(|l| l.split_once(' ').unwrap().1).collect();
    for line in [
        "stdout F out",
        "stderr F err",
        "stdout F FROM_IMAGE=yes ADDED=yes HOME=/home/app",
        "stdout F 1000",
    ] {
        assert!(lines.contains(&line), "{line} in {log}");
    }
    let (_, status, fd) = rig.hello("a");
    assert_eq!(
        (status.phase, status.pid, fd.is_none()),
        (Phase::Exited, None, true)
    );
    running.client.send(&json!({"op": "release"}), &[]).unwrap();
    // The monitor says its last word to the one who asked.
    assert!(matches!(
        running.client.receive().unwrap().unwrap().reply,
        Reply::Done
    ));
    rig.until("the monitor is gone", || {
        Client::monitor(&rig.run(), "a").is_err()
    });
    rig.assert_gone("a");
}

#[test]
fn stop_gives_grace_and_then_kills() {
    let rig = Rig::new();
    let ready = |id: &str| rig.until("it is ready", || rig.log(id).contains("ready"));
    let polite = rig.launch(
        "polite",
        "trap 'echo bye; exit 7' TERM; echo ready; while :; do sleep 0.05; done",
        json!({}),
    );
    ready("polite");
    assert_eq!(polite.end().code, Some(7));
    assert!(rig.log("polite").contains("bye"));
    rig.assert_gone("polite");

    let stop = json!({"stop": {"signal": 15, "grace_ms": 300}});
    let mut deaf = rig.launch(
        "deaf",
        "trap '' TERM; echo ready; while :; do sleep 0.05; done",
        stop,
    );
    ready("deaf");
    let pid = deaf.pid;
    deaf.client.send(&json!({"op": "stop"}), &[]).unwrap();
    let exit = deaf.exited();
    assert_eq!((exit.signal, exit.oom), (Some(9), false));
    assert!(!lives(pid));
    release(&mut deaf.client);
    rig.assert_gone("deaf");
}

/// The freezer of a cgroup folder: its file, and the word that freezes.
fn freezer(folders: &[std::path::PathBuf]) -> Option<(std::path::PathBuf, &'static str, &'static str)> {
    let found = |name: &str| folders.iter().map(|f| f.join(name)).find(|f| f.exists());
    found("freezer.state")
        .map(|f| (f, "FROZEN", "THAWED"))
        .or_else(|| found("cgroup.freeze").map(|f| (f, "1", "0")))
}

#[test]
fn stop_is_heard_by_a_container_that_was_frozen_by_hand() {
    let rig = Rig::new();
    let running = rig.launch("a", FOREVER, json!({}));
    rig.until("it is ready", || rig.log("a").contains("up"));
    let (file, freeze, _) = freezer(&rig.cgroups("a")).expect("a freezer");
    std::fs::write(file, freeze).unwrap();
    // Not by SIGKILL after its grace: it hears the signal.
    assert_eq!(running.end().code, Some(0));
    rig.assert_gone("a");
}

#[test]
fn what_holds_a_container_that_is_killed_is_told() {
    let rig = Rig::new();
    let mut running = rig.launch("a", FOREVER, json!({"stop": {"signal": 15, "grace_ms": 100}}));
    let above: Vec<_> = (rig.cgroups("a").iter())
        .map(|f| f.parent().unwrap().to_owned())
        .collect();
    // v2 kills what is frozen.
    let Some((file, freeze, thaw)) = freezer(&above).filter(|(_, freeze, _)| *freeze == "FROZEN") else {
        running.end();
        return;
    };
    std::fs::write(&file, freeze).unwrap();
    running.client.send(&json!({"op": "stop"}), &[]).unwrap();
    let folder = format!("`{}`", file.parent().unwrap().display());
    let mut told = String::new();
    while !told.contains(&format!("{} (sh, ", running.pid)) {
        match next_event(&mut running.client) {
            Event::Held { by } => told += &by,
            other => panic!("{other:?}"),
        }
        assert!(told.contains(&folder), "{told}");
    }
    let (_, status, _) = rig.hello("a");
    assert_eq!(status.phase, Phase::Stopping);
    std::fs::write(&file, thaw).unwrap();
    assert_eq!(running.finish().signal, Some(9));
    rig.assert_gone("a");
}

#[test]
fn an_armed_container_waits_and_starts_with_what_it_is_given() {
    let rig = Rig::new();
    let script = "echo started with $1 and $WORD; echo x > /dev/port && echo wrote; exec sleep 1000";
    let command = json!({"command": ["/bin/sh", "-c", script, "sh"], "args": ["nothing"]});
    let mut client = rig.send(&rig.request("a", "", json!({"armed": true, "process": command})));
    let received = client.receive().unwrap().unwrap();
    let pid = match event(received.reply) {
        Event::Created { pid, proof, .. } => {
            assert!(proof.expect("pre-proved").holds());
            pid
        }
        other => panic!("{other:?}"),
    };
    let (mut other, status, fd) = rig.hello("a");
    assert_eq!((status.phase, status.pid), (Phase::Armed, Some(pid)));
    assert!(fd.is_some());
    assert_eq!(rig.log("a"), "", "nothing has run");
    let device = json!({"block": false, "major": 1, "minor": 3, "path": "/dev/port", "access": "rw", "mode": 432,
        "uid": 1000, "gid": 1000});
    let start = json!({"op": "start", "args": ["port"], "env": [["WORD", "speed"]],
        "devices": [device], "labels": {"device": "null"}, "notes": {"n": "1"}});
    client.send(&start, &[]).unwrap();
    match next_event(&mut client) {
        Event::Started { proof, .. } => assert!(proof.holds()),
        other => panic!("{other:#?}"),
    }
    rig.until("it wrote to its device", || rig.log("a").contains("wrote"));
    assert!(
        rig.log("a").contains("started with port and speed"),
        "{}",
        rig.log("a")
    );
    // Everybody who listens hears of it, and the status has what was added.
    assert!(matches!(next_event(&mut other), Event::Started { .. }));
    other.send(&json!({"op": "status"}), &[]).unwrap();
    let Reply::Status(status) = other.receive().unwrap().unwrap().reply else {
        panic!("no status")
    };
    assert_eq!(status.request.labels["device"], "null");
    assert_eq!(status.request.devices.len(), 1);
    client.send(&start, &[]).unwrap();
    assert_eq!(refused(&mut client).message, "it is running, not armed");
    client.send(&json!({"op": "signal", "signal": 9}), &[]).unwrap();
    assert!(matches!(client.receive().unwrap().unwrap().reply, Reply::Done));
    exited(&mut client);
    drop(other);
    release(&mut client);
    rig.assert_gone("a");
}

#[test]
fn an_armed_container_is_stopped_without_having_run() {
    let rig = Rig::new();
    let mut client = rig.send(&rig.request("a", "echo ran", json!({"armed": true})));
    assert!(matches!(next_event(&mut client), Event::Created { .. }));
    client.send(&json!({"op": "stop"}), &[]).unwrap();
    assert_eq!(exited(&mut client).signal, Some(9));
    release(&mut client);
    assert_eq!(rig.log("a"), "");
    rig.assert_gone("a");
}

#[test]
fn exec_runs_inside_with_the_callers_descriptors() {
    let rig = Rig::new();
    let running = rig.launch("a", FOREVER, json!({}));
    let exec = |script: &str| {
        let client = Client::monitor(&rig.run(), "a").unwrap();
        client.set_timeout(Some(LONG)).unwrap();
        let (reader, writer) = nix::unistd::pipe().unwrap();
        let null: OwnedFd = File::open("/dev/null").unwrap().into();
        let args = ["/bin/sh", "-c", script];
        let line =
            json!({"op": "exec", "version": 1, "args": args, "env": [["WORD", "hello"]], "cwd": "/etc"});
        client
            .send(&line, &[null.as_fd(), writer.as_fd(), writer.as_fd()])
            .unwrap();
        drop(writer);
        (client, File::from(reader))
    };
    let (mut client, mut output) = exec("echo $WORD from $PWD, $FROM_IMAGE, uid $(id -u); exit 5");
    let reply = client.receive().unwrap().unwrap().reply;
    let Reply::ExecStarted { pid, .. } = reply else {
        panic!("{reply:?}")
    };
    assert!(pid > 0 && pid != running.pid);
    let mut text = String::new();
    output.read_to_string(&mut text).unwrap();
    assert_eq!(text, "hello from /etc, yes, uid 1000\n");
    match client.receive().unwrap().unwrap().reply {
        Reply::ExecExited(exit) => assert_eq!(exit.code, Some(5)),
        other => panic!("{other:?}"),
    }
    // Whoever goes away takes what he ran with him.
    let (mut client, _output) = exec("while :; do sleep 0.05; done");
    let Reply::ExecStarted { pid, .. } = client.receive().unwrap().unwrap().reply else {
        panic!("not started")
    };
    drop(client);
    rig.until("the exec'd process is gone", || !lives(pid));
    let mut bare = Client::monitor(&rig.run(), "a").unwrap();
    bare.set_timeout(Some(LONG)).unwrap();
    bare.send(&json!({"op": "exec", "version": 1, "args": ["/bin/true"]}), &[])
        .unwrap();
    assert!(refused(&mut bare).message.contains("three descriptors"));
    drop(bare);
    assert!(lives(running.pid));
    running.end();
    rig.assert_gone("a");
}

#[test]
fn freeze_thaw_signal_and_prove() {
    let rig = Rig::new();
    let script = "trap 'echo usr1' USR1; trap 'exit 0' TERM; echo ready; while :; do sleep 0.05; done";
    let mut running = rig.launch("a", script, json!({}));
    rig.until("it is ready", || rig.log("a").contains("ready"));
    assert!(matches!(running.ask(json!({"op": "freeze"})), Reply::Done));
    assert!(matches!(
        running.ask(json!({"op": "signal", "signal": 10})),
        Reply::Done
    ));
    let Reply::Status(status) = running.ask(json!({"op": "status"})) else {
        panic!("no status")
    };
    assert_eq!(status.phase, Phase::Frozen);
    assert!(!rig.log("a").contains("usr1"));
    assert!(matches!(running.ask(json!({"op": "thaw"})), Reply::Done));
    rig.until("the signal arrives", || rig.log("a").contains("usr1"));
    match running.ask(json!({"op": "prove"})) {
        Reply::Proof(proof) => assert!(proof.holds() && proof.facts.len() > 10),
        other => panic!("{other:?}"),
    }
    let Reply::Refused(refusal) = running.ask(json!({"op": "signal", "signal": 99})) else {
        panic!("not refused")
    };
    assert!(refusal.message.contains("signal 99"));
    // A frozen one is stopped too.
    assert!(matches!(running.ask(json!({"op": "freeze"})), Reply::Done));
    running.client.send(&json!({"op": "stop"}), &[]).unwrap();
    running.exited();
    release(&mut running.client);
    rig.assert_gone("a");
}

#[test]
fn what_cannot_be_is_refused_and_leaves_nothing() {
    let rig = Rig::new();
    let running = rig.launch("taken", FOREVER, json!({}));
    let unknown = format!("sha256:{}", "0".repeat(64));
    let link = rig.temp.path().join("link");
    std::os::unix::fs::symlink("/", &link).unwrap();
    let other = rig.temp.path().join("other");
    std::os::unix::fs::symlink("/usr", &other).unwrap();
    let mount = |source: &Path| json!([{"source": source, "destination": "/data", "read_only": true}]);
    let cases = [
        (
            json!({"version": 2}),
            "request",
            "version 2 is not spoken here; this is version 1",
        ),
        (json!({"id": "../up"}), "request", "id \"../up\""),
        (json!({"id": "taken"}), "request", "id taken is in use"),
        (json!({"image": unknown}), "image", "000000"),
        (json!({"profile": "lenient"}), "profile", "lenient"),
        (
            json!({"placement": {"cpus": "4000", "shared": true}}),
            "request",
            "placement.cpus 4000: this node has",
        ),
        (json!({"mounts": mount(&link)}), "request", "the host's root"),
        (
            json!({"mounts": mount(&other)}),
            "request",
            "through a symbolic link",
        ),
        (
            json!({"mounts": mount(&rig.run())}),
            "request",
            "berth's own folder",
        ),
        (
            json!({"mounts": mount(Path::new("/nowhere"))}),
            "request",
            "mount source /nowhere",
        ),
        (json!({"op": "reboot"}), "request", "unknown variant `reboot`"),
    ];
    for (change, stage, text) in cases {
        let mut request = rig.request("a", "true", json!({}));
        request
            .as_object_mut()
            .unwrap()
            .extend(change.as_object().unwrap().clone());
        let mut client = rig.send(&request);
        let refusal = refused(&mut client);
        assert!(refusal.message.contains(text), "{text}: {refusal:?}");
        assert_eq!(refusal.stage, stage, "{refusal:?}");
        assert!(client.receive().unwrap().is_none(), "and the connection ends");
        rig.assert_gone("a");
    }
    let mut client = rig.client();
    client.send_line(b"nonsense\n", &[]).unwrap();
    assert!(
        refused(&mut client)
            .message
            .contains("not a message of this protocol")
    );
    // A monitor wants to be greeted, in its own version.
    for (line, text) in [
        (json!({"op": "stop"}), "carries no \"version\""),
        (
            json!({"op": "hello", "version": 9}),
            "version 9 is not spoken here",
        ),
    ] {
        let mut client = Client::monitor(&rig.run(), "taken").unwrap();
        client.set_timeout(Some(LONG)).unwrap();
        client.send(&line, &[]).unwrap();
        assert!(refused(&mut client).message.contains(text));
        assert!(client.receive().unwrap().is_none());
    }
    assert!(lives(running.pid));
    running.end();
}

#[test]
fn a_launch_that_fails_says_why_and_frees_all() {
    let rig = Rig::new();
    let mut client = rig.send(&rig.request("a", "", json!({"process": {"command": ["/bin/nothing-here"]}})));
    let failure = loop {
        match next_event(&mut client) {
            Event::Created { .. } => {}
            Event::Failed { refusal, .. } => break refusal,
            other => panic!("{other:?}"),
        }
    };
    assert!(failure.message.contains("nothing-here"), "{failure:?}");
    assert_eq!(rig.cgroups("a"), Vec::<std::path::PathBuf>::new());
    let (_, status, _) = rig.hello("a");
    assert_eq!(
        (status.phase, status.failure.as_ref()),
        (Phase::Failed, Some(&failure))
    );
    release(&mut client);
    rig.assert_gone("a");
}

#[test]
fn drift_is_told_once_and_so_is_its_end() {
    let rig = Rig::with_interval(100);
    let scheduler = json!({"scheduler": {"policy": "other", "nice": 0}});
    let mut running = rig.launch("a", FOREVER, scheduler);
    let pid = running.pid;
    let set = |scheduler| berth_rt::sched::set(pid, &scheduler, 0).unwrap();
    set(Scheduler::Batch { nice: 0 });
    match next_event(&mut running.client) {
        Event::Drift { facts, .. } => {
            assert!(!facts.is_empty() && facts.iter().all(|f| !f.holds), "{facts:?}")
        }
        other => panic!("{other:?}"),
    }
    let (_, status, _) = rig.hello("a");
    assert!(!status.drift.is_empty());
    set(Scheduler::Other { nice: 0 });
    assert!(matches!(next_event(&mut running.client), Event::Restored));
    running.end();
}
