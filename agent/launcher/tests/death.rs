//! What happens when a process is killed: launcher, monitor, agent. And what a monitor costs.

mod rig;

use std::os::fd::AsFd;

use berth_launcher::paths::Record;
use berth_launcher::wire::{Event, Phase, Reply};
use rig::{FOREVER, Rig, kill, lives, next_event, release};
use serde_json::json;

fn monitor_of(rig: &Rig, id: &str) -> i32 {
    rig.hello(id).1.monitor_pid
}

#[test]
fn a_killed_monitor_takes_its_container_with_it_and_is_swept() {
    let rig = Rig::new();
    let mut running = rig.launch("a", FOREVER, json!({}));
    let other = rig.launch("b", FOREVER, json!({}));
    kill(monitor_of(&rig, "a"), libc::SIGKILL);
    assert!(running.client.receive().unwrap().is_none(), "the connection ends");
    rig.until("the container is gone", || !lives(running.pid));
    rig.until("it is swept", || !rig.run().join("monitors/a.sock").exists());
    assert_eq!(rig.cgroups("a"), Vec::<std::path::PathBuf>::new());
    let record = Record::read(&rig.run().join("containers/a")).unwrap().unwrap();
    assert!(record.unwitnessed && record.exit.unwrap().signal == Some(9));
    assert!(matches!(rig.sweep("a"), Reply::Done));
    rig.assert_gone("a");
    assert!(matches!(rig.sweep("a"), Reply::Done), "twice is no harm");
    let Reply::Refused(refusal) = rig.sweep("b") else {
        panic!("swept a living one")
    };
    assert!(refusal.message.contains("the monitor of b lives"));
    assert!(lives(other.pid));
    other.end();
    let again = rig.launch("a", FOREVER, json!({}));
    again.end();
}

#[test]
fn a_killed_launcher_is_missed_by_nobody_and_the_next_one_finds_all() {
    for signal in [libc::SIGKILL, libc::SIGTERM] {
        let mut rig = Rig::new();
        let mut kept = rig.launch("kept", FOREVER, json!({"notes": {"generation": "7"}}));
        let lost = rig.launch("lost", FOREVER, json!({}));
        let status = rig.signal_launcher(signal);
        assert_eq!(status.success(), signal == libc::SIGTERM);
        assert!(lives(kept.pid) && lives(lost.pid));
        // While no launcher is there, a monitor dies.
        kill(monitor_of(&rig, "lost"), libc::SIGKILL);
        rig.until("its container goes with it", || !lives(lost.pid));
        assert!(
            matches!(kept.ask(json!({"op": "status"})), Reply::Status(_)),
            "the old connection goes on"
        );
        rig.start();
        rig.until("the new launcher swept", || rig.cgroups("lost").is_empty());
        let (mut client, status, fd) = rig.hello("kept");
        assert_eq!((status.phase, status.pid), (Phase::Running, Some(kept.pid)));
        assert_eq!(status.request.notes["generation"], "7");
        assert_eq!(
            status.start_time,
            Some(berth_launcher::paths::start_time(kept.pid).unwrap())
        );
        let fd = fd.expect("a pidfd comes with the status");
        berth_launcher::socket::pidfd_signal(fd.as_fd(), 0).unwrap();
        // The new launcher watches the monitors of the old one.
        kill(status.monitor_pid, libc::SIGKILL);
        rig.until("it is swept", || {
            rig.cgroups("kept").is_empty() && !rig.run().join("monitors/kept.sock").exists()
        });
        assert!(client.receive().unwrap().is_none());
        rig.sweep("kept");
        rig.sweep("lost");
        rig.assert_gone("kept");
        rig.assert_gone("lost");
    }
}

#[test]
fn an_agent_that_goes_away_loses_nothing() {
    let rig = Rig::new();
    let running = rig.launch("a", "echo up; sleep 0.3; exit 4", json!({}));
    drop(running);
    rig.until("it ended", || rig.hello("a").1.phase == Phase::Exited);
    let (mut client, status, _) = rig.hello("a");
    assert_eq!(status.exit.unwrap().code, Some(4));
    release(&mut client);
    rig.assert_gone("a");
}

