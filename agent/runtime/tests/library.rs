//! The library on the real kernel, as root. No test harness: it would start threads, and this crate's callers have
//! one. Each case runs in this process, one after the other; `CASE` as first argument runs those whose name has it.
#![allow(clippy::unwrap_used)] // helpers of tests

mod common;
mod made;

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::os::fd::{AsFd, AsRawFd};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio as ProcessStdio};
use std::time::{Duration, Instant};

use berth_runtime::proof::Stage;
use berth_runtime::state::Status;
use berth_runtime::{
    Container, Context, CreateCause, Device, ExecRequest, Extensions, Interface, Network, Plan, StartArgs,
    StartCause,
};
use common::Bundle;
use made::{Made, hierarchy, make, pipe, plan, stdio};
use serde_json::json;

fn layers_are_stacked_and_only_the_upper_is_written() {
    let b = Bundle::new("cat /a /b; echo new > /b; cat /b");
    let layer = |name: &str| {
        let dir = b.dir.join(name);
        fs::create_dir(&dir).unwrap();
        dir
    };
    let (top, upper, work) = (layer("top"), layer("upper"), layer("work"));
    fs::write(b.rootfs().join("a"), "from a\n").unwrap();
    fs::write(b.rootfs().join("b"), "hidden\n").unwrap();
    fs::write(top.join("b"), "from b\n").unwrap();
    let mut writable = Bundle::new("");
    writable.config = b.config.clone();
    writable.set("/root", json!({"path": "rootfs", "readonly": false}));
    let lower = vec![top.clone(), b.rootfs()];
    let extensions = Extensions {
        lower: lower.clone(),
        upper: Some(upper.clone()),
        work: Some(work),
        ..Extensions::default()
    };
    let mut made = make(&writable, &extensions);
    made.container.start(None).unwrap();
    assert_eq!(made.finish(&writable), "from a\nfrom b\nnew\n");
    assert_eq!(fs::read_to_string(upper.join("b")).unwrap(), "new\n");
    assert_eq!(fs::read_to_string(top.join("b")).unwrap(), "from b\n");
    // Without an upper layer nothing can be written; one layer alone is enough.
    for lower in [lower, vec![b.rootfs()]] {
        let mut made = make(
            &b,
            &Extensions {
                lower,
                ..Extensions::default()
            },
        );
        let proof = made.container.start(None).unwrap();
        assert!(
            proof.facts.iter().any(|f| f.promised.contains("ro") && f.holds),
            "{proof:?}"
        );
        assert!(made.finish(&b).contains("Read-only file system"));
    }
}

fn a_link_put_in_the_place_of_a_mounts_source_is_refused() {
    let mut b = Bundle::new("cat /tmp/file");
    let (seen, link) = (b.dir.join("seen"), b.dir.join("link"));
    fs::create_dir(&seen).unwrap();
    fs::write(seen.join("file"), "content\n").unwrap();
    std::os::unix::fs::symlink(&seen, &link).unwrap();
    for (source, plain_sources) in [(&link, false), (&seen, true), (&link, true)] {
        let bind = json!([{"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs"},
            {"destination": "/tmp", "type": "bind", "source": source, "options": ["rbind", "ro"]}]);
        b.set("/mounts", bind);
        let extensions = Extensions {
            plain_sources,
            ..Extensions::default()
        };
        if source == &link && plain_sources {
            let (_, write) = pipe();
            let error = plan(&b, &extensions).create(stdio(write)).unwrap_err();
            let CreateCause::Inside(failure) = &error.cause else {
                panic!("{error}")
            };
            assert_eq!(failure.errno, nix::errno::Errno::ELOOP, "{error}");
            b.assert_nothing_left();
        } else {
            let mut made = make(&b, &extensions);
            made.container.start(None).unwrap();
            assert_eq!(made.finish(&b), "content\n");
        }
    }
}

