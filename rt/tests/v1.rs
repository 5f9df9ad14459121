//! cgroup v1 on the real kernel: made, applied, read back, frozen, killed, removed; the real-time budget.

#![allow(clippy::unwrap_used)] // a test may end at the first surprise

mod common;

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use berth_rt::cgroup::{
    Access, ApplyError, BudgetError, Cgroup, Controller, CreateError, DeviceKind, DeviceRule, Extras,
    Hierarchy, Mode, RtBudget, Support, Wanted, prune,
};
use berth_rt::partition::{self, Isolation, PartitionError};
use berth_rt::sched::{self, Scheduler};
use common::{Own, Sleeper, on_v1, path, succeeds_in};
use oci_spec::runtime::LinuxResources;

fn resources(json: &str) -> LinuxResources {
    serde_json::from_str(json).unwrap()
}

fn own_with(hierarchy: &Hierarchy, name: &str, json: &str) -> (Own, LinuxResources) {
    let resources = resources(json);
    let own = Own::new(
        hierarchy,
        name,
        &Wanted::for_resources(Some(&resources), &Extras::default()),
    );
    (own, resources)
}

#[test]
fn resources_are_in_the_kernels_files() {
    let Some(hierarchy) = on_v1(Controller::Memory) else {
        return;
    };
    let (own, resources) = own_with(
        &hierarchy,
        "apply",
        r#"{"memory":{"limit":67108864,"swap":134217728,"reservation":33554432,"swappiness":10,"checkBeforeUpdate":true},
            "cpu":{"shares":512,"quota":50000,"period":100000,"burst":1000,"idle":0,"cpus":"0","mems":"0"},
            "pids":{"limit":17}}"#,
    );
    own.cgroup.apply(&resources, &Extras::default()).unwrap();
    for (controller, name, value) in [
        (Controller::Memory, "memory.limit_in_bytes", "67108864"),
        (Controller::Memory, "memory.memsw.limit_in_bytes", "134217728"),
        (Controller::Memory, "memory.soft_limit_in_bytes", "33554432"),
        (Controller::Memory, "memory.swappiness", "10"),
        (Controller::Cpu, "cpu.shares", "512"),
        (Controller::Cpu, "cpu.cfs_quota_us", "50000"),
        (Controller::Cpu, "cpu.cfs_burst_us", "1000"),
        (Controller::Cpuset, "cpuset.cpus", "0"),
        (Controller::Cpuset, "cpuset.mems", "0"),
        (Controller::Pids, "pids.max", "17"),
    ] {
        assert_eq!(own.read(controller, name), value, "{name}");
    }
    assert!(
        own.cgroup.dir(Controller::Devices).is_none(),
        "nobody asked for the devices controller"
    );
    // Lower, then above what the swap limit was: the order of the two writes must follow.
    for (limit, swap) in [(33_554_432, 33_554_432), (268_435_456i64, 268_435_456i64)] {
        let json = format!(r#"{{"memory":{{"limit":{limit},"swap":{swap}}}}}"#);
        own.cgroup
            .apply(&self::resources(&json), &Extras::default())
            .unwrap();
        assert_eq!(
            own.read(Controller::Memory, "memory.limit_in_bytes"),
            limit.to_string()
        );
    }
}

