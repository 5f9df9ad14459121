//! The OCI command line on the real kernel, as root: a container's life, its hooks, refusals, and what stays behind.
#![allow(clippy::unwrap_used)] // helpers of tests

mod common;

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use common::Bundle;
use serde_json::json;

#[test]
fn exit_statuses_are_passed_on() {
    assert_eq!(Bundle::new("exit 42").run().status.code(), Some(42));
    // The first process of a pid namespace ignores signals it has no handler for; SIGKILL from outside it does not.
    let b = Bundle::new("kill -9 $$; sleep 0.1; exit 3");
    assert_eq!(b.run().status.code(), Some(3));
}

#[test]
fn the_state_machine() {
    let b = Bundle::new("echo started; exec sleep 1000");
    let (ok, err) = b.create();
    assert!(ok, "{err}");
    let state = b.state();
    assert_eq!(
        (state["status"].as_str(), state["id"].as_str()),
        (Some("created"), Some(b.id.as_str()))
    );
    let pid = state["pid"].as_i64().unwrap();
    assert!(Path::new(&format!("/proc/{pid}")).exists());
    assert_eq!(
        fs::read_to_string(b.dir.join("out")).unwrap(),
        "",
        "nothing runs before start"
    );
    let again = b.create();
    assert!(!again.0 && again.1.contains("exists already"), "{again:?}");
    let out = b.oci(&["delete", &b.id]);
    assert!(
        !out.status.success() && String::from_utf8_lossy(&out.stderr).contains("is created"),
        "{out:?}"
    );
    let out = b.oci(&["start", &b.id]);
    assert!(out.status.success(), "{out:?}");
    assert_eq!(b.state()["status"], "running");
    let out = b.oci(&["start", &b.id]);
    assert!(
        String::from_utf8_lossy(&out.stderr).contains("cannot be started: it is running"),
        "{out:?}"
    );
    assert!(!b.oci(&["delete", &b.id]).status.success());
    assert_eq!(b.state()["status"], "running", "a refused delete changes nothing");
    let listed = b.oci(&["list", "-f", "json"]);
    assert!(
        String::from_utf8_lossy(&listed.stdout).contains(&b.id),
        "{listed:?}"
    );
    assert!(b.oci(&["kill", &b.id, "KILL"]).status.success());
    b.wait_for_status("stopped");
    let out = b.oci(&["kill", &b.id, "0"]);
    assert!(
        String::from_utf8_lossy(&out.stderr).contains("is not running"),
        "{out:?}"
    );
    assert!(b.oci(&["delete", &b.id]).status.success());
    b.assert_nothing_left();
    let out = b.oci(&["state", &b.id]);
    assert!(
        String::from_utf8_lossy(&out.stderr).contains("does not exist"),
        "{out:?}"
    );
    assert!(!b.oci(&["delete", &b.id]).status.success());
    assert!(
        b.oci(&["delete", "--force", &b.id]).status.success(),
        "force is idempotent"
    );
}

#[test]
fn force_deletes_created_and_running_containers() {
    for start in [false, true] {
        let b = Bundle::new("trap '' TERM; sleep 1000 & sleep 1000");
        assert!(b.create().0);
        if start {
            assert!(b.oci(&["start", &b.id]).status.success());
        }
        let out = b.oci(&["delete", "--force", &b.id]);
        assert!(out.status.success(), "{out:?}");
        b.assert_nothing_left();
    }
}

#[test]
fn exec_failure_of_a_detached_container_is_told_by_start() {
    let mut b = Bundle::new("");
    fs::write(b.rootfs().join("bin/bad"), "no program").unwrap();
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(b.rootfs().join("bin/bad"), fs::Permissions::from_mode(0o755)).unwrap();
    b.set("/process/args", json!(["/bin/bad"]));
    assert!(b.create().0);
    let out = b.oci(&["start", &b.id]);
    let message = String::from_utf8_lossy(&out.stderr);
    assert!(
        message.contains("exec `/bin/bad`: Exec format error"),
        "{message}"
    );
    b.assert_nothing_left();
}