fn an_armed_container_takes_its_arguments_at_start() {
    let b = Bundle::new("echo never");
    let mut made = make(&b, &Extensions::default());
    assert_eq!(made.container.status(), Status::Created);
    let proof = made.container.prove(Stage::Armed).unwrap();
    assert!(proof.holds(), "{:?}", proof.failures().collect::<Vec<_>>());
    let args = StartArgs {
        args: ["/bin/sh", "-c", "echo $SERIAL $GREETING"]
            .map(str::to_owned)
            .to_vec(),
        env: vec![
            ("SERIAL".into(), "4711".into()),
            ("GREETING".into(), "bye".into()),
        ],
    };
    let proof = made.container.start(Some(&args)).unwrap();
    assert!(proof.holds() && proof.stage == Stage::ExecStop && proof.facts.len() > 10);
    assert!(made.container.timing().iter().any(|(step, _)| step == "proof"));
    assert_eq!(made.finish(&b), "4711 bye\n");
}

fn what_changed_behind_our_back_fails_the_start() {
    let mut b = Bundle::new("echo never");
    b.set("/process/oomScoreAdj", json!(100));
    let mut made = make(&b, &Extensions::default());
    fs::write(format!("/proc/{}/oom_score_adj", made.container.pid()), "500").unwrap();
    let error = made.container.start(None).unwrap_err();
    let proof = error.proof().unwrap_or_else(|| panic!("{error}"));
    let failed: Vec<_> = proof.failures().collect();
    assert!(
        failed.len() == 1 && failed[0].promised == "100" && failed[0].actual == "500",
        "{failed:?}"
    );
    assert!(matches!(error.cause, StartCause::Unproven(_)) && error.left.is_empty());
    b.assert_nothing_left();
    let mut text = String::new();
    made.output.read_to_string(&mut text).unwrap();
    assert_eq!(text, "", "not one instruction of the program has run");
}

fn a_process_that_is_traced_already_is_refused() {
    let b = Bundle::new("echo never");
    let mut made = make(&b, &Extensions::default());
    let pid = made.container.pid().to_string();
    let Ok(mut tracer) = Command::new("strace")
        .args(["-p", &pid, "-o", "/dev/null"])
        .stderr(ProcessStdio::null())
        .spawn()
    else {
        return made.container.delete().unwrap(); // no strace here
    };
    let begin = Instant::now();
    while !fs::read_to_string(format!("/proc/{pid}/status"))
        .unwrap()
        .contains(&format!("TracerPid:\t{}", tracer.id()))
    {
        assert!(begin.elapsed() < Duration::from_secs(20));
        std::thread::sleep(Duration::from_millis(5));
    }
    let error = made.container.start(None).unwrap_err();
    tracer.kill().unwrap();
    tracer.wait().unwrap();
    assert!(matches!(error.cause, StartCause::Trace { .. }), "{error}");
    assert!(error.to_string().contains("cannot trace") && error.hint().unwrap().contains("CAP_SYS_PTRACE"));
    b.assert_nothing_left();
}

fn timer_slack_is_the_childs_and_not_the_callers() {
    let b = Bundle::new("cat /proc/self/timerslack_ns");
    let before = fs::read_to_string("/proc/self/timerslack_ns").unwrap();
    let mut made = make(
        &b,
        &Extensions {
            timer_slack_ns: Some(1234),
            ..Extensions::default()
        },
    );
    assert_eq!(fs::read_to_string("/proc/self/timerslack_ns").unwrap(), before);
    made.container.start(None).unwrap();
    assert_eq!(made.finish(&b), "1234\n");
}

