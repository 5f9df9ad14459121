//! `berth oci`: the runtime behind the OCI command line, seen from inside and from outside.

use std::fs;
use std::os::unix::fs::symlink;
use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use serde_json::{Value, json};

use crate::bundle::{Bundle, text};
use crate::test;

pub(crate) fn tests() -> Vec<Trial> {
    vec![
        test("oci::what was asked is what is inside", inside),
        test("oci::create, start, state, kill, delete", life),
        test("oci::exit codes are passed on", exit_codes),
        test("oci::a program that is not there", missing_program),
        test("oci::real-time budget and SCHED_FIFO", fifo),
        test("oci::real-time budget beyond the node's", budget_refused),
        test("oci::priority out of range", priority_refused),
        test("oci::RLIMIT_RTPRIO that cannot be raised", rtprio_refused),
        test(
            "oci::an image whose /dev, /proc or /sys is a symbolic link",
            symlinked,
        ),
        test("oci::no descriptor leaks in", descriptors),
        test("oci::device rules are in force", devices),
        test("oci::a hook that fails stops the launch", hook_fails),
        test("oci::fields that are refused are refused by name", refused_fields),
        test("oci::bad bundles are refused and change nothing", bad_bundles),
        test("oci::features names what there is", features),
    ]
}

fn inside() -> Result<()> {
    let script = "hostname; grep -E 'NoNewPrivs|Seccomp:|CapEff|Cpus_allowed_list' /proc/self/status; cat /proc/self/cgroup; \
                  touch /x 2>&1; echo $?; cat /proc/kcore | wc -c 2>/dev/null; ls /proc/self/fd; id -u; ps 2>/dev/null; echo $$; \
                  touch /proc/sys/kernel/hostname 2>&1; grep -c . /proc/self/mounts; ls /sys/class/net";
    let output = Bundle::sh("inside", script)?.run()?;
    let text = text(&output);
    for expected in [
        "edge\n",
        "NoNewPrivs:\t1",
        "Seccomp:\t2",
        "CapEff:\t0000000000000420",
        "Cpus_allowed_list:\t1\n",
        "Read-only",
    ] {
        ensure!(text.contains(expected), "{expected:?} is not in:\n{text}");
    }
    let pid_one = text.lines().any(|line| line == "1");
    ensure!(pid_one, "the shell is not pid 1:\n{text}");
    ensure!(
        !text.contains("eth"),
        "the host's interfaces are visible:\n{text}"
    );
    Ok(())
}