#[test]
fn the_pid_file_names_the_first_process() {
    let b = Bundle::new("exec sleep 1000");
    let file = b.dir.join("pid");
    let out = b
        .command(&["create", "--pid-file", file.to_str().unwrap(), &b.id])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    assert!(out.unwrap().success());
    assert_eq!(fs::read_to_string(file).unwrap(), b.state()["pid"].to_string());
    let b = Bundle::new("true");
    let out = b.oci(&["run", "--pid-file", "/no/such/folder/pid", &b.id]);
    assert_eq!(out.status.code(), Some(1));
    b.assert_nothing_left();
}

#[test]
fn hooks_of_every_kind_run_in_order_and_see_the_state() {
    let mut b = Bundle::new("echo program >> /log/order");
    let log = b.dir.join("log");
    fs::create_dir(&log).unwrap();
    b.set(
        "/mounts/-",
        json!({"destination": "/log", "source": log, "options": ["bind"]}),
    );
    let outside = |kind: &str| {
        let script = format!(
            "read s; echo {kind} $(echo $s | grep -o '\"status\":\"[a-z]*\"') >> {}/order",
            log.display()
        );
        json!([{"path": "/bin/sh", "args": ["sh", "-c", script], "env": ["PATH=/bin:/usr/bin"], "timeout": 9}])
    };
    for kind in [
        "prestart",
        "createRuntime",
        "createContainer",
        "poststart",
        "poststop",
    ] {
        b.set("/hooks", b.config.get("hooks").cloned().unwrap_or(json!({})));
        b.set(&format!("/hooks/{kind}"), outside(kind));
    }
    let inside = "read s; echo startContainer >> /log/order";
    b.set(
        "/hooks/startContainer",
        json!([{"path": "/bin/sh", "args": ["sh", "-c", inside]}]),
    );
    b.output();
    let order = fs::read_to_string(log.join("order")).unwrap();
    let mut lines: Vec<&str> = order.lines().collect();
    // poststart and the program run at the same time
    let program = lines.iter().position(|l| *l == "program").unwrap();
    assert!(program > 3, "{order}");
    lines.remove(program);
    let wanted = [
        "prestart \"status\":\"created\"",
        "createRuntime \"status\":\"created\"",
        "createContainer \"status\":\"created\"",
        "startContainer",
        "poststart \"status\":\"running\"",
        "poststop \"status\":\"stopped\"",
    ];
    assert_eq!(lines, wanted);
}

#[test]
fn a_hook_that_fails_or_hangs_undoes_the_container() {
    for kind in [
        "prestart",
        "createRuntime",
        "createContainer",
        "startContainer",
        "poststart",
    ] {
        let mut b = Bundle::new("sleep 1000");
        b.set(
            "/hooks",
            json!({kind: [{"path": if kind == "startContainer" { "/bin/false" } else { "/usr/bin/false" }}]}),
        );
        let message = b.refusal();
        assert!(
            message.contains(kind) && message.contains("exit status 1"),
            "{message}"
        );
    }
    let mut b = Bundle::new("true");
    b.set(
        "/hooks",
        json!({"createRuntime": [{"path": "/usr/bin/sleep", "args": ["sleep", "1000"], "timeout": 1}]}),
    );
    let begin = Instant::now();
    assert!(b.refusal().contains("did not end within 1 s"));
    assert!(begin.elapsed() < Duration::from_secs(60));
    b.set("/hooks", json!({"createRuntime": [{"path": "sleep"}]}));
    assert!(b.refusal().contains("hooks.createRuntime"));
}

