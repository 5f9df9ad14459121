//! `process`, `root`, `hostname`, `hooks` and what stands beside them.

use serde_json::{Value, json};

use crate::case::{Case, Mode, case};

const OLD: &str = "it knows no field that is younger than runtime-spec 1.0.2";
const LATER: &str = "the field is younger than its version";

pub(crate) fn cases() -> Vec<Case> {
    let mut all = vec![
        case("a document of version 1", &["ociVersion"])
            .sh("echo ran")
            .want("ran")
            .instead("ociVersion", json!("9.0.0")),
        case(
            "annotations stand in the state",
            &["annotations", "annotations.{}"],
        )
        .set("/annotations", json!({"org.example.key": "some words"}))
        .sh("echo up; exec sleep 100")
        .host("echo \"$STATE\"")
        .want("org.example.key")
        .want("some words"),
        case("names", &["hostname"])
            .set("/hostname", json!("inner"))
            .sh("hostname")
            .want("inner"),
        case("domain name", &["domainname"])
            .set("/domainname", json!("example.org"))
            .sh("cat /proc/sys/kernel/domainname")
            .want("example.org")
            .not("runc", LATER),
        case("the root", &["root", "root.path"])
            .set("/root/path", json!("other"))
            .sh("cat /etc/other")
            .want("the other root")
            .instead("root.path", json!("rootfs")),
        case("a root that is read-only", &["root.readonly"])
            .sh("touch /etc/new 2>&1; true")
            .want("Read-only file system"),
        case("what is run", &["process", "process.args"])
            .set("/process/args", json!(["/bin/echo", "these", "words"]))
            .want("these words")
            .instead("process.args", json!(["/bin/true"])),
        case("environment", &["process.env"])
            .set("/process/env", json!(["PATH=/bin", "GREETING=hello"]))
            .sh("echo $GREETING")
            .want("hello"),
        case("working folder", &["process.cwd"])
            .set("/process/cwd", json!("/tmp"))
            .sh("pwd")
            .want("/tmp")
            .instead("process.cwd", json!("/")),
        case(
            "user and group",
            &["process.user", "process.user.uid", "process.user.gid"],
        )
        .set("/process/user", json!({"uid": 7, "gid": 8}))
        .sh("echo $(id -u):$(id -g)")
        .want("7:8")
        .instead("process.user.uid", json!(0))
        .instead("process.user.gid", json!(0)),
        case("more groups", &["process.user.additionalGids"])
            .set("/process/user/additionalGids", json!([9, 10]))
            .sh("id -G")
            .want("0 9 10"),
        case("umask", &["process.user.umask"])
            .set("/process/user/umask", json!(0o27))
            .sh("umask")
            .want("0027"),
        case("no new privileges", &["process.noNewPrivileges"])
            .set("/process/noNewPrivileges", json!(true))
            .sh("cat /proc/self/status")
            .want("NoNewPrivs: 1"),
        case("the memory killer's score", &["process.oomScoreAdj"])
            .set("/process/oomScoreAdj", json!(321))
            .sh("cat /proc/self/oom_score_adj")
            .want("321"),
        case(
            "limits",
            &[
                "process.rlimits",
                "process.rlimits[].type",
                "process.rlimits[].soft",
                "process.rlimits[].hard",
            ],
        )
        .set(
            "/process/rlimits",
            json!([{"type": "RLIMIT_NOFILE", "soft": 77, "hard": 88}]),
        )
        .sh("cat /proc/self/limits")
        .want("Max open files 77 88 files")
        .instead("process.rlimits[].type", json!("RLIMIT_NPROC"))
        .instead("process.rlimits[].soft", json!(76))
        .instead("process.rlimits[].hard", json!(99)),
        case(
            "the class of its disk accesses",
            &["process.ioPriority", "process.ioPriority.class"],
        )
        .set(
            "/process/ioPriority",
            json!({"class": "IOPRIO_CLASS_IDLE", "priority": 0}),
        )
        .sh("ionice -p $$")
        .want("idle")
        .instead("process.ioPriority.class", json!("IOPRIO_CLASS_BE"))
        .no_peer(LATER),
        case(
            "the priority of its disk accesses",
            &["process.ioPriority.priority"],
        )
        .set(
            "/process/ioPriority",
            json!({"class": "IOPRIO_CLASS_BE", "priority": 7}),
        )
        .sh("ionice -p $$")
        .want("prio 7")
        .instead("process.ioPriority.priority", json!(2))
        .no_peer(LATER),
        case("a terminal", &["process.terminal"])
            .set("/process/terminal", json!(true))
            .sh("tty")
            .want("/dev/pts/0")
            .mode(Mode::Console),
        case(
            "the terminal's size",
            &[
                "process.consoleSize",
                "process.consoleSize.height",
                "process.consoleSize.width",
            ],
        )
        .set("/process/terminal", json!(true))
        .set("/process/consoleSize", json!({"height": 33, "width": 97}))
        .sh("stty size")
        .want("33 97")
        .mode(Mode::Console)
        .instead("process.consoleSize.height", json!(5))
        .instead("process.consoleSize.width", json!(5)),
        case(
            "the CPUs of a process that joins",
            &["process.execCPUAffinity", "process.execCPUAffinity.final"],
        )
        .set(
            "/process/execCPUAffinity",
            json!({"initial": "0-1", "final": "1"}),
        )
        .sh("echo up; exec sleep 100")
        .host("oci exec {id} /bin/grep Cpus_allowed_list /proc/self/status")
        .want("Cpus_allowed_list: 1")
        .lack("0-1")
        .no_peer(LATER),
        case(
            "the CPUs of a process while it joins",
            &["process.execCPUAffinity.initial"],
        )
        .set("/process/execCPUAffinity", json!({"initial": "4095"}))
        .sh("echo up; exec sleep 100")
        .host("oci exec {id} /bin/true || echo refused")
        .want("refused")
        .want("execCPUAffinity.initial")
        .no_peer(LATER),
        case("an AppArmor profile", &["process.apparmorProfile"])
            .set("/process/apparmorProfile", json!("berth-fields-none"))
            .need(
                &["/sys/kernel/security/apparmor/profiles"],
                "process.apparmorProfile",
            )
            .refused()
            .want("berth-fields-none"),
        case("an SELinux label", &["process.selinuxLabel"])
            .set("/process/selinuxLabel", json!("system_u:system_r:init_t:s0"))
            .need(&["/sys/fs/selinux/enforce"], "process.selinuxLabel")
            .sh("cat /proc/self/attr/current")
            .want("init_t"),
    ];
    all.extend(capabilities());
    all.extend(scheduler());
    all.extend(hooks());
    all
}

