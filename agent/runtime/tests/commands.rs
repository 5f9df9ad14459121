//! Terminals and the commands beside create, start and delete, on the OCI command line.
#![allow(clippy::unwrap_used)] // helpers of tests

mod common;

use std::fs;
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use common::Bundle;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
use serde_json::{Value, json};

fn devpts(b: &mut Bundle) {
    b.set(
        "/mounts/-",
        json!({"destination": "/dev/pts", "type": "devpts", "source": "devpts",
            "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"]}),
    );
    b.set("/process/terminal", json!(true));
}

/// What comes over a console socket: bytes and one descriptor.
fn taken(listener: &UnixListener) -> (Vec<u8>, fs::File) {
    let mut fds = [nix::poll::PollFd::new(
        listener.as_fd(),
        nix::poll::PollFlags::POLLIN,
    )];
    assert_eq!(
        nix::poll::poll(&mut fds, 20_000u16).unwrap(),
        1,
        "nobody connected"
    );
    let (stream, _) = listener.accept().unwrap();
    let mut bytes = [0u8; 4096];
    let mut space = nix::cmsg_space!([i32; 4]);
    let mut parts = [std::io::IoSliceMut::new(&mut bytes)];
    let message = recvmsg::<()>(
        stream.as_raw_fd(),
        &mut parts,
        Some(&mut space),
        MsgFlags::empty(),
    )
    .unwrap();
    let n = message.bytes;
    let fd = message.cmsgs().unwrap().find_map(|m| match m {
        ControlMessageOwned::ScmRights(fds) => fds.first().copied(),
        _ => None,
    });
    // SAFETY: received just now; nobody else owns it.
    #[allow(unsafe_code)]
    let fd = unsafe { OwnedFd::from_raw_fd(fd.unwrap()) };
    (bytes[..n].to_vec(), fd.into())
}

fn text(out: &Output) -> String {
    assert!(out.status.success(), "{out:?}");
    String::from_utf8(out.stdout.clone()).unwrap()
}