#[test]
fn refusals_name_the_field() {
    let table = [
        ("/linux/intelRdt", json!({"closID": "x"}), "linux.intelRdt"),
        (
            "/linux/memoryPolicy",
            json!({"mode": "MPOL_BIND"}),
            "linux.memoryPolicy",
        ),
        (
            "/linux/timeOffsets",
            json!({"monotonic": {"secs": 1}}),
            "linux.timeOffsets",
        ),
        ("/linux/namespaces/-", json!({"type": "pid"}), "is there twice"),
        (
            "/linux/namespaces/-",
            json!({"type": "user"}),
            "linux.uidMappings",
        ),
        (
            "/linux/uidMappings",
            json!([{"containerID": 0, "hostID": 0, "size": 1}]),
            "linux.uidMappings",
        ),
        ("/process/terminal", json!(true), "/dev/pts/ptmx"),
        ("/process/apparmorProfile", json!("x"), "process.apparmorProfile"),
        ("/process/selinuxLabel", json!("a:b:c:s0"), "process.selinuxLabel"),
        ("/process/oomScoreAdj", json!(2000), "process.oomScoreAdj"),
        ("/process/cwd", json!("relative"), "process.cwd"),
        ("/process/args", json!([]), "process.args"),
        (
            "/process/ioPriority",
            json!({"class": "IOPRIO_CLASS_BE", "priority": 9}),
            "process.ioPriority",
        ),
        ("/linux/mountLabel", json!("a:b:c:s0"), "linux.mountLabel"),
        (
            "/linux/sysctl",
            json!({"vm.swappiness": "1"}),
            "linux.sysctl.vm.swappiness",
        ),
        (
            "/linux/rootfsPropagation",
            json!("upwards"),
            "linux.rootfsPropagation",
        ),
        ("/linux/cgroupsPath", json!("/../escape"), "linux.cgroupsPath"),
        (
            "/linux/resources/hugepageLimits",
            json!([{"pageSize": "3MB", "limit": 1}]),
            "hugepage",
        ),
        (
            "/linux/resources/rdma",
            json!({"mlx5_1": {"hcaHandles": 3}}),
            "rdma",
        ),
        (
            "/mounts/-",
            json!({"destination": "/x", "type": "tmpfs", "options": ["remount"]}),
            "\"remount\"",
        ),
        (
            "/mounts/-",
            json!({"destination": "/x", "type": "tmpfs", "options": ["nonsense=1"]}),
            "nonsense",
        ),
        ("/mounts/-", json!({"destination": "/x", "type": "nofs"}), "nofs"),
        (
            "/mounts/-",
            json!({"destination": "/dev", "type": "bind", "source": "/dev", "options": ["rbind"]}),
            "/dev must be a tmpfs",
        ),
        (
            "/mounts/-",
            json!({"destination": "/x", "type": "bind", "source": "/no/such", "options": ["bind"]}),
            "/no/such",
        ),
        ("/windows", json!({}), "windows"),
        ("/vm", json!({}), "vm"),
    ];
    for (pointer, value, wanted) in table {
        let mut b = Bundle::new("true");
        b.set(pointer, value);
        let message = b.refusal();
        assert!(message.contains(wanted), "{pointer}: {message}");
    }
}

#[test]
fn malformed_bundles_are_refused_with_their_place() {
    let b = Bundle::new("true");
    let mut command = b.command(&["run", &b.id]);
    fs::write(b.dir.join("config.json"), "{\n \"ociVersion\": 1\n}").unwrap();
    let message = String::from_utf8(command.output().unwrap().stderr).unwrap();
    assert!(
        message.contains("config.json") && message.contains("line 2"),
        "{message}"
    );
    for (id, wanted) in [("a/b", "not valid"), ("..", "not valid"), ("", "not valid")] {
        let out = b.oci(&["run", id]);
        assert!(String::from_utf8_lossy(&out.stderr).contains(wanted), "{out:?}");
    }
    let out = b.oci(&["run", "-b", "/no/such/bundle", &b.id]);
    assert!(
        String::from_utf8_lossy(&out.stderr).contains("/no/such/bundle"),
        "{out:?}"
    );
    assert_eq!(
        b.oci(&["create", "--systemd-cgroup", &b.id]).status.code(),
        Some(2)
    );
    b.assert_nothing_left();
}