/// Not root: what such a process has after its exec are its ambient capabilities, within the others.
fn capabilities() -> Vec<Case> {
    let one = json!(["CAP_NET_RAW"]);
    let sets = |names: &[&str]| -> Value { names.iter().map(|n| ((*n).to_owned(), one.clone())).collect() };
    vec![
        case(
            "capabilities",
            &["process.capabilities", "process.capabilities.bounding"],
        )
        .set(
            "/process/capabilities",
            sets(&["bounding", "permitted", "effective"]),
        )
        .sh("cat /proc/self/status")
        .want("CapBnd: 0000000000002000")
        .want("CapEff: 0000000000002000"),
        case(
            "ambient capabilities",
            &[
                "process.capabilities.ambient",
                "process.capabilities.inheritable",
                "process.capabilities.permitted",
            ],
        )
        .set("/process/user", json!({"uid": 7, "gid": 7}))
        .set(
            "/process/capabilities",
            sets(&["bounding", "permitted", "effective", "inheritable", "ambient"]),
        )
        .sh("cat /proc/self/status")
        .want("CapInh: 0000000000002000")
        .want("CapPrm: 0000000000002000")
        .want("CapEff: 0000000000002000")
        .want("CapAmb: 0000000000002000"),
        case(
            "an effective capability that is not permitted",
            &["process.capabilities.effective"],
        )
        .set(
            "/process/capabilities",
            json!({"bounding": ["CAP_KILL"], "permitted": ["CAP_KILL"], "effective": ["CAP_NET_RAW"]}),
        )
        .refused()
        .want("effective")
        .no_peer("it starts with the capabilities that fit"),
    ]
}

