//! What a process is confined by beside namespaces and filters, on the real kernel, as root: Landlock, sysctls, the
//! session keyring; and that a domain that is not really entered is noticed. No test harness: it would start threads.
#![allow(clippy::unwrap_used)] // helpers of tests

mod common;

use std::fs::File;
use std::io::{BufRead, Read};
use std::path::Path;
use std::process::Command;

use berth_rt::cgroup::Hierarchy;
use berth_runtime::landlock::{Access, Landlock, PathRule, Scope, version};
use berth_runtime::proof::{Proof, Stage};
use berth_runtime::{
    Container, Context, ExecRequest, Extensions, Plan, PlanError, StartCause, Stdio, seccomp,
};
use common::Bundle;
use serde_json::json;

fn prepare(b: &Bundle, extensions: &Extensions) -> Result<Plan, PlanError> {
    let spec = serde_json::from_value(b.config.clone()).unwrap();
    let (root, hierarchy) = (b.root(), Hierarchy::discover(Path::new("/")).unwrap());
    let context = Context {
        state_root: &root,
        hierarchy: &hierarchy,
        cgroup_parent: "",
        detached: false,
    };
    Plan::prepare(&b.id, &b.dir, &spec, extensions, &context)
}

fn make(b: &Bundle, extensions: &Extensions) -> (Container, File) {
    let (read, write) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).unwrap();
    let stdio = Stdio {
        stdin: File::open("/dev/null").unwrap().into(),
        stderr: write.try_clone().unwrap(),
        stdout: write,
    };
    (
        prepare(b, extensions).unwrap().create(stdio).unwrap(),
        read.into(),
    )
}

fn finish((mut container, mut output): (Container, File), b: &Bundle) -> String {
    container.wait().unwrap();
    container.delete().unwrap();
    b.assert_nothing_left();
    let mut text = String::new();
    output.read_to_string(&mut text).unwrap();
    text
}

fn row<'a>(proof: &'a Proof, name: &str) -> Option<(&'a str, &'a str)> {
    let fact = proof.facts.iter().find(|f| f.name == name)?;
    assert!(fact.holds, "{fact:?}");
    Some((&fact.promised, &fact.actual))
}

fn rule(path: &str, access: &[Access]) -> PathRule {
    PathRule {
        path: path.into(),
        access: access.to_vec(),
        optional: false,
    }
}

/// The program, and one folder to write in.
fn domain() -> Extensions {
    let landlock = Landlock {
        paths: vec![
            rule("/bin", &[Access::Read, Access::Execute]),
            rule("/tmp", &[Access::Read, Access::Write, Access::Make]),
            rule("/proc", &[Access::Read]),
        ],
        connect_tcp: (version() >= 4).then(|| vec![80]),
        scope: if version() >= 6 {
            vec![Scope::Signals]
        } else {
            vec![]
        },
        ..Landlock::default()
    };
    Extensions {
        landlock: Some(landlock),
        ..Extensions::default()
    }
}

fn a_domain_refuses_what_no_rule_grants() {
    let b = Bundle::new(
        "echo one > /tmp/x; cat /tmp/x; cat /etc/secret || echo no; ls / > /dev/null || echo none; \
         cat /proc/self/comm; /bin/sh -c 'cat /etc/secret || echo child'; sleep 60",
    );
    std::fs::write(b.rootfs().join("etc/secret"), "secret\n").unwrap();
    let (mut container, output) = make(&b, &domain());
    let proof = container.start(None).unwrap();
    let (promised, actual) = row(&proof, "landlock").expect("a row");
    assert_eq!(promised, actual);
    assert!(
        actual.contains("mount refused") && actual.contains("/ refused") && actual.contains("/proc readable"),
        "{actual}"
    );
    // A process that joins is in the same domain.
    let (mut read, write) = {
        let (r, w) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).unwrap();
        (File::from(r), w)
    };
    let request = ExecRequest {
        args: ["/bin/sh", "-c", "cat /etc/secret || echo joined"]
            .map(String::from)
            .to_vec(),
        ..ExecRequest::default()
    };
    let stdio = Stdio {
        stdin: File::open("/dev/null").unwrap().into(),
        stderr: File::options().write(true).open("/dev/null").unwrap().into(),
        stdout: write,
    };
    let joined = container.exec(request, stdio).unwrap();
    let mut text = String::new();
    read.read_to_string(&mut text).unwrap();
    nix::sys::wait::waitpid(nix::unistd::Pid::from_raw(joined.pid), None).unwrap();
    assert_eq!(text, "joined\n");
    let mut reader = std::io::BufReader::new(output);
    let mut text = String::new();
    while !text.ends_with("child\n") {
        assert_ne!(reader.read_line(&mut text).unwrap(), 0, "{text}");
    }
    container.kill_all().unwrap();
    finish((container, reader.into_inner()), &b);
    let said: Vec<&str> = text.lines().filter(|l| !l.contains("denied")).collect();
    assert_eq!(said, ["one", "no", "none", "cat", "child"], "{text}");
}