#[test]
fn a_console_socket_gets_the_terminal() {
    let mut b =
        Bundle::new("tty; stty size; ls -l /dev/console | cut -c1; echo to-console > /dev/console; read a");
    devpts(&mut b);
    b.set("/process/consoleSize", json!({"height": 40, "width": 50}));
    b.set("/process/user/uid", json!(7));
    let path = b.dir.join("console.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let create = b.oci(&["create", "--console-socket", path.to_str().unwrap(), &b.id]);
    assert!(create.status.success(), "{create:?}");
    let (_, mut master) = taken(&listener);
    assert!(b.oci(&["start", &b.id]).status.success());
    let mut got = String::new();
    while !got.contains("to-console") {
        let mut buffer = [0u8; 512];
        let n = master.read(&mut buffer).unwrap();
        got.push_str(&String::from_utf8_lossy(&buffer[..n]));
    }
    assert_eq!(got, "/dev/pts/0\r\n40 50\r\nc\r\nto-console\r\n");
    master.write_all(b"\n").unwrap();
    b.wait_for_status("stopped");
    assert!(b.oci(&["delete", &b.id]).status.success());
    b.assert_nothing_left();
}

#[test]
fn terminals_that_nobody_takes_are_refused_and_leave_nothing() {
    let mut b = Bundle::new("true");
    devpts(&mut b);
    let gone = b.dir.join("gone.sock");
    for (args, wanted) in [
        (vec!["create", b.id.as_str()], "nobody takes the terminal"),
        (
            vec![
                "create",
                "--console-socket",
                gone.to_str().unwrap(),
                b.id.as_str(),
            ],
            "gone.sock",
        ),
    ] {
        let out = b.oci(&args);
        let message = String::from_utf8_lossy(&out.stderr).into_owned();
        assert!(
            !out.status.success() && message.contains(wanted) && message.contains("hint"),
            "{message}"
        );
        b.assert_nothing_left();
    }
    b.set("/process/terminal", json!(false));
    let out = b.oci(&["create", "--console-socket", "/x", &b.id]);
    assert!(
        String::from_utf8_lossy(&out.stderr).contains("process.terminal is false"),
        "{out:?}"
    );
    // No devpts to open it on.
    let mut b = Bundle::new("true");
    b.set("/process/terminal", json!(true));
    assert!(b.refusal().contains("/dev/pts/ptmx"));
}

#[test]
fn run_relays_the_terminal() {
    let mut b = Bundle::new("tty; read a; echo got $a; exit 3");
    devpts(&mut b);
    b.set("/process/terminal", json!(false));
    let mut child = b
        .command(&["run", "--tty", &b.id])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.as_mut().unwrap().write_all(b"word\n").unwrap();
    let out = child.wait_with_output().unwrap();
    let got = String::from_utf8(out.stdout).unwrap();
    assert!(
        got.contains("/dev/pts/0\r\n") && got.contains("got word\r\n"),
        "{got:?}"
    );
    assert_eq!(out.status.code(), Some(3));
    b.assert_nothing_left();
}

fn sleeping(change: impl FnOnce(&mut Bundle)) -> Bundle {
    let mut b = Bundle::new("exec sleep 1000");
    change(&mut b);
    let (done, message) = b.create();
    assert!(done, "{message}");
    let out = b.oci(&["start", &b.id]);
    assert!(out.status.success(), "{out:?}");
    b
}

fn end(b: &Bundle) {
    assert!(b.oci(&["delete", "--force", &b.id]).status.success());
    b.assert_nothing_left();
}

#[test]
fn exec_by_another_process_has_what_the_container_has() {
    let b = sleeping(|b| {
        b.set(
            "/linux/seccomp",
            json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO"}]}),
        );
        b.set(
            "/process/rlimits",
            json!([{"type": "RLIMIT_NOFILE", "soft": 77, "hard": 78}]),
        );
        b.set("/linux/personality", json!({"domain": "LINUX32"}));
    });
    // The bundle may be gone by then.
    fs::remove_file(b.dir.join("config.json")).unwrap();
    let oci = |args: &[&str]| {
        Command::new(common::program())
            .arg("--root")
            .arg(b.root())
            .args(args)
            .stdin(Stdio::null())
            .output()
            .unwrap()
    };
    let out = oci(&[
        "exec",
        &b.id,
        "/bin/sh",
        "-c",
        "hostname; echo $GREETING; ulimit -n; cat /proc/self/personality; mkdir /tmp/x; grep ^Seccomp: /proc/self/status; exit 6",
    ]);
    assert_eq!(out.status.code(), Some(6), "{out:?}");
    assert_eq!(
        String::from_utf8_lossy(&out.stdout),
        "edge\nhello\n77\n00000008\nSeccomp:\t2\n",
        "{out:?}"
    );
    let words = oci(&[
        "exec",
        "--cwd",
        "/tmp",
        "-e",
        "A=1",
        "-u",
        "5:6",
        "-g",
        "7",
        "--cap",
        "kill",
        "--no-new-privs",
        &b.id,
        "sh",
        "-c",
        "pwd; echo $A; id -u; id -G; grep CapEff /proc/self/status",
    ]);
    assert_eq!(text(&words), "/tmp\n1\n5\n6 7\nCapEff:\t0000000000000020\n");
    let file = b.dir.join("process.json");
    fs::write(
        &file,
        json!({"cwd": "/", "args": ["id", "-u"], "env": ["PATH=/bin"], "user": {"uid": 9, "gid": 9}})
            .to_string(),
    )
    .unwrap();
    assert_eq!(
        text(&oci(&["exec", "--process", file.to_str().unwrap(), &b.id])),
        "9\n"
    );
    let pid_file = b.dir.join("pid");
    // It keeps the streams: no pipe of this test's.
    let status = Command::new(common::program())
        .arg("--root")
        .arg(b.root())
        .args([
            "exec",
            "-d",
            "--pid-file",
            pid_file.to_str().unwrap(),
            &b.id,
            "sleep",
            "999",
        ])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .status();
    assert!(status.unwrap().success());
    let pid = fs::read_to_string(&pid_file).unwrap();
    let listed: Vec<i64> = serde_json::from_str(&text(&oci(&["ps", "-f", "json", &b.id]))).unwrap();
    assert!(
        listed.len() == 2 && listed.contains(&pid.parse().unwrap()),
        "{listed:?} {pid}"
    );
    assert!(text(&oci(&["ps", &b.id])).contains("sleep 999"));
    let out = oci(&["exec", &b.id, "no-such"]);
    assert!(
        String::from_utf8_lossy(&out.stderr).contains("not found in $PATH"),
        "{out:?}"
    );
    fs::write(b.dir.join("config.json"), "{}").unwrap();
    end(&b);
}

#[test]
fn exec_has_a_terminal_of_its_own() {
    let b = sleeping(|b| {
        devpts(b);
        b.set("/process/terminal", json!(false));
    });
    let path = b.dir.join("exec.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let out = b.oci(&[
        "exec",
        "-t",
        "-d",
        "--console-socket",
        path.to_str().unwrap(),
        &b.id,
        "sh",
        "-c",
        "tty; read a",
    ]);
    assert!(out.status.success(), "{out:?}");
    let (_, mut master) = taken(&listener);
    let mut buffer = [0u8; 64];
    let n = master.read(&mut buffer).unwrap();
    assert_eq!(&buffer[..n], b"/dev/pts/0\r\n");
    end(&b);
}