fn joined_processes_have_the_containers_credentials() {
    let mut b = Bundle::new("echo up; exec sleep 1000");
    b.set("/linux/seccomp", json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["syslog"], "action": "SCMP_ACT_ERRNO"}]}));
    b.set("/process/oomScoreAdj", json!(321));
    let mut made = make(&b, &Extensions::default());
    made.container.start(None).unwrap();
    assert_eq!(made.line(), "up");
    let run = |script: &str| {
        let (mut output, write) = pipe();
        let args = ["/bin/sh", "-c", script].map(str::to_owned).to_vec();
        let request = ExecRequest {
            args,
            env: vec!["GREETING=joined".into()],
            cwd: Some("/tmp".into()),
            ..ExecRequest::default()
        };
        let exec = made.container.exec(request, stdio(write)).unwrap();
        let status = nix::sys::wait::waitpid(nix::unistd::Pid::from_raw(exec.pid), None).unwrap();
        let mut text = String::new();
        output.read_to_string(&mut text).unwrap();
        (text, status)
    };
    let (text, _) = run(
        "hostname; pwd; echo $GREETING; cat /proc/1/comm; grep -E '^(CapBnd|NoNewPrivs|Seccomp):' /proc/self/status; ls /proc/self/fd",
    );
    let wanted =
        "edge\n/tmp\njoined\nsleep\nCapBnd:\t0000000000000420\nNoNewPrivs:\t1\nSeccomp:\t2\n0\n1\n2\n3\n";
    assert_eq!(text, wanted);
    let (text, _) = run("cat /proc/self/oom_score_adj");
    assert_eq!(text, "321\n", "not the caller's");
    let (text, status) = run("cat /proc/self/cgroup; exit 5");
    assert!(
        matches!(status, nix::sys::wait::WaitStatus::Exited(_, 5)),
        "{status:?} {text}"
    );
    let (_, write) = pipe();
    let request = ExecRequest {
        args: vec!["no-such".into()],
        ..ExecRequest::default()
    };
    let error = made.container.exec(request, stdio(write)).unwrap_err();
    assert!(
        error.to_string().contains("`no-such`") && error.to_string().contains("not found in $PATH"),
        "{error}"
    );
    made.container.signal(libc::SIGKILL).unwrap();
    made.finish(&b);
}

fn a_container_cannot_hold_up_who_joins_a_process_to_it() {
    let b = Bundle::new("echo up; while :; do kill -STOP -1; done");
    let mut made = make(&b, &Extensions::default());
    made.container.start(None).unwrap();
    assert_eq!(made.line(), "up");
    let mut joined = 0;
    for _ in 0..5 {
        let (_, write) = pipe();
        let args = vec!["/bin/true".to_owned()];
        let request = ExecRequest {
            args,
            ..ExecRequest::default()
        };
        let began = Instant::now();
        let exec = match made.container.exec(request, stdio(write)) {
            Ok(exec) => exec,
            Err(error) => {
                assert!(
                    error.hint().is_some() && began.elapsed() < Duration::from_secs(20),
                    "{error}"
                );
                continue;
            }
        };
        joined += 1;
        assert!(exec.proof.holds());
        // It may be stopped by now. One that is not reaped keeps the namespace.
        let pid = nix::unistd::Pid::from_raw(exec.pid);
        nix::sys::signal::kill(pid, nix::sys::signal::SIGKILL).unwrap();
        nix::sys::wait::waitpid(pid, None).unwrap();
    }
    assert!(joined > 0, "none ever came to its program");
    made.container.signal(libc::SIGKILL).unwrap();
    made.finish(&b);
}

fn devices_come_and_go() {
    let b = Bundle::new("echo up; exec sleep 1000");
    let mut made = make(&b, &Extensions::default());
    // Before start, as into an armed container; the tun device needs no capability to be opened.
    let device = Device {
        block: false,
        major: 10,
        minor: 200,
        path: PathBuf::from("/dev/port"),
        access: "r".into(),
        mode: 0o640,
        uid: 0,
        gid: 5,
    };
    made.container.inject_device(&device).unwrap();
    let proof = made.container.start(None).unwrap();
    assert!(proof.holds());
    assert_eq!(made.line(), "up");
    let open = |made: &Made| {
        let (_output, write) = pipe();
        let args = ["/bin/sh", "-c", "exec 3</dev/port"].map(str::to_owned).to_vec();
        let exec = made
            .container
            .exec(
                ExecRequest {
                    args,
                    ..ExecRequest::default()
                },
                stdio(write),
            )
            .unwrap();
        match nix::sys::wait::waitpid(nix::unistd::Pid::from_raw(exec.pid), None).unwrap() {
            nix::sys::wait::WaitStatus::Exited(_, code) => code,
            other => panic!("{other:?}"),
        }
    };
    let node = PathBuf::from(format!("/proc/{}/root/dev/port", made.container.pid()));
    assert!(node.exists());
    assert_eq!(open(&made), 0);
    made.container.eject_device(&device).unwrap();
    assert!(!node.exists());
    assert_ne!(open(&made), 0);
    assert!(made.container.prove(Stage::Running).unwrap().holds());
    let elsewhere = Device {
        path: "/etc/port".into(),
        ..device.clone()
    };
    assert!(
        made.container
            .inject_device(&elsewhere)
            .unwrap_err()
            .to_string()
            .contains("below /dev")
    );
    assert!(
        made.container
            .inject_device(&Device {
                access: "x".into(),
                ..device
            })
            .is_err()
    );
    made.container.signal(libc::SIGKILL).unwrap();
    made.finish(&b);
}