#[test]
fn a_peer_that_does_not_read_stops_nothing() {
    let rig = Rig::new();
    let mut running = rig.launch("a", FOREVER, json!({}));
    let (deaf, _, _) = rig.hello("a");
    let status = berth_launcher::frame::encode(&json!({"op": "status"})).unwrap();
    let _ = deaf
        .stream()
        .set_write_timeout(Some(std::time::Duration::from_millis(200)));
    for _ in 0..2000 {
        if deaf.send_line(&status, &[]).is_err() {
            break;
        }
    }
    assert!(matches!(running.ask(json!({"op": "status"})), Reply::Status(_)));
    running.end();
}

#[test]
fn a_monitor_asked_to_end_stops_its_container_first() {
    let rig = Rig::new();
    let mut running = rig.launch(
        "a",
        "trap 'exit 6' TERM; echo up; while :; do sleep 0.05; done",
        json!({}),
    );
    rig.until("it is up", || rig.log("a").contains("up"));
    kill(monitor_of(&rig, "a"), libc::SIGTERM);
    assert_eq!(running.exited().code, Some(6));
    release(&mut running.client);
    rig.assert_gone("a");
}

#[test]
fn the_launcher_runs_from_a_sealed_copy_and_shows_nothing() {
    let rig = Rig::new();
    let pid = rig.launcher_pid();
    let exe = std::fs::read_link(format!("/proc/{pid}/exe")).unwrap();
    assert!(exe.to_string_lossy().contains("memfd:berth"), "{exe:?}");
    let write = std::fs::OpenOptions::new()
        .write(true)
        .open(format!("/proc/{pid}/exe"));
    assert!(write.is_err(), "its executable cannot be written");
    let comm = |pid: i32| std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap();
    assert_eq!(comm(pid).trim(), "berth-launcher");
    let running = rig.launch("a", FOREVER, json!({}));
    let monitor = monitor_of(&rig, "a");
    assert_eq!(comm(monitor).trim(), "berth-mon");
    let stat = |pid: i32, field: usize| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        stat.rsplit_once(") ")
            .unwrap()
            .1
            .split(' ')
            .nth(field - 3)
            .unwrap()
            .to_owned()
    };
    assert_eq!(
        stat(running.pid, 4),
        monitor.to_string(),
        "the monitor is its parent"
    );
    assert_eq!(stat(monitor, 6), monitor.to_string(), "in a session of its own");
    for pid in [pid, monitor] {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        assert!(status.contains("Threads:\t1\n"));
    }
    // The container has its own program, and nothing of the launcher's open.
    assert!(
        !std::fs::read_link(format!("/proc/{}/exe", running.pid))
            .unwrap()
            .to_string_lossy()
            .contains("memfd")
    );
    let mut fds: Vec<String> = std::fs::read_dir(format!("/proc/{}/fd", running.pid))
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    fds.sort();
    assert_eq!(fds[..3], ["0", "1", "2"]);
    running.end();
}

#[test]
fn output_survives_rotation_and_a_burst() {
    let rig = Rig::new();
    let running = rig.launch("a", "seq 1 20000; seq 1 3 >&2", json!({"log_max_bytes": 65536}));
    assert_eq!(running.finish().code, Some(0));
    let log = rig.log("a");
    let old = std::fs::read_to_string(rig.state().join("logs/a.log.1")).unwrap();
    assert!(log.len() <= 32768 && old.len() <= 32768 && old.len() > 10_000);
    assert!(log.contains(" stdout F 20000\n"));
    let both = format!("{old}{log}");
    let mut text = String::new();
    for line in both.lines().filter_map(|l| l.split_once(" stdout ").map(|l| l.1)) {
        text.push_str(&line[2..]);
        if line.starts_with('F') {
            text.push('\n');
        }
    }
    // The oldest may be cut where the file before it was dropped.
    let numbers: Vec<u32> = text.lines().skip(1).map(|n| n.parse().unwrap()).collect();
    assert!(
        numbers.windows(2).all(|w| w[1] == w[0] + 1),
        "nothing is lost in between"
    );
}