#[test]
fn pause_resume_and_what_a_paused_container_refuses() {
    let b = sleeping(|_| ());
    assert!(b.oci(&["pause", &b.id]).status.success());
    assert_eq!(b.state()["status"], "paused");
    for args in [vec!["pause", &b.id], vec!["exec", &b.id, "true"]] {
        let out = b.oci(&args);
        assert!(
            !out.status.success() && String::from_utf8_lossy(&out.stderr).contains("paused"),
            "{out:?}"
        );
    }
    assert!(b.oci(&["resume", &b.id]).status.success());
    assert_eq!(b.state()["status"], "running");
    assert!(!b.oci(&["resume", &b.id]).status.success());
    end(&b);
}

#[test]
fn update_changes_limits_and_the_promise_and_puts_back_what_fails() {
    let b = sleeping(|b| {
        b.set("/linux/resources/memory", json!({"limit": 134_217_728}));
    });
    let pids = || {
        let dirs = b.cgroups();
        let file = dirs
            .iter()
            .map(|d| d.join("pids.max"))
            .find(|f| f.exists())
            .unwrap();
        fs::read_to_string(file).unwrap().trim().to_owned()
    };
    assert_eq!(pids(), "32");
    assert!(b.oci(&["update", "--pids-limit", "40", &b.id]).status.success());
    assert_eq!(pids(), "40");
    let file = b.dir.join("resources.json");
    fs::write(
        &file,
        json!({"pids": {"limit": 41}, "memory": {"limit": 67_108_864}}).to_string(),
    )
    .unwrap();
    let out = b.oci(&["update", "-r", file.to_str().unwrap(), &b.id]);
    assert!(out.status.success(), "{out:?}");
    assert_eq!(pids(), "41");
    // The second cannot be applied: the first is put back.
    fs::write(
        &file,
        json!({"pids": {"limit": 50}, "unified": {"no.such": "1"}}).to_string(),
    )
    .unwrap();
    let out = b.oci(&["update", "-r", file.to_str().unwrap(), &b.id]);
    assert!(
        String::from_utf8_lossy(&out.stderr).contains("linux.resources.unified.no.such"),
        "{out:?}"
    );
    assert_eq!(pids(), "41");
    let record: Value =
        serde_json::from_slice(&fs::read(b.root().join(&b.id).join("record.json")).unwrap()).unwrap();
    let files = record["promise"]["cgroup_files"].as_array().unwrap();
    let promised = |name: &str| {
        let found = files.iter().find(|f| f["path"].as_str().unwrap().ends_with(name));
        found.map(|f| f["value"].as_str().unwrap().to_owned())
    };
    assert_eq!(promised("pids.max").as_deref(), Some("41"));
    // What joins is proven against what is promised now.
    assert!(b.oci(&["exec", &b.id, "true"]).status.success());
    end(&b);
}

#[test]
fn events_tell_what_is_used() {
    let b = sleeping(|_| ());
    let stats: Value = serde_json::from_str(&text(&b.oci(&["events", "--stats", &b.id]))).unwrap();
    assert_eq!((&stats["type"], &stats["id"]), (&json!("stats"), &json!(b.id)));
    assert_eq!(stats["data"]["pids"]["current"], 1);
    let child = b
        .command(&["events", "--interval", "1s", &b.id])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    std::thread::sleep(Duration::from_millis(1500));
    end(&b);
    let out = child.wait_with_output().unwrap();
    assert!(
        out.status.success() && String::from_utf8_lossy(&out.stdout).lines().count() >= 2,
        "{out:?}"
    );
}