fn a_rule_for_a_path_that_is_not_there() {
    let b = Bundle::new("true");
    let mut extensions = domain();
    let landlock = extensions.landlock.as_mut().unwrap();
    landlock.paths.push(rule("/none", &[Access::Read]));
    let (read, write) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).unwrap();
    drop(read);
    let stdio = Stdio {
        stdin: File::open("/dev/null").unwrap().into(),
        stderr: write.try_clone().unwrap(),
        stdout: write,
    };
    let error = prepare(&b, &extensions)
        .unwrap()
        .create(stdio)
        .unwrap_err()
        .to_string();
    assert!(error.contains("landlock rule `/none`"), "{error}");
    b.assert_nothing_left();
    let landlock = extensions.landlock.as_mut().unwrap();
    landlock.paths.last_mut().unwrap().optional = true;
    let (mut container, output) = make(&b, &extensions);
    container.start(None).unwrap();
    finish((container, output), &b);
}

fn sysctls_and_keyring_are_read_back_inside() {
    let mut b = Bundle::new("cat /proc/sys/net/ipv4/ip_local_port_range /proc/sys/kernel/shmmni");
    b.set(
        "/linux/sysctl",
        json!({"net.ipv4.ip_local_port_range": "20000 20100", "kernel.shmmni": "77"}),
    );
    let (mut container, output) = make(&b, &Extensions::default());
    let proof = container.start(None).unwrap();
    assert_eq!(
        row(&proof, "sysctl.net.ipv4.ip_local_port_range"),
        Some(("20000 20100", "20000 20100"))
    );
    assert_eq!(row(&proof, "sysctl.kernel.shmmni"), Some(("77", "77")));
    let name = format!("_berth.{}", b.id);
    assert_eq!(
        row(&proof, "keyring.session"),
        Some((name.as_str(), name.as_str()))
    );
    assert_eq!(row(&proof, "landlock"), None);
    assert_eq!(finish((container, output), &b), "20000\t20100\n77\n");
}

fn what_is_in_force_of_an_lsm_is_said() {
    let b = Bundle::new("true");
    let (mut container, output) = make(&b, &Extensions::default());
    let proof = container.start(None).unwrap();
    let (promised, actual) = row(&proof, "lsm").expect("a row");
    let own = std::fs::read_to_string("/proc/self/attr/current").unwrap_or_default();
    let own = own.trim_end_matches(['\0', '\n']);
    assert_eq!(
        (promised, actual),
        ("reported", if own.is_empty() { "none in force" } else { own })
    );
    finish((container, output), &b);
}

fn core_scheduling_is_there_or_refused_by_name() {
    let b = Bundle::new("true");
    let extensions = Extensions {
        core_cookie: true,
        ..Extensions::default()
    };
    match prepare(&b, &extensions) {
        Ok(_) => {
            let (mut container, output) = make(&b, &extensions);
            let proof = container.start(None).unwrap();
            assert!(row(&proof, "sched.core").is_some());
            finish((container, output), &b);
        }
        Err(error) => {
            let (text, hint) = (error.to_string(), error.hint().unwrap());
            assert!(
                text.contains("coreScheduling") && hint.contains("onMissing"),
                "{text} {hint}"
            );
        }
    }
}

/// Who owns the memory of a process: root where it is not dumpable, else its user.
fn owner(pid: i32) -> u32 {
    std::os::unix::fs::MetadataExt::uid(&std::fs::metadata(format!("/proc/{pid}/mem")).unwrap())
}

fn a_program_that_is_not_dumpable() {
    let mut b = Bundle::new(
        "echo began; sleep 0.5; (sleep 0.4; echo forked) & cat /proc/$$/status | grep -c Threads; wait",
    );
    b.set("/process/user", json!({"uid": 1000, "gid": 1000}));
    for undumpable in [false, true] {
        let extensions = Extensions {
            undumpable,
            ..Extensions::default()
        };
        let (mut container, output) = make(&b, &extensions);
        let proof = container.start(None).unwrap();
        let pid = proof.pid;
        assert_eq!(
            row(&proof, "dumpable"),
            undumpable.then_some(("0", "0")),
            "{proof:?}"
        );
        assert_eq!(owner(pid), if undumpable { 0 } else { 1000 });
        // Later it is told by that owner.
        let running = container.prove(Stage::Running).unwrap();
        assert_eq!(
            row(&running, "dumpable"),
            undumpable.then_some(("user 0", "user 0")),
            "{running:?}"
        );
        // What joins it the same; and its own program runs whole, its registers as they were.
        let out = File::create(b.dir.join("joined")).unwrap();
        let stdio = Stdio {
            stdin: File::open("/dev/null").unwrap().into(),
            stdout: out.try_clone().unwrap().into(),
            stderr: out.into(),
        };
        let request = ExecRequest {
            args: ["/bin/sh", "-c", "echo joined $0", "whole"]
                .map(str::to_owned)
                .into(),
            ..ExecRequest::default()
        };
        let joined = container.exec(request, stdio).unwrap();
        assert_eq!(row(&joined.proof, "dumpable"), undumpable.then_some(("0", "0")));
        nix::sys::wait::waitpid(nix::unistd::Pid::from_raw(joined.pid), None).unwrap();
        assert_eq!(
            std::fs::read_to_string(b.dir.join("joined")).unwrap(),
            "joined whole\n"
        );
        assert_eq!(finish((container, output), &b), "began\n1\nforked\n");
    }
}