fn interfaces_move_into_a_running_container() {
    let name = format!("bl{}", std::process::id() % 100_000);
    let peer = format!("{name}p");
    let ip = |args: &[&str]| Command::new("ip").args(args).status().is_ok_and(|s| s.success());
    let b = Bundle::new("echo up; exec sleep 1000");
    let mut made = make(&b, &Extensions::default());
    made.container.start(None).unwrap();
    assert!(ip(&["link", "add", &name, "type", "veth", "peer", "name", &peer]));
    let index: u32 = fs::read_to_string(format!("/sys/class/net/{name}/ifindex"))
        .unwrap()
        .trim()
        .parse()
        .unwrap();
    let wrong = Interface {
        name: name.clone(),
        index: Some(index + 1000),
        rename: None,
        ..Interface::default()
    };
    assert!(
        made.container
            .move_interface_in(&wrong)
            .unwrap_err()
            .to_string()
            .contains("has index")
    );
    let right = Interface {
        name: name.clone(),
        index: Some(index),
        rename: Some("eth0".into()),
        ..Interface::default()
    };
    made.container.move_interface_in(&right).unwrap();
    assert!(!Path::new("/sys/class/net").join(&name).exists());
    let inside = made.container.interfaces_inside().unwrap();
    let names: Vec<&str> = inside.iter().map(|(n, _)| n.as_str()).collect();
    assert!(names.contains(&"lo") && names.contains(&"eth0"), "{inside:?}");
    assert!(ip(&["link", "del", &peer]));
    assert_eq!(
        made.container.interfaces_inside().unwrap().len(),
        inside.len() - 1
    );
    made.container.signal(libc::SIGKILL).unwrap();
    made.finish(&b);
}

/// The container's network namespace is the one that was given, its loopback is up, and its sysctls and interfaces go
/// there, not where the new process was before it joined; one with users of its own gets its own.
fn a_network_made_beforehand_is_joined() {
    let own = || fs::read_link("/proc/self/ns/net").unwrap();
    let host = own();
    let network = Network::make().unwrap();
    assert_eq!(own(), host, "the caller is back");
    let given = fs::read_link(format!("/proc/self/fd/{}", network.as_fd().as_raw_fd())).unwrap();
    assert_ne!(given, host);
    let mut b = Bundle::new(
        "readlink /proc/self/ns/net; cat /sys/class/net/lo/flags /proc/sys/net/ipv4/ip_default_ttl; ls /sys/class/net",
    );
    b.set("/linux/sysctl", json!({"net.ipv4.ip_default_ttl": "77"}));
    let outside = fs::read_to_string("/proc/sys/net/ipv4/ip_default_ttl").unwrap();
    let link = format!("bn{}", std::process::id() % 100_000);
    let ip = |words: &[&str]| {
        assert!(
            Command::new("ip").args(words).status().unwrap().success(),
            "{words:?}"
        )
    };
    ip(&[
        "link",
        "add",
        &link,
        "type",
        "veth",
        "peer",
        "name",
        &format!("{link}p"),
    ]);
    let extensions = Extensions {
        interfaces: vec![Interface {
            name: link.clone(),
            index: None,
            rename: Some("wan".into()),
            ..Interface::default()
        }],
        ..Extensions::default()
    };
    let mut plan = plan(&b, &extensions);
    assert!(plan.wants_network());
    plan.give_network(network);
    let (output, write) = pipe();
    let container = plan.create(stdio(write)).unwrap();
    let mut made = Made { container, output };
    assert!(!Path::new("/sys/class/net/wan").exists(), "it is not outside");
    assert!(made.container.start(None).unwrap().holds());
    let expected = format!("{}\n0x9\n77\nlo\nwan\n", given.display());
    assert_eq!(made.finish(&b), expected);
    assert_eq!(
        fs::read_to_string("/proc/sys/net/ipv4/ip_default_ttl").unwrap(),
        outside
    );
}