#[test]
fn who_answers_notifications_gets_the_listener() {
    let mut b = Bundle::new("mkdir /tmp/x; echo done");
    let path = b.dir.join("notify.sock");
    let section = json!({
        "defaultAction": "SCMP_ACT_ALLOW", "listenerPath": path, "listenerMetadata": "some words",
        "flags": ["SECCOMP_FILTER_FLAG_LOG"],
        "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_NOTIFY"}]
    });
    b.set("/linux/seccomp", section.clone());
    // Nobody there: nothing is made.
    let message = b.refusal();
    assert!(
        message.contains("notify.sock") && message.contains("listenerPath"),
        "{message}"
    );
    let listener = UnixListener::bind(&path).unwrap();
    let child = b.command(&["run", &b.id]).stdout(Stdio::piped()).spawn().unwrap();
    let (bytes, notifications) = taken(&listener);
    let state: Value = serde_json::from_slice(&bytes).unwrap();
    assert_eq!(state["fds"], json!(["seccompFd"]));
    assert_eq!(state["metadata"], "some words");
    assert_eq!(
        (&state["state"]["id"], &state["state"]["status"]),
        (&json!(b.id), &json!("creating"))
    );
    assert!(
        state["pid"].as_i64().unwrap() > 1 && state["ociVersion"] == "1.2.0",
        "{state}"
    );
    // The first call that is notified; without an answer the program would hang.
    let mut fds = [nix::poll::PollFd::new(
        notifications.as_fd(),
        nix::poll::PollFlags::POLLIN,
    )];
    assert_eq!(nix::poll::poll(&mut fds, 10_000u16).unwrap(), 1);
    drop(notifications); // every such call is ENOSYS from here on
    let out = child.wait_with_output().unwrap();
    assert_eq!(String::from_utf8_lossy(&out.stdout), "done\n");
    b.assert_nothing_left();
    for (pointer, value, wanted) in [
        (
            "/linux/seccomp/defaultAction",
            json!("SCMP_ACT_NOTIFY"),
            "default action",
        ),
        (
            "/linux/seccomp/syscalls",
            json!([{"names": ["write"], "action": "SCMP_ACT_NOTIFY"}]),
            "for write",
        ),
        ("/linux/seccomp/listenerPath", json!(null), "listenerPath"),
    ] {
        b.set("/linux/seccomp", section.clone()).set(pointer, value);
        let message = b.refusal();
        assert!(message.contains(wanted), "{message}");
    }
}

#[test]
fn list_and_version() {
    let b = sleeping(|_| ());
    assert_eq!(text(&b.oci(&["list", "--quiet"])), format!("{}\n", b.id));
    assert!(text(&b.oci(&["--version"])).contains("spec: 1.3.0"));
    end(&b);
}

#[test]
fn descriptors_are_preserved_when_asked_for_and_no_others() {
    // Shells do for this what a caller in C would: open from 3 on, then run.
    let with = |b: &Bundle, words: &str| {
        drop(b.command(&["list"])); // writes config.json
        let script = format!(
            "exec 3<{0}/three 4<{0}/four 5<{0}/three; exec {1} --root {2} {words}",
            b.dir.display(),
            common::program().display(),
            b.root().display()
        );
        let mut command = Command::new("/bin/sh");
        command
            .args(["-c", &script])
            .current_dir(&b.dir)
            .stdin(Stdio::null())
            .output()
            .unwrap()
    };
    let files = |b: &Bundle| {
        fs::write(b.dir.join("three"), "three\n").unwrap();
        fs::write(b.dir.join("four"), "four\n").unwrap();
    };
    let look =
        "cat <&3; cat <&4; for fd in 3 4 5 6 7 8 9; do test -e /proc/$$/fd/$fd && echo has $fd; done; true";
    let mut b = Bundle::new(look);
    // A hook does not get them.
    let hook = format!("ls /proc/$$/fd > {}/hook; true", b.dir.display());
    b.set(
        "/hooks",
        json!({"createRuntime": [{"path": "/bin/sh", "args": ["sh", "-c", hook]}]}),
    );
    files(&b);
    assert_eq!(
        text(&with(&b, &format!("run --preserve-fds 2 {}", b.id))),
        "three\nfour\nhas 3\nhas 4\n"
    );
    let in_hook = fs::read_to_string(b.dir.join("hook")).unwrap();
    assert!(!in_hook.lines().any(|l| l == "4"), "{in_hook}");
    b.assert_nothing_left();
    let out = with(&b, &format!("run --preserve-fds=900 {}", b.id));
    let message = String::from_utf8_lossy(&out.stderr);
    assert!(message.contains("is not open"), "{message}");
    b.assert_nothing_left();
    let b = sleeping(|_| ());
    files(&b);
    let out = with(
        &b,
        &format!(
            "exec --preserve-fds 1 {} sh -c 'cat <&3; test -e /proc/self/fd/4 || echo only'",
            b.id
        ),
    );
    assert_eq!(text(&out), "three\nonly\n");
    let out = b.oci(&["exec", "--preserve-fds", "many", &b.id, "true"]);
    assert_eq!(out.status.code(), Some(2), "{out:?}");
    end(&b);
}

#[test]
fn exec_into_a_paused_container_waits_for_its_resumption() {
    let b = sleeping(|_| ());
    assert!(b.oci(&["pause", &b.id]).status.success());
    let mut command = b.command(&["exec", "--ignore-paused", &b.id, "echo", "thawed"]);
    let mut exec = command.stdout(Stdio::piped()).spawn().unwrap();
    // Longer than it would wait for one that is not paused.
    std::thread::sleep(Duration::from_millis(5500));
    assert_eq!(exec.try_wait().unwrap(), None);
    assert!(b.oci(&["resume", &b.id]).status.success());
    assert_eq!(text(&exec.wait_with_output().unwrap()), "thawed\n");
    end(&b);
}