fn a_filter_that_keeps_a_program_dumpable_refuses_the_launch() {
    let mut b = Bundle::new("echo ran");
    b.set(
        "/linux/seccomp",
        json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
            {"names": ["prctl"], "action": "SCMP_ACT_ERRNO", "errnoRet": 13,
             "args": [{"index": 0, "value": 4, "op": "SCMP_CMP_EQ"}]}]}),
    );
    let extensions = Extensions {
        undumpable: true,
        ..Extensions::default()
    };
    let (mut container, output) = make(&b, &extensions);
    let error = container.start(None).unwrap_err();
    assert!(error.to_string().contains("PR_SET_DUMPABLE"), "{error}");
    assert!(error.hint().unwrap().contains("filter"), "{:?}", error.hint());
    drop(container);
    let mut text = String::new();
    File::read_to_string(&mut { output }, &mut text).unwrap();
    assert_eq!(text, "", "no instruction of it ran");
    b.assert_nothing_left();
}

/// In a process for which landlock_restrict_self does nothing and answers 0.
fn sabotaged() {
    let section = json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
        {"names": ["landlock_restrict_self"], "action": "SCMP_ACT_ERRNO", "errnoRet": 0}]});
    let filter = seccomp::compile(
        &serde_json::from_value(section).unwrap(),
        &seccomp::Options::default(),
    )
    .unwrap();
    seccomp::load(&filter).unwrap();
    let b = Bundle::new("echo ran");
    let (mut container, output) = make(&b, &domain());
    let error = container.start(None).unwrap_err();
    let StartCause::Unproven(proof) = &error.cause else {
        panic!("{error}")
    };
    let names: Vec<&str> = proof.failures().map(|f| f.name.as_str()).collect();
    assert_eq!(names, ["landlock"], "{error}");
    assert!(error.to_string().contains("mount allowed"), "{error}");
    drop(container);
    let mut text = String::new();
    File::read_to_string(&mut { output }, &mut text).unwrap();
    assert_eq!(text, "", "no instruction of it ran");
}

fn a_domain_that_is_not_entered_is_noticed() {
    let status = Command::new(std::env::current_exe().unwrap())
        .arg("--sabotaged")
        .status()
        .unwrap();
    assert!(status.success());
}

fn main() {
    if !nix::unistd::Uid::effective().is_root() {
        println!("confine: needs root");
        return;
    }
    let only = std::env::args().nth(1).unwrap_or_default();
    if only == "--sabotaged" {
        return sabotaged();
    }
    let cases: [(&str, fn()); 8] = [
        (
            "a_domain_refuses_what_no_rule_grants",
            a_domain_refuses_what_no_rule_grants,
        ),
        (
            "a_rule_for_a_path_that_is_not_there",
            a_rule_for_a_path_that_is_not_there,
        ),
        (
            "sysctls_and_keyring_are_read_back_inside",
            sysctls_and_keyring_are_read_back_inside,
        ),
        (
            "what_is_in_force_of_an_lsm_is_said",
            what_is_in_force_of_an_lsm_is_said,
        ),
        (
            "core_scheduling_is_there_or_refused_by_name",
            core_scheduling_is_there_or_refused_by_name,
        ),
        ("a_program_that_is_not_dumpable", a_program_that_is_not_dumpable),
        (
            "a_filter_that_keeps_a_program_dumpable_refuses_the_launch",
            a_filter_that_keeps_a_program_dumpable_refuses_the_launch,
        ),
        (
            "a_domain_that_is_not_entered_is_noticed",
            a_domain_that_is_not_entered_is_noticed,
        ),
    ];
    for (name, case) in cases.iter().filter(|(name, _)| name.contains(&only)) {
        println!("test {name} ...");
        case();
        println!("test {name} ... ok");
    }
}