#[test]
fn many_at_once_on_one_id_leave_a_clean_state() {
    let b = Bundle::new("exec sleep 1000");
    drop(b.command(&["list"])); // writes config.json once
    let run = |args: &[&str]| {
        let null = || std::process::Stdio::null();
        std::process::Command::new(common::program())
            .arg("--root")
            .arg(b.root())
            .args(args)
            .current_dir(&b.dir)
            .stdin(null())
            .stdout(null())
            .stderr(null())
            .status()
            .unwrap()
            .success()
    };
    let id = b.id.as_str();
    // Who comes first may always be deleted by another: it goes on until one was made.
    let any = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..4)
            .map(|_| {
                scope.spawn(|| {
                    for round in 0..200 {
                        if round >= 6 && any.load(std::sync::atomic::Ordering::Relaxed) {
                            break;
                        }
                        if run(&["create", id]) {
                            any.store(true, std::sync::atomic::Ordering::Relaxed);
                        }
                        run(&["start", id]);
                        run(&["kill", id, "KILL"]);
                        run(&["delete", id]);
                        run(&["delete", "--force", id]);
                    }
                })
            })
            .collect();
        workers.into_iter().for_each(|w| w.join().unwrap());
    });
    assert!(any.into_inner(), "none was ever made");
    run(&["delete", "--force", id]);
    b.assert_nothing_left();
    // The id is free again.
    assert!(run(&["create", id]) && run(&["delete", "--force", id]));
    b.assert_nothing_left();
}

/// A creation that a hook holds up, and its output.
fn held_up(b: &mut Bundle, seconds: &str) -> std::process::Child {
    b.set(
        "/hooks",
        json!({"createRuntime": [{"path": "/usr/bin/sleep", "args": ["sleep", seconds]}]}),
    );
    let mut create = b.command(&["create", &b.id]);
    let creator = create
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let begin = Instant::now();
    let children = format!("/proc/{0}/task/{0}/children", creator.id());
    let in_hook = || {
        let children = fs::read_to_string(&children).unwrap_or_default();
        let mut all = children.split_ascii_whitespace();
        all.any(|c| fs::read_to_string(format!("/proc/{c}/comm")).is_ok_and(|n| n.trim() == "sleep"))
    };
    while !in_hook() {
        assert!(begin.elapsed() < Duration::from_secs(20), "the hook never came");
        std::thread::sleep(Duration::from_millis(5));
    }
    creator
}

#[test]
fn who_deletes_waits_for_a_creation_that_is_under_way() {
    let mut b = Bundle::new("exec sleep 1000");
    let mut creator = held_up(&mut b, "1");
    let out = b.oci(&["delete", &b.id]);
    let message = String::from_utf8_lossy(&out.stderr);
    let wanted = format!("is being created by process {}", creator.id());
    assert!(!out.status.success() && message.contains(&wanted), "{message}");
    // It waits, and frees what was made.
    let out = b.oci(&["delete", "--force", &b.id]);
    assert!(out.status.success(), "{out:?}");
    assert!(creator.wait().unwrap().success(), "the creation was disturbed");
    b.assert_nothing_left();
}

