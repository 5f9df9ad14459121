//! Processes that join a container: what they get, what they prove, and what who may trace them can take. No test
//! harness: the library's callers have one thread.
#![allow(clippy::unwrap_used)] // helpers of tests

mod common;
mod made;

use std::fs;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use berth_runtime::console::{Size, set_size};
use berth_runtime::proof::{CapabilitySets, Stage};
use berth_runtime::{ExecError, ExecRequest, ExecUser, Extensions};
use common::Bundle;
use made::{Made, make, pipe, stdio};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;
use serde_json::json;

fn shell(script: &str) -> ExecRequest {
    ExecRequest {
        args: ["/bin/sh", "-c", script].map(str::to_owned).to_vec(),
        ..ExecRequest::default()
    }
}

/// Run to the end; what it wrote.
fn run(made: &Made, request: ExecRequest) -> String {
    let (mut output, write) = pipe();
    let exec = made.container.exec(request, stdio(write)).unwrap();
    assert!(exec.proof.holds() && exec.proof.stage == Stage::ExecStop);
    waitpid(Pid::from_raw(exec.pid), None).unwrap();
    let mut text = String::new();
    output.read_to_string(&mut text).unwrap();
    text
}

fn started(b: &Bundle) -> Made {
    let mut made = make(b, &Extensions::default());
    made.container.start(None).unwrap();
    assert_eq!(made.line(), "up");
    made
}

fn end(made: Made, b: &Bundle) {
    made.container.signal(libc::SIGKILL).unwrap();
    made.finish(b);
}

fn a_request_of_its_own_counts() {
    let mut b = Bundle::new("echo up; exec sleep 1000");
    b.set("/process/noNewPrivileges", json!(false));
    b.set("/linux/personality", json!({"domain": "LINUX32"}));
    let made = started(&b);
    let kill = 1 << 5;
    let request = ExecRequest {
        user: Some(ExecUser {
            uid: 7,
            gid: 8,
            groups: vec![9],
            umask: Some(0o77),
        }),
        capabilities: Some(CapabilitySets {
            inheritable: kill,
            permitted: kill,
            effective: kill,
            bounding: kill,
            ambient: kill,
        }),
        no_new_privs: true,
        cpus: Some("0".parse().unwrap()),
        ..shell(
            "id -u; id -G; umask; cat /proc/self/personality; grep -E '^(CapEff|NoNewPrivs|Cpus_allowed_list)' /proc/self/status",
        )
    };
    let text = run(&made, request);
    let wanted = "7\n8 9\n0077\n00000008\nCapEff:\t0000000000000020\nNoNewPrivs:\t1\nCpus_allowed_list:\t0\n";
    assert_eq!(text, wanted);
    // Whose filter, user and so on it has otherwise: the container's.
    assert_eq!(
        run(&made, shell("id -u; cat /proc/self/personality")),
        "0\n00000008\n"
    );
    end(made, &b);
}

fn a_whole_oci_process_replaces_the_containers_words() {
    let b = Bundle::new("echo up; exec sleep 1000");
    let made = started(&b);
    let process = serde_json::from_value(json!({
        "user": {"uid": 5, "gid": 6}, "cwd": "/tmp", "env": ["PATH=/bin", "A=b"],
        "args": ["/bin/sh", "-c", "id -u; pwd; echo $A-$GREETING; grep ^Cpus_allowed_list /proc/self/status"],
        "execCPUAffinity": {"initial": "0-1", "final": "1"},
        "scheduler": {"policy": "SCHED_BATCH"}, "noNewPrivileges": true
    }))
    .unwrap();
    let request = ExecRequest {
        process: Some(Box::new(process)),
        ..ExecRequest::default()
    };
    assert_eq!(run(&made, request), "5\n/tmp\nb-\nCpus_allowed_list:\t1\n");
    end(made, &b);
}