fn frozen_containers_stand_still() {
    let b = Bundle::new("echo up; exec sleep 1000");
    let mut made = make(&b, &Extensions::default());
    made.container.start(None).unwrap();
    made.container.freeze().unwrap();
    assert!(made.container.cgroup().unwrap().frozen().unwrap());
    made.container.thaw().unwrap();
    assert!(!made.container.cgroup().unwrap().frozen().unwrap());
    // A frozen container can be deleted.
    made.container.freeze().unwrap();
    made.container.delete().unwrap();
    b.assert_nothing_left();
}

fn an_id_is_used_once() {
    let b = Bundle::new("true");
    let made = make(&b, &Extensions::default());
    let (_, write) = pipe();
    let error = plan(&b, &Extensions::default()).create(stdio(write)).unwrap_err();
    assert!(matches!(error.cause, CreateCause::Exists(_)), "{error}");
    assert!(
        made.container.promise().start_time.is_some(),
        "the first is untouched"
    );
    let mut made = made;
    made.container.start(None).unwrap();
    made.finish(&b);
}

fn a_container_does_not_outlive_its_keeper_where_that_is_asked() {
    let b = Bundle::new("echo up; exec sleep 1000");
    b.command(&["features"]); // writes config.json
    let mut keeper = Command::new(std::env::current_exe().unwrap())
        .args(["--keeper", b.dir.to_str().unwrap(), &b.id])
        .stdout(ProcessStdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(keeper.stdout.take().unwrap())
        .read_line(&mut line)
        .unwrap();
    let pid: i32 = line.trim().parse().unwrap();
    assert!(Path::new(&format!("/proc/{pid}")).exists());
    keeper.kill().unwrap();
    keeper.wait().unwrap();
    let begin = Instant::now();
    loop {
        let container = Container::open(&b.root(), &b.id, &hierarchy()).unwrap();
        if container.status() == Status::Stopped {
            break;
        }
        assert!(begin.elapsed() < Duration::from_secs(20), "it lives on");
        std::thread::sleep(Duration::from_millis(5));
    }
    Container::open(&b.root(), &b.id, &hierarchy())
        .unwrap()
        .delete()
        .unwrap();
    b.assert_nothing_left();
}

/// The process that is killed in the case above.
fn keeper(dir: &str, id: &str) {
    let bundle = berth_runtime::load(Path::new(dir)).unwrap();
    let (root, hierarchy) = (Path::new(dir).join("state"), hierarchy());
    let context = Context {
        state_root: &root,
        hierarchy: &hierarchy,
        cgroup_parent: "",
        detached: false,
    };
    let extensions = Extensions {
        die_with_parent: true,
        ..Extensions::default()
    };
    let plan = Plan::prepare(id, &bundle.path, &bundle.spec, &extensions, &context).unwrap();
    let (_output, write) = pipe();
    let mut container = plan.create(stdio(write)).unwrap();
    container.start(None).unwrap();
    println!("{}", container.pid());
    std::thread::sleep(Duration::from_secs(100));
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if let [flag, dir, id] = &args[..]
        && flag == "--keeper"
    {
        return keeper(dir, id);
    }
    let only = args.iter().find(|a| !a.starts_with('-'));
    macro_rules! cases {
        ($($case:ident),* $(,)?) => { [$((stringify!($case), $case as fn())),*] };
    }
    let all = cases![
        layers_are_stacked_and_only_the_upper_is_written,
        a_link_put_in_the_place_of_a_mounts_source_is_refused,
        an_armed_container_takes_its_arguments_at_start,
        what_changed_behind_our_back_fails_the_start,
        a_process_that_is_traced_already_is_refused,
        timer_slack_is_the_childs_and_not_the_callers,
        joined_processes_have_the_containers_credentials,
        a_container_cannot_hold_up_who_joins_a_process_to_it,
        devices_come_and_go,
        interfaces_move_into_a_running_container,
        a_network_made_beforehand_is_joined,
        frozen_containers_stand_still,
        an_id_is_used_once,
        a_container_does_not_outlive_its_keeper_where_that_is_asked,
    ];
    for (name, case) in all {
        if only.is_none_or(|o| name.contains(o.as_str())) {
            case();
            println!("test {name} ... ok");
        }
    }
}