fn life() -> Result<()> {
    let bundle = Bundle::sh("life", "trap 'exit 3' TERM; while :; do sleep 0.1; done")?;
    let dir = bundle.path("").display().to_string();
    let id = bundle.id.clone();
    let state = |expected: &str| -> Result<Value> {
        let output = bundle.oci(&["state", &id])?;
        let state: Value = serde_json::from_slice(&output.stdout).with_context(|| text(&output))?;
        ensure!(
            state["status"] == expected,
            "status is {} instead of {expected}",
            state["status"]
        );
        Ok(state)
    };
    // The container keeps its output: no pipe that would wait for it.
    let mut create = bundle.command(&[], &["create", "--bundle", &dir, &id])?;
    let created = create.stdout(Stdio::null()).stderr(Stdio::inherit()).status()?;
    ensure!(created.success(), "create: {created}");
    let created = state("created")?;
    let pid = created["pid"].as_i64().context("no pid")?;
    let again = bundle.oci(&["create", "--bundle", &dir, &id])?;
    ensure!(!again.status.success(), "the id was given twice");
    ensure!(
        !bundle.oci(&["delete", &id])?.status.success(),
        "a created container was deleted without --force"
    );
    ensure!(bundle.oci(&["start", &id])?.status.success(), "start");
    state("running")?;
    ensure!(!bundle.oci(&["start", &id])?.status.success(), "started twice");
    ensure!(
        fs::metadata(format!("/proc/{pid}")).is_ok(),
        "pid {pid} is not there"
    );
    // busybox needs a moment to set its trap
    for _ in 0..100 {
        if fs::read_to_string(format!("/proc/{pid}/status"))?.contains("SigCgt:\t0000000000004") {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    ensure!(bundle.oci(&["kill", &id, "TERM"])?.status.success(), "kill");
    for _ in 0..500 {
        let now: Value = serde_json::from_slice(&bundle.oci(&["state", &id])?.stdout)?;
        if now["status"] == "stopped" {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    state("stopped")?;
    ensure!(
        !bundle.oci(&["kill", &id, "TERM"])?.status.success(),
        "a stopped container was killed"
    );
    ensure!(bundle.oci(&["delete", &id])?.status.success(), "delete");
    ensure!(
        !bundle.oci(&["state", &id])?.status.success(),
        "a deleted container has a state"
    );
    Ok(())
}

fn exit_codes() -> Result<()> {
    for code in [0, 1, 42] {
        let output = Bundle::sh("exit", &format!("exit {code}"))?.run()?;
        ensure!(
            output.status.code() == Some(code),
            "exit {code}: {}\n{}",
            output.status,
            text(&output)
        );
    }
    Ok(())
}

fn missing_program() -> Result<()> {
    let mut bundle = Bundle::sh("missing", "true")?;
    bundle.config["process"]["args"] = json!(["/bin/no-such-program"]);
    let output = bundle.run()?;
    ensure!(
        !output.status.success() && text(&output).contains("/bin/no-such-program"),
        "{}",
        text(&output)
    );
    Ok(())
}

fn with_scheduler(name: &str, priority: i64, runtime: i64) -> Result<Bundle> {
    let mut bundle = Bundle::sh(
        name,
        "taskset -p $$; chrt -p $$; cut -d' ' -f40,41 /proc/self/stat",
    )?;
    bundle.config["process"]["scheduler"] = json!({"policy": "SCHED_FIFO", "priority": priority});
    let cpu = &mut bundle.config["linux"]["resources"]["cpu"];
    cpu["realtimeRuntime"] = runtime.into();
    cpu["realtimePeriod"] = 1_000_000.into();
    Ok(bundle)
}

fn fifo() -> Result<()> {
    let output = with_scheduler("fifo", 33, 20_000)?.run()?;
    let text = text(&output);
    // Fields 40 and 41 of /proc/PID/stat: rt_priority and policy (1 is SCHED_FIFO).
    ensure!(output.status.success() && text.contains("33 1"), "{text}");
    Ok(())
}

fn budget_refused() -> Result<()> {
    let output = with_scheduler("budget", 33, 990_000)?.run()?;
    let text = text(&output);
    ensure!(!output.status.success() && text.contains("rt_runtime"), "{text}");
    Ok(())
}

fn priority_refused() -> Result<()> {
    for priority in [0, 100, 1000] {
        let output = with_scheduler("priority", priority, 20_000)?.run()?;
        let text = text(&output);
        ensure!(
            !output.status.success() && text.contains("priority") && text.contains("99"),
            "{priority}: {text}"
        );
    }
    Ok(())
}

fn rtprio_refused() -> Result<()> {
    let mut bundle = Bundle::sh("rtprio", "echo RAN")?;
    bundle.config["process"]["rlimits"] = json!([{"type": "RLIMIT_RTPRIO", "hard": 50, "soft": 50}]);
    let output = bundle.run()?;
    let text = text(&output);
    // With CAP_SYS_RESOURCE the limit can be raised; without it the refusal names it.
    if output.status.success() {
        ensure!(text.contains("RAN"), "{text}");
    } else {
        ensure!(text.contains("RLIMIT_RTPRIO") && !text.contains("RAN"), "{text}");
    }
    Ok(())
}

fn symlinked() -> Result<()> {
    for dir in ["dev", "proc", "sys"] {
        let bundle = Bundle::sh("symlink", "echo RAN")?;
        let canary = bundle.path("canary");
        fs::create_dir(&canary)?;
        fs::remove_dir(bundle.rootfs().join(dir))?;
        symlink(&canary, bundle.rootfs().join(dir))?;
        let output = bundle.run()?;
        let text = text(&output);
        ensure!(
            !output.status.success() && !text.contains("RAN"),
            "/{dir} is a link and it ran: {text}"
        );
        ensure!(
            text.contains(&format!("/{dir}")) || text.contains(dir),
            "/{dir} is not named: {text}"
        );
        ensure!(
            fs::read_dir(&canary)?.next().is_none(),
            "/{dir}: the host's folder behind the link was written to"
        );
    }
    Ok(())
}

fn descriptors() -> Result<()> {
    let bundle = Bundle::sh(
        "fds",
        "for f in /proc/$$/fd/*; do readlink $f; done; readlink /proc/$$/cwd",
    )?;
    let secret = bundle.path("secret");
    fs::write(&secret, "x")?;
    let dir = bundle.path("").display().to_string();
    let id = bundle.id.clone();
    // A descriptor without close-on-exec in the caller: 9 is inherited by berth itself.
    let berth = bundle.command(&[], &["run", "--bundle", &dir, &id])?;
    let words: Vec<String> = std::iter::once(berth.get_program())
        .chain(berth.get_args())
        .map(|w| w.to_string_lossy().into_owned())
        .collect();
    let script = format!("exec 9<{} && exec {}", secret.display(), words.join(" "));
    let output = std::process::Command::new("/bin/sh")
        .args(["-c", &script])
        .stdin(Stdio::null())
        .output()?;
    let text = text(&output);
    ensure!(output.status.success() && !text.contains("secret"), "{text}");
    Ok(())
}

fn devices() -> Result<()> {
    let script = "cat /dev/null && echo NULL-OK; dd if=/dev/loop0 of=/dev/null bs=1 count=1 2>&1; echo x >/dev/full 2>&1; ls /dev";
    let mut bundle = Bundle::sh("devices", script)?;
    bundle.config["linux"]["devices"] = json!([{"path": "/dev/loop0", "type": "b", "major": 7, "minor": 0, "fileMode": 438, "uid": 0, "gid": 0}]);
    let output = bundle.run()?;
    let text = text(&output);
    ensure!(text.contains("NULL-OK"), "{text}");
    // The node is there and root inside may open it by its mode: the device rules alone deny it.
    ensure!(
        text.contains("loop0") && text.contains("Operation not permitted"),
        "{text}"
    );
    Ok(())
}

fn hook_fails() -> Result<()> {
    for kind in ["createRuntime", "createContainer", "startContainer"] {
        let mut bundle = Bundle::sh("hook", "echo RAN")?;
        bundle.config["hooks"][kind] = json!([{"path": "/bin/false", "args": ["false"]}]);
        let output = bundle.run()?;
        let text = text(&output);
        ensure!(
            !output.status.success() && !text.contains("RAN"),
            "{kind}: {text}"
        );
    }
    Ok(())
}

fn refused_fields() -> Result<()> {
    let cases: [(&str, Value, &str); 5] = [
        ("/linux/intelRdt", json!({"closID": "x"}), "intelRdt"),
        // There is no time namespace that they could be of.
        (
            "/linux/timeOffsets",
            json!({"monotonic": {"secs": 1, "nanosecs": 0}}),
            "timeOffsets",
        ),
        (
            "/linux/personality",
            json!({"domain": "LINUX", "flags": ["ADDR_NO_RANDOMIZE"]}),
            "personality",
        ),
        ("/vm", json!({"kernel": {"path": "/x"}}), "vm"),
        ("/windows", json!({"layerFolders": ["x"]}), "windows"),
    ];
    for (pointer, value, name) in cases {
        let mut bundle = Bundle::sh("refused", "echo RAN")?;
        let (parent, field) = pointer.rsplit_once('/').context("pointer")?;
        bundle.config.pointer_mut(parent).context("parent")?[field] = value;
        let output = bundle.run()?;
        let text = text(&output);
        ensure!(
            !output.status.success() && text.contains(name) && !text.contains("RAN"),
            "{pointer}: {text}"
        );
    }
    Ok(())
}

fn bad_bundles() -> Result<()> {
    let bundle = Bundle::sh("bad", "echo RAN")?;
    let dir = bundle.path("").display().to_string();
    for (content, expected) in [
        ("", "config.json"),
        ("{", "config.json"),
        ("[]", "config.json"),
        (
            r#"{"ociVersion": "9.0.0", "root": {"path": "rootfs"}, "process": {"args": ["/bin/true"], "cwd": "/", "user": {"uid": 0, "gid": 0}}}"#,
            "ociVersion",
        ),
    ] {
        let mut command = bundle.command(&[], &["run", "--bundle", &dir, &bundle.id])?;
        fs::write(bundle.path("config.json"), content)?;
        let output = command.output()?;
        ensure!(
            !output.status.success() && text(&output).contains(expected),
            "{content:?}: {}",
            text(&output)
        );
        ensure!(
            !bundle.path("state").join(&bundle.id).exists(),
            "{content:?} left a state"
        );
    }
    for id in ["../x", "a/b", "", "."] {
        let output = bundle.oci(&["run", "--bundle", &dir, id])?;
        ensure!(
            !output.status.success() && !text(&output).contains("RAN"),
            "id {id:?}: {}",
            text(&output)
        );
    }
    Ok(())
}

fn features() -> Result<()> {
    let output = Bundle::sh("features", "true")?.oci(&["features"])?;
    let features: Value = serde_json::from_slice(&output.stdout).with_context(|| text(&output))?;
    ensure!(
        features["linux"]["namespaces"]
            .as_array()
            .is_some_and(|n| n.len() >= 6),
        "{features}"
    );
    ensure!(features["ociVersionMax"].is_string(), "{features}");
    Ok(())
}