fn the_bundles_affinity_counts_for_who_joins() {
    let mut b = Bundle::new("echo up; exec sleep 1000");
    b.set("/process/execCPUAffinity", json!({"final": "1"}));
    let made = started(&b);
    let script = "grep ^Cpus_allowed_list /proc/self/status";
    assert_eq!(run(&made, shell(script)), "Cpus_allowed_list:\t1\n");
    assert_eq!(
        run(
            &made,
            shell("grep -c 1$ /proc/1/status >/dev/null; grep ^Cpus_allowed_list /proc/1/status")
        ),
        {
            let own = fs::read_to_string("/proc/self/status").unwrap();
            let line = own.lines().find(|l| l.starts_with("Cpus_allowed_list")).unwrap();
            format!("{line}\n")
        }
    );
    end(made, &b);
}

fn a_terminal_comes_back_and_is_one_inside() {
    let mut b = Bundle::new("echo up; exec sleep 1000");
    b.set(
        "/mounts/-",
        json!({"destination": "/dev/pts", "type": "devpts", "source": "devpts",
            "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"]}),
    );
    let made = started(&b);
    let (_output, write) = pipe();
    let request = ExecRequest {
        terminal: Some(Size {
            rows: 33,
            columns: 99,
        }),
        ..shell("tty; stty size; echo x > /dev/tty; read a; echo got $a; stty size; exit 4")
    };
    let exec = made.container.exec(request, stdio(write)).unwrap();
    let fact = exec.proof.facts.iter().find(|f| f.name == "terminal").unwrap();
    assert!(fact.holds && fact.actual.starts_with("136:"), "{fact:?}");
    let mut master = fs::File::from(exec.console.unwrap());
    let mut text = String::new();
    let mut read_until = |master: &mut fs::File, wanted: &str| {
        let end = Instant::now() + Duration::from_secs(10);
        while !text.contains(wanted) && Instant::now() < end {
            let mut buffer = [0u8; 512];
            match master.read(&mut buffer) {
                Ok(n) => text.push_str(&String::from_utf8_lossy(&buffer[..n])),
                Err(_) => break,
            }
        }
        assert!(text.contains(wanted), "{wanted:?}: {text}");
    };
    read_until(&mut master, "/dev/pts/0\r\n33 99\r\nx\r\n");
    set_size(
        master.as_fd(),
        Size {
            rows: 11,
            columns: 22,
        },
    )
    .unwrap();
    master.write_all(b"word\n").unwrap();
    read_until(&mut master, "got word\r\n11 22\r\n");
    let status = waitpid(Pid::from_raw(exec.pid), None).unwrap();
    assert!(matches!(status, WaitStatus::Exited(_, 4)), "{status:?}");
    end(made, &b);
}

fn without_a_devpts_a_terminal_is_refused() {
    let b = Bundle::new("echo up; exec sleep 1000");
    let made = started(&b);
    let (_output, write) = pipe();
    let request = ExecRequest {
        terminal: Some(Size::default()),
        ..shell("true")
    };
    let error = made.container.exec(request, stdio(write)).unwrap_err();
    assert!(error.to_string().contains("/dev/pts/ptmx"), "{error}");
    assert!(error.hint().unwrap().contains("devpts"));
    end(made, &b);
}

fn a_paused_container_runs_nothing() {
    let b = Bundle::new("echo up; exec sleep 1000");
    let made = started(&b);
    made.container.pause().unwrap();
    let (_output, write) = pipe();
    let error = made.container.exec(shell("true"), stdio(write)).unwrap_err();
    assert!(matches!(error, ExecError::Paused(_)), "{error}");
    made.container.resume().unwrap();
    assert_eq!(run(&made, shell("echo on")), "on\n");
    end(made, &b);
}