#[test]
fn a_creation_that_a_hook_holds_up_is_named_and_ends_with_its_creator() {
    let mut b = Bundle::new("exec sleep 1000");
    let mut creator = held_up(&mut b, "1000");
    let again = b.create();
    assert!(!again.0 && again.1.contains("exists already"), "{again:?}");
    let out = b.oci(&["delete", "--force", &b.id]);
    let message = String::from_utf8_lossy(&out.stderr);
    assert!(!out.status.success(), "{message}");
    let by = format!("being created or deleted by process {}", creator.id());
    assert!(message.contains(&by) && message.contains("(sleep)"), "{message}");
    let hook = message
        .split(" (sleep)")
        .next()
        .unwrap()
        .rsplit(' ')
        .next()
        .unwrap();
    let hook = Path::new("/proc").join(hook);
    assert!(hook.join("stat").exists(), "{message}");
    creator.kill().unwrap();
    creator.wait().unwrap();
    let out = b.oci(&["delete", "--force", &b.id]);
    assert!(out.status.success(), "{out:?}");
    b.assert_nothing_left();
    let begin = Instant::now();
    while fs::read_to_string(hook.join("comm")).is_ok_and(|n| n.trim() == "sleep") {
        assert!(begin.elapsed() < Duration::from_secs(20), "the hook is left");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_start_container_hook_writes_where_nobody_reads() {
    // It leaves its input alone, and who created it has gone with its standard error.
    let mut b = Bundle::new("exec sleep 1000");
    let script = "echo words >&2; echo words >&2; echo more; exit 0";
    b.set(
        "/hooks",
        json!({"startContainer": [{"path": "/bin/sh", "args": ["sh", "-e", "-c", script]}, {"path": "/bin/true"}]}),
    );
    let mut create = b.command(&["create", &b.id]);
    let mut creator = create
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    assert!(creator.wait().unwrap().success());
    drop(creator);
    let out = b.oci(&["start", &b.id]);
    assert!(out.status.success(), "{out:?}");
    assert_eq!(b.state()["status"], "running");
    assert!(b.oci(&["delete", "--force", &b.id]).status.success());
    b.assert_nothing_left();
}

#[test]
fn errors_are_in_the_log_file_too() {
    let b = Bundle::new("true");
    let log = b.dir.join("log.json");
    let out = b.command(&["state", "none"]).output().unwrap();
    assert!(!out.status.success());
    let mut command = Command::new(common::program());
    command.args([
        "--log",
        log.to_str().unwrap(),
        "--log-format=json",
        "--root",
        "/tmp",
        "state",
        "none",
    ]);
    assert!(!command.output().unwrap().status.success());
    let line: serde_json::Value = serde_json::from_str(fs::read_to_string(&log).unwrap().trim()).unwrap();
    assert_eq!(line["level"], "error");
    assert!(line["msg"].as_str().unwrap().contains("does not exist"));
}

#[test]
fn killing_the_creator_leaves_nothing_that_delete_cannot_free() {
    // A hook holds the creation up, so that the kill strikes in the middle.
    let mut b = Bundle::new("true");
    b.set(
        "/hooks",
        json!({"createRuntime": [{"path": "/usr/bin/sleep", "args": ["sleep", "5"]}]}),
    );
    let mut creator = b
        .command(&["create", &b.id])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let begin = Instant::now();
    while b.cgroups().is_empty() {
        assert!(begin.elapsed() < Duration::from_secs(20), "the cgroup never came");
        std::thread::sleep(Duration::from_millis(5));
    }
    std::thread::sleep(Duration::from_millis(50));
    creator.kill().unwrap();
    assert_eq!(creator.wait().unwrap().signal(), Some(9));
    let out = b.oci(&["start", &b.id]);
    assert!(
        String::from_utf8_lossy(&out.stderr).contains("never wholly made"),
        "{out:?}"
    );
    let out = b.oci(&["delete", "--force", &b.id]);
    assert!(out.status.success(), "{out:?}");
    b.assert_nothing_left();
}

#[test]
fn run_passes_signals_on() {
    let b = Bundle::new("trap 'exit 9' TERM; echo up; while :; do sleep 0.05; done");
    let mut run = b.command(&["run", &b.id]).stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    std::io::BufRead::read_line(
        &mut std::io::BufReader::new(run.stdout.take().unwrap()),
        &mut line,
    )
    .unwrap();
    assert_eq!(line, "up\n");
    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(run.id() as i32),
        nix::sys::signal::Signal::SIGTERM,
    )
    .unwrap();
    assert_eq!(run.wait().unwrap().code(), Some(9));
    b.assert_nothing_left();
}

#[test]
fn features_is_the_oci_document() {
    let b = Bundle::new("true");
    let out = b.oci(&["features"]);
    let features: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap();
    assert_eq!(features["ociVersionMax"], "1.3.0");
    assert_eq!(features["linux"]["intelRdt"]["enabled"], false);
}