fn scheduler() -> Vec<Case> {
    let budget = |case: Case| {
        case.set(
            "/linux/resources/cpu",
            json!({"realtimeRuntime": 10_000, "realtimePeriod": 1_000_000}),
        )
        .no_peer(OLD)
    };
    // Fields 40 and 41 of proc_pid_stat(5): real-time priority and policy; field 19: nice.
    let own = "cat /proc/$$/stat | cut -d' ' -f19,40,41";
    let mut all =
        vec![
        budget(
            case(
                "a real-time policy",
                &["process.scheduler", "process.scheduler.policy", "process.scheduler.priority"],
            )
            .set("/process/scheduler", json!({"policy": "SCHED_FIFO", "priority": 33}))
            .sh(own)
            .want("33 1")
            .instead("process.scheduler.policy", json!("SCHED_RR"))
            .instead("process.scheduler.priority", json!(34)),
        ),
        budget(
            case("a policy that is not inherited", &["process.scheduler.flags"])
                .set(
                    "/process/scheduler",
                    json!({"policy": "SCHED_FIFO", "priority": 33, "flags": ["SCHED_FLAG_RESET_ON_FORK"]}),
                )
                .sh("cat /proc/self/stat | cut -d' ' -f40,41")
                .want("0 0"),
        ),
        case("nice", &["process.scheduler.nice"])
            .set("/process/scheduler", json!({"policy": "SCHED_BATCH", "nice": 5}))
            .sh(own)
            .want("5 0 3")
            .no_peer(OLD),
    ];
    // Given on the host: a process under this policy cannot fork.
    let deadline = json!({"policy": "SCHED_DEADLINE", "runtime": 1_000_000, "deadline": 5_000_000, "period": 10_000_000});
    all.push(
        case(
            "a deadline",
            &[
                "process.scheduler.runtime",
                "process.scheduler.deadline",
                "process.scheduler.period",
            ],
        )
        .set("/process/scheduler", deadline)
        .set("/process/args", json!(["/bin/sleep", "100"]))
        .host("chrt -p $PID")
        .want("1000000/5000000/10000000")
        .instead("process.scheduler.deadline", json!(6_000_000))
        .instead("process.scheduler.period", json!(20_000_000))
        .instead("process.scheduler.runtime", json!(2_000_000))
        .no_peer(OLD),
    );
    all
}

/// Six kinds, each with its program, words, environment and time limit.
fn hooks() -> Vec<Case> {
    const KINDS: [(&str, [&str; 5]); 6] = [
        (
            "prestart",
            [
                "hooks.prestart",
                "hooks.prestart[].path",
                "hooks.prestart[].args",
                "hooks.prestart[].env",
                "hooks.prestart[].timeout",
            ],
        ),
        (
            "createRuntime",
            [
                "hooks.createRuntime",
                "hooks.createRuntime[].path",
                "hooks.createRuntime[].args",
                "hooks.createRuntime[].env",
                "hooks.createRuntime[].timeout",
            ],
        ),
        (
            "createContainer",
            [
                "hooks.createContainer",
                "hooks.createContainer[].path",
                "hooks.createContainer[].args",
                "hooks.createContainer[].env",
                "hooks.createContainer[].timeout",
            ],
        ),
        (
            "startContainer",
            [
                "hooks.startContainer",
                "hooks.startContainer[].path",
                "hooks.startContainer[].args",
                "hooks.startContainer[].env",
                "hooks.startContainer[].timeout",
            ],
        ),
        (
            "poststart",
            [
                "hooks.poststart",
                "hooks.poststart[].path",
                "hooks.poststart[].args",
                "hooks.poststart[].env",
                "hooks.poststart[].timeout",
            ],
        ),
        (
            "poststop",
            [
                "hooks.poststop",
                "hooks.poststop[].path",
                "hooks.poststop[].args",
                "hooks.poststop[].env",
                "hooks.poststop[].timeout",
            ],
        ),
    ];
    let mut all = Vec::new();
    for (kind, [list, path, args, env, timeout]) in KINDS {
        // Inside, the log is mounted; the shell is at the same path.
        let log = if kind == "startContainer" {
            "/log/said"
        } else {
            "{dir}/log/said"
        };
        let hook = |script: String, seconds: u32| json!([{"path": "/bin/sh", "args": ["sh", "-c", script], "env": ["PATH=/bin:/usr/bin", "WORD=hello"], "timeout": seconds}]);
        let names: &[&str] = if kind == "prestart" { &["hooks"] } else { &[] };
        let mut fields = vec![list, path, args, env];
        fields.extend_from_slice(names);
        let said = case("a hook", &fields)
            .set(
                "/hooks",
                json!({kind: hook(format!("cat > /dev/null; echo {kind} $WORD >> {log}"), 9)}),
            )
            .sh("sleep 0.1")
            .after("cat {dir}/log/said")
            .want(&format!("{kind} hello"))
            .instead(path, json!("/bin/none"));
        let mut late = case("a hook that is late", &[timeout])
            .set(
                "/hooks",
                json!({kind: hook(format!("cat > /dev/null; sleep 1.5; echo {kind} late >> {log}"), 1)}),
            )
            .sh("sleep 0.1")
            .after("echo over; cat {dir}/log/said 2>&1")
            .want("over")
            .lack(&format!("{kind} late"));
        // What a late hook does to the run differs by kind; that it was ended does not.
        late.refused = kind != "poststop";
        all.push(said);
        all.push(late);
    }
    all
}