#[test]
fn an_armed_container_dies_with_its_monitor_too() {
    let rig = Rig::new();
    let mut client = rig.send(&rig.request("a", FOREVER, json!({"armed": true})));
    let Event::Created { pid, .. } = next_event(&mut client) else {
        panic!("not created")
    };
    kill(monitor_of(&rig, "a"), libc::SIGKILL);
    rig.until("it is gone", || !lives(pid));
    rig.until("it is swept", || rig.cgroups("a").is_empty());
    assert!(matches!(rig.sweep("a"), Reply::Done));
    rig.assert_gone("a");
}

/// The kernel forgets a death signal when a process gets other credentials: what is left is the launcher's work.
#[test]
fn a_container_without_its_keeper_is_not_left_running() {
    const OTHER_CREDENTIALS: &str = "exec start-stop-daemon -S -c other -x /bin/sleep -- 1000";
    let mut rig = Rig::new();
    let profiles = rig.temp.path().join("etc/profiles");
    std::fs::create_dir_all(&profiles).unwrap();
    let two = ["CAP_SETGID", "CAP_SETUID"];
    let changes =
        json!({"extends": "strict", "userNamespace": "host", "capabilities": {"set": two, "ambient": two}});
    std::fs::write(profiles.join("changes.json"), changes.to_string()).unwrap();
    let users = rig.temp.path().join("users");
    std::fs::write(&users, "other:x:2000:2000::/:/bin/sh\n").unwrap();
    let mount = json!({"source": users, "destination": "/etc/passwd", "read_only": true});
    for (id, launcher_dies) in [("a", false), ("b", true)] {
        let running = rig.launch(
            id,
            OTHER_CREDENTIALS,
            json!({"profile": "changes", "mounts": [mount]}),
        );
        let status = format!("/proc/{}/status", running.pid);
        rig.until("it has another user", || {
            std::fs::read_to_string(&status).is_ok_and(|s| s.contains("Uid:\t2000\t2000"))
        });
        let monitor = monitor_of(&rig, id);
        let launcher = rig.launcher_pid();
        if launcher_dies {
            rig.signal_launcher(libc::SIGKILL);
        } else {
            kill(launcher, libc::SIGSTOP);
        }
        kill(monitor, libc::SIGKILL);
        rig.until("the monitor is gone", || !lives(monitor));
        std::thread::sleep(std::time::Duration::from_millis(100));
        let outlived = lives(running.pid);
        if launcher_dies {
            rig.start();
        } else {
            kill(launcher, libc::SIGCONT);
        }
        assert!(
            outlived,
            "the death signal was not cleared: this test shows nothing"
        );
        rig.until("it is killed all the same", || !lives(running.pid));
        rig.until("its group is gone", || rig.cgroups(id).is_empty());
        rig.sweep(id);
        rig.assert_gone(id);
    }
}

#[test]
fn a_monitor_keeps_off_its_containers_cores() {
    let rig = Rig::new();
    let online = std::fs::read_to_string("/sys/devices/system/cpu/online").unwrap();
    if online.trim() == "0" {
        return; // there is no other core to go to
    }
    let running = rig.launch("a", FOREVER, json!({"placement": {"cpus": "1", "shared": false}}));
    let allowed = |pid: i32| {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let list = status
            .lines()
            .find_map(|l| l.strip_prefix("Cpus_allowed_list:\t"));
        list.unwrap().to_owned()
    };
    let monitor: berth_rt::cpu::CpuSet = allowed(monitor_of(&rig, "a")).parse().unwrap();
    assert!(!monitor.contains(1) && monitor.contains(0));
    assert_eq!(allowed(running.pid), "1");
    running.end();
}

#[test]
fn what_an_earlier_container_wrote_is_not_used_again() {
    let rig = Rig::new();
    let upper = rig.state().join("containers/a/upper");
    std::fs::create_dir_all(&upper).unwrap();
    std::fs::write(upper.join("left"), "of another").unwrap();
    let script = "[ -e /left ] || echo fresh; sleep 1000";
    let running = rig.launch("a", script, json!({"profile": "system"}));
    rig.until("it is fresh", || rig.log("a").contains("fresh"));
    assert!(!upper.join("left").exists());
    let containers = rig.state().join("containers");
    let names = || std::fs::read_dir(&containers).unwrap().count();
    rig.until("what was set aside is removed", || names() == 1);
    running.end();
    rig.assert_gone("a");
}