/// Look, from outside and as fast as can be, at every process of a pid namespace that is still this program: what it
/// holds is what who may trace it inside could take. One line for each.
fn watch(namespace: &str, root: u64) {
    use std::os::unix::fs::MetadataExt;
    let end = Instant::now() + Duration::from_secs(4);
    let last = || {
        let text = fs::read_to_string("/proc/loadavg").unwrap();
        text.split_whitespace().last().unwrap().parse::<i32>().unwrap()
    };
    let own = fs::read_to_string("/proc/self/comm").unwrap();
    let mut seen = std::collections::BTreeSet::new();
    while Instant::now() < end {
        let newest = last();
        for pid in newest - 3..newest + 5 {
            let link = fs::read_link(format!("/proc/{pid}/ns/pid"));
            if !link.is_ok_and(|l| l.to_str() == Some(namespace)) {
                continue;
            }
            let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
            let at = fs::metadata(format!("/proc/{pid}/root")).map(|m| m.ino());
            let mut fds: Vec<String> = fs::read_dir(format!("/proc/{pid}/fd"))
                .into_iter()
                .flatten()
                .flatten()
                .filter_map(|e| Some(fs::read_link(e.path()).ok()?.display().to_string()))
                .filter(|l| !l.starts_with("pipe:") && !l.starts_with("socket:") && l != "/dev/null")
                .collect();
            fds.sort();
            // Still the same, and not its program yet: then all of it was read of the process on its way.
            let comm = fs::read_to_string(format!("/proc/{pid}/comm"));
            if !comm.is_ok_and(|c| c == own) || !seen.insert(pid) {
                continue;
            }
            let caps = status.lines().find_map(|l| l.strip_prefix("CapPrm:\t"));
            let inside = at.is_ok_and(|ino| ino == root);
            println!("{} {inside} {}", caps.unwrap_or("none"), fds.join(","));
        }
    }
}

fn who_may_trace_gains_nothing_from_one_that_joins() {
    use std::os::unix::fs::MetadataExt;
    let mut b = Bundle::new("echo up; exec sleep 1000");
    for set in ["bounding", "effective", "permitted"] {
        b.set(&format!("/process/capabilities/{set}"), json!(["CAP_SYS_PTRACE"]));
    }
    let made = started(&b);
    let pid = made.container.pid();
    let namespace = fs::read_link(format!("/proc/{pid}/ns/pid")).unwrap();
    let root = fs::metadata(format!("/proc/{pid}/root")).unwrap().ino();
    let watcher = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--watch", namespace.to_str().unwrap(), &root.to_string()])
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let end_of_search = Instant::now() + Duration::from_secs(4);
    while Instant::now() < end_of_search {
        run(&made, shell("true"));
    }
    let seen = String::from_utf8(watcher.wait_with_output().unwrap().stdout).unwrap();
    assert!(seen.lines().count() > 0, "none was ever seen: this shows nothing");
    for line in seen.lines() {
        // One capability, the container's root, and nothing open but streams and the socket to the caller.
        assert_eq!(line, "0000000000080000 true ", "{seen}");
    }
    end(made, &b);
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if let [flag, namespace, root] = &args[..]
        && flag == "--watch"
    {
        return watch(namespace, root.parse().unwrap());
    }
    made::run(&[
        ("a_request_of_its_own_counts", a_request_of_its_own_counts),
        (
            "a_whole_oci_process_replaces_the_containers_words",
            a_whole_oci_process_replaces_the_containers_words,
        ),
        (
            "the_bundles_affinity_counts_for_who_joins",
            the_bundles_affinity_counts_for_who_joins,
        ),
        (
            "a_terminal_comes_back_and_is_one_inside",
            a_terminal_comes_back_and_is_one_inside,
        ),
        (
            "without_a_devpts_a_terminal_is_refused",
            without_a_devpts_a_terminal_is_refused,
        ),
        ("a_paused_container_runs_nothing", a_paused_container_runs_nothing),
        (
            "who_may_trace_gains_nothing_from_one_that_joins",
            who_may_trace_gains_nothing_from_one_that_joins,
        ),
    ]);
}