#[test]
fn a_cpuset_gets_its_parents_nodes_and_takes_processes() {
    let Some(hierarchy) = on_v1(Controller::Cpuset) else {
        return;
    };
    let (own, resources) = own_with(&hierarchy, "cpuset", r#"{"cpu":{"cpus":"1"}}"#);
    own.cgroup.apply(&resources, &Extras::default()).unwrap();
    let child = Sleeper::new();
    own.cgroup.attach(child.pid()).unwrap();
    assert_eq!(own.cgroup.procs().unwrap(), [child.pid()]);
    assert_eq!(sched::affinity(child.pid()).unwrap().to_string(), "1");
    let membership = std::fs::read_to_string(format!("/proc/{}/cgroup", child.pid())).unwrap();
    for (controller, path) in own.cgroup.memberships() {
        let found = membership.lines().any(|line| {
            let mut fields = line.splitn(3, ':').skip(1);
            fields.next().unwrap().split(',').any(|name| name == controller)
                && fields.next() == Some(path.as_str())
        });
        assert!(found, "{controller} {path} is not in {membership}");
    }
    let error = own
        .cgroup
        .apply(&self::resources(r#"{"cpu":{"cpus":"4000"}}"#), &Extras::default())
        .unwrap_err();
    assert!(
        error
            .to_string()
            .starts_with("linux.resources.cpu.cpus: cannot write"),
        "{error}"
    );
}

#[test]
fn a_sibling_with_other_cpus_widens_the_parent() {
    let Some(hierarchy) = on_v1(Controller::Cpuset) else {
        return;
    };
    let (first, resources) = own_with(&hierarchy, "widen", r#"{"cpu":{"cpus":"0"}}"#);
    first.cgroup.apply(&resources, &Extras::default()).unwrap();
    let parent = first
        .dir(Controller::Cpuset)
        .parent()
        .unwrap()
        .join("cpuset.cpus");
    std::fs::write(&parent, "0").unwrap();
    let wanted = Wanted::new().and(Controller::Cpuset, "the test");
    let second = Cgroup::create(&hierarchy, &format!("{}/two", first.parent()), &wanted).unwrap();
    let outcome = second.apply(&self::resources(r#"{"cpu":{"cpus":"1"}}"#), &Extras::default());
    let widened = std::fs::read_to_string(&parent).unwrap();
    second.remove().unwrap();
    outcome.unwrap();
    assert_eq!(widened.trim(), "0-1");
}

#[test]
fn freeze_thaw_kill_remove() {
    let Some(hierarchy) = on_v1(Controller::Freezer) else {
        return;
    };
    let own = Own::new(&hierarchy, "kill", &Wanted::new());
    // A shell with a child of its own: kill must end both.
    // It forks only after it has been attached, so the child is in the cgroup too.
    let mut shell = Command::new("sh")
        .args(["-c", "read go; sleep 600 & wait"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    own.cgroup.attach(shell.id() as i32).unwrap();
    shell.stdin.take().unwrap().write_all(b"go\n").unwrap();
    while own.cgroup.procs().unwrap().len() < 2 {
        std::thread::sleep(Duration::from_millis(1));
    }
    let sleeper = Sleeper::new();
    own.cgroup.attach(sleeper.pid()).unwrap();
    own.cgroup.freeze().unwrap();
    assert!(own.cgroup.frozen().unwrap());
    own.cgroup.thaw().unwrap();
    assert!(!own.cgroup.frozen().unwrap());
    assert!(own.cgroup.stats().unwrap().pids.unwrap() >= 2);
    let busy = own.cgroup.remove().unwrap_err();
    assert!(busy.hint().unwrap().contains("kill"), "{busy}");
    own.cgroup.freeze().unwrap();
    own.cgroup.kill().unwrap();
    assert!(own.cgroup.procs().unwrap().is_empty());
    shell.wait().unwrap();
    own.cgroup.remove().unwrap();
    assert!(own.cgroup.paths().iter().all(|(_, dir)| !dir.exists()));
    own.cgroup.remove().unwrap();
    prune(&hierarchy, own.parent()).unwrap();
    assert!(
        !own.cgroup
            .paths()
            .iter()
            .any(|(_, dir)| dir.parent().unwrap().exists())
    );
}

#[test]
fn kill_and_remove_reach_the_cgroups_below() {
    let Some(hierarchy) = on_v1(Controller::Freezer) else {
        return;
    };
    let own = Own::new(&hierarchy, "below", &Wanted::new());
    let below = own.dir(Controller::Freezer).join("a/b");
    std::fs::create_dir_all(&below).unwrap();
    let sleeper = Sleeper::new();
    std::fs::write(below.join("cgroup.procs"), sleeper.pid().to_string()).unwrap();
    assert!(own.cgroup.procs().unwrap().contains(&sleeper.pid()));
    own.cgroup.kill().unwrap();
    own.cgroup.remove().unwrap();
}

#[test]
fn an_empty_cgroup_goes_at_once_and_a_busy_one_keeps_its_freezer() {
    let Some(hierarchy) = on_v1(Controller::Freezer) else {
        return;
    };
    let (own, _) = own_with(&hierarchy, "empty", r#"{"pids":{"limit":17}}"#);
    let sleeper = Sleeper::new();
    own.cgroup.attach(sleeper.pid()).unwrap();
    assert!(!own.cgroup.remove_empty());
    // What is left can be killed and removed.
    own.cgroup.kill().unwrap();
    drop(sleeper);
    assert!(own.cgroup.remove_empty());
    assert!(Cgroup::open(&hierarchy, own.cgroup.path()).is_err());
    assert!(own.cgroup.remove_empty(), "one that is gone is no error");
}

#[test]
fn an_empty_leftover_is_made_anew_and_a_busy_one_is_refused() {
    let Some(hierarchy) = on_v1(Controller::Pids) else {
        return;
    };
    let (own, resources) = own_with(&hierarchy, "leftover", r#"{"pids":{"limit":3}}"#);
    own.cgroup.apply(&resources, &Extras::default()).unwrap();
    let again = Cgroup::create(&hierarchy, own.cgroup.path(), &Wanted::new()).unwrap();
    assert_eq!(own.read(Controller::Pids, "pids.max"), "max");
    let sleeper = Sleeper::new();
    again.attach(sleeper.pid()).unwrap();
    let error = Cgroup::create(&hierarchy, own.cgroup.path(), &Wanted::new()).unwrap_err();
    assert!(
        matches!(error, CreateError::InUse { .. }) && error.hint().is_some(),
        "{error}"
    );
    assert_eq!(
        again.procs().unwrap(),
        [sleeper.pid()],
        "the refusal must not touch what runs there"
    );
    let opened = Cgroup::open(&hierarchy, own.cgroup.path()).unwrap();
    assert_eq!(opened.paths(), again.paths());
}

#[test]
fn a_child_can_enter_by_itself() {
    let Some(hierarchy) = on_v1(Controller::Freezer) else {
        return;
    };
    let own = Own::new(&hierarchy, "self", &Wanted::new());
    std::thread::scope(|scope| {
        // A thread stands for the container's process of one thread: it alone moves.
        scope.spawn(|| {
            own.cgroup.attach_self().unwrap();
            let membership = std::fs::read_to_string("/proc/thread-self/cgroup").unwrap();
            assert!(membership.contains(own.cgroup.path()), "{membership}");
        });
    });
    // A thread that was joined is still in its cgroup for a moment: what frees the cgroup would kill this process.
    for (_, dir) in own.cgroup.paths() {
        while !std::fs::read_to_string(dir.join("tasks")).unwrap().is_empty() {
            std::thread::yield_now();
        }
    }
    let membership = std::fs::read_to_string("/proc/thread-self/cgroup").unwrap();
    assert!(!membership.contains(own.cgroup.path()));
}

#[test]
fn device_rules_are_enforced_and_read_back() {
    let Some(hierarchy) = on_v1(Controller::Devices) else {
        return;
    };
    let (own, resources) = own_with(
        &hierarchy,
        "devices",
        r#"{"devices":[{"allow":false,"access":"rwm"},{"allow":true,"type":"c","major":1,"minor":3,"access":"rwm"}]}"#,
    );
    own.cgroup.apply(&resources, &Extras::default()).unwrap();
    let zero = DeviceRule::device(true, DeviceKind::Char, 1, 5, Access::READ);
    assert_eq!(
        own.cgroup.device_rules().unwrap().to_string(),
        "deny a *:* rwm, allow c 1:3 rwm"
    );
    assert!(!succeeds_in(&own.cgroup, "head -c1 /dev/zero >/dev/null"));
    own.cgroup.allow_device(&zero).unwrap();
    assert_eq!(
        own.cgroup.device_rules().unwrap().to_string(),
        "deny a *:* rwm, allow c 1:3 rwm, allow c 1:5 r"
    );
    assert!(succeeds_in(&own.cgroup, "head -c1 /dev/zero >/dev/null"));
    own.cgroup.deny_device(&zero).unwrap();
    assert_eq!(
        own.cgroup.device_rules().unwrap().to_string(),
        "deny a *:* rwm, allow c 1:3 rwm"
    );
    assert!(!succeeds_in(&own.cgroup, "head -c1 /dev/zero >/dev/null"));
    // Read is taken away, write and mknod stay.
    own.cgroup
        .deny_device(&DeviceRule::device(false, DeviceKind::Char, 1, 3, Access::READ))
        .unwrap();
    assert_eq!(
        own.cgroup.device_rules().unwrap().to_string(),
        "deny a *:* rwm, allow c 1:3 wm"
    );
    let wide = r#"{"devices":[{"allow":true,"type":"c","major":1,"access":"rwm"},{"allow":false,"type":"c","major":1,"minor":5,"access":"r"}]}"#;
    let error = own
        .cgroup
        .apply(&self::resources(wide), &Extras::default())
        .unwrap_err();
    assert!(
        error
            .to_string()
            .contains("`deny c 1:5 r` inside `allow c 1:* rwm`"),
        "{error}"
    );
    assert!(error.hint().unwrap().contains("one by one"));
}

#[test]
fn device_rules_stand_in_the_list_as_they_were_asked_for() {
    let Some(hierarchy) = on_v1(Controller::Devices) else {
        return;
    };
    let asked = r#"{"devices":[{"allow":false,"access":"rwm"},{"allow":true,"type":"c","major":10,"minor":229,"access":"rwm"},
        {"allow":true,"type":"c","major":1,"minor":7,"access":"rwm"},{"allow":false,"type":"c","major":1,"minor":7,"access":"w"},
        {"allow":true,"type":"c","access":"m"}]}"#;
    let (own, resources) = own_with(&hierarchy, "asked", asked);
    own.cgroup.apply(&resources, &Extras::default()).unwrap();
    let dir = own.cgroup.dir(Controller::Devices).unwrap();
    let list = std::fs::read_to_string(dir.join("devices.list")).unwrap();
    // What was taken away again does not come back.
    assert_eq!(list, "c 10:229 rwm\nc 1:7 r\nc *:* m\n");
    let rules = own.cgroup.device_rules().unwrap();
    assert_eq!(
        rules.to_string(),
        "deny a *:* rwm, allow c 10:229 rw, allow c 1:7 r, allow c *:* m"
    );
    let open = DeviceRule::device(
        false,
        DeviceKind::Char,
        10,
        229,
        Access::ALL.without(Access::MKNOD).unwrap(),
    );
    own.cgroup.deny_device(&open).unwrap();
    assert_eq!(
        own.cgroup.device_rules().unwrap().to_string(),
        "deny a *:* rwm, allow c 1:7 r, allow c *:* m"
    );
}

fn budget(runtime_us: u64) -> Extras {
    Extras {
        rt_budget: Some(RtBudget {
            runtime_us,
            period_us: 1_000_000,
        }),
        ..Extras::default()
    }
}

fn with_group_budget() -> Option<Hierarchy> {
    let hierarchy = on_v1(Controller::Cpu)?;
    match Support::detect(&hierarchy).unwrap() {
        Support::PerGroup(_) => Some(hierarchy),
        Support::NodeOnly(_) => {
            eprintln!("skipped: needs CONFIG_RT_GROUP_SCHED");
            None
        }
    }
}

#[test]
fn a_real_time_policy_is_permitted_only_after_the_budget() {
    let Some(hierarchy) = with_group_budget() else {
        return;
    };
    let wanted = Wanted::for_resources(None, &budget(10_000));
    let own = Own::new(&hierarchy, "fifo", &wanted);
    let child = Sleeper::new();
    own.cgroup.attach(child.pid()).unwrap();
    let fifo = Scheduler::Fifo { priority: 5 };
    let error = sched::set(child.pid(), &fifo, 0).unwrap_err();
    assert_eq!(error.errno(), Some(libc::EPERM));
    assert!(
        error.hint().unwrap().contains("cpu.rt_runtime_us"),
        "{:?}",
        error.hint()
    );
    own.cgroup
        .apply(&LinuxResources::default(), &budget(10_000))
        .unwrap();
    assert_eq!(own.cgroup.rt_budget().unwrap().unwrap().runtime_us, 10_000);
    sched::set(child.pid(), &fifo, sched::RESET_ON_FORK).unwrap();
    let now = sched::get(child.pid()).unwrap();
    assert_eq!((now.scheduler, now.flags), (fifo, sched::RESET_ON_FORK));
}

/// The parent's budget follows its children up and down, and what a group held is free at once after its removal.
#[test]
fn the_parents_budget_is_the_sum_of_its_children() {
    let Some(hierarchy) = with_group_budget() else {
        return;
    };
    let wanted = Wanted::for_resources(None, &budget(1));
    let first = Own::new(&hierarchy, "sum", &wanted);
    let parent = first
        .dir(Controller::Cpu)
        .parent()
        .unwrap()
        .join("cpu.rt_runtime_us");
    let held = || {
        std::fs::read_to_string(&parent)
            .unwrap()
            .trim()
            .parse::<u64>()
            .unwrap()
    };
    first
        .cgroup
        .apply(&LinuxResources::default(), &budget(20_000))
        .unwrap();
    assert_eq!(held(), 20_000);
    let second = Cgroup::create(&hierarchy, &format!("{}/two", first.parent()), &wanted).unwrap();
    let outcome = second.set_rt_budget(RtBudget {
        runtime_us: 1_000,
        period_us: 100_000,
    });
    let both = held();
    for _ in 0..20 {
        second.remove().unwrap();
        assert_eq!(held(), 20_000);
        Cgroup::create(&hierarchy, second.path(), &wanted).unwrap();
        second
            .set_rt_budget(RtBudget {
                runtime_us: 1_000,
                period_us: 100_000,
            })
            .unwrap();
    }
    second.remove().unwrap();
    outcome.unwrap();
    assert_eq!(both, 30_000);
    assert_eq!(held(), 20_000);
    first.cgroup.remove().unwrap();
    assert_eq!(held(), 0);
}

#[test]
fn more_than_the_node_has_is_refused_with_what_the_node_has() {
    let Some(hierarchy) = with_group_budget() else {
        return;
    };
    let wanted = Wanted::for_resources(None, &budget(1));
    let own = Own::new(&hierarchy, "much", &wanted);
    let error = own
        .cgroup
        .apply(&LinuxResources::default(), &budget(999_999))
        .unwrap_err();
    let ApplyError::Budget(BudgetError::Exhausted { node, .. }) = &error else {
        panic!("{error}")
    };
    assert!(node.runtime_us < 999_999);
    assert!(error.to_string().contains("999999 us"), "{error}");
    assert!(error.hint().unwrap().contains("kernel.sched_rt_runtime_us"));
    let parent = own
        .dir(Controller::Cpu)
        .parent()
        .unwrap()
        .join("cpu.rt_runtime_us");
    assert_eq!(
        std::fs::read_to_string(parent).unwrap().trim(),
        "0",
        "a refused budget leaves the parent as it was"
    );
    for wrong in [
        RtBudget {
            runtime_us: 0,
            period_us: 1,
        },
        RtBudget {
            runtime_us: 2,
            period_us: 1,
        },
    ] {
        assert!(matches!(
            own.cgroup.set_rt_budget(wrong),
            Err(BudgetError::Invalid(_))
        ));
    }
}

#[test]
fn what_this_node_lacks_is_refused_by_name() {
    let Some(hierarchy) = on_v1(Controller::Memory) else {
        return;
    };
    for (json, part) in [
        (
            r#"{"rdma":{"mlx5_0":{"hcaHandles":3}}}"#,
            "linux.resources.rdma: the rdma controller",
        ),
        (
            r#"{"network":{"classID":1048577}}"#,
            "linux.resources.network.classID: the net_cls controller",
        ),
        (
            r#"{"network":{"priorities":[{"name":"eth0","priority":1}]}}"#,
            "linux.resources.network.priorities",
        ),
    ] {
        let wanted = Wanted::for_resources(Some(&resources(json)), &Extras::default());
        match Own::try_new(&hierarchy, "lacks", &wanted) {
            Err(error) => assert!(
                error.to_string().contains(part) && error.hint().is_some(),
                "{json}: {error}"
            ),
            Ok(_) => eprintln!("this node has it: {json}"),
        }
    }
    let own = Own::new(
        &hierarchy,
        "refused",
        &Wanted::new()
            .and(Controller::Memory, "the test")
            .and(Controller::Cpu, "the test"),
    );
    for (json, part) in [
        (
            r#"{"unified":{"memory.high":"1000000"}}"#,
            "linux.resources.unified.memory.high: not supported here: it takes cgroup v2",
        ),
        (
            r#"{"unified":{"../x.y":"1"}}"#,
            "not the name of a cgroup v2 file",
        ),
        (
            r#"{"memory":{"limit":1000,"swap":500}}"#,
            "linux.resources.memory.swap: 500 is memory and swap together",
        ),
        (
            r#"{"memory":{"limit":-2}}"#,
            "linux.resources.memory.limit: below -1",
        ),
        (
            r#"{"cpu":{"realtimePeriod":1000}}"#,
            "linux.resources.cpu.realtimePeriod",
        ),
        (
            r#"{"cpu":{"realtimeRuntime":-1}}"#,
            "linux.resources.cpu.realtimeRuntime",
        ),
        (r#"{"cpu":{"cpus":"0-"}}"#, "linux.resources.cpu.cpus: `0-`"),
        (
            r#"{"cpu":{"cpus":"0"}}"#,
            "the cpuset controller was not asked for",
        ),
        (
            r#"{"cpu":{"quota":500,"period":100000}}"#,
            "linux.resources.cpu.quota: cannot write `500`",
        ),
        (r#"{"pids":{"limit":0}}"#, ""),
    ] {
        match own.cgroup.apply(&resources(json), &Extras::default()) {
            Err(error) => assert!(
                !part.is_empty() && error.to_string().contains(part),
                "{json}: {error}"
            ),
            Ok(()) => assert!(part.is_empty(), "{json} was applied"),
        }
    }
}

#[test]
fn a_path_must_be_below_the_root() {
    for path in ["", "/", "a/../b", "..", "a//b", "a/./b", "a/\n"] {
        let error = Cgroup::create(&common::hierarchy(), path, &Wanted::new()).unwrap_err();
        assert!(matches!(error, CreateError::Path(_)), "{path}: {error}");
    }
    assert!(Cgroup::open(&common::hierarchy(), &path("nowhere")).is_err());
}

#[test]
fn v1_pins_and_says_who_else_may_run_there() {
    let Some(hierarchy) = on_v1(Controller::Cpuset) else {
        return;
    };
    let (own, resources) = own_with(&hierarchy, "pinned", r#"{"cpu":{"cpus":"1"}}"#);
    own.cgroup.apply(&resources, &Extras::default()).unwrap();
    let cpus = "1".parse().unwrap();
    let error = partition::isolate(&hierarchy, &own.cgroup, &cpus).unwrap_err();
    assert!(matches!(error, PartitionError::OnlyV1 { .. }), "{error}");
    let before = berth_rt::threads::foreign_threads(Path::new("/proc"), &cpus, &|_| false).unwrap();
    assert!(before.bound_kthreads > 0 && before.threads > 0, "{before:?}");
    let sleeper = Sleeper::new();
    own.cgroup.attach(sleeper.pid()).unwrap();
    // The test itself may run there, so at least one is foreign whatever the machine does meanwhile.
    let pinned = partition::isolation(&own.cgroup, &cpus, Path::new("/proc"), &|pid| {
        pid == sleeper.pid()
    })
    .unwrap();
    let Isolation::Pinned { foreign_threads } = pinned else {
        panic!("{pinned}")
    };
    assert!(foreign_threads > 0);
    assert!(
        pinned.to_string().starts_with("pinned, not isolated: "),
        "{pinned}"
    );
    let all_own = berth_rt::threads::foreign_threads(Path::new("/proc"), &cpus, &|_| true).unwrap();
    assert_eq!(all_own.threads, 0);
    assert_ne!(hierarchy.mode(), Mode::V2);
}
